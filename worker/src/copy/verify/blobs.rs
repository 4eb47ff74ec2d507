//! Checks the blobs of a target: several at once, or in the order in which they come out of a pipe.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _};
use imgsync_layout::Layout;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, Digest, Hasher};
use imgsync_registry::Context;

use super::super::endpoints::CopyTarget;
use super::{Finding, FindingKind};

/// Checks blobs, each with a description of what it belongs to.
pub(super) async fn check_blobs(
    target: &CopyTarget,
    blobs: Vec<(Descriptor, String)>,
    deep: bool,
    concurrency: usize,
    context: &Context,
) -> Result<Vec<Finding>> {
    if let CopyTarget::Layout(repository) = target
        && repository.layout().is_stream()
    {
        return check_streamed_blobs(target, repository.layout(), blobs, context).await;
    }
    let found = futures_util::stream::iter(blobs)
        .map(|(blob, of)| async move { check_blob(target, &blob, &of, deep, context).await })
        .buffer_unordered(concurrency.max(1));
    found.try_filter_map(async |finding| Ok(finding)).try_collect().await
}

/// Checks the blobs of an archive while they come out of a pipe, which is read to its end. Their content is always
/// hashed, for it passes anyway.
async fn check_streamed_blobs(
    target: &CopyTarget,
    layout: &Layout,
    blobs: Vec<(Descriptor, String)>,
    context: &Context,
) -> Result<Vec<Finding>> {
    let (mut findings, mut wanted) = (Vec::new(), HashMap::new());
    let mut unreadable = None;
    for (blob, of) in blobs {
        match layout.is_in_memory(&blob.digest) {
            true => findings.extend(check_blob(target, &blob, &of, true, context).await?),
            false => _ = wanted.insert(blob.digest.clone(), (blob, of)),
        }
    }
    loop {
        // The pipe has a limit of its own.
        let waiting = context.clock.pause();
        let next = tokio::select! {
            biased;
            () = context.cancel.cancelled() => Err(Error::cancelled("comparing with an archive from a pipe")),
            next = layout.next_streamed_blob() => next,
        };
        drop(waiting);
        let next = match (next, unreadable.take()) {
            // A blob of which the end did not come is not a difference: the archive could not be read.
            (Err(_), Some(error)) => return Err(error),
            (next, _) => next?,
        };
        let Some(digest) = next else { break };
        let Some((blob, of)) = wanted.remove(&digest) else { continue };
        match hash_blob(target, &blob, context).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                findings.push(corrupt_finding(&blob, &of, error.message()));
                unreadable = Some(error);
            }
            hashed => findings.extend(describe_hash(&blob, &of, hashed)?),
        }
    }
    findings.extend(wanted.values().map(|(blob, of)| blob_finding(blob, of, FindingKind::MissingBlob, "is missing")));
    Ok(findings)
}

fn blob_finding(blob: &Descriptor, of: &str, kind: FindingKind, how: &str) -> Finding {
    let detail = format!("blob {} of {of} {how}", blob.digest);
    Finding { kind, digest: blob.digest.clone(), detail: sanitize(&detail).into_owned() }
}

fn corrupt_finding(blob: &Descriptor, of: &str, detail: &str) -> Finding {
    blob_finding(blob, of, FindingKind::CorruptBlob, &format!("is corrupt: {detail}"))
}

/// Checks one blob of the target.
async fn check_blob(
    target: &CopyTarget,
    blob: &Descriptor,
    of: &str,
    deep: bool,
    context: &Context,
) -> Result<Option<Finding>> {
    if !deep {
        return match target.has_blob(blob).await? {
            true => Ok(None),
            false => Ok(Some(blob_finding(blob, of, FindingKind::MissingBlob, "is missing"))),
        };
    }
    let hashed = hash_blob(target, blob, context).await;
    describe_hash(blob, of, hashed)
}

/// Returns what the digest of a blob's content, or the error of reading it, says of the blob.
fn describe_hash(blob: &Descriptor, of: &str, hashed: Result<Digest>) -> Result<Option<Finding>> {
    match hashed {
        Ok(found) if found == blob.digest => Ok(None),
        Ok(found) => Ok(Some(corrupt_finding(blob, of, &format!("its content has the digest {found}")))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Some(blob_finding(blob, of, FindingKind::MissingBlob, "is missing")))
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some(corrupt_finding(blob, of, error.message()))),
        Err(error) => Err(error),
    }
}

/// Returns the digest of a blob's content. A broken connection is retried from the start.
async fn hash_blob(target: &CopyTarget, blob: &Descriptor, context: &Context) -> Result<Digest> {
    match target {
        // It has no blobs yet.
        CopyTarget::Bundle(_) => Ok(blob.digest.clone()),
        CopyTarget::Layout(repository) => {
            let mut stream = repository.layout().open_blob(blob, 0).await?.stream;
            let mut hasher = Hasher::new(blob.digest.algorithm());
            while let Some(chunk) = stream.next_chunk().await? {
                context.clock.record_received(chunk.len() as u64);
                hasher.update(&chunk);
            }
            Ok(hasher.finish())
        }
        CopyTarget::Archive(target) => Err(target.not_readable()),
        CopyTarget::Registry(repository) => {
            let mut retry = repository.new_retry();
            loop {
                let read = async {
                    let mut stream = repository.open_blob(blob, 0).await?.stream;
                    let mut hasher = Hasher::new(blob.digest.algorithm());
                    let mut length = 0_u64;
                    while let Some(chunk) = stream.next_chunk().await? {
                        length += chunk.len() as u64;
                        if length > blob.size {
                            break;
                        }
                        hasher.update(&chunk);
                    }
                    match length {
                        length if length < blob.size => {
                            let detail = format!("the stream ended after {length} of {} bytes", blob.size);
                            Err(Error::new(ErrorKind::Unreachable, repository.read_operation(&blob.digest), detail))
                        }
                        length if length > blob.size => {
                            let detail = format!("longer than the expected {} bytes", blob.size);
                            Err(Error::new(ErrorKind::Corrupt, repository.read_operation(&blob.digest), detail))
                        }
                        _ => Ok(hasher.finish()),
                    }
                };
                match read.await {
                    Ok(found) => return Ok(found),
                    Err(error) => repository.wait_before_retry(&mut retry, error).await?,
                }
            }
        }
    }
}
