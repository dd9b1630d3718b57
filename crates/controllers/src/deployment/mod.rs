//! deployment: replaces pods by way of replica sets, one per revision of the template.
//!
//! Each reconcile takes at most one step and writes the status; changes of the replica sets bring it back.
//!
//! Follows: `pkg/controller/deployment`.

mod plan;

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::events::ObjectReference;
use informer::{DeleteOptions, Informer, ObjectKey, ObjectMeta, Outcome};
use jiff::Timestamp;

use self::plan::{DESIRED_REPLICAS, MAX_REPLICAS, POD_TEMPLATE_HASH, REVISION, Step, Wanted};
use crate::context::{
    BY_CONTROLLER, Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, omit_zero, wait,
};
use crate::names::template_hash;
use crate::ownership::{self, Owner, candidates, claim_objects};
use crate::pod;
use crate::resources::{DEPLOYMENTS, REPLICA_SETS};
use crate::types::{
    Deployment, DeploymentStatus, Pod, ReplicaSet, controller_reference, find_condition, raw_value, to_value,
};

const NAME_LENGTH_MAX: usize = 253;

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("deployment-controller", "deployment-controller");
    let queue = key_queue();
    let deployments: Informer<Deployment> = context.factory.informer(DEPLOYMENTS);
    let sets: Informer<ReplicaSet> = context.factory.informer(REPLICA_SETS);
    ownership::add_owner_index(&sets);
    let pods = context.pods();
    let adds = queue.clone();
    deployments.on_change(move |change| adds.add(change.object().metadata.key()));
    let (owners, adds) = (deployments.clone(), queue.clone());
    sets.on_change(move |change| {
        let enqueue_owner = |metadata: &ObjectMeta| {
            if let Some(owner) = metadata.controller().filter(|o| o.kind == "Deployment") {
                adds.add(ObjectKey::new(metadata.namespace.clone(), owner.name.clone()));
            }
        };
        let metadata = &change.object().metadata;
        enqueue_owner(metadata);
        if let informer::Change::Updated { old, new } = &change
            && old.metadata.controller() != new.metadata.controller()
        {
            enqueue_owner(&old.metadata);
        }
        if metadata.controller().is_none() && !change.is_deleted() {
            for deployment in owners.list_namespace(&metadata.namespace) {
                let selector = &deployment.spec.selector;
                if !selector.is_empty() && selector.matches(&metadata.labels) {
                    adds.add(deployment.metadata.key());
                }
            }
        }
    });
    // A Recreate deployment goes on when the last old pod is gone.
    let (set_cache, adds) = (sets.clone(), queue.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        if !change.is_deleted() && !pod::is_terminal(pod) {
            return;
        }
        let Some(owner) = pod.metadata.controller().filter(|o| o.kind == "ReplicaSet") else { return };
        let set = set_cache.get(&ObjectKey::new(pod.metadata.namespace.clone(), owner.name.clone()));
        if let Some(owner) = set.as_deref().and_then(|s| s.metadata.controller()) {
            adds.add(ObjectKey::new(pod.metadata.namespace.clone(), owner.name.clone()));
        }
    });
    let synced = vec![deployments.synced(), sets.synced(), pods.synced()];
    let controller = Arc::new(Controller { context: context.clone(), deployments, sets, pods });
    context.run("deployment", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(Outcome::Done) };
        let reference = ObjectReference::new("apps/v1", "Deployment", &deployment.metadata);
        if deployment.spec.selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.context.recorder.warning(&reference, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        let owner = Owner {
            resource: &DEPLOYMENTS,
            reference: controller_reference("apps/v1", "Deployment", &deployment.metadata),
            metadata: &deployment.metadata,
        };
        let all = candidates(&self.sets, &deployment.metadata);
        let selected = |s: &ReplicaSet| deployment.spec.selector.matches(&s.metadata.labels);
        let mut sets = claim_objects(&self.context, &REPLICA_SETS, &owner, all, selected, &[]).await?;
        sets.sort_by(|a, b| {
            let age = |s: &ReplicaSet| (s.metadata.creation_timestamp, s.metadata.name.clone());
            age(a).cmp(&age(b))
        });
        let template = plan::bare_template(&raw_value(&deployment.spec.template));
        let views: Vec<&ReplicaSet> = sets.iter().map(|s| &**s).collect();
        let new = plan::find_new(&template, &views).map(|i| sets.remove(i));
        let mut sync = Sync {
            context: &self.context,
            wanted: Wanted::of(&deployment),
            status: deployment.status.clone(),
            metadata: deployment.metadata.clone(),
            deployment: &deployment,
            template,
            reference,
            new,
            old: sets,
            now: self.context.now(),
        };
        if deployment.metadata.is_deleting() {
            sync.write_plain_status().await?;
            return Ok(Outcome::Done);
        }
        sync.check_paused().await?;
        let all: Vec<&ReplicaSet> = sync.new.iter().chain(&sync.old).map(|s| &**s).collect();
        if deployment.spec.paused || plan::is_scaling_event(&sync.wanted, &all) {
            sync.scale().await?;
        } else if sync.wanted.rolling {
            sync.roll().await?;
        } else {
            sync.recreate(&self.pods).await?;
        }
        match plan::next_check(&deployment, &sync.wanted, &sync.status, self.context.now()) {
            Some(after) => Ok(Outcome::After(wait(after))),
            None => Ok(Outcome::Done),
        }
    }
}

/// One reconcile of one deployment.
struct Sync<'a> {
    context: &'a Context,
    deployment: &'a Deployment,
    /// As last written, with its resource version.
    metadata: ObjectMeta,
    status: DeploymentStatus,
    wanted: Wanted,
    template: Value,
    reference: ObjectReference,
    new: Option<Arc<ReplicaSet>>,
    /// Ordered by age.
    old: Vec<Arc<ReplicaSet>>,
    now: Timestamp,
}

impl Sync<'_> {
    fn old_views(&self) -> Vec<&ReplicaSet> {
        self.old.iter().map(|s| &**s).collect()
    }

    async fn write_status(&mut self, status: DeploymentStatus) -> Result<(), ReconcileError> {
        if status == self.status {
            return Ok(());
        }
        let mut patch = Value::object();
        patch["observedGeneration"] = omit_zero(status.observed_generation);
        patch["replicas"] = omit_zero(status.replicas);
        patch["updatedReplicas"] = omit_zero(status.updated_replicas);
        patch["readyReplicas"] = omit_zero(status.ready_replicas);
        patch["availableReplicas"] = omit_zero(status.available_replicas);
        patch["unavailableReplicas"] = omit_zero(status.unavailable_replicas);
        patch["terminatingReplicas"] = status.terminating_replicas.into();
        patch["collisionCount"] = status.collision_count.into();
        patch["conditions"] = if status.conditions.is_empty() { Value::Null } else { to_value(&status.conditions) };
        let written = self.context.patch_status(&DEPLOYMENTS, &self.metadata, patch).await?;
        self.metadata.resource_version = written.str_at(&["metadata", "resourceVersion"]).into();
        self.status = status;
        Ok(())
    }

    async fn write_plain_status(&mut self) -> Result<(), ReconcileError> {
        let status = plan::calculate_status(
            self.deployment,
            &self.status,
            &self.wanted,
            self.new.as_deref(),
            &self.old_views(),
            self.now,
        );
        self.write_status(status).await
    }

    async fn write_rollout_status(&mut self) -> Result<(), ReconcileError> {
        let status = plan::rollout_status(
            self.deployment,
            &self.status,
            &self.wanted,
            self.new.as_deref(),
            &self.old_views(),
            self.now,
        );
        self.write_status(status).await
    }

    /// Tells that progress is unknown when a deployment is paused or resumed, so that the pause is no lack of progress.
    async fn check_paused(&mut self) -> Result<(), ReconcileError> {
        if !plan::has_deadline(self.deployment) {
            return Ok(());
        }
        let reason = find_condition(&self.status.conditions, "Progressing").map(|c| c.reason.as_str()).unwrap_or("");
        let (reason, message) = match (self.deployment.spec.paused, reason) {
            (_, "ProgressDeadlineExceeded") | (true, "DeploymentPaused") => return Ok(()),
            (true, _) => ("DeploymentPaused", "Deployment is paused"),
            (false, "DeploymentPaused") => ("DeploymentResumed", "Deployment is resumed"),
            (false, _) => return Ok(()),
        };
        let mut status = self.status.clone();
        let condition = plan::condition("Progressing", "Unknown", reason, message, self.now);
        plan::set_condition(&mut status.conditions, condition);
        self.write_status(status).await
    }

    /// Brings revision and annotations of the new set, and the deployment's revision, up to date.
    async fn sync_revision(&mut self) -> Result<(), ReconcileError> {
        let Some(new) = self.new.clone() else { return Ok(()) };
        let next = self.old.iter().map(|s| plan::revision(s)).max().unwrap_or(0) + 1;
        let changes = plan::new_set_annotations(&self.deployment.metadata.annotations, &new.metadata.annotations, next);
        let min_ready = self.deployment.spec.min_ready_seconds;
        if !changes.is_empty() || new.spec.min_ready_seconds != min_ready {
            let mut patch = json!({"spec": {"minReadySeconds": min_ready}});
            patch.set_at(&["metadata", "annotations"], changes.to_value());
            let written = self.context.merge(&REPLICA_SETS, &new.metadata, patch).await?;
            self.new = Some(Arc::new(written.to().map_err(informer::ApiError::from)?));
        }
        let revision = self.new.as_deref().map_or(0, plan::revision);
        self.set_revision(revision).await?;
        if plan::has_deadline(self.deployment) && find_condition(&self.status.conditions, "Progressing").is_none() {
            let message = format!("Found new replica set \"{}\"", new.metadata.name);
            let mut status = self.status.clone();
            let condition = plan::condition("Progressing", "True", "FoundNewReplicaSet", message, self.now);
            plan::set_condition(&mut status.conditions, condition);
            self.write_status(status).await?;
        }
        Ok(())
    }

    async fn set_revision(&mut self, revision: i64) -> Result<(), ReconcileError> {
        let revision = revision.to_string();
        if self.metadata.annotations.get(REVISION) == Some(&revision) {
            return Ok(());
        }
        let mut patch = Value::object();
        patch.set_at(&["metadata", "annotations", REVISION], revision.as_str().into());
        let written = self.context.merge(&DEPLOYMENTS, &self.metadata, patch).await?;
        self.metadata.resource_version = written.str_at(&["metadata", "resourceVersion"]).into();
        self.metadata.annotations.insert(REVISION, revision);
        Ok(())
    }

    /// Makes the set for the current template, unless it exists.
    async fn ensure_new(&mut self) -> Result<(), ReconcileError> {
        if self.new.is_some() {
            return self.sync_revision().await;
        }
        let metadata = &self.deployment.metadata;
        let hash = template_hash(&self.template, self.status.collision_count);
        let mut template = raw_value(&self.deployment.spec.template);
        template.set_at(&["metadata", "labels", POD_TEMPLATE_HASH], hash.as_str().into());
        let mut selector = self.deployment.spec.selector.clone();
        selector.match_labels.insert(POD_TEMPLATE_HASH, hash.as_str());
        let keep = NAME_LENGTH_MAX - 1 - hash.len();
        let name = format!("{}-{hash}", &metadata.name[..metadata.name.len().min(keep)]);
        let total: i64 = self.old.iter().map(|s| plan::replicas(s)).sum();
        let size = self.wanted.new_size(0, total);
        let revision = self.old.iter().map(|s| plan::revision(s)).max().unwrap_or(0) + 1;
        let mut annotations = plan::new_set_annotations(&metadata.annotations, &Default::default(), revision);
        annotations.insert(DESIRED_REPLICAS, self.wanted.replicas.to_string());
        annotations.insert(MAX_REPLICAS, self.wanted.max_replicas().to_string());
        let mut object = json!({
            "kind": "ReplicaSet", "apiVersion": "apps/v1",
            "metadata": {"name": name.as_str(), "namespace": metadata.namespace.as_str()},
            "spec": {"replicas": size, "minReadySeconds": self.deployment.spec.min_ready_seconds},
        });
        object["metadata"]["labels"] = template["metadata"]["labels"].clone();
        object["metadata"]["annotations"] = annotations.to_value();
        let owner = controller_reference("apps/v1", "Deployment", metadata);
        object["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
        object["spec"]["selector"] = to_value(&selector);
        object["spec"]["template"] = template;
        match self.context.rest.create(&REPLICA_SETS, &metadata.namespace, &object).await {
            Ok(created) => {
                self.new = Some(Arc::new(created.to().map_err(informer::ApiError::from)?));
                if size > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {size}");
                    self.context.recorder.normal(&self.reference, "ScalingReplicaSet", message);
                }
                self.set_revision(revision).await?;
                if plan::has_deadline(self.deployment) {
                    let message = format!("Created new replica set \"{name}\"");
                    let mut status = self.status.clone();
                    let condition = plan::condition("Progressing", "True", "NewReplicaSetCreated", message, self.now);
                    plan::set_condition(&mut status.conditions, condition);
                    self.write_status(status).await?;
                }
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.resolve_collision(&name, error).await,
            Err(error) if error.is_namespace_terminating() => Err(error.into()),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {error}");
                if plan::has_deadline(self.deployment) {
                    let mut status = self.status.clone();
                    let condition =
                        plan::condition("Progressing", "False", "ReplicaSetCreateError", message.as_str(), self.now);
                    plan::set_condition(&mut status.conditions, condition);
                    // The failed creation is the larger worry: it is what is reported and tried again.
                    let _ = self.write_status(status).await;
                }
                self.context.recorder.warning(&self.reference, "ReplicaSetCreateError", message);
                Err(error.into())
            }
        }
    }

    /// A set of that name exists: ours that the cache has not seen yet, or another template with the same hash.
    async fn resolve_collision(&mut self, name: &str, error: informer::ApiError) -> Result<(), ReconcileError> {
        let metadata = &self.deployment.metadata;
        let existing: ReplicaSet = self.context.rest.get_as(&REPLICA_SETS, &metadata.namespace, name).await?;
        let same = plan::bare_template(&raw_value(&existing.spec.template)) == self.template;
        if existing.metadata.is_controlled_by(&metadata.uid) && same {
            self.new = Some(Arc::new(existing));
            return self.sync_revision().await;
        }
        let mut status = self.status.clone();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(status).await?;
        Err(error.into())
    }

    /// Sets the size of a replica set; gives it as written, and whether its size changed.
    async fn resize(
        &self,
        set: &Arc<ReplicaSet>,
        size: i64,
        force: bool,
    ) -> Result<(Arc<ReplicaSet>, bool), ReconcileError> {
        let before = plan::replicas(set);
        let annotate = plan::size_annotations_differ(set, &self.wanted);
        if before == size && !(force && annotate) {
            return Ok((set.clone(), false));
        }
        let mut patch = json!({"spec": {"replicas": size}});
        patch.set_at(&["metadata", "annotations", DESIRED_REPLICAS], self.wanted.replicas.to_string().into());
        patch.set_at(&["metadata", "annotations", MAX_REPLICAS], self.wanted.max_replicas().to_string().into());
        let written = self.context.merge(&REPLICA_SETS, &set.metadata, patch).await?;
        if before != size {
            let direction = if before < size { "up" } else { "down" };
            let name = &set.metadata.name;
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.context.recorder.normal(&self.reference, "ScalingReplicaSet", message);
        }
        Ok((Arc::new(written.to().map_err(informer::ApiError::from)?), before != size))
    }

    /// Follows a change of scale, also while paused.
    async fn scale(&mut self) -> Result<(), ReconcileError> {
        self.sync_revision().await?;
        let sizes = plan::scale(&self.wanted, self.status.replicas, self.new.as_deref(), &self.old_views());
        // Proportional scaling also renews the annotations of sets that keep their size.
        let force = sizes.len() > 1;
        let mut sized = false;
        for (index, size) in sizes {
            let Some(set) = (if index == 0 { self.new.clone() } else { self.old.get(index - 1).cloned() }) else {
                continue;
            };
            let (written, _) = self.resize(&set, size, force).await?;
            match index {
                0 => self.new = Some(written),
                _ => self.old[index - 1] = written,
            }
            sized = true;
        }
        if !sized {
            // The single set has its size, but its annotations still tell the old scale.
            let active = self.new.iter().chain(&self.old).find(|s| plan::replicas(s) > 0).cloned();
            if let Some(set) = active {
                self.resize(&set, plan::replicas(&set), true).await?;
            }
        }
        if self.deployment.spec.paused {
            self.clean_up().await?;
        }
        self.write_plain_status().await
    }

    async fn roll(&mut self) -> Result<(), ReconcileError> {
        self.ensure_new().await?;
        let Some(new) = self.new.clone() else { return Ok(()) };
        let view = |s: &ReplicaSet| (plan::replicas(s), s.status.available_replicas);
        let old: Vec<(i64, i64)> = self.old.iter().map(|s| view(s)).collect();
        match plan::roll(&self.wanted, view(&new), &old) {
            Step::New(size) => self.new = Some(self.resize(&new, size, false).await?.0),
            Step::Old(sizes) => {
                for (index, size) in sizes.into_iter().enumerate() {
                    self.old[index] = self.resize(&self.old[index].clone(), size, false).await?.0;
                }
            }
            Step::Nothing => {
                if plan::is_complete(&self.wanted, self.metadata.generation, &self.status) {
                    self.clean_up().await?;
                }
            }
        }
        self.write_rollout_status().await
    }

    async fn recreate(&mut self, pods: &Informer<Pod>) -> Result<(), ReconcileError> {
        self.sync_revision().await?;
        let mut scaled_down = false;
        for index in 0..self.old.len() {
            let (written, changed) = self.resize(&self.old[index].clone(), 0, false).await?;
            self.old[index] = written;
            scaled_down |= changed;
        }
        let still_running = self.old.iter().any(|s| {
            s.status.replicas > 0 || pods.by_index(BY_CONTROLLER, &s.metadata.uid).iter().any(|p| !pod::is_terminal(p))
        });
        if scaled_down || still_running {
            return self.write_rollout_status().await;
        }
        self.ensure_new().await?;
        if let Some(new) = self.new.clone() {
            self.new = Some(self.resize(&new, self.wanted.replicas, false).await?.0);
        }
        if plan::is_complete(&self.wanted, self.metadata.generation, &self.status) {
            self.clean_up().await?;
        }
        self.write_rollout_status().await
    }

    /// Deletes the oldest revisions beyond `revisionHistoryLimit`.
    async fn clean_up(&self) -> Result<(), ReconcileError> {
        let Some(limit) = self.deployment.spec.revision_history_limit.filter(|l| *l != i64::from(i32::MAX)) else {
            return Ok(());
        };
        let mut cleanable: Vec<&Arc<ReplicaSet>> = self.old.iter().filter(|s| !s.metadata.is_deleting()).collect();
        let excess = cleanable.len().saturating_sub(limit.max(0) as usize);
        cleanable.sort_by_key(|s| plan::revision(s));
        for set in cleanable.into_iter().take(excess) {
            let idle = set.status.replicas == 0
                && plan::replicas(set) == 0
                && set.metadata.generation <= set.status.observed_generation;
            if idle {
                let options = DeleteOptions::default();
                let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
                ignore_not_found(self.context.rest.delete(&REPLICA_SETS, namespace, name, &options).await)?;
            }
        }
        Ok(())
    }
}
