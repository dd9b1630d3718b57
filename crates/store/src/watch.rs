//! A watcher: the events of a range, in order, without a gap.
//!
//! A watcher that keeps up takes events from its queue in memory. One that does not is marked as lagging and its queue
//! gets nothing more; it then reads on by itself, from the recent events if they reach back far enough, otherwise from the
//! backend's history, until it has caught up. The writer never waits for a watcher.
//!
//! Locks are taken in the order hub, state, queue.

use std::sync::Arc;

use crate::error::{HistoryError, WatchError, chain};
use crate::hub::{Queue, Subscriber};
use crate::store::Inner;
use crate::types::{Event, KeyRange, Revision};

/// Events of one watcher, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub events: Vec<Arc<Event>>,
    /// Every event of the range up to this revision has been handed out with this batch or before.
    pub revision: Revision,
}

/// A watch of a range. Dropping it ends it.
pub struct Watcher {
    inner: Arc<Inner>,
    subscriber: Arc<Subscriber>,
    /// All events of the range up to here were handed out.
    delivered: Revision,
    ended: bool,
}

impl Watcher {
    pub(crate) fn new(inner: Arc<Inner>, subscriber: Arc<Subscriber>, from: Revision) -> Self {
        Watcher { inner, subscriber, delivered: from, ended: false }
    }

    /// The next events; waits for them. After an error, or when the store is closed, the watch is over and this is none.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Batch, WatchError>> {
        while !self.ended {
            if let Some(batch) = self.take_queued() {
                return Some(Ok(batch));
            }
            let (closed, lagging) = {
                let queue = self.subscriber.queue.lock();
                (queue.closed, queue.lagging)
            };
            if closed {
                self.ended = true;
                return Some(Err(WatchError::Closed));
            }
            if !lagging {
                self.subscriber.wake.notified().await;
                continue;
            }
            match self.catch_up().await {
                Ok(None) => {}
                Ok(Some(batch)) => return Some(Ok(batch)),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// The keys this watches.
    pub fn range(&self) -> &KeyRange {
        &self.subscriber.range
    }

    /// Every event of the range up to this revision has been handed out, for bookmarks. Grows with writes to other ranges too.
    pub fn progress(&self) -> Revision {
        // Read first: once a revision is published, its events are in the queues.
        let published = self.inner.published();
        let queue = self.subscriber.queue.lock();
        if queue.events.is_empty() && !queue.lagging { self.delivered.max(published) } else { self.delivered }
    }

    fn take_queued(&mut self) -> Option<Batch> {
        let mut queue = self.subscriber.queue.lock();
        let last = queue.events.back()?.revision();
        let events: Vec<Arc<Event>> = queue.events.drain(..).collect();
        // An idle watcher keeps no buffer.
        queue.events.shrink_to(4);
        self.delivered = last;
        Some(Batch { events, revision: last })
    }

    async fn catch_up(&mut self) -> Result<Option<Batch>, WatchError> {
        let limit = self.inner.options.watcher_events_max;
        let range = &self.subscriber.range;
        let (from, through) = {
            let state = self.inner.state.read();
            let mut queue = self.subscriber.queue.lock();
            let from = queue.cursor;
            if let Some(recent) = state.events_after(from) {
                let mut events = Vec::new();
                for event in recent.filter(|event| range.contains(&event.kv.key)) {
                    let last: Revision = events.last().map_or(from, |event: &Arc<Event>| event.revision());
                    if events.len() >= limit && event.revision() > last {
                        return Ok(deliver(&mut self.delivered, &mut queue, events, last));
                    }
                    events.push(event.clone());
                }
                queue.lagging = false;
                return Ok(deliver(&mut self.delivered, &mut queue, events, from.max(state.current)));
            }
            if from < state.compact {
                return Err(WatchError::Compacted { requested: from, compact_revision: state.compact });
            }
            (from, state.current)
        };
        let events = match self.inner.backend.events(range, from, through, limit).await {
            Ok(events) => events,
            Err(HistoryError::Compacted { compact_revision }) => {
                return Err(WatchError::Compacted { requested: from, compact_revision });
            }
            Err(HistoryError::Backend(error)) => {
                return Err(WatchError::Unavailable { resume_from: from, why: chain(&error) });
            }
        };
        let reached = match events.last() {
            Some(last) if events.len() >= limit => last.revision(),
            _ => through,
        };
        let events = events.into_iter().map(Arc::new).collect();
        let mut queue = self.subscriber.queue.lock();
        Ok(deliver(&mut self.delivered, &mut queue, events, reached))
    }
}

fn deliver(delivered: &mut Revision, queue: &mut Queue, events: Vec<Arc<Event>>, reached: Revision) -> Option<Batch> {
    queue.cursor = reached;
    *delivered = reached;
    (!events.is_empty()).then_some(Batch { events, revision: reached })
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.inner.hub.lock().unsubscribe(&self.subscriber);
    }
}
