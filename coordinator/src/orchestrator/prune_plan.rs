//! Finds target tags that a rule copied and whose source is gone (`prune`), while the sources are listed. They are
//! removed in `remove`.
//!
//! In doubt a tag stays: a source that could not be listed, or lists nothing, says nothing about its tags.

use std::collections::HashSet;
use std::time::Duration;

use imgsync_config::{PruneConfig, Rule, RuleTarget};
use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_model::naming;
use imgsync_model::select::{TagCandidate, TagSelection};
use imgsync_oci::error::Result;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::{Digest, RegistryName, RepositoryName, Tag};
use imgsync_store::{Store, TagProvenance, is_in_future};
use jiff::Timestamp;

use crate::discovery::RepositoryListing;
use crate::presets::SourceSelector;

/// A target tag that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneCandidate {
    /// Source tag that is gone.
    pub source: TagLocator,
    /// Target tag copied from it.
    pub target: TagLocator,
    /// Digest that was pushed there.
    pub digest: Digest,
}

/// Prune plan of one rule, built while its sources are listed.
#[derive(Debug)]
pub struct PrunePlan {
    /// Index of the rule.
    pub rule: usize,
    prune: PruneConfig,
    /// Number of tags that the rule has copied from the listed sources.
    made_tags: u64,
    candidates: Vec<PruneCandidate>,
    /// Tags whose provenance records are not signed with our key.
    unauthenticated: Vec<PruneCandidate>,
    /// Number of tags whose source has not been gone for long enough.
    waiting: u64,
    refusal: Option<String>,
    sources: HashSet<RepositoryLocator>,
    /// Source tags that may be there although listings do not show them.
    uncertain: HashSet<Tag>,
}

impl PrunePlan {
    /// Creates the prune plan of a rule, if the rule prunes.
    pub fn for_rule(rule: &Rule, index: usize) -> Option<PrunePlan> {
        let prune = rule.prune?;
        Some(PrunePlan {
            rule: index,
            prune,
            made_tags: 0,
            candidates: Vec::new(),
            unauthenticated: Vec::new(),
            waiting: 0,
            refusal: None,
            sources: HashSet::new(),
            uncertain: HashSet::new(),
        })
    }

    /// Blocks the removal of anything. The first reason is kept.
    pub fn refuse(&mut self, why: impl Into<String>) {
        self.refusal.get_or_insert_with(|| why.into());
    }

    /// Excepts source tags that may be there although listings do not show them: nothing is recorded of them.
    pub fn except(&mut self, uncertain: impl IntoIterator<Item = Tag>) {
        self.uncertain.extend(uncertain);
    }

    /// Returns the number of tags whose source has not been gone for long enough.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Takes the tags whose source is gone and whose provenance records are not signed with our key. They are kept.
    pub fn take_unauthenticated(&mut self) -> Vec<PruneCandidate> {
        std::mem::take(&mut self.unauthenticated)
    }

    /// Compares a complete listing with the tags copied from it. Records newly missing tags if `is_noted`.
    pub async fn compare_listing(
        &mut self,
        store: &dyn Store,
        (rule, part): (&Rule, Option<&SourceSelector>),
        listing: &RepositoryListing,
        now: Timestamp,
        is_noted: bool,
    ) -> Result<()> {
        let home = RepositoryLocator::in_registry(listing.registry.clone(), &listing.repository);
        let mut made = store.provenance_by_source(&home).await?;
        let of = (&listing.registry, &listing.repository);
        made.retain(|record| would_make(rule, part, of, record));
        for record in made.extract_if(.., |record| !record.is_authentic) {
            let due = candidate(&home, record);
            if listing.get(due.source.tag.as_str()).is_none() && !self.unauthenticated.contains(&due) {
                self.unauthenticated.push(due);
            }
        }
        if made.is_empty() {
            return Ok(());
        }
        if listing.tags.is_empty() {
            self.refuse(format!("{home} lists no tags, but {} target tags were copied from it", made.len()));
            return Ok(());
        }
        if self.sources.insert(home.clone()) {
            self.made_tags += made.len() as u64;
        }
        let mut changes = Vec::new();
        for record in made {
            if listing.get(record.source_tag.as_str()).is_some() {
                if record.missing_since.is_some() {
                    changes.push((record.target, None));
                }
                continue;
            }
            if self.uncertain.contains(&record.source_tag) {
                continue;
            }
            // A time in the future is unknown: the tag counts as missing from now on.
            let since = record.missing_since.filter(|since| !is_in_future(*since, now)).unwrap_or_else(|| {
                changes.push((record.target.clone(), Some(now)));
                now
            });
            if elapsed(since, now) < self.prune.grace_period {
                self.waiting += 1;
                continue;
            }
            let due = candidate(&home, record);
            if !self.candidates.contains(&due) {
                self.candidates.push(due);
            }
        }
        match is_noted {
            true => store.set_missing_since(&home, changes).await,
            false => Ok(()),
        }
    }

    /// Returns the tags to remove once all is listed, or why none is removed.
    pub fn finalize(self) -> Result<Vec<PruneCandidate>, String> {
        let due = self.candidates.len() as u64;
        match self.refusal {
            Some(why) => Err(why),
            None if !self.prune.limit.allows(due, self.made_tags) => Err(format!(
                "{} of {} would be removed, and the limit is {}",
                group_digits(due),
                pluralize(self.made_tags, "mirrored tag", "mirrored tags"),
                self.prune.limit
            )),
            None => Ok(self.candidates),
        }
    }
}

fn candidate(home: &RepositoryLocator, record: TagProvenance) -> PruneCandidate {
    let source = TagLocator { repository: home.clone().into(), tag: record.source_tag };
    PruneCandidate { source, target: record.target, digest: record.digest }
}

/// Returns whether a rule would write this target for this source repository; another rule may have written it.
pub(super) fn would_make(
    rule: &Rule,
    part: Option<&SourceSelector>,
    (from, of): (&RegistryName, &RepositoryName),
    made: &TagProvenance,
) -> bool {
    let Some((registry, repository)) = made.target.repository.registry() else { return false };
    let original = part.and_then(|part| part.original_name(from, of));
    let record =
        naming::SourceName { registry: from, repository: of, tag: &made.source_tag, original: original.as_deref() };
    let is_there = |to: &RuleTarget| match to {
        RuleTarget::Layout(_) | RuleTarget::Archive(..) => false,
        RuleTarget::Registry(base) => rule.style_at(to).target_name(base, &record).is_ok_and(|name| {
            name.registry == *registry && name.repository == repository && name.tag == made.target.tag
        }),
    };
    rule.to.iter().any(is_there) && selects(rule, part, &made.source_tag)
}

/// Returns whether a rule selects a tag, regardless of its age and of newer tags.
fn selects(rule: &Rule, part: Option<&SourceSelector>, tag: &Tag) -> bool {
    let selection = TagSelection { since: None, newest: None, min: None, ..rule.selection.clone() };
    let tag = std::iter::once(TagCandidate { tag: tag.as_str().to_owned(), created: None });
    let evaluation = match part {
        Some(part) => part.evaluate(&selection, tag, Timestamp::UNIX_EPOCH),
        None => selection.evaluate(tag, Timestamp::UNIX_EPOCH),
    };
    evaluation.dropped.is_empty()
}

pub(super) fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
}
