//! Pulling blobs (OCI distribution-spec, "Pulling blobs"), whole or from an offset.

use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use url::Url;

use super::transport::{Answer, Outgoing};
use super::{Access, Registry, Repository, hop, range};
use crate::error::{Class, Error, Result};
use crate::image::{Descriptor, Digest};
use crate::wait::WaitClock;

/// A stream of a blob's bytes.
#[derive(Debug)]
pub struct BlobStream {
    answer: Answer,
    meter: super::Meter,
    /// When the bandwidth limit allows the next read.
    more_at: Option<tokio::time::Instant>,
    tally: Arc<super::Tally>,
    clock: WaitClock,
    tried: String,
    registry: Arc<Registry>,
    /// How long a mirror is skipped after its stream breaks off.
    rest: Duration,
}

/// A blob stream and its offset.
#[derive(Debug)]
pub struct Opened {
    /// The content.
    pub stream: BlobStream,
    /// Offset of its first byte. Less than requested if the registry does not support Range.
    pub offset: u64,
}

impl BlobStream {
    /// Whether the blob is available to anybody: from a public address, without credentials.
    pub fn is_public(&self) -> bool {
        self.answer.is_public() && self.registry.settings.identity.is_none()
    }

    /// Returns the next bytes; `None` at the end, which may be premature. A stall is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        // Before the read and not after it: a caller dropped while waiting loses no bytes.
        if let Some(until) = self.more_at {
            let _pause = self.clock.pause();
            self.answer.or_cancelled(tokio::time::sleep_until(until), &self.tried).await?;
        }
        let chunk = self.answer.chunk(&self.tried).await.inspect_err(|error| {
            if !error.is_cancelled() && !error.is_untaken() {
                self.registry.failed(self.rest);
            }
        })?;
        if let Some(chunk) = &chunk {
            self.tally.received(chunk.len() as u64);
            self.clock.received(chunk.len() as u64);
            self.more_at = self.meter.note(chunk.len());
        }
        Ok(chunk)
    }
}

impl Repository {
    /// Returns the text for reading a blob, for messages.
    pub fn reading(&self, digest: &Digest) -> String {
        format!("reading blob {}@{digest}", self.label())
    }

    /// Checks whether a blob exists. Some registries answer 401 or 403 for missing blobs: with push access that counts
    /// as missing, and the push shows whether access is denied.
    pub async fn blob_head(&self, digest: &Digest) -> Result<bool> {
        let tried = format!("asking for blob {}@{digest}", self.label());
        let asked = self.with_retries(|| async {
            let url = self.url(&format!("blobs/{digest}"));
            let answer = self.send(Outgoing::new(Method::HEAD, url, &tried)).await?;
            match answer.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(self.refusal(answer, &tried).await),
            }
        });
        match asked.await {
            Err(error) if self.access == Access::Push && error.class() == Class::Denied => Ok(false),
            asked => asked,
        }
    }

    /// Whether this repository, or a mirror, confirms that it has a blob. A failed request is no confirmation and no
    /// error: the blob is read then.
    pub async fn shows_blob(&self, digest: &Digest) -> Result<bool> {
        let at_mirror = |mirror: Repository| async move {
            match mirror.blob_head(digest).await? {
                true => Ok(()),
                false => Err(Error::new(Class::NotFound, "asking a mirror for a blob", "it is not there")),
            }
        };
        if self.has_mirrors() && Box::pin(self.at_mirrors(at_mirror)).await?.is_some() {
            return Ok(true);
        }
        match self.blob_head(digest).await {
            Err(error) if error.is_cancelled() => Err(error),
            found => Ok(found.unwrap_or(false)),
        }
    }

    /// Opens a blob at an offset, once: the caller decides about retries. Fails immediately if the registry reports
    /// another size than the descriptor.
    pub async fn blob_open(&self, blob: &Descriptor, offset: u64) -> Result<Opened> {
        let at_mirror = |mirror: Repository| async move { mirror.blob_open_here(blob, offset).await };
        if self.has_mirrors()
            && let Some(opened) = Box::pin(self.at_mirrors(at_mirror)).await?
        {
            return Ok(opened);
        }
        match self.blob_open_here(blob, offset).await {
            Err(error) if error.class() == Class::NotFound && blob.media_type.is_foreign_layer() => {
                self.foreign_open(blob, offset, error).await
            }
            opened => opened,
        }
    }

    /// Opens a foreign layer at the first of its URLs that has it. Sends no credentials, and reaches only addresses
    /// that a redirect could.
    async fn foreign_open(&self, blob: &Descriptor, offset: u64, missing: Error) -> Result<Opened> {
        let mut failure = missing;
        for written in &blob.urls {
            let tried = format!("{} at a URL that the manifest names", self.reading(&blob.digest));
            let url = written
                .parse::<Url>()
                .map_err(|error| Error::new(Class::BadAnswer, &tried, format!("`{written}` is no URL")).because(error));
            let opened = async {
                let (from, reach) = (&self.registry.base, self.reach());
                let url = hop::check(from, url?, reach, self.registry.settings.allowed(), "foreign layer")?;
                self.blob_open_at(url, blob, offset, tried).await
            };
            match opened.await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => failure = error,
            }
        }
        Err(failure.hint("`foreign_layers: keep` leaves such layers where they are"))
    }

    async fn blob_open_here(&self, blob: &Descriptor, offset: u64) -> Result<Opened> {
        self.blob_open_at(self.url(&format!("blobs/{}", blob.digest)), blob, offset, self.reading(&blob.digest)).await
    }

    /// Opens a blob at an offset in the ways that registries support, the usual one first: some answer an open range
    /// with 416 although bytes are left and accept a closed one; some support no ranges. At offset 0 there is one way.
    async fn blob_open_at(&self, url: Url, blob: &Descriptor, offset: u64, tried: String) -> Result<Opened> {
        let open = (offset > 0).then(|| format!("bytes={offset}-"));
        let closed = open.as_ref().map(|open| format!("{open}{}", blob.size.saturating_sub(1)));
        for range in [open, closed].into_iter().flatten() {
            if let Some(opened) = self.blob_open_range(url.clone(), blob, (offset, Some(&range)), &tried).await? {
                return Ok(opened);
            }
        }
        let whole = self.blob_open_range(url, blob, (0, None), &tried).await?;
        whole.ok_or_else(|| {
            Error::new(Class::BadAnswer, &tried, "the registry answers a request for all of it with 416")
        })
    }

    /// Opens a blob, or a range of it. Returns `None` if the registry does not accept the range: the whole blob shows
    /// what it has.
    async fn blob_open_range(
        &self,
        url: Url,
        blob: &Descriptor,
        (offset, range): (u64, Option<&str>),
        tried: &str,
    ) -> Result<Option<Opened>> {
        let mut request = Outgoing::new(Method::GET, url, tried);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let answer = self.send(request).await?;
        let lies = |says: u64| {
            let detail = format!("the manifest gives it {} bytes, the registry {says}", blob.size);
            Error::new(Class::Corrupt, tried, detail)
        };
        let said = answer.text_header(header::CONTENT_RANGE).and_then(range::parse_content_range);
        let begins = match (answer.status(), said) {
            // Some send a part with `Content-Range` and status 200.
            (StatusCode::OK, Some((first, _, _))) if first > 0 && first <= offset => first,
            (StatusCode::OK, _) => {
                if let Some(length) = answer.content_length().filter(|length| *length != blob.size) {
                    return Err(lies(length));
                }
                0
            }
            (StatusCode::PARTIAL_CONTENT, Some((_, _, Some(total)))) if total != blob.size => return Err(lies(total)),
            (StatusCode::PARTIAL_CONTENT, Some((first, _, _))) if first <= offset => first,
            // Another range than requested: the whole blob cannot be misread.
            (StatusCode::PARTIAL_CONTENT, Some(_)) if range.is_some() => return Ok(None),
            (StatusCode::PARTIAL_CONTENT, Some((first, _, _))) => {
                let detail = format!("asked for all of it, got bytes from {first}");
                return Err(Error::new(Class::BadAnswer, tried, detail));
            }
            (StatusCode::PARTIAL_CONTENT, None) => offset,
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => return Ok(None),
            (StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED, _) if range.is_some() => return Ok(None),
            _ => return Err(self.refusal(answer, tried).await),
        };
        let tried = tried.to_owned();
        let (meter, tally, clock) = (self.registry.meters[0].clone(), self.tally.clone(), self.context.clock.clone());
        let (registry, rest) = (self.registry.clone(), self.client.0.settings.mirror_rest);
        let stream = BlobStream { answer, meter, more_at: None, tally, clock, tried, registry, rest };
        Ok(Some(Opened { stream, offset: begins }))
    }
}
