//! Chunk sizes for a target, or a proxy in front of it, that rejects large request bodies (413).

use imgsync_oci::error::{Error, ErrorKind};
use imgsync_registry::Repository;

/// PATCH sizes in bytes, tried in turn after a 413.
const CHUNK_SIZES: [u64; 4] = [16 << 20, 8 << 20, 4 << 20, 1 << 20];

/// Returns the next chunk size after a rejected body of `refused` bytes; `None` if all were rejected. `least` is the
/// registry's minimum (`OCI-Chunk-Min-Length`).
pub(super) fn next_smaller_chunk(target: &Repository, refused: u64, least: u64) -> Option<u64> {
    // Another blob may have found a smaller size already.
    let known = target.upload_chunk_size().filter(|chunk| *chunk < refused);
    let smaller = known.or_else(|| CHUNK_SIZES.into_iter().find(|chunk| *chunk < refused));
    smaller.filter(|chunk| *chunk >= least.max(1))
}

/// Creates the error for a target that rejects a request body of this size when smaller chunks are impossible.
pub(super) fn too_large_error(error: Error, target: &Repository, body: u64, least: u64) -> Error {
    let registry = target.registry();
    let size = bytesize::ByteSize(body);
    let least = match least > 1 {
        true => format!(", minimum chunk {}", bytesize::ByteSize(least)),
        false => String::new(),
    };
    let detail = format!("{} (request body of {size} rejected{least})", error.message());
    let hint = format!(
        "raise the limit of request bodies at {registry} or at the proxy before it (nginx: client_max_body_size) to more than \
         {size}, or set a `chunk:` below its limit for {registry} under `registries`"
    );
    Error::new(ErrorKind::Refused, error.operation(), detail)
        .with_status(413, None)
        .with_registry(registry)
        .with_hint(hint)
}
