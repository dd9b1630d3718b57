//! A backend that keeps its log in memory: for tests and for clusters whose data need not outlive the process.
//!
//! Values are shared with the store's cache, so that nothing is held twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::FIRST_REVISION;
use crate::backend::{Backend, Batch, HistoryRange, LeaseChange, Position, Record, last_position, positions};
use crate::error::{AppendError, BackendError, HistoryError, OpenError};
use crate::types::{Event, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// Keys removed by one call of `maintain`.
const MAINTAIN_STEP: usize = 4096;

/// A log in memory. Clones share it, so a store can be closed and opened again on the same data.
#[derive(Clone, Default)]
pub struct Memory {
    log: Arc<Mutex<Log>>,
}

/// A record, and where the one before it to the same key is (0: nowhere).
struct Placed {
    record: Record,
    prev: Position,
}

struct Log {
    records: BTreeMap<Position, Placed>,
    live: BTreeMap<Bytes, Position>,
    leases: BTreeMap<i64, LeaseRecord>,
    current: Revision,
    compact: Revision,
    /// Records up to here have been looked at by compaction.
    cleaned: Position,
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
    fn live_at(&self, range: &KeyRange, at: Revision) -> BTreeMap<&Bytes, Position> {
        let at = last_position(at);
        let Some(bounds) = range.bounds() else { return BTreeMap::new() };
        let mut keys: BTreeMap<&Bytes, Position> = self
            .live
            .range::<[u8], _>(bounds)
            .filter(|(_, place)| **place <= at)
            .map(|(key, place)| (key, *place))
            .collect();
        for Placed { record, prev } in self.records.range(at + 1..).map(|(_, placed)| placed) {
            if *prev != 0 && *prev <= at && range.contains(&record.kv.key) {
                keys.insert(&record.kv.key, *prev);
            }
        }
        keys
    }

    fn value(&self, place: Position) -> Option<KeyValue> {
        self.records.get(&place).map(|placed| placed.record.kv.clone())
    }
}

#[async_trait]
impl Backend for Memory {
    fn keeps_history_in_memory(&self) -> bool {
        true
    }

    async fn load(&self) -> Result<Snapshot, OpenError> {
        let log = self.log.lock();
        Ok(Snapshot {
            revision: log.current,
            compact_revision: log.compact,
            kvs: log.live.values().filter_map(|place| log.value(*place)).collect(),
            leases: log.leases.values().copied().collect(),
        })
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let mut log = self.log.lock();
        if log.current != FIRST_REVISION {
            return Err(OpenError::NotEmpty { revision: log.current });
        }
        for (place, kv) in positions(snapshot.kvs.iter().map(|kv| kv.mod_revision)).into_iter().zip(&snapshot.kvs) {
            log.live.insert(kv.key.clone(), place);
            let record = Record { kv: kv.clone(), deleted: false, prev_revision: 0 };
            log.records.insert(place, Placed { record, prev: 0 });
        }
        log.leases.extend(snapshot.leases.iter().map(|lease| (lease.id, *lease)));
        log.current = snapshot.revision;
        log.compact = snapshot.revision;
        log.cleaned = last_position(snapshot.revision);
        Ok(())
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let mut log = self.log.lock();
        for (place, record) in batch.placed() {
            let revision = record.revision();
            assert!((log.current..=log.current + 1).contains(&revision), "the store appends dense revisions");
            log.current = revision;
            let prev = if record.deleted {
                log.live.remove(&record.kv.key)
            } else {
                log.live.insert(record.kv.key.clone(), place)
            };
            log.records.insert(place, Placed { record: record.clone(), prev: prev.unwrap_or(0) });
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
        let kvs = keys.values().take(take).filter_map(|place| log.value(*place)).collect();
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
        let mut events: Vec<Event> = Vec::new();
        for Placed { record, prev } in
            log.records.range(last_position(after) + 1..=last_position(through)).map(|(_, placed)| placed)
        {
            if events.len() >= limit && events.last().is_some_and(|last| last.revision() < record.revision()) {
                break;
            }
            if range.contains(&record.kv.key) {
                events.push(record.event(log.value(*prev)));
            }
        }
        Ok(events)
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        let mut log = self.log.lock();
        log.compact = log.compact.max(revision);
        Ok(())
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        let mut log = self.log.lock();
        let (from, to) = (log.cleaned + 1, last_position(log.compact));
        if from > to {
            return Ok(false);
        }
        let step: Vec<(Position, Position, bool)> = log
            .records
            .range(from..=to)
            .take(MAINTAIN_STEP)
            .map(|(place, placed)| (*place, placed.prev, placed.record.deleted))
            .collect();
        for (place, prev, deleted) in &step {
            log.records.remove(prev);
            if *deleted {
                log.records.remove(place);
            }
        }
        log.cleaned = if step.len() < MAINTAIN_STEP { to } else { step[step.len() - 1].0 };
        Ok(log.cleaned < to)
    }

    async fn close(&self) {}
}
