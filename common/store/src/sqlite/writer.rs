//! The writer thread: many calls per transaction, replies after the commit.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::{SqliteError, describe};
use super::write_group::WriteGroup;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Maximum calls per transaction.
const MAX_GROUP_CALLS: usize = 256;
/// Maximum duration of a transaction: other processes wait for it.
const MAX_GROUP_TIME: Duration = Duration::from_millis(20);
/// Pause after a group while calls are concurrent: the next group has more calls, and other processes can write.
const GROUP_PAUSE: Duration = Duration::from_millis(1);
/// Calls are concurrent until so many groups had one call each.
const LONE_GROUPS: u32 = 8;

/// Handle of the writer thread, which ends when the handle is dropped.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn WriteJob>>>,
    thread: Option<JoinHandle<()>>,
}

/// A write call in three steps, all on the writer thread.
trait WriteJob: Send {
    /// Returns the batch whose row the call shares with others.
    fn batch(&self) -> Option<BatchId>;
    /// Runs the call within the group's transaction. Fails with the error of SQLite.
    fn run(&mut self, group: &WriteGroup<'_>) -> Result<(), rusqlite::ffi::Error>;
    /// Handles the rollback of the group's transaction.
    fn on_rollback(&mut self, error: &SqliteError, store: &str);
    /// Replies to the caller.
    fn reply(self: Box<Self>, store: &str);
}

struct WriteCall<T, W> {
    operation: String,
    batch: Option<BatchId>,
    work: Option<W>,
    result: Option<Result<T, SqliteError>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, W> WriteJob for WriteCall<T, W>
where
    T: Send,
    W: FnOnce(&WriteGroup<'_>) -> Result<T, SqliteError> + Send,
{
    fn batch(&self) -> Option<BatchId> {
        self.batch
    }

    fn run(&mut self, group: &WriteGroup<'_>) -> Result<(), rusqlite::ffi::Error> {
        let result = self.work.take().map(|work| work(group));
        let sqlite_result = match &result {
            Some(Ok(_)) => Ok(()),
            Some(Err(SqliteError::Sql(rusqlite::Error::SqliteFailure(error, _)))) => Err(*error),
            _ => Err(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT)),
        };
        self.result = result;
        sqlite_result
    }

    fn on_rollback(&mut self, error: &SqliteError, store: &str) {
        let error = match error {
            SqliteError::Sql(error) => describe(error, &self.operation, store),
            SqliteError::Reported(error) => Error::new(error.kind(), &self.operation, error.to_string()),
        };
        self.result = Some(Err(SqliteError::Reported(error)));
    }

    fn reply(self: Box<Self>, store: &str) {
        let WriteCall { operation, result, answer, .. } = *self;
        let result = result.unwrap_or_else(|| Err(SqliteError::Reported(thread_ended(&operation))));
        // The caller may be gone.
        _ = answer.send(result.map_err(|sqlite_error| sqlite_error.into_error(&operation, store)));
    }
}

impl Writer {
    pub(super) fn start(connection: Connection, store: Arc<str>) -> Writer {
        let (jobs, incoming) = mpsc::channel();
        let thread = std::thread::spawn(move || write_all(&connection, &incoming, &store));
        Writer { jobs: Some(jobs), thread: Some(thread) }
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        operation: String,
        batch: Option<BatchId>,
        work: impl FnOnce(&WriteGroup<'_>) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let error = thread_ended(&operation);
        let call = WriteCall { operation, batch, work: Some(work), result: None, answer };
        if let Some(jobs) = &self.jobs
            && jobs.send(Box::new(call)).is_ok()
            && let Ok(result) = result.await
        {
            return result;
        }
        Err(error)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends after all queued calls. If it panicked, every call has returned an error.
            _ = thread.join();
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

fn thread_ended(operation: &str) -> Error {
    Error::new(ErrorKind::Local, operation, "the store's writer thread has ended")
}

fn write_all(connection: &Connection, incoming: &mpsc::Receiver<Box<dyn WriteJob>>, store: &str) {
    let mut lone_groups = LONE_GROUPS;
    while let Ok(first) = incoming.recv() {
        let mut group = Vec::new();
        let outcome = write_group(connection, first, incoming, &mut group);
        if let Err(error) = outcome {
            if !connection.is_autocommit() {
                _ = connection.execute_batch("ROLLBACK");
            }
            for job in &mut group {
                job.on_rollback(&error, store);
            }
        }
        lone_groups = if group.len() > 1 { 0 } else { lone_groups.saturating_add(1) };
        for job in group {
            job.reply(store);
        }
        if lone_groups < LONE_GROUPS {
            std::thread::sleep(GROUP_PAUSE);
        }
    }
}

/// Runs queued calls in one transaction. Calls that ran are in `group`, and are undone if this fails.
fn write_group(
    connection: &Connection,
    first: Box<dyn WriteJob>,
    incoming: &mpsc::Receiver<Box<dyn WriteJob>>,
    group: &mut Vec<Box<dyn WriteJob>>,
) -> Result<(), SqliteError> {
    let mut next = Some(first);
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    let shared = WriteGroup::new(connection);
    if let Err(error) = run("BEGIN IMMEDIATE") {
        group.extend(next);
        return Err(error.into());
    }
    let began = Instant::now();
    while let Some(mut job) = next {
        // The first call needs no savepoint: there is nothing else that its rollback would undo.
        let is_first = group.is_empty();
        if let Err(error) = shared.write_all_but(job.batch()) {
            group.push(job);
            return Err(error);
        }
        if !is_first && let Err(error) = run("SAVEPOINT one") {
            group.push(job);
            return Err(error.into());
        }
        let before = shared.snapshot();
        let sqlite_result = job.run(&shared);
        group.push(job);
        if let Err(error) = sqlite_result {
            if connection.is_autocommit() {
                // SQLite rolled back the whole transaction, as it may on a full disk.
                return Err(rusqlite::Error::SqliteFailure(error, None).into());
            }
            if is_first {
                run("ROLLBACK")?;
                shared.restore(None);
                run("BEGIN IMMEDIATE")?;
            } else {
                run("ROLLBACK TO one")?;
                shared.restore(before);
            }
        }
        if !is_first {
            run("RELEASE one")?;
        }
        let full = group.len() >= MAX_GROUP_CALLS || began.elapsed() >= MAX_GROUP_TIME;
        next = if full { None } else { incoming.try_recv().ok() };
    }
    shared.write_all_but(None)?;
    Ok(run("COMMIT")?)
}
