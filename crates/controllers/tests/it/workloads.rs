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

fn job(name: &str, spec: Value, phase: &str) -> Value {
    let mut job = json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": name}, "spec": {"template":
        {"metadata": {"annotations": {"phase": phase}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    for (key, value) in spec.as_object().expect("an object").iter() {
        job["spec"][key.as_str()] = value.clone();
    }
    job
}

fn has_condition(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |o| {
        let mut conditions = o.array_at(&["status", "conditions"]).iter();
        conditions.any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_complete_fail_and_are_counted_exactly() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    cluster.create(&JOBS, ns, job("plain", json!({"completions": 5, "parallelism": 2}), "Succeeded")).await;
    let indexed = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"});
    cluster.create(&JOBS, ns, job("indexed", indexed, "Succeeded")).await;
    cluster.create(&JOBS, ns, job("failing", json!({"backoffLimit": 0}), "Failed")).await;
    let done = cluster.until("completion", &JOBS, ns, "plain", has_condition("Complete")).await;
    assert_eq!(done["status"]["succeeded"], 5, "{done}");
    assert!(has_condition("SuccessCriteriaMet")(&done), "{done}");
    let done = cluster.until("indexed completion", &JOBS, ns, "indexed", has_condition("Complete")).await;
    assert_eq!(done["status"]["completedIndexes"], "0-3", "{done}");
    let failed = cluster.until("failure", &JOBS, ns, "failing", has_condition("Failed")).await;
    assert_eq!(failed["status"]["failed"], 1, "{failed}");
    let released = |pods: &[Value]| pods.iter().all(|p| p.array_at(&["metadata", "finalizers"]).is_empty());
    let pods = cluster.until_list("finalizers are gone", &PODS, ns, released).await;
    let names: Vec<&str> = pods.iter().map(|p| p.str_at(&["metadata", "generateName"])).collect();
    assert_eq!(pods.len(), 5 + 4 + 1, "{names:?}");
    cluster.delete(&JOBS, ns, "plain", "Background").await;
    cluster.until_list("pods are collected", &PODS, ns, |pods| pods.len() == 5).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_comes_up_in_order_and_rolls_from_the_end() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    cluster
        .create(&STATEFUL_SETS, ns, json!({"kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": {"name": "db",
            "annotations": {"kubernetes.io/change-cause": "first"}}, "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}}}]}}))
        .await;
    let all = |n: i64| move |s: &Value| s["status"]["availableReplicas"] == n && s["status"]["updatedReplicas"] == n;
    cluster.until("three pods", &STATEFUL_SETS, ns, "db", all(3)).await;
    let claims = cluster.list(&PERSISTENT_VOLUME_CLAIMS, ns).await;
    let names: Vec<&str> = claims.iter().map(|c| c.str_at(&["metadata", "name"])).collect();
    assert_eq!(names, ["data-db-0", "data-db-1", "data-db-2"]);
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}});
    cluster.patch(&STATEFUL_SETS, ns, "db", image).await;
    let rolled = |s: &Value| all(3)(s) && s["status"]["currentRevision"] == s["status"]["updateRevision"];
    cluster
        .until_list("new pods", &PODS, ns, |pods| {
            pods.len() == 3 && pods.iter().all(|p| p["spec"]["containers"][0].str_at(&["image"]) == "two")
        })
        .await;
    cluster.until("rollout", &STATEFUL_SETS, ns, "db", rolled).await;
    let revisions = cluster.list(&CONTROLLER_REVISIONS, ns).await;
    assert_eq!(revisions.len(), 2);
    for revision in &revisions {
        assert_eq!(revision["metadata"]["annotations"]["kubernetes.io/change-cause"], "first", "{revision}");
    }
    cluster.patch(&STATEFUL_SETS, ns, "db", json!({"spec": {"replicas": 1}})).await;
    cluster.until_list("one pod", &PODS, ns, |pods| pods.len() == 1).await;
    assert_eq!(cluster.list(&PERSISTENT_VOLUME_CLAIMS, ns).await.len(), 3, "claims are kept");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_has_a_pod_on_every_node() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    for name in ["n1", "n2"] {
        cluster.create(&NODES, "", json!({"metadata": {"name": name}})).await;
    }
    cluster
        .create(&DAEMON_SETS, ns, json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {"metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]}}}}))
        .await;
    let ready =
        |n: i64| move |s: &Value| s["status"]["numberAvailable"] == n && s["status"]["desiredNumberScheduled"] == n;
    cluster.until("two pods", &DAEMON_SETS, ns, "agent", ready(2)).await;
    cluster.create(&NODES, "", json!({"metadata": {"name": "n3"}})).await;
    cluster.until("three pods", &DAEMON_SETS, ns, "agent", ready(3)).await;
    assert_eq!(cluster.list(&PODS, ns).await.len(), 3);
    cluster.stop().await;
}
