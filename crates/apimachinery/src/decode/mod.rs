//! Request bodies become object trees: JSON and YAML, checked against the schema of the kind.
//!
//! - A value of the wrong type is an error; unknown and duplicate members are collected in upstream's words, in document
//!   order, for `fieldValidation` Strict and Warn, and unknown ones are dropped.
//! - What comes out is what Go would write again after reading the same body into its structs: nulls and empty optional
//!   values are gone, required ones are there with their zero value, quantities and times are in canonical form. The
//!   rest of the server relies on this form; [`normalize`] restores it after a patch.
//! - Custom resources and objects of unknown kinds go through [`untyped`]: only duplicates are collected. The API server
//!   holds custom resources to their structural schemas itself.
//!
//! Limits: nesting of at most [`MAX_DEPTH`]; the size of a body is the HTTP layer's business.
//!
//! Follows: `k8s.io/apimachinery/pkg/runtime/serializer/json`, `sigs.k8s.io/json`,
//! `apiserver/pkg/endpoints/handlers/create.go` (texts).

mod normalize;
mod parser;
mod restore;
mod yaml;

use crate::gvk::{GroupVersion, GroupVersionKind};
use crate::json::Value;
use crate::resources;
use crate::schema::{self, TypeRef};

pub(crate) use normalize::finish as normalize_struct;
pub use normalize::{as_stored, normalize, zero};
pub use restore::restore_error;

/// Deeper bodies are refused: less than what reading a stored object back allows.
pub const MAX_DEPTH: usize = 120;

/// At most so many unknown and duplicate members are told.
const MAX_STRICT_ERRORS: usize = 100;

/// What the body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// A decoded body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// Unknown and duplicate members, such as `unknown field "spec.foo"`.
    pub strict_errors: Vec<String>,
}

impl Decoded {
    /// The error that `fieldValidation=Strict` makes of the collected problems, if there are any.
    pub fn strict_error(&self) -> Option<String> {
        (!self.strict_errors.is_empty()).then(|| format!("strict decoding error: {}", self.strict_errors.join(", ")))
    }
}

/// Why a body could not be decoded. All are 400 BadRequest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON or YAML at all, or not an object.
    #[error("{0}")]
    Syntax(String),
    /// A value does not fit its field.
    #[error("{0}")]
    Type(String),
}

/// Why a body is not an object of the expected kind, with upstream's whole message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    pub message: String,
}

/// Decodes a value of type `ty`.
pub fn typed(body: &[u8], format: Format, ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    match format {
        Format::Json => {
            let (object, strict_errors) = parser::parse(body, Some(ty))?;
            Ok(Decoded { object, strict_errors })
        }
        Format::Yaml => {
            let yaml = yaml::to_json(body)?;
            // Upstream reads the JSON that it makes of YAML, with members in order: so come the strict errors.
            let (tree, _) = parser::parse(&yaml.json, None)?;
            let (object, more) = parser::parse(&tree.to_vec(), Some(ty))?;
            let mut strict_errors: Vec<String> = yaml.duplicates.into_iter().collect();
            strict_errors.extend(more);
            Ok(Decoded { object, strict_errors })
        }
    }
}

/// Decodes without a schema: everything is kept, nulls too.
pub fn untyped(body: &[u8], format: Format) -> Result<Decoded, DecodeError> {
    match format {
        Format::Json => {
            let (object, strict_errors) = parser::parse(body, None)?;
            Ok(Decoded { object, strict_errors })
        }
        Format::Yaml => {
            // JSON is YAML, is mostly what is sent, and is read much faster.
            if body.first() == Some(&b'{')
                && let Ok((object, strict_errors)) = parser::parse(body, None)
                && strict_errors.is_empty()
                && !has_floats(&object)
            {
                return Ok(Decoded { object, strict_errors });
            }
            let yaml = yaml::to_json(body)?;
            let (object, _) = parser::parse(&yaml.json, None)?;
            Ok(Decoded { object, strict_errors: yaml.duplicates.into_iter().collect() })
        }
    }
}

/// Whether there is a number that YAML would print in another way.
fn has_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => matches!(number, crate::json::Number::Float(_)),
        Value::Array(items) => items.iter().any(has_floats),
        Value::Object(members) => members.values().any(has_floats),
        _ => false,
    }
}

/// Checks a tree that was made by other means (a patch) against `ty`, as if it had been sent.
pub fn value(value: &Value, ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    typed(&value.to_vec(), Format::Json, ty)
}

/// `apiVersion` and `kind` of a body, empty when absent.
pub fn type_meta(object: &Value) -> (&str, &str) {
    (object.str_at(&["apiVersion"]), object.str_at(&["kind"]))
}

/// Decodes the body of a request for objects of a built-in kind. `apiVersion` and `kind` may be absent and are filled
/// in; others than the expected ones are refused.
pub fn object(
    body: &[u8],
    format: Format,
    expected: &GroupVersionKind,
    ty: TypeRef<'_>,
) -> Result<Decoded, ObjectError> {
    let decoded = match typed(body, format, ty) {
        // `null`, which an empty YAML document is too, leaves a struct as it was.
        Ok(d) if d.object.is_null() => typed(b"{}", format, ty),
        decoded => decoded,
    };
    // Whose fields the body has is decided by what it says it is: look at that first.
    let probe = match &decoded {
        Ok(d) => type_meta_of(&d.object),
        Err(DecodeError::Syntax(_)) => type_meta_of(&recognized(body, format, &expected.kind)?.object),
        Err(DecodeError::Type(_)) => type_meta_of(&recognized(body, format, &expected.kind)?.object),
    };
    if let Err(e) = GroupVersion::parse(&probe.0) {
        return Err(unrecognized(body, &expected.kind, &e.to_string()));
    }
    check_kind(&probe.0, &probe.1, expected)?;
    let mut decoded = decoded.map_err(|e| ObjectError { message: cannot_be_handled(expected, &expected.kind, &e) })?;
    expected.set_on(&mut decoded.object);
    Ok(decoded)
}

/// What Go's JSON decoder calls a value.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Object(_) => "object",
        Value::Null => "null",
    }
}

/// Decodes without a schema a body that must at least say, or leave out, what it is.
pub fn recognized(body: &[u8], format: Format, kind: &str) -> Result<Decoded, ObjectError> {
    let refused = |error: String| {
        let error = format!("couldn't get version/kind; json parse error: json: cannot unmarshal {error}");
        Err(unrecognized(body, kind, &error))
    };
    let decoded = match untyped(body, format) {
        Ok(decoded) => decoded,
        Err(e) if format == Format::Json => {
            let error = format!("couldn't get version/kind; json parse error: {e}");
            return Err(unrecognized(body, kind, &error));
        }
        Err(e) => return Err(unrecognized(body, kind, &e.to_string())),
    };
    match &decoded.object {
        Value::Object(map) => {
            for key in ["apiVersion", "kind"] {
                if let Some(other) = map.get(key).filter(|v| !v.is_null() && v.as_str().is_none()) {
                    return refused(format!("{} into Go struct field .{key} of type string", json_type(other)));
                }
            }
            Ok(decoded)
        }
        Value::Null => Ok(decoded),
        other => refused(format!(
            r#"{} into Go value of type struct {{ APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }}"#,
            json_type(other)
        )),
    }
}

/// The message of a body that has the right kind and cannot be used.
pub fn cannot_be_handled(actual: &GroupVersionKind, kind: &str, error: &impl std::fmt::Display) -> String {
    format!("{} in version {:?} cannot be handled as a {kind}: {error}", actual.kind, actual.version.as_str())
}

/// Refuses `apiVersion` and `kind` of a body other than the expected ones; empty ones stand for the expected.
pub fn check_kind(api_version: &str, kind: &str, expected: &GroupVersionKind) -> Result<(), ObjectError> {
    let error = |message: String| Err(ObjectError { message });
    let given = match GroupVersion::parse(api_version) {
        Ok(gv) if api_version.is_empty() => {
            let _ = gv;
            expected.group_version()
        }
        Ok(gv) => gv,
        Err(e) => {
            return error(format!(
                "the object provided is unrecognized (must be of type {}): couldn't get version/kind; {e}",
                expected.kind
            ));
        }
    };
    let kind = if kind.is_empty() { expected.kind.as_str() } else { kind };
    let actual = given.with_kind(kind);
    // Options belong to every group and version.
    let everywhere = |k: &GroupVersionKind| {
        let ty = schema::lookup(&k.group, &k.version, &k.kind).and_then(TypeRef::structure);
        ty.and_then(|s| s.gvk.as_ref()).is_some_and(|(group, _, _)| group == "*")
    };
    if actual == *expected || actual.kind == expected.kind && everywhere(&actual) {
        return Ok(());
    }
    if !known(&actual) {
        let cause = format!(
            "no kind {kind:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            actual.api_version()
        );
        return error(cannot_be_handled(&actual, &expected.kind, &cause));
    }
    if kind != expected.kind {
        let cause = format!("converting ({}.{kind}) to ({}): unknown conversion", actual.version, expected.kind);
        return error(cannot_be_handled(&actual, &expected.kind, &cause));
    }
    error(format!(
        "the API version in the data ({}) does not match the expected API version ({})",
        actual.api_version(),
        expected.api_version()
    ))
}

/// Whether upstream's scheme knows a kind: served ones, and old versions of them that are no longer served.
fn known(gvk: &GroupVersionKind) -> bool {
    if schema::lookup(&gvk.group, &gvk.version, &gvk.kind).is_some() {
        return true;
    }
    let old = gvk.version.contains("beta") || gvk.version.contains("alpha");
    let same_kind =
        |r: &&resources::Resource| r.kind == gvk.kind && (r.group == gvk.group || gvk.group == "extensions");
    old && resources::RESOURCES.iter().any(|r| same_kind(&r))
}

fn type_meta_of(object: &Value) -> (String, String) {
    let (api_version, kind) = type_meta(object);
    (api_version.to_owned(), kind.to_owned())
}

/// Refuses a body that does not say what it is, showing its beginning.
pub fn unrecognized(body: &[u8], kind: &str, error: &str) -> ObjectError {
    const SHOWN: usize = 30;
    let start = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    let shown = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => format!("{}{more}", start.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    };
    ObjectError { message: format!("the object provided is unrecognized (must be of type {kind}): {error} ({shown})") }
}

#[cfg(test)]
mod tests;
