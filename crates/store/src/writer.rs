//! The one writer of a store: gives out revisions, commits in groups, publishes.
//!
//! There is no writer task while nobody writes. The first write starts one; it commits what is queued as one batch, in a
//! loop, and ends when the queue is empty. While a batch is being made durable the next one gathers.
//!
//! Invariants:
//! - At most one writer at a time.
//! - A batch is published (cache, recent events, watchers, answers) after the backend said it is durable, or not at all.
//! - A batch of which the backend does not know whether it was written blocks later batches until that is known.
//! - An answer that depends on a write of its own batch shares that batch's fate.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backend::{Batch, LeaseChange, Record};
use crate::error::{AppendError, WriteError, chain};
use crate::lease;
use crate::store::Inner;
use crate::types::{Committed, Event, Expect, KeyValue, LeaseRecord, Op, Revision};

type Answer<T> = oneshot::Sender<Result<T, WriteError>>;

pub(crate) enum Command {
    Txn { key: Bytes, expect: Expect, op: Op, answer: Answer<Committed> },
    Grant { lease: LeaseRecord, answer: Answer<()> },
    Revoke { id: i64, answer: Answer<()> },
}

pub(crate) struct Pending {
    pub command: Command,
    /// Room in the queue; given back with the answer.
    pub permit: OwnedSemaphorePermit,
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

/// An answer that is ready but for the commit.
enum Ready {
    Txn(Answer<Committed>, Result<Committed, WriteError>),
    Lease(Answer<()>, Result<(), WriteError>),
}

impl Ready {
    fn send(self, failure: Option<&dyn Fn() -> WriteError>) {
        // Nobody listens any more when the caller has gone away; the write stands all the same.
        match (self, failure) {
            (Ready::Txn(answer, result), None) => drop(answer.send(result)),
            (Ready::Lease(answer, result), None) => drop(answer.send(result)),
            (Ready::Txn(answer, _), Some(failure)) => drop(answer.send(Err(failure()))),
            (Ready::Lease(answer, _), Some(failure)) => drop(answer.send(Err(failure()))),
        }
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
        let (unresolved, commands) = {
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
            (queue.unresolved.clone(), commands)
        };
        if let Some(batch) = unresolved
            && let Err(why) = resolve(&inner, &batch).await
        {
            fail(commands, &|| WriteError::Unavailable { why: why.clone() });
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
        if let Command::Txn { op: Op::Put { value, .. }, .. } = &next.command {
            bytes += value.len();
        }
        if count > 0 && bytes > bytes_max {
            break;
        }
        count += 1;
    }
    pending.drain(..count).collect()
}

fn fail(commands: Vec<Pending>, failure: &dyn Fn() -> WriteError) {
    for pending in commands {
        match pending.command {
            Command::Txn { answer, .. } => drop(answer.send(Err(failure()))),
            Command::Grant { answer, .. } | Command::Revoke { answer, .. } => drop(answer.send(Err(failure()))),
        }
    }
}

async fn commit(inner: &Arc<Inner>, commands: Vec<Pending>) {
    let Prepared { batch, events, ready } = prepare(inner, commands);
    let outcome = if batch.records.is_empty() && batch.leases.is_empty() {
        Ok(())
    } else {
        let batch = Arc::new(batch);
        // Set before, taken back after: if this task is cancelled in between, nobody knows.
        inner.queue.lock().unresolved = Some(batch.clone());
        match inner.backend.append(batch.clone()).await {
            Ok(()) => {
                {
                    let mut queue = inner.queue.lock();
                    queue.unresolved = None;
                    queue.full &= batch.records.iter().all(|record| record.deleted);
                }
                publish(inner, &events, &batch.leases);
                Ok(())
            }
            Err(error @ (AppendError::Full | AppendError::NotApplied(_))) => {
                let mut queue = inner.queue.lock();
                queue.unresolved = None;
                queue.full |= matches!(error, AppendError::Full);
                Err(error)
            }
            Err(AppendError::Unknown(error)) => match resolve(inner, &batch).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(AppendError::NotApplied(error)),
                Err(_) => Err(AppendError::Unknown(error)),
            },
        }
    };
    match outcome {
        Ok(()) => ready.into_iter().for_each(|(ready, _)| ready.send(None)),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a batch of writes was not committed");
            let failure = || match &error {
                AppendError::Full => WriteError::Full,
                other => WriteError::Unavailable { why: chain(other) },
            };
            ready.into_iter().for_each(|(ready, _)| ready.send(Some(&failure)));
        }
    }
}

/// Finds out whether a batch was written, and publishes it if so. Returns whether it was.
async fn resolve(inner: &Arc<Inner>, batch: &Arc<Batch>) -> Result<bool, String> {
    let last = inner.backend.last_revision().await.map_err(|error| chain(&error))?;
    let current = inner.state.read().current;
    let end = batch.records.last().map(Record::revision);
    if let Some(end) = end
        && last != current
        && last != end
    {
        // Somebody else writes to this backend: nothing that this store could decide.
        return Err(format!("the backend is at revision {last}, this store expected {current} or {end}"));
    }
    let applied = match end {
        Some(end) => last == end && current < end,
        // Only leases: granting or revoking once more does no harm, so append again.
        None => inner.backend.append(batch.clone()).await.map(|()| true).map_err(|error| chain(&error))?,
    };
    if applied {
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

fn publish(inner: &Arc<Inner>, events: &[Arc<Event>], lease_changes: &[LeaseChange]) {
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
            events.iter().for_each(|event| hub.dispatch(event, inner.options.watcher_events_max));
        }
        inner.set_published(last.revision());
    }
}

struct Prepared {
    batch: Batch,
    events: Vec<Arc<Event>>,
    ready: Vec<(Ready, OwnedSemaphorePermit)>,
}

/// The state as it will be after the writes of a batch so far.
struct Ahead<'a> {
    inner: &'a Inner,
    current: Revision,
    keys: HashMap<Bytes, Option<KeyValue>>,
    leases: HashMap<i64, bool>,
    batch: Batch,
    events: Vec<Arc<Event>>,
}

fn prepare(inner: &Inner, commands: Vec<Pending>) -> Prepared {
    let mut ahead = Ahead {
        inner,
        current: inner.state.read().current,
        keys: HashMap::new(),
        leases: HashMap::new(),
        batch: Batch::default(),
        events: Vec::new(),
    };
    let ready = commands
        .into_iter()
        .map(|pending| {
            let ready = match pending.command {
                Command::Txn { key, expect, op, answer } => Ready::Txn(answer, ahead.txn(key, expect, op)),
                Command::Grant { lease, answer } => Ready::Lease(answer, ahead.grant(lease)),
                Command::Revoke { id, answer } => Ready::Lease(answer, ahead.revoke(id)),
            };
            (ready, pending.permit)
        })
        .collect();
    Prepared { batch: ahead.batch, events: ahead.events, ready }
}

impl Ahead<'_> {
    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        match self.keys.get(key) {
            Some(kv) => kv.clone(),
            None => self.inner.state.read().live.get(key).cloned(),
        }
    }

    fn has_lease(&self, id: i64) -> bool {
        self.leases.get(&id).copied().unwrap_or_else(|| self.inner.leases.lock().by_id.contains_key(&id))
    }

    fn txn(&mut self, key: Bytes, expect: Expect, op: Op) -> Result<Committed, WriteError> {
        let prev = self.get(&key);
        let as_expected = match expect {
            Expect::Any => true,
            Expect::Absent => prev.is_none(),
            Expect::ModRevision(revision) => prev.as_ref().is_some_and(|kv| kv.mod_revision == revision),
        };
        if !as_expected {
            return Err(WriteError::Conflict { current: prev });
        }
        match op {
            Op::Put { value, lease } => {
                if lease != 0 && !self.has_lease(lease) {
                    return Err(WriteError::LeaseNotFound { lease });
                }
                Ok(self.put(key, value, lease, prev))
            }
            Op::Delete => Ok(match prev {
                Some(prev) => self.delete(prev),
                None => Committed { revision: self.current, prev: None },
            }),
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: i64, prev: Option<KeyValue>) -> Committed {
        let revision = self.current + 1;
        let (create_revision, version) = prev.as_ref().map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv = KeyValue { key, value, create_revision, mod_revision: revision, version, lease };
        let prev_revision = prev.as_ref().map_or(0, |kv| kv.mod_revision);
        self.record(Record { kv, deleted: false, prev_revision }, prev)
    }

    fn delete(&mut self, prev: KeyValue) -> Committed {
        let kv = KeyValue {
            key: prev.key.clone(),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: self.current + 1,
            version: 0,
            lease: 0,
        };
        let prev_revision = prev.mod_revision;
        self.record(Record { kv, deleted: true, prev_revision }, Some(prev))
    }

    fn record(&mut self, record: Record, prev: Option<KeyValue>) -> Committed {
        self.current = record.revision();
        self.keys.insert(record.kv.key.clone(), (!record.deleted).then(|| record.kv.clone()));
        self.events.push(Arc::new(record.event(prev.clone())));
        self.batch.records.push(record);
        Committed { revision: self.current, prev }
    }

    fn grant(&mut self, lease: LeaseRecord) -> Result<(), WriteError> {
        if self.has_lease(lease.id) {
            return Err(WriteError::LeaseExists { lease: lease.id });
        }
        self.leases.insert(lease.id, true);
        self.batch.leases.push(LeaseChange::Grant(lease));
        Ok(())
    }

    fn revoke(&mut self, id: i64) -> Result<(), WriteError> {
        if !self.has_lease(id) {
            return Err(WriteError::LeaseNotFound { lease: id });
        }
        let attached: Vec<Bytes> =
            self.inner.leases.lock().by_id.get(&id).map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect());
        let written = self.keys.values().flatten().filter(|kv| kv.lease == id).map(|kv| kv.key.clone());
        let keys: std::collections::BTreeSet<Bytes> = written.chain(attached).collect();
        for key in keys {
            if let Some(kv) = self.get(&key).filter(|kv| kv.lease == id) {
                self.delete(kv);
            }
        }
        self.leases.insert(id, false);
        self.batch.leases.push(LeaseChange::Revoke { id });
        Ok(())
    }
}
