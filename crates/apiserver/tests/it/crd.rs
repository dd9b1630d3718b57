//! Custom resources as a whole: conversion by a webhook, and definitions as large as they get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apiserver::{ApiServer, UserInfo};
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The answer to a request, or the code and message of its refusal.
pub(crate) async fn ask(
    server: &ApiServer,
    method: &str,
    path: &str,
    kind: &str,
    body: Option<&Value>,
) -> Result<Value, (u16, String)> {
    let request = http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind);
    let request = request.body(body.map(Value::to_string).unwrap_or_default().into_bytes()).expect("a request");
    match server.kube_client(UserInfo::admin()).request::<Value>(request).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
        Err(other) => panic!("{method} {path}: {other}"),
    }
}

pub(crate) async fn get(server: &ApiServer, path: &str) -> Result<Value, (u16, String)> {
    ask(server, "GET", path, "application/json", None).await
}

pub(crate) async fn post(server: &ApiServer, path: &str, body: Value) -> Result<Value, (u16, String)> {
    ask(server, "POST", path, "application/json", Some(&body)).await
}

/// Asks until the answer is as wanted.
pub(crate) async fn eventually(server: &ApiServer, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let asking = async {
        loop {
            match get(server, path).await {
                Ok(answer) if wanted(&answer) => return answer,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} does not become what is wanted"))
}

pub(crate) fn established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
}

/// Answers one ConversionReview: `spec.old` of v1 is `spec.new` of v2. Objects tell what should go wrong.
fn convert(review: &Value) -> Value {
    let asked = &review["request"];
    let wanted = asked["desiredAPIVersion"].as_str().unwrap_or_default();
    let mut result = json!({"status": "Success"});
    let mut converted = Vec::new();
    for object in asked["objects"].as_array().into_iter().flatten() {
        let (from, to) = if wanted.ends_with("/v2") { ("old", "new") } else { ("new", "old") };
        let mut object = object.clone();
        object["apiVersion"] = json!(wanted);
        let value = object["spec"].as_object_mut().and_then(|s| s.remove(from)).unwrap_or_default();
        match value.as_str() {
            Some("broken") => result = json!({"status": "Failed", "message": "this one is broken"}),
            Some("lost") => continue,
            Some("renamed") => object["metadata"]["name"] = json!("other"),
            _ => {}
        }
        object["spec"][to] = value;
        object["metadata"]["annotations"] = json!({"converted-to": to});
        converted.push(object);
    }
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"],
        "response": {"uid": asked["uid"], "result": result, "convertedObjects": converted}})
}

/// How often a server was called, and over how many connections.
#[derive(Default)]
struct Count {
    calls: AtomicUsize,
    connections: AtomicUsize,
}

impl Count {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// A server of [`convert`]: its address, its authority in base64, and how often it was called. It closes every connection
/// after the third call.
async fn conversion_server() -> (SocketAddr, String, Arc<Count>) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "conversion");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let serving = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let serving = serving.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let tls = apiserver::tls::server_config(serving.pem().as_bytes(), key.serialize_pem().as_bytes(), None).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let count = Arc::new(Count::default());
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counter) = (acceptor.clone(), counter.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                counter.connections.fetch_add(1, Ordering::Relaxed);
                let here = AtomicUsize::new(0);
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
                    counter.calls.fetch_add(1, Ordering::Relaxed);
                    let last = here.fetch_add(1, Ordering::Relaxed) >= 2;
                    async move {
                        let body = request.into_body().collect().await?.to_bytes();
                        let answer = convert(&serde_json::from_slice(&body).unwrap());
                        let mut answer = http::Response::new(Full::new(bytes::Bytes::from(answer.to_string())));
                        if last {
                            answer.headers_mut().insert("connection", "close".parse().unwrap());
                        }
                        Ok::<_, hyper::Error>(answer)
                    }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
            });
        }
    });
    (address, base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca_pem), count)
}

fn things(client_config: &Value, reviews: &Value, storage: &str) -> Value {
    let version = |name: &str, field: &str| {
        let mut spec = json!({"type": "object"});
        spec["properties"][field] = json!({"type": "string"});
        json!({"name": name, "served": true, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version("v1", "old"), version("v2", "new")],
            "conversion": {"strategy": "Webhook",
                "webhook": {"clientConfig": client_config, "conversionReviewVersions": reviews}}}})
}

fn path(version: &str, name: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/things{name}")
}

fn thing(version: &str, name: &str, field: &str, value: &str) -> Value {
    let mut thing =
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": {"name": name}});
    thing["spec"][field] = json!(value);
    thing
}

async fn storage_hash(server: &ApiServer) -> Value {
    get(server, "/apis/example.com/v1").await.unwrap()["resources"][0]["storageVersionHash"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    for reviews in [json!(["v1"]), json!(["v9", "v1beta1"])] {
        let (address, ca, _) = conversion_server().await;
        let server = crate::server().await;
        let client_config = json!({"url": format!("https://{address}/convert"), "caBundle": ca});
        post(&server, DEFINITIONS, things(&client_config, &reviews, "v1")).await.unwrap();
        eventually(&server, &path("v2", ""), |_| true).await;

        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v2", "Thing"));
        let client = server.kube_client(UserInfo::admin());
        let newer: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
        let mut watch = newer.watch(&WatchParams::default().disable_bookmarks(), "0").await.unwrap().boxed();

        let created = post(&server, &path("v1", ""), thing("v1", "a", "old", "x")).await.unwrap();
        let read = get(&server, &path("v2", "/a")).await.unwrap();
        assert_eq!((&read["apiVersion"], &read["spec"]), (&json!("example.com/v2"), &json!({"new": "x"})));
        assert_eq!(read["metadata"]["uid"], created["metadata"]["uid"]);
        assert_eq!(read["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
        assert_eq!(read["metadata"]["annotations"], json!({"converted-to": "new"}));
        let seen = tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event comes");
        match seen {
            Some(Ok(WatchEvent::Added(object))) => assert_eq!(object.data["spec"], json!({"new": "x"})),
            other => panic!("not an added object: {other:?}"),
        }
        drop(watch);
        post(&server, &path("v2", ""), thing("v2", "b", "new", "y")).await.unwrap();
        assert_eq!(get(&server, &path("v1", "/b")).await.unwrap()["spec"], json!({"old": "y"}));

        // What is stored stays readable when another version is the stored one.
        let before = storage_hash(&server).await;
        let change = things(&client_config, &reviews, "v2");
        let change = json!({"spec": {"versions": change["spec"]["versions"]}});
        ask(&server, "PATCH", &format!("{DEFINITIONS}/things.example.com"), MERGE, Some(&change)).await.unwrap();
        eventually(&server, "/apis/example.com/v1", |v| v["resources"][0]["storageVersionHash"] != before).await;
        post(&server, &path("v1", ""), thing("v1", "c", "old", "z")).await.unwrap();
        for (version, field) in [("v1", "old"), ("v2", "new")] {
            let list = get(&server, &path(version, "")).await.unwrap();
            let values: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|i| &i["spec"][field]).collect();
            assert_eq!(values, [&json!("x"), &json!("y"), &json!("z")], "{version}");
        }
        let change = json!({"spec": {"new": "changed"}});
        ask(&server, "PATCH", &path("v2", "/a"), MERGE, Some(&change)).await.unwrap();
        assert_eq!(get(&server, &path("v1", "/a")).await.unwrap()["spec"], json!({"old": "changed"}));
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn field_selectors_see_objects_in_the_version_that_is_asked_for() {
    let (address, ca, _) = conversion_server().await;
    let server = crate::server().await;
    let client_config = json!({"url": format!("https://{address}/convert"), "caBundle": ca});
    let mut definition = things(&client_config, &json!(["v1"]), "v1");
    for (i, field) in ["old", "new"].iter().enumerate() {
        definition["spec"]["versions"][i]["selectableFields"] = json!([{"jsonPath": format!(".spec.{field}")}]);
    }
    post(&server, DEFINITIONS, definition).await.unwrap();
    eventually(&server, &path("v2", ""), |_| true).await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v2", "Thing"));
    let newer: Api<DynamicObject> = Api::namespaced_with(server.kube_client(UserInfo::admin()), "default", &resource);
    let params = WatchParams::default().disable_bookmarks().fields("spec.new=x");
    let mut live = newer.watch(&params, "0").await.unwrap().boxed();
    for (name, value) in [("a", "x"), ("b", "y"), ("c", "x")] {
        post(&server, &path("v1", ""), thing("v1", name, "old", value)).await.unwrap();
    }
    let named = |list: Value| -> Vec<String> {
        let name = |item: &Value| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        list["items"].as_array().into_iter().flatten().map(name).collect()
    };
    for (version, selector, want) in [
        ("v1", "spec.old=x", vec!["a", "c"]),
        ("v2", "spec.new=x", vec!["a", "c"]),
        ("v2", "spec.new!=x", vec!["b"]),
        ("v2", "spec.new=z", vec![]),
    ] {
        let list = get(&server, &path(version, &format!("?fieldSelector={selector}"))).await.unwrap();
        assert_eq!(named(list), want, "{version} {selector}");
    }
    // A watch that was there before, and one that begins with what there is.
    let mut late = newer.watch(&params, "0").await.unwrap().boxed();
    let change = json!({"spec": {"new": "z"}});
    ask(&server, "PATCH", &path("v2", "/c"), MERGE, Some(&change)).await.unwrap();
    for watch in [&mut live, &mut late] {
        for want in ["added a", "added c", "deleted c"] {
            let seen = match tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event comes") {
                Some(Ok(WatchEvent::Added(object))) => format!("added {}", object.name_any()),
                Some(Ok(WatchEvent::Deleted(object))) => format!("deleted {}", object.name_any()),
                other => panic!("not {want}: {other:?}"),
            };
            assert_eq!(seen, want);
        }
    }
    let removed = ask(&server, "DELETE", &path("v2", "?fieldSelector=spec.new=x"), "application/json", None).await;
    assert_eq!(named(removed.unwrap()), ["a"]);
    assert_eq!(named(get(&server, &path("v1", "")).await.unwrap()), ["b", "c"]);
    drop((live, late));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_list_are_converted_together() {
    let (address, ca, calls) = conversion_server().await;
    let server = crate::server().await;
    let client_config = json!({"url": format!("https://{address}/convert"), "caBundle": ca});
    post(&server, DEFINITIONS, things(&client_config, &json!(["v1"]), "v1")).await.unwrap();
    eventually(&server, &path("v1", ""), |_| true).await;
    for i in 0..300 {
        post(&server, &path("v1", ""), thing("v1", &format!("t{i:03}"), "old", &i.to_string())).await.unwrap();
    }
    assert_eq!(calls.calls(), 0, "nothing had to be converted");
    let list = get(&server, &path("v2", "")).await.unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 300);
    let new = |item: &serde_json::Value| item["spec"]["new"].as_str().and_then(|s| s.parse::<usize>().ok());
    assert!(items.iter().enumerate().all(|(i, item)| new(item) == Some(i)));
    assert_eq!(calls.calls(), 2);
    // The server closes each connection after three calls: they are used again until then, and replaced.
    for i in 0..10 {
        get(&server, &path("v2", &format!("/t{i:03}"))).await.unwrap();
    }
    assert_eq!(calls.calls(), 12);
    let connections = calls.connections.load(Ordering::Relaxed);
    assert!((4..=6).contains(&connections), "{connections} connections for 12 calls of at most three each");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_fails_is_told() {
    let (address, ca, _) = conversion_server().await;
    let server = crate::server().await;
    let client_config = json!({"url": format!("https://{address}/convert"), "caBundle": ca});
    post(&server, DEFINITIONS, things(&client_config, &json!(["v1"]), "v1")).await.unwrap();
    eventually(&server, &path("v1", ""), |_| true).await;
    for (value, reason) in [
        ("broken", "failed: this one is broken"),
        ("lost", "returned 0 objects, expected 1"),
        ("renamed", "returned invalid object: must have the same name: a != other"),
    ] {
        let refused = post(&server, &path("v2", ""), thing("v2", "a", "new", value)).await.unwrap_err();
        assert_eq!(refused, (500, format!("conversion webhook for example.com/v2, Kind=Thing {reason}")));
        post(&server, &path("v1", ""), thing("v1", "a", "old", value)).await.expect("this needs no conversion");
        let refused = get(&server, &path("v2", "/a")).await.unwrap_err();
        assert_eq!(refused, (500, format!("conversion webhook for example.com/v1, Kind=Thing {reason}")));
        ask(&server, "DELETE", &path("v1", "/a"), "application/json", None).await.unwrap();
    }
    server.shutdown().await;

    let server = crate::server().await;
    let nobody = json!({"service": {"namespace": "default", "name": "absent"}});
    post(&server, DEFINITIONS, things(&nobody, &json!(["v1"]), "v1")).await.unwrap();
    eventually(&server, &path("v1", ""), |_| true).await;
    let (code, message) = post(&server, &path("v2", ""), thing("v2", "a", "new", "x")).await.unwrap_err();
    assert_eq!(code, 500);
    assert!(message.contains("service \"absent\" not found"), "{message}");
    server.shutdown().await;
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// A route to a backend: what APIs for gateways, certificates and monitoring are made of.
fn section(number: usize, depth: usize) -> Value {
    let text = |what: &str| {
        format!(
            "{what} says how part {number} at level {depth} of the system handles what it is given. It is optional: when \
             it is not set, the controller decides, and what it decides may change between releases. Support: Extended."
        )
    };
    let name = json!({"type": "string", "minLength": 1, "maxLength": 253, "description": text("Name"),
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"});
    let duration = json!({"type": "string", "maxLength": 32, "description": text("Interval"),
        "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"});
    let reference = json!({"type": "object", "required": ["name"], "description": text("Reference"),
    "properties": {
        "group": {"type": "string", "maxLength": 253, "default": "", "description": text("Group")},
        "kind": {"type": "string", "minLength": 1, "maxLength": 63, "default": "Service", "description": text("Kind")},
        "name": name, "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535},
    },
    "x-kubernetes-validations": [
        rule("(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true", "Must have port for Service reference"),
    ]});
    let mut properties = json!({
        "protocol": {"type": "string", "enum": ["HTTP", "HTTPS", "TLS", "TCP"], "default": "HTTP", "description": text("Protocol")},
        "hostname": name,
        "interval": duration,
        "timeout": duration,
        "className": {"type": "string", "maxLength": 253, "description": text("ClassName"),
            "x-kubernetes-validations": [rule("self == oldSelf", "className is immutable")]},
        "tls": {"type": "object", "description": text("TLS"), "properties": {
                "mode": {"type": "string", "enum": ["Terminate", "Passthrough"], "default": "Terminate"},
                "certificateRefs": {"type": "array", "maxItems": 8, "items": reference, "description": text("CertificateRefs")},
                "options": {"type": "object", "maxProperties": 16,
                    "additionalProperties": {"type": "string", "maxLength": 1024}}},
            "x-kubernetes-validations": [rule(
                "self.mode == 'Terminate' ? size(self.certificateRefs) > 0 || size(self.options) > 0 : true",
                "certificateRefs or options must be specified when mode is Terminate")]},
        "headers": {"type": "array", "maxItems": 16, "description": text("Headers"),
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"],
                "properties": {"name": {"type": "string", "maxLength": 64}, "value": {"type": "string", "maxLength": 256}}},
            "x-kubernetes-validations": [
                rule("self.all(a, self.exists_one(b, a.name == b.name))", "header names must be unique")]},
        "selector": {"type": "object", "properties": {"matchLabels": {"type": "object", "maxProperties": 8,
            "additionalProperties": {"type": "string", "maxLength": 63}}}},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
    });
    if depth > 0 {
        properties["fallback"] = section(number, depth - 1);
    }
    json!({"type": "object", "description": text("Section"), "properties": properties,
    "x-kubernetes-validations": [
        rule("self.protocol in ['HTTP', 'TCP'] ? !has(self.tls) : true", "tls must not be specified for protocols ['HTTP', 'TCP']"),
        rule("!(has(self.hostname) && has(self.selector))", "hostname and selector are mutually exclusive"),
        rule("!has(self.timeout) || has(self.interval)", "timeout needs an interval"),
    ]})
}

fn large(sections: usize, depth: usize) -> Value {
    let mut spec = json!({"type": "object"});
    for i in 0..sections {
        spec["properties"][format!("section{i}")] = section(i, depth);
    }
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "larges.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "larges", "kind": "Large"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_with_hundreds_of_rules_is_served_at_once() {
    let server = crate::server().await;
    let definition = large(10, 5);
    let text = definition.to_string();
    assert!((280_000..450_000).contains(&text.len()), "{}", text.len());
    assert!(text.matches("\"rule\":").count() >= 400, "{}", text.matches("\"rule\":").count());
    let started = Instant::now();
    let at = format!("{DEFINITIONS}/larges.example.com");
    ask(&server, "PATCH", &format!("{at}?fieldManager=test"), APPLY, Some(&definition)).await.unwrap();
    eventually(&server, &at, established).await;
    let collection = "/apis/example.com/v1/namespaces/default/larges";
    eventually(&server, collection, |_| true).await;
    let took = started.elapsed();
    // Without optimisation and beside other tests; optimised it is well below a second.
    assert!(took < PATIENCE, "a bug, not a slow machine: {took:?}");

    let object = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Large", "metadata": {"generateName": "l-"}, "spec": spec});
    let good = json!({"section3": {"hostname": "a.example", "interval": "30s", "timeout": "10s",
        "fallback": {"fallback": {"protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "a", "port": 1}]}}}}});
    let created = post(&server, collection, object(good)).await.unwrap();
    let tls = &created["spec"]["section3"]["fallback"]["fallback"]["tls"];
    assert_eq!(
        *tls,
        json!({"mode": "Terminate", "certificateRefs": [{"name": "a", "port": 1, "group": "", "kind": "Service"}]})
    );
    for (spec, reason) in [
        (
            json!({"section1": {"protocol": "HTTP", "tls": {"mode": "Passthrough"}}}),
            "spec.section1: Invalid value: tls must not be specified for protocols ['HTTP', 'TCP']",
        ),
        (
            json!({"section9": {"fallback": {"fallback": {"fallback": {"fallback": {"fallback": {"timeout": "1s"}}}}}}}),
            "spec.section9.fallback.fallback.fallback.fallback.fallback: Invalid value: timeout needs an interval",
        ),
        (
            json!({"section0": {"protocol": "TLS", "tls": {"certificateRefs": [{"name": "a"}]}}}),
            "spec.section0.tls.certificateRefs[0]: Invalid value: Must have port for Service reference",
        ),
        (json!({"section0": {"limit": true}}), "spec.section0.limit: Invalid value"),
    ] {
        let (code, message) = post(&server, collection, object(spec)).await.unwrap_err();
        assert_eq!(code, 422);
        assert!(message.contains(reason), "{message}");
    }
    let change = json!({"spec": {"section3": {"className": "b"}}});
    let one = format!("{collection}/{}", created["metadata"]["name"].as_str().unwrap());
    ask(&server, "PATCH", &one, MERGE, Some(&change)).await.expect("there was none before");
    let change = json!({"spec": {"section3": {"className": "c"}}});
    let (_, message) = ask(&server, "PATCH", &one, MERGE, Some(&change)).await.unwrap_err();
    assert!(message.contains("className is immutable"), "{message}");
    server.shutdown().await;
}
