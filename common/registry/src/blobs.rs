//! Pulling blobs (OCI distribution-spec, "Pulling blobs"), whole or from an offset.

use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use url::Url;

use super::transport::{RequestSpec, Response};
use super::{Access, Registry, Repository, range, ssrf};
use crate::wait::WaitClock;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest};

/// A stream of a blob's bytes.
#[derive(Debug)]
pub struct BlobStream {
    response: Response,
    meter: super::BandwidthMeter,
    /// When the bandwidth limit allows the next read.
    resume_at: Option<tokio::time::Instant>,
    counters: Arc<super::TrafficCounters>,
    clock: WaitClock,
    operation: String,
    registry: Arc<Registry>,
    /// How long a mirror is skipped after its stream breaks off.
    mirror_backoff: Duration,
}

/// A blob stream and its offset.
#[derive(Debug)]
pub struct OpenBlob {
    /// The content.
    pub stream: BlobStream,
    /// Offset of its first byte. Less than requested if the registry does not support Range.
    pub offset: u64,
}

impl BlobStream {
    /// Whether the blob is available to anybody: from a public address, without credentials.
    pub fn is_public(&self) -> bool {
        self.response.is_public() && self.registry.settings.identity.is_none()
    }

    /// Returns the next bytes; `None` at the end, which may be premature. A stall is an error.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        // Before the read and not after it: a caller dropped while waiting loses no bytes.
        if let Some(until) = self.resume_at {
            let _pause = self.clock.pause();
            self.response.or_cancelled(tokio::time::sleep_until(until), &self.operation).await?;
        }
        let chunk = self.response.next_chunk(&self.operation).await.inspect_err(|error| {
            if !error.is_cancelled() && !error.is_unprocessed() {
                self.registry.record_mirror_failure(self.mirror_backoff);
            }
        })?;
        if let Some(chunk) = &chunk {
            self.counters.record_received(chunk.len() as u64);
            self.clock.record_received(chunk.len() as u64);
            self.resume_at = self.meter.record(chunk.len());
        }
        Ok(chunk)
    }
}

impl Repository {
    /// Returns the text for reading a blob, for messages.
    pub fn read_operation(&self, digest: &Digest) -> String {
        format!("reading blob {}@{digest}", self.label())
    }

    /// Checks whether a blob exists. Some registries answer 401 or 403 for missing blobs: with push access that counts
    /// as missing, and the push shows whether access is denied.
    pub async fn head_blob(&self, digest: &Digest) -> Result<bool> {
        let operation = format!("checking blob {}@{digest}", self.label());
        let exists = self.with_retries(|| async {
            let url = self.url(&format!("blobs/{digest}"));
            let response = self.send(RequestSpec::new(Method::HEAD, url, &operation)).await?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(self.error_from_response(response, &operation).await),
            }
        });
        match exists.await {
            Err(error) if self.access == Access::Push && error.kind() == ErrorKind::Denied => Ok(false),
            exists => exists,
        }
    }

    /// Whether this repository, or a mirror, confirms that it has a blob. A failed request is no confirmation and no
    /// error: the blob is read then.
    pub async fn confirms_blob(&self, digest: &Digest) -> Result<bool> {
        let at_mirror = |mirror: Repository| async move {
            match mirror.head_blob(digest).await? {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::NotFound, "checking a mirror for a blob", "not found")),
            }
        };
        if self.has_mirrors() && Box::pin(self.try_mirrors(at_mirror)).await?.is_some() {
            return Ok(true);
        }
        match self.head_blob(digest).await {
            Err(error) if error.is_cancelled() => Err(error),
            found => Ok(found.unwrap_or(false)),
        }
    }

    /// Opens a blob at an offset, once: the caller decides about retries. Fails immediately if the registry reports
    /// another size than the descriptor.
    pub async fn open_blob(&self, blob: &Descriptor, offset: u64) -> Result<OpenBlob> {
        let at_mirror = |mirror: Repository| async move { mirror.open_blob_here(blob, offset).await };
        if self.has_mirrors()
            && let Some(opened) = Box::pin(self.try_mirrors(at_mirror)).await?
        {
            return Ok(opened);
        }
        match self.open_blob_here(blob, offset).await {
            Err(error) if error.kind() == ErrorKind::NotFound && blob.media_type.is_foreign_layer() => {
                self.open_foreign_layer(blob, offset, error).await
            }
            opened => opened,
        }
    }

    /// Opens a foreign layer at the first of its URLs that has it. Sends no credentials, and reaches only addresses
    /// that a redirect could.
    async fn open_foreign_layer(&self, blob: &Descriptor, offset: u64, missing: Error) -> Result<OpenBlob> {
        let mut failure = missing;
        for written in &blob.urls {
            let operation = format!("{} at a URL that the manifest names", self.read_operation(&blob.digest));
            let url = written.parse::<Url>().map_err(|error| {
                Error::new(ErrorKind::InvalidResponse, &operation, format!("`{written}` is no URL")).with_source(error)
            });
            let opened = async {
                let (from, scope) = (&self.registry.base, self.network_scope());
                let url = ssrf::validate_url(from, url?, scope, self.registry.settings.allowed(), "foreign layer")?;
                self.open_blob_at(url, blob, offset, operation).await
            };
            match opened.await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => failure = error,
            }
        }
        Err(failure.with_hint("`foreign_layers: keep` does not copy such layers"))
    }

    async fn open_blob_here(&self, blob: &Descriptor, offset: u64) -> Result<OpenBlob> {
        self.open_blob_at(self.url(&format!("blobs/{}", blob.digest)), blob, offset, self.read_operation(&blob.digest))
            .await
    }

    /// Opens a blob at an offset in the ways that registries support, the usual one first: some answer an open range
    /// with 416 although bytes are left and accept a closed one; some support no ranges. At offset 0 there is one way.
    async fn open_blob_at(&self, url: Url, blob: &Descriptor, offset: u64, operation: String) -> Result<OpenBlob> {
        let open = (offset > 0).then(|| format!("bytes={offset}-"));
        let closed = open.as_ref().map(|open| format!("{open}{}", blob.size.saturating_sub(1)));
        for range in [open, closed].into_iter().flatten() {
            if let Some(opened) = self.open_blob_range(url.clone(), blob, (offset, Some(&range)), &operation).await? {
                return Ok(opened);
            }
        }
        let whole = self.open_blob_range(url, blob, (0, None), &operation).await?;
        whole.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidResponse,
                &operation,
                "the registry answers a request for the whole blob with 416",
            )
        })
    }

    /// Opens a blob, or a range of it. Returns `None` if the registry does not accept the range: the whole blob shows
    /// what it has.
    async fn open_blob_range(
        &self,
        url: Url,
        blob: &Descriptor,
        (offset, range): (u64, Option<&str>),
        operation: &str,
    ) -> Result<Option<OpenBlob>> {
        let mut request = RequestSpec::new(Method::GET, url, operation);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let response = self.send(request).await?;
        let lies = |says: u64| {
            let detail = format!("the manifest says {} bytes, the registry {says}", blob.size);
            Error::new(ErrorKind::Corrupt, operation, detail)
        };
        let content_range = response.text_header(header::CONTENT_RANGE).and_then(range::parse_content_range);
        let begins = match (response.status(), content_range) {
            // Some send a part with `Content-Range` and status 200.
            (StatusCode::OK, Some((first, _, _))) if first > 0 && first <= offset => first,
            (StatusCode::OK, _) => {
                if let Some(length) = response.content_length().filter(|length| *length != blob.size) {
                    return Err(lies(length));
                }
                0
            }
            (StatusCode::PARTIAL_CONTENT, Some((_, _, Some(total)))) if total != blob.size => return Err(lies(total)),
            (StatusCode::PARTIAL_CONTENT, Some((first, _, _))) if first <= offset => first,
            // Another range than requested: the whole blob cannot be misread.
            (StatusCode::PARTIAL_CONTENT, Some(_)) if range.is_some() => return Ok(None),
            (StatusCode::PARTIAL_CONTENT, Some((first, _, _))) => {
                let detail = format!("requested the whole blob, got bytes from {first}");
                return Err(Error::new(ErrorKind::InvalidResponse, operation, detail));
            }
            (StatusCode::PARTIAL_CONTENT, None) => offset,
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => return Ok(None),
            (StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED, _) if range.is_some() => return Ok(None),
            _ => return Err(self.error_from_response(response, operation).await),
        };
        let operation = operation.to_owned();
        let (meter, counters, clock) =
            (self.registry.meters[0].clone(), self.counters.clone(), self.context.clock.clone());
        let (registry, mirror_backoff) = (self.registry.clone(), self.client.0.settings.mirror_backoff);
        let stream =
            BlobStream { response, meter, resume_at: None, counters, clock, operation, registry, mirror_backoff };
        Ok(Some(OpenBlob { stream, offset: begins }))
    }
}
