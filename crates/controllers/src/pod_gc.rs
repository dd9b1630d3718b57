//! pod-garbage-collector: removes pods that nobody runs any more.
//!
//! Terminated pods beyond a threshold, pods bound to nodes that are gone, pods that were deleted before they were scheduled,
//! and pods that terminate on nodes that are out of service.
//!
//! Follows: `pkg/controller/podgc`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::json;
use informer::{DeleteOptions, Header, Informer, ObjectKey, Outcome, PatchType, Queue};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::context::{BY_NODE, Context, ReconcileError, ReconcileResult, ignore_not_found};
use crate::pod;
use crate::resources::{NODES, PODS};
use crate::types::{Node, Pod, condition_is_true};

const PERIOD: Duration = Duration::from_secs(20);
/// A node may be missing this long before its pods go.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Terminated,
    NodeGone,
    Unscheduled,
    OutOfService,
}

/// The pods to remove. `gone_since` holds nodes that are missing, and since when.
fn choose(
    pods: &[Arc<Pod>],
    nodes: &HashMap<String, bool>,
    gone_since: &HashMap<String, Timestamp>,
    threshold: usize,
    now: Timestamp,
) -> Vec<(Arc<Pod>, Reason)> {
    let mut chosen: Vec<(Arc<Pod>, Reason)> = Vec::new();
    let mut terminated: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let node = pod.spec.node_name.as_str();
        let deleting = pod.metadata.is_deleting();
        if pod::is_terminal(pod) {
            terminated.push(pod);
        }
        if node.is_empty() {
            if deleting {
                chosen.push((pod.clone(), Reason::Unscheduled));
            }
        } else if let Some(out_of_service) = nodes.get(node) {
            if deleting && *out_of_service {
                chosen.push((pod.clone(), Reason::OutOfService));
            }
        } else if gone_since.get(node).is_some_and(|since| now.duration_since(*since) >= QUARANTINE) {
            chosen.push((pod.clone(), Reason::NodeGone));
        }
    }
    if threshold > 0 && terminated.len() > threshold {
        // Evicted pods first, then the oldest.
        terminated
            .sort_by_key(|p| (p.status.reason != "Evicted", p.metadata.creation_timestamp, p.metadata.name.clone()));
        let excess = terminated.len() - threshold;
        for pod in terminated.into_iter().take(excess) {
            if !chosen.iter().any(|(c, _)| c.metadata.uid == pod.metadata.uid) {
                chosen.push((pod.clone(), Reason::Terminated));
            }
        }
    }
    chosen
}

struct Collector {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    gone_since: Mutex<HashMap<String, Timestamp>>,
    queue: Queue<()>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("pod-garbage-collector", "pod-garbage-collector");
    let pods = context.pods();
    let nodes: Informer<Node> = context.factory.informer(NODES);
    let queue: Queue<()> = Queue::default();
    // An idle cluster is not looked at: only pods that might have to go start the clock.
    let (wake, known) = (queue.clone(), nodes.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let lost = || {
            let node = &pod.spec.node_name;
            !node.is_empty() && known.get(&ObjectKey::cluster(node.clone())).is_none()
        };
        if !change.is_deleted() && (pod::is_terminal(pod) || pod.metadata.is_deleting() || lost()) {
            wake.add_after((), Duration::from_millis(100));
        }
    });
    let wake = queue.clone();
    nodes.on_change(move |change| {
        if change.is_deleted() || change.object().spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE) {
            wake.add_after((), Duration::from_millis(100));
        }
    });
    queue.add(());
    let synced = vec![pods.synced(), nodes.synced()];
    let collector = Arc::new(Collector {
        context: context.clone(),
        pods,
        nodes,
        gone_since: Mutex::default(),
        queue: queue.clone(),
    });
    context.run("pod-garbage-collector", 1, &queue, synced, move |()| {
        let collector = collector.clone();
        async move { collector.collect().await }
    });
}

impl Collector {
    async fn collect(&self) -> ReconcileResult {
        let now = self.context.now();
        let pods = self.pods.list();
        let nodes: HashMap<String, bool> = self
            .nodes
            .list()
            .iter()
            .map(|n| (n.metadata.name.to_string(), n.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE)))
            .collect();
        let missing: Vec<String> = {
            let mut gone = self.gone_since.lock();
            gone.retain(|name, _| !nodes.contains_key(name) && self.pods.count_index(BY_NODE, name) > 0);
            for pod in &pods {
                let node = pod.spec.node_name.as_str();
                if !node.is_empty() && !nodes.contains_key(node) {
                    gone.entry(node.to_owned()).or_insert(now);
                }
            }
            gone.iter().filter(|(_, since)| now.duration_since(**since) >= QUARANTINE).map(|(n, _)| n.clone()).collect()
        };
        // The cache says that a node is missing: ask before anything is deleted for it.
        for name in missing {
            if self.context.rest.get_as::<Header>(&NODES, "", &name).await.is_ok_and(|n| n.metadata.name == *name) {
                self.gone_since.lock().remove(&name);
            }
        }
        let gone = self.gone_since.lock().clone();
        let threshold = self.context.config.terminated_pod_threshold;
        for (pod, reason) in choose(&pods, &nodes, &gone, threshold, now) {
            self.remove(&pod, reason).await?;
        }
        let again = !gone.is_empty();
        Ok(if again { Outcome::After(PERIOD) } else { Outcome::Done })
    }

    async fn remove(&self, pod: &Pod, reason: Reason) -> Result<(), ReconcileError> {
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        let message = match reason {
            Reason::NodeGone => Some(("DeletionByPodGC", "PodGC: node no longer exists")),
            Reason::OutOfService => None,
            Reason::Terminated | Reason::Unscheduled => None,
        };
        if !pod::is_terminal(pod) && reason != Reason::Unscheduled {
            // A pod that never reported its end has to be failed first, or Jobs would wait for it.
            let generation = pod.metadata.generation;
            let mut status = json!({"phase": "Failed", "observedGeneration": generation});
            if let Some((reason, message)) = message
                && !condition_is_true(&pod.status.conditions, "DisruptionTarget")
            {
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason,
                    "message": message, "observedGeneration": generation,
                    "lastTransitionTime": self.context.clock.now_rfc3339()}]);
            }
            let mut patch = json!({"metadata": {"uid": pod.metadata.uid.as_str()}});
            patch["status"] = status;
            let written = self.context.rest.patch(&PODS, "status", namespace, name, PatchType::Strategic, &patch).await;
            ignore_not_found(written)?;
        }
        let options =
            DeleteOptions { uid: pod.metadata.uid.clone(), grace_period_seconds: Some(0), ..DeleteOptions::default() };
        match self.context.rest.delete(&PODS, namespace, name, &options).await {
            Err(error) if error.is_conflict() => self.queue.add_after((), PERIOD),
            other => ignore_not_found(other)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::Value;

    fn pod(name: &str, node: &str, phase: &str, extra: Value) -> Arc<Pod> {
        let mut object = json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": node},
            "status": {"phase": phase}});
        for (key, value) in extra.as_object().unwrap().iter() {
            object.set_at(&key.split('.').collect::<Vec<_>>(), value.clone());
        }
        Arc::new(object.to().unwrap())
    }

    #[test]
    fn pods_that_nobody_runs_are_chosen() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let deleting = json!({"metadata.deletionTimestamp": "2026-01-01T00:00:00Z"});
        let at = |t: &str| json!({"metadata.creationTimestamp": t});
        let pods = [
            pod("running", "n1", "Running", json!({})),
            pod("unscheduled", "", "Pending", deleting.clone()),
            pod("waiting", "", "Pending", json!({})),
            pod("lost", "gone", "Running", json!({})),
            pod("missed", "just-gone", "Running", json!({})),
            pod("stuck", "broken", "Running", deleting),
            pod("old", "n1", "Succeeded", at("2026-01-01T00:00:00Z")),
            pod("new", "n1", "Succeeded", at("2026-01-01T00:00:10Z")),
        ];
        let nodes: HashMap<String, bool> = [("n1".to_owned(), false), ("broken".to_owned(), true)].into();
        let gone: HashMap<String, Timestamp> = [
            ("gone".to_owned(), "2026-01-01T00:00:00Z".parse().unwrap()),
            ("just-gone".to_owned(), "2026-01-01T00:00:50Z".parse().unwrap()),
        ]
        .into();
        let chosen = choose(&pods, &nodes, &gone, 1, now);
        let names: Vec<(String, Reason)> = chosen.iter().map(|(p, r)| (p.metadata.name.to_string(), *r)).collect();
        assert_eq!(
            names,
            [
                ("unscheduled".to_owned(), Reason::Unscheduled),
                ("lost".to_owned(), Reason::NodeGone),
                ("stuck".to_owned(), Reason::OutOfService),
                ("old".to_owned(), Reason::Terminated),
            ]
        );
    }
}
