//! Creation of a batch and its plan, and publishing of the plan.

use rusqlite::{Connection, OptionalExtension};

use super::super::fault::Fault;
use super::book::{Book, Entry, get};
use super::control::stop;
use super::look::{Marks, read_chunk};
use super::tasks::note_failure;
use crate::batch::{BatchId, Failure, MAX_CHUNK_TASKS, Task, TaskState, Ticket, Verdict, encode_chunk};
use crate::store::{Appended, Block, Control, EmptyRule, NewBatch, Pruned, Sealed, Spent, Unlisted};

pub(super) fn create(connection: &Connection, now: i64, batch: &NewBatch) -> Result<(), Fault> {
    let made = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO batch (id, control, rules, options, supersedes, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            batch.id.as_bytes(),
            Control::Running as u8,
            batch.rules.to_string(),
            &batch.options,
            batch.supersedes.as_ref().map(BatchId::as_bytes),
            now,
        ))?;
    if made > 0
        && let Some(before) = batch.supersedes
    {
        stop(connection, now, before, Control::Superseded)?;
    }
    Ok(())
}

/// An encoded [`Sealed`].
pub(super) struct Packed {
    key: String,
    chunks: Vec<(Vec<TaskState>, Vec<u8>)>,
    /// By position among the tasks.
    failures: Vec<(u32, Failure)>,
}

impl Packed {
    pub(super) fn new(sealed: Sealed) -> Packed {
        let (tasks, verdicts): (Vec<_>, Vec<_>) = sealed.tasks.into_iter().unzip();
        let state = |verdict: &Option<Verdict>| match verdict {
            None => TaskState::New,
            Some(verdict) => verdict.outcome().state(),
        };
        let chunks = tasks
            .chunks(MAX_CHUNK_TASKS)
            .zip(verdicts.chunks(MAX_CHUNK_TASKS))
            .map(|(tasks, verdicts)| {
                let plan = encode_chunk(sealed.listed_at, tasks, |at| state(&verdicts[at]) != TaskState::Unchanged);
                (verdicts.iter().map(state).collect(), plan)
            })
            .collect();
        let failures = (0..).zip(verdicts).filter_map(|(at, verdict)| match verdict {
            Some(Verdict::Failed(failure)) => Some((at, failure)),
            _ => None,
        });
        Packed { key: sealed.key, chunks, failures: failures.collect() }
    }
}

pub(super) fn append(connection: &Connection, now: i64, batch: BatchId, packed: &Packed) -> Result<Appended, Fault> {
    let mut book = Book::open(connection, batch)?;
    let (no, first) = (book.entry.no, book.entry.total);
    let there = connection
        .prepare_cached("SELECT 1 FROM repository WHERE batch = ?1 AND key = ?2")?
        .query_row((no, &packed.key), |_| Ok(()))
        .optional()?;
    if there.is_some() {
        return Ok(Appended::Already);
    }
    // The total is final.
    if !book.entry.control.is_live() || book.entry.is_sealed {
        return Ok(Appended::Stopped(book.entry.control));
    }
    connection.prepare_cached("INSERT INTO repository (batch, key, first) VALUES (?1, ?2, ?3)")?.execute((
        no,
        &packed.key,
        first,
    ))?;
    for (states, plan) in &packed.chunks {
        book.extend(states, plan)?;
    }
    for (at, failure) in &packed.failures {
        note_failure(connection, no, first + at, failure)?;
    }
    book.close(now)?;
    Ok(Appended::At(first))
}

pub(super) fn sealed(connection: &Connection, batch: BatchId) -> Result<Vec<String>, Fault> {
    let entry = Entry::get(connection, batch)?;
    let mut statement = connection.prepare_cached("SELECT key FROM repository WHERE batch = ?1 ORDER BY key")?;
    let keys = statement.query_map([entry.no], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(keys)
}

pub(super) fn note_unlisted(connection: &Connection, batch: BatchId, unlisted: &Unlisted) -> Result<(), Fault> {
    let entry = Entry::get(connection, batch)?;
    connection
        .prepare_cached("REPLACE INTO unlisted (batch, repository, class, error) VALUES (?1, ?2, ?3, ?4)")?
        .execute((entry.no, &unlisted.repository, unlisted.class.as_str(), &unlisted.error))?;
    Ok(())
}

pub(super) fn note_empty_rule(connection: &Connection, batch: BatchId, rule: &EmptyRule) -> Result<(), Fault> {
    let entry = Entry::get(connection, batch)?;
    let text = serde_json::to_string(rule).unwrap_or_default();
    connection
        .prepare_cached("REPLACE INTO empty_rule (batch, rule, entry) VALUES (?1, ?2, ?3)")?
        .execute((entry.no, rule.rule, text))?;
    Ok(())
}

pub(super) fn note_pruned(connection: &Connection, batch: BatchId, pruned: &Pruned) -> Result<(), Fault> {
    let entry = Entry::get(connection, batch)?;
    let text = serde_json::to_string(pruned).unwrap_or_default();
    connection
        .prepare_cached("REPLACE INTO pruned (batch, target, source, entry) VALUES (?1, ?2, ?3, ?4)")?
        .execute((entry.no, &pruned.target, &pruned.source, text))?;
    Ok(())
}

pub(super) fn note_told(connection: &Connection, batch: BatchId, told: &str) -> Result<(), Fault> {
    let entry = Entry::get(connection, batch)?;
    let sql = "INSERT OR IGNORE INTO told (batch, told) VALUES (?1, ?2)";
    connection.prepare_cached(sql)?.execute((entry.no, told))?;
    Ok(())
}

pub(super) fn seal_all(connection: &Connection, now: i64, batch: BatchId) -> Result<(), Fault> {
    let mut book = Book::open(connection, batch)?;
    connection
        .prepare_cached("UPDATE batch SET sealed = coalesce(sealed, ?2) WHERE no = ?1")?
        .execute((book.entry.no, now))?;
    book.entry.is_sealed = true;
    book.close(now)?;
    Ok(())
}

pub(super) fn spend(connection: &Connection, now: i64, batch: BatchId, spent: Spent) -> Result<(), Fault> {
    let mut book = Book::open(connection, batch)?;
    book.add(spent);
    book.close(now)?;
    Ok(())
}

pub(super) fn unpublished(
    connection: &Connection,
    batch: BatchId,
    from: u32,
    at_least: usize,
) -> Result<Vec<Block>, Fault> {
    let entry = Entry::get(connection, batch)?;
    if entry.control != Control::Running || entry.count(TaskState::New) == 0 {
        return Ok(Vec::new());
    }
    let mut chunks = connection.prepare_cached(
        "SELECT first, length, states FROM chunk WHERE batch = ?1 AND first >= ?2 AND fresh > 0 ORDER BY first",
    )?;
    let mut chunks = chunks.query((entry.no, from))?;
    let mut blocks = Vec::new();
    let mut found = 0;
    while found < at_least.max(1)
        && let Some(row) = chunks.next()?
    {
        let (first, length, states): (u32, u32, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let chunk = read_chunk(connection, entry.no, first)?;
        let marks = Marks::read(connection, entry.no, first, length)?;
        let mut tasks = Vec::new();
        for (index, planned) in (first..).zip(chunk.tasks) {
            if get(&states, index - first)? == TaskState::New {
                tasks.push((marks.run(index), Task { index, planned }));
            }
        }
        found += tasks.len();
        blocks.push(Block { first, listed_at: chunk.listed_at, tasks });
    }
    Ok(blocks)
}

pub(super) fn published(connection: &Connection, now: i64, batch: BatchId, tickets: &[Ticket]) -> Result<(), Fault> {
    let mut book = Book::open(connection, batch)?;
    // One range query: most tasks have none.
    let marks = match (tickets.iter().map(|ticket| ticket.index).min(), tickets.iter().map(|ticket| ticket.index).max())
    {
        (Some(first), Some(last)) => Marks::read(connection, book.entry.no, first, last - first + 1)?,
        _ => return Ok(()),
    };
    for ticket in tickets.iter().filter(|ticket| ticket.batch == batch) {
        if book.state(ticket.index)? == Some(TaskState::New) && marks.run(ticket.index) == ticket.run {
            book.set(ticket.index, TaskState::Queued)?;
        }
    }
    book.close(now)?;
    Ok(())
}
