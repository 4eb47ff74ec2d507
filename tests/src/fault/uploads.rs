//! Upload sessions and mounts.

use std::sync::{Arc, Mutex};

use http::{StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::incoming_body::{BodyError, IncomingBody};
use super::manifests::names;
use super::options::MountPolicy;
use super::quirks::{self, PatchHandling};
use super::request_log::RecordedRequest;
use super::request_type::session;
use super::response::FaultResponse;
use super::state::{Inner, OpenUpload, StoredBlob};
use crate::images::{Blob, digest_with};

pub(super) async fn start(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let (repository, _) = names(record);
    if let Some(digest) = record.parameter("mount") {
        match inner.options.mounts {
            MountPolicy::Refuse(status) => {
                return Ok(FaultResponse::error(status, "UNSUPPORTED", "no mounts here"));
            }
            MountPolicy::Mount => {
                let from = record.parameter("from").unwrap_or_default();
                let mut store = inner.store();
                let quirks_of_target = &inner.options.quirks;
                let blob = store.blob(&from, &digest);
                if let Some(blob) = blob.filter(|_| quirks::is_mount_allowed(quirks_of_target, &store, &from, &digest))
                {
                    store.repository(repository).blobs.insert(digest.clone(), blob);
                    return Ok(created(inner, repository, &digest));
                }
                if let Some(status) = quirks_of_target.missing_mount_status.filter(|_| from != repository) {
                    let status = StatusCode::from_u16(status).expect("a status");
                    return Ok(FaultResponse::error(status, "BLOB_UNKNOWN", "the blob to mount is not there"));
                }
            }
            MountPolicy::Ignore => {}
        }
    }
    let id = format!("session-{}", inner.next());
    let upload = OpenUpload {
        repository: repository.to_owned(),
        size: 0,
        content: (!inner.options.blackhole).then(Vec::new),
        sha256: Sha256::new(),
        has_short_chunk: false,
        patches: 0,
    };
    let upload = Arc::new(Mutex::new(upload));
    inner.store().uploads.insert(id.clone(), Arc::clone(&upload));
    if let Some(digest) = record.parameter("digest").filter(|_| inner.options.single_post) {
        receive(inner, &id, &upload, body).await?;
        return Ok(commit(inner, &id, &digest));
    }
    body.drain().await?;
    let answer = progress(inner, StatusCode::ACCEPTED, &id, repository, 0);
    Ok(match inner.options.chunk_minimum {
        Some(bytes) => answer.header("oci-chunk-min-length", bytes),
        None => answer,
    })
}

pub(super) async fn patch(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let (id, upload) = match find(inner, record) {
        Ok(found) => found,
        Err(refusal) => {
            body.drain().await?;
            return Ok(*refusal);
        }
    };
    let (before, short) = {
        let upload = upload.lock().expect("an upload is whole");
        (upload.size, upload.has_short_chunk)
    };
    let range = match content_range(record) {
        Ok(range) => range,
        Err(refusal) => {
            body.drain().await?;
            return Ok(*refusal);
        }
    };
    let quirks = &inner.options.quirks;
    if short || range.is_some_and(|(start, _)| start != before) {
        body.drain().await?;
        if quirks.patches == PatchHandling::StrictlyOnce {
            inner.store().uploads.remove(&id);
            return Ok(FaultResponse::not_found("BLOB_UPLOAD_INVALID"));
        }
        return Ok(progress(inner, StatusCode::RANGE_NOT_SATISFIABLE, &id, &repository(record), before));
    }
    let earlier = {
        let mut upload = upload.lock().expect("an upload is whole");
        upload.patches += 1;
        upload.patches > 1
    };
    match quirks.patches {
        PatchHandling::One(status) if earlier => {
            body.drain().await?;
            return Ok(FaultResponse::from_status_code(status));
        }
        PatchHandling::FirstStays if earlier => body.drain().await?,
        PatchHandling::LastWins if earlier => {
            // Loses content that the client takes for stored.
            upload.lock().expect("an upload is whole").content = Some(Vec::new());
            receive(inner, &id, &upload, body).await?;
        }
        _ => receive(inner, &id, &upload, body).await?,
    }
    let mut upload = upload.lock().expect("an upload is whole");
    upload.has_short_chunk = inner.options.chunk_minimum.is_some_and(|minimum| upload.size - before < minimum);
    if range.is_some_and(|(start, end)| end - start + 1 != upload.size - before) {
        return Ok(FaultResponse::error(StatusCode::BAD_REQUEST, "SIZE_INVALID", "Content-Range and body differ"));
    }
    let status = quirks.patch_status.map_or(Ok(StatusCode::ACCEPTED), StatusCode::from_u16).expect("a status");
    let mut answer = progress(inner, status, &id, &upload.repository, upload.size);
    if quirks.patches == PatchHandling::FirstStays {
        answer.headers.remove(header::RANGE);
    }
    Ok(answer)
}

pub(super) async fn put(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let checked = find(inner, record).and_then(|found| content_range(record).map(|range| (found, range)));
    let ((id, upload), range) = match checked {
        Ok(found) => found,
        Err(refusal) => {
            body.drain().await?;
            return Ok(*refusal);
        }
    };
    let before = upload.lock().expect("an upload is whole").size;
    if range.is_some_and(|(start, _)| start != before) {
        body.drain().await?;
        return Ok(progress(inner, StatusCode::RANGE_NOT_SATISFIABLE, &id, &repository(record), before));
    }
    let patched = before > 0 && inner.options.quirks.patches == PatchHandling::FirstStays;
    receive(inner, &id, &upload, body).await?;
    if patched && upload.lock().expect("an upload is whole").size == before {
        return Ok(FaultResponse::error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "an empty part"));
    }
    match record.parameter("digest") {
        Some(digest) => Ok(commit(inner, &id, &digest)),
        None => Ok(FaultResponse::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no digest")),
    }
}

pub(super) fn status(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    match find(inner, record) {
        Ok((id, upload)) => {
            let upload = upload.lock().expect("an upload is whole");
            progress(inner, StatusCode::NO_CONTENT, &id, &upload.repository, upload.size)
        }
        Err(refusal) => *refusal,
    }
}

pub(super) fn delete(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    match find(inner, record) {
        Ok((id, _)) => {
            inner.store().uploads.remove(&id);
            FaultResponse::new(StatusCode::NO_CONTENT)
        }
        Err(refusal) => *refusal,
    }
}

/// Appends a body to a session. A body that breaks off keeps its bytes or ends the session, depending on the options.
async fn receive(
    inner: &Arc<Inner>,
    id: &str,
    upload: &Arc<Mutex<OpenUpload>>,
    body: &mut IncomingBody,
) -> Result<(), BodyError> {
    /// A client disconnect drops the future mid-request, so the session is cleaned up on drop.
    struct Unfinished<'a>(&'a Inner, &'a str, bool);
    impl Drop for Unfinished<'_> {
        fn drop(&mut self) {
            if self.2 {
                self.0.store().uploads.remove(self.1);
            }
        }
    }
    let mut unfinished = Unfinished(inner, id, !inner.options.resumable);
    while let Some(piece) = body.next().await? {
        upload.lock().expect("an upload is whole").append(&piece);
    }
    unfinished.2 = false;
    Ok(())
}

/// Commits a session as a blob.
fn commit(inner: &Arc<Inner>, id: &str, digest: &str) -> FaultResponse {
    let mut store = inner.store();
    let Some(upload) = store.uploads.remove(id) else {
        return FaultResponse::not_found("BLOB_UPLOAD_UNKNOWN");
    };
    let mut upload = upload.lock().expect("an upload is whole");
    let (found, stored) = match upload.content.take() {
        Some(bytes) => (digest_with(digest, &bytes), StoredBlob::Kept(Blob::from(bytes))),
        None => {
            let hash = std::mem::take(&mut upload.sha256).finalize();
            (Some(format!("sha256:{}", hex::encode(hash))), StoredBlob::Forgotten(upload.size))
        }
    };
    if found.as_deref() != Some(digest) {
        let message = format!("{} bytes have the digest {found:?}", upload.size);
        return FaultResponse::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &message);
    }
    store.repository(&upload.repository).blobs.insert(digest.to_owned(), stored);
    created(inner, &upload.repository, digest)
}

/// Returns the session of a request, or an error response.
fn find(inner: &Arc<Inner>, record: &RecordedRequest) -> Result<(String, Arc<Mutex<OpenUpload>>), Box<FaultResponse>> {
    let id = session(&record.path).unwrap_or_default();
    let gone = if inner.options.resumable { "BLOB_UPLOAD_UNKNOWN" } else { "BLOB_UPLOAD_INVALID" };
    let upload = inner.store().uploads.get(id).cloned().ok_or_else(|| Box::new(FaultResponse::not_found(gone)))?;
    // The query of a Location is opaque and must be sent back.
    if record.parameter("_state").as_deref() != Some(state_of(id).as_str()) {
        let message = "the _state of the Location is missing";
        return Err(Box::new(FaultResponse::error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)));
    }
    Ok((id.to_owned(), upload))
}

fn state_of(id: &str) -> String {
    format!("of-{id}=")
}

fn content_range(record: &RecordedRequest) -> Result<Option<(u64, u64)>, Box<FaultResponse>> {
    let Some(said) = record.header("content-range") else {
        return Ok(None);
    };
    let parsed = said.split_once('-').and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    let refusal =
        || Box::new(FaultResponse::error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", "Content-Range is start-end"));
    parsed.filter(|(start, end)| start <= end).map(Some).ok_or_else(refusal)
}

fn repository(record: &RecordedRequest) -> String {
    names(record).0.to_owned()
}

fn created(inner: &Inner, repository: &str, digest: &str) -> FaultResponse {
    FaultResponse::new(StatusCode::CREATED)
        .header(header::LOCATION, locate(inner, &format!("/v2/{repository}/blobs/{digest}")))
        .header("docker-content-digest", digest)
}

fn progress(inner: &Inner, status: StatusCode, id: &str, repository: &str, size: u64) -> FaultResponse {
    let path = format!("/v2/{repository}/blobs/uploads/{id}?_state={}", state_of(id).replace('=', "%3D"));
    FaultResponse::new(status)
        .header(header::LOCATION, locate(inner, &path))
        .header(header::RANGE, format!("0-{}", size.saturating_sub(1)))
        .header("docker-upload-uuid", id)
}

fn locate(inner: &Inner, path: &str) -> String {
    if inner.options.relative_locations { path.to_owned() } else { format!("{}{path}", inner.url()) }
}
