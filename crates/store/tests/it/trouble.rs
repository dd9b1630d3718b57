//! A backend in trouble: the store answers what it knows, repeats nothing and goes on when the backend does.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use store::contract::events_through;
use store::{
    AppendError, Backend, BackendError, Batch, Event, Expect, Followed, HistoryError, HistoryRange, KeyRange, Memory,
    Op, OpenError, Options, RangeRequest, Revision, Snapshot, Store, WatchError, WriteError, prefix_end,
};

/// What goes wrong with the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Full,
    NotApplied,
    /// Written, but the answer is lost.
    LostAfter,
    /// Not written, and nobody knows.
    LostBefore,
    /// As `LostAfter`, and the backend cannot be asked either.
    LostAndSilent,
    History,
}

struct Troubled {
    memory: Memory,
    fault: Arc<Mutex<Fault>>,
    shared: bool,
}

fn broken() -> BackendError {
    BackendError::new("reach the disk", "injected error")
}

#[async_trait]
impl Backend for Troubled {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        self.memory.load().await
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        self.memory.seed(snapshot).await
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let fault = *self.fault.lock();
        match fault {
            Fault::None | Fault::History => self.memory.append(batch).await,
            Fault::Full => Err(AppendError::Full),
            Fault::NotApplied => Err(AppendError::NotApplied(broken())),
            Fault::LostBefore => Err(AppendError::Unknown(broken())),
            Fault::LostAfter | Fault::LostAndSilent => {
                self.memory.append(batch).await?;
                Err(AppendError::Unknown(broken()))
            }
        }
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        if *self.fault.lock() == Fault::LostAndSilent {
            return Err(broken());
        }
        self.memory.last_revision().await
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count: bool,
    ) -> Result<HistoryRange, HistoryError> {
        if *self.fault.lock() == Fault::History {
            return Err(broken().into());
        }
        self.memory.range(range, at, limit, count).await
    }

    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        if *self.fault.lock() == Fault::History {
            return Err(broken().into());
        }
        self.memory.events(range, after, through, limit).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        self.memory.compact(revision).await
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        self.memory.maintain().await
    }

    async fn close(&self) {}

    fn is_shared(&self) -> bool {
        self.shared
    }

    async fn follow(&self, after: Revision) -> Result<Followed, HistoryError> {
        let revision = self.memory.last_revision().await?;
        let all = KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        let events = self.memory.events(&all, after, revision, 1000).await?;
        Ok(Followed { events, revision, ..Followed::default() })
    }
}

async fn troubled(options: Options) -> (Store, Arc<Mutex<Fault>>) {
    troubled_backend(options, false).await
}

async fn troubled_backend(options: Options, shared: bool) -> (Store, Arc<Mutex<Fault>>) {
    let fault = Arc::new(Mutex::new(Fault::None));
    let backend = Troubled { memory: Memory::new(), fault: fault.clone(), shared };
    (Store::open(Arc::new(backend), options).await.expect("opens"), fault)
}

async fn put(store: &Store, key: &'static str, value: &'static str) -> Result<Revision, WriteError> {
    let op = Op::Put { value: Bytes::from_static(value.as_bytes()), lease: 0 };
    store.txn(Bytes::from_static(key.as_bytes()), Expect::Any, op).await.map(|committed| committed.revision)
}

#[tokio::test]
async fn each_fault_has_its_answer_and_the_next_write_succeeds() {
    // (fault, the answer while it lasts, the revision of the next write)
    type Check = fn(&Result<Revision, WriteError>) -> bool;
    let table: [(Fault, Check, Revision); 5] = [
        (Fault::Full, |answer| matches!(answer, Err(WriteError::Full)), 3),
        (Fault::NotApplied, |answer| matches!(answer, Err(WriteError::Unavailable { .. })), 3),
        (Fault::LostBefore, |answer| matches!(answer, Err(WriteError::Unavailable { .. })), 3),
        (Fault::LostAfter, |answer| matches!(answer, Ok(3)), 4),
        (Fault::LostAndSilent, |answer| matches!(answer, Err(WriteError::Unavailable { .. })), 4),
    ];
    for (fault, expected, next) in table {
        let (store, switch) = troubled(Options::default()).await;
        let mut watcher =
            store.watch(Bytes::from_static(b"/"), prefix_end(b"/"), 0, true).await.expect("the watch begins");
        assert_eq!(put(&store, "/a", "1").await.expect("no fault yet"), 2);
        *switch.lock() = fault;
        let answer = put(&store, "/a", "2").await;
        assert!(expected(&answer), "{fault:?}: {answer:?}");
        if fault == Fault::LostAndSilent {
            assert!(put(&store, "/a", "3").await.is_err(), "{fault:?}: no write before the last one's fate is known");
        }
        let seen = store.get(b"/a", 0).await.expect("readable").expect("there");
        let visible: &[u8] = if fault == Fault::LostAfter { b"2" } else { b"1" };
        assert_eq!(seen.value, visible, "{fault:?}: only what is known to be durable is seen");
        *switch.lock() = Fault::None;
        assert_eq!(put(&store, "/b", "1").await.expect("the fault is over"), next, "{fault:?}");
        let revisions: Vec<Revision> =
            events_through(&mut watcher, next).await.iter().map(|event| event.revision()).collect();
        assert_eq!(revisions, (2..=next).collect::<Vec<_>>(), "{fault:?}: the watch has each revision once");
        let now = store.get(b"/a", 0).await.expect("readable").expect("there");
        let durable: &[u8] = if next == 4 { b"2" } else { b"1" };
        assert_eq!(now.value, durable, "{fault:?}");
    }
}

/// Requests read before they write: a write whose fate nobody knows must not wait for the next one.
#[tokio::test]
async fn a_read_that_must_be_new_finds_out_what_became_of_the_last_write() {
    for (fault, revision, value) in [(Fault::LostAndSilent, 3, b"2"), (Fault::LostBefore, 2, b"1")] {
        let (store, switch) = troubled_backend(Options::default(), true).await;
        let mut watcher =
            store.watch(Bytes::from_static(b"/"), prefix_end(b"/"), 0, true).await.expect("the watch begins");
        assert_eq!(put(&store, "/a", "1").await.expect("no fault yet"), 2);
        *switch.lock() = fault;
        assert!(put(&store, "/a", "2").await.is_err(), "{fault:?}");
        *switch.lock() = Fault::None;
        assert_eq!(store.synchronize().await.expect("the backend is there again"), revision, "{fault:?}");
        let seen = store.get(b"/a", 0).await.expect("readable").expect("there");
        assert_eq!(seen.value, &value[..], "{fault:?}");
        assert_eq!(events_through(&mut watcher, revision).await.len() as u64, revision - 1, "{fault:?}");
        assert_eq!(put(&store, "/a", "3").await.expect("the fault is over"), revision + 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_watch_that_cannot_read_the_history_says_where_to_resume() {
    let (store, switch) = troubled(Options { recent_events_max: 0, ..Options::default() }).await;
    for value in ["1", "2", "3"] {
        put(&store, "/a", value).await.expect("written");
    }
    *switch.lock() = Fault::History;
    let mut watcher = store.watch(Bytes::from_static(b"/"), prefix_end(b"/"), 2, true).await.expect("the watch begins");
    let Some(Err(WatchError::Unavailable { resume_from, .. })) = watcher.next().await else {
        panic!("the history is broken")
    };
    assert_eq!(resume_from, 2);
    let current = store.range(RangeRequest::prefix("/")).await.expect("the newest revision needs no history");
    assert_eq!(current.count, 1);
    *switch.lock() = Fault::None;
    let mut watcher =
        store.watch(Bytes::from_static(b"/"), prefix_end(b"/"), resume_from, true).await.expect("the watch begins");
    assert_eq!(events_through(&mut watcher, 4).await.len(), 2);
}

#[tokio::test]
async fn a_writer_lost_with_its_runtime_is_replaced() {
    let (store, _) = troubled(Options::default()).await;
    let other = store.clone();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let write = put(&other, "/a", "1");
            tokio::pin!(write);
            // Polled once: queued, and a writer started that never gets to run.
            let waker = std::task::Waker::noop();
            assert!(write.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        });
    });
    runtime.join().expect("no panic");
    let revision = put(&store, "/b", "1").await.expect("another writer is started");
    assert!(revision == 2 || revision == 3);
}
