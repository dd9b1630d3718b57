//! The file: lock, connections, schema.
//!
//! - `log`: every write that is not compacted away, by position (revision, and number within it), with its value. Append
//!   only. `prev` is the position of the write before to the same key.
//! - `live`: for each key that exists the position of its last write. The value is in the log only, which halves the file
//!   and more than doubles the speed of commits compared with keeping it in both.
//! - `lease`: leases that were granted.
//! - `meta`: `compact_revision`; `cleaned`, the position up to which compaction has removed rows.
//!
//! Schema version 1 had revisions where version 2 has positions; such a file is brought to version 2 when it is opened.
//!
//! A lock on `<file>.lock` is held as long as the store is open. It is a file of its own, because closing any other handle of
//! the database file would drop SQLite's locks.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{BackendError, OpenError};

/// "Alcv".
const APPLICATION_ID: i64 = 0x416c_6376;

/// The schema this program writes; it refuses newer ones.
pub(super) const SCHEMA_VERSION: i64 = 2;

pub(super) const PAGE_BYTES: u64 = 4096;

/// A write-ahead log that has been longer is cut to this when it starts again.
const WAL_KEPT_BYTES: i64 = 8 << 20;

const SCHEMA: &str = "
CREATE TABLE log (
  pos INTEGER PRIMARY KEY,
  key BLOB NOT NULL,
  prev INTEGER NOT NULL,
  create_rev INTEGER NOT NULL,
  version INTEGER NOT NULL,
  lease INTEGER NOT NULL,
  deleted INTEGER NOT NULL,
  value BLOB NOT NULL
) STRICT;
CREATE TABLE live (key BLOB PRIMARY KEY, pos INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_seconds INTEGER NOT NULL) STRICT;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('compact_revision', 0), ('cleaned', 0);
";

/// From version 1 to version 2. `<< 16` makes a position of a revision.
const UPGRADE: &str = "
ALTER TABLE log RENAME TO log_1;
CREATE TABLE log (
  pos INTEGER PRIMARY KEY,
  key BLOB NOT NULL,
  prev INTEGER NOT NULL,
  create_rev INTEGER NOT NULL,
  version INTEGER NOT NULL,
  lease INTEGER NOT NULL,
  deleted INTEGER NOT NULL,
  value BLOB NOT NULL
) STRICT;
INSERT INTO log SELECT rev << 16, key, prev << 16, create_rev, version, lease, deleted, value FROM log_1 ORDER BY rev;
DROP TABLE log_1;
ALTER TABLE live RENAME COLUMN rev TO pos;
UPDATE live SET pos = pos << 16;
UPDATE meta SET name = 'cleaned', value = (value << 16) | 65535 WHERE name = 'cleaned_revision';
";

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How long a lock may linger after its store was closed: a process that is being started by this one holds a copy of every
/// open file from its fork to its exec, and with it the lock.
const LOCK_LINGERS: Duration = Duration::from_millis(500);

/// Takes the lock that one open store has on its file. Blocks for [`LOCK_LINGERS`] when another has it.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let doing = || format!("lock {}", lock_path.display());
    let file =
        File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(|error| {
            match error.kind() {
                io::ErrorKind::PermissionDenied => OpenError::Denied { folder: folder(path) },
                _ => BackendError::new(doing(), error).into(),
            }
        })?;
    let until = Instant::now() + LOCK_LINGERS;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.display().to_string() }),
            Err(TryLockError::Error(error)) => return Err(BackendError::new(doing(), error).into()),
        }
    }
}

fn folder(path: &Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}

/// Sorts SQLite's errors while opening: damage, a foreign file, or anything else.
pub(super) fn open_error(path: &Path, doing: &str, error: rusqlite::Error) -> OpenError {
    let path = path.display().to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, why: error.to_string() },
        Some(ErrorCode::NotADatabase) => OpenError::NotAStore { path, why: error.to_string() },
        _ => BackendError::new(format!("{doing} {path}"), error).into(),
    }
}

/// The connection that writes. Makes the schema in a new file; leaves a file that it refuses as it was.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let fail = |error| open_error(path, "open", error);
    let created = !path.exists();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(fail)?;
    let number = |connection: &Connection, sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let application = number(&connection, "PRAGMA application_id").map_err(fail)?;
    let version = number(&connection, "PRAGMA user_version").map_err(fail)?;
    let tables = number(&connection, "SELECT count(*) FROM sqlite_schema").map_err(fail)?;
    let empty = tables == 0 && application == 0 && version == 0;
    if !empty {
        let path = path.display().to_string();
        if application != APPLICATION_ID {
            return Err(OpenError::NotAStore { path, why: format!("its application id is {application:#x}") });
        }
        if version > SCHEMA_VERSION {
            return Err(OpenError::NewerSchema { path, found: version, known: SCHEMA_VERSION });
        }
        if version < 1 {
            return Err(OpenError::Corrupt { path, why: format!("schema version {version} never existed") });
        }
    }
    if empty {
        connection.execute_batch("PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL;").map_err(fail)?;
    }
    configure(&connection, 512).map_err(fail)?;
    if empty {
        let transaction = connection.transaction().map_err(fail)?;
        transaction.execute_batch(SCHEMA).map_err(fail)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(fail)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    if !empty && version == 1 {
        let transaction = connection.transaction().map_err(fail)?;
        transaction.execute_batch(UPGRADE).map_err(fail)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    if created {
        sync_directory(path)
            .map_err(|error| BackendError::new(format!("sync the directory of {}", path.display()), error))?;
    }
    Ok(connection)
}

/// A connection that reads history and runs checkpoints.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection, 256)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// A small page cache, because live data is cached above; every commit synced; checkpoints only where we ask for them.
fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// The name of a new file is durable only when its directory is.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
