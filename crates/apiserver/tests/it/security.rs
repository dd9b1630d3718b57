//! Access, admission and addresses: what only a whole server shows.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::StatusResult;
use apiserver::services::{Assigned, ServiceAddressing};
use apiserver::{ApiServer, SecureOptions, UserInfo};
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

fn api(client: kube::Client, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

async fn create(server: &ApiServer, user: &UserInfo, object: serde_json::Value) -> kube::Result<DynamicObject> {
    let text = |key: &str| object[key].as_str().unwrap_or("").to_owned();
    let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
    let api = api(server.kube_client(user.clone()), &text("apiVersion"), &text("kind"), namespace.as_deref());
    api.create(&PostParams::default(), &serde_json::from_value(object).expect("an object")).await
}

fn refusal(result: kube::Result<DynamicObject>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("this must be refused: {other:?}"),
    }
}

async fn start(store: &store::Store) -> ApiServer {
    let config = apiserver::secure_config(&SecureOptions::default()).expect("a configuration");
    ApiServer::start(config, store.clone()).await.expect("the server starts")
}

async fn memory() -> store::Store {
    store::Store::in_memory(store::Options::default()).await
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn nobody_grants_rights_that_they_do_not_have() {
    let server = start(&memory().await).await;
    let admin = UserInfo::admin();
    let jane = UserInfo::new("jane", ["system:authenticated"]);
    let role = |name: &str, resources: &str| {
        json!({"apiVersion": RBAC, "kind": "Role", "metadata": {"name": name, "namespace": "default"},
            "rules": [{"apiGroups": [""], "resources": [resources], "verbs": ["get", "list"]}]})
    };
    assert_eq!(refusal(create(&server, &jane, role("a", "pods")).await).0, 403, "she may not create roles at all");
    create(
        &server,
        &admin,
        json!({"apiVersion": RBAC, "kind": "Role", "metadata": {"name": "keeper", "namespace": "default"},
        "rules": [
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        ]}),
    )
    .await
    .unwrap();
    create(
        &server,
        &admin,
        json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": {"name": "keeper", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "keeper"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]}),
    )
    .await
    .unwrap();
    create(&server, &jane, role("pods", "pods")).await.expect("she has these rights herself");
    let (code, message) = refusal(create(&server, &jane, role("secrets", "secrets")).await);
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "roles.rbac.authorization.k8s.io \"secrets\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
    create(&server, &admin, role("secrets", "secrets")).await.unwrap();
    let binding = |role: &str| {
        json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": {"name": role, "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "joe"}]})
    };
    create(&server, &jane, binding("pods")).await.expect("she may give on what she has");
    assert_eq!(refusal(create(&server, &jane, binding("secrets")).await).0, 403);
    server.shutdown().await;
}

#[tokio::test]
async fn a_restart_repairs_the_policy_and_the_addresses_of_services() {
    let store = memory().await;
    let admin = UserInfo::admin();
    let server = start(&store).await;
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.7.7", "ports": [{"port": 80, "nodePort": 31007}]}})
    };
    create(&server, &admin, service("a")).await.unwrap();
    let client = server.kube_client(admin.clone());
    let addresses = api(client.clone(), "networking.k8s.io/v1", "IPAddress", None);
    addresses.delete("10.96.7.7", &DeleteParams::default()).await.unwrap();
    let roles = api(client, RBAC, "ClusterRole", None);
    roles.delete("view", &DeleteParams::default()).await.unwrap();
    server.shutdown().await;

    let server = start(&store).await;
    let client = server.kube_client(admin.clone());
    assert!(api(client.clone(), RBAC, "ClusterRole", None).get_opt("view").await.unwrap().is_some());
    let addresses = api(client.clone(), "networking.k8s.io/v1", "IPAddress", None);
    assert!(addresses.get_opt("10.96.7.7").await.unwrap().is_some(), "the address is reserved again");
    let (_, message) = refusal(create(&server, &admin, service("b")).await);
    assert!(message.contains("provided IP is already allocated"), "{message}");
    let mut other = service("b");
    other["spec"]["clusterIP"] = json!("10.96.7.8");
    let (_, message) = refusal(create(&server, &admin, other.clone()).await);
    assert!(message.contains("provided port is already allocated"), "{message}");
    assert!(addresses.get_opt("10.96.7.8").await.unwrap().is_none(), "what the refused write took is given back");
    api(client, "v1", "Service", Some("default")).delete("a", &DeleteParams::default()).await.unwrap();
    create(&server, &admin, other).await.expect("the port is free again");
    server.shutdown().await;
}

struct Adopt;

#[async_trait::async_trait]
impl ServiceAddressing for Adopt {
    async fn assign(&self, _: &Value, _: Option<&Value>, _: bool) -> StatusResult<Option<Assigned>> {
        Ok(Some(Assigned {
            cluster_ips: vec!["172.16.0.9".into()],
            node_ports: vec![40001],
            health_check_node_port: 0,
        }))
    }
    async fn release(&self, _: &Value) {}
}

#[tokio::test]
async fn somebody_else_may_choose_the_addresses_of_services() {
    let mut config = apiserver::secure_config(&SecureOptions::default()).unwrap();
    config.service_addressing = Some(Arc::new(Adopt));
    let server = ApiServer::start(config, memory().await).await.unwrap();
    let created = create(
        &server,
        &UserInfo::admin(),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
    )
    .await
    .unwrap();
    assert_eq!(created.data["spec"]["clusterIPs"], json!(["172.16.0.9"]));
    assert_eq!(created.data["spec"]["ports"][0]["nodePort"], 40001);
    server.shutdown().await;
}

/// A webhook server: adds a label, or refuses objects named `bad`.
async fn webhook_server() -> (std::net::SocketAddr, String) {
    use http_body_util::{BodyExt, Full};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "hooks");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let serving = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let serving = serving.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let mut tls = Arc::unwrap_or_clone(
        apiserver::tls::server_config(serving.pem().as_bytes(), key.serialize_pem().as_bytes(), None).unwrap(),
    );
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let mutates = request.uri().path() == "/mutate";
                    let body = request.into_body().collect().await?.to_bytes();
                    let review: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    let asked = &review["request"];
                    let mut response = json!({"uid": asked["uid"], "allowed": true, "warnings": ["seen"]});
                    if mutates {
                        let patch = br#"[{"op":"add","path":"/data/hook","value":"was here"}]"#;
                        response["patch"] =
                            json!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, patch));
                        response["patchType"] = json!("JSONPatch");
                    } else if asked["operation"] == "CONNECT" && asked["object"]["command"] == json!(["rm", "-r"]) {
                        let kind = asked["object"]["kind"].as_str().unwrap_or_default();
                        response["allowed"] = json!(false);
                        response["status"] = json!({"code": 403, "message": format!("no rm by {kind}")});
                    } else if asked["name"] == "bad" {
                        response["allowed"] = json!(false);
                        response["status"] = json!({"code": 403, "message": "no bad names"});
                    }
                    let answer =
                        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(bytes::Bytes::from(answer.to_string()))))
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
            });
        }
    });
    (address, ca_pem)
}

#[tokio::test]
async fn webhooks_change_and_refuse_objects() {
    let (address, ca) = webhook_server().await;
    let server = start(&memory().await).await;
    let admin = UserInfo::admin();
    let ca = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca);
    for (kind, path) in [("MutatingWebhookConfiguration", "mutate"), ("ValidatingWebhookConfiguration", "validate")] {
        create(&server, &admin, json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hooks"},
            "webhooks": [{"name": "hooks.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://{address}/{path}"), "caBundle": ca},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]}]}))
        .await
        .unwrap();
    }
    let config_map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"k": "v"}});
    let created = tokio::time::timeout(Duration::from_secs(20), create(&server, &admin, config_map("good")));
    let created = created.await.expect("webhooks answer").unwrap();
    assert_eq!(created.data["data"], json!({"k": "v", "hook": "was here"}));
    let refused = refusal(create(&server, &admin, config_map("bad")).await);
    assert_eq!(refused, (403, "admission webhook \"hooks.example.com\" denied the request: no bad names".to_owned()));
    server.shutdown().await;
}

#[tokio::test]
async fn webhooks_are_asked_about_connections() {
    let (address, ca) = webhook_server().await;
    let server = start(&memory().await).await;
    let admin = UserInfo::admin();
    let ca = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca);
    create(&server, &admin, json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "hooks"},
        "webhooks": [{"name": "hooks.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{address}/validate"), "caBundle": ca},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"],
                "resources": ["pods/exec", "pods/portforward", "services/proxy"]}]}]}))
    .await
    .unwrap();
    let client = server.kube_client(admin);
    for (path, want) in [
        ("pods/p/exec?command=rm&command=-r&container=c", (403, "denied the request: no rm by PodExecOptions")),
        ("pods/p/exec?command=ls&stdout=true", (404, "pods \"p\" not found")),
        // Nobody asked to be asked about these.
        ("pods/bad/attach?container=c", (404, "pods \"bad\" not found")),
        ("pods/bad/portforward?ports=80", (403, "denied the request: no bad names")),
        ("services/bad/proxy/path", (403, "denied the request: no bad names")),
        ("services/s/proxy/path", (404, "services \"s\" not found")),
    ] {
        let request = http::Request::get(format!("/api/v1/namespaces/default/{path}")).body(Vec::new()).unwrap();
        let error = client.request_text(request).await.unwrap_err();
        let kube::Error::Api(status) = error else { panic!("{path}: {error}") };
        assert_eq!(status.code, want.0, "{path}: {}", status.message);
        assert!(status.message.ends_with(want.1), "{path}: {}", status.message);
    }
    // A proxy passes on every method that HTTP servers know, and no other.
    for (method, code) in [("OPTIONS", 404), ("PATCH", 404), ("DELETE", 404), ("TRACE", 405)] {
        for path in ["services/s/proxy/path", "pods/p/proxy"] {
            let uri = format!("/api/v1/namespaces/default/{path}");
            let request = http::Request::builder().method(method).uri(uri).body(Vec::new()).unwrap();
            let error = client.request_text(request).await.unwrap_err();
            let kube::Error::Api(status) = error else { panic!("{method} {path}: {error}") };
            assert_eq!(status.code, code, "{method} {path}: {}", status.message);
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn containers_that_a_policy_adds_get_what_every_container_gets() {
    let server = start(&memory().await).await;
    let admin = UserInfo::admin();
    let policies = "admissionregistration.k8s.io/v1";
    create(
        &server,
        &admin,
        json!({"apiVersion": policies, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "side"},
        "spec": {"reinvocationPolicy": "Never", "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/spec/containers/-', value: {'name': 'side', 'image': 'side'}}]"}}]}}),
    )
    .await
    .unwrap();
    create(
        &server,
        &admin,
        json!({"apiVersion": policies, "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "side"}, "spec": {"policyName": "side"}}),
    )
    .await
    .unwrap();
    create(
        &server,
        &admin,
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"}}),
    )
    .await
    .unwrap();
    let pod = create(
        &server,
        &admin,
        json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "main"}]}}),
    )
    .await
    .unwrap();
    let mounts = |i: usize| pod.data["spec"]["containers"][i]["volumeMounts"].clone();
    assert_eq!(pod.data["spec"]["containers"][1]["name"], "side");
    assert_eq!(mounts(0), mounts(1));
    assert_eq!(mounts(1)[0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    server.shutdown().await;
}

#[tokio::test]
async fn policies_see_the_scale_and_not_its_object() {
    let server = start(&memory().await).await;
    let admin = UserInfo::admin();
    let policies = "admissionregistration.k8s.io/v1";
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"], "operations": ["UPDATE"]}]);
    let spec = |kind: &str| json!({"apiVersion": policies, "kind": kind, "metadata": {"name": "scale"}});
    let mut limits = spec("ValidatingAdmissionPolicy");
    limits["spec"] = json!({"matchConstraints": {"resourceRules": rules.clone()}, "validations": [
        {"expression": "object.kind == 'Scale' && object.apiVersion == 'autoscaling/v1' && request.kind.kind == 'Scale'"},
        {"expression": "object.spec.replicas - oldObject.spec.replicas <= 2", "message": "too fast"}]});
    let mut evens = spec("MutatingAdmissionPolicy");
    evens["spec"] = json!({"reinvocationPolicy": "Never", "matchConstraints": {"resourceRules": rules},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{spec: Object.spec{replicas: object.spec.replicas + object.spec.replicas % 2}}"}}]});
    for policy in [limits, evens] {
        let kind = format!("{}Binding", policy["kind"].as_str().unwrap());
        let mut binding = spec(&kind);
        binding["spec"] = json!({"policyName": "scale"});
        if kind.starts_with("Validating") {
            binding["spec"]["validationActions"] = json!(["Deny"]);
        }
        create(&server, &admin, policy).await.unwrap();
        create(&server, &admin, binding).await.unwrap();
    }
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    create(&server, &admin, deployment).await.unwrap();
    let client = server.kube_client(admin);
    // (asked for, what there is then, the refusal)
    for (replicas, want, refusal) in [(3, 4, ""), (4, 4, ""), (7, 4, "too fast"), (6, 6, ""), (1, 2, "")] {
        let request = http::Request::patch("/apis/apps/v1/namespaces/default/deployments/d/scale")
            .header("content-type", "application/merge-patch+json")
            .body(json!({"spec": {"replicas": replicas}}).to_string().into_bytes())
            .unwrap();
        match client.request_text(request).await {
            Ok(text) => {
                let scale: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!((&scale["spec"]["replicas"], refusal), (&json!(want), ""), "{replicas}");
            }
            Err(kube::Error::Api(status)) => {
                assert!(!refusal.is_empty() && status.message.ends_with(refusal), "{replicas}: {}", status.message);
            }
            Err(error) => panic!("{replicas}: {error}"),
        }
        let request = http::Request::get("/apis/apps/v1/namespaces/default/deployments/d").body(Vec::new()).unwrap();
        let object: serde_json::Value = client.request(request).await.unwrap();
        assert_eq!(object["spec"]["replicas"], want, "{replicas}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn nodes_change_themselves_and_nothing_else_when_restricted() {
    let options = SecureOptions {
        enable_admission_plugins: vec!["NodeRestriction".to_owned()],
        always_allow: true,
        ..SecureOptions::default()
    };
    let config = apiserver::secure_config(&options).unwrap();
    let server = ApiServer::start(config, memory().await).await.unwrap();
    let node = UserInfo::new("system:node:n1", ["system:nodes", "system:authenticated"]);
    let object = |name: &str, label: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {label: "x"}}});
    create(&server, &node, object("n1", "example.com/rack")).await.expect("a node may register itself");
    let (code, message) = refusal(create(&server, &node, object("n2", "a")).await);
    assert_eq!(
        (code, message.as_str()),
        (403, "nodes \"n2\" is forbidden: node \"n1\" is not allowed to create node \"n2\"")
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(refusal(create(&server, &node, pod).await).0, 403, "only mirror pods");
    server.shutdown().await;
}

#[tokio::test]
async fn always_deny_leaves_administrators_alone() {
    let options = SecureOptions { always_deny: true, ..SecureOptions::default() };
    let config = apiserver::secure_config(&options).unwrap();
    let server = ApiServer::start(config, memory().await).await.unwrap();
    let object = || json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}});
    let somebody = UserInfo::new("jane", ["system:authenticated"]);
    let (code, message) = refusal(create(&server, &somebody, object()).await);
    assert_eq!(code, 403);
    assert!(message.ends_with("in the namespace \"default\": Everything is forbidden."), "{message}");
    create(&server, &UserInfo::admin(), object()).await.expect("an administrator may");
    server.shutdown().await;
}

#[tokio::test]
async fn what_can_only_be_created_has_no_names() {
    let server = start(&memory().await).await;
    for (path, code) in [
        ("/api/v1/namespaces/default/bindings/a", 404),
        ("/apis/authentication.k8s.io/v1/tokenreviews/a", 404),
        ("/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews/a", 404),
        ("/api/v1/namespaces/default/bindings", 405),
        ("/apis/authentication.k8s.io/v1/tokenreviews", 405),
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let error = crate::crd::ask(&server, method, path, "application/json", None).await.unwrap_err();
            assert_eq!(error.0, code, "{method} {path}: {}", error.1);
        }
    }
    server.shutdown().await;
}
