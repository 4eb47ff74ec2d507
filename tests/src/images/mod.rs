//! Image trees, seeded by name so that every test has its own data.
//!
//! ```
//! use imgsync_tests::images;
//!
//! let image = images::multi_platform("my-test");
//! assert_eq!(image.manifests.len(), 3); // an index and its two children
//! ```

mod blob;
mod builders;
mod fixtures;
mod floor;
pub mod signing;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;

pub use blob::{Blob, Synthetic, digest_with, seed_from_name, sha256, sha512};
pub use builders::{ImageBuilder, IndexBuilder, Layer, nested_indexes, tarball};
pub use fixtures::{
    artifact, big, cosign, empty_layer, foreign_layer, helm_chart, inline_data, layer_twice, multi_platform, nested,
    referrer, sha512_blobs, shared_child, shared_layers, single, single_docker,
};
pub use floor::{Floor, TargetContents, floor};

/// Media types of the OCI and Docker specifications.
pub mod media {
    /// An OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image's config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A compressed OCI layer.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A non-distributable OCI layer.
    pub const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    /// OCI artifact manifest of a release candidate of version 1.1.
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// OCI empty JSON, the config of artifacts.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// A Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A Docker image's config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A Docker layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A Docker layer stored at a URL.
    pub const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    /// All manifest types, as an `Accept` header.
    pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
}

/// A stored manifest: media type and exact bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestManifest {
    /// Media type to serve and push.
    pub media_type: String,
    /// Bytes that the digest is computed from.
    pub bytes: Bytes,
}

impl TestManifest {
    /// Parses the bytes.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("a manifest is JSON")
    }
}

/// An image with everything below it.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// Seed of its content.
    pub name: String,
    /// Digest of the root manifest.
    pub root: String,
    /// All manifests of the tree including the root, by digest.
    pub manifests: BTreeMap<String, TestManifest>,
    /// All blobs that a registry stores for the tree, by digest.
    pub blobs: BTreeMap<String, Blob>,
    /// Foreign layers by digest, which a registry need not store.
    pub foreign: BTreeMap<String, Blob>,
}

impl TestImage {
    /// Creates a builder of a single-platform image or artifact.
    pub fn single(name: &str) -> ImageBuilder {
        ImageBuilder::new(name)
    }

    /// Creates a builder of an index.
    pub fn index(name: &str) -> IndexBuilder {
        IndexBuilder::new(name)
    }

    /// Returns the root manifest.
    pub fn root_manifest(&self) -> &TestManifest {
        &self.manifests[&self.root]
    }

    /// Returns the media type of the root.
    pub fn media_type(&self) -> &str {
        &self.root_manifest().media_type
    }

    /// Returns a descriptor of the root manifest.
    pub fn descriptor(&self) -> Value {
        let root = self.root_manifest();
        serde_json::json!({"mediaType": root.media_type, "digest": self.root, "size": root.bytes.len()})
    }

    /// Returns the digests of the manifests, children before parents, the root last.
    pub fn push_order(&self) -> Vec<String> {
        fn visit(image: &TestImage, digest: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
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

    /// Sums the bytes of all distinct blobs.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.values().map(Blob::size).sum()
    }

    /// Returns the digest of the largest blob, the usual target of faults.
    pub fn largest_blob(&self) -> String {
        let (digest, _) = self.blobs.iter().max_by_key(|(_, blob)| blob.size()).expect("the image has a blob");
        digest.clone()
    }

    /// Returns the digest of the root's config.
    pub fn config(&self) -> String {
        self.root_manifest().json()["config"]["digest"].as_str().expect("the root has a config").to_owned()
    }

    /// Returns the digests of the root's layers, with repetitions.
    pub fn layers(&self) -> Vec<String> {
        digests(&self.root_manifest().json()["layers"])
    }

    /// Returns the digest tag of a kind: `sig`, `att` or `sbom` of cosign, or the referrers fallback tag if empty.
    pub fn digest_tag(&self, kind: &str) -> String {
        let stem = self.root.replace(':', "-");
        if kind.is_empty() { stem } else { format!("{stem}.{kind}") }
    }

    /// Returns the digests of the root's direct children, with repetitions.
    pub fn children(&self) -> Vec<String> {
        children(&self.root_manifest().json())
    }

    /// Returns the subtree of a manifest as an image.
    pub fn subtree(&self, digest: &str) -> TestImage {
        let mut part = TestImage { root: digest.to_owned(), ..self.clone() };
        let keep: BTreeSet<_> = part.push_order().into_iter().collect();
        part.manifests.retain(|digest, _| keep.contains(digest));
        let blobs: BTreeSet<_> = part.manifests.values().flat_map(|manifest| blobs(&manifest.json())).collect();
        part.blobs.retain(|digest, _| blobs.contains(digest));
        part.foreign.retain(|digest, _| blobs.contains(digest));
        part
    }
}

/// Returns the digests of an index's children, with repetitions.
pub fn children(manifest: &Value) -> Vec<String> {
    let listed = manifest["manifests"].as_array().into_iter().flatten().filter(|entry| !is_blob(entry));
    listed.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect()
}

/// Returns the digests of index entries whose media type does not tell whether they are manifests.
pub fn untyped_entries(manifest: &Value) -> Vec<String> {
    let says_manifest = |entry: &Value| {
        let kind = entry["mediaType"].as_str().unwrap_or_default();
        [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST, media::OCI_ARTIFACT]
            .contains(&kind)
    };
    let listed = manifest["manifests"].as_array().into_iter().flatten();
    let odd = listed.filter(|entry| !says_manifest(entry) && !is_blob(entry));
    odd.filter_map(|entry| entry["digest"].as_str()).map(str::to_owned).collect()
}

/// Reports whether an index entry is a blob.
fn is_blob(entry: &Value) -> bool {
    let kind = entry["mediaType"].as_str().unwrap_or_default();
    kind.contains(".layer.") || kind.contains(".rootfs.") || kind.contains("cacheconfig")
}

/// Returns the digests of a manifest's config and layers, or of an index's blobs, with repetitions.
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
