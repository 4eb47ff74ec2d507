//! Database schema and migrations.

use rusqlite::{Connection, TransactionBehavior};

use super::error::SqliteError;
use crate::error::{Error, ErrorKind};

/// Identifies our files (`PRAGMA application_id`): "imgs".
const APPLICATION_ID: i32 = 0x696d_6773;

/// Migrations; each takes the file from the version of its position to the next. Only ever appended to.
const MIGRATIONS: &[&str] =
    &[VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8, VERSION_9];

/// Times are in milliseconds since 1970, those of the cache in seconds. `chunk.states` holds codes of `TaskState`, two
/// per byte, the first in the lower half.
const VERSION_1: &str = "
CREATE TABLE batch (
    no INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    control INTEGER NOT NULL,
    run INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    rules TEXT NOT NULL,
    options TEXT NOT NULL,
    supersedes BLOB,
    created INTEGER NOT NULL,
    sealed INTEGER,
    ended INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    s0 INTEGER NOT NULL DEFAULT 0, s1 INTEGER NOT NULL DEFAULT 0,
    s2 INTEGER NOT NULL DEFAULT 0, s3 INTEGER NOT NULL DEFAULT 0,
    s4 INTEGER NOT NULL DEFAULT 0, s5 INTEGER NOT NULL DEFAULT 0,
    s6 INTEGER NOT NULL DEFAULT 0, s7 INTEGER NOT NULL DEFAULT 0,
    copied INTEGER NOT NULL DEFAULT 0,
    mounted INTEGER NOT NULL DEFAULT 0,
    reused INTEGER NOT NULL DEFAULT 0,
    source_requests INTEGER NOT NULL DEFAULT 0,
    target_requests INTEGER NOT NULL DEFAULT 0,
    CHECK (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 = total),
    CHECK (min(s0, s1, s2, s3, s4, s5, s6, s7) >= 0)
);
CREATE TABLE repository (
    batch INTEGER NOT NULL,
    key TEXT NOT NULL,
    first INTEGER NOT NULL,
    PRIMARY KEY (batch, key)
) WITHOUT ROWID;
CREATE TABLE unlisted (
    batch INTEGER NOT NULL,
    repository TEXT NOT NULL,
    class TEXT NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (batch, repository)
) WITHOUT ROWID;
CREATE TABLE chunk (
    batch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    length INTEGER NOT NULL,
    fresh INTEGER NOT NULL,
    states BLOB NOT NULL,
    PRIMARY KEY (batch, first)
) WITHOUT ROWID;
CREATE INDEX unpublished ON chunk (batch, first) WHERE fresh > 0;
CREATE TABLE plan (
    batch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tasks BLOB NOT NULL,
    PRIMARY KEY (batch, first)
) WITHOUT ROWID;
CREATE TABLE mark (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    run INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE held (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    until INTEGER NOT NULL,
    worker TEXT NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE retry (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE failure (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    class TEXT NOT NULL,
    error TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE scope (
    no INTEGER PRIMARY KEY,
    end TEXT NOT NULL,
    repository TEXT NOT NULL,
    options TEXT NOT NULL,
    UNIQUE (end, repository, options)
);
CREATE TABLE tag (
    scope INTEGER NOT NULL,
    tag TEXT NOT NULL,
    digests BLOB NOT NULL,
    seen INTEGER NOT NULL,
    referrers INTEGER,
    PRIMARY KEY (scope, tag)
) WITHOUT ROWID;
CREATE TABLE home (
    no INTEGER PRIMARY KEY,
    end TEXT NOT NULL,
    repository TEXT NOT NULL,
    UNIQUE (end, repository)
);
CREATE TABLE blob (
    digest BLOB NOT NULL,
    end TEXT NOT NULL,
    home INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (digest, end)
) WITHOUT ROWID;
CREATE TABLE pace (
    registry TEXT NOT NULL,
    who TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (registry, who)
) WITHOUT ROWID;
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    until INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('lease epoch', 0);
";

/// Lost leases of tasks.
const VERSION_2: &str = "
CREATE TABLE lost (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
";

/// Timelines of batches. `width` is the width of a time bucket in milliseconds.
const VERSION_3: &str = "
ALTER TABLE batch ADD COLUMN millis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN width INTEGER NOT NULL DEFAULT 1000;
CREATE TABLE part (
    batch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    copied INTEGER NOT NULL DEFAULT 0,
    unchanged INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE TABLE slow (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    millis INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    worker TEXT NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE share (
    batch INTEGER NOT NULL,
    worker TEXT NOT NULL,
    ended INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    millis INTEGER NOT NULL,
    PRIMARY KEY (batch, worker)
) WITHOUT ROWID;
";

/// Quotas of registries, and the monthly traffic of machines.
const VERSION_4: &str = "
CREATE TABLE quota (
    registry TEXT NOT NULL,
    who TEXT NOT NULL,
    began INTEGER NOT NULL,
    remaining INTEGER NOT NULL,
    PRIMARY KEY (registry, who)
) WITHOUT ROWID;
CREATE TABLE traffic (
    machine TEXT NOT NULL,
    month TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (machine, month)
) WITHOUT ROWID;
";

/// Provenance of target tags, and prune records. `missing` and `unclaimed` are in seconds since 1970; `source_tag` is
/// set if it differs from `tag`.
const VERSION_5: &str = "
CREATE TABLE origin (
    target INTEGER NOT NULL,
    tag TEXT NOT NULL,
    source INTEGER NOT NULL,
    source_tag TEXT,
    digest BLOB NOT NULL,
    missing INTEGER,
    unclaimed INTEGER,
    PRIMARY KEY (target, tag)
) WITHOUT ROWID;
CREATE INDEX origin_of_source ON origin (source);
CREATE TABLE pruned (
    batch INTEGER NOT NULL,
    target TEXT NOT NULL,
    source TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (batch, target, source)
) WITHOUT ROWID;
";

/// Last runs of schedules, and their batches.
const VERSION_6: &str = "
CREATE TABLE schedule (
    name TEXT NOT NULL PRIMARY KEY,
    at INTEGER NOT NULL,
    batch BLOB
) WITHOUT ROWID;
";

/// Proofs that source repositories hold a blob: a hash of both, and the time in hours since 1970.
const VERSION_7: &str = "
CREATE TABLE proof (key BLOB NOT NULL PRIMARY KEY, hour INTEGER NOT NULL) WITHOUT ROWID;
";

/// Rules that selected no tag, and hashed files of layouts: `version` identifies a version of a file.
const VERSION_8: &str = "
CREATE TABLE empty_rule (
    batch INTEGER NOT NULL,
    rule INTEGER NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (batch, rule)
) WITHOUT ROWID;
CREATE TABLE hashed_file (
    folder TEXT NOT NULL,
    digest BLOB NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (folder, digest)
) WITHOUT ROWID;
";

/// Sent notifications of batches.
const VERSION_9: &str = "
CREATE TABLE told (
    batch INTEGER NOT NULL,
    told TEXT NOT NULL,
    PRIMARY KEY (batch, told)
) WITHOUT ROWID;
";

/// Migrates a file to the version of this program, or refuses it.
pub(super) fn migrate(connection: &mut Connection, name: &str) -> Result<(), SqliteError> {
    let refuse = |detail: String, hint: String| {
        Err(SqliteError::Reported(
            Error::new(ErrorKind::Local, format!("opening the store {name}"), detail).with_hint(hint),
        ))
    };
    let current = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? == current
        && connection.pragma_query_value(None, "application_id", |row| row.get::<_, i32>(0))? == APPLICATION_ID
    {
        return Ok(());
    }
    // Another process may be about to do the same.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return refuse("the file is another program's".into(), "choose another directory with --state".into());
    }
    if version > current {
        return refuse(
            format!("it was written by a newer imgsync (version {version} of the store, this one knows {current})"),
            "use that imgsync, or another directory with --state".into(),
        );
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", current)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_schema_is_migrated_without_losing_data() {
        for version in 1..MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            for migration in &MIGRATIONS[..version] {
                connection.execute_batch(migration).unwrap();
            }
            connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            connection.pragma_update(None, "user_version", version as i64).unwrap();
            connection
                .execute(
                    "INSERT INTO batch (id, control, rules, options, created, total, s4) VALUES (x'00', 4, '', '', 5, 1, 1)",
                    [],
                )
                .unwrap();
            migrate(&mut connection, "a test").unwrap();
            migrate(&mut connection, "a test").unwrap();
            let kept = connection.query_row("SELECT created, s4, millis, width FROM batch", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            });
            assert_eq!(kept.unwrap(), (5, 1, 0, 1000));
            let parts: i64 = connection.query_row("SELECT count(*) FROM part", [], |row| row.get(0)).unwrap();
            assert_eq!(parts, 0);
            let quotas: i64 = connection.query_row("SELECT count(*) FROM quota", [], |row| row.get(0)).unwrap();
            assert_eq!(quotas, 0);
            let origins: i64 = connection.query_row("SELECT count(*) FROM origin", [], |row| row.get(0)).unwrap();
            assert_eq!(origins, 0);
            let begun: i64 = connection.query_row("SELECT count(*) FROM schedule", [], |row| row.get(0)).unwrap();
            assert_eq!(begun, 0);
        }
    }
}
