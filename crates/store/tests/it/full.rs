//! Stores whose disk is full: what cannot be written is refused, what is there can be read, and nothing that was acknowledged is
//! lost. The disk is a small one in memory, which needs the right to mount; without it the tests say that they are skipped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::servers::{Kind, Server};
use store::{Endpoint, Expect, Op, Options, RangeRequest, Store, TlsFiles, WriteError};

use crate::external::server;

/// A small disk, gone with this.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(mebibytes: usize) -> Option<Disk> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        // The servers have users of their own.
        let options = format!("size={mebibytes}m,mode=0755");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Disk(folder));
        }
        println!("skipped: this user may not mount a small disk");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("a file");
        for piece in [1 << 20, 4096] {
            let zeros = vec![0; piece];
            while file.write_all(&zeros).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What still uses it keeps it for so long.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

async fn open(endpoint: &Endpoint) -> Store {
    let options = Options { compaction_interval: None, ..Options::default() };
    endpoint.open(&TlsFiles::default(), options).await.expect("the store opens")
}

async fn put(store: &Store, key: &str, size: usize) -> Result<Bytes, WriteError> {
    let value = Bytes::from(vec![rand::random(); size]);
    let op = Op::Put { value: value.clone(), lease: 0 };
    store.txn(Bytes::copy_from_slice(key.as_bytes()), Expect::Any, op).await.map(|_| value)
}

async fn is_survived(kind: Option<Kind>, mebibytes: usize) {
    let Some(disk) = Disk::new(mebibytes) else { return };
    let mut database: Option<Server> = None;
    let endpoint = match kind {
        None => Endpoint::Sqlite(disk.path().join("state.db")),
        Some(kind) => {
            let Some(started) = server(kind, disk.path()) else { return };
            let endpoint = Endpoint::parse(&started.url("full")).expect("an address");
            database = Some(started);
            endpoint
        }
    };
    let store = open(&endpoint).await;
    let mut acknowledged = BTreeMap::new();
    for number in 0..20 {
        let key = format!("/before/{number}");
        let value = put(&store, &key, 1000).await.expect("there is room");
        acknowledged.insert(key, value);
    }
    disk.fill();
    let mut refused = None;
    for number in 0..400 {
        let key = format!("/while/{number}");
        let began = Instant::now();
        let written = put(&store, &key, 100_000).await;
        assert!(began.elapsed() < Duration::from_secs(15), "an answer took {:?}", began.elapsed());
        match written {
            // Room that the server had taken before.
            Ok(value) => drop(acknowledged.insert(key, value)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("a full disk takes no 40 MB");
    println!("{kind:?}: {} writes acknowledged, then: {refused}", acknowledged.len());
    assert!(matches!(refused, WriteError::Full | WriteError::Unavailable { .. }), "{refused:?}");
    for (key, value) in &acknowledged {
        let found = store.get(key.as_bytes(), 0).await.expect("reads go on").expect("there");
        assert_eq!(found.value, value, "{key}");
    }
    disk.free();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        // A full disk is fatal for some; whoever runs them starts them again.
        if let Some(database) = &mut database
            && database.has_ended()
        {
            database.restart().expect("it starts again when there is room");
        }
        match put(&store, "/after", 100_000).await {
            Ok(value) => break drop(acknowledged.insert("/after".to_string(), value)),
            Err(error) => assert!(Instant::now() < until, "there is room, and still: {error}"),
        }
    }
    store.close().await;
    let again = open(&endpoint).await;
    let found = again.range(RangeRequest::prefix("/")).await.expect("readable").kvs;
    let found: BTreeMap<String, Bytes> =
        found.into_iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.value)).collect();
    for (key, value) in &acknowledged {
        assert!(found.get(key) == Some(value), "{key} was acknowledged and is lost");
    }
    again.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived_on_sqlite() {
    is_survived(None, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived_on_postgres() {
    is_survived(Some(Kind::Postgres), 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived_on_mariadb() {
    is_survived(Some(Kind::Mysql), 260).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived_on_etcd() {
    is_survived(Some(Kind::Etcd), 150).await;
}
