//! Creation of a batch and its plan, and publishing of the plan.

use rusqlite::{Connection, OptionalExtension};

use super::super::error::SqliteError;
use super::super::records::is_held;
use super::batch_row::BatchRow;
use super::batch_tx::{BatchTx, get_state};
use super::lifecycle::stop;
use super::queries::{RunAttempts, read_chunk};
use super::tasks::record_failure;
use crate::ledger::start_lease_lost;
use crate::{
    AppendResult, BatchState, EmptyRule, ListingFailure, NewBatch, PlanBlock, PlanCompletion, PlanSegment, PlanSize,
    PruneRecord, Usage,
};
use imgsync_model::batch::{BatchId, Failure, MAX_CHUNK_TASKS, Task, TaskRef, TaskResult, TaskState, encode_chunk};

pub(super) fn create(connection: &Connection, now: i64, batch: &NewBatch) -> Result<(), SqliteError> {
    if let Some(fence) = &batch.fence
        && !is_held(connection, fence, now)?
    {
        let known = "SELECT 1 FROM batch WHERE id = ?1";
        let is_repeated = connection.prepare_cached(known)?.exists([batch.id.as_bytes()])?;
        return if is_repeated { Ok(()) } else { Err(start_lease_lost(batch.id).into()) };
    }
    let made = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO batch (id, state, rules, options, supersedes, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            batch.id.as_bytes(),
            BatchState::Running as u8,
            batch.rules.to_string(),
            &batch.options,
            batch.supersedes.as_ref().map(BatchId::as_bytes),
            now,
        ))?;
    if made > 0
        && let Some(before) = batch.supersedes
    {
        stop(connection, now, before, BatchState::Superseded)?;
    }
    Ok(())
}

/// An encoded [`PlanSegment`].
pub(super) struct EncodedSegment {
    key: String,
    chunks: Vec<(Vec<TaskState>, Vec<u8>)>,
    /// By position among the tasks.
    failures: Vec<(u32, Failure)>,
}

impl EncodedSegment {
    pub(super) fn new(segment: PlanSegment) -> EncodedSegment {
        let (tasks, results): (Vec<_>, Vec<_>) = segment.tasks.into_iter().unzip();
        let state = |result: &Option<TaskResult>| match result {
            None => TaskState::New,
            Some(result) => result.state(),
        };
        let chunks = tasks
            .chunks(MAX_CHUNK_TASKS)
            .zip(results.chunks(MAX_CHUNK_TASKS))
            .map(|(tasks, results)| {
                let plan = encode_chunk(segment.listed_at, tasks, |at| state(&results[at]) != TaskState::Unchanged);
                (results.iter().map(state).collect(), plan)
            })
            .collect();
        let failures = (0..).zip(results).filter_map(|(at, result)| match result {
            Some(TaskResult::Failed(failure)) => Some((at, failure)),
            _ => None,
        });
        EncodedSegment { key: segment.key, chunks, failures: failures.collect() }
    }
}

pub(super) fn append(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    packed: &EncodedSegment,
) -> Result<AppendResult, SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    let (no, first) = (tx.row.row_id, tx.row.total);
    let there = connection
        .prepare_cached("SELECT 1 FROM repository WHERE batch = ?1 AND key = ?2")?
        .query_row((no, &packed.key), |_| Ok(()))
        .optional()?;
    if there.is_some() {
        return Ok(AppendResult::AlreadyPlanned);
    }
    // The total is final.
    if !tx.row.state.is_live() || tx.row.is_plan_complete {
        return Ok(AppendResult::Closed(tx.row.state));
    }
    connection.prepare_cached("INSERT INTO repository (batch, key, first) VALUES (?1, ?2, ?3)")?.execute((
        no,
        &packed.key,
        first,
    ))?;
    for (states, plan) in &packed.chunks {
        tx.append_chunk(states, plan)?;
    }
    for (at, failure) in &packed.failures {
        record_failure(connection, no, first + at, failure)?;
    }
    tx.save(now)?;
    Ok(AppendResult::Appended(first))
}

pub(super) fn segment_keys(connection: &Connection, batch: BatchId) -> Result<Vec<String>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let mut statement = connection.prepare_cached("SELECT key FROM repository WHERE batch = ?1 ORDER BY key")?;
    let keys = statement.query_map([entry.row_id], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(keys)
}

pub(super) fn record_listing_failure(
    connection: &Connection,
    batch: BatchId,
    unlisted: &ListingFailure,
) -> Result<(), SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    connection
        .prepare_cached("REPLACE INTO unlisted (batch, repository, kind, error) VALUES (?1, ?2, ?3, ?4)")?
        .execute((entry.row_id, &unlisted.repository, unlisted.kind.as_str(), &unlisted.error))?;
    Ok(())
}

pub(super) fn record_empty_rule(connection: &Connection, batch: BatchId, rule: &EmptyRule) -> Result<(), SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let text = serde_json::to_string(rule).unwrap_or_default();
    connection.prepare_cached("REPLACE INTO empty_rule (batch, rule, entry) VALUES (?1, ?2, ?3)")?.execute((
        entry.row_id,
        rule.rule,
        text,
    ))?;
    Ok(())
}

pub(super) fn record_pruned(connection: &Connection, batch: BatchId, pruned: &PruneRecord) -> Result<(), SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let text = serde_json::to_string(pruned).unwrap_or_default();
    connection
        .prepare_cached("REPLACE INTO prune_record (batch, target, source, entry) VALUES (?1, ?2, ?3, ?4)")?
        .execute((entry.row_id, &pruned.target, &pruned.source, text))?;
    Ok(())
}

pub(super) fn record_notification(connection: &Connection, batch: BatchId, target: &str) -> Result<(), SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    let sql = "INSERT OR IGNORE INTO notification (batch, entry) VALUES (?1, ?2)";
    connection.prepare_cached(sql)?.execute((entry.row_id, target))?;
    Ok(())
}

/// Returns also whether the batch has ended.
pub(super) fn complete_plan(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    at_least: PlanSize,
) -> Result<(PlanCompletion, bool), SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    if !tx.row.is_plan_complete {
        let segments: i64 = connection
            .prepare_cached("SELECT count(*) FROM repository WHERE batch = ?1")?
            .query_row([tx.row.row_id], |row| row.get(0))?;
        let found = PlanSize { segments: segments.unsigned_abs(), tasks: tx.row.total.into() };
        if found.segments < at_least.segments || found.tasks < at_least.tasks {
            return Ok((PlanCompletion::Incomplete(found), false));
        }
    }
    connection
        .prepare_cached("UPDATE batch SET planned_at = coalesce(planned_at, ?2) WHERE row_id = ?1")?
        .execute((tx.row.row_id, now))?;
    tx.row.is_plan_complete = true;
    Ok((PlanCompletion::Complete, tx.save(now)?.is_ended))
}

pub(super) fn add_usage(connection: &Connection, now: i64, batch: BatchId, usage: Usage) -> Result<(), SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    tx.add_usage(usage);
    tx.save(now)?;
    Ok(())
}

pub(super) fn list_unpublished(
    connection: &Connection,
    batch: BatchId,
    from: u32,
    at_least: usize,
) -> Result<Vec<PlanBlock>, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    if entry.state != BatchState::Running || entry.count_in_state(TaskState::New) == 0 {
        return Ok(Vec::new());
    }
    let mut chunks = connection.prepare_cached(
        "SELECT first, length, states FROM chunk WHERE batch = +?1 AND first >= +?2 AND new_tasks > 0 ORDER BY first",
    )?;
    let mut chunks = chunks.query((entry.row_id, from))?;
    let mut blocks = Vec::new();
    let mut found = 0;
    while found < at_least.max(1)
        && let Some(row) = chunks.next()?
    {
        let (first, length, states): (u32, u32, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let chunk = read_chunk(connection, entry.row_id, first)?;
        let marks = RunAttempts::read(connection, entry.row_id, first, length)?;
        let mut tasks = Vec::new();
        for (index, spec) in (first..).zip(chunk.tasks) {
            if get_state(&states, index - first)? == TaskState::New {
                tasks.push((marks.run(index), Task { index, spec }));
            }
        }
        found += tasks.len();
        blocks.push(PlanBlock { first, listed_at: chunk.listed_at, mark: None, tasks });
    }
    Ok(blocks)
}

pub(super) fn mark_published(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    task_refs: &[TaskRef],
) -> Result<(), SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    // One range query: most tasks have none.
    let marks = match (
        task_refs.iter().map(|task_ref| task_ref.index).min(),
        task_refs.iter().map(|task_ref| task_ref.index).max(),
    ) {
        (Some(first), Some(last)) => RunAttempts::read(connection, tx.row.row_id, first, last - first + 1)?,
        _ => return Ok(()),
    };
    for task_ref in task_refs.iter().filter(|task_ref| task_ref.batch == batch) {
        if tx.state(task_ref.index)? == Some(TaskState::New) && marks.run(task_ref.index) == task_ref.run {
            tx.set_state(task_ref.index, TaskState::Queued)?;
        }
    }
    tx.save(now)?;
    Ok(())
}
