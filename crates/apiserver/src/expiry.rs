//! Objects that go away by themselves: Events, a while after they were last written.
//!
//! Their keys are attached to leases of the store. A lease is shared by what is written within a minute, so that expiry costs
//! one delete for many keys; an object lives at least its time and at most that minute longer.
//!
//! Follows: `--event-ttl` of kube-apiserver; `k8s.io/apiserver/pkg/storage/etcd3/lease_manager.go`.

use std::time::Duration;

use parking_lot::Mutex;
use store::{Store, WriteError};
use tokio::time::Instant;

use crate::registry::Resource;

/// How long a lease is given to new keys.
const SHARED: Duration = Duration::from_secs(60);
/// How many keys share a lease at most.
const KEYS_MAX: u32 = 1000;

struct Current {
    lease: i64,
    keys: u32,
    until: Instant,
}

/// Gives leases to objects that expire.
pub struct Expiry {
    /// How long Events live after a write.
    ttl: Duration,
    current: Mutex<Option<Current>>,
}

impl Expiry {
    /// `event_ttl` zero keeps Events for ever.
    pub fn new(event_ttl: Duration) -> Self {
        Expiry { ttl: event_ttl, current: Mutex::new(None) }
    }

    fn expires(&self, resource: &Resource) -> bool {
        !self.ttl.is_zero()
            && resource.gvr.resource == "events"
            && matches!(resource.gvr.group.as_str(), "" | "events.k8s.io")
    }

    /// The lease for an object of this resource that is written now; 0 for what stays.
    pub async fn lease(&self, store: &Store, resource: &Resource) -> Result<i64, WriteError> {
        if !self.expires(resource) {
            return Ok(0);
        }
        let now = Instant::now();
        if let Some(current) = self.current.lock().as_mut()
            && current.until > now
            && current.keys < KEYS_MAX
        {
            current.keys += 1;
            return Ok(current.lease);
        }
        // Two writers may come here at once: one of their leases holds one key then.
        let lives = self.ttl + SHARED.min(self.ttl);
        let seconds = i64::try_from(lives.as_secs().max(1)).unwrap_or(i64::MAX);
        let lease = store.lease_grant(0, seconds).await?.id;
        *self.current.lock() = Some(Current { lease, keys: 1, until: now + SHARED.min(self.ttl) });
        Ok(lease)
    }

    /// Forgets a lease that the store does not know.
    pub fn forget(&self, lease: i64) {
        self.current.lock().take_if(|current| current.lease == lease);
    }
}
