//! patch: JSON patch, merge patch, strategic merge patch, apply.
//!
//! A patch is applied to the object as it is now; when somebody else writes first, it is applied again to what they wrote.
//! Only apply creates.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

use apimachinery::Value;
use apimachinery::apply::ApplyError;
use apimachinery::decode::{self, Format};
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::patch::{self, PatchError};
use apimachinery::schema::TypeRef;
use apimachinery::status::{Status, StatusDetails, StatusResult, reason};
use apimachinery::text;
use bytes::Bytes;
use http::Response;

use super::write::{Change, change_object, check_name};
use super::{Cx, body_bytes};
use crate::body::{Body, RequestBody};
use crate::managed_fields;
use crate::options::WriteOptions;
use crate::output::Form;
use crate::strategy::{DecodedTree, FieldValidation, one_by_one};

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

/// What a patch is applied to: the object of the path, or what one of its subresources shows of it.
pub trait Target: Sync {
    /// Brings a tree that a patch made into decoded form.
    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String>;
    /// The schema of strategic merge patches.
    fn patch_schema(&self) -> Option<TypeRef<'_>>;
    fn default_object(&self, object: &mut Value);
    /// Records who made `new` of `current`.
    fn track(&self, current: &Value, new: &mut Value, manager: &str);
    fn apply(&self, current: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError>;
}

/// The object itself.
struct Whole<'a>(&'a Cx);

impl Target for Whole<'_> {
    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String> {
        self.0.resource.strategy.decode_tree(tree)
    }
    fn patch_schema(&self) -> Option<TypeRef<'_>> {
        self.0.resource.strategy.patch_schema()
    }
    fn default_object(&self, object: &mut Value) {
        self.0.resource.strategy.default_object(object);
    }
    fn track(&self, current: &Value, new: &mut Value, manager: &str) {
        managed_fields::track_update(self.0, current, new, manager);
    }
    fn apply(&self, current: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
        managed_fields::with_manager(self.0, |m| m.apply(current, config, manager, force))
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
            let converted = |e| bad_request(prefix, format!("error converting YAML to JSON: {e}"));
            let decoded = decode::untyped(body, Format::Yaml).map_err(converted)?;
            if !decoded.object.is_object() && !decoded.object.is_null() {
                let text = format!(
                    "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    decode::json_type(&decoded.object)
                );
                return Err(bad_request(prefix, text));
            }
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
    target: &dyn Target,
    options: &WriteOptions,
    tree: Value,
    mut strict_errors: Vec<String>,
    bad_value: impl Fn(&Value) -> String,
) -> StatusResult<Value> {
    let shown = bad_value(&tree);
    // A custom resource keeps its kind. Source: `customresource_handler.go` (`schemaCoercingConverter`).
    let wanted = &cx.resource.gvk;
    let (api_version, kind) = decode::type_meta(&tree);
    let custom = !cx.resource.builtin && cx.info.subresource != "scale";
    if custom && kind.is_empty() {
        return Err(invalid(&shown, format!("Object 'Kind' is missing in '{tree}'")));
    }
    if custom && api_version.is_empty() {
        let text = "Object 'apiVersion' is missing in 'object has no apiVersion field'";
        return Err(Box::new(Status::internal_error(text)));
    }
    if custom {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let wanted_version = wanted.api_version();
        let wrong = match (api_version == wanted_version, kind == wanted.kind.as_str()) {
            (true, true) => None,
            (false, _) => Some(("apiVersion", api_version, wanted_version.as_str())),
            (true, false) => Some(("kind", kind, wanted.kind.as_str())),
        };
        if let Some((field, given, wanted)) = wrong {
            let error = FieldError::invalid(&FieldPath::new(field), given, format!("must be {wanted}"));
            return Err(Box::new(Status::invalid(&GroupKind::new(group, kind), &cx.info.name, &[error])));
        }
    }
    let decoded = target.decode_tree(tree).map_err(|e| invalid(&shown, e))?;
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

/// A patch request: read once, applied as often as it takes.
pub struct PatchRequest {
    patch_type: PatchType,
    body: Bytes,
    pub options: WriteOptions,
    manager: String,
    decoded: Option<Decoded>,
}

impl PatchRequest {
    pub async fn read(cx: &Cx, body: RequestBody) -> StatusResult<PatchRequest> {
        let patch_type = PatchType::of_request(cx)?;
        let body = body_bytes(body).await?;
        let options = WriteOptions::parse(&cx.info.query, "PatchOptions", patch_type == PatchType::Apply)?;
        let manager = options.manager(cx.user_agent());
        Ok(PatchRequest { patch_type, body, options, manager, decoded: None })
    }

    /// Applies the patch to what is there.
    pub fn make(&mut self, cx: &Cx, target: &dyn Target, current: Option<&Value>) -> StatusResult<Value> {
        if current.is_none() && self.patch_type != PatchType::Apply {
            return Err(cx.not_found());
        }
        // The body is looked at only now: an object that does not exist is told first.
        let decoded = match &self.decoded {
            Some(decoded) => decoded,
            None => self.decoded.insert(decode(self.patch_type, &self.body)?),
        };
        make(cx, target, &self.options, decoded, current, &self.manager)
    }
}

/// Serves PATCH of an object, or of its status.
pub async fn patch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let mut request = PatchRequest::read(cx, body).await?;
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let options = request.options.clone();
    let change = Change {
        options: &options,
        options_kind: "UpdateOptions",
        force_create: request.patch_type == PatchType::Apply,
        precondition_uid: None,
        by_server: false,
        shown: None,
    };
    let (written, created) = change_object(cx, &change, |current| {
        let mut new = request.make(cx, &Whole(cx), current)?;
        if current.is_none() && !new.uid().is_empty() {
            let text = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                new.uid()
            );
            return Err(Box::new(Status::conflict(&cx.resource.group_resource(), &cx.info.name, text)));
        }
        super::write::match_namespace(cx, &mut new)?;
        check_name(cx, &mut new)?;
        Ok(new)
    })
    .await?;
    written.respond(cx, &form, if created { 201 } else { 200 }).await
}

fn make(
    cx: &Cx,
    target: &dyn Target,
    options: &WriteOptions,
    decoded: &Decoded,
    current: Option<&Value>,
    manager: &str,
) -> StatusResult<Value> {
    let strict_errors = decoded.strict_errors.clone();
    let current = match (&decoded.patch, current) {
        (Patch::Apply(config), current) => return apply(cx, target, options, config, strict_errors, current),
        (_, Some(current)) => current,
        (_, None) => return Err(cx.not_found()),
    };
    let mut new = match &decoded.patch {
        Patch::Json(patch) => {
            let tree = patch.apply(current).map_err(failed)?;
            decode_result(cx, target, options, tree, strict_errors, Value::to_string)?
        }
        Patch::Merge(patch) => {
            let tree = patch::merge::apply(current, patch);
            decode_result(cx, target, options, tree, strict_errors, Value::to_string)?
        }
        Patch::Strategic(patch) => {
            let Some(ty) = target.patch_schema() else {
                return Err(Box::new(Status::bad_request("strategic merge patch format is not supported")));
            };
            let tree = patch::strategic::apply(current, patch, ty).map_err(failed)?;
            if let Some(error) = decode::restore_error(&tree, ty) {
                return Err(invalid(&text::go_value(patch), error));
            }
            decode_result(cx, target, options, tree, strict_errors, |_| text::go_value(patch))?
        }
        Patch::Apply(_) => return Err(cx.not_found()),
    };
    target.default_object(&mut new);
    target.track(current, &mut new, manager);
    Ok(new)
}

fn apply(
    cx: &Cx,
    target: &dyn Target,
    options: &WriteOptions,
    config: &Value,
    strict_errors: Vec<String>,
    current: Option<&Value>,
) -> StatusResult<Value> {
    let force = options.force.unwrap_or(false);
    let merged = target.apply(current, config, &options.field_manager, force).map_err(|e| Box::new(e.to_status()))?;
    let mut new = match target.decode_tree(merged) {
        Ok(decoded) => decoded.object,
        Err(error) => return Err(Box::new(Status::plain_error(error))),
    };
    target.default_object(&mut new);
    if let Some(first) = strict_errors.first() {
        match options.field_validation {
            FieldValidation::Strict => {
                return Err(bad_request("error strict decoding YAML: error converting YAML to JSON: ", first));
            }
            FieldValidation::Warn => cx.warn_all(one_by_one(strict_errors)),
            FieldValidation::Ignore => {}
        }
    }
    Ok(new)
}
