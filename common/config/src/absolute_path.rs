//! One spelling for each path.

use std::path::{Path, PathBuf};

/// Returns one path for a file or a folder however it is written, so that the same layout or archive is the same endpoint.
/// It need not exist.
pub fn absolute_path(path: &Path) -> PathBuf {
    let canonical = std::fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => Err(error),
    });
    canonical.or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}
