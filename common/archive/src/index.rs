//! `index.json` of an archive: images, and what refers to them, with the annotations that each loader looks for.

use std::collections::BTreeMap;
use std::fmt;

use imgsync_layout::DIGEST_TAG_NAME;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Reference, Tag};
use serde::Serialize;

/// Annotation with an image's name, read by skopeo, podman and regctl.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with an image's full name, read by containerd, docker and hauler.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation of a descriptor that refers to another one; containerd makes no image of it.
const SUBJECT: &str = "io.containerd.manifest.subject";

/// Name of an image in an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArchivedName {
    /// A full name, with a tag.
    Full(Reference),
    /// A tag alone.
    Tag(Tag),
}

/// An image, or a manifest that refers to one, for `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveImage {
    /// Name; without one the image can be found by its digest only.
    pub name: Option<ArchivedName>,
    /// Manifest or index.
    pub root: Descriptor,
    /// Digest of the manifest that this one refers to, for a signature or another referrer. With a name, this is a digest
    /// tag, which loaders do not see as an image.
    pub subject: Option<Digest>,
}

impl ArchiveImage {
    /// Creates an image with a full name.
    pub fn new(name: Reference, root: Descriptor) -> ArchiveImage {
        ArchiveImage { name: Some(ArchivedName::Full(name)), root, subject: None }
    }

    /// Creates a manifest that refers to another one.
    pub fn referrer(subject: Digest, root: Descriptor) -> ArchiveImage {
        ArchiveImage { name: None, root, subject: Some(subject) }
    }

    /// Returns the descriptor with all annotations. Names in annotations of the content itself are dropped: they would
    /// name a referrer like an image.
    fn described(&self) -> Descriptor {
        let mut root = Descriptor { urls: Vec::new(), data: None, ..self.root.clone() };
        root.annotations
            .retain(|key, _| ![REF_NAME, CONTAINERD_NAME, DIGEST_TAG_NAME, SUBJECT].contains(&key.as_str()));
        let mut annotate = |key: &str, value: String| _ = root.annotations.insert(key.to_owned(), value);
        match (&self.name, &self.subject) {
            (Some(name), Some(_)) => annotate(DIGEST_TAG_NAME, name.to_string()),
            (Some(ArchivedName::Full(name)), None) => {
                annotate(REF_NAME, name.to_string());
                annotate(CONTAINERD_NAME, name.to_string());
            }
            (Some(ArchivedName::Tag(tag)), None) => annotate(REF_NAME, tag.to_string()),
            (None, _) => {}
        }
        if let Some(subject) = &self.subject {
            annotate(SUBJECT, subject.to_string());
        }
        root
    }

    /// Returns the order in an archive: images by name, images without one, then referrers.
    pub(crate) fn sort_key(&self) -> impl Ord + use<> {
        let name = self.name.as_ref().map(ToString::to_string);
        (self.subject.is_some(), name.is_none(), name, self.subject.clone(), self.root.digest.clone())
    }
}

impl fmt::Display for ArchivedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchivedName::Full(name) => name.fmt(f),
            ArchivedName::Tag(tag) => tag.fmt(f),
        }
    }
}

/// Serializes `index.json`, one image per line.
pub(crate) fn encode_index(images: &[ArchiveImage]) -> Result<Vec<u8>> {
    let mut text =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#.to_vec();
    for (at, image) in images.iter().enumerate() {
        text.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        encode(&mut text, &image.described())?;
    }
    text.extend_from_slice(b"\n]}\n");
    Ok(text)
}

/// Appends a value as JSON.
pub(crate) fn encode(text: &mut Vec<u8>, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *text, value)
        .map_err(|error| Error::new(ErrorKind::Invalid, "planning an archive", error.to_string()))
}

/// Checks that no two images have the same name.
pub(crate) fn check_names(images: &[ArchiveImage]) -> Result<()> {
    let mut names: BTreeMap<String, &Digest> = BTreeMap::new();
    for image in images {
        let Some(name) = &image.name else { continue };
        if let Some(other) = names.insert(name.to_string(), &image.root.digest)
            && *other != image.root.digest
        {
            let detail = format!("two images have the name {name}: {other} and {}", image.root.digest);
            return Err(Error::new(ErrorKind::Collision, "planning an archive", detail));
        }
    }
    Ok(())
}
