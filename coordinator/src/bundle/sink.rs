//! Where the bytes of a bundle go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use imgsync_archive::{ArchiveSink, SinkOutput};
use imgsync_bundle::{BundlePart, PartWriter};
use imgsync_oci::error::Result;

/// The parts of a bundle. The last one stays incomplete until the end is reached.
pub(crate) struct PartOutput(pub(crate) PartWriter);

impl SinkOutput for PartOutput {
    type Output = Vec<BundlePart>;

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)
    }

    fn rewind(&mut self, offset: u64) -> Result<bool> {
        self.0.rewind(offset).map(|()| true)
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<BundlePart>> {
        self.0.finish().map(<[BundlePart]>::to_vec)
    }
}

/// Counts the bytes that go to another sink.
pub(crate) struct CountingSink<'a, S> {
    /// The other sink.
    pub(crate) inner: &'a mut S,
    /// Bytes of the archive that are written.
    pub(crate) written: Arc<AtomicU64>,
}

#[async_trait]
impl<S: ArchiveSink> ArchiveSink for CountingSink<'_, S> {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.inner.write(bytes).await?;
        self.written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    async fn rewind(&mut self, offset: u64) -> Result<bool> {
        let rewound = self.inner.rewind(offset).await?;
        if rewound {
            self.written.store(offset, Ordering::Relaxed);
        }
        Ok(rewound)
    }
}
