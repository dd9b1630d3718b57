//! Stores on real database servers. Where a server is not installed its tests say that they are skipped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use store::contract::{Place, cases, events_through};
use store::servers::{Kind, Server, StartError};
use store::{Backend, Endpoint, Expect, KeyRange, Op, Options, RangeRequest, Store, TlsFiles, WriteError, prefix_end};

/// A server, or none with a word about it.
pub fn server(kind: Kind, folder: &std::path::Path) -> Option<Server> {
    match Server::start(kind, folder) {
        Ok(server) => Some(server),
        Err(StartError::NotInstalled(what)) => {
            println!("skipped: {what} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

struct At(Endpoint);

#[async_trait]
impl Place for At {
    async fn open(&self) -> Arc<dyn Backend> {
        self.0.backend(&TlsFiles::default()).await.expect("the backend opens")
    }

    fn keeps_revisions(&self) -> bool {
        !matches!(self.0, Endpoint::Etcd(_))
    }
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::parse(url).expect("an address")
}

pub async fn open(url: &str) -> Store {
    let options = Options { compaction_interval: None, ..Options::default() };
    endpoint(url).open(&TlsFiles::default(), options).await.expect("the store opens")
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().to_path_buf();
    (folder, path)
}

/// Every case on a database of its own, some at a time.
async fn keeps_the_contract(kind: Kind) {
    let (_folder, path) = folder();
    let Some(server) = server(kind, &path) else { return };
    let server = Arc::new(server);
    let mut left = cases().into_iter();
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.len() < 4
            && let Some((name, case)) = left.next()
        {
            let server = server.clone();
            running.spawn(async move {
                println!("{name}");
                case(Arc::new(At(endpoint(&server.url(name))))).await;
            });
        }
        match running.join_next().await {
            None => return,
            Some(done) => done.expect("the case passes"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract() {
    keeps_the_contract(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_keeps_the_contract() {
    keeps_the_contract(Kind::Mysql).await;
}

/// etcd has one history for all: each case gets a server of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    let (_folder, path) = folder();
    if server(Kind::Etcd, &path).is_none() {
        return;
    }
    let mut left = cases().into_iter();
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.len() < 4
            && let Some((name, case)) = left.next()
        {
            let path = path.clone();
            running.spawn(async move {
                let started = tokio::task::spawn_blocking(move || server(Kind::Etcd, &path)).await;
                let server = started.expect("no panic").expect("installed");
                println!("{name}");
                case(Arc::new(At(endpoint(&server.url(name))))).await;
            });
        }
        match running.join_next().await {
            None => return,
            Some(done) => done.expect("the case passes"),
        }
    }
}

async fn put(store: &Store, key: &str, value: &str) -> Result<u64, WriteError> {
    let op = Op::Put { value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 };
    store.txn(Bytes::copy_from_slice(key.as_bytes()), Expect::Any, op).await.map(|committed| committed.revision)
}

/// Two replicas on one database: both write as fast as they can, both see everything in one order, nobody starves, and a
/// counter that both count up with compare-and-swap loses nothing.
async fn two_replicas_share_one_history(kind: Kind) {
    const WRITES: u64 = 150;
    let (_folder, path) = folder();
    let Some(server) = server(kind, &path) else { return };
    let url = server.url("two");
    let stores = [open(&url).await, open(&url).await];
    put(&stores[0], "/counter", "0").await.expect("written");
    let start = stores[1].synchronize().await.expect("reachable");
    let mut writers = tokio::task::JoinSet::new();
    for (replica, store) in stores.iter().enumerate() {
        for writer in 0..2 {
            let store = store.clone();
            writers.spawn(async move {
                for number in 0..WRITES / 2 {
                    put(&store, &format!("/w/{replica}/{writer}"), &number.to_string()).await.expect("written");
                    let count = |transaction: &mut store::Transaction<'_>| {
                        let kv = transaction.get(b"/counter").expect("there");
                        let count: u64 = String::from_utf8_lossy(&kv.value).parse().expect("a number");
                        transaction.put(kv.key, Bytes::from((count + 1).to_string()), 0).map(drop)
                    };
                    store.transact(8, count).await.expect("counted");
                }
            });
        }
    }
    let mut watchers = Vec::new();
    for store in &stores {
        watchers.push(store.watch(Bytes::from_static(b"/"), prefix_end(b"/"), start, true).await.expect("begins"));
    }
    let began = Instant::now();
    while let Some(done) = writers.join_next().await {
        done.expect("the writer does not panic");
    }
    println!("{} writes of two replicas in {:?}", 4 * WRITES, began.elapsed());
    let end = stores[0].synchronize().await.expect("reachable");
    let mut seen = Vec::new();
    for watcher in &mut watchers {
        let events = events_through(watcher, end).await;
        seen.push(
            events
                .iter()
                .map(|event| (event.revision(), event.kv.key.clone(), event.kv.value.clone()))
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(seen[0], seen[1], "one order for both");
    assert_eq!(seen[0].len() as u64, 4 * WRITES, "each write once");
    let counter = stores[1].get(b"/counter", 0).await.expect("readable").expect("there");
    assert_eq!(counter.value, (2 * WRITES).to_string().as_bytes());
    // A write of one is seen by a watcher of the other without waiting for a poll.
    let mut delays = Vec::new();
    let mut watcher = stores[1].watch(Bytes::from_static(b"/d"), Bytes::new(), 0, true).await.expect("begins");
    for number in 0..40 {
        let revision = put(&stores[0], "/d", &number.to_string()).await.expect("written");
        let written = Instant::now();
        events_through(&mut watcher, revision).await;
        delays.push(written.elapsed());
    }
    delays.sort();
    println!("seen by the other replica after {:?} (median), {:?} (worst)", delays[20], delays[39]);
    assert!(delays[20] < Duration::from_millis(50), "{delays:?}");
    // What only one of them knows yet is no conflict for the other.
    let revision = put(&stores[0], "/fresh", "1").await.expect("written");
    let op = Op::Put { value: Bytes::from_static(b"2"), lease: 0 };
    let committed = stores[1].txn(Bytes::from_static(b"/fresh"), Expect::ModRevision(revision), op).await;
    assert_eq!(committed.expect("not a conflict").revision, revision + 1);
    // A lease that one grants and the other ends.
    let lease = stores[0].lease_grant(0, 3600).await.expect("granted").id;
    let op = Op::Put { value: Bytes::from_static(b"v"), lease };
    stores[1].synchronize().await.expect("reachable");
    stores[1].txn(Bytes::from_static(b"/leased"), Expect::Absent, op).await.expect("the lease is known to both");
    stores[0].lease_revoke(lease).await.expect("revoked");
    stores[1].synchronize().await.expect("reachable");
    assert_eq!(stores[1].get(b"/leased", 0).await.expect("readable"), None);
    for store in stores {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_one_postgres() {
    two_replicas_share_one_history(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_one_mariadb() {
    two_replicas_share_one_history(Kind::Mysql).await;
}

/// The server goes away and comes back: writes are refused meanwhile, reads of the newest state go on, and afterwards
/// everything works without help, with each revision told once.
async fn an_outage_is_survived(kind: Kind) {
    let (_folder, path) = folder();
    let Some(mut server) = server(kind, &path) else { return };
    let store = open(&server.url("outage")).await;
    let other = open(&server.url("outage")).await;
    let first = put(&store, "/a", "1").await.expect("written");
    other.synchronize().await.expect("reachable");
    let mut watcher = other.watch(Bytes::from_static(b"/"), prefix_end(b"/"), first, true).await.expect("begins");
    server.stop();
    let began = Instant::now();
    let refused = put(&store, "/a", "2").await;
    assert!(matches!(refused, Err(WriteError::Unavailable { .. })), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "the refusal took {:?}", began.elapsed());
    let kv = store.get(b"/a", 0).await.expect("reads go on").expect("there");
    assert_eq!(kv.value, "1");
    assert_eq!(store.range(RangeRequest::prefix("/")).await.expect("reads go on").count, 1);
    server.restart().expect("comes back");
    let until = Instant::now() + Duration::from_secs(20);
    let revision = loop {
        match put(&store, "/a", "3").await {
            Ok(revision) => break revision,
            Err(WriteError::Unavailable { .. }) if Instant::now() < until => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let events = events_through(&mut watcher, revision).await;
    let revisions: Vec<u64> = events.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, (first + 1..=revision).collect::<Vec<_>>(), "no gap and nothing twice");
    assert_eq!(events.last().map(|event| event.kv.value.clone()), Some(Bytes::from_static(b"3")));
    store.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_postgres_is_survived() {
    an_outage_is_survived(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_mariadb_is_survived() {
    an_outage_is_survived(Kind::Mysql).await;
}

/// A replica that was cut off while others wrote and compacted starts again from the newest state, and its watchers hear it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_history_can_be_read_with_its_past() {
    let (_folder, path) = folder();
    let Some(server) = server(Kind::Postgres, &path) else { return };
    let one = open(&server.url("past")).await;
    let options = Options { recent_events_max: 0, compaction_interval: None, ..Options::default() };
    let two = endpoint(&server.url("past")).open(&TlsFiles::default(), options).await.expect("the store opens");
    let mut last = 0;
    for number in 0..20 {
        last = put(&one, "/a", &number.to_string()).await.expect("written");
    }
    // At a revision that this replica may not have seen yet.
    let past = two.range(RangeRequest { revision: last, ..RangeRequest::prefix("/") }).await.expect("readable");
    assert_eq!((past.kvs[0].mod_revision, past.revision), (last, last));
    one.compact(last - 5).await.expect("within the history");
    two.transact(0, |transaction| Ok(transaction.range(&KeyRange::prefix(Bytes::from_static(b"/"))).len()))
        .await
        .expect("a read only");
    let refused = two.get(b"/a", last - 6).await;
    assert!(matches!(refused, Err(store::ReadError::Compacted { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_one_etcd() {
    two_replicas_share_one_history(Kind::Etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_etcd_is_survived() {
    an_outage_is_survived(Kind::Etcd).await;
}
