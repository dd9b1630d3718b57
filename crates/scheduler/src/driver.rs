//! Keeps the snapshot of a cluster current and carries decisions out: binds, reports and preempts.
//!
//! Invariants:
//! - A decision is made under the lock and assumed at once, so that two pods never count on the same room.
//! - A pod that could not be placed waits until something changes that may help, at most [`RETRY_UNSCHEDULABLE`].
//!
//! Follows: `pkg/scheduler/schedule_one.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use informer::events::{ObjectReference, Recorder};
use informer::{
    ApiError, Change, Clock, DeleteOptions, Factory, Header, Informer, ObjectKey, Outcome, PatchType, Queue,
    QueueConfig, Resource, Rest, WorkerStats, run_workers,
};
use parking_lot::Mutex;

use crate::decide::{preempt, schedule};
use crate::snapshot::{Claim, Snapshot};
use crate::types::{Node, PersistentVolume, PersistentVolumeClaim, Pod, StorageClass};

/// kube-scheduler's `podMaxInUnschedulablePodsDuration` is five minutes; a small cluster can afford to look sooner.
const RETRY_UNSCHEDULABLE: Duration = Duration::from_secs(60);
/// Bindings that may be on their way at the same time.
const WORKERS: usize = 8;

const PODS: Resource = Resource::new("", "v1", "pods");
const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims");

/// What a scheduler is called and what it takes care of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with this `spec.schedulerName` are ours.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { scheduler_name: "default-scheduler".into() }
    }
}

/// Where pods are: on nodes, as the API says and as we have just decided.
#[derive(Default)]
struct State {
    snapshot: Snapshot,
    /// Pods that are on a node of the snapshot, with the node's name.
    placed: BTreeMap<String, String>,
    /// Active pods whose node is not known yet.
    homeless: BTreeMap<String, Arc<Pod>>,
    /// Pods that wait for a change.
    waiting: BTreeSet<ObjectKey>,
    /// Counts decisions, to share load among equal nodes.
    decisions: usize,
}

impl State {
    fn place(&mut self, pod: &Arc<Pod>, node: &str) {
        self.displace(&pod.metadata.uid);
        match self.snapshot.node_mut(node) {
            Some(info) => {
                info.add(pod.clone());
                self.placed.insert(pod.metadata.uid.to_string(), node.to_owned());
            }
            None => {
                self.homeless.insert(pod.metadata.uid.to_string(), pod.clone());
            }
        }
    }

    fn displace(&mut self, uid: &str) {
        self.homeless.remove(uid);
        if let Some(node) = self.placed.remove(uid)
            && let Some(info) = self.snapshot.node_mut(&node)
        {
            info.remove(uid);
        }
    }

    fn put_node(&mut self, node: &Arc<Node>) {
        self.snapshot.put_node(node.clone());
        let moved_in: Vec<_> =
            self.homeless.values().filter(|p| p.spec.node_name == node.metadata.name.as_str()).cloned().collect();
        for pod in moved_in {
            self.place(&pod, &node.metadata.name);
        }
    }

    fn remove_node(&mut self, name: &str) {
        let left: Vec<_> = self.snapshot.node_mut(name).map(|n| n.pods.clone()).unwrap_or_default();
        for pod in left {
            self.placed.remove(pod.metadata.uid.as_str());
            self.homeless.insert(pod.metadata.uid.to_string(), pod);
        }
        self.snapshot.remove_node(name);
    }
}

/// A running scheduler.
pub struct Scheduler {
    factory: Factory,
}

struct Shared {
    config: Config,
    rest: Rest,
    recorder: Recorder,
    clock: Clock,
    queue: Queue<ObjectKey>,
    state: Mutex<State>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

impl Scheduler {
    /// Starts scheduling through `client`. Ends with [`Scheduler::shutdown`].
    pub fn start(client: kube::Client, config: Config, clock: Clock) -> Scheduler {
        let rest = Rest::new(client, "kube-scheduler");
        let factory = Factory::new(rest.clone());
        let shared = Arc::new(Shared {
            recorder: Recorder::start(&factory, clock.clone(), &config.scheduler_name),
            rest,
            clock,
            queue: Queue::new(QueueConfig {
                base_delay: Duration::from_millis(50),
                max_delay: Duration::from_secs(10),
            }),
            state: Mutex::default(),
            pods: factory.informer(PODS),
            claims: factory.informer(CLAIMS),
            volumes: factory.informer(Resource::new("", "v1", "persistentvolumes")),
            classes: factory.informer(Resource::new("storage.k8s.io", "v1", "storageclasses")),
            config,
        });
        shared.clone().listen(&factory);
        let (worker, starter, cancel) = (shared.clone(), factory.clone(), factory.cancellation().clone());
        factory.spawn(async move {
            starter.wait_synced().await;
            let queue = worker.queue.clone();
            let stats = Arc::<WorkerStats>::default();
            run_workers("scheduler", WORKERS, queue, cancel, stats, move |key| {
                let shared = worker.clone();
                async move { shared.schedule_one(&key).await }
            })
            .await;
        });
        Scheduler { factory }
    }

    /// Stops watching and binding; returns when everything has ended.
    pub async fn shutdown(&self) {
        self.factory.shutdown().await;
    }
}

impl Shared {
    fn listen(self: Arc<Self>, factory: &Factory) {
        let shared = self.clone();
        self.pods.on_change(move |change| shared.pod_changed(&change));
        let shared = self.clone();
        factory.informer::<Node>(Resource::new("", "v1", "nodes")).on_change(move |change| {
            match &change {
                Change::Deleted(node) => shared.state.lock().remove_node(&node.metadata.name),
                Change::Added(node) | Change::Updated { new: node, .. } => shared.state.lock().put_node(node),
            }
            // Heartbeats change a node's status and nothing that a pod waits for.
            let helps = match &change {
                Change::Updated { old, new } => {
                    old.metadata.labels != new.metadata.labels
                        || old.status.allocatable != new.status.allocatable
                        || old.spec.unschedulable != new.spec.unschedulable
                        || old.spec.taints != new.spec.taints
                }
                Change::Added(_) | Change::Deleted(_) => true,
            };
            if helps {
                shared.wake();
            }
        });
        let shared = self.clone();
        factory.informer::<Header>(Resource::new("", "v1", "namespaces")).on_change(move |change| {
            let (name, labels) = (change.object().metadata.name.to_string(), change.object().metadata.labels.clone());
            let mut state = shared.state.lock();
            if change.is_deleted() {
                state.snapshot.namespaces.remove(&name);
            } else {
                state.snapshot.namespaces.insert(name, labels);
            }
        });
        let shared = self.clone();
        self.claims.on_change(move |_| shared.wake());
        let shared = self.clone();
        self.volumes.on_change(move |_| shared.wake());
        let shared = self.clone();
        self.classes.on_change(move |_| shared.wake());
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let bound = !pod.spec.node_name.is_empty();
        if change.is_deleted() || !pod.is_active() {
            let mut state = self.state.lock();
            state.displace(&pod.metadata.uid);
            state.waiting.remove(&pod.metadata.key());
            drop(state);
            if bound {
                self.wake();
            }
        } else if bound {
            let mut state = self.state.lock();
            state.place(pod, &pod.spec.node_name);
            state.waiting.remove(&pod.metadata.key());
        } else if pod.spec.scheduler_name == self.config.scheduler_name && !pod.metadata.is_deleting() {
            // Our own report of a failure comes back as an update; only other changes may make a difference.
            let only_status = matches!(change, Change::Updated { old, new }
                if old.metadata.generation == new.metadata.generation && old.metadata.labels == new.metadata.labels);
            if !only_status {
                self.queue.add(pod.metadata.key());
            }
        }
    }

    /// Lets every waiting pod try again.
    fn wake(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        for key in waiting {
            self.queue.add(key);
        }
    }

    async fn schedule_one(&self, key: &ObjectKey) -> Result<Outcome, ApiError> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        if !pod.spec.node_name.is_empty() || pod.metadata.is_deleting() || !pod.is_active() {
            return Ok(Outcome::Done);
        }
        if !pod.spec.scheduling_gates.is_empty() {
            self.report(&pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", "").await?;
            return Ok(Outcome::Done);
        }
        let claims = self.claims_of(&pod);
        let decision = {
            let mut state = self.state.lock();
            state.snapshot.claims = claims.clone();
            state.decisions += 1;
            let decision = schedule(&pod, &state.snapshot, state.decisions);
            if let Ok(node) = &decision {
                state.place(&pod, node);
            }
            decision
        };
        match decision {
            Ok(node) => {
                let result = self.bind(&pod, &node, &claims).await;
                if !matches!(result, Ok(true)) {
                    self.state.lock().displace(&pod.metadata.uid);
                }
                match result {
                    Ok(true) => Ok(Outcome::Done),
                    // The claim's change wakes the pod.
                    Ok(false) => Ok(self.wait(key)),
                    Err(error) if error.is_not_found() => Ok(Outcome::Done),
                    Err(error) => Err(error),
                }
            }
            Err(unschedulable) => {
                let outcome = self.wait(key);
                let message = unschedulable.message();
                let nominated = self.make_room(&pod).await?;
                self.recorder.warning(&reference(&pod), "FailedScheduling", message.clone());
                self.report(&pod, "Unschedulable", &message, &nominated).await?;
                Ok(outcome)
            }
        }
    }

    fn wait(&self, key: &ObjectKey) -> Outcome {
        self.state.lock().waiting.insert(key.clone());
        Outcome::After(RETRY_UNSCHEDULABLE)
    }

    fn claims_of(&self, pod: &Pod) -> BTreeMap<(String, String), Claim> {
        let namespace = pod.metadata.namespace.as_str();
        let names =
            pod.spec.volumes.iter().filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => Some(claim.claim_name.clone()),
                (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name, volume.name)),
                (None, None) => None,
            });
        names
            .filter_map(|name| {
                let claim = self.claims.get(&ObjectKey::new(namespace, name.as_str()))?;
                Some(((namespace.to_owned(), name), self.claim_state(&claim)))
            })
            .collect()
    }

    fn claim_state(&self, claim: &PersistentVolumeClaim) -> Claim {
        if claim.status.phase == "Bound" {
            let volume = self.volumes.get(&ObjectKey::cluster(claim.spec.volume_name.as_str()));
            return Claim::Bound(volume.and_then(|v| v.spec.node_affinity.clone()).and_then(|a| a.required));
        }
        let class = claim.spec.storage_class_name.as_deref().filter(|c| !c.is_empty());
        let waits = class
            .and_then(|class| self.classes.get(&ObjectKey::cluster(class)))
            .is_some_and(|class| class.volume_binding_mode == "WaitForFirstConsumer");
        if waits { Claim::UnboundWaiting } else { Claim::UnboundImmediate }
    }

    /// Binds the pod, or, when claims wait for a node, tells them which; `false` then.
    async fn bind(&self, pod: &Pod, node: &str, claims: &BTreeMap<(String, String), Claim>) -> Result<bool, ApiError> {
        let waiting: Vec<_> =
            claims.iter().filter(|(_, c)| matches!(c, Claim::UnboundWaiting)).map(|(k, _)| k).collect();
        for (namespace, name) in &waiting {
            let patch = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
            self.rest.patch(&CLAIMS, "", namespace, name, PatchType::Merge, &patch).await?;
        }
        if !waiting.is_empty() {
            return Ok(false);
        }
        let (namespace, name) = (pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        let binding = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod.metadata.uid.as_str()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        self.rest.create_subresource(&PODS, namespace, name, "binding", &binding).await?;
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.recorder.normal(&reference(pod), "Scheduled", message);
        Ok(true)
    }

    /// Evicts less important pods when that would help; the node's name, or `""`.
    async fn make_room(&self, pod: &Pod) -> Result<String, ApiError> {
        if pod.spec.preemption_policy == "Never" {
            return Ok(String::new());
        }
        let plan = preempt(pod, &self.state.lock().snapshot);
        let Some((node, victims)) = plan else { return Ok(String::new()) };
        for victim in victims.iter().filter(|v| !v.metadata.is_deleting()) {
            let (namespace, name) = (victim.metadata.namespace.as_str(), victim.metadata.name.as_str());
            let message = format!("{}: preempting to accommodate a higher priority pod", self.config.scheduler_name);
            let condition = self.condition(victim, "DisruptionTarget", "True", "PreemptionByScheduler", &message);
            let patch = json!({"status": {"conditions": []}});
            let patch = with(patch, &["status", "conditions"], Value::Array(vec![condition]));
            let reported = self.rest.patch(&PODS, "status", namespace, name, PatchType::Strategic, &patch).await;
            let options = DeleteOptions::uid(victim.metadata.uid.clone());
            match reported.map(drop).and(self.rest.delete(&PODS, namespace, name, &options).await) {
                Ok(()) => {
                    let message = format!("Preempted by pod {} on node {node}", pod.metadata.uid);
                    self.recorder.normal(&reference(victim), "Preempted", message);
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(node)
    }

    fn condition(&self, pod: &Pod, kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": pod.metadata.generation, "lastProbeTime": null,
            "lastTransitionTime": self.clock.now_rfc3339()})
    }

    /// Writes `PodScheduled=False`, unless it says so already.
    async fn report(&self, pod: &Pod, reason: &str, message: &str, nominated: &str) -> Result<(), ApiError> {
        let known = pod
            .status
            .conditions
            .iter()
            .any(|c| c.kind == "PodScheduled" && c.status == "False" && c.reason == reason && c.message == message);
        if known && pod.status.nominated_node_name == nominated {
            return Ok(());
        }
        let condition = self.condition(pod, "PodScheduled", "False", reason, message);
        let mut patch = with(json!({}), &["status", "conditions"], Value::Array(vec![condition]));
        if !nominated.is_empty() {
            patch.set_at(&["status", "nominatedNodeName"], nominated.into());
        }
        let (namespace, name) = (pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        match self.rest.patch(&PODS, "status", namespace, name, PatchType::Strategic, &patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn with(mut object: Value, path: &[&str], value: Value) -> Value {
    object.set_at(path, value);
    object
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference::new("v1", "Pod", &pod.metadata)
}
