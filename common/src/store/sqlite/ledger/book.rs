//! Transaction over a batch's row and its task states, which change together: [`Book`].

use rusqlite::{Connection, OptionalExtension};

use super::super::fault::{Fault, damaged};
use super::super::rows::{millis, number, token_floor};
use super::course;
use crate::batch::{BatchId, TaskState};
use crate::error::{Class, Error};
use crate::store::{Control, Spent};

/// The columns of a batch's row that moving tasks needs.
pub(super) struct Entry {
    pub(super) no: i64,
    pub(super) control: Control,
    pub(super) run: u32,
    pub(super) epoch: i64,
    pub(super) is_sealed: bool,
    pub(super) is_ended: bool,
    pub(super) total: u32,
    /// Creation time.
    pub(super) created: i64,
    /// Width of a time bucket in milliseconds.
    pub(super) width: i64,
    /// Task counts by [`TaskState::code`].
    pub(super) in_state: [i64; 8],
}

impl Entry {
    pub(super) fn find(connection: &Connection, id: BatchId) -> Result<Option<Entry>, Fault> {
        let sql = "SELECT no, control, run, epoch, sealed IS NOT NULL, ended IS NOT NULL, total,
                          s0, s1, s2, s3, s4, s5, s6, s7, created, width
                   FROM batch WHERE id = ?1";
        let row = connection
            .prepare_cached(sql)?
            .query_row([id.as_bytes()], |row| {
                let mut in_state = [0; 8];
                for (code, number) in in_state.iter_mut().enumerate() {
                    *number = row.get(7 + code)?;
                }
                let control: u8 = row.get(1)?;
                let entry = Entry {
                    no: row.get(0)?,
                    control: Control::Done,
                    run: row.get(2)?,
                    epoch: row.get(3)?,
                    is_sealed: row.get(4)?,
                    is_ended: row.get(5)?,
                    total: row.get(6)?,
                    created: row.get(15)?,
                    width: row.get(16)?,
                    in_state,
                };
                Ok((entry, control))
            })
            .optional()?;
        row.map(|(entry, code)| Ok(Entry { control: control(code)?, ..entry })).transpose()
    }

    pub(super) fn get(connection: &Connection, id: BatchId) -> Result<Entry, Fault> {
        Entry::find(connection, id)?.ok_or_else(|| {
            let error = Error::new(Class::NotFound, format!("looking for batch {id}"), "there is no such batch");
            Fault::Known(error.hint("imgsync batch list shows those that there are"))
        })
    }

    pub(super) fn count(&self, state: TaskState) -> i64 {
        self.in_state[usize::from(state.code())]
    }
}

pub(super) fn control(code: u8) -> Result<Control, Fault> {
    Control::ALL.get(usize::from(code)).copied().ok_or_else(|| damaged("a batch has a state that there is not").into())
}

/// Moves tasks of a batch. [`Book::close`] writes states and counters; nothing is written before.
pub(super) struct Book<'c> {
    pub(super) connection: &'c Connection,
    pub(super) entry: Entry,
    /// Counts when the transaction began.
    before: [i64; 8],
    page: Option<Page>,
    spent: Spent,
    new_epoch: bool,
}

/// Task states of one chunk.
struct Page {
    first: u32,
    length: u32,
    fresh: i64,
    states: Vec<u8>,
    changed: bool,
}

impl<'c> Book<'c> {
    /// Returns `None` if the batch is unknown.
    pub(super) fn find(connection: &'c Connection, id: BatchId) -> Result<Option<Book<'c>>, Fault> {
        Ok(Entry::find(connection, id)?.map(|entry| Book::of(connection, entry)))
    }

    /// Fails if the batch is unknown.
    pub(super) fn open(connection: &'c Connection, id: BatchId) -> Result<Book<'c>, Fault> {
        Ok(Book::of(connection, Entry::get(connection, id)?))
    }

    fn of(connection: &'c Connection, entry: Entry) -> Book<'c> {
        let before = entry.in_state;
        Book { connection, entry, before, page: None, spent: Spent::default(), new_epoch: false }
    }

    /// Returns the state of a task, or `None` if it is unknown.
    pub(super) fn state(&mut self, task: u32) -> Result<Option<TaskState>, Fault> {
        if task >= self.entry.total {
            return Ok(None);
        }
        let page = self.turn_to(task)?;
        get(&page.states, task - page.first).map(Some)
    }

    /// Moves a task.
    pub(super) fn set(&mut self, task: u32, to: TaskState) -> Result<(), Fault> {
        let page = self.turn_to(task)?;
        let from = get(&page.states, task - page.first)?;
        put(&mut page.states, task - page.first, to);
        page.changed = true;
        page.fresh += i64::from(to == TaskState::New) - i64::from(from == TaskState::New);
        self.shift(from, to);
        Ok(())
    }

    /// Moves every task for which `to` returns a state. Returns how many moved.
    pub(super) fn set_all(&mut self, to: impl Fn(TaskState) -> Option<TaskState>) -> Result<u64, Fault> {
        self.flush()?;
        self.page = None;
        let mut firsts = self.connection.prepare_cached("SELECT first FROM chunk WHERE batch = ?1 ORDER BY first")?;
        let firsts: Vec<u32> = firsts.query_map([self.entry.no], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut moved = 0;
        for first in firsts {
            let length = self.turn_to(first)?.length;
            for task in first..first + length {
                let page = self.turn_to(task)?;
                let state = get(&page.states, task - first)?;
                if let Some(to) = to(state).filter(|to| *to != state) {
                    self.set(task, to)?;
                    moved += 1;
                }
            }
        }
        Ok(moved)
    }

    /// Returns the next fencing token: greater than all before, and never below the time.
    pub(super) fn next_token(&mut self, now: i64) -> i64 {
        self.entry.epoch = (self.entry.epoch + 1).max(token_floor(now));
        self.new_epoch = true;
        self.entry.epoch
    }

    pub(super) fn add(&mut self, spent: Spent) {
        self.spent += spent;
    }

    /// Writes all changes, and ends the batch if its last task has ended.
    pub(super) fn close(mut self, now: i64) -> Result<Entry, Fault> {
        self.flush()?;
        let entry = &mut self.entry;
        let open: i64 = [TaskState::New, TaskState::Queued, TaskState::Running, TaskState::Retry]
            .into_iter()
            .map(|state| entry.in_state[usize::from(state.code())])
            .sum();
        let final_total = entry.is_sealed || entry.control.is_stopped();
        if open == 0 && final_total {
            if entry.control.is_live() {
                entry.control = Control::Done;
            }
        } else if entry.control == Control::Done {
            entry.control = Control::Running;
        }
        entry.is_ended = open == 0 && final_total;
        let Spent { bytes, requests, time } = self.spent;
        let s = entry.in_state;
        let ended = std::array::from_fn(|at| (s[4 + at] - self.before[4 + at]).max(0));
        course::note_part(self.connection, entry, now, ended, bytes.copied)?;
        self.connection
            .prepare_cached(
                "UPDATE batch SET control = ?2, run = ?3, epoch = ?4, total = ?5,
                     ended = CASE WHEN ?6 THEN coalesce(ended, ?7) END,
                     s0 = ?8, s1 = ?9, s2 = ?10, s3 = ?11, s4 = ?12, s5 = ?13, s6 = ?14, s7 = ?15,
                     copied = copied + ?16, mounted = mounted + ?17, reused = reused + ?18,
                     source_requests = source_requests + ?19, target_requests = target_requests + ?20,
                     millis = millis + ?21, width = ?22
                 WHERE no = ?1",
            )?
            .execute(rusqlite::params![
                entry.no,
                entry.control as u8,
                entry.run,
                entry.epoch,
                entry.total,
                entry.is_ended,
                now,
                s[0],
                s[1],
                s[2],
                s[3],
                s[4],
                s[5],
                s[6],
                s[7],
                number(bytes.copied),
                number(bytes.mounted),
                number(bytes.reused),
                number(requests.source),
                number(requests.target),
                millis(time),
                entry.width
            ])?;
        Ok(self.entry)
    }

    /// Appends tasks in these states as one chunk.
    pub(super) fn extend(&mut self, states: &[TaskState], plan: &[u8]) -> Result<(), Fault> {
        let first = self.entry.total;
        let mut packed = vec![0; states.len().div_ceil(2)];
        let mut fresh = 0;
        for (at, state) in (0..).zip(states) {
            put(&mut packed, at, *state);
            fresh += i64::from(*state == TaskState::New);
            self.entry.in_state[usize::from(state.code())] += 1;
        }
        let length = u32::try_from(states.len()).unwrap_or(u32::MAX);
        self.entry.total = first.checked_add(length).ok_or_else(|| {
            Error::new(Class::Invalid, "adding tasks to a batch", "a batch has at most 4,294,967,295 tasks")
        })?;
        let no = self.entry.no;
        self.connection
            .prepare_cached("INSERT INTO chunk (batch, first, length, fresh, states) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute((no, first, length, fresh, packed))?;
        self.connection
            .prepare_cached("INSERT INTO plan (batch, first, tasks) VALUES (?1, ?2, ?3)")?
            .execute((no, first, plan))?;
        Ok(())
    }

    fn shift(&mut self, from: TaskState, to: TaskState) {
        self.entry.in_state[usize::from(from.code())] -= 1;
        self.entry.in_state[usize::from(to.code())] += 1;
    }

    fn turn_to(&mut self, task: u32) -> Result<&mut Page, Fault> {
        let is_here = self.page.as_ref().is_some_and(|page| (page.first..page.first + page.length).contains(&task));
        if !is_here {
            self.flush()?;
            let sql = "SELECT first, length, fresh, states FROM chunk WHERE batch = ?1 AND first <= ?2
                       ORDER BY first DESC LIMIT 1";
            self.page = self
                .connection
                .prepare_cached(sql)?
                .query_row((self.entry.no, task), |row| {
                    Ok(Page {
                        first: row.get(0)?,
                        length: row.get(1)?,
                        fresh: row.get(2)?,
                        states: row.get(3)?,
                        changed: false,
                    })
                })
                .optional()?
                .filter(|page| (page.first..page.first + page.length).contains(&task));
        }
        self.page.as_mut().ok_or_else(|| damaged("a part of the plan is missing").into())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        if let Some(page) = self.page.as_mut().filter(|page| page.changed) {
            self.connection
                .prepare_cached("UPDATE chunk SET fresh = ?3, states = ?4 WHERE batch = ?1 AND first = ?2")?
                .execute((self.entry.no, page.first, page.fresh, &page.states))?;
            page.changed = false;
        }
        Ok(())
    }
}

/// Returns the state at a position in a chunk.
pub(super) fn get(states: &[u8], at: u32) -> Result<TaskState, Fault> {
    let byte = states.get(at as usize / 2).copied();
    let code = byte.map(|byte| if at.is_multiple_of(2) { byte & 0xf } else { byte >> 4 });
    code.and_then(TaskState::from_code).ok_or_else(|| damaged("a task has a state that there is not").into())
}

fn put(states: &mut [u8], at: u32, state: TaskState) {
    let byte = &mut states[at as usize / 2];
    *byte = if at.is_multiple_of(2) { (*byte & 0xf0) | state.code() } else { (*byte & 0x0f) | (state.code() << 4) };
}
