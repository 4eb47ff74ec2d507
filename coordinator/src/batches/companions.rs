//! What a listing shows of tags that belong to images: cosign's, and indexes of referrers. They are none of the tags that
//! are chosen; they tell whether an image has something new.

use std::collections::{BTreeSet, HashMap};

use imgsync_common::image::{Companion, Company, Digest};

use crate::enumerate::Listing;

/// The companions in one listing or several, by what their tags begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Companions {
    by_stem: HashMap<Box<str>, Vec<(Companion, Option<Digest>)>>,
}

impl Companions {
    /// Those that a listing shows, with their digests where it says them.
    pub fn of(listing: &Listing) -> Companions {
        let mut companions = Companions::default();
        for listed in &listing.tags {
            if let Some((stem, kind)) = Companion::read(&listed.tag) {
                companions.by_stem.entry(stem.into()).or_default().push((kind, listed.digest.clone()));
            }
        }
        companions
    }

    /// What is known of any image of the repository.
    pub fn company(&self) -> Company {
        let kinds: BTreeSet<Companion> = self.by_stem.values().flatten().map(|(kind, _)| *kind).collect();
        Company::listed(kinds)
    }

    /// Those of one image.
    pub fn of_image(&self, image: &Digest) -> &[(Companion, Option<Digest>)] {
        self.by_stem.get(image.fallback_tag().as_str()).map_or(&[], Vec::as_slice)
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.by_stem.is_empty()
    }

    /// These and others. Where two repositories have an image in common, either may have what is new.
    pub fn add(&mut self, other: Companions) {
        for (stem, companions) in other.by_stem {
            let known = self.by_stem.entry(stem).or_default();
            for companion in companions {
                if !known.contains(&companion) {
                    known.push(companion);
                }
            }
        }
    }
}
