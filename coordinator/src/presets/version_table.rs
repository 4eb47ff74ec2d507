//! Tables of versions and the images of each.

use serde::Deserialize;

/// Table of a product's versions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VersionTable {
    /// Preset that the table belongs to.
    pub(super) preset: String,
    /// Product of the versions.
    pub(super) product: String,
    /// Registry and path.
    pub(super) at: String,
    /// Repositories with the version as their tag.
    pub(super) components: Vec<String>,
    /// Releases in ascending order.
    #[serde(rename = "release")]
    pub(super) releases: Vec<ReleaseImages>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseImages {
    pub(super) from: String,
    /// `repository:tag`.
    pub(super) images: Vec<String>,
}

/// Major, minor, patch.
pub(super) type VersionTriple = (u64, u64, u64);

/// Parses the numbers of `v1.30.5` or `1.30.5-rc.1`; a missing patch is 0.
pub(super) fn parse_triple(text: &str) -> Option<VersionTriple> {
    let plain = text.trim_start_matches('v');
    let plain = plain.split_once(['-', '+']).map_or(plain, |(plain, _)| plain);
    let mut numbers = plain.split('.').map(str::parse);
    let mut next = || numbers.next().transpose().ok();
    Some((next()??, next()??, next()?.unwrap_or(0)))
}
