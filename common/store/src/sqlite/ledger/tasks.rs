//! Task operations: claim, renew, finish, reschedule.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::super::error::SqliteError;
use super::super::rows::{deadline_ms, timestamp, to_sql_integer};
use super::super::write_group::WriteGroup;
use super::batch_tx::BatchTx;
use crate::{
    BatchState, ClaimResult, FinishReply, LeaseStatus, RescheduleReply, TaskHolder, Usage, latest_deadline_ms,
};
use imgsync_model::batch::{Failure, TaskRef, TaskResult, TaskState};
use imgsync_oci::RegistryName;

/// An owned [`TaskHolder`].
pub(super) struct OwnedTaskHolder {
    worker: String,
    token: i64,
}

impl OwnedTaskHolder {
    pub(super) fn new(holder: TaskHolder<'_>) -> OwnedTaskHolder {
        OwnedTaskHolder { worker: holder.worker.to_owned(), token: to_sql_integer(holder.token) }
    }
}

/// A row of the table `task_lease`.
struct TaskLease {
    token: i64,
    expires_at: i64,
    worker: String,
}

pub(super) fn claim(
    group: &WriteGroup<'_>,
    now: i64,
    task_ref: TaskRef,
    worker: &str,
    until: i64,
) -> Result<ClaimResult, SqliteError> {
    let claimed = group.with_batch(task_ref.batch, |tx| claim_in_batch(tx, now, task_ref, worker, until))?;
    Ok(claimed.unwrap_or(ClaimResult::Unknown))
}

fn claim_in_batch(
    tx: &mut BatchTx<'_>,
    now: i64,
    task_ref: TaskRef,
    worker: &str,
    until: i64,
) -> Result<ClaimResult, SqliteError> {
    let connection = tx.connection;
    let Some(state) = tx.state(task_ref.index)? else { return Ok(ClaimResult::Unknown) };
    let no = tx.row.row_id;
    match state {
        TaskState::Cancelled => return Ok(ClaimResult::Cancelled),
        TaskState::Copied | TaskState::Unchanged | TaskState::Failed => return Ok(ClaimResult::AlreadyDone),
        TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => {}
    }
    let (run, attempts) = read_run_attempts(connection, no, task_ref.index)?;
    if task_ref.run < run {
        return Ok(ClaimResult::StaleRun);
    }
    let held = if state == TaskState::Running { find_lease(connection, no, task_ref.index)? } else { None };
    let was_held = held.is_some();
    let live = held.filter(|held| held.expires_at > now && held.expires_at <= latest_deadline_ms(now));
    if let Some(held) = live {
        if held.worker != worker {
            return Ok(ClaimResult::HeldBy { until: timestamp(held.expires_at) });
        }
        set_lease(connection, no, task_ref.index, held.token, until.max(held.expires_at), worker)?;
        return Ok(ClaimResult::AlreadyOwned { token: held.token.unsigned_abs(), attempts });
    }
    if tx.row.state == BatchState::Paused {
        delete_lease(connection, no, task_ref.index)?;
        delete_retry(connection, no, task_ref.index)?;
        tx.set_state(task_ref.index, TaskState::New)?;
        tx.change(now);
        return Ok(ClaimResult::Paused);
    }
    if was_held {
        record_loss(connection, no, task_ref.index)?;
    }
    let losses = count_losses(connection, no, task_ref.index)?;
    let token = tx.next_token(now);
    set_lease(connection, no, task_ref.index, token, until, worker)?;
    if state == TaskState::Retry {
        delete_retry(connection, no, task_ref.index)?;
    }
    tx.set_state(task_ref.index, TaskState::Running)?;
    tx.change(now);
    Ok(ClaimResult::Claimed { token: token.unsigned_abs(), attempts, losses })
}

pub(super) fn renew(
    group: &WriteGroup<'_>,
    task_ref: TaskRef,
    holder: &OwnedTaskHolder,
    until: i64,
) -> Result<LeaseStatus, SqliteError> {
    let renewed = group.with_batch(task_ref.batch, |tx| {
        if find_own_lease(tx, task_ref.index, holder)?.is_none() {
            return Ok(if tx.row.state.is_stopped() { LeaseStatus::BatchStopped } else { LeaseStatus::Lost });
        }
        tx.connection
            .prepare_cached("UPDATE task_lease SET expires_at = max(expires_at, ?3) WHERE batch = ?1 AND task = ?2")?
            .execute((tx.row.row_id, task_ref.index, until))?;
        Ok(LeaseStatus::Held { until: timestamp(until) })
    })?;
    Ok(renewed.unwrap_or(LeaseStatus::Lost))
}

/// Also returns whether the batch has ended.
pub(super) fn finish(
    group: &WriteGroup<'_>,
    now: i64,
    task_ref: TaskRef,
    holder: &OwnedTaskHolder,
    result: &TaskResult,
    usage: Usage,
) -> Result<(FinishReply, bool), SqliteError> {
    const STALE: (FinishReply, bool) = (FinishReply::Stale, false);
    let finished = group.with_batch(task_ref.batch, |tx| {
        match tx.state(task_ref.index)? {
            // No result of a stopped batch counts.
            Some(TaskState::Cancelled) if result.state() != TaskState::Cancelled => return Ok(STALE),
            Some(state) if state.is_terminal() => return Ok((FinishReply::AlreadyDone, false)),
            _ => {}
        }
        let Some(held) = find_own_lease(tx, task_ref.index, holder)? else { return Ok(STALE) };
        let (connection, no) = (tx.connection, tx.row.row_id);
        delete_lease(connection, no, task_ref.index)?;
        tx.keep_if_slow(task_ref.index, &held.worker, usage)?;
        if let TaskResult::Failed(failure) = result {
            record_failure(connection, no, task_ref.index, failure)?;
        }
        tx.set_state(task_ref.index, result.state())?;
        tx.add_work(&held.worker, usage, Some(result.state()));
        tx.change(now);
        Ok((FinishReply::Counted, tx.row.is_ended))
    })?;
    Ok(finished.unwrap_or(STALE))
}

pub(super) fn reschedule(
    group: &WriteGroup<'_>,
    now: i64,
    task_ref: TaskRef,
    holder: &OwnedTaskHolder,
    wait: Duration,
    counts: bool,
    usage: Usage,
) -> Result<RescheduleReply, SqliteError> {
    let rescheduled = group.with_batch(task_ref.batch, |tx| {
        let Some(held) = find_own_lease(tx, task_ref.index, holder)? else { return Ok(RescheduleReply::Stale) };
        let (connection, no) = (tx.connection, tx.row.row_id);
        delete_lease(connection, no, task_ref.index)?;
        tx.add_work(&held.worker, usage, None);
        let (run, mut attempts) = read_run_attempts(connection, no, task_ref.index)?;
        if counts {
            attempts += 1;
            set_run_attempts(connection, no, task_ref.index, run, attempts)?;
        }
        if wait.is_zero() {
            tx.set_state(task_ref.index, TaskState::New)?;
        } else {
            connection.prepare_cached("REPLACE INTO retry (batch, task, due) VALUES (?1, ?2, ?3)")?.execute((
                no,
                task_ref.index,
                deadline_ms(now, wait),
            ))?;
            tx.set_state(task_ref.index, TaskState::Retry)?;
        }
        tx.change(now);
        Ok(RescheduleReply::Scheduled { attempts })
    })?;
    Ok(rescheduled.unwrap_or(RescheduleReply::Stale))
}

pub(super) fn record_failure(
    connection: &Connection,
    no: i64,
    task: u32,
    failure: &Failure,
) -> Result<(), SqliteError> {
    let registry = failure.registry.as_ref().map(RegistryName::as_str);
    let sql = "REPLACE INTO failure (batch, task, kind, error, registry, attempts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute((
        no,
        task,
        failure.kind.as_str(),
        &failure.error,
        registry,
        failure.attempts,
    ))?;
    Ok(())
}

/// Returns the run of a task and the attempts counted in it.
fn read_run_attempts(connection: &Connection, no: i64, task: u32) -> Result<(u32, u32), SqliteError> {
    let sql = "SELECT run, attempts FROM run_attempts WHERE batch = ?1 AND task = ?2";
    let mark =
        connection.prepare_cached(sql)?.query_row((no, task), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(mark.unwrap_or((0, 0)))
}

pub(super) fn set_run_attempts(
    connection: &Connection,
    no: i64,
    task: u32,
    run: u32,
    attempts: u32,
) -> Result<(), SqliteError> {
    connection
        .prepare_cached("REPLACE INTO run_attempts (batch, task, run, attempts) VALUES (?1, ?2, ?3, ?4)")?
        .execute((no, task, run, attempts))?;
    Ok(())
}

fn count_losses(connection: &Connection, no: i64, task: u32) -> Result<u32, SqliteError> {
    let sql = "SELECT losses FROM lost_lease WHERE batch = ?1 AND task = ?2";
    Ok(connection.prepare_cached(sql)?.query_row((no, task), |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Counts a lost lease of a task.
pub(super) fn record_loss(connection: &Connection, no: i64, task: u32) -> Result<(), SqliteError> {
    connection
        .prepare_cached(
            "INSERT INTO lost_lease (batch, task, losses) VALUES (?1, ?2, 1)
             ON CONFLICT DO UPDATE SET losses = losses + 1",
        )?
        .execute((no, task))?;
    Ok(())
}

pub(super) fn delete_losses(connection: &Connection, no: i64, task: u32) -> Result<(), SqliteError> {
    connection.prepare_cached("DELETE FROM lost_lease WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}

fn find_lease(connection: &Connection, no: i64, task: u32) -> Result<Option<TaskLease>, SqliteError> {
    let sql = "SELECT token, expires_at, worker FROM task_lease WHERE batch = ?1 AND task = ?2";
    let held = connection
        .prepare_cached(sql)?
        .query_row((no, task), |row| Ok(TaskLease { token: row.get(0)?, expires_at: row.get(1)?, worker: row.get(2)? }))
        .optional()?;
    Ok(held)
}

/// Returns the lease of a task, if this owner holds it.
fn find_own_lease(tx: &mut BatchTx<'_>, task: u32, owner: &OwnedTaskHolder) -> Result<Option<TaskLease>, SqliteError> {
    if tx.state(task)? != Some(TaskState::Running) {
        return Ok(None);
    }
    let held = find_lease(tx.connection, tx.row.row_id, task)?;
    Ok(held.filter(|held| held.token == owner.token && held.worker == owner.worker))
}

fn set_lease(
    connection: &Connection,
    no: i64,
    task: u32,
    token: i64,
    until: i64,
    worker: &str,
) -> Result<(), SqliteError> {
    connection
        .prepare_cached("REPLACE INTO task_lease (batch, task, token, expires_at, worker) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((no, task, token, until, worker))?;
    Ok(())
}

pub(super) fn delete_lease(connection: &Connection, no: i64, task: u32) -> Result<(), SqliteError> {
    connection.prepare_cached("DELETE FROM task_lease WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}

/// Deletes the retry of a task. A task that waits for its retry has no holder.
pub(super) fn delete_retry(connection: &Connection, no: i64, task: u32) -> Result<(), SqliteError> {
    connection.prepare_cached("DELETE FROM retry WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}
