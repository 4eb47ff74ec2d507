//! Pinned tags: an image that is named by digest is mirrored under a tag made from the digest, because registries remove
//! manifests without a tag.
//!
//! The tag is `digest-sha256-<hex>`. The shorter `sha256-<hex>` is the referrers tag of the same digest (OCI
//! distribution-spec v1.1, "Referrers tag schema"), so it is taken.

use super::{Algorithm, Digest, Tag};

const PREFIX: &str = "digest-";

impl Digest {
    /// Returns the tag under which an image with this digest is mirrored. A tag has no room for a SHA-512.
    pub fn pinned_tag(&self) -> Option<Tag> {
        match self.algorithm() {
            Algorithm::Sha256 => Some(Tag::from_checked(format!("{PREFIX}sha256-{}", self.hex()))),
            Algorithm::Sha512 => None,
        }
    }

    /// Whether a tag is the pinned tag of this digest.
    pub fn is_pinned_by(&self, tag: &Tag) -> bool {
        // Most tags end here.
        tag.as_str().starts_with(PREFIX) && self.pinned_tag().as_ref() == Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DigestTag;

    #[test]
    fn a_pinned_tag_is_valid_and_no_digest_tag() {
        let digest = Digest::sha256(b"image");
        let tag = digest.pinned_tag().unwrap();
        assert_eq!(tag.as_str(), format!("digest-sha256-{}", digest.hex()));
        assert_eq!(tag.as_str().parse::<Tag>().as_ref(), Ok(&tag));
        assert_eq!(DigestTag::parse_tag(tag.as_str()), None);
        assert!(digest.is_pinned_by(&tag) && !Digest::sha256(b"other").is_pinned_by(&tag));
        assert!(!digest.is_pinned_by(&Tag::latest()));
        assert_eq!(Digest::from_bytes(Algorithm::Sha512, b"image").pinned_tag(), None);
    }
}
