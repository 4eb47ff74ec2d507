//! Where the blobs of a bundle come from: the sources of its images, with retries, and what was already written.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, try_unfold};
use imgsync_archive::{ArchiveSource, ContentStream};
use imgsync_bundle::{BundleCollector, WrittenParts};
use imgsync_layout::{ArchiveRef, Layout, LayoutRef};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryState;
use imgsync_oci::{ArchiveFormat, Descriptor, Digest, Reference};
use imgsync_registry::{Access, BlobStream, Client, Context, Repository, TrafficCounters};

/// Bytes read back at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads the content of a bundle.
pub(crate) struct BlobSource {
    collector: BundleCollector,
    client: Client,
    context: Context,
    counters: Arc<TrafficCounters>,
    /// The blob of which an earlier call has written the beginning.
    partly_written: Mutex<Option<PartlyWrittenBlob>>,
}

/// A blob of which the beginning is written.
pub(crate) struct PartlyWrittenBlob {
    pub(crate) digest: Digest,
    /// Offset of its first byte in the bundle.
    pub(crate) start: u64,
    /// Number of bytes that are written.
    pub(crate) length: u64,
    pub(crate) parts: WrittenParts,
}

impl BlobSource {
    pub(crate) fn new(collector: BundleCollector, client: Client, context: Context) -> BlobSource {
        let counters = TrafficCounters::new();
        BlobSource { collector, client, context, counters, partly_written: Mutex::default() }
    }

    /// Reads the beginning of a blob from what is written.
    pub(crate) fn with_partly_written(self, partly_written: Option<PartlyWrittenBlob>) -> BlobSource {
        BlobSource { partly_written: Mutex::new(partly_written), ..self }
    }

    /// Returns the counters of the sources.
    pub(crate) fn counters(&self) -> &Arc<TrafficCounters> {
        &self.counters
    }

    async fn open_at(&self, blob: &Descriptor, source: &str, offset: u64) -> Result<ContentStream> {
        if let Some(inline) = blob.inline() {
            let rest = inline.slice(usize::try_from(offset).unwrap_or(usize::MAX).min(inline.len())..);
            return Ok(futures_util::stream::once(async move { Ok(rest) }).boxed());
        }
        if LayoutRef::has_scheme(source) {
            let folder = PathBuf::from(&source["oci:".len()..]);
            let opened = Layout::open(folder).await?.open_blob(blob, offset).await?;
            return Ok(opened.stream.into_stream().boxed());
        }
        for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
            if let Some(file) = source.strip_prefix(format.scheme()) {
                let archive = ArchiveRef { format, file: file.into(), image: None };
                let opened = Layout::open_archive_file(&archive).await?.open_blob(blob, offset).await?;
                return Ok(opened.stream.into_stream().boxed());
            }
        }
        let invalid =
            || Error::new(ErrorKind::Local, "reading the bundle's plan", format!("`{source}` is no repository"));
        let Reference { registry, repository, .. } = source.parse().map_err(|_| invalid())?;
        let repository = self.client.repository(&registry, &repository, Access::Pull, &self.context, &self.counters)?;
        let retry = repository.new_retry();
        let stream = ResumingStream { repository, blob: blob.clone(), offset, opened: None, retry };
        Ok(try_unfold(stream, |mut stream| async move { Ok(stream.next_chunk().await?.map(|chunk| (chunk, stream))) })
            .boxed())
    }
}

#[async_trait]
impl ArchiveSource for BlobSource {
    async fn read_manifest(&self, digest: &Digest) -> Result<Bytes> {
        let bytes = self.collector.manifest_bytes(digest)?;
        bytes.ok_or_else(|| Error::new(ErrorKind::Local, format!("reading {digest}"), "it was not collected"))
    }

    async fn open_blob(&self, digest: &Digest, _size: u64) -> Result<ContentStream> {
        let Some(blob) = self.collector.blob(digest) else {
            return Err(Error::new(ErrorKind::Local, format!("reading {digest}"), "it was not collected"));
        };
        let partly_written = {
            let mut partly_written = self.partly_written.lock().unwrap_or_else(PoisonError::into_inner);
            // Once: if the content turns out to be wrong, it is read again.
            partly_written.take_if(|partly_written| partly_written.digest == *digest)
        };
        let Some(partly_written) = partly_written else { return self.open_at(&blob.descriptor, &blob.source, 0).await };
        let length = partly_written.length;
        let before = read_back(partly_written);
        if length == blob.descriptor.size {
            return Ok(before);
        }
        let rest = self.open_at(&blob.descriptor, &blob.source, length).await?;
        Ok(before.chain(rest).boxed())
    }
}

fn read_back(partly_written: PartlyWrittenBlob) -> BoxStream<'static, Result<Bytes>> {
    try_unfold((partly_written, 0), |(partly_written, read)| async move {
        let left = usize::try_from(partly_written.length - read).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        if left == 0 {
            return Ok(None);
        }
        let bytes = partly_written.parts.read(partly_written.start + read, left)?;
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::Corrupt, "reading back the bundle", "it is shorter than before"));
        }
        let read = read + bytes.len() as u64;
        Ok(Some((Bytes::from(bytes), (partly_written, read))))
    })
    .boxed()
}

/// A blob of a registry that is read on after an interruption.
struct ResumingStream {
    repository: Repository,
    blob: Descriptor,
    offset: u64,
    /// The open response, and how many of its bytes are skipped.
    opened: Option<(BlobStream, u64)>,
    retry: RetryState,
}

impl ResumingStream {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.offset >= self.blob.size {
                return Ok(None);
            }
            match self.read().await {
                Ok(chunk) => {
                    self.offset += chunk.len() as u64;
                    self.retry.reset();
                    return Ok(Some(chunk));
                }
                Err(error) => {
                    self.opened = None;
                    self.repository.wait_before_retry(&mut self.retry, error).await?;
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes> {
        let (stream, skip) = match &mut self.opened {
            Some(opened) => opened,
            None => {
                let opened = self.repository.open_blob(&self.blob, self.offset).await?;
                self.opened.insert((opened.stream, self.offset - opened.offset))
            }
        };
        loop {
            let Some(mut chunk) = stream.next_chunk().await? else {
                let detail = format!("the stream ended after {} of {} bytes", self.offset, self.blob.size);
                let operation = self.repository.read_operation(&self.blob.digest);
                return Err(Error::new(ErrorKind::Unreachable, operation, detail));
            };
            let skipped = chunk.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
            let _ = chunk.split_to(skipped);
            *skip -= skipped as u64;
            if !chunk.is_empty() {
                return Ok(chunk);
            }
        }
    }
}
