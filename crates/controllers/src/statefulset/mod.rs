//! statefulset: pods with a name, a place in the order and storage that stay theirs.
//!
//! Follows: `pkg/controller/statefulset`; KEPs 1847 (claim retention), 961 (maxUnavailable), 3335 (start ordinal).

mod plan;

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::events::ObjectReference;
use informer::{ApiError, Informer, ObjectKey, Outcome, OwnerReference, Source, UidExpectations};

pub use self::plan::StatefulSet;
use self::plan::{Action, StatefulSetStatus};
use crate::context::{
    Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, omit_empty, omit_zero, wait,
};
use crate::history;
use crate::ownership::{self, Owner, candidates, claim_objects, delete_pod};
use crate::pod;
use crate::resources::{CONTROLLER_REVISIONS, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS};
use crate::types::{ControllerRevision, Pod, controller_reference, raw_value, to_value};

struct Controller {
    context: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    revisions: Informer<ControllerRevision>,
    claims: Informer<crate::types::PersistentVolumeClaim>,
    expectations: Arc<UidExpectations>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("statefulset-controller", "statefulset-controller");
    let queue = key_queue();
    let sets: Informer<StatefulSet> = context.factory.informer(STATEFUL_SETS);
    let revisions: Informer<ControllerRevision> = context.factory.informer(CONTROLLER_REVISIONS);
    let claims = context.factory.informer(Source::all(PERSISTENT_VOLUME_CLAIMS));
    ownership::add_owner_index(&revisions);
    let pods = context.pods();
    let expectations: Arc<UidExpectations> = Arc::default();
    let adds = queue.clone();
    sets.on_change(move |change| adds.add(change.object().metadata.key()));
    let (owners, matching) = (sets.clone(), sets.clone());
    ownership::watch_pods(
        &pods,
        "StatefulSet",
        &queue,
        expectations.clone(),
        move |key, uid| owners.get(key).is_some_and(|set| set.metadata.uid == uid),
        move |pod| {
            let sets = matching.list_namespace(&pod.metadata.namespace);
            let selects = |s: &&Arc<StatefulSet>| {
                s.ordinal(&pod.metadata.name).is_some() && s.spec.selector.matches(&pod.metadata.labels)
            };
            sets.iter().filter(selects).map(|s| s.metadata.key()).collect()
        },
    );
    let synced = vec![sets.synced(), pods.synced(), revisions.synced(), claims.synced()];
    let controller = Arc::new(Controller { context: context.clone(), sets, pods, revisions, claims, expectations });
    context.run("statefulset", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        if !self.expectations.satisfied(&key) {
            return Ok(Outcome::Done);
        }
        let owner = Owner {
            resource: &STATEFUL_SETS,
            reference: controller_reference("apps/v1", "StatefulSet", &set.metadata),
            metadata: &set.metadata,
        };
        let context = &self.context;
        let mut revisions = history::list_revisions(context, &self.revisions, &owner, &set.spec.selector).await?;
        let template = raw_value(&set.spec.template);
        let data = history::revision_data(&template);
        let labels = template["metadata"]["labels"].to().unwrap_or_default();
        let collisions = set.status.collision_count;
        let (update, collisions) =
            history::ensure(context, &owner, &mut revisions, &data, &labels, history::HASH_LABEL, collisions).await?;
        let current =
            revisions.iter().find(|r| r.metadata.name == set.status.current_revision).unwrap_or(&update).clone();

        let selected =
            |p: &Pod| set.ordinal(&p.metadata.name).is_some() && set.spec.selector.matches(&p.metadata.labels);
        let all = candidates(&self.pods, &set.metadata);
        let pods = claim_objects(context, &PODS, &owner, all, selected, &[]).await?;
        let now = context.now();
        let status = plan::status(&set, &pods, &current.metadata.name, &update.metadata.name, collisions, now);
        let result = self.act(&key, &set, &pods, &current, &update, &owner).await;
        self.write_status(&set, status).await?;
        result?;
        self.keep_claims(&set, &pods).await?;
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        let in_use = |r: &ControllerRevision| {
            r.metadata.name == current.metadata.name
                || r.metadata.name == update.metadata.name
                || pods.iter().any(|p| plan::revision_of(p) == r.metadata.name)
        };
        history::truncate(context, &revisions, limit, in_use).await?;
        let next = pods.iter().filter_map(|p| pod::available_in(p, set.spec.min_ready_seconds, now));
        Ok(next.filter(|d| d.is_positive()).min().map_or(Outcome::Done, |d| Outcome::After(wait(d))))
    }

    async fn act(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        current: &ControllerRevision,
        update: &ControllerRevision,
        owner: &Owner<'_>,
    ) -> Result<(), ReconcileError> {
        let reference = ObjectReference::new("apps/v1", "StatefulSet", &set.metadata);
        let actions = plan::plan(set, pods, &update.metadata.name, self.context.now());
        let creations = actions.iter().filter(|a| matches!(a, Action::Create(_))).count();
        if creations > 0 {
            self.expectations.expect_adds(key, creations);
        }
        let mut failure = None;
        for action in actions {
            match action {
                Action::EnsureClaims(ordinal) => self.create_claims(set, ordinal, &reference).await?,
                Action::Create(ordinal) => {
                    let revision = if set.uses_current(ordinal) { current } else { update };
                    let template = history::stored_template(revision);
                    let pod = plan::new_pod(set, &template, &revision.metadata.name, ordinal, &owner.reference);
                    if let Err(error) = self.create(set, ordinal, &pod, &reference).await {
                        self.expectations.saw_add(key);
                        failure = failure.or(Some(error));
                    }
                }
                Action::Delete(name) => {
                    let Some(pod) = pods.iter().find(|p| p.metadata.name == name) else { continue };
                    let deleted = delete_pod(&self.context, &pod.metadata, &reference).await;
                    ignore_not_found(deleted)?;
                }
            }
        }
        match failure {
            Some(error) if !error.is_namespace_terminating() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn create(
        &self,
        set: &StatefulSet,
        ordinal: i64,
        pod: &Value,
        reference: &ObjectReference,
    ) -> Result<(), ApiError> {
        let (name, owner) = (set.pod_name(ordinal), &set.metadata.name);
        // The pod's claims first: without them it could not be scheduled.
        self.create_claims(set, ordinal, reference).await?;
        match self.context.rest.create(&PODS, &set.metadata.namespace, pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {owner} successful");
                self.context.recorder.normal(reference, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_already_exists() => {
                // Ours that the cache has not seen, or a stranger's: the cache will tell.
                Err(error)
            }
            Err(error) => {
                let message = format!("create Pod {name} in StatefulSet {owner} failed error: {error}");
                self.context.recorder.warning(reference, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn create_claims(
        &self,
        set: &StatefulSet,
        ordinal: i64,
        reference: &ObjectReference,
    ) -> Result<(), ApiError> {
        for claim in plan::claims(set, ordinal) {
            let name = claim.str_at(&["metadata", "name"]).to_owned();
            let key = ObjectKey::new(set.metadata.namespace.clone(), name.as_str());
            if self.claims.get(&key).is_some() {
                continue;
            }
            let pod = set.pod_name(ordinal);
            let owner = &set.metadata.name;
            match self.context.rest.create(&PERSISTENT_VOLUME_CLAIMS, &key.namespace, &claim).await {
                Ok(_) => {
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {owner} success");
                    self.context.recorder.normal(reference, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let message =
                        format!("create Claim {name} for Pod {pod} in StatefulSet {owner} failed error: {error}");
                    self.context.recorder.warning(reference, "FailedCreate", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes the owners of claims what the retention policy asks: the set (deleted with it), the pod (deleted when scaled
    /// down), or nobody.
    async fn keep_claims(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<(), ReconcileError> {
        if set.spec.volume_claim_templates.is_empty() {
            return Ok(());
        }
        let (with_set, with_scale) = set.retention();
        for pod in pods {
            let Some(ordinal) = set.ordinal(&pod.metadata.name) else { continue };
            for claim in plan::claims(set, ordinal) {
                let key = ObjectKey::new(set.metadata.namespace.clone(), claim.str_at(&["metadata", "name"]));
                let Some(known) = self.claims.get(&key) else { continue };
                let condemned = !set.in_range(ordinal);
                let others = known
                    .metadata
                    .owner_references
                    .iter()
                    .filter(|o| o.uid != set.metadata.uid && o.uid != pod.metadata.uid);
                let mut owners: Vec<OwnerReference> = others.cloned().collect();
                if with_scale && condemned {
                    owners.push(OwnerReference {
                        api_version: "v1".into(),
                        kind: "Pod".into(),
                        name: pod.metadata.name.clone(),
                        uid: pod.metadata.uid.clone(),
                        ..OwnerReference::default()
                    });
                } else if with_set {
                    owners.push(OwnerReference {
                        api_version: "apps/v1".into(),
                        kind: "StatefulSet".into(),
                        name: set.metadata.name.clone(),
                        uid: set.metadata.uid.clone(),
                        ..OwnerReference::default()
                    });
                }
                let uids = |owners: &[OwnerReference]| owners.iter().map(|o| o.uid.clone()).collect::<Vec<_>>();
                if uids(&owners) != uids(&known.metadata.owner_references) {
                    let value = if owners.is_empty() { Value::Null } else { to_value(&owners) };
                    let mut patch = Value::object();
                    patch.set_at(&["metadata", "ownerReferences"], value);
                    ignore_not_found(self.context.merge(&PERSISTENT_VOLUME_CLAIMS, &known.metadata, patch).await)?;
                }
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), ReconcileError> {
        if status == set.status {
            return Ok(());
        }
        let mut patch = json!({"replicas": status.replicas, "availableReplicas": status.available_replicas});
        patch["observedGeneration"] = omit_zero(status.observed_generation);
        patch["readyReplicas"] = omit_zero(status.ready_replicas);
        patch["currentReplicas"] = omit_zero(status.current_replicas);
        patch["updatedReplicas"] = omit_zero(status.updated_replicas);
        patch["currentRevision"] = omit_empty(&status.current_revision);
        patch["updateRevision"] = omit_empty(&status.update_revision);
        patch["collisionCount"] = status.collision_count.into();
        ignore_not_found(self.context.patch_status(&STATEFUL_SETS, &set.metadata, patch).await)?;
        Ok(())
    }
}
