//! Input that is built to explode is refused, or stopped, before it costs more than a blink of an eye.
//!
//! Each case is one request to a server in this process and counts the CPU time of the thread that serves it.

use std::time::Duration;

use apiserver::{ApiServer, UserInfo};
use http_body_util::BodyExt;
use serde_json::{Value, json};

/// What one request may take in a release build; unoptimised code is about ten times slower.
const CPU_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 });
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// The CPU time of this thread so far. The runtime of a test has no other.
fn cpu_time() -> Duration {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells the time of threads");
    Duration::from_nanos(spent.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds"))
}

struct World {
    server: ApiServer,
    failed: Vec<String>,
}

impl World {
    async fn new() -> World {
        let store = store::Store::in_memory(store::Options::default()).await;
        let config = apiserver::secure_config(&apiserver::SecureOptions::default()).expect("a configuration");
        World { server: ApiServer::start(config, store).await.expect("the server starts"), failed: Vec::new() }
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: String) -> (u16, String) {
        let request = http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind);
        let request = request.body(kube::client::Body::from(body.into_bytes())).expect("a request");
        let answer = self.server.kube_client(UserInfo::admin()).send(request).await.expect("an answer");
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    /// Sends a bomb: the answer must have one of these codes, in time.
    async fn bomb(&mut self, name: &str, codes: &[u16], method: &str, path: &str, kind: &str, body: String) {
        let before = cpu_time();
        let (code, text) = self.send(method, path, kind, body).await;
        let spent = cpu_time() - before;
        let cut: String = text.chars().take(200).collect();
        if !codes.contains(&code) {
            self.failed.push(format!("{name}: {code} {cut}"));
        }
        if spent > CPU_MAX {
            self.failed.push(format!("{name}: took {spent:?} of CPU"));
        }
    }

    fn done(self) {
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
    }
}

fn definition(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{name}s.explosions.example")},
        "spec": {"group": "explosions.example", "scope": "Namespaced",
            "names": {"plural": format!("{name}s"), "kind": format!("Kind{name}")},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": spec}}}}]}})
    .to_string()
}

/// A list, a text and a number with a rule about them.
fn with_rule(name: &str, rule: &str) -> String {
    definition(
        name,
        &json!({"type": "object", "properties": {
            "list": {"type": "array", "maxItems": 100, "items": {"type": "string", "maxLength": 100}},
            "text": {"type": "string", "maxLength": 1000}, "n": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": rule}]}),
    )
}

/// `open`, as often as said, `middle`, and as many `close`.
fn nested(open: &str, middle: &str, close: &str, times: usize) -> String {
    format!("{}{middle}{}", open.repeat(times), close.repeat(times))
}

/// Expressions that grow out of all proportion, with the codes that their definitions may be answered with.
fn expressions() -> Vec<(&'static str, String)> {
    let loops = |depth: usize| {
        let open: String = (0..depth).map(|i| format!("self.list.all(v{i}, ")).collect();
        format!("{open}true{}", ")".repeat(depth))
    };
    vec![
        ("nested loops over a list", loops(8)),
        ("loops over literals", nested("[0,1,2,3,4,5,6,7,8,9].all(x, ", "true", ")", 12)),
        ("doubling text", format!("self.text{}.size() > 0", ".replace('a', 'aa')".repeat(60))),
        ("growing text from nothing", format!("'a'{}.size() > 0", ".replace('', 'aaaaaaaa')".repeat(40))),
        ("doubling lists", format!("[0]{}.size() > 0", ".map(x, [x, x])".repeat(50))),
        ("comparing doubled lists", {
            let doubled = format!("[0]{}", ".map(x, [x, x])".repeat(40));
            format!("{doubled} == {doubled}")
        }),
        ("a regular expression that is large", "self.text.matches('((a{500}){500}){500}')".to_owned()),
        ("a regular expression that backtracks", format!("self.text.matches('{}')", "(a*)*".repeat(50))),
        ("a format without end", "'%.1000000000f'.format([1.0]).size() > 0".to_owned()),
        ("many formats", format!("'{}'.format([1.0]).size() > 0", "%s".repeat(100_000))),
        ("parentheses", nested("(", "true", ")", 100_000)),
        ("negations", format!("{}true", "!".repeat(100_000))),
        ("signs", format!("{}1 > 0", "-".repeat(100_000))),
        ("brackets", nested("[", "", "]", 100_000)),
        ("conditions", format!("{}true", "true ? true : ".repeat(50_000))),
        ("sums", format!("{}1 > 0", "1 + ".repeat(50_000))),
        ("members", format!("self{}", ".text".repeat(50_000))),
        ("indexes", format!("self{} == 1", "[0]".repeat(50_000))),
        ("calls", nested("size(", "self.list", ")", 50_000)),
        ("alternatives", format!("{}true", "self.n == 1 || ".repeat(20_000))),
        ("a number without end", format!("{} > 0", "9".repeat(100_000))),
        ("a duration without end", format!("duration('{}h') > duration('1s')", "9".repeat(10_000))),
        ("a quantity without end", "quantity('1e999999999').isGreaterThan(quantity('1'))".to_owned()),
        ("joining", format!("{}.join('{}').size() > 0", "self.list", "x".repeat(50_000))),
        ("splitting", "self.text.split('').map(x, self.text.split('')).size() > 0".to_owned()),
        ("text in quotes", format!("'{}' == self.text", "x".repeat(500_000))),
    ]
}

#[tokio::test]
async fn expressions_of_definitions() {
    let mut world = World::new().await;
    for (i, (name, rule)) in expressions().into_iter().enumerate() {
        let kind = format!("expression{i}");
        let (plural, code_ok) = (format!("{kind}s"), [201, 400, 413, 422]);
        world.bomb(name, &code_ok, "POST", DEFINITIONS, JSON, with_rule(&kind, &rule)).await;
        // What was accepted is evaluated.
        let path = format!("/apis/explosions.example/v1/namespaces/default/{plural}");
        let thing = json!({"apiVersion": "explosions.example/v1", "kind": format!("Kind{kind}"), "metadata": {"name": "a"},
            "spec": {"list": vec!["a".repeat(100); 100], "text": "a".repeat(1000), "n": 1}});
        world.bomb(name, &[201, 404, 422], "POST", &path, JSON, thing.to_string()).await;
    }
    world.done();
}

#[tokio::test]
async fn expressions_of_policies() {
    const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    let list = "[0,1,2,3,4,5,6,7,8,9]";
    let expressions = [
        ("loops", nested(&format!("{list}.all(x, "), "true", ")", 10)),
        ("doubled text", format!("'a'{}.size() > 0", ".replace('a', 'aa')".repeat(60))),
        ("doubled lists", {
            let doubled = format!("[0]{}", ".map(x, [x, x])".repeat(40));
            format!("{doubled} == {doubled}")
        }),
        ("long formats", "'%.1000000000f'.format([1.0]).size() > 0".to_owned()),
        ("large patterns", "object.metadata.name.matches('((a{500}){500}){500}')".to_owned()),
        ("parentheses", nested("(", "true", ")", 50_000)),
    ];
    for (name, expression) in expressions {
        let mut world = World::new().await;
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "bomb"}, "spec": {"failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                    "operations": ["CREATE"], "resources": ["configmaps"]}]},
                "validations": [{"expression": expression}]}});
        world.bomb(name, &[201, 400, 422], "POST", POLICIES, JSON, policy.to_string()).await;
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "bomb"}, "spec": {"policyName": "bomb", "validationActions": ["Deny"]}});
        world.bomb(name, &[201], "POST", BINDINGS, JSON, binding.to_string()).await;
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        world.bomb(name, &[201, 403, 422], "POST", CONFIG_MAPS, JSON, object.to_string()).await;
        world.done();
    }
}

#[tokio::test]
async fn schemas() {
    let mut world = World::new().await;
    let refused = [400, 413, 422];
    let deep = |open: &str, close: &str, times| nested(open, r#"{"type":"string"}"#, close, times);
    let around = |schema: String| definition("schema", &json!("SCHEMA")).replace("\"SCHEMA\"", &schema);
    for (name, schema) in [
        ("properties", deep(r#"{"type":"object","properties":{"a":"#, "}}", 4000)),
        ("items", deep(r#"{"type":"array","items":"#, "}", 9000)),
        ("alternatives", deep(r#"{"anyOf":["#, "]}", 9000)),
        ("negations", deep(r#"{"not":"#, "}", 9000)),
        ("a large pattern", r#"{"type":"string","pattern":"((a{500}){500}){500}"}"#.to_owned()),
        ("a deep pattern", format!(r#"{{"type":"string","pattern":"{}"}}"#, nested("(", "a", ")", 50_000))),
    ] {
        world.bomb(name, &refused, "POST", DEFINITIONS, JSON, around(schema)).await;
    }
    let many: Vec<String> = (0..2000).map(|i| format!(r#""p{i}":{{"type":"string"}}"#)).collect();
    let wide = format!(r#"{{"type":"object","properties":{{{}}}}}"#, many.join(","));
    world.bomb("many properties", &[201], "POST", DEFINITIONS, JSON, around(wide)).await;
    world.done();
}

#[tokio::test]
async fn bodies() {
    let mut world = World::new().await;
    let head = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":"#;
    let deep_list = format!("{head}{}}}", nested("[", "", "]", 10_000));
    let deep_object = format!("{head}{}}}", nested(r#"{"a":"#, "1", "}", 10_000));
    let laughs = {
        let mut text = String::from("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nx0: &x0 lol\n");
        for i in 1..40 {
            let of = format!("*x{}", i - 1);
            text += &format!("x{i}: &x{i} [{}]\n", [of.as_str(); 10].join(","));
        }
        text
    };
    for (name, kind, body) in [
        ("lists in lists", JSON, deep_list.clone()),
        ("objects in objects", JSON, deep_object.clone()),
        ("only brackets", JSON, "[".repeat(1_000_000)),
        ("lists in lists of YAML", YAML, deep_list),
        ("only brackets of YAML", YAML, "[".repeat(100_000)),
        ("only dashes of YAML", YAML, "- ".repeat(50_000)),
        ("aliases of aliases", YAML, laughs.clone()),
    ] {
        world.bomb(name, &[400], "POST", CONFIG_MAPS, kind, body).await;
    }
    let path = format!("{CONFIG_MAPS}/a?fieldManager=m");
    world.bomb("aliases of aliases, applied", &[400, 500], "PATCH", &path, APPLY, laughs).await;
    world.done();
}

#[tokio::test]
async fn patches() {
    let mut world = World::new().await;
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "x".repeat(1000)}});
    world.bomb("the object", &[201], "POST", CONFIG_MAPS, JSON, object.to_string()).await;
    let path = format!("{CONFIG_MAPS}/a");
    let doubling: Vec<Value> =
        (0..60).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")})).collect();
    let doubled = Value::from(doubling).to_string();
    world.bomb("copies of copies", &[400, 413, 422], "PATCH", &path, JSON_PATCH, doubled).await;
    let many = json!(vec![json!({"op": "add", "path": "/data/x", "value": "1"}); 10_001]).to_string();
    world.bomb("too many operations", &[413], "PATCH", &path, JSON_PATCH, many).await;
    let moves = json!(vec![json!({"op": "move", "from": "/metadata", "path": "/data/m"}); 9_000]).to_string();
    world.bomb("moves in circles", &[400, 422, 500], "PATCH", &path, JSON_PATCH, moves).await;
    let deep = nested(r#"{"data":"#, "1", "}", 9_999);
    for kind in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        world.bomb("a deep patch", &[400, 422, 500], "PATCH", &path, kind, deep.clone()).await;
    }
    let fields = nested(r#"{"f:a":"#, "{}", "}", 5_000);
    let entries = format!(
        r#"{{"metadata":{{"managedFields":[{{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{fields}}}]}}}}"#
    );
    world.bomb("deep ownership", &[200, 400, 422], "PATCH", &path, "application/merge-patch+json", entries).await;
    world.done();
}

#[tokio::test]
async fn selectors() {
    let mut world = World::new().await;
    let encoded = |text: &str| text.replace(' ', "%20").replace(',', "%2C").replace('=', "%3D");
    let values: Vec<String> = (0..5000).map(|i| format!("v{i}")).collect();
    for (name, codes, selector) in [
        ("many terms", &[200, 400][..], vec!["a=b"; 5000].join(",")),
        ("many values", &[200, 400], format!("a in ({})", values.join(","))),
        ("only parentheses", &[400], format!("a in {}", "(".repeat(10_000))),
        ("only negations", &[400], "!".repeat(10_000)),
        ("only commas", &[400], ",".repeat(10_000)),
    ] {
        let path = format!("{CONFIG_MAPS}?labelSelector={}", encoded(&selector));
        world.bomb(name, codes, "GET", &path, JSON, String::new()).await;
    }
    let terms = encoded(&vec!["metadata.name!=a"; 3000].join(","));
    world
        .bomb("fields", &[200, 400], "GET", &format!("{CONFIG_MAPS}?fieldSelector={terms}"), JSON, String::new())
        .await;
    world
        .bomb(
            "tokens",
            &[400, 410],
            "GET",
            &format!("{CONFIG_MAPS}?continue={}", "A".repeat(30_000)),
            JSON,
            String::new(),
        )
        .await;
    world.done();
}
