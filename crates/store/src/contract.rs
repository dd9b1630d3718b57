//! What every backend has to do, as tests: plain asynchronous functions that panic when it does not.
//!
//! A backend's own tests give a [`Place`], an empty spot where the backend keeps its data, and run every case of [`cases`]
//! on a fresh one. Each case opens stores on the backend, with and without recent events in memory, so that answers from
//! memory and from the backend's history are held against each other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Backend, CompactError, Event, EventKind, Expect, KeyValue, Op, Options, RangeRequest, ReadError, Revision, Store,
    WatchError, Watcher, WriteError, prefix_end,
};

/// Where a backend keeps its data.
#[async_trait]
pub trait Place: Send + Sync {
    /// The backend on this place. Called again after the one before was closed; the data is still there then.
    async fn open(&self) -> Arc<dyn Backend>;

    /// Whether keys of a snapshot keep their revisions; if not they get new ones above the snapshot's.
    fn keeps_revisions(&self) -> bool {
        true
    }
}

type Case = fn(Arc<dyn Place>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Every case with its name.
        pub fn cases() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), |place| Box::pin($name(place)))),*]
        }
    };
}

cases!(
    an_empty_store_is_at_revision_one,
    writes_count_up_revisions_and_versions,
    a_write_that_expects_something_else_changes_nothing,
    deleting_an_absent_key_writes_nothing,
    ranges_have_limits_counts_and_ends,
    old_revisions_read_as_they_were,
    compacted_and_future_revisions_are_refused,
    compaction_keeps_what_may_still_be_read,
    a_watch_continues_a_read_without_a_gap,
    a_watch_sees_its_range_only,
    a_slow_watcher_misses_nothing_and_holds_nobody_up,
    a_watcher_behind_the_compaction_hears_so,
    a_watch_from_the_future_waits,
    progress_follows_writes_elsewhere,
    concurrent_writers_lose_no_write,
    everything_is_there_after_reopening,
    a_compacted_delete_gives_no_revision_back,
    leases_take_their_keys_with_them,
    leases_run_out,
    a_seeded_backend_starts_where_the_snapshot_was,
    a_closed_store_ends_its_watches,
    a_transaction_is_one_revision,
    any_bytes_are_a_key_and_a_value,
);

/// Longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

fn with_memory() -> Options {
    Options { compaction_interval: None, ..Options::default() }
}

/// Every read of the past and every late watcher has to go to the backend.
fn without_memory() -> Options {
    Options { recent_events_max: 0, watcher_events_max: 4, compaction_interval: None, ..Options::default() }
}

async fn open(place: &Arc<dyn Place>, options: Options) -> Store {
    Store::open(place.open().await, options).await.expect("the backend opens")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &Store, key: &str, value: &str) -> Revision {
    let op = Op::Put { value: bytes(value), lease: 0 };
    store.txn(bytes(key), Expect::Any, op).await.expect("a put without expectation succeeds").revision
}

async fn delete(store: &Store, key: &str) -> Revision {
    store.txn(bytes(key), Expect::Any, Op::Delete).await.expect("a delete without expectation succeeds").revision
}

async fn pairs(store: &Store, prefix: &str, revision: Revision) -> Vec<(String, String)> {
    let request = RangeRequest { revision, ..RangeRequest::prefix(bytes(prefix)) };
    let answer = store.range(request).await.expect("the revision can be read");
    assert_eq!(answer.count, answer.kvs.len() as u64);
    answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_string(), value.to_string())
}

async fn watch(store: &Store, prefix: &str, from: Revision) -> Watcher {
    store.watch(bytes(prefix), prefix_end(prefix.as_bytes()), from, true).await.expect("the watch begins")
}

/// Collects events until `through`, checking that they come in order.
pub async fn events_through(watcher: &mut Watcher, through: Revision) -> Vec<Arc<Event>> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    while events.last().is_none_or(|event| event.revision() < through) {
        let next = tokio::time::timeout(DEADLINE, watcher.next()).await.expect("an event comes in time");
        let batch = next.expect("the watch goes on").expect("the watch does not fail");
        for event in batch.events {
            assert!(events.last().is_none_or(|last| last.revision() < event.revision()), "events come in order, once");
            assert!(event.revision() <= batch.revision);
            events.push(event);
        }
    }
    events
}

async fn an_empty_store_is_at_revision_one(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    assert_eq!((store.current_revision(), store.compact_revision()), (1, 0));
    assert_eq!(store.get(b"/a", 0).await.expect("readable"), None);
    let answer = store.range(RangeRequest::prefix("/")).await.expect("readable");
    assert_eq!((answer.kvs.len(), answer.count, answer.more, answer.revision), (0, 0, false, 1));
    store.close().await;
    let store = open(&place, with_memory()).await;
    assert_eq!((store.current_revision(), store.compact_revision()), (1, 0));
}

async fn writes_count_up_revisions_and_versions(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    assert_eq!(put(&store, "/a", "1").await, 2);
    assert_eq!(put(&store, "/b", "1").await, 3);
    assert_eq!(put(&store, "/a", "2").await, 4);
    let kv = store.get(b"/a", 0).await.expect("readable").expect("there");
    let expected =
        KeyValue { key: bytes("/a"), value: bytes("2"), create_revision: 2, mod_revision: 4, version: 2, lease: 0 };
    assert_eq!(kv, expected);
    assert_eq!(delete(&store, "/a").await, 5);
    assert_eq!(store.get(b"/a", 0).await.expect("readable"), None);
    assert_eq!(put(&store, "/a", "3").await, 6);
    let kv = store.get(b"/a", 0).await.expect("readable").expect("there again");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (6, 6, 1), "a new life after a delete");
}

async fn a_write_that_expects_something_else_changes_nothing(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    put(&store, "/a", "1").await;
    let value = || Op::Put { value: bytes("x"), lease: 0 };
    for (expect, op) in [
        (Expect::Absent, value()),
        (Expect::ModRevision(1), value()),
        (Expect::ModRevision(3), Op::Delete),
        (Expect::Absent, Op::Delete),
    ] {
        match store.txn(bytes("/a"), expect, op).await {
            Err(WriteError::Conflict { current: Some(kv) }) => {
                assert_eq!((kv.mod_revision, text(&kv.value).as_str()), (2, "1"))
            }
            other => panic!("{expect:?} is not met, but the answer was {other:?}"),
        }
    }
    let absent = store.txn(bytes("/b"), Expect::ModRevision(2), value()).await;
    assert!(matches!(absent, Err(WriteError::Conflict { current: None })), "{absent:?}");
    assert_eq!(store.current_revision(), 2);
    let committed = store.txn(bytes("/a"), Expect::ModRevision(2), value()).await.expect("as expected");
    assert_eq!((committed.revision, committed.prev.map(|kv| kv.mod_revision)), (3, Some(2)));
    let committed = store.txn(bytes("/a"), Expect::ModRevision(3), Op::Delete).await.expect("as expected");
    assert_eq!((committed.revision, committed.prev.map(|kv| kv.mod_revision)), (4, Some(3)));
    store.txn(bytes("/a"), Expect::Absent, value()).await.expect("absent after the delete");
}

async fn deleting_an_absent_key_writes_nothing(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    put(&store, "/a", "1").await;
    let committed = store.txn(bytes("/b"), Expect::Any, Op::Delete).await.expect("nothing to do");
    assert_eq!((committed.revision, committed.prev), (2, None));
    assert_eq!(store.current_revision(), 2);
}

async fn ranges_have_limits_counts_and_ends(place: Arc<dyn Place>) {
    for options in [with_memory(), without_memory()] {
        let store = open(&place, options).await;
        for key in ["/a", "/a/1", "/a/2", "/a/3", "/a0", "/b/1"] {
            put(&store, key, "v").await;
        }
        let revision = store.current_revision();
        delete(&store, "/a/2").await;
        put(&store, "/a/25", "v").await;
        for revision in [revision, 0] {
            let middle = if revision == 0 { "/a/25" } else { "/a/2" };
            let keys = |start: &str, end: &[u8], limit| {
                let (start, end) = (bytes(start), Bytes::copy_from_slice(end));
                let request = RangeRequest { start, end, limit, revision, ..RangeRequest::default() };
                let answer = store.range(request);
                async {
                    let answer = answer.await.expect("readable");
                    (answer.kvs.iter().map(|kv| text(&kv.key)).collect::<Vec<_>>(), answer.more, answer.count)
                }
            };
            let strings = |keys: &[&str]| keys.iter().map(|key| key.to_string()).collect::<Vec<_>>();
            assert_eq!(keys("/a/", b"/a0", 0).await, (strings(&["/a/1", middle, "/a/3"]), false, 3));
            assert_eq!(keys("/a/", b"/a0", 2).await, (strings(&["/a/1", middle]), true, 3));
            assert_eq!(keys("/a/", b"/a0", 3).await, (strings(&["/a/1", middle, "/a/3"]), false, 3));
            assert_eq!(keys("/a", b"", 0).await, (strings(&["/a"]), false, 1));
            assert_eq!(keys("/a/3", b"\0", 0).await, (strings(&["/a/3", "/a0", "/b/1"]), false, 3));
            assert_eq!(keys("/b", b"/a", 0).await, (strings(&[]), false, 0));
            assert_eq!(keys("/c", b"/d", 0).await, (strings(&[]), false, 0));
            let count = RangeRequest { revision, count_only: true, limit: 1, ..RangeRequest::prefix("/a/") };
            let count = store.range(count).await.expect("readable");
            assert_eq!((count.kvs.len(), count.count, count.more), (0, 3, false));
            let bare = RangeRequest { revision, keys_only: true, ..RangeRequest::prefix("/a/") };
            let bare = store.range(bare).await.expect("readable");
            assert!(bare.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0) && bare.kvs.len() == 3);
        }
        for key in ["/a", "/a/1", "/a/25", "/a/3", "/a0", "/b/1"] {
            delete(&store, key).await;
        }
        store.close().await;
    }
}

async fn old_revisions_read_as_they_were(place: Arc<dyn Place>) {
    for options in [with_memory(), without_memory()] {
        let store = open(&place, options).await;
        put(&store, "/x/a", "1").await;
        put(&store, "/x/b", "1").await;
        let two = store.current_revision();
        put(&store, "/x/a", "2").await;
        delete(&store, "/x/b").await;
        put(&store, "/x/c", "1").await;
        let three = store.current_revision();
        put(&store, "/x/b", "2").await;
        delete(&store, "/x/a").await;
        delete(&store, "/x/c").await;
        assert_eq!(pairs(&store, "/x/", two).await, [pair("/x/a", "1"), pair("/x/b", "1")]);
        assert_eq!(pairs(&store, "/x/", two + 1).await, [pair("/x/a", "2"), pair("/x/b", "1")]);
        assert_eq!(pairs(&store, "/x/", three).await, [pair("/x/a", "2"), pair("/x/c", "1")]);
        assert_eq!(pairs(&store, "/x/", 0).await, [pair("/x/b", "2")]);
        assert_eq!(store.get(b"/x/b", two).await.expect("readable").map(|kv| text(&kv.value)), Some("1".to_string()));
        assert_eq!(store.get(b"/x/b", three).await.expect("readable"), None);
        delete(&store, "/x/b").await;
        store.close().await;
    }
}

async fn compacted_and_future_revisions_are_refused(place: Arc<dyn Place>) {
    let store = open(&place, without_memory()).await;
    for value in 1..=5 {
        put(&store, "/a", &value.to_string()).await;
    }
    store.compact(4).await.expect("within the history");
    assert_eq!(store.compact_revision(), 4);
    for revision in 1..=3 {
        let read = store.get(b"/a", revision).await;
        assert!(matches!(read, Err(ReadError::Compacted { compact_revision: 4, .. })), "{revision}: {read:?}");
        let watch = store.watch(bytes("/"), prefix_end(b"/"), revision, true).await;
        assert_eq!(watch.err(), Some(WatchError::Compacted { requested: revision, compact_revision: 4 }));
    }
    assert_eq!(pairs(&store, "/", 4).await, [pair("/a", "3")]);
    let read = store.get(b"/a", 7).await;
    assert!(matches!(read, Err(ReadError::FutureRevision { requested: 7, current: 6 })), "{read:?}");
    let again = store.compact(4).await;
    assert!(matches!(again, Err(CompactError::Compacted { requested: 4, compact_revision: 4 })), "{again:?}");
    let future = store.compact(7).await;
    assert!(matches!(future, Err(CompactError::FutureRevision { requested: 7, current: 6 })), "{future:?}");
    store.compact(6).await.expect("up to the newest");
    assert_eq!(pairs(&store, "/", 0).await, [pair("/a", "5")]);
}

async fn compaction_keeps_what_may_still_be_read(place: Arc<dyn Place>) {
    let backend = place.open().await;
    let store = Store::open(backend.clone(), without_memory()).await.expect("the backend opens");
    put(&store, "/a", "1").await;
    put(&store, "/b", "1").await;
    put(&store, "/gone", "1").await;
    delete(&store, "/gone").await;
    let kept = put(&store, "/a", "2").await;
    put(&store, "/a", "3").await;
    let last = delete(&store, "/b").await;
    store.compact(kept).await.expect("within the history");
    while backend.maintain().await.expect("maintenance works") {}
    assert_eq!(pairs(&store, "/", kept).await, [pair("/a", "2"), pair("/b", "1")]);
    assert_eq!(pairs(&store, "/", kept + 1).await, [pair("/a", "3"), pair("/b", "1")]);
    let mut watcher = watch(&store, "/", kept).await;
    let events = events_through(&mut watcher, last).await;
    let prev: Vec<_> = events.iter().map(|event| event.prev.as_ref().map(|kv| text(&kv.value))).collect();
    assert_eq!(prev, [Some("2".to_string()), Some("1".to_string())]);
    store.close().await;
    let store = open(&place, without_memory()).await;
    assert_eq!((store.compact_revision(), store.current_revision()), (kept, last));
    assert_eq!(pairs(&store, "/", kept).await, [pair("/a", "2"), pair("/b", "1")]);
}

async fn a_watch_continues_a_read_without_a_gap(place: Arc<dyn Place>) {
    for options in [with_memory(), without_memory()] {
        let store = open(&place, options).await;
        put(&store, "/w/a", "1").await;
        let read = store.current_revision();
        put(&store, "/w/a", "2").await;
        delete(&store, "/w/a").await;
        let mut watcher = watch(&store, "/w/", read).await;
        put(&store, "/w/b", "1").await;
        let mut last = 0;
        for value in 0..30 {
            last = put(&store, "/w/b", &value.to_string()).await;
        }
        let events = events_through(&mut watcher, last).await;
        let revisions: Vec<Revision> = events.iter().map(|event| event.revision()).collect();
        assert_eq!(revisions, (read + 1..=last).collect::<Vec<_>>());
        let (update, delete_event, create) = (&events[0], &events[1], &events[2]);
        assert_eq!((update.kind, update.prev.as_ref().map(|kv| text(&kv.value))), (EventKind::Put, Some("1".into())));
        assert!(!update.is_create() && create.is_create() && create.prev.is_none());
        assert_eq!(delete_event.kind, EventKind::Delete);
        assert_eq!(delete_event.prev.as_ref().map(|kv| text(&kv.value)), Some("2".into()));
        let nothing = KeyValue {
            key: bytes("/w/a"),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: read + 2,
            version: 0,
            lease: 0,
        };
        assert_eq!(delete_event.kv, nothing);
        delete(&store, "/w/b").await;
        drop(watcher);
        store.close().await;
    }
}

async fn a_watch_sees_its_range_only(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let ranges: [(&str, &[u8], &[Revision]); 6] = [
        ("/a/1", b"", &[2, 5]),
        ("/a/", b"/a0", &[2, 3, 5]),
        ("/a/1", b"/a/2", &[2, 5]),
        ("/b", b"\0", &[4, 6]),
        ("", b"\0", &[2, 3, 4, 5, 6]),
        ("/z", b"/a", &[]),
    ];
    let mut watchers = Vec::new();
    for (start, end, expected) in ranges {
        watchers
            .push((store.watch(bytes(start), Bytes::copy_from_slice(end), 0, true).await.expect("begins"), expected));
    }
    for key in ["/a/1", "/a/2", "/b", "/a/1", "/b/1"] {
        put(&store, key, "v").await;
    }
    for (mut watcher, expected) in watchers {
        let mut late = store
            .watch(watcher_start(&watcher), watcher_end(&watcher), 1, true)
            .await
            .expect("a late watch of the same range begins");
        if let Some(last) = expected.last() {
            for watcher in [&mut watcher, &mut late] {
                let events = events_through(watcher, *last).await;
                assert_eq!(events.iter().map(|event| event.revision()).collect::<Vec<_>>(), expected);
            }
        }
        assert_eq!(watcher.progress(), 6);
    }
}

fn watcher_start(watcher: &Watcher) -> Bytes {
    watcher.range().start().clone()
}

fn watcher_end(watcher: &Watcher) -> Bytes {
    watcher.range().end().cloned().unwrap_or(Bytes::from_static(&[0]))
}

async fn a_slow_watcher_misses_nothing_and_holds_nobody_up(place: Arc<dyn Place>) {
    let small =
        Options { recent_events_max: 8, watcher_events_max: 4, compaction_interval: None, ..Options::default() };
    let store = open(&place, small).await;
    let mut slow = watch(&store, "/s/", 0).await;
    let mut elsewhere = watch(&store, "/e/", 0).await;
    for value in 0..100 {
        put(&store, "/s/a", &value.to_string()).await;
    }
    let last = put(&store, "/e/a", "1").await;
    assert_eq!(events_through(&mut elsewhere, last).await.len(), 1);
    let events = events_through(&mut slow, last - 1).await;
    let values: Vec<String> = events.iter().map(|event| text(&event.kv.value)).collect();
    assert_eq!(values, (0..100).map(|value| value.to_string()).collect::<Vec<_>>());
    // Having caught up it is served from memory again.
    let last = put(&store, "/s/a", "last").await;
    assert_eq!(events_through(&mut slow, last).await.len(), 1);
}

async fn a_watcher_behind_the_compaction_hears_so(place: Arc<dyn Place>) {
    let store = open(&place, without_memory()).await;
    let mut slow = watch(&store, "/", 0).await;
    let mut last = 0;
    for value in 0..20 {
        last = put(&store, "/a", &value.to_string()).await;
    }
    store.compact(last).await.expect("up to the newest");
    let mut revision = 1;
    let error = loop {
        match tokio::time::timeout(DEADLINE, slow.next()).await.expect("an answer in time").expect("the watch goes on")
        {
            Ok(batch) => {
                for event in batch.events {
                    assert_eq!(event.revision(), revision + 1, "no gap before the error");
                    revision += 1;
                }
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, WatchError::Compacted { requested: revision, compact_revision: last });
    assert!(slow.next().await.is_none(), "the watch is over");
    let mut again = watch(&store, "/", last).await;
    let last = put(&store, "/a", "after").await;
    assert_eq!(events_through(&mut again, last).await.len(), 1);
}

async fn a_watch_from_the_future_waits(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let mut watcher = watch(&store, "/", 4).await;
    for value in 0..5 {
        put(&store, "/a", &value.to_string()).await;
    }
    let revisions: Vec<Revision> = events_through(&mut watcher, 6).await.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, [5, 6]);
}

async fn progress_follows_writes_elsewhere(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let mut watcher = watch(&store, "/a/", 0).await;
    assert_eq!(watcher.progress(), 1);
    let elsewhere = put(&store, "/b/1", "v").await;
    assert_eq!(watcher.progress(), elsewhere);
    let own = put(&store, "/a/1", "v").await;
    assert!(watcher.progress() < own, "an event that was not handed out yet is no progress");
    events_through(&mut watcher, own).await;
    assert_eq!(watcher.progress(), own);
}

async fn concurrent_writers_lose_no_write(place: Arc<dyn Place>) {
    const WRITERS: u64 = 8;
    const INCREMENTS: u64 = 25;
    let store = open(&place, with_memory()).await;
    let mut watcher = watch(&store, "/", 0).await;
    put(&store, "/counter", "0").await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..INCREMENTS {
                    loop {
                        let kv = store.get(b"/counter", 0).await.expect("readable").expect("there");
                        let next = text(&kv.value).parse::<u64>().expect("a number") + 1;
                        let op = Op::Put { value: bytes(&next.to_string()), lease: 0 };
                        match store.txn(bytes("/counter"), Expect::ModRevision(kv.mod_revision), op).await {
                            Ok(_) => break,
                            Err(WriteError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("the writer does not panic");
    }
    let total = WRITERS * INCREMENTS;
    assert_eq!(store.current_revision(), 2 + total, "revisions are dense, conflicts use none");
    let events = events_through(&mut watcher, 2 + total).await;
    let values: Vec<u64> = events.iter().map(|event| text(&event.kv.value).parse().expect("a number")).collect();
    assert_eq!(values, (0..=total).collect::<Vec<_>>());
}

async fn everything_is_there_after_reopening(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let lease = store.lease_grant(0, 3600).await.expect("a lease");
    put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    let op = Op::Put { value: bytes("1"), lease: lease.id };
    store.txn(bytes("/leased"), Expect::Absent, op).await.expect("a create");
    delete(&store, "/a").await;
    put(&store, "/b", "1").await;
    store.compact(3).await.expect("within the history");
    let before = store.snapshot();
    store.close().await;
    let store = open(&place, with_memory()).await;
    assert_eq!(store.snapshot(), before);
    assert_eq!(pairs(&store, "/", 3).await, [pair("/a", "2")]);
    let mut watcher = watch(&store, "/", 3).await;
    let last = put(&store, "/c", "1").await;
    assert_eq!(last, before.revision + 1);
    let revisions: Vec<Revision> =
        events_through(&mut watcher, last).await.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, [4, 5, 6, 7]);
    let (_, _, keys) = store.lease_time_to_live(lease.id).await.expect("readable").expect("the lease is there");
    assert_eq!(keys, [bytes("/leased")]);
}

async fn a_compacted_delete_gives_no_revision_back(place: Arc<dyn Place>) {
    let backend = place.open().await;
    let store = Store::open(backend.clone(), with_memory()).await.expect("the backend opens");
    put(&store, "/a", "1").await;
    let last = delete(&store, "/a").await;
    store.compact(last).await.expect("up to the newest");
    while backend.maintain().await.expect("maintenance works") {}
    store.close().await;
    let store = open(&place, with_memory()).await;
    assert_eq!((store.current_revision(), store.compact_revision()), (last, last));
    assert_eq!(put(&store, "/a", "2").await, last + 1);
}

async fn leases_take_their_keys_with_them(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let (one, two) = (store.lease_grant(7, 3600).await, store.lease_grant(0, 3600).await);
    let (one, two) = (one.expect("a lease").id, two.expect("a lease").id);
    assert_eq!(one, 7);
    assert!(matches!(store.lease_grant(7, 1).await, Err(WriteError::LeaseExists { lease: 7 })));
    let leased = |lease| Op::Put { value: bytes("v"), lease };
    let unknown = store.txn(bytes("/x"), Expect::Any, leased(99)).await;
    assert!(matches!(unknown, Err(WriteError::LeaseNotFound { lease: 99 })), "{unknown:?}");
    for (key, lease) in [("/a", one), ("/b", one), ("/c", two), ("/d", one), ("/e", one)] {
        store.txn(bytes(key), Expect::Any, leased(lease)).await.expect("a put");
    }
    // Moved to another lease, detached, deleted.
    store.txn(bytes("/b"), Expect::Any, leased(two)).await.expect("a put");
    put(&store, "/d", "v").await;
    delete(&store, "/e").await;
    let mut watcher = watch(&store, "/", 0).await;
    store.lease_revoke(one).await.expect("the lease is there");
    let revision = store.current_revision();
    let events = events_through(&mut watcher, revision).await;
    assert_eq!(events.iter().map(|event| text(&event.kv.key)).collect::<Vec<_>>(), ["/a"]);
    assert!(matches!(store.lease_revoke(one).await, Err(WriteError::LeaseNotFound { lease: 7 })));
    assert_eq!(store.lease_keep_alive(one).await.expect("answered"), None);
    assert_eq!(store.lease_keep_alive(two).await.expect("answered"), Some(3600));
    let keys: Vec<String> = pairs(&store, "/", 0).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["/b", "/c", "/d"]);
    store.close().await;
    let store = open(&place, with_memory()).await;
    assert_eq!(store.leases().iter().map(|lease| lease.id).collect::<Vec<_>>(), [two]);
    store.lease_revoke(two).await.expect("the lease is there");
    assert_eq!(pairs(&store, "/", 0).await, [pair("/d", "v")]);
}

async fn leases_run_out(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    store.lease_grant(1, 3600).await.expect("a long lease");
    store.lease_grant(2, 1).await.expect("a short lease");
    for (key, lease) in [("/long", 1), ("/short", 2)] {
        let op = Op::Put { value: bytes("v"), lease };
        store.txn(bytes(key), Expect::Any, op).await.expect("a put");
    }
    let mut watcher = watch(&store, "/", 0).await;
    let events = events_through(&mut watcher, store.current_revision() + 1).await;
    assert_eq!((events[0].kind, text(&events[0].kv.key)), (EventKind::Delete, "/short".to_string()));
    assert_eq!(pairs(&store, "/", 0).await, [pair("/long", "v")]);
}

async fn a_seeded_backend_starts_where_the_snapshot_was(place: Arc<dyn Place>) {
    let origin = Store::in_memory(with_memory()).await;
    origin.lease_grant(5, 3600).await.expect("a lease");
    put(&origin, "/a", "1").await;
    put(&origin, "/a", "2").await;
    put(&origin, "/b", "1").await;
    delete(&origin, "/b").await;
    let snapshot = origin.snapshot();
    let store = Store::open_from(&snapshot, place.open().await, without_memory()).await.expect("an empty backend");
    if !place.keeps_revisions() {
        let compact = store.compact_revision();
        assert!(
            compact > snapshot.revision && compact == store.current_revision(),
            "readers from before have to begin again"
        );
        let pairs = |snapshot: &crate::Snapshot| -> Vec<(Bytes, Bytes, i64)> {
            snapshot.kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone(), kv.lease)).collect()
        };
        assert_eq!(pairs(&store.snapshot()), pairs(&snapshot));
        assert_eq!(store.leases(), snapshot.leases);
        store.close().await;
        let again = Store::open_from(&snapshot, place.open().await, with_memory()).await;
        assert!(again.is_err(), "a backend with data is not overwritten");
        return;
    }
    assert_eq!((store.current_revision(), store.compact_revision()), (5, 5));
    assert_eq!(store.snapshot().kvs, snapshot.kvs, "keys keep their revisions");
    assert!(matches!(store.get(b"/a", 4).await, Err(ReadError::Compacted { .. })));
    put(&store, "/a", "3").await;
    assert_eq!(pairs(&store, "/", 5).await, [pair("/a", "2")]);
    assert_eq!(origin.current_revision(), 5, "the origin goes its own way");
    let fork = store.fork().await.expect("a fork");
    store.close().await;
    let again = Store::open_from(&snapshot, place.open().await, with_memory()).await;
    assert!(again.is_err(), "a backend with data is not overwritten");
    assert_eq!(put(&fork, "/a", "4").await, 7);
}

async fn a_closed_store_ends_its_watches(place: Arc<dyn Place>) {
    let store = open(&place, with_memory()).await;
    let mut watcher = watch(&store, "/", 0).await;
    let last = put(&store, "/a", "1").await;
    store.close().await;
    assert_eq!(events_through(&mut watcher, last).await.len(), 1, "what happened before is still told");
    assert_eq!(watcher.next().await, Some(Err(WatchError::Closed)));
    assert_eq!(watcher.next().await, None);
    let write = store.txn(bytes("/a"), Expect::Any, Op::Delete).await;
    assert!(matches!(write, Err(WriteError::Unavailable { .. })), "{write:?}");
    assert_eq!(store.watch(bytes("/"), Bytes::new(), 0, true).await.err(), Some(WatchError::Closed));
    let store = open(&place, with_memory()).await;
    assert_eq!(pairs(&store, "/", 0).await, [pair("/a", "1")]);
}

async fn a_transaction_is_one_revision(place: Arc<dyn Place>) {
    for options in [with_memory(), without_memory()] {
        let store = open(&place, options).await;
        let start = put(&store, "/t/b", "0").await;
        let mut watcher = watch(&store, "/t/", 0).await;
        let mut elsewhere = watch(&store, "/u", 0).await;
        let (revision, before) = store
            .transact(0, |transaction| {
                let before = transaction.get(b"/t/b").map(|kv| text(&kv.value));
                for (key, value) in
                    [("/t/c", "1"), ("/t/a", "2"), ("/u", "3"), ("/t/b", "4"), ("/t/d", "5"), ("/t/e", "6")]
                {
                    transaction.put(bytes(key), bytes(value), 0)?;
                }
                transaction.delete(b"/t/d")?;
                let seen: Vec<String> =
                    transaction.range(&crate::KeyRange::prefix(bytes("/t/"))).iter().map(|kv| text(&kv.key)).collect();
                assert_eq!(seen, ["/t/a", "/t/b", "/t/c", "/t/e"], "it sees its own writes");
                Ok(before)
            })
            .await
            .expect("committed");
        assert_eq!((revision, before.as_deref()), (start + 1, Some("0")));
        let refused = store
            .transact(0, |transaction| {
                transaction.put(bytes("/t/never"), bytes("x"), 0)?;
                Err::<(), _>(WriteError::Conflict { current: None })
            })
            .await;
        assert!(matches!(refused, Err(WriteError::Conflict { current: None })), "{refused:?}");
        let mut late = watch(&store, "/t/", start).await;
        for watcher in [&mut watcher, &mut late] {
            let batch = watcher.next().await.expect("goes on").expect("does not fail");
            let told: Vec<(Revision, String)> =
                batch.events.iter().map(|event| (event.revision(), text(&event.kv.key))).collect();
            let expected = ["/t/c", "/t/a", "/t/b", "/t/e"].map(|key| (revision, key.to_string()));
            assert_eq!((told, batch.revision), (expected.to_vec(), revision), "all at once and in order");
            assert_eq!(batch.events[2].prev.as_ref().map(|kv| text(&kv.value)).as_deref(), Some("0"));
        }
        assert_eq!(elsewhere.next().await.expect("goes on").expect("does not fail").events.len(), 1);
        assert_eq!(pairs(&store, "/t/", start).await, [pair("/t/b", "0")]);
        let (revision, gone) = store
            .transact(0, |transaction| {
                let keys = transaction.range(&crate::KeyRange::prefix(bytes("/")));
                keys.iter().try_for_each(|kv| transaction.delete(&kv.key).map(drop))?;
                Ok(keys.len())
            })
            .await
            .expect("committed");
        assert_eq!((revision, gone, store.current_revision()), (start + 2, 5, start + 2));
        assert_eq!(pairs(&store, "/", start + 1).await.len(), 5);
        store.close().await;
        let store = open(&place, without_memory()).await;
        assert_eq!((store.current_revision(), pairs(&store, "/", 0).await.len()), (start + 2, 0));
        assert_eq!(pairs(&store, "/", start + 1).await.len(), 5);
        store.compact(start + 1).await.expect("within the history");
        let mut watcher = watch(&store, "/", start + 1).await;
        let batch = watcher.next().await.expect("goes on").expect("does not fail");
        assert_eq!((batch.events.len(), batch.revision), (5, start + 2));
        store.close().await;
    }
}

async fn any_bytes_are_a_key_and_a_value(place: Arc<dyn Place>) {
    let store = open(&place, without_memory()).await;
    let key = Bytes::from_static(b"/\x00\xff\xfe'\"%");
    let large = Bytes::from(vec![0xa5; 2 << 20]);
    for value in [Bytes::new(), Bytes::from_static(b"\0"), large.clone()] {
        let op = Op::Put { value: value.clone(), lease: 0 };
        store.txn(key.clone(), Expect::Any, op).await.expect("a put");
        assert_eq!(store.get(&key, 0).await.expect("readable").map(|kv| kv.value), Some(value));
    }
    for (value, revision) in [(0, 2), (1, 3), (2 << 20, 4)] {
        let kv = store.get(&key, revision).await.expect("readable").expect("there");
        assert_eq!((kv.value.len(), kv.mod_revision), (value, revision));
    }
    let too_large = Op::Put { value: Bytes::from(vec![0; 4 << 20]), lease: 0 };
    let refused = store.txn(key.clone(), Expect::Any, too_large).await;
    assert!(matches!(refused, Err(WriteError::TooLarge { what: "value", .. })), "{refused:?}");
    let refused = store.txn(Bytes::from(vec![b'k'; 5000]), Expect::Any, Op::Delete).await;
    assert!(matches!(refused, Err(WriteError::TooLarge { what: "key", .. })), "{refused:?}");
    let refused = store.txn(Bytes::new(), Expect::Any, Op::Delete).await;
    assert!(matches!(refused, Err(WriteError::EmptyKey)), "{refused:?}");
    store.close().await;
    let store = open(&place, without_memory()).await;
    assert_eq!(store.get(&key, 0).await.expect("readable").map(|kv| kv.value), Some(large));
}
