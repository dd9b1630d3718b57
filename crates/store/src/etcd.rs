//! etcd: the keys and revisions of an etcd cluster, as they are.
//!
//! Keys, values and revisions are etcd's own, so that kube-apiserver and other clients of etcd may use the same data at the
//! same time. A transaction is one transaction of etcd, under the condition that what it read is unchanged; one watch of all
//! keys keeps the state in memory up to date.
//!
//! Invariant: every revision has an event in the watch, so that having seen a revision means having seen all before it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::etcd::proto as pb;
use ::etcd::proto::compare::TargetUnion;
use ::etcd::proto::request_op::Request;
use ::etcd::proto::watch_request::RequestUnion;
use ::etcd::{Client, Streaming, Tls};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::mpsc;

use crate::backend::{Backend, Batch, Direct, Followed, HistoryRange, Record, Seen, Verdict};
use crate::error::{AppendError, BackendError, HistoryError, OpenError, WriteError};
use crate::tls::{TlsFiles, authorities};
use crate::types::{Event, EventKind, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// Keys that are read at once when a store is opened.
const PAGE_KEYS: i64 = 1000;

/// Operations of one transaction when a store is filled; etcd takes 128 by default.
const FILL_OPERATIONS: usize = 100;

/// Bytes of one transaction when a store is filled; etcd takes 1.5 MiB by default.
const FILL_BYTES: usize = 1 << 20;

/// Writes that are under way at once while revisions are counted up.
const BUMPS_MAX: u64 = 64;

/// Longest time for a watch to begin, and for events that are known to be there.
const BEGIN: Duration = Duration::from_secs(10);

/// The first key there can be; as an end it means that there is none.
const ZERO: Bytes = Bytes::from_static(&[0]);

/// Written and deleted again to count up revisions.
const BUMP_KEY: Bytes = Bytes::from_static(b"/alcove/revision");

/// The keys of an etcd cluster.
pub struct Etcd {
    client: Client,
    shown: String,
    watching: tokio::sync::Mutex<Option<Watching>>,
}

/// A watch of all keys.
struct Watching {
    /// Kept: the stream ends with it.
    _requests: mpsc::Sender<pb::WatchRequest>,
    /// The member that tells.
    member: usize,
    stream: Streaming<pb::WatchResponse>,
    events: VecDeque<pb::Event>,
    /// The compaction that ended the watch.
    compacted: Option<Revision>,
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn revision_of(header: Option<&pb::ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision))
}

fn key_value(kv: pb::KeyValue) -> KeyValue {
    // Copies of exactly this size: what comes in is a slice of a larger message, which would stay alive with it.
    KeyValue {
        key: Bytes::copy_from_slice(&kv.key),
        value: Bytes::copy_from_slice(&kv.value),
        create_revision: unsigned(kv.create_revision),
        mod_revision: unsigned(kv.mod_revision),
        version: unsigned(kv.version),
        lease: kv.lease,
    }
}

fn event(event: pb::Event) -> Option<Event> {
    let kind = if event.r#type() == pb::EventType::Delete { EventKind::Delete } else { EventKind::Put };
    Some(Event { kind, kv: key_value(event.kv?), prev: event.prev_kv.map(key_value) })
}

/// A range in etcd's notation.
fn bounds(range: &KeyRange) -> (Bytes, Bytes) {
    let start = if range.start().is_empty() { ZERO } else { range.start().clone() };
    (start, range.end().cloned().unwrap_or(ZERO))
}

fn is_compacted(status: &::etcd::Status) -> bool {
    status.message().contains("required revision has been compacted")
}

impl Etcd {
    /// A cluster with these members.
    pub async fn open(members: &[String], files: &TlsFiles) -> Result<Etcd, OpenError> {
        let shown = crate::endpoint::without_password(&members.join(","));
        let mut tls = Tls::default();
        if members.iter().any(|member| member.starts_with("https://")) {
            tls.authorities = Some(authorities(files)?);
            if let Some((certificate, key)) = files.identity()? {
                tls.identity = Some((text(certificate)?, text(key)?));
            }
        }
        let client = Client::new(members, &tls)
            .map_err(|error| BackendError::new(format!("use the etcd cluster {shown}"), error))?;
        Ok(Etcd { client, shown, watching: tokio::sync::Mutex::new(None) })
    }

    fn failure(&self, doing: &str) -> impl FnOnce(::etcd::Status) -> BackendError + use<> {
        let doing = format!("{doing} {}", self.shown);
        move |status| BackendError::new(doing, said(&status))
    }

    /// The newest revision, as the majority has it.
    async fn revision(&self) -> Result<Revision, BackendError> {
        let request = pb::RangeRequest { key: ZERO, count_only: true, ..pb::RangeRequest::default() };
        let answer = self.client.range(request).await.map_err(self.failure("ask"))?;
        Ok(revision_of(answer.header.as_ref()))
    }

    async fn begin(&self, after: Revision) -> Result<Watching, BackendError> {
        let (requests, receiver) = mpsc::channel(2);
        let create = pb::WatchCreateRequest {
            key: ZERO,
            range_end: ZERO,
            start_revision: signed(after + 1),
            prev_kv: true,
            ..pb::WatchCreateRequest::default()
        };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let gone = |_| BackendError::new(format!("watch {}", self.shown), "the stream ended at once");
        requests.send(create).await.map_err(gone)?;
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let member = self.client.member();
        let stream = self.client.watch(stream).await.map_err(self.failure("watch"))?;
        let mut watching = Watching { _requests: requests, member, stream, events: VecDeque::new(), compacted: None };
        let late = |_| BackendError::new(format!("watch {}", self.shown), "it did not begin in time");
        // The first answer says that the watch is there.
        tokio::time::timeout(BEGIN, self.receive(&mut watching)).await.map_err(late)??;
        Ok(watching)
    }

    /// Takes the next answer into the buffer.
    async fn receive(&self, watching: &mut Watching) -> Result<(), BackendError> {
        let ended = |why: &str| BackendError::new(format!("watch {}", self.shown), why);
        let answer = tokio::select! {
            biased;
            answer = watching.stream.message() => answer.map_err(self.failure("watch"))?,
            // It has not answered somebody: what it would tell may come never, or late.
            () = self.client.left(watching.member) => return Err(ended("another member is asked now")),
        };
        let answer = answer.ok_or_else(|| ended("the stream ended"))?;
        if answer.compact_revision > 0 {
            watching.compacted = Some(unsigned(answer.compact_revision));
        } else if answer.canceled {
            return Err(ended(&answer.cancel_reason));
        }
        watching.events.extend(answer.events);
        Ok(())
    }

    async fn page(&self, key: Bytes, revision: i64) -> Result<pb::RangeResponse, BackendError> {
        let request =
            pb::RangeRequest { key, range_end: ZERO, limit: PAGE_KEYS, revision, ..pb::RangeRequest::default() };
        self.client.range(request).await.map_err(self.failure("read"))
    }

    /// Counts revisions up to at least `through`, so that no reader of older data takes new revisions for old ones.
    async fn bump(&self, through: Revision) -> Result<(), BackendError> {
        let mut current = self.revision().await?;
        while current < through {
            let mut writes = tokio::task::JoinSet::new();
            for _ in 0..(through - current).min(BUMPS_MAX) {
                let client = self.client.clone();
                writes.spawn(async move { client.put(pb::PutRequest { key: BUMP_KEY, ..Default::default() }).await });
            }
            while let Some(written) = writes.join_next().await {
                let written = written.map_err(|error| BackendError::new(format!("write to {}", self.shown), error))?;
                let answer = written.map_err(self.failure("write to"))?;
                current = current.max(revision_of(answer.header.as_ref()));
            }
        }
        let delete = pb::DeleteRangeRequest { key: BUMP_KEY, ..pb::DeleteRangeRequest::default() };
        self.client.delete_range(delete).await.map_err(self.failure("write to"))?;
        Ok(())
    }
}

/// What a failed call says, with what is below it: a refused handshake is told only there.
fn said(status: &::etcd::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn text(path: &PathBuf) -> Result<String, BackendError> {
    std::fs::read_to_string(path).map_err(|error| BackendError::new(format!("read {}", path.display()), error))
}

fn refused(status: &::etcd::Status, records: &[Record]) -> WriteError {
    let says = |text: &str| status.message().contains(text);
    let size = || records.iter().map(|record| record.kv.value.len()).sum();
    if says("requested lease not found") {
        let lease = records.iter().map(|record| record.kv.lease).find(|lease| *lease != 0).unwrap_or(0);
        return WriteError::LeaseNotFound { lease };
    }
    if says("database space exceeded") {
        return WriteError::Full;
    }
    if says("too large") || says("larger than max") {
        return WriteError::TooLarge { what: "the write", size_bytes: size(), size_bytes_max: FILL_BYTES };
    }
    if says("too many operations") {
        let size_bytes = records.len();
        return WriteError::TooLarge { what: "a transaction (counted in keys)", size_bytes, size_bytes_max: 128 };
    }
    WriteError::Unavailable { why: format!("etcd says {:?}: {}", status.code(), status.message()) }
}

#[async_trait]
impl Backend for Etcd {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        let mut snapshot = Snapshot::default();
        let (mut key, mut at) = (ZERO, 0);
        loop {
            let answer = self.page(key, at).await?;
            if at == 0 {
                at = signed(revision_of(answer.header.as_ref()));
                snapshot.revision = unsigned(at);
            }
            snapshot.kvs.extend(answer.kvs.into_iter().map(key_value));
            match snapshot.kvs.last() {
                Some(last) if answer.more => key = [&last.key[..], &[0]].concat().into(),
                _ => break,
            }
        }
        let hash = self.client.hash_kv(pb::HashKvRequest::default()).await.map_err(self.failure("ask"))?;
        snapshot.compact_revision = unsigned(hash.compact_revision).min(snapshot.revision);
        let leases = self.client.lease_leases(pb::LeaseLeasesRequest {}).await.map_err(self.failure("ask"))?;
        for lease in leases.leases {
            if let Some((lease, _, _)) = self.time_to_live(lease.id).await? {
                snapshot.leases.push(lease);
            }
        }
        snapshot.leases.sort_by_key(|lease| lease.id);
        self.watching.lock().await.take();
        Ok(snapshot)
    }

    /// Keys get new revisions here, all of them above the snapshot's: watches from before have to start again.
    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        for lease in &snapshot.leases {
            let request = pb::LeaseGrantRequest { ttl: lease.ttl_seconds, id: lease.id };
            self.client.lease_grant(request).await.map_err(self.failure("fill"))?;
        }
        self.bump(snapshot.revision).await?;
        let mut success = Vec::new();
        let mut size = 0;
        for kv in &snapshot.kvs {
            let own = kv.key.len() + kv.value.len();
            if !success.is_empty() && (success.len() >= FILL_OPERATIONS || size + own > FILL_BYTES) {
                let txn = pb::TxnRequest { success: std::mem::take(&mut success), ..pb::TxnRequest::default() };
                self.client.txn(txn).await.map_err(self.failure("fill"))?;
                size = 0;
            }
            let (key, value) = (kv.key.clone(), kv.value.clone());
            let put = pb::PutRequest { key, value, lease: kv.lease, ..pb::PutRequest::default() };
            success.push(pb::RequestOp { request: Some(Request::RequestPut(put)) });
            size += own;
        }
        if !success.is_empty() {
            let txn = pb::TxnRequest { success, ..pb::TxnRequest::default() };
            self.client.txn(txn).await.map_err(self.failure("fill"))?;
        }
        let revision = self.revision().await?;
        self.compact(revision).await?;
        Ok(())
    }

    async fn append(&self, _: Arc<Batch>) -> Result<(), AppendError> {
        let why = "etcd gives out revisions by itself";
        Err(AppendError::NotApplied(BackendError::new(format!("append to {}", self.shown), why)))
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        self.revision().await
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError> {
        if range.is_empty() {
            return Ok(HistoryRange::default());
        }
        let (key, range_end) = bounds(range);
        let request = pb::RangeRequest {
            key,
            range_end,
            revision: signed(at),
            limit: i64::try_from(limit).unwrap_or(0),
            count_only,
            ..pb::RangeRequest::default()
        };
        let answer = match self.client.range(request).await {
            Ok(answer) => answer,
            // etcd does not say how far: at least beyond what was asked for.
            Err(status) if is_compacted(&status) => {
                return Err(HistoryError::Compacted { compact_revision: at + 1 });
            }
            Err(status) => return Err(self.failure("read")(status).into()),
        };
        Ok(HistoryRange { kvs: answer.kvs.into_iter().map(key_value).collect(), count: unsigned(answer.count) })
    }

    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        let mut events: Vec<Event> = Vec::new();
        if after >= through {
            return Ok(events);
        }
        let mut watching = self.begin(after).await?;
        loop {
            while let Some(next) = watching.events.pop_front() {
                let Some(next) = event(next) else { continue };
                let revision = next.revision();
                let enough = events.len() >= limit && events.last().is_some_and(|last| last.revision() < revision);
                if revision > through || enough {
                    return Ok(events);
                }
                if range.contains(&next.kv.key) {
                    events.push(next);
                }
                let last_of_answer = watching.events.is_empty();
                // All events of a revision come in one answer.
                if revision == through && last_of_answer {
                    return Ok(events);
                }
            }
            if let Some(compact_revision) = watching.compacted {
                return Err(HistoryError::Compacted { compact_revision });
            }
            let late = |_| BackendError::new(format!("read {}", self.shown), "events did not come in time");
            tokio::time::timeout(BEGIN, self.receive(&mut watching)).await.map_err(late)??;
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        let request = pb::CompactionRequest { revision: signed(revision), physical: false };
        match self.client.compact(request).await {
            Ok(_) => Ok(()),
            // Somebody else was faster.
            Err(status) if is_compacted(&status) => Ok(()),
            Err(status) => Err(self.failure("compact")(status)),
        }
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        // etcd's own business.
        Ok(false)
    }

    async fn close(&self) {
        self.watching.lock().await.take();
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn direct(&self) -> Option<&dyn Direct> {
        Some(self)
    }

    async fn changed(&self) -> Result<(), BackendError> {
        let mut kept = self.watching.lock().await;
        // A new watch is begun by whoever knows from where.
        let Some(watching) = kept.as_mut() else { return Ok(()) };
        if !watching.events.is_empty() || watching.compacted.is_some() {
            return Ok(());
        }
        let received = self.receive(watching).await;
        if received.is_err() {
            kept.take();
        }
        received
    }

    async fn follow(&self, after: Revision) -> Result<Followed, HistoryError> {
        let mut kept = self.watching.lock().await;
        let mut watching = match kept.take() {
            Some(watching) => watching,
            None => self.begin(after).await?,
        };
        // What has come in already, without waiting for more.
        while watching.compacted.is_none()
            && let Some(received) = self.receive(&mut watching).now_or_never()
        {
            received?;
        }
        let events: Vec<Event> =
            watching.events.drain(..).filter_map(event).filter(|event| event.revision() > after).collect();
        if events.is_empty()
            && let Some(compact_revision) = watching.compacted
        {
            return Err(HistoryError::Compacted { compact_revision });
        }
        *kept = Some(watching);
        let revision = events.last().map_or(after, Event::revision);
        Ok(Followed { events, revision, compact_revision: 0, leases: None })
    }
}

#[async_trait]
impl Direct for Etcd {
    async fn commit(&self, seen: &[Seen], records: &[Record]) -> Result<Verdict, WriteError> {
        let compare = seen.iter().map(|seen| match seen {
            Seen::Key { key, mod_revision } => pb::Compare {
                result: pb::CompareResult::Equal as i32,
                target: pb::CompareTarget::Mod as i32,
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(signed(*mod_revision))),
                range_end: Bytes::new(),
            },
            Seen::Range { range, revision } => {
                let (key, range_end) = bounds(range);
                pb::Compare {
                    result: pb::CompareResult::Less as i32,
                    target: pb::CompareTarget::Mod as i32,
                    key,
                    target_union: Some(TargetUnion::ModRevision(signed(*revision + 1))),
                    range_end,
                }
            }
        });
        let success = records.iter().map(|record| {
            let key = record.kv.key.clone();
            let request = if record.deleted {
                Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..pb::DeleteRangeRequest::default() })
            } else {
                let (value, lease) = (record.kv.value.clone(), record.kv.lease);
                Request::RequestPut(pb::PutRequest { key, value, lease, ..pb::PutRequest::default() })
            };
            pb::RequestOp { request: Some(request) }
        });
        let request = pb::TxnRequest { compare: compare.collect(), success: success.collect(), failure: Vec::new() };
        let answer = self.client.txn(request).await.map_err(|status| refused(&status, records))?;
        let revision = revision_of(answer.header.as_ref());
        Ok(if answer.succeeded { Verdict::Committed { revision } } else { Verdict::Stale { revision } })
    }

    async fn grant(&self, lease: LeaseRecord) -> Result<LeaseRecord, WriteError> {
        let request = pb::LeaseGrantRequest { ttl: lease.ttl_seconds, id: lease.id };
        match self.client.lease_grant(request).await {
            Ok(granted) => Ok(LeaseRecord { id: granted.id, ttl_seconds: granted.ttl }),
            Err(status) if status.message().contains("lease already exists") => {
                Err(WriteError::LeaseExists { lease: lease.id })
            }
            Err(status) => Err(refused(&status, &[])),
        }
    }

    async fn revoke(&self, id: i64) -> Result<Revision, WriteError> {
        match self.client.lease_revoke(pb::LeaseRevokeRequest { id }).await {
            Ok(answer) => Ok(revision_of(answer.header.as_ref())),
            Err(status) if status.message().contains("requested lease not found") => {
                Err(WriteError::LeaseNotFound { lease: id })
            }
            Err(status) => Err(refused(&status, &[])),
        }
    }

    async fn keep_alive(&self, id: i64) -> Result<Option<i64>, BackendError> {
        let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        let mut answers = self.client.lease_keep_alive(requests).await.map_err(self.failure("ask"))?;
        let late = |_| BackendError::new(format!("ask {}", self.shown), "there was no answer in time");
        let answer = tokio::time::timeout(BEGIN, answers.message()).await.map_err(late)?;
        let answer = answer.map_err(self.failure("ask"))?;
        Ok(answer.filter(|answer| answer.ttl > 0).map(|answer| answer.ttl))
    }

    async fn time_to_live(&self, id: i64) -> Result<Option<(LeaseRecord, i64, Vec<Bytes>)>, BackendError> {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let answer = match self.client.lease_time_to_live(request).await {
            Ok(answer) => answer,
            Err(status) if status.message().contains("requested lease not found") => return Ok(None),
            Err(status) => return Err(self.failure("ask")(status)),
        };
        let lease = LeaseRecord { id, ttl_seconds: answer.granted_ttl };
        Ok((answer.ttl >= 0).then_some((lease, answer.ttl, answer.keys)))
    }
}
