//! Transaction over a batch's row and its task states, which change together: [`BatchTx`].

use rusqlite::{Connection, OptionalExtension};

use super::super::error::{SqliteError, corrupt_store};
use super::super::rows::{duration_ms, min_token, to_sql_integer};
use super::batch_row::BatchRow;
use super::timeline::{self, WorkerWork};
use crate::{BatchState, Usage};
use imgsync_model::batch::{BatchId, TaskState};
use imgsync_oci::error::{Error, ErrorKind};

/// Reads the chunk that holds a task. `+`: SQLite would prepare the statement again for each value of a plain parameter,
/// because of the order.
pub(super) const CHUNK_OF_TASK: &str = "
    SELECT first, length, new_tasks, states FROM chunk WHERE batch = +?1 AND first <= +?2 ORDER BY first DESC LIMIT 1";

/// Moves tasks of a batch. [`BatchTx::save`] writes states and counters; nothing is written before.
#[derive(Clone)]
pub(in super::super) struct BatchTx<'c> {
    pub(super) connection: &'c Connection,
    pub(super) row: BatchRow,
    /// Counts when the transaction began.
    counts_before: [i64; 8],
    state_page: Option<StatePage>,
    usage: Usage,
    /// Work of workers that is not written yet.
    work: Vec<WorkerWork>,
    /// Number of slow tasks that are kept, and the time of the fastest of them, in milliseconds.
    slow_tasks: Option<(u32, i64)>,
    /// When a change was made that the batch's row does not have yet.
    changed_at: Option<i64>,
}

/// Task states of one chunk.
#[derive(Clone)]
struct StatePage {
    first: u32,
    length: u32,
    new_tasks: i64,
    states: Vec<u8>,
    changed: bool,
}

impl<'c> BatchTx<'c> {
    /// Returns `None` if the batch is unknown.
    pub(in super::super) fn find(connection: &'c Connection, id: BatchId) -> Result<Option<BatchTx<'c>>, SqliteError> {
        Ok(BatchRow::find(connection, id)?.map(|entry| BatchTx::new(connection, entry)))
    }

    /// Fails if the batch is unknown.
    pub(super) fn open(connection: &'c Connection, id: BatchId) -> Result<BatchTx<'c>, SqliteError> {
        Ok(BatchTx::new(connection, BatchRow::get(connection, id)?))
    }

    fn new(connection: &'c Connection, row: BatchRow) -> BatchTx<'c> {
        let counts_before = row.counts_by_state;
        BatchTx {
            connection,
            row,
            counts_before,
            state_page: None,
            usage: Usage::default(),
            work: Vec::new(),
            slow_tasks: None,
            changed_at: None,
        }
    }

    /// Returns the state of a task, or `None` if it is unknown.
    pub(super) fn state(&mut self, task: u32) -> Result<Option<TaskState>, SqliteError> {
        if task >= self.row.total {
            return Ok(None);
        }
        let page = self.load_page(task)?;
        get_state(&page.states, task - page.first).map(Some)
    }

    /// Moves a task.
    pub(super) fn set_state(&mut self, task: u32, to: TaskState) -> Result<(), SqliteError> {
        let page = self.load_page(task)?;
        let from = get_state(&page.states, task - page.first)?;
        put_state(&mut page.states, task - page.first, to);
        page.changed = true;
        page.new_tasks += i64::from(to == TaskState::New) - i64::from(from == TaskState::New);
        self.move_count(from, to);
        Ok(())
    }

    /// Moves every task for which `to` returns a state. Returns how many moved.
    pub(super) fn transition_all(&mut self, to: impl Fn(TaskState) -> Option<TaskState>) -> Result<u64, SqliteError> {
        self.flush()?;
        self.state_page = None;
        let mut firsts = self.connection.prepare_cached("SELECT first FROM chunk WHERE batch = ?1 ORDER BY first")?;
        let firsts: Vec<u32> = firsts.query_map([self.row.row_id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut moved = 0;
        for first in firsts {
            let length = self.load_page(first)?.length;
            for task in first..first + length {
                let page = self.load_page(task)?;
                let state = get_state(&page.states, task - first)?;
                if let Some(to) = to(state).filter(|to| *to != state) {
                    self.set_state(task, to)?;
                    moved += 1;
                }
            }
        }
        Ok(moved)
    }

    /// Returns the next fencing token: greater than all before, and never below the time.
    pub(super) fn next_token(&mut self, now: i64) -> i64 {
        self.row.last_token = (self.row.last_token + 1).max(min_token(now));
        self.row.last_token
    }

    pub(super) fn add_usage(&mut self, usage: Usage) {
        self.usage += usage;
    }

    /// Adds what a worker used for a task, and how the task ended, if it did.
    pub(super) fn add_work(&mut self, worker: &str, usage: Usage, ended: Option<TaskState>) {
        self.add_usage(usage);
        let at = self.work.iter().position(|work| work.worker == worker).unwrap_or_else(|| {
            self.work.push(WorkerWork { worker: worker.to_owned(), ..WorkerWork::default() });
            self.work.len() - 1
        });
        let work = &mut self.work[at];
        work.usage += usage;
        work.ended += u32::from(ended.is_some());
        work.failed += u32::from(ended == Some(TaskState::Failed));
    }

    /// Keeps a task if it is among the slowest.
    pub(super) fn keep_if_slow(&mut self, task: u32, worker: &str, usage: Usage) -> Result<(), SqliteError> {
        let known = self.slow_tasks.take();
        let kept = timeline::record_slow_task(self.connection, self.row.row_id, task, worker, usage, known)?;
        self.slow_tasks = kept;
        Ok(())
    }

    /// Writes all changes, and ends the batch if its last task has ended.
    pub(super) fn save(mut self, now: i64) -> Result<BatchRow, SqliteError> {
        self.change(now);
        self.write()?;
        Ok(self.row)
    }

    /// Ends the batch if its last task has ended, and leaves it to [`BatchTx::write`] to write all changes.
    pub(super) fn change(&mut self, now: i64) {
        let entry = &mut self.row;
        let open: i64 = [TaskState::New, TaskState::Queued, TaskState::Running, TaskState::Retry]
            .into_iter()
            .map(|state| entry.counts_by_state[usize::from(state.code())])
            .sum();
        let final_total = entry.is_plan_complete || entry.state.is_stopped();
        if open == 0 && final_total {
            if entry.state.is_live() {
                entry.state = BatchState::Done;
            }
        } else if entry.state == BatchState::Done {
            entry.state = BatchState::Running;
        }
        entry.is_ended = open == 0 && final_total;
        self.changed_at = Some(now);
    }

    /// Writes the changes, if there are any.
    pub(in super::super) fn write(&mut self) -> Result<(), SqliteError> {
        let Some(now) = self.changed_at.take() else { return Ok(()) };
        self.flush()?;
        for work in std::mem::take(&mut self.work) {
            timeline::record_worker_stats(self.connection, self.row.row_id, &work)?;
        }
        let entry = &mut self.row;
        let Usage { bytes, requests, time } = std::mem::take(&mut self.usage);
        let s = entry.counts_by_state;
        let ended = std::array::from_fn(|at| (s[4 + at] - self.counts_before[4 + at]).max(0));
        timeline::record_bucket(self.connection, entry, now, ended, bytes.copied)?;
        self.counts_before = s;
        self.connection
            .prepare_cached(
                "UPDATE batch SET state = ?2, run = ?3, last_token = ?4, total = ?5,
                     ended_at = CASE WHEN ?6 THEN coalesce(ended_at, ?7) END,
                     new_tasks = ?8, queued_tasks = ?9, running_tasks = ?10, retry_tasks = ?11,
                     copied_tasks = ?12, unchanged_tasks = ?13, failed_tasks = ?14, cancelled_tasks = ?15,
                     copied = copied + ?16, mounted = mounted + ?17, reused = reused + ?18,
                     source_requests = source_requests + ?19, target_requests = target_requests + ?20,
                     millis = millis + ?21, bucket_width = ?22
                 WHERE row_id = ?1",
            )?
            .execute(rusqlite::params![
                entry.row_id,
                entry.state as u8,
                entry.run,
                entry.last_token,
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
                to_sql_integer(bytes.copied),
                to_sql_integer(bytes.mounted),
                to_sql_integer(bytes.reused),
                to_sql_integer(requests.source),
                to_sql_integer(requests.target),
                duration_ms(time),
                entry.width
            ])?;
        Ok(())
    }

    /// Appends tasks in these states as one chunk.
    pub(super) fn append_chunk(&mut self, states: &[TaskState], plan: &[u8]) -> Result<(), SqliteError> {
        let first = self.row.total;
        let mut packed = vec![0; states.len().div_ceil(2)];
        let mut new_tasks = 0;
        for (at, state) in (0..).zip(states) {
            put_state(&mut packed, at, *state);
            new_tasks += i64::from(*state == TaskState::New);
            self.row.counts_by_state[usize::from(state.code())] += 1;
        }
        let length = u32::try_from(states.len()).unwrap_or(u32::MAX);
        self.row.total = first.checked_add(length).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "adding tasks to a batch", "a batch has at most 4,294,967,295 tasks")
        })?;
        let no = self.row.row_id;
        self.connection
            .prepare_cached("INSERT INTO chunk (batch, first, length, new_tasks, states) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute((no, first, length, new_tasks, packed))?;
        self.connection
            .prepare_cached("INSERT INTO plan (batch, first, tasks) VALUES (?1, ?2, ?3)")?
            .execute((no, first, plan))?;
        Ok(())
    }

    fn move_count(&mut self, from: TaskState, to: TaskState) {
        self.row.counts_by_state[usize::from(from.code())] -= 1;
        self.row.counts_by_state[usize::from(to.code())] += 1;
    }

    fn load_page(&mut self, task: u32) -> Result<&mut StatePage, SqliteError> {
        let is_here =
            self.state_page.as_ref().is_some_and(|page| (page.first..page.first + page.length).contains(&task));
        if !is_here {
            self.flush()?;
            self.state_page = self
                .connection
                .prepare_cached(CHUNK_OF_TASK)?
                .query_row((self.row.row_id, task), |row| {
                    Ok(StatePage {
                        first: row.get(0)?,
                        length: row.get(1)?,
                        new_tasks: row.get(2)?,
                        states: row.get(3)?,
                        changed: false,
                    })
                })
                .optional()?
                .filter(|page| (page.first..page.first + page.length).contains(&task));
        }
        self.state_page.as_mut().ok_or_else(|| corrupt_store("a chunk of the plan is missing").into())
    }

    fn flush(&mut self) -> Result<(), SqliteError> {
        if let Some(page) = self.state_page.as_mut().filter(|page| page.changed) {
            self.connection
                .prepare_cached("UPDATE chunk SET new_tasks = ?3, states = ?4 WHERE batch = ?1 AND first = ?2")?
                .execute((self.row.row_id, page.first, page.new_tasks, &page.states))?;
            page.changed = false;
        }
        Ok(())
    }
}

/// Returns the state at a position in a chunk.
pub(super) fn get_state(states: &[u8], at: u32) -> Result<TaskState, SqliteError> {
    let byte = states.get(at as usize / 2).copied();
    let code = byte.map(|byte| if at.is_multiple_of(2) { byte & 0xf } else { byte >> 4 });
    code.and_then(TaskState::from_code).ok_or_else(|| corrupt_store("a task has an unknown state").into())
}

fn put_state(states: &mut [u8], at: u32, state: TaskState) {
    let byte = &mut states[at as usize / 2];
    *byte = if at.is_multiple_of(2) { (*byte & 0xf0) | state.code() } else { (*byte & 0x0f) | (state.code() << 4) };
}
