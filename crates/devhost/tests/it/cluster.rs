//! A development host does what a cluster does: pods of a Deployment become ready, claims are bound, what is deleted goes.

use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use devhost::{DevHost, DevHostConfig};
use informer::{ApiError, DeleteOptions, Resource, Rest};

const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");
const PODS: Resource = Resource::new("", "v1", "pods");
const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");
const EVENTS: Resource = Resource::new("", "v1", "events");
const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");

async fn start() -> DevHost {
    DevHost::start(DevHostConfig::default()).await.expect("the host starts")
}

/// Reads an object until `holds` is true of it.
async fn wait(
    rest: &Rest,
    resource: &Resource,
    namespace: &str,
    name: &str,
    holds: impl Fn(Result<&Value, &ApiError>) -> bool,
) {
    let begin = Instant::now();
    loop {
        let answer = rest.get(resource, namespace, name).await;
        if holds(answer.as_ref()) {
            return;
        }
        if begin.elapsed() > Duration::from_secs(60) {
            let events: Vec<Value> = rest.list_as(&EVENTS, "", "", "").await.unwrap_or_default();
            let events: Vec<String> =
                events.iter().map(|e| format!("{}: {}", e.str_at(&["reason"]), e.str_at(&["message"]))).collect();
            let shown = answer.as_ref().map(|o| o["status"].to_string());
            panic!("{resource} {namespace}/{name} did not get there: {shown:?}, events {events:#?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_ready_and_its_namespace_can_go() {
    let host = start().await;
    let rest = Rest::new(host.client(), "test");
    rest.create(&NAMESPACES, "", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .await
        .expect("namespace");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "web"}]}}}});
    rest.create(&DEPLOYMENTS, "shop", &deployment).await.expect("deployment");
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "standard", "resources": {"requests": {"storage": "1Gi"}}}});
    rest.create(&CLAIMS, "shop", &claim).await.expect("claim");
    wait(&rest, &DEPLOYMENTS, "shop", "web", |d| d.is_ok_and(|d| d["status"]["readyReplicas"] == 3)).await;
    wait(&rest, &CLAIMS, "shop", "data", |c| c.is_ok_and(|c| c["status"]["phase"] == "Bound")).await;
    let pods: Vec<Value> = rest.list_as(&PODS, "shop", "app=web", "").await.expect("pods");
    let mut nodes: Vec<&str> = pods.iter().map(|p| p.str_at(&["spec", "nodeName"])).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-0", "node-1", "node-2"], "replicas are spread");
    rest.delete(&NAMESPACES, "", "shop", &DeleteOptions::default()).await.expect("delete");
    wait(&rest, &NAMESPACES, "", "shop", |n| n.is_err_and(ApiError::is_not_found)).await;
    host.stop().await;
}
