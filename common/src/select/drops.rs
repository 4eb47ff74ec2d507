//! Counts of dropped tags by reason.

use std::collections::BTreeMap;
use std::fmt;

use super::Reason;

/// Number of dropped tags by reason, in the order of the filters. Its size depends on the number of filters, not on the
/// number of tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<(Stage, String), u64>);

/// Filter that dropped a tag, in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Tag,
    Exclude,
    Include,
    Semver,
    Since,
    Newest,
    Elsewhere,
}

impl Drops {
    /// Counts a dropped tag.
    pub fn add(&mut self, reason: &Reason) {
        let stage = match reason {
            Reason::NotATag | Reason::Companion => Stage::Tag,
            Reason::Excluded(_) => Stage::Exclude,
            Reason::NotIncluded => Stage::Include,
            Reason::NotAVersion | Reason::OtherPrefixes { .. } | Reason::OutOfRange { .. } => Stage::Semver,
            Reason::NoDate | Reason::TooOld { .. } => Stage::Since,
            Reason::NotNewest { .. } => Stage::Newest,
            Reason::Elsewhere(_) => Stage::Elsewhere,
        };
        *self.0.entry((stage, reason.in_general())).or_default() += 1;
    }

    /// Returns the total of dropped tags.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl<'r> FromIterator<&'r Reason> for Drops {
    fn from_iter<I: IntoIterator<Item = &'r Reason>>(reasons: I) -> Self {
        let mut drops = Self::default();
        reasons.into_iter().for_each(|reason| drops.add(reason));
        drops
    }
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ((_, reason), count)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{count} {reason}")?;
        }
        Ok(())
    }
}
