//! How much replaced data a backend in memory still holds, and up to where to compact when it is too much.
//!
//! Invariant: `bytes` is the sum of the marks; a mark holds what the revisions up to its own, and after the mark before,
//! replaced or deleted.

use std::collections::VecDeque;

use crate::types::{Event, Revision};

/// A limit is shared out to this many marks, so that a bound of any size costs the same.
const MARKS: usize = 32;
/// What a record costs beside its key and value.
const RECORD_BYTES: usize = 160;

/// Counts what only the history holds.
#[derive(Default)]
pub(crate) struct HistoryMeter {
    marks: VecDeque<(Revision, usize)>,
    bytes: usize,
}

impl HistoryMeter {
    /// Counts what a write leaves behind. `limit` is in bytes.
    pub fn add(&mut self, event: &Event, limit: usize) {
        let Some(prev) = &event.prev else { return };
        let bytes = prev.key.len() + prev.value.len() + RECORD_BYTES;
        self.bytes += bytes;
        match self.marks.back_mut() {
            Some((revision, held)) if *held < limit / MARKS => {
                *revision = event.revision();
                *held += bytes;
            }
            _ => self.marks.push_back((event.revision(), bytes)),
        }
    }

    /// Forgets what a compaction removes.
    pub fn forget(&mut self, compact: Revision) {
        while self.marks.front().is_some_and(|(revision, _)| *revision <= compact) {
            if let Some((_, bytes)) = self.marks.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// The revision to compact to when there is more than `limit`: half of it stays.
    pub fn excess(&self, limit: usize) -> Option<Revision> {
        if self.bytes <= limit {
            return None;
        }
        let mut left = self.bytes;
        self.marks.iter().find_map(|(revision, bytes)| {
            left -= bytes;
            (left <= limit / 2).then_some(*revision)
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{EventKind, KeyValue};

    fn update(revision: Revision, bytes: usize) -> Event {
        let kv = |mod_revision, len| KeyValue {
            key: Bytes::from_static(b"k"),
            value: vec![0; len].into(),
            create_revision: 1,
            mod_revision,
            version: 1,
            lease: 0,
        };
        Event { kind: EventKind::Put, kv: kv(revision, 0), prev: Some(kv(revision - 1, bytes)) }
    }

    #[test]
    fn more_than_the_limit_is_cut_to_half() {
        let limit = 100_000;
        let mut meter = HistoryMeter::default();
        for revision in 2..=100 {
            meter.add(&update(revision, 1000), limit);
            assert_eq!(meter.excess(limit).is_some(), meter.bytes > limit, "{revision}");
        }
        assert!(meter.marks.len() <= MARKS + 1);
        let to = meter.excess(limit).expect("99 records of 1161 bytes are too much");
        meter.forget(to);
        assert!(meter.bytes <= limit / 2 && meter.bytes > limit / 4, "{}", meter.bytes);
        assert_eq!(meter.bytes, meter.marks.iter().map(|(_, bytes)| bytes).sum::<usize>());
        meter.forget(100);
        assert_eq!(meter.bytes, 0);
    }
}
