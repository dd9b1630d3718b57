//! Strategic merge patch: lists merge by key where the schema says so, and directives in the patch steer the merge.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`,
//! `$setElementOrder/<field>`. Custom resources have no strategic merge (415 by the caller).
//!
//! Errors of the patch's content are plain 500s as upstream answers them; a few malformed directives are 400s.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/strategicpatch`.

use super::PatchError;
use crate::json::{Map, Str, Value};
use crate::schema::{PatchStrategy, Scalar, Shape, TypeRef};
use crate::text::{go_type, go_value, quote};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Applies `patch` to `object`, both objects of the kind `ty`.
pub fn apply(object: &Value, patch: &Value, ty: TypeRef<'_>) -> Result<Value, PatchError> {
    let original = object.as_object().cloned().unwrap_or_default();
    let Some(patch) = patch.as_object() else {
        return Err(PatchError::BadRequest(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            patch.type_name()
        )));
    };
    merge_map(original, patch.clone(), Some(ty)).map(Value::Object)
}

fn plain(text: impl Into<String>) -> PatchError {
    PatchError::Plain(text.into())
}

fn no_merge_key(item: &Map, key: &str) -> PatchError {
    plain(format!("map: {} does not contain declared merge key: {key}", go_value(&Value::Object(item.clone()))))
}

fn bad_type(expected: &str, actual: &Value) -> PatchError {
    let actual = if actual.is_null() { "%!s(<nil>)" } else { go_type(actual) };
    plain(format!("expected a {expected}, but received a {actual}"))
}

fn bad_order_format() -> PatchError {
    PatchError::BadRequest("invalid patch format of setElementOrder list".to_owned())
}

/// Go's kind of a type, for texts.
fn go_kind(ty: TypeRef<'_>) -> &'static str {
    match ty.shape() {
        Shape::Struct(_) => "struct",
        Shape::Map(_) => "map",
        Shape::List(_) => "slice",
        Shape::Enum(_) => "string",
        Shape::Any => "interface",
        Shape::Scalar(s) => match s {
            Scalar::String => "string",
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 | Scalar::Integer => "int64",
            Scalar::Double | Scalar::Number => "float64",
            Scalar::Bytes => "slice",
            _ => "struct",
        },
    }
}

/// What the schema says about member `key` of an object of type `ty`.
struct Member<'a> {
    ty: TypeRef<'a>,
    strategy: PatchStrategy,
    merge_key: &'a str,
}

impl Member<'_> {
    /// The strategy that counts beside `retainKeys`.
    fn merges(&self) -> bool {
        self.strategy.merge
    }
}

fn member<'a>(ty: Option<TypeRef<'a>>, key: &str) -> Result<Member<'a>, PatchError> {
    let Some(ty) = ty else {
        return Err(plain(format!("unable to find api field in struct  for the json field {}", quote(key))));
    };
    if go_kind(ty) != "struct" {
        return Err(plain(format!(
            "merging an object in json but data type is not struct, instead is: {}",
            go_kind(ty)
        )));
    }
    match ty.field(key) {
        Some(field) => {
            // The field's own text lives as long as the schema.
            let merge_key = field.merge_key();
            Ok(Member { ty: field.ty(), strategy: field.patch, merge_key })
        }
        None => {
            let name = ty.name().rsplit('.').next().unwrap_or("");
            Err(plain(format!("unable to find api field in struct {name} for the json field {}", quote(key))))
        }
    }
}

/// The same for a list: the type is that of its elements.
fn list_member<'a>(ty: Option<TypeRef<'a>>, key: &str) -> Result<Member<'a>, PatchError> {
    let member = member(ty, key)?;
    match member.ty.list() {
        Some(list) => Ok(Member { ty: member.ty.other(list.element), ..member }),
        // Upstream names the parent's kind here.
        None => Err(plain("expected slice or array type, but got: struct")),
    }
}

fn merge_map(mut original: Map, mut patch: Map, ty: Option<TypeRef<'_>>) -> Result<Map, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(bad_patch_type(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, ty)?;

    for (key, value) in patch {
        let (deletes, key) = match key.strip_prefix(DELETE_FROM) {
            Some(rest) => match rest.strip_prefix('/') {
                Some(field) => (true, Str::from(field)),
                None => {
                    return Err(PatchError::BadRequest("invalid patch format of primitive list".to_owned()));
                }
            },
            None => (false, key),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(current) = original.get_mut(&key) else {
            if !deletes {
                put_new(&mut original, key, value);
            }
            continue;
        };
        match (current.take(), value) {
            (Value::Object(current_map), Value::Object(patch_map)) => {
                let member = member(ty, &key)?;
                let merged = if member.strategy.replace {
                    patch_map
                } else {
                    merge_map(current_map, patch_map, Some(member.ty))?
                };
                original.insert(key, Value::Object(merged));
            }
            (Value::Array(current_list), Value::Array(patch_list)) => {
                let member = list_member(ty, &key)?;
                let merged = if member.merges() || deletes {
                    merge_list(current_list, patch_list, &member, deletes)?
                } else {
                    patch_list
                };
                original.insert(key, Value::Array(merged));
            }
            (current, value) => {
                if deletes {
                    original.insert(key, current);
                } else {
                    put_new(&mut original, key, value);
                }
            }
        }
    }
    Ok(original)
}

fn bad_patch_type(directive: &Value, patch: &Map) -> PatchError {
    let directive = match directive {
        Value::String(s) => s.to_string(),
        other => format!("%!s({}={})", go_type(other), go_value(other)),
    };
    plain(format!("unknown patch type: {directive} in map: {}", go_value(&Value::Object(patch.clone()))))
}

/// Sets a member that does not merge with anything: nulls and directives in it have nothing to act on.
fn put_new(original: &mut Map, key: Str, mut value: Value) {
    discard_nulls(&mut value);
    match remove_directives(value) {
        Some(value) => {
            original.insert(key, value);
        }
        None => {
            original.remove(&key);
        }
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => members.retain(|_, v| {
            discard_nulls(v);
            !v.is_null()
        }),
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// Drops objects that hold a `$patch`; `None` when the value itself is one.
fn remove_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(members) => {
            if members.contains_key(DIRECTIVE) {
                return None;
            }
            let kept = members.into_iter().filter_map(|(k, v)| Some((k, remove_directives(v)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(remove_directives).collect())),
        other => Some(other),
    }
}

fn retain_keys(original: &mut Map, patch: &mut Map) -> Result<(), PatchError> {
    let bad = || PatchError::BadRequest("invalid patch format of retainKeys".to_owned());
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(bad)?;
    let retained = |key: &str| keys.iter().any(|k| k == key);
    for (key, value) in patch.iter() {
        if value.is_null() || key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER) {
            continue;
        }
        if !retained(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Handles every `$setElementOrder/<field>`: merges the field's list and puts it into that order.
fn set_element_orders(original: &mut Map, patch: &mut Map, ty: Option<TypeRef<'_>>) -> Result<(), PatchError> {
    let orders: Vec<Str> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for key in orders {
        let Some(order) = patch.remove(&key) else { continue };
        let Value::Array(order) = order else { return Err(bad_type("[]interface {}", &order)) };
        let field = key.strip_prefix(SET_ORDER).and_then(|rest| rest.strip_prefix('/')).ok_or_else(bad_order_format)?;
        let list = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items.clone())),
            Some(other) => Err(bad_type("[]interface {}", other)),
        };
        let current = list(original.get(field))?;
        let patched = list(patch.get(field))?;
        let member = list_member(ty, field)?;
        check_order(patched.as_deref().unwrap_or(&[]), &order, member.merge_key)?;

        let merged = match (&current, &patched) {
            (None, None) => continue,
            (Some(current), None) => current.clone(),
            (None, Some(patched)) => match remove_directives(Value::Array(patched.clone())) {
                Some(Value::Array(items)) => items,
                _ => continue,
            },
            (Some(current), Some(patched)) => {
                if member.merges() {
                    merge_list(current.clone(), patched.clone(), &member, false)?
                } else {
                    patched.clone()
                }
            }
        };
        let (in_order, server_only) = partition(merged, &order, member.merge_key)?;
        let of_maps = holds_maps([current.as_deref().unwrap_or(&[]), patched.as_deref().unwrap_or(&[])])?;
        let server_order = current.unwrap_or_default();
        let both = interleave(in_order, server_only, &order, &server_order, member.merge_key, of_maps)?;
        patch.remove(field);
        original.insert(field, Value::Array(both));
    }
    Ok(())
}

/// The elements that a patch adds must appear in its order list, in that order.
fn check_order(patched: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if order.is_empty() || patched.is_empty() {
        return Ok(());
    }
    let mut kept = Vec::new();
    for item in patched {
        if !merge_key.is_empty() {
            let Value::Object(item) = item else { return Err(bad_type("map[string]interface {}", item)) };
            if item.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                continue;
            }
        }
        kept.push(item);
    }
    let (mut at, mut order_at) = (0, 0);
    while at < kept.len() && order_at < order.len() {
        if kept[at].get(DIRECTIVE).is_some() {
            at += 1;
            continue;
        }
        let equal = if merge_key.is_empty() {
            *kept[at] == order[order_at]
        } else {
            key_of(kept[at], merge_key)? == key_of(&order[order_at], merge_key)?
        };
        if equal {
            at += 1;
        }
        order_at += 1;
    }
    if at < kept.len() && order_at >= order.len() {
        return Err(plain(format!(
            "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
            go_value(&Value::Array(patched.to_vec())),
            go_value(&Value::Array(order.to_vec()))
        )));
    }
    Ok(())
}

fn key_of<'v>(item: &'v Value, merge_key: &str) -> Result<&'v Value, PatchError> {
    let Value::Object(members) = item else { return Err(bad_type("map[string]interface {}", item)) };
    members.get(merge_key).ok_or_else(|| no_merge_key(members, merge_key))
}

/// Splits a list into what `by` names and the rest.
fn partition(list: Vec<Value>, by: &[Value], merge_key: &str) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let (mut named, mut rest) = (Vec::new(), Vec::new());
    for item in list {
        let found = if merge_key.is_empty() {
            by.contains(&item)
        } else {
            let key = key_of(&item, merge_key)?;
            find_by_key(by, merge_key, key)?.is_some()
        };
        if found { named.push(item) } else { rest.push(item) }
    }
    Ok((named, rest))
}

fn find_by_key(list: &[Value], merge_key: &str, key: &Value) -> Result<Option<usize>, PatchError> {
    for (i, item) in list.iter().enumerate() {
        let Value::Object(members) = item else { return Err(plain(format!("value for key {i} is not a map"))) };
        if members.get(merge_key) == Some(key) {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

/// Whether the lists hold objects; lists of lists and mixed lists are refused.
fn holds_maps<'v>(lists: [&'v [Value]; 2]) -> Result<bool, PatchError> {
    let mut first: Option<&'v Value> = None;
    for item in lists.iter().flat_map(|l| l.iter()) {
        match first {
            None if item.is_array() => {
                return Err(PatchError::Rejected("lists of lists are not supported".to_owned()));
            }
            None => first = Some(item),
            Some(seen) if go_type(seen) != go_type(item) => {
                let printed: Vec<Value> = lists.iter().map(|l| Value::Array(l.to_vec())).collect();
                return Err(plain(format!(
                    "list element types are not identical: {}",
                    go_value(&Value::Array(printed))
                )));
            }
            Some(_) => {}
        }
    }
    first.map(Value::is_object).ok_or_else(|| plain("no elements in any of the given slices"))
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    member: &Member<'_>,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let merge_key = member.merge_key;
    if !holds_maps([&original, &patch])? {
        if deletes {
            return Ok(original.into_iter().filter(|v| !patch.contains(v)).collect());
        }
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (in_patch, server_only) = partition(merged, &patch, "")?;
        return interleave(in_patch, server_only, &patch, &original, "", false);
    }
    if merge_key.is_empty() {
        return Err(plain(format!("cannot merge lists without merge key for {}", go_kind(member.ty))));
    }
    let (mut original, patch) = apply_element_directives(original, patch, merge_key)?;
    let mut merged = original.clone();
    for item in &patch {
        let key = key_of(item, merge_key)?;
        match find_by_key(&merged, merge_key, key)? {
            Some(i) => {
                let (Value::Object(current), Value::Object(item)) = (merged[i].take(), item) else { continue };
                let result = Value::Object(merge_map(current, item.clone(), Some(member.ty))?);
                if i < original.len() {
                    original[i] = result.clone();
                }
                merged[i] = result;
            }
            None => merged.push(item.clone()),
        }
    }
    let (in_patch, server_only) = partition(merged, &patch, merge_key)?;
    interleave(in_patch, server_only, &patch, &original, merge_key, true)
}

/// `$patch` on elements: `delete` removes the element with the same key, `replace` anywhere replaces the whole list.
fn apply_element_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut kept = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Value::Object(members) = &item else { return Err(bad_type("map[string]interface {}", &item)) };
        let Some(directive) = members.get(DIRECTIVE) else {
            kept.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = members.get(merge_key).ok_or_else(|| no_merge_key(members, merge_key))?;
                while let Some(i) = find_by_key(&original, merge_key, key)? {
                    original.remove(i);
                }
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(plain("merging lists cannot yet be specified in the patch")),
            _ => return Err(bad_patch_type(directive, members)),
        }
    }
    Ok(if replace { (kept, Vec::new()) } else { (original, kept) })
}

/// Brings both parts into their orders and weaves them: an element of the server comes before the next patched one when
/// it stood before it on the server.
fn interleave(
    patched: Vec<Value>,
    server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
    of_maps: bool,
) -> Result<Vec<Value>, PatchError> {
    let position = |list: &[Value], item: &Value| {
        list.iter().position(|other| if of_maps { item.get(merge_key) == other.get(merge_key) } else { item == other })
    };
    let sorted = |mut list: Vec<Value>, order: &[Value]| -> Result<Vec<Value>, PatchError> {
        if of_maps {
            for item in list.iter().chain(order) {
                key_of(item, merge_key)?;
            }
        }
        list.sort_by_key(|item| position(order, item));
        Ok(list)
    };
    let patched = sorted(patched, patch_order)?;
    let server_only = sorted(server_only, server_order)?;

    let mut out = Vec::with_capacity(patched.len() + server_only.len());
    let mut left = server_only.into_iter().peekable();
    let mut right = patched.into_iter().peekable();
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => match (position(server_order, l), position(server_order, r)) {
                (Some(l), Some(r)) => l < r,
                _ => false,
            },
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{json, schema};

    #[track_caller]
    fn check(kind: (&str, &str, &str), object: Value, patch: Value, want: Result<Value, PatchError>) {
        let ty = schema::lookup(kind.0, kind.1, kind.2).expect("a built-in kind");
        assert_eq!(apply(&object, &patch, ty), want, "{patch} on {object}");
    }

    const POD: (&str, &str, &str) = ("", "v1", "Pod");

    #[test]
    fn lists_with_a_merge_key_merge_by_it() {
        let pod = |containers: Value| json!({"spec": {"containers": serde_json::Value::from(containers)}});
        for (object, patch, want) in [
            // A new element goes first, as upstream puts it.
            (json!([{"name": "a"}]), json!([{"name": "b"}]), json!([{"name": "b"}, {"name": "a"}])),
            (
                json!([{"name": "a", "image": "x"}]),
                json!([{"name": "a", "image": "y"}]),
                json!([{"name": "a", "image": "y"}]),
            ),
            (json!([{"name": "a"}, {"name": "b"}]), json!([{"name": "a", "$patch": "delete"}]), json!([{"name": "b"}])),
            (json!([{"name": "a"}]), json!([{"name": "b"}, {"$patch": "replace"}]), json!([{"name": "b"}])),
            (json!([{"name": "a", "image": "x"}]), json!([{"name": "a", "image": null}]), json!([{"name": "a"}])),
        ] {
            check(POD, pod(object), pod(patch), Ok(pod(want)));
        }
    }

    #[test]
    fn maps_merge_and_directives_replace_or_delete_them() {
        let labels = |labels: Value| json!({"metadata": {"labels": serde_json::Value::from(labels)}});
        for (object, patch, want) in [
            (json!({"a": "1"}), json!({"b": "2"}), json!({"a": "1", "b": "2"})),
            (json!({"a": "1"}), json!({"a": null}), json!({})),
            (json!({"a": "1"}), json!({"b": "2", "$patch": "replace"}), json!({"b": "2"})),
            (json!({"a": "1"}), json!({"$patch": "delete"}), json!({})),
        ] {
            check(POD, labels(object), labels(patch), Ok(labels(want)));
        }
    }

    #[test]
    fn primitive_lists_merge_as_sets() {
        let meta = |finalizers: Value| json!({"metadata": {"finalizers": serde_json::Value::from(finalizers)}});
        check(POD, meta(json!(["a"])), meta(json!(["b", "a"])), Ok(meta(json!(["b", "a"]))));
        check(
            POD,
            meta(json!(["a", "b"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            Ok(meta(json!(["b"]))),
        );
        check(
            POD,
            meta(json!(["a", "b"])),
            json!({"metadata": {"$setElementOrder/finalizers": ["b", "a"]}}),
            Ok(meta(json!(["b", "a"]))),
        );
    }

    #[test]
    fn element_order_places_elements() {
        check(
            POD,
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "new"}, {"name": "a"}],
                "containers": [{"name": "new"}]}}),
            // An element that only the server has keeps its place before those it stood before.
            Ok(json!({"spec": {"containers": [{"name": "b"}, {"name": "c"}, {"name": "new"}, {"name": "a"}]}})),
        );
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        check(
            ("apps", "v1", "Deployment"),
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})),
        );
        check(
            ("apps", "v1", "Deployment"),
            json!({"spec": {"strategy": {}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "other": "x"}}}),
            Err(PatchError::BadRequest("invalid patch format of retainKeys".into())),
        );
    }

    #[test]
    fn mistakes_are_explained_as_upstream_does() {
        let containers = json!({"spec": {"containers": [{"name": "a"}]}});
        for (patch, want) in [
            (json!({"metadata": {"$patch": "explode"}}), None),
            (
                json!({"spec": {"$patch": "explode"}}),
                Some(plain("unknown patch type: explode in map: map[$patch:explode]")),
            ),
            (
                json!({"spec": {"containers": [{"image": "y:2"}]}}),
                Some(plain("map: map[image:y:2] does not contain declared merge key: name")),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "one"}], "containers": [{"name": "new"}]}}),
                Some(plain(
                    "The order in patch list:\n[map[name:new]]\n doesn't match $setElementOrder list:\n[map[name:one]]\n",
                )),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}),
                Some(plain("merging lists cannot yet be specified in the patch")),
            ),
        ] {
            match want {
                Some(error) => check(POD, containers.clone(), patch, Err(error)),
                // The object has no metadata to merge with, so the directive only removes what it is on.
                None => check(POD, containers.clone(), patch, Ok(containers.clone())),
            }
        }
    }
}
