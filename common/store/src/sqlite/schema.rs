//! Database schema and migrations.

use rusqlite::{Connection, TransactionBehavior};

use super::error::SqliteError;
use imgsync_oci::error::{Error, ErrorKind};

/// Identifies our files (`PRAGMA application_id`): "imgs".
const APPLICATION_ID: i32 = 0x696d_6773;

/// Migrations; each takes the file from the version of its position to the next. Only ever appended to.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3];

/// Times are in milliseconds since 1970; those of the tables `tag` and `provenance` in seconds, `proof.hour` in hours.
///
/// `batch.bucket_width` is the width of a time bucket in milliseconds. `chunk.states` holds codes of `TaskState`, two
/// per byte, the first in the lower half. `provenance.source_tag` is set if it differs from `tag`. `proof.key` is a
/// hash of a source repository and a blob. `hashed_file.version` identifies a version of a file of a layout.
const VERSION_1: &str = "
CREATE TABLE batch (
    row_id INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    run INTEGER NOT NULL DEFAULT 0,
    last_token INTEGER NOT NULL DEFAULT 0,
    rules TEXT NOT NULL,
    options TEXT NOT NULL,
    supersedes BLOB,
    created_at INTEGER NOT NULL,
    planned_at INTEGER,
    ended_at INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    new_tasks INTEGER NOT NULL DEFAULT 0,
    queued_tasks INTEGER NOT NULL DEFAULT 0,
    running_tasks INTEGER NOT NULL DEFAULT 0,
    retry_tasks INTEGER NOT NULL DEFAULT 0,
    copied_tasks INTEGER NOT NULL DEFAULT 0,
    unchanged_tasks INTEGER NOT NULL DEFAULT 0,
    failed_tasks INTEGER NOT NULL DEFAULT 0,
    cancelled_tasks INTEGER NOT NULL DEFAULT 0,
    copied INTEGER NOT NULL DEFAULT 0,
    mounted INTEGER NOT NULL DEFAULT 0,
    reused INTEGER NOT NULL DEFAULT 0,
    source_requests INTEGER NOT NULL DEFAULT 0,
    target_requests INTEGER NOT NULL DEFAULT 0,
    millis INTEGER NOT NULL DEFAULT 0,
    bucket_width INTEGER NOT NULL DEFAULT 1000,
    CHECK (new_tasks + queued_tasks + running_tasks + retry_tasks
        + copied_tasks + unchanged_tasks + failed_tasks + cancelled_tasks = total),
    CHECK (min(new_tasks, queued_tasks, running_tasks, retry_tasks,
        copied_tasks, unchanged_tasks, failed_tasks, cancelled_tasks) >= 0)
);
CREATE INDEX batch_by_rules ON batch (rules, id);
CREATE TABLE repository (
    batch INTEGER NOT NULL,
    key TEXT NOT NULL,
    first INTEGER NOT NULL,
    PRIMARY KEY (batch, key)
) WITHOUT ROWID;
CREATE TABLE unlisted (
    batch INTEGER NOT NULL,
    repository TEXT NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (batch, repository)
) WITHOUT ROWID;
CREATE TABLE empty_rule (
    batch INTEGER NOT NULL,
    rule INTEGER NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (batch, rule)
) WITHOUT ROWID;
CREATE TABLE chunk (
    batch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    length INTEGER NOT NULL,
    new_tasks INTEGER NOT NULL,
    states BLOB NOT NULL,
    PRIMARY KEY (batch, first)
) WITHOUT ROWID;
CREATE INDEX unpublished ON chunk (batch, first) WHERE new_tasks > 0;
CREATE TABLE plan (
    batch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tasks BLOB NOT NULL,
    PRIMARY KEY (batch, first)
) WITHOUT ROWID;
CREATE TABLE run_attempts (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    run INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE task_lease (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    worker TEXT NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE lost_lease (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    losses INTEGER NOT NULL,
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
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    registry TEXT,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE prune_record (
    batch INTEGER NOT NULL,
    target TEXT NOT NULL,
    source TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (batch, target, source)
) WITHOUT ROWID;
CREATE TABLE notification (
    batch INTEGER NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (batch, entry)
) WITHOUT ROWID;
CREATE TABLE time_bucket (
    batch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    copied INTEGER NOT NULL DEFAULT 0,
    unchanged INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE TABLE slow_task (
    batch INTEGER NOT NULL,
    task INTEGER NOT NULL,
    millis INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    worker TEXT NOT NULL,
    PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE worker_stats (
    batch INTEGER NOT NULL,
    worker TEXT NOT NULL,
    ended INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    millis INTEGER NOT NULL,
    PRIMARY KEY (batch, worker)
) WITHOUT ROWID;
CREATE TABLE scope (
    row_id INTEGER PRIMARY KEY,
    endpoint TEXT NOT NULL,
    repository TEXT NOT NULL,
    options TEXT NOT NULL,
    UNIQUE (endpoint, repository, options)
);
CREATE TABLE tag (
    scope INTEGER NOT NULL,
    tag TEXT NOT NULL,
    digests BLOB NOT NULL,
    seen_at INTEGER NOT NULL,
    referrers_at INTEGER,
    PRIMARY KEY (scope, tag)
) WITHOUT ROWID;
CREATE TABLE repository_locator (
    row_id INTEGER PRIMARY KEY,
    endpoint TEXT NOT NULL,
    repository TEXT NOT NULL,
    UNIQUE (endpoint, repository)
);
CREATE TABLE blob (
    digest BLOB NOT NULL,
    endpoint TEXT NOT NULL,
    locator INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (digest, endpoint)
) WITHOUT ROWID;
CREATE TABLE proof (key BLOB NOT NULL PRIMARY KEY, hour INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE hashed_file (
    folder TEXT NOT NULL,
    digest BLOB NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (folder, digest)
) WITHOUT ROWID;
CREATE TABLE provenance (
    target INTEGER NOT NULL,
    tag TEXT NOT NULL,
    source INTEGER NOT NULL,
    source_tag TEXT,
    digest BLOB NOT NULL,
    missing_since INTEGER,
    unclaimed_since INTEGER,
    PRIMARY KEY (target, tag)
) WITHOUT ROWID;
CREATE INDEX provenance_by_source ON provenance (source);
CREATE TABLE rate_block (
    registry TEXT NOT NULL,
    account_key TEXT NOT NULL,
    blocked_until INTEGER NOT NULL,
    PRIMARY KEY (registry, account_key)
) WITHOUT ROWID;
CREATE TABLE quota (
    registry TEXT NOT NULL,
    account_key TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    remaining INTEGER NOT NULL,
    PRIMARY KEY (registry, account_key)
) WITHOUT ROWID;
CREATE TABLE traffic (
    machine TEXT NOT NULL,
    month TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (machine, month)
) WITHOUT ROWID;
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE schedule (
    name TEXT NOT NULL PRIMARY KEY,
    last_run_at INTEGER NOT NULL,
    batch BLOB
) WITHOUT ROWID;
CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('lease token', 0);
";

/// Skipped runs of schedules are kept.
const VERSION_2: &str = "ALTER TABLE schedule ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;";

/// Pending pushes and the ids of their notifications. Times are in milliseconds since 1970; `digest` may be empty.
const VERSION_3: &str = "
CREATE TABLE pending_push (
    rule TEXT NOT NULL,
    key TEXT NOT NULL,
    digest TEXT NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    notifications INTEGER NOT NULL,
    not_before INTEGER,
    postponed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (rule, key)
) WITHOUT ROWID;
CREATE TABLE push_id (id TEXT NOT NULL PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX push_id_by_age ON push_id (at);
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
    fn a_new_file_gets_the_current_version_and_keeps_its_data_when_opened_again() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "a test").unwrap();
        connection
            .execute(
                "INSERT INTO batch (id, state, rules, options, created_at, total, copied_tasks)
                 VALUES (x'00', 4, '', '', 5, 1, 1)",
                [],
            )
            .unwrap();
        migrate(&mut connection, "a test").unwrap();
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, MIGRATIONS.len() as i64);
        let kept =
            connection.query_row("SELECT created_at, copied_tasks, millis, bucket_width FROM batch", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            });
        assert_eq!(kept.unwrap(), (5, 1, 0, 1000));
    }
}
