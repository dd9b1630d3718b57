//! Killed at any moment, the store loses no write that it answered and gives no revision out twice.
//!
//! The test starts its own binary again as the writer. The writer says on standard output what was answered; the parent kills
//! it with SIGKILL at a random moment, opens the file itself and compares.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::contract::events_through;
use store::{EventKind, Expect, Op, Options, RangeRequest, Revision, Sqlite, SqliteOptions, Store, prefix_end};

const FILE: &str = "ALCOVE_STORE_CRASH_FILE";
const SEED: &str = "ALCOVE_STORE_CRASH_SEED";
const ROUNDS: u64 = 60;
const WRITERS: u64 = 4;

/// Small windows and frequent compaction, so that a kill meets every kind of work.
fn options() -> Options {
    Options { recent_events_max: 16, compaction_interval: None, ..Options::default() }
}

async fn open(path: &Path) -> Store {
    let backend = Sqlite::open(path, SqliteOptions::default()).await.expect("the file opens after a kill");
    Store::open(Arc::new(backend), options()).await.expect("the store opens after a kill")
}

/// The child: nothing unless it is asked for by environment.
#[test]
fn writer_process() {
    let (Ok(file), Ok(seed)) = (std::env::var(FILE), std::env::var(SEED)) else { return };
    let seed: u64 = seed.parse().expect("a number");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let store = open(Path::new(&file)).await;
        say(format!("\nopen {} {}", store.current_revision(), store.compact_revision()));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (store, mut random) = (store.clone(), StdRng::seed_from_u64(seed * WRITERS + writer));
            writers.spawn(async move {
                loop {
                    let key = format!("/k/{writer}/{}", random.random_range(0..8));
                    let delete = random.random_bool(0.2);
                    let value = format!("{}-{}", random.random::<u64>(), "v".repeat(random.random_range(0..3000)));
                    let op = if delete { Op::Delete } else { Op::Put { value: Bytes::from(value.clone()), lease: 0 } };
                    let before = store.get(key.as_bytes(), 0).await.expect("readable").is_some();
                    let committed = store.txn(Bytes::from(key.clone()), Expect::Any, op).await.expect("written");
                    let hash = if delete { 0 } else { checksum(value.as_bytes()) };
                    if before || !delete {
                        say(format!("ack {} {key} {hash}", committed.revision));
                    }
                    if random.random_bool(0.02) {
                        let compact = committed.revision.saturating_sub(20);
                        if store.compact(compact).await.is_ok() {
                            say(format!("compact {compact} - 0"));
                        }
                    }
                }
            });
        }
        // They end with the process; a panic of one ends it at once.
        let _: Vec<()> = writers.join_all().await;
    });
}

fn say(mut line: String) {
    line.push('\n');
    // One call: lines of several writers do not mix. The parent may be gone already.
    drop(std::io::stdout().lock().write_all(line.as_bytes()));
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)) | 1
}

#[test]
fn a_killed_writer_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("store.db");
    let seed: u64 =
        std::env::var("ALCOVE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}: repeat with ALCOVE_TEST_SEED={seed}");
    let seed = seed >> 16;
    let mut random = StdRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Every answer of every round: revision -> (key, checksum of the value, 0 for a delete).
    let mut acked: BTreeMap<Revision, (String, u64)> = BTreeMap::new();
    let mut compacted = 0;
    let mut newest = 1;
    let mut killed_while_writing = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "crash::writer_process", "--nocapture", "--test-threads=1"])
            .env(FILE, &file)
            .env(SEED, (seed.wrapping_add(round)).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the writer starts");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        let after = Duration::from_micros(random.random_range(0..40_000));
        let mut kill_at: Option<Instant> = None;
        let (mut child, killer) = (Some(child), std::sync::mpsc::channel::<()>());
        let (start_clock, clock) = killer;
        let killer = {
            let mut child = child.take().expect("the writer");
            std::thread::spawn(move || {
                // From the first line on; a writer that never speaks is killed all the same.
                let _ = clock.recv_timeout(Duration::from_secs(20));
                let until = Instant::now() + after;
                while Instant::now() < until {
                    std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
                }
                child.kill().expect("SIGKILL");
                child.wait().expect("its end");
            })
        };
        let mut answers = 0;
        for line in lines.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let fields: Vec<&str> = line.split(' ').collect();
            let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
            match (fields[0], number(1), fields.get(2), number(3)) {
                ("open", Some(current), Some(_), _) => {
                    assert!(
                        current >= newest,
                        "round {round}: the newest revision went back from {newest} to {current}"
                    );
                    kill_at.get_or_insert_with(Instant::now);
                    start_clock.send(()).expect("the killer waits");
                }
                ("ack", Some(revision), Some(key), Some(hash)) => {
                    let again = acked.insert(revision, (key.to_string(), hash));
                    assert_eq!(again, None, "round {round}: revision {revision} was given out twice");
                    newest = newest.max(revision);
                    answers += 1;
                }
                ("compact", Some(revision), Some(_), _) => compacted = compacted.max(revision),
                // The harness's own lines, and a last one that was cut off.
                _ => {}
            }
        }
        killer.join().expect("the killer does not panic");
        assert!(kill_at.is_some(), "round {round}: the writer did not open the store");
        killed_while_writing += u64::from(answers > 0);
        runtime.block_on(check(&file, &acked, compacted, newest, round));
    }
    println!("{} answers, {killed_while_writing} of {ROUNDS} kills while writing", acked.len());
    assert!(killed_while_writing > ROUNDS / 4, "most kills should meet a busy writer");
}

/// What a fresh process finds: each answered write is in the history, in its place, and the live keys are what the history makes.
async fn check(
    file: &Path,
    acked: &BTreeMap<Revision, (String, u64)>,
    compacted: Revision,
    newest: Revision,
    round: u64,
) {
    let store = open(file).await;
    let (current, compact) = (store.current_revision(), store.compact_revision());
    assert!(current >= newest, "round {round}: revision {newest} was answered, the store is at {current}");
    assert!(compact >= compacted, "round {round}: compaction up to {compacted} was answered, the store says {compact}");
    if current == compact || current == 1 {
        store.close().await;
        return;
    }
    let start = compact.max(1);
    let mut live: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let before = store.range(RangeRequest { revision: start, ..RangeRequest::prefix("/") }).await.expect("readable");
    live.extend(before.kvs.into_iter().map(|kv| (kv.key, kv.value)));
    let mut watcher = store
        .watch(Bytes::from_static(b"/"), prefix_end(b"/"), start, true)
        .await
        .expect("a watch from the oldest revision");
    let events = events_through(&mut watcher, current).await;
    let revisions: Vec<Revision> = events.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, (start + 1..=current).collect::<Vec<_>>(), "round {round}: the watch has a gap");
    for event in &events {
        let prev = match event.kind {
            EventKind::Put => live.insert(event.kv.key.clone(), event.kv.value.clone()),
            EventKind::Delete => live.remove(&event.kv.key),
        };
        assert_eq!(event.prev.as_ref().map(|kv| &kv.value), prev.as_ref(), "round {round}: the state before");
        if let Some((key, hash)) = acked.get(&event.revision()) {
            assert_eq!(event.kv.key, key.as_bytes(), "round {round}: revision {}", event.revision());
            let found = if event.kind == EventKind::Delete { 0 } else { checksum(&event.kv.value) };
            assert_eq!(found, *hash, "round {round}: the value of revision {}", event.revision());
        }
    }
    let now = store.range(RangeRequest::prefix("/")).await.expect("readable");
    let now: BTreeMap<Bytes, Bytes> = now.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
    assert_eq!(now, live, "round {round}: the live keys are what the history makes");
    store.close().await;
}
