//! node-lifecycle: notices nodes that stop answering, and taints nodes after their conditions.
//!
//! A node lives when its Lease or its Ready condition moves. Clocks need not agree: what counts is how long this process has
//! seen neither of them change.
//!
//! Follows: `pkg/controller/nodelifecycle`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Source};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use crate::context::{BY_NODE, Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue};
use crate::pod;
use crate::resources::{LEASES, NODES, PODS};
use crate::types::{Node, NodeCondition, Pod, Taint, cached, to_value};

/// `--node-monitor-period`.
const PERIOD: Duration = Duration::from_secs(5);
/// `--node-startup-grace-period`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// (condition, status, taint key)
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Lease {
    metadata: ObjectMeta,
    spec: LeaseSpec,
}

cached!(Lease);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<Timestamp>,
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.conditions.iter().find(|c| c.kind == kind)
}

/// The taints a node should have; those of others stay.
fn wanted_taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let ours = |t: &Taint| {
        let by_condition = CONDITION_TAINTS.iter().any(|(_, _, key)| t.key == *key);
        match t.effect.as_str() {
            "NoSchedule" => by_condition || t.key == UNSCHEDULABLE,
            "NoExecute" => t.key == NOT_READY || t.key == UNREACHABLE,
            _ => false,
        }
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == status) {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let mut taints: Vec<Taint> = node
        .spec
        .taints
        .iter()
        .filter(|t| !ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            let time_added = Some(now);
            taints.push(Taint { key: key.into(), value: Str::default(), effect: effect.into(), time_added });
        }
    }
    taints
}

/// The conditions of a node that has not answered for too long; `None` when they say so already.
fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut changed = Vec::new();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match condition(node, kind) {
            None => changed.push(NodeCondition {
                kind: kind.into(),
                status: "Unknown".into(),
                reason: "NodeStatusNeverUpdated".into(),
                message: "Kubelet never posted node status.".into(),
                last_heartbeat_time: node.metadata.creation_timestamp,
                last_transition_time: Some(now),
            }),
            Some(known) if known.status != "Unknown" => changed.push(NodeCondition {
                status: "Unknown".into(),
                reason: "NodeStatusUnknown".into(),
                message: "Kubelet stopped posting node status.".into(),
                last_transition_time: Some(now),
                ..known.clone()
            }),
            Some(_) => {}
        }
    }
    (!changed.is_empty()).then_some(changed)
}

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    /// The last sign of life of a node, and when it was seen.
    seen: Mutex<HashMap<Str, ((Option<Timestamp>, Option<Timestamp>), Instant)>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("node-controller", "node-controller");
    let queue = key_queue();
    let nodes: Informer<Node> = context.factory.informer(NODES);
    let leases: Informer<Lease> = context.factory.informer(Source::namespaced(LEASES, "kube-node-lease"));
    let pods = context.pods();
    let adds = queue.clone();
    nodes.on_change(move |change| adds.add(change.object().metadata.key()));
    let synced = vec![nodes.synced(), leases.synced(), pods.synced()];
    let controller = Arc::new(Controller { context: context.clone(), nodes, leases, pods, seen: Mutex::default() });
    context.run("node-lifecycle", 2, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    /// How long ago a sign of life was seen.
    fn silent_for(&self, node: &Node) -> Duration {
        let lease = self.leases.get(&ObjectKey::new("kube-node-lease", node.metadata.name.clone()));
        let renewed = lease.and_then(|l| l.spec.renew_time);
        let heartbeat = condition(node, "Ready").and_then(|c| c.last_heartbeat_time);
        let signs = (renewed, heartbeat);
        let mut seen = self.seen.lock();
        let now = Instant::now();
        let entry = seen.entry(node.metadata.name.clone()).or_insert((signs, now));
        if entry.0 != signs {
            *entry = (signs, now);
        }
        now.duration_since(entry.1)
    }

    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(node) = self.nodes.get(&key) else {
            self.seen.lock().remove(&key.name);
            return Ok(Outcome::Done);
        };
        let now = self.context.now();
        let silent = self.silent_for(&node);
        let patience = self.context.config.node_monitor_grace_period;
        let grace = if condition(&node, "Ready").is_some() { patience } else { patience.max(STARTUP_GRACE) };
        if silent > grace
            && let Some(conditions) = unknown_conditions(&node, now)
        {
            let mut patch = Value::object();
            patch.set_at(&["status", "conditions"], to_value(&conditions));
            let written = self.context.rest.patch(&NODES, "status", "", &key.name, PatchType::Strategic, &patch).await;
            ignore_not_found(written)?;
            return Ok(Outcome::After(PERIOD));
        }
        let taints = wanted_taints(&node, now);
        if taints != node.spec.taints {
            let mut patch = Value::object();
            patch.set_at(&["spec", "taints"], if taints.is_empty() { Value::Null } else { to_value(&taints) });
            ignore_not_found(self.context.merge(&NODES, &node.metadata, patch).await)?;
        }
        let ready = condition(&node, "Ready").map(|c| c.status.as_str());
        if matches!(ready, Some("False" | "Unknown")) {
            self.mark_pods_not_ready(&key.name).await?;
        }
        Ok(Outcome::After(PERIOD))
    }

    /// Services must not send traffic to a node that does not answer.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), ReconcileError> {
        for pod in self.pods.by_index(BY_NODE, node).iter().filter(|p| pod::is_ready(p)) {
            let patch = json!({"metadata": {"uid": pod.metadata.uid.as_str()}, "status": {"conditions": [{"type": "Ready",
                "status": "False", "lastTransitionTime": self.context.clock.now_rfc3339()}]}});
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            let written = self.context.rest.patch(&PODS, "status", namespace, name, PatchType::Strategic, &patch).await;
            ignore_not_found(written)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: Value, taints: Value, unschedulable: bool) -> Node {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": unschedulable}});
        node["spec"]["taints"] = taints;
        node.set_at(&["status", "conditions"], conditions);
        node.to().unwrap()
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let other = json!([{"key": "mine", "effect": "NoExecute"}, {"key": UNREACHABLE, "effect": "NoExecute"}]);
        for (conditions, taints, unschedulable, want) in [
            (json!([{"type": "Ready", "status": "True"}]), other.clone(), false, vec!["mine:NoExecute"]),
            (
                json!([{"type": "Ready", "status": "False"}]),
                json!([]),
                false,
                vec!["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"],
            ),
            (
                json!([{"type": "Ready", "status": "Unknown"}]),
                other,
                false,
                vec![
                    "mine:NoExecute",
                    "node.kubernetes.io/unreachable:NoExecute",
                    "node.kubernetes.io/unreachable:NoSchedule",
                ],
            ),
            (
                json!([{"type": "DiskPressure", "status": "True"}]),
                json!([]),
                true,
                vec!["node.kubernetes.io/disk-pressure:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"],
            ),
        ] {
            let got: Vec<String> = wanted_taints(&node(conditions, taints, unschedulable), now)
                .iter()
                .map(|t| format!("{}:{}", t.key, t.effect))
                .collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let silent = node(json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]), json!([]), false);
        let changed = unknown_conditions(&silent, now).unwrap();
        assert_eq!(changed.len(), 4);
        assert_eq!(changed[0].reason, "NodeStatusUnknown");
        assert_eq!(changed[1].reason, "NodeStatusNeverUpdated");
        let known = node(to_value(&changed), json!([]), false);
        assert_eq!(unknown_conditions(&known, now), None);
    }
}
