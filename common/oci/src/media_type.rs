//! Media types: the ones that a copy must understand, and all others as written.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A media type. Types that a copy treats alike (configs, layers, anything new) are [`MediaType::Other`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum MediaType {
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.distribution.manifest.v1+prettyjws`, and `…v1+json`: recognised, never copied.
    DockerSchema1,
    /// Any other, as written, without parameters.
    Other(Box<str>),
    /// No media type was given.
    #[default]
    Missing,
}

/// Manifest types that were in use before version 1.1 of the image specification replaced them.
const LEGACY_MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.artifact.manifest.v1+json", "application/vnd.cncf.oras.artifact.manifest.v1+json"];

impl MediaType {
    /// Parses a media type and drops parameters (`; charset=utf-8`). Never fails.
    pub fn new(text: &str) -> MediaType {
        let bare = text.split(';').next().unwrap_or_default().trim();
        let lower = bare.to_ascii_lowercase();
        match lower.as_str() {
            "" => MediaType::Missing,
            "application/vnd.oci.image.index.v1+json" => MediaType::OciIndex,
            "application/vnd.oci.image.manifest.v1+json" => MediaType::OciManifest,
            "application/vnd.docker.distribution.manifest.list.v2+json" => MediaType::DockerList,
            "application/vnd.docker.distribution.manifest.v2+json" => MediaType::DockerManifest,
            "application/vnd.docker.distribution.manifest.v1+prettyjws"
            | "application/vnd.docker.distribution.manifest.v1+json" => MediaType::DockerSchema1,
            _ => MediaType::Other(bare.into()),
        }
    }

    /// Returns the type as written in headers and manifests; empty if none was given.
    pub fn as_str(&self) -> &str {
        match self {
            MediaType::OciIndex => "application/vnd.oci.image.index.v1+json",
            MediaType::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            MediaType::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            MediaType::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            MediaType::DockerSchema1 => "application/vnd.docker.distribution.manifest.v1+prettyjws",
            MediaType::Other(text) => text,
            MediaType::Missing => "",
        }
    }

    /// Whether this is an index or a manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self, MediaType::OciIndex | MediaType::DockerList)
    }

    /// Whether this is the manifest of an image or artifact.
    pub fn is_manifest(&self) -> bool {
        matches!(self, MediaType::OciManifest | MediaType::DockerManifest)
    }

    /// Whether content of this type is certainly a manifest or an index. An index may list anything under other types.
    pub fn names_a_manifest(&self) -> bool {
        match self {
            MediaType::DockerSchema1 => true,
            MediaType::Other(text) => LEGACY_MANIFEST_TYPES.iter().any(|known| text.eq_ignore_ascii_case(known)),
            _ => self.is_index() || self.is_manifest(),
        }
    }

    /// Whether content of this type is a blob although an index lists it: build caches are such indexes (BuildKit,
    /// `type=registry` without `image-manifest=true`).
    pub fn is_blob_in_index(&self) -> bool {
        matches!(self, MediaType::Other(text)
            if text.contains(".image.layer.") || text.contains(".image.rootfs.") || text.starts_with("application/vnd.buildkit.cacheconfig"))
    }

    /// Whether content of this type makes up an image that can be run: a layer, a config, or something without a type,
    /// which some programs take for a layer. Documents of signatures, attestations and SBOMs have types of their own.
    pub fn is_image_content(&self) -> bool {
        let text = self.as_str().to_ascii_lowercase();
        let starts =
            ["application/vnd.oci.image.", "application/vnd.docker.image.", "application/vnd.docker.container."];
        text.is_empty()
            || starts.iter().any(|start| text.starts_with(start))
            || [".image.layer.", ".image.rootfs."].iter().any(|part| text.contains(part))
    }

    /// Whether this is a foreign ("non-distributable") layer, which is served from its `urls` and which registries need
    /// not hold.
    pub fn is_foreign_layer(&self) -> bool {
        matches!(self, MediaType::Other(text)
            if text.contains("layer.nondistributable") || text.starts_with("application/vnd.docker.image.rootfs.foreign"))
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
        Ok(MediaType::new(&std::borrow::Cow::<str>::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_signatures_are_not_the_content_of_an_image() {
        for image in [
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "Application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.oci.image.config.v1+json",
            "",
        ] {
            assert!(MediaType::new(image).is_image_content(), "{image}");
        }
        for document in [
            "application/vnd.dev.cosign.simplesigning.v1+json",
            "application/vnd.dev.sigstore.bundle.v0.3+json",
            "application/vnd.dsse.envelope.v1+json",
            "application/vnd.in-toto+json",
            "application/vnd.cncf.notary.signature",
            "application/jose+json",
            "application/spdx+json",
            "application/vnd.cyclonedx+json",
            "text/spdx",
            "application/vnd.oci.empty.v1+json",
        ] {
            assert!(!MediaType::new(document).is_image_content(), "{document}");
        }
    }

    #[test]
    fn parameters_and_case_do_not_matter() {
        assert_eq!(MediaType::new("Application/vnd.oci.image.index.v1+JSON; charset=utf-8"), MediaType::OciIndex);
    }

    #[test]
    fn an_unknown_type_is_kept_as_it_is_written() {
        assert_eq!(MediaType::new("application/vnd.Example+tar").as_str(), "application/vnd.Example+tar");
        assert_eq!(MediaType::new(""), MediaType::Missing);
    }

    #[test]
    fn types_that_name_a_manifest_are_told_from_all_others() {
        for text in [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.oci.artifact.manifest.v1+json",
            "application/vnd.CNCF.oras.artifact.manifest.v1+json",
        ] {
            assert!(MediaType::new(text).names_a_manifest(), "{text}");
        }
        for text in
            ["", "application/json", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.empty.v1+json"]
        {
            assert!(!MediaType::new(text).names_a_manifest(), "{text}");
        }
    }

    #[test]
    fn what_caches_list_is_told_from_manifests() {
        for text in [
            "application/vnd.buildkit.cacheconfig.v0",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ] {
            assert!(MediaType::new(text).is_blob_in_index());
        }
        for text in ["", "application/vnd.oci.image.manifest.v1+json", "application/vnd.example.new+json"] {
            assert!(!MediaType::new(text).is_blob_in_index());
        }
    }

    #[test]
    fn foreign_layers_are_told_apart() {
        for text in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        ] {
            assert!(MediaType::new(text).is_foreign_layer());
        }
        assert!(!MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip").is_foreign_layer());
    }
}
