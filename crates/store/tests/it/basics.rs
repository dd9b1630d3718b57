//! One walk through everything, in memory.

use bytes::Bytes;
use store::{EventKind, Expect, Op, Options, RangeRequest, ReadError, Store, WriteError, prefix_end};

fn put(value: &str) -> Op {
    Op::Put { value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 }
}

#[tokio::test]
async fn a_write_is_read_watched_and_forked() {
    let store = Store::in_memory(Options::default()).await;
    assert_eq!(store.current_revision(), 1, "an empty store is at revision 1");
    let mut watcher =
        store.watch(Bytes::from_static(b"/a/"), prefix_end(b"/a/"), 0, true).await.expect("a watch from now");
    let first = store.txn(Bytes::from_static(b"/a/x"), Expect::Absent, put("1")).await.expect("a create");
    assert_eq!((first.revision, first.prev), (2, None));
    store.txn(Bytes::from_static(b"/b/x"), Expect::Absent, put("1")).await.expect("another create");
    let again = store.txn(Bytes::from_static(b"/a/x"), Expect::Absent, put("2")).await;
    assert!(matches!(again, Err(WriteError::Conflict { current: Some(kv) }) if kv.mod_revision == 2));
    store.txn(Bytes::from_static(b"/a/x"), Expect::ModRevision(2), Op::Delete).await.expect("a delete");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let batch = watcher.next().await.expect("the watch goes on").expect("no error");
        seen.extend(batch.events.iter().map(|event| (event.kind, event.revision(), event.prev.is_some())));
    }
    assert_eq!(seen, [(EventKind::Put, 2, false), (EventKind::Delete, 4, true)]);
    assert_eq!(watcher.progress(), 4);
    let at_three =
        store.range(RangeRequest { revision: 3, ..RangeRequest::prefix("/") }).await.expect("recent history");
    assert_eq!(at_three.count, 2);
    let fork = store.fork().await.expect("a fork");
    fork.txn(Bytes::from_static(b"/c"), Expect::Any, put("1")).await.expect("a write to the fork");
    assert_eq!((fork.current_revision(), store.current_revision()), (5, 4));
    store.compact(4).await.expect("a compaction");
    assert_eq!(store.compact_revision(), 4);
}

#[tokio::test]
async fn a_history_in_memory_stays_within_its_bound() {
    let options = Options { history_bytes_max: 200_000, compaction_interval: None, ..Options::default() };
    let store = Store::in_memory(options).await;
    let key = Bytes::from_static(b"/registry/configmaps/default/busy");
    let mut newest = 0;
    for n in 0..1000_u32 {
        let value = Bytes::from(vec![n as u8; 1000]);
        newest = store.txn(key.clone(), Expect::Any, Op::Put { value, lease: 0 }).await.unwrap().revision;
        // One write in four hundred fits into what half of the bound leaves.
        let behind = newest - store.compact_revision();
        assert!(n < 400 || behind < 400, "{behind} revisions are kept after {n} writes");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.get(&key, 0).await.unwrap().unwrap().mod_revision, newest);
    let old = store.get(&key, store.compact_revision().saturating_sub(1)).await;
    assert!(matches!(old, Err(ReadError::Compacted { .. })), "{old:?}");
}
