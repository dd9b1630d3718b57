//! Workloads on simulated nodes: Deployments, sets, Jobs and the budgets that protect their pods.

use apimachinery::{Value, json};

use crate::api::*;

fn settled(replicas: i64) -> impl Fn(&Value) -> bool {
    move |w| {
        w["status"]["observedGeneration"] == w["metadata"]["generation"]
            && w["status"]["readyReplicas"].as_i64().unwrap_or(0) == replicas
            && w["status"]["replicas"].as_i64().unwrap_or(0) == replicas
    }
}

fn updated(replicas: i64) -> impl Fn(&Value) -> bool {
    move |w| settled(replicas)(w) && w["status"]["updatedReplicas"].as_i64().unwrap_or(0) == replicas
}

fn image(list: &Value) -> Vec<&str> {
    let mut all: Vec<&str> =
        list.array_at(&["items"]).iter().map(|p| p["spec"]["containers"][0].str_at(&["image"])).collect();
    all.dedup();
    all
}

fn new_image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_roll_recreate_and_keep_a_bounded_history() {
    let api = Api::start().await;
    let ns = api.namespace("rolling").await;
    let all = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    let sets = format!("/apis/apps/v1/namespaces/{ns}/replicasets");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    // A rolling update adopts a ReplicaSet that was there before.
    api.post(&sets, workload("ReplicaSet", "before", 1, json!({"app": "roll"}), "old")).await;
    api.until("one pod", &format!("{sets}/before"), settled(1)).await;
    api.merge(
        &format!("{sets}/before"),
        json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "3546343826724305832"}}}),
    )
    .await;
    api.post(&all, workload("Deployment", "roll", 1, json!({"app": "roll"}), "new")).await;
    let rolled = api.until("rolled", &format!("{all}/roll"), updated(1)).await;
    assert_eq!(rolled.str_at(&["metadata", "annotations", "deployment.kubernetes.io/revision"]), "3546343826724305833");
    let old = api.get(&format!("{sets}/before")).await;
    assert_eq!(
        (old["spec"]["replicas"].as_i64(), old["metadata"]["ownerReferences"][0].str_at(&["name"])),
        (Some(0), "roll")
    );
    // Recreate: never two versions at the same time.
    let mut recreate = workload("Deployment", "again", 2, json!({"app": "again"}), "old");
    recreate.set_at(&["spec", "strategy"], json!({"type": "Recreate"}));
    api.post(&all, recreate).await;
    api.until("up", &format!("{all}/again"), updated(2)).await;
    let of = "labelSelector=app%3Dagain";
    let version = version_of(&api.get(&format!("{pods}?{of}")).await).to_owned();
    let mut events = api.watch(&pods, &version, &format!("&{of}")).await;
    api.try_patch(&format!("{all}/again"), STRATEGIC, &new_image("new")).await.expect("a new image");
    let mut gone = 0;
    loop {
        let (kind, pod) = events.next().await;
        match (kind.as_str(), pod["spec"]["containers"][0].str_at(&["image"])) {
            ("DELETED", "old") => gone += 1,
            ("ADDED", "new") => break,
            _ => {}
        }
    }
    // Terminating pods do not hold the new ones back; each old one was at least on its way.
    let left = api.get(&format!("{pods}?{of}")).await;
    let alive = |p: &&Value| p.str_at(&["metadata", "deletionTimestamp"]).is_empty();
    let old_alive =
        left.array_at(&["items"]).iter().filter(alive).any(|p| p["spec"]["containers"][0].str_at(&["image"]) == "old");
    assert!(!old_alive && gone <= 2);
    api.until("recreated", &format!("{all}/again"), updated(2)).await;
    // Old ReplicaSets go when no history is wanted.
    let mut forgetful = workload("Deployment", "forgetful", 1, json!({"app": "forgetful"}), "one");
    forgetful.set_at(&["spec", "revisionHistoryLimit"], 0.into());
    api.post(&all, forgetful).await;
    api.until("up", &format!("{all}/forgetful"), updated(1)).await;
    api.try_patch(&format!("{all}/forgetful"), STRATEGIC, &new_image("two")).await.expect("a new image");
    api.until("rolled", &format!("{all}/forgetful"), updated(1)).await;
    api.until_count("one set", &format!("{sets}?labelSelector=app%3Dforgetful"), 1).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_scale_in_proportion_and_roll_over() {
    let api = Api::start().await;
    let ns = api.namespace("proportion").await;
    let all = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    let sets = format!("/apis/apps/v1/namespaces/{ns}/replicasets?labelSelector=app%3Dweb");
    let mut deployment = workload("Deployment", "web", 10, json!({"app": "web"}), "web");
    deployment.set_at(
        &["spec", "strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}),
    );
    api.post(&all, deployment).await;
    let path = format!("{all}/web");
    api.until("ten", &path, updated(10)).await;
    // The new image does not exist: the rollout stops at what surge and unavailability allow.
    api.try_patch(&path, STRATEGIC, &new_image("webserver:404")).await.expect("a new image");
    let sizes = |list: &Value| {
        let mut sizes: Vec<(String, i64)> = list
            .array_at(&["items"])
            .iter()
            .map(|s| {
                (
                    s["spec"]["template"]["spec"]["containers"][0].str_at(&["image"]).to_owned(),
                    s["spec"]["replicas"].as_i64().unwrap_or(0),
                )
            })
            .collect();
        sizes.sort();
        sizes
    };
    let is = move |web: i64, broken: i64| {
        move |l: &Value| sizes(l) == [("web".to_owned(), web), ("webserver:404".to_owned(), broken)]
    };
    api.until("8 and 5", &sets, is(8, 5)).await;
    api.merge(&path, json!({"spec": {"replicas": 30}})).await;
    api.until("20 and 13", &sets, is(20, 13)).await;
    // A third image rolls over the broken second one.
    api.try_patch(&path, STRATEGIC, &new_image("better")).await.expect("a new image");
    api.until("all on the third", &path, updated(30)).await;
    let list = api.get(&sets).await;
    let busy: Vec<&Value> = list.array_at(&["items"]).iter().filter(|s| s["spec"]["replicas"] != 0).collect();
    assert_eq!(busy.len(), 1, "the old sets are empty");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scales_are_read_and_written_of_every_scalable_kind() {
    let api = Api::start().await;
    let ns = api.namespace("scaled").await;
    for (kind, base, resource) in [
        ("Deployment", "/apis/apps/v1", "deployments"),
        ("ReplicaSet", "/apis/apps/v1", "replicasets"),
        ("StatefulSet", "/apis/apps/v1", "statefulsets"),
        ("ReplicationController", "/api/v1", "replicationcontrollers"),
    ] {
        let collection = format!("{base}/namespaces/{ns}/{resource}");
        let mut object = workload(kind, "w", 1, json!({"app": kind}), "web");
        if kind == "StatefulSet" {
            object.set_at(&["spec", "serviceName"], "s".into());
        }
        api.post(&collection, object).await;
        let path = format!("{collection}/w");
        api.until("one", &path, settled(1)).await;
        let scale = api.get(&format!("{path}/scale")).await;
        assert_eq!((scale.str_at(&["kind"]), scale["spec"]["replicas"].as_i64()), ("Scale", Some(1)), "{kind}");
        assert!(scale.str_at(&["status", "selector"]).contains(kind));
        api.update(&format!("{path}/scale"), |s| s.set_at(&["spec", "replicas"], 2.into())).await;
        api.until("two", &path, settled(2)).await;
        let patched = api.merge(&format!("{path}/scale"), json!({"spec": {"replicas": 3}})).await;
        assert_eq!(patched["spec"]["replicas"], 3, "{kind}");
        let grown = api.until("three", &path, settled(3)).await;
        assert_eq!(grown["spec"]["replicas"], 3);
        api.delete_with(&path, json!({"propagationPolicy": "Background"})).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_live_through_patches_replacements_and_collections() {
    let api = Api::start().await;
    let ns = api.namespace("living").await;
    for (kind, base, resource) in [
        ("Deployment", "/apis/apps/v1", "deployments"),
        ("ReplicaSet", "/apis/apps/v1", "replicasets"),
        ("StatefulSet", "/apis/apps/v1", "statefulsets"),
        ("ReplicationController", "/api/v1", "replicationcontrollers"),
    ] {
        let collection = format!("{base}/namespaces/{ns}/{resource}");
        let of = format!("{collection}?labelSelector=app%3D{kind}");
        let version = version_of(&api.get(&collection).await).to_owned();
        let mut events = api.watch(&collection, &version, "").await;
        let mut object = workload(kind, "w", 1, json!({"app": kind}), "one");
        if kind == "StatefulSet" {
            object.set_at(&["spec", "serviceName"], "s".into());
        }
        api.post(&collection, object).await;
        events.until("ADDED", "w", |_| true).await;
        let path = format!("{collection}/w");
        events.until("MODIFIED", "w", settled(1)).await;
        let patch = json!({"metadata": {"labels": {"stage": "patched"}}, "spec": {"replicas": 2, "template": {"spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "two"}]}}}});
        api.try_patch(&path, STRATEGIC, &patch).await.expect("a patch");
        events.until("MODIFIED", "w", settled(2)).await;
        api.update(&path, |w| {
            w.set_at(&["metadata", "labels", "stage"], "replaced".into());
            w.set_at(&["spec", "replicas"], 3.into());
        })
        .await;
        events
            .until("MODIFIED", "w", |w| settled(3)(w) && w.str_at(&["metadata", "labels", "stage"]) == "replaced")
            .await;
        // Conditions that somebody else writes into the status are seen, and the rest is not touched by them.
        let status = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
        let patched = api.merge(&format!("{path}/status"), status).await;
        assert_eq!(
            (condition(&patched, "StatusPatched"), patched["spec"]["replicas"].as_i64()),
            ("True", Some(3)),
            "{kind}"
        );
        events.until("MODIFIED", "w", |w| condition(w, "StatusPatched") == "True").await;
        let written = api
            .update(&format!("{path}/status"), |w| {
                w.set_at(
                    &["status", "conditions"],
                    json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m"}]),
                );
            })
            .await;
        assert_eq!(condition(&written, "StatusUpdate"), "True", "{kind}");
        api.delete(&format!("{of}&propagationPolicy=Background")).await;
        events.until("DELETED", "w", |_| true).await;
        api.until_count("none", &of, 0).await;
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_adopted_when_they_match_and_released_when_they_do_not() {
    let api = Api::start().await;
    let ns = api.namespace("adopting").await;
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    for (kind, base, resource) in
        [("ReplicaSet", "/apis/apps/v1", "replicasets"), ("ReplicationController", "/api/v1", "replicationcontrollers")]
    {
        let name = kind.to_lowercase();
        let orphan = format!("{pods}/{name}");
        api.post(&pods, json!({"metadata": {"name": name.as_str(), "labels": {"name": kind}}, "spec": template(&json!({}), "web")["spec"].clone()})).await;
        let collection = format!("{base}/namespaces/{ns}/{resource}");
        let made = api.post(&collection, workload(kind, &name, 1, json!({"name": kind}), "web")).await;
        let uid = made.str_at(&["metadata", "uid"]).to_owned();
        let owned = move |p: &Value| p["metadata"]["ownerReferences"][0].str_at(&["uid"]) == uid;
        api.until("adopted", &orphan, owned).await;
        api.merge(&orphan, json!({"metadata": {"labels": {"name": "not-matching"}}})).await;
        api.until("released", &orphan, |p| p.array_at(&["metadata", "ownerReferences"]).is_empty()).await;
        api.until("another pod takes its place", &format!("{collection}/{name}"), settled(1)).await;
    }
    let jobs = format!("/apis/batch/v1/namespaces/{ns}/jobs");
    api.post(&jobs, json!({"metadata": {"name": "j"}, "spec": {"parallelism": 2, "completions": 4, "template": {"spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}}}})).await;
    let of = format!("{pods}?labelSelector=job-name%3Dj");
    let list = api
        .until("two pods run", &of, |l| {
            l.array_at(&["items"]).len() == 2
                && l.array_at(&["items"]).iter().all(|p| p.str_at(&["status", "phase"]) == "Running")
        })
        .await;
    let pod = format!("{pods}/{}", name_of(&list["items"][0]));
    api.merge(&pod, json!({"metadata": {"ownerReferences": null}})).await;
    api.until("adopted again", &pod, |p| p.array_at(&["metadata", "ownerReferences"]).len() == 1).await;
    let labels = ["job-name", "batch.kubernetes.io/job-name", "controller-uid", "batch.kubernetes.io/controller-uid"];
    api.update(&pod, |p| {
        for label in labels {
            p.remove_at(&["metadata", "labels", label]);
        }
    })
    .await;
    api.until("released", &pod, |p| p.array_at(&["metadata", "ownerReferences"]).is_empty()).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_succeed_by_index_by_policy_and_are_managed() {
    let api = Api::start().await;
    let ns = api.namespace("jobs").await;
    let jobs = format!("/apis/batch/v1/namespaces/{ns}/jobs");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let job = |name: &str, spec: Value, command: Value| {
        let mut job = json!({"metadata": {"name": name}, "spec": {"parallelism": 2, "completions": 4, "backoffLimit": 6, "template": {"spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox", "command": command}]}}}});
        for (key, value) in spec.as_object().into_iter().flat_map(|m| m.iter()) {
            job["spec"][key.as_str()] = value.clone();
        }
        job
    };
    let succeeds = json!(["sh", "-c", "exit 0"]);
    api.post(&jobs, job("indexed", json!({"completionMode": "Indexed"}), succeeds.clone())).await;
    let done = api.until("complete", &format!("{jobs}/indexed"), |j| condition(j, "Complete") == "True").await;
    assert_eq!((done["status"]["succeeded"].as_i64(), done.str_at(&["status", "completedIndexes"])), (Some(4), "0-3"));
    let list = api.get(&format!("{pods}?labelSelector=job-name%3Dindexed")).await;
    let mut found: Vec<(&str, &str)> = list
        .array_at(&["items"])
        .iter()
        .filter(|p| p.str_at(&["status", "phase"]) == "Succeeded")
        .map(|p| {
            (
                p.str_at(&["metadata", "annotations", "batch.kubernetes.io/job-completion-index"]),
                p.str_at(&["spec", "hostname"]),
            )
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("0", "indexed-0"), ("1", "indexed-1"), ("2", "indexed-2"), ("3", "indexed-3")]);

    let policy = json!({"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "0-3"}]}});
    api.post(&jobs, job("policy", policy, succeeds.clone())).await;
    let done = api.until("complete", &format!("{jobs}/policy"), |j| condition(j, "Complete") == "True").await;
    assert_eq!(condition(&done, "SuccessCriteriaMet"), "True");

    // Suspended at first, patched and updated, then let go.
    api.post(&jobs, job("managed", json!({"suspend": true}), succeeds)).await;
    let path = format!("{jobs}/managed");
    api.until("suspended", &path, |j| condition(j, "Suspended") == "True").await;
    assert!(api.get(&format!("{pods}?labelSelector=job-name%3Dmanaged")).await.array_at(&["items"]).is_empty());
    api.merge(&path, json!({"metadata": {"labels": {"patched": "yes"}}})).await;
    api.update(&path, |j| {
        j.set_at(&["spec", "suspend"], false.into());
        j.set_at(&["metadata", "annotations", "updated"], "true".into());
    })
    .await;
    let done = api.until("complete", &path, |j| condition(j, "Complete") == "True").await;
    assert_eq!((done["status"]["succeeded"].as_i64(), condition(&done, "Suspended")), (Some(4), "False"));
    api.delete_with(&path, json!({"propagationPolicy": "Background"})).await;
    api.until_gone(&path).await;

    // A running job is deleted with its pods.
    api.post(&jobs, job("endless", json!({}), json!(["sleep", "infinity"]))).await;
    api.until("active", &format!("{jobs}/endless"), |j| j["status"]["active"] == 2).await;
    api.delete_with(&format!("{jobs}/endless"), json!({"propagationPolicy": "Foreground"})).await;
    api.until_gone(&format!("{jobs}/endless")).await;
    api.until_count("no pods", &format!("{pods}?labelSelector=job-name%3Dendless"), 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stateful_sets_update_in_phases() {
    let api = Api::start().await;
    let ns = api.namespace("stateful").await;
    let all = format!("/apis/apps/v1/namespaces/{ns}/statefulsets");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let mut set = workload("StatefulSet", "ss", 3, json!({"app": "ss"}), "old");
    set.set_at(&["spec", "serviceName"], "s".into());
    set.set_at(&["spec", "updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 3}}));
    api.post(&all, set).await;
    let path = format!("{all}/ss");
    let first = api.until("three", &path, settled(3)).await;
    let old_revision = first.str_at(&["status", "currentRevision"]).to_owned();
    api.try_patch(&path, STRATEGIC, &new_image("new")).await.expect("a new image");
    let pending = api
        .until("a new revision", &path, |s| {
            s.str_at(&["status", "updateRevision"]) != s.str_at(&["status", "currentRevision"])
        })
        .await;
    let new_revision = pending.str_at(&["status", "updateRevision"]).to_owned();
    let revision_of = |list: &Value| -> Vec<String> {
        let mut found: Vec<(String, String)> = list
            .array_at(&["items"])
            .iter()
            .map(|p| (name_of(p).to_owned(), p.str_at(&["metadata", "labels", "controller-revision-hash"]).to_owned()))
            .collect();
        found.sort();
        found.into_iter().map(|(_, revision)| revision).collect()
    };
    assert_eq!(revision_of(&api.get(&pods).await), vec![old_revision.clone(); 3], "the partition holds all back");
    // A canary: only the last pod.
    api.merge(&path, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}})).await;
    let want = vec![old_revision.clone(), old_revision.clone(), new_revision.clone()];
    api.until("a canary", &pods, |l| revision_of(l) == want).await;
    // A pod that is lost comes back in the version of its side of the partition.
    api.until("all ready", &path, settled(3)).await;
    for ordinal in [0, 2] {
        let pod = format!("{pods}/ss-{ordinal}");
        let uid = api.get(&pod).await.str_at(&["metadata", "uid"]).to_owned();
        api.delete(&pod).await;
        api.until("a new pod", &pod, |p| p.str_at(&["metadata", "uid"]) != uid && condition(p, "Ready") == "True")
            .await;
    }
    assert_eq!(revision_of(&api.get(&pods).await), want);
    // Phase by phase to the end.
    for (partition, old) in [(1, 1), (0, 0)] {
        api.merge(&path, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": partition}}}})).await;
        let mut want = vec![old_revision.clone(); old];
        want.resize(3, new_revision.clone());
        api.until("the next phase", &pods, |l| revision_of(l) == want).await;
    }
    let done =
        api.until("current is updated", &path, |s| s.str_at(&["status", "currentRevision"]) == new_revision).await;
    assert_eq!(done["status"]["currentReplicas"], 3);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_sets_follow_nodes_and_roll_back() {
    let api = Api::start().await;
    let ns = api.namespace("daemons").await;
    let all = format!("/apis/apps/v1/namespaces/{ns}/daemonsets");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let daemon = |name: &str, selector: Value| {
        let mut set = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"selector": {"matchLabels": {"app": name}},
            "template": template(&json!({"app": name}), "one")}});
        set.set_at(&["spec", "template", "spec", "nodeSelector"], selector);
        set
    };
    let ready = |n: i64| {
        move |d: &Value| {
            d["status"]["observedGeneration"] == d["metadata"]["generation"]
                && d["status"]["numberReady"] == n
                && d["status"]["desiredNumberScheduled"] == n
                && (n == 0 || d["status"]["updatedNumberScheduled"] == n)
        }
    };
    let of = |name: &str| format!("{pods}?labelSelector=app%3D{name}");
    // A simple daemon is on every node, comes back when a pod is lost or fails, and goes with its set.
    api.post(&all, daemon("simple", json!({}))).await;
    let simple = format!("{all}/simple");
    api.until("on three nodes", &simple, ready(3)).await;
    let list = api.get(&of("simple")).await;
    let mut nodes: Vec<&str> = list.array_at(&["items"]).iter().map(|p| p.str_at(&["spec", "nodeName"])).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-0", "node-1", "node-2"]);
    api.delete(&format!("{pods}/{}", name_of(&list["items"][0]))).await;
    let lost = name_of(&list["items"][0]).to_owned();
    api.until("revived", &of("simple"), |l| {
        l.array_at(&["items"]).len() == 3 && l.array_at(&["items"]).iter().all(|p| name_of(p) != lost)
    })
    .await;
    api.until("ready", &simple, ready(3)).await;
    let failed = name_of(&api.get(&of("simple")).await["items"][0]).to_owned();
    api.merge(&format!("{pods}/{failed}/status"), json!({"status": {"phase": "Failed"}})).await;
    api.until_gone(&format!("{pods}/{failed}")).await;
    api.until("retried", &simple, ready(3)).await;
    // ControllerRevisions hold the history; a rollout and its rollback change exactly the pods they must.
    let revisions = format!("/apis/apps/v1/namespaces/{ns}/controllerrevisions?labelSelector=app%3Dsimple");
    api.until_count("one revision", &revisions, 1).await;
    api.try_patch(&simple, STRATEGIC, &new_image("two")).await.expect("a new image");
    api.until("rolled", &simple, ready(3)).await;
    api.until("all pods are new", &of("simple"), |l| image(l) == ["two"] && l.array_at(&["items"]).len() == 3).await;
    let history = api.until_count("two revisions", &revisions, 2).await;
    assert!(
        history
            .array_at(&["items"])
            .iter()
            .all(|r| r["metadata"]["ownerReferences"][0].str_at(&["kind"]) == "DaemonSet")
    );
    api.try_patch(&simple, STRATEGIC, &new_image("foo:non-existent")).await.expect("a bad image");
    api.until("one pod is stuck", &of("simple"), |l| {
        l.array_at(&["items"]).iter().any(|p| p["spec"]["containers"][0].str_at(&["image"]) == "foo:non-existent")
    })
    .await;
    let before: Vec<String> = api
        .get(&of("simple"))
        .await
        .array_at(&["items"])
        .iter()
        .filter(|p| p["spec"]["containers"][0].str_at(&["image"]) == "two")
        .map(|p| name_of(p).to_owned())
        .collect();
    assert!(!before.is_empty());
    api.try_patch(&simple, STRATEGIC, &new_image("two")).await.expect("back");
    let after =
        api.until("rolled back", &of("simple"), |l| image(l) == ["two"] && l.array_at(&["items"]).len() == 3).await;
    for name in before {
        assert!(after.array_at(&["items"]).iter().any(|p| name_of(p) == name), "{name} was restarted without need");
    }
    let status = api.merge(&format!("{simple}/status"), json!({"status": {"conditions": [{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m"}]}})).await;
    assert_eq!(condition(&status, "StatusUpdate"), "True");
    // A complex daemon goes where the nodes' labels say.
    api.post(&all, daemon("complex", json!({"color": "blue"}))).await;
    let complex = format!("{all}/complex");
    api.until("nowhere", &complex, ready(0)).await;
    api.merge("/api/v1/nodes/node-1", json!({"metadata": {"labels": {"color": "blue"}}})).await;
    api.until("on one node", &complex, ready(1)).await;
    api.merge("/api/v1/nodes/node-1", json!({"metadata": {"labels": {"color": "green"}}})).await;
    api.until_count("unscheduled", &of("complex"), 0).await;
    api.merge(&complex, json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "green"}}}}})).await;
    api.until("on the green one", &complex, ready(1)).await;
    api.delete(&format!("{all}?labelSelector=app%20in%20(simple,complex)")).await;
    api.until_count("no sets", &all, 0).await;
    api.until_count("no pods", &pods, 0).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_blocks_evictions_until_it_allows_them() {
    let api = Api::start().await;
    let ns = api.namespace("budget").await;
    let budgets = format!("/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets");
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    api.post(
        &budgets,
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "web"}}}}),
    )
    .await;
    let path = format!("{budgets}/b");
    api.post(
        &format!("/apis/apps/v1/namespaces/{ns}/replicasets"),
        workload("ReplicaSet", "web", 3, json!({"app": "web"}), "web"),
    )
    .await;
    api.until("three healthy", &path, |b| {
        b["status"]["currentHealthy"] == 3 && b["status"]["expectedPods"] == 3 && b["status"]["disruptionsAllowed"] == 0
    })
    .await;
    let victim = name_of(&api.get(&pods).await["items"][0]).to_owned();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": victim.as_str()}});
    let blocked = api.try_post(&format!("{pods}/{victim}/eviction"), &eviction).await.expect_err("blocked");
    assert_eq!((blocked.code, blocked.reason.as_str()), (429, "TooManyRequests"), "{}", blocked.message);
    // A dry run of what is allowed evicts nobody.
    api.update(&path, |b| b.set_at(&["spec", "minAvailable"], 2.into())).await;
    api.until("one may go", &path, |b| {
        b["status"]["disruptionsAllowed"] == 1 && b["status"]["observedGeneration"] == b["metadata"]["generation"]
    })
    .await;
    let mut dry = eviction.clone();
    dry.set_at(&["deleteOptions"], json!({"dryRun": ["All"]}));
    api.post(&format!("{pods}/{victim}/eviction"), dry).await;
    assert!(api.get(&format!("{pods}/{victim}")).await.str_at(&["metadata", "deletionTimestamp"]).is_empty());
    api.post(&format!("{pods}/{victim}/eviction"), eviction).await;
    api.until_gone(&format!("{pods}/{victim}")).await;
    api.until("healthy again", &path, |b| b["status"]["currentHealthy"] == 3 && b["status"]["disruptionsAllowed"] == 1)
        .await;
    // Its status can be patched and updated, and a patch of the spec is observed.
    let patched =
        api.merge(&format!("{path}/status"), json!({"status": {"disruptedPods": {"x": "2026-01-01T00:00:00Z"}}})).await;
    assert!(patched.at(&["status", "disruptedPods", "x"]).is_some());
    api.merge(&path, json!({"spec": {"minAvailable": "30%"}})).await;
    api.until("observed", &path, |b| {
        b["status"]["desiredHealthy"] == 1 && b["status"]["observedGeneration"] == b["metadata"]["generation"]
    })
    .await;
    // Pods that are not ready may go whatever the budget says, if the policy lets them.
    api.merge(&path, json!({"spec": {"minAvailable": 3, "unhealthyPodEvictionPolicy": "AlwaysAllow"}})).await;
    api.until("strict again", &path, |b| {
        b["status"]["disruptionsAllowed"] == 0 && b["status"]["observedGeneration"] == b["metadata"]["generation"]
    })
    .await;
    api.post(&pods, json!({"metadata": {"name": "sick", "labels": {"app": "web"}, "annotations": {"sim.alcove.dev/never-ready": "true"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}})).await;
    // The set has one pod too many now and takes one back: the sick one.
    api.until_gone(&format!("{pods}/sick")).await;
    api.delete(&path).await;
    api.until_gone(&path).await;
    api.stop().await;
}
