//! Controllers that keep single objects: budgets, quotas, volumes, roles, tokens, mirrored endpoints, autoscalers, nodes.

use apimachinery::{Value, json};
use informer::Resource;

use crate::cluster::*;

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}});
    for (key, value) in spec.as_object().expect("an object").iter() {
        pod["spec"][key.as_str()] = value.clone();
    }
    pod
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object.array_at(&["status", "conditions"]);
    conditions.iter().find(|c| c.str_at(&["type"]) == kind).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_and_quotas_count_pods() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    let budget = json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    cluster.create(&POD_DISRUPTION_BUDGETS, ns, budget).await;
    let hard = json!({"pods": "5", "requests.cpu": "1", "configmaps": "10", "count/deployments.apps": "2"});
    let mut quota = json!({"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "q"}, "spec": {}});
    quota["spec"]["hard"] = hard;
    cluster.create(&RESOURCE_QUOTAS, ns, quota).await;
    cluster.create(&PODS, ns, pod("a", json!({}))).await;
    cluster.create(&PODS, ns, pod("other", json!({}))).await;
    cluster.until("budget", &POD_DISRUPTION_BUDGETS, ns, "b", |b| b["status"]["currentHealthy"] == 1).await;
    let used = |pods: &'static str, cpu: &'static str| {
        move |q: &Value| {
            let used = &q["status"]["used"];
            used["pods"] == pods && used["requests.cpu"] == cpu && used["count/deployments.apps"] == "0"
        }
    };
    // Without quota admission the controller is told by nothing but its own changes: touch the quota.
    cluster.patch(&RESOURCE_QUOTAS, ns, "q", json!({"metadata": {"labels": {"touched": "1"}}})).await;
    cluster.until("quota", &RESOURCE_QUOTAS, ns, "q", used("2", "200m")).await;
    cluster.delete(&PODS, ns, "other", "").await;
    cluster.until("quota after a deletion", &RESOURCE_QUOTAS, ns, "q", used("1", "100m")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_ask_custom_controllers_for_their_scale() {
    let cluster = Cluster::start().await;
    let ns = "default";
    let replicas = json!({"type": "object", "properties": {"replicas": {"type": "integer"}}});
    let mut version = json!({"name": "v1", "served": true, "storage": true});
    version["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "properties": {"spec": replicas, "status": replicas}});
    version["subresources"] = json!({"status": {}, "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}});
    let mut plain = version.clone();
    plain.remove_at(&["subresources"]);
    for (plural, kind, version) in [("rollouts", "Rollout", version), ("plains", "Plain", plain)] {
        let mut definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {"group": "example.com", "scope": "Namespaced",
                "names": {"plural": plural, "kind": kind, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")}}});
        definition.set_at(&["spec", "versions"], Value::Array(vec![version]));
        cluster.create(&CUSTOM_RESOURCE_DEFINITIONS, "", definition).await;
        let established = |d: &Value| condition(d, "Established")["status"] == "True";
        let name = format!("{plural}.example.com");
        cluster.until("definition", &CUSTOM_RESOURCE_DEFINITIONS, "", &name, established).await;
        let resource = Resource::new("example.com", "v1", plural);
        let owner = json!({"apiVersion": "example.com/v1", "kind": kind, "metadata": {"name": "owner"}, "spec": {"replicas": 4}});
        let owner = cluster.create_when_served(&resource, ns, owner).await;
        let mut member = pod(&format!("pod-of-{plural}"), json!({}));
        member.set_at(&["metadata", "labels"], json!({"app": plural}));
        member["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.com/v1", "kind": kind, "name": "owner",
            "uid": owner.str_at(&["metadata", "uid"]), "controller": true}]);
        cluster.create(&PODS, ns, member).await;
        let budget = json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": plural},
            "spec": {"maxUnavailable": 2, "selector": {"matchLabels": {"app": plural}}}});
        cluster.create(&POD_DISRUPTION_BUDGETS, ns, budget).await;
    }
    let counted = |b: &Value| (b["status"]["expectedPods"] == 4) & (b["status"]["desiredHealthy"] == 2);
    cluster.until("scale", &POD_DISRUPTION_BUDGETS, ns, "rollouts", counted).await;
    let refused = |b: &Value| {
        let condition = condition(b, "DisruptionAllowed");
        condition["reason"] == "SyncFailed"
            && condition["message"] == "plains.example.com does not implement the scale subresource"
    };
    cluster.until("no scale", &POD_DISRUPTION_BUDGETS, ns, "plains", refused).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_provisioned_protected_and_released() {
    let cluster = Cluster::start().await;
    let ns = "default";
    let class = json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "metadata": {"name": "local"},
        "provisioner": "test/local"});
    cluster.create(&STORAGE_CLASSES, "", class).await;
    let claim = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "data"}, "spec": {
        "storageClassName": "local", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create(&PERSISTENT_VOLUME_CLAIMS, ns, claim).await;
    let bound = |o: &Value| o["status"]["phase"] == "Bound";
    let claim = cluster.until("bound claim", &PERSISTENT_VOLUME_CLAIMS, ns, "data", bound).await;
    let volume = claim.str_at(&["spec", "volumeName"]).to_owned();
    assert_eq!(volume, format!("pvc-{}", claim.str_at(&["metadata", "uid"])));
    cluster.until("bound volume", &PERSISTENT_VOLUMES, "", &volume, bound).await;
    let protected = |o: &Value| !o.array_at(&["metadata", "finalizers"]).is_empty();
    cluster.until("protection", &PERSISTENT_VOLUME_CLAIMS, ns, "data", protected).await;
    let volumes = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    cluster.create(&PODS, ns, pod("user", volumes)).await;
    cluster.delete(&PERSISTENT_VOLUME_CLAIMS, ns, "data", "").await;
    let deleting = |o: &Value| !o.str_at(&["metadata", "deletionTimestamp"]).is_empty();
    cluster.until("the claim waits", &PERSISTENT_VOLUME_CLAIMS, ns, "data", deleting).await;
    cluster.delete(&PODS, ns, "user", "").await;
    cluster.until_gone(&PERSISTENT_VOLUME_CLAIMS, ns, "data").await;
    cluster.until_gone(&PERSISTENT_VOLUMES, "", &volume).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_aggregated_and_tokens_filled() {
    let cluster = Cluster::start().await;
    let ns = "default";
    let role = |name: &str, labels: Value, extra: Value| {
        let mut role =
            json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}});
        role["metadata"]["labels"] = labels;
        for (key, value) in extra.as_object().expect("an object").iter() {
            role[key.as_str()] = value.clone();
        }
        role
    };
    let aggregation =
        json!({"rules": [], "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}});
    cluster.create(&CLUSTER_ROLES, "", role("all", json!({}), aggregation)).await;
    let rules = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    cluster.create(&CLUSTER_ROLES, "", role("part", json!({"to": "all"}), rules)).await;
    cluster.until("rules", &CLUSTER_ROLES, "", "all", |r| r.array_at(&["rules"]).len() == 1).await;

    cluster.until("account", &SERVICE_ACCOUNTS, ns, "default", |o| !o.is_null()).await;
    let mut secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "t"},
        "type": "kubernetes.io/service-account-token"});
    secret.set_at(&["metadata", "annotations", "kubernetes.io/service-account.name"], "default".into());
    cluster.create(&SECRETS, ns, secret).await;
    cluster.until("token", &SECRETS, ns, "t", |s| s["data"].str_at(&["token"]) == "dG9rZW4=").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_written_endpoints_are_mirrored() {
    let cluster = Cluster::start().await;
    let ns = "default";
    cluster.create(&SERVICES, ns, json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let endpoints = json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]});
    cluster.create(&ENDPOINTS, ns, endpoints).await;
    let mirrored = |n: usize| {
        move |all: &[Value]| {
            let ours = all.iter().filter(|s| s.str_at(&["metadata", "labels", "kubernetes.io/service-name"]) == "db");
            ours.flat_map(|s| s.array_at(&["endpoints"])).count() == n
        }
    };
    cluster.until_list("one endpoint", &ENDPOINT_SLICES, ns, mirrored(1)).await;
    let two =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]});
    cluster.patch(&ENDPOINTS, ns, "db", two).await;
    cluster.until_list("two endpoints", &ENDPOINT_SLICES, ns, mirrored(2)).await;
    cluster
        .patch(&ENDPOINTS, ns, "db", json!({"metadata": {"annotations": {"note": "n"}, "labels": {"l": "v"}}}))
        .await;
    let described = |all: &[Value]| {
        all.iter().any(|s| s["metadata"]["annotations"]["note"] == "n" && s["metadata"]["labels"]["l"] == "v")
    };
    cluster.until_list("metadata", &ENDPOINT_SLICES, ns, described).await;
    cluster.delete(&ENDPOINTS, ns, "db", "").await;
    cluster.until_list("none", &ENDPOINT_SLICES, ns, mirrored(0)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_without_metrics_says_so_and_keeps_bounds() {
    let cluster = Cluster::start().await;
    cluster.run_pods();
    let ns = "default";
    let deployment = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    cluster.create(&DEPLOYMENTS, ns, deployment).await;
    let autoscaler = |min: i64| {
        json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "web"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": min,
            "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 50}}}]}})
    };
    cluster.create(&HORIZONTAL_POD_AUTOSCALERS, ns, autoscaler(2)).await;
    cluster.until("two replicas", &DEPLOYMENTS, ns, "web", |d| d["spec"]["replicas"] == 2).await;
    // A new generation is looked at without waiting for the period.
    cluster.patch(&HORIZONTAL_POD_AUTOSCALERS, ns, "web", json!({"spec": {"minReplicas": 1}})).await;
    let told = cluster
        .until("conditions", &HORIZONTAL_POD_AUTOSCALERS, ns, "web", |h| {
            condition(h, "ScalingActive").str_at(&["reason"]) == "FailedGetResourceMetric"
        })
        .await;
    assert_eq!(condition(&told, "AbleToScale")["status"], "True");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_node_is_tainted_and_its_pods_leave() {
    let cluster = Cluster::start().await;
    cluster.create(&NODES, "", json!({"metadata": {"name": "n1"}})).await;
    let ns = "default";
    cluster.create(&PODS, ns, pod("stays", json!({"nodeName": "n1", "tolerations": [{"operator": "Exists"}]}))).await;
    cluster.create(&PODS, ns, pod("leaves", json!({"nodeName": "n1", "terminationGracePeriodSeconds": 0}))).await;
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let written = cluster.rest.patch(&NODES, "status", "", "n1", informer::PatchType::Merge, &not_ready).await;
    written.expect("a status");
    let tainted = |n: &Value| {
        n.array_at(&["spec", "taints"])
            .iter()
            .any(|t| t["effect"] == "NoExecute" && t["key"] == "node.kubernetes.io/not-ready")
    };
    cluster.until("taint", &NODES, "", "n1", tainted).await;
    cluster
        .until("eviction", &PODS, ns, "leaves", |p| {
            p.is_null() || !p.str_at(&["metadata", "deletionTimestamp"]).is_empty()
        })
        .await;
    let stays = cluster.get(&PODS, ns, "stays").await.expect("it tolerates everything");
    assert!(stays.str_at(&["metadata", "deletionTimestamp"]).is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_with_absent_owners_are_collected() {
    let cluster = Cluster::start().await;
    let ns = "default";
    let owner = cluster.create(&CONFIG_MAPS, ns, json!({"metadata": {"name": "owner"}})).await;
    let reference =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.str_at(&["metadata", "uid"])}]);
    let mut secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "owned"}});
    secret["metadata"]["ownerReferences"] = reference;
    cluster.create(&SECRETS, ns, secret).await;
    let mut absent = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "absent"}});
    absent["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "00000000-0000-0000-0000-000000000001"}]);
    cluster.create(&SECRETS, ns, absent).await;
    cluster.until_gone(&SECRETS, ns, "absent").await;
    // The uid of an owner that is there, of another kind: that is not an owner.
    let mut strange = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "strange"}});
    strange["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "owner", "uid": owner.str_at(&["metadata", "uid"])}]);
    cluster.create(&SECRETS, ns, strange).await;
    cluster.until_gone(&SECRETS, ns, "strange").await;
    assert!(cluster.get(&SECRETS, ns, "owned").await.is_some(), "its owner is there");
    cluster.delete(&CONFIG_MAPS, ns, "owner", "Background").await;
    cluster.until_gone(&SECRETS, ns, "owned").await;
    cluster.stop().await;
}
