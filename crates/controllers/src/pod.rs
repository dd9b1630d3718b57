//! What a pod's state means to the controllers that own pods.
//!
//! Follows: `pkg/api/v1/pod` and `pkg/controller/controller_utils.go` (`ActivePods`, `ActivePodsWithRanks`).

use std::cmp::{Ordering, Reverse};

use jiff::{SignedDuration, Timestamp};

use crate::types::{Condition, Pod, condition_is_true, find_condition};

pub fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

/// Neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !pod.metadata.is_deleting()
}

/// Being deleted and not finished.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.is_deleting()
}

pub fn ready_condition(pod: &Pod) -> Option<&Condition> {
    find_condition(&pod.status.conditions, "Ready")
}

pub fn is_ready(pod: &Pod) -> bool {
    condition_is_true(&pod.status.conditions, "Ready")
}

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i64, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now) == Some(SignedDuration::ZERO)
}

/// How long until a ready pod counts as available; zero when it does, `None` when it is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i64, now: Timestamp) -> Option<SignedDuration> {
    let condition = ready_condition(pod).filter(|c| c.is_true())?;
    if min_ready_seconds == 0 {
        return Some(SignedDuration::ZERO);
    }
    let since = condition.last_transition_time?;
    let ready_for = now.duration_since(since);
    Some((SignedDuration::from_secs(min_ready_seconds) - ready_for).max(SignedDuration::ZERO))
}

fn ready_time(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod).filter(|c| c.is_true()).and_then(|c| c.last_transition_time)
}

fn max_restarts(pod: &Pod) -> (i64, i64) {
    let restartable =
        |name: &str| pod.spec.init_containers.iter().any(|c| c.name == name && c.restart_policy == "Always");
    let regular = pod.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or(0);
    let sidecar = pod
        .status
        .init_container_statuses
        .iter()
        .filter(|c| restartable(&c.name))
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0);
    (regular, sidecar)
}

fn deletion_cost(pod: &Pod) -> i64 {
    pod.metadata
        .annotations
        .get("controller.kubernetes.io/pod-deletion-cost")
        .and_then(|v| v.parse::<i32>().ok())
        .unwrap_or(0)
        .into()
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod.status.phase.as_str() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

/// The age class: pods whose ages differ by less than a factor of two count as equally old.
fn age_class(from: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    from.map(|from| {
        let seconds = now.duration_since(from).as_secs();
        if seconds <= 0 { 0 } else { i64::from(seconds.ilog2()) + 1 }
    })
}

/// Orders two pods: the one to delete first is less. `rank` counts related pods on the same node.
pub fn deletion_order((a, rank_a): (&Pod, usize), (b, rank_b): (&Pod, usize), now: Timestamp) -> Ordering {
    let unassigned = |p: &Pod| !p.spec.node_name.is_empty();
    // An unset time is the youngest.
    let younger_first = |a: Option<Timestamp>, b: Option<Timestamp>| match (age_class(a, now), age_class(b, now)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => a.cmp(&b),
    };
    unassigned(a)
        .cmp(&unassigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| Reverse(rank_a).cmp(&Reverse(rank_b)))
        .then_with(|| {
            if is_ready(a) && is_ready(b) { younger_first(ready_time(a), ready_time(b)) } else { Ordering::Equal }
        })
        .then_with(|| Reverse(max_restarts(a)).cmp(&Reverse(max_restarts(b))))
        .then_with(|| younger_first(a.metadata.creation_timestamp, b.metadata.creation_timestamp))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::{Value, json};

    fn pod(name: &str, patch: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        for (path, value) in patch.as_object().unwrap().iter() {
            let path: Vec<&str> = path.split('.').collect();
            pod.set_at(&path, value.clone());
        }
        pod.to().unwrap()
    }

    #[test]
    fn the_least_useful_pod_is_deleted_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let ready = |at: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
        let pods = [
            pod("unscheduled", json!({"spec.nodeName": ""})),
            pod("pending", json!({"status.phase": "Pending"})),
            pod("restarted", json!({"status.containerStatuses": [{"restartCount": 3}]})),
            pod("young", json!({"metadata.creationTimestamp": "2026-01-01T23:00:00Z"})),
            pod("old", json!({})),
            pod(
                "cheap",
                json!({"status.conditions": ready("2026-01-01T00:00:00Z"),
                "metadata.annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}),
            ),
            pod("ready-young", json!({"status.conditions": ready("2026-01-01T23:59:00Z")})),
            pod("ready-old", json!({"status.conditions": ready("2026-01-01T00:00:00Z")})),
        ];
        for pair in pods.windows(2) {
            let order = deletion_order((&pair[0], 1), (&pair[1], 1), now);
            assert_eq!(order, Ordering::Less, "{} before {}", pair[0].metadata.name, pair[1].metadata.name);
        }
    }

    #[test]
    fn a_pod_is_available_after_it_was_ready_long_enough() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let ready = pod(
            "a",
            json!({"status.conditions": [{"type": "Ready", "status": "True",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
        );
        for (min_ready, available, wait) in [(0, true, 0), (10, true, 0), (15, false, 5)] {
            assert_eq!(is_available(&ready, min_ready, now), available, "{min_ready}");
            assert_eq!(available_in(&ready, min_ready, now).unwrap().as_secs(), wait, "{min_ready}");
        }
        assert_eq!(available_in(&pod("a", json!({})), 0, now), None);
    }
}
