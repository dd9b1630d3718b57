//! From a snapshot back to a store.
//!
//! Every pod loses its node and its status: what ran is not running any more, and the host decides anew. Under a new name
//! what ties keys to host objects of the old name is left out. Data that only moves ([`Origin::Moved`]) stays as it is.
//!
//! Invariant: restoring is all or nothing for a SQLite file (made beside and renamed). Another store is changed key by key;
//! its owner keeps the snapshot until [`into_store`] has returned and calls it again when it did not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apimachinery::{Value, protobuf};
use bytes::Bytes;
use futures::TryStreamExt;
use store::{
    Expect, KeyValue, Op, OpenError, Options, RangeRequest, ReadError, Revision, Snapshot, Sqlite, SqliteOptions,
    Store, WriteError,
};

use crate::archive::{self, ArchiveError, Header};

/// The restored store goes on this far behind every revision that a client may have seen.
pub const REVISION_BUMP: Revision = 1000;
/// Writes under way at the same time.
const WRITES: usize = 128;
/// A store that cannot be set to a revision is written to until it is there, at most this often.
const BUMP_WRITES_MAX: Revision = 20_000;

const MAPPINGS: &[u8] = b"/vcluster/mappings/";
/// Addresses of API servers that are gone.
const MASTER_LEASES: &[u8] = b"/registry/masterleases/";
const PODS: &[u8] = b"/registry/pods/";
const CONFIG_MAPS: &[u8] = b"/registry/configmaps/";
const ROOT_CA: &[u8] = b"/kube-root-ca.crt";
/// Written and removed again to get to a revision. Several keys: writes to one of them at the same time are in each other's way.
const BUMP_KEYS: &str = "/alcove/restore/";

/// Why a snapshot was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the stored value of {key} is not readable: {reason}")]
    Value { key: String, reason: String },
    #[error("the store cannot be opened")]
    Open(#[from] OpenError),
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Write(#[from] WriteError),
}

/// A snapshot as it will be stored.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub header: Header,
    pub entries: BTreeMap<Bytes, Bytes>,
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    pub keys: usize,
    pub revision: Revision,
}

/// What a snapshot is to the cluster that it is restored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Taken of the same cluster some time ago.
    Past,
    /// Taken of a cluster with another name.
    OtherName,
    /// Taken of the same cluster in another place, which has ended since; what it had on the host is there.
    Moved,
}

/// Reads a snapshot file whole. Blocks.
pub fn load(file: &Path, origin: Origin) -> Result<Content, RestoreError> {
    let opened = File::open(file).map_err(|source| RestoreError::File { path: file.to_owned(), source })?;
    let mut entries = BTreeMap::new();
    let header = archive::read::<RestoreError>(BufReader::new(opened), |key, value| {
        if let Some(value) = transform(&key, value, origin)? {
            entries.insert(Bytes::from(key), value);
        }
        Ok(())
    })?;
    Ok(Content { header, entries })
}

/// The value to be stored under a key, or nothing when the key is left out.
fn transform(key: &[u8], value: Vec<u8>, origin: Origin) -> Result<Option<Bytes>, RestoreError> {
    let of_old_name = key.starts_with(MAPPINGS) || key.starts_with(CONFIG_MAPS) && key.ends_with(ROOT_CA);
    if key.starts_with(MASTER_LEASES) || origin == Origin::OtherName && of_old_name {
        return Ok(None);
    }
    let unreadable = |reason: String| RestoreError::Value { key: String::from_utf8_lossy(key).into_owned(), reason };
    let encoded = value.starts_with(protobuf::MAGIC);
    let rescheduled = key.starts_with(PODS) && origin != Origin::Moved;
    if !encoded && !rescheduled {
        return Ok(Some(value.into()));
    }
    let mut object = if encoded {
        // A real kube-apiserver stores protobuf; here everything is stored as JSON, which both read.
        protobuf::decode(&value).map_err(|error| unreadable(error.to_string()))?
    } else {
        Value::from_slice(&value).map_err(|error| unreadable(error.to_string()))?
    };
    if rescheduled {
        object.remove_at(&["spec", "nodeName"]);
        object.remove_at(&["status"]);
    }
    Ok(Some(object.to_vec().into()))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The revision to start behind: newer than what clients of the store and those of the snapshot have seen.
fn start_of(latest: Revision, header: &Header) -> Revision {
    latest.max(header.revision.unwrap_or(0)) + REVISION_BUMP
}

/// Puts the snapshot in place of a SQLite file, which may not exist yet and must not be open.
pub async fn into_sqlite(path: &Path, content: &Content) -> Result<Restored, RestoreError> {
    let options = || Options { compaction_interval: None, ..Options::default() };
    let latest = if path.exists() {
        let old = Store::open_sqlite(path, options()).await?;
        let latest = old.current_revision();
        old.close().await;
        latest
    } else {
        0
    };
    let start = start_of(latest, &content.header);
    let kvs: Vec<KeyValue> = (start + 1..)
        .zip(&content.entries)
        .map(|(revision, (key, value))| KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        })
        .collect();
    let revision = start + kvs.len() as Revision;
    let keys = kvs.len();
    let snapshot = Snapshot { revision, compact_revision: revision, kvs, leases: Vec::new() };

    let fresh = beside(path, ".restoring");
    // What is left of an attempt that was cut short.
    for suffix in ["", "-wal", "-shm", ".lock"] {
        remove(&beside(&fresh, suffix))?;
    }
    let backend = Sqlite::open(&fresh, SqliteOptions::default()).await?;
    let made = Store::open_from(&snapshot, Arc::new(backend), options()).await?;
    let revision = made.current_revision();
    made.close().await;
    // A closed file has no log of its own; one of the old file would be taken for it.
    for suffix in ["-wal", "-shm"] {
        remove(&beside(path, suffix))?;
    }
    let failed = |source| RestoreError::File { path: path.to_owned(), source };
    std::fs::rename(&fresh, path).map_err(failed)?;
    for suffix in ["-wal", "-shm", ".lock"] {
        remove(&beside(&fresh, suffix))?;
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(Restored { keys, revision })
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RestoreError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes an open store hold what the snapshot holds, and nothing else.
pub async fn into_store(store: &Store, content: &Content) -> Result<Restored, RestoreError> {
    let start = start_of(store.current_revision(), &content.header);
    let everything = RangeRequest {
        start: Bytes::from_static(&[0]),
        end: Bytes::from_static(&[0]),
        keys_only: true,
        ..RangeRequest::default()
    };
    let old = store.range(everything).await?.kvs.into_iter().map(|kv| kv.key);
    let gone: Vec<Bytes> = old.filter(|key| !content.entries.contains_key(key)).collect();
    let deletes = gone.into_iter().map(|key| (key, Op::Delete));
    let puts = content.entries.iter().map(|(key, value)| (key.clone(), Op::Put { value: value.clone(), lease: 0 }));
    apply(store, deletes.chain(puts)).await?;
    let missing = start.saturating_sub(store.current_revision());
    if missing > BUMP_WRITES_MAX {
        tracing::warn!(missing, "the restored store stays behind the revision of the snapshot");
    }
    let bump_keys: Vec<Bytes> = (0..WRITES).map(|number| Bytes::from(format!("{BUMP_KEYS}{number}"))).collect();
    let bump = (0..missing.min(BUMP_WRITES_MAX)).zip(bump_keys.iter().cycle());
    apply(store, bump.map(|(_, key)| (key.clone(), Op::Put { value: Bytes::new(), lease: 0 }))).await?;
    apply(store, bump_keys.into_iter().map(|key| (key, Op::Delete))).await?;
    let revision = store.current_revision();
    if let Err(error) = store.compact(revision).await {
        // Only history stays readable a little longer.
        tracing::warn!(error = &error as &dyn std::error::Error, "the restored store was not compacted");
    }
    Ok(Restored { keys: content.entries.len(), revision })
}

async fn apply(store: &Store, writes: impl Iterator<Item = (Bytes, Op)>) -> Result<(), RestoreError> {
    let writes = futures::stream::iter(writes.map(|(key, op)| Ok::<_, WriteError>((key, op))));
    let done = writes.try_for_each_concurrent(WRITES, |(key, op)| {
        let store = store.clone();
        async move { store.txn(key, Expect::Any, op).await.map(drop) }
    });
    Ok(done.await?)
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"},
            "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}})
    }

    #[test]
    fn pods_lose_their_node_and_what_ties_to_the_old_name_is_left_out() {
        let encoded = protobuf::encode(&pod()).unwrap();
        for (key, value, origin, want) in [
            ("/registry/pods/d/p", pod().to_vec(), Origin::Past, Some("{}")),
            ("/registry/pods/d/p", encoded, Origin::OtherName, Some("{}")),
            ("/registry/pods/d/p", b"raw".to_vec(), Origin::Moved, Some("raw")),
            ("/registry/configmaps/d/x", b"raw".to_vec(), Origin::OtherName, Some("raw")),
            ("/registry/configmaps/d/kube-root-ca.crt", b"raw".to_vec(), Origin::Past, Some("raw")),
            ("/registry/configmaps/d/kube-root-ca.crt", b"raw".to_vec(), Origin::OtherName, None),
            ("/vcluster/mappings/a", b"raw".to_vec(), Origin::Past, Some("raw")),
            ("/vcluster/mappings/a", b"raw".to_vec(), Origin::Moved, Some("raw")),
            ("/vcluster/mappings/a", b"raw".to_vec(), Origin::OtherName, None),
            ("/registry/masterleases/1.2.3.4", b"raw".to_vec(), Origin::Past, None),
        ] {
            let got = transform(key.as_bytes(), value, origin).unwrap();
            match want {
                Some("{}") => {
                    let object = Value::from_slice(&got.unwrap()).unwrap();
                    assert_eq!(object.str_at(&["metadata", "name"]), "p");
                    assert_eq!(object.str_at(&["spec", "nodeName"]), "");
                    assert_eq!(object.str_at(&["status", "phase"]), "");
                }
                want => assert_eq!(got.as_deref(), want.map(str::as_bytes), "{key} {origin:?}"),
            }
        }
        assert!(transform(b"/registry/pods/d/p", b"nonsense".to_vec(), Origin::Past).is_err());
    }

    fn content(revision: Option<Revision>) -> Content {
        let entries = [("/registry/a", "1"), ("/registry/b", "2")];
        let entries =
            entries.map(|(key, value)| (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes())));
        Content { header: Header { revision, ..Header::default() }, entries: entries.into() }
    }

    async fn put(store: &Store, key: &'static str) {
        let op = Op::Put { value: Bytes::from_static(b"old"), lease: 0 };
        store.txn(Bytes::from_static(key.as_bytes()), Expect::Any, op).await.unwrap();
    }

    async fn holds(store: &Store) -> Vec<(Bytes, Bytes)> {
        let kvs = store.range(RangeRequest::prefix("/")).await.unwrap().kvs;
        kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
    }

    #[tokio::test]
    async fn a_store_holds_what_the_snapshot_holds_at_a_revision_nobody_has_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        for snapshot_revision in [None, Some(3), Some(500)] {
            let content = content(snapshot_revision);
            let want: Vec<_> = content.entries.clone().into_iter().collect();
            let open = async || Store::open_sqlite(&path, Options::default()).await.unwrap();
            let store = open().await;
            put(&store, "/registry/a").await;
            put(&store, "/registry/gone").await;
            let before = store.current_revision().max(snapshot_revision.unwrap_or(0));
            store.close().await;
            drop(store);
            let restored = into_sqlite(&path, &content).await.unwrap();
            assert_eq!(restored.keys, 2);
            assert!(restored.revision >= before + REVISION_BUMP, "{restored:?} after {before}");
            let store = open().await;
            assert_eq!(holds(&store).await, want);
            assert_eq!(store.current_revision(), restored.revision);
            assert_eq!(store.compact_revision(), restored.revision);

            // The same with a store that stays open.
            put(&store, "/registry/late").await;
            let before = store.current_revision();
            let restored = into_store(&store, &content).await.unwrap();
            assert!(restored.revision >= before + REVISION_BUMP);
            assert_eq!(holds(&store).await, want);
            assert_eq!(store.compact_revision(), restored.revision);
            store.close().await;
        }
    }

    /// The same on real servers, each read again by another process's eyes: a store opened afterwards.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[allow(clippy::print_stdout, reason = "skipped servers, shown when a test fails")]
    async fn a_store_on_a_server_holds_what_the_snapshot_holds() {
        use store::servers::{Kind, Server, StartError};
        use store::{Endpoint, TlsFiles};
        let folder = tempfile::tempdir().unwrap();
        for kind in [Kind::Postgres, Kind::Mysql, Kind::Etcd] {
            let server = match Server::start(kind, folder.path()) {
                Ok(server) => server,
                Err(StartError::NotInstalled(what)) => {
                    println!("skipped: {what} is not installed");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let endpoint = Endpoint::parse(&server.url("restored")).unwrap();
            let tls = TlsFiles::default();
            let content = content(Some(500));
            let want: Vec<_> = content.entries.clone().into_iter().collect();
            let store = endpoint.open(&tls, Options::default()).await.unwrap();
            put(&store, "/registry/a").await;
            put(&store, "/registry/gone").await;
            let before = store.current_revision();
            let restored = into_store(&store, &content).await.unwrap();
            assert!(restored.revision >= before.max(500) + REVISION_BUMP, "{kind:?}: {restored:?} after {before}");
            store.close().await;
            let store = endpoint.open(&tls, Options::default()).await.unwrap();
            assert_eq!(holds(&store).await, want, "{kind:?}");
            assert_eq!(store.current_revision(), restored.revision, "{kind:?}");
            put(&store, "/registry/late").await;
            store.close().await;
        }
    }
}
