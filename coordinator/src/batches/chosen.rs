//! Counts of selected and dropped tags, to report a rule that selects nothing.

use imgsync_common::config::Rule;
use imgsync_common::select::Drops;
use imgsync_common::store::EmptyRule;

use super::plan::Plan;
use crate::enumerate::Listing;
use crate::words::many;

/// Selection counts of one rule.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    repositories: u64,
    tags: u64,
    chosen: u64,
    drops: Drops,
    /// Something was not listed or was refused, which is reported as an error.
    is_told: bool,
}

impl Chosen {
    /// Adds the counts of a repository.
    pub(super) fn count(&mut self, listing: &Listing, plan: &Plan) {
        self.repositories += 1;
        self.tags += listing.tags.len() as u64;
        self.chosen += plan.chosen as u64;
        plan.dropped.iter().for_each(|(_, reason)| self.drops.add(reason));
        self.is_told |= plan.refused.is_some();
    }

    /// Records that something could not be listed.
    pub(super) fn missed(&mut self) {
        self.is_told = true;
    }

    /// Returns the report of a rule without selected tags, unless an error already explains that.
    pub(super) fn empty(&self, rule: &Rule, number: usize) -> Option<EmptyRule> {
        if self.chosen > 0 || self.is_told {
            return None;
        }
        let repositories = many(self.repositories, "repository has", "repositories have");
        let reason = match (self.repositories, self.tags) {
            (0, _) => "no repository is left of what it reads".to_owned(),
            (_, 0) => format!("{repositories} no tags"),
            (_, tags) => format!("none of {} is chosen: {}", many(tags, "tag", "tags"), self.drops),
        };
        Some(EmptyRule {
            rule: u32::try_from(number).unwrap_or(u32::MAX),
            from: rule.reads(),
            repositories: self.repositories,
            tags: self.tags,
            reason,
        })
    }
}

/// Returns the warning of a rule without selected tags.
pub(super) fn warning(rule: &Rule, empty: &EmptyRule) -> String {
    format!("{} chooses no tag: {} (`imgsync tags` names what is dropped, and why)", rule.place(), empty.reason)
}
