//! Trees of images, each seeded by its name so that every test has data of its own.
//!
//! ```
//! use imgsync_tests::images;
//!
//! let image = images::multi_platform("my-test");
//! assert_eq!(image.manifests.len(), 3); // an index and its two children
//! ```

mod blob;
mod build;
mod floor;
mod gallery;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;

pub use blob::{Blob, Synthetic, digest_with, seed_of, sha256, sha512};
pub use build::{Index, Layer, Single, tarball};
pub use floor::{Floor, Known, floor};
pub use gallery::{
    artifact, big, cosign, foreign_layer, inline_data, layer_twice, multi_platform, nested, odd_config, referrer,
    sha512_blobs, shared_child, shared_layers, single, single_docker, zero_layer,
};

/// Media types as the two specifications write them.
pub mod media {
    /// An OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image's config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An OCI layer, compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// An OCI layer that is not to be distributed.
    pub const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    /// OCI's artifact manifest, of a release candidate of version 1.1.
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// OCI's empty JSON, the config of artifacts.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// A Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A Docker image's config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A Docker layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A Docker layer that lives elsewhere.
    pub const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    /// All manifests, as an `Accept` header.
    pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
}

/// A manifest as it is stored: its type and its very bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is served and pushed as.
    pub media_type: String,
    /// The bytes that its digest is of.
    pub bytes: Bytes,
}

impl Manifest {
    /// The bytes, parsed.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("a manifest is JSON")
    }
}

/// An image with all that hangs below it.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its content was seeded with.
    pub name: String,
    /// The digest of the manifest at the top.
    pub root: String,
    /// Every manifest of the tree, the root among them, by digest.
    pub manifests: BTreeMap<String, Manifest>,
    /// Every blob that the registry holds for the tree, by digest.
    pub blobs: BTreeMap<String, Blob>,
    /// Layers that live elsewhere, by digest: a registry need not hold them.
    pub foreign: BTreeMap<String, Blob>,
}

impl Image {
    /// A single-platform image or artifact, to be described further.
    pub fn single(name: &str) -> Single {
        Single::new(name)
    }

    /// An index, to be given children.
    pub fn index(name: &str) -> Index {
        Index::new(name)
    }

    /// The manifest at the top.
    pub fn root_manifest(&self) -> &Manifest {
        &self.manifests[&self.root]
    }

    /// The media type at the top.
    pub fn media_type(&self) -> &str {
        &self.root_manifest().media_type
    }

    /// A descriptor of the manifest at the top.
    pub fn descriptor(&self) -> Value {
        let root = self.root_manifest();
        serde_json::json!({"mediaType": root.media_type, "digest": self.root, "size": root.bytes.len()})
    }

    /// Digests of the manifests, children before parents, the root last.
    pub fn push_order(&self) -> Vec<String> {
        fn visit(image: &Image, digest: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
            let Some(manifest) = image.manifests.get(digest) else {
                return;
            };
            if !seen.insert(digest.to_owned()) {
                return;
            }
            for child in children(&manifest.json()) {
                visit(image, &child, seen, order);
            }
            order.push(digest.to_owned());
        }
        let mut order = Vec::new();
        visit(self, &self.root, &mut BTreeSet::new(), &mut order);
        order
    }

    /// Bytes of all distinct blobs.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.values().map(Blob::size).sum()
    }

    /// The digest of the largest blob: the one to cut, stall and corrupt.
    pub fn largest_blob(&self) -> String {
        let (digest, _) = self.blobs.iter().max_by_key(|(_, blob)| blob.size()).expect("the image has a blob");
        digest.clone()
    }

    /// The digest of the config of the manifest at the top.
    pub fn config(&self) -> String {
        self.root_manifest().json()["config"]["digest"].as_str().expect("the root has a config").to_owned()
    }

    /// Layer digests of the manifest at the top, as often as they are listed.
    pub fn layers(&self) -> Vec<String> {
        digests(&self.root_manifest().json()["layers"])
    }

    /// The tag under which cosign keeps what belongs to it: `sig`, `att`, `sbom`; or, with nothing, the index of referrers.
    pub fn companion_tag(&self, kind: &str) -> String {
        let stem = self.root.replace(':', "-");
        if kind.is_empty() { stem } else { format!("{stem}.{kind}") }
    }

    /// The direct children of the root, as often as they are listed.
    pub fn children(&self) -> Vec<String> {
        children(&self.root_manifest().json())
    }

    /// The part of the tree below one of its manifests, as an image.
    pub fn subtree(&self, digest: &str) -> Image {
        let mut part = Image { root: digest.to_owned(), ..self.clone() };
        let keep: BTreeSet<_> = part.push_order().into_iter().collect();
        part.manifests.retain(|digest, _| keep.contains(digest));
        let blobs: BTreeSet<_> = part.manifests.values().flat_map(|manifest| blobs(&manifest.json())).collect();
        part.blobs.retain(|digest, _| blobs.contains(digest));
        part.foreign.retain(|digest, _| blobs.contains(digest));
        part
    }
}

/// The digests of an index's children, as often as they are listed.
pub fn children(manifest: &Value) -> Vec<String> {
    let listed = manifest["manifests"].as_array().into_iter().flatten().filter(|entry| !is_blob(entry));
    listed.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect()
}

/// The digests of what an index lists under a type that does not say whether it is a manifest.
pub fn odd_entries(manifest: &Value) -> Vec<String> {
    let says_manifest = |entry: &Value| {
        let kind = entry["mediaType"].as_str().unwrap_or_default();
        [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST, media::OCI_ARTIFACT]
            .contains(&kind)
    };
    let listed = manifest["manifests"].as_array().into_iter().flatten();
    let odd = listed.filter(|entry| !says_manifest(entry) && !is_blob(entry));
    odd.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect()
}

/// Whether what an index lists is no manifest.
fn is_blob(entry: &Value) -> bool {
    let kind = entry["mediaType"].as_str().unwrap_or_default();
    kind.contains(".layer.") || kind.contains(".rootfs.") || kind.contains("cacheconfig")
}

/// The digests of a manifest's config and layers, and of the blobs that an index lists, as often as they are listed.
pub fn blobs(manifest: &Value) -> Vec<String> {
    let mut all = digests(&manifest["layers"]);
    all.extend(digests(&manifest["blobs"]));
    let listed = manifest["manifests"].as_array().into_iter().flatten().filter(|entry| is_blob(entry));
    all.extend(listed.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned));
    all.extend(manifest["config"]["digest"].as_str().map(str::to_owned));
    all
}

fn digests(list: &Value) -> Vec<String> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect()
}
