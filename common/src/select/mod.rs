//! Which repositories, and which of their tags: patterns, lenient versions, ranges, the newest, the young. Pure: tags
//! in, tags and reasons out.
//!
//! A [`Selection`] goes through its sieves in this order, and every tag that does not come through is told why by a
//! [`Reason`]: a tag at all → `exclude` → `include` → `semver` → `since` → `newest`.

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
