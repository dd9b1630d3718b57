//! Definitions that people install: large, with hundreds of CEL rules, as their projects publish them.
//!
//! Each is applied as `kubectl apply --server-side` does it, becomes Established, and takes sample objects; objects that
//! break its rules are refused by them. Applying a definition again changes nothing.

use std::io::Read;
use std::time::Duration;

use apiserver::{ApiServer, UserInfo};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

async fn apply(server: &ApiServer, path: &str, body: Vec<u8>) -> Result<Value, String> {
    let request = http::Request::patch(format!("{path}?fieldManager=kubectl&fieldValidation=Strict"))
        .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(body)
        .expect("a request");
    server.kube_client(UserInfo::admin()).request::<Value>(request).await.map_err(|e| match e {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })
}

fn unpack(data: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(data).read_to_string(&mut text).expect("the test data is text");
    text
}

/// What a project publishes, and objects of its kinds: those that are taken, and those that are refused with what must be
/// in the message.
struct Project {
    data: &'static [u8],
    definitions: usize,
    good: Vec<Value>,
    bad: Vec<(Value, &'static str)>,
}

async fn check(project: Project) {
    let server = super::server().await;
    let text = unpack(project.data);
    let documents: Vec<&str> =
        text.split("\n---\n").filter(|d| d.contains("\nkind: CustomResourceDefinition")).collect();
    assert_eq!(documents.len(), project.definitions);
    let mut served: Vec<(String, String, bool)> = Vec::new();
    for document in documents {
        let name = document.lines().find_map(|l| l.strip_prefix("  name: ")).expect("a definition has a name");
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let first = apply(&server, &path, document.into()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let group = first["spec"]["group"].as_str().unwrap_or_default();
        let namespaced = first["spec"]["scope"] == "Namespaced";
        for version in first["spec"]["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true) {
            let version = version["name"].as_str().unwrap_or_default();
            let kind = first["spec"]["names"]["kind"].as_str().unwrap_or_default();
            let plural = first["spec"]["names"]["plural"].as_str().unwrap_or_default();
            served.push((format!("{group}/{version} {kind}"), format!("/apis/{group}/{version} {plural}"), namespaced));
        }
        let established = async {
            loop {
                let request = http::Request::get(&path).body(Vec::new()).expect("a request");
                let now: Value = server.kube_client(UserInfo::admin()).request(request).await.expect("it was created");
                let conditions = now["status"]["conditions"].as_array().cloned().unwrap_or_default();
                if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
                    let not = conditions.iter().find(|c| c["type"] == "NonStructuralSchema");
                    assert!(not.is_none(), "{name}: {not:?}");
                    return now;
                }
                tokio::task::yield_now().await;
            }
        };
        let now =
            tokio::time::timeout(PATIENCE, established).await.unwrap_or_else(|_| panic!("{name}: not Established"));
        let again = apply(&server, &path, document.into()).await.unwrap_or_else(|e| panic!("{name} again: {e}"));
        assert_eq!(again["metadata"]["resourceVersion"], now["metadata"]["resourceVersion"], "{name}: nothing changed");
    }
    let path_of = |object: &Value| {
        let kind = format!("{} {}", object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let (_, path, namespaced) = served.iter().find(|(k, ..)| *k == kind).unwrap_or_else(|| panic!("{kind}"));
        let (prefix, plural) = path.split_once(' ').unwrap();
        let namespace = if *namespaced { "/namespaces/default" } else { "" };
        format!("{prefix}{namespace}/{plural}/{}", object["metadata"]["name"].as_str().unwrap())
    };
    for object in &project.good {
        let path = path_of(object);
        let made = apply(&server, &path, object.to_string().into()).await.unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(made["metadata"]["uid"].is_string(), "{path}");
        // The first update stores the defaults of the status, which a create drops.
        let again = apply(&server, &path, object.to_string().into()).await.unwrap();
        let then = apply(&server, &path, object.to_string().into()).await.unwrap();
        assert_eq!(then["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"], "{path}");
    }
    for (object, want) in &project.bad {
        let path = path_of(object);
        match apply(&server, &path, object.to_string().into()).await {
            Ok(_) => panic!("{path} was taken; wanted {want}"),
            Err(message) => assert!(message.contains(want), "{path}: {message}"),
        }
    }
    server.shutdown().await;
}

fn object(api_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn gateway_api_is_installed_and_its_rules_hold() {
    const V1: &str = "gateway.networking.k8s.io/v1";
    let route = |name: &str, rules: Value| {
        object(
            V1,
            "HTTPRoute",
            name,
            json!({"parentRefs": [{"name": "gw"}], "hostnames": ["a.example"], "rules": rules}),
        )
    };
    let backend = json!([{"name": "svc", "port": 80}]);
    check(Project {
        data: include_bytes!("../data/gateway-api.yaml.gz"),
        definitions: 13,
        good: vec![
            object(V1, "GatewayClass", "class", json!({"controllerName": "example.com/controller"})),
            object(
                V1,
                "Gateway",
                "gw",
                json!({"gatewayClassName": "class", "listeners": [
                    {"name": "http", "port": 80, "protocol": "HTTP"},
                    {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.example",
                        "tls": {"mode": "Terminate", "certificateRefs": [{"name": "cert"}]}},
                ]}),
            ),
            route(
                "a",
                json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/x"}}], "backendRefs": backend,
                    "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}]}]),
            ),
            object(V1, "GRPCRoute", "g", json!({"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "s", "port": 9000}]}]})),
        ],
        bad: vec![
            (
                route("b", json!([{"matches": [{"path": {"type": "PathPrefix", "value": "x"}}]}])),
                "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
            ),
            (route("b", json!([{"backendRefs": [{"name": "svc"}]}])), "Must have port for Service reference"),
            (
                route("b", json!([{"filters": [{"type": "RequestRedirect"}]}])),
                "filter.requestRedirect must be specified for RequestRedirect filter.type",
            ),
            (
                object(V1, "Gateway", "b", json!({"gatewayClassName": "class", "listeners": [
                    {"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "b", "port": 80, "protocol": "HTTP"}]})),
                "Combination of port, protocol and hostname must be unique for each listener",
            ),
            (
                object(V1, "GatewayClass", "class", json!({"controllerName": "example.com/other"})),
                "is immutable",
            ),
            (object(V1, "GatewayClass", "c2", json!({"controllerName": "bad"})), "spec.controllerName in body should match"),
        ],
    })
    .await;
}

#[tokio::test]
async fn cert_manager_is_installed_and_takes_certificates_and_issuers() {
    const V1: &str = "cert-manager.io/v1";
    check(Project {
        data: include_bytes!("../data/cert-manager.yaml.gz"),
        definitions: 6,
        good: vec![
            object(V1, "ClusterIssuer", "self", json!({"selfSigned": {}})),
            object(
                V1,
                "Issuer",
                "acme",
                json!({"acme": {"server": "https://acme.example/directory", "privateKeySecretRef": {"name": "key"},
                    "solvers": [{"http01": {"ingress": {"ingressClassName": "nginx"}}}]}}),
            ),
            object(
                V1,
                "Certificate",
                "a",
                json!({"secretName": "a-tls", "issuerRef": {"name": "acme"}, "dnsNames": ["a.example"], "duration": "2160h",
                    "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}, "usages": ["server auth"]}),
            ),
        ],
        bad: vec![
            (object(V1, "Certificate", "b", json!({"secretName": "b"})), "spec.issuerRef: Required value"),
            (
                object(V1, "Certificate", "b", json!({"secretName": "b", "issuerRef": {"name": "x"}, "usages": ["magic"]})),
                "spec.usages[0]: Unsupported value: \"magic\"",
            ),
            (
                object(V1, "Certificate", "b", json!({"secretName": "b", "issuerRef": {"name": "x"}, "nope": 1})),
                ".spec.nope: field not declared in schema",
            ),
        ],
    })
    .await;
}

#[tokio::test]
async fn argo_cd_is_installed_with_its_definition_of_more_than_a_megabyte() {
    const V1: &str = "argoproj.io/v1alpha1";
    let source = json!({"repoURL": "https://git.example/r.git", "path": "app", "targetRevision": "HEAD"});
    let destination = json!({"server": "https://kubernetes.default.svc", "namespace": "default"});
    check(Project {
        data: include_bytes!("../data/argo-cd.yaml.gz"),
        definitions: 3,
        good: vec![
            object(
                V1,
                "AppProject",
                "default",
                json!({"sourceRepos": ["*"], "destinations": [{"namespace": "*", "server": "*"}]}),
            ),
            object(
                V1,
                "Application",
                "guestbook",
                json!({"project": "default", "source": source, "destination": destination,
                "syncPolicy": {"automated": {"prune": true}, "syncOptions": ["CreateNamespace=true"]}}),
            ),
            object(
                V1,
                "ApplicationSet",
                "set",
                json!({"goTemplate": true,
                "generators": [{"list": {"elements": [{"cluster": "a", "nested": {"x": [1, 2]}}]}}],
                "template": {"metadata": {"name": "{{.cluster}}"},
                    "spec": {"project": "default", "source": source, "destination": destination}}}),
            ),
        ],
        bad: vec![
            (object(V1, "Application", "b", json!({"project": "default"})), "spec.destination: Required value"),
            (
                object(
                    V1,
                    "Application",
                    "b",
                    json!({"project": "default", "destination": destination, "source": {"path": "x"}}),
                ),
                "spec.source.repoURL: Required value",
            ),
        ],
    })
    .await;
}

#[tokio::test]
async fn the_prometheus_operator_is_installed() {
    const V1: &str = "monitoring.coreos.com/v1";
    check(Project {
        data: include_bytes!("../data/prometheus-operator.yaml.gz"),
        definitions: 4,
        good: vec![
            object(
                V1,
                "Prometheus",
                "main",
                json!({"replicas": 2, "retention": "10d", "serviceMonitorSelector": {},
                "resources": {"requests": {"memory": "400Mi", "cpu": 1}},
                "storage": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "10Gi"}}}}}}),
            ),
            object(
                V1,
                "ServiceMonitor",
                "web",
                json!({"selector": {"matchLabels": {"app": "web"}},
                "endpoints": [{"port": "http", "interval": "30s"}, {"targetPort": 8080}]}),
            ),
            object(
                V1,
                "PrometheusRule",
                "rules",
                json!({"groups": [{"name": "a", "rules": [
                {"alert": "Down", "expr": "up == 0", "for": "5m", "labels": {"severity": "page"}}]}]}),
            ),
        ],
        bad: vec![
            (object(V1, "Prometheus", "b", json!({"retention": "10 days"})), "spec.retention in body should match"),
            (
                object(V1, "PrometheusRule", "b", json!({"groups": [{"name": "a", "rules": [{"alert": "x"}]}]})),
                "expr: Required value",
            ),
        ],
    })
    .await;
}

#[tokio::test]
async fn keda_is_installed_and_its_scaled_objects_have_status_and_columns() {
    const V1: &str = "keda.sh/v1alpha1";
    let triggers = json!([{"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "3"}}]);
    check(Project {
        data: include_bytes!("../data/keda.yaml.gz"),
        definitions: 6,
        good: vec![
            object(
                V1,
                "ScaledObject",
                "a",
                json!({"scaleTargetRef": {"name": "web"}, "triggers": triggers, "minReplicaCount": 0}),
            ),
            object(
                V1,
                "TriggerAuthentication",
                "auth",
                json!({"secretTargetRef": [{"parameter": "p", "name": "n", "key": "k"}]}),
            ),
            object(
                V1,
                "ScaledJob",
                "job",
                json!({"triggers": triggers, "jobTargetRef": {"template": {"spec": {
                "containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}}),
            ),
        ],
        bad: vec![
            (
                object(V1, "ScaledObject", "b", json!({"scaleTargetRef": {"name": "web"}})),
                "spec.triggers: Required value",
            ),
            (
                object(
                    V1,
                    "ScaledObject",
                    "b",
                    json!({"scaleTargetRef": {"name": "web"}, "triggers": [{"type": "cpu"}]}),
                ),
                "metadata: Required value",
            ),
        ],
    })
    .await;
}

#[tokio::test]
async fn crossplane_is_installed_and_its_rules_hold() {
    const V1: &str = "apiextensions.crossplane.io/v1";
    let pipeline = json!([{"step": "a", "functionRef": {"name": "f"}, "input": {"apiVersion": "x/v1", "kind": "Any", "free": {"form": [1]}}}]);
    check(Project {
        data: include_bytes!("../data/crossplane.yaml.gz"),
        definitions: 21,
        good: vec![
            object("pkg.crossplane.io/v1", "Provider", "p", json!({"package": "xpkg.example/p:v1"})),
            object(V1, "Composition", "c", json!({"compositeTypeRef": {"apiVersion": "e.example/v1", "kind": "X"}, "mode": "Pipeline", "pipeline": pipeline})),
        ],
        bad: vec![
            (
                object(V1, "Composition", "c", json!({"compositeTypeRef": {"apiVersion": "e.example/v1", "kind": "Y"}, "mode": "Pipeline", "pipeline": pipeline})),
                "Value is immutable",
            ),
            (object("pkg.crossplane.io/v1", "Provider", "b", json!({})), "spec.package: Required value"),
        ],
    })
    .await;
}
