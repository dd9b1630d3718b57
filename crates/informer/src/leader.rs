//! Leader election over `coordination.k8s.io/v1` Leases: of several replicas one works.
//!
//! Clocks need not agree: a lease counts as expired when this replica has watched it unchanged for its whole duration.
//!
//! Follows: `k8s.io/client-go/tools/leaderelection`.

use std::future::Future;
use std::time::Duration;

use apimachinery::{Value, json};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{Clock, format_micros};
use crate::resource::Resource;
use crate::rest::{ApiError, Rest};

const LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases");

/// Who wants to lead what.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    pub namespace: String,
    pub name: String,
    /// Unique among the replicas.
    pub identity: String,
    pub lease_duration: Duration,
    /// The leader gives up when it could not renew for this long; less than `lease_duration`.
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderConfig {
    /// The durations of kube-controller-manager: 15, 10 and 2 s.
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        LeaderConfig {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What to do about the lease as it is.
#[derive(Debug, PartialEq)]
enum Decision {
    /// Another replica holds it.
    Wait,
    /// Write this.
    Write(Value),
}

fn decide(config: &LeaderConfig, lease: &Value, unchanged_for: Duration, now: Timestamp) -> Decision {
    let holder = lease.str_at(&["spec", "holderIdentity"]);
    let ours = holder == config.identity;
    let duration = lease.at(&["spec", "leaseDurationSeconds"]).and_then(Value::as_i64);
    let duration = duration.map_or(config.lease_duration, |s| Duration::from_secs(s.max(0) as u64));
    if !ours && !holder.is_empty() && unchanged_for < duration {
        return Decision::Wait;
    }
    let mut lease = lease.clone();
    let now = Value::from(format_micros(now));
    let transitions = lease.at(&["spec", "leaseTransitions"]).and_then(Value::as_i64).unwrap_or(0);
    if !ours {
        lease.set_at(&["spec", "acquireTime"], now.clone());
        lease.set_at(&["spec", "leaseTransitions"], (transitions + 1).into());
    }
    lease.set_at(&["spec", "renewTime"], now);
    lease.set_at(&["spec", "holderIdentity"], config.identity.as_str().into());
    lease.set_at(&["spec", "leaseDurationSeconds"], config.lease_duration.as_secs().into());
    Decision::Write(lease)
}

/// Waits to lead, runs `lead` while leading, and returns when `cancel` ends, leadership is lost, or `lead` returns.
///
/// The token given to `lead` ends when leadership is lost; `lead` is awaited, then the lease is released.
pub async fn run<F, Fut>(rest: Rest, clock: Clock, config: LeaderConfig, cancel: CancellationToken, lead: F)
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut elector = Elector { rest, clock, config, seen: None };
    loop {
        if elector.try_acquire_or_renew().await {
            break;
        }
        let wait = elector.config.retry_period.mul_f64(1.0 + 0.2 * rand::random::<f64>());
        tokio::select! {
            // Cancel-safe: both only wait.
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
    info!(lease = elector.config.name, identity = elector.config.identity, "became leader");
    let leading = cancel.child_token();
    let lead = lead(leading.clone());
    let renew = async {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                // Cancel-safe: both only wait.
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(elector.config.retry_period) => {}
            }
            let left = elector.config.renew_deadline.saturating_sub(renewed.elapsed());
            if timeout(left, elector.try_acquire_or_renew()).await.unwrap_or(false) {
                renewed = Instant::now();
            } else if renewed.elapsed() >= elector.config.renew_deadline {
                warn!(lease = elector.config.name, "lost leadership: could not renew in time");
                return;
            }
        }
    };
    tokio::pin!(lead);
    let finished = tokio::select! {
        // `lead` is not dropped: when renewing ends it is told and awaited below.
        () = &mut lead => true,
        () = renew => false,
    };
    if !finished {
        leading.cancel();
        lead.await;
    }
    elector.release().await;
}

struct Elector {
    rest: Rest,
    clock: Clock,
    config: LeaderConfig,
    /// The last lease seen and since when.
    seen: Option<(String, Instant)>,
}

impl Elector {
    async fn try_acquire_or_renew(&mut self) -> bool {
        match self.attempt().await {
            Ok(leads) => leads,
            Err(error) => {
                debug!(lease = self.config.name, error = &error as &dyn std::error::Error, "could not take the lease");
                false
            }
        }
    }

    async fn attempt(&mut self) -> Result<bool, ApiError> {
        let (namespace, name) = (self.config.namespace.clone(), self.config.name.clone());
        let lease = match self.rest.get(&LEASES, &namespace, &name).await {
            Ok(lease) => lease,
            Err(error) if error.is_not_found() => {
                let now = format_micros(self.clock.now());
                let lease = json!({
                    "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
                    "metadata": {"name": name.as_str(), "namespace": namespace.as_str()},
                    "spec": {"holderIdentity": self.config.identity.as_str(), "acquireTime": now.as_str(),
                        "renewTime": now.as_str(), "leaseTransitions": 0,
                        "leaseDurationSeconds": self.config.lease_duration.as_secs()},
                });
                return match self.rest.create(&LEASES, &namespace, &lease).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_already_exists() => Ok(false),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let state = lease["spec"].to_string();
        let since = match &self.seen {
            Some((known, since)) if *known == state => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((state, now));
                now
            }
        };
        match decide(&self.config, &lease, since.elapsed(), self.clock.now()) {
            Decision::Wait => Ok(false),
            Decision::Write(lease) => match self.rest.update(&LEASES, "", &namespace, &name, &lease).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_conflict() => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Lets the next leader begin at once.
    async fn release(&mut self) {
        let (namespace, name) = (self.config.namespace.clone(), self.config.name.clone());
        let Ok(mut lease) = self.rest.get(&LEASES, &namespace, &name).await else { return };
        if lease.str_at(&["spec", "holderIdentity"]) != self.config.identity {
            return;
        }
        lease.set_at(&["spec", "holderIdentity"], "".into());
        lease.set_at(&["spec", "leaseDurationSeconds"], 1.into());
        if let Err(error) = self.rest.update(&LEASES, "", &namespace, &name, &lease).await {
            debug!(lease = name, error = &error as &dyn std::error::Error, "could not release the lease");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_free_ours_or_unchanged_for_its_duration() {
        let config = LeaderConfig::new("n", "l", "me");
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let s = Duration::from_secs;
        for (holder, unchanged, takes, transitions) in
            [("me", s(0), true, 3), ("", s(0), true, 4), ("you", s(14), false, 3), ("you", s(15), true, 4)]
        {
            let lease = json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3}});
            match decide(&config, &lease, unchanged, now) {
                Decision::Wait => assert!(!takes, "{holder} {unchanged:?}"),
                Decision::Write(lease) => {
                    assert!(takes, "{holder} {unchanged:?}");
                    assert_eq!(lease.str_at(&["spec", "holderIdentity"]), "me");
                    assert_eq!(lease["spec"]["leaseTransitions"], transitions, "{holder} {unchanged:?}");
                }
            }
        }
    }
}
