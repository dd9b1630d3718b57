//! The limits of a store. Every queue and buffer has its bound here.

use std::time::Duration;

/// Limits and intervals; the defaults suit a virtual cluster of ordinary size.
#[derive(Clone, Debug)]
pub struct Options {
    /// Writes that wait for the writer; more wait for room.
    pub queue_max: usize,
    /// Writes that share one durable commit.
    pub batch_max: usize,
    /// Bytes of values that share one durable commit.
    pub batch_bytes_max: usize,
    /// Events kept in memory for late watchers and for reads at a recent revision.
    pub recent_events_max: usize,
    /// Bytes of keys and values those events may keep alive.
    pub recent_bytes_max: usize,
    /// Events that wait in one watcher; a slower one reads on from the history.
    pub watcher_events_max: usize,
    /// Largest value, and largest key (which is never longer than 4 KiB).
    pub value_bytes_max: usize,
    /// Bytes of replaced and deleted data that a backend in memory keeps before it is compacted early.
    pub history_bytes_max: usize,
    /// How often to compact to the revision that was newest one interval before, as kube-apiserver does with etcd; none: never.
    pub compaction_interval: Option<Duration>,
    /// Longest wait for a backend that others write to as well, which is a server that may be away. After it a request is
    /// answered all the same.
    pub answer_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queue_max: 1024,
            batch_max: 256,
            batch_bytes_max: 8 << 20,
            recent_events_max: 1024,
            recent_bytes_max: 1 << 20,
            watcher_events_max: 256,
            value_bytes_max: 3 << 20,
            history_bytes_max: 32 << 20,
            compaction_interval: Some(Duration::from_secs(300)),
            answer_max: Duration::from_secs(10),
        }
    }
}

/// Longest key.
pub(crate) const KEY_BYTES_MAX: usize = 4096;
