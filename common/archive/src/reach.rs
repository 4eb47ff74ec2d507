//! Leaves out images whose content cannot be read.

use std::collections::{HashMap, HashSet};

use imgsync_oci::Digest;

use super::index::ArchiveImage;
use super::plan::{ArchivePlanner, References};

/// An image that is left out of an archive.
#[derive(Debug, Clone)]
pub struct LeftOutImage {
    /// The image.
    pub image: ArchiveImage,
    /// Digest of the content that it lacks.
    pub missing: Digest,
}

impl ArchivePlanner {
    /// Leaves out the images that need content which is missing, together with what refers to them, and returns them.
    /// What no image that is left needs, such as the rest of an image that could not be collected, is left out silently.
    pub fn leave_out(&mut self, missing: &HashSet<Digest>) -> Vec<LeftOutImage> {
        let mut referrers: HashMap<Digest, Vec<usize>> = HashMap::new();
        for (at, image) in self.images.iter().enumerate() {
            if let Some(subject) = &image.subject {
                referrers.entry(subject.clone()).or_default().push(at);
            }
        }
        let (mut needed, mut kept) = (HashSet::new(), HashSet::new());
        let mut left_out = Vec::new();
        for (at, image) in self.images.iter().enumerate().filter(|(_, image)| image.subject.is_none()) {
            let ReachedContent { contents, referrers } = self.reach(&image.root.digest, &referrers);
            let digest = |number: &u32| &self.contents[*number as usize].digest;
            match contents.iter().map(digest).find(|digest| missing.contains(digest)) {
                Some(digest) => left_out.push(LeftOutImage { image: image.clone(), missing: digest.clone() }),
                None => {
                    needed.extend(contents);
                    kept.extend(referrers);
                    kept.insert(at);
                }
            }
        }
        let mut at = 0..;
        self.images.retain(|_| at.next().is_some_and(|at| kept.contains(&at)));
        for (number, content) in self.contents.iter_mut().enumerate() {
            content.is_included &= u32::try_from(number).is_ok_and(|number| needed.contains(&number));
        }
        left_out
    }

    /// Finds the content of an image and of its referrers, and their positions among the images.
    fn reach(&self, root: &Digest, by_subject: &HashMap<Digest, Vec<usize>>) -> ReachedContent {
        let mut reach = ReachedContent::default();
        let mut open: Vec<u32> = self.by_digest.get(root).copied().into_iter().collect();
        while let Some(number) = open.pop() {
            if !reach.contents.insert(number) {
                continue;
            }
            match self.references.get(&number) {
                Some(References::Index { children }) => open.extend(children.iter().map(|(_, child)| *child)),
                Some(References::Image { config, layers, .. }) => open.extend(config.iter().chain(layers)),
                None => {}
            }
            for referrer in by_subject.get(&self.contents[number as usize].digest).into_iter().flatten() {
                reach.referrers.insert(*referrer);
                open.extend(self.by_digest.get(&self.images[*referrer].root.digest));
            }
        }
        reach
    }
}

/// What belongs to an image.
#[derive(Default)]
struct ReachedContent {
    contents: HashSet<u32>,
    referrers: HashSet<usize>,
}
