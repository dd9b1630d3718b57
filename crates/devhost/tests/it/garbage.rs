//! Owners and dependents: what goes, what waits and what stays; and namespaces with all they hold.

use apimachinery::{Value, json};

use crate::api::*;

fn owners(object: &Value) -> Vec<&str> {
    object.array_at(&["metadata", "ownerReferences"]).iter().map(|o| o.str_at(&["name"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_with_their_owner_or_are_orphaned() {
    let api = Api::start().await;
    let ns = api.namespace("dependents").await;
    let (deployments, sets) =
        (format!("/apis/apps/v1/namespaces/{ns}/deployments"), format!("/apis/apps/v1/namespaces/{ns}/replicasets"));
    for (name, policy, left) in [("gone", "Background", 0), ("kept", "Orphan", 1)] {
        api.post(&deployments, workload("Deployment", name, 2, json!({"app": name}), "web")).await;
        let of = format!("{sets}?labelSelector=app%3D{name}");
        api.until_count("a ReplicaSet", &of, 1).await;
        api.delete_with(&format!("{deployments}/{name}"), json!({"propagationPolicy": policy})).await;
        api.until_gone(&format!("{deployments}/{name}")).await;
        let list = api
            .until(policy, &of, |l| {
                l.array_at(&["items"]).len() == left && l.array_at(&["items"]).iter().all(|s| owners(s).is_empty())
            })
            .await;
        assert_eq!(list.array_at(&["items"]).len(), left);
    }
    let (controllers, pods) =
        (format!("/api/v1/namespaces/{ns}/replicationcontrollers"), format!("/api/v1/namespaces/{ns}/pods"));
    for (name, options, left) in [
        ("rc-gone", json!({"propagationPolicy": "Background"}), 0),
        ("rc-orphaning", json!({"orphanDependents": true}), 2),
        ("rc-default", json!({}), 2),
    ] {
        api.post(&controllers, workload("ReplicationController", name, 2, json!({"app": name}), "web")).await;
        let of = format!("{pods}?labelSelector=app%3D{name}");
        api.until("two pods", &format!("{controllers}/{name}"), |c| c["status"]["replicas"] == 2).await;
        api.delete_with(&format!("{controllers}/{name}"), options).await;
        api.until_gone(&format!("{controllers}/{name}")).await;
        api.until(name, &of, |l| {
            l.array_at(&["items"]).len() == left && l.array_at(&["items"]).iter().all(|s| owners(s).is_empty())
        })
        .await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_deleted_in_the_foreground_waits_for_its_pods() {
    let api = Api::start().await;
    let ns = api.namespace("foreground").await;
    let (controllers, pods) =
        (format!("/api/v1/namespaces/{ns}/replicationcontrollers"), format!("/api/v1/namespaces/{ns}/pods"));
    api.post(&controllers, workload("ReplicationController", "rc", 3, json!({"app": "rc"}), "web")).await;
    let path = format!("{controllers}/rc");
    api.until("three pods", &path, |c| c["status"]["readyReplicas"] == 3).await;
    // One pod is held back.
    let list = api.get(&pods).await;
    let held = format!("{pods}/{}", name_of(&list["items"][0]));
    api.merge(&held, json!({"metadata": {"finalizers": ["e2e.example.com/hold"]}})).await;
    api.delete_with(&path, json!({"propagationPolicy": "Foreground"})).await;
    api.until_count("the others go", &pods, 1).await;
    let waiting = api.get(&path).await;
    assert!(waiting.array_at(&["metadata", "finalizers"]).iter().any(|f| *f == "foregroundDeletion"), "{waiting}");
    assert!(!waiting.str_at(&["metadata", "deletionTimestamp"]).is_empty());
    api.merge(&held, json!({"metadata": {"finalizers": null}})).await;
    api.until_gone(&path).await;
    api.until_count("no pods", &pods, 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dependent_with_another_owner_stays_and_circles_are_broken() {
    let api = Api::start().await;
    let ns = api.namespace("owners").await;
    let (controllers, pods) =
        (format!("/api/v1/namespaces/{ns}/replicationcontrollers"), format!("/api/v1/namespaces/{ns}/pods"));
    for name in ["to-be-deleted", "to-stay"] {
        api.post(
            &controllers,
            workload("ReplicationController", name, if name == "to-stay" { 0 } else { 4 }, json!({"app": name}), "web"),
        )
        .await;
    }
    let path = format!("{controllers}/to-be-deleted");
    api.until("four pods", &path, |c| c["status"]["replicas"] == 4).await;
    let stays = api.get(&format!("{controllers}/to-stay")).await;
    let uid = stays.str_at(&["metadata", "uid"]).to_owned();
    let list = api.get(&format!("{pods}?labelSelector=app%3Dto-be-deleted")).await;
    for pod in &list.array_at(&["items"])[..2] {
        api.update(&format!("{pods}/{}", name_of(pod)), |p| {
            let mut all = p.array_at(&["metadata", "ownerReferences"]).to_vec();
            all.push(
                json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "to-stay", "uid": uid.as_str()}),
            );
            p.set_at(&["metadata", "ownerReferences"], Value::Array(all));
        })
        .await;
    }
    api.delete_with(&path, json!({"propagationPolicy": "Foreground"})).await;
    api.until_gone(&path).await;
    let left = api.until_count("pods with another owner stay", &pods, 2).await;
    for pod in left.array_at(&["items"]) {
        assert_eq!(owners(pod), ["to-stay"], "the deleted owner is taken off");
        assert!(pod.str_at(&["metadata", "deletionTimestamp"]).is_empty());
    }
    api.delete(&format!("{pods}?labelSelector=app%3Dto-be-deleted")).await;
    api.until_count("gone", &pods, 0).await;

    let mut uids = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        let pod = api
            .post(
                &pods,
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}}),
            )
            .await;
        uids.push((name, pod.str_at(&["metadata", "uid"]).to_owned()));
    }
    for (i, (name, _)) in uids.iter().enumerate() {
        let (owner, uid) = &uids[(i + 2) % 3];
        api.merge(
            &format!("{pods}/{name}"),
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod",
            "name": *owner, "uid": uid.as_str(), "controller": true, "blockOwnerDeletion": true}]}}),
        )
        .await;
    }
    api.delete_with(&format!("{pods}/pod1"), json!({"propagationPolicy": "Foreground"})).await;
    api.until_count("a circle does not keep itself alive", &pods, 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_takes_pods_first_and_then_the_rest() {
    let api = Api::start().await;
    let ns = api.namespace("doomed").await;
    let base = format!("/api/v1/namespaces/{ns}");
    api.post(
        &format!("{base}/pods"),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "finalizers": ["e2e.example.com/hold"]},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}}),
    )
    .await;
    api.post(
        &format!("{base}/configmaps"),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}}),
    )
    .await;
    api.post(
        &format!("{base}/services"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
    )
    .await;
    api.until("ready", &format!("{base}/pods/p"), |p| condition(p, "Ready") == "True").await;
    api.delete(&base).await;
    let waiting = api.until("content is left", &base, |n| condition(n, "NamespaceContentRemaining") == "True").await;
    assert_eq!(waiting.str_at(&["status", "phase"]), "Terminating");
    assert_eq!(condition(&waiting, "NamespaceFinalizersRemaining"), "True");
    assert!(api.try_get(&format!("{base}/configmaps/m")).await.is_ok(), "the pod goes before anything else");
    let refused = api.try_post(&format!("{base}/configmaps"), &json!({"metadata": {"name": "late"}})).await;
    assert_eq!(refused.expect_err("nothing is made in it").code, 403);
    api.merge(&format!("{base}/pods/p"), json!({"metadata": {"finalizers": null}})).await;
    api.until_gone(&base).await;
    // The same name begins anew, without what was there.
    api.namespace("doomed").await;
    for resource in ["pods", "services"] {
        assert!(api.get(&format!("{base}/{resource}")).await.array_at(&["items"]).is_empty());
    }
    api.stop().await;
}
