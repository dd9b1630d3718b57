//! Fields that a schema does not know are dropped, and fields it has defaults for are filled in.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting,objectmeta}`.

use apimachinery::Value;

use super::schema::{Additional, Node};

/// Members every object has, which pruning leaves alone at the root and in embedded resources.
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what `schema` does not know. The paths of removed fields go to `removed`, such as `spec.foo` and `spec.l[0].bar`.
pub fn prune(value: &mut Value, schema: &Node, is_root: bool, path: &str, removed: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (i, item) in list.iter_mut().enumerate() {
                    prune(item, items, false, &format!("{path}[{i}]"), removed);
                }
            }
        }
        Value::Object(map) => {
            let resource = is_root || schema.embedded_resource;
            let keeps_unknown = schema.preserve_unknown_fields;
            let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            map.retain(|name, member| {
                if resource && TYPE_META.contains(&name) {
                    return true;
                }
                if let Some(property) = schema.properties.get(name) {
                    prune(member, property, false, &join(name), removed);
                    return true;
                }
                match &schema.additional {
                    Additional::Schema(node) => {
                        prune(member, node, false, &join(name), removed);
                        true
                    }
                    Additional::Any => true,
                    Additional::Unspecified => {
                        if !keeps_unknown {
                            removed.push(join(name));
                        }
                        keeps_unknown
                    }
                }
            });
        }
        _ => {}
    }
}

/// Fills in defaults. A null where null is not allowed and a default exists counts as absent.
pub fn default(value: &mut Value, schema: &Node) {
    match value {
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for item in list.iter_mut() {
                    if item.is_null()
                        && !items.nullable
                        && let Some(default) = &items.default
                    {
                        *item = default.clone();
                    }
                    self::default(item, items);
                }
            }
        }
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let absent = match map.get(name) {
                    None => true,
                    Some(member) => member.is_null() && !property.nullable,
                };
                if absent {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, member) in map.iter_mut() {
                if let Some(node) = schema.member(name) {
                    if member.is_null()
                        && !node.nullable
                        && let Some(default) = &node.default
                    {
                        *member = default.clone();
                    }
                    self::default(member, node);
                }
            }
        }
        _ => {}
    }
}

/// Removes nulls where null is not allowed; those that have a default become it later.
pub fn drop_nulls(value: &mut Value, schema: &Node) {
    match value {
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|item| drop_nulls(item, items));
            }
        }
        Value::Object(map) => {
            map.retain(|name, member| {
                let stays = |node: &Node| node.nullable || node.default.is_some();
                !member.is_null() || schema.member(name).is_none_or(stays)
            });
            for (name, member) in map.iter_mut() {
                if let Some(node) = schema.member(name) {
                    drop_nulls(member, node);
                }
            }
        }
        _ => {}
    }
}
