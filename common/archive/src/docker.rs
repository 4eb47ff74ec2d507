//! `manifest.json` of an archive: one platform of each image, for docker, podman and crane.

use imgsync_layout::docker_manifest::{MAX_IMAGES, MAX_MANIFEST_JSON_BYTES};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::{ArchiveFormat, Platform};

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
    /// Number of names in it.
    pub names: usize,
    /// Its size in bytes.
    pub list_size: u64,
}

/// What loaders of docker's format get of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerFact {
    /// The text, without a period.
    pub text: String,
    /// Whether an image is missing there.
    pub is_loss: bool,
}

impl DockerSummary {
    /// Says what loaders of docker's format do not get, a line for each fact.
    pub fn describe(&self) -> Vec<DockerFact> {
        let mut lines = Vec::new();
        if let Some(platform) = &self.platform {
            let images = pluralize(self.reduced as u64, "image", "images");
            let text = format!(
                "docker load and podman load get {platform} of {images} with several platforms; readers of OCI archives get all"
            );
            lines.push(DockerFact { text, is_loss: false });
        }
        if self.left_out > 0 {
            let left_out = self.describe_left_out();
            let text = format!("docker load and podman load do not get {left_out}: docker's format has no form for it");
            lines.push(DockerFact { text, is_loss: true });
        }
        lines
    }

    /// Fails if an archive in this format would have no image at all, or more than imgsync reads of that format.
    pub fn check(&self, format: ArchiveFormat, operation: &str) -> Result<()> {
        let is_beyond = self.images.max(self.names) > MAX_IMAGES || self.list_size > MAX_MANIFEST_JSON_BYTES;
        if format == ArchiveFormat::Docker && is_beyond {
            let most = MAX_MANIFEST_JSON_BYTES >> 20;
            let detail = format!("manifest.json would have more than {MAX_IMAGES} images or names, or than {most} MiB");
            return Err(Error::new(ErrorKind::Unsupported, operation, detail)
                .with_hint("write several archives, or one as oci-archive:FILE"));
        }
        if format != ArchiveFormat::Docker || self.images > 0 {
            return Ok(());
        }
        let left_out = self.describe_left_out();
        let detail = format!("docker's format has no form for {left_out}: no image with a config and layers");
        Err(Error::new(ErrorKind::Unsupported, operation, detail)
            .with_hint("write it as oci-archive:FILE, which skopeo, ctr and imgsync read"))
    }

    fn describe_left_out(&self) -> String {
        let named = self.left_out_names.join(", ");
        match self.left_out - self.left_out_names.len() {
            0 => named,
            more => format!("{named} and {} more", group_digits(more as u64)),
        }
    }

    pub(crate) fn leave_out(&mut self, name: String) {
        self.left_out += 1;
        if self.left_out_names.len() < MAX_NAMED_IMAGES {
            self.left_out_names.push(name);
        }
    }
}
