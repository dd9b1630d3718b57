//! What a store holds in memory: the live keys, the events of the last writes, the revisions.
//!
//! Invariants:
//! - `recent` holds the events of every revision in `recent_after < revision <= current`, in order.
//! - Everything here is durable in the backend already.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::history::HistoryMeter;
use crate::options::Options;
use crate::types::{Event, EventKind, KeyRange, KeyValue, RangeRequest, RangeResponse, Revision, Snapshot};

pub(crate) struct State {
    pub live: BTreeMap<Bytes, KeyValue>,
    pub current: Revision,
    pub compact: Revision,
    recent: VecDeque<Arc<Event>>,
    /// Older events, and perhaps some of this revision, are not in `recent`.
    recent_after: Revision,
    recent_bytes: usize,
    /// What only the history holds, counted where that is memory.
    pub history: HistoryMeter,
}

impl State {
    pub fn new(live: BTreeMap<Bytes, KeyValue>, current: Revision, compact: Revision) -> Self {
        State {
            live,
            current,
            compact,
            recent: VecDeque::new(),
            recent_after: current,
            recent_bytes: 0,
            history: HistoryMeter::default(),
        }
    }

    /// Forgets everything and starts with a snapshot.
    pub fn replace(&mut self, snapshot: Snapshot) {
        let live = snapshot.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        // What happened in between is not known: nobody may read on from before.
        *self = State::new(live, snapshot.revision, snapshot.compact_revision);
    }

    /// Takes over a durable write.
    pub fn apply(&mut self, event: &Arc<Event>, options: &Options) {
        assert!(event.revision() >= self.current, "revisions only grow");
        self.current = event.revision();
        match event.kind {
            EventKind::Put => self.live.insert(event.kv.key.clone(), event.kv.clone()),
            EventKind::Delete => self.live.remove(&event.kv.key),
        };
        self.recent_bytes += event.size_bytes();
        self.recent.push_back(event.clone());
        while self.recent.len() > options.recent_events_max || self.recent_bytes > options.recent_bytes_max {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.size_bytes();
            self.recent_after = oldest.revision();
        }
    }

    /// Lets go of events that nobody may ask for any more.
    pub fn forget_compacted(&mut self) {
        while self.recent.front().is_some_and(|event| event.revision() <= self.compact) {
            if let Some(oldest) = self.recent.pop_front() {
                self.recent_bytes -= oldest.size_bytes();
                self.recent_after = oldest.revision();
            }
        }
        if self.recent.is_empty() {
            self.recent.shrink_to_fit();
        }
    }

    /// The events after a revision, if memory still has all of them.
    pub fn events_after(&self, after: Revision) -> Option<impl Iterator<Item = &Arc<Event>>> {
        if after < self.recent_after {
            return None;
        }
        let skip = self.recent.partition_point(|event| event.revision() <= after);
        Some(self.recent.range(skip..))
    }

    /// Answers from memory, if memory still knows the revision asked for.
    pub fn range(&self, range: &KeyRange, request: &RangeRequest, at: Revision) -> Option<RangeResponse> {
        let mut answer = RangeResponse { revision: at, ..RangeResponse::default() };
        let Some(bounds) = range.bounds() else { return Some(answer) };
        let take = match (request.count_only, request.limit) {
            (true, _) => 0,
            (false, 0) => usize::MAX,
            (false, limit) => limit,
        };
        let mut add = |kv: &KeyValue| {
            if answer.kvs.len() < take {
                let mut kv = kv.clone();
                if request.keys_only {
                    kv.value = Bytes::new();
                }
                answer.kvs.push(kv);
            }
            answer.count += 1;
        };
        if at == self.current {
            self.live.range::<[u8], _>(bounds).for_each(|(_, kv)| add(kv));
        } else {
            // What the keys written since then had before the first of those writes.
            let mut before: BTreeMap<&Bytes, Option<&KeyValue>> = BTreeMap::new();
            for event in self.events_after(at)?.filter(|event| range.contains(&event.kv.key)) {
                before.entry(&event.kv.key).or_insert(event.prev.as_ref());
            }
            let mut before = before.into_iter().peekable();
            for (key, kv) in self.live.range::<[u8], _>(bounds) {
                while before.peek().is_some_and(|(old, _)| *old < key) {
                    if let Some((_, Some(kv))) = before.next() {
                        add(kv);
                    }
                }
                match before.peek() {
                    Some((old, prev)) if *old == key => {
                        if let Some(kv) = prev {
                            add(kv);
                        }
                        before.next();
                    }
                    _ => add(kv),
                }
            }
            before.filter_map(|(_, prev)| prev).for_each(&mut add);
        }
        answer.more = !request.count_only && answer.kvs.len() < answer.count as usize;
        Some(answer)
    }
}
