//! The statements.
//!
//! An append is one statement: it takes the only row of `alcove_head` from the revision, fence and lease epoch that this
//! process knows to the next ones, and writes the rest only if that worked. So a batch is one round trip and one commit,
//! and a batch prepared on anything but the newest state writes nothing.

pub(super) const SCHEMA_VERSION: i32 = 1;

/// Any two numbers of ours: only one session makes the schema at a time.
pub(super) const SCHEMA: &str = "
SELECT pg_advisory_xact_lock(1097622902, 1);
CREATE TABLE IF NOT EXISTS alcove_head (
  one boolean PRIMARY KEY CHECK (one),
  schema_version integer NOT NULL,
  revision bigint NOT NULL,
  compact_revision bigint NOT NULL,
  cleaned bigint NOT NULL,
  fence bigint NOT NULL,
  lease_epoch bigint NOT NULL
) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS alcove_log (
  pos bigint PRIMARY KEY,
  key bytea NOT NULL,
  prev bigint NOT NULL,
  create_revision bigint NOT NULL,
  version bigint NOT NULL,
  lease bigint NOT NULL,
  deleted boolean NOT NULL,
  writer bigint NOT NULL,
  value bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS alcove_live (key bytea PRIMARY KEY, pos bigint NOT NULL);
CREATE TABLE IF NOT EXISTS alcove_lease (
  id bigint PRIMARY KEY,
  ttl_seconds bigint NOT NULL,
  renewed timestamptz NOT NULL DEFAULT now()
);
INSERT INTO alcove_head VALUES (true, 1, 1, 0, 0, 0, 0) ON CONFLICT DO NOTHING;
";

pub(super) const REVISION: &str = "SELECT revision FROM alcove_head";

pub(super) const HEAD: &str =
    "SELECT revision, compact_revision, cleaned, fence, lease_epoch, schema_version FROM alcove_head";

/// $1 to $4: revision, fence, lease epoch before, revision after. $5 to $12: the records. $13: this writer. $14, $15: the
/// keys that are there afterwards, and where. $16: the keys that are gone. $17 to $19: leases granted, revoked.
pub(super) const APPEND: &str = "
WITH turn AS (
  UPDATE alcove_head SET revision = $4,
    lease_epoch = lease_epoch + CASE WHEN cardinality($17::bigint[]) + cardinality($19::bigint[]) > 0 THEN 1 ELSE 0 END
  WHERE revision = $1 AND fence = $2 AND lease_epoch = $3 RETURNING 1
), added AS (
  INSERT INTO alcove_log (pos, key, prev, create_revision, version, lease, deleted, writer, value)
  SELECT r.pos, r.key, CASE WHEN r.prev >= 0 THEN r.prev ELSE COALESCE(l.pos, 0) END,
    r.create_revision, r.version, r.lease, r.deleted, $13, r.value
  FROM unnest($5::bigint[], $6::bytea[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::boolean[],
    $12::bytea[]) AS r(pos, key, prev, create_revision, version, lease, deleted, value)
  LEFT JOIN alcove_live l ON r.prev < 0 AND l.key = r.key
  WHERE EXISTS (SELECT 1 FROM turn)
), put AS (
  INSERT INTO alcove_live (key, pos) SELECT p.key, p.pos FROM unnest($14::bytea[], $15::bigint[]) AS p(key, pos)
  WHERE EXISTS (SELECT 1 FROM turn)
  ON CONFLICT (key) DO UPDATE SET pos = excluded.pos
), gone AS (
  DELETE FROM alcove_live USING unnest($16::bytea[]) AS g(key)
  WHERE alcove_live.key = g.key AND EXISTS (SELECT 1 FROM turn)
), granted AS (
  INSERT INTO alcove_lease (id, ttl_seconds) SELECT g.id, g.ttl FROM unnest($17::bigint[], $18::bigint[]) AS g(id, ttl)
  WHERE EXISTS (SELECT 1 FROM turn)
  ON CONFLICT (id) DO UPDATE SET ttl_seconds = excluded.ttl_seconds, renewed = now()
), revoked AS (
  DELETE FROM alcove_lease WHERE id = ANY($19::bigint[]) AND EXISTS (SELECT 1 FROM turn)
)
SELECT count(*) FROM turn";

pub(super) const LIVE: &str = "
SELECT live.pos, live.key, log.create_revision, log.version, log.lease, log.value, log.deleted
FROM alcove_live live LEFT JOIN alcove_log log ON log.pos = live.pos AND log.key = live.key ORDER BY live.key";

/// $1, $2: start and end of the range (no end: null). $3: the last position of the revision.
pub(super) const KEYS_AT: &str = "
SELECT key, pos FROM alcove_live WHERE key >= $1 AND ($2::bytea IS NULL OR key < $2) AND pos <= $3
UNION ALL
SELECT key, prev FROM alcove_log
WHERE pos > $3 AND prev > 0 AND prev <= $3 AND key >= $1 AND ($2::bytea IS NULL OR key < $2)
ORDER BY 1";

pub(super) const VALUES: &str =
    "SELECT pos, key, create_revision, version, lease, value FROM alcove_log WHERE pos = ANY($1::bigint[])";

pub(super) const EVENTS: &str = "
SELECT l.pos, l.key, l.create_revision, l.version, l.lease, l.value, l.deleted,
       p.pos, p.key, p.create_revision, p.version, p.lease, p.value
FROM alcove_log l LEFT JOIN alcove_log p ON p.pos = l.prev
WHERE l.pos > $1 AND l.pos <= $2 AND l.key >= $3 AND ($4::bytea IS NULL OR l.key < $4)
ORDER BY l.pos LIMIT $5";
