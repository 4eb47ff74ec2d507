//! `manifest.json`: one platform of each image, as `docker save` writes it. Beside the index of a layout, it lets docker
//! and podman load a tar of the layout; podman refuses one without it whose index has several entries.

use std::collections::HashSet;
use std::io::Read as _;

use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Descriptor, Digest, DigestTag, ManifestKind, MediaType, Platform, Reference, Tag};
use imgsync_registry::ManifestRef;
use serde::{Deserialize, Serialize};

use super::error::LayoutError;
use super::index::{IndexChange, LayoutIndex};
use super::reference::QualifiedRepositoryName;
use super::safe_dir::SafeDir;
use super::{BLOBS, LayoutInner};

/// Name of the file.
pub(super) const MANIFEST_JSON: &str = "manifest.json";
/// Upper limit for the file in an archive of docker's format, in bytes.
pub const MAX_MANIFEST_JSON_BYTES: u64 = 8 << 20;
/// Upper limit for the images of such an archive, and for their names.
pub const MAX_IMAGES: usize = 50_000;
/// At most one exists at a time, under the lock.
pub(super) const NEW_MANIFEST_JSON: &str = ".imgsync-manifest.json";
/// Upper limit for `manifest.json`: as for `index.json`, and an image has several layers.
const MAX_BYTES: u64 = 256 << 20;
/// Maximum nesting of indexes; real images have two levels.
const MAX_INDEX_DEPTH: usize = 16;

/// An image in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    /// Path of the config.
    pub config: String,
    /// Names as docker shows them.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub repo_tags: Vec<String>,
    /// Paths of the layers, the lowest first.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub layers: Vec<String>,
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Whether a config is of an image, not of an artifact.
pub fn is_image_config(media_type: &MediaType) -> bool {
    matches!(
        media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// Selects the preferred platform, else linux/amd64, else the first.
pub fn choose_platform<'a, T>(
    children: &'a [(Option<Platform>, T)],
    preferred: &Platform,
) -> Option<&'a (Option<Platform>, T)> {
    let find = |wanted: &Platform| {
        children.iter().find(|(platform, _)| platform.as_ref().is_some_and(|platform| platform.satisfies(wanted)))
    };
    find(preferred).or_else(|| find(&linux("amd64"))).or_else(|| children.first())
}

/// Returns the platform of this machine's containers.
pub fn machine_platform() -> Platform {
    linux(std::env::consts::ARCH).normalized()
}

fn linux(architecture: &str) -> Platform {
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None, os_version: None }
}

/// Returns the path of content in an image layout.
pub fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Returns the name that docker shows: short for Docker Hub.
pub fn familiar_name(name: &Reference) -> Option<String> {
    name.tag_or_latest().map(|tag| familiar(&QualifiedRepositoryName::from_reference(name), &tag))
}

fn familiar(QualifiedRepositoryName { registry, repository }: &QualifiedRepositoryName, tag: &Tag) -> String {
    let repository = repository.as_str();
    match registry.is_docker_hub() {
        true => format!("{}:{tag}", repository.strip_prefix("library/").unwrap_or(repository)),
        false => format!("{registry}/{repository}:{tag}"),
    }
}

/// Serializes `manifest.json`, one image per line.
pub fn encode_images(images: &[DockerImage]) -> serde_json::Result<Vec<u8>> {
    let mut text = b"[".to_vec();
    for (at, image) in images.iter().enumerate() {
        text.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        serde_json::to_writer(&mut text, image)?;
    }
    text.extend_from_slice(b"\n]\n");
    Ok(text)
}

impl LayoutInner {
    /// Returns the content of `manifest.json` for an index that is not written yet, if it changes. What it lists is in the
    /// layout. The caller holds the lock.
    pub(super) fn update_docker_manifest(
        &self,
        index: &LayoutIndex,
        changes: &[&IndexChange],
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        let root: &SafeDir = self.folder()?;
        let written = read_bytes(root)?;
        let known: Option<Vec<DockerImage>> = written.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        let is_known = known.is_some();
        let mut images = DockerImages { images: known.unwrap_or_default() };
        match is_known {
            true => {
                for change in changes {
                    if let (Some(repository), ManifestRef::Tag(tag)) = (&change.repository, &change.reference) {
                        self.set_docker_image(&mut images, repository, tag, &change.descriptor);
                    }
                }
            }
            // Another tool has written the layout, or only bare tags are in it so far.
            false => {
                for entry in index.entries() {
                    if let (Some(repository), Some(tag)) = (&entry.repository, &entry.tag) {
                        self.set_docker_image(&mut images, repository, tag, &entry.descriptor);
                    }
                }
            }
        }
        let images = images.images;
        if images.is_empty() {
            return Ok(None);
        }
        let bytes = encode_images(&images).map_err(|error| {
            LayoutError::new(ErrorKind::Invalid, format!("its {MANIFEST_JSON} cannot be written: {error}"))
        })?;
        Ok((written.as_ref() != Some(&bytes)).then_some(bytes))
    }

    fn set_docker_image(
        &self,
        images: &mut DockerImages,
        repository: &QualifiedRepositoryName,
        tag: &Tag,
        root: &Descriptor,
    ) {
        if DigestTag::parse_tag(tag.as_str()).is_none() {
            let found = self.find_docker_image(root, 0, &mut HashSet::new());
            images.set(familiar(repository, tag), found.map(|(_, image)| image));
        }
    }

    /// Returns config and layers of an image that is whole here; of several platforms, this machine's. Each manifest is read
    /// once, however many indexes list it.
    fn find_docker_image(
        &self,
        root: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) -> Option<(Option<Platform>, DockerImage)> {
        if depth == MAX_INDEX_DEPTH || !seen.insert(root.digest.clone()) {
            return None;
        }
        let manifest = self.read_manifest(root).ok()?;
        match manifest.kind() {
            ManifestKind::Image { config, layers } => {
                let config = config.as_ref().filter(|config| is_image_config(&config.media_type))?;
                let is_here = |blob: &Descriptor| {
                    self.open_blob_file(&blob.digest).is_ok_and(|file| file.is_some_and(|file| file.len() == blob.size))
                };
                let is_whole = is_here(config) && layers.iter().all(is_here);
                let layers = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
                let image = DockerImage { config: blob_path(&config.digest), repo_tags: Vec::new(), layers };
                is_whole.then_some((root.platform.clone(), image))
            }
            ManifestKind::Index { .. } => {
                let is_candidate = |child: &Descriptor| {
                    child.media_type.is_index() || child.platform.as_ref().is_none_or(Platform::names_a_system)
                };
                let candidates = manifest.children().into_iter().filter(|child| is_candidate(child));
                let found: Vec<_> =
                    candidates.filter_map(|child| self.find_docker_image(child, depth + 1, seen)).collect();
                choose_platform(&found, &machine_platform()).cloned()
            }
        }
    }
}

/// Images by name, in the order in which they came.
struct DockerImages {
    images: Vec<DockerImage>,
}

impl DockerImages {
    /// Sets the image with a name; `None` if docker's format has no form for it.
    fn set(&mut self, name: String, image: Option<DockerImage>) {
        for known in &mut self.images {
            known.repo_tags.retain(|other| *other != name);
        }
        self.images.retain(|known| !known.repo_tags.is_empty());
        let Some(image) = image else { return };
        let same = |known: &&mut DockerImage| known.config == image.config && known.layers == image.layers;
        match self.images.iter_mut().find(same) {
            Some(known) => known.repo_tags.push(name),
            None => self.images.push(DockerImage { repo_tags: vec![name], ..image }),
        }
    }
}

fn read_bytes(root: &SafeDir) -> Result<Option<Vec<u8>>, LayoutError> {
    let Some((file, size)) = root.open_file(MANIFEST_JSON)? else { return Ok(None) };
    if size > MAX_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| root.io_error(MANIFEST_JSON, "reading", error))?;
    Ok(Some(bytes))
}
