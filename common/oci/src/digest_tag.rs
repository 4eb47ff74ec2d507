//! Digest tags: cosign's signature, attestation and SBOM tags, and the referrers tag of registries without the
//! referrers API (OCI distribution-spec v1.1, "Referrers tag schema").

use super::{Digest, Tag};

/// Kind of a digest tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestTag {
    /// `sha256-….sig`
    Signature,
    /// `sha256-….att`
    Attestation,
    /// `sha256-….sbom`
    Sbom,
    /// `sha256-…`, an index of referrers.
    Referrers,
}

impl DigestTag {
    /// The kinds that cosign writes.
    pub const COSIGN: [DigestTag; 3] = [DigestTag::Signature, DigestTag::Attestation, DigestTag::Sbom];

    fn suffix(self) -> &'static str {
        match self {
            DigestTag::Signature => ".sig",
            DigestTag::Attestation => ".att",
            DigestTag::Sbom => ".sbom",
            DigestTag::Referrers => "",
        }
    }

    /// Returns the tag of this kind for a manifest.
    pub fn tag_for(self, subject: &Digest) -> Tag {
        Tag::from_checked(format!("{}{}", subject.fallback_tag(), self.suffix()))
    }

    /// Parses a tag into the stem that all digest tags of one manifest share, and its kind. Returns `None` for any
    /// other tag.
    pub fn parse_tag(tag: &str) -> Option<(&str, DigestTag)> {
        let (stem, kind) = match tag.split_once('.') {
            None => (tag, DigestTag::Referrers),
            Some((stem, "sig")) => (stem, DigestTag::Signature),
            Some((stem, "att")) => (stem, DigestTag::Attestation),
            Some((stem, "sbom")) => (stem, DigestTag::Sbom),
            Some(_) => return None,
        };
        let hex = stem.strip_prefix("sha256-").or_else(|| stem.strip_prefix("sha512-"))?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then_some((stem, kind))
    }

    /// Returns the digest of the manifest that a digest tag names; `None` if the tag has only a part of it, or is another
    /// tag.
    pub fn subject(tag: &str) -> Option<Digest> {
        Self::parse_tag(tag)?.0.replacen('-', ":", 1).parse().ok()
    }

    fn bit(self) -> u8 {
        match self {
            DigestTag::Signature => 4,
            DigestTag::Attestation => 8,
            DigestTag::Sbom => 16,
            DigestTag::Referrers => 32,
        }
    }
}

/// Digest tags seen in the listing of a source repository. By default nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DigestTagHints(u8);

/// The repository was listed.
const LISTED_BIT: u8 = 1;
/// The image has new digest tags.
const NEW_BIT: u8 = 2;

impl DigestTagHints {
    /// Builds hints from a listing that contains these kinds, for any image of the repository.
    pub fn from_listing(kinds: impl IntoIterator<Item = DigestTag>) -> DigestTagHints {
        DigestTagHints(kinds.into_iter().fold(LISTED_BIT, |bits, kind| bits | kind.bit()))
    }

    /// Marks the image as having digest tags that it did not have at the last check.
    #[must_use]
    pub fn with_new(self) -> DigestTagHints {
        DigestTagHints(self.0 | NEW_BIT)
    }

    /// Whether the image is known to have new digest tags.
    pub fn has_new(self) -> bool {
        self.0 & NEW_BIT != 0
    }

    /// Whether the repository was listed: a kind that was not seen is then absent.
    pub fn is_listed(self) -> bool {
        self.0 & LISTED_BIT != 0
    }

    /// Whether images of the repository may have digest tags of this kind.
    pub fn may_have(self, kind: DigestTag) -> bool {
        !self.is_listed() || self.0 & kind.bit() != 0
    }

    /// Encodes the hints as six bits; 0 if nothing is known.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Decodes [`DigestTagHints::bits`], ignoring unknown bits.
    pub fn from_bits(bits: u8) -> DigestTagHints {
        DigestTagHints(bits & 0x3f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_tags_are_parsed_by_suffix_and_name_their_image() {
        let subject = Digest::sha256(b"image");
        for kind in DigestTag::COSIGN.into_iter().chain([DigestTag::Referrers]) {
            let tag = kind.tag_for(&subject);
            assert_eq!(DigestTag::parse_tag(tag.as_str()), Some((subject.fallback_tag().as_str(), kind)));
        }
        for own in ["latest", "sha256-abc", "sha256-abc.sig", "1.0.sig", &format!("sha256-{}.foo", "0".repeat(64))] {
            assert_eq!(DigestTag::parse_tag(own), None, "{own}");
        }
        let long = Digest::from_bytes(crate::Algorithm::Sha512, b"image");
        assert!(DigestTag::parse_tag(DigestTag::Sbom.tag_for(&long).as_str()).is_some());
    }

    #[test]
    fn what_was_not_listed_may_be_there_and_what_was_listed_is_as_it_was_seen() {
        assert!(DigestTagHints::default().may_have(DigestTag::Sbom));
        let seen = DigestTagHints::from_listing([DigestTag::Signature]);
        assert!(seen.may_have(DigestTag::Signature) && !seen.may_have(DigestTag::Sbom) && !seen.has_new());
        assert_eq!(DigestTagHints::from_bits(seen.with_new().bits()), seen.with_new());
    }
}
