//! Queries of batches and tasks.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::super::error::{SqliteError, corrupt_store};
use super::super::rows::{parse_error_kind, timestamp, to_sql_integer};
use super::batch_row::{BatchRow, decode_batch_state};
use super::batch_tx::get_state;
use crate::{Batch, BatchState, EmptyRule, FailedTask, ListingFailure, PruneRecord, RecordCounts, TaskRow, Usage};
use imgsync_model::batch::{
    BatchId, BlobBytes, Failure, PlanChunk, RequestCounts, Task, TaskCounts, TaskState, decode_chunk,
};
use imgsync_oci::Digest;

const BATCH_COLUMNS: &str = "id, state, run, rules, options, supersedes, created_at, planned_at, ended_at,
    new_tasks, queued_tasks, running_tasks, retry_tasks, copied_tasks, unchanged_tasks, failed_tasks, cancelled_tasks,
    copied, mounted, reused, source_requests, target_requests, millis";
/// Maximum number of batches found by a prefix.
const MAX_PREFIX_MATCHES: usize = 10;

pub(super) fn find_batch(connection: &Connection, id: BatchId) -> Result<Option<Batch>, SqliteError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {BATCH_COLUMNS} FROM batch WHERE id = ?1"))?;
    let mut rows = statement.query([id.as_bytes()])?;
    rows.next()?.map(read_batch).transpose()
}

pub(super) fn batches(
    connection: &Connection,
    before: Option<BatchId>,
    limit: usize,
) -> Result<Vec<Batch>, SqliteError> {
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((bound(before), to_sql_integer(limit as u64)))?;
    let mut batches = Vec::new();
    while let Some(row) = rows.next()? {
        batches.push(read_batch(row)?);
    }
    Ok(batches)
}

pub(super) fn newest_batches(
    connection: &Connection,
    rules: &[Digest],
    before: Option<BatchId>,
    each: usize,
) -> Result<Vec<Batch>, SqliteError> {
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch WHERE rules = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut batches = Vec::new();
    for rules in rules {
        let mut rows = statement.query((rules.to_string(), bound(before), to_sql_integer(each as u64)))?;
        while let Some(row) = rows.next()? {
            batches.push(read_batch(row)?);
        }
    }
    Ok(batches)
}

/// Returns the id that all wanted batches are below. Blobs compare byte by byte, and a longer one is greater.
fn bound(before: Option<BatchId>) -> Vec<u8> {
    before.map_or_else(|| vec![0xff; 17], |before| before.as_bytes().to_vec())
}

fn read_batch(row: &Row<'_>) -> Result<Batch, SqliteError> {
    let amount = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let rules: String = row.get(3)?;
    let mut in_state = [0; 8];
    for (code, count) in in_state.iter_mut().enumerate() {
        *count = amount(9 + code)?;
    }
    Ok(Batch {
        id: BatchId::from_bytes(row.get(0)?),
        state: decode_batch_state(row.get(1)?)?,
        run: row.get(2)?,
        rules: rules.parse().map_err(|_| corrupt_store("the rules digest of a batch is invalid"))?,
        options: row.get(4)?,
        supersedes: row.get::<_, Option<[u8; 16]>>(5)?.map(BatchId::from_bytes),
        created_at: timestamp(row.get(6)?),
        plan_completed_at: row.get::<_, Option<i64>>(7)?.map(timestamp),
        ended_at: row.get::<_, Option<i64>>(8)?.map(timestamp),
        counts: TaskCounts::from_states(|state| in_state[usize::from(state.code())]),
        queued: in_state[usize::from(TaskState::Queued.code())],
        retrying: in_state[usize::from(TaskState::Retry.code())],
        usage: Usage {
            bytes: BlobBytes { copied: amount(17)?, mounted: amount(18)?, reused: amount(19)? },
            requests: RequestCounts { source: amount(20)?, target: amount(21)? },
            time: Duration::from_millis(amount(22)?),
        },
    })
}

pub(super) fn find_unfinished(connection: &Connection, rules: &Digest) -> Result<Option<BatchId>, SqliteError> {
    let id: Option<[u8; 16]> = connection
        .prepare_cached("SELECT id FROM batch WHERE rules = ?1 AND state IN (?2, ?3) ORDER BY id DESC LIMIT 1")?
        .query_row((rules.to_string(), BatchState::Running as u8, BatchState::Paused as u8), |row| row.get(0))
        .optional()?;
    Ok(id.map(BatchId::from_bytes))
}

pub(super) fn find_batches(connection: &Connection, prefix: &str) -> Result<Vec<BatchId>, SqliteError> {
    let mut statement = connection.prepare_cached("SELECT id FROM batch ORDER BY id DESC")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while found.len() < MAX_PREFIX_MATCHES
        && let Some(row) = rows.next()?
    {
        let id = BatchId::from_bytes(row.get(0)?);
        if id.to_string().starts_with(prefix) {
            found.push(id);
        }
    }
    Ok(found)
}

pub(super) fn count_records(connection: &Connection, batches: &[BatchId]) -> Result<Vec<RecordCounts>, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT (SELECT count(*) FROM unlisted WHERE batch = row_id),
                (SELECT count(*) FROM prune_record WHERE batch = row_id)
         FROM batch WHERE id = ?1",
    )?;
    let count = |row: &Row<'_>, column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let mut counts = Vec::with_capacity(batches.len());
    for batch in batches {
        let read = |row: &Row<'_>| Ok(RecordCounts { unlisted: count(row, 0)?, pruned: count(row, 1)? });
        counts.push(statement.query_row([batch.as_bytes()], read).optional()?.unwrap_or_default());
    }
    Ok(counts)
}

pub(super) fn listing_failures(connection: &Connection, batch: BatchId) -> Result<Vec<ListingFailure>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let sql = "SELECT repository, kind, error FROM unlisted WHERE batch = ?1 ORDER BY repository";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([entry.row_id])?;
    let mut unlisted = Vec::new();
    while let Some(row) = rows.next()? {
        let its_class: String = row.get(1)?;
        unlisted.push(ListingFailure {
            repository: row.get(0)?,
            kind: parse_error_kind(&its_class)?,
            error: row.get(2)?,
        });
    }
    Ok(unlisted)
}

pub(super) fn empty_rules(connection: &Connection, batch: BatchId) -> Result<Vec<EmptyRule>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let mut statement = connection.prepare_cached("SELECT entry FROM empty_rule WHERE batch = ?1 ORDER BY rule")?;
    let mut rows = statement.query([entry.row_id])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        found.push(serde_json::from_str(&text).map_err(|_| corrupt_store("an empty-rule record cannot be decoded"))?);
    }
    Ok(found)
}

pub(super) fn sent_notifications(connection: &Connection, batch: BatchId) -> Result<Vec<String>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let mut statement = connection.prepare_cached("SELECT entry FROM notification WHERE batch = ?1 ORDER BY entry")?;
    let targets = statement.query_map([entry.row_id], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(targets)
}

pub(super) fn prune_records(connection: &Connection, batch: BatchId) -> Result<Vec<PruneRecord>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let mut statement = connection.prepare_cached("SELECT entry FROM prune_record WHERE batch = ?1")?;
    let mut rows = statement.query([entry.row_id])?;
    let mut pruned: Vec<PruneRecord> = Vec::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        pruned.push(serde_json::from_str(&text).map_err(|_| corrupt_store("a prune record cannot be decoded"))?);
    }
    pruned.sort_by(|a, b| (a.outcome, &a.target, &a.source).cmp(&(b.outcome, &b.target, &b.source)));
    Ok(pruned)
}

pub(super) fn failures(
    connection: &Connection,
    batch: BatchId,
    from: u32,
    limit: usize,
) -> Result<Vec<FailedTask>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let mut statement = connection.prepare_cached(
        "SELECT task, kind, error, registry, attempts FROM failure WHERE batch = ?1 AND task >= ?2 ORDER BY task LIMIT ?3",
    )?;
    let mut rows = statement.query((entry.row_id, from, to_sql_integer(limit as u64)))?;
    let mut reader = PlanReader { connection, no: entry.row_id, chunk: None };
    let mut failures = Vec::new();
    while let Some(row) = rows.next()? {
        let its_class: String = row.get(1)?;
        let registry: Option<String> = row.get(3)?;
        failures.push(FailedTask {
            task: reader.task(row.get(0)?)?,
            failure: Failure {
                kind: parse_error_kind(&its_class)?,
                error: row.get(2)?,
                registry: registry.and_then(|name| name.parse().ok()),
                attempts: row.get(4)?,
            },
        });
    }
    Ok(failures)
}

pub(super) fn tasks(
    connection: &Connection,
    batch: BatchId,
    wanted: Option<TaskState>,
    from: u32,
    limit: usize,
) -> Result<Vec<TaskRow>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let sql = "SELECT first, length, states FROM chunk WHERE batch = +?1 AND first + length > ?2 ORDER BY first";
    let mut statement = connection.prepare_cached(sql)?;
    let mut chunks = statement.query((entry.row_id, from))?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = chunks.next()?
    {
        let (first, length, states): (u32, u32, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let mut here = Vec::new();
        for index in from.max(first)..first + length {
            let state = get_state(&states, index - first)?;
            if wanted.is_none_or(|wanted| wanted == state) && found.len() + here.len() < limit {
                here.push((index, state));
            }
        }
        if here.is_empty() {
            continue;
        }
        let chunk = read_chunk(connection, entry.row_id, first)?;
        let marks = RunAttempts::read(connection, entry.row_id, first, length)?;
        for (index, state) in here {
            let spec = chunk.tasks.get((index - first) as usize).cloned();
            let spec = spec.ok_or_else(|| corrupt_store("a chunk of the plan is too short"))?;
            let (run, attempts) = (marks.run(index), marks.attempts(index));
            found.push(TaskRow { task: Task { index, spec }, state, run, attempts });
        }
    }
    Ok(found)
}

/// Returns the task indexes that a statement selects.
pub(super) fn query_tasks(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> Result<Vec<u32>, SqliteError> {
    let mut statement = connection.prepare_cached(sql)?;
    let tasks = statement.query_map(parameters, |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(tasks)
}

pub(super) fn read_chunk(connection: &Connection, no: i64, first: u32) -> Result<PlanChunk, SqliteError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT tasks FROM plan WHERE batch = ?1 AND first = ?2")?
        .query_row((no, first), |row| row.get(0))
        .optional()?;
    Ok(decode_chunk(&bytes.ok_or_else(|| corrupt_store("a chunk of the plan is missing"))?)?)
}

/// Reads tasks in index order, each chunk of the plan once.
struct PlanReader<'c> {
    connection: &'c Connection,
    no: i64,
    chunk: Option<(u32, PlanChunk)>,
}

impl PlanReader<'_> {
    fn task(&mut self, index: u32) -> Result<Task, SqliteError> {
        let is_here = |(first, chunk): &(u32, PlanChunk)| (*first..*first + chunk.tasks.len() as u32).contains(&index);
        if !self.chunk.as_ref().is_some_and(is_here) {
            let sql = "SELECT first FROM plan WHERE batch = +?1 AND first <= +?2 ORDER BY first DESC LIMIT 1";
            let first = self.connection.prepare_cached(sql)?.query_row((self.no, index), |row| row.get(0))?;
            self.chunk = Some((first, read_chunk(self.connection, self.no, first)?));
        }
        let planned = self.chunk.as_ref().and_then(|(first, chunk)| chunk.tasks.get((index - first) as usize).cloned());
        Ok(Task { index, spec: planned.ok_or_else(|| corrupt_store("a chunk of the plan is too short"))? })
    }
}

/// Run and attempts of tasks; most tasks have none.
pub(super) struct RunAttempts(HashMap<u32, (u32, u32)>);

impl RunAttempts {
    pub(super) fn read(connection: &Connection, no: i64, first: u32, length: u32) -> Result<RunAttempts, SqliteError> {
        let sql = "SELECT task, run, attempts FROM run_attempts WHERE batch = ?1 AND task >= ?2 AND task < ?3";
        let mut statement = connection.prepare_cached(sql)?;
        let end = i64::from(first) + i64::from(length);
        let rows = statement.query_map((no, first, end), |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        Ok(RunAttempts(rows.collect::<Result<_, _>>()?))
    }

    pub(super) fn run(&self, task: u32) -> u32 {
        self.0.get(&task).map_or(0, |(run, _)| *run)
    }

    pub(super) fn attempts(&self, task: u32) -> u32 {
        self.0.get(&task).map_or(0, |(_, attempts)| *attempts)
    }
}
