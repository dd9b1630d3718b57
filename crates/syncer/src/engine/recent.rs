//! Things remembered for a short time: a map whose entries go by themselves.
//!
//! Invariant: after an insertion or [`Recent::purge`] nothing older than the time is held, so that memory follows what happened
//! lately and not what ever happened.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

pub struct Recent<K, V> {
    keep: Duration,
    entries: HashMap<K, (V, Instant)>,
    // One for each insertion, oldest first; those that were replaced or removed meanwhile mean nothing.
    order: VecDeque<(Instant, K)>,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub fn new(keep: Duration) -> Self {
        Recent { keep, entries: HashMap::new(), order: VecDeque::new() }
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.purge();
        let now = Instant::now();
        self.order.push_back((now, key.clone()));
        self.entries.insert(key, (value, now));
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        let (value, at) = self.entries.get(key)?;
        (at.elapsed() < self.keep).then_some(value)
    }

    pub fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Drops what is too old, and the room it took.
    pub fn purge(&mut self) {
        while let Some((at, _)) = self.order.front()
            && at.elapsed() >= self.keep
        {
            let Some((at, key)) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|(_, of)| *of == at) {
                self.entries.remove(&key);
            }
        }
        if self.order.capacity() > 64 && self.order.len() * 4 < self.order.capacity() {
            self.order.shrink_to_fit();
            self.entries.shrink_to_fit();
        }
    }

    pub fn len(&self) -> usize {
        self.order.len().max(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn entries_go_with_time_and_take_their_room_along() {
        let mut recent: Recent<u32, &str> = Recent::new(10 * S);
        for key in 0..1_000 {
            recent.insert(key, "old");
        }
        tokio::time::advance(6 * S).await;
        recent.insert(0, "new");
        recent.remove(&1);
        assert_eq!((recent.get(&0), recent.get(&1), recent.get(&2)), (Some(&"new"), None, Some(&"old")));
        tokio::time::advance(6 * S).await;
        assert_eq!((recent.get(&0), recent.get(&2)), (Some(&"new"), None));
        recent.purge();
        assert_eq!(recent.len(), 1, "the newer insertion stays");
        assert!(recent.order.capacity() < 64 && recent.entries.capacity() < 64);
    }
}
