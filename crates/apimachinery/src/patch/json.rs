//! JSON patch (RFC 6902), with the deviations of the Go library that upstream uses.
//!
//! - `replace` and `copy` of a missing map key work; a missing value is `null`.
//! - `add` without `value` adds `null`.
//! - Negative indexes count from the end.
//! - The text before a path's first slash is ignored; a path without slash never applies, but `""` can be tested and replaced.
//!
//! Follows: RFC 6902, `gopkg.in/evanphx/json-patch.v4`.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::PatchError;
use crate::json::{Str, Value};
use crate::text::quote;

/// More operations than this are refused.
pub const MAX_OPERATIONS: usize = 10_000;

/// All values that one patch copies, encoded, may have this many bytes.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// One operation. Members that are absent or of another type are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Operation {
    op: Option<Str>,
    path: Option<Str>,
    from: Option<Str>,
    value: Option<Value>,
}

/// A decoded patch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonPatch {
    operations: Vec<Operation>,
    /// Unknown and duplicate members, for field validation: `json patch unknown field "[0].foo"`.
    strict_errors: Vec<String>,
}

impl JsonPatch {
    /// Reads a patch.
    ///
    /// Errors: `BadRequest` when it is no list of objects, `TooLarge` beyond [`MAX_OPERATIONS`].
    pub fn decode(bytes: &[u8]) -> Result<JsonPatch, PatchError> {
        let mut patch = JsonPatch::default();
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let result = Operations { patch: &mut patch }.deserialize(&mut reader).and_then(|()| reader.end());
        if let Err(error) = result {
            return Err(PatchError::BadRequest(format!("error decoding patch: {}", go_decode_error(bytes, &error))));
        }
        if patch.operations.len() > MAX_OPERATIONS {
            return Err(PatchError::TooLarge(format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                patch.operations.len()
            )));
        }
        Ok(patch)
    }

    /// What strict field validation has to say about the patch itself.
    pub fn strict_errors(&self) -> &[String] {
        &self.strict_errors
    }

    /// Applies all operations, in order. Nothing of a patch that fails is kept.
    pub fn apply(&self, object: &Value) -> Result<Value, PatchError> {
        let mut doc = object.clone();
        let mut copied = 0;
        for operation in &self.operations {
            operation.apply(&mut doc, &mut copied).map_err(PatchError::Rejected)?;
        }
        Ok(doc)
    }
}

/// Decodes and applies in one step.
pub fn apply(object: &Value, patch: &[u8]) -> Result<Value, PatchError> {
    JsonPatch::decode(patch)?.apply(object)
}

/// Go's words for a body that is no list of operations.
fn go_decode_error(bytes: &[u8], error: &serde_json::Error) -> String {
    let text = String::from_utf8_lossy(bytes);
    let first = text.trim_start_matches([' ', '\t', '\r', '\n']).chars().next();
    match first {
        None => "unexpected end of JSON input".to_owned(),
        Some('{') if error.is_data() => {
            "json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp".to_owned()
        }
        Some(c) if !"[{\"-0123456789tfn".contains(c) => {
            format!("invalid character '{c}' looking for beginning of value")
        }
        Some(_) if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Some(_) => error.to_string(),
    }
}

impl Operation {
    fn apply(&self, doc: &mut Value, copied: &mut usize) -> Result<(), String> {
        let path = || self.path.as_deref().ok_or("operation failed to decode path: missing value");
        let from = || self.from.as_deref().ok_or("operation failed to decode from: missing value");
        let value = || self.value.clone().unwrap_or_default();
        match self.op.as_deref().unwrap_or("unknown") {
            "add" => add(doc, path()?, value()),
            "remove" => remove(doc, path()?).map(drop),
            "replace" => replace(doc, path()?, value()),
            "move" => {
                let moved = remove(doc, from()?)?;
                add(doc, path()?, moved)
            }
            "copy" => {
                let found = get(doc, from()?)?.cloned().unwrap_or_default();
                *copied += found.to_vec().len();
                if *copied > MAX_COPIED_BYTES {
                    return Err(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                    ));
                }
                add(doc, path()?, found)
            }
            "test" => {
                let path = path()?;
                let found = if path.is_empty() { Some(&*doc) } else { get(doc, path)? };
                if found.unwrap_or(&Value::Null) == &value() {
                    Ok(())
                } else {
                    Err(format!("testing value {path} failed: test failed"))
                }
            }
            other => Err(format!("Unexpected kind: {other}")),
        }
    }
}

fn decode_key(part: &str) -> String {
    // One pass: `~01` is `~1`, not `/`.
    let mut out = String::with_capacity(part.len());
    let mut rest = part;
    while let Some(i) = rest.find('~') {
        out.push_str(&rest[..i]);
        let (decoded, skip) = match rest.as_bytes().get(i + 1) {
            Some(b'0') => ('~', 2),
            Some(b'1') => ('/', 2),
            _ => ('~', 1),
        };
        out.push(decoded);
        rest = &rest[i + skip..];
    }
    out.push_str(rest);
    out
}

/// The container that holds the path's last step, and that step.
fn find<'a>(doc: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let missing = || format!("doc is missing path: {}: missing value", quote(path));
    let mut parts = path.split('/').skip(1).peekable();
    let mut container = doc;
    while let Some(part) = parts.next() {
        let key = decode_key(part);
        if parts.peek().is_none() {
            return match container {
                Value::Object(_) | Value::Array(_) => Ok((container, key)),
                _ => Err(missing()),
            };
        }
        container = match container {
            Value::Object(members) => members.get_mut(&key).ok_or_else(missing)?,
            Value::Array(items) => {
                let i = existing_index(&key, items.len()).map_err(|_| missing())?;
                &mut items[i]
            }
            _ => return Err(missing()),
        };
    }
    Err(missing())
}

/// Go's `strconv.Atoi`.
fn index(key: &str) -> Result<i64, String> {
    key.parse().map_err(|_| format!("value was not a proper array index: '{key}'"))
}

/// An index into `len` elements; negative ones count from the end.
fn resolve(index: i64, len: usize) -> Result<usize, String> {
    let len = len as i64;
    let resolved = if index < 0 { index + len } else { index };
    if resolved < 0 || resolved >= len {
        return Err(format!("Unable to access invalid index: {index}: invalid index referenced"));
    }
    Ok(resolved as usize)
}

fn existing_index(key: &str, len: usize) -> Result<usize, String> {
    resolve(index(key)?, len)
}

fn get<'a>(doc: &'a mut Value, path: &str) -> Result<Option<&'a Value>, String> {
    let (container, key) = find(doc, path)?;
    match container {
        Value::Array(items) => {
            let i = existing_index(&key, items.len())?;
            Ok(Some(&items[i]))
        }
        other => Ok(other.get(&key)),
    }
}

fn add(doc: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (container, key) = find(doc, path)?;
    match container {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let i = resolve(index(&key)?, items.len() + 1)?;
            items.insert(i, value);
        }
        other => {
            other.make_object().insert(key, value);
        }
    }
    Ok(())
}

fn remove(doc: &mut Value, path: &str) -> Result<Value, String> {
    let (container, key) = find(doc, path)?;
    match container {
        Value::Array(items) => {
            let i = existing_index(&key, items.len())?;
            Ok(items.remove(i))
        }
        other => other
            .make_object()
            .remove(&key)
            .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value")),
    }
}

fn replace(doc: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("replace operation value must be object or array".to_owned());
        }
        *doc = value;
        return Ok(());
    }
    let (container, key) = find(doc, path)?;
    match container {
        Value::Array(items) => {
            let i = existing_index(&key, items.len())?;
            items[i] = value;
        }
        other => {
            other.make_object().insert(key, value);
        }
    }
    Ok(())
}

/// Reads the list, noting what strict validation complains about.
struct Operations<'p> {
    patch: &'p mut JsonPatch,
}

impl<'de> DeserializeSeed<'de> for Operations<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Operations<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of operations")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0;
        while let Some(operation) =
            seq.next_element_seed(OneOperation { index, errors: &mut self.patch.strict_errors })?
        {
            // Beyond the limit only the number counts.
            if index <= MAX_OPERATIONS {
                self.patch.operations.push(operation);
            } else {
                self.patch.operations.push(Operation::default());
            }
            index += 1;
        }
        Ok(())
    }
}

struct OneOperation<'p> {
    index: usize,
    errors: &'p mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for OneOperation<'_> {
    type Value = Operation;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Operation, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneOperation<'_> {
    type Value = Operation;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an operation")
    }

    fn visit_unit<E>(self) -> Result<Operation, E> {
        Ok(Operation::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Operation, A::Error> {
        let mut operation = Operation::default();
        let mut seen: Vec<Str> = Vec::with_capacity(4);
        while let Some(key) = map.next_key::<Str>()? {
            if seen.contains(&key) {
                self.errors.push(format!("json patch duplicate field \"[{}].{key}\"", self.index));
            }
            match key.as_str() {
                "op" => operation.op = text(Value::deserialize(MapValue(&mut map))?),
                "path" => operation.path = text(Value::deserialize(MapValue(&mut map))?),
                "from" => operation.from = text(Value::deserialize(MapValue(&mut map))?),
                "value" => operation.value = Some(map.next_value()?),
                _ => {
                    if !seen.contains(&key) {
                        self.errors.push(format!("json patch unknown field \"[{}].{key}\"", self.index));
                    }
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
            seen.push(key);
        }
        Ok(operation)
    }
}

fn text(value: Value) -> Option<Str> {
    match value {
        Value::String(s) => Some(s),
        _ => None,
    }
}

/// The next value of a map as a deserializer.
struct MapValue<'m, A>(&'m mut A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for MapValue<'_, A> {
    type Error = A::Error;
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        struct Seed<V>(V);
        impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Seed<V> {
            type Value = V::Value;
            fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
                d.deserialize_any(self.0)
            }
        }
        self.0.next_value_seed(Seed(visitor))
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn operations_apply_as_upstream_applies_them() {
        // (document, patch, result). RFC 6902 appendix A, and what the Go library does beyond it.
        for (doc, patch, want) in [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), Some(json!({"a": 1, "b": 2}))),
            (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), Some(json!({"a": [1, 2, 3]}))),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), Some(json!({"a": [1, 2]}))),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-1", "value": 2}]), Some(json!({"a": [1, 2]}))),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/2", "value": 2}]), None),
            (json!({"a": 1}), json!([{"op": "add", "path": "/b"}]), Some(json!({"a": 1, "b": null}))),
            (json!({"a": 1}), json!([{"op": "add", "path": "/b/c", "value": 2}]), None),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": {}}]), None),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/a"}]), Some(json!({}))),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/b"}]), None),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/0"}]), Some(json!({"a": [2]}))),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/b", "value": 2}]), Some(json!({"a": 1, "b": 2}))),
            (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": {"b": 2}}]), Some(json!({"b": 2}))),
            (json!({"a": [1]}), json!([{"op": "replace", "path": "/a/1", "value": 2}]), None),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
                Some(json!({"a": {}, "c": 1})),
            ),
            (json!({"a": 1}), json!([{"op": "move", "from": "/x", "path": "/c"}]), None),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/c"}]), Some(json!({"a": 1, "c": 1}))),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/x", "path": "/c"}]), Some(json!({"a": 1, "c": null}))),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 1}]), Some(json!({"a": 1}))),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": "1"}]), None),
            (json!({"a": 1}), json!([{"op": "test", "path": "/b", "value": null}]), Some(json!({"a": 1}))),
            (json!({"a": 1}), json!([{"op": "test", "path": "", "value": {"a": 1}}]), Some(json!({"a": 1}))),
            (json!({"a/b": 1, "~": 2}), json!([{"op": "remove", "path": "/a~1b"}]), Some(json!({"~": 2}))),
            (json!({"~1": 1}), json!([{"op": "remove", "path": "/~01"}]), Some(json!({}))),
            (json!({"a": 1}), json!([{"op": "explode", "path": "/a"}]), None),
            (json!({"a": 1}), json!([]), Some(json!({"a": 1}))),
        ] {
            let got = apply(&doc, &patch.to_vec());
            assert_eq!(got.as_ref().ok(), want.as_ref(), "{patch} on {doc}: {got:?}");
        }
    }

    #[test]
    fn patches_that_are_no_list_are_bad_requests() {
        for (patch, want) in [
            ("{}", "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
            ("x", "error decoding patch: invalid character 'x' looking for beginning of value"),
            ("", "error decoding patch: unexpected end of JSON input"),
        ] {
            assert_eq!(JsonPatch::decode(patch.as_bytes()), Err(PatchError::BadRequest(want.to_owned())));
        }
        let many = vec![json!({"op": "test"}); MAX_OPERATIONS + 1];
        assert_eq!(
            JsonPatch::decode(&Value::Array(many).to_vec()).map_err(|e| e.to_status().message),
            Err("Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
                .to_owned())
        );
    }

    #[test]
    fn strict_validation_sees_unknown_and_duplicate_members() {
        let patch = JsonPatch::decode(br#"[{"op":"test","path":"/a","op":"add","foo":1}]"#);
        assert_eq!(
            patch.map(|p| p.strict_errors),
            Ok(vec![
                r#"json patch duplicate field "[0].op""#.to_owned(),
                r#"json patch unknown field "[0].foo""#.to_owned()
            ])
        );
    }
}
