//! A syncer that is stopped and started in the middle of much work loses nothing and repeats nothing.

use std::collections::BTreeMap;

use apimachinery::Value;

use crate::cluster::*;

const PODS_TOTAL: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_200_pods_loses_and_repeats_nothing() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let tenant = Virtual::start("vc", &host_api).await;
    let first = tenant.sync(&host).await;
    for n in 0..PODS_TOTAL {
        tenant.api.create(&PODS, "default", simple_pod(&format!("web-{n}"))).await;
    }
    // Some are on the host, some are not.
    eventually("the work has begun", || async {
        (!host_api.list(&PODS, &tenant.host_namespace).await.is_empty()).then_some(())
    })
    .await;
    let before = uids(&host_api.list(&PODS, &tenant.host_namespace).await);
    first.shutdown().await;
    let second = tenant.sync(&host).await;
    eventually("all virtual pods run", || async {
        let pods = tenant.api.list(&PODS, "default").await;
        let running = pods.iter().filter(|p| p.str_at(&["status", "phase"]) == "Running").count();
        (running == PODS_TOTAL).then_some(())
    })
    .await;
    let host_pods = host_api.list(&PODS, &tenant.host_namespace).await;
    assert_eq!(host_pods.len(), PODS_TOTAL, "one host pod for each");
    let after = uids(&host_pods);
    for (name, uid) in &before {
        assert_eq!(after.get(name), Some(uid), "{name} was not made again");
    }
    for pod in tenant.api.list(&PODS, "default").await {
        let on_host = tenant.on_host("default", pod.str_at(&["metadata", "name"]));
        let host_pod =
            host_pods.iter().find(|p| p.str_at(&["metadata", "name"]) == on_host.name).expect("its host pod");
        assert_eq!(
            host_pod.str_at(&["metadata", "annotations", "vcluster.loft.sh/object-uid"]),
            pod.str_at(&["metadata", "uid"])
        );
    }
    let (requests, _) = second.requests();
    println!("host requests after the restart: {requests}");
    second.shutdown().await;
}

fn uids(pods: &[Value]) -> BTreeMap<String, String> {
    let text = |p: &Value, path: &[&str]| p.str_at(path).to_owned();
    pods.iter().map(|p| (text(p, &["metadata", "name"]), text(p, &["metadata", "uid"]))).collect()
}
