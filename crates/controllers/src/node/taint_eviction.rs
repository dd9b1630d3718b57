//! taint-eviction: deletes pods that do not tolerate a `NoExecute` taint of their node, or not for so long.
//!
//! Follows: `pkg/controller/tainteviction`.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::json;
use apimachinery::json::Str;
use informer::events::ObjectReference;
use informer::{DeleteOptions, Informer, ObjectKey, Outcome, PatchType};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::context::{BY_NODE, Context, ReconcileResult, ignore_not_found, key_queue, wait};
use crate::pod;
use crate::resources::{NODES, PODS};
use crate::types::{Node, Pod, Taint, Toleration};

/// How long a pod may stay: `None` for ever.
fn may_stay(tolerations: &[Toleration], taints: &[&Taint]) -> Option<SignedDuration> {
    let mut least: Option<i64> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|t| t.tolerates(taint)) else {
            return Some(SignedDuration::ZERO);
        };
        if let Some(seconds) = toleration.toleration_seconds {
            least = Some(least.map_or(seconds, |known| known.min(seconds)));
        }
    }
    least.map(|seconds| SignedDuration::from_secs(seconds.max(0)))
}

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Since when a pod has been on borrowed time, by uid.
    since: Mutex<HashMap<Str, Timestamp>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("node-controller", "taint-eviction-controller");
    let queue = key_queue();
    let nodes: Informer<Node> = context.factory.informer(NODES);
    let pods = context.pods();
    let controller = Arc::new(Controller {
        context: context.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        since: Mutex::default(),
    });
    let (adds, watcher) = (queue.clone(), controller.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        if change.is_deleted() {
            watcher.since.lock().remove(&pod.metadata.uid);
        } else if !pod.spec.node_name.is_empty() {
            adds.add(pod.metadata.key());
        }
    });
    let (adds, all) = (queue.clone(), pods.clone());
    nodes.on_change(move |change| {
        let before = match &change {
            informer::Change::Updated { old, .. } => old.spec.taints.as_slice(),
            _ => &[],
        };
        let node = change.object();
        if before != node.spec.taints.as_slice() {
            all.by_index(BY_NODE, &node.metadata.name).iter().for_each(|p| adds.add(p.metadata.key()));
        }
    });
    let synced = vec![pods.synced(), nodes.synced()];
    context.run("taint-eviction", 4, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(pod) = self.pods.get(&key) else { return Ok(Outcome::Done) };
        let uid = &pod.metadata.uid;
        let node = self.nodes.get(&ObjectKey::cluster(pod.spec.node_name.clone()));
        let taints = node.as_ref().map_or(&[][..], |n| n.spec.taints.as_slice());
        let taints: Vec<&Taint> = taints.iter().filter(|t| t.effect == "NoExecute").collect();
        let reference = ObjectReference::new("v1", "Pod", &pod.metadata);
        if pod.metadata.is_deleting() || taints.is_empty() {
            if self.since.lock().remove(uid).is_some() && !pod.metadata.is_deleting() {
                let message = format!("Cancelling deletion of Pod {key}");
                self.context.recorder.normal(&reference, "TaintManagerEviction", message);
            }
            return Ok(Outcome::Done);
        }
        let Some(stay) = may_stay(&pod.spec.tolerations, &taints) else {
            self.since.lock().remove(uid);
            return Ok(Outcome::Done);
        };
        let now = self.context.now();
        let since = *self.since.lock().entry(uid.clone()).or_insert(now);
        let left = stay - now.duration_since(since);
        if left.is_positive() {
            return Ok(Outcome::After(wait(left)));
        }
        let message = format!("Marking for deletion Pod {key}");
        self.context.recorder.normal(&reference, "TaintManagerEviction", message);
        if !pod::is_terminal(&pod) {
            let patch = json!({"metadata": {"uid": uid.as_str()}, "status": {"conditions": [{"type": "DisruptionTarget",
                "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": self.context.clock.now_rfc3339()}]}});
            let (namespace, name) = (&key.namespace, &key.name);
            let written = self.context.rest.patch(&PODS, "status", namespace, name, PatchType::Strategic, &patch).await;
            ignore_not_found(written)?;
        }
        self.context.delete(&PODS, &key, &DeleteOptions::uid(uid.clone())).await?;
        self.since.lock().remove(uid);
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::Value;

    #[test]
    fn tolerations_say_how_long_a_pod_may_stay() {
        let taint = |key: &str| Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() };
        let (a, b) = (taint("a"), taint("b"));
        let tolerate =
            |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        for (tolerations, taints, want) in [
            (json!([]), vec![&a], Some(0)),
            (json!([tolerate("a", Value::Null)]), vec![&a], None),
            (json!([tolerate("a", json!(300))]), vec![&a], Some(300)),
            (json!([tolerate("a", json!(300)), tolerate("b", json!(60))]), vec![&a, &b], Some(60)),
            (json!([tolerate("a", json!(300))]), vec![&a, &b], Some(0)),
            (json!([tolerate("a", json!(-5))]), vec![&a], Some(0)),
        ] {
            let parsed: Vec<Toleration> = tolerations.to().unwrap();
            assert_eq!(may_stay(&parsed, &taints).map(|d| d.as_secs()), want, "{tolerations}");
        }
    }
}
