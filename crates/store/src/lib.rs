//! The revision log: the one ordered history of all writes of one cluster.
//!
//! Knows keys, bytes and revisions. Does not know objects, JSON, namespaces or HTTP.
//!
//! Invariants:
//! - `compact_revision <= current_revision`; both only grow.
//! - Each revision belongs to exactly one committed write; a reader at revision `r` sees all writes `<= r`, no other.
//! - A watcher gets every event after its start revision, in order, exactly once, or `Compacted`; it never gets a gap.
//! - A write is answered only after the backend has made it durable.
//!
//! Follows: etcd v3 KV semantics as used by `k8s.io/apiserver/pkg/storage/etcd3`.
