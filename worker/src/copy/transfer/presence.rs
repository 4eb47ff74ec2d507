//! Whether the target has an image under another tag, found out by a blob that hardly any other image has.

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, Manifest};
use imgsync_registry::ManifestRef;
use imgsync_registry::event::BlobOutcome;

use super::{ImageTransfer, MAX_INDEX_DEPTH, is_large};

/// Config shared by all artifacts without one: its presence proves nothing.
const EMPTY_CONFIG_DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

impl ImageTransfer {
    /// Transfers the content of the root, unless the target has the root under another tag. Does not wait until the
    /// blob that shows its absence is transferred: the rest is transferred at the same time.
    pub(super) async fn ensure_content_unless_present(&self, root: &Manifest) -> Result<()> {
        let mut checking = Box::pin(self.is_present(root));
        let checked = tokio::select! {
            biased;
            checked = &mut checking => Some(checked?),
            () = self.probe_absent.notified() => None,
        };
        match checked {
            Some(true) => Ok(()),
            Some(false) => self.ensure_content(root, 0).await,
            None => {
                let checking: BoxFuture<'_, Result<()>> = Box::pin(async { checking.await.map(drop) });
                let work = [checking, self.ensure_content(root, 0)];
                self.run_all(work.into_iter().collect::<FuturesUnordered<_>>()).await
            }
        }
    }

    /// Whether the target has the root under another tag. Asks only if the first image's config is already at the
    /// target, so a new image costs no extra request.
    async fn is_present(&self, root: &Manifest) -> Result<bool> {
        if self.is_manifest_cached(root.digest()) {
            return Ok(true);
        }
        let mut leaf = root.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let children = self.children_of(&leaf);
            let Some(child) = children.iter().find(|child| child.media_type.names_a_manifest()) else { break };
            let child = (*child).clone();
            leaf = self.child_manifest(&child).await?;
        }
        let Some(probe) = self.probe_blob(&leaf) else { return Ok(false) };
        let has_large_blob = self.blobs_of(&leaf).into_iter().any(is_large);
        if !has_large_blob {
            let _ = self.probe.set(probe.digest.clone());
        }
        match self.ensure_blob_unproved(probe).await? {
            BlobOutcome::Reused => self.has_manifest(root.digest()).await,
            // An upload proves nothing at a registry that accepts content it already has. A request pays off if there
            // is much to upload.
            BlobOutcome::Copied if has_large_blob => {
                Ok(!self.mounts_are_reliable().await? && self.has_manifest(root.digest()).await?)
            }
            // Mounted from the source repository in the same registry: says nothing about the rest.
            BlobOutcome::Mounted | BlobOutcome::Copied => Ok(false),
        }
    }

    /// Records that the target lacks a blob.
    pub(super) fn record_absence(&self, blob: &Descriptor) {
        if self.probe.get() == Some(&blob.digest) {
            self.probe_absent.notify_one();
        }
    }

    pub(super) async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        Ok(self.target.manifest_head(&ManifestRef::Digest(digest.clone())).await?.is_some())
    }

    /// Returns the blob least likely to be at the target unless its whole image is.
    pub(super) fn probe_blob<'m>(&self, leaf: &'m Manifest) -> Option<&'m Descriptor> {
        self.blobs_of(leaf).into_iter().find(|blob| blob.digest.to_string() != EMPTY_CONFIG_DIGEST)
    }
}
