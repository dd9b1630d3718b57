//! JSON merge patch (RFC 7386), with the details of the Go library that upstream uses.
//!
//! A list that replaces an object keeps the nulls inside its elements; anywhere else nulls are dropped.
//!
//! Follows: RFC 7386, `gopkg.in/evanphx/json-patch.v4`.

use super::PatchError;
use crate::json::{Map, Value};

/// Decodes a merge patch.
///
/// Errors: `BadRequest` when it is not a JSON object.
pub fn decode(bytes: &[u8]) -> Result<Value, PatchError> {
    let bad = |text: String| PatchError::BadRequest(format!("error decoding patch: {text}"));
    match Value::from_slice(bytes) {
        Ok(patch @ Value::Object(_)) => Ok(patch),
        Ok(Value::Null) => Err(PatchError::BadRequest("Invalid JSON Patch".to_owned())),
        Ok(other) => Err(bad(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            }
        ))),
        Err(error) => {
            let text = String::from_utf8_lossy(bytes);
            Err(bad(match text.trim_start_matches([' ', '\t', '\r', '\n']).chars().next() {
                None => "unexpected end of JSON input".to_owned(),
                Some(c) if !"[{\"-0123456789tfn".contains(c) => {
                    format!("invalid character '{c}' looking for beginning of value")
                }
                Some(_) if error.is_eof() => "unexpected end of JSON input".to_owned(),
                Some(_) => error.to_string(),
            }))
        }
    }
}

/// Applies a merge patch.
pub fn apply(object: &Value, patch: &Value) -> Value {
    let mut out = object.clone();
    match (&mut out, patch) {
        (Value::Object(members), Value::Object(patch)) => merge_members(members, patch),
        (_, patch) => {
            out = patch.clone();
            drop_nulls(&mut out);
        }
    }
    out
}

fn merge_members(members: &mut Map, patch: &Map) {
    for (key, value) in patch.iter() {
        if value.is_null() {
            members.remove(key);
            continue;
        }
        match (members.get_mut(key), value) {
            (Some(Value::Object(current)), Value::Object(patch)) => merge_members(current, patch),
            (Some(Value::Object(_)), other) => {
                members.insert(key.clone(), other.clone());
            }
            (_, other) => {
                let mut other = other.clone();
                drop_nulls(&mut other);
                members.insert(key.clone(), other);
            }
        }
    }
}

/// Removes null members of objects, also of those in lists; null elements of lists stay.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => members.retain(|_, v| {
            drop_nulls(v);
            !v.is_null()
        }),
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn merge_patches_apply_as_rfc_7386_says() {
        // (target, patch, result): appendix A of the RFC, then the library's own ways.
        for (target, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": [1]}), json!({"a": [{"b": null}, null]}), json!({"a": [{}, null]})),
            (json!({"a": {}}), json!({"a": [{"b": null}]}), json!({"a": [{"b": null}]})),
        ] {
            assert_eq!(apply(&target, &patch), want, "{patch} on {target}");
        }
    }

    #[test]
    fn bodies_that_are_no_object_are_bad_requests() {
        for (body, want) in [
            ("data:", "error decoding patch: invalid character 'd' looking for beginning of value"),
            ("[]", "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
            ("null", "Invalid JSON Patch"),
        ] {
            assert_eq!(decode(body.as_bytes()), Err(PatchError::BadRequest(want.to_owned())));
        }
    }
}
