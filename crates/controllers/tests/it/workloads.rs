//! Deployments, garbage collection, namespaces, services: what users see.

use apimachinery::{Value, json};

use crate::cluster::*;

fn deployment(name: &str, replicas: i64, image: &str) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "web", "containerPort": 8080}]}]}}}})
}

fn available(n: i64) -> impl Fn(&Value) -> bool {
    move |d| d["status"]["availableReplicas"] == n && d["status"]["observedGeneration"] == d["metadata"]["generation"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_has_its_service_account_and_the_root_ca() {
    let cluster = Cluster::start().await;
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "a"}})).await;
    cluster.until("account", &SERVICE_ACCOUNTS, "a", "default", |o| !o.is_null()).await;
    let is_ca = |o: &Value| o.at(&["data", "ca.crt"]).is_some_and(|d| *d == "ca");
    cluster.until("root CA", &CONFIG_MAPS, "a", "kube-root-ca.crt", is_ca).await;
    cluster.patch(&CONFIG_MAPS, "a", "kube-root-ca.crt", json!({"data": {"ca.crt": "other"}})).await;
    cluster.until("root CA again", &CONFIG_MAPS, "a", "kube-root-ca.crt", is_ca).await;
    cluster.delete(&SERVICE_ACCOUNTS, "a", "default", "").await;
    cluster.until("account again", &SERVICE_ACCOUNTS, "a", "default", |o| !o.is_null()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_scales_and_is_collected() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    cluster.create(&DEPLOYMENTS, ns, deployment("web", 3, "one")).await;
    cluster.until("three pods", &DEPLOYMENTS, ns, "web", available(3)).await;
    cluster.until_list("three pods", &PODS, ns, |pods| pods.len() == 3).await;

    cluster.patch(&DEPLOYMENTS, ns, "web", json!({"spec": {"replicas": 5}})).await;
    cluster.until("five pods", &DEPLOYMENTS, ns, "web", available(5)).await;

    let two = deployment("web", 5, "two")["spec"]["template"].clone();
    let mut patch = Value::object();
    patch.set_at(&["spec", "template"], two);
    cluster.patch(&DEPLOYMENTS, ns, "web", patch).await;
    let rolled = cluster
        .until("rollout", &DEPLOYMENTS, ns, "web", |d| {
            available(5)(d) && d["status"]["updatedReplicas"] == 5 && d["status"]["replicas"] == 5
        })
        .await;
    assert_eq!(rolled.str_at(&["metadata", "annotations", "deployment.kubernetes.io/revision"]), "2");
    let progressing = |d: &Value| {
        d.array_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["reason"]) == "NewReplicaSetAvailable")
    };
    cluster.until("progress", &DEPLOYMENTS, ns, "web", progressing).await;
    let images =
        |pods: &[Value]| pods.len() == 5 && pods.iter().all(|p| p["spec"]["containers"][0].str_at(&["image"]) == "two");
    cluster.until_list("new pods", &PODS, ns, images).await;
    assert_eq!(cluster.list(&REPLICA_SETS, ns).await.len(), 2);

    cluster.delete(&DEPLOYMENTS, ns, "web", "Background").await;
    cluster.until_list("sets are collected", &REPLICA_SETS, ns, <[Value]>::is_empty).await;
    cluster.until_list("pods are collected", &PODS, ns, <[Value]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_waits_and_orphans_stay() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    for (name, policy) in [("front", "Foreground"), ("orphans", "Orphan")] {
        cluster.create(&DEPLOYMENTS, ns, deployment(name, 1, "one")).await;
        cluster.until("pods", &DEPLOYMENTS, ns, name, available(1)).await;
        cluster.delete(&DEPLOYMENTS, ns, name, policy).await;
        cluster.until_gone(&DEPLOYMENTS, ns, name).await;
    }
    let sets = cluster.list(&REPLICA_SETS, ns).await;
    assert_eq!(sets.len(), 1, "{sets:?}");
    assert!(sets[0].str_at(&["metadata", "name"]).starts_with("orphans-"));
    assert!(sets[0].at(&["metadata", "ownerReferences"]).is_none(), "{}", sets[0]);
    cluster.until_list("the orphan's pod stays", &PODS, ns, |pods| pods.len() == 1).await;
    // A new deployment with the same selector adopts the set.
    cluster.create(&DEPLOYMENTS, ns, deployment("orphans", 1, "one")).await;
    cluster.until_list("adopted", &REPLICA_SETS, ns, |sets| sets.len() == 1 && owned_by(&sets[0], "orphans")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_takes_its_content_along() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "a"}})).await;
    cluster.until("account", &SERVICE_ACCOUNTS, "a", "default", |o| !o.is_null()).await;
    cluster.create(&DEPLOYMENTS, "a", deployment("web", 2, "one")).await;
    cluster.until("pods", &DEPLOYMENTS, "a", "web", available(2)).await;
    let stuck = json!({"metadata": {"name": "stuck", "finalizers": ["example.com/wait"]}});
    cluster.create(&CONFIG_MAPS, "a", stuck).await;
    cluster.delete(&NAMESPACES, "", "a", "").await;
    let told = |n: &Value| {
        let conditions = n.array_at(&["status", "conditions"]);
        conditions.iter().any(|c| c.str_at(&["message"]).contains("example.com/wait in 1 resource instances"))
    };
    cluster.until("conditions", &NAMESPACES, "", "a", told).await;
    cluster.patch(&CONFIG_MAPS, "a", "stuck", json!({"metadata": {"finalizers": null}})).await;
    cluster.until_gone(&NAMESPACES, "", "a").await;
    assert!(cluster.list(&PODS, "a").await.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_finds_its_pods() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    cluster
        .create(
            &SERVICES,
            ns,
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "web"}]}}),
        )
        .await;
    let slice = |n: usize| {
        move |all: &[Value]| {
            let ours = all.iter().filter(|s| s.str_at(&["metadata", "labels", "kubernetes.io/service-name"]) == "web");
            let ready = ours.flat_map(|s| s.array_at(&["endpoints"])).filter(|e| e["conditions"]["ready"] == true);
            ready.count() == n
        }
    };
    cluster.create(&DEPLOYMENTS, ns, deployment("web", 2, "one")).await;
    let slices = cluster.until_list("two endpoints", &ENDPOINT_SLICES, ns, slice(2)).await;
    let web: Vec<&Value> = slices.iter().filter(|s| owned_by(s, "web")).collect();
    assert_eq!(web.len(), 1, "{slices:?}");
    assert_eq!(web[0]["ports"][0]["port"], 8080);
    let addresses = |n: usize| move |e: &Value| e["subsets"][0].array_at(&["addresses"]).len() == n;
    cluster.until("endpoints", &ENDPOINTS, ns, "web", addresses(2)).await;
    cluster.patch(&DEPLOYMENTS, ns, "web", json!({"spec": {"replicas": 0}})).await;
    cluster.until_list("no endpoints", &ENDPOINT_SLICES, ns, slice(0)).await;
    cluster.until("no endpoints", &ENDPOINTS, ns, "web", addresses(0)).await;
    cluster.delete(&SERVICES, ns, "web", "").await;
    cluster.until_gone(&ENDPOINTS, ns, "web").await;
    cluster
        .until_list("slices are collected", &ENDPOINT_SLICES, ns, |all| !all.iter().any(|s| owned_by(s, "web")))
        .await;
    cluster.stop().await;
}
