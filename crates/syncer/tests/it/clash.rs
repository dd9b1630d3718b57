//! Host objects that are somebody else's.

use std::sync::Arc;

use apimachinery::json;

use crate::cluster::*;
use crate::scripted::{Script, What};

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_object_of_the_same_name_is_never_touched() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let on_host = tenant.on_host("default", "web");
    let foreign = json!({
        "metadata": {"name": (on_host.name.as_str())}, "spec": {"containers": [{"name": "mine", "image": "other"}]},
    });
    host_api.create(&PODS, &on_host.namespace, foreign).await;
    let syncer = tenant.sync(&host).await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    let event = eventually("the tenant is told", || async {
        let events = tenant.api.list(&EVENTS, "default").await;
        events.into_iter().find(|e| e.str_at(&["reason"]) == "SyncError")
    })
    .await;
    assert!(!event.str_at(&["message"]).contains("vcluster-vc"), "{event}");
    assert_eq!(syncer.name_clashes(), 1);
    tenant.api.delete(&PODS, "default", "web").await;
    eventually("the virtual pod is gone", || async {
        tenant.api.get(&PODS, "default", "web").await.is_none().then_some(())
    })
    .await;
    let still = host_api.get(&PODS, &on_host.namespace, &on_host.name).await.expect("the foreign pod is there");
    assert_eq!(still.array_at(&["spec", "containers"])[0].str_at(&["name"]), "mine");
    assert!(still.at(&["metadata", "deletionTimestamp"]).is_none());
    syncer.shutdown().await;
}

/// What the host says when it refuses something is told in the tenant's words, and tried again until it takes it.
#[tokio::test(start_paused = true)]
async fn refusals_of_the_host_are_told_without_its_names() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    for namespace in ["c", "b-x-c"] {
        tenant.api.create(&NAMESPACES, "", json!({"metadata": {"name": namespace}})).await;
    }
    let script = Arc::new(Script::default());
    let syncer = tenant.sync_with(script.wrap(host.client()), tenant.config()).await;
    // Two names for which the rules have one host name.
    tenant.api.create(&PODS, "c", simple_pod("a-x-b")).await;
    let usual = tenant.on_host("c", "a-x-b");
    eventually("the first is on the host", || async { host_api.get(&PODS, &usual.namespace, &usual.name).await }).await;
    for (namespace, name, message) in [
        (
            "default",
            "web",
            "pods \"web-x-default-x-vc\" is forbidden: exceeded quota: q, pod vcluster-vc/web-x-default-x-vc; see \
             web-x-default-x-vc_vcluster-vc(1) in namespace \"vcluster-vc\"",
        ),
        ("b-x-c", "a", "pods \"a-x-b-x-c-x-vc\" is forbidden in vcluster-vc"),
    ] {
        script.add("POST", "/pods", 3, What::Forbid(message));
        tenant.api.create(&PODS, namespace, simple_pod(name)).await;
        let event = eventually("the tenant is told", || async {
            let events = tenant.api.list(&EVENTS, namespace).await;
            events.into_iter().find(|e| e.str_at(&["reason"]) == "SyncError" && e["involvedObject"]["name"] == name)
        })
        .await;
        let text = event.str_at(&["message"]);
        assert!(text.starts_with("Error syncing: ") && text.contains("is forbidden"), "{text}");
        for secret in ["vcluster-vc", "-x-vc", "-x-default"] {
            assert!(!text.contains(secret), "{text}");
        }
        eventually("it runs in the end", || async {
            let pod = tenant.api.get(&PODS, namespace, name).await?;
            (pod.str_at(&["status", "phase"]) == "Running").then_some(())
        })
        .await;
    }
    assert_eq!(syncer.name_clashes(), 0);
    syncer.shutdown().await;
}
