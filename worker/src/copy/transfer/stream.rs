//! Transfers the blobs of an archive that comes out of a pipe: each while it passes, for it does not come again.

use std::collections::{HashMap, HashSet};

use imgsync_layout::Layout;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest};
use imgsync_registry::FallbackTag;
use imgsync_registry::event::BlobOutcome;

use super::super::endpoints::{CopySource, CopyTarget};
use super::super::referrers::MAX_REFERRERS;
use super::ImageTransfer;

impl CopySource {
    /// Returns the layout of an archive that comes out of a pipe.
    pub(crate) fn streamed_layout(&self) -> Option<&Layout> {
        match self {
            CopySource::Layout(repository) if repository.layout().is_stream() => Some(repository.layout()),
            _ => None,
        }
    }

    /// Whether a blob that was read can be read again.
    pub(crate) fn can_read_again(&self) -> bool {
        self.streamed_layout().is_none()
    }

    /// Returns a copy of the error for which an upload is repeated, if that may be impossible.
    pub(super) fn record_interruption(&self, error: &Error) -> Option<Error> {
        (!self.can_read_again()).then(|| Error::new(error.kind(), error.operation(), error.message()))
    }

    /// Returns why an upload was to be repeated, in place of the error that the pipe cannot go back.
    pub(super) fn explain_passed(&self, error: Error, interruption: Option<Error>) -> Error {
        match interruption {
            Some(interruption) if error.kind() == ErrorKind::Unsupported => interruption
                .with_hint("what was sent has left the pipe; save the archive to a file, or give --spool DIR"),
            _ => error,
        }
    }
}

impl ImageTransfer {
    /// Transfers the blobs of an image and of its referrers in the order in which they come out of a pipe, which is read
    /// to its end. `with_content`: the target does not have the image itself. The ordinary transfer then finds them done.
    pub(in super::super) async fn transfer_streamed(&self, root: &Manifest, with_content: bool) -> Result<()> {
        let Some(layout) = self.source.streamed_layout() else { return Ok(()) };
        if matches!(self.target, CopyTarget::Archive(_) | CopyTarget::Bundle(_)) {
            // They only remember where the blobs are.
            return Ok(());
        }
        let mut wanted = self.collect_wanted(layout, root, with_content).await?;
        loop {
            // The pipe has a limit of its own.
            let waiting = self.context.clock.pause();
            let next = tokio::select! {
                biased;
                () = self.context.cancel.cancelled() => Err(Error::cancelled(self.source.describe_read(root.digest()))),
                next = layout.next_streamed_blob() => next,
            };
            drop(waiting);
            let Some(digest) = next? else { return Ok(()) };
            let Some(blob) = wanted.remove(&digest) else { continue };
            if self.ensure_blob_unproved(&blob).await? == BlobOutcome::Reused {
                let _reading = self.context.clock.pause();
                self.prove(&blob).await?;
            }
            layout.record_streamed_blob(&digest).await;
        }
    }

    /// Collects the blobs that are read from the pipe. Those that came before the first layer are in memory.
    async fn collect_wanted(
        &self,
        layout: &Layout,
        root: &Manifest,
        with_content: bool,
    ) -> Result<HashMap<Digest, Descriptor>> {
        let content = self.collect_content(root).await;
        let mut wanted: Vec<Descriptor> = Vec::new();
        if with_content {
            wanted.extend(content.blobs);
            for entry in content.other_entries.into_iter().filter(|entry| !layout.is_in_memory(&entry.digest)) {
                self.record_listed_blob(&entry, None);
                wanted.push(entry);
            }
        }
        if self.referrers.copies_any() {
            wanted.extend(self.collect_referrer_blobs(layout, content.manifests).await?);
        }
        let streamed = wanted.into_iter().filter(|blob| !layout.is_in_memory(&blob.digest));
        Ok(streamed.map(|blob| (blob.digest.clone(), blob)).collect())
    }

    /// Collects the blobs of all selected referrers that the target may lack.
    async fn collect_referrer_blobs(&self, layout: &Layout, mut subjects: Vec<Digest>) -> Result<Vec<Descriptor>> {
        let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
        while let Some(subject) = subjects.pop() {
            for referrer in self.list_streamed_referrers(&subject).await? {
                if seen.len() >= MAX_REFERRERS || !seen.insert(referrer.clone()) {
                    continue;
                }
                // An error of reading it is one of the ordinary transfer.
                let Ok(manifest) = self.source.manifest_by_digest(&referrer).await else { continue };
                if !self.wants(&manifest) || self.find_image_in(&manifest).is_some() {
                    continue;
                }
                let content = self.collect_content(&manifest).await;
                subjects.extend(content.manifests);
                let is_streamed = content.blobs.iter().any(|blob| !layout.is_in_memory(&blob.digest));
                if is_streamed && (self.force || !self.has_manifest(&referrer).await?) {
                    blobs.extend(content.blobs);
                }
            }
        }
        Ok(blobs)
    }

    /// Lists the referrers and digest tags of a manifest.
    async fn list_streamed_referrers(&self, subject: &Digest) -> Result<Vec<Digest>> {
        let (listed, _) = self.source.referrers(subject, FallbackTag::Unknown).await?;
        let wanted =
            listed.into_iter().filter(|it| it.artifact_type.as_deref().is_none_or(|kind| self.wants_type(kind)));
        let mut found: Vec<Digest> = wanted.map(|referrer| referrer.digest).collect();
        for kind in DigestTag::COSIGN {
            found.extend(self.source.digest_tag_head(&kind.tag_for(subject)).await?.map(|head| head.digest));
        }
        Ok(found)
    }
}
