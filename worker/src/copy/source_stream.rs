//! Content of blobs: [`SourceStream`].

use std::sync::Arc;

use bytes::Bytes;
use imgsync_bundle::BundleBlobStream;
use imgsync_oci::error::Result;
use imgsync_registry::TrafficCounters;

use super::blob_subscription::BlobSubscription;

/// Stream of a blob's content.
pub(crate) enum SourceStream {
    Registry(Box<imgsync_registry::BlobStream>),
    Layout(imgsync_layout::LayoutBlobStream, Arc<TrafficCounters>),
    Bundle(BundleBlobStream, Arc<TrafficCounters>),
    /// Chunks from a reader shared with other copies; that reader counts the traffic.
    Shared(BlobSubscription),
    /// Content that needs no read.
    InMemory(Option<Bytes>),
    /// Content from a registry or, if that is empty, the descriptor's inline data.
    WithInlineFallback(Box<imgsync_registry::BlobStream>, Option<Bytes>),
}

impl SourceStream {
    /// Whether the blob is known to be public; false for a shared reader, where that is unknown.
    pub(crate) fn is_public(&self) -> bool {
        matches!(self, SourceStream::Registry(stream) if stream.is_public())
    }

    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            SourceStream::Registry(stream) => stream.next_chunk().await,
            SourceStream::Layout(stream, counters) => {
                let chunk = stream.next_chunk().await?;
                counters.record_received(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                Ok(chunk)
            }
            SourceStream::Bundle(stream, counters) => {
                let chunk = stream.next_chunk().await?;
                if let BundleBlobStream::Bundle(_) = stream {
                    counters.record_received(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                }
                Ok(chunk)
            }
            SourceStream::Shared(share) => Ok(share.next_chunk().await),
            SourceStream::InMemory(bytes) => Ok(bytes.take()),
            SourceStream::WithInlineFallback(stream, inline) => match stream.next_chunk().await? {
                Some(chunk) => {
                    if !chunk.is_empty() {
                        *inline = None;
                    }
                    Ok(Some(chunk))
                }
                None => Ok(inline.take()),
            },
        }
    }
}
