//! Writes one blob into an image layout; resumes from what an earlier attempt left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Arrival;
use imgsync_common::image::Descriptor;
use imgsync_common::layout::{BlobWriter, Layout};
use imgsync_common::retry::Retry;

use super::ends::{BlobStream, Target};
use super::walk::Walk;

impl Walk {
    pub(super) async fn bring_to_layout(&self, blob: &Descriptor) -> Result<Arrival> {
        let Target::Layout(target) = &self.target else { return Err(Error::cancelled(self.writing(blob))) };
        if target.layout().has_blob(blob).await? {
            return Ok(self.arrived(blob, Arrival::Reused));
        }
        self.with_slot(blob, |moved| self.write_to(target.layout(), blob, moved)).await
    }

    async fn write_to(&self, layout: &Layout, blob: &Descriptor, moved: Arc<AtomicU64>) -> Result<Arrival> {
        let mut read_again = false;
        loop {
            let Some(writer) = layout.blob_start(blob).await? else { return Ok(Arrival::Reused) };
            // A leftover of an earlier attempt may come from another source.
            let (is_public, is_whole) = (AtomicBool::new(writer.offset() == 0), writer.offset() == blob.size);
            match self.fill(writer, blob, &moved, &is_public).await {
                Ok(()) if is_whole => return Ok(Arrival::Reused),
                Ok(()) => {
                    self.learn_proof(blob, is_public.into_inner());
                    return Ok(Arrival::Copied);
                }
                // The connection or the leftover may have corrupted it: retry once from the start.
                Err(error) if error.class() == Class::Corrupt && !read_again => read_again = true,
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
        retry: &mut Retry,
    ) -> Result<()> {
        let (mut stream, begins) = match self.read_already(blob) {
            Some(bytes) => (BlobStream::Held(Some(bytes)), 0),
            None => self.source.blob_open(blob, writer.offset(), &self.source_tally).await?,
        };
        is_public.fetch_and(stream.is_public(), Ordering::Relaxed);
        let mut skip = writer.offset() - begins;
        loop {
            let chunk = tokio::select! {
                () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.writing(blob))),
                chunk = stream.chunk() => chunk?,
            };
            let Some(mut chunk) = chunk else {
                if writer.offset() == blob.size {
                    return Ok(());
                }
                let detail = format!("the stream ended after {} of {} bytes", writer.offset(), blob.size);
                return Err(Error::new(Class::Unreachable, self.source.reading(&blob.digest), detail));
            };
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            let _ = chunk.split_to(skipped);
            skip -= skipped as u64;
            if !chunk.is_empty() {
                self.context.clock.sent(chunk.len() as u64);
                writer.write(chunk).await?;
                retry.progressed();
                moved.store(writer.offset(), Ordering::Relaxed);
            }
        }
    }
}
