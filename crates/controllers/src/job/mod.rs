//! job: runs pods until enough of them have succeeded, or too many have failed.
//!
//! Each pod carries a finalizer until its end has been counted in the status, so that no end is counted twice or lost:
//! first the pod's uid goes into `status.uncountedTerminatedPods`, then the finalizer goes, then the count rises.
//!
//! Follows: `pkg/controller/job/job_controller.go`; KEPs 2307, 2214, 3329, 3850, 3998, 4368.

mod decide;
mod indexes;
pub mod ttl;
pub mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json::Str;
use futures::future::join_all;
use informer::events::ObjectReference;
use informer::{ApiError, Change, Informer, ObjectKey, Outcome, PatchType, Queue, QueueConfig, UidExpectations};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use self::decide::{Backoff, FINALIZER, Verdict};
use self::indexes::{Indexes, from_set};
use self::types::{Job, JobStatus};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, omit_empty, omit_zero, wait};
use crate::ownership::{
    self, Owner, candidates, claim_objects, create_pod, delete_pod, pod_from_template, pod_name_prefix, slow_start,
};
use crate::pod;
use crate::resources::{JOBS, PODS};
use crate::types::{Condition, Pod, condition_is_true, controller_reference, find_condition, raw_value, to_value};

/// Pods created or deleted in one go.
const BURST: usize = 500;
/// Uids in `uncountedTerminatedPods`: keeps the status under 20 KB.
const UNCOUNTED_MAX: usize = 500;

/// How long to wait for the cache when its event does not come first.
const STALE_WAIT: Duration = Duration::from_millis(100);

struct Controller {
    context: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    queue: Queue<ObjectKey>,
    expectations: Arc<UidExpectations>,
    /// Pods whose finalizer we removed and whose change the cache has not seen.
    released: Arc<Mutex<HashSet<Str>>>,
    backoffs: Mutex<HashMap<ObjectKey, Backoff>>,
    /// The uid and the revision of the status that was written last, until the cache shows it.
    written: Mutex<HashMap<ObjectKey, (Str, u64)>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("job-controller", "job-controller");
    let queue: Queue<ObjectKey> =
        Queue::new(QueueConfig { base_delay: Duration::from_millis(100), max_delay: Duration::from_secs(600) });
    let jobs: Informer<Job> = context.factory.informer(JOBS);
    let pods = context.pods();
    let expectations: Arc<UidExpectations> = Arc::default();
    let released: Arc<Mutex<HashSet<Str>>> = Arc::default();
    let adds = queue.clone();
    jobs.on_change(move |change| adds.add(change.object().metadata.key()));
    let (owners, matching) = (jobs.clone(), jobs.clone());
    ownership::watch_pods(
        &pods,
        "Job",
        &queue,
        expectations.clone(),
        move |key, uid| owners.get(key).is_some_and(|job| job.metadata.uid == uid),
        move |pod| {
            let jobs = matching.list_namespace(&pod.metadata.namespace);
            let selects = |j: &&Arc<Job>| !j.spec.selector.is_empty() && j.spec.selector.matches(&pod.metadata.labels);
            jobs.iter().filter(selects).map(|j| j.metadata.key()).collect()
        },
    );
    let orphans: Queue<ObjectKey> = Queue::default();
    let (seen, lost, known) = (released.clone(), orphans.clone(), jobs.clone());
    pods.on_change(move |change| {
        let pod = &change.object().metadata;
        if matches!(change, Change::Deleted(_)) || !pod.has_finalizer(FINALIZER) {
            seen.lock().remove(&pod.uid);
            return;
        }
        // The job is gone or was never there: nobody else would take the finalizer off.
        if !has_living_job(&known, pod) {
            lost.add(pod.key());
        }
    });
    let (lost, all_pods) = (orphans.clone(), pods.clone());
    jobs.on_change(move |change| {
        let job = change.object();
        if change.is_deleted() || job.is_finished() {
            for pod in all_pods.by_index(crate::context::BY_CONTROLLER, &job.metadata.uid) {
                if pod.metadata.has_finalizer(FINALIZER) {
                    lost.add(pod.metadata.key());
                }
            }
        }
    });
    let synced = vec![jobs.synced(), pods.synced()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        jobs: jobs.clone(),
        pods: pods.clone(),
        queue: queue.clone(),
        expectations,
        released,
        backoffs: Mutex::default(),
        written: Mutex::default(),
    });
    let cleaner = controller.clone();
    context.run("job-orphans", 2, &orphans, synced.clone(), move |key| {
        let cleaner = cleaner.clone();
        async move { cleaner.release_orphan(key).await }
    });
    context.run("job", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// Whether a job that still counts pods owns the pod.
fn has_living_job(jobs: &Informer<Job>, pod: &informer::ObjectMeta) -> bool {
    let Some(owner) = pod.controller() else { return false };
    if owner.kind != "Job" {
        return true;
    }
    let job = jobs.get(&ObjectKey::new(pod.namespace.clone(), owner.name.clone()));
    job.is_some_and(|j| j.metadata.uid == owner.uid && (j.is_managed_elsewhere() || !j.is_finished()))
}

/// What one reconcile has found out about a job.
struct View {
    pods: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    succeeded: i64,
    failed: i64,
    terminating: i64,
    ready: i64,
    /// Indexes in the status, and with those that newly succeeded.
    indexes_before: Indexes,
    indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// Uids of pods kept until their replacement exists.
    delayed: BTreeMap<i64, Arc<Pod>>,
}

impl Controller {
    async fn release_orphan(&self, key: ObjectKey) -> ReconcileResult {
        let Some(pod) = self.pods.get(&key) else { return Ok(Outcome::Done) };
        if pod.metadata.has_finalizer(FINALIZER) && !has_living_job(&self.jobs, &pod.metadata) {
            self.release(&pod).await?;
        }
        Ok(Outcome::Done)
    }

    async fn release(&self, pod: &Pod) -> Result<(), ApiError> {
        let mut patch = Value::object();
        patch.set_at(&["metadata", "$deleteFromPrimitiveList/finalizers"], vec![FINALIZER].into());
        patch.set_at(&["metadata", "uid"], pod.metadata.uid.as_str().into());
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        self.released.lock().insert(pod.metadata.uid.clone());
        match self.context.rest.patch(&PODS, "", namespace, name, PatchType::Strategic, &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => {
                // Gone, or another pod of that name: either way the finalizer is no more.
                self.released.lock().remove(&pod.metadata.uid);
                Ok(())
            }
            Err(error) => {
                self.released.lock().remove(&pod.metadata.uid);
                Err(error)
            }
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(job) = self.jobs.get(&key) else {
            self.expectations.forget(&key);
            self.backoffs.lock().remove(&key);
            self.written.lock().remove(&key);
            return Ok(Outcome::Done);
        };
        if self.is_stale(&key, &job) {
            return Ok(Outcome::After(STALE_WAIT));
        }
        if job.is_managed_elsewhere() {
            return Ok(Outcome::Done);
        }
        if job.is_finished() {
            self.backoffs.lock().remove(&key);
            return Ok(Outcome::Done);
        }
        let mut sync = Sync {
            controller: self,
            key: &key,
            job: &job,
            metadata: job.metadata.clone(),
            status: job.status.clone(),
            written: job.status.clone(),
            reference: ObjectReference::new("batch/v1", "Job", &job.metadata),
            template: raw_value(&job.spec.template),
            now: self.context.now(),
            again: None,
            released: self.released.lock().clone(),
        };
        sync.run().await?;
        Ok(sync.again.map_or(Outcome::Done, |after| Outcome::After(wait(after))))
    }

    /// Whether the cache does not show the last status that was written. Pods that were counted there carry no finalizer any
    /// more: with the older status they would count as never run.
    fn is_stale(&self, key: &ObjectKey, job: &Job) -> bool {
        let mut written = self.written.lock();
        let Some((uid, revision)) = written.get(key) else { return false };
        if *uid == job.metadata.uid && job.metadata.resource_version.parse::<u64>().is_ok_and(|seen| seen < *revision) {
            return true;
        }
        written.remove(key);
        false
    }
}

/// One reconcile of one job.
struct Sync<'a> {
    controller: &'a Controller,
    key: &'a ObjectKey,
    job: &'a Job,
    metadata: informer::ObjectMeta,
    status: JobStatus,
    /// The status as the server has it.
    written: JobStatus,
    reference: ObjectReference,
    template: Value,
    now: Timestamp,
    again: Option<SignedDuration>,
    /// What was released and not seen when this run began. Taken before the pods are read: a pod read with its finalizer,
    /// which the cache loses a moment later, must not count twice.
    released: HashSet<Str>,
}

impl Sync<'_> {
    fn carries_finalizer(&self, pod: &Pod) -> bool {
        pod.metadata.has_finalizer(FINALIZER) && !self.released.contains(&pod.metadata.uid)
    }

    fn look_again(&mut self, after: SignedDuration) {
        self.again = Some(self.again.map_or(after, |known| known.min(after)));
    }

    fn condition(&self, kind: &str, reason: &str, message: impl Into<String>) -> Condition {
        let mut condition = Condition::new(kind, true, reason, message.into(), self.now);
        condition.last_probe_time = Some(self.now);
        condition
    }

    async fn run(&mut self) -> Result<(), ReconcileError> {
        let controller = self.controller;
        let job = self.job;
        let satisfied = controller.expectations.satisfied(self.key);
        let owner = Owner {
            resource: &JOBS,
            reference: controller_reference("batch/v1", "Job", &job.metadata),
            metadata: &job.metadata,
        };
        let all = candidates(&controller.pods, &job.metadata);
        let selected = |p: &Pod| job.spec.selector.matches(&p.metadata.labels);
        let pods = claim_objects(&controller.context, &PODS, &owner, all, selected, &[FINALIZER]).await?;
        let mut view = self.view(pods);
        if self.status.start_time.is_none() && !job.spec.suspend {
            self.status.start_time = Some(self.now);
        }
        let finished_pods = self.newly_finished(&view.pods);
        let backoff = {
            let known = controller.backoffs.lock().get(self.key).cloned().unwrap_or_default();
            known.next(&finished_pods.0, &finished_pods.1)
        };
        let mut finished = self.finish_condition(&view);
        let mut failure = None;
        if finished.is_some() {
            let count = view.active.len();
            let (deleted, ready, error) = self.delete_active(&view.active).await;
            if deleted != count || !satisfied {
                // Pods may remain that are not known yet: not finished before they are.
                finished = None;
            }
            view.terminating += deleted as i64;
            view.ready -= ready;
            self.status.active = (count - deleted) as i64;
            failure = error;
        } else {
            let mut managed = false;
            let mut active = view.active.len() as i64;
            if satisfied && !job.metadata.is_deleting() {
                managed = true;
                let (now_active, error) = self.manage(&mut view, &owner, &backoff).await;
                active = now_active;
                failure = error;
            }
            let complete = match job.spec.completions {
                None => view.succeeded > 0 && active == 0,
                Some(completions) => view.succeeded >= completions && active == 0,
            };
            if complete {
                let message = "Reached expected number of succeeded pods";
                finished = Some(self.condition("SuccessCriteriaMet", "CompletionsReached", message));
            } else if managed {
                self.update_suspended();
            }
            self.status.active = active;
        }
        self.status.ready = Some(view.ready.max(0));
        self.status.terminating = Some(view.terminating.max(0));
        self.track(&mut view, finished, backoff).await?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn view(&self, pods: Vec<Arc<Pod>>) -> View {
        let job = self.job;
        let active: Vec<Arc<Pod>> = pods.iter().filter(|p| pod::is_active(p)).cloned().collect();
        let (new_succeeded, new_failed) = self.newly_finished(&pods);
        let counted = new_failed.iter().filter(|p| decide::failure_verdict(job, p) != Verdict::Ignore).count();
        let uncounted = &self.status.uncounted_terminated_pods;
        let mut view = View {
            succeeded: self.status.succeeded + (new_succeeded.len() + uncounted.succeeded.len()) as i64,
            failed: self.status.failed + (counted + uncounted.failed.len()) as i64,
            terminating: pods.iter().filter(|p| pod::is_terminating(p)).count() as i64,
            ready: active.iter().filter(|p| pod::is_ready(p)).count() as i64,
            indexes_before: Indexes::default(),
            indexes: Indexes::default(),
            failed_indexes: None,
            delayed: BTreeMap::new(),
            active,
            pods,
        };
        if job.is_indexed() {
            let carries = |p: &&Arc<Pod>| self.carries_finalizer(p);
            let completions = job.completions();
            view.indexes_before = Indexes::parse(&self.status.completed_indexes, completions);
            let succeeded = view.pods.iter().filter(|p| p.status.phase == "Succeeded").filter(carries);
            view.indexes = view.indexes_before.with(succeeded.filter_map(|p| decide::valid_index(job, p)));
            view.succeeded = view.indexes.total();
            if job.spec.backoff_limit_per_index.is_some() {
                let before = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or(""), completions);
                let failing = view.pods.iter().filter(carries).filter(|p| decide::fails_index(job, p));
                let failed = before.with(failing.filter_map(|p| decide::valid_index(job, p)));
                let active: BTreeSet<i64> = view.active.iter().filter_map(|p| decide::completion_index(p)).collect();
                let delayed = decide::delayed_pods(job, &view.pods, &active, &view.indexes, &failed);
                view.delayed = delayed.into_iter().map(|(index, pod)| (index, pod.clone())).collect();
                view.failed_indexes = Some(failed);
            }
        }
        view
    }

    /// Pods that have ended and are not in the status yet: (succeeded, failed).
    fn newly_finished<'p>(&self, pods: &'p [Arc<Pod>]) -> (Vec<&'p Arc<Pod>>, Vec<&'p Arc<Pod>>) {
        let job = self.job;
        let uncounted = &self.status.uncounted_terminated_pods;
        let fresh =
            |p: &&Arc<Pod>| self.carries_finalizer(p) && (!job.is_indexed() || decide::valid_index(job, p).is_some());
        let succeeded = pods
            .iter()
            .filter(fresh)
            .filter(|p| p.status.phase == "Succeeded" && !uncounted.succeeded.contains(&p.metadata.uid));
        let failed = pods
            .iter()
            .filter(fresh)
            .filter(|p| decide::is_failed(job, p) && !uncounted.failed.contains(&p.metadata.uid));
        (succeeded.collect(), failed.collect())
    }

    /// Why the job ends, if it does: what was decided before stands, then failures, then the success policy.
    fn finish_condition(&mut self, view: &View) -> Option<Condition> {
        let job = self.job;
        let known = |kind: &str| find_condition(&self.status.conditions, kind).filter(|c| c.is_true()).cloned();
        if let Some(condition) = known("SuccessCriteriaMet").or_else(|| known("FailureTarget")) {
            return Some(condition);
        }
        let failure = |reason: &str, message: &str| Some(self.condition("FailureTarget", reason, message));
        for pod in view.pods.iter().filter(|p| decide::is_failed(job, p)) {
            if let Verdict::FailJob(message) = decide::failure_verdict(job, pod) {
                return failure("PodFailurePolicy", &message);
            }
        }
        let restart_policy = self.template.str_at(&["spec", "restartPolicy"]);
        let limit = job.spec.backoff_limit.unwrap_or(6);
        if view.failed > limit || decide::restarts_exceed_limit(job, restart_policy, &view.pods) {
            return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if let (Some(deadline), Some(start), false) =
            (job.spec.active_deadline_seconds, self.status.start_time, job.spec.suspend)
        {
            let left = SignedDuration::from_secs(deadline) - self.now.duration_since(start);
            if !left.is_positive() {
                return failure("DeadlineExceeded", "Job was active longer than specified deadline");
            }
            self.look_again(left);
        }
        if let Some(failed) = &view.failed_indexes {
            let failure = |reason: &str, message: &str| Some(self.condition("FailureTarget", reason, message));
            if job.spec.max_failed_indexes.is_some_and(|max| failed.total() > max) {
                return failure(
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                );
            }
            if failed.total() > 0 && failed.total() + view.indexes.total() >= job.completions() {
                return failure("FailedIndexes", "Job has failed indexes");
            }
        }
        if job.is_indexed()
            && let Some(message) = decide::success_policy_met(job, &view.indexes)
        {
            return Some(self.condition("SuccessCriteriaMet", "SuccessPolicy", message));
        }
        None
    }

    /// Deletes pods but leaves their finalizers, so that they are counted: (deleted, ready among them, first error).
    async fn delete_active(&self, pods: &[Arc<Pod>]) -> (usize, i64, Option<ApiError>) {
        let context = &self.controller.context;
        let results = join_all(pods.iter().map(|p| delete_pod(context, &p.metadata, &self.reference))).await;
        let mut error = None;
        let (mut deleted, mut ready) = (0, 0);
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Err(e) if !e.is_not_found() => error = error.or(Some(e)),
                _ => {
                    deleted += 1;
                    ready += i64::from(pod::is_ready(pod));
                }
            }
        }
        (deleted, ready, error)
    }

    /// Deletes pods that are not counted: their finalizers go first.
    async fn delete_uncounted(&self, view: &mut View, pods: Vec<Arc<Pod>>) -> (i64, Option<ApiError>) {
        let controller = self.controller;
        controller.expectations.expect_deletes(self.key, pods.iter().map(|p| p.metadata.uid.clone()));
        let results = join_all(pods.iter().map(|p| async {
            let result = match controller.release(p).await {
                Ok(()) => delete_pod(&controller.context, &p.metadata, &self.reference).await,
                Err(error) => Err(error),
            };
            if result.is_err() {
                controller.expectations.saw_delete(self.key, &p.metadata.uid);
            }
            result
        }))
        .await;
        let mut error = None;
        let mut removed = 0;
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Err(e) if !e.is_not_found() => error = error.or(Some(e)),
                _ => {
                    removed += 1;
                    view.ready -= i64::from(pod::is_ready(pod));
                }
            }
        }
        view.terminating += removed;
        (removed, error)
    }

    /// Creates or deletes pods; gives how many are active then.
    async fn manage(&mut self, view: &mut View, owner: &Owner<'_>, backoff: &Backoff) -> (i64, Option<ApiError>) {
        let (controller, job) = (self.controller, self.job);
        let active = view.active.len() as i64;
        if job.spec.suspend {
            let pods = decide::pods_to_remove(job, &view.active, view.active.len(), self.now);
            if pods.is_empty() {
                return (active, None);
            }
            let (removed, error) = self.delete_uncounted(view, pods).await;
            return (active - removed, error);
        }
        let wanted = decide::wanted_active(job, active, view.succeeded);
        let excess = (active - wanted).max(0) as usize;
        let mut surplus = decide::pods_to_remove(job, &view.active, excess, self.now);
        surplus.truncate(BURST);
        if !surplus.is_empty() {
            let (removed, error) = self.delete_uncounted(view, surplus).await;
            return (active - removed, error);
        }
        let leaving = if job.replaces_only_failed() { view.terminating } else { 0 };
        let mut missing = (wanted - leaving - active).max(0) as usize;
        if missing == 0 {
            return (active, None);
        }
        if job.spec.backoff_limit_per_index.is_none() {
            let remaining = backoff.remaining(self.now);
            if remaining.is_positive() {
                self.look_again(remaining);
                return (active, None);
            }
        }
        missing = missing.min(BURST);
        let mut indexes: Vec<i64> = Vec::new();
        if job.is_indexed() {
            let of = |pods: &[Arc<Pod>], keep: fn(&Pod) -> bool| -> BTreeSet<i64> {
                pods.iter().filter(|p| keep(p)).filter_map(|p| decide::completion_index(p)).collect()
            };
            let mut taken = view.indexes.merge(from_set(&of(&view.active, |_| true)).intervals().iter().copied());
            if job.replaces_only_failed() {
                taken = taken.merge(from_set(&of(&view.pods, pod::is_terminating)).intervals().iter().copied());
            }
            if let Some(failed) = &view.failed_indexes {
                taken = taken.merge(failed.intervals().iter().copied());
            }
            indexes = taken.first_missing(missing, job.completions());
            if job.spec.backoff_limit_per_index.is_some() {
                let now = self.now;
                let waits =
                    |i: &i64| view.delayed.get(i).map_or(SignedDuration::ZERO, |p| decide::remaining_for_index(p, now));
                let soonest = indexes.iter().map(waits).filter(|w| w.is_positive()).min();
                indexes.retain(|i| waits(i).is_zero());
                if let Some(soonest) = soonest {
                    self.look_again(soonest);
                }
            }
            missing = indexes.len();
            if missing == 0 {
                return (active, None);
            }
        }
        controller.expectations.expect_adds(self.key, missing);
        let template = decide::tracked_template(job, &self.template);
        let mut base = pod_from_template(&template, &job.metadata.namespace, &owner.reference);
        base.set_at(&["metadata", "generateName"], pod_name_prefix(&job.metadata.name).into());
        let (base, indexes, delayed, reference) = (&base, &indexes, &view.delayed, &self.reference);
        let (created, error) = slow_start(missing, |nth| async move {
            let mut pod = base.clone();
            if let Some(index) = indexes.get(nth) {
                let per_index = job.spec.backoff_limit_per_index.is_some();
                let failures = per_index.then(|| decide::next_failure_counts(job, delayed.get(index).map(|p| &**p)));
                decide::set_index(job, &mut pod, *index, failures);
            }
            match create_pod(&controller.context, &pod, reference).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_namespace_terminating() => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await;
        (created..missing).for_each(|_| controller.expectations.saw_add(self.key));
        (active + created as i64, error)
    }

    fn update_suspended(&mut self) {
        let suspend = self.job.spec.suspend;
        let known = find_condition(&self.status.conditions, "Suspended").map(Condition::is_true);
        // A job that never was suspended does not say that it is not.
        if known == Some(suspend) || (known.is_none() && !suspend) {
            return;
        }
        let (reason, message, event) = if suspend {
            ("JobSuspended", "Job suspended", "Suspended")
        } else {
            ("JobResumed", "Job resumed", "Resumed")
        };
        let mut condition = Condition::new("Suspended", suspend, reason, message, self.now);
        condition.last_probe_time = Some(self.now);
        self.status.conditions.retain(|c| c.kind != "Suspended");
        self.status.conditions.push(condition);
        self.status.start_time = (!suspend).then_some(self.now);
        self.controller.context.recorder.normal(&self.reference, event, message);
    }

    /// Counts pods that have ended, takes their finalizers off, and ends the job when all is counted.
    async fn track(
        &mut self,
        view: &mut View,
        finished: Option<Condition>,
        backoff: Backoff,
    ) -> Result<(), ReconcileError> {
        let (controller, job) = (self.controller, self.job);
        let mut with_finalizer: BTreeSet<Str> =
            view.pods.iter().filter(|p| self.carries_finalizer(p)).map(|p| p.metadata.uid.clone()).collect();
        settle(&mut self.status, &with_finalizer);
        let success = finished.as_ref().is_some_and(|c| c.kind == "SuccessCriteriaMet");
        let mut release: Vec<Arc<Pod>> = Vec::new();
        let mut new_indexes: Vec<i64> = Vec::new();
        let mut all_done = true;
        view.pods.sort_by_key(|p| decide::completion_index(p));
        for pod in view.pods.iter().filter(|p| with_finalizer.contains(&p.metadata.uid)) {
            let uid = &pod.metadata.uid;
            let failed = decide::is_failed(job, pod);
            let succeeded = pod.status.phase == "Succeeded";
            let delayed = decide::completion_index(pod)
                .and_then(|i| view.delayed.get(&i))
                .is_some_and(|d| d.metadata.uid == *uid);
            let may_release = job.metadata.is_deleting() || finished.is_some() || succeeded || (failed && !delayed);
            if !may_release {
                continue;
            }
            release.push(pod.clone());
            let uncounted = &mut self.status.uncounted_terminated_pods;
            let index = decide::valid_index(job, pod);
            if succeeded && !uncounted.failed.contains(uid) {
                if job.is_indexed() {
                    new_indexes.extend(index.filter(|i| !view.indexes_before.has(*i)));
                } else {
                    uncounted.succeeded.insert(uid.clone());
                }
            } else if (failed || (finished.is_some() && !success))
                && (!job.is_indexed() || index.is_some())
                && decide::failure_verdict(job, pod) != Verdict::Ignore
            {
                uncounted.failed.insert(uid.clone());
            }
            if new_indexes.len() + uncounted.succeeded.len() + uncounted.failed.len() >= UNCOUNTED_MAX {
                all_done = false;
                break;
            }
        }
        if job.is_indexed() {
            let indexes = view.indexes_before.with(new_indexes);
            self.status.succeeded = indexes.total();
            self.status.completed_indexes = indexes.to_string().into();
            self.status.failed_indexes = view.failed_indexes.as_ref().map(|f| f.to_string().into());
        }
        // The interim condition is told before any finalizer goes; the final one when everything is counted.
        let last = finished.map(|interim| {
            if !condition_is_true(&self.status.conditions, &interim.kind) {
                self.status.conditions.push(interim.clone());
            }
            let kind = if success { "Complete" } else { "Failed" };
            self.condition(kind, &interim.reason, interim.message.as_str())
        });
        self.flush().await?;
        if backoff != Backoff::default() || controller.backoffs.lock().contains_key(self.key) {
            controller.backoffs.lock().insert(self.key.clone(), backoff);
        }
        let results = join_all(release.iter().map(|p| controller.release(p))).await;
        let mut error = None;
        for (pod, result) in release.iter().zip(results) {
            match result {
                Ok(()) => {
                    with_finalizer.remove(&pod.metadata.uid);
                }
                Err(e) => error = error.or(Some(e)),
            }
        }
        settle(&mut self.status, &with_finalizer);
        let uncounted = &self.status.uncounted_terminated_pods;
        let counted = uncounted.succeeded.is_empty() && uncounted.failed.is_empty();
        let mut ended = None;
        if let Some(last) = last
            && error.is_none()
            && all_done
            && counted
            && self.status.terminating.unwrap_or(0) == 0
        {
            if last.kind == "Complete" {
                self.status.completion_time = Some(self.now);
            }
            self.status.conditions.push(last.clone());
            ended = Some(last);
        }
        self.flush().await?;
        if let Some(last) = ended {
            self.announce(&last);
        } else if !all_done {
            controller.queue.add_after(self.key.clone(), Duration::from_millis(10));
        }
        error.map_or(Ok(()), |e| Err(e.into()))
    }

    fn announce(&self, last: &Condition) {
        let recorder = &self.controller.context.recorder;
        if last.kind != "Complete" {
            return recorder.warning(&self.reference, &last.reason, last.message.as_str());
        }
        if self.job.spec.completions.is_some_and(|c| self.status.succeeded > c) {
            let message = "Too many succeeded pods running after completion count reached";
            recorder.warning(&self.reference, "TooManySucceededPods", message);
        }
        recorder.normal(&self.reference, "Completed", "Job completed");
    }

    async fn flush(&mut self) -> Result<(), ReconcileError> {
        if self.status == self.written {
            return Ok(());
        }
        let status = &self.status;
        let list = |uids: &BTreeSet<Str>| {
            if uids.is_empty() { Value::Null } else { uids.iter().cloned().collect::<Vec<_>>().into() }
        };
        let mut patch = Value::object();
        patch["active"] = omit_zero(status.active);
        patch["succeeded"] = omit_zero(status.succeeded);
        patch["failed"] = omit_zero(status.failed);
        patch["ready"] = status.ready.into();
        patch["terminating"] = status.terminating.into();
        patch["completedIndexes"] = omit_empty(&status.completed_indexes);
        patch["failedIndexes"] = status.failed_indexes.as_deref().map(Value::from).into();
        patch["startTime"] = time(status.start_time);
        patch["completionTime"] = time(status.completion_time);
        patch.set_at(&["uncountedTerminatedPods", "succeeded"], list(&status.uncounted_terminated_pods.succeeded));
        patch.set_at(&["uncountedTerminatedPods", "failed"], list(&status.uncounted_terminated_pods.failed));
        patch["conditions"] = if status.conditions.is_empty() { Value::Null } else { to_value(&status.conditions) };
        let written = self.controller.context.patch_status(&JOBS, &self.metadata, patch).await;
        match written {
            Ok(written) => {
                self.metadata.resource_version = written.str_at(&["metadata", "resourceVersion"]).into();
                if let Ok(revision) = self.metadata.resource_version.parse() {
                    let known = (self.metadata.uid.clone(), revision);
                    self.controller.written.lock().insert(self.key.clone(), known);
                }
                self.written = self.status.clone();
                Ok(())
            }
            // The job is gone: its pods are released by themselves.
            Err(error) if error.is_not_found() => ignore_not_found::<()>(Err(error)).map_err(Into::into),
            Err(error) => Err(error.into()),
        }
    }
}

fn time(time: Option<Timestamp>) -> Value {
    time.map(informer::clock::format_seconds).into()
}

/// Moves uncounted pods without a finalizer into the counts.
fn settle(status: &mut JobStatus, with_finalizer: &BTreeSet<Str>) {
    let uncounted = &mut status.uncounted_terminated_pods;
    let before = (uncounted.succeeded.len(), uncounted.failed.len());
    uncounted.succeeded.retain(|uid| with_finalizer.contains(uid));
    uncounted.failed.retain(|uid| with_finalizer.contains(uid));
    status.succeeded += (before.0 - uncounted.succeeded.len()) as i64;
    status.failed += (before.1 - uncounted.failed.len()) as i64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_counted_when_their_finalizer_is_gone() {
        let mut status = JobStatus { succeeded: 1, ..JobStatus::default() };
        status.uncounted_terminated_pods.succeeded = ["a".into(), "b".into()].into();
        status.uncounted_terminated_pods.failed = ["c".into()].into();
        settle(&mut status, &["b".into()].into());
        assert_eq!((status.succeeded, status.failed), (2, 1));
        assert_eq!(status.uncounted_terminated_pods.succeeded, ["b".into()].into());
    }
}
