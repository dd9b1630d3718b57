//! What a backend has to do: keep an ordered log durably, and read it again.
//!
//! A backend gives out no revisions, checks no expectations, knows no watchers. The store above calls `append` from one
//! place at a time; everything else may be called at any time from anywhere.
//!
//! Invariants a backend keeps:
//! - `append` is all or nothing, and durable when it answers.
//! - `range` and `events` read one consistent state, and refuse what is compacted instead of leaving something out.
//! - What `load` says after a crash contains every batch that was answered, and a newest revision that is not below any
//!   revision ever answered, even if compaction has removed the rows.

use async_trait::async_trait;

use crate::error::{AppendError, BackendError, HistoryError, OpenError};
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

/// What is committed at once: records of dense, ascending revisions, and lease changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub records: Vec<Record>,
    pub leases: Vec<LeaseChange>,
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

    /// The events of a range with revisions in `after < revision <= through`, in order, the first `limit` of them.
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
}
