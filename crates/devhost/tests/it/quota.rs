//! ResourceQuotas and LimitRanges: what is counted, what is refused, what is filled in.

use apimachinery::{Value, json};

use crate::api::*;

fn pod(name: &str, requests: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "web", "resources": {"requests": requests}}]}})
}

fn used(quota: &Value, what: &str) -> String {
    quota.str_at(&["status", "used", what]).to_owned()
}

async fn quota(api: &Api, ns: &str, name: &str, spec: Value) -> String {
    let collection = format!("/api/v1/namespaces/{ns}/resourcequotas");
    api.post(
        &collection,
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec}),
    )
    .await;
    let path = format!("{collection}/{name}");
    api.until("the status is calculated", &path, |q| {
        q["status"]["hard"] == q["spec"]["hard"] && q["status"]["used"].is_object()
    })
    .await;
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_every_counted_object_is_captured() {
    let api = Api::start().await;
    let ns = api.namespace("counted").await;
    let path = quota(&api, &ns, "all", json!({"hard": {"pods": "5", "services": "10", "services.loadbalancers": "1", "services.nodeports": "1",
        "secrets": "10", "configmaps": "10", "replicationcontrollers": "2", "resourcequotas": "1", "persistentvolumeclaims": "10",
        "requests.storage": "10Gi", "count/replicasets.apps": "5"}})).await;
    assert_eq!(used(&api.get(&path).await, "resourcequotas"), "1");
    assert_eq!(used(&api.get(&path).await, "configmaps"), "1", "the root CA counts");
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "x"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}});
    let service = |kind: &str| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    for (resource, object, counts) in [
        ("/api/v1/@/configmaps", json!({"metadata": {"name": "x"}}), vec![("configmaps", "2", "1")]),
        ("/api/v1/@/secrets", json!({"metadata": {"name": "x"}}), vec![("secrets", "1", "0")]),
        ("/api/v1/@/pods", pod("x", json!({"cpu": "100m"})), vec![("pods", "1", "0")]),
        ("/api/v1/@/services", service("NodePort"), vec![("services", "1", "0"), ("services.nodeports", "1", "0")]),
        (
            "/api/v1/@/services",
            service("LoadBalancer"),
            vec![("services", "1", "0"), ("services.loadbalancers", "1", "0")],
        ),
        (
            "/api/v1/@/replicationcontrollers",
            workload("ReplicationController", "x", 0, json!({"a": "b"}), "web"),
            vec![("replicationcontrollers", "1", "0")],
        ),
        (
            "/apis/apps/v1/@/replicasets",
            workload("ReplicaSet", "x", 0, json!({"a": "b"}), "web"),
            vec![("count/replicasets.apps", "1", "0")],
        ),
        (
            "/api/v1/@/persistentvolumeclaims",
            claim,
            vec![("persistentvolumeclaims", "1", "0"), ("requests.storage", "1Gi", "0")],
        ),
    ] {
        let collection = resource.replace('@', &format!("namespaces/{ns}"));
        api.post(&collection, object).await;
        for (what, with, _) in &counts {
            api.until(&format!("{what} is {with}"), &path, |q| used(q, what) == *with).await;
        }
        api.delete(&format!("{collection}/x")).await;
        for (what, _, without) in &counts {
            api.until(&format!("{what} is {without} again"), &path, |q| used(q, what) == *without).await;
        }
    }
    let over = api
        .try_post(
            &format!("/api/v1/namespaces/{ns}/resourcequotas"),
            &json!({"metadata": {"name": "second"}, "spec": {"hard": {"pods": "1"}}}),
        )
        .await
        .expect_err("quotas are counted too");
    assert!(over.code == 403 && over.message.contains("exceeded quota"), "{}", over.message);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_beyond_the_quota_are_refused_and_updates_count() {
    let api = Api::start().await;
    let ns = api.namespace("bounded").await;
    let path = quota(
        &api,
        &ns,
        "q",
        json!({"hard": {"pods": "5", "cpu": "1", "memory": "500Mi", "requests.example.com/dongle": "3"}}),
    )
    .await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let fits = json!({"cpu": "500m", "memory": "252Mi"});
    api.post(&pods, pod("fits", fits)).await;
    api.until("counted", &path, |q| used(q, "pods") == "1" && used(q, "cpu") == "500m" && used(q, "memory") == "252Mi")
        .await;
    for (name, requests) in
        [("cpu", json!({"cpu": "600m", "memory": "100Mi"})), ("memory", json!({"cpu": "100m", "memory": "300Mi"}))]
    {
        let refused = api.try_post(&pods, &pod(name, requests)).await.expect_err("too much");
        assert!(refused.code == 403 && refused.message.contains(name), "{}", refused.message);
    }
    let refused = api.try_post(&pods, &pod("silent", json!({}))).await.expect_err("a pod must say what it needs");
    assert!(refused.message.contains("must specify"), "{}", refused.message);
    // A pod cannot grow through the back door, and the quota follows its own change.
    let grown = json!({"spec": {"containers": [{"name": "c", "image": "web", "resources": {"requests": {"cpu": "900m", "memory": "252Mi"}}}]}});
    assert!(api.try_patch(&format!("{pods}/fits"), MERGE, &grown).await.is_err());
    api.update(&path, |q| q.set_at(&["spec", "hard", "cpu"], "2".into())).await;
    api.until("the new limit is in the status", &path, |q| q.str_at(&["status", "hard", "cpu"]) == "2").await;
    api.post(&pods, pod("now", json!({"cpu": "600m", "memory": "100Mi"}))).await;
    api.delete(&format!("{pods}/fits")).await;
    api.delete(&format!("{pods}/now")).await;
    api.until("nothing is used", &path, |q| used(q, "pods") == "0" && used(q, "cpu") == "0").await;
    api.delete(&path).await;
    api.until_gone(&path).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_count_only_their_pods() {
    let api = Api::start().await;
    let ns = api.namespace("scoped").await;
    let scoped = |scope: &str| json!({"hard": {"pods": "5"}, "scopes": [scope]});
    let mut paths = Vec::new();
    for (name, scope) in [
        ("best", "BestEffort"),
        ("not-best", "NotBestEffort"),
        ("ending", "Terminating"),
        ("lasting", "NotTerminating"),
    ] {
        paths.push(quota(&api, &ns, name, scoped(scope)).await);
    }
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let with_deadline = |mut pod: Value| {
        pod.set_at(&["spec", "activeDeadlineSeconds"], 3600.into());
        pod
    };
    for (pod, want) in [
        (pod("plain", json!({})), ["1", "0", "0", "1"]),
        (pod("burstable", json!({"cpu": "100m"})), ["0", "1", "0", "1"]),
        (with_deadline(pod("deadline", json!({"cpu": "100m"}))), ["0", "1", "1", "0"]),
    ] {
        let name = name_of(&pod).to_owned();
        api.post(&pods, pod).await;
        for (path, want) in paths.iter().zip(want) {
            api.until(&format!("{name}: {want}"), path, |q| used(q, "pods") == want).await;
        }
        api.delete(&format!("{pods}/{name}")).await;
        for path in &paths {
            api.until("given back", path, |q| used(q, "pods") == "0").await;
        }
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_over_quota_says_so_until_there_is_room() {
    let api = Api::start().await;
    let ns = api.namespace("failing").await;
    quota(&api, &ns, "two", json!({"hard": {"pods": "2"}})).await;
    for (kind, collection) in [
        ("ReplicationController", format!("/api/v1/namespaces/{ns}/replicationcontrollers")),
        ("ReplicaSet", format!("/apis/apps/v1/namespaces/{ns}/replicasets")),
    ] {
        api.post(&collection, workload(kind, "w", 3, json!({"app": kind}), "web")).await;
        let path = format!("{collection}/w");
        api.until("a failure condition", &path, |w| condition(w, "ReplicaFailure") == "True").await;
        api.merge(&path, json!({"spec": {"replicas": 2}})).await;
        api.until("no failure condition", &path, |w| {
            condition(w, "ReplicaFailure").is_empty() && w["status"]["replicas"] == 2
        })
        .await;
        api.delete_with(&path, json!({"propagationPolicy": "Foreground"})).await;
        api.until_gone(&path).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_range_fills_in_and_refuses() {
    let api = Api::start().await;
    let ns = api.namespace("ranged").await;
    let ranges = format!("/api/v1/namespaces/{ns}/limitranges");
    api.post(
        &ranges,
        json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container",
        "min": {"cpu": "50m", "memory": "100Mi"}, "max": {"cpu": "500m", "memory": "500Mi"},
        "default": {"cpu": "500m", "memory": "500Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"}}]}}),
    )
    .await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let resources = |p: &Value| p["spec"]["containers"][0]["resources"].clone();
    let full = json!({"limits": {"cpu": "500m", "memory": "500Mi"}, "requests": {"cpu": "100m", "memory": "200Mi"}});
    let plain = api
        .post(&pods, json!({"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "c", "image": "web"}]}}))
        .await;
    assert_eq!(resources(&plain), full);
    let partial = api.post(&pods, pod("partial", json!({"cpu": "300m", "memory": "150Mi"}))).await;
    assert_eq!(
        resources(&partial),
        json!({"limits": {"cpu": "500m", "memory": "500Mi"}, "requests": {"cpu": "300m", "memory": "150Mi"}})
    );
    for (name, requests) in
        [("low", json!({"cpu": "10m", "memory": "150Mi"})), ("high", json!({"cpu": "600m", "memory": "150Mi"}))]
    {
        let refused = api.try_post(&pods, &pod(name, requests)).await.expect_err(name);
        assert!(matches!(refused.code, 403 | 422), "{}", refused.message);
    }
    api.update(&format!("{ranges}/r"), |r| {
        r.set_at(&["spec", "limits"], json!([{"type": "Container", "min": {"cpu": "9m", "memory": "100Mi"}}]))
    })
    .await;
    api.post(&pods, pod("low", json!({"cpu": "10m", "memory": "150Mi"}))).await;
    api.delete(&format!("{ranges}/r")).await;
    api.stop().await;
}
