//! Stored blobs.

use std::sync::Arc;

use http::{StatusCode, header};

use super::manifests::names;
use super::request_log::RecordedRequest;
use super::response::{FaultResponse, ResponseBody};
use super::state::{Inner, StoredBlob};

pub(super) fn get(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let (repository, digest) = names(record);
    let mut stored = inner.store().blob(repository, digest);
    if inner.options.quirks.heads_find_all_blobs && record.method == "HEAD" {
        let store = inner.store();
        stored = stored.or_else(|| store.repositories.values().find_map(|other| other.blobs.get(digest).cloned()));
    }
    let Some(stored) = stored else {
        return FaultResponse::not_found("BLOB_UNKNOWN");
    };
    let answer = |status| {
        FaultResponse::new(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::ACCEPT_RANGES, "bytes")
            .header("docker-content-digest", digest)
    };
    let size = stored.size();
    if record.method == "HEAD" {
        return answer(StatusCode::OK).header(header::CONTENT_LENGTH, size);
    }
    let StoredBlob::Kept(blob) = stored else {
        return FaultResponse::error(StatusCode::GONE, "BLOB_UNKNOWN", "this registry forgets the bytes of blobs");
    };
    let (mut answer, start, end) = match record.header("range").map(|range| parse_range(range, size)) {
        None => (answer(StatusCode::OK), 0, size),
        Some(Some((start, end))) => {
            let said = format!("bytes {start}-{}/{size}", end - 1);
            (answer(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, said), start, end)
        }
        Some(None) => {
            return FaultResponse::new(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"));
        }
    };
    answer.body = ResponseBody::Blob(blob, start, end);
    answer
}

/// Parses `bytes=a-b`, `bytes=a-` or `bytes=-n` into a half-open range.
fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (start, end) {
        ("", last) => (size.saturating_sub(last.parse().ok()?), size),
        (start, "") => (start.parse().ok()?, size),
        (start, end) => (start.parse().ok()?, size.min(end.parse::<u64>().ok()? + 1)),
    };
    (start < end).then_some((start, end))
}

pub(super) fn delete(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let (repository, digest) = names(record);
    match inner.store().repository(repository).blobs.remove(digest) {
        Some(_) => FaultResponse::new(StatusCode::ACCEPTED),
        None => FaultResponse::not_found("BLOB_UNKNOWN"),
    }
}
