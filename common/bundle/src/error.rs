//! Errors of files, with the hints that they deserve.

use std::io;
use std::path::Path;

use imgsync_oci::error::{Error, ErrorKind};

/// Converts an error of a file.
pub(crate) fn io_error(operation: &str, path: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free disk space and run the same command again: what is written is kept")
        }
        io::ErrorKind::PermissionDenied => Some("check the owner and permissions of the folder"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only"),
        io::ErrorKind::FileTooLarge => {
            Some("the file system cannot hold a file of this size (FAT ends at 4 GiB): pass --part-size")
        }
        _ => None,
    };
    let detail = format!("{}: {error}", path.display());
    let failed = Error::new(ErrorKind::Local, operation, detail).with_source(error);
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}
