//! Manifests by tag and digest, accepted only if their references are stored.

use std::sync::Arc;

use http::{StatusCode, header};
use serde_json::Value;

use super::incoming_body::{BodyError, IncomingBody};
use super::request_log::RecordedRequest;
use super::response::FaultResponse;
use super::state::{FaultRegistryStore, Inner, StoredManifest, now};
use crate::images::{TestManifest, children, digest_with, media, sha256, untyped_entries};

/// Largest accepted manifest, the limit of most registries.
const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

/// Serves a manifest. Every authorized response reports the remaining quota.
pub(super) fn get(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let Some((limit, window)) = inner.options.pulls else { return read(inner, record) };
    let left = inner.take_pull(record.header("authorization").unwrap_or_default(), record.method == "GET");
    let answer = match left {
        Some(_) => read(inner, record),
        None => {
            FaultResponse::error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "You have reached your pull limit")
        }
    };
    let seconds = window.as_secs();
    answer
        .header("ratelimit-limit", format!("{limit};w={seconds}"))
        .header("ratelimit-remaining", format!("{};w={seconds}", left.unwrap_or_default()))
}

fn read(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let (repository, reference) = names(record);
    let Some((digest, held)) = inner.store().manifest(repository, reference) else {
        return FaultResponse::not_found("MANIFEST_UNKNOWN");
    };
    let answer = FaultResponse::new(StatusCode::OK).header(header::CONTENT_TYPE, &held.manifest.media_type);
    let answer = if inner.options.digest_header { answer.header("docker-content-digest", &digest) } else { answer };
    answer.header(header::ETAG, format!("\"{digest}\"")).body(held.manifest.bytes)
}

pub(super) async fn put(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let Some(bytes) = body.all(MAX_MANIFEST_BYTES).await? else {
        return Ok(FaultResponse::error(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", "above 4 MiB"));
    };
    let bad = |code, message: &str| Ok(FaultResponse::error(StatusCode::BAD_REQUEST, code, message));
    let (repository, reference) = names(record);
    let Ok(json) = serde_json::from_slice::<Value>(&bytes) else {
        return bad("MANIFEST_INVALID", "not JSON");
    };
    let said = record.header("content-type").map(|said| said.split(';').next().unwrap_or_default().trim().to_owned());
    let inside = json["mediaType"].as_str().map(str::to_owned);
    if said.is_some() && inside.is_some() && said != inside {
        return bad("MANIFEST_INVALID", "Content-Type and mediaType differ");
    }
    let quirks = &inner.options.quirks;
    if quirks.media_type_in_body && inside.is_none() {
        return bad("MANIFEST_INVALID", "the manifest does not say its mediaType");
    }
    if let Some(status) = quirks.oci_only
        && said.as_deref().or(inside.as_deref()).is_some_and(|kind| kind.contains(".docker."))
    {
        let status = StatusCode::from_u16(status).expect("a status");
        return Ok(FaultResponse::error(status, "MANIFEST_INVALID", "the media type is not supported"));
    }
    let Some(media_type) = said.or(inside) else {
        return bad("MANIFEST_INVALID", "no media type");
    };
    let by_digest = reference.contains(':');
    let digest = if by_digest { digest_with(reference, &bytes) } else { Some(sha256(&bytes)) };
    let Some(digest) = digest.filter(|digest| !by_digest || digest == reference) else {
        return bad("DIGEST_INVALID", "the bytes have another digest");
    };

    let mut store = inner.store();
    if let Some(missing) = missing(&store, repository, &json).filter(|_| !inner.options.lenient) {
        return bad("MANIFEST_BLOB_UNKNOWN", &missing);
    }
    let here = store.repository(repository);
    let moves = here.tags.get(reference).is_some_and(|at| *at != digest);
    if quirks.immutable.contains(&repository) && here.tags.contains_key(reference) {
        return bad("TAG_INVALID", "ImageTagAlreadyExistsException: the tag is immutable and is there already");
    }
    if inner.options.immutable_tags && moves {
        return bad("TAG_INVALID", "the tag is immutable and has another digest");
    }
    here.manifests
        .insert(digest.clone(), StoredManifest { manifest: TestManifest { media_type, bytes }, uploaded: now() });
    if !by_digest {
        here.tags.insert(reference.to_owned(), digest.clone());
    }
    let answer = FaultResponse::new(StatusCode::CREATED)
        .header("docker-content-digest", &digest)
        .header(header::LOCATION, format!("/v2/{repository}/manifests/{digest}"));
    Ok(match json["subject"]["digest"].as_str().filter(|_| inner.options.referrers) {
        Some(subject) => answer.header("oci-subject", subject),
        None => answer,
    })
}

/// Returns a reference of a manifest that the repository lacks.
pub(super) fn missing(store: &FaultRegistryStore, repository: &str, json: &Value) -> Option<String> {
    let is_foreign = |descriptor: &Value| descriptor["urls"].as_array().is_some_and(|urls| !urls.is_empty());
    let layers = json["layers"].as_array().into_iter().flatten().filter(|layer| !is_foreign(layer));
    let named = layers.chain(std::iter::once(&json["config"])).filter_map(|descriptor| descriptor["digest"].as_str());
    let blob = named.filter(|digest| store.blob(repository, digest).is_none()).map(|digest| format!("blob {digest}"));
    let odd = untyped_entries(json);
    let is_here = |digest: &String| {
        store.manifest(repository, digest).is_some()
            || (odd.contains(digest) && store.blob(repository, digest).is_some())
    };
    let child = children(json).into_iter().filter(|digest| !is_here(digest));
    blob.chain(child.map(|digest| format!("manifest {digest}"))).next()
}

pub(super) fn delete(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let (repository, reference) = names(record);
    let mut store = inner.store();
    let here = store.repository(repository);
    if here.tags.remove(reference).is_some() {
        return FaultResponse::new(StatusCode::ACCEPTED);
    }
    if here.manifests.remove(reference).is_none() {
        return FaultResponse::not_found("MANIFEST_UNKNOWN");
    }
    here.tags.retain(|_, digest| digest != reference);
    FaultResponse::new(StatusCode::ACCEPTED)
}

/// Reports whether a media type is an index.
pub(super) fn is_index(media_type: &str) -> bool {
    matches!(media_type, media::OCI_INDEX | media::DOCKER_LIST)
}

/// Returns the repository and the tag or digest of a request.
pub(super) fn names(record: &RecordedRequest) -> (&str, &str) {
    (record.repository.as_deref().unwrap_or_default(), record.reference.as_deref().unwrap_or_default())
}
