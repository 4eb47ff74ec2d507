//! Timeline of a batch, kept beside its counters.

use std::time::Duration;

use rusqlite::Connection;

use super::super::error::SqliteError;
use super::super::rows::{duration_ms, to_sql_integer};
use super::batch_row::BatchRow;
use crate::timeline::locate_bucket;
use crate::{BatchTimeline, MAX_SLOWEST_TASKS, SlowTask, TimeBucket, Usage, WorkerStats};
use imgsync_model::batch::BatchId;

/// Work of a worker on tasks of a batch.
#[derive(Clone, Default)]
pub(super) struct WorkerWork {
    pub(super) worker: String,
    pub(super) ended: u32,
    pub(super) failed: u32,
    pub(super) usage: Usage,
}

/// Adds ended tasks (copied, unchanged, failed, cancelled) and bytes to the current time bucket.
pub(super) fn record_bucket(
    connection: &Connection,
    entry: &mut BatchRow,
    now: i64,
    ended: [i64; 4],
    bytes: u64,
) -> Result<(), SqliteError> {
    if ended == [0; 4] && bytes == 0 {
        return Ok(());
    }
    let (part, times) = locate_bucket(now - entry.created, entry.width);
    if times > 1 {
        widen_buckets(connection, entry, times)?;
    }
    connection
        .prepare_cached(
            "INSERT INTO time_bucket (batch, number, copied, unchanged, failed, cancelled, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET copied = copied + ?3, unchanged = unchanged + ?4, failed = failed + ?5,
                 cancelled = cancelled + ?6, bytes = bytes + ?7",
        )?
        .execute((entry.row_id, part, ended[0], ended[1], ended[2], ended[3], to_sql_integer(bytes)))?;
    Ok(())
}

/// Widens the time buckets by a factor. The caller writes the batch's row.
fn widen_buckets(connection: &Connection, entry: &mut BatchRow, times: i64) -> Result<(), SqliteError> {
    let parts = read_buckets(connection, entry.row_id)?;
    connection.prepare_cached("DELETE FROM time_bucket WHERE batch = ?1")?.execute([entry.row_id])?;
    for part in parts {
        connection
            .prepare_cached(
                "INSERT INTO time_bucket (batch, number, copied, unchanged, failed, cancelled, bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET copied = copied + ?3, unchanged = unchanged + ?4, failed = failed + ?5,
                     cancelled = cancelled + ?6, bytes = bytes + ?7",
            )?
            .execute((
                entry.row_id,
                i64::from(part.number) / times,
                to_sql_integer(part.copied),
                to_sql_integer(part.unchanged),
                to_sql_integer(part.failed),
                to_sql_integer(part.cancelled),
                to_sql_integer(part.bytes),
            ))?;
    }
    entry.width *= times;
    Ok(())
}

/// Adds to the work of a worker.
pub(super) fn record_worker_stats(connection: &Connection, no: i64, work: &WorkerWork) -> Result<(), SqliteError> {
    let WorkerWork { worker, ended, failed, usage } = work;
    connection
        .prepare_cached(
            "INSERT INTO worker_stats (batch, worker, ended, failed, bytes, millis) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET ended = ended + ?3, failed = failed + ?4, bytes = bytes + ?5,
                 millis = millis + ?6",
        )?
        .execute((no, worker, ended, failed, to_sql_integer(usage.bytes.copied), duration_ms(usage.time)))?;
    Ok(())
}

/// Keeps a task if it is among the slowest. `known` is the number of tasks that are kept, and the time of the fastest of
/// them. Returns the same afterwards, if nothing has changed.
pub(super) fn record_slow_task(
    connection: &Connection,
    no: i64,
    task: u32,
    worker: &str,
    usage: Usage,
    known: Option<(u32, i64)>,
) -> Result<Option<(u32, i64)>, SqliteError> {
    let time = duration_ms(usage.time);
    let (kept, least) = match known {
        Some(known) => known,
        None => connection
            .prepare_cached("SELECT count(*), coalesce(min(millis), 0) FROM slow_task WHERE batch = ?1")?
            .query_row([no], |row| Ok((row.get(0)?, row.get(1)?)))?,
    };
    if time == 0 || (kept as usize >= MAX_SLOWEST_TASKS && time <= least) {
        return Ok(Some((kept, least)));
    }
    connection
        .prepare_cached(
            "INSERT INTO slow_task (batch, task, millis, bytes, worker) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET millis = ?3, bytes = ?4, worker = ?5 WHERE ?3 > millis",
        )?
        .execute((no, task, time, to_sql_integer(usage.bytes.copied), worker))?;
    if kept as usize >= MAX_SLOWEST_TASKS {
        connection.prepare_cached(&delete_faster_tasks())?.execute([no])?;
    }
    Ok(None)
}

/// Returns the statement that keeps only the slowest tasks. If the number were bound, SQLite would prepare the statement
/// again each time; the same for a plain parameter, because of the order.
pub(super) fn delete_faster_tasks() -> String {
    format!(
        "DELETE FROM slow_task WHERE batch = +?1 AND task IN
             (SELECT task FROM slow_task WHERE batch = +?1 ORDER BY millis DESC, task LIMIT -1 OFFSET {MAX_SLOWEST_TASKS})"
    )
}

pub(super) fn read_timeline(connection: &Connection, batch: BatchId) -> Result<BatchTimeline, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let time = |millis: i64| Duration::from_millis(millis.unsigned_abs());
    let mut slowest = connection.prepare_cached(
        "SELECT task, millis, bytes, worker FROM slow_task WHERE batch = ?1 ORDER BY millis DESC, task",
    )?;
    let slowest = slowest.query_map([entry.row_id], |row| {
        Ok(SlowTask {
            index: row.get(0)?,
            time: time(row.get(1)?),
            bytes: row.get::<_, i64>(2)?.unsigned_abs(),
            worker: row.get(3)?,
        })
    })?;
    let mut shares = connection.prepare_cached(
        "SELECT worker, ended, failed, bytes, millis FROM worker_stats WHERE batch = ?1 ORDER BY worker",
    )?;
    let shares = shares.query_map([entry.row_id], |row| {
        let amount = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(WorkerStats {
            worker: row.get(0)?,
            ended: amount(1)?,
            failed: amount(2)?,
            bytes: amount(3)?,
            time: time(row.get(4)?),
        })
    })?;
    Ok(BatchTimeline {
        bucket_width: time(entry.width),
        buckets: read_buckets(connection, entry.row_id)?,
        slowest: slowest.collect::<Result<_, _>>()?,
        workers: shares.collect::<Result<_, _>>()?,
    })
}

fn read_buckets(connection: &Connection, no: i64) -> Result<Vec<TimeBucket>, SqliteError> {
    let mut parts = connection.prepare_cached(
        "SELECT number, copied, unchanged, failed, cancelled, bytes FROM time_bucket WHERE batch = ?1 ORDER BY number",
    )?;
    let parts = parts.query_map([no], |row| {
        let amount = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(TimeBucket {
            number: row.get(0)?,
            copied: amount(1)?,
            unchanged: amount(2)?,
            failed: amount(3)?,
            cancelled: amount(4)?,
            bytes: amount(5)?,
        })
    })?;
    Ok(parts.collect::<Result<_, _>>()?)
}
