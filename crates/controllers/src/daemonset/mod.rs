//! daemonset: one pod on every node that wants it.
//!
//! Follows: `pkg/controller/daemon`.

mod placement;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use futures::future::join_all;
use informer::events::ObjectReference;
use informer::{DeleteOptions, Informer, ObjectKey, ObjectMeta, Outcome, UidExpectations, null_default};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Deserialize;

use self::placement::{Placement, pin_to_node, placement};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, omit_zero, wait};
use crate::history::{self, REVISION_LABEL};
use crate::ownership::{
    self, Owner, candidates, claim_objects, create_pod, delete_pod, pod_from_template, pod_name_prefix, slow_start,
};
use crate::pod;
use crate::resources::{CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS};
use crate::selector::LabelSelector;
use crate::types::{Condition, ControllerRevision, Node, Pod, Raw, Strategy, cached, controller_reference, raw_value};

const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
const BURST: usize = 250;
/// How long the watch may take to tell of pods that were given another label.
const RELABELLED_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DaemonSet {
    metadata: ObjectMeta,
    spec: DaemonSetSpec,
    status: DaemonSetStatus,
}

cached!(DaemonSet);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonSetSpec {
    selector: LabelSelector,
    template: Option<Raw>,
    update_strategy: Strategy,
    min_ready_seconds: i64,
    revision_history_limit: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonSetStatus {
    current_number_scheduled: i64,
    number_misscheduled: i64,
    desired_number_scheduled: i64,
    number_ready: i64,
    observed_generation: i64,
    updated_number_scheduled: i64,
    number_available: i64,
    number_unavailable: i64,
    collision_count: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    conditions: Vec<Condition>,
}

impl DaemonSet {
    /// (maxSurge, maxUnavailable) for this many nodes.
    fn limits(&self, desired: i64) -> (i64, i64) {
        let rolling = self.spec.update_strategy.rolling_update.clone().unwrap_or_default();
        let surge = rolling.max_surge.and_then(|s| s.scaled(desired, true)).unwrap_or(0);
        let unavailable = rolling.max_unavailable.map_or(Some(1), |u| u.scaled(desired, true)).unwrap_or(1);
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }

    fn allows_surge(&self) -> bool {
        self.spec.update_strategy.kind == "RollingUpdate" && self.limits(1).0 > 0
    }
}

type ByNode = BTreeMap<Str, Vec<Arc<Pod>>>;

/// The hash of a revision, which its pods carry too. Earlier versions wrote it where StatefulSets have it.
fn revision_hash(revision: &ControllerRevision) -> Option<&str> {
    let labels = &revision.metadata.labels;
    labels.get(REVISION_LABEL).or_else(|| labels.get(history::HASH_LABEL))
}

/// Whether a pod has ended and is being deleted: whatever holds it, its node is free for another.
fn has_ended(pod: &Pod) -> bool {
    pod::is_terminal(pod) && pod.metadata.is_deleting()
}

/// The node a pod runs on or is pinned to.
fn target_node(pod: &Pod, pinned: &HashMap<Str, Str>) -> Str {
    if !pod.spec.node_name.is_empty() {
        return pod.spec.node_name.clone();
    }
    pinned.get(&pod.metadata.uid).cloned().unwrap_or_default()
}

/// Pods to create (by node) and to delete.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    create: Vec<Str>,
    delete: Vec<Str>,
    failed: Vec<(Str, Str)>,
}

/// What the pods of one node need, apart from an update.
fn manage_node(
    set: &DaemonSet,
    node: &Str,
    place: Placement,
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    if place.run && pods.is_empty() {
        changes.create.push(node.clone());
        return changes;
    }
    let living = pods.iter().filter(|p| !p.metadata.is_deleting());
    if !place.stay {
        changes.delete = living.map(|p| p.metadata.name.clone()).collect();
        return changes;
    }
    let (ended, mut running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = living.partition(|p| pod::is_terminal(p));
    for pod in ended {
        changes.delete.push(pod.metadata.name.clone());
        changes.failed.push((pod.metadata.name.clone(), pod.status.phase.clone()));
    }
    running.sort_by_key(|p| (p.spec.node_name.is_empty(), p.metadata.creation_timestamp, p.metadata.name.clone()));
    if !set.allows_surge() {
        changes.delete.extend(running.iter().skip(1).map(|p| p.metadata.name.clone()));
        return changes;
    }
    if running.is_empty() && place.run {
        changes.create.push(node.clone());
    }
    // Surging: the oldest of each revision may be there together.
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|p| p.metadata.labels.get(REVISION_LABEL) == Some(hash));
    let extra = new.split_off(new.len().min(1)).into_iter().chain(old.split_off(old.len().min(1)));
    changes.delete.extend(extra.map(|p| p.metadata.name.clone()));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pod::is_ready(old) || pod::is_available(new, set.spec.min_ready_seconds, now))
    {
        changes.delete.push(old.metadata.name.clone());
    }
    changes
}

/// The one new and the one old pod of a node; `None` when there are more.
fn pair<'a>(pods: &'a [Arc<Pod>], hash: &str) -> Option<(Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>)> {
    let (mut new, mut old) = (None, None);
    for pod in pods.iter().filter(|p| !p.metadata.is_deleting()) {
        let slot = if pod.metadata.labels.get(REVISION_LABEL) == Some(hash) { &mut new } else { &mut old };
        if slot.replace(pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// The pods to replace in a rolling update.
fn roll(set: &DaemonSet, by_node: &ByNode, places: &BTreeMap<Str, Placement>, hash: &str, now: Timestamp) -> Changes {
    let desired = places.values().filter(|p| p.run).count() as i64;
    let (max_surge, max_unavailable) = set.limits(desired);
    let available = |p: &Pod| pod::is_available(p, set.spec.min_ready_seconds, now);
    let mut changes = Changes::default();
    if max_surge == 0 {
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for pods in by_node.values() {
            match pair(pods, hash) {
                None | Some((None, None)) | Some((Some(_), Some(_))) => unavailable += 1,
                Some((Some(new), None)) => unavailable += i64::from(!available(new)),
                Some((None, Some(old))) if !available(old) => {
                    changes.delete.push(old.metadata.name.clone());
                    unavailable += 1;
                }
                Some((None, Some(old))) => candidates.push(old.metadata.name.clone()),
            }
        }
        let room = (max_unavailable - unavailable).max(0) as usize;
        changes.delete.extend(candidates.into_iter().take(room));
        return changes;
    }
    let (mut surge, mut candidates, mut leaving, mut ready) = (0, Vec::new(), Vec::new(), 0);
    for (node, pods) in by_node {
        let Some((new, old)) = pair(pods, hash) else {
            surge += 1;
            continue;
        };
        ready += i64::from(old.or(new).is_some_and(|p| available(p)));
        let run = places.get(node).is_some_and(|p| p.run);
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) if !run => {
                if available(old) {
                    leaving.push(old.metadata.name.clone())
                } else {
                    changes.delete.push(old.metadata.name.clone())
                }
            }
            (None, Some(old)) if !available(old) => changes.create.push(node.clone()),
            (None, Some(_)) => candidates.push(node.clone()),
            (Some(new), Some(_)) if !available(new) => surge += 1,
            (Some(_), Some(old)) => changes.delete.push(old.metadata.name.clone()),
        }
    }
    changes.delete.extend(leaving.into_iter().take((ready - desired).max(0) as usize));
    changes.create.extend(candidates.into_iter().take((max_surge - surge).max(0) as usize));
    changes
}

fn status(
    set: &DaemonSet,
    by_node: &ByNode,
    places: &BTreeMap<Str, Placement>,
    hash: &str,
    collisions: Option<i64>,
    now: Timestamp,
) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: collisions,
        conditions: set.status.conditions.clone(),
        ..DaemonSetStatus::default()
    };
    for (node, place) in places {
        let mut pods: Vec<&Arc<Pod>> = by_node.get(node).into_iter().flatten().collect();
        pods.sort_by_key(|p| (p.spec.node_name.is_empty(), p.metadata.creation_timestamp, p.metadata.name.clone()));
        if !place.run {
            status.number_misscheduled += i64::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = pods.first() else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i64::from(pod::is_ready(pod));
        status.number_available += i64::from(pod::is_available(pod, set.spec.min_ready_seconds, now));
        status.updated_number_scheduled += i64::from(pod.metadata.labels.get(REVISION_LABEL) == Some(hash));
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    status
}

struct Controller {
    context: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    expectations: Arc<UidExpectations>,
    /// Pods that are not bound yet, and the node they are pinned to.
    pinned: Mutex<HashMap<Str, Str>>,
    /// Failures per set and node: how often, and when last.
    failures: Mutex<HashMap<(ObjectKey, Str), (u32, Timestamp)>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("daemon-set-controller", "daemonset-controller");
    let queue = key_queue();
    let sets: Informer<DaemonSet> = context.factory.informer(DAEMON_SETS);
    let revisions: Informer<ControllerRevision> = context.factory.informer(CONTROLLER_REVISIONS);
    let nodes: Informer<Node> = context.factory.informer(NODES);
    ownership::add_owner_index(&revisions);
    let pods = context.pods();
    let expectations: Arc<UidExpectations> = Arc::default();
    let adds = queue.clone();
    sets.on_change(move |change| adds.add(change.object().metadata.key()));
    let (owners, matching) = (sets.clone(), sets.clone());
    ownership::watch_pods(
        &pods,
        "DaemonSet",
        &queue,
        expectations.clone(),
        move |key, uid| owners.get(key).is_some_and(|set| set.metadata.uid == uid),
        move |pod| {
            let sets = matching.list_namespace(&pod.metadata.namespace);
            let selects = |s: &&Arc<DaemonSet>| s.spec.selector.matches(&pod.metadata.labels);
            sets.iter().filter(selects).map(|s| s.metadata.key()).collect()
        },
    );
    let (adds, all) = (queue.clone(), sets.clone());
    nodes.on_change(move |change| {
        if let informer::Change::Updated { old, new } = &change
            && old.metadata.labels == new.metadata.labels
            && old.spec.taints == new.spec.taints
        {
            return;
        }
        all.keys().into_iter().for_each(|key| adds.add(key));
    });
    let synced = vec![sets.synced(), pods.synced(), nodes.synced(), revisions.synced()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets,
        pods,
        nodes,
        revisions,
        expectations,
        pinned: Mutex::default(),
        failures: Mutex::default(),
    });
    context.run("daemonset", 2, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            self.failures.lock().retain(|(k, _), _| *k != key);
            return Ok(Outcome::Done);
        };
        let reference = ObjectReference::new("apps/v1", "DaemonSet", &set.metadata);
        if set.spec.selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.recorder.warning(&reference, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        if set.metadata.is_deleting() {
            return Ok(Outcome::Done);
        }
        let owner = Owner {
            resource: &DAEMON_SETS,
            reference: controller_reference("apps/v1", "DaemonSet", &set.metadata),
            metadata: &set.metadata,
        };
        let context = &self.context;
        let mut revisions = history::list_revisions(context, &self.revisions, &owner, &set.spec.selector).await?;
        let template = raw_value(&set.spec.template);
        let labels = template["metadata"]["labels"].to().unwrap_or_default();
        let data = history::revision_data(&template);
        let collisions = set.status.collision_count;
        let all = candidates(&self.pods, &set.metadata);
        let pods =
            claim_objects(context, &PODS, &owner, all, |p: &Pod| set.spec.selector.matches(&p.metadata.labels), &[])
                .await?;
        if let Some(again) = self.merge_doubles(&mut revisions, &data, &pods).await? {
            return Ok(Outcome::After(again));
        }
        let (current, collisions) =
            history::ensure(context, &owner, &mut revisions, &data, &labels, REVISION_LABEL, collisions).await?;
        let hash = revision_hash(&current).unwrap_or("").to_owned();

        let mut by_node = ByNode::new();
        self.learn_pins(&pods).await?;
        {
            let pinned = self.pinned.lock();
            for pod in pods.iter().filter(|p| !has_ended(p)) {
                by_node.entry(target_node(pod, &pinned)).or_default().push(pod.clone());
            }
        }
        let places: BTreeMap<Str, Placement> =
            self.nodes.list().iter().map(|n| (n.metadata.name.clone(), placement(&template["spec"], n))).collect();
        let now = context.now();
        let mut again: Option<SignedDuration> = None;
        let mut result = Ok(());
        if self.expectations.satisfied(&key) {
            let mut changes = Changes::default();
            for (node, place) in &places {
                let on_node = by_node.get(node).map_or(&[][..], Vec::as_slice);
                let mut one = manage_node(&set, node, *place, on_node, &hash, now);
                if let Some(delay) = self.back_off(&key, node, &mut one, &reference, now) {
                    again = Some(again.map_or(delay, |known| known.min(delay)));
                }
                changes.create.extend(one.create);
                changes.delete.extend(one.delete);
            }
            // Pods of nodes that are gone are the pod garbage collector's, unless they never got anywhere.
            let idle = changes == Changes::default();
            if idle && set.spec.update_strategy.kind != "OnDelete" {
                changes = roll(&set, &by_node, &places, &hash, now);
            }
            result = self.apply(&key, &set, &pods, &template, &hash, changes, &owner, &reference).await;
        }
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        let in_use = |r: &ControllerRevision| {
            let label = revision_hash(r);
            r.metadata.name == current.metadata.name
                || pods.iter().any(|p| p.metadata.labels.get(REVISION_LABEL) == label)
        };
        history::truncate(context, &revisions, limit, in_use).await?;
        let status = status(&set, &by_node, &places, &hash, collisions, now);
        self.write_status(&set, &status).await?;
        result?;
        if set.spec.min_ready_seconds > 0 && status.number_ready != status.number_available {
            let next = pods.iter().filter_map(|p| pod::available_in(p, set.spec.min_ready_seconds, now));
            again = again.into_iter().chain(next.filter(|d| d.is_positive())).min();
        }
        Ok(again.map_or(Outcome::Done, |after| Outcome::After(wait(after))))
    }

    /// Deletes revisions that say the same as a newer one, once no pod carries their label; until then gives pods the
    /// label of the newer one, and when to look again.
    async fn merge_doubles(
        &self,
        revisions: &mut Vec<Arc<ControllerRevision>>,
        data: &Value,
        pods: &[Arc<Pod>],
    ) -> Result<Option<Duration>, ReconcileError> {
        let doubles = history::take_doubles(revisions, data);
        let newest = revisions.iter().rfind(|r| raw_value(&r.data) == *data);
        let Some(hash) = newest.and_then(|newest| revision_hash(newest)) else { return Ok(None) };
        let mut relabelled = false;
        for double in &doubles {
            let label = revision_hash(double);
            for pod in pods.iter().filter(|p| label != Some(hash) && p.metadata.labels.get(REVISION_LABEL) == label) {
                let patch = json!({"metadata": {"labels": {REVISION_LABEL: hash}}});
                ignore_not_found(self.context.merge(&PODS, &pod.metadata, patch).await)?;
                relabelled = true;
            }
        }
        if relabelled {
            // The pods of this pass still have the old label.
            return Ok(Some(RELABELLED_WAIT));
        }
        for double in doubles {
            let key = double.metadata.key();
            self.context.delete(&CONTROLLER_REVISIONS, &key, &DeleteOptions::default()).await?;
        }
        Ok(None)
    }

    /// Reads where unbound pods are pinned to: the cache does not keep affinities.
    async fn learn_pins(&self, pods: &[Arc<Pod>]) -> Result<(), ReconcileError> {
        for pod in pods.iter().filter(|p| p.spec.node_name.is_empty()) {
            if self.pinned.lock().contains_key(&pod.metadata.uid) {
                continue;
            }
            let live = match self.context.rest.get(&PODS, &pod.metadata.namespace, &pod.metadata.name).await {
                Ok(live) => live,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            let path = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
            let required = live.at(&path).cloned().unwrap_or_default();
            let field = &required["nodeSelectorTerms"][0]["matchFields"][0];
            let node = field["values"][0].as_str().unwrap_or("");
            self.pinned.lock().insert(pod.metadata.uid.clone(), node.into());
        }
        let mut pinned = self.pinned.lock();
        if pinned.len() > 10_000 {
            pinned.clear();
        }
        for pod in pods.iter().filter(|p| !p.spec.node_name.is_empty()) {
            pinned.remove(&pod.metadata.uid);
        }
        Ok(())
    }

    /// Delays the deletion of pods that fail again and again on a node; gives when to look again.
    fn back_off(
        &self,
        key: &ObjectKey,
        node: &Str,
        changes: &mut Changes,
        reference: &ObjectReference,
        now: Timestamp,
    ) -> Option<SignedDuration> {
        let mut again = None;
        for (name, phase) in std::mem::take(&mut changes.failed) {
            let (namespace, recorder) = (&key.namespace, &self.context.recorder);
            if phase == "Succeeded" {
                let message =
                    format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
                recorder.normal(reference, "SucceededDaemonPod", message);
                continue;
            }
            let mut failures = self.failures.lock();
            let entry = failures.entry((key.clone(), node.clone())).or_insert((0, now));
            let delay = match entry.0 {
                0 => SignedDuration::ZERO,
                n => SignedDuration::from_secs((1i64 << (n - 1).min(10)).min(900)),
            };
            let left = delay - now.duration_since(entry.1);
            if left.is_positive() {
                changes.delete.retain(|d| *d != name);
                again = Some(again.map_or(left, |known: SignedDuration| known.min(left)));
                continue;
            }
            *entry = (entry.0 + 1, now);
            let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
            recorder.warning(reference, "FailedDaemonPod", message);
        }
        again
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        pods: &[Arc<Pod>],
        template: &Value,
        hash: &str,
        mut changes: Changes,
        owner: &Owner<'_>,
        reference: &ObjectReference,
    ) -> Result<(), ReconcileError> {
        changes.create.truncate(BURST);
        changes.delete.truncate(BURST);
        let mut pod = pod_from_template(template, &set.metadata.namespace, &owner.reference);
        pod.set_at(&["metadata", "generateName"], pod_name_prefix(&set.metadata.name).into());
        pod.set_at(&["metadata", "labels", REVISION_LABEL], hash.into());
        let generation = set.metadata.annotations.get(GENERATION_ANNOTATION).map(str::to_owned);
        let generation = generation.unwrap_or_else(|| set.metadata.generation.to_string());
        pod.set_at(&["metadata", "labels", GENERATION_LABEL], generation.into());
        let doomed: Vec<&Arc<Pod>> = pods.iter().filter(|p| changes.delete.contains(&p.metadata.name)).collect();
        if !changes.create.is_empty() {
            self.expectations.expect_adds(key, changes.create.len());
        }
        let (pod, nodes) = (&pod, &changes.create);
        let (created, error) = slow_start(nodes.len(), |nth| async move {
            let mut pod = pod.clone();
            pin_to_node(&mut pod, &nodes[nth]);
            match create_pod(&self.context, &pod, reference).await {
                Ok(created) => {
                    let uid = created.str_at(&["metadata", "uid"]);
                    self.pinned.lock().insert(uid.into(), nodes[nth].clone());
                    Ok(())
                }
                Err(error) if error.is_namespace_terminating() => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await;
        (created..nodes.len()).for_each(|_| self.expectations.saw_add(key));
        let results = join_all(doomed.iter().map(|p| delete_pod(&self.context, &p.metadata, reference))).await;
        for result in results {
            ignore_not_found(result)?;
        }
        error.map_or(Ok(()), |e| Err(e.into()))
    }

    async fn write_status(&self, set: &DaemonSet, status: &DaemonSetStatus) -> Result<(), ReconcileError> {
        if *status == set.status {
            return Ok(());
        }
        let mut patch = json!({
            "currentNumberScheduled": status.current_number_scheduled,
            "numberMisscheduled": status.number_misscheduled,
            "desiredNumberScheduled": status.desired_number_scheduled,
            "numberReady": status.number_ready,
        });
        patch["observedGeneration"] = omit_zero(status.observed_generation);
        patch["updatedNumberScheduled"] = omit_zero(status.updated_number_scheduled);
        patch["numberAvailable"] = omit_zero(status.number_available);
        patch["numberUnavailable"] = omit_zero(status.number_unavailable);
        patch["collisionCount"] = status.collision_count.into();
        ignore_not_found(self.context.patch_status(&DAEMON_SETS, &set.metadata, patch).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn pod(name: &str, node: &str, ready: bool, hash: &str) -> Arc<Pod> {
        Arc::new(
            json!({"metadata": {"name": name, "labels": {REVISION_LABEL: hash}}, "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
            .to()
            .unwrap(),
        )
    }

    fn set(rolling: Value) -> DaemonSet {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"updateStrategy": {"type": "RollingUpdate"}}});
        object.set_at(&["spec", "updateStrategy", "rollingUpdate"], rolling);
        object.to().unwrap()
    }

    fn nodes(pods: Vec<Arc<Pod>>) -> (ByNode, BTreeMap<Str, Placement>) {
        let mut by_node = ByNode::new();
        for pod in pods {
            by_node.entry(pod.spec.node_name.clone()).or_default().push(pod);
        }
        let places = by_node.keys().map(|n| (n.clone(), Placement { run: true, stay: true })).collect();
        (by_node, places)
    }

    #[test]
    fn a_rolling_update_keeps_to_its_limits() {
        let now = NOW.parse().unwrap();
        let old = |n: usize, ready| pod(&format!("p{n}"), &format!("n{n}"), ready, "old");
        let new = |n: usize, ready| pod(&format!("q{n}"), &format!("n{n}"), ready, "new");
        for (rolling, pods, create, delete) in [
            (json!({"maxUnavailable": 1}), vec![old(1, true), old(2, true)], vec![], vec!["p1"]),
            (json!({"maxUnavailable": 1}), vec![new(1, false), old(2, true)], vec![], vec![]),
            (json!({"maxUnavailable": 1}), vec![new(1, true), old(2, true)], vec![], vec!["p2"]),
            (json!({"maxUnavailable": 1}), vec![old(1, false), old(2, true)], vec![], vec!["p1"]),
            (json!({"maxSurge": 1, "maxUnavailable": 0}), vec![old(1, true), old(2, true)], vec!["n1"], vec![]),
            (
                json!({"maxSurge": 1, "maxUnavailable": 0}),
                vec![old(1, true), new(1, false), old(2, true)],
                vec![],
                vec![],
            ),
            (
                json!({"maxSurge": 1, "maxUnavailable": 0}),
                vec![old(1, true), new(1, true), old(2, true)],
                vec!["n2"],
                vec!["p1"],
            ),
        ] {
            let (by_node, places) = nodes(pods);
            let changes = roll(&set(rolling.clone()), &by_node, &places, "new", now);
            assert_eq!(changes.create, create, "{rolling}");
            assert_eq!(changes.delete, delete, "{rolling}");
        }
    }

    #[test]
    fn each_node_has_one_pod_and_misplaced_pods_go() {
        let now = NOW.parse().unwrap();
        let set = set(json!({"maxUnavailable": 1}));
        let node = Str::from("n1");
        let place = |run, stay| Placement { run, stay };
        let two = [pod("a", "n1", true, "h"), pod("b", "n1", true, "h")];
        assert_eq!(manage_node(&set, &node, place(true, true), &[], "h", now).create, ["n1"]);
        assert_eq!(manage_node(&set, &node, place(true, true), &two, "h", now).delete, ["b"]);
        assert_eq!(manage_node(&set, &node, place(false, false), &two, "h", now).delete, ["a", "b"]);
        assert_eq!(manage_node(&set, &node, place(false, true), &two[..1], "h", now), Changes::default());
        for (phase, deletion, ended) in [
            ("Succeeded", Some("2026-01-01T00:00:00Z"), true),
            ("Failed", Some("2026-01-01T00:00:00Z"), true),
            ("Running", Some("2026-01-01T00:00:00Z"), false),
            ("Succeeded", None, false),
        ] {
            let pod = json!({"metadata": {"name": "a", "deletionTimestamp": deletion}, "status": {"phase": phase}});
            assert_eq!(has_ended(&pod.to().unwrap()), ended, "{phase} {deletion:?}");
        }
        let (by_node, mut places) = nodes(two.to_vec());
        let counted = status(&set, &by_node, &places, "h", None, now);
        assert_eq!((counted.desired_number_scheduled, counted.number_ready, counted.number_unavailable), (1, 1, 0));
        places.insert("n1".into(), place(false, false));
        assert_eq!(status(&set, &by_node, &places, "h", None, now).number_misscheduled, 1);
    }
}
