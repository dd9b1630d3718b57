//! Controllers that watch over one thing each: certificates, claims of devices and volumes, address ranges, policies,
//! and owners that are custom resources.

use apimachinery::{Value, json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use controllers::{ManagerConfig, PolicyChecker, SigningCa};
use informer::{PatchType, Resource};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use crate::cluster::*;

fn authority() -> SigningCa {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
    SigningCa { certificate_pem, key_pem: key.serialize_pem() }
}

fn signing_request(name: &str, signer: &str, common_name: &str, organization: &str) -> Value {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    let request =
        params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request").pem().expect("PEM");
    json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": name},
        "spec": {"signerName": signer, "usages": ["client auth"], "request": STANDARD.encode(request)}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approved_requests_are_signed_and_denied_ones_are_not() {
    let ca = authority();
    let cluster = Cluster::start_with(|config| ManagerConfig { cluster_signing_ca: Some(ca), ..config }).await;
    let requests = &CERTIFICATE_SIGNING_REQUESTS;
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
    for (name, signer) in [("good", CLIENT), ("denied", CLIENT), ("foreign", "example.com/other")] {
        cluster.create(requests, "", signing_request(name, signer, "jane", "team")).await;
    }
    let decide = async |name: &str, decision: &str| {
        let condition =
            json!({"status": {"conditions": [{"type": decision, "status": "True", "reason": "Test", "message": "m"}]}});
        let decided = cluster.rest.patch(requests, "approval", "", name, PatchType::Merge, &condition).await;
        decided.unwrap_or_else(|e| panic!("{decision} {name}: {e}"));
    };
    decide("denied", "Denied").await;
    decide("foreign", "Approved").await;
    decide("good", "Approved").await;
    let signed = cluster
        .until("a certificate", requests, "", "good", |r| !r.str_at(&["status", "certificate"]).is_empty())
        .await;
    let pem = STANDARD.decode(signed.str_at(&["status", "certificate"])).expect("base64");
    let body: String = String::from_utf8(pem).expect("PEM").lines().filter(|l| !l.starts_with("-----")).collect();
    let der = STANDARD.decode(body).expect("base64");
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    assert_eq!(certificate.subject().iter_common_name().next().expect("a name").as_str().expect("text"), "jane");
    for name in ["denied", "foreign"] {
        let request = cluster.get(requests, "", name).await.expect("it is still there");
        assert_eq!(request.str_at(&["status", "certificate"]), "", "{name}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_get_the_claims_that_their_templates_describe() {
    let cluster = Cluster::start().await;
    let ns = "default";
    let requests = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}});
    cluster.create(&RESOURCE_CLAIM_TEMPLATES, ns, json!({"metadata": {"name": "template"}, "spec": {"metadata": {"labels": {"from": "template"}}, "spec": requests}})).await;
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": {
        "resourceClaims": [{"name": "device", "resourceClaimTemplateName": "template"}],
        "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "device"}]}}],
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"from": "volume"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}}}}]}});
    cluster.create(&PODS, ns, pod).await;
    let named = cluster
        .until("the claim's name", &PODS, ns, "p", |p| {
            !p["status"]["resourceClaimStatuses"][0].str_at(&["resourceClaimName"]).is_empty()
        })
        .await;
    let claim = named["status"]["resourceClaimStatuses"][0].str_at(&["resourceClaimName"]).to_owned();
    let made = cluster.get(&RESOURCE_CLAIMS, ns, &claim).await.expect("the claim");
    assert!(claim.starts_with("p-device-") && owned_by(&made, "p"), "{made}");
    assert_eq!(made.str_at(&["metadata", "labels", "from"]), "template");
    // The volume's claim is called after pod and volume.
    let volume =
        cluster.until("the volume's claim", &PERSISTENT_VOLUME_CLAIMS, ns, "p-scratch", |c| !c.is_null()).await;
    assert!(owned_by(&volume, "p"));
    assert_eq!(volume.str_at(&["metadata", "labels", "from"]), "volume");
    cluster.delete(&PODS, ns, "p", "Background").await;
    cluster.until_gone(&RESOURCE_CLAIMS, ns, &claim).await;
    cluster.until_gone(&PERSISTENT_VOLUME_CLAIMS, ns, "p-scratch").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_range_waits_for_its_last_address() {
    let cluster = Cluster::start().await;
    let range = json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "extra"}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    cluster.create(&SERVICE_CIDRS, "", range).await;
    let ready = |c: &Value| {
        !c.array_at(&["metadata", "finalizers"]).is_empty()
            && c.array_at(&["status", "conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    cluster.until("ready", &SERVICE_CIDRS, "", "extra", ready).await;
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"}, "spec": {"clusterIP": "10.200.0.10", "ports": [{"port": 80}]}});
    cluster.create(&SERVICES, "default", service).await;
    cluster.until("the address", &IP_ADDRESSES, "", "10.200.0.10", |a| !a.is_null()).await;
    cluster.delete(&SERVICE_CIDRS, "", "extra", "").await;
    let waits = |c: &Value| {
        c.array_at(&["status", "conditions"])
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "False" && c["reason"] == "Terminating")
    };
    cluster.until("it waits", &SERVICE_CIDRS, "", "extra", waits).await;
    cluster.delete(&SERVICES, "default", "s", "").await;
    cluster.until_gone(&SERVICE_CIDRS, "", "extra").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_told_what_is_odd_about_their_types() {
    let checker = PolicyChecker::new(|policy| {
        let odd = policy.str_at(&["metadata", "name"]) == "odd";
        let warning = controllers::ExpressionWarning {
            field_ref: "spec.validations[0].expression".into(),
            warning: "undefined field 'replica'".into(),
        };
        odd.then_some(warning).into_iter().collect()
    });
    let cluster = Cluster::start_with(|config| ManagerConfig { policy_checker: Some(checker), ..config }).await;
    for name in ["odd", "fine"] {
        let policy = json!({"kind": "ValidatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
            "validations": [{"expression": "object.spec.replicas > 1"}]}});
        cluster.create(&VALIDATING_ADMISSION_POLICIES, "", policy).await;
        let checked = cluster
            .until("checked", &VALIDATING_ADMISSION_POLICIES, "", name, |p| {
                p["status"]["observedGeneration"] == p["metadata"]["generation"]
            })
            .await;
        let warnings = checked.array_at(&["status", "typeChecking", "expressionWarnings"]);
        assert_eq!(warnings.len(), usize::from(name == "odd"), "{checked}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controllers_keep_their_pods() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    let controller = json!({"kind": "ReplicationController", "apiVersion": "v1", "metadata": {"name": "rc"}, "spec": {"replicas": 2, "selector": {"app": "rc"},
        "template": {"metadata": {"labels": {"app": "rc"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    cluster.create(&REPLICATION_CONTROLLERS, ns, controller).await;
    let ready = |n: i64| {
        move |c: &Value| {
            c["status"]["observedGeneration"] == c["metadata"]["generation"]
                && c["status"]["readyReplicas"] == n
                && c["status"]["replicas"] == n
        }
    };
    cluster.until("two", &REPLICATION_CONTROLLERS, ns, "rc", ready(2)).await;
    let pods = cluster.list(&PODS, ns).await;
    let lost = pods[0].str_at(&["metadata", "name"]).to_owned();
    cluster.delete(&PODS, ns, &lost, "").await;
    cluster
        .until_list("another", &PODS, ns, |all| {
            all.len() == 2 && all.iter().all(|p| p.str_at(&["metadata", "name"]) != lost)
        })
        .await;
    cluster.patch(&REPLICATION_CONTROLLERS, ns, "rc", json!({"spec": {"replicas": 1}})).await;
    cluster.until("one", &REPLICATION_CONTROLLERS, ns, "rc", ready(1)).await;
    // Its pods stay unless somebody asks otherwise.
    cluster.delete(&REPLICATION_CONTROLLERS, ns, "rc", "").await;
    cluster
        .until_list("an orphan", &PODS, ns, |all| {
            all.len() == 1 && all[0].array_at(&["metadata", "ownerReferences"]).is_empty()
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_own_and_are_owned() {
    const WIDGETS: Resource = Resource::new("example.com", "v1", "widgets");
    let cluster = Cluster::start().await;
    let ns = "default";
    let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true,
            "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let reference = |api: &str, owner: &Value| json!([{"apiVersion": api, "kind": owner["kind"].clone(), "name": owner["metadata"]["name"].clone(), "uid": owner["metadata"]["uid"].clone()}]);
    // The second time the definition has been away.
    for _ in 0..2 {
        cluster.create(&CUSTOM_RESOURCE_DEFINITIONS, "", definition.clone()).await;
        cluster
            .until("established", &CUSTOM_RESOURCE_DEFINITIONS, "", "widgets.example.com", |d| {
                d.array_at(&["status", "conditions"])
                    .iter()
                    .any(|c| c["type"] == "Established" && c["status"] == "True")
            })
            .await;
        // A map owns a widget, which owns another map.
        let first = cluster
            .create(&CONFIG_MAPS, ns, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "first"}}))
            .await;
        let mut widget = json!({"kind": "Widget", "apiVersion": "example.com/v1", "metadata": {"name": "w"}});
        widget["metadata"]["ownerReferences"] = reference("v1", &first);
        let widget = cluster.create_when_served(&WIDGETS, ns, widget).await;
        let mut last = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "last"}});
        last["metadata"]["ownerReferences"] = reference("example.com/v1", &widget);
        cluster.create(&CONFIG_MAPS, ns, last).await;
        cluster.delete(&CONFIG_MAPS, ns, "first", "Background").await;
        cluster.until_gone(&WIDGETS, ns, "w").await;
        cluster.until_gone(&CONFIG_MAPS, ns, "last").await;
        cluster.delete(&CUSTOM_RESOURCE_DEFINITIONS, "", "widgets.example.com", "").await;
        cluster.until_gone(&CUSTOM_RESOURCE_DEFINITIONS, "", "widgets.example.com").await;
        cluster.until_unwatched(&WIDGETS).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_unreachable_after_the_configured_time() {
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}});
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    let lapse = std::time::Duration::from_millis(100);
    let cluster = Cluster::start_with(|config| ManagerConfig { node_monitor_grace_period: lapse, ..config }).await;
    cluster.create(&NODES, "", node).await;
    cluster.rest.patch(&NODES, "status", "", "n", PatchType::Merge, &ready).await.expect("a status");
    let is_unknown = |n: &Value| {
        n.array_at(&["status", "conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "Unknown")
    };
    cluster.until("unknown", &NODES, "", "n", is_unknown).await;
    let is_tainted = |n: &Value| {
        n.array_at(&["spec", "taints"])
            .iter()
            .any(|t| t["key"] == "node.kubernetes.io/unreachable" && t["effect"] == "NoExecute")
    };
    cluster.until("tainted", &NODES, "", "n", is_tainted).await;
    cluster.stop().await;
}
