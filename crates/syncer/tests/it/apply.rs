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
