//! The revision log: the one ordered history of all writes of one cluster.
//!
//! Knows keys, bytes and revisions. Does not know objects, JSON, namespaces or HTTP.
//!
//! [`Store`] is what everybody else uses: it holds the live keys in memory, gives out revisions in one writer and hands
//! events to watchers. A [`Backend`] is only the durable part below it: [`Memory`] for tests and throw-away clusters,
//! [`Sqlite`] by default, [`Postgres`], [`Mysql`] or [`Etcd`] when several replicas share one history.
//!
//! Invariants:
//! - `compact_revision <= current_revision`; both only grow, also over a restart.
//! - An empty store is at revision 1, as etcd is (0 means "newest" or "any" in requests); the first write gets 2.
//! - Each revision belongs to exactly one committed transaction, which is mostly one write; a reader at revision `r` sees all writes `<= r`, no other.
//! - A watcher gets every event after its start revision, in order, exactly once, or `Compacted`; it never gets a gap.
//! - A write is answered, and seen by readers and watchers, only after the backend has made it durable.
//!
//! Follows: etcd v3 KV semantics as used by `k8s.io/apiserver/pkg/storage/etcd3`.

mod backend;
pub mod contract;
mod direct;
mod endpoint;
mod error;
mod etcd;
mod follow;
mod history;
mod hub;
mod lease;
mod memory;
mod mysql;
mod options;
mod postgres;
pub mod servers;
mod sqlite;
mod state;
mod store;
mod synchronize;
mod tls;
mod transaction;
mod types;
mod watch;
mod writer;

pub use self::etcd::Etcd;
pub use backend::{Backend, Batch, Direct, Followed, HistoryRange, LeaseChange, Record, Seen, Verdict};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{AppendError, BackendError, CompactError, HistoryError, OpenError, ReadError, WatchError, WriteError};
pub use memory::Memory;
pub use mysql::Mysql;
pub use options::Options;
pub use postgres::Postgres;
pub use sqlite::{Sqlite, SqliteOptions, Workers};
pub use store::Store;
pub use tls::{TlsFiles, unchecked_client_config, unchecked_verifier};
pub use transaction::Transaction;
pub use types::{
    Committed, Event, EventKind, Expect, KeyRange, KeyValue, LeaseRecord, Op, RangeRequest, RangeResponse, Revision,
    Snapshot, prefix_end,
};
pub use watch::{Batch as WatchBatch, Watcher};

/// The revision of a store in which nothing was ever written.
pub const FIRST_REVISION: Revision = 1;
