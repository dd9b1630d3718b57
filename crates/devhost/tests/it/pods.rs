//! Pods on simulated nodes, nodes themselves, service accounts: what is admitted, what happens to it, what it says.

use apimachinery::{Value, json};

use crate::api::*;

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}});
    for (key, value) in spec.as_object().into_iter().flat_map(|m| m.iter()) {
        pod["spec"][key.as_str()] = value.clone();
    }
    pod
}

fn running(p: &Value) -> bool {
    p.str_at(&["status", "phase"]) == "Running" && condition(p, "Ready") == "True"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_submitted_updated_watched_and_removed() {
    let api = Api::start().await;
    let ns = api.namespace("submitted").await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let version = version_of(&api.get(&pods).await).to_owned();
    let mut events = api.watch(&pods, &version, "&labelSelector=name%3Dp").await;
    let made = api.post(&pods, pod("p", json!({"terminationGracePeriodSeconds": 30}))).await;
    events.until("ADDED", "p", |_| true).await;
    let path = format!("{pods}/p");
    let up = api.until("running", &path, running).await;
    assert!(up.str_at(&["status", "hostIP"]).starts_with("192.168."), "{up}");
    assert_eq!(up["status"]["hostIPs"][0].str_at(&["ip"]), up.str_at(&["status", "hostIP"]));
    assert_eq!(up["status"]["podIPs"][0].str_at(&["ip"]), up.str_at(&["status", "podIP"]));
    assert_eq!(made.str_at(&["metadata", "uid"]), up.str_at(&["metadata", "uid"]));
    // Labels may change, the deadline only shrinks.
    api.merge(&path, json!({"metadata": {"labels": {"time": "now"}}})).await;
    assert_eq!(api.get(&format!("{pods}?labelSelector=time%3Dnow")).await.array_at(&["items"]).len(), 1);
    api.merge(&path, json!({"spec": {"activeDeadlineSeconds": 3600}})).await;
    let refused =
        api.try_patch(&path, MERGE, &json!({"spec": {"activeDeadlineSeconds": 7200}})).await.expect_err("longer");
    assert_eq!(refused.code, 422, "{}", refused.message);
    // Its status can be patched and replaced by anybody who may.
    let status = json!({"status": {"conditions": [{"type": "TestCondition", "status": "True"}]}});
    let patched = api.try_patch(&format!("{path}/status"), STRATEGIC, &status).await.expect("a status patch");
    assert_eq!((condition(&patched, "TestCondition"), condition(&patched, "PodScheduled")), ("True", "True"));
    api.update(&format!("{path}/status"), |p| {
        let conditions: Vec<Value> = p
            .array_at(&["status", "conditions"])
            .iter()
            .cloned()
            .map(|mut c| {
                if c.str_at(&["type"]) == "TestCondition" {
                    c["status"] = "False".into();
                }
                c
            })
            .collect();
        p.set_at(&["status", "conditions"], Value::Array(conditions));
    })
    .await;
    events.until("MODIFIED", "p", |p| condition(p, "TestCondition") == "False").await;
    // A graceful deletion counts as a change of what is wanted, and ends at the node.
    let before = api.get(&path).await["metadata"]["generation"].as_i64().unwrap_or(0);
    api.delete_with(&path, json!({"gracePeriodSeconds": 1})).await;
    let going = events.until("MODIFIED", "p", |p| !p.str_at(&["metadata", "deletionTimestamp"]).is_empty()).await;
    assert_eq!(going["metadata"]["generation"].as_i64(), Some(before + 1));
    events.until("DELETED", "p", |_| true).await;
    // Many at once.
    for name in ["a", "b", "c"] {
        let mut one = pod(name, json!({}));
        one.set_at(&["metadata", "labels", "type"], "Testing".into());
        api.post(&pods, one).await;
    }
    api.delete(&format!("{pods}?labelSelector=type%3DTesting")).await;
    api.until_count("none", &format!("{pods}?labelSelector=type%3DTesting"), 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generation_of_a_pod_is_counted_and_observed() {
    let api = Api::start().await;
    let ns = api.namespace("generations").await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let mut custom = pod("p", json!({}));
    custom.set_at(&["metadata", "generation"], 100.into());
    let made = api.post(&pods, custom).await;
    assert_eq!(made["metadata"]["generation"], 1, "what the client says does not count");
    let path = format!("{pods}/p");
    api.until("running", &path, running).await;
    let mut want = 1;
    for (change, counts) in [
        (json!({"spec": {"activeDeadlineSeconds": 5000}}), true),
        (
            json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 300}, {"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 300}]}}),
            true,
        ),
        (json!({"metadata": {"labels": {"a": "b"}}}), false),
        (json!({"metadata": {"annotations": {"a": "b"}}}), false),
    ] {
        let changed = api.merge(&path, change.clone()).await;
        want += i64::from(counts);
        assert_eq!(changed["metadata"]["generation"], want, "{change}");
    }
    for i in 0..50 {
        let changed = api.merge(&path, json!({"spec": {"activeDeadlineSeconds": 4999 - i}})).await;
        want += 1;
        assert_eq!(changed["metadata"]["generation"], want);
    }
    api.until("the node catches up", &path, |p| p["status"]["observedGeneration"] == want).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_run_one_after_another_before_the_rest() {
    let api = Api::start().await;
    let ns = api.namespace("initialized").await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let init = json!([{"name": "init1", "image": "busybox", "command": ["/bin/true"]}, {"name": "init2", "image": "busybox", "command": ["/bin/true"]}]);
    for (name, policy, container, phase) in [
        ("always", "Always", json!([{"name": "run1", "image": "pause"}]), "Running"),
        ("never", "Never", json!([{"name": "run1", "image": "busybox", "command": ["/bin/true"]}]), "Succeeded"),
    ] {
        api.post(
            &pods,
            pod(name, json!({"restartPolicy": policy, "initContainers": init.clone(), "containers": container})),
        )
        .await;
        let done = api.until(phase, &format!("{pods}/{name}"), |p| p.str_at(&["status", "phase"]) == phase).await;
        assert_eq!(condition(&done, "Initialized"), "True");
        let statuses = done.array_at(&["status", "initContainerStatuses"]);
        assert_eq!(statuses.len(), 2);
        for status in statuses {
            assert_eq!(status["ready"], true, "{status}");
            assert_eq!(status["state"]["terminated"]["exitCode"], 0, "{status}");
        }
    }
    // A pod whose command always fails can be deleted.
    api.post(&pods, pod("failing", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox", "command": ["/bin/false"]}]}))).await;
    api.until("failed", &format!("{pods}/failing"), |p| p.str_at(&["status", "phase"]) == "Failed").await;
    api.delete(&format!("{pods}/failing")).await;
    api.until_gone(&format!("{pods}/failing")).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_classed_and_bad_ones_are_refused() {
    let api = Api::start().await;
    let ns = api.namespace("classed").await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let with = |resources: Value| json!({"containers": [{"name": "c", "image": "web", "resources": resources}]});
    for (name, resources, class) in [
        (
            "guaranteed",
            json!({"limits": {"cpu": "100m", "memory": "100Mi"}, "requests": {"cpu": "100m", "memory": "100Mi"}}),
            "Guaranteed",
        ),
        ("burstable", json!({"requests": {"cpu": "100m"}}), "Burstable"),
        ("best", json!({}), "BestEffort"),
    ] {
        let made = api.post(&pods, pod(name, with(resources))).await;
        assert_eq!(made.str_at(&["status", "qosClass"]), class);
    }
    let sysctls = json!({"securityContext": {"sysctls": [{"name": "foo-", "value": "bar"}, {"name": "kernel.shmmax", "value": "1"},
        {"name": "safe-and-unsafe", "value": "1"}, {"name": "bar..", "value": "42"}]}});
    let refused = api.try_post(&pods, &pod("sysctls", sysctls)).await.expect_err("bad names");
    assert!(
        refused.message.contains("Invalid value: \"foo-\"") && refused.message.contains("Invalid value: \"bar..\""),
        "{}",
        refused.message
    );
    assert!(
        !refused.message.contains("kernel.shmmax") && !refused.message.contains("safe-and-unsafe"),
        "{}",
        refused.message
    );

    let csi = json!({"volumes": [{"name": "v", "csi": {"driver": "e2e.example.com", "volumeAttributes": {"attribute": "1"}}}]});
    let made = api.post(&pods, pod("inline", csi)).await;
    assert_eq!(made["spec"]["volumes"][0].str_at(&["csi", "driver"]), "e2e.example.com");
    api.merge(&format!("{pods}/inline"), json!({"metadata": {"labels": {"patched": "true"}}})).await;
    api.delete(&format!("{pods}?labelSelector=patched%3Dtrue")).await;
    api.until_gone(&format!("{pods}/inline")).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_classes_add_overhead_and_must_exist() {
    let api = Api::start().await;
    let ns = api.namespace("runtimes").await;
    let (pods, classes) = (format!("/api/v1/namespaces/{ns}/pods"), "/apis/node.k8s.io/v1/runtimeclasses");
    let refused =
        api.try_post(&pods, &pod("none", json!({"runtimeClassName": "nonexistent"}))).await.expect_err("no such class");
    assert_eq!(refused.code, 403, "{}", refused.message);
    api.post(classes, json!({"metadata": {"name": "plain"}, "handler": "h"})).await;
    api.post(classes, json!({"metadata": {"name": "heavy"}, "handler": "h", "overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}}})).await;
    for (name, overhead) in [("plain", Value::Null), ("heavy", json!({"cpu": "10m", "memory": "1Mi"}))] {
        let made = api.post(&pods, pod(name, json!({"runtimeClassName": name}))).await;
        assert_eq!(made.at(&["spec", "overhead"]).cloned().unwrap_or_default(), overhead, "{name}");
        api.until("scheduled", &format!("{pods}/{name}"), |p| condition(p, "PodScheduled") == "True").await;
    }
    api.delete(&format!("{classes}/plain")).await;
    let refused = api.try_post(&pods, &pod("late", json!({"runtimeClassName": "plain"}))).await.expect_err("deleted");
    assert_eq!(refused.code, 403, "{}", refused.message);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_ready_and_can_be_made_patched_and_removed() {
    let api = Api::start().await;
    let nodes = api
        .until("three ready nodes", "/api/v1/nodes", |l| {
            l.array_at(&["items"]).len() == 3
                && l.array_at(&["items"])
                    .iter()
                    .all(|n| condition(n, "Ready") == "True" && n.array_at(&["spec", "taints"]).is_empty())
        })
        .await;
    for node in nodes.array_at(&["items"]) {
        assert_eq!(node.str_at(&["metadata", "labels", "kubernetes.io/os"]), "linux");
        assert_eq!(node.str_at(&["metadata", "labels", "kubernetes.io/hostname"]), name_of(node));
        assert!(node.array_at(&["status", "addresses"]).iter().any(|a| a.str_at(&["type"]) == "InternalIP"));
        for field in ["kubeletVersion", "osImage", "kernelVersion", "containerRuntimeVersion", "architecture"] {
            assert!(!node.str_at(&["status", "nodeInfo", field]).is_empty(), "{field}");
        }
        for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
            assert!(node.at(&["status", "allocatable", resource]).is_some(), "{resource}");
        }
    }
    let lease = api.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-0").await;
    assert_eq!(lease.str_at(&["spec", "holderIdentity"]), "node-0");
    // A node that somebody made by hand lives until it is deleted.
    let fake = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "e2e-fake-node"}, "spec": {"unschedulable": true},
        "status": {"capacity": {"cpu": "1"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    api.post("/api/v1/nodes", fake).await;
    let path = "/api/v1/nodes/e2e-fake-node";
    api.merge(path, json!({"metadata": {"labels": {"patched": "true"}}, "spec": {"unschedulable": true}})).await;
    api.update(path, |n| n.set_at(&["metadata", "labels", "updated"], "true".into())).await;
    let status = api
        .merge(
            &format!("{path}/status"),
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]}}),
        )
        .await;
    assert_eq!(status["status"]["addresses"][0].str_at(&["address"]), "10.9.9.9");
    api.delete("/api/v1/nodes?labelSelector=patched%3Dtrue").await;
    api.until_gone(path).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_volumes_are_mounted_unless_somebody_opts_out() {
    let api = Api::start().await;
    let ns = api.namespace("mounting").await;
    let (pods, accounts) =
        (format!("/api/v1/namespaces/{ns}/pods"), format!("/api/v1/namespaces/{ns}/serviceaccounts"));
    for (account, mount) in [("defaultsa", Value::Null), ("mountsa", true.into()), ("nomountsa", false.into())] {
        let mut object = json!({"metadata": {"name": account}});
        if !mount.is_null() {
            object["automountServiceAccountToken"] = mount;
        }
        api.post(&accounts, object).await;
    }
    for (account, wanted, mounted) in [
        ("defaultsa", None, true),
        ("mountsa", None, true),
        ("nomountsa", None, false),
        ("defaultsa", Some(true), true),
        ("mountsa", Some(true), true),
        ("nomountsa", Some(true), true),
        ("defaultsa", Some(false), false),
        ("mountsa", Some(false), false),
        ("nomountsa", Some(false), false),
    ] {
        let mut spec = json!({"serviceAccountName": account});
        if let Some(wanted) = wanted {
            spec["automountServiceAccountToken"] = wanted.into();
        }
        let made = api
            .post(&pods, pod(&format!("{account}-{}", wanted.map_or("unset".to_owned(), |w| w.to_string())), spec))
            .await;
        let mounts = made["spec"]["containers"][0].array_at(&["volumeMounts"]);
        let has = mounts.iter().any(|m| m.str_at(&["mountPath"]) == "/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(has, mounted, "{account} {wanted:?}");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_account_tokens_are_made_reviewed_and_bound() {
    let api = Api::start().await;
    let ns = api.namespace("tokens").await;
    let accounts = format!("/api/v1/namespaces/{ns}/serviceaccounts");
    api.post(&accounts, json!({"metadata": {"name": "sa"}, "automountServiceAccountToken": false})).await;
    let updated = api.update(&format!("{accounts}/sa"), |a| a["automountServiceAccountToken"] = true.into()).await;
    assert_eq!(updated["automountServiceAccountToken"], true);
    let token = api.post(&format!("{accounts}/sa/token"), json!({"spec": {"expirationSeconds": 600}})).await;
    let review = |token: &str| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let reviewed = api.post(reviews, review(token.str_at(&["status", "token"]))).await;
    assert_eq!(reviewed["status"]["authenticated"], true, "{reviewed}");
    assert_eq!(reviewed.str_at(&["status", "user", "username"]), format!("system:serviceaccount:{ns}:sa"));
    let bad = api.post(reviews, review("not.a.token")).await;
    assert_ne!(bad["status"]["authenticated"], true);
    // For another audience it is no token of this server's.
    let other = api.post(&format!("{accounts}/sa/token"), json!({"spec": {"audiences": ["vault"]}})).await;
    let mut asked = review(other.str_at(&["status", "token"]));
    assert_ne!(api.post(reviews, asked.clone()).await["status"]["authenticated"], true);
    asked["spec"]["audiences"] = json!(["vault"]);
    let reviewed = api.post(reviews, asked).await;
    assert_eq!(
        (reviewed["status"]["authenticated"].as_bool(), reviewed["status"]["audiences"].to_string()),
        (Some(true), json!(["vault"]).to_string())
    );
    // Bound to a pod it says so, and ends with it.
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let made = api.post(&pods, pod("p", json!({"serviceAccountName": "sa"}))).await;
    api.until("running", &format!("{pods}/p"), running).await;
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made.str_at(&["metadata", "uid"])}}});
    let bound = api.post(&format!("{accounts}/sa/token"), bound).await;
    let asked = review(bound.str_at(&["status", "token"]));
    let reviewed = api.post(reviews, asked.clone()).await;
    let extra = &reviewed["status"]["user"]["extra"];
    assert_eq!(extra["authentication.kubernetes.io/pod-name"][0], "p", "{reviewed}");
    assert!(extra.get("authentication.kubernetes.io/node-name").is_some(), "{reviewed}");
    api.delete_with(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await;
    api.until_gone(&format!("{pods}/p")).await;
    assert_ne!(api.post(reviews, asked).await["status"]["authenticated"], true, "the pod is gone");
    for (spec, code) in [
        (json!({"expirationSeconds": 60}), 422),
        (json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "missing"}}), 404),
        (json!({"boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "m"}}), 400),
    ] {
        let refused = api.try_post(&format!("{accounts}/sa/token"), &json!({"spec": spec})).await.expect_err("refused");
        assert_eq!(refused.code, code, "{}", refused.message);
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_certificates_are_published_and_access_is_reviewed() {
    let api = Api::start().await;
    let ns = api.namespace("reviewed").await;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/kube-root-ca.crt");
    let ca = |m: &Value| m.str_at(&["data", "ca.crt"]).starts_with("-----BEGIN CERTIFICATE-----");
    api.until("published", &path, ca).await;
    api.delete(&path).await;
    api.until("published again", &path, ca).await;
    api.merge(&path, json!({"data": {"ca.crt": ""}})).await;
    api.until("put right", &path, ca).await;

    let reviews = "/apis/authorization.k8s.io/v1";
    let attributes = json!({"verb": "list", "resource": "configmaps", "namespace": ns.as_str()});
    let ask = |user: &str| json!({"spec": {"user": user, "resourceAttributes": attributes.clone()}});
    let allowed =
        async |path: &str, body: Value| api.post(path, body).await["status"]["allowed"].as_bool().unwrap_or(false);
    let user = format!("system:serviceaccount:{ns}:default");
    assert!(!allowed(&format!("{reviews}/subjectaccessreviews"), ask(&user)).await);
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
    api.post(&format!("{rbac}/roles"), json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]})).await;
    api.post(&format!("{rbac}/rolebindings"), json!({"metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": ns.as_str()}]})).await;
    assert!(allowed(&format!("{reviews}/subjectaccessreviews"), ask(&user)).await);
    assert!(allowed(&format!("{reviews}/namespaces/{ns}/localsubjectaccessreviews"), ask(&user)).await);
    assert!(
        allowed(
            &format!("{reviews}/selfsubjectaccessreviews"),
            json!({"spec": {"resourceAttributes": attributes.clone()}})
        )
        .await
    );
    api.stop().await;
}
