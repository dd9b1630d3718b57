//! What a controller has asked for and not yet seen in its cache, so that it does not ask twice.
//!
//! A controller sets expectations before it creates or deletes, lowers them as handlers see the results, and does nothing
//! until they are met or too old.
//!
//! Follows: `pkg/controller.ControllerExpectations` and `UIDTrackingControllerExpectations`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use apimachinery::json::Str;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::meta::ObjectKey;

/// After this long an event is taken as lost.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

struct Expected {
    adds: i64,
    deletes: i64,
    since: Instant,
}

/// Counts of creations and deletions that are under way, per owner.
#[derive(Default)]
pub struct Expectations {
    expected: Mutex<HashMap<ObjectKey, Expected>>,
}

impl Expectations {
    /// Whether what was asked for has been seen, or has been waited for long enough.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        let expected = self.expected.lock();
        expected.get(key).is_none_or(|e| (e.adds <= 0 && e.deletes <= 0) || e.since.elapsed() > TIMEOUT)
    }

    /// Replaces the expectations of `key`.
    pub fn expect(&self, key: &ObjectKey, adds: usize, deletes: usize) {
        let expected = Expected { adds: adds as i64, deletes: deletes as i64, since: Instant::now() };
        self.expected.lock().insert(key.clone(), expected);
    }

    /// A creation was seen, or failed.
    pub fn saw_add(&self, key: &ObjectKey) {
        if let Some(e) = self.expected.lock().get_mut(key) {
            e.adds -= 1;
        }
    }

    /// A deletion was seen, or failed.
    pub fn saw_delete(&self, key: &ObjectKey) {
        if let Some(e) = self.expected.lock().get_mut(key) {
            e.deletes -= 1;
        }
    }

    /// The owner is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.expected.lock().remove(key);
    }
}

/// As [`Expectations`], but deletions are told apart, since one can be seen twice (marked, then gone).
#[derive(Default)]
pub struct UidExpectations {
    counts: Expectations,
    deleting: Mutex<HashMap<ObjectKey, BTreeSet<Str>>>,
}

impl UidExpectations {
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        self.counts.satisfied(key)
    }

    pub fn expect_adds(&self, key: &ObjectKey, adds: usize) {
        self.counts.expect(key, adds, 0);
        self.deleting.lock().remove(key);
    }

    pub fn expect_deletes(&self, key: &ObjectKey, deleting: impl IntoIterator<Item = Str>) {
        let deleting: BTreeSet<Str> = deleting.into_iter().collect();
        self.counts.expect(key, 0, deleting.len());
        self.deleting.lock().insert(key.clone(), deleting);
    }

    pub fn saw_add(&self, key: &ObjectKey) {
        self.counts.saw_add(key);
    }

    /// `deleted` (a uid or name, as given to `expect_deletes`) is going or gone.
    pub fn saw_delete(&self, key: &ObjectKey, deleted: &str) {
        let known = self.deleting.lock().get_mut(key).is_some_and(|set| set.remove(deleted));
        if known {
            self.counts.saw_delete(key);
        }
    }

    pub fn forget(&self, key: &ObjectKey) {
        self.counts.forget(key);
        self.deleting.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn expectations_are_met_by_sight_or_by_age() {
        let key = ObjectKey::new("n", "a");
        let expectations = Expectations::default();
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 2, 0);
        expectations.saw_add(&key);
        assert!(!expectations.satisfied(&key));
        expectations.saw_add(&key);
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 0, 1);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&key));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_seen_twice_counts_once() {
        let key = ObjectKey::new("n", "a");
        let expectations = UidExpectations::default();
        expectations.expect_deletes(&key, ["p1".into(), "p2".into()]);
        expectations.saw_delete(&key, "p1");
        expectations.saw_delete(&key, "p1");
        assert!(!expectations.satisfied(&key));
        expectations.saw_delete(&key, "p2");
        assert!(expectations.satisfied(&key));
    }
}
