//! patch: JSON patch, merge patch, strategic merge patch, apply.
//!
//! A patch is applied to the object as it is now; when somebody else writes first, it is applied again to what they wrote.
//! Only apply creates.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

use apimachinery::Value;
use apimachinery::decode::{self, Format};
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::patch::{self, PatchError};
use apimachinery::status::{Status, StatusDetails, StatusResult, reason};
use apimachinery::text;
use http::Response;

use super::write::{Change, change_object, check_name};
use super::{Cx, body_bytes};
use crate::body::{Body, RequestBody};
use crate::managed_fields;
use crate::options::WriteOptions;
use crate::output::Form;
use crate::strategy::FieldValidation;

/// The media types of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    const fn media_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }

    fn of_request(cx: &Cx) -> StatusResult<PatchType> {
        let header = cx.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let media_type = header.split(';').next().unwrap_or("").trim();
        let custom = [PatchType::Json, PatchType::Merge, PatchType::Apply];
        let builtin = [PatchType::Json, PatchType::Merge, PatchType::Strategic, PatchType::Apply];
        let accepted = if cx.resource.builtin { &builtin[..] } else { &custom[..] };
        if let Some(found) = accepted.iter().find(|t| t.media_type() == media_type) {
            return Ok(*found);
        }
        // Built-in resources are refused by upstream's router, with its own text.
        Err(Box::new(if cx.resource.builtin {
            let text = "415: Unsupported Media Type";
            Status {
                details: Some(StatusDetails::default()),
                ..Status::failure(415, reason::UNSUPPORTED_MEDIA_TYPE, text)
            }
        } else {
            Status::unsupported_media_type(&custom.map(PatchType::media_type))
        }))
    }
}

/// A decoded patch.
enum Patch {
    Json(patch::json::JsonPatch),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

/// What strict validation of the patch itself found, and the patch.
struct Decoded {
    patch: Patch,
    strict_errors: Vec<String>,
}

fn bad_request(prefix: &str, error: impl std::fmt::Display) -> Box<Status> {
    Box::new(Status::bad_request(format!("{prefix}{error}")))
}

fn failed(error: PatchError) -> Box<Status> {
    Box::new(error.to_status())
}

fn decode(patch_type: PatchType, body: &[u8]) -> StatusResult<Decoded> {
    Ok(match patch_type {
        PatchType::Json => {
            let patch = patch::json::JsonPatch::decode(body).map_err(failed)?;
            let strict_errors = patch.strict_errors().to_vec();
            Decoded { patch: Patch::Json(patch), strict_errors }
        }
        PatchType::Merge => {
            let patch = patch::merge::decode(body).map_err(failed)?;
            let strict_errors = decode::untyped(body, Format::Json).map(|d| d.strict_errors).unwrap_or_default();
            Decoded { patch: Patch::Merge(patch), strict_errors }
        }
        PatchType::Strategic => {
            let decoded = decode::untyped(body, Format::Json).map_err(|e| bad_request("", e))?;
            Decoded { patch: Patch::Strategic(decoded.object), strict_errors: decoded.strict_errors }
        }
        PatchType::Apply => {
            let prefix = "error decoding YAML: ";
            let decoded = decode::untyped(body, Format::Yaml).map_err(|e| bad_request(prefix, e))?;
            Decoded { patch: Patch::Apply(decoded.object), strict_errors: decoded.strict_errors }
        }
    })
}

/// Refuses a patch whose result is no object of the kind.
fn invalid(bad_value: &str, error: impl Into<String>) -> Box<Status> {
    let error = FieldError::invalid(&FieldPath::new("patch"), bad_value, error);
    Box::new(Status::invalid(&GroupKind::default(), "", &[error]))
}

/// Makes an object of what the patch made, reporting unknown fields as asked.
fn decode_result(
    cx: &Cx,
    options: &WriteOptions,
    tree: Value,
    mut strict_errors: Vec<String>,
    bad_value: impl Fn(&Value) -> String,
) -> StatusResult<Value> {
    let shown = bad_value(&tree);
    let decoded = cx.resource.strategy.decode_tree(tree).map_err(|e| invalid(&shown, e))?;
    strict_errors.extend(decoded.strict_errors);
    match options.field_validation {
        FieldValidation::Strict if !strict_errors.is_empty() => {
            return Err(invalid(&shown, format!("strict decoding error: {}", strict_errors.join(", "))));
        }
        FieldValidation::Warn => cx.warn_all(strict_errors),
        _ => {}
    }
    Ok(decoded.object)
}

/// Serves PATCH of an object, or of its status.
pub async fn patch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let patch_type = PatchType::of_request(cx)?;
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "PatchOptions", patch_type == PatchType::Apply)?;
    let mut decoded: Option<Decoded> = None;
    let change = Change {
        options: &options,
        options_kind: "UpdateOptions",
        force_create: patch_type == PatchType::Apply,
        precondition_uid: None,
        retry_conflicts: true,
    };
    let manager = options.manager(cx.user_agent());
    let (written, created) = change_object(cx, &change, |current| {
        if current.is_none() && patch_type != PatchType::Apply {
            return Err(cx.not_found());
        }
        // The body is looked at only now: an object that does not exist is told first.
        let decoded = match &mut decoded {
            Some(decoded) => decoded,
            none => none.insert(decode(patch_type, &body)?),
        };
        let mut new = make(cx, &options, decoded, current, &manager)?;
        if current.is_none() && !new.uid().is_empty() {
            let text = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                new.uid()
            );
            return Err(Box::new(Status::conflict(&cx.resource.group_resource(), &cx.info.name, text)));
        }
        super::write::match_namespace(cx, &mut new)?;
        check_name(cx, &mut new)?;
        managed_fields::dedup_owner_references(cx, &mut new);
        Ok(new)
    })
    .await?;
    written.respond(cx, &form, if created { 201 } else { 200 }).await
}

/// Applies the patch to what is there.
fn make(
    cx: &Cx,
    options: &WriteOptions,
    decoded: &Decoded,
    current: Option<&Value>,
    manager: &str,
) -> StatusResult<Value> {
    let strategy = &cx.resource.strategy;
    let strict_errors = decoded.strict_errors.clone();
    let current = match (&decoded.patch, current) {
        (Patch::Apply(config), current) => return apply(cx, options, config, strict_errors, current),
        (_, Some(current)) => current,
        (_, None) => return Err(cx.not_found()),
    };
    let mut new = match &decoded.patch {
        Patch::Json(patch) => {
            let tree = patch.apply(current).map_err(failed)?;
            decode_result(cx, options, tree, strict_errors, Value::to_string)?
        }
        Patch::Merge(patch) => {
            let tree = patch::merge::apply(current, patch);
            decode_result(cx, options, tree, strict_errors, Value::to_string)?
        }
        Patch::Strategic(patch) => {
            let Some(ty) = strategy.patch_schema() else {
                return Err(Box::new(Status::bad_request("strategic merge patch format is not supported")));
            };
            let tree = patch::strategic::apply(current, patch, ty).map_err(failed)?;
            decode_result(cx, options, tree, strict_errors, |_| text::go_value(patch))?
        }
        Patch::Apply(_) => return Err(cx.not_found()),
    };
    strategy.default_object(&mut new);
    managed_fields::track_update(cx, current, &mut new, manager);
    Ok(new)
}

fn apply(
    cx: &Cx,
    options: &WriteOptions,
    config: &Value,
    strict_errors: Vec<String>,
    current: Option<&Value>,
) -> StatusResult<Value> {
    let strategy = &cx.resource.strategy;
    let force = options.force.unwrap_or(false);
    let merged = managed_fields::with_manager(cx, |m| m.apply(current, config, &options.field_manager, force))
        .map_err(|e| Box::new(e.to_status()))?;
    let mut new = match strategy.decode_tree(merged) {
        Ok(decoded) => decoded.object,
        Err(error) => return Err(Box::new(Status::plain_error(error))),
    };
    strategy.default_object(&mut new);
    if let Some(first) = strict_errors.first() {
        match options.field_validation {
            FieldValidation::Strict => return Err(bad_request("error strict decoding YAML: ", first)),
            FieldValidation::Warn => cx.warn_all(strict_errors),
            FieldValidation::Ignore => {}
        }
    }
    Ok(new)
}
