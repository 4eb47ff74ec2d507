//! The run lock of a state directory. See [`RunLock`].

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use jiff::Timestamp;

use crate::private_files;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Name of the lock file in the state directory. It stays after the lock is released: the lock itself is the operating
/// system's.
const LOCK_FILE: &str = "run.lock";
/// Maximum bytes read from the lock file about its holder.
const MAX_HOLDER_BYTES: u64 = 100;

/// The exclusive right to run tasks with a store, until dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: Option<File>,
}

impl RunLock {
    /// Creates the lock of a store that no other process can open.
    pub(super) fn unlocked() -> RunLock {
        RunLock { _file: None }
    }
}

/// Purpose of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockUse {
    /// One batch; then the lock is released.
    Run,
    /// All batches, until the process is stopped.
    Serve,
}

/// The process that holds the lock, as far as the lock file tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// Process id.
    pub process: Option<u32>,
    /// Purpose of the lock.
    pub used_for: Option<LockUse>,
    /// When the lock was taken.
    pub since: Option<Timestamp>,
}

impl LockHolder {
    fn parse(note: &str) -> LockHolder {
        let mut words = note.split_ascii_whitespace();
        LockHolder {
            process: words.next().and_then(|word| word.parse().ok()),
            used_for: words.next().and_then(|word| match word {
                "run" => Some(LockUse::Run),
                "serve" => Some(LockUse::Serve),
                _ => None,
            }),
            since: words.next().and_then(|word| word.parse().ok()),
        }
    }

    /// Returns the error of a command that cannot run beside this process.
    pub(super) fn locked_error(&self, folder: &Path) -> Error {
        let hint = match self.used_for {
            Some(LockUse::Serve) => {
                "`imgsync serve` starts its rules on schedule or from its dashboard; \
                 or give this run a directory of its own with --state"
            }
            _ => {
                "wait until it ends, follow it with `imgsync batch watch`, or give this run a directory of its \
                 own with --state"
            }
        };
        Error::new(ErrorKind::Local, operation(folder), format!("{self} is using it")).with_hint(hint)
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("another process"),
        }
    }
}

fn operation(folder: &Path) -> String {
    format!("locking the state directory {}", folder.display())
}

/// Takes the lock, or returns its holder.
pub(super) fn try_lock(folder: &Path, used_for: LockUse, now: Timestamp) -> Result<Result<RunLock, LockHolder>> {
    let path = folder.join(LOCK_FILE);
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, operation(folder), error.to_string());
    let mut file = private_files::open(&path, OpenOptions::new().read(true).write(true)).map_err(failed)?;
    // A file of another user keeps its mode.
    _ = private_files::restrict_to_owner(&path);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut note = String::new();
            // Only for messages.
            _ = file.take(MAX_HOLDER_BYTES).read_to_string(&mut note);
            return Ok(Err(LockHolder::parse(&note)));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let used_for = match used_for {
        LockUse::Run => "run",
        LockUse::Serve => "serve",
    };
    let mut note = || -> std::io::Result<()> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{} {used_for} {now:.0}", std::process::id())
    };
    // The holder is only for messages: on a full disk the lock works without.
    _ = note();
    Ok(Ok(RunLock { _file: Some(file) }))
}

/// Returns whether a process holds the lock. Probes with a shared lock, which blocks only a process that takes the lock
/// at that moment, and that one retries. A file that cannot be opened counts as held.
pub(super) fn is_held(folder: &Path) -> bool {
    match File::open(folder.join(LOCK_FILE)) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_its_holder_the_use_and_the_start_time() {
        let holder = LockHolder::parse("4711 serve 2026-05-04T03:02:01Z\n");
        assert_eq!(holder.process, Some(4711));
        assert_eq!(holder.used_for, Some(LockUse::Serve));
        assert_eq!(holder.since, Some("2026-05-04T03:02:01Z".parse().unwrap()));
        assert_eq!(LockHolder::parse("\u{1b}[31m x y"), LockHolder::default());
        assert_eq!(LockHolder::default().to_string(), "another process");
    }
}
