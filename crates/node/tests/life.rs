//! Pods on a simulated node, told as the sequence of states a tenant sees.

use apimachinery::{Value, json};
use jiff::{SignedDuration, Timestamp};
use node::lifecycle::{Context, advance};

/// Steps a pod until it rests, at most 60 simulated seconds; returns each state as `phase/first container's state/ready`.
fn life(mut pod: Value) -> (Vec<String>, Value) {
    let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let end = now + SignedDuration::from_secs(60);
    let mut seen = Vec::new();
    while now < end {
        let step = advance(&pod, &Context { now, host_ip: "192.168.0.10", pod_ip: "10.244.0.5" });
        if let Some(status) = step.status {
            pod.set_at(&["status"], status);
            let first = &pod["status"]["containerStatuses"][0];
            let state = first["state"].as_object().and_then(|m| m.keys().next()).map_or("", |k| k.as_str());
            let reason = first["state"][state].str_at(&["reason"]);
            let ready =
                pod["status"].array_at(&["conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            seen.push(format!(
                "{} {state}{}{reason}{}",
                pod["status"].str_at(&["phase"]),
                if reason.is_empty() { "" } else { ":" },
                if ready { " ready" } else { "" }
            ));
            continue;
        }
        if step.delete {
            seen.push("deleted".into());
            break;
        }
        match step.wake {
            Some(wait) => now = now + SignedDuration::try_from(wait).expect("short") + SignedDuration::from_millis(1),
            None => break,
        }
    }
    (seen, pod)
}

fn pod(spec: apimachinery::serde_json::Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "uid": "u", "generation": 1}, "spec": {"restartPolicy": "Always"}, "status": {"phase": "Pending"}});
    for (key, value) in spec.as_object().expect("an object") {
        pod.set_at(&["spec", key], value.clone().into());
    }
    pod
}

#[test]
fn a_server_becomes_ready_and_stays() {
    let (seen, pod) = life(pod(apimachinery::serde_json::json!({"containers": [{"name": "c", "image": "web"}]})));
    assert_eq!(seen, ["Pending waiting:ContainerCreating", "Running running ready"]);
    assert_eq!(pod["status"]["podIP"], "10.244.0.5");
    assert_eq!(pod["status"]["observedGeneration"], 1);
}

#[test]
fn init_containers_run_in_order_before_the_others() {
    let (seen, pod) = life(pod(apimachinery::serde_json::json!({
        "initContainers": [{"name": "a", "image": "i", "command": ["sleep", "2"]}, {"name": "b", "image": "i", "command": ["true"]}],
        "containers": [{"name": "c", "image": "web"}]})));
    assert_eq!(seen.first().map(String::as_str), Some("Pending waiting:PodInitializing"));
    assert_eq!(seen.last().map(String::as_str), Some("Running running ready"));
    let finished =
        |i: usize| pod["status"]["initContainerStatuses"][i].str_at(&["state", "terminated", "finishedAt"]).to_owned();
    assert!(finished(0) <= finished(1), "{} then {}", finished(0), finished(1));
    assert!(
        pod["status"]["initContainerStatuses"][1].str_at(&["state", "terminated", "startedAt"]) >= finished(0).as_str()
    );
}

#[test]
fn pods_that_do_not_restart_end() {
    for (command, phase) in [(["sh", "-c", "echo hi"], "Succeeded"), (["sh", "-c", "sleep 1; exit 2"], "Failed")] {
        let (seen, pod) = life(pod(apimachinery::serde_json::json!({"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "busybox", "command": command}]})));
        assert_eq!(pod["status"]["phase"], phase, "{seen:?}");
    }
}

#[test]
fn a_missing_image_is_retried_for_ever() {
    let (seen, _) =
        life(pod(apimachinery::serde_json::json!({"containers": [{"name": "c", "image": "nonexistent:1"}]})));
    assert_eq!(seen, ["Pending waiting:ErrImagePull", "Pending waiting:ImagePullBackOff"]);
}

#[test]
fn asked_for_restarts_happen_and_stop() {
    let mut p = pod(apimachinery::serde_json::json!({"containers": [{"name": "c", "image": "web"}]}));
    p.set_at(&["metadata", "annotations", "sim.alcove.dev/restarts"], "2".into());
    let (seen, pod) = life(p);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 2, "{seen:?}");
    assert_eq!(seen.last().map(String::as_str), Some("Running running ready"), "{seen:?}");
    assert!(seen.iter().any(|s| s.contains("CrashLoopBackOff")), "{seen:?}");
}

#[test]
fn a_deleted_pod_reports_its_end_and_goes() {
    let (_, mut p) = life(pod(apimachinery::serde_json::json!({"containers": [{"name": "c", "image": "web"}]})));
    p.set_at(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:30Z".into());
    let (seen, _) = life(p);
    assert_eq!(seen, ["Succeeded terminated:Completed", "deleted"]);
    let mut unstarted = pod(apimachinery::serde_json::json!({"containers": [{"name": "c", "image": "nonexistent"}]}));
    unstarted.set_at(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:30Z".into());
    assert_eq!(life(unstarted).0, ["deleted"]);
}

#[test]
fn a_deadline_ends_a_pod() {
    let (seen, pod) = life(pod(
        apimachinery::serde_json::json!({"activeDeadlineSeconds": 0, "containers": [{"name": "c", "image": "web"}]}),
    ));
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded", "{seen:?}");
}
