//! What a backend has to do: keep an ordered log durably, and read it again.
//!
//! A backend gives out no revisions, checks no expectations, knows no watchers. The store above calls `append` from one
//! place at a time; everything else may be called at any time from anywhere.
//!
//! A backend that other processes write to as well ([`Backend::is_shared`]) refuses a batch that does not continue the
//! newest revision, and tells the store what the others wrote. One that gives out revisions by itself, as etcd does, is
//! driven through [`Direct`] instead of `append`.
//!
//! Invariants a backend keeps:
//! - `append` is all or nothing, and durable when it answers.
//! - `range` and `events` read one consistent state, and refuse what is compacted instead of leaving something out.
//! - What `load` says after a crash contains every batch that was answered, and a newest revision that is not below any
//!   revision ever answered, even if compaction has removed the rows.

use std::collections::BTreeMap;

use async_trait::async_trait;

use bytes::Bytes;

use crate::error::{AppendError, BackendError, HistoryError, OpenError, WriteError};
use crate::types::{Event, EventKind, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// One write of the log. Its revision is `kv.mod_revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key after the write; for a delete without value, create revision, version and lease.
    pub kv: KeyValue,
    pub deleted: bool,
    /// The revision of the write before this one to the same key; 0 when the key was absent.
    pub prev_revision: Revision,
}

impl Record {
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// The event of this record.
    pub fn event(&self, prev: Option<KeyValue>) -> Event {
        let kind = if self.deleted { EventKind::Delete } else { EventKind::Put };
        Event { kind, kv: self.kv.clone(), prev }
    }
}

/// A change to the set of leases. Leases have no revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    Grant(LeaseRecord),
    Revoke { id: i64 },
}

/// Bits of a [`Position`] that number the records of one revision.
pub(crate) const POSITION_BITS: u32 = 16;

/// Most records of one revision.
pub(crate) const RECORDS_PER_REVISION_MAX: usize = (1 << POSITION_BITS) - 1;

/// Where a record is in the log: its revision, and its number among the records of that revision.
pub(crate) type Position = u64;

/// The first position of a revision.
pub(crate) fn position(revision: Revision) -> Position {
    revision << POSITION_BITS
}

/// The last position of a revision.
pub(crate) fn last_position(revision: Revision) -> Position {
    position(revision) | RECORDS_PER_REVISION_MAX as u64
}

/// The revision of a position.
pub(crate) fn revision_of(position: Position) -> Revision {
    position >> POSITION_BITS
}

/// The positions of keys with these revisions, numbered in this order within each revision.
pub(crate) fn positions(revisions: impl IntoIterator<Item = Revision>) -> Vec<Position> {
    let mut used: std::collections::HashMap<Revision, u64> = std::collections::HashMap::new();
    revisions
        .into_iter()
        .map(|revision| {
            let next = used.entry(revision).or_default();
            let own = position(revision) | *next;
            *next += 1;
            own
        })
        .collect()
}

/// What is committed at once: records of dense, ascending revisions (one transaction's records share one), and lease
/// changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The newest revision when it was made: nobody may have written since.
    pub after: Revision,
    pub records: Vec<Record>,
    pub leases: Vec<LeaseChange>,
}

/// A batch as rows of a database that keeps a log, where each key is in it, and leases.
pub(crate) struct Rows<'a> {
    pub log: Vec<LogRow<'a>>,
    /// Where each key is afterwards; none: gone.
    pub live: BTreeMap<&'a Bytes, Option<Position>>,
    /// The time in seconds of each lease afterwards; none: gone.
    pub leases: BTreeMap<i64, Option<i64>>,
}

/// A record in the log.
pub(crate) struct LogRow<'a> {
    pub place: Position,
    /// Where the write before it to the same key is, 0 when there is none; none: the database knows.
    pub prev: Option<Position>,
    pub record: &'a Record,
}

impl Batch {
    /// The records with their positions.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (Position, &Record)> {
        positions(self.records.iter().map(Record::revision)).into_iter().zip(&self.records)
    }

    /// The rows to be written.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let mut live = BTreeMap::new();
        let log = self.placed().map(|(place, record)| {
            let own = live.insert(&record.kv.key, (!record.deleted).then_some(place));
            let prev = match (record.prev_revision, own) {
                (0, _) => Some(0),
                // Written by this batch: where, or not any more.
                (_, Some(own)) => Some(own.unwrap_or(0)),
                (_, None) => None,
            };
            LogRow { place, prev, record }
        });
        let log = log.collect();
        // The last change of a lease counts.
        let leases = self.leases.iter().map(|change| match change {
            LeaseChange::Grant(lease) => (lease.id, Some(lease.ttl_seconds)),
            LeaseChange::Revoke { id } => (*id, None),
        });
        Rows { log, live, leases: leases.collect() }
    }
}

/// What others have written to a shared backend.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    /// In order; all or none of a revision. Empty when there is nothing new.
    pub events: Vec<Event>,
    /// Everything up to here is in `events` or was asked for before.
    pub revision: Revision,
    pub compact_revision: Revision,
    /// All leases there are, when they may have changed.
    pub leases: Option<Vec<LeaseRecord>>,
}

/// What a transaction has read: it may only be committed while this is still so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The key's modification revision; 0 when it was absent.
    Key { key: Bytes, mod_revision: Revision },
    /// No key of the range has been written after the revision.
    Range { range: KeyRange, revision: Revision },
}

/// How a transaction ended that a [`Direct`] backend decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Committed {
        revision: Revision,
    },
    /// Something that was read has changed; the backend is at this revision.
    Stale {
        revision: Revision,
    },
}

/// A backend that gives out revisions by itself.
#[async_trait]
pub trait Direct: Send + Sync {
    /// Writes the records (whose revisions mean nothing) at one new revision, if all that was seen is still so.
    async fn commit(&self, seen: &[Seen], records: &[Record]) -> Result<Verdict, WriteError>;
    async fn grant(&self, lease: LeaseRecord) -> Result<LeaseRecord, WriteError>;
    /// Returns the revision of the deletes.
    async fn revoke(&self, id: i64) -> Result<Revision, WriteError>;
    /// The time in seconds that the lease has again.
    async fn keep_alive(&self, id: i64) -> Result<Option<i64>, BackendError>;
    /// The lease, its remaining seconds, and the keys attached to it.
    async fn time_to_live(&self, id: i64) -> Result<Option<(LeaseRecord, i64, Vec<Bytes>)>, BackendError>;
}

/// Part of the state at a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRange {
    /// In key order, at most `limit`.
    pub kvs: Vec<KeyValue>,
    /// How many keys there are, whatever the limit.
    pub count: u64,
}

/// The durable part of a store.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Everything live. Called once, before anything else.
    async fn load(&self) -> Result<Snapshot, OpenError>;

    /// Fills an empty backend with a snapshot; it is then compacted to the snapshot's revision.
    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError>;

    /// Appends, durably.
    async fn append(&self, batch: std::sync::Arc<Batch>) -> Result<(), AppendError>;

    /// The newest durable revision.
    async fn last_revision(&self) -> Result<Revision, BackendError>;

    /// The keys of a range as they were at `at`. `limit` 0 is none; with `count_only` no keys are returned.
    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError>;

    /// The events of a range with revisions in `after < revision <= through`, in order: the first `limit` of them, and what
    /// else belongs to the revision of the last one.
    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError>;

    /// Forbids, durably, reads below `revision`. The rows are removed by `maintain`.
    async fn compact(&self, revision: Revision) -> Result<(), BackendError>;

    /// Does one short piece of the work that compaction left over; says whether there is more.
    async fn maintain(&self) -> Result<bool, BackendError>;

    /// Lets go of files and threads. Later calls fail.
    async fn close(&self);

    /// The longest key it can keep.
    fn key_bytes_max(&self) -> usize {
        crate::options::KEY_BYTES_MAX
    }

    /// Whether the history is kept in memory, so that its size has to be bounded.
    fn keeps_history_in_memory(&self) -> bool {
        false
    }

    /// Whether others may write to the same data.
    fn is_shared(&self) -> bool {
        false
    }

    /// The backend as one that gives out revisions by itself, if it is one.
    fn direct(&self) -> Option<&dyn Direct> {
        None
    }

    /// Whether a batch of unknown fate was written. From then on it can not be written any more. None: it cannot be found
    /// out, because its traces have been compacted away.
    async fn settle(&self, batch: &Batch) -> Result<Option<bool>, BackendError> {
        let Some(end) = batch.records.last().map(Record::revision) else { return Ok(None) };
        let start = batch.records.first().map_or(end, Record::revision);
        let last = self.last_revision().await?;
        if last != end && last + 1 != start {
            let why = format!("it is at revision {last}, expected {} or {end}", start - 1);
            return Err(BackendError::new("understand what the backend holds", why));
        }
        Ok(Some(last == end))
    }

    /// Gives up the turn to write that [`AppendError::Behind`] left with this process.
    async fn release(&self) {}

    /// Waits until others may have written.
    async fn changed(&self) -> Result<(), BackendError> {
        std::future::pending().await
    }

    /// Lets other replicas know that a lease has its whole time again.
    async fn renew(&self, _id: i64) -> Result<(), BackendError> {
        Ok(())
    }

    /// Of these leases, which seem to have run out, those that nobody has renewed elsewhere.
    async fn expired(&self, ids: Vec<i64>) -> Result<Vec<i64>, BackendError> {
        Ok(ids)
    }

    /// What others have written after a revision: a part of it when it is much.
    async fn follow(&self, after: Revision) -> Result<Followed, HistoryError> {
        Ok(Followed { revision: after, ..Followed::default() })
    }
}
