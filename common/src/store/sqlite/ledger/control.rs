//! Lifecycle of batches: pause, stop, requeue, reclaim, remove.

use rusqlite::Connection;

use super::super::fault::Fault;
use super::book::{Book, Entry};
use super::look::{failures, page};
use super::tasks::{forget_losses, forget_retry, let_go, note_loss, set_mark};
use crate::batch::{BatchId, TaskState};
use crate::error::{Class, Error};
use crate::store::{Control, RequeueFilter, Sweep, Swept, latest_end};

/// Moves a batch from one state to another, if it is in the first. Returns the state afterwards.
pub(super) fn change(connection: &Connection, batch: BatchId, from: Control, to: Control) -> Result<Control, Fault> {
    let entry = Entry::get(connection, batch)?;
    if entry.control != from {
        return Ok(entry.control);
    }
    connection.prepare_cached("UPDATE batch SET control = ?2 WHERE no = ?1")?.execute((entry.no, to as u8))?;
    Ok(to)
}

pub(super) fn stop(connection: &Connection, now: i64, batch: BatchId, how: Control) -> Result<Control, Fault> {
    let mut book = Book::open(connection, batch)?;
    if !book.entry.control.is_live() {
        return Ok(book.entry.control);
    }
    book.entry.control = how;
    // Running tasks, too: no further result of them counts, whether or not their worker lives.
    book.set_all(|state| (!state.is_terminal()).then_some(TaskState::Cancelled))?;
    connection.prepare_cached("DELETE FROM retry WHERE batch = ?1")?.execute([book.entry.no])?;
    connection.prepare_cached("DELETE FROM held WHERE batch = ?1")?.execute([book.entry.no])?;
    Ok(book.close(now)?.control)
}

pub(super) fn requeue(connection: &Connection, now: i64, batch: BatchId, filter: &RequeueFilter) -> Result<u64, Fault> {
    const AT_ONCE: usize = 1_000;
    let mut book = Book::open(connection, batch)?;
    if book.entry.control.is_stopped() {
        let detail = format!("it was {}", book.entry.control);
        let error = Error::new(Class::Invalid, format!("requeuing batch {batch}"), detail);
        return Err(error.hint("run its rules again").into());
    }
    let no = book.entry.no;
    let run = book.entry.run + 1;
    let mut requeued = 0;
    let mut from = 0;
    loop {
        let failed = failures(connection, batch, from, AT_ONCE)?;
        let Some(last) = failed.last() else { break };
        from = last.task.index.saturating_add(1);
        for failed in failed {
            if filter.selects(&failed) {
                let index = failed.task.index;
                connection
                    .prepare_cached("DELETE FROM failure WHERE batch = ?1 AND task = ?2")?
                    .execute((no, index))?;
                set_mark(connection, no, index, run, 0)?;
                forget_losses(connection, no, index)?;
                book.set(index, TaskState::New)?;
                requeued += 1;
            }
        }
    }
    if requeued > 0 {
        book.entry.run = run;
        book.close(now)?;
    }
    Ok(requeued)
}

pub(super) fn sweep(connection: &Connection, now: i64, batch: BatchId, sweep: Sweep) -> Result<Swept, Fault> {
    let mut book = Book::open(connection, batch)?;
    let no = book.entry.no;
    let mut swept = Swept::default();
    let dead_before = match sweep {
        Sweep::Leases { grace } | Sweep::QueueIsEmpty { grace } => {
            now.saturating_sub(i64::try_from(grace.as_millis()).unwrap_or(i64::MAX))
        }
        Sweep::Everything => i64::MAX,
    };
    let ends = (no, dead_before, latest_end(now));
    for task in page(connection, "SELECT task FROM held WHERE batch = ?1 AND (until <= ?2 OR until > ?3)", ends)? {
        let_go(connection, no, task)?;
        if sweep != Sweep::Everything {
            note_loss(connection, no, task)?;
        }
        book.set(task, TaskState::New)?;
        swept.leased += 1;
    }
    if sweep_takes_queued(sweep) {
        for task in page(connection, "SELECT task FROM retry WHERE batch = ?1 AND (due <= ?2 OR due > ?3)", ends)? {
            forget_retry(connection, no, task)?;
            book.set(task, TaskState::New)?;
            swept.queued += 1;
        }
        swept.queued += book.set_all(|state| (state == TaskState::Queued).then_some(TaskState::New))?;
    }
    if swept != Swept::default() {
        book.close(now)?;
    }
    Ok(swept)
}

fn sweep_takes_queued(sweep: Sweep) -> bool {
    match sweep {
        Sweep::Leases { .. } => false,
        Sweep::QueueIsEmpty { .. } | Sweep::Everything => true,
    }
}

pub(super) fn remove_before(connection: &Connection, now: i64, before: i64) -> Result<u64, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT no FROM batch WHERE coalesce(ended, created) < ?1
         AND NOT EXISTS (SELECT 1 FROM held WHERE held.batch = batch.no
         AND held.until > ?2 AND held.until <= ?3)",
    )?;
    let old: Vec<i64> =
        statement.query_map((before, now, latest_end(now)), |row| row.get(0))?.collect::<Result<_, _>>()?;
    for no in &old {
        for table in [
            "repository",
            "unlisted",
            "chunk",
            "plan",
            "mark",
            "lost",
            "held",
            "retry",
            "failure",
            "part",
            "slow",
            "share",
            "pruned",
            "empty_rule",
            "told",
        ] {
            connection.prepare_cached(&format!("DELETE FROM {table} WHERE batch = ?1"))?.execute([no])?;
        }
        connection.prepare_cached("DELETE FROM batch WHERE no = ?1")?.execute([no])?;
    }
    Ok(old.len() as u64)
}
