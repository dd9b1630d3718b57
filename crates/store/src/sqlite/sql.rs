//! The statements. All of them blocking, none of them aware of threads.
//!
//! A read of history happens in one transaction that first looks at `compact_revision`, so that compaction beside it can not
//! make it leave something out.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::file;
use crate::FIRST_REVISION;
use crate::backend::{Batch, HistoryRange, LeaseChange, Position, last_position, positions, revision_of};
use crate::error::OpenError;
use crate::types::{Event, EventKind, KeyRange, KeyValue, LeaseRecord, Revision, Snapshot};

/// Log rows looked at by one step of compaction.
const CLEAN_ROWS: i64 = 256;

/// Pages given back to the file system by one step.
const VACUUM_PAGES: i64 = 256;

/// What a read finds: an answer, or the compact revision that forbids it.
pub(super) type Read<T> = rusqlite::Result<Result<T, Revision>>;

// Revisions are counted up by one, and positions never come near the sign bit.
fn sql(number: u64) -> i64 {
    number as i64
}

fn bytes(row: &Row<'_>, index: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(index)?.as_blob()?))
}

fn revision(row: &Row<'_>, index: usize) -> rusqlite::Result<Revision> {
    Ok(row.get::<_, i64>(index)?.unsigned_abs())
}

/// The columns `pos, key, create_rev, version, lease, value` from `first` on.
fn key_value(row: &Row<'_>, first: usize) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        mod_revision: revision_of(revision(row, first)?),
        key: bytes(row, first + 1)?,
        create_revision: revision(row, first + 2)?,
        version: revision(row, first + 3)?,
        lease: row.get(first + 4)?,
        value: bytes(row, first + 5)?,
    })
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?.query_row([name], |row| revision(row, 0))
}

pub(super) fn limit_pages(connection: &Connection, pages: u64) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
}

pub(super) fn last_revision(connection: &Connection) -> rusqlite::Result<Revision> {
    let newest: Option<i64> = connection.query_row("SELECT max(pos) FROM log", [], |row| row.get(0))?;
    // The newest rows may be deletes that compaction has removed.
    Ok(newest
        .map_or(0, |newest| revision_of(newest.unsigned_abs()))
        .max(meta(connection, "compact_revision")?)
        .max(FIRST_REVISION))
}

pub(super) fn load(connection: &mut Connection, path: &Path) -> Result<Snapshot, OpenError> {
    let fail = |error| file::open_error(path, "load", error);
    let corrupt = |why: String| OpenError::Corrupt { path: path.display().to_string(), why };
    let transaction = connection.transaction().map_err(fail)?;
    let mut snapshot = Snapshot {
        revision: last_revision(&transaction).map_err(fail)?,
        compact_revision: meta(&transaction, "compact_revision").map_err(fail)?,
        ..Snapshot::default()
    };
    {
        let mut statement = transaction
            .prepare(
                "SELECT live.pos, live.key, log.create_rev, log.version, log.lease, log.value, log.key, log.deleted \
                 FROM live LEFT JOIN log ON log.pos = live.pos ORDER BY live.key",
            )
            .map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let live = revision_of(revision(row, 0).map_err(fail)?);
            let same_key = row.get_ref(6).map_err(fail)?.as_blob_or_null().ok().flatten()
                == row.get_ref(1).map_err(fail)?.as_blob_or_null().ok().flatten();
            if !same_key || row.get::<_, bool>(7).map_err(fail)? {
                return Err(corrupt(format!("the log has no row for the live key of revision {live}")));
            }
            snapshot.kvs.push(key_value(row, 0).map_err(fail)?);
        }
        let mut statement = transaction.prepare("SELECT id, ttl_seconds FROM lease ORDER BY id").map_err(fail)?;
        let leases = statement
            .query_map([], |row| Ok(LeaseRecord { id: row.get(0)?, ttl_seconds: row.get(1)? }))
            .map_err(fail)?;
        for lease in leases {
            snapshot.leases.push(lease.map_err(fail)?);
        }
    }
    Ok(snapshot)
}

pub(super) fn seed(connection: &mut Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for (place, kv) in positions(snapshot.kvs.iter().map(|kv| kv.mod_revision)).into_iter().zip(&snapshot.kvs) {
        insert(&transaction, place, kv, false, 0)?;
        set_live(&transaction, place, &kv.key)?;
    }
    for lease in &snapshot.leases {
        grant(&transaction, lease)?;
    }
    let set = "UPDATE meta SET value = ?2 WHERE name = ?1";
    transaction.execute(set, params!["compact_revision", sql(snapshot.revision)])?;
    transaction.execute(set, params!["cleaned", sql(last_position(snapshot.revision))])?;
    transaction.commit()
}

fn insert(
    transaction: &Transaction<'_>,
    place: Position,
    kv: &KeyValue,
    deleted: bool,
    prev: Position,
) -> rusqlite::Result<()> {
    transaction.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        sql(place),
        &kv.key[..],
        sql(prev),
        sql(kv.create_revision),
        sql(kv.version),
        kv.lease,
        deleted,
        &kv.value[..],
    ])?;
    Ok(())
}

fn set_live(transaction: &Transaction<'_>, place: Position, key: &[u8]) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO live VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET pos = excluded.pos")?
        .execute(params![key, sql(place)])?;
    Ok(())
}

fn grant(transaction: &Transaction<'_>, lease: &LeaseRecord) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO lease VALUES (?1, ?2)")?
        .execute(params![lease.id, lease.ttl_seconds])?;
    Ok(())
}

/// Returns about how many bytes this adds to the write-ahead log.
pub(super) fn append(transaction: &Transaction<'_>, batch: &Batch) -> rusqlite::Result<u64> {
    let mut size = 3 * file::PAGE_BYTES;
    for (place, record) in batch.placed() {
        let prev = match record.prev_revision {
            0 => 0,
            // Its revision is known, its place within the revision is not.
            _ => transaction
                .prepare_cached("SELECT pos FROM live WHERE key = ?1")?
                .query_row([&record.kv.key[..]], |row| revision(row, 0))
                .optional()?
                .unwrap_or(0),
        };
        insert(transaction, place, &record.kv, record.deleted, prev)?;
        if record.deleted {
            transaction.prepare_cached("DELETE FROM live WHERE key = ?1")?.execute([&record.kv.key[..]])?;
        } else {
            set_live(transaction, place, &record.kv.key)?;
        }
        size += (record.kv.value.len() + record.kv.key.len()) as u64 + file::PAGE_BYTES / 2;
    }
    for change in &batch.leases {
        match change {
            LeaseChange::Grant(lease) => grant(transaction, lease)?,
            LeaseChange::Revoke { id } => {
                transaction.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id])?;
            }
        }
    }
    Ok(size)
}

/// The live keys not written since, and the state before the first write since of the others.
const KEYS_AT: &str = "
SELECT key, pos FROM live WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) AND pos <= ?3
UNION ALL
SELECT key, prev FROM log WHERE pos > ?3 AND prev > 0 AND prev <= ?3 AND key >= ?1 AND (?2 IS NULL OR key < ?2)
ORDER BY 1";

pub(super) fn range(
    connection: &mut Connection,
    range: &KeyRange,
    at: Revision,
    limit: usize,
    count_only: bool,
) -> Read<HistoryRange> {
    let transaction = connection.transaction()?;
    let compact = meta(&transaction, "compact_revision")?;
    if at < compact {
        return Ok(Err(compact));
    }
    let mut answer = HistoryRange::default();
    {
        let mut keys = transaction.prepare_cached(KEYS_AT)?;
        let mut value =
            transaction.prepare_cached("SELECT pos, key, create_rev, version, lease, value FROM log WHERE pos = ?1")?;
        let mut rows =
            keys.query(params![&range.start()[..], range.end().map(|end| &end[..]), sql(last_position(at))])?;
        while let Some(row) = rows.next()? {
            answer.count += 1;
            if !count_only && (limit == 0 || answer.kvs.len() < limit) {
                answer.kvs.push(value.query_row([row.get::<_, i64>(1)?], |row| key_value(row, 0))?);
            }
        }
    }
    Ok(Ok(answer))
}

const EVENTS: &str = "
SELECT l.pos, l.key, l.create_rev, l.version, l.lease, l.value, l.deleted,
       p.pos, p.key, p.create_rev, p.version, p.lease, p.value
FROM log l LEFT JOIN log p ON p.pos = l.prev
WHERE l.pos > ?1 AND l.pos <= ?2 AND l.key >= ?3 AND (?4 IS NULL OR l.key < ?4)
ORDER BY l.pos LIMIT ?5";

pub(super) fn events(
    connection: &mut Connection,
    range: &KeyRange,
    after: Revision,
    through: Revision,
    limit: usize,
) -> Read<Vec<Event>> {
    let transaction = connection.transaction()?;
    let compact = meta(&transaction, "compact_revision")?;
    if after < compact {
        return Ok(Err(compact));
    }
    let mut statement = transaction.prepare_cached(EVENTS)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let end = range.end().map(|end| &end[..]);
    let mut read = |after: Position, through: Position, limit: i64| {
        let rows = statement.query_map(params![sql(after), sql(through), &range.start()[..], end, limit], |row| {
            let kind = if row.get::<_, bool>(6)? { EventKind::Delete } else { EventKind::Put };
            let prev = match row.get::<_, Option<i64>>(7)? {
                Some(_) => Some(key_value(row, 7)?),
                None => None,
            };
            Ok((revision(row, 0)?, Event { kind, kv: key_value(row, 0)?, prev }))
        })?;
        rows.collect::<rusqlite::Result<Vec<(Position, Event)>>>()
    };
    let mut events = read(last_position(after), last_position(through), limit)?;
    if events.len() as i64 >= limit
        && let Some((last, event)) = events.last()
    {
        let rest = read(*last, last_position(event.revision()), -1)?;
        events.extend(rest);
    }
    Ok(Ok(events.into_iter().map(|(_, event)| event).collect()))
}

pub(super) fn compact(connection: &mut Connection, revision: Revision) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'compact_revision'", [sql(revision)])?;
    Ok(())
}

/// One step of what compaction leaves over: first rows that nobody may read, then space that nobody will use soon. Returns
/// whether there is more, and about how many bytes it added to the write-ahead log.
pub(super) fn maintain(connection: &mut Connection) -> rusqlite::Result<(bool, u64)> {
    let (cleaned, compact) = (meta(connection, "cleaned")?, last_position(meta(connection, "compact_revision")?));
    if cleaned < compact {
        let transaction = connection.transaction()?;
        let rows: Vec<(i64, i64, bool)> = transaction
            .prepare_cached("SELECT pos, prev, deleted FROM log WHERE pos > ?1 AND pos <= ?2 ORDER BY pos LIMIT ?3")?
            .query_map(params![sql(cleaned), sql(compact), CLEAN_ROWS], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM log WHERE pos = ?1")?;
            for (pos, prev, deleted) in &rows {
                if *prev > 0 {
                    delete.execute([prev])?;
                }
                if *deleted {
                    delete.execute([pos])?;
                }
            }
        }
        let reached = match rows.last() {
            Some((pos, _, _)) if rows.len() as i64 == CLEAN_ROWS => *pos,
            _ => sql(compact),
        };
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'cleaned'", [reached])?;
        transaction.commit()?;
        return Ok((true, rows.len() as u64 * file::PAGE_BYTES));
    }
    let free: i64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    let all: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    // Free pages are used by the next writes; only a surplus is worth moving pages for.
    if free > VACUUM_PAGES.max(all / 4) {
        connection.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        return Ok((true, VACUUM_PAGES.unsigned_abs() * file::PAGE_BYTES));
    }
    Ok((false, 0))
}

/// Frees the pages that are kept for later.
pub(super) fn shrink(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA shrink_memory")
}

/// A checkpoint that waits for nobody.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).optional().map(drop)
}
