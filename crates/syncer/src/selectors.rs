//! Label selectors across the border: the tenant's own keys, and never anything but the tenant's own objects.
//!
//! Invariant: a selector of a host object that is meant to select the tenant's pods always carries the marker label, and the
//! namespace label where the virtual selector was bound to a namespace. Both are set last, so nothing a tenant writes in a
//! selector widens it.

use apimachinery::{Map, Value};

use crate::metadata::{MANAGED_BY_LABEL, NAMESPACE_LABEL, string_map};
use crate::names::Names;

/// Translates a plain key-value selector (Services) and binds it to the namespace. `None` stays no selector.
pub fn host_map_selector(selector: Option<&Value>, virtual_namespace: &str, names: &Names) -> Option<Value> {
    let selector = selector.filter(|s| s.as_object().is_some_and(|m| !m.is_empty()))?;
    let mut out: Map = string_map(Some(selector)).map(|(k, v)| (names.host_label(k), Value::from(v))).collect();
    bind(&mut out, Some(virtual_namespace), names);
    Some(out.into())
}

/// The way back of [`host_map_selector`].
pub fn virtual_map_selector(selector: Option<&Value>, names: &Names) -> Option<Value> {
    let map: Map =
        string_map(selector).filter_map(|(k, v)| names.virtual_label(k).map(|k| (k, Value::from(v)))).collect();
    (!map.is_empty()).then(|| map.into())
}

fn bind(labels: &mut Map, virtual_namespace: Option<&str>, names: &Names) {
    labels.insert(MANAGED_BY_LABEL, names.virtual_cluster().into());
    if let Some(namespace) = virtual_namespace {
        labels.insert(NAMESPACE_LABEL, namespace.into());
    }
}

/// Translates the keys of a LabelSelector.
pub fn host_selector(selector: &Value, names: &Names) -> Value {
    translate_keys(selector, |key| names.host_label(key))
}

/// The selector on pods that a selector on namespaces stands for: host pods carry their namespace's labels.
pub fn host_namespace_selector(selector: &Value, names: &Names) -> Value {
    translate_keys(selector, |key| {
        // Every virtual namespace has this label and its value is the namespace's name, which host pods carry anyway.
        if key == "kubernetes.io/metadata.name" { NAMESPACE_LABEL.to_owned() } else { names.namespace_label(key) }
    })
}

fn translate_keys(selector: &Value, host_key: impl Fn(&str) -> String) -> Value {
    let mut out = Map::new();
    if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
        let mut translated = Map::new();
        for (key, value) in labels.iter() {
            translated.insert(host_key(key), value.clone());
        }
        out.insert("matchLabels", translated.into());
    }
    let expressions: Vec<Value> = selector
        .array_at(&["matchExpressions"])
        .iter()
        .map(|e| {
            let mut e = e.clone();
            let key = host_key(e.str_at(&["key"]));
            e.set_at(&["key"], key.into());
            e
        })
        .collect();
    if !expressions.is_empty() {
        out.insert("matchExpressions", Value::Array(expressions));
    }
    out.into()
}

/// Both selectors must match. The same key in both `matchLabels` keeps both requirements.
pub fn merge_selectors(a: &Value, b: &Value) -> Value {
    let mut labels = Map::new();
    let mut expressions: Vec<Value> = Vec::new();
    for selector in [a, b] {
        for (key, value) in string_map(selector.get("matchLabels")) {
            match labels.get(key).and_then(Value::as_str) {
                Some(other) if other != value => {
                    expressions.push(apimachinery::json!({"key": key, "operator": "In", "values": [value]}));
                }
                _ => {
                    labels.insert(key, value.into());
                }
            }
        }
        expressions.extend(selector.array_at(&["matchExpressions"]).iter().cloned());
    }
    let mut out = Map::new();
    if !labels.is_empty() {
        out.insert("matchLabels", labels.into());
    }
    if !expressions.is_empty() {
        out.insert("matchExpressions", Value::Array(expressions));
    }
    out.into()
}

/// Binds a LabelSelector to this virtual cluster, and to one of its namespaces when given.
pub fn bind_selector(selector: &mut Value, virtual_namespace: Option<&str>, names: &Names) {
    bind(selector.make_object().object_mut("matchLabels"), virtual_namespace, names);
}

/// Adds `key operator values` to a LabelSelector.
pub fn require(selector: &mut Value, key: &str, operator: &str, values: Vec<Value>) {
    let expressions = selector.make_object().get_or_insert_with("matchExpressions", || Value::Array(Vec::new()));
    if let Some(list) = expressions.as_array_mut() {
        list.push(apimachinery::json!({"key": key, "operator": operator, "values": (Value::Array(values))}));
    }
}

/// True for a selector that selects everything.
pub fn is_empty(selector: &Value) -> bool {
    selector.get("matchLabels").and_then(Value::as_object).is_none_or(Map::is_empty)
        && selector.array_at(&["matchExpressions"]).is_empty()
}

/// Whether labels satisfy a LabelSelector. An unknown operator matches nothing.
pub fn matches(selector: &Value, labels: Option<&Value>) -> bool {
    let of = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    string_map(selector.get("matchLabels")).all(|(k, v)| of(k) == Some(v))
        && selector.array_at(&["matchExpressions"]).iter().all(|e| {
            let value = of(e.str_at(&["key"]));
            let listed = |v: &str| e.array_at(&["values"]).iter().any(|x| *x == *v);
            match e.str_at(&["operator"]) {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn selectors_cannot_be_widened() {
        let names = Names::new("vc", "host");
        // A tenant names the markers of another tenant: its keys are renamed, ours are set last.
        let hostile = json!({"matchLabels": {"vcluster.loft.sh/managed-by": "other", "vcluster.loft.sh/namespace": "kube-system"}});
        let mut got = host_selector(&hostile, &names);
        bind_selector(&mut got, Some("default"), &names);
        assert_eq!(got.str_at(&["matchLabels", MANAGED_BY_LABEL]), "vc");
        assert_eq!(got.str_at(&["matchLabels", NAMESPACE_LABEL]), "default");
        assert_eq!(got["matchLabels"].as_object().map(Map::len), Some(4));
    }

    #[test]
    fn service_selectors_translate_there_and_back() {
        let names = Names::new("vc", "host");
        for (selector, host_keys) in
            [(json!({"app": "web"}), 3), (json!({"app": "web", "release": "x"}), 4), (json!({}), 0), (Value::Null, 0)]
        {
            let host = host_map_selector(Some(&selector), "default", &names);
            assert_eq!(host.as_ref().and_then(Value::as_object).map_or(0, Map::len), host_keys, "{selector}");
            if host.is_some() {
                assert_eq!(virtual_map_selector(host.as_ref(), &names), Some(selector));
            }
        }
    }

    #[test]
    fn selector_matching() {
        let labels = json!({"a": "1", "b": ""});
        for (selector, want) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["1"]}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), false),
            (json!({"matchExpressions": [{"key": "b", "operator": "Near"}]}), false),
        ] {
            assert_eq!(matches(&selector, Some(&labels)), want, "{selector}");
        }
    }

    #[test]
    fn merged_selectors_need_both() {
        let a = json!({"matchLabels": {"k": "1"}});
        let b = json!({"matchLabels": {"k": "2"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]});
        let merged = merge_selectors(&a, &b);
        assert!(!matches(&merged, Some(&json!({"k": "1", "x": ""}))));
        assert!(!matches(&merged, Some(&json!({"k": "2", "x": ""}))));
        assert!(matches(&merge_selectors(&a, &a), Some(&json!({"k": "1"}))));
    }
}
