//! Hybrid scheduling: a scheduler inside the virtual cluster beside those of the host.

use apimachinery::{Value, json};
use informer::{PatchType, Resource};
use store::Store;

use crate::replicas::{NAMESPACE, PODS, World, admin, eventually};

const NODES: Resource = Resource::new("", "v1", "nodes");
const EVENTS: Resource = Resource::new("", "v1", "events");

fn pod(name: &str, more: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "web"}]}});
    for (key, value) in more.as_object().expect("members").iter() {
        pod["spec"][key.as_str()] = value.clone();
    }
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pod_is_placed_by_the_scheduler_it_names() {
    let world = World::new(
        "sync: {toHost: {pods: {hybridScheduling: {enabled: true, hostSchedulers: [gpu-scheduler]}}}, fromHost: {nodes: {enabled: true}}}",
    )
    .await;
    let store = Store::in_memory(store::Options::default()).await;
    let (control_plane, _wire) = world.start(&store, "team-a-0", false).await;
    let rest = admin(&control_plane);
    let node = eventually("the nodes are shown", async || {
        let nodes: Vec<Value> = rest.list_as(&NODES, "", "", "").await.ok()?;
        nodes.first().map(|node| node.str_at(&["metadata", "name"]).to_owned())
    })
    .await;
    // The tenant's own taint: the host does not know of it.
    let taint = json!({"spec": {"taints": [{"key": "tenants", "value": "own", "effect": "NoSchedule"}]}});
    rest.patch(&NODES, "", "", &node, PatchType::Merge, &taint).await.unwrap();
    eventually("the virtual cluster's scheduler keeps to it", async || {
        let shown = rest.get(&NODES, "", &node).await.ok()?;
        shown.array_at(&["spec", "taints"]).iter().any(|t| t.str_at(&["key"]) == "tenants").then_some(())
    })
    .await;
    let tolerations = json!({"tolerations": [{"key": "tenants", "operator": "Exists"}]});
    let create = async |pod: Value| {
        eventually("the pod is accepted", async || match rest.create(&PODS, "default", &pod).await {
            Err(error) if !error.is_already_exists() => None,
            _ => Some(()),
        })
        .await;
    };
    create(pod("tolerant", tolerations)).await;
    create(pod("strict", json!({}))).await;
    create(pod("train", json!({"schedulerName": "gpu-scheduler"}))).await;

    // Placed here, run there.
    eventually("the tolerant pod runs", async || {
        let pod = rest.get(&PODS, "default", "tolerant").await.ok()?;
        (pod.str_at(&["status", "phase"]) == "Running" && pod.str_at(&["spec", "nodeName"]) == node).then_some(())
    })
    .await;
    let on_host = world.rest.get(&PODS, NAMESPACE, "tolerant-x-default-x-team-a").await.unwrap();
    assert_eq!(on_host.str_at(&["spec", "nodeName"]), node);
    let told = eventually("the tenant sees who placed it", async || {
        let events: Vec<Value> = rest.list_as(&EVENTS, "default", "", "").await.ok()?;
        events
            .into_iter()
            .find(|e| e.str_at(&["reason"]) == "Scheduled" && e.str_at(&["involvedObject", "name"]) == "tolerant")
    })
    .await;
    let by = [told.str_at(&["source", "component"]), told.str_at(&["reportingComponent"])];
    assert!(by.contains(&"default-scheduler"), "{told}");
    eventually("the strict pod cannot be placed", async || {
        let pod = rest.get(&PODS, "default", "strict").await.ok()?;
        let mut conditions = pod.array_at(&["status", "conditions"]).iter();
        conditions.find(|c| c.str_at(&["type"]) == "PodScheduled" && c.str_at(&["reason"]) == "Unschedulable").map(drop)
    })
    .await;
    assert!(world.rest.get(&PODS, NAMESPACE, "strict-x-default-x-team-a").await.unwrap_err().is_not_found());
    let host_node = world.rest.get(&NODES, "", &node).await.unwrap();
    assert!(!host_node.to_string().contains("\"tenants\""), "the host's node has no such taint");

    // The other pod is the host's to place: it waits there for its scheduler.
    let name = "train-x-default-x-team-a";
    let waiting =
        eventually("the pod is on the host", async || world.rest.get(&PODS, NAMESPACE, name).await.ok()).await;
    assert_eq!(waiting.str_at(&["spec", "schedulerName"]), "gpu-scheduler");
    assert_eq!(waiting.str_at(&["spec", "nodeName"]), "");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": (node.as_str())}});
    world.rest.create_subresource(&PODS, NAMESPACE, name, "binding", &binding).await.unwrap();
    eventually("the tenant's pod is where the host put it", async || {
        let pod = rest.get(&PODS, "default", "train").await.ok()?;
        (pod.str_at(&["spec", "nodeName"]) == node && pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
    control_plane.stop().await;
    world.host.stop().await;
}
