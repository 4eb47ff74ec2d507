//! Counts of dropped tags by reason.

use std::collections::BTreeMap;
use std::fmt;

use super::DropReason;
use imgsync_oci::humanize::group_digits;

/// Number of dropped tags by reason, in the order of the filters. Its size depends on the number of filters, not on the
/// number of tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropCounts(BTreeMap<(FilterStage, String), u64>);

/// Filter that dropped a tag, in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FilterStage {
    Tag,
    Exclude,
    Include,
    Semver,
    Since,
    Newest,
    Elsewhere,
}

impl DropCounts {
    /// Counts a dropped tag.
    pub fn add(&mut self, reason: &DropReason) {
        let stage = match reason {
            DropReason::NotATag | DropReason::DigestTag => FilterStage::Tag,
            DropReason::Excluded(_) => FilterStage::Exclude,
            DropReason::NotIncluded => FilterStage::Include,
            DropReason::NotAVersion | DropReason::OtherPrefixes { .. } | DropReason::OutOfRange { .. } => {
                FilterStage::Semver
            }
            DropReason::NoDate | DropReason::TooOld { .. } => FilterStage::Since,
            DropReason::BeyondNewest { .. } => FilterStage::Newest,
            DropReason::DuplicateInPreset(_) => FilterStage::Elsewhere,
        };
        *self.0.entry((stage, reason.summary())).or_default() += 1;
    }

    /// Returns the total of dropped tags.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl<'r> FromIterator<&'r DropReason> for DropCounts {
    fn from_iter<I: IntoIterator<Item = &'r DropReason>>(reasons: I) -> Self {
        let mut drops = Self::default();
        reasons.into_iter().for_each(|reason| drops.add(reason));
        drops
    }
}

impl fmt::Display for DropCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ((_, reason), count)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} {reason}", group_digits(*count))?;
        }
        Ok(())
    }
}
