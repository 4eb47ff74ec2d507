//! Counts of selected and dropped tags, to report a rule that selects nothing.

use imgsync_config::Rule;
use imgsync_model::select::DropCounts;
use imgsync_oci::humanize::pluralize;
use imgsync_store::EmptyRule;

use super::plan::RepositoryPlan;
use crate::discovery::RepositoryListing;

/// Selection counts of one rule.
#[derive(Debug, Default)]
pub(super) struct SelectionCounts {
    repositories: u64,
    tags: u64,
    selected: u64,
    drops: DropCounts,
    /// Something was not listed or was refused, which is reported as an error.
    is_reported: bool,
}

impl SelectionCounts {
    /// Adds the counts of a repository.
    pub(super) fn add_listing(&mut self, listing: &RepositoryListing, plan: &RepositoryPlan) {
        self.repositories += 1;
        self.tags += listing.tags.len() as u64;
        self.selected += plan.chosen as u64;
        plan.dropped.iter().for_each(|(_, reason)| self.drops.add(reason));
        self.is_reported |= plan.refused.is_some();
    }

    /// Records that something could not be listed.
    pub(super) fn mark_incomplete(&mut self) {
        self.is_reported = true;
    }

    /// Returns the report of a rule without selected tags, unless an error already explains that.
    pub(super) fn empty_rule(&self, rule: &Rule, number: usize) -> Option<EmptyRule> {
        if self.selected > 0 || self.is_reported {
            return None;
        }
        let repositories = pluralize(self.repositories, "repository has", "repositories have");
        let reason = match (self.repositories, self.tags) {
            (0, _) => "no repository matches".to_owned(),
            (_, 0) => format!("{repositories} no tags"),
            (_, tags) => format!("none of {} is selected: {}", pluralize(tags, "tag", "tags"), self.drops),
        };
        Some(EmptyRule {
            rule: u32::try_from(number).unwrap_or(u32::MAX),
            from: rule.source_label(),
            repositories: self.repositories,
            tags: self.tags,
            reason,
        })
    }
}

/// Returns the warning of a rule without selected tags.
pub(super) fn empty_rule_warning(rule: &Rule, empty: &EmptyRule) -> String {
    format!("{} selects no tag: {} (`imgsync tags` shows the dropped tags and why)", rule.label(), empty.reason)
}
