//! Validation of `metadata`, on create and on update.
//!
//! Follows `k8s.io/apimachinery/pkg/api/validation` and `pkg/apis/core/validation.ValidateObjectMeta`, which adds the rule
//! about unqualified finalizers for most built-in kinds.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, nonnegative};
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::names::{self, Messages};
use crate::text::is_print;

/// How the metadata of a kind is checked.
#[derive(Clone, Copy)]
pub(crate) struct MetaRules {
    pub namespaced: bool,
    pub name: fn(&str, bool) -> Messages,
    /// Finalizers without a domain must be standard ones.
    pub kube_finalizers: bool,
    /// `generateName` is not checked by itself: kinds that moved to declarative name checks.
    pub skip_generate_name: bool,
}

impl MetaRules {
    pub(crate) const fn namespaced(name: fn(&str, bool) -> Messages) -> Self {
        MetaRules { namespaced: true, name, kube_finalizers: true, skip_generate_name: false }
    }

    pub(crate) const fn cluster(name: fn(&str, bool) -> Messages) -> Self {
        MetaRules { namespaced: false, name, kube_finalizers: true, skip_generate_name: false }
    }
}

/// Names of namespaces.
pub(crate) fn namespace_name(name: &str, prefix: bool) -> Messages {
    names::name_is_dns_label(name, prefix)
}

/// Any name.
pub(crate) fn any_name(_: &str, _: bool) -> Messages {
    Vec::new()
}

/// Validates `metadata` of an object to be created, and the unchanged rules of one to be updated.
pub(crate) fn validate(object: &Value, rules: MetaRules, errors: &mut Errors) {
    let path = FieldPath::new("metadata");
    let meta = object.v("metadata");
    let (name, generate_name) = (meta.s("name"), meta.s("generateName"));
    if !generate_name.is_empty() && !rules.skip_generate_name {
        errors.messages(&path.child("generateName"), generate_name, (rules.name)(generate_name, true));
    }
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        errors.messages(&path.child("name"), name, (rules.name)(name, false));
    }
    let namespace = meta.s("namespace");
    if rules.namespaced {
        if namespace.is_empty() {
            errors.required(&path.child("namespace"), "");
        } else {
            errors.messages(&path.child("namespace"), namespace, namespace_name(namespace, false));
        }
    } else if !namespace.is_empty() {
        errors.forbidden(&path.child("namespace"), "not allowed on this type");
    }
    nonnegative(meta.i("generation"), &path.child("generation"), errors);
    check::labels(meta.members("labels"), &path.child("labels"), errors);
    check::annotations(meta.members("annotations"), &path.child("annotations"), errors);
    owner_references(meta, &path.child("ownerReferences"), errors);
    finalizers(meta, &path.child("finalizers"), errors);
    managed_fields(meta, &path.child("managedFields"), errors);
    if rules.kube_finalizers {
        kube_finalizers(meta, &path.child("finalizers"), errors);
    }
}

/// Validates `metadata` of a custom resource's object.
pub fn validate_custom(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let name = crate::names::name_is_dns_subdomain;
    // Finalizers without a domain are odd and allowed here.
    let rules = MetaRules { namespaced, name, kube_finalizers: false, skip_generate_name: false };
    validate(object, rules, &mut errors);
    errors
}

/// Validates the change of a custom resource's `metadata`.
pub fn validate_custom_update(new: &Value, old: &Value, _namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::new();
    validate_update(new, old, false, &mut errors);
    errors
}

/// Validates what may not change in `metadata`.
pub(crate) fn validate_update(new: &Value, old: &Value, kube: bool, errors: &mut Errors) {
    let path = FieldPath::new("metadata");
    let (meta, old_meta) = (new.v("metadata"), old.v("metadata"));
    if old_meta.has("deletionTimestamp") {
        let before = check::strings(old_meta, "finalizers");
        let mut extra: Vec<&str> =
            check::strings(meta, "finalizers").into_iter().filter(|f| !before.contains(f)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let listed: Vec<String> = extra.iter().map(|f| format!("{f:?}")).collect();
            errors.forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    listed.join(", ")
                ),
            );
        }
    }
    if meta.s("resourceVersion").is_empty() {
        errors.invalid(&path.child("resourceVersion"), "", "must be specified for an update");
    }
    if meta.i("generation") < old_meta.i("generation") {
        errors.invalid(&path.child("generation"), meta.i("generation"), "must not be decremented");
    }
    for key in ["name", "namespace", "uid"] {
        if meta.s(key) != old_meta.s(key) {
            errors.invalid(&path.child(key), meta.s(key), check::IMMUTABLE);
        }
    }
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if !semantic_equal(meta.v(key), old_meta.v(key)) {
            errors.invalid(&path.child(key), check::shown(meta.v(key)), check::IMMUTABLE);
        }
    }
    check::labels(meta.members("labels"), &path.child("labels"), errors);
    check::annotations(meta.members("annotations"), &path.child("annotations"), errors);
    owner_references(meta, &path.child("ownerReferences"), errors);
    managed_fields(meta, &path.child("managedFields"), errors);
    if kube {
        kube_finalizers(meta, &path.child("finalizers"), errors);
    }
}

/// What every update is checked for before the kind's own rules, which repeat most of it: upstream answers a cause for
/// each.
///
/// Source: `k8s.io/apiserver/pkg/registry/rest.validateCommonFields`.
pub fn validate_common_update(new: &Value, old: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let name = names::name_is_path_segment;
    let rules = MetaRules { namespaced, name, kube_finalizers: false, skip_generate_name: false };
    validate(new, rules, &mut errors);
    validate_update(new, old, false, &mut errors);
    errors
}

/// The metadata of a template: nothing but labels and annotations.
pub(crate) fn validate_template(meta: &Value, path: &FieldPath, errors: &mut Errors) {
    check::annotations(meta.members("annotations"), &path.child("annotations"), errors);
    check::labels(meta.members("labels"), &path.child("labels"), errors);
    const OTHERS: &[&str] = &[
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ];
    for key in OTHERS {
        let set = meta.o(key).is_some_and(|v| match v {
            Value::String(s) => !s.is_empty(),
            Value::Array(a) => !a.is_empty(),
            Value::Number(_) => *key == "deletionGracePeriodSeconds" || v.as_i64() != Some(0),
            _ => true,
        });
        if set {
            let shown = if *key == "uid" { "uID" } else { key };
            errors.forbidden(&path.child(shown), "cannot be set");
        }
    }
}

/// Owner references as upstream prints them, members in the order of the type.
fn printed_owners(references: &[Value]) -> BadValue {
    let one = |r: &Value| {
        let mut out = format!(
            "{{\"apiVersion\":{},\"kind\":{},\"name\":{},\"uid\":{}",
            Value::from(r.s("apiVersion")),
            Value::from(r.s("kind")),
            Value::from(r.s("name")),
            Value::from(r.s("uid"))
        );
        for key in ["controller", "blockOwnerDeletion"] {
            if let Some(flag) = r.ob(key) {
                out.push_str(&format!(",\"{key}\":{flag}"));
            }
        }
        out.push('}');
        out
    };
    let all: Vec<String> = references.iter().map(one).collect();
    BadValue::Printed(format!("[{}]", all.join(",")))
}

fn owner_references(meta: &Value, path: &FieldPath, errors: &mut Errors) {
    let references = meta.list("ownerReferences");
    let mut controller: Option<String> = None;
    for reference in references {
        let api_version = reference.s("apiVersion");
        let version = api_version.rsplit('/').next().unwrap_or("");
        if version.is_empty() || api_version.matches('/').count() > 1 {
            errors.invalid(&path.child("apiVersion"), api_version, "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if reference.s(key).is_empty() {
                errors.invalid(&path.child(key), reference.s(key), "must not be empty");
            }
        }
        if api_version == "v1" && reference.s("kind") == "Event" {
            let printed = match printed_owners(std::slice::from_ref(reference)) {
                BadValue::Printed(list) => BadValue::Printed(list[1..list.len() - 1].to_owned()),
                other => other,
            };
            errors.invalid(path, printed, "/v1, Kind=Event is disallowed from being an owner");
        }
        if reference.b("controller") {
            let current = format!("{}/{}", reference.s("kind"), reference.s("name"));
            match &controller {
                Some(first) => errors.invalid(
                    path,
                    printed_owners(references),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {current}"),
                ),
                None => controller = Some(current),
            }
        }
    }
}

fn finalizers(meta: &Value, path: &FieldPath, errors: &mut Errors) {
    let list = check::strings(meta, "finalizers");
    for finalizer in &list {
        check::qualified_name(finalizer, path, errors);
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        errors.invalid(path, meta.v("finalizers"), "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

fn kube_finalizers(meta: &Value, path: &FieldPath, errors: &mut Errors) {
    for (i, finalizer) in check::strings(meta, "finalizers").into_iter().enumerate() {
        kube_finalizer(finalizer, &path.index(i), errors);
    }
}

/// A finalizer has a domain, unless it is one of the three standard ones.
pub(crate) fn kube_finalizer(finalizer: &str, path: &FieldPath, errors: &mut Errors) {
    if !finalizer.contains('/') && !matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
        errors.invalid(path, finalizer, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn managed_fields(meta: &Value, path: &FieldPath, errors: &mut Errors) {
    for (i, entry) in meta.list("managedFields").iter().enumerate() {
        let path = path.index(i);
        if !matches!(entry.s("operation"), "Apply" | "Update") {
            errors.invalid(&path.child("operation"), entry.s("operation"), "must be `Apply` or `Update`");
        }
        if !matches!(entry.s("fieldsType"), "" | "FieldsV1") {
            errors.invalid(&path.child("fieldsType"), entry.s("fieldsType"), "must be `FieldsV1`");
        }
        field_manager(entry.s("manager"), &path.child("manager"), errors);
        if entry.s("subresource").len() > 256 {
            errors.push(FieldError::too_long(&path.child("subresource"), 256));
        }
    }
}

/// A field manager's name: at most 128 bytes, printable.
pub fn field_manager(manager: &str, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if manager.len() > 128 {
        errors.push(FieldError::too_long(path, 128));
    }
    for (i, c) in manager.char_indices() {
        if !is_print(c) {
            errors.invalid(path, manager, format!("invalid character U+{:04X} (at position {i})", u32::from(c)));
        }
    }
}
