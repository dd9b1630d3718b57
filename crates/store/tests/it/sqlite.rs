//! What is particular to the SQLite file: who may open it, what is refused, how it grows.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use store::{
    Backend, Expect, Op, OpenError, Options, RangeRequest, ReadError, Sqlite, SqliteOptions, Store, Workers, WriteError,
};

const LOCKED: &str = "ALCOVE_STORE_LOCKED_FILE";

fn options() -> Options {
    Options { compaction_interval: None, ..Options::default() }
}

fn put(size: usize) -> Op {
    Op::Put { value: Bytes::from(vec![b'v'; size]), lease: 0 }
}

async fn open_error(path: &Path) -> OpenError {
    match Store::open_sqlite(path, options()).await {
        Ok(_) => panic!("{} must be refused", path.display()),
        Err(error) => error,
    }
}

/// The other process of the test below; nothing unless it is asked for by environment.
#[test]
fn other_process() {
    let Ok(file) = std::env::var(LOCKED) else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let refused = matches!(runtime.block_on(open_error(Path::new(&file))), OpenError::InUse { .. });
    std::process::exit(if refused { 0 } else { 3 });
}

#[tokio::test]
async fn a_file_is_open_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("store.db");
    let store = Store::open_sqlite(&file, options()).await.expect("opens");
    assert!(matches!(open_error(&file).await, OpenError::InUse { .. }), "not twice in one process");
    let status = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "sqlite::other_process"])
        .env(LOCKED, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the other process runs");
    assert!(status.success(), "not from another process either: {status}");
    store.close().await;
    let store = Store::open_sqlite(&file, options()).await.expect("opens after it was closed");
    drop(store);
    Store::open_sqlite(&file, options()).await.expect("opens after it was dropped");
}

#[tokio::test]
async fn the_write_ahead_log_starts_again_under_writes_that_never_pause() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open_sqlite(directory.path().join("store.db"), options()).await.expect("opens");
    // Its salt changes each time.
    let salt = || {
        let mut header = [0; 24];
        let mut log = std::fs::File::open(directory.path().join("store.db-wal")).expect("there");
        log.read_exact(&mut header).expect("it has a header");
        header[16..].to_vec()
    };
    store.txn(Bytes::from_static(b"/a"), Expect::Any, put(10)).await.expect("written");
    let mut salts = vec![salt()];
    for write in 1.. {
        assert!(write < 1000, "80 MiB were written: {salts:?}");
        store.txn(Bytes::from_static(b"/a"), Expect::Any, put(64 << 10)).await.expect("written");
        let now = salt();
        if !salts.contains(&now) {
            salts.push(now);
        }
        if salts.len() == 3 {
            break;
        }
    }
}

#[tokio::test]
async fn a_newer_or_foreign_or_damaged_file_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let fresh = |name: &str| directory.path().join(name);

    let newer = fresh("newer.db");
    let store = Store::open_sqlite(&newer, options()).await.expect("opens");
    store.txn(Bytes::from_static(b"/a"), Expect::Any, put(10)).await.expect("written");
    store.close().await;
    rusqlite::Connection::open(&newer)
        .and_then(|file| file.pragma_update(None, "user_version", 7))
        .expect("a newer schema");
    let before = std::fs::read(&newer).expect("readable");
    let error = open_error(&newer).await;
    assert!(matches!(error, OpenError::NewerSchema { found: 7, known: 2, .. }), "{error}");
    assert!(error.to_string().contains("newer.db"), "{error}");
    assert_eq!(std::fs::read(&newer).expect("readable"), before, "the file is as it was");

    let foreign = fresh("foreign.db");
    rusqlite::Connection::open(&foreign).and_then(|file| file.execute_batch("CREATE TABLE kine (id)")).expect("made");
    let error = open_error(&foreign).await;
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");

    let text = fresh("text.db");
    std::fs::write(&text, "this is not a database, but it is long enough to be read as one\n".repeat(100))
        .expect("written");
    let error = open_error(&text).await;
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");

    let damaged = fresh("damaged.db");
    let store = Store::open_sqlite(&damaged, options()).await.expect("opens");
    for number in 0..200 {
        let key = Bytes::from(format!("/registry/pods/default/{number:04}"));
        store.txn(key, Expect::Any, put(500)).await.expect("written");
    }
    store.close().await;
    let whole = std::fs::read(&damaged).expect("readable");
    let mut scribbled = whole.clone();
    scribbled[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&damaged, &scribbled).expect("written");
    let error = open_error(&damaged).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("damaged.db"), "{error}");
    std::fs::write(&damaged, &whole[..whole.len() / 2]).expect("written");
    let error = open_error(&damaged).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "half a file: {error}");

    let error = open_error(&fresh("no/such/directory/store.db")).await;
    assert!(matches!(error, OpenError::Backend(_)), "{error}");
    let error = open_error(directory.path()).await;
    assert!(matches!(error, OpenError::Backend(_)), "{error}");
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_to_the_newest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("store.db");
    rusqlite::Connection::open(&file)
        .and_then(|file| {
            file.execute_batch(
                "CREATE TABLE log (rev INTEGER PRIMARY KEY, key BLOB NOT NULL, prev INTEGER NOT NULL,
                   create_rev INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
                   deleted INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
                 CREATE TABLE live (key BLOB PRIMARY KEY, rev INTEGER NOT NULL) STRICT, WITHOUT ROWID;
                 CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_seconds INTEGER NOT NULL) STRICT;
                 CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
                 INSERT INTO meta VALUES ('compact_revision', 2), ('cleaned_revision', 2);
                 INSERT INTO log VALUES (2, x'2f61', 0, 2, 1, 0, 0, x'31'), (3, x'2f62', 0, 3, 1, 0, 0, x'32'),
                   (4, x'2f61', 2, 2, 2, 0, 0, x'33'), (5, x'2f62', 3, 0, 0, 0, 1, x'');
                 INSERT INTO live VALUES (x'2f61', 4);
                 PRAGMA application_id = 1097622390; PRAGMA user_version = 1;",
            )
        })
        .expect("an old file");
    for _ in 0..2 {
        let store = Store::open_sqlite(&file, Options { recent_events_max: 0, ..options() }).await.expect("opens");
        assert_eq!((store.current_revision(), store.compact_revision()), (5, 2));
        let kv = store.get(b"/a", 0).await.expect("readable").expect("there");
        assert_eq!((&kv.value[..], kv.create_revision, kv.mod_revision, kv.version), (&b"3"[..], 2, 4, 2));
        assert_eq!(store.get(b"/b", 4).await.expect("readable").map(|kv| kv.mod_revision), Some(3));
        let mut watcher =
            store.watch(Bytes::from_static(b"/"), Bytes::from_static(b"0"), 2, true).await.expect("begins");
        let events = store::contract::events_through(&mut watcher, 5).await;
        assert_eq!(events.iter().map(|event| event.revision()).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(events[1].prev.as_ref().map(|kv| &kv.value[..]), Some(&b"1"[..]));
        store.close().await;
    }
}

#[tokio::test]
async fn a_full_store_refuses_writes_stays_readable_and_can_be_emptied() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let limit = SqliteOptions { size_bytes_max: Some(256 << 10), ..SqliteOptions::default() };
    let file = directory.path().join("store.db");
    let backend = Arc::new(Sqlite::open(&file, limit.clone()).await.expect("opens"));
    let store = Store::open(backend.clone(), Options { recent_events_max: 0, ..options() }).await.expect("opens");
    let mut written = 0;
    let error = loop {
        let key = Bytes::from(format!("/{written:04}"));
        match store.txn(key, Expect::Absent, put(3000)).await {
            Ok(committed) => assert_eq!(committed.revision, written + 2),
            Err(error) => break error,
        }
        written += 1;
        assert!(written < 1000, "the limit is never met");
    };
    assert!(matches!(error, WriteError::Full), "{error}");
    assert!(written > 10, "only {written} writes fit");
    assert_eq!(store.current_revision(), written + 1, "a write that did not fit uses no revision");
    let all = store.range(RangeRequest::prefix("/")).await.expect("readable");
    assert_eq!(all.count, written);
    assert!(store.get(b"/0000", 5).await.expect("history is readable").is_some());
    let (refused, deleted) = tokio::join!(
        store.txn(Bytes::from_static(b"/more"), Expect::Absent, put(3000)),
        store.txn(Bytes::from_static(b"/0000"), Expect::Any, Op::Delete),
    );
    assert!(matches!(refused, Err(WriteError::Full)), "{refused:?}");
    deleted.expect("a delete does not fail with the put beside it");
    let there = store.range(RangeRequest::prefix("/")).await.expect("readable").count;
    let revision = store.current_revision();
    // Room is made by deleting and compacting.
    for number in 0..written {
        store.txn(Bytes::from(format!("/{number:04}")), Expect::Any, Op::Delete).await.expect("deletes still fit");
    }
    store.compact(store.current_revision()).await.expect("compacts");
    while backend.maintain().await.expect("maintenance works") {}
    let committed =
        store.txn(Bytes::from_static(b"/again"), Expect::Absent, put(3000)).await.expect("there is room again");
    assert_eq!(committed.revision, revision + there + 1);
    store.close().await;
    let backend = Arc::new(Sqlite::open(&file, limit).await.expect("opens"));
    let store = Store::open(backend, options()).await.expect("opens");
    assert_eq!(store.range(RangeRequest::prefix("/")).await.expect("readable").count, 1);
}

#[tokio::test]
async fn compaction_gives_space_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("store.db");
    let backend = Arc::new(Sqlite::open(&file, SqliteOptions::default()).await.expect("opens"));
    let store = Store::open(backend.clone(), options()).await.expect("opens");
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..600 {
            let store = store.clone();
            writes.spawn(async move {
                let key = Bytes::from(format!("/{:02}", number % 20));
                store.txn(key, Expect::Any, put(10_000)).await.expect("written");
            });
        }
        while let Some(write) = writes.join_next().await {
            write.expect("no panic");
        }
        store.compact(store.current_revision()).await.expect("compacts");
        while backend.maintain().await.expect("maintenance works") {}
        let file = rusqlite::Connection::open(&file).expect("an ordinary SQLite file");
        let pages: u32 = file.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("readable");
        sizes.push(u64::from(pages) * 4096);
    }
    let live: u64 = 20 * 10_000;
    assert!(sizes.iter().all(|size| *size < 4 * live + (2 << 20)), "20 live keys of 10 kB use {sizes:?} bytes");
    assert!(matches!(store.get(b"/00", 5).await, Err(ReadError::Compacted { .. })));
}

#[tokio::test]
async fn many_stores_share_a_few_threads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let workers = Workers::new(2, 1);
    let mut stores = Vec::new();
    for number in 0..40 {
        let sqlite = SqliteOptions { workers: Some(workers.clone()), ..SqliteOptions::default() };
        let file = directory.path().join(format!("{number}.db"));
        let backend = Sqlite::open(file, sqlite).await.expect("opens");
        stores.push(Store::open(Arc::new(backend), options()).await.expect("opens"));
    }
    let mut writes = tokio::task::JoinSet::new();
    for store in &stores {
        let store = store.clone();
        writes.spawn(async move {
            store.txn(Bytes::from_static(b"/a"), Expect::Absent, put(10)).await.map(|done| done.revision)
        });
    }
    while let Some(write) = writes.join_next().await {
        assert_eq!(write.expect("no panic").expect("written"), 2);
    }
    assert!(workers.threads() <= 3, "{} threads for 40 stores", workers.threads());
}
