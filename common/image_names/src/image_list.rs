//! Images of many files, each once.

use std::collections::{BTreeMap, BTreeSet};

use imgsync_oci::{Digest, Reference};

use crate::recorder::{Certainty, FileScan, ImagePlace};

/// Maximum number of places that are remembered for an image.
pub(crate) const MAX_PLACES: usize = 100;

/// An image, and where it was found.
#[derive(Debug, Clone)]
pub struct ListedImage {
    /// Whether some place names it for sure.
    pub certainty: Certainty,
    /// Digests that run under this name.
    pub running: BTreeSet<Digest>,
    /// The first places, those of fields first.
    pub places: Vec<(Certainty, ImagePlace)>,
    /// Number of all places.
    pub place_count: usize,
}

/// Images by name, in order.
#[derive(Debug, Clone, Default)]
pub struct ImageList {
    images: BTreeMap<Reference, ListedImage>,
}

impl ImageList {
    /// Adds the images of a file.
    pub fn add(&mut self, scan: &mut FileScan) {
        for found in std::mem::take(&mut scan.found) {
            let image = self.images.entry(found.image).or_insert_with(|| ListedImage {
                certainty: Certainty::Perhaps,
                running: BTreeSet::new(),
                places: Vec::new(),
                place_count: 0,
            });
            image.certainty = image.certainty.min(found.certainty);
            image.running.extend(found.running);
            image.place_count += 1;
            if image.places.len() < MAX_PLACES {
                image.places.push((found.certainty, found.place));
            }
        }
    }

    /// Returns the images of a certainty, in order.
    pub fn iter(&self, certainty: Certainty) -> impl Iterator<Item = (&Reference, &ListedImage)> {
        self.images.iter().filter(move |(_, image)| image.certainty == certainty)
    }

    /// Returns the number of images of a certainty.
    pub fn count(&self, certainty: Certainty) -> usize {
        self.iter(certainty).count()
    }

    /// Returns where an image was found.
    pub fn get(&self, image: &Reference) -> Option<&ListedImage> {
        self.images.get(image)
    }

    /// Returns the number of all images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Returns all images, in order.
    pub fn all(&self) -> impl Iterator<Item = (&Reference, &ListedImage)> {
        self.images.iter()
    }
}
