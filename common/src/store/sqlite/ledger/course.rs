//! Timeline of a batch, kept beside its counters.

use std::time::Duration;

use rusqlite::Connection;

use super::super::fault::Fault;
use super::super::rows::{millis, number};
use super::book::Entry;
use crate::batch::BatchId;
use crate::store::course::part_of;
use crate::store::{Course, MAX_SLOWEST, Part, Share, Slow, Spent};

/// Adds ended tasks (copied, unchanged, failed, cancelled) and bytes to the current time bucket.
pub(super) fn note_part(
    connection: &Connection,
    entry: &mut Entry,
    now: i64,
    ended: [i64; 4],
    bytes: u64,
) -> Result<(), Fault> {
    if ended == [0; 4] && bytes == 0 {
        return Ok(());
    }
    let (part, times) = part_of(now - entry.created, entry.width);
    if times > 1 {
        widen(connection, entry, times)?;
    }
    connection
        .prepare_cached(
            "INSERT INTO part (batch, number, copied, unchanged, failed, cancelled, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET copied = copied + ?3, unchanged = unchanged + ?4, failed = failed + ?5,
                 cancelled = cancelled + ?6, bytes = bytes + ?7",
        )?
        .execute((entry.no, part, ended[0], ended[1], ended[2], ended[3], number(bytes)))?;
    Ok(())
}

/// Widens the time buckets by a factor. The caller writes the batch's row.
fn widen(connection: &Connection, entry: &mut Entry, times: i64) -> Result<(), Fault> {
    let parts = parts(connection, entry.no)?;
    connection.prepare_cached("DELETE FROM part WHERE batch = ?1")?.execute([entry.no])?;
    for part in parts {
        connection
            .prepare_cached(
                "INSERT INTO part (batch, number, copied, unchanged, failed, cancelled, bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET copied = copied + ?3, unchanged = unchanged + ?4, failed = failed + ?5,
                     cancelled = cancelled + ?6, bytes = bytes + ?7",
            )?
            .execute((
                entry.no,
                i64::from(part.number) / times,
                number(part.copied),
                number(part.unchanged),
                number(part.failed),
                number(part.cancelled),
                number(part.bytes),
            ))?;
    }
    entry.width *= times;
    Ok(())
}

/// Adds to the work of a worker.
pub(super) fn note_share(
    connection: &Connection,
    no: i64,
    worker: &str,
    (ended, failed): (bool, bool),
    spent: Spent,
) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO share (batch, worker, ended, failed, bytes, millis) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET ended = ended + ?3, failed = failed + ?4, bytes = bytes + ?5,
                 millis = millis + ?6",
        )?
        .execute((no, worker, ended, failed, number(spent.bytes.copied), millis(spent.time)))?;
    Ok(())
}

/// Keeps a task if it is among the slowest.
pub(super) fn note_slow(connection: &Connection, no: i64, task: u32, worker: &str, spent: Spent) -> Result<(), Fault> {
    let time = millis(spent.time);
    let (kept, least): (u32, i64) = connection
        .prepare_cached("SELECT count(*), coalesce(min(millis), 0) FROM slow WHERE batch = ?1")?
        .query_row([no], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if time == 0 || (kept as usize >= MAX_SLOWEST && time <= least) {
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO slow (batch, task, millis, bytes, worker) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET millis = ?3, bytes = ?4, worker = ?5 WHERE ?3 > millis",
        )?
        .execute((no, task, time, number(spent.bytes.copied), worker))?;
    connection
        .prepare_cached(
            "DELETE FROM slow WHERE batch = ?1 AND task IN
                 (SELECT task FROM slow WHERE batch = ?1 ORDER BY millis DESC, task LIMIT -1 OFFSET ?2)",
        )?
        .execute((no, number(MAX_SLOWEST as u64)))?;
    Ok(())
}

pub(super) fn course(connection: &Connection, batch: BatchId) -> Result<Course, Fault> {
    let entry = Entry::get(connection, batch)?;
    let time = |millis: i64| Duration::from_millis(millis.unsigned_abs());
    let mut slowest = connection
        .prepare_cached("SELECT task, millis, bytes, worker FROM slow WHERE batch = ?1 ORDER BY millis DESC, task")?;
    let slowest = slowest.query_map([entry.no], |row| {
        Ok(Slow {
            index: row.get(0)?,
            time: time(row.get(1)?),
            bytes: row.get::<_, i64>(2)?.unsigned_abs(),
            worker: row.get(3)?,
        })
    })?;
    let mut shares = connection
        .prepare_cached("SELECT worker, ended, failed, bytes, millis FROM share WHERE batch = ?1 ORDER BY worker")?;
    let shares = shares.query_map([entry.no], |row| {
        let amount = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(Share {
            worker: row.get(0)?,
            ended: amount(1)?,
            failed: amount(2)?,
            bytes: amount(3)?,
            time: time(row.get(4)?),
        })
    })?;
    Ok(Course {
        width: time(entry.width),
        parts: parts(connection, entry.no)?,
        slowest: slowest.collect::<Result<_, _>>()?,
        shares: shares.collect::<Result<_, _>>()?,
    })
}

fn parts(connection: &Connection, no: i64) -> Result<Vec<Part>, Fault> {
    let mut parts = connection.prepare_cached(
        "SELECT number, copied, unchanged, failed, cancelled, bytes FROM part WHERE batch = ?1 ORDER BY number",
    )?;
    let parts = parts.query_map([no], |row| {
        let amount = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(Part {
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
