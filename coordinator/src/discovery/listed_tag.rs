//! Tags as registries list them.

use imgsync_oci::{Digest, MediaType};
use jiff::Timestamp;

/// A tag with the properties that its registry lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTag {
    /// Tag as listed; it may be invalid by the specification.
    pub tag: String,
    /// Digest that it points at. `None` also if the listing contradicts itself.
    pub digest: Option<Digest>,
    /// Date of push, else of build.
    pub created: Option<Timestamp>,
    /// Media type of the manifest.
    pub media_type: Option<MediaType>,
}
