//! Host objects that are somebody else's.

use apimachinery::json;

use crate::cluster::*;

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
