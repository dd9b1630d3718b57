//! The store: one handle for reading, writing, watching, compacting and leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::backend::Backend;
use crate::direct;
use crate::error::{CompactError, HistoryError, OpenError, ReadError, WatchError, WriteError};
use crate::follow;
use crate::hub::Hub;
use crate::lease::{self, Leases};
use crate::memory::Memory;
use crate::options::Options;
use crate::state::State;
use crate::synchronize::{self, Waiting};
use crate::transaction::Transaction;
use crate::types::{
    Committed, Expect, KeyRange, KeyValue, LeaseRecord, Op, RangeRequest, RangeResponse, Revision, Snapshot,
};
use crate::watch::Watcher;
use crate::writer::{self, Pending, Task, WriteQueue};

/// A store. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub backend: Arc<dyn Backend>,
    pub options: Options,
    pub state: RwLock<State>,
    pub hub: Mutex<Hub>,
    pub queue: Mutex<WriteQueue>,
    pub leases: Mutex<Leases>,
    pub lease_granted: Arc<Notify>,
    /// Told whenever the writer has nothing left to do.
    pub drained: Notify,
    /// Held while events are taken over, by the writer or by the follower.
    pub applying: tokio::sync::Mutex<()>,
    /// Reads that wait for the newest state.
    pub synchronizing: Mutex<Waiting>,
    /// Told whenever the newest revision has grown.
    pub applied: Notify,
    /// Told once, when the store is closed.
    pub closing: Arc<Notify>,
    room: Arc<Semaphore>,
    current: AtomicU64,
    published: AtomicU64,
    closed: AtomicBool,
    compacting: tokio::sync::Mutex<()>,
    maintaining: AtomicBool,
    maintenance_wanted: AtomicBool,
    compactor: AtomicBool,
    /// An early compaction is under way.
    shedding: AtomicBool,
}

impl Inner {
    pub fn set_current(&self, revision: Revision) {
        self.current.store(revision, Ordering::Release);
    }

    /// The newest revision whose events are in the queues of all watchers.
    pub fn published(&self) -> Revision {
        self.published.load(Ordering::Acquire)
    }

    pub fn set_published(&self, revision: Revision) {
        self.published.store(revision, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Starts the task that compacts from time to time, if it is wanted and not there yet. It ends when there is nothing
    /// left to compact, so that an idle store has no task.
    pub fn start_compactor(self: &Arc<Self>) {
        let Some(interval) = self.options.compaction_interval else { return };
        if self.compactor.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut before = None;
            loop {
                tokio::time::sleep(interval).await;
                let Some(inner) = weak.upgrade().filter(|inner| !inner.is_closed()) else { return };
                let store = Store { inner };
                let current = store.current_revision();
                if let Some(revision) = before
                    && revision > store.compact_revision()
                    && let Err(error) = store.compact(revision).await
                {
                    tracing::warn!(
                        revision,
                        error = &error as &dyn std::error::Error,
                        "compaction failed, will try again"
                    );
                }
                if store.compact_revision() == current {
                    store.inner.compactor.store(false, Ordering::Release);
                    // A write in between found this task still there.
                    if store.current_revision() == current || store.inner.compactor.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
                before = Some(current);
            }
        });
    }

    /// Compacts before its time, because the history has grown too large.
    pub fn compact_early(self: &Arc<Self>, revision: Revision) {
        if self.shedding.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Store { inner: self.clone() };
        tokio::spawn(async move {
            match store.compact(revision).await {
                // The timer was faster.
                Ok(()) | Err(CompactError::Compacted { .. }) => {}
                Err(error) => {
                    tracing::warn!(
                        revision,
                        error = &error as &dyn std::error::Error,
                        "compaction failed, will try again"
                    );
                }
            }
            store.inner.shedding.store(false, Ordering::Release);
        });
    }

    fn start_maintenance(self: &Arc<Self>) {
        self.maintenance_wanted.store(true, Ordering::Release);
        if self.maintaining.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                inner.maintenance_wanted.store(false, Ordering::Release);
                match inner.backend.maintain().await {
                    Ok(true) if !inner.is_closed() => {}
                    outcome => {
                        if let Err(error) = outcome {
                            tracing::warn!(error = &error as &dyn std::error::Error, "maintenance stopped");
                        }
                        inner.maintaining.store(false, Ordering::Release);
                        // Asked for in between by somebody who found this task still there.
                        let again = !inner.is_closed() && inner.maintenance_wanted.load(Ordering::Acquire);
                        if !again || inner.maintaining.swap(true, Ordering::AcqRel) {
                            return;
                        }
                    }
                }
                drop(inner);
                tokio::task::yield_now().await;
            }
        });
    }
}

impl Store {
    /// Opens a store on a backend, with what the backend holds.
    pub async fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Store, OpenError> {
        let snapshot = backend.load().await?;
        let mut leases = Leases::default();
        leases.replace(&snapshot);
        let live: BTreeMap<Bytes, KeyValue> = snapshot.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let inner = Arc::new(Inner {
            backend,
            room: Arc::new(Semaphore::new(options.queue_max.clamp(1, Semaphore::MAX_PERMITS))),
            options,
            state: RwLock::new(State::new(live, snapshot.revision, snapshot.compact_revision)),
            hub: Mutex::default(),
            queue: Mutex::default(),
            leases: Mutex::new(leases),
            lease_granted: Arc::new(Notify::new()),
            drained: Notify::new(),
            applying: tokio::sync::Mutex::new(()),
            synchronizing: Mutex::default(),
            applied: Notify::new(),
            closing: Arc::new(Notify::new()),
            current: AtomicU64::new(snapshot.revision),
            published: AtomicU64::new(snapshot.revision),
            closed: AtomicBool::new(false),
            compacting: tokio::sync::Mutex::new(()),
            maintaining: AtomicBool::new(false),
            maintenance_wanted: AtomicBool::new(false),
            compactor: AtomicBool::new(false),
            shedding: AtomicBool::new(false),
        });
        lease::ensure_timer(&inner);
        if snapshot.compact_revision > 0 {
            // A compaction may have been cut short.
            inner.start_maintenance();
        }
        if snapshot.compact_revision < snapshot.revision && snapshot.revision > crate::FIRST_REVISION {
            inner.start_compactor();
        }
        if inner.backend.is_shared() {
            follow::start(&inner);
        }
        Ok(Store { inner })
    }

    /// Opens a store on an empty backend and fills it with a snapshot. Keys keep their revisions.
    pub async fn open_from(
        snapshot: &Snapshot,
        backend: Arc<dyn Backend>,
        options: Options,
    ) -> Result<Store, OpenError> {
        let found = backend.load().await?;
        if found.revision != crate::FIRST_REVISION || !found.kvs.is_empty() {
            return Err(OpenError::NotEmpty { revision: found.revision });
        }
        backend.seed(snapshot).await?;
        Store::open(backend, options).await
    }

    /// A new store that lives in memory only.
    pub async fn in_memory(options: Options) -> Store {
        match Store::open(Arc::new(Memory::new()), options).await {
            Ok(store) => store,
            Err(error) => unreachable!("an empty memory backend always loads: {error}"),
        }
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Store {
        Store { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The newest revision.
    pub fn current_revision(&self) -> Revision {
        self.inner.current.load(Ordering::Acquire)
    }

    /// The oldest revision that can be read, and watched from.
    pub fn compact_revision(&self) -> Revision {
        self.inner.state.read().compact
    }

    /// One key, at a revision or (0) the newest.
    pub async fn get(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>, ReadError> {
        if at == 0 {
            return Ok(self.inner.state.read().live.get(key).cloned());
        }
        let request = RangeRequest { start: Bytes::copy_from_slice(key), revision: at, ..RangeRequest::default() };
        Ok(self.range(request).await?.kvs.pop())
    }

    /// The keys of a range, in order. The newest and recent revisions are answered from memory.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ReadError> {
        let range = KeyRange::new(request.start.clone(), request.end.clone());
        if request.revision > self.current_revision() {
            // Another replica may have told of it.
            self.synchronize().await?;
        }
        let at = {
            let state = self.inner.state.read();
            let at = if request.revision == 0 { state.current } else { request.revision };
            if at > state.current {
                return Err(ReadError::FutureRevision { requested: at, current: state.current });
            }
            if at < state.compact {
                return Err(ReadError::Compacted { requested: at, compact_revision: state.compact });
            }
            if let Some(answer) = state.range(&range, &request, at) {
                return Ok(answer);
            }
            at
        };
        match self.inner.backend.range(&range, at, request.limit, request.count_only).await {
            Ok(mut history) => {
                if request.keys_only {
                    history.kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
                }
                let more = !request.count_only && (history.kvs.len() as u64) < history.count;
                Ok(RangeResponse { kvs: history.kvs, more, count: history.count, revision: at })
            }
            Err(HistoryError::Compacted { compact_revision }) => {
                Err(ReadError::Compacted { requested: at, compact_revision })
            }
            Err(HistoryError::Backend(error)) => Err(ReadError::Unavailable(error)),
        }
    }

    /// Writes one key if it is as expected. Answers when the write is durable and everybody can read it.
    ///
    /// The write goes on when the future is dropped.
    pub async fn txn(&self, key: Bytes, expect: Expect, op: Op) -> Result<Committed, WriteError> {
        self.check_key(&key)?;
        let key = Bytes::copy_from_slice(&key);
        let mut size_bytes = 0;
        let op = match op {
            Op::Put { value, lease } => {
                self.check_value(&value)?;
                size_bytes = value.len();
                // A copy of exactly this size: what comes in is often a slice of a larger buffer, which would stay alive with it.
                Op::Put { value: Bytes::copy_from_slice(&value), lease }
            }
            Op::Delete => Op::Delete,
        };
        let work = move |transaction: &mut Transaction<'_>| transaction.write(&key, expect, &op);
        let (revision, committed) = self.run(size_bytes, work).await?;
        Ok(Committed { revision, ..committed })
    }

    /// Runs a transaction: reads, and writes that share one revision. It may run several times, on newer states, until one
    /// run is committed; only that one is answered. Returns the revision of its writes, or the newest one when there are none.
    ///
    /// Keys and values have to be checked with [`Store::check_key`] and [`Store::check_value`] before.
    pub async fn transact<R: Send + 'static>(
        &self,
        size_bytes: usize,
        work: impl FnMut(&mut Transaction<'_>) -> Result<R, WriteError> + Send + 'static,
    ) -> Result<(Revision, R), WriteError> {
        self.run(size_bytes, work).await
    }

    /// Whether this may be a key.
    pub fn check_key(&self, key: &[u8]) -> Result<(), WriteError> {
        let limit = self.inner.backend.key_bytes_max().min(self.inner.options.value_bytes_max);
        if key.is_empty() {
            return Err(WriteError::EmptyKey);
        }
        if key.len() > limit {
            return Err(WriteError::TooLarge { what: "key", size_bytes: key.len(), size_bytes_max: limit });
        }
        Ok(())
    }

    /// Whether this may be a value.
    pub fn check_value(&self, value: &[u8]) -> Result<(), WriteError> {
        let limit = self.inner.options.value_bytes_max;
        if value.len() > limit {
            return Err(WriteError::TooLarge { what: "value", size_bytes: value.len(), size_bytes_max: limit });
        }
        Ok(())
    }

    /// Runs a transaction, and waits no longer than is allowed: what was begun goes on, and its fate stays open.
    async fn run<R: Send + 'static>(
        &self,
        size_bytes: usize,
        work: impl FnMut(&mut Transaction<'_>) -> Result<R, WriteError> + Send + 'static,
    ) -> Result<(Revision, R), WriteError> {
        let answer = self.run_until_answered(size_bytes, work);
        if !self.inner.backend.is_shared() {
            return answer.await;
        }
        let late = |_| WriteError::Unavailable { why: "there was no answer in time".to_string() };
        tokio::time::timeout(self.inner.options.answer_max, answer).await.map_err(late)?
    }

    async fn run_until_answered<R: Send + 'static>(
        &self,
        size_bytes: usize,
        work: impl FnMut(&mut Transaction<'_>) -> Result<R, WriteError> + Send + 'static,
    ) -> Result<(Revision, R), WriteError> {
        let closed = || WriteError::Unavailable { why: "the store is closed".to_string() };
        let permit = self.inner.room.clone().acquire_owned().await.map_err(|_| closed())?;
        if self.inner.backend.direct().is_some() {
            // In a task of its own: the write goes on when the caller has gone away.
            let inner = self.inner.clone();
            let running = tokio::spawn(async move {
                let _permit = permit;
                direct::run(&inner, work).await
            });
            return running.await.map_err(|_| WriteError::Unavailable { why: "the writer was stopped".to_string() })?;
        }
        let (answer, answered) = oneshot::channel();
        let work = Box::new(Task { work, result: None, answer });
        writer::enqueue(&self.inner, Pending { work, size_bytes, permit });
        answered.await.map_err(|_| WriteError::Unavailable { why: "the writer was stopped".to_string() })?
    }

    /// Waits until this store has seen what others had written to the same backend when this was called. Costs nothing
    /// where nobody else writes; calls at the same time share one question to the backend.
    pub async fn synchronize(&self) -> Result<Revision, ReadError> {
        if !self.inner.backend.is_shared() || self.inner.is_closed() {
            return Ok(self.current_revision());
        }
        synchronize::synchronize(&self.inner).await
    }

    /// Watches a range (notation of [`RangeRequest::end`]): every event with a revision **after** `from_revision`, so that a
    /// read at revision `r` is continued by a watch from `r`. 0 is from now on. A revision in the future is waited for.
    ///
    /// Without `prev` the state before each write may be missing in the events.
    pub async fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from_revision: Revision,
        prev: bool,
    ) -> Result<Watcher, WatchError> {
        // Events carry the state before for free; the parameter keeps the right to leave it out.
        let _ = prev;
        if self.inner.is_closed() {
            return Err(WatchError::Closed);
        }
        let range = KeyRange::new(Bytes::copy_from_slice(&start), Bytes::copy_from_slice(&end));
        let mut hub = self.inner.hub.lock();
        // Under the hub's lock: a write applied after this is dispatched after this, and one dispatched before was applied before.
        let (current, compact) = {
            let state = self.inner.state.read();
            (state.current, state.compact)
        };
        let from = if from_revision == 0 { current } else { from_revision };
        if from < compact {
            return Err(WatchError::Compacted { requested: from, compact_revision: compact });
        }
        let subscriber = hub.subscribe(range, from, from < current);
        drop(hub);
        Ok(Watcher::new(self.inner.clone(), subscriber, from))
    }

    /// Forbids reads below a revision and frees, in the background, what only they could see.
    pub async fn compact(&self, revision: Revision) -> Result<(), CompactError> {
        let _one_at_a_time = self.inner.compacting.lock().await;
        {
            let state = self.inner.state.read();
            if revision <= state.compact {
                return Err(CompactError::Compacted { requested: revision, compact_revision: state.compact });
            }
            if revision > state.current {
                return Err(CompactError::FutureRevision { requested: revision, current: state.current });
            }
        }
        self.inner.backend.compact(revision).await?;
        {
            let mut state = self.inner.state.write();
            state.compact = state.compact.max(revision);
            state.forget_compacted();
            let compact = state.compact;
            state.history.forget(compact);
        }
        self.inner.start_maintenance();
        Ok(())
    }

    /// Grants a lease; `id` 0 chooses one.
    pub async fn lease_grant(&self, id: i64, ttl_seconds: i64) -> Result<LeaseRecord, WriteError> {
        let id = if id == 0 { (rand::random::<u64>() >> 1).max(1) as i64 } else { id };
        let lease = LeaseRecord { id, ttl_seconds: ttl_seconds.max(1) };
        if let Some(direct) = self.inner.backend.direct() {
            let granted = direct.grant(lease).await?;
            self.inner.leases.lock().grant(granted);
            return Ok(granted);
        }
        self.run(0, move |transaction| transaction.grant(lease)).await?;
        Ok(lease)
    }

    /// Ends a lease and deletes the keys attached to it. Returns the revision of the deletes.
    pub async fn lease_revoke(&self, id: i64) -> Result<Revision, WriteError> {
        if let Some(direct) = self.inner.backend.direct() {
            let revision = direct.revoke(id).await?;
            direct::wait_for(&self.inner, revision).await?;
            self.inner.leases.lock().by_id.remove(&id);
            return Ok(revision);
        }
        Ok(self.run(0, move |transaction| transaction.revoke(id)).await?.0)
    }

    /// Gives a lease its whole time again; returns that time in seconds, or none if there is no such lease.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<Option<i64>, ReadError> {
        if let Some(direct) = self.inner.backend.direct() {
            return direct.keep_alive(id).await.map_err(ReadError::Unavailable);
        }
        let ttl_seconds = self.inner.leases.lock().keep_alive(id);
        if ttl_seconds.is_some() && self.inner.backend.is_shared() {
            self.inner.backend.renew(id).await.map_err(ReadError::Unavailable)?;
        }
        Ok(ttl_seconds)
    }

    /// The lease, its remaining time in seconds, and the keys attached to it.
    pub async fn lease_time_to_live(&self, id: i64) -> Result<Option<(LeaseRecord, i64, Vec<Bytes>)>, ReadError> {
        if let Some(direct) = self.inner.backend.direct() {
            let found = direct.time_to_live(id).await.map_err(ReadError::Unavailable)?;
            if found.is_none() {
                self.inner.leases.lock().by_id.remove(&id);
            }
            return Ok(found);
        }
        let leases = self.inner.leases.lock();
        let Some(lease) = leases.by_id.get(&id) else { return Ok(None) };
        let left = lease.deadline.saturating_duration_since(tokio::time::Instant::now()).as_secs();
        let record = LeaseRecord { id, ttl_seconds: lease.ttl_seconds };
        Ok(Some((record, i64::try_from(left).unwrap_or(i64::MAX), lease.keys.iter().cloned().collect())))
    }

    /// The leases there are.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        let leases = self.inner.leases.lock();
        leases.by_id.iter().map(|(id, lease)| LeaseRecord { id: *id, ttl_seconds: lease.ttl_seconds }).collect()
    }

    /// The size of all live keys and values.
    pub fn live_bytes(&self) -> u64 {
        self.inner.state.read().live.values().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum()
    }

    /// Everything live, at one revision. Values are shared, not copied.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.inner.state.read();
        let leases = self.leases();
        Snapshot {
            revision: state.current,
            compact_revision: state.compact,
            kvs: state.live.values().cloned().collect(),
            leases,
        }
    }

    /// A new store in memory that starts with what this one holds now, and goes its own way.
    pub async fn fork(&self) -> Result<Store, OpenError> {
        Store::open_from(&self.snapshot(), Arc::new(Memory::new()), self.inner.options.clone()).await
    }

    /// Ends all watches, refuses further writes, waits for those under way and lets go of files. Reads from memory go on.
    pub async fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.room.close();
        loop {
            let drained = self.inner.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.inner.queue.lock().is_idle() {
                break;
            }
            writer::resume(&self.inner);
            drained.await;
        }
        self.inner.closing.notify_waiters();
        self.inner.closing.notify_one();
        self.inner.hub.lock().close();
        self.inner.backend.close().await;
    }
}
