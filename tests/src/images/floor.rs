//! Computes the fewest requests that a copy can take, as a lower bound for measured copies.

use std::collections::BTreeSet;

use super::Image;

/// Content of the target before a copy.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Digests of blobs and manifests in the target repository.
    pub here: BTreeSet<String>,
    /// Digests of blobs in other repositories of the target registry.
    pub mountable: BTreeSet<String>,
}

impl Known {
    /// An empty target.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// All blobs of an image are in another repository of the target registry.
    pub fn mountable(image: &Image) -> Self {
        Self { here: BTreeSet::new(), mountable: image.blobs.keys().cloned().collect() }
    }

    /// The image is in the target repository.
    pub fn here(image: &Image) -> Self {
        let here = image.blobs.keys().chain(image.manifests.keys()).cloned().collect();
        Self { here, mountable: BTreeSet::new() }
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
pub fn floor(image: &Image, known: &Known) -> Floor {
    let absent = image.blobs.keys().filter(|digest| !known.here.contains(*digest));
    let (mounted, fresh): (Vec<_>, Vec<_>) = absent.partition(|digest| known.mountable.contains(*digest));
    let has_manifest = |digest: &String| known.here.contains(digest) && *digest != image.root;
    let manifests = image.manifests.keys().filter(|digest| !has_manifest(digest)).count();
    Floor {
        source: (image.manifests.len() + fresh.len() + mounted.len()) as u64,
        target: (2 * fresh.len() + mounted.len() + manifests + 1) as u64,
    }
}
