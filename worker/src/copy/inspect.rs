//! Inspects an image: its manifests, configs, layers and referrers.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::BoxFuture;
use imgsync_layout::Layout;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, ManifestKind, Platform};
use imgsync_registry::{Access, Client, Context, ManifestRef, TrafficCounters};
use serde::Serialize;
use serde_json::Value;

use super::ImageLocation;
use super::endpoints::CopySource;
use super::index_entry::EntryContent;
use super::platform_filter::ATTESTATION_SUBJECT;
use super::verify::list_source_referrers;

/// Maximum depth of nested indexes and referrers.
const MAX_DEPTH: usize = 16;
/// Largest config, in bytes, that is read for its platform.
pub(super) const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A manifest and everything below it.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestTree {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Size of the manifest in bytes.
    pub size: u64,
    /// Platform, from the index or the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Artifact type, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Digest of the manifest in the same index that this attestation is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attested_digest: Option<String>,
    /// Whether it is listed but missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// Cosign tag that links it to its subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<InspectedBlob>,
    /// Layers, in order; for an index, the blobs it lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<InspectedBlob>,
    /// Children of an index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<ManifestTree>,
    /// Referrers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<ManifestTree>,
}

/// A blob named by a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedBlob {
    /// Digest.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Size in bytes.
    pub size: u64,
    /// URLs of a foreign layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl ManifestTree {
    /// Counts the distinct blobs of this manifest and its children, and their bytes; referrers are not included.
    pub fn count_blobs(&self) -> (usize, u64) {
        let mut seen: HashSet<&Digest> = HashSet::new();
        let mut bytes = 0;
        let mut open = vec![self];
        while let Some(next) = open.pop() {
            for blob in next.config.iter().chain(&next.layers).filter(|blob| blob.urls.is_empty()) {
                if seen.insert(&blob.digest) {
                    bytes += blob.size;
                }
            }
            open.extend(&next.manifests);
        }
        (seen.len(), bytes)
    }
}

/// Reads the manifest tree of an image. `stdin` is the archive from stdin, if the location names it; it is read to its end.
pub async fn inspect(
    client: &Client,
    location: &ImageLocation,
    stdin: Option<&Layout>,
    context: &Context,
) -> Result<ManifestTree> {
    let source = match location {
        ImageLocation::Registry(reference) => CopySource::Registry(client.repository(
            &reference.registry,
            &reference.repository,
            Access::Pull,
            context,
            &TrafficCounters::new(),
        )?),
        ImageLocation::Layout(image) => {
            CopySource::Layout(Layout::open(&image.dir).await?.repository(image.repository()))
        }
        ImageLocation::Archive(image) => CopySource::open_archive(image, stdin, context).await?,
    };
    let reference =
        location.digest().cloned().map(ManifestRef::Digest).or_else(|| location.tag().map(ManifestRef::Tag));
    let root = source.manifest_get(reference.as_ref()).await?;
    let reader = TreeReader { source, context: context.clone() };
    let mut image = reader.read_manifest(root, None, 0).await?;
    if image.platform.is_none() {
        image.platform = reader.platform_from_config(&image).await?;
    }
    reader.add_cosign_tags(&mut image).await?;
    if let Some(stream) = stdin {
        stream.finish_stream().await?;
    }
    Ok(image)
}

struct TreeReader {
    source: CopySource,
    context: Context,
}

impl TreeReader {
    fn read_manifest<'a>(
        &'a self,
        manifest: Manifest,
        descriptor: Option<&'a Descriptor>,
        depth: usize,
    ) -> BoxFuture<'a, Result<ManifestTree>> {
        Box::pin(async move {
            let operation = || self.source.describe_read(manifest.digest());
            if depth > MAX_DEPTH {
                return Err(Error::new(ErrorKind::Unsupported, operation(), "manifests are nested too deep"));
            }
            if self.context.cancel.is_cancelled() {
                return Err(Error::cancelled(operation()));
            }
            let parsed = manifest.parsed();
            let mut image = ManifestTree {
                digest: manifest.digest().clone(),
                media_type: manifest.media_type().to_string(),
                size: manifest.bytes().len() as u64,
                annotations: parsed.annotations.clone(),
                artifact_type: parsed.artifact_type.clone(),
                ..from_descriptor(descriptor, manifest.digest())
            };
            match manifest.kind() {
                ManifestKind::Image { config, layers } => {
                    image.config = config.as_deref().map(describe_blob);
                    image.layers = layers.iter().map(describe_blob).collect();
                }
                ManifestKind::Index { manifests } => {
                    for child in manifests {
                        match self.read_entry(child, depth).await? {
                            Some(read) => image.manifests.push(read),
                            None => image.layers.push(describe_blob(child)),
                        }
                    }
                }
            }
            for referrer in list_source_referrers(&self.source, manifest.digest()).await? {
                let Some(mut read) = self.read_entry(&referrer, depth).await? else { continue };
                read.artifact_type = read.artifact_type.or(referrer.artifact_type);
                image.referrers.push(read);
            }
            Ok(image)
        })
    }

    /// Adds cosign's digest tags, which referrers listings do not contain.
    fn add_cosign_tags<'a>(&'a self, image: &'a mut ManifestTree) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for kind in DigestTag::COSIGN {
                let tag = kind.tag_for(&image.digest);
                let Some(there) = self.source.digest_tag_head(&tag).await? else { continue };
                let manifest = self.source.manifest_by_digest(&there.digest).await?;
                let read = self.read_manifest(manifest, None, 1).await?;
                image.referrers.push(ManifestTree { tag: Some(tag.to_string()), ..read });
            }
            for child in image.manifests.iter_mut().filter(|child| !child.missing) {
                self.add_cosign_tags(child).await?;
            }
            Ok(())
        })
    }

    /// Reads an index entry or referrer, which may be missing. `None` for a blob.
    async fn read_entry(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<ManifestTree>> {
        match self.source.resolve_entry(descriptor, &TrafficCounters::new()).await {
            Ok(EntryContent::Manifest(manifest)) => {
                self.read_manifest(manifest, Some(descriptor), depth + 1).await.map(Some)
            }
            Ok(EntryContent::Blob(_)) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let (media_type, size) = (descriptor.media_type.to_string(), descriptor.size);
                Ok(Some(ManifestTree {
                    media_type,
                    size,
                    missing: true,
                    ..from_descriptor(Some(descriptor), &descriptor.digest)
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the platform from an image's config; `None` for other artifacts.
    async fn platform_from_config(&self, image: &ManifestTree) -> Result<Option<String>> {
        let Some(config) = image.config.as_ref().filter(|config| config.size <= MAX_CONFIG_BYTES) else {
            return Ok(None);
        };
        let named =
            Descriptor::new(imgsync_oci::MediaType::new(&config.media_type), config.digest.clone(), config.size);
        if let Some(layout) = self.source.streamed_layout()
            && !layout.is_in_memory(&config.digest)
        {
            // It is read while it passes.
            while layout.next_streamed_blob().await?.is_some_and(|digest| digest != config.digest) {}
        }
        let (mut stream, _) = self.source.blob_open(&named, 0, &TrafficCounters::new()).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next_chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (Some(os), Some(architecture)) = (text("os"), text("architecture")) else { return Ok(None) };
        let variant = text("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
        Ok(format!("{os}/{architecture}{variant}").parse::<Platform>().ok().map(|platform| platform.to_string()))
    }
}

/// Creates a tree node from a descriptor alone.
fn from_descriptor(descriptor: Option<&Descriptor>, digest: &Digest) -> ManifestTree {
    ManifestTree {
        digest: digest.clone(),
        media_type: String::new(),
        size: 0,
        platform: descriptor.and_then(|named| named.platform.as_ref()).map(ToString::to_string),
        artifact_type: descriptor.and_then(|named| named.artifact_type.clone()),
        attested_digest: descriptor.and_then(|named| named.annotations.get(ATTESTATION_SUBJECT).cloned()),
        missing: false,
        tag: None,
        annotations: BTreeMap::new(),
        config: None,
        layers: Vec::new(),
        manifests: Vec::new(),
        referrers: Vec::new(),
    }
}

fn describe_blob(descriptor: &Descriptor) -> InspectedBlob {
    InspectedBlob {
        digest: descriptor.digest.clone(),
        media_type: descriptor.media_type.to_string(),
        size: descriptor.size,
        urls: descriptor.urls.clone(),
    }
}
