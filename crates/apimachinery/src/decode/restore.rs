//! Whether a tree can become an object of a kind, told in the words of Go's conversion from unstructured trees, which
//! is what a strategic merge patch goes through. It walks structs in the order of their fields.
//!
//! Follows: `k8s.io/apimachinery/pkg/runtime/converter.go` (`fromUnstructured`).

use super::parser::go_type;
use crate::json::{Number, Value};
use crate::schema::{Scalar, Shape, TypeRef};

/// Why `value` does not fit `ty`. Types that read their own JSON (times, quantities) are left to the decoder.
pub fn restore_error(value: &Value, ty: TypeRef<'_>) -> Option<String> {
    match (ty.shape(), value) {
        (_, Value::Null) | (Shape::Any, _) => None,
        (Shape::Struct(_), Value::Object(members)) => {
            let mut fields: Vec<_> = ty.fields().collect();
            fields.sort_by_key(|field| field.order);
            fields.into_iter().find_map(|field| restore_error(members.get(field.name())?, field.ty()))
        }
        (Shape::Struct(_), other) => Some(format!("cannot restore struct from: {}", go_kind(other))),
        (Shape::Map(map), Value::Object(members)) => {
            members.values().find_map(|member| restore_error(member, ty.other(map.value)))
        }
        (Shape::Map(_), other) => Some(format!("cannot restore map from {}", go_kind(other))),
        (Shape::List(list), Value::Array(items)) => {
            items.iter().find_map(|item| restore_error(item, ty.other(list.element)))
        }
        (Shape::List(_), other) => Some(format!("cannot restore slice from {}", go_kind(other))),
        (Shape::Enum(_), value) => scalar_error(Scalar::String, value, ty),
        (Shape::Scalar(scalar), value) => scalar_error(*scalar, value, ty),
    }
}

fn scalar_error(scalar: Scalar, value: &Value, ty: TypeRef<'_>) -> Option<String> {
    let wanted = match scalar {
        Scalar::String => "string",
        Scalar::Bool => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Double => "float64",
        Scalar::Bytes if !value.is_string() => return Some(format!("cannot restore slice from {}", go_kind(value))),
        _ => return None,
    };
    let convertible = match (wanted, value) {
        ("string", Value::String(_)) | ("bool", Value::Bool(_)) | ("float64", Value::Number(_)) => return None,
        ("int32" | "int64", Value::Number(Number::Float(number))) if number.fract() != 0.0 => true,
        ("int32" | "int64", Value::Number(_)) => return None,
        // Go's language converts whole numbers to strings (of one character); JSON does not.
        ("string", Value::Number(number)) => !matches!(number, Number::Float(_)),
        _ => false,
    };
    Some(if convertible {
        format!("cannot convert {} to {}", go_kind(value), go_type(ty))
    } else {
        format!("unrecognized type: {wanted}")
    })
}

/// Go's kind of a value in an unstructured tree.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(Number::Float(_)) => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema;

    #[test]
    fn what_does_not_fit_is_told_in_gos_words() {
        let pod = schema::lookup("", "v1", "Pod").unwrap();
        for (tree, want) in [
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a"}]}}), None),
            (json!({"metadata": {"labels": "invalid"}}), Some("cannot restore map from string")),
            (json!({"metadata": {"labels": {"a": 1}}}), Some("cannot convert int64 to string")),
            (json!({"metadata": {"labels": {"a": true}}}), Some("unrecognized type: string")),
            (json!({"metadata": {"labels": {"a": {"b": 1}}}}), Some("unrecognized type: string")),
            (json!({"metadata": {"labels": null}, "spec": null}), None),
            (json!({"metadata": []}), Some("cannot restore struct from: slice")),
            (json!({"spec": 5}), Some("cannot restore struct from: int64")),
            (json!({"spec": {"containers": {}}}), Some("cannot restore slice from map")),
            (json!({"spec": {"hostNetwork": "yes"}}), Some("unrecognized type: bool")),
            (json!({"spec": {"priority": 1.5}}), Some("cannot convert float64 to int32")),
            (json!({"spec": {"priority": 2.0}}), None),
            (json!({"spec": {"priority": "1"}}), Some("unrecognized type: int32")),
            // The first in the order of Go's fields, not of names.
            (json!({"spec": {"containers": "x", "volumes": 1}}), Some("cannot restore slice from int64")),
            (json!({"metadata": {"creationTimestamp": 5}}), None),
        ] {
            assert_eq!(restore_error(&tree, pod).as_deref(), want, "{tree}");
        }
        let secret = schema::lookup("", "v1", "Secret").unwrap();
        let got = restore_error(&json!({"data": {"a": 1}}), secret);
        assert_eq!(got.as_deref(), Some("cannot restore slice from int64"));
    }
}
