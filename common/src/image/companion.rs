//! Digest tags: cosign's signature, attestation and SBOM tags, and the referrers tag of registries without the
//! referrers API (OCI distribution-spec v1.1, "Referrers tag schema").

use super::{Digest, Tag};

/// Kind of a digest tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Companion {
    /// `sha256-….sig`
    Signature,
    /// `sha256-….att`
    Attestation,
    /// `sha256-….sbom`
    Sbom,
    /// `sha256-…`, an index of referrers.
    Referrers,
}

impl Companion {
    /// The kinds that cosign writes.
    pub const COSIGN: [Companion; 3] = [Companion::Signature, Companion::Attestation, Companion::Sbom];

    fn suffix(self) -> &'static str {
        match self {
            Companion::Signature => ".sig",
            Companion::Attestation => ".att",
            Companion::Sbom => ".sbom",
            Companion::Referrers => "",
        }
    }

    /// Returns the tag of this kind for a manifest.
    pub fn tag_of(self, subject: &Digest) -> Tag {
        Tag::of_checked(format!("{}{}", subject.fallback_tag(), self.suffix()))
    }

    /// Parses a tag into the stem that all digest tags of one manifest share, and its kind. Returns `None` for any
    /// other tag.
    pub fn read(tag: &str) -> Option<(&str, Companion)> {
        let (stem, kind) = match tag.split_once('.') {
            None => (tag, Companion::Referrers),
            Some((stem, "sig")) => (stem, Companion::Signature),
            Some((stem, "att")) => (stem, Companion::Attestation),
            Some((stem, "sbom")) => (stem, Companion::Sbom),
            Some(_) => return None,
        };
        let hex = stem.strip_prefix("sha256-").or_else(|| stem.strip_prefix("sha512-"))?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then_some((stem, kind))
    }

    fn bit(self) -> u8 {
        match self {
            Companion::Signature => 4,
            Companion::Attestation => 8,
            Companion::Sbom => 16,
            Companion::Referrers => 32,
        }
    }
}

/// Digest tags seen in the listing of a source repository. By default nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Company(u8);

/// The repository was listed.
const LISTED: u8 = 1;
/// The image has new digest tags.
const NEWS: u8 = 2;

impl Company {
    /// Builds hints from a listing that contains these kinds, for any image of the repository.
    pub fn listed(kinds: impl IntoIterator<Item = Companion>) -> Company {
        Company(kinds.into_iter().fold(LISTED, |bits, kind| bits | kind.bit()))
    }

    /// Marks the image as having digest tags that it did not have at the last check.
    #[must_use]
    pub fn with_news(self) -> Company {
        Company(self.0 | NEWS)
    }

    /// Whether the image is known to have new digest tags.
    pub fn has_news(self) -> bool {
        self.0 & NEWS != 0
    }

    /// Whether the repository was listed: a kind that was not seen is then absent.
    pub fn is_listed(self) -> bool {
        self.0 & LISTED != 0
    }

    /// Whether images of the repository may have digest tags of this kind.
    pub fn may_have(self, kind: Companion) -> bool {
        !self.is_listed() || self.0 & kind.bit() != 0
    }

    /// Encodes the hints as six bits; 0 if nothing is known.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Decodes [`Company::bits`], ignoring unknown bits.
    pub fn from_bits(bits: u8) -> Company {
        Company(bits & 0x3f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_told_by_their_tags_and_name_their_image() {
        let subject = Digest::sha256(b"image");
        for kind in Companion::COSIGN.into_iter().chain([Companion::Referrers]) {
            let tag = kind.tag_of(&subject);
            assert_eq!(Companion::read(tag.as_str()), Some((subject.fallback_tag().as_str(), kind)));
        }
        for own in ["latest", "sha256-abc", "sha256-abc.sig", "1.0.sig", &format!("sha256-{}.foo", "0".repeat(64))] {
            assert_eq!(Companion::read(own), None, "{own}");
        }
        let long = Digest::of(crate::image::Algorithm::Sha512, b"image");
        assert!(Companion::read(Companion::Sbom.tag_of(&long).as_str()).is_some());
    }

    #[test]
    fn what_was_not_listed_may_be_there_and_what_was_listed_is_as_it_was_seen() {
        assert!(Company::default().may_have(Companion::Sbom));
        let seen = Company::listed([Companion::Signature]);
        assert!(seen.may_have(Companion::Signature) && !seen.may_have(Companion::Sbom) && !seen.has_news());
        assert_eq!(Company::from_bits(seen.with_news().bits()), seen.with_news());
    }
}
