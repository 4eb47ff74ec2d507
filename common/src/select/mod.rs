//! Selects repositories and tags by patterns, lenient versions, ranges, count and age. Pure: tags in, tags and reasons
//! out.
//!
//! A [`Selection`] applies its filters in this order, and gives a [`Reason`] for each tag that it drops: a valid tag →
//! `exclude` → `include` → `semver` → `since` → `newest`.

mod drops;
mod pattern;
mod range;
mod repositories;
mod selection;
mod version;

pub use drops::Drops;
pub use pattern::{PatternError, TagPattern};
pub use range::{RangeError, VersionRange};
pub use repositories::{RepositoryPattern, RepositoryPatternError};
pub use selection::{
    Candidate, Contradiction, Evaluation, Newest, NewestBy, Reason, Selection, Since, compare_tags, is_tag,
};
pub use version::Version;
