//! How a change of a host object is written: server-side apply of the fields that are ours, so that other controllers'
//! fields stay theirs.
//!
//! Which fields are ours is what the host says in `metadata.managedFields`; nothing about kinds is known here. Objects are
//! created with POST (an apply could take over somebody else's object of the same name), and earlier versions wrote merge
//! patches: what these own is joined with what apply owns first, in one patch of `managedFields`, once for each object.
//!
//! Invariants:
//! - A configuration holds every field that is ours, with the values of the state that was looked at, and that state's
//!   resource version: an edit that was not seen yet is never overwritten.
//! - A merge patch is used where apply cannot do it: a removal of what others own too, lists that cannot be told apart by
//!   keys, objects without `managedFields`.
//!
//! Follows: KEP-555 (server-side apply), `k8s.io/client-go/util/csaupgrade`, the FieldsV1 format of structured-merge-diff.

use apimachinery::patch::merge;
use apimachinery::{Map, Value, json};

use crate::kind::Kind;

/// The field manager of everything the syncer writes to the host.
pub const FIELD_MANAGER: &str = "alcove";
/// The manager of earlier versions, whose fields are ours.
const EARLIER_MANAGER: &str = "alcove-syncer";

/// The requests that make a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Apply {
        /// A merge patch that has to be sent before: it gives apply what updates owned so far.
        migrate: Option<Value>,
        /// With the resource version of the state that was looked at.
        config: Value,
    },
    /// A JSON merge patch, because of this.
    Merge { patch: Value, why: &'static str },
}

/// A configuration cannot express the change.
type Unfit = &'static str;

/// How `patch`, a merge patch made from `host`, is to be written.
pub fn write(kind: &Kind, host: &Value, patch: &Value) -> Write {
    match apply(kind, host, patch) {
        Ok((migrate, config)) => Write::Apply { migrate, config },
        Err(why) => Write::Merge { patch: patch.clone(), why },
    }
}

fn is_ours(entry: &Value) -> bool {
    matches!(entry.str_at(&["manager"]), FIELD_MANAGER | EARLIER_MANAGER) && entry.str_at(&["subresource"]).is_empty()
}

fn is_applied(entry: &Value) -> bool {
    entry.str_at(&["manager"]) == FIELD_MANAGER && entry.str_at(&["operation"]) == "Apply"
}

fn apply(kind: &Kind, host: &Value, patch: &Value) -> Result<(Option<Value>, Value), Unfit> {
    let entries = host.array_at(&["metadata", "managedFields"]);
    if entries.is_empty() {
        return Err("the host tracks no owners");
    }
    let version = kind.api_version();
    let (mut ours, mut others) = (json!({}), json!({}));
    for entry in entries {
        let fields = &entry["fieldsV1"];
        if !is_ours(entry) {
            join(&mut others, fields);
        } else if entry.str_at(&["apiVersion"]) == version {
            join(&mut ours, fields);
        } else {
            return Err("the object was written in another version");
        }
    }
    let mut desired = merge::apply(host, patch);
    // Preconditions, not changes.
    for member in ["uid", "resourceVersion"] {
        let own = host.at(&["metadata", member]).cloned().unwrap_or_default();
        desired.set_at(&["metadata", member], own);
    }
    // Without any, which is not the same as the whole object.
    let others = (!is_leaf(&others)).then_some(&others);
    let of_us = (!is_leaf(&ours)).then_some(&ours);
    let config = of_us.map(|ours| extract(&desired, ours, others)).transpose()?.flatten();
    let mut config = config.unwrap_or_else(Value::object);
    overlay(&mut config, Some(host), &desired, of_us, others)?;
    config["apiVersion"] = version.as_str().into();
    config["kind"] = kind.kind.as_ref().into();
    for member in ["name", "namespace", "uid", "resourceVersion"] {
        if let Some(value) = host.at(&["metadata", member]).filter(|v| !v.is_null()) {
            config.set_at(&["metadata", member], value.clone());
        }
    }
    Ok((migration(host, entries, ours, &version), config))
}

/// The patch that joins all our entries in the one of apply; none where that is the only one.
fn migration(host: &Value, entries: &[Value], ours: Value, version: &str) -> Option<Value> {
    if entries.iter().filter(|e| is_ours(e)).all(is_applied) {
        return None;
    }
    let newest = entries.iter().filter(|e| is_ours(e)).map(|e| e.str_at(&["time"])).max().unwrap_or_default();
    let mut entry = json!({
        "manager": FIELD_MANAGER, "operation": "Apply", "apiVersion": version, "fieldsType": "FieldsV1",
        "fieldsV1": ours,
    });
    if !newest.is_empty() {
        entry["time"] = newest.into();
    }
    let kept = entries.iter().filter(|e| !is_ours(e)).cloned();
    let all: Vec<Value> = std::iter::once(entry).chain(kept).collect();
    let of = |member: &str| host["metadata"][member].clone();
    let metadata = json!({"uid": (of("uid")), "resourceVersion": (of("resourceVersion")), "managedFields": all});
    Some(json!({ "metadata": metadata }))
}

/// The union of two FieldsV1 trees.
fn join(into: &mut Value, fields: &Value) {
    let Some(fields) = fields.as_object() else { return };
    let map = into.make_object();
    for (key, child) in fields.iter() {
        join(map.get_or_insert_with(key, Value::object), child);
    }
}

/// A field that is owned as a whole: a plain value, a list or map that is one value, or an empty one.
fn is_leaf(fields: &Value) -> bool {
    fields.as_object().is_none_or(Map::is_empty)
}

fn child<'a>(fields: Option<&'a Value>, key: &str) -> Option<&'a Value> {
    fields.and_then(|f| f.get(key))
}

/// The keys of a list item, from its FieldsV1 key `k:{...}`.
fn item_keys(step: &str) -> Option<Value> {
    Value::from_slice(step.strip_prefix("k:")?.as_bytes()).ok().filter(Value::is_object)
}

fn has_keys(item: &Value, keys: &Value) -> bool {
    keys.as_object().is_some_and(|keys| keys.iter().all(|(k, v)| item.get(k) == Some(v)))
}

/// Where the one item with these keys is.
fn position(list: &[Value], keys: &Value) -> Result<Option<usize>, Unfit> {
    let mut found = list.iter().enumerate().filter(|(_, item)| has_keys(item, keys)).map(|(n, _)| n);
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err("a list has two items with the same keys"),
    }
}

/// The parts of `value` that `fields` names; `None` when there are none.
fn extract(value: &Value, fields: &Value, others: Option<&Value>) -> Result<Option<Value>, Unfit> {
    if is_leaf(fields) {
        return Ok(match value {
            Value::Null => None,
            // Others have single members of it, so only that it is there is ours.
            Value::Object(_) if others.is_some_and(|o| !is_leaf(o)) => Some(Value::object()),
            Value::Array(_) if others.is_some_and(|o| !is_leaf(o)) => Some(Value::Array(Vec::new())),
            value => Some(without_nulls(value)),
        });
    }
    let steps = fields.as_object().into_iter().flat_map(Map::iter);
    match value {
        Value::Object(map) => {
            let mut out = Map::new();
            for (step, of) in steps {
                let Some(name) = step.strip_prefix("f:") else { continue };
                if let Some(member) = map.get(name)
                    && let Some(part) = extract(member, of, child(others, step))?
                {
                    out.insert(name, part);
                }
            }
            // A map without members of ours was one with members, which are gone.
            Ok((!out.is_empty() || fields.get(".").is_some()).then(|| out.into()))
        }
        Value::Array(list) => {
            let mut out = Vec::new();
            for (step, of) in steps {
                if let Some(keys) = item_keys(step) {
                    let Some(at) = position(list, &keys)? else { continue };
                    let mut item = extract(&list[at], of, child(others, step))?.unwrap_or_else(Value::object);
                    for (key, value) in keys.as_object().into_iter().flat_map(Map::iter) {
                        item[key.as_str()] = value.clone();
                    }
                    out.push((at, item));
                } else if let Some(text) = step.strip_prefix("v:") {
                    let item = Value::from_slice(text.as_bytes()).map_err(|_| "an owned item cannot be read")?;
                    if let Some(at) = list.iter().position(|v| *v == item) {
                        out.push((at, item));
                    }
                } else if step.as_str() != "." {
                    return Err("a list is owned by positions");
                }
            }
            out.sort_by_key(|(at, _)| *at);
            let items: Vec<Value> = out.into_iter().map(|(_, item)| item).collect();
            Ok((!items.is_empty() || fields.get(".").is_some()).then(|| Value::Array(items)))
        }
        value => Ok((!value.is_null()).then(|| value.clone())),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null());
            Value::Object(kept.map(|(k, v)| (k.clone(), without_nulls(v))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        value => value.clone(),
    }
}

/// What is ours alone can be removed by leaving it out.
fn check_removal(ours: Option<&Value>, others: Option<&Value>) -> Result<(), Unfit> {
    match (ours, others) {
        (Some(_), None) => Ok(()),
        (None, _) => Err("a field that is not ours is to be removed"),
        (Some(_), Some(_)) => Err("a field that others own too is to be removed"),
    }
}

/// Puts what differs between `host` and `desired` into `config`.
fn overlay(
    config: &mut Value,
    host: Option<&Value>,
    desired: &Value,
    ours: Option<&Value>,
    others: Option<&Value>,
) -> Result<(), Unfit> {
    if host == Some(desired) {
        return Ok(());
    }
    // One value, whatever is in it. An empty one says nothing about its members.
    let whole = |fields: Option<&Value>| fields.is_some_and(is_leaf);
    let is_empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    match (host, desired) {
        (Some(Value::Object(old)), Value::Object(new))
            if is_empty(host.unwrap_or(desired)) || !(whole(ours) || whole(others)) =>
        {
            if !config.is_object() {
                *config = Value::object();
            }
            for (key, value) in new.iter().filter(|(k, v)| !v.is_null() && old.get(k) != Some(v)) {
                let step = format!("f:{key}");
                let mut member = config.get(key).cloned().unwrap_or_default();
                overlay(&mut member, old.get(key), value, child(ours, &step), child(others, &step))?;
                config[key.as_str()] = member;
            }
            for (key, value) in old.iter().filter(|(_, v)| !v.is_null()) {
                if new.get(key).is_none_or(Value::is_null) && !is_empty(value) {
                    let step = format!("f:{key}");
                    check_removal(child(ours, &step), child(others, &step))?;
                }
            }
        }
        (Some(Value::Array(old)), Value::Array(new)) if !(old.is_empty() || whole(ours) || whole(others)) => {
            overlay_list(config, old, new, ours, others)?;
        }
        _ => *config = without_nulls(desired),
    }
    Ok(())
}

/// The same for a list whose items have keys or are a set.
fn overlay_list(
    config: &mut Value,
    old: &[Value],
    new: &[Value],
    ours: Option<&Value>,
    others: Option<&Value>,
) -> Result<(), Unfit> {
    let steps = || [ours, others].into_iter().flatten().filter_map(Value::as_object).flat_map(Map::keys);
    let mut items = config.as_array().cloned().unwrap_or_default();
    if let Some(keys) = steps().find_map(|s| item_keys(s)) {
        let names: Vec<&str> = keys.as_object().into_iter().flat_map(Map::keys).map(|k| k.as_str()).collect();
        let keys_of = |item: &Value| -> Value {
            Value::Object(names.iter().filter_map(|n| Some((*n, item.get(n)?.clone()))).collect())
        };
        let step_of = |keys: &Value| format!("k:{keys}");
        for item in new {
            let keys = keys_of(item);
            position(new, &keys)?;
            let step = step_of(&keys);
            let before = position(old, &keys)?.map(|at| &old[at]);
            if before == Some(item) {
                continue;
            }
            let at = position(&items, &keys)?;
            let mut part = at.map_or_else(|| keys.clone(), |at| items[at].clone());
            overlay(&mut part, before, item, child(ours, &step), child(others, &step))?;
            match at {
                Some(at) => items[at] = part,
                None => items.push(part),
            }
        }
        for item in old {
            let keys = keys_of(item);
            if position(new, &keys)?.is_none() {
                let step = step_of(&keys);
                check_removal(child(ours, &step), child(others, &step))?;
            }
        }
    } else if steps().any(|s| s.starts_with("v:")) {
        for item in new.iter().filter(|item| !old.contains(item) && !items.contains(item)).cloned().collect::<Vec<_>>()
        {
            items.push(item);
        }
        for item in old.iter().filter(|item| !new.contains(item)) {
            let step = format!("v:{item}");
            check_removal(child(ours, &step), child(others, &step))?;
        }
    } else {
        return Err("nothing tells the items of a list apart");
    }
    *config = Value::Array(items);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind;

    fn entry(manager: &str, operation: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1",
            "time": "2026-01-01T00:00:00Z", "fieldsV1": fields})
    }

    fn host(entries: Vec<Value>) -> Value {
        json!({
            "metadata": {
                "name": "web", "namespace": "h", "uid": "u", "resourceVersion": "7", "managedFields": entries,
                "labels": {"app": "web", "theirs": "1"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "selector": {"app": "web"},
                "ports": [{"port": 80, "protocol": "TCP"}, {"port": 9, "protocol": "UDP"}],
                "finalizers": ["a", "b"],
            },
        })
    }

    fn ours() -> Value {
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:selector": {}, "f:finalizers": {".": {}, "v:\"a\"": {}},
                "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:protocol": {}}},
            },
        })
    }

    fn theirs() -> Value {
        json!({
            "f:metadata": {"f:labels": {"f:theirs": {}}},
            "f:spec": {
                "f:finalizers": {"v:\"b\"": {}},
                "f:ports": {"k:{\"port\":9,\"protocol\":\"UDP\"}": {".": {}, "f:port": {}, "f:protocol": {}}},
            },
        })
    }

    fn with_identity(mut config: Value) -> Value {
        config["apiVersion"] = "v1".into();
        config["kind"] = "Service".into();
        for (member, value) in [("name", "web"), ("namespace", "h"), ("uid", "u"), ("resourceVersion", "7")] {
            config.set_at(&["metadata", member], value.into());
        }
        config
    }

    #[test]
    fn a_configuration_holds_what_is_ours_with_the_change_and_nothing_of_others() {
        let plain = json!({"metadata": {"labels": {"app": "web"}}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}], "finalizers": ["a"]}});
        let with = |path: &[&str], value: Value| {
            let mut config = plain.clone();
            config.set_at(path, value);
            config
        };
        let tcp = json!({"port": 80, "protocol": "TCP"});
        let udp = json!({"port": 9, "protocol": "UDP"});
        for (patch, want) in [
            (json!({"metadata": {"uid": "u"}}), Ok(plain.clone())),
            (json!({"metadata": {"labels": {"new": "1"}}}), Ok(with(&["metadata", "labels", "new"], "1".into()))),
            // One value: all of it.
            (
                json!({"spec": {"selector": {"x": "y"}}}),
                Ok(with(&["spec", "selector"], json!({"app": "web", "x": "y"}))),
            ),
            (json!({"spec": {"selector": {"app": null}}}), Ok(with(&["spec", "selector"], json!({})))),
            // An item by its keys; the others' item stays away.
            (
                json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "name": "x"}, (udp.clone())]}}),
                Ok(with(&["spec", "ports"], json!([{"port": 80, "protocol": "TCP", "name": "x"}]))),
            ),
            (
                json!({"spec": {"ports": [(tcp.clone()), (udp.clone()), {"port": 81, "protocol": "TCP"}]}}),
                Ok(with(&["spec", "ports"], json!([(tcp.clone()), {"port": 81, "protocol": "TCP"}]))),
            ),
            // Ours is left out, theirs cannot be.
            (json!({"spec": {"ports": [(udp.clone())]}}), Ok(with(&["spec", "ports"], json!([])))),
            (json!({"spec": {"ports": [(tcp.clone())]}}), Err("a field that is not ours is to be removed")),
            (json!({"spec": {"finalizers": ["b", "c"]}}), Ok(with(&["spec", "finalizers"], json!(["c"])))),
            (json!({"spec": {"finalizers": ["a"]}}), Err("a field that is not ours is to be removed")),
            (json!({"metadata": {"labels": {"theirs": null}}}), Err("a field that is not ours is to be removed")),
            // Ours now, by force.
            (json!({"metadata": {"labels": {"theirs": "2"}}}), Ok(with(&["metadata", "labels", "theirs"], "2".into()))),
            (json!({"metadata": {"labels": {"app": null}}}), Ok(with(&["metadata", "labels"], json!({})))),
        ] {
            let host = host(vec![entry("alcove", "Apply", ours()), entry("other", "Update", theirs())]);
            let got = apply(&kind::SERVICE, &host, &patch);
            assert_eq!(got, want.map(|config| (None, with_identity(config))), "{patch}");
        }
    }

    #[test]
    fn an_object_without_other_owners_is_changed_in_its_parts() {
        let host = host(vec![entry("alcove", "Apply", ours())]);
        let patch = json!({"metadata": {"labels": {"app": "2"}}});
        let (_, config) = apply(&kind::SERVICE, &host, &patch).expect("it can be applied");
        assert_eq!(config["metadata"]["labels"], json!({"app": "2"}));
        assert!(
            config["metadata"].get("managedFields").is_none() && config["metadata"].get("creationTimestamp").is_none()
        );
    }

    #[test]
    fn what_updates_owned_is_given_to_apply_once() {
        for (entries, migrates) in [
            (vec![entry("alcove", "Apply", ours()), entry("other", "Update", theirs())], false),
            (vec![entry("alcove", "Update", ours()), entry("other", "Update", theirs())], true),
            (vec![entry("alcove-syncer", "Update", ours()), entry("other", "Update", theirs())], true),
            (vec![entry("alcove", "Update", ours()), entry("alcove", "Apply", json!({"f:x": {}}))], true),
        ] {
            let host = host(entries.clone());
            let patch = json!({"metadata": {"labels": {"app": "2"}}});
            let Write::Apply { migrate, .. } = write(&kind::SERVICE, &host, &patch) else { panic!("{entries:?}") };
            assert_eq!(migrate.is_some(), migrates, "{entries:?}");
            let Some(migrate) = migrate else { continue };
            assert_eq!(migrate.str_at(&["metadata", "resourceVersion"]), "7");
            let after = migrate.array_at(&["metadata", "managedFields"]);
            assert_eq!(after.iter().filter(|e| is_ours(e)).count(), 1);
            assert!(is_applied(&after[0]) && after[0]["fieldsV1"]["f:spec"] == ours()["f:spec"], "{after:?}");
            let of_others = |all: &[Value]| all.iter().filter(|e| !is_ours(e)).cloned().collect::<Vec<_>>();
            assert_eq!(of_others(after), of_others(&entries), "others keep theirs");
        }
    }

    #[test]
    fn merge_patches_are_for_what_apply_cannot_say() {
        let patch = json!({"metadata": {"labels": {"app": "2"}}});
        let mut twice = host(vec![entry("alcove", "Apply", ours())]);
        twice["spec"]["ports"] = json!([{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "TCP", "name": "b"}]);
        let mut other_version = entry("alcove", "Apply", ours());
        other_version["apiVersion"] = "v2".into();
        for (host, why) in [
            (host(Vec::new()), "the host tracks no owners"),
            (host(vec![other_version]), "the object was written in another version"),
            (twice, "a list has two items with the same keys"),
        ] {
            assert_eq!(write(&kind::SERVICE, &host, &patch), Write::Merge { patch: patch.clone(), why });
        }
    }
}
