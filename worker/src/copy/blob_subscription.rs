//! Content of a blob that a shared reader delivers.

use bytes::Bytes;
use imgsync_registry::wait::WaitClock;
use tokio::sync::mpsc;

/// Content of a blob, as read by the shared reader.
#[derive(Debug)]
pub(crate) struct BlobSubscription {
    pub(super) chunks: mpsc::Receiver<Bytes>,
    /// Clock of the reader, which the bandwidth limit may pause.
    pub(super) reader_clock: WaitClock,
    pub(super) own_clock: WaitClock,
}

impl BlobSubscription {
    /// Returns the next chunk; `None` at the end, or if the reader continues without this subscriber.
    pub(crate) async fn next_chunk(&mut self) -> Option<Bytes> {
        let before = self.reader_clock.total_pause();
        let piece = self.chunks.recv().await;
        self.own_clock.exclude(self.reader_clock.total_pause().saturating_sub(before));
        piece
    }
}
