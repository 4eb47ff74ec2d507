//! Writes one blob into an image layout; resumes from what an earlier attempt left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imgsync_bundle::CollectorRepository;
use imgsync_layout::{BlobWriter, Layout, LayoutRepository};
use imgsync_oci::Descriptor;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryState;
use imgsync_registry::event::BlobOutcome;

use super::source_stream::SourceStream;
use super::transfer::ImageTransfer;

impl ImageTransfer {
    pub(super) async fn ensure_in_layout(&self, target: &LayoutRepository, blob: &Descriptor) -> Result<BlobOutcome> {
        if target.layout().has_blob(blob).await? {
            return Ok(self.record_arrival(blob, BlobOutcome::Reused));
        }
        self.with_blob_slot(blob, |moved| self.write_blob(target.layout(), blob, moved)).await
    }

    /// Notes a blob for a bundle, after asking the source whether it is there: a bundle is not stopped by an image without
    /// a blob. What the receiver has counts as reused.
    pub(super) async fn collect_for_bundle(
        &self,
        target: &CollectorRepository,
        blob: &Descriptor,
    ) -> Result<BlobOutcome> {
        if !target.knows_blob(&blob.digest) {
            self.require_at_source(blob).await?;
        }
        let is_new = target.add_blob(blob, &self.source.provenance())?;
        let outcome = if is_new { BlobOutcome::Copied } else { BlobOutcome::Reused };
        Ok(self.record_arrival(blob, outcome))
    }

    async fn write_blob(&self, layout: &Layout, blob: &Descriptor, moved: Arc<AtomicU64>) -> Result<BlobOutcome> {
        let mut read_again = false;
        loop {
            let Some(writer) = layout.start_blob(blob).await? else { return Ok(BlobOutcome::Reused) };
            // A leftover of an earlier attempt may come from another source.
            let (is_public, is_whole) = (AtomicBool::new(writer.offset() == 0), writer.offset() == blob.size);
            match self.fill(writer, blob, &moved, &is_public).await {
                Ok(()) if is_whole => return Ok(BlobOutcome::Reused),
                Ok(()) => {
                    self.record_proof(blob, is_public.into_inner());
                    return Ok(BlobOutcome::Copied);
                }
                // The connection or the leftover may have corrupted it: retry once from the start.
                Err(error) if error.kind() == ErrorKind::Corrupt && !read_again && self.source.can_read_again() => {
                    read_again = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fill(
        &self,
        mut writer: BlobWriter,
        blob: &Descriptor,
        moved: &AtomicU64,
        is_public: &AtomicBool,
    ) -> Result<()> {
        let mut retry = self.source.retry();
        while writer.offset() < blob.size {
            if let Err(error) = self.read_into(&mut writer, blob, (moved, is_public), &mut retry).await {
                self.source.pause(&mut retry, error).await?;
            }
        }
        writer.commit().await
    }

    async fn read_into(
        &self,
        writer: &mut BlobWriter,
        blob: &Descriptor,
        (moved, is_public): (&AtomicU64, &AtomicBool),
        retry: &mut RetryState,
    ) -> Result<()> {
        let (mut stream, begins) = match self.prefetched_blob(blob) {
            Some(bytes) => (SourceStream::InMemory(Some(bytes)), 0),
            None => self.source.blob_open(blob, writer.offset(), &self.source_traffic).await?,
        };
        is_public.fetch_and(stream.is_public(), Ordering::Relaxed);
        let mut skip = writer.offset() - begins;
        loop {
            let chunk = tokio::select! {
                () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.describe_write(blob))),
                chunk = stream.next_chunk() => chunk?,
            };
            let Some(mut chunk) = chunk else {
                if writer.offset() == blob.size {
                    return Ok(());
                }
                let detail = format!("the stream ended after {} of {} bytes", writer.offset(), blob.size);
                return Err(Error::new(ErrorKind::Unreachable, self.source.describe_read(&blob.digest), detail));
            };
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            let _ = chunk.split_to(skipped);
            skip -= skipped as u64;
            if !chunk.is_empty() {
                self.context.clock.record_sent(chunk.len() as u64);
                writer.write(chunk).await?;
                retry.reset();
                moved.store(writer.offset(), Ordering::Relaxed);
            }
        }
    }
}
