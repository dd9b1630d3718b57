//! The one writer of a store: gives out revisions, commits in groups, publishes.
//!
//! Others may write to the same backend. A batch that does not continue the newest revision is prepared again, on what they
//! wrote.
//!
//! There is no writer task while nobody writes. The first write starts one; it commits what is queued as one batch, in a
//! loop, and ends when the queue is empty. While a batch is being made durable the next one gathers.
//!
//! Invariants:
//! - At most one writer at a time.
//! - A batch is published (cache, recent events, watchers, answers) after the backend said it is durable, or not at all.
//! - A batch of which the backend does not know whether it was written blocks later batches until that is known. Whoever
//!   comes next finds out: a write, a read that must be new, or the follower of a shared backend.
//! - An answer that depends on a write of its own batch shares that batch's fate.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::{Batch, LeaseChange};
use crate::error::{AppendError, BackendError, HistoryError, WriteError, chain};
use crate::follow;
use crate::lease;
use crate::store::Inner;
use crate::transaction::{Overlay, Transaction};
use crate::types::{Event, KeyValue, Revision};

/// How often a batch is prepared again because others have written in between.
const ATTEMPTS_MAX: usize = 50;

/// A transaction that waits for its turn.
pub(crate) trait Work: Send {
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<(), WriteError>;
    /// Gives the answer of the last run, if it stands.
    fn answer(self: Box<Self>, outcome: Result<Revision, WriteError>);
}

/// A transaction with a result.
pub(crate) struct Task<F, R> {
    pub work: F,
    pub result: Option<R>,
    pub answer: oneshot::Sender<Result<(Revision, R), WriteError>>,
}

impl<F, R> Work for Task<F, R>
where
    F: FnMut(&mut Transaction<'_>) -> Result<R, WriteError> + Send,
    R: Send,
{
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<(), WriteError> {
        self.result = Some((self.work)(transaction)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<Revision, WriteError>) {
        let task = *self;
        let lost = || WriteError::Unavailable { why: "the transaction has no result".to_string() };
        let answer = outcome.and_then(|revision| Ok((revision, task.result.ok_or_else(lost)?)));
        // Nobody listens any more when the caller has gone away; the write stands all the same.
        drop(task.answer.send(answer));
    }
}

pub(crate) struct Pending {
    pub work: Box<dyn Work>,
    /// About how many bytes it writes.
    pub size_bytes: usize,
    /// Room in the queue; given back with the answer.
    pub permit: OwnedSemaphorePermit,
}

impl Pending {
    fn answer(self, outcome: Result<Revision, WriteError>) {
        self.work.answer(outcome);
        drop(self.permit);
    }
}

#[derive(Default)]
pub(crate) struct WriteQueue {
    pub pending: VecDeque<Pending>,
    /// A writer task is there and will look at the queue again.
    running: bool,
    /// There was no room lately: writes are committed one by one, so that a delete does not fail with the put beside it.
    full: bool,
    /// A batch whose fate is not known.
    unresolved: Option<Arc<Batch>>,
}

impl WriteQueue {
    pub fn is_idle(&self) -> bool {
        !self.running && self.pending.is_empty()
    }
}

/// Queues a write and makes sure that a writer is there.
pub(crate) fn enqueue(inner: &Arc<Inner>, pending: Pending) {
    let start = {
        let mut queue = inner.queue.lock();
        queue.pending.push_back(pending);
        !std::mem::replace(&mut queue.running, true)
    };
    if start {
        // Made here and not in the task, which may be dropped before it ever runs.
        tokio::spawn(write_all(Running { inner: inner.clone(), finished: false }));
    }
}

/// Starts a writer for writes that one left behind when it was cancelled.
pub(crate) fn resume(inner: &Arc<Inner>) {
    let start = {
        let mut queue = inner.queue.lock();
        !queue.pending.is_empty() && !std::mem::replace(&mut queue.running, true)
    };
    if start {
        tokio::spawn(write_all(Running { inner: inner.clone(), finished: false }));
    }
}

/// Lets the next write start a writer when this one is cancelled with its runtime.
struct Running {
    inner: Arc<Inner>,
    finished: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.finished {
            self.inner.queue.lock().running = false;
        }
        self.inner.drained.notify_waiters();
    }
}

impl Running {
    /// The writer has said under the queue's lock that it is gone; another one may be there already.
    fn finished(mut self) {
        self.finished = true;
    }
}

async fn write_all(running: Running) {
    let inner = running.inner.clone();
    loop {
        let commands = {
            let mut queue = inner.queue.lock();
            let count_max = if queue.full { 1 } else { inner.options.batch_max };
            let commands = take(&mut queue.pending, count_max, inner.options.batch_bytes_max);
            if commands.is_empty() {
                if queue.pending.capacity() > 64 {
                    queue.pending.shrink_to(0);
                }
                // Under the lock that saw the empty queue, so that no write is queued in between and left alone.
                queue.running = false;
                drop(queue);
                running.finished();
                return;
            }
            commands
        };
        // Whoever follows what others write waits meanwhile, and the other way round.
        let _in_order = inner.applying.lock().await;
        if let Err(error) = settle(&inner).await {
            fail(commands, &|| WriteError::Unavailable { why: chain(&error) });
            continue;
        }
        commit(&inner, commands).await;
        inner.start_compactor();
    }
}

fn take(pending: &mut VecDeque<Pending>, count_max: usize, bytes_max: usize) -> Vec<Pending> {
    let mut bytes = 0;
    let mut count = 0;
    for next in pending.iter().take(count_max) {
        bytes += next.size_bytes;
        if count > 0 && bytes > bytes_max {
            break;
        }
        count += 1;
    }
    pending.drain(..count).collect()
}

fn fail(commands: Vec<Pending>, failure: &dyn Fn() -> WriteError) {
    commands.into_iter().for_each(|pending| pending.answer(Err(failure())));
}

async fn commit(inner: &Arc<Inner>, mut commands: Vec<Pending>) {
    for _ in 0..ATTEMPTS_MAX {
        let Prepared { batch, events, outcomes } = prepare(inner, &mut commands);
        let written = if batch.records.is_empty() && batch.leases.is_empty() {
            confirm(inner).await
        } else {
            append(inner, Arc::new(batch), &events).await
        };
        match written {
            Ok(true) => {
                commands.into_iter().zip(outcomes).for_each(|(pending, outcome)| pending.answer(outcome));
                return;
            }
            Ok(false) => match follow::catch_up(inner).await {
                Ok(_) => {}
                Err(error) => {
                    inner.backend.release().await;
                    return refuse(commands, &AppendError::NotApplied(error));
                }
            },
            Err(error) => return refuse(commands, &error),
        }
    }
    inner.backend.release().await;
    refuse(commands, &AppendError::NotApplied(BackendError::new("write", "others were faster too often")));
}

fn refuse(commands: Vec<Pending>, error: &AppendError) {
    tracing::warn!(error = error as &dyn std::error::Error, "a batch of writes was not committed");
    fail(commands, &|| match error {
        AppendError::Full => WriteError::Full,
        other => WriteError::Unavailable { why: chain(other) },
    });
}

/// Answers that need no write are only right if nobody else has written meanwhile. Returns whether that is so; if not,
/// what others wrote has been taken over.
async fn confirm(inner: &Arc<Inner>) -> Result<bool, AppendError> {
    if !inner.backend.is_shared() {
        return Ok(true);
    }
    // Another attempt may have left the turn with us.
    inner.backend.release().await;
    let news = follow::catch_up(inner).await.map_err(AppendError::NotApplied)?;
    Ok(!news)
}

/// Returns whether the batch was written; false when others have written first.
async fn append(inner: &Arc<Inner>, batch: Arc<Batch>, events: &[Arc<Event>]) -> Result<bool, AppendError> {
    // Set before, taken back after: if this task is cancelled in between, nobody knows.
    inner.queue.lock().unresolved = Some(batch.clone());
    match inner.backend.append(batch.clone()).await {
        Ok(()) => {
            {
                let mut queue = inner.queue.lock();
                queue.unresolved = None;
                queue.full &= batch.records.iter().all(|record| record.deleted);
            }
            publish(inner, events, &batch.leases);
            Ok(true)
        }
        Err(AppendError::Behind) => {
            inner.queue.lock().unresolved = None;
            Ok(false)
        }
        Err(error @ (AppendError::Full | AppendError::NotApplied(_))) => {
            let mut queue = inner.queue.lock();
            queue.unresolved = None;
            queue.full |= matches!(error, AppendError::Full);
            Err(error)
        }
        Err(AppendError::Unknown(error)) => match resolve(inner, &batch).await {
            Ok(Some(true)) => Ok(true),
            Ok(Some(false)) => Err(AppendError::NotApplied(error)),
            Ok(None) | Err(_) => Err(AppendError::Unknown(error)),
        },
    }
}

/// Finds out about a batch whose fate is not known, if there is one. The caller holds `applying`.
pub(crate) async fn settle(inner: &Arc<Inner>) -> Result<(), BackendError> {
    let unresolved = inner.queue.lock().unresolved.clone();
    match unresolved {
        Some(batch) => resolve(inner, &batch).await.map(drop),
        None => Ok(()),
    }
}

/// Finds out whether a batch was written, and publishes it if so. Returns whether it was.
async fn resolve(inner: &Arc<Inner>, batch: &Arc<Batch>) -> Result<Option<bool>, BackendError> {
    let applied = if batch.records.is_empty() {
        // Only leases: granting or revoking once more does no harm, so append again.
        match inner.backend.append(batch.clone()).await {
            Ok(()) => Some(true),
            Err(AppendError::Behind) => {
                inner.backend.release().await;
                None
            }
            Err(AppendError::NotApplied(error) | AppendError::Unknown(error)) => return Err(error),
            Err(AppendError::Full) => return Err(BackendError::new("repeat a change of leases", AppendError::Full)),
        }
    } else {
        inner.backend.settle(batch).await?
    };
    if inner.backend.is_shared() {
        // Others may have written before and after it.
        follow::catch_up(inner).await?;
    } else if applied == Some(true) && batch.records.last().is_none_or(|r| inner.state.read().current < r.revision()) {
        let events = {
            let state = inner.state.read();
            let mut before: HashMap<&Bytes, Option<KeyValue>> = HashMap::new();
            let mut events = Vec::with_capacity(batch.records.len());
            for record in &batch.records {
                let prev = before.remove(&record.kv.key).unwrap_or_else(|| state.live.get(&record.kv.key).cloned());
                before.insert(&record.kv.key, (!record.deleted).then(|| record.kv.clone()));
                events.push(Arc::new(record.event(prev)));
            }
            events
        };
        publish(inner, &events, &batch.leases);
    }
    inner.queue.lock().unresolved = None;
    Ok(applied)
}

/// Takes over what is durable: keys, leases, watchers. In the order of revisions, by one task at a time.
pub(crate) fn publish(inner: &Arc<Inner>, events: &[Arc<Event>], lease_changes: &[LeaseChange]) {
    // Grants before keys, keys before revokes: a key that a reader sees never names a lease that is not there yet.
    {
        let mut leases = inner.leases.lock();
        for change in lease_changes {
            if let LeaseChange::Grant(lease) = change {
                leases.grant(*lease);
            }
        }
    }
    {
        let mut state = inner.state.write();
        for event in events {
            state.apply(event, &inner.options);
        }
        inner.set_current(state.current);
        if inner.backend.keeps_history_in_memory() {
            let limit = inner.options.history_bytes_max;
            events.iter().for_each(|event| state.history.add(event, limit));
            if let Some(revision) = state.history.excess(limit) {
                inner.compact_early(revision);
            }
        }
    }
    {
        let mut leases = inner.leases.lock();
        events.iter().for_each(|event| leases.apply(event));
        for change in lease_changes {
            if let LeaseChange::Revoke { id } = change {
                leases.by_id.remove(id);
            }
        }
    }
    if lease_changes.iter().any(|change| matches!(change, LeaseChange::Grant(_))) {
        lease::ensure_timer(inner);
    }
    if let Some(last) = events.last() {
        {
            let hub = inner.hub.lock();
            events
                .chunk_by(|one, next| one.revision() == next.revision())
                .for_each(|group| hub.dispatch(group, inner.options.watcher_events_max));
        }
        inner.set_published(last.revision());
        inner.applied.notify_waiters();
    }
}

struct Prepared {
    batch: Batch,
    events: Vec<Arc<Event>>,
    /// One for each command: the revision of its answer, or why it failed.
    outcomes: Vec<Result<Revision, WriteError>>,
}

/// Runs the transactions one after the other, each on the state that the ones before will have made.
fn prepare(inner: &Inner, commands: &mut [Pending]) -> Prepared {
    let mut current = inner.state.read().current;
    let mut overlay = Overlay::default();
    let mut batch = Batch { after: current, ..Batch::default() };
    let mut events = Vec::new();
    let mut outcomes = Vec::with_capacity(commands.len());
    for pending in commands {
        let mut transaction = Transaction::new(inner, &overlay, current, false);
        if let Err(error) = pending.work.run(&mut transaction) {
            outcomes.push(Err(error));
            continue;
        }
        let staged = transaction.finish();
        if !staged.records.is_empty() {
            current += 1;
        }
        for (record, prev) in staged.records.into_values() {
            events.push(Arc::new(record.event(prev)));
            batch.records.push(record);
        }
        batch.leases.extend(staged.leases);
        overlay.keys.extend(staged.overlay.keys);
        overlay.leases.extend(staged.overlay.leases);
        outcomes.push(Ok(current));
    }
    Prepared { batch, events, outcomes }
}

/// The error of a read of the history, for those that wanted to write.
pub(crate) fn history_failure(error: HistoryError) -> BackendError {
    match error {
        HistoryError::Backend(error) => error,
        compacted => BackendError::new("read what others wrote", compacted),
    }
}
