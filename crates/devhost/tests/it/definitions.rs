//! CustomResourceDefinitions from a client's side: discovery, OpenAPI, defaults, field validation, watches.

use apimachinery::{Value, json};

use crate::api::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const APPLY: &str = "application/apply-patch+yaml";

/// A definition with these versions, the first of which is stored; each with the schema of its `spec`, `null` for any.
fn definition(group: &str, plural: &str, kind: &str, versions: &[(&str, Value)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(i, (name, schema))| {
            let schema = match schema {
                Value::Null => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
                schema => schema.clone(),
            };
            json!({"name": *name, "served": true, "storage": i == 0, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}})
        })
        .collect();
    let mut object = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")}}});
    object["spec"]["versions"] = Value::Array(versions);
    object
}

async fn define(api: &Api, object: Value) -> String {
    let path = format!("{DEFINITIONS}/{}", name_of(&object));
    api.post(DEFINITIONS, object).await;
    let made = api
        .until("established", &path, |d| {
            condition(d, "Established") == "True" && condition(d, "NamesAccepted") == "True"
        })
        .await;
    let group = made.str_at(&["spec", "group"]);
    for version in made.array_at(&["spec", "versions"]) {
        api.until("served", &format!("/apis/{group}/{}", version.str_at(&["name"])), |l| {
            !l.array_at(&["resources"]).is_empty()
        })
        .await;
    }
    path
}

fn schema() -> Value {
    json!({"type": "object", "description": "Foo CRD for Testing", "properties": {
        "spec": {"type": "object", "description": "Specification of Foo", "properties": {
            "bars": {"type": "array", "description": "List of Bars and their specs.", "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "description": "Name of Bar."}, "age": {"type": "string"}, "feeling": {"type": "string", "enum": ["Great", "Down"]}}}}}},
        "status": {"type": "object", "description": "Status of Foo", "x-kubernetes-preserve-unknown-fields": true}}})
}

async fn openapi_v2(api: &Api, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    api.until(what, "/openapi/v2", holds).await
}

fn defined<'v>(document: &'v Value, name: &str) -> &'v Value {
    static NONE: Value = Value::Null;
    document["definitions"].get(name).unwrap_or(&NONE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_are_listed_watched_and_their_status_is_a_subresource() {
    let api = Api::start().await;
    let mut group_names = Vec::new();
    let start = version_of(&api.get(DEFINITIONS).await).to_owned();
    let mut events = api.watch(DEFINITIONS, &start, "").await;
    for i in 0..3 {
        let group = format!("g{i}.example.com");
        let mut object = definition(&group, "foos", "Foo", &[("v1", Value::Null)]);
        object.set_at(&["metadata", "labels", "list-test"], "a".into());
        define(&api, object).await;
        events.until("ADDED", &format!("foos.{group}"), |_| true).await;
        group_names.push(group);
    }
    assert_eq!(api.get(&format!("{DEFINITIONS}?labelSelector=list-test%3Da")).await.array_at(&["items"]).len(), 3);
    let path = format!("{DEFINITIONS}/foos.g0.example.com");
    let status = api.get(&format!("{path}/status")).await;
    assert_eq!(status.str_at(&["status", "acceptedNames", "kind"]), "Foo");
    let updated = api
        .update(&format!("{path}/status"), |d| {
            let mut conditions = d.array_at(&["status", "conditions"]).to_vec();
            conditions.push(json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m"}));
            d.set_at(&["status", "conditions"], Value::Array(conditions));
        })
        .await;
    assert_eq!(condition(&updated, "StatusUpdate"), "True");
    let patched = api.merge(&path, json!({"spec": {"names": {"categories": ["all"]}}})).await;
    assert_eq!(patched["spec"]["names"]["categories"][0], "all");
    // Watches of the objects themselves, one after another.
    let ns = api.namespace("watched").await;
    let foos = format!("/apis/g1.example.com/v1/namespaces/{ns}/foos");
    let version = version_of(&api.get(&foos).await).to_owned();
    let mut objects = api.watch(&foos, &version, "").await;
    for name in ["a", "b"] {
        api.post(
            &foos,
            json!({"apiVersion": "g1.example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {"x": 1}}),
        )
        .await;
        objects.until("ADDED", name, |o| o["spec"]["x"] == 1).await;
        api.merge(&format!("{foos}/{name}"), json!({"spec": {"x": 2}})).await;
        objects.until("MODIFIED", name, |o| o["spec"]["x"] == 2).await;
        api.delete(&format!("{foos}/{name}")).await;
        objects.until("DELETED", name, |_| true).await;
    }
    api.delete(&format!("{DEFINITIONS}?labelSelector=list-test%3Da")).await;
    for group in group_names {
        api.until_gone(&format!("{DEFINITIONS}/foos.{group}")).await;
        events.until("DELETED", &format!("foos.{group}"), |_| true).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_has_custom_groups_as_soon_as_they_are_there() {
    let api = Api::start().await;
    define(&api, definition("disc.example.com", "foos", "Foo", &[("v1", Value::Null), ("v1beta1", Value::Null)])).await;
    let groups = api.get("/apis").await;
    let ours = groups
        .array_at(&["groups"])
        .iter()
        .find(|g| g.str_at(&["name"]) == "disc.example.com")
        .expect("the group")
        .clone();
    assert_eq!(ours.str_at(&["preferredVersion", "version"]), "v1");
    let versions: Vec<&str> = ours.array_at(&["versions"]).iter().map(|v| v.str_at(&["version"])).collect();
    assert_eq!(versions, ["v1", "v1beta1"]);
    let resources = api.get("/apis/disc.example.com/v1").await;
    let names: Vec<&str> = resources.array_at(&["resources"]).iter().map(|r| r.str_at(&["name"])).collect();
    assert_eq!(names, ["foos", "foos/status"]);
    let core = api.get("/apis/apiextensions.k8s.io/v1").await;
    assert!(core.array_at(&["resources"]).iter().any(|r| r.str_at(&["name"]) == "customresourcedefinitions"));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = api.text("GET", "/apis", &[("accept", accept)], "").await.expect("aggregated discovery");
    let all = Value::from_slice(all.as_bytes()).expect("JSON");
    let ours = all.array_at(&["items"]).iter().find(|g| name_of(g) == "disc.example.com").expect("the group");
    assert_eq!(ours["versions"][0]["resources"][0].str_at(&["responseKind", "kind"]), "Foo");
    assert_eq!(ours["versions"][1].str_at(&["version"]), "v1beta1");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_follows_definitions_and_their_versions() {
    let api = Api::start().await;
    let name = |group: &str, version: &str, kind: &str| {
        let mut parts: Vec<&str> = group.split('.').collect();
        parts.reverse();
        format!("{}.{version}.{kind}", parts.join("."))
    };
    // Different groups, different versions, different kinds side by side.
    for (group, plural, kind) in
        [("one.example.com", "foos", "Foo"), ("two.example.com", "waldos", "Waldo"), ("two.example.com", "foos", "Foo")]
    {
        define(&api, definition(group, plural, kind, &[("v2", schema()), ("v3", schema())])).await;
    }
    for (group, kind) in [("one.example.com", "Foo"), ("two.example.com", "Waldo"), ("two.example.com", "Foo")] {
        for version in ["v2", "v3"] {
            let name = name(group, version, kind);
            let document = openapi_v2(&api, &name, |d| !defined(d, &name).is_null()).await;
            let found = defined(&document, &name);
            assert_eq!(found.str_at(&["description"]), "Foo CRD for Testing", "{name}");
            let bars = &found["properties"]["spec"]["properties"]["bars"];
            assert_eq!(bars.str_at(&["description"]), "List of Bars and their specs.");
            assert_eq!(bars["items"]["required"][0], "name");
            assert_eq!(found["x-kubernetes-group-version-kind"][0].str_at(&["kind"]), kind);
            let v3 = api.get(&format!("/openapi/v3/apis/{group}/{version}")).await;
            assert!(v3["components"]["schemas"].get(&name).is_some(), "{name} in v3");
        }
    }
    // A version that is renamed takes its place, one that is no longer served goes.
    let path = format!("{DEFINITIONS}/foos.one.example.com");
    api.update(&path, |d| element(d, &["spec", "versions"], 1)["name"] = "v4".into()).await;
    let (gone, come) = (name("one.example.com", "v3", "Foo"), name("one.example.com", "v4", "Foo"));
    openapi_v2(&api, "renamed", |d| defined(d, &gone).is_null() && !defined(d, &come).is_null()).await;
    api.update(&path, |d| element(d, &["spec", "versions"], 1)["served"] = false.into()).await;
    let stays = name("one.example.com", "v2", "Foo");
    openapi_v2(&api, "not served", |d| defined(d, &come).is_null() && !defined(d, &stays).is_null()).await;
    // Unknown fields at the root and in an embedded object.
    define(&api, definition("any.example.com", "roots", "Root", &[("v1", Value::Null)])).await;
    let embedded = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "embedded"}}});
    define(&api, definition("any.example.com", "inners", "Inner", &[("v1", embedded)])).await;
    let (root, inner) = (name("any.example.com", "v1", "Root"), name("any.example.com", "v1", "Inner"));
    let document = openapi_v2(&api, "both", |d| !defined(d, &root).is_null() && !defined(d, &inner).is_null()).await;
    // Nothing is said about the members of such an object: old clients would refuse all others.
    assert_eq!(defined(&document, &root).str_at(&["type"]), "object");
    assert!(defined(&document, &root).get("properties").is_none());
    assert_eq!(defined(&document, &inner)["properties"]["spec"].str_at(&["description"]), "embedded");
    let ns = api.namespace("unknowns").await;
    for (plural, kind, body) in
        [("roots", "Root", json!({"anything": {"goes": 1}})), ("inners", "Inner", json!({"spec": {"anything": [1]}}))]
    {
        let mut object = json!({"apiVersion": "any.example.com/v1", "kind": kind, "metadata": {"name": "x"}});
        for (key, value) in body.as_object().into_iter().flat_map(|m| m.iter()) {
            object[key.as_str()] = value.clone();
        }
        let made = api
            .post(&format!("/apis/any.example.com/v1/namespaces/{ns}/{plural}?fieldValidation=Strict"), object)
            .await;
        assert!(made.to_string().contains("anything"), "{made}");
    }
    api.delete(&path).await;
    openapi_v2(&api, "deleted", |d| defined(d, &stays).is_null()).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_reach_requests_and_what_was_stored_before() {
    let api = Api::start().await;
    let with = |default: bool| {
        let mut a = json!({"type": "string"});
        if default {
            a["default"] = "A".into();
        }
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": a, "b": {"type": "string"}}}}})
    };
    let path = define(&api, definition("def.example.com", "foos", "Foo", &[("v1", with(false))])).await;
    let ns = api.namespace("defaults").await;
    let foos = format!("/apis/def.example.com/v1/namespaces/{ns}/foos");
    let foo = |name: &str| json!({"apiVersion": "def.example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {"b": "x"}});
    let before = api.post(&foos, foo("before")).await;
    assert!(before.at(&["spec", "a"]).is_none());
    api.update(&path, |d| element(d, &["spec", "versions"], 0)["schema"]["openAPIV3Schema"] = with(true)).await;
    api.until("defaulted from storage", &format!("{foos}/before"), |o| o.str_at(&["spec", "a"]) == "A").await;
    let after = api.post(&foos, foo("after")).await;
    assert_eq!(after.str_at(&["spec", "a"]), "A");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_validation_tells_unknown_and_duplicate_fields() {
    let api = Api::start().await;
    let ns = api.namespace("fields").await;
    define(&api, definition("fv.example.com", "foos", "Foo", &[("v1", schema())])).await;
    define(&api, definition("fv.example.com", "anys", "Any", &[("v1", Value::Null)])).await;
    let foos = format!("/apis/fv.example.com/v1/namespaces/{ns}/foos");
    let anys = format!("/apis/fv.example.com/v1/namespaces/{ns}/anys");
    let strict = async |method: &str, path: &str, kind: &str, body: &str| {
        let joined = format!("{path}{}fieldValidation=Strict", if path.contains('?') { "&" } else { "?" });
        api.text(method, &joined, &[("content-type", kind)], body).await
    };
    // Without a schema everything may be there; a valid object is fine, also when it is applied.
    let any =
        r#"{"apiVersion":"fv.example.com/v1","kind":"Any","metadata":{"name":"a"},"spec":{"foo":"foo1","unknown":1}}"#;
    strict("PATCH", &format!("{anys}/a?fieldManager=e2e"), APPLY, any).await.expect("no schema");
    let foo = r#"{"apiVersion":"fv.example.com/v1","kind":"Foo","metadata":{"name":"a"},"spec":{"bars":[{"name":"test-bar"}]}}"#;
    strict("PATCH", &format!("{foos}/a?fieldManager=e2e"), APPLY, foo).await.expect("valid");
    // What the schema does not know.
    let extra = foo.replace("\"bars\"", "\"foo\":\"bar\",\"bars\"").replace("\"a\"", "\"b\"");
    let refused = strict("POST", &foos, "application/json", &extra).await.expect_err("unknown");
    assert!(refused.message.contains("unknown field \"spec.foo\""), "{}", refused.message);
    let refused = strict("PATCH", &format!("{foos}/b?fieldManager=e2e"), APPLY, &extra).await.expect_err("unknown");
    assert!(refused.message.contains(".spec.foo: field not declared in schema"), "{}", refused.message);
    // Duplicates, in JSON and in YAML.
    let twice = any.replace("\"unknown\":1", "\"foo\":\"foo2\"").replace("\"a\"", "\"c\"");
    let refused = strict("POST", &anys, "application/json", &twice).await.expect_err("duplicate");
    assert!(refused.message.contains("duplicate field \"spec.foo\""), "{}", refused.message);
    let yaml = "apiVersion: fv.example.com/v1\nkind: Any\nmetadata:\n  name: c\nspec:\n  unknown: uk1\n  cronSpec: x\n  foo: foo1\n  foo: foo2\n";
    let refused = strict("PATCH", &format!("{anys}/c?fieldManager=e2e"), APPLY, yaml).await.expect_err("duplicate");
    assert!(refused.message.contains("line 9: key \"foo\" already set in map"), "{}", refused.message);
    // Metadata, at the root and in typed objects.
    let meta = foo.replace("\"name\":\"a\"", "\"name\":\"d\",\"unknownField\":\"x\"");
    let refused = strict("POST", &foos, "application/json", &meta).await.expect_err("unknown metadata");
    assert!(refused.message.contains("unknown field \"metadata.unknownField\""), "{}", refused.message);
    let deployment = workload("Deployment", "d", 1, json!({"a": "b"}), "web").to_string();
    let deployments = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    for (from, to, text) in [
        ("\"replicas\":1", "\"replicas\":1,\"unknownField\":\"x\"", "unknown field \"spec.unknownField\""),
        ("\"replicas\":1", "\"replicas\":1,\"replicas\":2", "duplicate field \"spec.replicas\""),
        ("\"name\":\"d\"", "\"name\":\"d\",\"unknownMeta\":\"x\"", "unknown field \"metadata.unknownMeta\""),
    ] {
        let body = deployment.replacen(from, to, 1);
        let refused = strict("POST", &deployments, "application/json", &body).await.expect_err(text);
        assert!(refused.code == 400 && refused.message.contains(text), "{}", refused.message);
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_runs_show_what_would_be_and_change_nothing() {
    let api = Api::start().await;
    let ns = api.namespace("dry").await;
    let deployments = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    api.post(&deployments, workload("Deployment", "d", 1, json!({"a": "b"}), "one")).await;
    let mut changed = workload("Deployment", "d", 1, json!({"a": "b"}), "two");
    changed.set_at(&["apiVersion"], "apps/v1".into());
    let diff = api
        .try_patch(&format!("{deployments}/d?dryRun=All&fieldManager=kubectl&force=true"), APPLY, &changed)
        .await
        .expect("a diff");
    assert_eq!(diff["spec"]["template"]["spec"]["containers"][0].str_at(&["image"]), "two");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let run = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "run", "labels": {"run": "run"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "run", "image": "httpd"}]}});
    let made = api.post(&pods, run).await;
    assert_eq!(made["spec"]["containers"][0].str_at(&["image"]), "httpd");
    let patch = json!({"spec": {"containers": [{"name": "run", "image": "busybox"}]}});
    let dry = api.try_patch(&format!("{pods}/run?dryRun=All"), STRATEGIC, &patch).await.expect("a dry run");
    assert_eq!(dry["spec"]["containers"][0].str_at(&["image"]), "busybox");
    assert_eq!(api.get(&format!("{pods}/run")).await["spec"]["containers"][0].str_at(&["image"]), "httpd");
    // A replacement without a version names the node too.
    let placed = |pod: &Value| !pod.str_at(&["spec", "nodeName"]).is_empty();
    let mut replaced = api.until("the pod has a node", &format!("{pods}/run"), placed).await;
    element(&mut replaced, &["spec", "containers"], 0)["image"] = "busybox".into();
    replaced.remove_at(&["metadata", "resourceVersion"]);
    let replaced = api.try_put(&format!("{pods}/run"), &replaced).await.expect("kubectl replace");
    assert_eq!(replaced["spec"]["containers"][0].str_at(&["image"]), "busybox");
    api.merge(&format!("{pods}/run"), json!({"metadata": {"labels": {"testing-label": "testing-label-value"}}})).await;
    let unlabelled = api.merge(&format!("{pods}/run"), json!({"metadata": {"labels": {"testing-label": null}}})).await;
    assert!(unlabelled.at(&["metadata", "labels", "testing-label"]).is_none());
    assert_eq!(
        api.get(&format!("{deployments}/d")).await["spec"]["template"]["spec"]["containers"][0].str_at(&["image"]),
        "one"
    );
    api.stop().await;
}
