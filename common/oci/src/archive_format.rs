//! Formats of image archives: tar files that hold images.

use std::fmt;

/// Format of an image archive. A file can be in both formats at once; the format then says how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchiveFormat {
    /// An image layout in a tar (`oci-layout`, `index.json`, `blobs/`), which keeps digests and all platforms.
    Oci,
    /// The format of `docker save` (`manifest.json`), without the images' own manifests.
    Docker,
}

impl ArchiveFormat {
    /// All formats.
    pub const ALL: [ArchiveFormat; 2] = [ArchiveFormat::Oci, ArchiveFormat::Docker];

    /// Returns the prefix of a location in this format, as in skopeo and podman.
    pub fn scheme(self) -> &'static str {
        match self {
            ArchiveFormat::Oci => "oci-archive:",
            ArchiveFormat::Docker => "docker-archive:",
        }
    }

    /// Splits the prefix from a location; `None` if it has none of them.
    pub fn split_scheme(text: &str) -> Option<(ArchiveFormat, &str)> {
        ArchiveFormat::ALL.into_iter().find_map(|format| Some((format, text.strip_prefix(format.scheme())?)))
    }
}

impl fmt::Display for ArchiveFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme().trim_end_matches(':'))
    }
}
