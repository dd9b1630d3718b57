//! Random histories, held against a model that keeps a whole map for every revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use store::contract::events_through;
use store::{
    Backend, CompactError, EventKind, Expect, Memory, Op, Options, RangeRequest, ReadError, Revision, Sqlite,
    SqliteOptions, Store, WatchError, Watcher, WriteError, prefix_end,
};

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        expect: Guess,
        size: u16,
    },
    Delete {
        key: u8,
        expect: Guess,
    },
    Read {
        start: u8,
        end: u8,
        limit: usize,
        back: u8,
    },
    Watch {
        prefix: Prefix,
        back: u8,
    },
    Compact {
        back: u8,
    },
    /// All backend maintenance that is due.
    Maintain,
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Guess {
    Any,
    Absent,
    Right,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
enum Prefix {
    All,
    Folder(u8),
    Key(u8),
}

/// Ten keys in three folders.
fn key(number: u8) -> Bytes {
    Bytes::from(format!("/{}/{}", number % 3, number % 10))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess =
        prop_oneof![3 => Just(Guess::Any), 1 => Just(Guess::Absent), 2 => Just(Guess::Right), 1 => Just(Guess::Wrong)];
    let prefix = prop_oneof![Just(Prefix::All), (0..3u8).prop_map(Prefix::Folder), (0..10u8).prop_map(Prefix::Key)];
    let step = prop_oneof![
        12 => (0..10u8, guess.clone(), 0..200u16).prop_map(|(key, expect, size)| Step::Put { key, expect, size }),
        5 => (0..10u8, guess).prop_map(|(key, expect)| Step::Delete { key, expect }),
        5 => (0..10u8, 0..12u8, 0..4usize, 0..20u8)
            .prop_map(|(start, end, limit, back)| Step::Read { start, end, limit, back }),
        2 => (prefix, 0..20u8).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..20u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Maintain),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..80)
}

type Map = BTreeMap<Bytes, (Bytes, Revision)>;

struct Model {
    /// The state at each revision, from revision 1 on.
    states: Vec<Map>,
    /// The write of each revision, from revision 2 on.
    writes: Vec<(Bytes, EventKind)>,
    compact: Revision,
}

impl Model {
    fn current(&self) -> Revision {
        self.states.len() as Revision
    }

    fn at(&self, revision: Revision) -> &Map {
        &self.states[revision as usize - 1]
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) -> Revision {
        let revision = self.current() + 1;
        let mut map = self.at(revision - 1).clone();
        let kind = match value {
            Some(value) => {
                map.insert(key.clone(), (value, revision));
                EventKind::Put
            }
            None => {
                map.remove(&key);
                EventKind::Delete
            }
        };
        self.states.push(map);
        self.writes.push((key, kind));
        revision
    }

    fn events(
        &self,
        after: Revision,
        matches: impl Fn(&[u8]) -> bool,
    ) -> Vec<(Revision, Bytes, EventKind, Option<Bytes>)> {
        (after + 1..=self.current())
            .map(|revision| (revision, &self.writes[revision as usize - 2]))
            .filter(|(_, (key, _))| matches(key))
            .map(|(revision, (key, kind))| {
                let prev = self.at(revision - 1).get(key).map(|(value, _)| value.clone());
                (revision, key.clone(), *kind, prev)
            })
            .collect()
    }
}

/// A way to the same backend again, after it was closed.
trait Reopen {
    async fn open(&self) -> Arc<dyn Backend>;
}

impl Reopen for Memory {
    async fn open(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }
}

impl Reopen for std::path::PathBuf {
    async fn open(&self) -> Arc<dyn Backend> {
        Arc::new(Sqlite::open(self, SqliteOptions::default()).await.expect("the file opens"))
    }
}

async fn run(place: impl Reopen, steps: Vec<Step>, options: Options) {
    let mut model = Model { states: vec![Map::new()], writes: Vec::new(), compact: 0 };
    let mut backend = place.open().await;
    let mut store = Store::open(backend.clone(), options.clone()).await.expect("opens");
    let mut watchers: Vec<(Prefix, Revision, Watcher)> = Vec::new();
    for step in steps {
        let current = model.current();
        match step {
            Step::Put { key: number, expect, size } => {
                let value = Bytes::from(vec![number; usize::from(size)]);
                write(&store, &mut model, key(number), expect, Some(value)).await;
            }
            Step::Delete { key: number, expect } => write(&store, &mut model, key(number), expect, None).await,
            Step::Read { start, end, limit, back } => {
                let revision = current.saturating_sub(Revision::from(back)).max(1);
                let (start, end) = (key(start), if end > 9 { Bytes::from_static(&[0]) } else { key(end) });
                let request =
                    RangeRequest { start: start.clone(), end: end.clone(), limit, revision, ..Default::default() };
                let answer = store.range(request).await;
                if revision < model.compact {
                    assert!(
                        matches!(answer, Err(ReadError::Compacted { compact_revision, .. }) if compact_revision == model.compact)
                    );
                    continue;
                }
                let answer = answer.expect("readable");
                let all: Vec<(Bytes, Bytes, Revision)> = model
                    .at(revision)
                    .iter()
                    .filter(|(key, _)| **key >= start && (end[..] == [0] || **key < end))
                    .map(|(key, (value, revision))| (key.clone(), value.clone(), *revision))
                    .collect();
                let take = if limit == 0 { all.len() } else { limit.min(all.len()) };
                let found: Vec<_> = answer.kvs.into_iter().map(|kv| (kv.key, kv.value, kv.mod_revision)).collect();
                assert_eq!(found, all[..take], "read at {revision}");
                assert_eq!((answer.count, answer.more), (all.len() as u64, take < all.len()));
            }
            Step::Watch { prefix, back } => {
                let from = current.saturating_sub(Revision::from(back)).max(1);
                let (start, end) = match prefix {
                    Prefix::All => (Bytes::from_static(b"/"), prefix_end(b"/")),
                    Prefix::Folder(folder) => {
                        let start = Bytes::from(format!("/{folder}/"));
                        let end = prefix_end(&start);
                        (start, end)
                    }
                    Prefix::Key(number) => (key(number), Bytes::new()),
                };
                match store.watch(start, end, from, true).await {
                    Ok(watcher) => {
                        assert!(from >= model.compact);
                        watchers.push((prefix, from, watcher));
                    }
                    Err(error) => {
                        let compact_revision = model.compact;
                        assert_eq!(error, WatchError::Compacted { requested: from, compact_revision });
                    }
                }
            }
            Step::Compact { back } => {
                let revision = current.saturating_sub(Revision::from(back)).max(1);
                let compacted = store.compact(revision).await;
                if revision <= model.compact {
                    assert!(matches!(compacted, Err(CompactError::Compacted { .. })));
                } else {
                    // A watcher that lags is allowed to miss what is compacted; here each one reads on first.
                    model.compact = revision;
                    compacted.expect("within the history");
                }
            }
            Step::Maintain => while backend.maintain().await.expect("maintenance works") {},
            Step::Reopen => {
                verify(&model, &mut watchers).await;
                watchers.clear();
                store.close().await;
                backend = place.open().await;
                store = Store::open(backend.clone(), options.clone()).await.expect("opens again");
            }
        }
        assert_eq!((store.current_revision(), store.compact_revision()), (model.current(), model.compact));
    }
    verify(&model, &mut watchers).await;
    store.close().await;
}

async fn write(store: &Store, model: &mut Model, key: Bytes, guess: Guess, value: Option<Bytes>) {
    let before = model.at(model.current()).get(&key).cloned();
    let revision = before.as_ref().map(|(_, revision)| *revision);
    let (expect, met) = match guess {
        Guess::Any => (Expect::Any, true),
        Guess::Absent => (Expect::Absent, before.is_none()),
        Guess::Right => revision.map_or((Expect::Absent, true), |revision| (Expect::ModRevision(revision), true)),
        Guess::Wrong => (Expect::ModRevision(model.current() + 1), false),
    };
    let op = value.clone().map_or(Op::Delete, |value| Op::Put { value, lease: 0 });
    let nothing_to_do = value.is_none() && before.is_none();
    match store.txn(key.clone(), expect, op).await {
        Ok(committed) => {
            assert!(met, "{expect:?} is not met by {before:?}");
            assert_eq!(committed.prev.map(|kv| (kv.value, kv.mod_revision)), before);
            let expected = if nothing_to_do { model.current() } else { model.write(key, value) };
            assert_eq!(committed.revision, expected);
        }
        Err(WriteError::Conflict { current }) => {
            assert!(!met);
            assert_eq!(current.map(|kv| (kv.value, kv.mod_revision)), before);
        }
        Err(error) => panic!("{error}"),
    }
}

/// Each watcher has, or gets, exactly the events of its keys; a lagging one may hear that it is too late.
async fn verify(model: &Model, watchers: &mut [(Prefix, Revision, Watcher)]) {
    for (prefix, from, watcher) in watchers {
        let range = watcher.range().clone();
        let expected = model.events(*from, |key| range.contains(key));
        let Some(last) = expected.last().map(|event| event.0) else { continue };
        if *from < model.compact {
            // It may be told so, but only after events without a gap.
            let mut next = 0;
            while next < expected.len() {
                match watcher.next().await.expect("goes on or says why not") {
                    Ok(batch) => {
                        for event in &batch.events {
                            assert_eq!(event.revision(), expected[next].0, "{prefix:?}: no gap");
                            next += 1;
                        }
                    }
                    Err(error) => {
                        assert!(matches!(error, WatchError::Compacted { .. }), "{error:?}");
                        break;
                    }
                }
            }
            continue;
        }
        let found: Vec<_> = events_through(watcher, last)
            .await
            .iter()
            .map(|event| {
                (event.revision(), event.kv.key.clone(), event.kind, event.prev.as_ref().map(|kv| kv.value.clone()))
            })
            .collect();
        assert_eq!(found, expected, "{prefix:?} from {from}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn small() -> Options {
    Options { recent_events_max: 5, watcher_events_max: 3, compaction_interval: None, ..Options::default() }
}

fn seeded(cases: u32) -> ProptestConfig {
    // proptest prints the seed's persistence line and the smallest failing history.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(seeded(256))]
    #[test]
    fn memory_is_like_the_model(steps in steps(), roomy in any::<bool>()) {
        let options = if roomy { Options { compaction_interval: None, ..Options::default() } } else { small() };
        runtime().block_on(run(Memory::new(), steps, options));
    }
}

proptest! {
    #![proptest_config(seeded(48))]
    #[test]
    fn sqlite_is_like_the_model(steps in steps(), roomy in any::<bool>()) {
        let options = if roomy { Options { compaction_interval: None, ..Options::default() } } else { small() };
        let directory = tempfile::tempdir().expect("a temporary directory");
        runtime().block_on(run(directory.path().join("store.db"), steps, options));
    }
}
