//! Manifests: the raw bytes, which are passed on unchanged, and a parsed view of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::{Descriptor, Digest, MediaType};

/// Upper limit for a manifest, in bytes. Registries accept 4 MiB on a push and serve up to 8 MiB.
const MAX_BYTES: usize = 8 << 20;

/// A manifest or an index: raw bytes and parsed content. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manifest {
    bytes: Bytes,
    digest: Digest,
    media_type: MediaType,
    parsed: Arc<ParsedManifest>,
}

/// Parsed content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedManifest {
    /// Descriptors it contains.
    pub kind: ManifestKind,
    /// The manifest that this one refers to (a signature's image), if any.
    pub subject: Option<Descriptor>,
    /// Artifact type as written in `artifactType`.
    pub artifact_type: Option<String>,
    /// Annotations: free text by key.
    pub annotations: BTreeMap<String, String>,
}

/// An index of manifests, or the manifest of one image or artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKind {
    /// OCI index or Docker manifest list.
    Index {
        /// Children in order, repeated ones included.
        manifests: Vec<Descriptor>,
    },
    /// OCI or Docker manifest.
    Image {
        /// The config; some artifacts have none.
        config: Option<Box<Descriptor>>,
        /// Layers in order, repeated ones included.
        layers: Vec<Descriptor>,
    },
}

/// Reason for rejecting a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any registry accepts.
    #[error("the manifest has more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// Not JSON, or fields of the wrong type.
    #[error("the manifest cannot be parsed: {0}")]
    Unparsable(String),
    /// Docker schema 1, which current registries reject.
    #[error("the manifest is Docker schema 1, which current registries reject; rebuild or convert the image")]
    Schema1,
    /// JSON, but not a manifest.
    #[error("unknown manifest type ({0})")]
    Unknown(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<MediaType>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Box<Descriptor>>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    /// The short-lived OCI artifact manifest had these instead of layers.
    #[serde(default)]
    blobs: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Upper limit for a manifest, in bytes.
    pub const MAX_BYTES: usize = MAX_BYTES;

    /// Parses a manifest. `content_type` is the response's Content-Type; the body's own `mediaType` overrides it.
    pub fn parse(bytes: Bytes, content_type: &MediaType) -> Result<Manifest, ManifestError> {
        let digest = Digest::sha256(&bytes);
        Manifest::parse_as(bytes, digest, content_type)
    }

    /// Like [`Manifest::parse`], for bytes whose digest the caller has verified.
    pub fn parse_as(bytes: Bytes, digest: Digest, content_type: &MediaType) -> Result<Manifest, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge);
        }
        if *content_type == MediaType::DockerSchema1 {
            return Err(ManifestError::Schema1);
        }
        // serde would accept an array for a struct; no manifest is one.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ManifestError::Unparsable("it is not a JSON object".to_owned()));
        }
        let raw: RawManifest =
            serde_json::from_slice(&bytes).map_err(|error| ManifestError::Unparsable(error.to_string()))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let declared = raw.media_type.clone().unwrap_or_default();
        let media_type = match (declared, content_type) {
            (declared, _) if declared.is_index() || declared.is_manifest() => declared,
            (_, header) if header.is_index() && raw.manifests.is_some() => header.clone(),
            (_, header) if header.is_manifest() && raw.manifests.is_none() => header.clone(),
            (declared @ MediaType::Other(_), _) => declared,
            _ if raw.manifests.is_some() => MediaType::OciIndex,
            _ => MediaType::OciManifest,
        };
        let kind = match (raw.manifests, raw.config, raw.layers.or(raw.blobs)) {
            (Some(manifests), _, _) if !media_type.is_manifest() => ManifestKind::Index { manifests },
            (None, config, layers) if !media_type.is_index() && (config.is_some() || layers.is_some()) => {
                ManifestKind::Image { config, layers: layers.unwrap_or_default() }
            }
            (Some(_), _, _) => return Err(ManifestError::Unknown(format!("{media_type} with `manifests`"))),
            _ => return Err(ManifestError::Unknown(format!("{media_type} without `config`, `layers` or `manifests`"))),
        };
        Ok(Manifest {
            bytes,
            digest,
            media_type,
            parsed: Arc::new(ParsedManifest {
                kind,
                subject: raw.subject,
                artifact_type: raw.artifact_type,
                annotations: raw.annotations.unwrap_or_default(),
            }),
        })
    }

    /// Returns the raw bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the digest of the raw bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the media type, which is also the Content-Type of a push.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// Returns the parsed content.
    pub fn parsed(&self) -> &ParsedManifest {
        &self.parsed
    }

    /// Returns the descriptors: an index's children, or an image's config and layers.
    pub fn kind(&self) -> &ManifestKind {
        &self.parsed.kind
    }

    /// Creates a descriptor of this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest.clone(), self.bytes.len() as u64)
    }

    /// Returns the artifact type as registries list it among referrers: `artifactType`, else the config's media type.
    pub fn artifact_type(&self) -> Option<&str> {
        self.parsed.artifact_type.as_deref().or_else(|| match &self.parsed.kind {
            ManifestKind::Image { config: Some(config), .. } => Some(config.media_type.as_str()),
            _ => None,
        })
    }

    /// Returns the blobs that a complete copy needs, each once: the config first, then the layers that registries must
    /// hold. Foreign layers stay at their `urls` and are left as references.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        self.blobs_with(false)
    }

    /// Like [`Manifest::blobs`], optionally with foreign layers.
    pub fn blobs_with(&self, foreign_layers: bool) -> Vec<&Descriptor> {
        let mut seen = std::collections::HashSet::new();
        let (config, layers) = match &self.parsed.kind {
            ManifestKind::Image { config, layers } => (config, layers),
            ManifestKind::Index { manifests } => {
                let blobs = manifests.iter().filter(|child| child.media_type.is_blob_in_index());
                return blobs.filter(|blob| seen.insert(&blob.digest)).collect();
            }
        };
        let is_left = |layer: &&Descriptor| layer.media_type.is_foreign_layer() && !layer.urls.is_empty();
        let wanted = layers.iter().filter(|layer| foreign_layers || !is_left(layer));
        config.iter().map(|config| &**config).chain(wanted).filter(|blob| seen.insert(&blob.digest)).collect()
    }

    /// Returns the manifests that an index lists, each once, without the blobs that some indexes list too.
    pub fn children(&self) -> Vec<&Descriptor> {
        let ManifestKind::Index { manifests } = &self.parsed.kind else { return Vec::new() };
        let mut seen = std::collections::HashSet::new();
        let children = manifests.iter().filter(|child| !child.media_type.is_blob_in_index());
        children.filter(|child| seen.insert(&child.digest)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str, content_type: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(Bytes::copy_from_slice(text.as_bytes()), &MediaType::new(content_type))
    }

    fn descriptor(name: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":3}}"#,
            Digest::sha256(name.as_bytes())
        )
    }

    #[test]
    fn the_bodys_media_type_wins_over_the_header() {
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}}"#,
            descriptor("c")
        );
        let manifest = parse(&body, "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8").unwrap();
        assert_eq!(*manifest.media_type(), MediaType::OciManifest);
        assert_eq!(manifest.bytes(), body.as_bytes());
    }

    #[test]
    fn an_oci_manifest_without_media_type_takes_the_headers_or_the_shapes() {
        let image = format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor("c"));
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert_eq!(*parse(&image, "text/plain").unwrap().media_type(), MediaType::OciManifest);
        assert_eq!(*parse(index, "").unwrap().media_type(), MediaType::OciIndex);
        assert_eq!(
            *parse(&image, "application/vnd.docker.distribution.manifest.v2+json").unwrap().media_type(),
            MediaType::DockerManifest
        );
    }

    #[test]
    fn repeated_layers_and_children_are_named_once() {
        let (c, l) = (descriptor("c"), descriptor("l"));
        let image = parse(&format!(r#"{{"schemaVersion":2,"config":{c},"layers":[{l},{l},{c}]}}"#), "").unwrap();
        assert_eq!(image.blobs().len(), 2);
        let cache = parse(&format!(r#"{{"schemaVersion":2,"manifests":[{c},{l},{c}]}}"#), "").unwrap();
        assert_eq!((cache.children().len(), cache.blobs().len()), (0, 2), "an index of layers is a cache");
        let (c, l) = (c.replace("layer.v1.tar", "manifest.v1+json"), l.replace("layer.v1.tar", "manifest.v1+json"));
        let index = parse(&format!(r#"{{"schemaVersion":2,"manifests":[{c},{l},{c}]}}"#), "").unwrap();
        assert_eq!((index.children().len(), index.blobs().len()), (2, 0));
    }

    #[test]
    fn schema_1_is_told_apart_by_header_and_by_body() {
        let header = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(parse("{}", header).unwrap_err(), ManifestError::Schema1);
        assert_eq!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#, "").unwrap_err(), ManifestError::Schema1);
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        assert!(matches!(parse("<html>", ""), Err(ManifestError::Unparsable(_))));
        assert!(matches!(parse("{}", ""), Err(ManifestError::Unknown(_))));
        assert!(matches!(parse("[]", ""), Err(ManifestError::Unparsable(_))));
        let lying = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}"#;
        assert!(matches!(parse(lying, ""), Err(ManifestError::Unknown(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, header: String) {
            let _ = Manifest::parse(bytes.into(), &MediaType::new(&header));
        }
    }
}
