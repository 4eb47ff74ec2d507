//! The store of one machine: an SQLite file in the state directory.
//!
//! One thread (`writer`) writes, several calls per transaction. Readers see committed data (WAL), also of other
//! processes, which may write as well: `batch pause` beside a run. Only a process that runs tasks takes the
//! [`RunLock`]. Commits survive the process. A power cut may undo the last ones, as if those tasks had not finished:
//! they run again and are found unchanged.

mod blob_index;
mod cache;
mod fault;
mod leases;
mod ledger;
mod lock;
mod origins;
mod pace;
mod records;
mod roster;
mod rows;
mod schedules;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use self::fault::Fault;
use self::writer::Writer;
use super::clock::Clock;
use crate::error::{Class, Error, Result};
use crate::private;

pub use lock::{LockHolder, LockUse, RunLock};

/// Name of the database in the state directory.
const FILE: &str = "imgsync.db";
/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(30);
/// Retries of the run lock, and the delay between them: a process that only checks the lock holds it for an instant.
const LOCK_RETRIES: u32 = 5;
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A [`Store`](super::Store) in an SQLite file. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct SqliteStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` in memory.
    folder: Option<PathBuf>,
    /// Shown in messages.
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    writer: Writer,
    /// `None` in memory, where the writer's connection is the only one.
    reader: Option<Arc<Mutex<Connection>>>,
    present: Mutex<roster::Present>,
    allowances: pace::Allowances,
    sharings: pace::Sharings,
}

impl SqliteStore {
    /// Opens the store in a state directory, creating both if needed. The directory must be on a local disk: the file
    /// is shared with other processes by memory mapping.
    pub async fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<SqliteStore> {
        let folder = folder.to_owned();
        blocking(move || {
            make_folder(&folder)?;
            let path = folder.join(FILE);
            make_private(&path);
            let name: Arc<str> = path.display().to_string().into();
            let tried = || format!("opening the store {name}");
            let open = || -> Result<(Connection, Connection), Fault> {
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
            let (writer, reader) = open().map_err(|fault| fault.explain(&tried(), &name))?;
            let reader = Some(Arc::new(Mutex::new(reader)));
            Ok(SqliteStore::of(Some(folder), name, clock, writer, reader))
        })
        .await
    }

    /// Creates a store in memory, for tests. It ends with its last clone.
    pub async fn in_memory(clock: Arc<dyn Clock>) -> Result<SqliteStore> {
        blocking(move || {
            let name: Arc<str> = "in memory".into();
            let open = || -> Result<Connection, Fault> {
                let mut writer = Connection::open_in_memory()?;
                configure(&writer)?;
                schema::migrate(&mut writer, &name)?;
                Ok(writer)
            };
            let writer = open().map_err(|fault| fault.explain("opening a store in memory", &name))?;
            Ok(SqliteStore::of(None, name, clock, writer, None))
        })
        .await
    }

    fn of(
        folder: Option<PathBuf>,
        name: Arc<str>,
        clock: Arc<dyn Clock>,
        writer: Connection,
        reader: Option<Arc<Mutex<Connection>>>,
    ) -> SqliteStore {
        let writer = Writer::start(writer, name.clone());
        let present = Mutex::default();
        let (allowances, sharings) = (pace::Allowances::default(), pace::Sharings::default());
        SqliteStore(Arc::new(Shared { folder, name, clock, writer, reader, present, allowances, sharings }))
    }

    /// Takes the run lock, which one process holds at a time, or fails with an error that names its holder.
    pub async fn lock_for_run(&self, used_for: LockUse) -> Result<RunLock> {
        self.try_lock_for_run(used_for).await?.map_err(|holder| self.lock_refusal(&holder))
    }

    /// Returns the error of a command that cannot proceed while this process holds the run lock.
    pub fn lock_refusal(&self, holder: &LockHolder) -> Error {
        holder.refusal(self.0.folder.as_deref().unwrap_or(Path::new("in memory")))
    }

    /// Takes the run lock, which one process holds at a time, or returns its holder. The lock ends when it is dropped,
    /// and with the process. Reading and controlling batches needs no lock. Releases the leases of earlier processes,
    /// which nobody can hold any more, except those of runs that wait for the lock.
    pub async fn try_lock_for_run(&self, used_for: LockUse) -> Result<Result<RunLock, LockHolder>> {
        let Some(folder) = &self.0.folder else { return Ok(Ok(RunLock::none())) };
        let mut tries = 0;
        let lock = loop {
            match lock::take(folder, used_for, self.0.clock.now())? {
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
        blocking(move || Ok(lock::is_held(&folder))).await
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
        tried: impl Into<String>,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.write(tried.into(), work).await
    }

    /// Runs a read on committed data.
    async fn read<T: Send + 'static>(
        &self,
        tried: impl Into<String>,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let Some(reader) = self.0.reader.clone() else { return self.write(tried, work).await };
        let (tried, name) = (tried.into(), self.0.name.clone());
        blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let run = || -> Result<T, Fault> {
                // One snapshot for all statements; rolled back on drop.
                let _view = connection.unchecked_transaction()?;
                work(&connection)
            };
            run().map_err(|fault| fault.explain(&tried, &name))
        })
        .await
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(128);
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "cache_size", -8_192)
}

fn make_folder(folder: &Path) -> Result<()> {
    private::create_folder(folder).map_err(|error| {
        Error::new(Class::Local, format!("making the state directory {}", folder.display()), error.to_string())
            .hint("choose another one with --state")
    })
}

/// Restricts the database and its side files to their owner. SQLite gives new side files the mode of the database.
fn make_private(path: &Path) {
    let made = private::open(path, std::fs::OpenOptions::new().read(true).write(true));
    // SQLite explains a file that cannot be opened.
    if made.is_ok() {
        for beside in ["", "-wal", "-shm"] {
            let mut file = path.as_os_str().to_owned();
            file.push(beside);
            // Files of another user keep their mode.
            _ = private::tighten(Path::new(&file));
        }
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::new(Class::Local, "using the store", error.to_string())))
}

#[cfg(test)]
mod tests;
