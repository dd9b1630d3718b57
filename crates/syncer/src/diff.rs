//! Differences between what is and what should be, as JSON merge patches: only what the syncer means to change is sent.
//!
//! Follows: RFC 7386. Lists are replaced as a whole.

use apimachinery::{Map, Value};

use crate::metadata::LastSynced;

/// The merge patch that makes `from` into `to`, `None` when they are equal. An absent member and `null` are the same.
pub fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    match (from, to) {
        (Value::Object(a), Value::Object(b)) => {
            let mut patch = Map::new();
            for (key, new) in b.iter() {
                match a.get(key) {
                    None if new.is_null() => {}
                    None => {
                        patch.insert(key.clone(), new.clone());
                    }
                    Some(old) => {
                        if let Some(p) = merge_patch(old, new) {
                            patch.insert(key.clone(), p);
                        }
                    }
                }
            }
            for (key, old) in a.iter() {
                if !b.contains_key(key) && !old.is_null() {
                    patch.insert(key.clone(), Value::Null);
                }
            }
            (!patch.is_empty()).then(|| patch.into())
        }
        _ => (from != to).then(|| to.clone()),
    }
}

/// Splits a patch into what goes to the object and what goes to its status subresource.
pub fn split_status(patch: Value) -> (Option<Value>, Option<Value>) {
    let Value::Object(mut map) = patch else { return (Some(patch), None) };
    let status = map.remove("status").map(|s| {
        let mut out = Map::new();
        out.insert("status", s);
        Value::Object(out)
    });
    ((!map.is_empty()).then(|| map.into()), status)
}

/// Brings one field of both sides together: the side that changed since they last agreed wins; the virtual one if both did.
///
/// `down` and `up` translate the value; a translated `None` removes the field. `synced` remembers the agreement under `name`.
pub fn two_way(
    name: &str,
    salt: &str,
    path: &[&str],
    virtual_: &mut Value,
    host: &mut Value,
    synced: &mut LastSynced,
    down: impl Fn(Option<&Value>) -> Option<Value>,
    up: impl Fn(Option<&Value>) -> Option<Value>,
) {
    let hash = |v: Option<&Value>| crate::metadata::hash_value(salt, v.unwrap_or(&Value::Null));
    let agreed = synced.agrees(name, &hash(present(virtual_, path)));
    if agreed && synced.is_unknown(name) && present(host, path).is_none() {
        return;
    }
    if agreed {
        let shown = up(present(host, path));
        if present(virtual_, path) != shown.as_ref() && down(present(virtual_, path)).as_ref() != present(host, path) {
            put(virtual_, path, shown);
            synced.set(name, &hash(present(virtual_, path)));
        }
    } else {
        let wanted = down(present(virtual_, path));
        if present(host, path) != wanted.as_ref() {
            put(host, path, wanted);
        }
        synced.set(name, &hash(present(virtual_, path)));
    }
}

/// [`two_way`] for a value that is the same on both sides.
pub fn two_way_same(
    name: &str,
    salt: &str,
    path: &[&str],
    virtual_: &mut Value,
    host: &mut Value,
    synced: &mut LastSynced,
) {
    two_way(name, salt, path, virtual_, host, synced, |v| v.cloned(), |v| v.cloned());
}

/// The value at a path; `null`, empty maps and empty lists count as absent, as they do for the API server.
pub fn present<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    object.at(path).filter(|v| match v {
        Value::Null => false,
        Value::Array(a) => !a.is_empty(),
        Value::Object(m) => !m.is_empty(),
        Value::String(s) => !s.is_empty(),
        _ => true,
    })
}

/// Sets or removes the value at a path.
pub fn put(object: &mut Value, path: &[&str], value: Option<Value>) {
    match value {
        Some(value) => object.set_at(path, value),
        None => {
            object.remove_at(path);
        }
    }
}

/// What has a value at `member` of `sent` and is not in `made`, as paths. Empty values count as left out, and lists of
/// different lengths are not looked into.
pub fn dropped(sent: &Value, made: &Value, member: &str) -> Vec<String> {
    let mut out = Vec::new();
    let missing = Value::Null;
    collect_dropped(&sent[member], made.get(member).unwrap_or(&missing), member, &mut out);
    out
}

fn collect_dropped(sent: &Value, made: &Value, path: &str, out: &mut Vec<String>) {
    if is_empty(sent) {
        return;
    }
    if made.is_null() {
        out.push(path.to_owned());
        return;
    }
    if let (Some(sent), Some(_)) = (sent.as_object(), made.as_object()) {
        let missing = Value::Null;
        for (key, value) in sent.iter() {
            collect_dropped(value, made.get(key).unwrap_or(&missing), &format!("{path}.{key}"), out);
        }
    } else if let (Some(sent), Some(made)) = (sent.as_array(), made.as_array())
        && sent.len() == made.len()
    {
        for (n, (sent, made)) in sent.iter().zip(made).enumerate() {
            collect_dropped(sent, made, &format!("{path}[{n}]"), out);
        }
    }
}

/// Values that servers leave out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => value.is_null() || *value == false || *value == 0 || value.as_str() == Some(""),
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn patches_hold_the_difference_only() {
        for (from, to, want) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2}))),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 1}}), Some(json!({"a": {"c": null}}))),
            (json!({}), json!({"a": null}), None),
            (json!({"a": [1, 2]}), json!({"a": [1]}), Some(json!({"a": [1]}))),
            (json!({"a": 1}), json!({}), Some(json!({"a": null}))),
            (json!({"a": null}), json!({}), None),
        ] {
            assert_eq!(merge_patch(&from, &to), want, "{from} -> {to}");
        }
    }

    #[test]
    fn the_side_that_changed_wins() {
        // (virtual, host, agreed value if any, expected both)
        for (virtual_, host, agreed, want) in [
            ("a", "a", Some("a"), "a"),
            ("b", "a", Some("a"), "b"),
            ("a", "b", Some("a"), "b"),
            ("b", "c", Some("a"), "b"),
            ("a", "b", None, "a"),
        ] {
            let mut v = json!({"f": virtual_});
            let mut h = json!({"f": host});
            let mut synced = LastSynced::default();
            if let Some(agreed) = agreed {
                synced.set("f", &crate::metadata::hash_value("u", &agreed.into()));
            }
            two_way_same("f", "u", &["f"], &mut v, &mut h, &mut synced);
            assert_eq!((v.str_at(&["f"]), h.str_at(&["f"])), (want, want), "{virtual_} {host} {agreed:?}");
        }
    }
}
