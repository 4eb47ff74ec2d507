//! How many files and connections the process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files of a blob that is being copied: a connection to the source, one to the target or a file there, and a folder.
const FILES_PER_BLOB: u64 = 3;
/// Files for everything else: connections for manifests and lists, the state, the log, the port.
const OTHER_FILES: u64 = 256;
/// Blobs that are copied at a time, whatever the limit.
const MIN_BLOBS: u64 = 8;
const MAX_BLOBS: u64 = 10_000;

/// Raises the soft limit of open files (RLIMIT_NOFILE) to the hard one, as programs in Go do: the usual soft limit of
/// 1,024 is for programs that use `select`. Where that is not allowed, the limit stays as it is.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// The number of blobs that may be copied at a time, so that the process does not run out of files.
pub(crate) fn max_blobs() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let blobs = files.saturating_sub(OTHER_FILES) / FILES_PER_BLOB;
    usize::try_from(blobs.clamp(MIN_BLOBS, MAX_BLOBS)).unwrap_or(usize::MAX)
}
