//! ttl-after-finished: deletes finished Jobs after `ttlSecondsAfterFinished`.
//!
//! Follows: `pkg/controller/ttlafterfinished`.

use apimachinery::json::Str;
use informer::{DeleteOptions, Informer, ObjectKey, Outcome};
use jiff::{SignedDuration, Timestamp};

use super::types::Job;
use crate::context::{Context, ReconcileResult, key_queue, wait};
use crate::resources::JOBS;

/// How long a finished job may still live; `None` when it lives on.
fn time_left(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    let ttl = job.spec.ttl_seconds_after_finished?;
    if job.metadata.is_deleting() {
        return None;
    }
    let end = job.status.conditions.iter().find(|c| c.is_true() && matches!(c.kind.as_str(), "Complete" | "Failed"))?;
    Some(SignedDuration::from_secs(ttl) - now.duration_since(end.last_transition_time?))
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("ttl-after-finished-controller", "ttl-after-finished-controller");
    let queue = key_queue();
    let jobs: Informer<Job> = context.factory.informer(JOBS);
    let adds = queue.clone();
    jobs.on_change(move |change| {
        let job = change.object();
        if !change.is_deleted() && job.spec.ttl_seconds_after_finished.is_some() && job.is_finished() {
            adds.add(job.metadata.key());
        }
    });
    let synced = vec![jobs.synced()];
    context
        .clone()
        .run("ttl-after-finished", 1, &queue, synced, move |key| reconcile(context.clone(), jobs.clone(), key));
}

async fn reconcile(context: Context, jobs: Informer<Job>, key: ObjectKey) -> ReconcileResult {
    let Some(cached) = jobs.get(&key) else { return Ok(Outcome::Done) };
    match time_left(&cached, context.now()) {
        None => return Ok(Outcome::Done),
        Some(left) if left.is_positive() => return Ok(Outcome::After(wait(left))),
        Some(_) => {}
    }
    // The TTL may have been raised a moment ago: decide on the live object.
    let job: Job = match context.rest.get_as(&JOBS, &key.namespace, &key.name).await {
        Ok(job) => job,
        Err(error) if error.is_not_found() => return Ok(Outcome::Done),
        Err(error) => return Err(error.into()),
    };
    match time_left(&job, context.now()) {
        None => Ok(Outcome::Done),
        Some(left) if left.is_positive() => Ok(Outcome::After(wait(left))),
        Some(_) => {
            let options = DeleteOptions {
                uid: job.metadata.uid.clone(),
                resource_version: Str::const_new(""),
                propagation_policy: "Foreground",
                grace_period_seconds: None,
            };
            context.delete(&JOBS, &key, &options).await?;
            Ok(Outcome::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::{Value, json};

    #[test]
    fn only_finished_jobs_with_a_ttl_run_out() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let done = json!([{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for (ttl, conditions, want) in [
            (json!(100), done.clone(), Some(40)),
            (json!(0), done.clone(), Some(-60)),
            (Value::Null, done, None),
            (json!(0), json!([]), None),
        ] {
            let mut object = json!({"metadata": {"name": "j"}});
            object.set_at(&["spec", "ttlSecondsAfterFinished"], ttl);
            object.set_at(&["status", "conditions"], conditions);
            let job: Job = object.to().unwrap();
            assert_eq!(time_left(&job, now).map(|d| d.as_secs()), want);
        }
    }
}
