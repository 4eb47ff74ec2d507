//! The store of one machine: an SQLite file in the state directory.
//!
//! One thread (`writer`) writes, several calls per transaction. Readers see committed data (WAL), also of other
//! processes, which may write as well: `batch pause` beside a run. Only a process that runs tasks takes the
//! [`RunLock`]. Commits survive the process. A power cut may undo the last ones, as if those tasks had not finished:
//! they run again and are found unchanged.

mod blob_index;
mod cache;
mod error;
mod leases;
mod ledger;
mod lock;
mod provenance;
mod push_inbox;
mod rate_limit;
mod records;
mod rows;
mod schedules;
mod schema;
mod worker_registry;
mod write_group;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use self::error::SqliteError;
use self::write_group::WriteGroup;
use self::writer::Writer;
use super::clock::Clock;
use crate::private_files;
use crate::push_inbox::UnreadablePushes;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};

pub use lock::{LockHolder, LockUse, RunLock};

/// Name of the database in the state directory.
const DATABASE_FILE: &str = "imgsync.db";
/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the store is opened again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Retries of the run lock, and the delay between them: a process that only checks the lock holds it for an instant.
const LOCK_RETRIES: u32 = 5;
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Rows that are read by key in the calling thread; together they take some tens of microseconds.
const MAX_ROWS_READ_HERE: usize = 16;

/// A [`Store`](super::Store) in an SQLite file. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct SqliteStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` in memory.
    folder: Option<PathBuf>,
    /// Shown in messages.
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    writer: Writer,
    /// `None` in memory, where the writer's connection is the only one.
    reader: Option<Arc<Mutex<Connection>>>,
    presence: Mutex<worker_registry::WorkerPresence>,
    rate_allocators: rate_limit::RateAllocators,
    concurrency_allocators: rate_limit::ConcurrencyAllocators,
    /// Batches that this process has ended.
    ended_batches: watch::Sender<u64>,
    unreadable_pushes: UnreadablePushes,
}

impl SqliteStore {
    /// Opens the store in a state directory, creating both if needed. The directory must be on a local disk: the file
    /// is shared with other processes by memory mapping.
    pub async fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<SqliteStore> {
        let folder = folder.to_owned();
        run_blocking(move || {
            create_state_dir(&folder)?;
            let path = folder.join(DATABASE_FILE);
            restrict_permissions(&path);
            let name: Arc<str> = path.display().to_string().into();
            let operation = || format!("opening the store {name}");
            let open = || -> Result<(Connection, Connection), SqliteError> {
                let mut writer = Connection::open(&path)?;
                configure(&writer)?;
                writer.pragma_update(None, "journal_mode", "WAL")?;
                schema::migrate(&mut writer, &name)?;
                let reader = Connection::open_with_flags(
                    &path,
                    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
                )?;
                configure(&reader)?;
                reader.pragma_update(None, "query_only", true)?;
                Ok((writer, reader))
            };
            // While another process creates the database, SQLite refuses some steps at once instead of waiting.
            let began = std::time::Instant::now();
            let opened = loop {
                match open() {
                    Err(error) if error.is_busy() && began.elapsed() < BUSY_TIMEOUT => {
                        std::thread::sleep(BUSY_PAUSE);
                    }
                    opened => break opened,
                }
            };
            let (writer, reader) = opened.map_err(|sqlite_error| sqlite_error.into_error(&operation(), &name))?;
            let reader = Some(Arc::new(Mutex::new(reader)));
            Ok(SqliteStore::new(Some(folder), name, clock, writer, reader))
        })
        .await
    }

    /// Creates a store in memory, for tests. It ends with its last clone.
    pub async fn in_memory(clock: Arc<dyn Clock>) -> Result<SqliteStore> {
        run_blocking(move || {
            let name: Arc<str> = "in memory".into();
            let open = || -> Result<Connection, SqliteError> {
                let mut writer = Connection::open_in_memory()?;
                configure(&writer)?;
                schema::migrate(&mut writer, &name)?;
                Ok(writer)
            };
            let writer = open().map_err(|sqlite_error| sqlite_error.into_error("opening a store in memory", &name))?;
            Ok(SqliteStore::new(None, name, clock, writer, None))
        })
        .await
    }

    fn new(
        folder: Option<PathBuf>,
        name: Arc<str>,
        clock: Arc<dyn Clock>,
        writer: Connection,
        reader: Option<Arc<Mutex<Connection>>>,
    ) -> SqliteStore {
        let writer = Writer::start(writer, name.clone());
        let presence = Mutex::default();
        let (rate_allocators, concurrency_allocators) =
            (rate_limit::RateAllocators::default(), rate_limit::ConcurrencyAllocators::default());
        SqliteStore(Arc::new(Inner {
            folder,
            name,
            clock,
            writer,
            reader,
            presence,
            rate_allocators,
            concurrency_allocators,
            ended_batches: watch::Sender::default(),
            unreadable_pushes: UnreadablePushes::default(),
        }))
    }

    fn count_ended(&self, is_ended: bool) {
        if is_ended {
            self.0.ended_batches.send_modify(|ended| *ended += 1);
        }
    }

    /// Takes the run lock, which one process holds at a time, or fails with an error that names its holder.
    pub async fn lock_for_run(&self, used_for: LockUse) -> Result<RunLock> {
        self.try_lock_for_run(used_for).await?.map_err(|holder| self.locked_error(&holder))
    }

    /// Returns the error of a command that cannot proceed while this process holds the run lock.
    pub fn locked_error(&self, holder: &LockHolder) -> Error {
        holder.locked_error(self.0.folder.as_deref().unwrap_or(Path::new("in memory")))
    }

    /// Takes the run lock, which one process holds at a time, or returns its holder. The lock ends when it is dropped,
    /// and with the process. Reading and controlling batches needs no lock. Releases the leases of earlier processes,
    /// which nobody can hold any more, except those of runs that wait for the lock.
    pub async fn try_lock_for_run(&self, used_for: LockUse) -> Result<Result<RunLock, LockHolder>> {
        let Some(folder) = &self.0.folder else { return Ok(Ok(RunLock::unlocked())) };
        let mut tries = 0;
        let lock = loop {
            match lock::try_lock(folder, used_for, self.0.clock.now())? {
                Ok(lock) => break lock,
                // Another process may only be checking the lock.
                Err(_) if tries < LOCK_RETRIES => tokio::time::sleep(LOCK_RETRY_PAUSE).await,
                Err(holder) => return Ok(Err(holder)),
            }
            tries += 1;
        };
        self.write("releasing the leases of an earlier process", |connection| {
            let sql = "DELETE FROM lease WHERE name NOT LIKE 'starting:%' AND name NOT LIKE 'waiting:%'";
            connection.execute(sql, ())?;
            Ok(())
        })
        .await?;
        Ok(Ok(lock))
    }

    /// Returns whether a process holds the run lock.
    async fn is_locked(&self) -> Result<bool> {
        let Some(folder) = self.0.folder.clone() else { return Ok(true) };
        run_blocking(move || Ok(lock::is_held(&folder))).await
    }

    /// Returns the size of the database in bytes.
    #[cfg(test)]
    async fn bytes_on_disk(&self) -> Result<u64> {
        self.read("measuring the store", |connection| {
            let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
            let size: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
            Ok(pages.unsigned_abs() * size.unsigned_abs())
        })
        .await
    }

    /// Returns the current time in milliseconds since 1970.
    fn now(&self) -> i64 {
        self.0.clock.now().as_millisecond()
    }

    /// Runs a write in a transaction, and returns once it is committed.
    async fn write<T: Send + 'static>(
        &self,
        operation: impl Into<String>,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.write(operation.into(), None, |group| work(group.connection())).await
    }

    /// Runs calls on tasks of a batch, which share its row with others in the same transaction.
    async fn write_tasks<T: Send + 'static>(
        &self,
        batch: BatchId,
        operation: impl Into<String>,
        work: impl FnOnce(&WriteGroup<'_>) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.write(operation.into(), Some(batch), work).await
    }

    /// Runs a read on committed data.
    async fn read<T: Send + 'static>(
        &self,
        operation: impl Into<String>,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        let Some(reader) = self.0.reader.clone() else { return self.write(operation, work).await };
        let (operation, name) = (operation.into(), self.0.name.clone());
        run_blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            read_snapshot(&connection, work).map_err(|sqlite_error| sqlite_error.into_error(&operation, &name))
        })
        .await
    }

    /// Runs a read of so many rows by their keys. A few are read in this thread, if no other read is running: handing
    /// the read over to another thread would take longer than the read.
    async fn read_rows<T: Send + 'static>(
        &self,
        operation: impl Into<String> + Send,
        rows: usize,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        if rows <= MAX_ROWS_READ_HERE
            && let Some(Ok(connection)) = self.0.reader.as_ref().map(|reader| reader.try_lock())
        {
            let read = read_snapshot(&connection, work);
            return read.map_err(|error| error.into_error(&operation.into(), &self.0.name));
        }
        self.read(operation, work).await
    }
}

/// Runs a read on one snapshot for all statements.
fn read_snapshot<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, SqliteError>,
) -> Result<T, SqliteError> {
    /// Ends the snapshot, also after a panic.
    struct Snapshot<'c>(&'c Connection);

    impl Drop for Snapshot<'_> {
        fn drop(&mut self) {
            // Closing the connection ends it, too.
            _ = self.0.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.execute([]));
        }
    }

    connection.prepare_cached("BEGIN")?.execute([])?;
    let _snapshot = Snapshot(connection);
    work(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(128);
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "cache_size", -8_192)
}

fn create_state_dir(folder: &Path) -> Result<()> {
    private_files::create_folder(folder).map_err(|error| {
        Error::new(ErrorKind::Local, format!("creating the state directory {}", folder.display()), error.to_string())
            .with_hint("choose another one with --state")
    })
}

/// Restricts the database and its side files to their owner. SQLite gives new side files the mode of the database.
fn restrict_permissions(path: &Path) {
    let made = private_files::open(path, std::fs::OpenOptions::new().read(true).write(true));
    // SQLite explains a file that cannot be opened.
    if made.is_ok() {
        for beside in ["", "-wal", "-shm"] {
            let mut file = path.as_os_str().to_owned();
            file.push(beside);
            // Files of another user keep their mode.
            _ = private_files::restrict_to_owner(Path::new(&file));
        }
    }
}

/// Runs blocking work off the async threads.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::new(ErrorKind::Local, "using the store", error.to_string())))
}

#[cfg(test)]
mod tests;
