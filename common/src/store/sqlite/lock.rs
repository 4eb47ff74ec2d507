//! The lock that one run holds at a time. See [`RunLock`].

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use jiff::Timestamp;

use crate::error::{Class, Error, Result};
use crate::private;

/// The file's name in the state directory. It stays when the lock is gone: the lock is the operating system's.
const FILE: &str = "run.lock";
/// The most bytes that are read of who holds the lock.
const MAX_NOTE_BYTES: u64 = 100;

/// The right to run tasks with a store, for as long as it lives.
#[derive(Debug)]
pub struct RunLock {
    _file: Option<File>,
}

impl RunLock {
    /// Of a store that nobody else can have.
    pub(super) fn none() -> RunLock {
        RunLock { _file: None }
    }
}

/// What a process holds the lock for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockUse {
    /// One batch, after which the lock is released.
    Run,
    /// All batches, until the process is stopped.
    Serve,
}

/// The process that holds the lock, as far as it could write that down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// Its number.
    pub process: Option<u32>,
    /// What it holds the lock for.
    pub used_for: Option<LockUse>,
    /// Since when.
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

    /// The error of a command that cannot go on beside this process.
    pub(super) fn refusal(&self, folder: &Path) -> Error {
        let hint = match self.used_for {
            Some(LockUse::Serve) => {
                "`imgsync serve` begins the rules that it was given at their times or by its dashboard; \
                 or give this run a directory of its own with --state"
            }
            _ => {
                "wait until it ends, look at it with imgsync batch watch, or give this run a directory of its own with --state"
            }
        };
        Error::new(Class::Local, tried(folder), format!("{self} is running with it")).hint(hint)
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

fn tried(folder: &Path) -> String {
    format!("locking the state directory {}", folder.display())
}

/// Takes the lock, or says who has it.
pub(super) fn take(folder: &Path, used_for: LockUse, now: Timestamp) -> Result<Result<RunLock, LockHolder>> {
    let path = folder.join(FILE);
    let failed = |error: std::io::Error| Error::new(Class::Local, tried(folder), error.to_string());
    let mut file = private::open(&path, OpenOptions::new().read(true).write(true)).map_err(failed)?;
    // Of another user's file the mode stays.
    _ = private::tighten(&path);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut note = String::new();
            // Only for messages.
            _ = file.take(MAX_NOTE_BYTES).read_to_string(&mut note);
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
    // Who holds it is for messages only: on a full disk the lock is as good without.
    _ = note();
    Ok(Ok(RunLock { _file: Some(file) }))
}

/// Whether a process holds the lock. Looks for a moment with a lock that excludes only who takes it in that moment, and who
/// takes it tries more than once. A file that cannot be looked at says nothing against it.
pub(super) fn is_held(folder: &Path) -> bool {
    match File::open(folder.join(FILE)) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_a_holder_says_who_it_is_what_for_and_since_when() {
        let holder = LockHolder::parse("4711 serve 2026-05-04T03:02:01Z\n");
        assert_eq!(holder.process, Some(4711));
        assert_eq!(holder.used_for, Some(LockUse::Serve));
        assert_eq!(holder.since, Some("2026-05-04T03:02:01Z".parse().unwrap()));
        assert_eq!(LockHolder::parse("\u{1b}[31m x y"), LockHolder::default());
        assert_eq!(LockHolder::default().to_string(), "another process");
    }
}
