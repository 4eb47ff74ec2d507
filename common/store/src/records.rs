//! Records of a target tag, written by the task that wrote the tag. See [`TagRecorder`].

use async_trait::async_trait;

use super::{CacheScope, CachedTag, Fence};
use imgsync_model::batch::TagLocator;
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, Tag};

/// Provenance of a target tag that was just written.
#[derive(Debug, Clone, Copy)]
pub struct ProvenanceUpdate<'a> {
    /// The source tag.
    pub source: &'a TagLocator,
    /// The target tag.
    pub target: &'a TagLocator,
    /// Digest of the written manifest.
    pub digest: &'a Digest,
}

/// Everything recorded after a target tag was written.
#[derive(Debug, Clone)]
pub struct TagRecord<'a> {
    /// Provenance of the tag if it was put; `None` if it was found up to date.
    pub provenance: Option<ProvenanceUpdate<'a>>,
    /// Cache scope of the tags.
    pub scope: &'a CacheScope,
    /// Cached state of the tag and of its digest tags.
    pub tags: Vec<(Tag, CachedTag)>,
    /// A tag whose image is complete from now on: clears its mark in [`CacheScope::partial_images`].
    pub complete: Option<&'a Tag>,
}

/// Records target tags under the lease of the task that wrote them.
///
/// # Contract
/// Comparing the lease and writing the record are one step. If this holder and token no longer hold the lease, nothing
/// is written: another process may have written the tag since. The records are those of the
/// [`DigestCache`](super::DigestCache) and of [`Origins`](super::ProvenanceStore).
#[async_trait]
pub trait TagRecorder: Send + Sync {
    /// Records a tag. Returns `false` if the lease is lost and nothing was recorded.
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool>;
}
