//! The words of the store: keys with values, revisions, requests, answers and events.
//!
//! Invariant: a [`KeyRange`] is half open, and an empty one (`start >= end`) holds no key.

use std::ops::Bound;

use bytes::Bytes;

/// A position in the one ordered history of writes.
pub type Revision = u64;

/// A key with its value and the revisions that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision of the write that created the key.
    pub create_revision: Revision,
    /// The revision of the last write to the key.
    pub mod_revision: Revision,
    /// How many writes the key has had since it was created; 1 after the create.
    pub version: u64,
    /// The lease the key is attached to; 0 is none.
    pub lease: i64,
}

/// What a write expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    ModRevision(Revision),
}

/// What a write does to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { value: Bytes, lease: i64 },
    Delete,
}

/// The answer to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The revision of this write; for a delete of an absent key, which writes nothing, the newest revision.
    pub revision: Revision,
    /// The key before the write.
    pub prev: Option<KeyValue>,
}

/// Which keys to read, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeRequest {
    pub start: Bytes,
    /// First key after the range. As in etcd, empty means the one key `start`, and a single zero byte every key from `start`.
    pub end: Bytes,
    /// At most this many keys; 0 is no limit.
    pub limit: usize,
    /// The state as of this revision; 0 is the newest.
    pub revision: Revision,
    /// Leave the values empty.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
}

impl RangeRequest {
    /// Every key that starts with `prefix`, at the newest revision.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        RangeRequest { start, end, ..RangeRequest::default() }
    }
}

/// The answer to a [`RangeRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    pub more: bool,
    /// How many keys the range has, whatever the limit.
    pub count: u64,
    /// The revision this answer is of: the one asked for, or the newest when the request had 0.
    pub revision: Revision,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One write, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The key after the write. A delete has only the key and its own revision as `mod_revision`.
    pub kv: KeyValue,
    /// The key before the write; none for a create. May be absent when the watch did not ask for it.
    pub prev: Option<KeyValue>,
}

impl Event {
    /// The revision of the write.
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// Whether the write made a key that was not there.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    /// The heap this event keeps alive, roughly.
    pub(crate) fn size_bytes(&self) -> usize {
        self.kv.key.len() + self.kv.value.len() + self.prev.as_ref().map_or(0, |kv| kv.value.len())
    }
}

/// A lease that was granted and not yet revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    pub id: i64,
    pub ttl_seconds: i64,
}

/// Everything a store holds at one revision, without its history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    /// Reads below this revision are refused. A store that is seeded from a snapshot starts compacted to `revision`.
    pub compact_revision: Revision,
    /// In key order.
    pub kvs: Vec<KeyValue>,
    pub leases: Vec<LeaseRecord>,
}

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bytes,
    /// None: no upper end.
    end: Option<Bytes>,
}

impl KeyRange {
    /// Reads etcd's notation: see [`RangeRequest::end`].
    pub fn new(start: Bytes, end: Bytes) -> Self {
        if end.is_empty() {
            return KeyRange::key(start);
        }
        let end = if end[..] == [0] { None } else { Some(end) };
        KeyRange { start, end }
    }

    /// The one key.
    pub fn key(key: Bytes) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(&key);
        end.push(0);
        KeyRange { start: key, end: Some(end.into()) }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: Bytes) -> Self {
        let end = prefix_end(&prefix);
        KeyRange::new(prefix, end)
    }

    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// First key after the range; none when the range has no upper end.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.start >= end)
    }

    /// Bounds for an ordered map, none for an empty range (for which the map would panic).
    pub(crate) fn bounds(&self) -> Option<(Bound<&[u8]>, Bound<&[u8]>)> {
        if self.is_empty() {
            return None;
        }
        let end = self.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        Some((Bound::Included(&self.start[..]), end))
    }

    pub(crate) fn is_one_key(&self) -> bool {
        self.end.as_ref().is_some_and(|end| {
            end.len() == self.start.len() + 1 && end.last() == Some(&0) && end.starts_with(&self.start)
        })
    }

    pub(crate) fn is_prefix(&self) -> bool {
        let end = prefix_end(&self.start);
        match &self.end {
            None => end[..] == [0],
            Some(own) => *own == end,
        }
    }
}

/// The `end` that makes a range of every key with this prefix; a single zero byte when there is no upper end.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}
