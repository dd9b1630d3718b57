//! The default backend: one SQLite file.
//!
//! One connection writes; each batch is one transaction, synced to the write-ahead log before it is answered. Reads of
//! history use connections of their own, opened when first needed. Checkpoints are passive and run beside the writes, on a
//! reader's connection; what was written meanwhile the writer moves itself, so that the log starts again at its beginning.
//! Its file then keeps its length, and a commit has to sync data only.
//!
//! A full disk, or the configured size reached, fails the batch and nothing else. Deletes may go a little beyond the
//! configured size, so that a full store can be emptied.
//!
//! Follows: the measurements that chose `log` + `live` over keeping values twice.

mod file;
mod sql;
mod workers;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::Semaphore;

pub use self::workers::Workers;
use crate::backend::{Backend, Batch, HistoryRange};
use crate::error::{AppendError, BackendError, HistoryError, OpenError};
use crate::options::Options;
use crate::store::Store;
use crate::types::{Event, KeyRange, Revision, Snapshot};

/// Reads of history of one store at the same time.
const READS_MAX: usize = 2;

/// Written to the write-ahead log since the last checkpoint, about, before the next one starts.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Pages that a batch changes beside those for what it carries, about.
const BATCH_PAGES: u64 = 3;

/// Pages beyond the configured size that deletes may take.
const DELETE_RESERVE_PAGES: u64 = 64;

/// How a SQLite file is opened.
#[derive(Clone, Default)]
pub struct SqliteOptions {
    /// Threads to share with other stores; none: its own.
    pub workers: Option<Workers>,
    /// The file grows no further than this; then writes are answered with `Full`. None: as far as the disk goes.
    pub size_bytes_max: Option<u64>,
}

/// A log in a SQLite file.
pub struct Sqlite {
    core: Arc<Core>,
    workers: Workers,
    reading: Semaphore,
}

struct Core {
    path: PathBuf,
    pages_max: Option<u64>,
    // Connections go before the lock when this is dropped.
    writer: Mutex<Option<Connection>>,
    readers: Mutex<Vec<Connection>>,
    lock: Mutex<Option<File>>,
    /// About how much was written since the last checkpoint.
    unchecked_bytes: AtomicU64,
    checkpointing: AtomicBool,
    /// The write-ahead log is too long and checkpoints beside the writes do not get to its end.
    writer_must_checkpoint: AtomicBool,
    /// The writer's page cache will be freed when nobody writes any more.
    will_shrink: AtomicBool,
}

impl Store {
    /// Opens the store in a SQLite file, which is made if it is not there.
    pub async fn open_sqlite(path: impl AsRef<Path>, options: Options) -> Result<Store, OpenError> {
        let backend = Sqlite::open(path, SqliteOptions::default()).await?;
        Store::open(Arc::new(backend), options).await
    }
}

impl Sqlite {
    /// Opens a file, or makes it. The directory has to exist.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Sqlite, OpenError> {
        let path = path.as_ref().to_path_buf();
        let workers = options.workers.unwrap_or_default();
        let pages_max = options.size_bytes_max.map(|bytes| (bytes / file::PAGE_BYTES).max(1));
        let open = move || -> Result<Core, OpenError> {
            let lock = file::lock(&path)?;
            let writer = file::open_writer(&path)?;
            if let Some(pages_max) = pages_max {
                sql::limit_pages(&writer, pages_max).map_err(|error| file::open_error(&path, "open", error))?;
            }
            Ok(Core {
                path,
                pages_max,
                writer: Mutex::new(Some(writer)),
                readers: Mutex::default(),
                lock: Mutex::new(Some(lock)),
                unchecked_bytes: AtomicU64::new(0),
                checkpointing: AtomicBool::new(false),
                writer_must_checkpoint: AtomicBool::new(false),
                will_shrink: AtomicBool::new(false),
            })
        };
        let core = workers.write.run(open).await.ok_or_else(no_thread)??;
        Ok(Sqlite { core: Arc::new(core), workers, reading: Semaphore::new(READS_MAX) })
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core, &mut Connection) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        let core = self.core.clone();
        let job = move || core.writer.lock().as_mut().map(|connection| work(&core, connection));
        self.workers.write.run(job).await.ok_or_else(no_thread)?.ok_or_else(closed)
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let _permit = self.reading.acquire().await.map_err(|_| closed())?;
        let core = self.core.clone();
        let job = move || core.with_reader(work);
        self.workers.read.run(job).await.ok_or_else(no_thread)?
    }

    /// Pages are worth their memory while there are writes: a process may hold thousands of stores that have none.
    fn shrink_when_idle(&self) {
        if self.core.will_shrink.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = Arc::downgrade(&self.core);
        self.workers.write.when_idle(Box::new(move || {
            let Some(core) = core.upgrade() else { return };
            core.will_shrink.store(false, Ordering::Release);
            if let Some(connection) = &*core.writer.lock()
                && let Err(error) = sql::shrink(connection)
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "the page cache could not be freed");
            }
        }));
    }

    fn start_checkpoint(&self) {
        if self.core.unchecked_bytes.load(Ordering::Relaxed) < CHECKPOINT_BYTES
            || self.core.checkpointing.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let core = self.core.clone();
        self.workers.read.submit(Box::new(move || {
            core.unchecked_bytes.store(0, Ordering::Relaxed);
            match core.with_reader(|connection| sql::checkpoint(connection)) {
                // It does not know of what was written meanwhile.
                Ok(()) => core.writer_must_checkpoint.store(true, Ordering::Release),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "checkpoint failed"),
            }
            core.checkpointing.store(false, Ordering::Release);
        }));
    }
}

impl Core {
    fn with_reader<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, BackendError> {
        if self.lock.lock().is_none() {
            return Err(closed());
        }
        let fail = |error| BackendError::new(format!("read {}", self.path.display()), error);
        let kept = self.readers.lock().pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => file::open_reader(&self.path).map_err(fail)?,
        };
        let result = work(&mut connection).map_err(fail);
        let mut readers = self.readers.lock();
        // One is kept for the next reader; more are not worth their memory.
        if readers.is_empty() && self.lock.lock().is_some() {
            readers.push(connection);
        }
        result
    }

    fn append(&self, connection: &mut Connection, batch: &Batch) -> Result<(), AppendError> {
        if self.writer_must_checkpoint.swap(false, Ordering::AcqRel)
            && let Err(error) = sql::checkpoint(connection)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "checkpoint failed");
        }
        let not_applied = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => AppendError::Full,
            _ => AppendError::NotApplied(BackendError::new(format!("write {}", self.path.display()), error)),
        };
        if let Some(pages_max) = self.pages_max {
            let deletes_only = batch.records.iter().all(|record| record.deleted);
            let reserve = if deletes_only { DELETE_RESERVE_PAGES } else { 0 };
            sql::limit_pages(connection, pages_max + reserve).map_err(not_applied)?;
        }
        // Dropping the transaction rolls it back.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(not_applied)?;
        let bytes = sql::append(&transaction, batch).map_err(not_applied)?;
        transaction.commit().map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => AppendError::Full,
            _ => AppendError::Unknown(BackendError::new(format!("commit to {}", self.path.display()), error)),
        })?;
        self.unchecked_bytes.fetch_add(bytes + BATCH_PAGES * file::PAGE_BYTES, Ordering::Relaxed);
        Ok(())
    }
}

fn closed() -> BackendError {
    BackendError::new("use the store", "it is closed")
}

fn no_thread() -> BackendError {
    BackendError::new("run a database job", "it panicked or no thread could be started")
}

#[async_trait]
impl Backend for Sqlite {
    async fn load(&self) -> Result<Snapshot, OpenError> {
        self.write(|core, connection| sql::load(connection, &core.path)).await?
    }

    async fn seed(&self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let snapshot = snapshot.clone();
        self.write(move |core, connection| {
            sql::seed(connection, &snapshot).map_err(|error| file::open_error(&core.path, "fill", error))
        })
        .await?
    }

    async fn append(&self, batch: Arc<Batch>) -> Result<(), AppendError> {
        let appended = self.write(move |core, connection| core.append(connection, &batch)).await;
        self.start_checkpoint();
        self.shrink_when_idle();
        // When the job is lost nobody knows how far it got.
        appended.map_err(AppendError::Unknown)?
    }

    async fn last_revision(&self) -> Result<Revision, BackendError> {
        self.write(|core, connection| {
            sql::last_revision(connection)
                .map_err(|error| BackendError::new(format!("read {}", core.path.display()), error))
        })
        .await?
    }

    async fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        count_only: bool,
    ) -> Result<HistoryRange, HistoryError> {
        let range = range.clone();
        let read = self.read(move |connection| sql::range(connection, &range, at, limit, count_only)).await?;
        read.map_err(|compact_revision| HistoryError::Compacted { compact_revision })
    }

    async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        through: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        let range = range.clone();
        let read = self.read(move |connection| sql::events(connection, &range, after, through, limit)).await?;
        read.map_err(|compact_revision| HistoryError::Compacted { compact_revision })
    }

    async fn compact(&self, revision: Revision) -> Result<(), BackendError> {
        self.write(move |core, connection| {
            sql::compact(connection, revision)
                .map_err(|error| BackendError::new(format!("compact {}", core.path.display()), error))
        })
        .await?
    }

    async fn maintain(&self) -> Result<bool, BackendError> {
        let more = self
            .write(|core, connection| {
                let (more, bytes) = sql::maintain(connection)
                    .map_err(|error| BackendError::new(format!("maintain {}", core.path.display()), error))?;
                core.unchecked_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(more)
            })
            .await?;
        self.start_checkpoint();
        more
    }

    async fn close(&self) {
        self.reading.close();
        let core = self.core.clone();
        let close = move || {
            let lock = core.lock.lock().take();
            core.readers.lock().clear();
            // The last connection runs a checkpoint and removes the write-ahead log.
            drop(core.writer.lock().take());
            drop(lock);
        };
        if self.workers.write.run(close).await.is_none() {
            tracing::error!("the database could not be closed in order");
        }
    }
}
