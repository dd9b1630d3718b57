//! Apply as a client sees it, without the API server around it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::managed::Managed;
use super::set::{Filter, Set};
use super::typed::Type;
use super::*;
use crate::json;
use crate::schema::Schema;

/// One object, and the writes to it.
struct Server {
    kind: GroupVersionKind,
    schema: Option<Schema>,
    filters: BTreeMap<String, Filter>,
    live: Option<Value>,
    seconds: i64,
}

struct One<'a>(&'a Schema);

impl Versions for One<'_> {
    fn schema(&self, _: &str) -> Option<Type<'_>> {
        self.0.root().map(Type::root)
    }
    fn convert(&self, _: &Value, _: &str) -> Result<Value, String> {
        Err("one version".into())
    }
}

fn no_conversion(_: &Value, _: &str) -> Result<Value, String> {
    Err("one version".into())
}

/// What decoding does with nulls.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, v| {
            drop_nulls(v);
            !v.is_null()
        });
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(drop_nulls);
    }
}

impl Server {
    fn of(group: &str, version: &str, kind: &str) -> Self {
        let kind = GroupVersionKind::new(group, version, kind);
        Server { kind, schema: None, filters: BTreeMap::new(), live: None, seconds: 0 }
    }

    fn custom(open_api: Value) -> Self {
        let schema = Schema::from_structural(&open_api, ("example.com", "v1", "Thing")).expect("a structural schema");
        let mut server = Server::of("example.com", "v1", "Thing");
        server.schema = Some(schema);
        server
    }

    fn manage<T>(&mut self, f: impl FnOnce(&FieldManager<'_>, Option<&Value>) -> T) -> T {
        self.seconds += 1;
        let kind = self.kind.kind.to_string();
        let builtin = BuiltinVersions { kind: &kind, convert: &no_conversion };
        let one = self.schema.as_ref().map(One);
        let versions: &dyn Versions = match &one {
            Some(one) => one,
            None => &builtin,
        };
        let manager = FieldManager {
            kind: &self.kind,
            subresource: "",
            versions,
            filters: &self.filters,
            now: Timestamp::from_seconds(self.seconds),
        };
        f(&manager, self.live.as_ref())
    }

    fn store(&mut self, mut object: Value) {
        drop_nulls(&mut object);
        object.set_uid("u");
        self.live = Some(object);
    }

    /// Completes a body: `apiVersion`, `kind` and a name.
    fn object(&self, body: Value) -> Value {
        let mut object = body;
        self.kind.set_on(&mut object);
        object.set_name("a");
        object
    }

    #[track_caller]
    fn update(&mut self, manager: &str, body: Value) -> &mut Self {
        let object = self.object(body);
        let new = self.manage(|m, live| m.update(live, object, manager));
        self.store(new);
        self
    }

    fn try_apply(&mut self, manager: &str, body: Value, force: bool) -> Result<(), ApplyError> {
        let config = self.object(body);
        let new = self.manage(|m, live| m.apply(live, &config, manager, force))?;
        self.store(new);
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, manager: &str, body: Value) -> &mut Self {
        if let Err(e) = self.try_apply(manager, body, false) {
            panic!("{manager}: {e}");
        }
        self
    }

    #[track_caller]
    fn conflict(&mut self, manager: &str, body: Value, want: &str) -> &mut Self {
        match self.try_apply(manager, body, false) {
            Err(e @ ApplyError::Conflict(_)) => assert_eq!(e.to_string(), want),
            other => panic!("wanted a conflict, got {other:?}"),
        }
        self
    }

    fn live(&self) -> &Value {
        self.live.as_ref().unwrap_or(&Value::Null)
    }

    /// The member under test without what is always there.
    #[track_caller]
    fn holds(&mut self, path: &[&str], want: Value) -> &mut Self {
        assert_eq!(self.live().at(path).cloned().unwrap_or_default(), want);
        self
    }

    #[track_caller]
    fn owned(&mut self, manager: &str, want: Value) -> &mut Self {
        let entry = self.live().managed_fields().iter().find(|e| e["manager"] == manager);
        assert_eq!(entry.map_or(Value::Null, |e| e["fieldsV1"].clone()), want, "{manager} in {}", self.live());
        self
    }
}

fn config_map() -> Server {
    Server::of("", "v1", "ConfigMap")
}

#[test]
fn an_applier_owns_what_it_sent() {
    config_map()
        .apply("m", json!({"data": {"k": "v"}, "metadata": {"labels": {"a": "b"}}}))
        .owned("m", json!({"f:data": {"f:k": {}}, "f:metadata": {"f:labels": {"f:a": {}}}}))
        .holds(&["data"], json!({"k": "v"}));
}

#[test]
fn an_update_owns_what_changed_with_new_maps() {
    config_map()
        .update("m", json!({"data": {"k": "v"}}))
        .owned("m", json!({"f:data": {".": {}, "f:k": {}}}))
        .update("n", json!({"data": {"k": "w", "x": "y"}}))
        .owned("m", json!({"f:data": {}}))
        .owned("n", json!({"f:data": {"f:k": {}, "f:x": {}}}))
        .update("n", json!({}))
        .owned("m", Value::Null)
        .owned("n", Value::Null);
}

#[test]
fn a_create_does_not_own_the_structs_of_the_kind() {
    Server::of("apps", "v1", "Deployment")
        .update(
            "m",
            json!({"spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "strategy": {},
            "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}}}, "status": {}}),
        )
        .owned(
            "m",
            json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:resources": {}}}}}}}),
        );
}

#[test]
fn conflicts_sharing_force_and_giving_up() {
    config_map()
        .apply("m1", json!({"data": {"k": "v"}}))
        .conflict("m2", json!({"data": {"k": "w"}}), "Apply failed with 1 conflict: conflict with \"m1\": .data.k")
        .apply("m2", json!({"data": {"k": "v"}})) // the same value is shared
        .apply("m1", json!({})) // a shared field survives the release by one owner
        .holds(&["data"], json!({"k": "v"}))
        .owned("m1", Value::Null)
        .apply("m2", json!({})) // and goes with the last one
        .holds(&["data"], Value::Null)
        .owned("m2", Value::Null);

    let mut server = config_map();
    server.apply("m1", json!({"data": {"k": "v", "x": "y"}}));
    server.try_apply("m2", json!({"data": {"k": "w"}}), true).expect("forced");
    server
        .holds(&["data"], json!({"k": "w", "x": "y"}))
        .owned("m1", json!({"f:data": {"f:x": {}}}))
        .owned("m2", json!({"f:data": {"f:k": {}}}));
}

#[test]
fn updates_conflict_under_their_version() {
    config_map().update("m", json!({"data": {"k": "v"}})).conflict(
        "m",
        json!({"data": {"k": "w"}}),
        "Apply failed with 1 conflict: conflict with \"m\" using v1: .data.k",
    );
}

#[test]
fn reset_entries_are_before_first_apply() {
    for reset in [json!([]), json!([{}])] {
        config_map()
            .update("m", json!({"data": {"k": "v"}}))
            .update("m", json!({"data": {"k": "v"}, "metadata": {"managedFields": serde_json::Value::from(reset)}}))
            .holds(&["metadata", "managedFields"], Value::Null)
            .conflict(
                "a",
                json!({"data": {"k": "w"}}),
                "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k",
            );
    }
}

#[test]
fn unreadable_entries_of_a_request_are_ignored() {
    config_map()
        .update("m", json!({"data": {"k": "v"}, "metadata": {"managedFields": [{"manager": "x", "operation": "Foo"}]}}))
        .owned("m", json!({"f:data": {".": {}, "f:k": {}}}));
}

#[test]
fn list_maps_merge_by_key_and_keep_a_common_order() {
    let pod = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
        let mut body = Value::object();
        body.set_at(&["spec", "containers"], Value::Array(containers));
        body
    };
    // (first applier, second applier, order)
    for (first, second, want) in [
        (&["a", "b"][..], &["c"][..], &["a", "b", "c"][..]),
        (&["a", "b"], &["b", "a"], &["b", "a"]),
        (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
        (&["a", "b", "c"], &["x", "b"], &["a", "x", "b", "c"]),
        (&[], &["x"], &["x"]),
    ] {
        let mut server = Server::of("", "v1", "Pod");
        server.apply("m1", pod(first)).apply("m2", pod(second));
        let order: Vec<&str> =
            server.live().array_at(&["spec", "containers"]).iter().map(|c| c.str_at(&["name"])).collect();
        assert_eq!(order, want, "{first:?} {second:?}");
    }
}

#[test]
fn a_defaulted_key_is_part_of_the_element() {
    Server::of("", "v1", "Service")
        .apply("m", json!({"spec": {"ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}}))
        .owned(
            "m",
            json!({"f:spec": {"f:ports": {
            "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}},
            "k:{\"port\":80,\"protocol\":\"UDP\"}": {".": {}, "f:port": {}, "f:protocol": {}}}}}),
        );
}

#[test]
fn what_does_not_fit_the_type_is_refused() {
    let mut server = config_map();
    for (body, want) in [
        (json!({"bogus": 1}), "(/a; /v1, Kind=ConfigMap): .bogus: field not declared in schema"),
        (
            json!({"data": {"k": 1}}),
            "(/a; /v1, Kind=ConfigMap): .data.k: expected string, got &value.valueUnstructured{Value:1}",
        ),
        (json!({"data": ["x"]}), "(/a; /v1, Kind=ConfigMap): .data: expected map, got &{[x]}"),
        (
            json!({"metadata": {"finalizers": ["a", "a"], "namespace": "n"}}),
            "(n/a; /v1, Kind=ConfigMap): .metadata.finalizers: duplicate entries for key [=\"a\"]",
        ),
        (
            json!({"metadata": {"ownerReferences": ["x"]}}),
            "(/a; /v1, Kind=ConfigMap): .metadata.ownerReferences: element 0: associative list with keys may not have non-map elements",
        ),
    ] {
        let got = server.try_apply("m", body, false).map_err(|e| e.to_string());
        assert_eq!(got, Err(format!("failed to create typed patch object {want}")));
    }
    assert_eq!(
        server.try_apply("m", json!({"metadata": {"managedFields": []}}), false),
        Err(ApplyError::BadRequest("metadata.managedFields must be nil".into()))
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret"});
    let got = server.manage(|m, live| m.apply(live, &secret, "m", false));
    assert_eq!(got, Err(ApplyError::BadRequest("invalid object type: /v1, Kind=Secret".into())));
}

#[test]
fn custom_resources_merge_by_their_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "l": {"type": "array", "items": {"type": "string"}},
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "o": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}});
    Server::custom(schema)
        .apply("m1", json!({"spec": {"l": ["a"], "s": ["a"], "o": {"k": "v"}, "free": {"x": {"y": 1}, "z": [1]}}}))
        .owned(
            "m1",
            json!({"f:spec": {"f:l": {}, "f:s": {"v:\"a\"": {}}, "f:o": {},
            "f:free": {"f:x": {".": {}, "f:y": {}}, "f:z": {}}}}),
        )
        .apply("m2", json!({"spec": {"s": ["b"], "free": {"x": {"w": 2}}}}))
        .holds(&["spec", "s"], json!(["a", "b"]))
        .holds(&["spec", "free", "x"], json!({"w": 2, "y": 1}))
        .conflict(
            "m2",
            json!({"spec": {"o": {"x": "y"}}}),
            "Apply failed with 1 conflict: conflict with \"m1\": .spec.o",
        );
}

#[test]
fn what_loses_its_last_field_stays_when_it_is_still_applied() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "d": {"type": "string", "default": "x"}}}}});
    Server::custom(schema)
        .apply("m", json!({"spec": {"d": "y"}}))
        .apply("m", json!({"spec": {}}))
        .holds(&["spec"], json!({}))
        .owned("m", json!({"f:spec": {}}));
}

#[test]
fn reset_fields_are_not_owned() {
    let mut server = Server::of("apps", "v1", "Deployment");
    server.filters = reset::filters("apps", "deployments", "", &["apps/v1"]);
    server
        .apply("m", json!({"spec": {"replicas": 2}, "status": {"replicas": 1}}))
        .owned("m", json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn an_apply_that_changes_nothing_keeps_time_and_object() {
    let mut server = config_map();
    server.apply("m", json!({"data": {"k": "v"}}));
    let before = server.live().clone();
    server.apply("m", json!({"data": {"k": "v"}}));
    assert_eq!(*server.live(), before);

    let mut later = before.clone();
    later["metadata"]["managedFields"] = json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1",
        "time": "1970-01-01T01:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:k": {}}}}]);
    assert!(keep_times_of_noop(&mut later, &before));
    assert_eq!(later, before);
    later["data"]["k"] = "w".into();
    assert!(!keep_times_of_noop(&mut later, &before));

    // Two that wrote in one second stand by name; the one that repeats itself later stands behind the other.
    let entry = |manager: &str, time: &str| json!({"manager": manager, "operation": "Apply", "time": time});
    let object = |entries: Value| json!({"metadata": {"managedFields": entries}, "data": {"k": "v"}});
    let before = object(json!([entry("a", "1970-01-01T00:00:01Z"), entry("m", "1970-01-01T00:00:01Z")]));
    let mut later = object(json!([entry("m", "1970-01-01T00:00:01Z"), entry("a", "1970-01-01T00:00:02Z")]));
    assert!(keep_times_of_noop(&mut later, &before));
    assert_eq!(later, before);
    let mut other = object(json!([entry("m", "1970-01-01T00:00:01Z"), entry("b", "1970-01-01T00:00:02Z")]));
    assert!(!keep_times_of_noop(&mut other, &before));
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client() {
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}}).to_string();
    let mut server = config_map();
    server.update(
        "kubectl-client-side-apply",
        json!({"data": {"k": "v"}, "metadata": {"annotations": {
        "kubectl.kubernetes.io/last-applied-configuration": last}}}),
    );
    server.apply("kubectl", json!({"data": {"k": "w"}})).holds(&["data"], json!({"k": "w"}));
    let annotation = server.live().annotation("kubectl.kubernetes.io/last-applied-configuration");
    assert!(annotation.is_some_and(|a| a.contains("\"w\"") && a.ends_with('\n')), "{annotation:?}");
}

#[test]
fn ownership_passes_through_scale() {
    let paths = scale::spec_replicas(&["apps/v1"]);
    let entry = |manager: &str, subresource: &str, fields: Value| {
        let mut entry =
            json!({"manager": manager, "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1"});
        entry["fieldsV1"] = fields;
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    };
    let parent = [entry("m", "", json!({"f:spec": {"f:replicas": {}, "f:paused": {}}}))];
    let seen = scale::to_scale(&parent, &paths).expect("valid entries");
    assert_eq!(seen[0]["apiVersion"], "autoscaling/v1");
    assert_eq!(seen[0]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));

    let mut taken = entry("n", "scale", json!({"f:spec": {"f:replicas": {}}}));
    taken["apiVersion"] = "autoscaling/v1".into();
    assert_eq!(
        scale::to_parent(&parent, &[taken], "apps/v1", &paths),
        Ok(vec![
            entry("m", "", json!({"f:spec": {"f:paused": {}}})),
            entry("n", "scale", json!({"f:spec": {"f:replicas": {}}})),
        ])
    );
    assert_eq!(scale::to_parent(&parent, &seen, "apps/v1", &paths), Ok(parent.to_vec()));
}

#[test]
fn a_type_that_became_atomic_is_owned_as_a_whole() {
    let granular =
        json!({"type": "object", "properties": {"o": {"type": "object", "additionalProperties": {"type": "string"}}}});
    let mut atomic = granular.clone();
    atomic["properties"]["o"]["x-kubernetes-map-type"] = "atomic".into();
    let mut server = Server::custom(granular);
    server.apply("m", json!({"o": {"a": "1"}})).owned("m", json!({"f:o": {"f:a": {}}}));
    server.schema =
        Some(Schema::from_structural(&atomic, ("example.com", "v1", "Thing")).expect("a structural schema"));
    server.apply("n", json!({})).owned("m", json!({"f:o": {}}));
}

#[test]
fn stored_duplicates_are_one_thing_until_they_are_gone() {
    let schema = Schema::from_structural(
        &json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}}}}),
        ("example.com", "v1", "Thing"),
    )
    .expect("a structural schema");
    let ty = schema.root().map(Type::root).expect("a root");
    let two = json!({"m": [{"k": "a", "v": 1}, {"k": "a", "v": 2}]});
    let one = json!({"m": [{"k": "a", "v": 1}]});
    assert_eq!(field_set(ty, &two).to_fields_v1(), json!({"f:m": {"k:{\"k\":\"a\"}": {}}}));
    let sets = |l: &Value, r: &Value| {
        let c = compare(ty, l, r);
        [c.removed.to_fields_v1(), c.modified.to_fields_v1(), c.added.to_fields_v1()]
    };
    let element = json!({"f:m": {"k:{\"k\":\"a\"}": {}}});
    let with_fields = json!({"f:m": {"k:{\"k\":\"a\"}": {".": {}, "f:k": {}, "f:v": {}}}});
    // Duplicates that come or go are the element as a whole; the single one has fields.
    assert_eq!(sets(&two, &one), [element.clone(), json!({}), with_fields.clone()]);
    assert_eq!(sets(&one, &two), [with_fields, json!({}), element.clone()]);
    let changed = json!({"m": [{"k": "a", "v": 1}, {"k": "a", "v": 3}]});
    assert_eq!(sets(&two, &changed), [json!({}), element, json!({})]);
    // Applying the element replaces both.
    assert_eq!(merge_typed(ty, &two, &json!({"m": [{"k": "a", "v": 9}]})), json!({"m": [{"k": "a", "v": 9}]}));
    assert_eq!(merge_typed(ty, &two, &json!({"m": []})), two);
}

/// Two versions of one kind that name their one field differently.
struct Renamed {
    v1: Schema,
    v2: Schema,
}

impl Renamed {
    fn new() -> Self {
        let schema = |version: &str, field: &str| {
            let mut open_api = json!({"type": "object", "properties": {}});
            open_api["properties"][field] = json!({"type": "string"});
            Schema::from_structural(&open_api, ("example.com", version, "Thing")).expect("a structural schema")
        };
        Renamed { v1: schema("v1", "old"), v2: schema("v2", "new") }
    }
}

impl Versions for Renamed {
    fn schema(&self, api_version: &str) -> Option<Type<'_>> {
        match api_version {
            "example.com/v1" => self.v1.root().map(Type::root),
            "example.com/v2" => self.v2.root().map(Type::root),
            _ => None,
        }
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        let (from, to) = if api_version == "example.com/v1" { ("new", "old") } else { ("old", "new") };
        let mut out = object.clone();
        out["apiVersion"] = api_version.into();
        if let Some(value) = out.as_object_mut().and_then(|m| m.remove(from)) {
            out[to] = value;
        }
        Ok(out)
    }
}

#[test]
fn managers_of_other_versions_own_fields_in_their_terms() {
    let versions = Renamed::new();
    let (v1, v2) =
        (GroupVersionKind::new("example.com", "v1", "Thing"), GroupVersionKind::new("example.com", "v2", "Thing"));
    let filters = BTreeMap::new();
    let manager = |kind| FieldManager {
        kind,
        subresource: "",
        versions: &versions,
        filters: &filters,
        now: Timestamp::from_seconds(1),
    };
    let object = |kind: &GroupVersionKind, field: &str, value: &str| {
        let mut object = json!({"metadata": {"name": "a", "uid": "u"}});
        kind.set_on(&mut object);
        object[field] = value.into();
        object
    };
    let live = manager(&v1).apply(None, &object(&v1, "old", "x"), "m1", false).expect("a create");
    let live = versions.convert(&live, "example.com/v2").expect("convertible");
    let refused = manager(&v2).apply(Some(&live), &object(&v2, "new", "y"), "m2", false);
    assert_eq!(
        refused.map_err(|e| e.to_string()),
        Err("Apply failed with 1 conflict: conflict with \"m1\": .old".to_owned())
    );
    let forced = manager(&v2).apply(Some(&live), &object(&v2, "new", "y"), "m2", true).expect("forced");
    assert_eq!(forced.managed_fields().len(), 1, "{forced}");

    // The same manager goes on in the other version: what it leaves out goes, whatever it was called.
    let moved = manager(&v2).apply(Some(&live), &object(&v2, "other", "x"), "m1", false);
    assert!(moved.is_err(), "an unknown field is refused in any version");
    let mut nothing = object(&v2, "new", "");
    nothing.as_object_mut().map(|m| m.remove("new"));
    let left = manager(&v2).apply(Some(&live), &nothing, "m1", false).expect("its own field");
    assert!(left.get("new").is_none_or(Value::is_null), "{left}");

    // A version that is not known any more owns nothing.
    let mut ancient = live.clone();
    let entry = &mut live.managed_fields()[0].clone();
    entry["apiVersion"] = "example.com/v0".into();
    ancient.set_managed_fields(vec![entry.clone()]);
    let taken = manager(&v2).apply(Some(&ancient), &object(&v2, "new", "y"), "m2", false).expect("nobody's");
    assert_eq!(taken.managed_fields().len(), 1);
}

/// A body with some labels, data and finalizers.
fn any_body() -> impl Strategy<Value = Value> {
    let map = || prop::collection::btree_map("[a-c]", "[x-y]", 0..3);
    (map(), map(), prop::collection::btree_set("[p-r]", 0..3)).prop_map(|(labels, data, finalizers)| {
        let map = |m: std::collections::BTreeMap<String, String>| {
            Value::Object(m.into_iter().map(|(k, v)| (k, Value::from(v))).collect())
        };
        let mut body = Value::object();
        if !labels.is_empty() {
            body.set_at(&["metadata", "labels"], map(labels));
        }
        if !data.is_empty() {
            body.set_at(&["data"], map(data));
        }
        if !finalizers.is_empty() {
            body.set_at(&["metadata", "finalizers"], finalizers.into_iter().collect::<Vec<_>>().into());
        }
        body
    })
}

fn prefixed(mut body: Value, prefix: &str) -> Value {
    for path in [&["data"][..], &["metadata", "labels"]] {
        if let Some(Value::Object(members)) = body.at_mut(path) {
            *members = members.clone().into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)).collect();
        }
    }
    if let Some(items) = body.at_mut(&["metadata", "finalizers"]).and_then(Value::as_array_mut) {
        for item in items {
            *item = format!("{prefix}{}", item.as_str().unwrap_or("")).into();
        }
    }
    body
}

fn sorted(mut object: Value) -> Value {
    if let Some(items) = object.at_mut(&["metadata", "finalizers"]).and_then(Value::as_array_mut) {
        items.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    for entry in object.at_mut(&["metadata", "managedFields"]).and_then(Value::as_array_mut).into_iter().flatten() {
        entry.as_object_mut().map(|e| e.remove("time"));
    }
    if let Some(entries) = object.at_mut(&["metadata", "managedFields"]).and_then(Value::as_array_mut) {
        entries.sort_by(|a, b| a.str_at(&["manager"]).cmp(b.str_at(&["manager"])));
    }
    object
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn applying_again_changes_nothing(first in any_body(), body in any_body()) {
        let mut server = config_map();
        server.update("u", first);
        prop_assume!(server.try_apply("m", body.clone(), true).is_ok());
        let once = server.live().clone();
        server.try_apply("m", body, false).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(server.live(), &once);
    }

    #[test]
    fn managers_of_different_fields_commute(a in any_body(), b in any_body()) {
        let (a, b) = (prefixed(a, "a"), prefixed(b, "b"));
        let mut ab = config_map();
        ab.apply("a", a.clone()).apply("b", b.clone());
        let mut ba = config_map();
        ba.apply("b", b).apply("a", a);
        prop_assert_eq!(sorted(ab.live().clone()), sorted(ba.live().clone()));
    }

    #[test]
    fn what_was_applied_is_there_and_owned(first in any_body(), body in any_body()) {
        let mut server = config_map();
        server.update("u", first);
        server.try_apply("m", body.clone(), true).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let config = server.object(body);
        let ty = Type::root(schema::lookup("", "v1", "ConfigMap").expect("built in"));
        // Merging it once more changes nothing: all of it is there.
        prop_assert_eq!(merge_typed(ty, server.live(), &config), server.live().clone());
        let managed = Managed::decode(server.live().managed_fields()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let identity = Set::of_fields(&[&["apiVersion"], &["kind"], &["metadata", "name"]]);
        let owned = managed.fields.iter().filter(|(m, _)| m.name == "m").fold(Set::new(), |all, (_, s)| all.union(&s.set));
        prop_assert!(field_set(ty, &config).difference(&identity).difference(&owned).is_empty());
    }

    #[test]
    fn updates_leave_owners_of_existing_fields_only(bodies in prop::collection::vec((any_body(), "[a-d]"), 1..6)) {
        let mut server = config_map();
        for (body, manager) in bodies {
            server.update(&manager, body);
        }
        let ty = Type::root(schema::lookup("", "v1", "ConfigMap").expect("built in"));
        let all = field_set(ty, server.live());
        let managed = Managed::decode(server.live().managed_fields()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut seen = Set::new();
        for owned in managed.fields.values() {
            prop_assert!(owned.set.intersection(&seen).is_empty(), "updaters do not share");
            seen = seen.union(&owned.set);
        }
        let missing = seen.difference(&all).paths().into_iter().filter(|p| p.len() > 2).count();
        prop_assert_eq!(missing, 0);
    }
}
