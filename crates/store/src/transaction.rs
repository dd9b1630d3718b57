//! A transaction: reads of the state as it will be, and writes that share one revision.
//!
//! Invariants:
//! - A transaction sees its own writes; until it is committed nobody else does.
//! - At most one record per key: a later write of the same transaction replaces an earlier one.
//! - A transaction may run several times, each time on a newer state, until it is committed once.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::backend::{LeaseChange, RECORDS_PER_REVISION_MAX, Record, Seen};
use crate::error::WriteError;
use crate::store::Inner;
use crate::types::{Committed, Expect, KeyRange, KeyValue, LeaseRecord, Op, Revision};

/// What transactions before this one will have changed.
#[derive(Default)]
pub(crate) struct Overlay {
    pub keys: BTreeMap<Bytes, Option<KeyValue>>,
    pub leases: HashMap<i64, bool>,
}

/// What a transaction has done.
#[derive(Default)]
pub(crate) struct Staged {
    /// With the key before the transaction.
    pub records: BTreeMap<usize, (Record, Option<KeyValue>)>,
    /// The number of the record of each key.
    by_key: BTreeMap<Bytes, usize>,
    next: usize,
    pub overlay: Overlay,
    pub leases: Vec<LeaseChange>,
    pub seen: Vec<Seen>,
}

/// A transaction under way.
pub struct Transaction<'a> {
    inner: &'a Inner,
    before: &'a Overlay,
    current: Revision,
    /// Whether what is read has to be remembered.
    remember: bool,
    staged: Staged,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(inner: &'a Inner, before: &'a Overlay, current: Revision, remember: bool) -> Self {
        Transaction { inner, before, current, remember, staged: Staged::default() }
    }

    pub(crate) fn finish(self) -> Staged {
        self.staged
    }

    /// The newest revision before this transaction.
    pub fn current_revision(&self) -> Revision {
        self.current
    }

    /// The revision that this transaction's writes carry while it runs. With a backend that gives out revisions itself the
    /// final one may be higher.
    pub fn own_revision(&self) -> Revision {
        self.current + 1
    }

    /// The oldest readable revision.
    pub fn compact_revision(&self) -> Revision {
        self.inner.state.read().compact
    }

    fn peek(&self, key: &[u8]) -> Option<KeyValue> {
        match self.staged.overlay.keys.get(key).or_else(|| self.before.keys.get(key)) {
            Some(kv) => kv.clone(),
            None => self.inner.state.read().live.get(key).cloned(),
        }
    }

    /// One key.
    pub fn get(&mut self, key: &[u8]) -> Option<KeyValue> {
        let kv = self.peek(key);
        if self.remember && !self.staged.overlay.keys.contains_key(key) {
            let seen = Seen::Key {
                key: Bytes::copy_from_slice(key),
                mod_revision: kv.as_ref().map_or(0, |kv| kv.mod_revision),
            };
            if !self.staged.seen.contains(&seen) {
                self.staged.seen.push(seen);
            }
        }
        kv
    }

    /// The keys of a range, in order.
    pub fn range(&mut self, range: &KeyRange) -> Vec<KeyValue> {
        let Some(bounds) = range.bounds() else { return Vec::new() };
        let mut found: BTreeMap<Bytes, KeyValue> = {
            let state = self.inner.state.read();
            state.live.range::<[u8], _>(bounds).map(|(key, kv)| (key.clone(), kv.clone())).collect()
        };
        for overlay in [self.before, &self.staged.overlay] {
            for (key, kv) in overlay.keys.range::<[u8], _>(bounds) {
                match kv {
                    Some(kv) => drop(found.insert(key.clone(), kv.clone())),
                    None => drop(found.remove(key)),
                }
            }
        }
        if self.remember {
            for kv in found.values().filter(|kv| !self.staged.overlay.keys.contains_key(&kv.key)) {
                self.staged.seen.push(Seen::Key { key: kv.key.clone(), mod_revision: kv.mod_revision });
            }
            self.staged.seen.push(Seen::Range { range: range.clone(), revision: self.current });
        }
        found.into_values().collect()
    }

    /// Whether a lease exists.
    pub fn has_lease(&self, id: i64) -> bool {
        let known = self.staged.overlay.leases.get(&id).or_else(|| self.before.leases.get(&id));
        known.copied().unwrap_or_else(|| self.inner.leases.lock().by_id.contains_key(&id))
    }

    /// Writes a key; returns what it was before.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<KeyValue>, WriteError> {
        // A backend that gives out revisions knows its leases best.
        if lease != 0 && !self.remember && !self.has_lease(lease) {
            return Err(WriteError::LeaseNotFound { lease });
        }
        let prev = self.get(&key);
        let revision = self.own_revision();
        let (create_revision, version) = prev.as_ref().map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv = KeyValue { key, value, create_revision, mod_revision: revision, version, lease };
        self.record(kv, false, prev.as_ref())?;
        Ok(prev)
    }

    /// Deletes a key; returns what it was before.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<KeyValue>, WriteError> {
        let Some(prev) = self.get(key) else { return Ok(None) };
        let kv = KeyValue {
            key: prev.key.clone(),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: self.own_revision(),
            version: 0,
            lease: 0,
        };
        self.record(kv, true, Some(&prev))?;
        Ok(Some(prev))
    }

    fn record(&mut self, kv: KeyValue, deleted: bool, prev: Option<&KeyValue>) -> Result<(), WriteError> {
        let staged = &mut self.staged;
        staged.overlay.keys.insert(kv.key.clone(), (!deleted).then(|| kv.clone()));
        // What was there before the transaction, when it has written the key already.
        let before = match staged.by_key.remove(&kv.key).and_then(|number| staged.records.remove(&number)) {
            Some((_, before)) => before,
            None => prev.cloned(),
        };
        if deleted && before.is_none() {
            return Ok(());
        }
        if staged.records.len() >= RECORDS_PER_REVISION_MAX {
            let size_bytes = staged.records.len() + 1;
            return Err(WriteError::TooLarge {
                what: "a transaction (counted in keys)",
                size_bytes,
                size_bytes_max: RECORDS_PER_REVISION_MAX,
            });
        }
        let prev_revision = before.as_ref().map_or(0, |kv| kv.mod_revision);
        staged.by_key.insert(kv.key.clone(), staged.next);
        staged.records.insert(staged.next, (Record { kv, deleted, prev_revision }, before));
        staged.next += 1;
        Ok(())
    }

    pub(crate) fn write(&mut self, key: &Bytes, expect: Expect, op: &Op) -> Result<Committed, WriteError> {
        let current = self.get(key);
        let as_expected = match expect {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::ModRevision(revision) => current.as_ref().is_some_and(|kv| kv.mod_revision == revision),
        };
        if !as_expected {
            return Err(WriteError::Conflict { current });
        }
        let prev = match op {
            Op::Put { value, lease } => self.put(key.clone(), value.clone(), *lease)?,
            Op::Delete => self.delete(key)?,
        };
        // The revision is filled in with the answer.
        Ok(Committed { revision: 0, prev })
    }

    pub(crate) fn grant(&mut self, lease: LeaseRecord) -> Result<(), WriteError> {
        if self.has_lease(lease.id) {
            return Err(WriteError::LeaseExists { lease: lease.id });
        }
        self.staged.overlay.leases.insert(lease.id, true);
        self.staged.leases.push(LeaseChange::Grant(lease));
        Ok(())
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), WriteError> {
        if !self.has_lease(id) {
            return Err(WriteError::LeaseNotFound { lease: id });
        }
        let attached: Vec<Bytes> =
            self.inner.leases.lock().by_id.get(&id).map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect());
        let written = self.before.keys.values().flatten().filter(|kv| kv.lease == id).map(|kv| kv.key.clone());
        let keys: std::collections::BTreeSet<Bytes> = written.chain(attached).collect();
        for key in keys {
            if self.peek(&key).is_some_and(|kv| kv.lease == id) {
                self.delete(&key)?;
            }
        }
        self.staged.overlay.leases.insert(id, false);
        self.staged.leases.push(LeaseChange::Revoke { id });
        Ok(())
    }
}
