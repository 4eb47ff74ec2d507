//! `manifest.json` of an archive: one platform of each image, for docker, podman and crane.

use imgsync_oci::error::Result;
use imgsync_oci::{MediaType, Platform};
use serde::Serialize;

use super::index::encode;

/// Images left out of `manifest.json` that a summary names.
const MAX_NAMED_IMAGES: usize = 3;

/// What `manifest.json` tells of the images. Readers of the layout (`index.json`) get all of them, with all platforms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerSummary {
    /// Number of images in it.
    pub images: usize,
    /// Number of images of which it has one of several platforms.
    pub reduced: usize,
    /// Platform of the first of these.
    pub platform: Option<Platform>,
    /// Number of named images that are not in it: artifacts, and images whose content is not in the archive.
    pub left_out: usize,
    /// Names of the first of these.
    pub left_out_names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) layers: Vec<String>,
}

impl DockerSummary {
    pub(crate) fn leave_out(&mut self, name: String) {
        self.left_out += 1;
        if self.left_out_names.len() < MAX_NAMED_IMAGES {
            self.left_out_names.push(name);
        }
    }
}

/// Whether a config is of an image, not of an artifact.
pub(crate) fn is_image_config(media_type: &MediaType) -> bool {
    matches!(
        media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// Selects the preferred platform, else linux/amd64, else the first.
pub(crate) fn choose_platform<'a, T>(
    children: &'a [(Option<Platform>, T)],
    preferred: &Platform,
) -> Option<&'a (Option<Platform>, T)> {
    let fallback =
        Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None, os_version: None };
    let find = |wanted: &Platform| {
        children.iter().find(|(platform, _)| platform.as_ref().is_some_and(|platform| platform.satisfies(wanted)))
    };
    find(preferred).or_else(|| find(&fallback)).or_else(|| children.first())
}

/// Serializes `manifest.json`, one image per line.
pub(crate) fn encode_images(images: &[DockerImage]) -> Result<Vec<u8>> {
    let mut text = b"[".to_vec();
    for (at, image) in images.iter().enumerate() {
        text.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        encode(&mut text, image)?;
    }
    text.extend_from_slice(b"\n]\n");
    Ok(text)
}
