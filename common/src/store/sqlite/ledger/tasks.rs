//! Task operations: claim, renew, finish, reschedule.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::super::fault::Fault;
use super::super::rows::{after, number, time};
use super::book::Book;
use super::course::{note_share, note_slow};
use crate::batch::{Failure, TaskState, Ticket, Verdict};
use crate::store::{Control, Finished, Retried, Spent, Standing, Start, TaskHolder, latest_end};

/// An owned [`TaskHolder`].
pub(super) struct Owner {
    worker: String,
    token: i64,
}

impl Owner {
    pub(super) fn new(holder: TaskHolder<'_>) -> Owner {
        Owner { worker: holder.worker.to_owned(), token: number(holder.token) }
    }
}

/// A row of the table `held`.
struct Held {
    epoch: i64,
    until: i64,
    worker: String,
}

pub(super) fn start(
    connection: &Connection,
    now: i64,
    ticket: Ticket,
    worker: &str,
    until: i64,
) -> Result<Start, Fault> {
    let Some(mut book) = Book::find(connection, ticket.batch)? else { return Ok(Start::Unknown) };
    let Some(state) = book.state(ticket.index)? else { return Ok(Start::Unknown) };
    let no = book.entry.no;
    match state {
        TaskState::Cancelled => return Ok(Start::Cancelled),
        TaskState::Copied | TaskState::Unchanged | TaskState::Failed => return Ok(Start::AlreadyDone),
        TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => {}
    }
    let (run, attempts) = mark(connection, no, ticket.index)?;
    if ticket.run < run {
        return Ok(Start::StaleRun);
    }
    let held = if state == TaskState::Running { held(connection, no, ticket.index)? } else { None };
    let was_held = held.is_some();
    let live = held.filter(|held| held.until > now && held.until <= latest_end(now));
    if let Some(held) = live {
        if held.worker != worker {
            return Ok(Start::HeldBy { until: time(held.until) });
        }
        hold(connection, no, ticket.index, held.epoch, until.max(held.until), worker)?;
        return Ok(Start::Own { epoch: held.epoch.unsigned_abs(), attempts });
    }
    if book.entry.control == Control::Paused {
        let_go(connection, no, ticket.index)?;
        forget_retry(connection, no, ticket.index)?;
        book.set(ticket.index, TaskState::New)?;
        book.close(now)?;
        return Ok(Start::Paused);
    }
    if was_held {
        note_loss(connection, no, ticket.index)?;
    }
    let losses = losses(connection, no, ticket.index)?;
    let epoch = book.next_token(now);
    hold(connection, no, ticket.index, epoch, until, worker)?;
    if state == TaskState::Retry {
        forget_retry(connection, no, ticket.index)?;
    }
    book.set(ticket.index, TaskState::Running)?;
    book.close(now)?;
    Ok(Start::Go { epoch: epoch.unsigned_abs(), attempts, losses })
}

pub(super) fn renew(connection: &Connection, ticket: Ticket, holder: &Owner, until: i64) -> Result<Standing, Fault> {
    let Some(mut book) = Book::find(connection, ticket.batch)? else { return Ok(Standing::Lost) };
    let no = book.entry.no;
    if held_by(&mut book, ticket.index, holder)?.is_none() {
        return Ok(if book.entry.control.is_stopped() { Standing::Stop } else { Standing::Lost });
    }
    connection.prepare_cached("UPDATE held SET until = max(until, ?3) WHERE batch = ?1 AND task = ?2")?.execute((
        no,
        ticket.index,
        until,
    ))?;
    Ok(Standing::Held { until: time(until) })
}

pub(super) fn finish(
    connection: &Connection,
    now: i64,
    ticket: Ticket,
    holder: &Owner,
    verdict: &Verdict,
    spent: Spent,
) -> Result<Finished, Fault> {
    let Some(mut book) = Book::find(connection, ticket.batch)? else { return Ok(Finished::Stale) };
    match book.state(ticket.index)? {
        // No result of a stopped batch counts.
        Some(TaskState::Cancelled) if verdict.outcome().state() != TaskState::Cancelled => return Ok(Finished::Stale),
        Some(state) if state.is_terminal() => return Ok(Finished::AlreadyDone),
        _ => {}
    }
    let Some(held) = held_by(&mut book, ticket.index, holder)? else { return Ok(Finished::Stale) };
    let no = book.entry.no;
    let_go(connection, no, ticket.index)?;
    note_share(connection, no, &held.worker, (true, matches!(verdict, Verdict::Failed(_))), spent)?;
    note_slow(connection, no, ticket.index, &held.worker, spent)?;
    if let Verdict::Failed(failure) = verdict {
        note_failure(connection, no, ticket.index, failure)?;
    }
    book.set(ticket.index, verdict.outcome().state())?;
    book.add(spent);
    book.close(now)?;
    Ok(Finished::Counted)
}

pub(super) fn retry_later(
    connection: &Connection,
    now: i64,
    ticket: Ticket,
    holder: &Owner,
    wait: Duration,
    counts: bool,
    spent: Spent,
) -> Result<Retried, Fault> {
    let Some(mut book) = Book::find(connection, ticket.batch)? else { return Ok(Retried::Stale) };
    let Some(held) = held_by(&mut book, ticket.index, holder)? else { return Ok(Retried::Stale) };
    let no = book.entry.no;
    let_go(connection, no, ticket.index)?;
    note_share(connection, no, &held.worker, (false, false), spent)?;
    book.add(spent);
    let (run, mut attempts) = mark(connection, no, ticket.index)?;
    if counts {
        attempts += 1;
        set_mark(connection, no, ticket.index, run, attempts)?;
    }
    if wait.is_zero() {
        book.set(ticket.index, TaskState::New)?;
    } else {
        connection.prepare_cached("REPLACE INTO retry (batch, task, due) VALUES (?1, ?2, ?3)")?.execute((
            no,
            ticket.index,
            after(now, wait),
        ))?;
        book.set(ticket.index, TaskState::Retry)?;
    }
    book.close(now)?;
    Ok(Retried::Waits { attempts })
}

pub(super) fn note_failure(connection: &Connection, no: i64, task: u32, failure: &Failure) -> Result<(), Fault> {
    connection
        .prepare_cached("REPLACE INTO failure (batch, task, class, error, attempts) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((no, task, failure.class.as_str(), &failure.error, failure.attempts))?;
    Ok(())
}

/// Returns the run of a task and the attempts counted in it.
fn mark(connection: &Connection, no: i64, task: u32) -> Result<(u32, u32), Fault> {
    let sql = "SELECT run, attempts FROM mark WHERE batch = ?1 AND task = ?2";
    let mark =
        connection.prepare_cached(sql)?.query_row((no, task), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(mark.unwrap_or((0, 0)))
}

pub(super) fn set_mark(connection: &Connection, no: i64, task: u32, run: u32, attempts: u32) -> Result<(), Fault> {
    connection
        .prepare_cached("REPLACE INTO mark (batch, task, run, attempts) VALUES (?1, ?2, ?3, ?4)")?
        .execute((no, task, run, attempts))?;
    Ok(())
}

fn losses(connection: &Connection, no: i64, task: u32) -> Result<u32, Fault> {
    let sql = "SELECT losses FROM lost WHERE batch = ?1 AND task = ?2";
    Ok(connection.prepare_cached(sql)?.query_row((no, task), |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Counts a lost lease of a task.
pub(super) fn note_loss(connection: &Connection, no: i64, task: u32) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO lost (batch, task, losses) VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET losses = losses + 1",
        )?
        .execute((no, task))?;
    Ok(())
}

pub(super) fn forget_losses(connection: &Connection, no: i64, task: u32) -> Result<(), Fault> {
    connection.prepare_cached("DELETE FROM lost WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}

fn held(connection: &Connection, no: i64, task: u32) -> Result<Option<Held>, Fault> {
    let sql = "SELECT epoch, until, worker FROM held WHERE batch = ?1 AND task = ?2";
    let held = connection
        .prepare_cached(sql)?
        .query_row((no, task), |row| Ok(Held { epoch: row.get(0)?, until: row.get(1)?, worker: row.get(2)? }))
        .optional()?;
    Ok(held)
}

/// Returns the lease of a task, if this owner holds it.
fn held_by(book: &mut Book<'_>, task: u32, owner: &Owner) -> Result<Option<Held>, Fault> {
    if book.state(task)? != Some(TaskState::Running) {
        return Ok(None);
    }
    let held = held(book.connection, book.entry.no, task)?;
    Ok(held.filter(|held| held.epoch == owner.token && held.worker == owner.worker))
}

fn hold(connection: &Connection, no: i64, task: u32, epoch: i64, until: i64, worker: &str) -> Result<(), Fault> {
    connection
        .prepare_cached("REPLACE INTO held (batch, task, epoch, until, worker) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((no, task, epoch, until, worker))?;
    Ok(())
}

pub(super) fn let_go(connection: &Connection, no: i64, task: u32) -> Result<(), Fault> {
    connection.prepare_cached("DELETE FROM held WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}

/// Deletes the retry of a task. A task that waits for its retry has no holder.
pub(super) fn forget_retry(connection: &Connection, no: i64, task: u32) -> Result<(), Fault> {
    connection.prepare_cached("DELETE FROM retry WHERE batch = ?1 AND task = ?2")?.execute((no, task))?;
    Ok(())
}
