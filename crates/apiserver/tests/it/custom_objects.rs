//! What custom objects may be: schema, rules and what is excused, in upstream's words and headers.

use apiserver::{ApiServer, UserInfo};
use http_body_util::BodyExt;
use serde_json::{Value, json};

/// Status code, body and warnings of an answer.
async fn ask(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<String>) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind);
    let request = request.body(body.to_string().into_bytes().into()).expect("a request");
    let answer = server.kube_client(UserInfo::admin()).send(request).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let warnings = parts.headers.get_all("warning").iter();
    let warnings = warnings.map(|w| w.to_str().unwrap_or_default().to_owned()).collect();
    let bytes = body.collect().await.expect("a body").to_bytes();
    (parts.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or_default(), warnings)
}

fn definition(group: &str, spec: Value, status: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}}}]}})
}

struct World {
    server: ApiServer,
    group: &'static str,
}

impl World {
    async fn new(group: &'static str, spec: Value) -> World {
        let world = World { server: super::server().await, group };
        let status = json!({"type": "object", "properties": {"replicas": {"type": "integer"}, "text": {"type": "string", "maxLength": 3}}});
        let made = ask(
            &world.server,
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &definition(group, spec, status),
        )
        .await;
        assert_eq!(made.0, 201, "{}", made.1);
        let served = async {
            while ask(&world.server, "GET", &world.path(), &Value::Null).await.0 != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), served).await.expect("the definition is served");
        world
    }

    /// Makes the schema of `spec` another one, and waits until it counts.
    async fn change(&self, spec: Value) {
        let name = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.{}", self.group);
        let (code, mut now, _) = ask(&self.server, "GET", &name, &Value::Null).await;
        assert_eq!(code, 200);
        now["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = spec;
        let (code, answer, _) = ask(&self.server, "PUT", &name, &now).await;
        assert_eq!(code, 200, "{answer}");
        let refused = async {
            while ask(
                &self.server,
                "POST",
                &format!("{}?dryRun=All", self.path()),
                &self.thing("probe", json!({"new": 1})),
            )
            .await
            .0 == 201
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), refused).await.expect("the change counts");
    }

    fn path(&self) -> String {
        format!("/apis/{}/v1/namespaces/default/things", self.group)
    }

    fn thing(&self, name: &str, spec: Value) -> Value {
        json!({"apiVersion": format!("{}/v1", self.group), "kind": "Thing", "metadata": {"name": name}, "spec": spec})
    }

    async fn create(&self, name: &str, spec: Value) -> (u16, Value, Vec<String>) {
        ask(&self.server, "POST", &self.path(), &self.thing(name, spec)).await
    }
}

#[tokio::test]
async fn rules_run_unless_the_shape_is_wrong_and_name_their_place() {
    let world = World::new(
        "rules.example.com",
        json!({"type": "object", "properties": {
            "replicas": {"type": "integer"},
            "short": {"type": "string", "minLength": 3, "x-kubernetes-validations": [{"rule": "self != 'a'", "message": "not a"}]},
            "map": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 5,
                "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}},
            "twice": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'x'", "reason": "FieldValueDuplicate", "message": "m"}]},
            "divide": {"type": "integer", "x-kubernetes-validations": [{"rule": "1 / self > 0", "message": "must divide"}]},
            "list": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "object": {"type": "object", "properties": {"a b": {"type": "object", "additionalProperties": {"type": "string"}}},
                "x-kubernetes-validations": [{"rule": "false", "fieldPath": "['a b'].c"}]},
        }}),
    )
    .await;
    for (spec, want) in [
        // Wrong values do not stop rules, wrong types do.
        (
            json!({"short": "a"}),
            "[spec.short: Invalid value: \"a\": spec.short in body should be at least 3 chars long, spec.short: Invalid value: \"a\": not a]",
        ),
        (
            json!({"short": "a", "replicas": "x"}),
            "[spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\", spec.short: Invalid value: \"a\": spec.short in body should be at least 3 chars long, .spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64, <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]",
        ),
        (json!({"map": {"k": "bad"}}), "spec.map[k]: Invalid value: \"bad\": failed rule: self != 'bad'"),
        (json!({"twice": "x"}), "spec.twice: Duplicate value: \"x\""),
        (
            json!({"divide": 0}),
            "spec.divide: Invalid value: \"integer\": division by zero evaluating rule: must divide",
        ),
        (json!({"replicas": -1}), ".spec.replicas: Invalid value: -1: should be a non-negative integer"),
        (
            json!({"replicas": 3_000_000_000_u64}),
            ".spec.replicas: Invalid value: 3000000000: should be less than or equal to 2147483647",
        ),
        (json!({"list": ["a", "a"]}), "spec.list[1]: Duplicate value: \"a\""),
        (json!({"object": {}}), "spec.object.a b[c]: Invalid value: failed rule: false"),
    ] {
        let (code, answer, _) = world.create("a", spec.clone()).await;
        let want = format!("Thing.rules.example.com \"a\" is invalid: {want}");
        assert_eq!((code, answer["message"].as_str().unwrap_or_default()), (422, want.as_str()), "{spec}");
    }
    world.server.shutdown().await;
}

#[tokio::test]
async fn nothing_is_exported() {
    let server = super::server().await;
    for (query, code) in
        [("", 200), ("?export=false", 200), ("?export=0", 200), ("?export=true", 400), ("?export", 400)]
    {
        let path = format!("/api/v1/namespaces/default{query}");
        let (got, body, _) = ask(&server, "GET", &path, &Value::Null).await;
        assert_eq!(got, code, "{path}: {body}");
        if code == 400 {
            assert_eq!(body["message"], "the export parameter, deprecated since v1.14, is no longer supported");
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn what_was_accepted_stays_until_it_is_touched() {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
        "text": {"type": "string"}, "other": {"type": "string"}, "ruled": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "list": {"type": "array", "items": {"type": "string"}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "v": {"type": "string"}}}},
    }});
    let world = World::new("ratchet.example.com", open.clone()).await;
    let spec = json!({"text": "OLD", "ruled": {"n": 1}, "list": ["OLD"], "keyed": [{"name": "a", "v": "OLD"}, {"name": "b", "v": "ok"}]});
    assert_eq!(world.create("a", spec).await.0, 201);
    let mut strict = open;
    strict["properties"]["text"]["pattern"] = json!("^[a-z]+$");
    strict["properties"]["list"]["items"]["pattern"] = json!("^[a-z]+$");
    strict["properties"]["keyed"]["items"]["properties"]["v"]["pattern"] = json!("^[a-z]+$");
    strict["properties"]["ruled"]["x-kubernetes-validations"] = json!([{"rule": "self.n > 5", "message": "too small"}]);
    strict["properties"]["new"] = json!({"type": "string"});
    world.change(strict).await;
    let path = format!("{}/a", world.path());
    for (patch, want, warnings) in [
        // Untouched parts are excused; a rule says so in a warning.
        (json!({"other": "x"}), "", 1),
        (json!({"text": "NEW"}), "spec.text: Invalid value: \"NEW\": spec.text in body should match '^[a-z]+$'", 1),
        (
            json!({"list": ["OLD", "new"]}),
            "spec.list[0]: Invalid value: \"OLD\": spec.list[0] in body should match '^[a-z]+$'",
            1,
        ),
        // Elements with keys are known by them, wherever they stand.
        (json!({"keyed": [{"name": "b", "v": "fine"}, {"name": "a", "v": "OLD"}]}), "", 1),
        (json!({"ruled": {"n": 2}}), "spec.ruled: Invalid value: too small", 0),
        (json!({"ruled": {"n": 6}}), "", 0),
    ] {
        let (code, answer, said) = ask(&world.server, "PATCH", &path, &json!({"spec": patch})).await;
        let message = answer["message"].as_str().unwrap_or_default();
        let want =
            if want.is_empty() { String::new() } else { format!("Thing.ratchet.example.com \"a\" is invalid: {want}") };
        assert_eq!((code == 200, message), (want.is_empty(), want.as_str()), "{patch}");
        assert_eq!(said.len(), warnings, "{patch}: {said:?}");
        assert!(said.iter().all(|w| w.contains("spec.ruled: Invalid value: too small")), "{said:?}");
    }
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_status_is_checked_as_a_whole_of_its_own() {
    let world = World::new("status.example.com", json!({"type": "object"})).await;
    assert_eq!(world.create("a", json!({})).await.0, 201);
    let path = format!("{}/a/status", world.path());
    for (status, want) in [
        (
            json!({"replicas": "x"}),
            "[status.replicas: Invalid value: \"string\": replicas in body must be of type integer: \"string\", .status.replicas: Invalid value: 0: .status.replicas accessor error: x is of the type string, expected int64]",
        ),
        (json!({"replicas": -2}), ".status.replicas: Invalid value: -2: should be a non-negative integer"),
        (json!({"text": "long!"}), "status.text: Too long: may not be more than 3 bytes"),
    ] {
        let (code, answer, _) = ask(&world.server, "PATCH", &path, &json!({"status": status})).await;
        let want = format!("Thing.status.example.com \"a\" is invalid: {want}");
        assert_eq!((code, answer["message"].as_str().unwrap_or_default()), (422, want.as_str()), "{status}");
    }
    world.server.shutdown().await;
}

#[tokio::test]
async fn bodies_say_what_they_are_and_odd_finalizers_are_told() {
    let world = World::new("bodies.example.com", json!({"type": "object"})).await;
    let body = |api_version: &str, kind: &str| {
        let mut body = json!({"metadata": {"name": "a"}});
        for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !text.is_empty() {
                body[key] = json!(text);
            }
        }
        body
    };
    let version = "bodies.example.com/v1";
    for (body, code, want) in [
        (
            body(version, ""),
            400,
            "the object provided is unrecognized (must be of type Thing): Object 'Kind' is missing in '{\"apiVersion\":\"bodies.example.com/v1\",\"metadata\":{\"name\":\"a\"}}' ({\"apiVersion\":\"bodies.example. ...)",
        ),
        (
            body("", "Thing"),
            400,
            "the API version in the data () does not match the expected API version (bodies.example.com/v1)",
        ),
        (
            body("bodies.example.com/v2", "Thing"),
            400,
            "the API version in the data (bodies.example.com/v2) does not match the expected API version (bodies.example.com/v1)",
        ),
        (
            body(version, "Other"),
            422,
            "Other.bodies.example.com \"a\" is invalid: kind: Invalid value: \"Other\": must be Thing",
        ),
    ] {
        let (got, answer, _) = ask(&world.server, "POST", &world.path(), &body).await;
        assert_eq!((got, answer["message"].as_str().unwrap_or_default()), (code, want), "{body}");
    }
    let mut thing = world.thing("f", json!({}));
    thing["metadata"]["finalizers"] = json!(["example.com/fine", "orphan", "plain", "dotted.example.com"]);
    let (code, _, warnings) = ask(&world.server, "POST", &world.path(), &thing).await;
    assert_eq!(code, 201);
    let text = "to avoid accidental conflicts with other finalizer writers";
    assert_eq!(
        warnings,
        [
            format!(
                "299 - \"metadata.finalizers: \\\"dotted.example.com\\\": prefer a domain-qualified finalizer name including a path (/) {text}\""
            ),
            format!("299 - \"metadata.finalizers: \\\"plain\\\": prefer a domain-qualified finalizer name {text}\""),
        ]
    );
    world.server.shutdown().await;
}
