//! MySQL and MariaDB: the log in a database that several replicas may share.
//!
//! The tables are as in PostgreSQL. A batch is one transaction that locks the only row of `alcove_head` first, so that
//! nobody else writes until it ends; when the row says that others have written since, the lock is kept until the next try.
//! A commit whose answer is lost is settled by taking that lock again: whoever has it knows how the commit ended.
//!
//! The server cannot call back. A replica that is alone looks for others twice a second; as long as there are others each
//! looks at the head every 20 ms.

mod connect;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, Row, Value};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::connect::{Address, rows};
use crate::backend::{
    Backend, Batch, Followed, HistoryRange, LogRow, Position, Record, last_position, positions, revision_of,
};
use crate::error::{AppendError, BackendError, HistoryError, OpenError};
use crate::tls::TlsFiles;
use crate::types::{Event, EventKind, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

const READS_MAX: usize = 2;
const CLEAN_ROWS: u64 = 512;
const FOLLOW_EVENTS: usize = 1000;

/// Longest key of an InnoDB index.
const KEY_BYTES: usize = 3072;

/// Statement and bytes of one statement; a packet of the server is not larger than 16 MiB by default.
const ROWS_MAX: usize = 64;
const BYTES_MAX: usize = 4 << 20;

/// How often a replica looks at the head when there are others, and how often it looks for others.
const LOOK: Duration = Duration::from_millis(20);
const MEET: Duration = Duration::from_millis(500);

/// A replica that was not heard of for so long is gone.
const GONE_SECONDS: u64 = 5;

const SCHEMA_VERSION: i64 = 1;

const SCHEMA: [&str; 6] = [
    "CREATE TABLE IF NOT EXISTS alcove_head (
       one TINYINT PRIMARY KEY, schema_version BIGINT NOT NULL, revision BIGINT NOT NULL,
       compact_revision BIGINT NOT NULL, cleaned BIGINT NOT NULL, lease_epoch BIGINT NOT NULL) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS alcove_log (
       pos BIGINT PRIMARY KEY, name VARBINARY(3072) NOT NULL, prev BIGINT NOT NULL, create_revision BIGINT NOT NULL,
       version BIGINT NOT NULL, lease BIGINT NOT NULL, deleted BOOLEAN NOT NULL, writer BIGINT NOT NULL,
       value LONGBLOB NOT NULL) ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    "CREATE TABLE IF NOT EXISTS alcove_live (name VARBINARY(3072) PRIMARY KEY, pos BIGINT NOT NULL)
       ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    "CREATE TABLE IF NOT EXISTS alcove_lease (
       id BIGINT PRIMARY KEY, ttl_seconds BIGINT NOT NULL, renewed DATETIME(3) NOT NULL) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS alcove_replica (id BIGINT PRIMARY KEY, seen DATETIME(3) NOT NULL) ENGINE = InnoDB",
    "INSERT IGNORE INTO alcove_head VALUES (1, 1, 1, 0, 0, 0)",
];

const HEAD: &str =
    "SELECT revision, compact_revision, cleaned, lease_epoch, schema_version FROM alcove_head WHERE one = 1";

const EVENTS: &str = "SELECT l.pos, l.name, l.create_revision, l.version, l.lease, l.value, l.deleted,
  p.pos, p.name, p.create_revision, p.version, p.lease, p.value
  FROM alcove_log l LEFT JOIN alcove_log p ON p.pos = l.prev
  WHERE l.pos > ? AND l.pos <= ? AND l.name >= ? AND (? IS NULL OR l.name < ?) ORDER BY l.pos LIMIT ?";

const KEYS_AT: &str = "SELECT name, pos FROM alcove_live WHERE name >= ? AND (? IS NULL OR name < ?) AND pos <= ?
  UNION ALL
  SELECT name, prev FROM alcove_log
  WHERE pos > ? AND prev > 0 AND prev <= ? AND name >= ? AND (? IS NULL OR name < ?) ORDER BY 1";

/// A log in a MySQL or MariaDB database.
pub struct Mysql {
    address: Address,
    /// Tells our rows from those of other replicas.
    writer: i64,
    writing: tokio::sync::Mutex<Option<Writing>>,
    reading: Semaphore,
    readers: Mutex<Vec<Conn>>,
    looking: tokio::sync::Mutex<Looking>,
    lease_epoch: AtomicI64,
    /// The newest revision that this process knows.
    known: AtomicU64,
}

struct Writing {
    connection: Conn,
    /// A transaction is open that has locked the head.
    has_turn: bool,
}

#[derive(Default)]
struct Looking {
    connection: Option<Conn>,
    met: Option<Instant>,
    others: bool,
}

struct Head {
    revision: Revision,
    compact_revision: Revision,
    cleaned: Position,
    lease_epoch: i64,
    schema_version: i64,
}

/// What a statement without parameters answers.
trait Answer: Sized {
    async fn of(connection: &mut Conn, statement: &str) -> Result<Self, Error>;
}

impl Answer for () {
    async fn of(connection: &mut Conn, statement: &str) -> Result<(), Error> {
        connection.query_drop(statement).await
    }
}

impl Answer for Vec<Row> {
    async fn of(connection: &mut Conn, statement: &str) -> Result<Vec<Row>, Error> {
        connection.query(statement).await
    }
}

fn sql(number: u64) -> i64 {
    number as i64
}

/// An answer of another shape than asked for.
fn unexpected() -> Error {
    Error::Other("the answer has another shape than expected".into())
}

fn cell<T: mysql_async::prelude::FromValue>(row: &Row, index: usize) -> Result<T, Error> {
    row.get_opt(index).and_then(Result::ok).ok_or_else(unexpected)
}

fn number(row: &Row, index: usize) -> Result<u64, Error> {
    Ok(cell::<i64>(row, index)?.unsigned_abs())
}

fn bytes(row: &Row, index: usize) -> Result<Bytes, Error> {
    Ok(Bytes::from(cell::<Vec<u8>>(row, index)?))
}

/// The columns `pos, name, create_revision, version, lease, value` from `first` on.
fn key_value(row: &Row, first: usize) -> Result<KeyValue, Error> {
    Ok(KeyValue {
        mod_revision: revision_of(number(row, first)?),
        key: bytes(row, first + 1)?,
        create_revision: number(row, first + 2)?,
        version: number(row, first + 3)?,
        lease: cell(row, first + 4)?,
        value: bytes(row, first + 5)?,
    })
}

impl Head {
    fn of(rows: &[Row]) -> Result<Head, Error> {
        let row = rows.first().ok_or_else(unexpected)?;
        Ok(Head {
            revision: number(row, 0)?,
            compact_revision: number(row, 1)?,
            cleaned: number(row, 2)?,
            lease_epoch: cell(row, 3)?,
            schema_version: cell(row, 4)?,
        })
    }
}

fn end_value(range: &KeyRange) -> Value {
    range.end().map_or(Value::NULL, |end| Value::Bytes(end.to_vec()))
}

/// `(?, ?), (?, ?)`: so many rows of one shape.
fn repeated(shape: &str, count: usize) -> String {
    vec![shape; count].join(", ")
}

fn is_full(error: &Error) -> bool {
    // Disk full, table full, tablespace full.
    matches!(error, Error::Server(error) if [1021, 1114, 1030].contains(&error.code))
}

impl Mysql {
    /// Removes the database at an address, if it is there.
    pub async fn remove(url: &str, tls: &TlsFiles) -> Result<(), BackendError> {
        Address::parse(url, tls)?.drop_database().await
    }

    /// Opens the log in the database of `mysql://USER:PASSWORD@tcp(HOST:PORT)/DATABASE`; makes database and tables if they
    /// are not there.
    pub async fn open(url: &str, tls: &TlsFiles) -> Result<Mysql, OpenError> {
        let address = Address::parse(url, tls)?;
        address.ensure_database().await?;
        let mut connection = address.connect("READ COMMITTED").await?;
        for statement in SCHEMA {
            address.within(connection.query_drop(statement)).await?;
        }
        let head = address.within(async { Head::of(&rows(&mut connection, HEAD, ()).await?) }).await?;
        if head.schema_version > SCHEMA_VERSION {
            let (found, known) = (head.schema_version, SCHEMA_VERSION);
            return Err(OpenError::NewerSchema { path: address.shown.clone(), found, known });
        }
        let mysql = Mysql {
            address,
            writer: rand::random(),
            writing: tokio::sync::Mutex::new(None),
            reading: Semaphore::new(READS_MAX),
            readers: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            lease_epoch: AtomicI64::new(head.lease_epoch),
            known: AtomicU64::new(head.revision),
        };
        let mut looking = mysql.looking.lock().await;
        if mysql.address.within(mysql.meet(&mut connection)).await? {
            looking.others = true;
            // Long enough for the others to have looked for us.
            tokio::time::sleep(MEET).await;
        }
        looking.connection = Some(connection);
        looking.met = Some(Instant::now());
        drop(looking);
        Ok(mysql)
    }

    /// Says that this replica is there; returns whether there are others.
    async fn meet(&self, connection: &mut Conn) -> Result<bool, Error> {
        let here = "REPLACE INTO alcove_replica VALUES (?, UTC_TIMESTAMP(3))";
        connection.exec_drop(here, (self.writer,)).await?;
        let others = format!(
            "SELECT COUNT(*) FROM alcove_replica WHERE id <> ? AND seen > UTC_TIMESTAMP(3) - INTERVAL {GONE_SECONDS} SECOND"
        );
        let others: Option<i64> = connection.exec_first(others, (self.writer,)).await?;
        Ok(others.unwrap_or(0) > 0)
    }

    /// Reads in one transaction, so that everything is of one state.
    async fn read<T>(&self, work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>) -> Result<T, BackendError> {
        self.with_reader("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY", async |connection, ()| {
            let answer = work(connection).await?;
            connection.query_drop("COMMIT").await?;
            Ok(answer)
        })
        .await
    }

    /// Gives a connection for reading to `work`, with the answer to a first statement.
    async fn with_reader<A: Answer, T>(
        &self,
        first: &str,
        work: impl AsyncFnOnce(&mut Conn, A) -> Result<T, Error>,
    ) -> Result<T, BackendError> {
        let closed = |_| BackendError::new(format!("read {}", self.address.shown), "the store is closed");
        let _permit = self.reading.acquire().await.map_err(closed)?;
        let kept = self.readers.lock().pop();
        let begun = match kept {
            // The server may have ended a connection that was kept; then a new one does.
            Some(mut kept) => self.address.within(A::of(&mut kept, first)).await.ok().map(|answer| (kept, answer)),
            None => None,
        };
        let (mut connection, answer) = match begun {
            Some(begun) => begun,
            None => {
                let mut fresh = self.address.connect("REPEATABLE READ").await?;
                let answer = self.address.within(A::of(&mut fresh, first)).await?;
                (fresh, answer)
            }
        };
        let answer = self.address.within(work(&mut connection, answer)).await?;
        let mut readers = self.readers.lock();
        if readers.len() < READS_MAX && !self.reading.is_closed() {
            readers.push(connection);
        }
        Ok(answer)
    }

    /// One small statement on a connection of its own.
    async fn write(&self, statement: &str, parameters: Vec<Value>) -> Result<Vec<Row>, BackendError> {
        let mut connection = self.address.connect("READ COMMITTED").await?;
        self.address.within(rows(&mut connection, statement, parameters)).await
    }

    async fn lock(&self, connection: &mut Conn) -> Result<Head, BackendError> {
        self.address
            .within(async {
                connection.query_drop("START TRANSACTION").await?;
                Head::of(&rows(connection, &format!("{HEAD} FOR UPDATE"), ()).await?)
            })
            .await
    }

    async fn append_with(&self, writing: &mut Writing, batch: &Batch) -> Result<(), AppendError> {
        let known = self.lease_epoch.load(Ordering::Acquire);
        let connection = &mut writing.connection;
        let head = match writing.has_turn {
            false => self.lock(connection).await,
            true => self.address.within(async { Head::of(&rows(connection, HEAD, ()).await?) }).await,
        }
        .map_err(AppendError::NotApplied)?;
        writing.has_turn = true;
        let first = batch.after;
        let last = batch.records.last().map_or(first, Record::revision);
        if head.revision != first || head.lease_epoch != known {
            return Err(AppendError::Behind);
        }
        let leases_changed = !batch.leases.is_empty();
        match tokio::time::timeout(Duration::from_secs(10), self.insert(connection, batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_full(&error) => return Err(AppendError::Full),
            Ok(Err(error)) => return Err(AppendError::NotApplied(self.address.failure("write to", error))),
            Err(_) => {
                let late = BackendError::new(format!("write to {}", self.address.shown), "there was no answer in time");
                return Err(AppendError::NotApplied(late));
            }
        }
        let commit = async {
            let head = "UPDATE alcove_head SET revision = ?, lease_epoch = lease_epoch + ? WHERE one = 1";
            connection.exec_drop(head, (sql(last), i64::from(leases_changed))).await
        };
        self.address.within(commit).await.map_err(AppendError::NotApplied)?;
        self.address.within(connection.query_drop("COMMIT")).await.map_err(AppendError::Unknown)?;
        writing.has_turn = false;
        if leases_changed {
            self.lease_epoch.store(known + 1, Ordering::Release);
        }
        self.known.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }

    async fn insert(&self, connection: &mut Conn, batch: &Batch) -> Result<(), Error> {
        let rows = batch.rows();
        let mut log = Statement::new(
            "INSERT INTO alcove_log VALUES ",
            "(?, ?, COALESCE(?, (SELECT pos FROM alcove_live WHERE name = ?), 0), ?, ?, ?, ?, ?, ?)",
            "",
        );
        for LogRow { place, prev, record } in rows.log {
            let kv = &record.kv;
            // None: to be looked up.
            let prev = prev.map_or(Value::NULL, |prev| Value::Int(sql(prev)));
            let key = Value::Bytes(kv.key.to_vec());
            let row = vec![
                Value::Int(sql(place)),
                key.clone(),
                prev,
                key,
                Value::Int(sql(kv.create_revision)),
                Value::Int(sql(kv.version)),
                Value::Int(kv.lease),
                Value::Int(i64::from(record.deleted)),
                Value::Int(self.writer),
                Value::Bytes(kv.value.to_vec()),
            ];
            log.push(connection, row, kv.value.len() + 2 * kv.key.len()).await?;
        }
        log.flush(connection).await?;
        let mut put =
            Statement::new("INSERT INTO alcove_live VALUES ", "(?, ?)", " ON DUPLICATE KEY UPDATE pos = VALUES(pos)");
        let mut gone = Statement::new("DELETE FROM alcove_live WHERE name IN (", "?", ")");
        for (key, place) in rows.live {
            let (size, key) = (key.len(), Value::Bytes(key.to_vec()));
            match place {
                Some(place) => put.push(connection, vec![key, Value::Int(sql(place))], size).await?,
                None => gone.push(connection, vec![key], size).await?,
            }
        }
        put.flush(connection).await?;
        gone.flush(connection).await?;
        for (id, ttl_seconds) in rows.leases {
            match ttl_seconds {
                Some(ttl_seconds) => {
                    let grant = "REPLACE INTO alcove_lease VALUES (?, ?, UTC_TIMESTAMP(3))";
                    connection.exec_drop(grant, (id, ttl_seconds)).await?;
                }
                None => connection.exec_drop("DELETE FROM alcove_lease WHERE id = ?", (id,)).await?,
            }
        }
        Ok(())
    }

    async fn read_events(
        connection: &mut Conn,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, Error> {
        let mut events: Vec<(Position, Event)> = Vec::new();
        let mut window = (last_position(after), last_position(through), i64::try_from(limit).unwrap_or(i64::MAX));
        loop {
            let (start, end) = (Value::Bytes(range.start().to_vec()), end_value(range));
            let parameters = vec![
                Value::Int(sql(window.0)),
                Value::Int(sql(window.1)),
                start,
                end.clone(),
                end,
                Value::Int(window.2),
            ];
            for row in rows(connection, EVENTS, parameters).await? {
                let kind = if cell::<bool>(&row, 6)? { EventKind::Delete } else { EventKind::Put };
                let prev = match cell::<Option<i64>>(&row, 7)? {
                    Some(_) => Some(key_value(&row, 7)?),
                    None => None,
                };
                events.push((number(&row, 0)?, Event { kind, kv: key_value(&row, 0)?, prev }));
            }
            match events.last() {
                // What else belongs to the last revision.
                Some((last, event)) if window.2 != i64::MAX && events.len() >= limit => {
                    window = (*last, last_position(event.revision()), i64::MAX);
                }
                _ => return Ok(events.into_iter().map(|(_, event)| event).collect()),
            }
        }
    }

    async fn read_leases(connection: &mut Conn) -> Result<Vec<LeaseRecord>, Error> {
        let found = rows(connection, "SELECT id, ttl_seconds FROM alcove_lease ORDER BY id", ()).await?;
        found.iter().map(|row| Ok(LeaseRecord { id: cell(row, 0)?, ttl_seconds: cell(row, 1)? })).collect()
    }

    async fn look(&self, looking: &mut Looking) -> Result<bool, BackendError> {
        let mut connection = match looking.connection.take() {
            Some(connection) => connection,
            None => self.address.connect("READ COMMITTED").await?,
        };
        let head = self
            .address
            .within(async {
                if looking.met.is_none_or(|met| met.elapsed() >= MEET) {
                    looking.others = self.meet(&mut connection).await?;
                    looking.met = Some(Instant::now());
                }
                Head::of(&rows(&mut connection, HEAD, ()).await?)
            })
            .await?;
        looking.connection = Some(connection);
        Ok(head.revision > self.known.load(Ordering::Acquire)
            || head.lease_epoch != self.lease_epoch.load(Ordering::Acquire))
    }
}

/// Statement on their way into one statement after the other.
struct Statement {
    head: &'static str,
    shape: &'static str,
    tail: &'static str,
    count: usize,
    size_bytes: usize,
    values: Vec<Value>,
}

impl Statement {
    fn new(head: &'static str, shape: &'static str, tail: &'static str) -> Self {
        Statement { head, shape, tail, count: 0, size_bytes: 0, values: Vec::new() }
    }

    async fn push(&mut self, connection: &mut Conn, row: Vec<Value>, size_bytes: usize) -> Result<(), Error> {
        if self.count >= ROWS_MAX || self.size_bytes + size_bytes > BYTES_MAX {
            self.flush(connection).await?;
        }
        self.values.extend(row);
        self.count += 1;
        self.size_bytes += size_bytes;
        Ok(())
    }

    async fn flush(&mut self, connection: &mut Conn) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let statement = format!("{}{}{}", self.head, repeated(self.shape, self.count), self.tail);
        (self.count, self.size_bytes) = (0, 0);
        connection.exec_drop(statement, std::mem::take(&mut self.values)).await
    }
}

#[async_trait]
impl Backend for Mysql {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        let shown = self.address.shown.clone();
        let (head, live, leases) = self
            .read(async |connection| {
                let head = Head::of(&rows(connection, HEAD, ()).await?)?;
                let statement = "SELECT live.pos, live.name, log.create_revision, log.version, log.lease, log.value, \
                                 log.deleted FROM alcove_live live LEFT JOIN alcove_log log \
                                 ON log.pos = live.pos AND log.name = live.name ORDER BY live.name";
                let live = rows(connection, statement, ()).await?;
                Ok((head, live, Mysql::read_leases(connection).await?))
            })
            .await?;
        let mut kvs = Vec::with_capacity(live.len());
        for row in &live {
            let damaged = |error: Error| OpenError::Corrupt { path: shown.clone(), why: error.to_string() };
            if cell::<Option<bool>>(row, 6).map_err(damaged)? != Some(false) {
                let revision = revision_of(number(row, 0).map_err(damaged)?);
                let why = format!("the log has no row for the live key of revision {revision}");
                return Err(OpenError::Corrupt { path: shown, why });
            }
            kvs.push(key_value(row, 0).map_err(damaged)?);
        }
        self.lease_epoch.store(head.lease_epoch, Ordering::Release);
        self.known.store(head.revision, Ordering::Release);
        Ok(Snapshot { revision: head.revision, compact_revision: head.compact_revision, kvs, leases })
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let mut connection = self.address.connect("READ COMMITTED").await?;
        let head = self.lock(&mut connection).await?;
        if head.revision != crate::FIRST_REVISION {
            return Err(OpenError::NotEmpty { revision: head.revision });
        }
        let fill = async {
            let mut log = Statement::new("INSERT INTO alcove_log VALUES ", "(?, ?, 0, ?, ?, ?, FALSE, ?, ?)", "");
            let mut live = Statement::new("INSERT INTO alcove_live VALUES ", "(?, ?)", "");
            for (place, kv) in positions(snapshot.kvs.iter().map(|kv| kv.mod_revision)).into_iter().zip(&snapshot.kvs) {
                let key = Value::Bytes(kv.key.to_vec());
                let row = vec![
                    Value::Int(sql(place)),
                    key.clone(),
                    Value::Int(sql(kv.create_revision)),
                    Value::Int(sql(kv.version)),
                    Value::Int(kv.lease),
                    Value::Int(self.writer),
                    Value::Bytes(kv.value.to_vec()),
                ];
                log.push(&mut connection, row, kv.value.len() + kv.key.len()).await?;
                live.push(&mut connection, vec![key, Value::Int(sql(place))], kv.key.len()).await?;
            }
            log.flush(&mut connection).await?;
            live.flush(&mut connection).await?;
            for lease in &snapshot.leases {
                let grant = "REPLACE INTO alcove_lease VALUES (?, ?, UTC_TIMESTAMP(3))";
                connection.exec_drop(grant, (lease.id, lease.ttl_seconds)).await?;
            }
            let statement = "UPDATE alcove_head SET revision = ?, compact_revision = ?, cleaned = ?, \
                             lease_epoch = lease_epoch + 1 WHERE one = 1";
            let revision = sql(snapshot.revision);
            let cleaned = sql(last_position(snapshot.revision));
            connection.exec_drop(statement, (revision, revision, cleaned)).await?;
            connection.query_drop("COMMIT").await
        };
        // As long as it takes: nothing else happens meanwhile.
        fill.await.map_err(|error| self.address.failure("fill", error))?;
        Ok(())
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let mut kept = self.writing.lock().await;
        let mut writing = match kept.take() {
            Some(mut writing) => {
                // An idle connection may have been ended by the server.
                let alive = writing.has_turn || self.address.within(writing.connection.ping()).await.is_ok();
                if alive { Some(writing) } else { None }
            }
            None => None,
        };
        if writing.is_none() {
            let connection = self.address.connect("READ COMMITTED").await.map_err(AppendError::NotApplied)?;
            writing = Some(Writing { connection, has_turn: false });
        }
        let Some(mut writing) = writing else { return Err(AppendError::Behind) };
        let appended = self.append_with(&mut writing, &batch).await;
        // After any other error the connection is ended, and what it has open rolled back.
        if matches!(appended, Ok(()) | Err(AppendError::Behind)) {
            *kept = Some(writing);
        }
        appended
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        // As text and without a transaction: one round trip, for each read that has to be current.
        let revision = "SELECT revision FROM alcove_head WHERE one = 1";
        self.with_reader(revision, async |_, rows: Vec<Row>| number(rows.first().ok_or_else(unexpected)?, 0)).await
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError> {
        let read = self
            .read(async |connection| {
                let head = Head::of(&rows(connection, HEAD, ()).await?)?;
                if at < head.compact_revision {
                    return Ok(Err(head.compact_revision));
                }
                let (start, end) = (Value::Bytes(range.start().to_vec()), end_value(range));
                let at = Value::Int(sql(last_position(at)));
                let parameters =
                    vec![start.clone(), end.clone(), end.clone(), at.clone(), at.clone(), at, start, end.clone(), end];
                let keys = rows(connection, KEYS_AT, parameters).await?;
                let count = keys.len() as u64;
                let take = match (count_only, limit) {
                    (true, _) => 0,
                    (false, 0) => usize::MAX,
                    (false, limit) => limit,
                };
                let places: Vec<Value> =
                    keys.iter().take(take).map(|row| Ok(Value::Int(cell(row, 1)?))).collect::<Result<_, Error>>()?;
                let mut kvs = Vec::with_capacity(places.len());
                for places in places.chunks(256) {
                    let statement = format!(
                        "SELECT pos, name, create_revision, version, lease, value FROM alcove_log WHERE pos IN ({})",
                        repeated("?", places.len())
                    );
                    for row in rows(connection, &statement, places.to_vec()).await? {
                        kvs.push(key_value(&row, 0)?);
                    }
                }
                kvs.sort_by(|one, other| one.key.cmp(&other.key));
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
            .read(async |connection| {
                let head = Head::of(&rows(connection, HEAD, ()).await?)?;
                if after < head.compact_revision {
                    return Ok(Err(head.compact_revision));
                }
                Ok(Ok(Mysql::read_events(connection, range, after, through, limit).await?))
            })
            .await?;
        read.map_err(|compact_revision| HistoryError::Compacted { compact_revision })
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        let statement = "UPDATE alcove_head SET compact_revision = GREATEST(compact_revision, ?) WHERE one = 1";
        self.write(statement, vec![Value::Int(sql(revision))]).await.map(drop)
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        let (head, found) = self
            .read(async |connection| {
                let head = Head::of(&rows(connection, HEAD, ()).await?)?;
                let statement =
                    "SELECT pos, prev, deleted FROM alcove_log WHERE pos > ? AND pos <= ? ORDER BY pos LIMIT ?";
                let window = (sql(head.cleaned), sql(last_position(head.compact_revision)), CLEAN_ROWS);
                let mut found: Vec<(i64, i64, bool)> = Vec::new();
                for row in rows(connection, statement, window).await? {
                    found.push((cell(&row, 0)?, cell(&row, 1)?, cell(&row, 2)?));
                }
                Ok((head, found))
            })
            .await?;
        let end = last_position(head.compact_revision);
        if head.compact_revision == 0 || head.cleaned >= end {
            return Ok(false);
        }
        let reached = match found.last() {
            Some((pos, _, _)) if found.len() as u64 == CLEAN_ROWS => *pos,
            _ => sql(end),
        };
        let gone: Vec<Value> = found
            .iter()
            .flat_map(|(pos, prev, deleted)| [(*prev > 0).then_some(*prev), deleted.then_some(*pos)])
            .flatten()
            .map(Value::Int)
            .collect();
        let mut connection = self.address.connect("READ COMMITTED").await?;
        let clean = async {
            for gone in gone.chunks(256) {
                let statement = format!("DELETE FROM alcove_log WHERE pos IN ({})", repeated("?", gone.len()));
                connection.exec_drop(statement, gone.to_vec()).await?;
            }
            let statement = "UPDATE alcove_head SET cleaned = GREATEST(cleaned, ?) WHERE one = 1";
            connection.exec_drop(statement, (reached,)).await
        };
        self.address.within(clean).await?;
        Ok(reached < sql(end))
    }

    async fn close(&self) {
        self.reading.close();
        self.readers.lock().clear();
        self.writing.lock().await.take();
        if let Some(mut connection) = self.looking.lock().await.connection.take() {
            let leave = connection.exec_drop("DELETE FROM alcove_replica WHERE id = ?", (self.writer,));
            if let Err(error) = self.address.within(leave).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not say good-bye");
            }
        }
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
        let mut connection = self.address.connect("READ COMMITTED").await?;
        // A commit that is still under way has the row until it has ended.
        let head = self.lock(&mut connection).await?;
        let writer: Option<i64> =
            self.address.within(connection.exec_first("SELECT writer FROM alcove_log WHERE pos = ?", (place,))).await?;
        Ok(match writer {
            Some(writer) => Some(writer == self.writer),
            None if end <= head.compact_revision => None,
            None => Some(false),
        })
    }

    async fn release(&self) {
        let mut kept = self.writing.lock().await;
        if let Some(writing) = kept.as_mut()
            && writing.has_turn
        {
            match self.address.within(writing.connection.query_drop("ROLLBACK")).await {
                Ok(()) => writing.has_turn = false,
                // Ending the session has the same effect.
                Err(_) => drop(kept.take()),
            }
        }
    }

    async fn changed(&self) -> Result<(), BackendError> {
        let mut looking = self.looking.lock().await;
        loop {
            // Whatever is wrong is told after the pause, so that nobody asks in a tight loop.
            let pause = if looking.others { LOOK } else { MEET };
            tokio::time::sleep(pause).await;
            if self.look(&mut looking).await? {
                return Ok(());
            }
        }
    }

    async fn renew(&self, id: i64) -> Result<(), BackendError> {
        let statement = "UPDATE alcove_lease SET renewed = UTC_TIMESTAMP(3) WHERE id = ?";
        self.write(statement, vec![Value::Int(id)]).await.map(drop)
    }

    async fn expired(&self, ids: Vec<i64>) -> Result<Vec<i64>, BackendError> {
        if ids.is_empty() {
            return Ok(ids);
        }
        let statement = format!(
            "SELECT id FROM alcove_lease WHERE id IN ({}) \
             AND renewed + INTERVAL ttl_seconds SECOND <= UTC_TIMESTAMP(3) + INTERVAL 10000 MICROSECOND",
            repeated("?", ids.len())
        );
        let found = self.write(&statement, ids.into_iter().map(Value::Int).collect()).await?;
        found.iter().map(|row| cell(row, 0).map_err(|error| self.address.failure("ask", error))).collect()
    }

    async fn follow(&self, after: Revision) -> Result<Followed, HistoryError> {
        let known = self.lease_epoch.load(Ordering::Acquire);
        let (head, events, leases) = self
            .read(async |connection| {
                let head = Head::of(&rows(connection, HEAD, ()).await?)?;
                let mut events = Vec::new();
                if head.revision > after && after >= head.compact_revision {
                    let all = KeyRange::new(Bytes::new(), Bytes::from_static(&[0]));
                    events = Mysql::read_events(connection, &all, after, head.revision, FOLLOW_EVENTS).await?;
                }
                let leases = match head.lease_epoch != known {
                    true => Some(Mysql::read_leases(connection).await?),
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
        self.known.fetch_max(revision, Ordering::AcqRel);
        Ok(Followed { events, revision, compact_revision: head.compact_revision, leases })
    }
}
