//! Writes to the host are server-side apply: other controllers' fields stay theirs, and nothing is overwritten unseen.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{PatchType, Resource, Rest};
use syncer::names::NamespacedName;

use crate::cluster::*;
use crate::scripted::{Gate, Script, What};

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A config map that is synced though nothing uses it.
async fn settings(tenant: &Virtual, host: &Api) -> NamespacedName {
    let map = json!({
        "metadata": {"name": "settings", "annotations": {"vcluster.loft.sh/force-sync": "true"}},
        "data": {"a": "1", "b": "1"},
    });
    tenant.api.create(&CONFIG_MAPS, "default", map).await;
    let at = tenant.on_host("default", "settings");
    eventually("it is on the host", || async { host.get(&CONFIG_MAPS, &at.namespace, &at.name).await }).await;
    at
}

/// Managers of the whole object, with their operations.
fn managers(object: &Value) -> Vec<(String, String)> {
    let entries = object.array_at(&["metadata", "managedFields"]).iter();
    let mut all: Vec<(String, String)> =
        entries.map(|e| (e.str_at(&["manager"]).to_owned(), e.str_at(&["operation"]).to_owned())).collect();
    all.sort();
    all
}

async fn host_has(host: &Api, resource: &Resource, at: &NamespacedName, what: &str, test: impl Fn(&Value) -> bool) {
    eventually(what, || async {
        let object = host.get(resource, &at.namespace, &at.name).await?;
        test(&object).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_are_applied_and_others_keep_their_fields() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let script = Arc::new(Script::default());
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    let at = settings(&tenant, &host_api).await;
    let made = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    assert_eq!(managers(&made), [("alcove".to_owned(), "Update".to_owned())], "it was created with POST");

    // A controller of the host adds something of its own.
    let other = Rest::new(host.client(), "other");
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": (at.name.as_str()), "finalizers": ["example.com/theirs"]}, "data": {"theirs": "1"}});
    other
        .patch(&CONFIG_MAPS, "", &at.namespace, &at.name, PatchType::Apply, &theirs)
        .await
        .expect("another controller writes");
    eventually("the tenant sees it", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "default", "settings").await?;
        (map["data"]["theirs"] == "1").then_some(())
    })
    .await;
    // That both sides agree on it is written on the host object.
    host_has(&host_api, &CONFIG_MAPS, &at, "it is settled", |o| {
        managers(o).contains(&("alcove".into(), "Apply".into()))
    })
    .await;
    let writes = || -> Vec<String> {
        let all = script.writes.read();
        all.iter()
            .filter(|(_, path, kind, _)| path.ends_with(&at.name) && !kind.is_empty())
            .map(|(_, _, kind, _)| kind.clone())
            .collect()
    };
    assert_eq!(writes(), [MERGE, APPLY], "the first change hands over what the creation owned");
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"data": {"a": "2"}})).await;
    host_has(&host_api, &CONFIG_MAPS, &at, "the change is on the host", |o| o["data"]["a"] == "2").await;
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"data": {"b": null}})).await;
    host_has(&host_api, &CONFIG_MAPS, &at, "the removal is on the host", |o| o["data"].get("b").is_none()).await;
    assert_eq!(writes(), [MERGE, APPLY, APPLY, APPLY], "from then on one request for each change");

    let object = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    assert_eq!(object["data"], json!({"a": "2", "theirs": "1"}));
    assert_eq!(object["metadata"]["finalizers"], json!(["example.com/theirs"]));
    let apply = "Apply".to_owned();
    assert_eq!(managers(&object), [("alcove".to_owned(), apply.clone()), ("other".to_owned(), apply)]);
    let fields = |manager: &str| -> String {
        let mut entries = object.array_at(&["metadata", "managedFields"]).iter();
        entries.find(|e| e.str_at(&["manager"]) == manager).expect("an entry")["fieldsV1"].to_string()
    };
    assert!(!fields("alcove").contains("theirs"), "{object}");
    assert!(fields("other").contains("f:theirs"), "{object}");

    // What its owner drops is dropped: nobody of us holds it.
    let less = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": (at.name.as_str())}});
    other.patch(&CONFIG_MAPS, "", &at.namespace, &at.name, PatchType::Apply, &less).await.expect("it writes again");
    eventually("the tenant does not see it any more", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "default", "settings").await?;
        map["data"].get("theirs").is_none().then_some(())
    })
    .await;
    syncer.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn objects_of_earlier_versions_change_hands() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let first = tenant.sync(&host).await;
    let at = settings(&tenant, &host_api).await;
    first.shutdown().await;
    // As versions before wrote it.
    let mut object = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    for entry in object["metadata"]["managedFields"].as_array_mut().expect("entries") {
        entry["manager"] = "alcove-syncer".into();
    }
    let entries = object["metadata"]["managedFields"].clone();
    host_api.patch(&CONFIG_MAPS, &at.namespace, &at.name, json!({"metadata": {"managedFields": entries}})).await;
    let object = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    assert_eq!(managers(&object), [("alcove-syncer".to_owned(), "Update".to_owned())]);

    let second = tenant.sync(&host).await;
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"data": {"b": null}})).await;
    host_has(&host_api, &CONFIG_MAPS, &at, "the removal is on the host", |o| o["data"] == json!({"a": "1"})).await;
    let object = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    assert_eq!(managers(&object), [("alcove".to_owned(), "Apply".to_owned())]);
    second.shutdown().await;
}

/// The syncer writes while it has not seen an edit of the host yet: the edit stays, and comes back to the tenant.
#[tokio::test(start_paused = true)]
async fn an_edit_that_was_not_seen_yet_is_not_overwritten() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let script = Arc::new(Script::default());
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    let at = settings(&tenant, &host_api).await;
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"metadata": {"labels": {"n": "1"}}})).await;
    host_has(&host_api, &CONFIG_MAPS, &at, "it was applied once", |o| {
        o["metadata"]["labels"]["n"] == "1" && managers(o).iter().any(|(_, operation)| operation == "Apply")
    })
    .await;
    let gate = Gate::new();
    script.add("WATCH", "/namespaces/vcluster-vc/configmaps", 1, What::HoldBefore(gate.clone()));
    script.break_watches();
    gate.reached().await;
    host_api.patch(&CONFIG_MAPS, &at.namespace, &at.name, json!({"data": {"a": "host"}})).await;
    let before = script.writes.read().len();
    tenant.api.patch(&CONFIG_MAPS, "default", "settings", json!({"metadata": {"labels": {"n": "2"}}})).await;
    eventually("the syncer tries", || async { (script.writes.read().len() > before).then_some(()) }).await;
    gate.open();
    host_has(&host_api, &CONFIG_MAPS, &at, "the label is on the host", |o| o["metadata"]["labels"]["n"] == "2").await;
    host_has(&host_api, &CONFIG_MAPS, &at, "the host's edit is still there", |o| o["data"]["a"] == "host").await;
    eventually("the tenant sees the edit", || async {
        let map = tenant.api.get(&CONFIG_MAPS, "default", "settings").await?;
        (map["data"]["a"] == "host").then_some(())
    })
    .await;
    syncer.shutdown().await;
}

/// The same requests to a kube-apiserver: `ALCOVE_TEST_HOST=http://127.0.0.1:8001` with `kubectl proxy` beside it.
#[tokio::test]
#[ignore = "needs a Kubernetes API server without nodes"]
async fn a_real_api_server_takes_what_is_applied() {
    let url = std::env::var("ALCOVE_TEST_HOST").expect("ALCOVE_TEST_HOST has the address");
    let client = kube::Client::try_from(kube::Config::new(url.parse().expect("an address"))).expect("a client");
    let host_api = Api::new(client.clone());
    // Both sides have one range of addresses.
    let ranges = Resource::new("networking.k8s.io", "v1", "servicecidrs");
    let range = host_api.get(&ranges, "", "kubernetes").await.expect("the host's range");
    let range = range.array_at(&["spec", "cidrs"])[0].as_str().unwrap_or_default().to_owned();
    let config = apiserver::Config { service_cluster_ip_range: range, ..apiserver::Config::default() };
    // A name of its own for each run: nobody finishes namespaces there.
    let name: &'static str = Box::leak(format!("real-{}", std::process::id()).into_boxed_str());
    let tenant = Virtual::start_with(name, &host_api, config).await;
    let script = Arc::new(Script::default());
    let syncer = tenant.sync_with(script.wrap(client.clone()), tenant.config()).await;
    let at = settings(&tenant, &host_api).await;
    for (n, patch) in [json!({"data": {"a": "2"}}), json!({"data": {"b": null, "c": "1"}})].into_iter().enumerate() {
        let label = json!({"metadata": {"labels": {"n": (n.to_string())}}});
        tenant.api.patch(&CONFIG_MAPS, "default", "settings", patch).await;
        tenant.api.patch(&CONFIG_MAPS, "default", "settings", label).await;
        host_has(&host_api, &CONFIG_MAPS, &at, "the change is on the host", |o| {
            o["metadata"]["labels"]["n"] == n.to_string().as_str()
        })
        .await;
    }
    host_has(&host_api, &CONFIG_MAPS, &at, "the data too", |o| o["data"] == json!({"a": "2", "c": "1"})).await;
    let object = host_api.get(&CONFIG_MAPS, &at.namespace, &at.name).await.expect("it is there");
    assert_eq!(managers(&object), [("alcove".to_owned(), "Apply".to_owned())]);

    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [
        {"name": "a", "port": 80}, {"name": "b", "port": 81, "protocol": "UDP"}]}});
    tenant.api.create(&SERVICES, "default", service).await;
    let web = tenant.on_host("default", "web");
    host_has(&host_api, &SERVICES, &web, "the Service is on the host", |_| true).await;
    for (change, kind, ports) in [
        (json!({"type": "NodePort"}), "NodePort", 2),
        (json!({"type": "LoadBalancer", "ports": [{"name": "a", "port": 80}]}), "LoadBalancer", 1),
        (json!({"selector": {"app": "other"}, "sessionAffinity": "ClientIP"}), "LoadBalancer", 1),
        (json!({"type": "ClusterIP", "ports": [{"name": "a", "port": 80}, {"name": "c", "port": 82}]}), "ClusterIP", 2),
        (json!({"type": "ExternalName", "externalName": "x.example"}), "ExternalName", 2),
    ] {
        tenant.api.patch(&SERVICES, "default", "web", json!({ "spec": change })).await;
        host_has(&host_api, &SERVICES, &web, &format!("{kind} is on the host"), |o| {
            o.str_at(&["spec", "type"]) == kind && o.array_at(&["spec", "ports"]).len() == ports
        })
        .await;
    }
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    host_has(&host_api, &PODS, &web, "the pod is on the host", |_| true).await;
    let change = json!({"metadata": {"labels": {"app": null, "new": "1"}},
        "spec": {"containers": [{"name": "app", "image": "nginx:2"}]}});
    let strategic = PatchType::Strategic;
    tenant.api.0.patch(&PODS, "", "default", "web", strategic, &change).await.expect("the tenant changes it");
    host_has(&host_api, &PODS, &web, "the pod's change is on the host", |o| {
        o.array_at(&["spec", "containers"])[0]["image"] == "nginx:2" && o["metadata"]["labels"].get("app").is_none()
    })
    .await;
    let merges = script.writes.read().iter().filter(|(_, _, kind, _)| kind == MERGE).count();
    let applies = script.writes.read().iter().filter(|(_, _, kind, _)| kind == APPLY).count();
    println!("{applies} applies, {merges} merge patches");
    syncer.shutdown().await;
    host_api.delete(&NAMESPACES, "", &tenant.host_namespace).await;
}
