//! Errors of SQLite, with hints.

use rusqlite::ErrorCode;

use imgsync_oci::error::{Error, ErrorKind};

/// Error of work on a connection.
#[derive(Debug)]
pub(super) enum SqliteError {
    Sql(rusqlite::Error),
    /// An error that is complete already.
    Reported(Error),
}

impl SqliteError {
    /// Whether another process holds a lock.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, SqliteError::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy))
    }

    /// Converts to the error of an operation on the named store.
    pub(super) fn into_error(self, operation: &str, store: &str) -> Error {
        match self {
            SqliteError::Sql(error) => describe(&error, operation, store),
            SqliteError::Reported(error) => error,
        }
    }
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> SqliteError {
        SqliteError::Sql(error)
    }
}

impl From<Error> for SqliteError {
    fn from(error: Error) -> SqliteError {
        SqliteError::Reported(error)
    }
}

impl From<imgsync_model::batch::PlanChunkError> for SqliteError {
    fn from(error: imgsync_model::batch::PlanChunkError) -> SqliteError {
        SqliteError::Reported(corrupt_store(&error.to_string()))
    }
}

/// Returns the error of a row that this program did not write.
pub(super) fn corrupt_store(what: &str) -> Error {
    Error::new(ErrorKind::Local, "reading the store", what)
        .with_hint("the file is damaged: move it away; the contents of the targets are looked up again")
}

/// Converts an SQLite error of an operation, with a hint.
pub(super) fn describe(error: &rusqlite::Error, operation: &str, store: &str) -> Error {
    let (detail, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (
            "the disk is full".to_owned(),
            format!("make room where {store} is; nothing that was recorded is lost, the batch can be resumed"),
        ),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (
            format!("the file is damaged ({error})"),
            format!(
                "move {store} away (with its -wal and -shm beside it): a new one is created, and the contents of the \
                 targets are looked up again"
            ),
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ("another process has locked it for too long".to_owned(), format!("see which process has {store} open"))
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => (
            format!("it cannot be opened for writing ({error})"),
            format!("this user must be able to write {store} and its folder; or choose another one with --state"),
        ),
        Some(ErrorCode::SystemIoFailure) => (
            format!("the disk failed ({error})"),
            format!("check the health and the free space of the disk of {store}"),
        ),
        _ => return Error::new(ErrorKind::Local, operation, error.to_string()),
    };
    Error::new(ErrorKind::Local, operation, detail).with_hint(hint)
}
