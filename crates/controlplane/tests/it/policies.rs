//! What an administrator of the host puts in front of a tenant: admission webhooks, and the host's own policies.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use apimachinery::{Value, json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use informer::{PatchType, Resource};
use parking_lot::Mutex;
use store::Store;

use crate::replicas::{CONFIG_MAPS, CRDS, NAME, NAMESPACE, World, admin, eventually};

const WIDGETS: Resource = Resource::new("example.com", "v1", "widgets");
const POLICIES: Resource = Resource::new("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies");
const BINDINGS: Resource = Resource::new("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings");
const VALIDATING: Resource = Resource::new("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations");
const MUTATING: Resource = Resource::new("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations");

/// A webhook of the host's administrator, with the authority of its certificate.
struct Hook {
    address: SocketAddr,
    authority: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

fn answer(path: &str, review: &Value) -> Value {
    let asked = &review["request"];
    let mut response = json!({"uid": (asked["uid"].clone()), "allowed": true});
    if path == "/mutate" {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(r#"[{"op":"add","path":"/data/hook","value":"was here"}]"#).into();
    } else if asked.str_at(&["name"]) == "bad" {
        response["allowed"] = false.into();
        response["status"] = json!({"code": 403, "message": "no bad names"});
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

/// Objects named `bad` are refused; the others are marked.
async fn hook() -> Hook {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = pki::ClusterCertificates::complete(BTreeMap::new(), &["127.0.0.1".to_owned()]).unwrap();
    let file = |name: &str| made.file(name).unwrap().to_owned();
    let tls = apiserver::tls::server_config(file("apiserver.crt").as_bytes(), file("apiserver.key").as_bytes(), None);
    let mut tls = Arc::unwrap_or_clone(tls.unwrap());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let review = Value::from_slice(&body).unwrap_or_default();
                        let text = answer(&path, &review).to_string();
                        kept.lock().push(review);
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(bytes::Bytes::from(text))))
                    }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
            });
        }
    });
    Hook { address, authority: STANDARD.encode(file("server-ca.crt")), asked }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_the_administrator_cannot_be_seen_or_removed_by_the_tenant() {
    let hook = hook().await;
    let configuration = |path: &str| {
        json!([{"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "central"}, "webhooks": [{
            "name": "central.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
            "clientConfig": {"url": (format!("https://{}/{path}", hook.address)), "caBundle": (hook.authority.as_str())},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "DELETE"]}],
            "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["default"]}]},
        }]}])
    };
    let values = json!({"policies": {"centralAdmission": {
        "validatingWebhooks": (configuration("validate")), "mutatingWebhooks": (configuration("mutate"))}}});
    let world = World::new(&values.to_string()).await;
    let store = Store::in_memory(store::Options::default()).await;
    let (control_plane, _wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    let good =
        eventually("the namespace", async || rest.create(&CONFIG_MAPS, "default", &config_map("good")).await.ok())
            .await;
    assert_eq!(good["data"], json!({"k": "v", "hook": "was here"}));
    let refused = rest.create(&CONFIG_MAPS, "default", &config_map("bad")).await.unwrap_err();
    assert_eq!(refused.code(), 403);
    let text = "admission webhook \"central.example.com\" denied the request: no bad names";
    assert!(refused.to_string().contains(text), "{refused}");
    // Not an object of the tenant's: there is nothing to see, change or delete.
    for kind in [&VALIDATING, &MUTATING] {
        let seen: Vec<Value> = rest.list_as(kind, "", "", "").await.unwrap();
        assert!(seen.is_empty(), "{seen:?}");
        rest.delete_collection(kind, "").await.unwrap();
        assert!(rest.delete(kind, "", "central", &Default::default()).await.unwrap_err().is_not_found());
    }
    let refused = rest.create(&CONFIG_MAPS, "default", &config_map("bad")).await.unwrap_err();
    assert!(refused.to_string().contains(text), "{refused}");
    let asked = hook.asked.lock().clone();
    let options = json!({"name": NAME, "namespace": NAMESPACE});
    assert!(asked.len() >= 4 && asked.iter().all(|a| a["request"]["options"]["vCluster"] == options), "{asked:?}");
    control_plane.stop().await;
    world.host.stop().await;
}

fn widget(name: &str, size: i64) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_refuses_of_a_custom_resource_the_tenant_hears_at_once() {
    let world = World::new("sync: {toHost: {customResources: {widgets.example.com: {enabled: true}}}}").await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    world.rest.create(&CRDS, "", &definition).await.unwrap();
    // The name in the message is the host's.
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "sizes"},
        "spec": {"failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["example.com"], "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["widgets"]}]},
            "validations": [{"expression": "object.spec.size <= 5", "messageExpression": "'too large: ' + object.metadata.name"}]},
    });
    world.rest.create(&POLICIES, "", &policy).await.unwrap();
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "sizes"},
        "spec": {"policyName": "sizes", "validationActions": ["Deny"]},
    });
    world.rest.create(&BINDINGS, "", &binding).await.unwrap();
    eventually("the policy holds on the host", async || {
        let tried = world.rest.create(&WIDGETS, "default", &widget("probe", 9)).await;
        if tried.is_ok() {
            world.rest.delete(&WIDGETS, "default", "probe", &Default::default()).await.ok()?;
        }
        tried.err().filter(|e| e.to_string().contains("too large")).map(drop)
    })
    .await;

    let store = Store::in_memory(store::Options::default()).await;
    let (control_plane, wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    eventually("the kind is served", async || rest.create(&WIDGETS, "default", &widget("small", 1)).await.ok()).await;
    eventually("it is on the host", async || {
        world.rest.get(&WIDGETS, NAMESPACE, "small-x-default-x-team-a").await.ok()
    })
    .await;
    let check = |refused: informer::ApiError, name: &str| {
        let text = refused.to_string();
        assert!(matches!(refused.code(), 403 | 422), "{refused:?}");
        assert!(text.starts_with("refused by the host cluster: "), "{text}");
        assert!(text.contains(&format!("too large: {name}")) && !text.contains("-x-"), "{text}");
    };
    check(rest.create(&WIDGETS, "default", &widget("big", 9)).await.unwrap_err(), "big");
    assert!(rest.get(&WIDGETS, "default", "big").await.unwrap_err().is_not_found(), "nothing is stored");
    let grown = json!({"spec": {"size": 9}});
    let patched = rest.patch(&WIDGETS, "", "default", "small", PatchType::Merge, &grown).await;
    check(patched.unwrap_err(), "small");
    let grown = json!({"spec": {"size": 5}});
    rest.patch(&WIDGETS, "", "default", "small", PatchType::Merge, &grown).await.unwrap();
    eventually("the change is on the host", async || {
        let widget = world.rest.get(&WIDGETS, NAMESPACE, "small-x-default-x-team-a").await.ok()?;
        (widget["spec"]["size"] == 5).then_some(())
    })
    .await;
    // A host that is away refuses nothing.
    wire.open.send_replace(false);
    rest.create(&WIDGETS, "default", &widget("later", 1)).await.unwrap();
    wire.open.send_replace(true);
    eventually("it goes to the host when that is back", async || {
        world.rest.get(&WIDGETS, NAMESPACE, "later-x-default-x-team-a").await.ok()
    })
    .await;
    control_plane.stop().await;
    world.host.stop().await;
}
