//! disruption: keeps the status of PodDisruptionBudgets, by which evictions are allowed or refused.
//!
//! Follows: `pkg/controller/disruption`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::clock::format_seconds;
use informer::events::ObjectReference;
use informer::{
    ApiError, Cached, Informer, ObjectKey, ObjectMeta, Outcome, OwnerReference, PatchType, Queue, Resource,
    null_default,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue, wait};
use crate::discovery::Kinds;
use crate::pod;
use crate::replicaset::{Replicas as _, ReplicationController};
use crate::resources::{
    DEPLOYMENTS, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS, STATEFUL_SETS,
};
use crate::selector::LabelSelector;
use crate::statefulset::StatefulSet;
use crate::types::{
    Condition, Deployment, IntOrString, Pod, ReplicaSet, cached, condition_is_true, conditions_value, find_condition,
    put_condition,
};

/// A pod that was evicted this long ago and is still there will not go by itself.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Budget {
    metadata: ObjectMeta,
    spec: BudgetSpec,
    status: BudgetStatus,
}

cached!(Budget);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetSpec {
    min_available: Option<IntOrString>,
    max_unavailable: Option<IntOrString>,
    selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetStatus {
    observed_generation: i64,
    #[serde(deserialize_with = "null_default")]
    disrupted_pods: BTreeMap<Str, Timestamp>,
    disruptions_allowed: i64,
    current_healthy: i64,
    desired_healthy: i64,
    expected_pods: i64,
    #[serde(deserialize_with = "null_default")]
    conditions: Vec<Condition>,
}

/// How many pods there should be and how many of them healthy. `scale` is the size that the pods' controllers ask for.
fn expected(spec: &BudgetSpec, pods: i64, scale: i64) -> (i64, i64) {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (scale, (scale - max.scaled(scale, true).unwrap_or(0)).max(0)),
        (None, Some(IntOrString::Int(min))) => (pods, *min),
        (None, Some(percent)) => (scale, percent.scaled(scale, true).unwrap_or(0)),
        (None, None) => (0, 0),
    }
}

/// Why it cannot be told how many pods there should be.
#[derive(Debug, thiserror::Error)]
enum ScaleError {
    #[error("found no controllers for pod {pod:?}")]
    NoController { pod: Str },
    #[error("no matches for kind {kind:?} in version {version:?}")]
    NoKind { kind: Str, version: Str },
    #[error("{resource} does not implement the scale subresource")]
    NoScale { resource: Resource },
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The status, and when to look again.
fn calculate(
    budget: &Budget,
    pods: &[Arc<Pod>],
    (expected, desired): (i64, i64),
    now: Timestamp,
) -> (BudgetStatus, Option<SignedDuration>) {
    let mut disrupted = BTreeMap::new();
    let mut again: Option<SignedDuration> = None;
    for pod in pods.iter().filter(|p| !p.metadata.is_deleting()) {
        let Some(at) = budget.status.disrupted_pods.get(&pod.metadata.name) else { continue };
        let left = DELETION_TIMEOUT - now.duration_since(*at);
        if left.is_positive() {
            again = Some(again.map_or(left, |known| known.min(left)));
            disrupted.insert(pod.metadata.name.clone(), *at);
        }
    }
    let healthy =
        |p: &&Arc<Pod>| !p.metadata.is_deleting() && !disrupted.contains_key(&p.metadata.name) && pod::is_ready(p);
    let current = pods.iter().filter(healthy).count() as i64;
    let allowed = if expected <= 0 { 0 } else { (current - desired).max(0) };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    let mut condition = Condition::new("DisruptionAllowed", allowed > 0, reason, "", now);
    condition.observed_generation = Some(budget.metadata.generation);
    let mut conditions = budget.status.conditions.clone();
    put_condition(&mut conditions, condition);
    let status = BudgetStatus {
        observed_generation: budget.metadata.generation,
        disrupted_pods: disrupted,
        disruptions_allowed: allowed,
        current_healthy: current,
        desired_healthy: desired,
        expected_pods: expected,
        conditions,
    };
    (status, again)
}

struct Controller {
    context: Context,
    budgets: Informer<Budget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    /// For controllers of kinds that no cache holds.
    kinds: Kinds,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("disruption-controller", "controllermanager");
    let queue = key_queue();
    let stale: Queue<ObjectKey> = Queue::default();
    let budgets: Informer<Budget> = context.factory.informer(POD_DISRUPTION_BUDGETS);
    let pods = context.pods();
    let sets: Informer<ReplicaSet> = context.factory.informer(REPLICA_SETS);
    let deployments: Informer<Deployment> = context.factory.informer(DEPLOYMENTS);
    let stateful: Informer<StatefulSet> = context.factory.informer(STATEFUL_SETS);
    let controllers: Informer<ReplicationController> = context.factory.informer(REPLICATION_CONTROLLERS);
    let adds = queue.clone();
    budgets.on_change(move |change| adds.add(change.object().metadata.key()));
    let (adds, all, disrupted) = (queue.clone(), budgets.clone(), stale.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        for budget in all.list_namespace(&pod.metadata.namespace) {
            let selects = |p: &Pod| budget.spec.selector.as_ref().is_some_and(|s| s.matches(&p.metadata.labels));
            let old = match &change {
                informer::Change::Updated { old, .. } => selects(old),
                _ => false,
            };
            if selects(pod) || old {
                adds.add(budget.metadata.key());
            }
        }
        if !change.is_deleted() && condition_is_true(&pod.status.conditions, "DisruptionTarget") {
            disrupted.add(pod.metadata.key());
        }
    });
    // A change of scale changes how many pods are expected.
    let rescale = |queue: &Queue<ObjectKey>, budgets: &Informer<Budget>, namespace: &str| {
        budgets.list_namespace(namespace).iter().for_each(|b| queue.add(b.metadata.key()));
    };
    let (adds, all) = (queue.clone(), budgets.clone());
    sets.on_change(move |change| rescale(&adds, &all, &change.object().metadata.namespace));
    let (adds, all) = (queue.clone(), budgets.clone());
    deployments.on_change(move |change| rescale(&adds, &all, &change.object().metadata.namespace));
    let (adds, all) = (queue.clone(), budgets.clone());
    stateful.on_change(move |change| rescale(&adds, &all, &change.object().metadata.namespace));
    let synced = vec![
        budgets.synced(),
        pods.synced(),
        sets.synced(),
        deployments.synced(),
        stateful.synced(),
        controllers.synced(),
    ];
    let controller = Arc::new(Controller {
        context: context.clone(),
        budgets,
        pods,
        sets,
        deployments,
        stateful,
        controllers,
        kinds: Kinds::default(),
    });
    let cleaner = controller.clone();
    context.run("disruption-stale", 1, &stale, synced.clone(), move |key| {
        let cleaner = cleaner.clone();
        async move { cleaner.clear_stale(key).await }
    });
    context.run("disruption", 2, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    /// The size that the controllers of the pods ask for, each counted once; and pods without one.
    async fn expected_scale(&self, pods: &[Arc<Pod>]) -> Result<(i64, Vec<Str>), ScaleError> {
        let mut scales: BTreeMap<Str, i64> = BTreeMap::new();
        let mut unmanaged = Vec::new();
        for pod in pods {
            let Some(owner) = pod.metadata.controller() else {
                unmanaged.push(pod.metadata.name.clone());
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let namespace = &pod.metadata.namespace;
            let (uid, scale) = match self.known_scale(owner, namespace) {
                Some(found) => found,
                None => match self.asked_scale(owner, namespace).await? {
                    Some(scale) => (owner.uid.clone(), scale),
                    None => return Err(ScaleError::NoController { pod: pod.metadata.name.clone() }),
                },
            };
            scales.insert(uid, scale);
        }
        Ok((scales.values().sum(), unmanaged))
    }

    /// What the caches say about a controller of a built-in kind: whose size it is, and the size.
    fn known_scale(&self, owner: &OwnerReference, namespace: &Str) -> Option<(Str, i64)> {
        let key = |name: &Str| ObjectKey::new(namespace.clone(), name.clone());
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self.sets.get(&key(&owner.name)).filter(|s| s.metadata.uid == owner.uid)?;
                match set.metadata.controller().filter(|o| o.kind == "Deployment") {
                    Some(owner) => {
                        let deployment = self.deployments.get(&key(&owner.name))?;
                        Some((owner.uid.clone(), deployment.spec.replicas.unwrap_or(1)))
                    }
                    None => Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1))),
                }
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful.get(&key(&owner.name)).filter(|s| s.metadata.uid == owner.uid)?;
                Some((owner.uid.clone(), set.replicas()))
            }
            ("", "ReplicationController") => {
                let controller = self.controllers.get(&key(&owner.name))?;
                if controller.metadata().uid != owner.uid {
                    return None;
                }
                Some((owner.uid.clone(), controller.spec().replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }

    /// What the `scale` subresource of a controller of any kind says, custom ones too.
    async fn asked_scale(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<i64>, ScaleError> {
        let rest = &self.context.rest;
        let Some(resource) = self.kinds.resource(rest, &owner.api_version, &owner.kind).await? else {
            return Err(ScaleError::NoKind { kind: owner.kind.clone(), version: owner.api_version.clone() });
        };
        match rest.get_path(&resource.path(namespace, &owner.name, "scale"), "application/json").await {
            Ok(scale) if scale.str_at(&["metadata", "uid"]) == owner.uid => {
                Ok(Some(scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0)))
            }
            Ok(_) => Ok(None),
            // Either there is no such object, or its kind has no scale.
            Err(error) if error.is_not_found() => match rest.get_metadata(&resource, namespace, &owner.name).await {
                Ok(_) => Err(ScaleError::NoScale { resource }),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Allows nothing while it cannot be told how many pods there should be.
    async fn fail_safe(&self, budget: &Budget, error: &ScaleError) -> Result<(), ApiError> {
        let observed = budget.status.observed_generation;
        let mut condition =
            Condition::new("DisruptionAllowed", false, "SyncFailed", error.to_string(), self.context.now());
        condition.observed_generation = Some(observed);
        let mut status = BudgetStatus { disruptions_allowed: 0, ..budget.status.clone() };
        put_condition(&mut status.conditions, condition);
        if status == budget.status {
            return Ok(());
        }
        let mut patch = json!({
            "observedGeneration": observed,
            "disruptionsAllowed": 0,
            "currentHealthy": status.current_healthy,
            "desiredHealthy": status.desired_healthy,
            "expectedPods": status.expected_pods,
        });
        patch["conditions"] = conditions_value(&status.conditions, "message");
        ignore_not_found(self.context.patch_status(&POD_DISRUPTION_BUDGETS, &budget.metadata, patch).await)
    }

    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(budget) = self.budgets.get(&key) else { return Ok(Outcome::Done) };
        let reference = ObjectReference::new("policy/v1", "PodDisruptionBudget", &budget.metadata);
        let mut pods = self.pods.list_namespace(&key.namespace);
        // No selector selects nothing, an empty one everything.
        pods.retain(|p| budget.spec.selector.as_ref().is_some_and(|s| s.matches(&p.metadata.labels)));
        if pods.is_empty() {
            self.context.recorder.normal(&reference, "NoPods", "No matching pods found");
        }
        let counts_scale = !matches!(
            (&budget.spec.max_unavailable, &budget.spec.min_available),
            (None, Some(IntOrString::Int(_)) | None)
        );
        let (scale, unmanaged) = if counts_scale {
            match self.expected_scale(&pods).await {
                Ok(found) => found,
                Err(error) => {
                    let message = format!("Failed to calculate the number of expected pods: {error}");
                    self.context.recorder.warning(&reference, "CalculateExpectedPodCountFailed", message);
                    self.fail_safe(&budget, &error).await?;
                    return match error {
                        ScaleError::Api(error) => Err(error.into()),
                        // A change of the pods or of the budget is looked at again.
                        _ => Ok(Outcome::Done),
                    };
                }
            }
        } else {
            (0, Vec::new())
        };
        if !unmanaged.is_empty() {
            let selector = budget.spec.selector.as_ref().map(LabelSelector::to_query).unwrap_or_default();
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.context.recorder.warning(&reference, "UnmanagedPods", message);
        }
        let counts = expected(&budget.spec, pods.len() as i64, scale);
        let (status, again) = calculate(&budget, &pods, counts, self.context.now());
        if status != budget.status {
            let mut disrupted: Value = Value::object();
            for (name, at) in &status.disrupted_pods {
                disrupted[name.as_str()] = format_seconds(*at).into();
            }
            for gone in budget.status.disrupted_pods.keys().filter(|n| !status.disrupted_pods.contains_key(*n)) {
                disrupted[gone.as_str()] = Value::Null;
            }
            let mut patch = json!({
                "observedGeneration": status.observed_generation,
                "disruptionsAllowed": status.disruptions_allowed,
                "currentHealthy": status.current_healthy,
                "desiredHealthy": status.desired_healthy,
                "expectedPods": status.expected_pods,
            });
            patch["disruptedPods"] = disrupted;
            patch["conditions"] = conditions_value(&status.conditions, "message");
            let written = self.context.patch_status(&POD_DISRUPTION_BUDGETS, &budget.metadata, patch).await;
            ignore_not_found(written)?;
        }
        Ok(again.map_or(Outcome::Done, |after| Outcome::After(wait(after))))
    }

    /// A pod that should have been disrupted long ago and was not is no longer a target.
    async fn clear_stale(&self, key: ObjectKey) -> ReconcileResult {
        let Some(pod) = self.pods.get(&key) else { return Ok(Outcome::Done) };
        let condition = find_condition(&pod.status.conditions, "DisruptionTarget").filter(|c| c.is_true());
        let Some(condition) = condition.filter(|_| pod::is_active(&pod)) else { return Ok(Outcome::Done) };
        let now = self.context.now();
        let since = condition.last_transition_time.unwrap_or(now);
        let left = DELETION_TIMEOUT - now.duration_since(since);
        if left.is_positive() {
            return Ok(Outcome::After(wait(left).max(Duration::from_millis(100))));
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid.as_str()}, "status": {"conditions": [
            {"type": "DisruptionTarget", "status": "False", "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": format_seconds(now)}]}});
        let written =
            self.context.rest.patch(&PODS, "status", &key.namespace, &key.name, PatchType::Strategic, &patch).await;
        ignore_not_found(written)?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let state = if ready { "True" } else { "False" };
        Arc::new(
            json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": state}]}})
                .to()
                .unwrap(),
        )
    }

    #[test]
    fn budgets_allow_what_is_above_the_minimum() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        // (spec, scale, ready, not ready, (expected, desired, allowed))
        for (spec, scale, ready, other, want) in [
            (json!({"minAvailable": 2}), 0, 3, 0, (3, 2, 1)),
            (json!({"minAvailable": "50%"}), 5, 5, 0, (5, 3, 2)),
            (json!({"maxUnavailable": 1}), 3, 3, 0, (3, 2, 1)),
            (json!({"maxUnavailable": 1}), 3, 2, 1, (3, 2, 0)),
            (json!({"maxUnavailable": "34%"}), 3, 3, 0, (3, 1, 2)),
            (json!({"minAvailable": 0}), 0, 0, 0, (0, 0, 0)),
        ] {
            let mut object = json!({"metadata": {"name": "b"}});
            object["spec"] = spec.clone();
            let budget: Budget = object.to().unwrap();
            let pods: Vec<Arc<Pod>> = (0..ready + other).map(|i| pod(&i.to_string(), i < ready)).collect();
            let counts = expected(&budget.spec, pods.len() as i64, scale);
            let (status, _) = calculate(&budget, &pods, counts, now);
            assert_eq!((status.expected_pods, status.desired_healthy, status.disruptions_allowed), want, "{spec}");
        }
    }

    #[test]
    fn pods_that_were_just_evicted_do_not_count() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let budget: Budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1}, "status": {"disruptedPods":
            {"a": "2026-01-01T00:00:30Z", "gone": "2026-01-01T00:00:30Z"}}})
        .to()
        .unwrap();
        let (status, again) = calculate(&budget, &[pod("a", true), pod("b", true)], (2, 1), now);
        assert_eq!((status.current_healthy, status.disruptions_allowed, status.disrupted_pods.len()), (1, 0, 1));
        assert_eq!(again.unwrap().as_secs(), 90);
    }
}
