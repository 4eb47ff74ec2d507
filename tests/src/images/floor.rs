//! Computes the fewest requests that a copy can take, as a lower bound for measured copies.

use std::collections::BTreeSet;

use super::TestImage;

/// Content of the target before a copy.
#[derive(Clone, Debug, Default)]
pub struct TargetContents {
    /// Digests of blobs and manifests in the target repository.
    pub in_repository: BTreeSet<String>,
    /// Digests of blobs in other repositories of the target registry.
    pub mountable: BTreeSet<String>,
}

impl TargetContents {
    /// An empty target.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// All blobs of an image are in another repository of the target registry.
    pub fn mountable(image: &TestImage) -> Self {
        Self { in_repository: BTreeSet::new(), mountable: image.blobs.keys().cloned().collect() }
    }

    /// The image is in the target repository.
    pub fn in_repository(image: &TestImage) -> Self {
        let here = image.blobs.keys().chain(image.manifests.keys()).cloned().collect();
        Self { in_repository: here, mountable: BTreeSet::new() }
    }
}

/// Number of requests, without pings and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// At the source: one GET per manifest and per distinct blob to transfer, and one HEAD per mounted blob, which
    /// proves that the source holds it. (No HEAD if source and target share a registry: the mount proves it.)
    pub source: u64,
    /// At the target: POST and PUT per new blob, POST per mounted blob, PUT per distinct manifest, and a HEAD of the
    /// tag.
    pub target: u64,
}

/// Computes the fewest requests for a copy of `image` under one tag.
pub fn floor(image: &TestImage, known: &TargetContents) -> Floor {
    let absent = image.blobs.keys().filter(|digest| !known.in_repository.contains(*digest));
    let (mounted, fresh): (Vec<_>, Vec<_>) = absent.partition(|digest| known.mountable.contains(*digest));
    let has_manifest = |digest: &String| known.in_repository.contains(digest) && *digest != image.root;
    let manifests = image.manifests.keys().filter(|digest| !has_manifest(digest)).count();
    Floor {
        source: (image.manifests.len() + fresh.len() + mounted.len()) as u64,
        target: (2 * fresh.len() + mounted.len() + manifests + 1) as u64,
    }
}
