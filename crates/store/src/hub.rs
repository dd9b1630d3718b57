//! Which watchers a write concerns, found without asking those it does not concern.
//!
//! Watches of one key and of a prefix, which is all that Kubernetes has, are found by hashing the key and its prefixes of
//! the lengths in use. Any other range is compared one by one, but only once for all watchers of the same range.
//!
//! Invariant: a watcher in the index gets every event of its range that is dispatched, unless it is lagging.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::types::{Event, KeyRange, Revision};

/// The half of a watcher that the writer sees.
pub(crate) struct Subscriber {
    pub id: u64,
    pub range: KeyRange,
    pub queue: Mutex<Queue>,
    pub wake: Notify,
}

/// Events on their way to one watcher.
pub(crate) struct Queue {
    pub events: VecDeque<Arc<Event>>,
    /// All events of the range up to here were queued or handed out.
    pub cursor: Revision,
    /// Events after `cursor` may be missing in the queue; the watcher fetches them itself.
    pub lagging: bool,
    pub closed: bool,
}

type Group = HashMap<u64, Arc<Subscriber>>;

#[derive(Default)]
pub(crate) struct Hub {
    next_id: u64,
    keys: HashMap<Bytes, Group>,
    prefixes: HashMap<Bytes, Group>,
    /// How many prefixes of each length there are.
    prefix_lengths: BTreeMap<usize, usize>,
    others: HashMap<KeyRange, Group>,
    closed: bool,
}

impl Hub {
    pub fn subscribe(&mut self, range: KeyRange, cursor: Revision, lagging: bool) -> Arc<Subscriber> {
        self.next_id += 1;
        let subscriber = Arc::new(Subscriber {
            id: self.next_id,
            range: range.clone(),
            queue: Mutex::new(Queue { events: VecDeque::new(), cursor, lagging, closed: self.closed }),
            wake: Notify::new(),
        });
        let group = if range.is_one_key() {
            self.keys.entry(range.start().clone()).or_default()
        } else if range.is_prefix() {
            self.prefixes.entry(range.start().clone()).or_insert_with(|| {
                *self.prefix_lengths.entry(range.start().len()).or_default() += 1;
                Group::new()
            })
        } else {
            self.others.entry(range).or_default()
        };
        group.insert(subscriber.id, subscriber.clone());
        subscriber
    }

    pub fn unsubscribe(&mut self, subscriber: &Subscriber) {
        fn remove<K: std::hash::Hash + Eq>(groups: &mut HashMap<K, Group>, key: &K, id: u64) -> bool {
            let Some(group) = groups.get_mut(key) else { return false };
            group.remove(&id);
            let empty = group.is_empty();
            if empty {
                groups.remove(key);
            }
            empty
        }
        let range = &subscriber.range;
        if range.is_one_key() {
            remove(&mut self.keys, range.start(), subscriber.id);
        } else if range.is_prefix() {
            if remove(&mut self.prefixes, range.start(), subscriber.id) {
                let length = range.start().len();
                if let Some(count) = self.prefix_lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        self.prefix_lengths.remove(&length);
                    }
                }
            }
        } else {
            remove(&mut self.others, range, subscriber.id);
        }
    }

    /// Hands the events of one revision to those they concern, to each of them all at once.
    pub fn dispatch(&self, events: &[Arc<Event>], queue_max: usize) {
        if let [event] = events {
            self.concerned(event, |subscriber| subscriber.push(std::slice::from_ref(event), queue_max));
            return;
        }
        let mut shares: BTreeMap<u64, (&Arc<Subscriber>, Vec<Arc<Event>>)> = BTreeMap::new();
        for event in events {
            self.concerned(event, |subscriber| {
                shares.entry(subscriber.id).or_insert_with(|| (subscriber, Vec::new())).1.push(event.clone());
            });
        }
        shares.into_values().for_each(|(subscriber, share)| subscriber.push(&share, queue_max));
    }

    fn concerned<'a>(&'a self, event: &Event, mut tell: impl FnMut(&'a Arc<Subscriber>)) {
        let key = &event.kv.key;
        if let Some(group) = self.keys.get(key) {
            group.values().for_each(&mut tell);
        }
        for length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| *length) {
            if let Some(group) = self.prefixes.get(&key[..length]) {
                group.values().for_each(&mut tell);
            }
        }
        for (_, group) in self.others.iter().filter(|(range, _)| range.contains(key)) {
            group.values().for_each(&mut tell);
        }
    }

    /// Lets all watchers look for themselves: something happened that no events tell.
    pub fn unsettle(&self) {
        let groups = self.keys.values().chain(self.prefixes.values()).chain(self.others.values());
        for subscriber in groups.flat_map(|group| group.values()) {
            subscriber.queue.lock().lagging = true;
            subscriber.wake.notify_one();
        }
    }

    /// Ends all watchers, now and later, once they have read what is queued.
    pub fn close(&mut self) {
        self.closed = true;
        let groups = self.keys.values().chain(self.prefixes.values()).chain(self.others.values());
        for subscriber in groups.flat_map(|group| group.values()) {
            subscriber.queue.lock().closed = true;
            subscriber.wake.notify_one();
        }
    }
}

impl Subscriber {
    /// Queues events of one revision.
    fn push(&self, events: &[Arc<Event>], queue_max: usize) {
        let Some(revision) = events.first().map(|event| event.revision()) else { return };
        let mut queue = self.queue.lock();
        if queue.lagging || revision <= queue.cursor {
            return;
        }
        if queue.events.len() >= queue_max {
            queue.lagging = true;
            return;
        }
        queue.cursor = revision;
        let idle = queue.events.is_empty();
        queue.events.extend(events.iter().cloned());
        if idle {
            drop(queue);
            self.wake.notify_one();
        }
    }
}
