//! What the configuration asks for beyond the defaults, end to end: custom resources, Gateways, volumes, nodes, policies.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::Resource;
use parking_lot::Mutex;
use syncer::MappingStore;
use syncer::patches::{Mode, Patch, Path};
use syncer::settings::{CustomImport, CustomKind, GatewayImport, Import, ImportMapping, Nodes, RoutePolicy};

use crate::cluster::*;

const DEFINITIONS: Resource = Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
const CERTIFICATES: Resource = Resource::new("certs.example.com", "v1", "certificates");
const GATEWAY_CLASSES: Resource = Resource::new("gateway.networking.k8s.io", "v1", "gatewayclasses");
const GATEWAYS: Resource = Resource::new("gateway.networking.k8s.io", "v1", "gateways");
const ROUTES: Resource = Resource::new("gateway.networking.k8s.io", "v1", "httproutes");
const GRANTS: Resource = Resource::new("gateway.networking.k8s.io", "v1beta1", "referencegrants");

/// A definition whose objects may hold anything.
pub fn definition(group: &str, version: &str, plural: &str, kind: &str, scope: &str) -> Value {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut made = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": (format!("{plural}.{group}"))},
        "spec": {"group": group, "scope": scope,
            "names": {"plural": plural, "singular": (kind.to_lowercase()), "kind": kind, "listKind": (format!("{kind}List"))},
            "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": any}}]},
    });
    if group.ends_with(".k8s.io") {
        made.set_at(&["metadata", "annotations", "api-approved.kubernetes.io"], "https://example.com".into());
    }
    made
}

pub fn reference(path: &str, kind: &str) -> Patch {
    Patch {
        path: Path::parse(path).expect("a path"),
        mode: Mode::Reference {
            api_version: "v1".into(),
            kind: kind.into(),
            api_version_path: None,
            kind_path: None,
            name_path: None,
            namespace_path: None,
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_go_to_the_host_and_bring_back_what_is_made_for_them() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let made = definition("certs.example.com", "v1", "certificates", "Certificate", "Namespaced");
    host_api.create(&DEFINITIONS, "", made).await;
    let mut config = tenant.config();
    config.settings.custom_resources = vec![CustomKind::parse("certificates.certs.example.com").expect("a kind")];
    let patches = vec![reference("spec.secretName", "Secret")];
    config.settings.patches.insert("certificates.certs.example.com".into(), patches);
    let syncer = tenant.sync_with(host.client(), config).await;

    let certificate = json!({"apiVersion": "certs.example.com/v1", "kind": "Certificate",
        "metadata": {"name": "web"}, "spec": {"secretName": "web-tls", "dnsNames": ["a.example"]}});
    eventually("the kind is served", || async {
        tenant.api.try_create(&CERTIFICATES, "default", certificate.clone()).await.ok()
    })
    .await;
    let on_host = tenant.on_host("default", "web");
    let secret_on_host = tenant.on_host("default", "web-tls");
    let made = eventually("the certificate is on the host", || async {
        host_api.get(&CERTIFICATES, &on_host.namespace, &on_host.name).await
    })
    .await;
    assert_eq!(made.str_at(&["spec", "secretName"]), secret_on_host.name);
    assert_eq!(made["spec"]["dnsNames"], json!(["a.example"]));

    // A controller of the host does its work.
    let secret = json!({"metadata": {"name": (secret_on_host.name.as_str())}, "data": {"tls.crt": "YQ=="}});
    host_api.create(&SECRETS, &secret_on_host.namespace, secret).await;
    let status = json!({"status": {"ready": true, "message": (format!("made {}", secret_on_host.name))}});
    host_api
        .0
        .patch(&CERTIFICATES, "status", &on_host.namespace, &on_host.name, informer::PatchType::Merge, &status)
        .await
        .expect("a status");
    eventually("the tenant has the Secret and the status", || async {
        let secret = tenant.api.get(&SECRETS, "default", "web-tls").await?;
        let shown = tenant.api.get(&CERTIFICATES, "default", "web").await?;
        (secret.str_at(&["data", "tls.crt"]) == "YQ==" && shown.str_at(&["status", "message"]) == "made web-tls")
            .then_some(())
    })
    .await;
    // It is renewed there, and a tenant that deletes it gets it again.
    let renewed = json!({"data": {"tls.crt": "Yg=="}});
    host_api.patch(&SECRETS, &secret_on_host.namespace, &secret_on_host.name, renewed).await;
    let has = |want: &'static str| {
        let api = &tenant.api;
        move || async move {
            let secret = api.get(&SECRETS, "default", "web-tls").await?;
            (secret.str_at(&["data", "tls.crt"]) == want).then_some(())
        }
    };
    eventually("the renewed Secret is shown", has("Yg==")).await;
    tenant.api.delete(&SECRETS, "default", "web-tls").await;
    eventually("it comes back", has("Yg==")).await;
    tenant.api.delete(&CERTIFICATES, "default", "web").await;
    eventually("the certificate is gone from the host", || async {
        host_api.get(&CERTIFICATES, &on_host.namespace, &on_host.name).await.is_none().then_some(())
    })
    .await;
    let left = host_api.get(&SECRETS, &secret_on_host.namespace, &secret_on_host.name).await;
    assert!(left.is_some(), "what the syncer did not make it does not delete");
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_of_the_host_are_shown() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    const ISSUERS: Resource = Resource::new("certs.example.com", "v1", "issuers");
    let made = definition("certs.example.com", "v1", "issuers", "Issuer", "Cluster");
    host_api.create(&DEFINITIONS, "", made).await;
    let made = definition("certs.example.com", "v1", "certificates", "Certificate", "Namespaced");
    host_api.create(&DEFINITIONS, "", made).await;
    let mut config = tenant.config();
    let kind = |text: &str| CustomKind::parse(text).expect("a kind");
    config.settings.import_custom_resources = vec![
        CustomImport { kind: kind("issuers.certs.example.com/v1"), mappings: Vec::new() },
        CustomImport {
            kind: kind("certificates.certs.example.com"),
            mappings: vec![ImportMapping { from: "default/*".into(), to: "shared/*".into() }],
        },
    ];
    let script = syncer::script::Script::parse("'shown ' + value").expect("an expression");
    let patch = Patch {
        path: Path::parse("spec.note").expect("a path"),
        mode: Mode::Expression { to_host: None, to_virtual: Some(script) },
    };
    config.settings.import_patches.insert("issuers.certs.example.com".into(), vec![patch]);
    let syncer = tenant.sync_with(host.client(), config).await;
    let issuer = json!({"apiVersion": "certs.example.com/v1", "kind": "Issuer", "metadata": {"name": "ca"},
        "spec": {"note": "it"}});
    eventually("the host takes it", || async { host_api.try_create(&ISSUERS, "", issuer.clone()).await.ok() }).await;
    let certificate = json!({"apiVersion": "certs.example.com/v1", "kind": "Certificate",
        "metadata": {"name": "c"}, "spec": {"a": 1}});
    eventually("the host takes it", || async {
        host_api.try_create(&CERTIFICATES, "default", certificate.clone()).await.ok()
    })
    .await;
    eventually("both are shown", || async {
        let issuer = tenant.api.0.get(&ISSUERS, "", "ca").await.ok()?;
        tenant.api.0.get(&CERTIFICATES, "shared", "c").await.ok()?;
        (issuer.str_at(&["spec", "note"]) == "shown it").then_some(())
    })
    .await;
    tenant.api.delete(&ISSUERS, "", "ca").await;
    eventually("a copy that the tenant deletes comes back", || async { tenant.api.get(&ISSUERS, "", "ca").await })
        .await;
    host_api.delete(&ISSUERS, "", "ca").await;
    eventually("it goes with the host's", || async {
        tenant.api.get(&ISSUERS, "", "ca").await.is_none().then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_attach_where_they_may() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let group = "gateway.networking.k8s.io";
    for (version, plural, kind, scope) in [
        ("v1", "gatewayclasses", "GatewayClass", "Cluster"),
        ("v1", "gateways", "Gateway", "Namespaced"),
        ("v1", "httproutes", "HTTPRoute", "Namespaced"),
        ("v1beta1", "referencegrants", "ReferenceGrant", "Namespaced"),
    ] {
        host_api.create(&DEFINITIONS, "", definition(group, version, plural, kind, scope)).await;
    }
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": (format!("{group}/v1")), "kind": kind,
        "metadata": {"name": name}, "spec": spec})
    };
    let class = object("GatewayClass", "public", json!({"controllerName": "example.com/c"}));
    eventually("the host takes it", || async { host_api.try_create(&GATEWAY_CLASSES, "", class.clone()).await.ok() })
        .await;
    let listener = json!({"name": "http", "port": 80, "protocol": "HTTP"});
    let shared = object(
        "Gateway",
        "edge",
        json!({"gatewayClassName": "public", "listeners": [(listener.clone())],
        "infrastructure": {"labels": {"a": "b"}}}),
    );
    eventually("the host takes it", || async { host_api.try_create(&GATEWAYS, "default", shared.clone()).await.ok() })
        .await;

    let mut config = tenant.config();
    config.settings.gateway_api.gateways = true;
    config.settings.gateway_api.http_routes = true;
    config.settings.import_gateway_classes = Import::On(json!({}));
    config.settings.import_gateways = Some(GatewayImport {
        mappings: vec![
            ImportMapping { from: "default/edge".into(), to: "infra/edge".into() },
            ImportMapping { from: "default/later".into(), to: "infra/later".into() },
        ],
        policy: RoutePolicy::All,
        hide_infrastructure: true,
        hide_certificates: true,
        ..GatewayImport::default()
    });
    let syncer = tenant.sync_with(host.client(), config).await;
    let edge =
        eventually("the host's Gateway is shown", || async { tenant.api.0.get(&GATEWAYS, "infra", "edge").await.ok() })
            .await;
    assert_eq!(edge.str_at(&["metadata", "labels", "vcluster.loft.sh/imported-gateway"]), "true");
    assert!(edge["spec"].get("infrastructure").is_none());

    eventually("the class is shown", || async { tenant.api.0.get(&GATEWAY_CLASSES, "", "public").await.ok() }).await;
    let own = object("Gateway", "own", json!({"gatewayClassName": "public", "listeners": [listener]}));
    tenant.api.create(&GATEWAYS, "default", own).await;
    let gateway_on_host = tenant.on_host("default", "own");
    eventually("the tenant's Gateway is on the host", || async {
        host_api.get(&GATEWAYS, &gateway_on_host.namespace, &gateway_on_host.name).await
    })
    .await;

    let route = |parent: Value, backend: Value| {
        object("HTTPRoute", "web", json!({"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]}))
    };
    let first = route(json!({"name": "own"}), json!({"name": "web", "port": 80}));
    eventually("routes are served", || async { tenant.api.try_create(&ROUTES, "default", first.clone()).await.ok() })
        .await;
    let on_host = tenant.on_host("default", "web");
    let get = || async { host_api.get(&ROUTES, &on_host.namespace, &on_host.name).await };
    let made = eventually("the route is on the host", get).await;
    assert_eq!(made["spec"]["parentRefs"], json!([{"name": (gateway_on_host.name.as_str())}]));
    assert_eq!(made["spec"]["rules"][0]["backendRefs"], json!([{"name": (on_host.name.as_str()), "port": 80}]));
    let status = json!({"status": {"parents": [{"parentRef": {"name": (gateway_on_host.name.as_str())},
        "controllerName": "example.com/c", "conditions": []}]}});
    host_api
        .0
        .patch(&ROUTES, "status", &on_host.namespace, &on_host.name, informer::PatchType::Merge, &status)
        .await
        .expect("a status");
    eventually("the status names the tenant's Gateway", || async {
        let shown = tenant.api.get(&ROUTES, "default", "web").await?;
        (shown["status"]["parents"][0]["parentRef"] == json!({"name": "own"})).then_some(())
    })
    .await;

    // Names under which the host's are shown are not the tenant's, before they are there as well.
    let later = object("Gateway", "later", json!({"gatewayClassName": "public", "listeners": []}));
    tenant.api.create(&GATEWAYS, "infra", later).await;
    eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "infra").await;
        events.into_iter().find(|e| e.str_at(&["message"]).contains("is reserved"))
    })
    .await;
    let at = tenant.on_host("infra", "later");
    assert!(host_api.get(&GATEWAYS, &at.namespace, &at.name).await.is_none());
    assert!(tenant.api.try_create(&GATEWAYS, "infra", object("Gateway", "edge", json!({}))).await.is_err());

    // To the host's Gateway.
    let second = route(json!({"name": "edge", "namespace": "infra"}), json!({"name": "web", "port": 80}));
    tenant.api.patch(&ROUTES, "default", "web", json!({"spec": (second["spec"].clone())})).await;
    eventually("the route is attached to the host's Gateway", || async {
        (get().await?["spec"]["parentRefs"] == json!([{"name": "edge", "namespace": "default"}])).then_some(())
    })
    .await;
    // A backend elsewhere needs a grant, and loses its route with it.
    let elsewhere = json!({"rules": [{"backendRefs": [{"name": "db", "namespace": "data", "port": 80}]}]});
    tenant.api.patch(&ROUTES, "default", "web", json!({ "spec": elsewhere })).await;
    eventually("a route that is not permitted goes", || async { get().await.is_none().then_some(()) }).await;
    eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "default").await;
        events.into_iter().find(|e| e.str_at(&["reason"]) == "RefNotPermitted")
    })
    .await;
    tenant.api.create(&NAMESPACES, "", json!({"metadata": {"name": "data"}})).await;
    let grant = json!({"apiVersion": (format!("{group}/v1beta1")), "kind": "ReferenceGrant", "metadata": {"name": "g"},
        "spec": {"from": [{"group": group, "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": "", "kind": "Service"}]}});
    tenant.api.create(&GRANTS, "data", grant).await;
    let made = eventually("the route is there with the grant", get).await;
    let backend = tenant.on_host("data", "db").name;
    assert_eq!(made["spec"]["rules"][0]["backendRefs"][0].str_at(&["name"]), backend);
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_volumes_go_both_ways() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.persistent_volumes = true;
    let names = config.names.clone();
    let syncer = tenant.sync_with(host.client(), config).await;
    let volume = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "manual",
            "csi": {"driver": "d.example", "volumeHandle": name,
                "nodeStageSecretRef": {"name": "s", "namespace": "default"}}}})
    };
    tenant.api.create(&VOLUMES, "", volume("data")).await;
    let on_host = names.host_name_cluster("data");
    let made = eventually("the volume is on the host", || async { host_api.get(&VOLUMES, "", &on_host).await }).await;
    assert_eq!(made.str_at(&["spec", "storageClassName"]), names.host_name_cluster("manual"));
    let secret = &made["spec"]["csi"]["nodeStageSecretRef"];
    assert_eq!(secret.str_at(&["namespace"]), tenant.host_namespace);
    assert_eq!(secret.str_at(&["name"]), tenant.on_host("default", "s").name);

    // A claim that the host binds to a volume of its own.
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}}}});
    tenant.api.create(&CLAIMS, "default", claim).await;
    let claim_on_host = tenant.on_host("default", "c");
    let host_claim = eventually("the claim is on the host", || async {
        host_api.get(&CLAIMS, &claim_on_host.namespace, &claim_on_host.name).await
    })
    .await;
    let mut provisioned = volume("pv-host");
    provisioned["spec"]["storageClassName"] = "".into();
    provisioned["spec"]["claimRef"] = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": (claim_on_host.namespace.as_str()), "name": (claim_on_host.name.as_str()),
        "uid": (syncer::metadata::uid_of(&host_claim))});
    host_api.create(&VOLUMES, "", provisioned).await;
    let shown =
        eventually("the host's volume is shown", || async { tenant.api.get(&VOLUMES, "", "pv-host").await }).await;
    assert_eq!(shown.str_at(&["metadata", "annotations", "vcluster.loft.sh/host-pv"]), "pv-host");
    assert_eq!(shown.str_at(&["spec", "claimRef", "name"]), "c");
    assert!(!shown.to_string().contains("nodeStageSecretRef"), "{shown}");
    eventually("the claim is bound", || async {
        let claim = tenant.api.get(&CLAIMS, "default", "c").await?;
        (claim.str_at(&["spec", "volumeName"]) == "pv-host").then_some(())
    })
    .await;
    tenant.api.delete(&VOLUMES, "", "data").await;
    eventually("the host's copy is gone", || async {
        host_api.get(&VOLUMES, "", &on_host).await.is_none().then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cordoning_reaches_the_host() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.nodes =
        Nodes::Real { all: true, labels: Default::default(), clear_image_status: true, sync_back_changes: true };
    let syncer = tenant.sync_with(host.client(), config).await;
    let node = first_node(&host_api).await;
    eventually("the node is shown", || async { tenant.api.get(&NODES, "", &node).await }).await;
    let patch = json!({"metadata": {"labels": {"team": "a", "kubernetes.io/hostname": "forged"}},
        "spec": {"unschedulable": true, "taints": [{"key": "own", "value": "x", "effect": "NoSchedule"}]}});
    // More than once: the tenant may change its mind while the syncer is writing to either side.
    for _ in 0..10 {
        tenant.api.patch(&NODES, "", &node, patch.clone()).await;
        let changed = eventually("the host's node is cordoned", || async {
            let host_node = host_api.get(&NODES, "", &node).await?;
            host_node.at(&["spec", "unschedulable"]).is_some_and(|v| *v == true).then_some(host_node)
        })
        .await;
        assert_eq!(changed.str_at(&["metadata", "labels", "team"]), "a");
        assert_ne!(changed.str_at(&["metadata", "labels", "kubernetes.io/hostname"]), "forged");
        assert!(changed.array_at(&["spec", "taints"]).iter().any(|t| t.str_at(&["key"]) == "own"), "{changed}");
        tenant.api.patch(&NODES, "", &node, json!({"spec": {"unschedulable": null, "taints": null}})).await;
        eventually("and back", || async {
            let host_node = host_api.get(&NODES, "", &node).await?;
            let own = host_node.array_at(&["spec", "taints"]).iter().any(|t| t.str_at(&["key"]) == "own");
            (!own && host_node.at(&["spec", "unschedulable"]).is_none_or(|v| *v != true)).then_some(())
        })
        .await;
    }
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_violate_the_standard_stay_pending() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let mut config = tenant.config();
    config.settings.pod_security = Some(apimachinery::pod_security::Level::Baseline);
    let syncer = tenant.sync_with(host.client(), config).await;
    let privileged = pod("bad", json!([{"name": "app", "image": "i", "securityContext": {"privileged": true}}]));
    // This API server has no admission of its own: the syncer is the one that looks.
    tenant.api.create(&PODS, "default", privileged).await;
    tenant.api.create(&PODS, "default", simple_pod("good")).await;
    eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "default").await;
        events.into_iter().find(|e| e.str_at(&["message"]).contains("violates PodSecurity \"baseline:latest\""))
    })
    .await;
    let good = tenant.on_host("default", "good");
    eventually("the other pod is on the host", || async { host_api.get(&PODS, &good.namespace, &good.name).await })
        .await;
    let bad = tenant.on_host("default", "bad");
    assert!(host_api.get(&PODS, &bad.namespace, &bad.name).await.is_none());
    eventually("namespaces carry the standard", || async {
        let namespace = tenant.api.get(&NAMESPACES, "", "default").await?;
        let level = namespace.str_at(&["metadata", "labels", "pod-security.kubernetes.io/enforce"]).to_owned();
        (level == "baseline").then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[derive(Default)]
struct Kept(Mutex<std::collections::BTreeMap<String, Vec<u8>>>);

#[async_trait::async_trait]
impl MappingStore for Kept {
    async fn load(&self, _: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        Ok(self.0.lock().iter().map(|(k, v)| (k.clone(), v.clone())).collect())
    }
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), String> {
        self.0.lock().insert(key.to_owned(), value);
        Ok(())
    }
    async fn delete(&self, key: &str) -> Result<(), String> {
        self.0.lock().remove(key);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_survive_a_restart() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let kept = Arc::new(Kept::default());
    let config = || {
        let mut config = tenant.config();
        config.mappings = Some(kept.clone());
        config
    };
    let syncer = tenant.sync_with(host.client(), config()).await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    let key = "/vcluster/mappings/v1/pod/default/web";
    eventually("the pair is kept", || async { kept.0.lock().contains_key(key).then_some(()) }).await;
    syncer.shutdown().await;
    let syncer = tenant.sync_with(host.client(), config()).await;
    eventually("the pair is known again", || async {
        syncer.mappings().iter().any(|p| p.virtual_.name == "web" && p.kind == "Pod").then_some(())
    })
    .await;
    tenant.api.delete(&PODS, "default", "web").await;
    eventually("the pair goes with its objects", || async { (!kept.0.lock().contains_key(key)).then_some(()) }).await;
    syncer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_ingress_keeps_its_host_name() {
    const INGRESSES: Resource = Resource::new("networking.k8s.io", "v1", "ingresses");
    let host = host().await;
    let host_api = Api::new(host.client());
    let (a, b) = (Virtual::start("team-a", &host_api).await, Virtual::start("team-b", &host_api).await);
    let with = |tenant: &Virtual| {
        let mut config = tenant.config();
        config.settings.ingresses = true;
        config
    };
    let first = a.sync_with(host.client(), with(&a)).await;
    let second = b.sync_with(host.client(), with(&b)).await;
    let ingress = json!({"metadata": {"name": "web"}, "spec": {"rules": [{"host": "shop.example", "http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}});
    a.api.create(&INGRESSES, "default", ingress.clone()).await;
    let of_a = a.on_host("default", "web");
    let made = eventually("the first one is on the host", || async {
        host_api.get(&INGRESSES, &of_a.namespace, &of_a.name).await
    })
    .await;
    let service = &made["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
    assert_eq!(service.str_at(&["name"]), a.on_host("default", "web").name);
    // The second tenant's syncer knows of the first one's Ingress some time; it writes after that.
    eventually("the second one is refused", || async {
        let _ = b.api.try_delete(&INGRESSES, "default", "web").await;
        let of_b = b.on_host("default", "web");
        let gone = host_api.get(&INGRESSES, &of_b.namespace, &of_b.name).await.is_none();
        if gone {
            let _ = b.api.try_create(&INGRESSES, "default", ingress.clone()).await;
        }
        let events = b.api.list(&EVENTS, "default").await;
        events.into_iter().find(|e| e.str_at(&["message"]).contains("has the host name \"shop.example\""))
    })
    .await;
    a.api.delete(&INGRESSES, "default", "web").await;
    let of_b = b.on_host("default", "web");
    let _ = b.api.try_create(&INGRESSES, "default", ingress).await;
    eventually("it is the second one's turn", || async { host_api.get(&INGRESSES, &of_b.namespace, &of_b.name).await })
        .await;
    first.shutdown().await;
    second.shutdown().await;
}
