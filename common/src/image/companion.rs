//! Tags that belong to an image and are none of its own: cosign's signatures, attestations and SBOMs, and the index of
//! referrers of registries without the API (OCI distribution-spec v1.1, "Referrers tag schema").

use super::{Digest, Tag};

/// What stands under a companion's tag.
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
    /// Those that cosign writes.
    pub const COSIGN: [Companion; 3] = [Companion::Signature, Companion::Attestation, Companion::Sbom];

    fn suffix(self) -> &'static str {
        match self {
            Companion::Signature => ".sig",
            Companion::Attestation => ".att",
            Companion::Sbom => ".sbom",
            Companion::Referrers => "",
        }
    }

    /// The tag of this kind that belongs to a manifest.
    pub fn tag_of(self, subject: &Digest) -> Tag {
        Tag::of_checked(format!("{}{}", subject.fallback_tag(), self.suffix()))
    }

    /// Reads a tag: which one it is, and the beginning that it has in common with all tags of the same manifest. `None`
    /// for a tag of an image of its own.
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

/// What the listing of a source's repository shows of companions: nothing is known by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Company(u8);

/// The repository was listed.
const LISTED: u8 = 1;
/// There is something new.
const NEWS: u8 = 2;

impl Company {
    /// A listing that shows these kinds, whatever image they belong to.
    pub fn listed(kinds: impl IntoIterator<Item = Companion>) -> Company {
        Company(kinds.into_iter().fold(LISTED, |bits, kind| bits | kind.bit()))
    }

    /// The same, and the image has companions that it had not when it was looked at last.
    #[must_use]
    pub fn with_news(self) -> Company {
        Company(self.0 | NEWS)
    }

    /// Whether the image is known to have new companions.
    pub fn has_news(self) -> bool {
        self.0 & NEWS != 0
    }

    /// Whether the repository was listed, so that what was not seen is not there.
    pub fn is_listed(self) -> bool {
        self.0 & LISTED != 0
    }

    /// Whether images of the repository may have such companions.
    pub fn may_have(self, kind: Companion) -> bool {
        !self.is_listed() || self.0 & kind.bit() != 0
    }

    /// As six bits; 0 where nothing is known.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Reads what [`Company::bits`] gave; bits that mean nothing are left out.
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
