//! Images needed by a product's versions: images tagged with the version, and images that it depends on.

use std::collections::BTreeMap;

use imgsync_model::select::{TagPattern, TagSelection, Version, VersionRange};

use super::selector::{Expectation, SourceSelector};
use super::version_table::{ReleaseImages, VersionTable, VersionTriple, parse_triple};

/// Upper limit for the patch releases of a minor version.
const MAX_PATCH_RELEASES: u64 = 100;
/// Number of minor versions after the newest known one that a range is checked for.
const MAX_MINORS_AHEAD: u64 = 100;
/// Pre-release labels; a range without any of these selects releases.
const PRE_RELEASE_LABELS: [&str; 3] = ["alpha", "beta", "rc"];

impl VersionTable {
    /// Returns the selectors for the images that a range of versions needs.
    pub(super) fn source_selectors(&self, range: &VersionRange) -> Vec<SourceSelector> {
        let glob = |text: &str| text.parse::<TagPattern>().ok();
        let plain = !PRE_RELEASE_LABELS.iter().any(|stage| range.as_str().contains(stage));
        let exclude =
            PRE_RELEASE_LABELS.iter().filter(|_| plain).filter_map(|stage| glob(&format!("*-{stage}*"))).collect();
        let selection = TagSelection { range: Some(range.clone()), exclude, ..TagSelection::default() };
        let known = self.releases.first().zip(self.releases.last());
        let known = known.and_then(|(first, last)| Some((parse_triple(&first.from)?, parse_triple(&last.from)?)));
        let components = self.components.iter().enumerate().filter_map(|(index, component)| {
            let pattern = format!("{}/{component}", self.at).parse().ok()?;
            // All components have the same versions: one of them reports unexpected ones.
            let expectation = known.filter(|_| index == 0).map(|(oldest, newest)| Expectation::Versions {
                of: self.product.clone(),
                oldest: (oldest.0, oldest.1),
                newest: (newest.0, newest.1),
            });
            Some(SourceSelector { pattern, selection: selection.clone(), expectation, home: None })
        });
        let mut images: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for release in self.matching_releases(range) {
            for (repository, tag) in release.images.iter().filter_map(|image| image.split_once(':')) {
                let tags = images.entry(repository).or_default();
                if !tags.contains(&tag) {
                    tags.push(tag);
                }
            }
        }
        let images = images.into_iter().filter_map(|(repository, tags)| {
            let pattern = format!("{}/{repository}", self.at).parse().ok()?;
            let include = tags.iter().filter_map(|tag| glob(tag)).collect();
            let selection = TagSelection { include, ..TagSelection::default() };
            let expectation = Some(Expectation::Tags { of: self.product.clone() });
            Some(SourceSelector { pattern, selection, expectation, home: None })
        });
        components.chain(images).collect()
    }

    /// Returns the releases of the table that a range matches. The last one also covers newer versions.
    fn matching_releases(&self, range: &VersionRange) -> Vec<&ReleaseImages> {
        let within = |version: VersionTriple| {
            Version::parse(&format!("v{}.{}.{}", version.0, version.1, version.2)).is_some_and(|v| range.contains(&v))
        };
        let mut needed = Vec::new();
        for (index, release) in self.releases.iter().enumerate() {
            let Some((major, minor, patch)) = parse_triple(&release.from) else { continue };
            let next = self.releases.get(index + 1).and_then(|next| parse_triple(&next.from));
            let end = next.filter(|next| (next.0, next.1) == (major, minor)).map_or(MAX_PATCH_RELEASES, |next| next.2);
            let newer = || {
                (minor + 1..=minor + MAX_MINORS_AHEAD)
                    .any(|minor| (0..MAX_PATCH_RELEASES).any(|patch| within((major, minor, patch))))
            };
            if (patch..end).any(|patch| within((major, minor, patch))) || (next.is_none() && newer()) {
                needed.push(release);
            }
        }
        needed
    }
}
