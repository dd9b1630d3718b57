//! cronjob: makes Jobs at the times of a schedule.
//!
//! A Job's name contains its scheduled minute, so that one time never gives two Jobs, whatever is restarted when.
//!
//! Follows: `pkg/controller/cronjob`.

pub mod schedule;

use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::clock::format_seconds;
use informer::events::ObjectReference;
use informer::{DeleteOptions, Informer, ObjectKey, ObjectMeta, Outcome, null_default};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use self::schedule::Schedule;
use crate::context::{BY_CONTROLLER, Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, wait};
use crate::job::types::Job;
use crate::ownership;
use crate::resources::{CRON_JOBS, JOBS};
use crate::types::{Raw, cached, condition_is_true, controller_reference, raw_value, to_value};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Clocks differ a little: look just after the minute.
const SKEW: SignedDuration = SignedDuration::from_millis(100);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct CronJob {
    metadata: ObjectMeta,
    spec: CronJobSpec,
    status: CronJobStatus,
}

cached!(CronJob);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CronJobSpec {
    schedule: Str,
    time_zone: Option<Str>,
    starting_deadline_seconds: Option<i64>,
    concurrency_policy: Str,
    suspend: bool,
    job_template: Option<Raw>,
    successful_jobs_history_limit: Option<i64>,
    failed_jobs_history_limit: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CronJobStatus {
    #[serde(deserialize_with = "null_default")]
    active: Vec<JobReference>,
    last_schedule_time: Option<Timestamp>,
    last_successful_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct JobReference {
    kind: Str,
    namespace: Str,
    name: Str,
    uid: Str,
    api_version: Str,
    resource_version: Str,
}

/// The scheduled time that is due and not served, and whether so many were missed that the clock may be wrong.
fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> (Option<Timestamp>, bool) {
    let Some(mut earliest) = cron.status.last_schedule_time.or(cron.metadata.creation_timestamp) else {
        return (None, false);
    };
    if let Some(deadline) = cron.spec.starting_deadline_seconds {
        earliest = earliest.max(now - SignedDuration::from_secs(deadline));
    }
    let Some(first) = schedule.next(earliest, zone).filter(|t| *t <= now) else { return (None, false) };
    let Some(second) = schedule.next(first, zone).filter(|t| *t <= now) else { return (Some(first), false) };
    let interval = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / interval + 1;
    // Jump near the end: walking over years of minutes would take for ever.
    let start = first + SignedDuration::from_secs(((missed - 2) * interval).max(0));
    let mut latest = if start == first { Some(first) } else { None };
    let mut at = start;
    while let Some(next) = schedule.next(at, zone).filter(|t| *t <= now) {
        latest = Some(next);
        at = next;
    }
    (latest.or(Some(first)), missed > 100)
}

fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name, at.as_second() / 60)
}

fn make_job(cron: &CronJob, at: Timestamp, zone: &TimeZone) -> Value {
    let template = raw_value(&cron.spec.job_template);
    let mut job = json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": {
        "name": job_name(cron, at), "namespace": cron.metadata.namespace.as_str()}});
    for field in ["labels", "annotations"] {
        if let Some(value) = template.at(&["metadata", field]).filter(|v| !v.is_null()) {
            job["metadata"][field] = value.clone();
        }
    }
    let local = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
    job.set_at(&["metadata", "annotations", SCHEDULED_AT], local.into());
    let owner = controller_reference("batch/v1", "CronJob", &cron.metadata);
    job["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
    job["spec"] = template["spec"].clone();
    job
}

/// The finished jobs beyond the history limits, oldest first.
fn outdated(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<ObjectKey> {
    let mut remove = Vec::new();
    for (kind, limit) in
        [("Complete", cron.spec.successful_jobs_history_limit), ("Failed", cron.spec.failed_jobs_history_limit)]
    {
        let Some(limit) = limit else { continue };
        let mut ended: Vec<&Arc<Job>> = jobs.iter().filter(|j| condition_is_true(&j.status.conditions, kind)).collect();
        ended.sort_by_key(|j| (j.status.start_time, j.metadata.name.clone()));
        let excess = ended.len().saturating_sub(limit.max(0) as usize);
        remove.extend(ended.into_iter().take(excess).map(|j| j.metadata.key()));
    }
    remove
}

struct Controller {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("cronjob-controller", "cronjob-controller");
    let queue = key_queue();
    let crons: Informer<CronJob> = context.factory.informer(CRON_JOBS);
    let jobs: Informer<Job> = context.factory.informer(JOBS);
    ownership::add_owner_index(&jobs);
    let adds = queue.clone();
    crons.on_change(move |change| adds.add(change.object().metadata.key()));
    let adds = queue.clone();
    jobs.on_change(move |change| {
        let job = &change.object().metadata;
        if let Some(owner) = job.controller().filter(|o| o.kind == "CronJob") {
            adds.add(ObjectKey::new(job.namespace.clone(), owner.name.clone()));
        }
    });
    let synced = vec![crons.synced(), jobs.synced()];
    let controller = Arc::new(Controller { context: context.clone(), crons, jobs });
    context.run("cronjob", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(cron) = self.crons.get(&key) else { return Ok(Outcome::Done) };
        let reference = ObjectReference::new("batch/v1", "CronJob", &cron.metadata);
        let jobs = self.jobs.by_index(BY_CONTROLLER, &cron.metadata.uid);
        let mut status = cron.status.clone();
        self.follow_jobs(&jobs, &mut status, &reference).await?;
        let result = self.schedule(&cron, &mut status, &reference).await;
        if status != cron.status {
            let mut patch = Value::object();
            patch["active"] = if status.active.is_empty() { Value::Null } else { to_value(&status.active) };
            patch["lastScheduleTime"] = status.last_schedule_time.map(format_seconds).into();
            patch["lastSuccessfulTime"] = status.last_successful_time.map(format_seconds).into();
            ignore_not_found(self.context.patch_status(&CRON_JOBS, &cron.metadata, patch).await)?;
        }
        for job in outdated(&cron, &jobs) {
            self.delete_job(&job, &reference).await?;
        }
        Ok(result?.map_or(Outcome::Done, |after| Outcome::After(wait(after + SKEW))))
    }

    async fn delete_job(&self, key: &ObjectKey, reference: &ObjectReference) -> Result<(), ReconcileError> {
        match self.context.rest.delete(&JOBS, &key.namespace, &key.name, &DeleteOptions::background()).await {
            Ok(()) => self.context.recorder.normal(reference, "SuccessfulDelete", format!("Deleted job {}", key.name)),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                self.context.recorder.warning(reference, "FailedDelete", format!("Deleted job: {error}"));
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Takes over what has become of the active jobs.
    async fn follow_jobs(
        &self,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
        reference: &ObjectReference,
    ) -> Result<(), ReconcileError> {
        let recorder = &self.context.recorder;
        for job in jobs.iter().filter(|j| j.is_finished()) {
            let name = &job.metadata.name;
            if let Some(at) = status.active.iter().position(|a| a.uid == job.metadata.uid) {
                status.active.remove(at);
                let succeeded = condition_is_true(&job.status.conditions, "Complete");
                let condition = if succeeded { "Complete" } else { "Failed" };
                recorder.normal(
                    reference,
                    "SawCompletedJob",
                    format!("Saw completed job: {name}, condition: {condition}"),
                );
            }
            if condition_is_true(&job.status.conditions, "Complete") {
                status.last_successful_time = status.last_successful_time.max(job.status.completion_time);
            }
        }
        let missing: Vec<JobReference> =
            status.active.iter().filter(|a| !jobs.iter().any(|j| j.metadata.uid == a.uid)).cloned().collect();
        for active in missing {
            // The cache may not have it yet.
            match self.context.rest.get(&JOBS, &active.namespace, &active.name).await {
                Ok(job) if job.str_at(&["metadata", "uid"]) == active.uid => {}
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {
                    status.active.retain(|a| a.uid != active.uid);
                    recorder.normal(reference, "MissingJob", format!("Active job went missing: {}", active.name));
                }
            }
        }
        Ok(())
    }

    /// Starts the job that is due; gives the time until the next.
    async fn schedule(
        &self,
        cron: &CronJob,
        status: &mut CronJobStatus,
        reference: &ObjectReference,
    ) -> Result<Option<SignedDuration>, ReconcileError> {
        let recorder = &self.context.recorder;
        if cron.metadata.is_deleting() {
            return Ok(None);
        }
        let zone_name = cron.spec.time_zone.as_deref().unwrap_or("UTC");
        let zone = match TimeZone::get(zone_name) {
            Ok(zone) => zone,
            Err(error) => {
                recorder.warning(reference, "UnknownTimeZone", format!("invalid timeZone: \"{zone_name}\": {error}"));
                return Ok(None);
            }
        };
        if cron.spec.suspend {
            return Ok(None);
        }
        let text = &cron.spec.schedule;
        let schedule = match Schedule::parse(text) {
            Ok(schedule) => schedule,
            Err(error) => {
                recorder.warning(
                    reference,
                    "UnparseableSchedule",
                    format!("unparseable schedule: \"{text}\" : {error}"),
                );
                return Ok(None);
            }
        };
        let now = self.context.now();
        let Some(next) = schedule.next(now, &zone).map(|t| t.duration_since(now)) else {
            // Such as the 31st of February.
            let error = "time difference between two schedules is less than 1 second";
            recorder.warning(reference, "InvalidSchedule", format!("invalid schedule: {text} : {error}"));
            return Ok(None);
        };
        let next = Some(next);
        let (scheduled, many_missed) = due(cron, &schedule, &zone, now);
        if many_missed {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            recorder.warning(reference, "TooManyMissedTimes", message);
        }
        let Some(at) = scheduled else { return Ok(next) };
        if let Some(deadline) = cron.spec.starting_deadline_seconds
            && at + SignedDuration::from_secs(deadline) < now
        {
            let time = at.strftime("%a, %d %b %Y %H:%M:%S UTC");
            recorder.warning(reference, "MissSchedule", format!("Missed scheduled time to start a job: {time}"));
            return Ok(next);
        }
        let name = job_name(cron, at);
        if status.active.iter().any(|a| a.name == name) || status.last_schedule_time == Some(at) {
            return Ok(next);
        }
        match cron.spec.concurrency_policy.as_str() {
            "Forbid" if !status.active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                recorder.normal(reference, "JobAlreadyActive", message);
                return Ok(next);
            }
            "Replace" => {
                for active in std::mem::take(&mut status.active) {
                    self.delete_job(&ObjectKey::new(active.namespace, active.name), reference).await?;
                }
            }
            _ => {}
        }
        let created = match self.context.rest.create(&JOBS, &cron.metadata.namespace, &make_job(cron, at, &zone)).await
        {
            Ok(created) => {
                recorder.normal(reference, "SuccessfulCreate", format!("Created job {name}"));
                created
            }
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) if error.is_already_exists() => {
                let existing: Job = self.context.rest.get_as(&JOBS, &cron.metadata.namespace, &name).await?;
                if !existing.metadata.is_controlled_by(&cron.metadata.uid) {
                    return Ok(next);
                }
                // Ours: the status could not be written after it was made.
                self.context.rest.get(&JOBS, &cron.metadata.namespace, &name).await?
            }
            Err(error) => {
                recorder.warning(reference, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error.into());
            }
        };
        let of = |field: &str| -> Str { created.str_at(&["metadata", field]).into() };
        status.active.push(JobReference {
            kind: "Job".into(),
            api_version: "batch/v1".into(),
            namespace: of("namespace"),
            name: of("name"),
            uid: of("uid"),
            resource_version: of("resourceVersion"),
        });
        status.last_schedule_time = Some(at);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut object =
            json!({"metadata": {"name": "c", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        object["spec"] = spec;
        if let Some(last) = last {
            object.set_at(&["status", "lastScheduleTime"], last.into());
        }
        object.to().unwrap()
    }

    #[test]
    fn the_latest_missed_time_is_due() {
        let schedule = Schedule::parse("*/10 * * * *").unwrap();
        for (spec, last, now, want, many) in [
            (json!({}), None, "2026-01-01T00:05:00Z", None, false),
            (json!({}), None, "2026-01-01T00:10:00Z", Some("2026-01-01T00:10:00Z"), false),
            (json!({}), Some("2026-01-01T00:10:00Z"), "2026-01-01T00:15:00Z", None, false),
            (json!({}), None, "2026-01-01T01:05:00Z", Some("2026-01-01T01:00:00Z"), false),
            (json!({}), None, "2026-01-03T00:01:00Z", Some("2026-01-03T00:00:00Z"), true),
            (json!({"startingDeadlineSeconds": 60}), None, "2026-01-01T01:05:00Z", None, false),
        ] {
            let got = due(&cron(spec, last), &schedule, &TimeZone::UTC, now.parse().unwrap());
            assert_eq!(got, (want.map(|w| w.parse().unwrap()), many), "{now}");
        }
    }

    #[test]
    fn jobs_are_named_by_their_minute_and_history_is_bounded() {
        let cron = cron(
            json!({"jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"x": 1}},
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1}),
            None,
        );
        let job = make_job(&cron, Timestamp::from_second(1_200).unwrap(), &TimeZone::UTC);
        assert_eq!(job.str_at(&["metadata", "name"]), "c-20");
        assert_eq!(job.str_at(&["metadata", "annotations", SCHEDULED_AT]), "1970-01-01T00:20:00Z");
        let ended = |name: &str, kind: &str, start: &str| -> Arc<Job> {
            Arc::new(
                json!({"metadata": {"name": name}, "status": {"startTime": start,
                "conditions": [{"type": kind, "status": "True"}]}})
                .to()
                .unwrap(),
            )
        };
        let jobs = [
            ended("new", "Complete", "2026-01-01T00:01:00Z"),
            ended("old", "Complete", "2026-01-01T00:00:00Z"),
            ended("bad", "Failed", "2026-01-01T00:00:00Z"),
        ];
        assert_eq!(outdated(&cron, &jobs), [ObjectKey::cluster("old")]);
    }
}
