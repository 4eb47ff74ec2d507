//! The lock that one run holds at a time. See [`RunLock`].

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Class, Error, Result};
use crate::printable::printable_within;
use crate::private;

/// The file's name in the state directory. It stays when the lock is gone: the lock is the operating system's.
const FILE: &str = "run.lock";

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

pub(super) fn take(folder: &Path) -> Result<RunLock> {
    let path = folder.join(FILE);
    let tried = format!("locking the state directory {}", folder.display());
    let failed = |error: std::io::Error| Error::new(Class::Local, &tried, error.to_string());
    let mut file = private::open(&path, OpenOptions::new().read(true).write(true)).map_err(failed)?;
    // Of another user's file the mode stays.
    _ = private::tighten(&path);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message.
            _ = file.take(100).read_to_string(&mut holder);
            let holder = printable_within(holder.trim(), 40);
            let who = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
            return Err(Error::new(Class::Local, tried, format!("{who} is running with it")).hint(
                "wait until it ends, look at it with imgsync batch watch, or give this run a directory of its own with --state",
            ));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let note = || -> std::io::Result<()> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    // Who holds it is for messages only: on a full disk the lock is as good without.
    let mut note = note;
    _ = note();
    Ok(RunLock { _file: Some(file) })
}
