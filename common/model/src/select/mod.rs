//! Selects repositories and tags by patterns, lenient versions, ranges, count and age. Pure: tags in, tags and reasons
//! out.
//!
//! A [`TagSelection`] applies its filters in this order, and gives a [`DropReason`] for each tag that it drops: a valid tag →
//! `exclude` → `include` → `semver` → `since` → `newest`.

mod drop_counts;
mod pattern;
mod range;
mod repositories;
mod selection;
mod version;

pub use drop_counts::DropCounts;
pub use pattern::{TagPattern, TagPatternError};
pub use range::{VersionRange, VersionRangeError};
pub use repositories::{RepositoryPattern, RepositoryPatternError};
pub use selection::{
    DropReason, Newest, NewestBy, SelectionContradiction, SelectionResult, Since, TagCandidate, TagSelection,
    compare_tags, is_valid_tag,
};
pub use version::Version;
