//! `policy.signed`: which keys have signed an image. A signature of an index covers everything in it.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use imgsync_model::batch::RequiredSignatures;
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, Manifest, ManifestKind};

use super::keys::{KeyRing, Signers};
use super::signature_reader::FoundSignatures;
use super::{CheckedImage, shorten};
use crate::copy::endpoints::Endpoints;
use crate::copy::transfer::MAX_INDEX_DEPTH;

/// The keys of a policy, and where signatures are read.
pub(super) struct SignatureCheck<'a> {
    endpoints: &'a Endpoints,
    keys: KeyRing,
}

/// What is copied of an index.
struct CopiedIndex<'a> {
    manifest: &'a Manifest,
    only: Option<&'a HashSet<Digest>>,
    /// Keys that have signed it, or an index that contains it.
    signers: Signers,
}

impl<'a> SignatureCheck<'a> {
    /// Parses the keys.
    pub(super) fn new(endpoints: &'a Endpoints, signed: &RequiredSignatures) -> Result<SignatureCheck<'a>> {
        Ok(SignatureCheck { endpoints, keys: KeyRing::parse(signed)? })
    }

    /// Fails unless the image is signed: its index, or every manifest in it that is copied.
    pub(super) async fn check(&self, image: &CheckedImage<'_>) -> Result<()> {
        let (root, selected) = (&image.selected.root, image.selected);
        let at_source = self.read_signatures(image.source_digest).await?;
        let mut signers = at_source.signers.clone();
        if self.keys.suffice(&signers) {
            return Ok(());
        }
        let mut reasons = at_source.describe();
        // One platform in place of its index. A filtered index has no signatures: it was made here.
        if root.digest() != image.source_digest && !selected.is_filtered {
            let of_root = self.read_signatures(root.digest()).await?;
            signers.extend(&of_root.signers);
            if self.keys.suffice(&signers) {
                return Ok(());
            }
            reasons = format!("its index: {reasons}; {}: {}", shorten(root.digest()), of_root.describe());
        }
        let refuse =
            |reason: String| Err(image.refusal(&reason).with_hint("sign it with `cosign sign --key`, and requeue it"));
        match root.kind() {
            ManifestKind::Image { .. } => refuse(format!("{}: {reasons}", self.keys.describe_need())),
            ManifestKind::Index { .. } => {
                let index = CopiedIndex { manifest: root, only: selected.selected_children.as_ref(), signers };
                match self.find_unsigned(index, 0, &mut HashSet::new()).await? {
                    None => Ok(()),
                    Some(child) => refuse(format!("{}: the index: {reasons}; {child}", self.keys.describe_need())),
                }
            }
        }
    }

    /// Looks for a manifest in an index that is copied and not signed. Describes it.
    /// Each is checked once for the keys that have signed what contains it, which `seen` has.
    fn find_unsigned<'b>(
        &'b self,
        index: CopiedIndex<'b>,
        depth: usize,
        seen: &'b mut HashSet<(Digest, Signers)>,
    ) -> BoxFuture<'b, Result<Option<String>>> {
        Box::pin(async move {
            let mut is_empty = true;
            let is_copied = |child: &&Descriptor| index.only.is_none_or(|only| only.contains(&child.digest));
            let ManifestKind::Index { manifests } = index.manifest.kind() else {
                return Ok(Some("it is listed as an index, and is none".to_owned()));
            };
            // Also blobs, which some indexes list: they are copied, too.
            for child in manifests.iter().filter(is_copied) {
                is_empty = false;
                if !seen.insert((child.digest.clone(), index.signers.clone())) {
                    continue;
                }
                let found = self.read_signatures(&child.digest).await?;
                let signers: Signers = found.signers.union(&index.signers).copied().collect();
                if self.keys.suffice(&signers) {
                    continue;
                }
                let unsigned = format!("{}: {}", describe_child(child), found.describe());
                if !child.media_type.is_index() || depth == MAX_INDEX_DEPTH {
                    return Ok(Some(unsigned));
                }
                let manifest = self.endpoints.source.child_manifest(child).await?;
                let nested = CopiedIndex { manifest: &manifest, only: None, signers };
                if let Some(below) = self.find_unsigned(nested, depth + 1, seen).await? {
                    return Ok(Some(format!("{unsigned}; {below}")));
                }
            }
            Ok(is_empty.then(|| "there is nothing in it".to_owned()))
        })
    }

    async fn read_signatures<'b>(&'b self, subject: &'b Digest) -> Result<FoundSignatures<'b>> {
        FoundSignatures::read(self.endpoints, &self.keys, subject).await
    }
}

/// Names a child of an index by its platform and digest.
fn describe_child(child: &Descriptor) -> String {
    match child.platform.as_ref().filter(|platform| platform.names_a_system()) {
        Some(platform) => format!("{platform} ({})", shorten(&child.digest)),
        None => shorten(&child.digest),
    }
}
