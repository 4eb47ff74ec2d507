//! Finds target tags that a rule copied and whose source is gone (`prune`), while the sources are listed. They are
//! removed in `remove`.
//!
//! In doubt a tag stays: a source that could not be listed, or lists nothing, says nothing about its tags.

use std::collections::HashSet;
use std::time::Duration;

use imgsync_common::batch::{Home, Place};
use imgsync_common::config::{Destination, Prune, Rule};
use imgsync_common::error::Result;
use imgsync_common::image::{Digest, RegistryName, RepositoryName, Tag};
use imgsync_common::naming;
use imgsync_common::select::{Candidate, Selection};
use imgsync_common::store::{Origin, Store, is_ahead};
use jiff::Timestamp;

use crate::enumerate::Listing;
use crate::presets::Part;
use crate::words::many;

/// A target tag that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Source tag that is gone.
    pub source: Place,
    /// Target tag copied from it.
    pub target: Place,
    /// Digest that was pushed there.
    pub digest: Digest,
}

/// Prune plan of one rule, built while its sources are listed.
#[derive(Debug)]
pub struct Pruning {
    /// Index of the rule.
    pub rule: usize,
    prune: Prune,
    /// Number of tags that the rule has copied from the listed sources.
    made: u64,
    due: Vec<Due>,
    /// Tags whose provenance records are not signed with our key.
    unauthenticated: Vec<Due>,
    /// Number of tags whose source has not been gone for long enough.
    waiting: u64,
    refusal: Option<String>,
    sources: HashSet<Home>,
}

impl Pruning {
    /// Creates the prune plan of a rule, if the rule prunes.
    pub fn of(rule: &Rule, index: usize) -> Option<Pruning> {
        let prune = rule.prune?;
        Some(Pruning {
            rule: index,
            prune,
            made: 0,
            due: Vec::new(),
            unauthenticated: Vec::new(),
            waiting: 0,
            refusal: None,
            sources: HashSet::new(),
        })
    }

    /// Blocks the removal of anything. The first reason is kept.
    pub fn refuse(&mut self, why: impl Into<String>) {
        self.refusal.get_or_insert_with(|| why.into());
    }

    /// Returns the number of tags whose source has not been gone for long enough.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Takes the tags whose source is gone and whose provenance records are not signed with our key. They are kept.
    pub fn take_unauthenticated(&mut self) -> Vec<Due> {
        std::mem::take(&mut self.unauthenticated)
    }

    /// Compares a complete listing with the tags copied from it. Records newly missing tags if `is_noted`.
    pub async fn look(
        &mut self,
        store: &dyn Store,
        (rule, part): (&Rule, Option<&Part>),
        listing: &Listing,
        now: Timestamp,
        is_noted: bool,
    ) -> Result<()> {
        let home = Home::in_registry(listing.registry.clone(), &listing.repository);
        let mut made = store.origins(&home).await?;
        let of = (&listing.registry, &listing.repository);
        made.retain(|origin| would_make(rule, part, of, origin));
        for origin in made.extract_if(.., |origin| !origin.is_authentic) {
            let due = due(&home, origin);
            if listing.get(due.source.tag.as_str()).is_none() && !self.unauthenticated.contains(&due) {
                self.unauthenticated.push(due);
            }
        }
        if made.is_empty() {
            return Ok(());
        }
        if listing.tags.is_empty() {
            self.refuse(format!("{home} lists no tags at all, and {} were made of it", made.len()));
            return Ok(());
        }
        if self.sources.insert(home.clone()) {
            self.made += made.len() as u64;
        }
        let mut changes = Vec::new();
        for origin in made {
            if listing.get(origin.source_tag.as_str()).is_some() {
                if origin.missing_since.is_some() {
                    changes.push((origin.target, None));
                }
                continue;
            }
            // A time in the future is unknown: the tag counts as missing from now on.
            let since = origin.missing_since.filter(|since| !is_ahead(*since, now)).unwrap_or_else(|| {
                changes.push((origin.target.clone(), Some(now)));
                now
            });
            if passed(since, now) < self.prune.keep {
                self.waiting += 1;
                continue;
            }
            let due = due(&home, origin);
            if !self.due.contains(&due) {
                self.due.push(due);
            }
        }
        match is_noted {
            true => store.note_missing(&home, changes).await,
            false => Ok(()),
        }
    }

    /// Returns the tags to remove once all is listed, or why none is removed.
    pub fn decide(self) -> Result<Vec<Due>, String> {
        let due = self.due.len() as u64;
        match self.refusal {
            Some(why) => Err(why),
            None if !self.prune.limit.allows(due, self.made) => Err(format!(
                "{due} of the {} would go, and the limit is {}",
                many(self.made, "tag that was made", "tags that were made"),
                self.prune.limit
            )),
            None => Ok(self.due),
        }
    }
}

fn due(home: &Home, origin: Origin) -> Due {
    let source = Place { home: home.clone().into(), tag: origin.source_tag };
    Due { source, target: origin.target, digest: origin.digest }
}

/// Returns whether a rule would write this target for this source repository; another rule may have written it.
pub(super) fn would_make(
    rule: &Rule,
    part: Option<&Part>,
    (from, of): (&RegistryName, &RepositoryName),
    made: &Origin,
) -> bool {
    let Some((registry, repository)) = made.target.home.registry() else { return false };
    let original = part.and_then(|part| part.original(from, of));
    let origin =
        naming::Origin { registry: from, repository: of, tag: &made.source_tag, original: original.as_deref() };
    let is_there = |to: &Destination| match to {
        Destination::Layout(_) => false,
        Destination::Registry(base) => rule.style_at(to).name(base, &origin).is_ok_and(|name| {
            name.registry == *registry && name.repository == repository && name.tag == made.target.tag
        }),
    };
    rule.to.iter().any(is_there) && chooses(rule, part, &made.source_tag)
}

/// Returns whether a rule selects a tag, regardless of its age and of newer tags.
fn chooses(rule: &Rule, part: Option<&Part>, tag: &Tag) -> bool {
    let selection = Selection { since: None, newest: None, min: None, ..rule.selection.clone() };
    let tag = std::iter::once(Candidate { tag: tag.as_str().to_owned(), created: None });
    let evaluation = match part {
        Some(part) => part.evaluate(&selection, tag, Timestamp::UNIX_EPOCH),
        None => selection.evaluate(tag, Timestamp::UNIX_EPOCH),
    };
    evaluation.dropped.is_empty()
}

pub(super) fn passed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
}
