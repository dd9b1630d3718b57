//! `alcove hostpath-mapper` with the rights of its own account, in a directory that stands for a node.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};

use apimachinery::{Value, json};
use informer::DeleteOptions;
use syncer::names::Names;

use crate::serve::{NAME, NAMESPACE, PODS, World, eventually};
use crate::support::alcove;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod of the host as the syncer makes it for a virtual one.
fn host_pod(virtual_name: &str, node: &str) -> Value {
    let names = Names::new(NAME, NAMESPACE);
    let at = names.host(virtual_name, "default");
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": (at.name.as_str()), "labels": {"vcluster.loft.sh/managed-by": NAME}, "annotations": {
            "vcluster.loft.sh/object-name": virtual_name, "vcluster.loft.sh/object-namespace": "default",
            "vcluster.loft.sh/object-uid": (format!("uid-of-{virtual_name}")), "vcluster.loft.sh/object-kind": "/v1, Kind=Pod"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{"name": "app", "image": "i"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mapper_of_a_node_links_the_pods_of_its_cluster() {
    let world = World::new("controlPlane: {hostPathMapper: {enabled: true}}").await;
    world.write_kubeconfig_of(&deploy::names::hostpath_mapper(NAME)).await;
    let nodes: Vec<Value> = world.rest.list_as(&informer::Resource::new("", "v1", "nodes"), "", "", "").await.unwrap();
    let node = nodes[0].str_at(&["metadata", "name"]).to_owned();
    let root = tempfile::tempdir().unwrap();
    let mut command = alcove(world.home.path());
    command
        .args(["hostpath-mapper", "--name", NAME, "--namespace", NAMESPACE, "--node", &node, "--root"])
        .arg(root.path())
        .arg("--kubeconfig")
        .arg(world.kubeconfig())
        .stderr(Stdio::null());
    let _running = Running(command.spawn().unwrap());

    let made = world.rest.create(&PODS, NAMESPACE, &host_pod("web", &node)).await.unwrap();
    let elsewhere = nodes[1].str_at(&["metadata", "name"]);
    let other = world.rest.create(&PODS, NAMESPACE, &host_pod("far", elsewhere)).await.unwrap();
    // What the kubelet would make.
    let pod_logs = root.path().join("var/log/pods");
    let logs_of = |pod: &Value| {
        let of = |member: &str| pod.str_at(&["metadata", member]).to_owned();
        format!("{}_{}_{}", of("namespace"), of("name"), of("uid"))
    };
    for pod in [&made, &other] {
        fs::create_dir_all(pod_logs.join(logs_of(pod)).join("app")).unwrap();
    }
    let containers = root.path().join("var/log/containers");
    fs::create_dir_all(&containers).unwrap();
    let link = format!("{}_{NAMESPACE}_app-c1.log", made.str_at(&["metadata", "name"]));
    symlink(format!("/var/log/pods/{}/app/0.log", logs_of(&made)), containers.join(link)).unwrap();

    let base = root.path().join("tmp/vcluster").join(NAMESPACE).join(NAME);
    let link = base.join("log/pods/default_web_uid-of-web");
    let target = eventually("the link to the logs", async || fs::read_link(&link).ok()).await;
    assert_eq!(target.display().to_string(), format!("/var/vcluster/physical/log/pods/{}", logs_of(&made)));
    let container = base.join("log/containers/web_default_app-c1.log");
    let target = eventually("the link to the container's log", async || fs::read_link(&container).ok()).await;
    assert_eq!(target.display().to_string(), "/var/log/pods/default_web_uid-of-web/app/0.log");
    assert!(!base.join("log/pods/default_far_uid-of-far").is_symlink(), "that pod is on another node");

    let name = made.str_at(&["metadata", "name"]);
    world.rest.delete(&PODS, NAMESPACE, name, &DeleteOptions::default()).await.unwrap();
    fs::remove_dir_all(pod_logs.join(logs_of(&made))).unwrap();
    eventually("the links are gone", async || (!link.is_symlink() && !container.is_symlink()).then_some(())).await;
}
