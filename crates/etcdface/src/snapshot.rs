//! Snapshots in etcd's file format: what `etcdctl snapshot save` keeps and `snapshot restore` reads.
//!
//! A snapshot holds what is live at one revision, and is compacted to it: a member that is started from it goes on with the
//! same revisions, and watches from before start again.
//!
//! Follows: etcd's storage schema (`server/storage/schema`) and `Maintenance.Snapshot`.

use bytes::Bytes;
use etcd::proto as pb;
use prost::Message;
use sha2::{Digest, Sha256};
use store::{KeyValue, Snapshot};
use tokio_stream::Iter;
use tonic::Status;

use crate::{Face, TERM, bolt, errors, message, number};

/// Size of one answer; a multiple of a page of the file.
const PIECE_BYTES: usize = 32 << 10;

/// A lease as etcd keeps it.
#[derive(Clone, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

pub(crate) type Pieces = Iter<std::vec::IntoIter<Result<pb::SnapshotResponse, Status>>>;

impl Face {
    /// The file in pieces, and its SHA-256 as the last one.
    pub(crate) async fn snapshot(&self, _: pb::SnapshotRequest) -> Result<Pieces, Status> {
        let revision = self.store.synchronize().await.map_err(errors::read)?;
        let header = self.header(revision);
        let snapshot = self.store.snapshot();
        let made = tokio::task::spawn_blocking(move || {
            let file = Bytes::from(file(&snapshot));
            let sum = Bytes::copy_from_slice(&Sha256::digest(&file));
            (file, sum)
        });
        let (file, sum) = made.await.map_err(|error| Status::internal(error.to_string()))?;
        let pieces = (0..file.len()).step_by(PIECE_BYTES).map(|start| {
            let end = file.len().min(start + PIECE_BYTES);
            ((file.len() - end) as u64, file.slice(start..end))
        });
        let pieces = pieces.chain([(0, sum.clone())]).map(|(remaining_bytes, blob)| {
            Ok(pb::SnapshotResponse { header: header.clone(), remaining_bytes, blob, version: String::new() })
        });
        Ok(tokio_stream::iter(pieces.collect::<Vec<_>>()))
    }
}

/// etcd's database with what a store holds.
fn file(snapshot: &Snapshot) -> Vec<u8> {
    let mut kvs: Vec<&KeyValue> = snapshot.kvs.iter().collect();
    kvs.sort_by(|one, other| (one.mod_revision, &one.key).cmp(&(other.mod_revision, &other.key)));
    let mut keys = Vec::with_capacity(kvs.len());
    for group in kvs.chunk_by(|one, other| one.mod_revision == other.mod_revision) {
        for (sub, kv) in (0..).zip(group) {
            keys.push((revision_key(kv.mod_revision, sub), message((*kv).clone()).encode_to_vec()));
        }
    }
    let mut leases: Vec<bolt::Item> = snapshot
        .leases
        .iter()
        .map(|lease| {
            let stored = StoredLease { id: lease.id, ttl: lease.ttl_seconds };
            (lease.id.to_be_bytes().to_vec(), stored.encode_to_vec())
        })
        .collect();
    leases.sort();
    let compacted = revision_key(snapshot.revision, 0);
    let index = number(snapshot.revision).to_be_bytes().to_vec();
    let meta = vec![
        (b"consistent_index".to_vec(), index),
        (b"finishedCompactRev".to_vec(), compacted.clone()),
        (b"scheduledCompactRev".to_vec(), compacted),
        (b"term".to_vec(), TERM.to_be_bytes().to_vec()),
    ];
    bolt::file([
        ("alarm", Vec::new()),
        ("auth", Vec::new()),
        ("authRoles", Vec::new()),
        ("authUsers", Vec::new()),
        ("cluster", Vec::new()),
        ("key", keys),
        ("lease", leases),
        ("members", Vec::new()),
        ("members_removed", Vec::new()),
        ("meta", meta),
    ])
}

/// `MAIN_SUB`, both as big-endian numbers: the order of bytes is that of the history.
fn revision_key(main: u64, sub: u64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat()
}
