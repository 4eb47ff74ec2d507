//! Locations of images: [`ImageLocation`].

use std::fmt;

use imgsync_layout::{ArchiveRef, LayoutRef};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Reference, Tag};
use imgsync_registry::ManifestRef;

/// Location of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageLocation {
    /// In a registry.
    Registry(Reference),
    /// In an image layout on this machine.
    Layout(LayoutRef),
    /// In an archive on this machine.
    Archive(ArchiveRef),
}

impl ImageLocation {
    /// Returns the tag; `latest` for a registry reference without tag and digest.
    pub fn tag(&self) -> Option<Tag> {
        match self {
            ImageLocation::Registry(reference) => reference.tag_or_latest(),
            ImageLocation::Layout(layout) => layout.image.as_ref()?.tag(),
            ImageLocation::Archive(archive) => archive.image.as_ref()?.tag(),
        }
    }

    /// Returns the digest, if the location has one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            ImageLocation::Registry(reference) => reference.digest.as_ref(),
            ImageLocation::Layout(layout) => layout.image.as_ref()?.digest(),
            ImageLocation::Archive(archive) => archive.image.as_ref()?.digest(),
        }
    }

    /// Returns the manifest reference; the digest takes precedence over the tag.
    pub(super) fn manifest_ref(&self) -> Option<ManifestRef> {
        self.digest().cloned().map(ManifestRef::Digest).or_else(|| self.tag().map(ManifestRef::Tag))
    }
}

impl std::str::FromStr for ImageLocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageLocation> {
        let invalid = |error: String| Error::new(ErrorKind::Invalid, "reading a name", error);
        if LayoutRef::has_scheme(text) {
            let layout = text.parse().map(ImageLocation::Layout);
            return layout.map_err(|error: imgsync_layout::ParseLayoutRefError| invalid(error.to_string()));
        }
        if ArchiveRef::has_scheme(text) {
            let archive = text.parse().map(ImageLocation::Archive);
            return archive.map_err(|error: imgsync_layout::ParseArchiveRefError| invalid(error.to_string()));
        }
        let image = text.parse().map(ImageLocation::Registry);
        image.map_err(|error: imgsync_oci::ParseReferenceError| invalid(error.to_string()))
    }
}

impl fmt::Display for ImageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageLocation::Registry(reference) => reference.fmt(f),
            ImageLocation::Layout(layout) => layout.fmt(f),
            ImageLocation::Archive(archive) => archive.fmt(f),
        }
    }
}

impl serde::Serialize for ImageLocation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Reference> for ImageLocation {
    fn from(reference: Reference) -> ImageLocation {
        ImageLocation::Registry(reference)
    }
}
