//! Manifests: the raw bytes, which are passed on as they came, beside a parsed view that says what they point at.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::{Descriptor, Digest, MediaType};

/// The most that a manifest may hold, in bytes. Registries take 4 MiB on a push and give up to 8 MiB.
const MAX_BYTES: usize = 8 << 20;

/// A manifest or an index: its bytes and what they mean. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manifest {
    bytes: Bytes,
    digest: Digest,
    media_type: MediaType,
    parsed: Arc<Parsed>,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What it points at.
    pub kind: Kind,
    /// The manifest that this one refers to (a signature's image), if any.
    pub subject: Option<Descriptor>,
    /// What an artifact is.
    pub artifact_type: Option<String>,
    /// Free text by key.
    pub annotations: BTreeMap<String, String>,
}

/// An index of manifests, or the manifest of one image or artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// OCI index or Docker manifest list.
    Index {
        /// Its children in order, repeated ones included.
        manifests: Vec<Descriptor>,
    },
    /// OCI or Docker manifest.
    Image {
        /// The config; some artifacts have none.
        config: Option<Box<Descriptor>>,
        /// The layers in order, repeated ones included.
        layers: Vec<Descriptor>,
    },
}

/// Why bytes are not a manifest that can be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any registry takes.
    #[error("the manifest has more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// Not JSON, or fields of the wrong type.
    #[error("the manifest cannot be parsed: {0}")]
    Unparsable(String),
    /// Docker's schema 1, which today's registries refuse.
    #[error(
        "the manifest is of Docker's schema 1, which today's registries refuse; it has to be built again or converted"
    )]
    Schema1,
    /// JSON, but no manifest.
    #[error("the manifest is of an unknown kind ({0})")]
    Unknown(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
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
    /// The short-lived OCI artifact manifest had these in place of layers.
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
    /// The most bytes that a manifest may have.
    pub const MAX_BYTES: usize = MAX_BYTES;

    /// Parses a manifest. `content_type` is what the registry's answer said; the body's own `mediaType` wins over it.
    pub fn parse(bytes: Bytes, content_type: &MediaType) -> Result<Manifest, ManifestError> {
        let digest = Digest::sha256(&bytes);
        Manifest::parse_as(bytes, digest, content_type)
    }

    /// Like [`Manifest::parse`], for bytes whose digest is known and was verified by the caller.
    pub fn parse_as(bytes: Bytes, digest: Digest, content_type: &MediaType) -> Result<Manifest, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge);
        }
        if *content_type == MediaType::DockerSchema1 {
            return Err(ManifestError::Schema1);
        }
        // serde would take a list for a struct; no manifest is one.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ManifestError::Unparsable("it is not a JSON object".to_owned()));
        }
        let raw: Raw = serde_json::from_slice(&bytes).map_err(|error| ManifestError::Unparsable(error.to_string()))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let said = raw.media_type.clone().unwrap_or_default();
        let media_type = match (said, content_type) {
            (said, _) if said.is_index() || said.is_manifest() => said,
            (_, header) if header.is_index() && raw.manifests.is_some() => header.clone(),
            (_, header) if header.is_manifest() && raw.manifests.is_none() => header.clone(),
            (said @ MediaType::Other(_), _) => said,
            _ if raw.manifests.is_some() => MediaType::OciIndex,
            _ => MediaType::OciManifest,
        };
        let kind = match (raw.manifests, raw.config, raw.layers.or(raw.blobs)) {
            (Some(manifests), _, _) if !media_type.is_manifest() => Kind::Index { manifests },
            (None, config, layers) if !media_type.is_index() && (config.is_some() || layers.is_some()) => {
                Kind::Image { config, layers: layers.unwrap_or_default() }
            }
            (Some(_), _, _) => return Err(ManifestError::Unknown(format!("{media_type} with `manifests`"))),
            _ => return Err(ManifestError::Unknown(format!("{media_type} without the fields of one"))),
        };
        Ok(Manifest {
            bytes,
            digest,
            media_type,
            parsed: Arc::new(Parsed {
                kind,
                subject: raw.subject,
                artifact_type: raw.artifact_type,
                annotations: raw.annotations.unwrap_or_default(),
            }),
        })
    }

    /// The bytes as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What the bytes hash to.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What it is, and the Content-Type that it is pushed with.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// What it says.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// What it points at.
    pub fn kind(&self) -> &Kind {
        &self.parsed.kind
    }

    /// A descriptor of it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest.clone(), self.bytes.len() as u64)
    }

    /// What kind of artifact it is, as registries list it among referrers: its `artifactType`, else its config's type.
    pub fn artifact_type(&self) -> Option<&str> {
        self.parsed.artifact_type.as_deref().or_else(|| match &self.parsed.kind {
            Kind::Image { config: Some(config), .. } => Some(config.media_type.as_str()),
            _ => None,
        })
    }

    /// The blobs that it needs to be whole, each once: config first, then the layers that registries must hold.
    /// Foreign layers live at their `urls` and are left as references.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        self.blobs_with(false)
    }

    /// The same, with foreign layers or without.
    pub fn blobs_with(&self, foreign_layers: bool) -> Vec<&Descriptor> {
        let mut seen = std::collections::HashSet::new();
        let (config, layers) = match &self.parsed.kind {
            Kind::Image { config, layers } => (config, layers),
            Kind::Index { manifests } => {
                let blobs = manifests.iter().filter(|child| child.media_type.is_blob_in_index());
                return blobs.filter(|blob| seen.insert(&blob.digest)).collect();
            }
        };
        let is_left = |layer: &&Descriptor| layer.media_type.is_foreign_layer() && !layer.urls.is_empty();
        let wanted = layers.iter().filter(|layer| foreign_layers || !is_left(layer));
        config.iter().map(|config| &**config).chain(wanted).filter(|blob| seen.insert(&blob.digest)).collect()
    }

    /// The manifests that an index lists, each once; not the blobs that some list beside them.
    pub fn children(&self) -> Vec<&Descriptor> {
        let Kind::Index { manifests } = &self.parsed.kind else { return Vec::new() };
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
