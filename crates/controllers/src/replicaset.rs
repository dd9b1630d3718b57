//! replicaset and replicationcontroller: keep as many pods as asked for. One code base for both kinds.
//!
//! Follows: `pkg/controller/replicaset`, `pkg/controller/replication`.

use std::sync::Arc;

use apimachinery::Value;
use futures::future::join_all;
use informer::events::ObjectReference;
use informer::{ApiError, Cached, Informer, ObjectKey, ObjectMeta, Outcome, Queue, Resource, StrMap, UidExpectations};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use crate::context::{BY_CONTROLLER, Context, ReconcileResult, ignore_not_found, key_queue, omit_zero, wait};
use crate::ownership::{
    self, Owner, candidates, choose_to_delete, claim_objects, create_pod, delete_pod, pod_from_template,
    pod_name_prefix, slow_start,
};
use crate::pod;
use crate::resources::{REPLICA_SETS, REPLICATION_CONTROLLERS};
use crate::selector::LabelSelector;
use crate::types::{
    Condition, Pod, Pods, Raw, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus, cached, controller_reference,
    find_condition, raw_value, to_value,
};

/// Pods created or deleted in one go, as upstream.
const BURST: usize = 500;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicationController {
    metadata: ObjectMeta,
    #[serde(deserialize_with = "controller_spec")]
    spec: ReplicaSetSpec,
    status: ReplicaSetStatus,
}

cached!(ReplicationController);

/// A ReplicationController selects by a plain map.
fn controller_spec<'de, D: Deserializer<'de>>(d: D) -> Result<ReplicaSetSpec, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Spec {
        replicas: Option<i64>,
        min_ready_seconds: i64,
        selector: StrMap,
        template: Option<Raw>,
    }
    let spec = Spec::deserialize(d)?;
    Ok(ReplicaSetSpec {
        replicas: spec.replicas,
        min_ready_seconds: spec.min_ready_seconds,
        selector: LabelSelector::from_labels(&spec.selector),
        template: spec.template,
    })
}

/// The two kinds.
pub trait Replicas: Cached {
    const KIND: &'static str;
    const API_VERSION: &'static str;
    const RESOURCE: Resource;
    const CONTROLLER: &'static str;
    const ACCOUNT: &'static str;
    const EVENT_SOURCE: &'static str;
    const COUNTS_TERMINATING: bool;
    fn spec(&self) -> &ReplicaSetSpec;
    fn status(&self) -> &ReplicaSetStatus;
}

impl Replicas for ReplicaSet {
    const KIND: &'static str = "ReplicaSet";
    const API_VERSION: &'static str = "apps/v1";
    const RESOURCE: Resource = REPLICA_SETS;
    const CONTROLLER: &'static str = "replicaset";
    const ACCOUNT: &'static str = "replicaset-controller";
    const EVENT_SOURCE: &'static str = "replicaset-controller";
    const COUNTS_TERMINATING: bool = true;
    fn spec(&self) -> &ReplicaSetSpec {
        &self.spec
    }
    fn status(&self) -> &ReplicaSetStatus {
        &self.status
    }
}

impl Replicas for ReplicationController {
    const KIND: &'static str = "ReplicationController";
    const API_VERSION: &'static str = "v1";
    const RESOURCE: Resource = REPLICATION_CONTROLLERS;
    const CONTROLLER: &'static str = "replicationcontroller";
    const ACCOUNT: &'static str = "replication-controller";
    const EVENT_SOURCE: &'static str = "replication-controller";
    const COUNTS_TERMINATING: bool = false;
    fn spec(&self) -> &ReplicaSetSpec {
        &self.spec
    }
    fn status(&self) -> &ReplicaSetStatus {
        &self.status
    }
}

struct Controller<K> {
    context: Context,
    sets: Informer<K>,
    pods: Informer<Pod>,
    expectations: Arc<UidExpectations>,
}

pub(crate) fn start_replica_sets(context: &Context) {
    start::<ReplicaSet>(context);
}

pub(crate) fn start_replication_controllers(context: &Context) {
    start::<ReplicationController>(context);
}

fn start<K: Replicas>(context: &Context) {
    let context = context.for_controller(K::ACCOUNT, K::EVENT_SOURCE);
    let queue: Queue<ObjectKey> = key_queue();
    let sets: Informer<K> = context.factory.informer(K::RESOURCE);
    ownership::add_owner_index(&sets);
    let pods = context.pods();
    let expectations: Arc<UidExpectations> = Arc::default();
    let (adds, forgotten) = (queue.clone(), expectations.clone());
    sets.on_change(move |change| {
        let key = change.object().metadata().key();
        if change.is_deleted() {
            forgotten.forget(&key);
        }
        adds.add(key);
    });
    let (owners, matching) = (sets.clone(), sets.clone());
    ownership::watch_pods(
        &pods,
        K::KIND,
        &queue,
        expectations.clone(),
        move |key, uid| owners.get(key).is_some_and(|set| set.metadata().uid == uid),
        move |pod| {
            let sets = matching.list_namespace(&pod.metadata.namespace);
            let selects = |set: &&Arc<K>| {
                let selector = &set.spec().selector;
                !selector.is_empty() && selector.matches(&pod.metadata.labels)
            };
            sets.iter().filter(selects).map(|set| set.metadata().key()).collect()
        },
    );
    let synced = vec![sets.synced(), pods.synced()];
    let controller = Arc::new(Controller { context: context.clone(), sets, pods, expectations });
    context.run(K::CONTROLLER, 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// The status that the pods give.
fn calculate_status(
    spec: &ReplicaSetSpec,
    old: &ReplicaSetStatus,
    generation: i64,
    active: &[Arc<Pod>],
    terminating: Option<usize>,
    template_labels: &StrMap,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let count = |wanted: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| wanted(p)).count() as i64;
    let fully_labeled = LabelSelector::from_labels(template_labels);
    let mut conditions = old.conditions.clone();
    let known = find_condition(&conditions, "ReplicaFailure").is_some();
    match failure {
        Some(message) if !known => {
            let difference = active.len() as i64 - spec.replicas.unwrap_or(1);
            let reason = match difference {
                ..0 => "FailedCreate",
                0 => "",
                _ => "FailedDelete",
            };
            conditions.push(Condition::new("ReplicaFailure", true, reason, message, now));
        }
        None if known => conditions.retain(|c| c.kind != "ReplicaFailure"),
        _ => {}
    }
    ReplicaSetStatus {
        replicas: active.len() as i64,
        fully_labeled_replicas: count(&|p| fully_labeled.matches(&p.metadata.labels)),
        ready_replicas: count(&pod::is_ready),
        available_replicas: count(&|p| pod::is_available(p, spec.min_ready_seconds, now)),
        terminating_replicas: terminating.map(|n| n as i64),
        observed_generation: generation.max(old.observed_generation),
        conditions,
    }
}

fn status_patch(status: &ReplicaSetStatus) -> Value {
    let mut patch = Value::object();
    patch["replicas"] = status.replicas.into();
    patch["fullyLabeledReplicas"] = omit_zero(status.fully_labeled_replicas);
    patch["readyReplicas"] = omit_zero(status.ready_replicas);
    patch["availableReplicas"] = omit_zero(status.available_replicas);
    if let Some(terminating) = status.terminating_replicas {
        patch["terminatingReplicas"] = terminating.into();
    }
    patch["observedGeneration"] = status.observed_generation.into();
    patch["conditions"] = if status.conditions.is_empty() { Value::Null } else { to_value(&status.conditions) };
    patch
}

impl<K: Replicas> Controller<K> {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let (metadata, spec) = (set.metadata(), set.spec());
        let may_manage = self.expectations.satisfied(&key);
        let owner = Owner {
            resource: &K::RESOURCE,
            reference: controller_reference(K::API_VERSION, K::KIND, metadata),
            metadata,
        };
        let all = candidates(&self.pods, metadata);
        let selected = |p: &Pod| spec.selector.matches(&p.metadata.labels);
        let terminating = K::COUNTS_TERMINATING.then(|| {
            let ours =
                |p: &&Arc<Pod>| pod::is_terminating(p) && p.metadata.is_controlled_by(&metadata.uid) && selected(p);
            all.iter().filter(ours).count()
        });
        let active: Vec<Arc<Pod>> = all.into_iter().filter(|p| pod::is_active(p)).collect();
        let active = claim_objects(&self.context, &crate::resources::PODS, &owner, active, selected, &[]).await?;
        let failure = if may_manage && !metadata.is_deleting() {
            self.manage(&key, &*set, &owner, &active).await.err()
        } else {
            None
        };
        let now = self.context.now();
        let template_labels: StrMap = raw_value(&spec.template)["metadata"]["labels"].to().unwrap_or_default();
        let message = failure.as_ref().map(ToString::to_string);
        let generation = metadata.generation;
        let status = calculate_status(
            spec,
            set.status(),
            generation,
            &active,
            terminating,
            &template_labels,
            message.as_deref(),
            now,
        );
        if status != *set.status() {
            ignore_not_found(self.context.patch_status(&K::RESOURCE, metadata, status_patch(&status)).await)?;
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        if spec.min_ready_seconds > 0 && status.ready_replicas != status.available_replicas {
            let next = active.iter().filter_map(|p| pod::available_in(p, spec.min_ready_seconds, now));
            if let Some(next) = next.filter(|d| d.is_positive()).min() {
                return Ok(Outcome::After(wait(next)));
            }
        }
        Ok(Outcome::Done)
    }

    async fn manage(&self, key: &ObjectKey, set: &K, owner: &Owner<'_>, active: &Pods) -> Result<(), ApiError> {
        let metadata = set.metadata();
        let wanted = set.spec().replicas.unwrap_or(1).max(0) as usize;
        let reference = ObjectReference::new(K::API_VERSION, K::KIND, metadata);
        if active.len() < wanted {
            let count = (wanted - active.len()).min(BURST);
            self.expectations.expect_adds(key, count);
            let template = raw_value(&set.spec().template);
            let mut pod = pod_from_template(&template, &metadata.namespace, &owner.reference);
            pod.set_at(&["metadata", "generateName"], pod_name_prefix(&metadata.name).into());
            let pod = &pod;
            let (created, error) = slow_start(count, |_| async {
                match create_pod(&self.context, pod, &reference).await {
                    Ok(_) => Ok(()),
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => Err(error),
                }
            })
            .await;
            (created..count).for_each(|_| self.expectations.saw_add(key));
            return error.map_or(Ok(()), Err);
        }
        if active.len() > wanted {
            let count = (active.len() - wanted).min(BURST);
            let related = self.related_pods(metadata);
            let chosen = choose_to_delete(active, &related, count, self.context.now());
            self.expectations.expect_deletes(key, chosen.iter().map(|p| p.metadata.uid.clone()));
            let results = join_all(chosen.iter().map(|p| async {
                let result = delete_pod(&self.context, &p.metadata, &reference).await;
                if result.is_err() {
                    self.expectations.saw_delete(key, &p.metadata.uid);
                }
                result
            }))
            .await;
            for result in results {
                ignore_not_found(result)?;
            }
        }
        Ok(())
    }

    /// The pods of all sets of the same controller, such as a Deployment: they share a purpose.
    fn related_pods(&self, metadata: &ObjectMeta) -> Pods {
        let siblings = match metadata.controller() {
            Some(owner) => self.sets.by_index(BY_CONTROLLER, &owner.uid),
            None => return self.pods.by_index(BY_CONTROLLER, &metadata.uid),
        };
        siblings.iter().flat_map(|set| self.pods.by_index(BY_CONTROLLER, &set.metadata().uid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    fn pod(name: &str, ready_since: Option<&str>) -> Arc<Pod> {
        let mut object = json!({"metadata": {"name": name, "labels": {"app": "web", "extra": name}}});
        if let Some(since) = ready_since {
            object.set_at(
                &["status", "conditions"],
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]),
            );
        }
        Arc::new(object.to().unwrap())
    }

    #[test]
    fn status_counts_pods_and_reports_failures_once() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let spec = ReplicaSetSpec { replicas: Some(3), min_ready_seconds: 30, ..Default::default() };
        let pods = [pod("a", Some("2026-01-01T00:00:00Z")), pod("b", Some("2026-01-01T00:00:50Z")), pod("c", None)];
        let labels: StrMap = [("app", "web")].into_iter().collect();
        let calc = |old: &ReplicaSetStatus, failure| {
            calculate_status(&spec, old, 4, &pods[..2], Some(1), &labels, failure, now)
        };
        let first = calc(&ReplicaSetStatus::default(), Some("quota"));
        assert_eq!((first.replicas, first.ready_replicas, first.available_replicas), (2, 2, 1));
        assert_eq!(
            (first.fully_labeled_replicas, first.terminating_replicas, first.observed_generation),
            (2, Some(1), 4)
        );
        assert_eq!(
            (first.conditions[0].reason.as_str(), first.conditions[0].message.as_str()),
            ("FailedCreate", "quota")
        );
        let second = calc(&first, Some("another"));
        assert_eq!(second.conditions[0].message, "quota", "the first failure stays");
        assert!(calc(&second, None).conditions.is_empty());
        assert_eq!(status_patch(&first)["readyReplicas"], 2);
        assert!(status_patch(&ReplicaSetStatus::default())["readyReplicas"].is_null());
    }

    #[test]
    fn a_replication_controller_selects_by_a_map() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"selector": {"app": "web"}, "replicas": 2}});
        let controller: ReplicationController = object.to().unwrap();
        assert!(controller.spec.selector.matches(&[("app", "web")].into_iter().collect()));
        assert_eq!(controller.spec.replicas, Some(2));
    }
}
