//! Host names are decided once: through restarts, collisions, other rules and garbage collection.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::{Value, json};
use parking_lot::Mutex;
use syncer::names::NamespacedName;
use syncer::{MappingStore, SyncerConfig};

use crate::cluster::*;
use crate::faults::Faults;

/// A store that fails as often as the faults say.
#[derive(Default)]
pub struct Kept(pub Mutex<BTreeMap<String, Vec<u8>>>, pub Option<Arc<Faults>>);

#[async_trait::async_trait]
impl MappingStore for Kept {
    async fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.strike()?;
        let all = self.0.lock();
        Ok(all.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), String> {
        self.strike()?;
        self.0.lock().insert(key.to_owned(), value);
        Ok(())
    }
    async fn delete(&self, key: &str) -> Result<(), String> {
        self.strike()?;
        self.0.lock().remove(key);
        Ok(())
    }
}

impl Kept {
    fn strike(&self) -> Result<(), String> {
        match &self.1 {
            Some(faults) if faults.strikes() => Err("injected".into()),
            _ => Ok(()),
        }
    }

    /// The host name that is kept under a key.
    fn host_name(&self, key: &str) -> Option<String> {
        let value = Value::from_slice(self.0.lock().get(key)?).expect("JSON");
        Some(value.str_at(&["HostName", "Name"]).to_owned())
    }

    fn config(self: &Arc<Kept>, tenant: &Virtual) -> SyncerConfig {
        SyncerConfig { mappings: Some(self.clone()), ..tenant.config() }
    }
}

fn map(name: &str, value: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"vcluster.loft.sh/force-sync": "true"}}, "data": {"is": value},
    })
}

/// Host config maps by what is in them.
async fn on_host(host: &Api, tenant: &Virtual) -> BTreeMap<String, String> {
    let maps = host.list(&CONFIG_MAPS, &tenant.host_namespace).await;
    let ours = maps.iter().filter(|m| m["metadata"]["labels"]["vcluster.loft.sh/managed-by"] == tenant.name);
    ours.map(|m| (m.str_at(&["data", "is"]).to_owned(), m.str_at(&["metadata", "name"]).to_owned())).collect()
}

async fn until(
    what: &str,
    host: &Api,
    tenant: &Virtual,
    test: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, String> {
    eventually(what, || async {
        let all = on_host(host, tenant).await;
        test(&all).then_some(all)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn two_objects_whose_names_collide_have_two_host_objects() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let kept = Arc::new(Kept::default());
    let first = tenant.sync_with(host.client(), kept.config(&tenant)).await;
    for namespace in ["c", "b-x-c"] {
        let object = json!({"metadata": {"name": namespace}});
        tenant.api.create(&NAMESPACES, "", object).await;
    }
    let usual = "a-x-b-x-c-x-vc";
    tenant.api.create(&CONFIG_MAPS, "c", map("a-x-b", "first")).await;
    until("the first is on the host", &host_api, &tenant, |all| all.contains_key("first")).await;
    tenant.api.create(&CONFIG_MAPS, "b-x-c", map("a", "second")).await;
    let names = until("both are on the host", &host_api, &tenant, |all| all.len() == 2).await;
    assert_eq!(names["first"], usual);
    assert_ne!(names["second"], usual);
    assert_eq!(first.name_clashes(), 0);
    let second_key = "/vcluster/mappings/v1/configmap/b-x-c/a";
    eventually("the names are kept", || async {
        (kept.host_name(second_key).as_ref() == Some(&names["second"])).then_some(())
    })
    .await;

    // Who refers to it gets the right one.
    let node = first_node(&host_api).await;
    let container = json!([{"name": "app", "image": "nginx", "envFrom": [{"configMapRef": {"name": "a"}}]}]);
    tenant.api.create(&PODS, "b-x-c", placed(pod("web", container), &node)).await;
    let at = tenant.on_host("b-x-c", "web");
    let host_pod =
        eventually("the pod is on the host", || async { host_api.get(&PODS, &at.namespace, &at.name).await }).await;
    let refers =
        host_pod.array_at(&["spec", "containers"])[0]["envFrom"][0].str_at(&["configMapRef", "name"]).to_owned();
    assert_eq!(refers, names["second"]);

    // A restart with nothing kept and without the second's host object: what is on the host has its name.
    first.shutdown().await;
    for _ in 0..3 {
        kept.0.lock().clear();
        host_api.delete(&CONFIG_MAPS, &tenant.host_namespace, &names["second"]).await;
        let between = tenant.sync_with(host.client(), kept.config(&tenant)).await;
        let after = until("both are on the host", &host_api, &tenant, |all| all.len() == 2).await;
        assert_eq!(after, names);
        eventually("all is settled", || async { between.has_synced().then_some(()) }).await;
        assert_eq!(between.name_clashes(), 0);
        between.shutdown().await;
    }

    // In another order, without the first one.
    tenant.api.delete(&CONFIG_MAPS, "c", "a-x-b").await;
    kept.0.lock().clear();
    let second = tenant.sync_with(host.client(), kept.config(&tenant)).await;
    let after = until("the first is gone", &host_api, &tenant, |all| !all.contains_key("first")).await;
    assert_eq!(after.get("second"), Some(&names["second"]), "it keeps its name");
    tenant.api.patch(&CONFIG_MAPS, "b-x-c", "a", json!({"data": {"is": "changed"}})).await;
    let after = until("changes arrive", &host_api, &tenant, |all| all.contains_key("changed")).await;
    assert_eq!(after.len(), 1);
    assert_eq!(after["changed"], names["second"]);
    second.shutdown().await;
}

/// Versions before gave other names: objects keep them as long as they live, whether the store tells or the host.
#[tokio::test(start_paused = true)]
async fn objects_keep_the_names_that_other_rules_gave_them() {
    let host = host().await;
    let host_api = Api::new(host.client());
    for (name, in_store) in [("told", true), ("found", false)] {
        let tenant = Virtual::start(name, &host_api).await;
        let kept = Arc::new(Kept::default());
        let first = tenant.sync_with(host.client(), kept.config(&tenant)).await;
        tenant.api.create(&CONFIG_MAPS, "default", map("web", "1")).await;
        let names = until("it is on the host", &host_api, &tenant, |all| all.contains_key("1")).await;
        let rule = names["1"].clone();
        first.shutdown().await;
        // The same object as another version would have made it.
        let mut old = host_api.get(&CONFIG_MAPS, &tenant.host_namespace, &rule).await.expect("it is there");
        for member in ["uid", "resourceVersion", "managedFields", "creationTimestamp"] {
            old.remove_at(&["metadata", member]);
        }
        old["metadata"]["name"] = "old-web".into();
        old.set_at(&["metadata", "annotations", "vcluster.loft.sh/object-host-name"], "old-web".into());
        host_api.create(&CONFIG_MAPS, &tenant.host_namespace, old).await;
        host_api.delete(&CONFIG_MAPS, &tenant.host_namespace, &rule).await;
        let key = "/vcluster/mappings/v1/configmap/default/web";
        let value = json!({"Group": "", "Version": "v1", "Kind": "ConfigMap", "sender": "older",
            "VirtualName": {"Namespace": "default", "Name": "web"},
            "HostName": {"Namespace": (tenant.host_namespace.as_str()), "Name": "old-web"}});
        kept.0.lock().clear();
        if in_store {
            kept.0.lock().insert(key.to_owned(), value.to_string().into_bytes());
        }

        let second = tenant.sync_with(host.client(), kept.config(&tenant)).await;
        tenant.api.patch(&CONFIG_MAPS, "default", "web", json!({"data": {"is": "2"}})).await;
        let names = until("the change is on the host", &host_api, &tenant, |all| all.contains_key("2")).await;
        assert_eq!(names, BTreeMap::from([("2".to_owned(), "old-web".to_owned())]), "{name}");
        eventually("it is kept", || async { (kept.host_name(key)? == "old-web").then_some(()) }).await;
        let pairs = second.mappings();
        let old = NamespacedName::new(tenant.host_namespace.as_str(), "old-web");
        assert!(pairs.iter().any(|p| p.kind == "ConfigMap" && p.host == old), "{pairs:?}");
        tenant.api.delete(&CONFIG_MAPS, "default", "web").await;
        until("it is gone", &host_api, &tenant, BTreeMap::is_empty).await;
        eventually("nothing is kept", || async { kept.host_name(key).is_none().then_some(()) }).await;
        // A new one follows the rules.
        tenant.api.create(&CONFIG_MAPS, "default", map("web", "3")).await;
        let names = until("the new one is on the host", &host_api, &tenant, |all| all.contains_key("3")).await;
        assert_eq!(names["3"], rule);
        second.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pairs_whose_objects_are_gone_are_collected() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let kept = Arc::new(Kept::default());
    let value = |kind: &str, name: &str| {
        json!({"Group": "", "Version": "v1", "Kind": kind, "sender": "vc",
            "VirtualName": {"Namespace": "default", "Name": name}, "HostName": {"Namespace": "vcluster-vc", "Name": name}})
        .to_string()
        .into_bytes()
    };
    let put = |kind: &str| {
        let key = format!("/vcluster/mappings/v1/{}/default/gone", kind.to_lowercase());
        kept.0.lock().insert(key, value(kind, "gone"));
    };
    ["Pod", "ConfigMap", "Unknown"].into_iter().for_each(put);
    let syncer = tenant.sync_with(host.client(), kept.config(&tenant)).await;
    tenant.api.create(&CONFIG_MAPS, "default", map("stays", "1")).await;
    eventually("what exists is kept", || async {
        kept.host_name("/vcluster/mappings/v1/configmap/default/stays").map(drop)
    })
    .await;
    eventually("those of known kinds are gone", || async { (kept.0.lock().len() == 2).then_some(()) }).await;
    // Written by a replica that has just stopped.
    put("Secret");
    assert_eq!(kept.0.lock().len(), 3);
    // The time of the clusters: it is looked for every three minutes.
    tokio::time::sleep(std::time::Duration::from_secs(181)).await;
    eventually("the others are not", || async { (kept.0.lock().len() == 1).then_some(()) }).await;
    assert!(kept.host_name("/vcluster/mappings/v1/configmap/default/stays").is_some());
    syncer.shutdown().await;
}
