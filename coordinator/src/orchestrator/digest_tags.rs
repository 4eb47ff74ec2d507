//! Digest tags in a listing: cosign's, and indexes of referrers. They are never selected; they show whether an image
//! has something new.

use std::collections::{BTreeSet, HashMap};

use imgsync_oci::{Digest, DigestTag, DigestTagHints};

use crate::discovery::RepositoryListing;

/// Digest tags in one or several listings, by tag prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DigestTagIndex {
    by_stem: HashMap<Box<str>, Vec<(DigestTag, Option<Digest>)>>,
}

impl DigestTagIndex {
    /// Finds the digest tags in a listing, with their digests if listed.
    pub fn from_listing(listing: &RepositoryListing) -> DigestTagIndex {
        let mut digest_tags = DigestTagIndex::default();
        for listed in &listing.tags {
            if let Some((stem, kind)) = DigestTag::parse_tag(&listed.tag) {
                digest_tags.by_stem.entry(stem.into()).or_default().push((kind, listed.digest.clone()));
            }
        }
        digest_tags
    }

    /// Returns hints that hold for every image of the repository.
    pub fn hints(&self) -> DigestTagHints {
        let kinds: BTreeSet<DigestTag> = self.by_stem.values().flatten().map(|(kind, _)| *kind).collect();
        DigestTagHints::from_listing(kinds)
    }

    /// Returns the digest tags of one image.
    pub fn for_image(&self, image: &Digest) -> &[(DigestTag, Option<Digest>)] {
        self.by_stem.get(image.fallback_tag().as_str()).map_or(&[], Vec::as_slice)
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_stem.is_empty()
    }

    /// Merges another index. If two repositories share an image, either may have what is new.
    pub fn merge(&mut self, other: DigestTagIndex) {
        for (stem, digest_tags) in other.by_stem {
            let known = self.by_stem.entry(stem).or_default();
            for digest_tag in digest_tags {
                if !known.contains(&digest_tag) {
                    known.push(digest_tag);
                }
            }
        }
    }
}
