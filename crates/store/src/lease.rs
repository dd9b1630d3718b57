//! Leases: keys that go away together, at the latest when nobody has asked to keep them for a while.
//!
//! Deadlines are in memory only. After a restart every lease has its whole time again, as in etcd after a change of leader.
//! A lease that has run out is revoked through the writer, like any other write.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::store::{Inner, Store};
use crate::types::{Event, EventKind, LeaseRecord, Snapshot};

pub(crate) struct Lease {
    pub ttl_seconds: i64,
    pub deadline: Instant,
    pub keys: BTreeSet<Bytes>,
}

#[derive(Default)]
pub(crate) struct Leases {
    pub by_id: HashMap<i64, Lease>,
    /// Whether the task that revokes leases is there.
    timer: bool,
}

impl Leases {
    pub fn grant(&mut self, lease: LeaseRecord) {
        let deadline = deadline(lease.ttl_seconds);
        self.by_id.insert(lease.id, Lease { ttl_seconds: lease.ttl_seconds, deadline, keys: BTreeSet::new() });
    }

    /// Starts again with a snapshot; leases that are known keep their remaining time.
    pub fn replace(&mut self, snapshot: &Snapshot) {
        let before = std::mem::take(&mut self.by_id);
        for lease in &snapshot.leases {
            self.grant(*lease);
            if let (Some(old), Some(new)) = (before.get(&lease.id), self.by_id.get_mut(&lease.id)) {
                new.deadline = old.deadline;
            }
        }
        for kv in snapshot.kvs.iter().filter(|kv| kv.lease != 0) {
            if let Some(lease) = self.by_id.get_mut(&kv.lease) {
                lease.keys.insert(kv.key.clone());
            }
        }
    }

    /// Follows a durable write.
    pub fn apply(&mut self, event: &Event) {
        let before = event.prev.as_ref().map_or(0, |kv| kv.lease);
        if before != 0
            && before != event.kv.lease
            && let Some(lease) = self.by_id.get_mut(&before)
        {
            lease.keys.remove(&event.kv.key);
        }
        if event.kind == EventKind::Put
            && event.kv.lease != 0
            && let Some(lease) = self.by_id.get_mut(&event.kv.lease)
        {
            lease.keys.insert(event.kv.key.clone());
        }
    }

    /// Gives a lease its whole time again; says how long that is.
    pub fn keep_alive(&mut self, id: i64) -> Option<i64> {
        let lease = self.by_id.get_mut(&id)?;
        lease.deadline = deadline(lease.ttl_seconds);
        Some(lease.ttl_seconds)
    }

    fn expired(&self, now: Instant) -> Vec<i64> {
        self.by_id.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect()
    }
}

fn deadline(ttl_seconds: i64) -> Instant {
    // A century is as good as for ever and cannot overflow.
    let seconds = ttl_seconds.clamp(1, 100 * 365 * 24 * 3600);
    Instant::now() + Duration::from_secs(seconds.unsigned_abs())
}

/// Starts the task that revokes leases when they run out, if there are leases and it is not there yet. It ends with the last lease.
pub(crate) fn ensure_timer(inner: &Arc<Inner>) {
    if inner.backend.direct().is_some() {
        // It looks after its leases by itself.
        return;
    }
    {
        let mut leases = inner.leases.lock();
        if leases.by_id.is_empty() {
            return;
        }
        if std::mem::replace(&mut leases.timer, true) {
            inner.lease_granted.notify_one();
            return;
        }
    }
    let weak = Arc::downgrade(inner);
    let granted = inner.lease_granted.clone();
    tokio::spawn(async move {
        loop {
            let next = {
                let Some(inner) = weak.upgrade().filter(|inner| !inner.is_closed()) else { return };
                let mut leases = inner.leases.lock();
                let Some(next) = leases.by_id.values().map(|lease| lease.deadline).min() else {
                    leases.timer = false;
                    return;
                };
                next
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = granted.notified() => continue,
            }
            let Some(inner) = weak.upgrade() else { return };
            let store = Store::from_inner(inner);
            let expired = store.inner().leases.lock().expired(Instant::now());
            let mut failed = false;
            let expired = match store.inner().backend.expired(expired.clone()).await {
                Ok(still) => {
                    // The others live on with another replica.
                    let mut leases = store.inner().leases.lock();
                    for id in expired.iter().filter(|id| !still.contains(id)) {
                        leases.keep_alive(*id);
                    }
                    still
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "leases were not checked");
                    failed = true;
                    Vec::new()
                }
            };
            for id in expired {
                if let Err(error) = store.lease_revoke(id).await {
                    failed = !matches!(error, crate::WriteError::LeaseNotFound { .. });
                    tracing::warn!(lease = id, error = &error as &dyn std::error::Error, "lease was not revoked");
                }
            }
            drop(store);
            if failed {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
}
