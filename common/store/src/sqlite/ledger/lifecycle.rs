//! Lifecycle of batches: pause, stop, requeue, reclaim, remove.

use rusqlite::Connection;

use super::super::error::SqliteError;
use super::batch_row::BatchRow;
use super::batch_tx::BatchTx;
use super::queries::{failures, query_tasks};
use super::tasks::{delete_lease, delete_losses, delete_retry, record_loss, set_run_attempts};
use crate::{BatchState, ReclaimScope, Reclaimed, RequeueFilter, latest_deadline_ms};
use imgsync_model::batch::{BatchId, TaskState};
use imgsync_oci::error::{Error, ErrorKind};

/// Moves a batch from one state to another, if it is in the first. Returns the state afterwards.
pub(super) fn transition(
    connection: &Connection,
    batch: BatchId,
    from: BatchState,
    to: BatchState,
) -> Result<BatchState, SqliteError> {
    let entry = BatchRow::get(connection, batch)?;
    if entry.state != from {
        return Ok(entry.state);
    }
    connection.prepare_cached("UPDATE batch SET state = ?2 WHERE row_id = ?1")?.execute((entry.row_id, to as u8))?;
    Ok(to)
}

pub(super) fn stop(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    how: BatchState,
) -> Result<BatchState, SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    if !tx.row.state.is_live() {
        return Ok(tx.row.state);
    }
    tx.row.state = how;
    // Running tasks, too: no further result of them counts, whether or not their worker lives.
    tx.transition_all(|state| (!state.is_terminal()).then_some(TaskState::Cancelled))?;
    connection.prepare_cached("DELETE FROM retry WHERE batch = ?1")?.execute([tx.row.row_id])?;
    connection.prepare_cached("DELETE FROM task_lease WHERE batch = ?1")?.execute([tx.row.row_id])?;
    Ok(tx.save(now)?.state)
}

pub(super) fn requeue(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    filter: &RequeueFilter,
) -> Result<u64, SqliteError> {
    const REQUEUE_PAGE_SIZE: usize = 1_000;
    let mut tx = BatchTx::open(connection, batch)?;
    if tx.row.state.is_stopped() {
        let detail = format!("it was {}", tx.row.state);
        let error = Error::new(ErrorKind::Invalid, format!("requeuing batch {batch}"), detail);
        return Err(error.with_hint("run its rules again").into());
    }
    let no = tx.row.row_id;
    let run = tx.row.run + 1;
    let mut requeued = 0;
    let mut from = 0;
    loop {
        let failed = failures(connection, batch, from, REQUEUE_PAGE_SIZE)?;
        let Some(last) = failed.last() else { break };
        from = last.task.index.saturating_add(1);
        for failed in failed {
            if filter.selects(&failed) {
                let index = failed.task.index;
                connection
                    .prepare_cached("DELETE FROM failure WHERE batch = ?1 AND task = ?2")?
                    .execute((no, index))?;
                set_run_attempts(connection, no, index, run, 0)?;
                delete_losses(connection, no, index)?;
                tx.set_state(index, TaskState::New)?;
                requeued += 1;
            }
        }
    }
    if requeued > 0 {
        tx.row.run = run;
        tx.save(now)?;
    }
    Ok(requeued)
}

pub(super) fn reclaim(
    connection: &Connection,
    now: i64,
    batch: BatchId,
    scope: ReclaimScope,
) -> Result<Reclaimed, SqliteError> {
    let mut tx = BatchTx::open(connection, batch)?;
    let no = tx.row.row_id;
    let mut reclaimed = Reclaimed::default();
    let expired_before = match scope {
        ReclaimScope::ExpiredLeases { grace } | ReclaimScope::EmptyQueue { grace } => {
            now.saturating_sub(i64::try_from(grace.as_millis()).unwrap_or(i64::MAX))
        }
        ReclaimScope::Everything => i64::MAX,
    };
    let ends = (no, expired_before, latest_deadline_ms(now));
    let expired = "SELECT task FROM task_lease WHERE batch = ?1 AND (expires_at <= ?2 OR expires_at > ?3)";
    for task in query_tasks(connection, expired, ends)? {
        delete_lease(connection, no, task)?;
        if scope != ReclaimScope::Everything {
            record_loss(connection, no, task)?;
        }
        tx.set_state(task, TaskState::New)?;
        reclaimed.leased += 1;
    }
    if reclaims_queued(scope) {
        let due = "SELECT task FROM retry WHERE batch = ?1 AND (due <= ?2 OR due > ?3)";
        for task in query_tasks(connection, due, ends)? {
            delete_retry(connection, no, task)?;
            tx.set_state(task, TaskState::New)?;
            reclaimed.queued += 1;
        }
        reclaimed.queued += tx.transition_all(|state| (state == TaskState::Queued).then_some(TaskState::New))?;
    }
    if reclaimed != Reclaimed::default() {
        tx.save(now)?;
    }
    Ok(reclaimed)
}

fn reclaims_queued(scope: ReclaimScope) -> bool {
    match scope {
        ReclaimScope::ExpiredLeases { .. } => false,
        ReclaimScope::EmptyQueue { .. } | ReclaimScope::Everything => true,
    }
}

pub(super) fn remove_before(connection: &Connection, now: i64, before: i64) -> Result<u64, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT row_id FROM batch WHERE coalesce(ended_at, created_at) < ?1
         AND NOT EXISTS (SELECT 1 FROM task_lease WHERE task_lease.batch = batch.row_id
         AND task_lease.expires_at > ?2 AND task_lease.expires_at <= ?3)",
    )?;
    let old: Vec<i64> =
        statement.query_map((before, now, latest_deadline_ms(now)), |row| row.get(0))?.collect::<Result<_, _>>()?;
    for no in &old {
        for table in [
            "repository",
            "unlisted",
            "chunk",
            "plan",
            "run_attempts",
            "lost_lease",
            "task_lease",
            "retry",
            "failure",
            "time_bucket",
            "slow_task",
            "worker_stats",
            "prune_record",
            "empty_rule",
            "notification",
        ] {
            connection.prepare_cached(&format!("DELETE FROM {table} WHERE batch = ?1"))?.execute([no])?;
        }
        connection.prepare_cached("DELETE FROM batch WHERE row_id = ?1")?.execute([no])?;
    }
    Ok(old.len() as u64)
}
