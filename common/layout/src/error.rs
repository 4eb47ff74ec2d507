//! Errors of a layout's folder and files, before the operation is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::retry;

/// What to do with an archive that cannot be read in one pass.
pub(super) const SAVE_STREAM_HINT: &str =
    "save it to a file, or give --spool DIR, which saves it for the time of the command";

/// Cheap to clone: one failed index write is reported to all tasks that wait for it.
#[derive(Debug, Clone)]
pub(super) enum LayoutError {
    /// An operating system error.
    Io { path: PathBuf, action: &'static str, error: Arc<io::Error> },
    /// A link, a folder, a FIFO… instead of the expected type.
    WrongKind { path: PathBuf, found: FileType, expected: &'static str },
    /// Any other error.
    Other { kind: ErrorKind, detail: String, hint: Option<&'static str> },
}

impl LayoutError {
    pub(super) fn io(path: &Path, action: &'static str, error: impl Into<io::Error>) -> LayoutError {
        LayoutError::Io { path: path.to_owned(), action, error: Arc::new(error.into()) }
    }

    /// Error of reading content. Damaged and truncated content is [`ErrorKind::Corrupt`].
    pub(super) fn reading(name: &str, error: io::Error) -> LayoutError {
        let detail = match error.kind() {
            io::ErrorKind::InvalidData => format!("the content is damaged: {error}"),
            io::ErrorKind::UnexpectedEof => "the content is truncated".to_owned(),
            io::ErrorKind::NotSeekable => {
                return LayoutError::new(ErrorKind::Unsupported, error.to_string()).with_hint(SAVE_STREAM_HINT);
            }
            io::ErrorKind::ConnectionAborted => return LayoutError::new(ErrorKind::Cancelled, "cancelled"),
            io::ErrorKind::TimedOut => {
                return LayoutError::new(ErrorKind::TimedOut, error.to_string())
                    .with_hint("if the program that writes the archive needs longer, raise the limit, or save the archive to a file first");
            }
            _ => return LayoutError::io(name.as_ref(), "reading", error),
        };
        let error = LayoutError::new(ErrorKind::Corrupt, detail).with_hint("copy or create the archive again");
        if name.is_empty() { error } else { error.in_part(name) }
    }

    pub(super) fn new(kind: ErrorKind, detail: impl Into<String>) -> LayoutError {
        LayoutError::Other { kind, detail: detail.into(), hint: None }
    }

    pub(super) fn with_hint(self, hint: &'static str) -> LayoutError {
        match self {
            LayoutError::Other { kind, detail, .. } => LayoutError::Other { kind, detail, hint: Some(hint) },
            other => other,
        }
    }

    /// Whether the operation was cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, LayoutError::Other { kind: ErrorKind::Cancelled, .. })
    }

    /// Names the part of the layout in which the error is.
    pub(super) fn in_part(self, part: &str) -> LayoutError {
        match self {
            LayoutError::Other { kind, detail, hint } => {
                LayoutError::Other { kind, detail: format!("{part}: {detail}"), hint }
            }
            other => other,
        }
    }

    /// Converts into an error of an operation.
    pub(super) fn into_error(self, operation: &str) -> Error {
        match self {
            LayoutError::Io { path, action, error } => {
                let detail = format!("{action} {} failed: {error}", path.display());
                let hint = io_hint(error.kind());
                let is_out_of_files = retry::is_out_of_files(&error);
                let error = Error::new(ErrorKind::Local, operation, detail).with_source(error);
                let error = if is_out_of_files { error.mark_out_of_files() } else { error };
                match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
            LayoutError::WrongKind { path, found: FileType::Symlink, .. } => {
                let detail = format!("{} is a symbolic link, which could point outside the layout", path.display());
                Error::new(ErrorKind::Insecure, operation, detail)
                    .with_hint("replace the link with the file or folder itself")
            }
            LayoutError::WrongKind { path, found: is, expected } => {
                let detail = format!("{} is {}, not {expected}", path.display(), describe_file_type(is));
                Error::new(ErrorKind::InvalidResponse, operation, detail)
            }
            LayoutError::Other { kind, detail, hint } => {
                let error = Error::new(kind, operation, detail);
                match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
        }
    }
}

fn describe_file_type(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

fn io_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free disk space and run again: complete blobs are kept and not copied again")
        }
        io::ErrorKind::PermissionDenied => Some("check the owner and permissions of the folder"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only"),
        io::ErrorKind::FileTooLarge => Some("the file system cannot hold a file of this size (FAT ends at 4 GiB)"),
        _ => None,
    }
}
