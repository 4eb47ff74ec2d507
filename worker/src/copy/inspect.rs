//! Inspects an image: its manifests, configs, layers and referrers.

use std::collections::BTreeMap;
use std::collections::HashSet;

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Companion, Descriptor, Digest, Kind, Manifest, Platform};
use imgsync_common::layout::Layout;
use imgsync_common::registry::{Access, Client, Context, ManifestRef, Tally};
use serde::Serialize;
use serde_json::Value;

use super::Location;
use super::ends::Source;
use super::listed::Listed;
use super::verify::source_referrers;

/// Maximum depth of nested indexes and referrers.
const MAX_DEPTH: usize = 16;
/// Largest config, in bytes, that is read for its platform.
const MAX_CONFIG: u64 = 4 << 20;
/// Annotation of a BuildKit attestation in an index: the digest of its subject.
const ABOUT: &str = "vnd.docker.reference.digest";

/// A manifest and everything below it.
#[derive(Debug, Clone, Serialize)]
pub struct Inspected {
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
    pub about: Option<String>,
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
    pub manifests: Vec<Inspected>,
    /// Referrers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Inspected>,
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

impl Inspected {
    /// Counts the distinct blobs of this manifest and its children, and their bytes; referrers are not included.
    pub fn blobs(&self) -> (usize, u64) {
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

/// Reads the manifest tree of an image.
pub async fn inspect(client: &Client, location: &Location, context: &Context) -> Result<Inspected> {
    let source = match location {
        Location::Registry(reference) => Source::Registry(client.repository(
            &reference.registry,
            &reference.repository,
            Access::Pull,
            context,
            &Tally::new(),
        )?),
        Location::Layout(image) => Source::Layout(Layout::open(&image.dir).await?.repository(image.repository())),
    };
    let reference =
        location.digest().cloned().map(ManifestRef::Digest).or_else(|| location.tag().map(ManifestRef::Tag));
    let root = source.manifest_get(reference.as_ref()).await?;
    let reader = Reader { source, context: context.clone() };
    let mut image = reader.manifest(root, None, 0).await?;
    if image.platform.is_none() {
        image.platform = reader.platform(&image).await?;
    }
    reader.signed(&mut image).await?;
    Ok(image)
}

struct Reader {
    source: Source,
    context: Context,
}

impl Reader {
    fn manifest<'a>(
        &'a self,
        manifest: Manifest,
        named: Option<&'a Descriptor>,
        depth: usize,
    ) -> BoxFuture<'a, Result<Inspected>> {
        Box::pin(async move {
            let tried = || self.source.reading(manifest.digest());
            if depth > MAX_DEPTH {
                return Err(Error::new(Class::Unsupported, tried(), "there is no end to what hangs below it"));
            }
            if self.context.cancel.is_cancelled() {
                return Err(Error::cancelled(tried()));
            }
            let parsed = manifest.parsed();
            let mut image = Inspected {
                digest: manifest.digest().clone(),
                media_type: manifest.media_type().to_string(),
                size: manifest.bytes().len() as u64,
                annotations: parsed.annotations.clone(),
                artifact_type: parsed.artifact_type.clone(),
                ..unread(named, manifest.digest())
            };
            match manifest.kind() {
                Kind::Image { config, layers } => {
                    image.config = config.as_deref().map(blob);
                    image.layers = layers.iter().map(blob).collect();
                }
                Kind::Index { manifests } => {
                    for child in manifests {
                        match self.listed(child, depth).await? {
                            Some(read) => image.manifests.push(read),
                            None => image.layers.push(blob(child)),
                        }
                    }
                }
            }
            for referrer in source_referrers(&self.source, manifest.digest()).await? {
                let Some(mut read) = self.listed(&referrer, depth).await? else { continue };
                read.artifact_type = read.artifact_type.or(referrer.artifact_type);
                image.referrers.push(read);
            }
            Ok(image)
        })
    }

    /// Adds cosign's digest tags, which referrers listings do not contain.
    fn signed<'a>(&'a self, image: &'a mut Inspected) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for kind in Companion::COSIGN {
                let tag = kind.tag_of(&image.digest);
                let Some(there) = self.source.companion_head(&tag).await? else { continue };
                let manifest = self.source.by_digest(&there.digest).await?;
                let read = self.manifest(manifest, None, 1).await?;
                image.referrers.push(Inspected { tag: Some(tag.to_string()), ..read });
            }
            for child in image.manifests.iter_mut().filter(|child| !child.missing) {
                self.signed(child).await?;
            }
            Ok(())
        })
    }

    /// Reads an index entry or referrer, which may be missing. `None` for a blob.
    async fn listed(&self, named: &Descriptor, depth: usize) -> Result<Option<Inspected>> {
        match self.source.listed(named, &Tally::new()).await {
            Ok(Listed::Manifest(manifest)) => self.manifest(manifest, Some(named), depth + 1).await.map(Some),
            Ok(Listed::Blob(_)) => Ok(None),
            Err(error) if error.class() == Class::NotFound => {
                let (media_type, size) = (named.media_type.to_string(), named.size);
                Ok(Some(Inspected { media_type, size, missing: true, ..unread(Some(named), &named.digest) }))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the platform from an image's config; `None` for other artifacts.
    async fn platform(&self, image: &Inspected) -> Result<Option<String>> {
        let Some(config) = image.config.as_ref().filter(|config| config.size <= MAX_CONFIG) else { return Ok(None) };
        let named = Descriptor::new(
            imgsync_common::image::MediaType::new(&config.media_type),
            config.digest.clone(),
            config.size,
        );
        let (mut stream, _) = self.source.blob_open(&named, 0, &Tally::new()).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| said.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (Some(os), Some(architecture)) = (text("os"), text("architecture")) else { return Ok(None) };
        let variant = text("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
        Ok(format!("{os}/{architecture}{variant}").parse::<Platform>().ok().map(|platform| platform.to_string()))
    }
}

/// Creates a tree node from a descriptor alone.
fn unread(named: Option<&Descriptor>, digest: &Digest) -> Inspected {
    Inspected {
        digest: digest.clone(),
        media_type: String::new(),
        size: 0,
        platform: named.and_then(|named| named.platform.as_ref()).map(ToString::to_string),
        artifact_type: named.and_then(|named| named.artifact_type.clone()),
        about: named.and_then(|named| named.annotations.get(ABOUT).cloned()),
        missing: false,
        tag: None,
        annotations: BTreeMap::new(),
        config: None,
        layers: Vec::new(),
        manifests: Vec::new(),
        referrers: Vec::new(),
    }
}

fn blob(descriptor: &Descriptor) -> InspectedBlob {
    InspectedBlob {
        digest: descriptor.digest.clone(),
        media_type: descriptor.media_type.to_string(),
        size: descriptor.size,
        urls: descriptor.urls.clone(),
    }
}
