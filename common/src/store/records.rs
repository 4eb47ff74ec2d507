//! What is recorded of a target tag by the task that wrote it. See [`TagRecords`].

use async_trait::async_trait;

use super::{CacheScope, Fence, Known};
use crate::batch::Place;
use crate::error::Result;
use crate::image::{Digest, Tag};

/// Which source a target tag was made from.
#[derive(Debug, Clone, Copy)]
pub struct TagOrigin<'a> {
    /// The source's tag.
    pub source: &'a Place,
    /// The target's.
    pub target: &'a Place,
    /// What was put there.
    pub digest: &'a Digest,
}

/// All that is recorded once a target tag was written.
#[derive(Debug, Clone)]
pub struct TagRecord<'a> {
    /// The provenance of the tag, where it was put; none where it was found to be right.
    pub origin: Option<TagOrigin<'a>>,
    /// Where the tags are remembered.
    pub scope: &'a CacheScope,
    /// What is known of the tag, and of the tags that belong to its image.
    pub tags: Vec<(Tag, Known)>,
    /// A tag whose image is whole from now on: that it may point at less is forgotten ([`CacheScope::parts`]).
    pub whole: Option<&'a Tag>,
}

/// Records target tags under the leases of those who wrote them.
///
/// # Contract
/// In one step the lease is compared and the record is written. Where the lease is not held any more with this holder and
/// token, nothing is written: another may have written the tag since. The records are those of the
/// [`DigestCache`](super::DigestCache) and of [`Origins`](super::Origins).
#[async_trait]
pub trait TagRecords: Send + Sync {
    /// Records a tag. False: the lease is lost, and nothing was recorded.
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool>;
}
