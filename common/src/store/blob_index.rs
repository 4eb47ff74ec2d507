//! Where blobs are at targets. See [`BlobIndex`].

use std::time::Duration;

use async_trait::async_trait;

use crate::batch::{End, Home};
use crate::error::Result;
use crate::image::Digest;

/// How long a generation of the index is. What is in it is remembered for one, and forgotten after two.
pub const BLOB_GENERATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Remembers for each target a repository that has a blob, so that it can be mounted from there.
///
/// # Contract
/// A hint, of bounded age: where a blob turns out not to be, it is forgotten, and looked for or uploaded.
#[async_trait]
pub trait BlobIndex: Send + Sync {
    /// A repository at this end for each of these blobs, in their order.
    async fn blob_homes(&self, end: &End, blobs: &[Digest]) -> Result<Vec<Option<Home>>>;

    /// These blobs are in this repository.
    async fn learn_blobs(&self, home: &Home, blobs: &[Digest]) -> Result<()>;

    /// A blob is not in this repository, as was thought. What is known of it elsewhere stays.
    async fn forget_blob(&self, home: &Home, blob: &Digest) -> Result<()>;
}
