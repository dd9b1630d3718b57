//! The work queue: which keys need work.
//!
//! Invariants:
//! - A key is in the queue at most once, so the queue is bounded by the number of objects.
//! - A key handed out by [`Queue::get`] is not handed out again before [`Queue::done`]; added meanwhile, it comes back then.
//! - Of several delayed adds of a key the earliest counts.
//!
//! Follows: `k8s.io/client-go/util/workqueue` (queue, delaying queue, rate limiting queue).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The delays of [`Queue::add_rate_limited`].
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// The first delay; each failure of the same key doubles it.
    pub base_delay: Duration,
    pub max_delay: Duration,
}

impl Default for QueueConfig {
    /// client-go's `DefaultTypedControllerRateLimiter`.
    fn default() -> Self {
        QueueConfig { base_delay: Duration::from_millis(5), max_delay: Duration::from_secs(1000) }
    }
}

struct State<T> {
    order: VecDeque<T>,
    dirty: HashSet<T>,
    processing: HashSet<T>,
    // Ordered by time, then by the order of adding.
    delayed: BTreeMap<(Instant, u64), T>,
    delayed_at: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
    shut_down: bool,
    max_depth: usize,
    adds: u64,
    retries: u64,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    config: QueueConfig,
}

/// A shared work queue. Cheap to clone.
pub struct Queue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { inner: self.inner.clone() }
    }
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        Queue::new(QueueConfig::default())
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn push(&mut self, item: T) -> bool {
        if self.shut_down || self.dirty.contains(&item) {
            return false;
        }
        self.adds += 1;
        self.dirty.insert(item.clone());
        if self.processing.contains(&item) {
            return false;
        }
        self.order.push_back(item);
        self.max_depth = self.max_depth.max(self.order.len());
        true
    }

    /// Moves what is due to the queue; gives the time of the next delayed key.
    fn advance(&mut self, now: Instant) -> Option<Instant> {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let item = entry.remove();
            self.delayed_at.remove(&item);
            self.push(item);
        }
        None
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    pub fn new(config: QueueConfig) -> Self {
        Queue {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    order: VecDeque::new(),
                    dirty: HashSet::new(),
                    processing: HashSet::new(),
                    delayed: BTreeMap::new(),
                    delayed_at: HashMap::new(),
                    failures: HashMap::new(),
                    sequence: 0,
                    shut_down: false,
                    max_depth: 0,
                    adds: 0,
                    retries: 0,
                }),
                changed: Notify::new(),
                config,
            }),
        }
    }

    /// Asks for work on `item`.
    pub fn add(&self, item: T) {
        if self.inner.state.lock().push(item) {
            self.inner.changed.notify_one();
        }
    }

    /// Asks for work on `item` after `delay`, or earlier if that was asked for already.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let at = Instant::now() + delay;
        let mut state = self.inner.state.lock();
        if state.shut_down {
            return;
        }
        match state.delayed_at.get(&item).copied() {
            Some(known) if known.0 <= at => return,
            Some(known) => {
                state.delayed.remove(&known);
            }
            None => {}
        }
        state.sequence += 1;
        let place = (at, state.sequence);
        state.delayed.insert(place, item.clone());
        state.delayed_at.insert(item, place);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for work on `item` after a delay that grows with its failures.
    pub fn add_rate_limited(&self, item: T) {
        let delay = {
            let mut state = self.inner.state.lock();
            state.retries += 1;
            let failures = state.failures.entry(item.clone()).or_insert(0);
            let exponent = (*failures).min(40);
            *failures += 1;
            let factor = 2f64.powi(exponent as i32);
            let delay = self.inner.config.base_delay.as_secs_f64() * factor;
            Duration::from_secs_f64(delay.min(self.inner.config.max_delay.as_secs_f64()))
        };
        self.add_after(item, delay);
    }

    /// Forgets the failures of `item`.
    pub fn forget(&self, item: &T) {
        self.inner.state.lock().failures.remove(item);
    }

    /// How often `item` has failed since it was last forgotten.
    pub fn num_requeues(&self, item: &T) -> u32 {
        self.inner.state.lock().failures.get(item).copied().unwrap_or(0)
    }

    /// The next key to work on; `None` once the queue is shut down. Cancel-safe: a key is taken only when it is returned.
    pub async fn get(&self) -> Option<T> {
        loop {
            let next = {
                let mut state = self.inner.state.lock();
                if state.shut_down {
                    return None;
                }
                let next = state.advance(Instant::now());
                if let Some(item) = state.order.pop_front() {
                    state.dirty.remove(&item);
                    state.processing.insert(item.clone());
                    let more = !state.order.is_empty();
                    drop(state);
                    if more {
                        self.inner.changed.notify_one();
                    }
                    return Some(item);
                }
                next
            };
            match next {
                None => self.inner.changed.notified().await,
                Some(at) => tokio::select! {
                    // Cancel-safe: both only wait; the loop looks again.
                    () = self.inner.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// Ends the work on `item`.
    pub fn done(&self, item: &T) {
        let mut state = self.inner.state.lock();
        state.processing.remove(item);
        if state.dirty.contains(item) {
            state.order.push_back(item.clone());
            state.max_depth = state.max_depth.max(state.order.len());
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Keys that wait for work now, without the delayed ones.
    pub fn len(&self) -> usize {
        self.inner.state.lock().order.len()
    }

    /// Keys that are remembered: delayed ones and those that failed.
    pub fn tracked(&self) -> usize {
        let state = self.inner.state.lock();
        state.delayed.len() + state.failures.len()
    }

    /// Whether nothing waits, is delayed, or is being worked on.
    pub fn is_idle(&self) -> bool {
        let state = self.inner.state.lock();
        state.order.is_empty() && state.processing.is_empty() && state.delayed.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest number of keys that ever waited.
    pub fn max_depth(&self) -> usize {
        self.inner.state.lock().max_depth
    }

    /// Keys added, and how many of them were retries.
    pub fn totals(&self) -> (u64, u64) {
        let state = self.inner.state.lock();
        (state.adds, state.retries)
    }

    /// Ends the queue: every [`Queue::get`] gives `None`.
    pub fn shut_down(&self) {
        self.inner.state.lock().shut_down = true;
        self.inner.changed.notify_waiters();
        self.inner.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    async fn try_get(queue: &Queue<&'static str>) -> Option<&'static str> {
        tokio::time::timeout(Duration::from_millis(1), queue.get()).await.ok().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_comes_back_when_added_during_work() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.max_depth(), 2);
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        assert_eq!(try_get(&queue).await, None, "a is being worked on");
        queue.done(&"b");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts() {
        let queue = Queue::default();
        let began = Instant::now();
        queue.add_after("a", 10 * S);
        queue.add_after("a", 3 * S);
        queue.add_after("a", 20 * S);
        queue.add_after("b", 5 * S);
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(began.elapsed(), 3 * S);
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("b"));
        assert_eq!(began.elapsed(), 5 * S);
        queue.done(&"b");
        assert_eq!(try_get(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_a_key_double_its_delay_until_forgotten() {
        let queue = Queue::new(QueueConfig { base_delay: S, max_delay: 4 * S });
        for want in [1, 2, 4, 4] {
            let began = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.get().await, Some("a"));
            assert_eq!(began.elapsed(), want * S);
            queue.done(&"a");
        }
        assert_eq!(queue.num_requeues(&"a"), 4);
        queue.forget(&"a");
        assert_eq!(queue.num_requeues(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn shutting_down_wakes_every_worker() {
        let queue: Queue<&str> = Queue::default();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let q = queue.clone();
                    async move { q.get().await }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for worker in waiting {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
