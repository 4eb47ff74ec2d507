//! The format of `docker save`: `manifest.json` lists a config and layers for each image, and the manifests of the registry
//! are not among the members. Each image gets a manifest that is made from its config and layers, always the same one.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::super::docker_manifest::{DockerImage, MANIFEST_JSON, MAX_IMAGES, MAX_MANIFEST_JSON_BYTES};
use super::super::error::LayoutError;
use super::super::index::LayoutIndex;
use super::super::index_entry::REF_NAME;
use super::super::read_at::{FileSection, ReadAt, read_exact_at};
use super::REPOSITORIES;
use super::tar_index::{TarContent, TarIndex, clean_path, shorten};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Algorithm, Descriptor, Digest, Hasher, MediaType, Platform, Reference};

/// Upper limit for the config of an image.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Upper limit for the layers of an image; Docker's own is 127.
const MAX_LAYERS: usize = 4096;
const READ_BYTES: usize = 256 << 10;

/// Images of a Docker archive, as an index with made manifests.
#[derive(Debug)]
pub(super) struct DockerImages {
    pub(super) index: LayoutIndex,
    pub(super) manifests: HashMap<Digest, Bytes>,
    pub(super) blobs: HashMap<Digest, TarContent>,
}

/// What is read of a config.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

struct DockerReader<'a> {
    source: &'a Arc<dyn ReadAt>,
    members: &'a TarIndex,
    /// Layers that were looked at, by offset: images share them.
    layers: HashMap<u64, LayerFile>,
    blobs: HashMap<Digest, TarContent>,
}

#[derive(Debug, Clone)]
struct LayerFile {
    compression: LayerCompression,
    /// Known without the config, for a compressed layer.
    digest: Option<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerCompression {
    Plain,
    Gzip,
    Zstd,
}

impl LayerCompression {
    fn media_type(self) -> &'static str {
        match self {
            LayerCompression::Plain => "application/vnd.oci.image.layer.v1.tar",
            LayerCompression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            LayerCompression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Reads the images of a Docker archive. Compressed layers are hashed, unless they are named by their digest; a plain
/// layer has the digest in its config.
pub(super) fn read_images(source: &Arc<dyn ReadAt>, members: &TarIndex) -> Result<DockerImages, LayoutError> {
    let mut reader = DockerReader { source, members, layers: HashMap::new(), blobs: HashMap::new() };
    let Some(text) = reader.read_file(MANIFEST_JSON, MAX_MANIFEST_JSON_BYTES)? else {
        return Err(not_docker(members)?);
    };
    let images: Vec<DockerImage> = serde_json::from_slice(&text).map_err(|error| {
        LayoutError::new(ErrorKind::InvalidResponse, format!("its {MANIFEST_JSON} cannot be parsed: {error}"))
    })?;
    let tags = images.iter().map(|image| image.repo_tags.len()).sum::<usize>();
    if images.len().max(tags) > MAX_IMAGES {
        let detail = format!("its {MANIFEST_JSON} has more than {MAX_IMAGES} images or names");
        return Err(LayoutError::new(ErrorKind::Refused, detail));
    }
    let mut entries = Vec::new();
    let mut manifests = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        let in_image = |error: LayoutError| error.in_part(&format!("image {} of {MANIFEST_JSON}", at + 1));
        let (manifest, platform) = reader.make_manifest(image).map_err(in_image)?;
        let digest = Digest::sha256(&manifest);
        let descriptor = Descriptor::new(MediaType::OciManifest, digest.clone(), manifest.len() as u64);
        manifests.insert(digest, manifest);
        let tags = &image.repo_tags;
        // Docker writes names as its users type them.
        let names =
            tags.iter().map(|tag| tag.parse::<Reference>().map_or_else(|_| tag.clone(), |name| name.to_string()));
        let names: Vec<Option<String>> = if tags.is_empty() { vec![None] } else { names.map(Some).collect() };
        for name in names {
            let mut descriptor = descriptor.clone();
            descriptor.platform = platform.clone();
            descriptor.annotations.extend(name.map(|name| (REF_NAME.to_owned(), name)));
            entries.push(descriptor);
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    Ok(DockerImages { index: LayoutIndex::parse(index.as_bytes())?, manifests, blobs: reader.blobs })
}

fn not_docker(members: &TarIndex) -> Result<LayoutError, LayoutError> {
    let error = |detail: &str| LayoutError::new(ErrorKind::Invalid, detail);
    if members.find(super::OCI_LAYOUT)?.is_some() {
        return Ok(error("it does not contain a manifest.json, but an image layout")
            .with_hint("it is in the OCI format: use oci-archive:FILE"));
    }
    if members.find(REPOSITORIES)?.is_some() {
        return Ok(before_manifest_json());
    }
    Ok(error("it does not contain a manifest.json").with_hint("only the archives of `docker save` do"))
}

/// Error of an archive that has `repositories`, and neither `manifest.json` nor an image layout.
pub(super) fn before_manifest_json() -> LayoutError {
    let detail =
        "it does not contain a manifest.json: it was written by Docker before 1.10, and no current Docker reads it";
    LayoutError::new(ErrorKind::Invalid, detail).with_hint("load it with a Docker before 23, and save it again")
}

impl DockerReader<'_> {
    fn read_file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, LayoutError> {
        let path = clean(path)?;
        let Some(content) = self.members.find(&path)? else { return Ok(None) };
        super::read_member(self.source, &path, content, limit).map(Some)
    }

    /// Makes the manifest of an image, and returns its platform.
    fn make_manifest(&mut self, image: &DockerImage) -> Result<(Bytes, Option<Platform>), LayoutError> {
        let config = self.read_file(&image.config, MAX_CONFIG_BYTES)?.ok_or_else(|| missing(&image.config))?;
        let parsed: ConfigFile = serde_json::from_slice(&config).map_err(|error| {
            let detail = format!("config `{}` cannot be parsed: {error}", shorten(&image.config));
            LayoutError::new(ErrorKind::InvalidResponse, detail)
        })?;
        let paths = &image.layers;
        let diff_ids = &parsed.rootfs.diff_ids;
        if paths.len() != diff_ids.len() || paths.len() > MAX_LAYERS {
            let detail = format!("it has {} layers, its config has {}", paths.len(), diff_ids.len());
            return Err(LayoutError::new(ErrorKind::Corrupt, detail));
        }
        let config_digest = Digest::sha256(&config);
        if let Some(content) = self.members.find(&clean(&image.config)?)? {
            self.blobs.insert(config_digest.clone(), content);
        }
        let config = Descriptor::new(
            MediaType::new("application/vnd.oci.image.config.v1+json"),
            config_digest,
            config.len() as u64,
        );
        let mut layers = Vec::with_capacity(paths.len());
        for (path, diff_id) in paths.iter().zip(diff_ids) {
            layers.push(self.layer(path, diff_id)?);
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": config, "layers": layers,
        });
        let platform = (!parsed.os.is_empty() && !parsed.architecture.is_empty()).then(|| Platform {
            os: parsed.os,
            architecture: parsed.architecture,
            variant: parsed.variant.filter(|variant| !variant.is_empty()),
            os_version: None,
        });
        Ok((manifest.to_string().into(), platform))
    }

    fn layer(&mut self, path: &str, diff_id: &Digest) -> Result<Descriptor, LayoutError> {
        let content = self.members.find(&clean(path)?)?.ok_or_else(|| missing(path))?;
        let file = match self.layers.get(&content.start) {
            Some(file) => file.clone(),
            None => {
                let file = self.look_at_layer(path, content)?;
                self.layers.insert(content.start, file.clone());
                file
            }
        };
        // A plain layer is what the config names; a wrong one is noticed when it is copied.
        let digest = file.digest.unwrap_or_else(|| diff_id.clone());
        self.blobs.insert(digest.clone(), content);
        Ok(Descriptor::new(MediaType::new(file.compression.media_type()), digest, content.size))
    }

    fn look_at_layer(&self, path: &str, content: TarContent) -> Result<LayerFile, LayoutError> {
        let section = FileSection::new(self.source.clone(), content.start, content.size);
        let io_error = |error| LayoutError::reading(path, error);
        let mut magic = [0; 4];
        let length = usize::try_from(content.size.min(4)).unwrap_or_default();
        read_exact_at(&section, &mut magic[..length], 0).map_err(io_error)?;
        let compression = match magic {
            [0x1f, 0x8b, ..] => LayerCompression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => LayerCompression::Zstd,
            _ => return Ok(LayerFile { compression: LayerCompression::Plain, digest: None }),
        };
        let named = path.strip_prefix("blobs/").and_then(|rest| rest.replacen('/', ":", 1).parse::<Digest>().ok());
        if named.is_some() {
            return Ok(LayerFile { compression, digest: named });
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut chunk = vec![0; READ_BYTES];
        let mut at = 0;
        while at < content.size {
            let length = usize::try_from((content.size - at).min(READ_BYTES as u64)).unwrap_or_default();
            read_exact_at(&section, &mut chunk[..length], at).map_err(io_error)?;
            hasher.update(&chunk[..length]);
            at += length as u64;
        }
        Ok(LayerFile { compression, digest: Some(hasher.finish()) })
    }
}

fn clean(path: &str) -> Result<String, LayoutError> {
    clean_path(path).map_err(|reason| {
        LayoutError::new(ErrorKind::Insecure, format!("`{}` in {MANIFEST_JSON} {reason}", shorten(path)))
    })
}

fn missing(path: &str) -> LayoutError {
    LayoutError::new(ErrorKind::NotFound, format!("member `{}` is missing", shorten(path)))
        .with_hint("the archive is incomplete; create it again")
}
