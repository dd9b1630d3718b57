//! CronJobs and what ends Jobs later, by a clock that the test turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use apimachinery::{Value, json};
use informer::Clock;
use jiff::Timestamp;

use crate::cluster::*;

/// A clock that stands still until it is turned.
struct Turned(Arc<AtomicI64>);

impl Turned {
    fn new() -> Turned {
        Turned(Arc::new(AtomicI64::new(Timestamp::now().as_second())))
    }

    fn clock(&self) -> Clock {
        let seconds = self.0.clone();
        Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::SeqCst)).expect("a time of this century"))
    }

    /// Goes on to the second after the first full minute that is later than `seconds`.
    fn pass_minute_after(&self, seconds: i64) {
        self.0.store(seconds - seconds % 60 + 61, Ordering::SeqCst);
    }

    fn turn(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

fn cron_job(name: &str, policy: &str, suspend: bool) -> Value {
    json!({"kind": "CronJob", "apiVersion": "batch/v1", "metadata": {"name": name}, "spec": {"schedule": "*/1 * * * *",
        "concurrencyPolicy": policy, "suspend": suspend, "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}}})
}

fn jobs_of(all: &[Value], cron: &str) -> Vec<String> {
    let ours = all.iter().filter(|j| owned_by(j, cron) && j.str_at(&["metadata", "deletionTimestamp"]).is_empty());
    ours.map(|j| j.str_at(&["metadata", "name"]).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cron_jobs_start_forbid_replace_and_rest() {
    let turned = Turned::new();
    let cluster = Cluster::start_with(|config| controllers::ManagerConfig { clock: turned.clock(), ..config }).await;
    let ns = "default";
    let all = [("allow", "Allow"), ("forbid", "Forbid"), ("replace", "Replace"), ("suspended", "Allow")];
    for (name, policy) in all {
        cluster.create(&CRON_JOBS, ns, cron_job(name, policy, name == "suspended")).await;
    }
    let mut never = cron_job("never", "Allow", false);
    never["spec"]["schedule"] = "59 23 31 2 *".into();
    cluster.create(&CRON_JOBS, ns, never).await;
    let told = |events: &[Value]| events.iter().any(|e| e.str_at(&["reason"]) == "InvalidSchedule");
    cluster.until_list("it can never run", &EVENTS, ns, told).await;
    // The controllers look again when an object changes.
    let minute = async |number: i64| {
        for (name, _) in all {
            let note = json!({"metadata": {"annotations": {"minute": number.to_string()}}});
            cluster.patch(&CRON_JOBS, ns, name, note).await;
        }
    };
    let made = cluster.list(&CRON_JOBS, ns).await;
    let last = made.iter().filter_map(|c| c.str_at(&["metadata", "creationTimestamp"]).parse::<Timestamp>().ok()).max();
    turned.pass_minute_after(last.expect("they are there").as_second());
    minute(1).await;
    let started = |all: &[Value]| ["allow", "forbid", "replace"].iter().all(|c| jobs_of(all, c).len() == 1);
    let first = cluster.until_list("one job each", &JOBS, ns, started).await;
    let replaced = jobs_of(&first, "replace");
    for name in ["allow", "forbid", "replace"] {
        cluster.until("one active", &CRON_JOBS, ns, name, |c| c.array_at(&["status", "active"]).len() == 1).await;
    }
    turned.turn(60);
    minute(2).await;
    cluster.until_list("a second job beside the first", &JOBS, ns, |all| jobs_of(all, "allow").len() == 2).await;
    cluster
        .until_list("another in its place", &JOBS, ns, |all| {
            let now = jobs_of(all, "replace");
            now.len() == 1 && now != replaced
        })
        .await;
    let told = |events: &[Value]| {
        let about = |e: &Value| {
            e.str_at(&["involvedObject", "name"]) == "forbid" && e.str_at(&["reason"]) == "JobAlreadyActive"
        };
        events.iter().any(about)
    };
    cluster.until_list("the second is forbidden", &EVENTS, ns, told).await;
    let jobs = cluster.list(&JOBS, ns).await;
    assert_eq!(jobs_of(&jobs, "forbid"), jobs_of(&first, "forbid"));
    assert!(jobs_of(&jobs, "suspended").is_empty());
    // Released, it starts the latest missed time only.
    cluster.patch(&CRON_JOBS, ns, "suspended", json!({"spec": {"suspend": false}})).await;
    cluster.until_list("no longer suspended", &JOBS, ns, |all| jobs_of(all, "suspended").len() == 1).await;
    // With its CronJob a Job goes.
    cluster.delete(&CRON_JOBS, ns, "allow", "Background").await;
    cluster.until_list("collected", &JOBS, ns, |all| jobs_of(all, "allow").is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_jobs_go_when_their_time_is_over() {
    let turned = Turned::new();
    let cluster = Cluster::start_with(|config| controllers::ManagerConfig { clock: turned.clock(), ..config }).await;
    cluster.run_pods();
    let ns = "default";
    let job = |name: &str, ttl: Value| {
        let mut job = json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": name}, "spec": {"template": {
            "metadata": {"annotations": {"phase": "Succeeded"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        if !ttl.is_null() {
            job["spec"]["ttlSecondsAfterFinished"] = ttl;
        }
        job
    };
    for (name, ttl) in [("at-once", 0.into()), ("in-an-hour", 3600.into()), ("kept", Value::Null)] {
        cluster.create(&JOBS, ns, job(name, ttl)).await;
    }
    cluster.until_gone(&JOBS, ns, "at-once").await;
    let complete = |j: &Value| {
        j.array_at(&["status", "conditions"]).iter().any(|c| c["type"] == "Complete" && c["status"] == "True")
    };
    for name in ["in-an-hour", "kept"] {
        cluster.until("complete", &JOBS, ns, name, complete).await;
    }
    turned.turn(3700);
    cluster.patch(&JOBS, ns, "in-an-hour", json!({"metadata": {"annotations": {"look": "again"}}})).await;
    cluster.until_gone(&JOBS, ns, "in-an-hour").await;
    assert!(cluster.get(&JOBS, ns, "kept").await.is_some());
    cluster.stop().await;
}
