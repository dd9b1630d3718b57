//! Paths of fields and what can be wrong with a field.
//!
//! A [`FieldError`] prints exactly as upstream does (`spec.replicas: Invalid value: -1: must be ...`) and becomes one
//! cause of a [`crate::status::Status`]. Lists keep the order in which errors were found.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::collections::BTreeSet;
use std::fmt;

use crate::json::{Number, Value};
use crate::text;

/// The way from an object's root to one field: `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path that starts with a field's name.
    pub fn new(name: &str) -> Self {
        FieldPath(name.to_owned())
    }

    /// No path at all: prints as `<nil>`, and a child of it is a root.
    pub const fn nil() -> Self {
        FieldPath(String::new())
    }

    /// A path whose only step has no name, which upstream uses for an object as a whole: prints as `[]`.
    pub fn unnamed() -> Self {
        FieldPath("[]".to_owned())
    }

    /// The field `name` below this one.
    pub fn child(&self, name: &str) -> Self {
        let mut path = String::with_capacity(self.0.len() + name.len() + 1);
        path.push_str(&self.0);
        if !self.0.is_empty() && !name.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        FieldPath(path)
    }

    /// Several steps at once.
    pub fn children(&self, names: &[&str]) -> Self {
        names.iter().fold(self.clone(), |path, name| path.child(name))
    }

    /// The element `index` of this list.
    pub fn index(&self, index: usize) -> Self {
        FieldPath(format!("{}[{index}]", self.0))
    }

    /// The entry `key` of this map.
    pub fn key(&self, key: &str) -> Self {
        FieldPath(format!("{}[{key}]", self.0))
    }

    pub fn is_nil(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

impl From<&str> for FieldPath {
    fn from(path: &str) -> Self {
        FieldPath(path.to_owned())
    }
}

/// What is wrong with a field. The name doubles as the `reason` of a status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    /// The machine-readable name in `details.causes[].reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooShort => "FieldValueTooShort",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TooFew => "FieldValueTooFew",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooShort => "Too short",
            ErrorType::TooMany => "Too many",
            ErrorType::TooFew => "Too few",
            ErrorType::Internal => "Internal error",
        }
    }
}

/// The value an error is about, as it will be printed.
#[derive(Clone, Debug, PartialEq)]
pub enum BadValue {
    /// Not printed at all.
    Omitted,
    /// Scalars print plainly, strings quoted, the rest as JSON.
    Value(Value),
    /// Already in its printed form: JSON of a structure whose members upstream prints in declaration order.
    Printed(String),
}

impl<T: Into<Value>> From<T> for BadValue {
    fn from(value: T) -> Self {
        BadValue::Value(value.into())
    }
}

impl From<&Value> for BadValue {
    fn from(value: &Value) -> Self {
        BadValue::Value(value.clone())
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorType,
    pub field: String,
    pub bad_value: BadValue,
    pub detail: String,
}

impl FieldError {
    pub fn new(kind: ErrorType, path: &FieldPath, bad_value: impl Into<BadValue>, detail: impl Into<String>) -> Self {
        FieldError { kind, field: path.to_string(), bad_value: bad_value.into(), detail: detail.into() }
    }

    /// A malformed value: failed pattern, out of bounds, and the like.
    pub fn invalid(path: &FieldPath, value: impl Into<BadValue>, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorType::Invalid, path, value, detail)
    }

    /// A value of the wrong type.
    pub fn type_invalid(path: &FieldPath, value: impl Into<BadValue>, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorType::TypeInvalid, path, value, detail)
    }

    /// A required value that is absent or empty.
    pub fn required(path: &FieldPath, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorType::Required, path, "", detail)
    }

    /// A second value that must be unique.
    pub fn duplicate(path: &FieldPath, value: impl Into<BadValue>) -> Self {
        FieldError::new(ErrorType::Duplicate, path, value, "")
    }

    /// A value that names something which does not exist.
    pub fn not_found(path: &FieldPath, value: impl Into<BadValue>) -> Self {
        FieldError::new(ErrorType::NotFound, path, value, "")
    }

    /// A value outside an enumeration. `supported` is printed in the order given (upstream mostly passes it sorted).
    pub fn not_supported<S: AsRef<str>>(path: &FieldPath, value: impl Into<BadValue>, supported: &[S]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| text::quote(s.as_ref())).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        FieldError::new(ErrorType::NotSupported, path, value, detail)
    }

    /// A value that is well formed but not permitted here.
    pub fn forbidden(path: &FieldPath, detail: impl Into<String>) -> Self {
        FieldError::new(ErrorType::Forbidden, path, "", detail)
    }

    /// A value longer than `max_bytes`; a negative limit is not printed.
    pub fn too_long(path: &FieldPath, max_bytes: i64) -> Self {
        Self::too_long_in(path, max_bytes, "byte")
    }

    /// A value of more than `max_characters`; a negative limit is not printed.
    pub fn too_long_characters(path: &FieldPath, max_characters: i64) -> Self {
        Self::too_long_in(path, max_characters, "character")
    }

    fn too_long_in(path: &FieldPath, max: i64, unit: &str) -> Self {
        let detail = match max {
            1 => format!("may not be more than 1 {unit}"),
            max if max >= 0 => format!("may not be more than {max} {unit}s"),
            _ => "value is too long".to_owned(),
        };
        FieldError::new(ErrorType::TooLong, path, "<value omitted>", detail)
    }

    /// A value of fewer than `min_characters`; a negative limit is not printed.
    pub fn too_short(path: &FieldPath, value: impl Into<BadValue>, min_characters: i64) -> Self {
        let detail = match min_characters {
            1 => "must be at least 1 character".to_owned(),
            min if min >= 0 => format!("must be at least {min} characters"),
            _ => "value is too short".to_owned(),
        };
        FieldError::new(ErrorType::TooShort, path, value, detail)
    }

    /// A list of more than `max` items; a negative `actual` or `max` is not printed.
    pub fn too_many(path: &FieldPath, actual: i64, max: i64) -> Self {
        let detail = match max {
            1 => "must have at most 1 item".to_owned(),
            max if max >= 0 => format!("must have at most {max} items"),
            _ => "has too many items".to_owned(),
        };
        let actual = if actual >= 0 { actual.into() } else { BadValue::Omitted };
        FieldError::new(ErrorType::TooMany, path, actual, detail)
    }

    /// A list of fewer than `min` items; a negative `min` is not printed.
    pub fn too_few(path: &FieldPath, actual: i64, min: i64) -> Self {
        let detail = match min {
            1 => "must have at least 1 item".to_owned(),
            min if min >= 0 => format!("must have at least {min} items"),
            _ => "has too few items".to_owned(),
        };
        FieldError::new(ErrorType::TooFew, path, actual, detail)
    }

    /// Something went wrong that the client did not cause.
    pub fn internal(path: &FieldPath, error: impl fmt::Display) -> Self {
        FieldError::new(ErrorType::Internal, path, BadValue::Omitted, error.to_string())
    }

    /// The text without the field: `Invalid value: -1: must be ...`.
    pub fn body(&self) -> String {
        let kind = self.kind.text();
        let mut out = match self.kind {
            ErrorType::Required
            | ErrorType::Forbidden
            | ErrorType::TooLong
            | ErrorType::TooShort
            | ErrorType::Internal => kind.to_owned(),
            _ => match &self.bad_value {
                BadValue::Omitted => kind.to_owned(),
                BadValue::Value(Value::String(s)) => format!("{kind}: {}", text::quote(s)),
                BadValue::Value(Value::Number(Number::Float(f))) => format!("{kind}: {}", text::float(*f)),
                BadValue::Value(other) => format!("{kind}: {}", text::json(other)),
                BadValue::Printed(printed) => format!("{kind}: {printed}"),
            },
        };
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// All errors in one text: each once, in brackets when there are several. Empty when there are none.
pub fn aggregate(errors: &[FieldError]) -> String {
    aggregate_texts(errors.iter().map(ToString::to_string))
}

/// The same for texts of any origin.
pub fn aggregate_texts(texts: impl IntoIterator<Item = String>) -> String {
    let mut seen = BTreeSet::new();
    let mut out = String::new();
    for text in texts {
        if seen.contains(&text) {
            continue;
        }
        if !seen.is_empty() {
            out.push_str(", ");
        }
        out.push_str(&text);
        seen.insert(text);
    }
    if seen.len() > 1 { format!("[{out}]") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn errors_print_as_upstream_prints_them() {
        let path = FieldPath::new("spec").child("ports").index(0).child("port");
        for (error, want) in [
            (FieldError::invalid(&path, 70000, "too big"), "spec.ports[0].port: Invalid value: 70000: too big"),
            (FieldError::invalid(&path, "a\"b", ""), r#"spec.ports[0].port: Invalid value: "a\"b""#),
            (FieldError::invalid(&path, json!({"a": "<"}), ""), r#"spec.ports[0].port: Invalid value: {"a":"\u003c"}"#),
            (FieldError::invalid(&path, Value::Null, "x"), "spec.ports[0].port: Invalid value: null: x"),
            (FieldError::type_invalid(&path, 1.5, "x"), "spec.ports[0].port: Invalid value: 1.5: x"),
            (FieldError::required(&path, ""), "spec.ports[0].port: Required value"),
            (FieldError::required(&path, "why"), "spec.ports[0].port: Required value: why"),
            (FieldError::duplicate(&path, true), "spec.ports[0].port: Duplicate value: true"),
            (FieldError::not_found(&path, "v"), r#"spec.ports[0].port: Not found: "v""#),
            (
                FieldError::not_supported(&path, "X", &["TCP", "UDP"]),
                r#"spec.ports[0].port: Unsupported value: "X": supported values: "TCP", "UDP""#,
            ),
            (FieldError::not_supported::<&str>(&path, "X", &[]), r#"spec.ports[0].port: Unsupported value: "X""#),
            (FieldError::forbidden(&path, "no"), "spec.ports[0].port: Forbidden: no"),
            (FieldError::too_long(&path, 63), "spec.ports[0].port: Too long: may not be more than 63 bytes"),
            (FieldError::too_long(&path, 1), "spec.ports[0].port: Too long: may not be more than 1 byte"),
            (FieldError::too_long(&path, -1), "spec.ports[0].port: Too long: value is too long"),
            (
                FieldError::too_long_characters(&path, 2),
                "spec.ports[0].port: Too long: may not be more than 2 characters",
            ),
            (FieldError::too_short(&path, "", 1), "spec.ports[0].port: Too short: must be at least 1 character"),
            (FieldError::too_many(&path, 3, 2), "spec.ports[0].port: Too many: 3: must have at most 2 items"),
            (FieldError::too_many(&path, -1, 2), "spec.ports[0].port: Too many: must have at most 2 items"),
            (FieldError::too_few(&path, 0, 1), "spec.ports[0].port: Too few: 0: must have at least 1 item"),
            (FieldError::internal(&path, "boom"), "spec.ports[0].port: Internal error: boom"),
            (FieldError::invalid(&FieldPath::nil(), "x", "y"), r#"<nil>: Invalid value: "x": y"#),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn paths_join_names_indexes_and_keys() {
        assert_eq!(FieldPath::nil().child("key").to_string(), "key");
        assert_eq!(FieldPath::nil().index(0).child("a").to_string(), "[0].a");
        assert_eq!(FieldPath::new("metadata").child("labels").key("a/b").to_string(), "metadata.labels[a/b]");
    }

    #[test]
    fn an_aggregate_lists_each_text_once() {
        let (a, b) = (FieldError::required(&"a".into(), ""), FieldError::required(&"b".into(), ""));
        assert_eq!(aggregate(&[]), "");
        assert_eq!(aggregate(&[a.clone(), a.clone()]), "a: Required value");
        assert_eq!(aggregate(&[a.clone(), b, a]), "[a: Required value, b: Required value]");
    }
}
