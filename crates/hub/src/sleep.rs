//! When a cluster sleeps, and what wakes it.
//!
//! The rule: a cluster sleeps when for [`HubConfig::sleep_after`](crate::HubConfig) no request came over its port, none is
//! under way (a watch is one as long as it lasts), and it has nothing to do by itself: no pod that has not ended, no
//! unfinished job, no CronJob that is not suspended, no namespace on its way out. Probes and scrapes are no requests.
//!
//! So nothing of it can be wanted by the host meanwhile. What changes there (a class, a load balancer's address, a
//! Secret that is imported) reaches the tenant when the tenant asks, because asking wakes the cluster and a start compares
//! both sides whole. Anything that could act on the host's changes without the tenant needs a pod, and keeps it awake.
//!
//! `sleep.auto` of `vcluster.yaml` goes further: such a cluster sleeps although it has pods, and they are removed from the
//! host until it wakes. `afterInactivity` counts requests as above; `schedule` does not wait for anybody; `wakeup.schedule`
//! wakes it by the clock. A running pod with the labels of `exclude.selector.labels` keeps the whole cluster awake.
//!
//! `deletion.auto.afterInactivity` deletes a cluster that nobody has used for so long. One that sleeps counts from when it
//! fell asleep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::Config;
use controlplane::Schedule;
use informer::DeleteOptions;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::run::{Cluster, Step};
use crate::{Inner, secret};

/// How often the clusters are looked at, at most and at least.
const TICK_MIN: Duration = Duration::from_millis(20);
const TICK_MAX: Duration = Duration::from_secs(1);
/// A cluster that has work is looked at again after this.
const BUSY_RECHECK_MAX: Duration = Duration::from_secs(30);

/// A key of `sleep.auto` that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct PolicyError {
    path: &'static str,
    reason: String,
}

/// When one cluster sleeps and wakes by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// Unused for this long and without work.
    idle: Option<Duration>,
    /// Unused for this long, whatever runs.
    inactivity: Option<Duration>,
    /// Unused for this long, it is deleted (`deletion.auto.afterInactivity`).
    deletion: Option<Duration>,
    sleep_at: Option<Arc<Schedule>>,
    wake_at: Option<Arc<Schedule>>,
    zone: Option<TimeZone>,
    /// Running pods with these labels keep the cluster awake.
    exclude: BTreeMap<String, String>,
}

impl Policy {
    pub fn of(config: &Config, idle: Option<Duration>) -> Result<Policy, PolicyError> {
        let text = |path: &str| config.at(path).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
        let schedule = |path: &'static str| match text(path).map(Schedule::parse).transpose() {
            Ok(schedule) => Ok(schedule.map(Arc::new)),
            Err(error) => Err(PolicyError { path, reason: error.to_string() }),
        };
        let zone = text("sleep.auto.timezone").map(TimeZone::get).transpose();
        let labels = config.at("sleep.auto.exclude.selector.labels").and_then(serde_json::Value::as_object);
        Ok(Policy {
            idle,
            inactivity: text("sleep.auto.afterInactivity").and_then(config::duration),
            deletion: text("deletion.auto.afterInactivity").and_then(config::duration),
            sleep_at: schedule("sleep.auto.schedule")?,
            wake_at: schedule("sleep.auto.wakeup.schedule")?,
            zone: zone.map_err(|error| PolicyError { path: "sleep.auto.timezone", reason: error.to_string() })?,
            exclude: labels
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
        })
    }

    /// The shortest time after which something may be due.
    fn shortest(&self) -> Option<Duration> {
        [self.idle, self.inactivity, self.deletion].into_iter().flatten().min()
    }

    fn strikes(&self, schedule: Option<&Arc<Schedule>>, since: Timestamp, now: Timestamp) -> bool {
        let zone = self.zone.clone().unwrap_or(TimeZone::UTC);
        schedule.and_then(|schedule| schedule.next(since, &zone)).is_some_and(|next| next <= now)
    }
}

pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Looks at all clusters again and again, until the hub stops.
pub(crate) async fn watch(hub: Arc<Inner>) {
    let cancel = hub.factory.cancellation().clone();
    let mut looked_at = Timestamp::now();
    let mut recheck: BTreeMap<informer::ObjectKey, Instant> = BTreeMap::new();
    loop {
        let clusters: Vec<_> =
            hub.clusters.lock().iter().map(|(key, cluster)| (key.clone(), cluster.clone())).collect();
        recheck.retain(|key, _| clusters.iter().any(|(known, _)| known == key));
        let now = Timestamp::now();
        let mut shortest = TICK_MAX;
        for (key, cluster) in &clusters {
            let policy = cluster.policy();
            let limit = policy.shortest();
            shortest = shortest.min(limit.map_or(TICK_MAX, |limit| limit / 4));
            if let Some(limit) = policy.deletion
                && unused(&hub, key, cluster, now).is_some_and(|unused| unused >= limit)
            {
                tracing::info!(cluster = %key, "a virtual cluster that nobody has used for long is deleted");
                match hub.rest.delete(&secret::SECRETS, &key.namespace, &key.name, &DeleteOptions::default()).await {
                    Err(error) if !error.is_not_found() => {
                        tracing::warn!(cluster = %key, %error, "an unused virtual cluster could not be deleted");
                    }
                    _ => {}
                }
                continue;
            }
            if recheck.get(key).is_some_and(|at| *at > Instant::now()) && policy.sleep_at.is_none() {
                continue;
            }
            recheck.remove(key);
            match decide(cluster, &policy, looked_at, now).await {
                Decision::Nothing => {}
                Decision::Do(step) => cluster.wish(&hub, step),
                Decision::Busy => {
                    let pause = limit.unwrap_or(BUSY_RECHECK_MAX).clamp(TICK_MIN, BUSY_RECHECK_MAX);
                    recheck.insert(key.clone(), Instant::now() + pause);
                }
            }
        }
        drop(clusters);
        looked_at = now;
        tokio::select! {
            // Cancel-safe: both only wait.
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(shortest.clamp(TICK_MIN, TICK_MAX)) => {}
        }
    }
}

/// How long nobody has asked for anything, awake or asleep; nothing while somebody does, or when it must not be deleted.
fn unused(hub: &Inner, key: &informer::ObjectKey, cluster: &Cluster, now: Timestamp) -> Option<Duration> {
    let secret = hub.secrets.get(key)?;
    if secret.is_protected() {
        return None;
    }
    match cluster.control_plane() {
        Some(running) => running.idle_for(),
        None => {
            let since = secret.sleeping_since()?;
            Some(Duration::from_secs(u64::try_from(now.as_second()).ok()?.saturating_sub(since)))
        }
    }
}

enum Decision {
    Nothing,
    Do(Step),
    /// Would sleep, but has something to do.
    Busy,
}

async fn decide(cluster: &Cluster, policy: &Policy, since: Timestamp, now: Timestamp) -> Decision {
    let Some(control_plane) = cluster.control_plane() else {
        let wakes = policy.strikes(policy.wake_at.as_ref(), since, now);
        return if wakes { Decision::Do(Step::Start) } else { Decision::Nothing };
    };
    let excluded = async || !policy.exclude.is_empty() && control_plane.has_running_pods(&policy.exclude).await;
    if policy.strikes(policy.sleep_at.as_ref(), since, now) {
        return match excluded().await {
            true => Decision::Busy,
            false => Decision::Do(Step::Sleep { with_pods: true, forced: true }),
        };
    }
    let Some(unused) = control_plane.idle_for() else { return Decision::Nothing };
    let over = |limit: Option<Duration>| limit.is_some_and(|limit| unused >= limit);
    if !over(policy.idle) && !over(policy.inactivity) {
        return Decision::Nothing;
    }
    let work = control_plane.pending_work().await;
    if work.is_none() {
        return Decision::Do(Step::Sleep { with_pods: false, forced: false });
    }
    if over(policy.inactivity) && !excluded().await {
        return Decision::Do(Step::Sleep { with_pods: true, forced: false });
    }
    Decision::Busy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Policy, PolicyError> {
        Policy::of(&Config::from_yaml("vcluster.yaml", yaml).unwrap(), Some(Duration::from_secs(900)))
    }

    fn policy(yaml: &str) -> Policy {
        read(yaml).unwrap()
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        for (yaml, want) in [
            ("sleep: {auto: {schedule: 'a b c d e'}}", "sleep.auto.schedule: "),
            ("sleep: {auto: {wakeup: {schedule: '99 * * * *'}}}", "sleep.auto.wakeup.schedule: "),
            ("sleep: {auto: {timezone: Nowhere/Land}}", "sleep.auto.timezone: "),
        ] {
            let error = read(yaml).unwrap_err().to_string();
            assert!(error.starts_with(want), "{yaml}: {error}");
        }
    }

    #[test]
    fn sleep_auto_is_read() {
        let none = policy("");
        assert_eq!((none.idle, none.inactivity), (Some(Duration::from_secs(900)), None));
        let all = policy(
            "sleep: {auto: {afterInactivity: 1h30m, schedule: '0 20 * * *', timezone: Europe/Berlin, wakeup: {schedule: '0 7 * * 1-5'}, exclude: {selector: {labels: {keep: 'yes'}}}}}",
        );
        assert_eq!(all.inactivity, Some(Duration::from_secs(5400)));
        assert_eq!(all.exclude["keep"], "yes");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        // 20:00 in Berlin is 19:00 UTC in winter.
        for (since, now, want) in [
            ("2026-11-20T18:59:58Z", "2026-11-20T18:59:59Z", false),
            ("2026-11-20T18:59:59Z", "2026-11-20T19:00:00Z", true),
            ("2026-11-20T19:00:00Z", "2026-11-20T19:00:01Z", false),
        ] {
            assert_eq!(all.strikes(all.sleep_at.as_ref(), at(since), at(now)), want, "{since} {now}");
        }
        assert!(!all.strikes(none.wake_at.as_ref(), at("2026-11-20T00:00:00Z"), at("2026-11-30T00:00:00Z")));
    }
}
