//! Errors of a layout's folder and files, before the operation is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::error::{Class, Error};
use crate::retry;

/// Cheap to clone: one failed index write is reported to all tasks that wait for it.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// An operating system error.
    Io { path: PathBuf, doing: &'static str, error: Arc<io::Error> },
    /// A link, a folder, a FIFO… instead of the expected type.
    WrongKind { path: PathBuf, is: FileType, wanted: &'static str },
    /// Any other error.
    Bad { class: Class, detail: String, hint: Option<&'static str> },
}

impl Trouble {
    pub(super) fn io(path: &Path, doing: &'static str, error: impl Into<io::Error>) -> Trouble {
        Trouble::Io { path: path.to_owned(), doing, error: Arc::new(error.into()) }
    }

    pub(super) fn bad(class: Class, detail: impl Into<String>) -> Trouble {
        Trouble::Bad { class, detail: detail.into(), hint: None }
    }

    pub(super) fn hint(self, hint: &'static str) -> Trouble {
        match self {
            Trouble::Bad { class, detail, .. } => Trouble::Bad { class, detail, hint: Some(hint) },
            other => other,
        }
    }

    /// Converts into an error of an operation.
    pub(super) fn error(self, tried: &str) -> Error {
        match self {
            Trouble::Io { path, doing, error } => {
                let detail = format!("{doing} {} failed: {error}", path.display());
                let hint = hint(error.kind());
                let is_out_of_files = retry::is_out_of_files(&error);
                let error = Error::new(Class::Local, tried, detail).because(error);
                let error = if is_out_of_files { error.out_of_files() } else { error };
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            }
            Trouble::WrongKind { path, is: FileType::Symlink, .. } => {
                let detail = format!("{} is a symbolic link, which could lead out of the layout", path.display());
                Error::new(Class::Insecure, tried, detail).hint("put the file or folder itself in its place")
            }
            Trouble::WrongKind { path, is, wanted } => {
                let detail = format!("{} is {}, not {wanted}", path.display(), kind(is));
                Error::new(Class::BadAnswer, tried, detail)
            }
            Trouble::Bad { class, detail, hint } => {
                let error = Error::new(class, tried, detail);
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            }
        }
    }
}

fn kind(kind: FileType) -> &'static str {
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

fn hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("make room and run the same again: what is complete in the layout is kept and not copied again")
        }
        io::ErrorKind::PermissionDenied => Some("check who owns the folder and who may write to it"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted for reading only"),
        io::ErrorKind::FileTooLarge => Some("the file system cannot hold a file of this size (FAT ends at 4 GiB)"),
        _ => None,
    }
}
