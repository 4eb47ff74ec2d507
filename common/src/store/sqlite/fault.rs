//! Errors of SQLite, with hints.

use rusqlite::ErrorCode;

use crate::error::{Class, Error};

/// Error of work on a connection.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    /// An error that is complete already.
    Known(Error),
}

impl Fault {
    /// Converts to the error of an operation on the named store.
    pub(super) fn explain(self, tried: &str, store: &str) -> Error {
        match self {
            Fault::Sql(error) => explain(&error, tried, store),
            Fault::Known(error) => error,
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Known(error)
    }
}

impl From<crate::batch::ChunkError> for Fault {
    fn from(error: crate::batch::ChunkError) -> Fault {
        Fault::Known(damaged(&error.to_string()))
    }
}

/// Returns the error of a row that this program did not write.
pub(super) fn damaged(what: &str) -> Error {
    Error::new(Class::Local, "reading the store", what)
        .hint("the file is damaged: move it away; what the targets have is found again by asking them")
}

/// Converts an SQLite error of an operation, with a hint.
pub(super) fn explain(error: &rusqlite::Error, tried: &str, store: &str) -> Error {
    let (detail, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (
            "the disk is full".to_owned(),
            format!("make room where {store} is; nothing that was recorded is lost, the batch can be resumed"),
        ),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (
            format!("the file is damaged ({error})"),
            format!(
                "move {store} away (with its -wal and -shm beside it): a new one is made, and what the targets have is \
                 found again by asking them"
            ),
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            "another process has been writing to it for too long".to_owned(),
            format!("see which process has {store} open"),
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => (
            format!("it cannot be opened for writing ({error})"),
            format!("this user must be able to write {store} and its folder; or choose another one with --state"),
        ),
        Some(ErrorCode::SystemIoFailure) => {
            (format!("the disk failed ({error})"), format!("see whether the disk of {store} is well and has room"))
        }
        _ => return Error::new(Class::Local, tried, error.to_string()),
    };
    Error::new(Class::Local, tried, detail).hint(hint)
}
