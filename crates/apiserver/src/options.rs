//! The options of writes, read from the query and checked.
//!
//! Follows: `k8s.io/apimachinery/pkg/apis/meta/v1/validation`.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::json;
use apimachinery::kinds;
use apimachinery::status::{Status, StatusResult};
use apimachinery::text::is_print;

use crate::request_info::Query;
use crate::strategy::FieldValidation;

/// The longest field manager name. Source: `validation.FieldManagerMaxLength`.
const FIELD_MANAGER_MAX: usize = 128;

/// Options of a create, update or patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
}

impl WriteOptions {
    /// Reads and checks the options of a request. `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn parse(query: &Query, kind: &str, is_apply: bool) -> StatusResult<WriteOptions> {
        let mut errors = Vec::new();
        let dry_run: Vec<&str> = query.all("dryRun").collect();
        check_dry_run(&dry_run, &mut errors);
        let manager = query.str("fieldManager");
        if kind == "PatchOptions" {
            if is_apply {
                if manager.is_empty() {
                    errors.push(FieldError::required(&FieldPath::new("fieldManager"), "is required for apply patch"));
                }
            } else if query.get("force").is_some() {
                errors
                    .push(FieldError::forbidden(&FieldPath::new("force"), "may not be specified for non-apply patch"));
            }
        }
        kinds::validate_field_manager(manager, &FieldPath::new("fieldManager"), &mut errors);
        let field_validation = match query.str("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(FieldError::not_supported(
                    &FieldPath::new("fieldValidation"),
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Box::new(Status::invalid(&GroupKind::new("meta.k8s.io", kind), "", &errors)));
        }
        Ok(WriteOptions {
            dry_run: !dry_run.is_empty(),
            field_manager: manager.to_owned(),
            field_validation,
            force: query.get("force").map(|_| query.flag("force")),
        })
    }

    /// The options as admission sees them.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !self.field_manager.is_empty() {
            options["fieldManager"] = self.field_manager.as_str().into();
        }
        options["fieldValidation"] = match self.field_validation {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        }
        .into();
        if let Some(force) = self.force {
            options["force"] = force.into();
        }
        options
    }

    /// The field manager, taken from the user agent when none is named.
    pub fn manager(&self, user_agent: &str) -> String {
        if !self.field_manager.is_empty() {
            return self.field_manager.clone();
        }
        let mut manager = String::new();
        let prefix = user_agent.split('/').next().unwrap_or("");
        for c in prefix.chars().filter(|c| is_print(*c)) {
            if manager.len() + c.len_utf8() > FIELD_MANAGER_MAX {
                break;
            }
            manager.push(c);
        }
        manager
    }
}

pub fn check_dry_run(values: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(_bad) = values.iter().find(|v| **v != "All") {
        let shown = Value::Array(values.iter().map(|v| Value::from(*v)).collect());
        errors.push(FieldError::not_supported(&FieldPath::new("dryRun"), shown, &["All"]));
    }
}
