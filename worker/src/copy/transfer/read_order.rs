//! Transfers the blobs of an image in the order in which an archive that can only be read forward has them. Read in the
//! order of the manifests, it would be read from its beginning for almost every blob.

use std::collections::HashSet;

use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, Manifest};

use super::{ImageTransfer, MAX_INDEX_DEPTH};

/// Content of an image.
#[derive(Default)]
pub(super) struct CollectedContent {
    pub(super) blobs: Vec<Descriptor>,
    pub(super) manifests: Vec<Digest>,
    /// Entries of indexes that are no manifests.
    pub(super) other_entries: Vec<Descriptor>,
}

impl ImageTransfer {
    /// Transfers all blobs of an image, one after another in the order of the archive, if its source can only be read
    /// forward. Several images take turns, and the wait does not count for their time limits. The ordinary transfer then finds them done.
    pub(super) async fn transfer_in_order(&self, root: &Manifest) -> Result<()> {
        let Some(layout) = self.source.sequential_layout() else { return Ok(()) };
        let mut blobs = self.collect_content(root).await.blobs;
        layout.sort_for_reading(&mut blobs);
        for blob in &blobs {
            let waiting = self.context.clock.pause();
            let _turn = layout.take_turn(&blob.digest).await;
            drop(waiting);
            self.ensure_blob(blob).await?;
        }
        Ok(())
    }

    /// Collects the content of a manifest and of everything in its index. A manifest that cannot be read is an error of
    /// the ordinary transfer.
    pub(super) async fn collect_content(&self, root: &Manifest) -> CollectedContent {
        let (mut content, mut seen) = (CollectedContent::default(), HashSet::new());
        let mut open = vec![(root.clone(), 0)];
        while let Some((manifest, depth)) = open.pop() {
            content.manifests.push(manifest.digest().clone());
            let found = self.blobs_of(&manifest).into_iter();
            content.blobs.extend(found.filter(|blob| seen.insert(blob.digest.clone())).cloned());
            if depth >= MAX_INDEX_DEPTH {
                continue;
            }
            for child in self.children_of(&manifest).into_iter().filter(|child| seen.insert(child.digest.clone())) {
                match self.source.child_manifest(child).await {
                    Ok(manifest) => open.push((manifest, depth + 1)),
                    Err(_) if child.media_type.names_a_manifest() => {}
                    Err(_) => content.other_entries.push(child.clone()),
                }
            }
        }
        content
    }
}
