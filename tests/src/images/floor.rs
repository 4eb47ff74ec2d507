//! The least requests that a copy can take, to measure copies against.

use std::collections::BTreeSet;

use super::Image;

/// What the target holds before a copy.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Digests of blobs and manifests that the target repository has.
    pub here: BTreeSet<String>,
    /// Digests of blobs that other repositories of the target registry have.
    pub mountable: BTreeSet<String>,
}

impl Known {
    /// Nothing is at the target.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// All blobs of an image are in another repository of the target registry.
    pub fn mountable(image: &Image) -> Self {
        Self { here: BTreeSet::new(), mountable: image.blobs.keys().cloned().collect() }
    }

    /// An image is in the target repository already.
    pub fn here(image: &Image) -> Self {
        let here = image.blobs.keys().chain(image.manifests.keys()).cloned().collect();
        Self { here, mountable: BTreeSet::new() }
    }
}

/// Requests, without pings and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// At the source: every manifest, and every distinct blob that must move, once; a HEAD for each that is mounted, by which
    /// the source shows that it holds it. (None where the source is a neighbour of the target: the mount shows it.)
    pub source: u64,
    /// At the target: POST and PUT for a fresh blob, one for a mounted one, a PUT for each distinct manifest, a HEAD of the tag.
    pub target: u64,
}

/// The least requests for a copy of `image` under one tag.
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
