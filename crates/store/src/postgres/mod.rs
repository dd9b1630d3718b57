//! PostgreSQL: the log in a database that several replicas may share.
//!
//! - `alcove_head` has one row: newest revision, compaction, and two counters that change when a batch prepared before must
//!   not be written any more (`fence`) and when leases have changed (`lease_epoch`).
//! - `alcove_log`, `alcove_live` and `alcove_lease` are as in the SQLite file.
//!
//! A batch is one statement on one connection. When it comes too late, because another replica has written, this process
//! locks the row of `alcove_head` and keeps it until its next try, so that a busy replica does not starve the others.
//! Replicas tell each other with NOTIFY, sent after the commit and outside of it: inside it would take a lock that all
//! commits of the database server share.
//!
//! Every call has a time limit. A write whose answer is lost is settled by raising the fence first: from then on the lost
//! statement can not come true any more.

mod connect;
mod sql;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, IsolationLevel, Row, SimpleQueryMessage, Transaction};

use self::connect::{Address, Link};
use crate::backend::{Backend, Batch, Followed, HistoryRange, Position, Record, last_position, positions, revision_of};
use crate::error::{AppendError, BackendError, HistoryError, OpenError};
use crate::tls::TlsFiles;
use crate::types::{Event, EventKind, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// Connections that read history at the same time.
const READS_MAX: usize = 2;

/// Rows that one step of compaction looks at.
const CLEAN_ROWS: i64 = 512;

/// Events that are taken over at once from other replicas.
const FOLLOW_EVENTS: usize = 1000;

/// Other replicas are looked for this often even when nobody has told of a change.
const SAFETY_NET: Duration = Duration::from_secs(1);

/// A B-tree entry of PostgreSQL holds no more.
const KEY_BYTES: usize = 2600;

/// A log in a PostgreSQL database.
pub struct Postgres {
    address: Address,
    /// Tells our rows from those of other replicas.
    writer: i64,
    writing: tokio::sync::Mutex<Option<Writing>>,
    reading: Semaphore,
    readers: Mutex<Vec<Link>>,
    listening: tokio::sync::Mutex<Option<Link>>,
    notifier: Arc<Notifier>,
    fence: AtomicI64,
    lease_epoch: AtomicI64,
}

struct Writing {
    link: Link,
    append: tokio_postgres::Statement,
    /// A transaction is open that has locked the head.
    has_turn: bool,
}

/// Tells other replicas about the newest revision; while one notification is on its way later ones are put together.
#[derive(Default)]
struct Notifier {
    client: Mutex<Option<Arc<Client>>>,
    newest: AtomicU64,
    busy: AtomicBool,
}

impl Notifier {
    fn tell(self: &Arc<Self>, writer: i64, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::AcqRel);
        let Some(client) = self.client.lock().clone() else { return };
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let notifier = self.clone();
        tokio::spawn(async move {
            loop {
                let newest = notifier.newest.load(Ordering::Acquire);
                let text = format!("{writer}:{newest}");
                let told = async { client.execute("SELECT pg_notify('alcove', $1)", &[&text]).await };
                if !matches!(tokio::time::timeout(connect::ANSWER, told).await, Ok(Ok(_))) {
                    tracing::debug!("other replicas were not told; they look by themselves");
                }
                if notifier.newest.load(Ordering::Acquire) == newest {
                    notifier.busy.store(false, Ordering::Release);
                    let more = notifier.newest.load(Ordering::Acquire) != newest;
                    if !more || notifier.busy.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            }
        });
    }
}

fn sql(number: u64) -> i64 {
    number as i64
}

fn number(row: &Row, index: usize) -> u64 {
    row.get::<_, i64>(index).unsigned_abs()
}

fn bytes(row: &Row, index: usize) -> Bytes {
    Bytes::copy_from_slice(row.get::<_, &[u8]>(index))
}

/// The columns `pos, key, create_revision, version, lease, value` from `first` on.
fn key_value(row: &Row, first: usize) -> KeyValue {
    KeyValue {
        mod_revision: revision_of(number(row, first)),
        key: bytes(row, first + 1),
        create_revision: number(row, first + 2),
        version: number(row, first + 3),
        lease: row.get(first + 4),
        value: bytes(row, first + 5),
    }
}

struct Head {
    revision: Revision,
    compact_revision: Revision,
    cleaned: Position,
    fence: i64,
    lease_epoch: i64,
    schema_version: i32,
}

impl Head {
    fn of(row: &Row) -> Head {
        Head {
            revision: number(row, 0),
            compact_revision: number(row, 1),
            cleaned: number(row, 2),
            fence: row.get(3),
            lease_epoch: row.get(4),
            schema_version: row.get(5),
        }
    }
}

/// Whether the server said that the statement failed, so that it certainly was not carried out.
fn refused(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| error.parsed_severity() == Some(Severity::Error))
}

fn is_full(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::DISK_FULL)
}

impl Postgres {
    /// Removes the database at an address, if it is there.
    pub async fn remove(url: &str, tls: &TlsFiles) -> Result<(), BackendError> {
        Address::parse(url, tls)?.drop_database().await
    }

    /// Opens the log in the database of `postgres://USER:PASSWORD@HOST:PORT/DATABASE`; makes database and tables if they are
    /// not there.
    pub async fn open(url: &str, tls: &TlsFiles) -> Result<Postgres, OpenError> {
        let address = Address::parse(url, tls)?;
        address.ensure_database().await?;
        let link = address.connect().await?;
        address.within(link.client.batch_execute(&format!("BEGIN; {}; COMMIT", sql::SCHEMA))).await?;
        let head = Head::of(&address.within(link.client.query_one(sql::HEAD, &[])).await?);
        if head.schema_version > sql::SCHEMA_VERSION {
            return Err(OpenError::NewerSchema {
                path: address.shown.clone(),
                found: head.schema_version.into(),
                known: sql::SCHEMA_VERSION.into(),
            });
        }
        Ok(Postgres {
            address,
            writer: rand::random(),
            writing: tokio::sync::Mutex::new(None),
            reading: Semaphore::new(READS_MAX),
            readers: Mutex::new(vec![link]),
            listening: tokio::sync::Mutex::new(None),
            notifier: Arc::default(),
            fence: AtomicI64::new(head.fence),
            lease_epoch: AtomicI64::new(head.lease_epoch),
        })
    }

    async fn connect_writer(&self) -> Result<Writing, BackendError> {
        let link = self.address.connect().await?;
        let append = self.address.within(link.client.prepare(sql::APPEND)).await?;
        Ok(Writing { link, append, has_turn: false })
    }

    /// Reads in one transaction, so that everything is of one state.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&Transaction<'_>) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, BackendError> {
        self.with_reader(async |client| {
            let transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()
                .await?;
            let answer = work(&transaction).await?;
            transaction.commit().await?;
            Ok(answer)
        })
        .await
    }

    /// Gives a connection for reading to `work`.
    async fn with_reader<T>(
        &self,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, BackendError> {
        let closed = |_| BackendError::new(format!("read {}", self.address.shown), "the store is closed");
        let _permit = self.reading.acquire().await.map_err(closed)?;
        let kept = self.readers.lock().pop().filter(|link| !link.client.is_closed());
        let mut link = match kept {
            Some(link) => link,
            None => self.address.connect().await?,
        };
        let Some(client) = Arc::get_mut(&mut link.client) else {
            return Err(BackendError::new(format!("read {}", self.address.shown), "the connection is in use"));
        };
        // A connection that was late or broke is not used again.
        let answer = self.address.within(work(client)).await?;
        let mut readers = self.readers.lock();
        if readers.len() < READS_MAX && !self.reading.is_closed() {
            readers.push(link);
        }
        Ok(answer)
    }

    async fn append_with(&self, writing: &mut Writing, batch: &Batch) -> Result<(), AppendError> {
        let known = (self.fence.load(Ordering::Acquire), self.lease_epoch.load(Ordering::Acquire));
        let first = batch.after;
        let last = batch.records.last().map_or(first, Record::revision);
        let written = self.execute(writing, batch, (first, last), known).await?;
        if written {
            return self.finish(writing, batch, known.1, last).await;
        }
        if writing.has_turn {
            // Nobody could have written since: the store has not caught up.
            return Err(AppendError::Behind);
        }
        let client = &writing.link.client;
        let lock = async {
            client.batch_execute("BEGIN").await?;
            client.query_one(&format!("{} FOR UPDATE", sql::HEAD), &[]).await
        };
        let head = Head::of(&self.address.within(lock).await.map_err(AppendError::NotApplied)?);
        writing.has_turn = true;
        self.fence.store(head.fence, Ordering::Release);
        if head.revision != first || head.lease_epoch != known.1 {
            return Err(AppendError::Behind);
        }
        // Only the fence had been raised.
        if !self.execute(writing, batch, (first, last), (head.fence, known.1)).await? {
            return Err(AppendError::Behind);
        }
        self.finish(writing, batch, known.1, last).await
    }

    async fn finish(
        &self,
        writing: &mut Writing,
        batch: &Batch,
        lease_epoch: i64,
        last: Revision,
    ) -> Result<(), AppendError> {
        if writing.has_turn {
            self.address.within(writing.link.client.batch_execute("COMMIT")).await.map_err(AppendError::Unknown)?;
            writing.has_turn = false;
        }
        if !batch.leases.is_empty() {
            self.lease_epoch.store(lease_epoch + 1, Ordering::Release);
        }
        self.notifier.tell(self.writer, last);
        Ok(())
    }

    /// Returns whether the head was as expected.
    async fn execute(
        &self,
        writing: &Writing,
        batch: &Batch,
        (before, after): (Revision, Revision),
        (fence, lease_epoch): (i64, i64),
    ) -> Result<bool, AppendError> {
        let rows = batch.rows();
        let places: Vec<i64> = rows.log.iter().map(|row| sql(row.place)).collect();
        // -1: to be looked up.
        let prevs: Vec<i64> = rows.log.iter().map(|row| row.prev.map_or(-1, sql)).collect();
        let records = || batch.records.iter();
        let keys: Vec<&[u8]> = records().map(|record| &record.kv.key[..]).collect();
        let creates: Vec<i64> = records().map(|record| sql(record.kv.create_revision)).collect();
        let versions: Vec<i64> = records().map(|record| sql(record.kv.version)).collect();
        let leases: Vec<i64> = records().map(|record| record.kv.lease).collect();
        let deleted: Vec<bool> = records().map(|record| record.deleted).collect();
        let values: Vec<&[u8]> = records().map(|record| &record.kv.value[..]).collect();
        let (put_keys, put_places): (Vec<&[u8]>, Vec<i64>) =
            rows.live.iter().filter_map(|(key, place)| Some((&key[..], sql((*place)?)))).unzip();
        let gone: Vec<&[u8]> = rows.live.iter().filter(|(_, place)| place.is_none()).map(|(key, _)| &key[..]).collect();
        let (granted, ttls): (Vec<i64>, Vec<i64>) =
            rows.leases.iter().filter_map(|(id, ttl)| ttl.map(|ttl| (*id, ttl))).unzip();
        let revoked: Vec<i64> = rows.leases.iter().filter(|(_, ttl)| ttl.is_none()).map(|(id, _)| *id).collect();
        let (before, after) = (sql(before), sql(after));
        let answer = tokio::time::timeout(
            connect::ANSWER,
            writing.link.client.query_one(
                &writing.append,
                &[
                    &before,
                    &fence,
                    &lease_epoch,
                    &after,
                    &places,
                    &keys,
                    &prevs,
                    &creates,
                    &versions,
                    &leases,
                    &deleted,
                    &values,
                    &self.writer,
                    &put_keys,
                    &put_places,
                    &gone,
                    &granted,
                    &ttls,
                    &revoked,
                ],
            ),
        )
        .await;
        match answer {
            Ok(Ok(row)) => Ok(row.get::<_, i64>(0) == 1),
            Ok(Err(error)) if is_full(&error) => Err(AppendError::Full),
            Ok(Err(error)) if refused(&error) || writing.has_turn => {
                Err(AppendError::NotApplied(self.address.failure("write to", error)))
            }
            Ok(Err(error)) => Err(AppendError::Unknown(self.address.failure("write to", error))),
            Err(_) => {
                let late = BackendError::new(format!("write to {}", self.address.shown), "there was no answer in time");
                Err(if writing.has_turn { AppendError::NotApplied(late) } else { AppendError::Unknown(late) })
            }
        }
    }

    async fn read_events(
        transaction: &Transaction<'_>,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, tokio_postgres::Error> {
        let start = &range.start()[..];
        let end = range.end().map(|end| &end[..]);
        let read = async |after: Position, through: Position, limit: Option<i64>| {
            let rows = transaction.query(sql::EVENTS, &[&sql(after), &sql(through), &start, &end, &limit]).await?;
            let events = rows.iter().map(|row| {
                let kind = if row.get::<_, bool>(6) { EventKind::Delete } else { EventKind::Put };
                let prev = row.get::<_, Option<i64>>(7).map(|_| key_value(row, 7));
                (number(row, 0), Event { kind, kv: key_value(row, 0), prev })
            });
            Ok::<Vec<(Position, Event)>, tokio_postgres::Error>(events.collect())
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut events = read(last_position(after), last_position(through), Some(limit)).await?;
        if events.len() as i64 >= limit
            && let Some((last, event)) = events.last()
        {
            let rest = read(*last, last_position(event.revision()), None).await?;
            events.extend(rest);
        }
        Ok(events.into_iter().map(|(_, event)| event).collect())
    }

    async fn read_leases(transaction: &Transaction<'_>) -> Result<Vec<LeaseRecord>, tokio_postgres::Error> {
        let rows = transaction.query("SELECT id, ttl_seconds FROM alcove_lease ORDER BY id", &[]).await?;
        Ok(rows.iter().map(|row| LeaseRecord { id: row.get(0), ttl_seconds: row.get(1) }).collect())
    }

    fn is_own(&self, told: &str) -> bool {
        told.split_once(':').is_some_and(|(writer, _)| writer.parse() == Ok(self.writer))
    }
}

#[async_trait]
impl Backend for Postgres {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        let (head, rows, leases) = self
            .read(async |transaction| {
                let head = Head::of(&transaction.query_one(sql::HEAD, &[]).await?);
                let rows = transaction.query(sql::LIVE, &[]).await?;
                Ok((head, rows, Postgres::read_leases(transaction).await?))
            })
            .await?;
        let mut kvs = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.get::<_, Option<bool>>(6) != Some(false) {
                let revision = revision_of(number(row, 0));
                let why = format!("the log has no row for the live key of revision {revision}");
                return Err(OpenError::Corrupt { path: self.address.shown.clone(), why });
            }
            kvs.push(key_value(row, 0));
        }
        self.fence.store(head.fence, Ordering::Release);
        self.lease_epoch.store(head.lease_epoch, Ordering::Release);
        Ok(Snapshot { revision: head.revision, compact_revision: head.compact_revision, kvs, leases })
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let mut link = self.address.connect().await?;
        let Some(client) = Arc::get_mut(&mut link.client) else { return Ok(()) };
        let places = positions(snapshot.kvs.iter().map(|kv| kv.mod_revision));
        let fill = async {
            let transaction = client.transaction().await?;
            let head = Head::of(&transaction.query_one(&format!("{} FOR UPDATE", sql::HEAD), &[]).await?);
            if head.revision != crate::FIRST_REVISION {
                return Ok(Some(head.revision));
            }
            let insert =
                transaction.prepare("INSERT INTO alcove_log VALUES ($1, $2, 0, $3, $4, $5, false, $6, $7)").await?;
            let live = transaction.prepare("INSERT INTO alcove_live VALUES ($1, $2)").await?;
            for (place, kv) in places.iter().zip(&snapshot.kvs) {
                let (place, create, version) = (sql(*place), sql(kv.create_revision), sql(kv.version));
                let (key, value) = (&kv.key[..], &kv.value[..]);
                let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
                    [&place, &key, &create, &version, &kv.lease, &self.writer, &value];
                tokio::try_join!(transaction.execute(&insert, &params), async {
                    transaction.execute(&live, &[&key, &place]).await
                })?;
            }
            for lease in &snapshot.leases {
                let statement = "INSERT INTO alcove_lease (id, ttl_seconds) VALUES ($1, $2)";
                transaction.execute(statement, &[&lease.id, &lease.ttl_seconds]).await?;
            }
            let revision = sql(snapshot.revision);
            let statement = "UPDATE alcove_head SET revision = $1, compact_revision = $1, cleaned = $2, \
                             fence = fence + 1, lease_epoch = lease_epoch + 1";
            transaction.execute(statement, &[&revision, &sql(last_position(snapshot.revision))]).await?;
            transaction.commit().await?;
            Ok(None)
        };
        // As long as it takes: nothing else happens meanwhile.
        match fill.await.map_err(|error: tokio_postgres::Error| self.address.failure("fill", error))? {
            Some(revision) => Err(OpenError::NotEmpty { revision }),
            None => Ok(()),
        }
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let mut kept = self.writing.lock().await;
        let mut writing = match kept.take().filter(|writing| !writing.link.client.is_closed()) {
            Some(writing) => writing,
            None => self.connect_writer().await.map_err(AppendError::NotApplied)?,
        };
        let appended = self.append_with(&mut writing, &batch).await;
        // After any other error nobody knows what the session still does: it is ended, and what it has open rolled back.
        if matches!(appended, Ok(()) | Err(AppendError::Behind)) {
            *kept = Some(writing);
        }
        appended
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        // As text and without a transaction: one round trip, for each read that has to be current.
        let rows = self.with_reader(async |client| client.simple_query(sql::REVISION).await).await?;
        let revision = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        revision.ok_or_else(|| BackendError::new(format!("read {}", self.address.shown), "it has no revision"))
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError> {
        let start = &range.start()[..];
        let end = range.end().map(|end| &end[..]);
        let read = self
            .read(async |transaction| {
                let head = Head::of(&transaction.query_one(sql::HEAD, &[]).await?);
                if at < head.compact_revision {
                    return Ok(Err(head.compact_revision));
                }
                let keys = transaction.query(sql::KEYS_AT, &[&start, &end, &sql(last_position(at))]).await?;
                let count = keys.len() as u64;
                let take = match (count_only, limit) {
                    (true, _) => 0,
                    (false, 0) => usize::MAX,
                    (false, limit) => limit,
                };
                let places: Vec<i64> = keys.iter().take(take).map(|row| row.get(1)).collect();
                let mut kvs = Vec::new();
                if !places.is_empty() {
                    let rows = transaction.query(sql::VALUES, &[&places]).await?;
                    kvs = rows.iter().map(|row| key_value(row, 0)).collect();
                }
                kvs.sort_by(|one: &KeyValue, other| one.key.cmp(&other.key));
                Ok(Ok(HistoryRange { kvs, count }))
            })
            .await?;
        read.map_err(|compact_revision| HistoryError::Compacted { compact_revision })
    }

    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        let read = self
            .read(async |transaction| {
                let head = Head::of(&transaction.query_one(sql::HEAD, &[]).await?);
                if after < head.compact_revision {
                    return Ok(Err(head.compact_revision));
                }
                Ok(Ok(Postgres::read_events(transaction, range, after, through, limit).await?))
            })
            .await?;
        read.map_err(|compact_revision| HistoryError::Compacted { compact_revision })
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        let link = self.address.connect().await?;
        let statement = "UPDATE alcove_head SET compact_revision = GREATEST(compact_revision, $1)";
        self.address.within(link.client.execute(statement, &[&sql(revision)])).await?;
        Ok(())
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        let (head, rows) = self
            .read(async |transaction| {
                let head = Head::of(&transaction.query_one(sql::HEAD, &[]).await?);
                let statement =
                    "SELECT pos, prev, deleted FROM alcove_log WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3";
                let through = sql(last_position(head.compact_revision));
                let rows = transaction.query(statement, &[&sql(head.cleaned), &through, &CLEAN_ROWS]).await?;
                Ok((head, rows))
            })
            .await?;
        let end = last_position(head.compact_revision);
        if head.compact_revision == 0 || head.cleaned >= end {
            return Ok(false);
        }
        let mut gone: Vec<i64> = Vec::new();
        for row in &rows {
            let (pos, prev, deleted): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
            if prev > 0 {
                gone.push(prev);
            }
            if deleted {
                gone.push(pos);
            }
        }
        let reached = match rows.last() {
            Some(last) if rows.len() as i64 == CLEAN_ROWS => last.get(0),
            _ => sql(end),
        };
        let link = self.address.connect().await?;
        let clean = "WITH gone AS (DELETE FROM alcove_log WHERE pos = ANY($1::bigint[])) \
                     UPDATE alcove_head SET cleaned = GREATEST(cleaned, $2)";
        self.address.within(link.client.execute(clean, &[&gone, &reached])).await?;
        Ok(reached < sql(end))
    }

    async fn close(&self) {
        self.reading.close();
        self.notifier.client.lock().take();
        self.readers.lock().clear();
        self.writing.lock().await.take();
        self.listening.lock().await.take();
    }

    fn key_bytes_max(&self) -> usize {
        KEY_BYTES
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn settle(&self, batch: &Batch) -> Result<Option<bool>, BackendError> {
        let Some((place, end)) = batch.placed().last().map(|(place, record)| (sql(place), record.revision())) else {
            return Ok(None);
        };
        self.writing.lock().await.take();
        let link = self.address.connect().await?;
        // Waits for the lost statement if it is being carried out, and keeps it from being carried out later.
        let raise = "UPDATE alcove_head SET fence = fence + 1 RETURNING fence, compact_revision";
        let head = self.address.within(link.client.query_one(raise, &[])).await?;
        self.fence.store(head.get(0), Ordering::Release);
        let statement = "SELECT writer FROM alcove_log WHERE pos = $1";
        let row = self.address.within(link.client.query_opt(statement, &[&place])).await?;
        Ok(match row {
            Some(row) => Some(row.get::<_, i64>(0) == self.writer),
            None if end <= number(&head, 1) => None,
            None => Some(false),
        })
    }

    async fn release(&self) {
        let mut kept = self.writing.lock().await;
        if let Some(writing) = kept.as_mut()
            && writing.has_turn
        {
            match self.address.within(writing.link.client.batch_execute("ROLLBACK")).await {
                Ok(()) => writing.has_turn = false,
                // Ending the session has the same effect.
                Err(_) => drop(kept.take()),
            }
        }
    }

    async fn changed(&self) -> Result<(), BackendError> {
        let mut listening = self.listening.lock().await;
        if listening.as_ref().is_none_or(|link| link.client.is_closed()) {
            self.notifier.client.lock().take();
            let link = self.address.connect().await?;
            self.address.within(link.client.batch_execute("LISTEN alcove")).await?;
            *self.notifier.client.lock() = Some(link.client.clone());
            *listening = Some(link);
            // Something may have been said before.
            return Ok(());
        }
        let Some(link) = listening.as_mut() else { return Ok(()) };
        let told = async {
            loop {
                match link.notifications.recv().await {
                    Some(told) if self.is_own(&told) => {}
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(SAFETY_NET, told).await {
            Ok(None) => {
                listening.take();
                self.notifier.client.lock().take();
                Err(BackendError::new(format!("listen to {}", self.address.shown), "the connection was lost"))
            }
            // One look is enough for all that has been said.
            Ok(Some(_)) => {
                while link.notifications.try_recv().is_ok() {}
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    async fn renew(&self, id: i64) -> Result<(), BackendError> {
        self.read_write("UPDATE alcove_lease SET renewed = now() WHERE id = $1", &[&id]).await.map(drop)
    }

    async fn expired(&self, ids: Vec<i64>) -> Result<Vec<i64>, BackendError> {
        let statement = "SELECT id FROM alcove_lease WHERE id = ANY($1::bigint[]) \
                         AND renewed + ttl_seconds * interval '1 second' <= now() + interval '10 milliseconds'";
        let rows = self.read_write(statement, &[&ids]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn follow(&self, after: Revision) -> Result<Followed, HistoryError> {
        let known = self.lease_epoch.load(Ordering::Acquire);
        let (head, events, leases) = self
            .read(async |transaction| {
                let head = Head::of(&transaction.query_one(sql::HEAD, &[]).await?);
                let mut events = Vec::new();
                if head.revision > after && after >= head.compact_revision {
                    let all = KeyRange::new(Bytes::new(), Bytes::from_static(&[0]));
                    events = Postgres::read_events(transaction, &all, after, head.revision, FOLLOW_EVENTS).await?;
                }
                let leases = match head.lease_epoch != known {
                    true => Some(Postgres::read_leases(transaction).await?),
                    false => None,
                };
                Ok((head, events, leases))
            })
            .await?;
        if after < head.compact_revision && after < head.revision {
            return Err(HistoryError::Compacted { compact_revision: head.compact_revision });
        }
        self.lease_epoch.store(head.lease_epoch, Ordering::Release);
        let revision = events.last().map_or(head.revision, Event::revision);
        Ok(Followed { events, revision, compact_revision: head.compact_revision, leases })
    }
}

impl Postgres {
    /// One small statement on a connection of its own.
    async fn read_write(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Row>, BackendError> {
        let link = self.address.connect().await?;
        self.address.within(link.client.query(statement, parameters)).await
    }
}
