//! Limit of open files and connections.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files per blob in flight: a connection to the source, a connection to the target or a file there, and a folder.
const FILES_PER_BLOB: u64 = 3;
/// Files for everything else: connections for manifests and listings, state, log, port.
const OTHER_FILES: u64 = 256;
/// Range of concurrent blobs, whatever the file limit.
const MIN_BLOBS: u64 = 8;
const MAX_BLOBS: u64 = 10_000;

/// Raises the soft limit of open files (RLIMIT_NOFILE) to the hard limit, as Go programs do: the usual soft limit of
/// 1,024 exists for programs that use `select`. If that is not allowed, the limit stays unchanged.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Returns the maximum of concurrent blobs, so that the process does not run out of files.
pub(crate) fn max_concurrent_blobs() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let blobs = files.saturating_sub(OTHER_FILES) / FILES_PER_BLOB;
    usize::try_from(blobs.clamp(MIN_BLOBS, MAX_BLOBS)).unwrap_or(usize::MAX)
}
