//! A backend that keeps its log in memory: for tests and for clusters whose data need not outlive the process.
//!
//! Values are shared with the store's cache, so that nothing is held twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::FIRST_REVISION;
use crate::backend::{Backend, Batch, HistoryRange, LeaseChange, Record};
use crate::error::{AppendError, BackendError, HistoryError, OpenError};
use crate::types::{Event, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// Keys removed by one call of `maintain`.
const MAINTAIN_STEP: usize = 4096;

/// A log in memory. Clones share it, so a store can be closed and opened again on the same data.
#[derive(Clone, Default)]
pub struct Memory {
    log: Arc<Mutex<Log>>,
}

struct Log {
    records: BTreeMap<Revision, Record>,
    live: BTreeMap<Bytes, Revision>,
    leases: BTreeMap<i64, LeaseRecord>,
    current: Revision,
    compact: Revision,
    /// Records up to here have been looked at by compaction.
    cleaned: Revision,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            records: BTreeMap::new(),
            live: BTreeMap::new(),
            leases: BTreeMap::new(),
            current: FIRST_REVISION,
            compact: 0,
            cleaned: 0,
        }
    }
}

impl Memory {
    pub fn new() -> Self {
        Memory::default()
    }
}

impl Log {
    /// The records that were live at `at`, in key order: those that still are, and those that a later record replaced.
    fn live_at(&self, range: &KeyRange, at: Revision) -> BTreeMap<&Bytes, Revision> {
        let Some(bounds) = range.bounds() else { return BTreeMap::new() };
        let mut keys: BTreeMap<&Bytes, Revision> = self
            .live
            .range::<[u8], _>(bounds)
            .filter(|(_, revision)| **revision <= at)
            .map(|(key, revision)| (key, *revision))
            .collect();
        for record in self.records.range(at + 1..).map(|(_, record)| record) {
            let prev = record.prev_revision;
            if prev != 0 && prev <= at && range.contains(&record.kv.key) {
                keys.insert(&record.kv.key, prev);
            }
        }
        keys
    }

    fn value(&self, revision: Revision) -> Option<KeyValue> {
        self.records.get(&revision).map(|record| record.kv.clone())
    }
}

#[async_trait]
impl Backend for Memory {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        let log = self.log.lock();
        Ok(Snapshot {
            revision: log.current,
            compact_revision: log.compact,
            kvs: log.live.values().filter_map(|revision| log.value(*revision)).collect(),
            leases: log.leases.values().copied().collect(),
        })
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let mut log = self.log.lock();
        if log.current != FIRST_REVISION {
            return Err(OpenError::NotEmpty { revision: log.current });
        }
        for kv in &snapshot.kvs {
            log.live.insert(kv.key.clone(), kv.mod_revision);
            log.records.insert(kv.mod_revision, Record { kv: kv.clone(), deleted: false, prev_revision: 0 });
        }
        log.leases.extend(snapshot.leases.iter().map(|lease| (lease.id, *lease)));
        log.current = snapshot.revision;
        log.compact = snapshot.revision;
        log.cleaned = snapshot.revision;
        Ok(())
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let mut log = self.log.lock();
        for record in &batch.records {
            assert_eq!(record.revision(), log.current + 1, "the store appends dense revisions");
            log.current = record.revision();
            if record.deleted {
                log.live.remove(&record.kv.key);
            } else {
                log.live.insert(record.kv.key.clone(), record.revision());
            }
            log.records.insert(record.revision(), record.clone());
        }
        for change in &batch.leases {
            match change {
                LeaseChange::Grant(lease) => log.leases.insert(lease.id, *lease),
                LeaseChange::Revoke { id } => log.leases.remove(id),
            };
        }
        Ok(())
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        Ok(self.log.lock().current)
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError> {
        let log = self.log.lock();
        if at < log.compact {
            return Err(HistoryError::Compacted { compact_revision: log.compact });
        }
        let keys = log.live_at(range, at);
        let take = match (count_only, limit) {
            (true, _) => 0,
            (false, 0) => usize::MAX,
            (false, limit) => limit,
        };
        let kvs = keys.values().take(take).filter_map(|revision| log.value(*revision)).collect();
        Ok(HistoryRange { kvs, count: keys.len() as u64 })
    }

    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        let log = self.log.lock();
        if after < log.compact {
            return Err(HistoryError::Compacted { compact_revision: log.compact });
        }
        if after >= through {
            return Ok(Vec::new());
        }
        Ok(log
            .records
            .range(after + 1..=through)
            .map(|(_, record)| record)
            .filter(|record| range.contains(&record.kv.key))
            .take(limit)
            .map(|record| record.event(log.value(record.prev_revision)))
            .collect())
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        let mut log = self.log.lock();
        log.compact = log.compact.max(revision);
        Ok(())
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        let mut log = self.log.lock();
        let (from, to) = (log.cleaned + 1, log.compact);
        if from > to {
            return Ok(false);
        }
        let step: Vec<(Revision, Revision, bool)> = log
            .records
            .range(from..=to)
            .take(MAINTAIN_STEP)
            .map(|(revision, record)| (*revision, record.prev_revision, record.deleted))
            .collect();
        for (revision, prev, deleted) in &step {
            log.records.remove(prev);
            if *deleted {
                log.records.remove(revision);
            }
        }
        log.cleaned = if step.len() < MAINTAIN_STEP { to } else { step[step.len() - 1].0 };
        Ok(log.cleaned < to)
    }

    async fn close(&self) {}
}
