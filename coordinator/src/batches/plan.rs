//! Plans the tasks of a listing under a rule. Pure: selects tags, names targets, explains dropped tags, and detects
//! collisions of target tags. Collisions that need no listing are errors of the configuration.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;

use imgsync_common::batch::PlanSlice;
use imgsync_common::config::{Destination, Rule};
use imgsync_common::error::{Class, Error};
use imgsync_common::image::{Company, Digest, Platform, RegistryName, RepositoryName, Tag};
use imgsync_common::naming::{Claim, Collision, Names, Origin, Style, TargetName};
use imgsync_common::registry::ListingShare;
use imgsync_common::select::{Candidate, Reason, Version};
use jiff::Timestamp;

use super::companions::Companions;
use crate::enumerate::{Listing, compare_repositories};
use crate::presets::{Part, is_of_preset};

/// Copy of one source tag to one target tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTask {
    /// Index of the rule.
    pub rule: usize,
    /// Source tag.
    pub source: SourceTag,
    /// Digest of the source tag, if the listing has it.
    pub digest: Option<Digest>,
    /// Target tag.
    pub target: Target,
    /// Whether an earlier task may have this target, which only the whole plan shows. The same source for the same
    /// platforms makes this task redundant, any other makes it fail ([`Failed::collision`]); see [`settle`].
    pub in_doubt: bool,
    /// Hints on the digest tags of the image in the listing.
    pub company: Company,
}

/// Tag in a source repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceTag {
    /// Registry.
    pub registry: RegistryName,
    /// Repository.
    pub repository: RepositoryName,
    /// Tag.
    pub tag: Tag,
}

/// Target tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// In a registry.
    Registry(TargetName),
    /// In an image layout.
    Layout {
        /// Directory of the layout.
        folder: PathBuf,
        /// Name of the image in the layout.
        name: String,
        /// Tag.
        tag: Tag,
    },
}

/// A selected tag that cannot be copied.
#[derive(Debug)]
pub struct Failed {
    /// Source tag.
    pub source: SourceTag,
    /// Target, as far as it has a name.
    pub target: String,
    /// Reason: a collision, or a name that is invalid at the target.
    pub error: Error,
}

/// Plan of one listing under one rule.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tasks by version, oldest first (tags without a version come first), then by target.
    pub tasks: Vec<PlannedTask>,
    /// Dropped tags with the reason, in the same order.
    pub dropped: Vec<(String, Reason)>,
    /// Number of selected tags.
    pub chosen: usize,
    /// Selected tags that fail.
    pub failed: Vec<Failed>,
    /// Digest tags, if the rule copies referrers.
    pub companions: Companions,
    /// Reason for having no tasks: fewer selected tags than the rule's `min`, or missing dates that it selects by.
    pub refused: Option<Error>,
    /// Memory reserved for the listing.
    pub memory: Option<ListingShare>,
}

/// Plans listings and tracks the writers of target repositories, in memory that grows with the repositories.
#[derive(Debug, Default)]
pub struct Planner {
    names: Names,
    /// Source and target repositories of planned tasks.
    planned: HashSet<(String, String)>,
}

impl Planner {
    /// Creates a planner without tasks.
    pub fn new() -> Planner {
        Planner::default()
    }

    /// Plans a listing under the rule at `index`. `part` is the part of the rule's source it was listed for: parts of a
    /// preset select tags themselves and know the names of imgsync 2.1. `now` is the reference of `since: 90d`.
    /// Listings may come in any order, also of several rules or repeatedly; of two that collide, the first keeps the
    /// target.
    pub fn plan(&mut self, index: usize, rule: &Rule, part: Option<&Part>, listing: &Listing, now: Timestamp) -> Plan {
        if let Some(error) = listing.lacks_dates_for(&rule.selection) {
            return Plan { refused: Some(error), ..Plan::default() };
        }
        let candidates =
            listing.tags.iter().map(|listed| Candidate { tag: listed.tag.clone(), created: listed.created });
        let listed = listing.tags.len();
        let evaluation = match part {
            Some(part) => part.evaluate(&rule.selection, candidates, now),
            None => rule.selection.evaluate(candidates, now),
        };
        let lacks_dates = |(_, reason): &(Candidate, Reason)| *reason == Reason::NoDate;
        if evaluation.kept.is_empty() && listing.is_undated() && evaluation.dropped.iter().any(lacks_dates) {
            return Plan { refused: Some(listing.has_no_dates()), ..Plan::default() };
        }
        let chosen = evaluation.kept.len();
        let drops = evaluation.drops();
        let original = part.and_then(|part| part.original(&listing.registry, &listing.repository));
        let dropped = evaluation.dropped.into_iter().map(|(candidate, reason)| (candidate.tag, reason)).collect();
        let companions = match rule.referrers.are_wanted() {
            true => Companions::of(listing),
            false => Companions::default(),
        };
        let company = companions.company();
        let memory = listing.memory.clone();
        let mut plan = Plan { dropped, chosen, companions, memory, ..Plan::default() };
        let name = format!("{}/{}", listing.registry, listing.repository);
        if let Some(min) = evaluation.below_min {
            let mut detail = format!("{chosen} of {listed} are left, and `min` is {min}");
            if drops.total() > 0 {
                detail.push_str(&format!(" ({drops})"));
            }
            let error = Error::new(Class::NotFound, format!("choosing the tags of {name}"), detail);
            plan.refused = Some(error.hint("nothing of it is copied; see what `imgsync tags` drops, and why"));
            return plan;
        }
        let mut writer = Writer { planner: self, rule, name: identity(&name, rule), claims: HashMap::new() };
        let mut taken: HashMap<Target, Tag> = HashMap::new();
        let mut elsewhere: Vec<(String, Reason)> = Vec::new();
        for candidate in &evaluation.kept {
            // All kept candidates are valid tags.
            let Ok(tag) = candidate.tag.parse::<Tag>() else { continue };
            let source = SourceTag { registry: listing.registry.clone(), repository: listing.repository.clone(), tag };
            let first = plan.tasks.len();
            for destination in &rule.to {
                match writer.target(destination, &source, original.as_deref(), &mut taken) {
                    Ok((target, in_doubt)) => plan.tasks.push(PlannedTask {
                        rule: index,
                        source: source.clone(),
                        digest: listing.digest(&candidate.tag).cloned(),
                        target,
                        in_doubt,
                        company,
                    }),
                    Err(Refusal::NewerHome(first)) => elsewhere.push((candidate.tag.clone(), Reason::Elsewhere(first))),
                    Err(Refusal::Failed(failed)) => plan.failed.push(*failed),
                }
            }
            plan.tasks[first..].sort_by(|a, b| a.target.cmp(&b.target));
        }
        plan.dropped.extend(elsewhere);
        let Writer { claims, name, .. } = writer;
        self.planned.extend(claims.into_keys().map(|target| (name.clone(), target)));
        plan
    }
}

/// Returns the identity of a source among writers: an image filtered to other platforms is another image.
fn identity(name: &str, rule: &Rule) -> String {
    let platforms = platforms_of(rule);
    match (platforms.is_empty(), rule.sparse) {
        (true, _) => name.to_owned(),
        (false, false) => format!("{name} ({})", platforms.join(", ")),
        (false, true) => format!("{name} ({}, sparse)", platforms.join(", ")),
    }
}

fn platforms_of(rule: &Rule) -> Vec<String> {
    let mut platforms: Vec<String> = rule.platforms.iter().map(Platform::canonical).collect();
    platforms.sort_unstable();
    platforms.dedup();
    platforms
}

/// Assigns targets to the tags of one listing.
struct Writer<'a> {
    planner: &'a mut Planner,
    rule: &'a Rule,
    name: String,
    /// Target repositories so far, and whether an unknown task may have a tag there.
    claims: HashMap<String, bool>,
}

impl Writer<'_> {
    /// Returns the target of a tag, and whether it may collide.
    fn target(
        &mut self,
        destination: &Destination,
        source: &SourceTag,
        original: Option<&str>,
        taken: &mut HashMap<Target, Tag>,
    ) -> Result<(Target, bool), Refusal> {
        let SourceTag { registry, repository, tag } = source;
        let style = self.rule.style_at(destination);
        let origin = Origin { registry, repository, tag, original };
        let target = match destination {
            Destination::Registry(base) => style.name(base, &origin).map(Target::Registry),
            Destination::Layout(folder) => {
                let name = style.in_layout(&origin);
                name.map(|(name, tag)| Target::Layout { folder: folder.clone(), name, tag })
            }
        };
        let target = target.map_err(|error| {
            let refused = Error::new(Class::Refused, format!("copying {source}"), error.to_string());
            Refusal::of(Failed { source: source.clone(), target: error.name, error: refused })
        })?;
        if let Target::Registry(name) = &target
            && (&name.registry, &name.repository, &name.tag) == (registry, repository, tag)
        {
            let error = Error::new(Class::Invalid, format!("copying {source}"), "source and target are the same");
            return Err(Refusal::of(Failed { source: source.clone(), target: target.to_string(), error }));
        }
        // Only a template can map two tags of a repository to one name.
        if matches!(style, Style::Template(_)) {
            let first = taken.entry(target.clone()).or_insert_with(|| tag.clone());
            if first != tag {
                let first = SourceTag { tag: first.clone(), ..source.clone() };
                return Err(Refusal::of(Failed::collision(source.clone(), &target, &first.to_string())));
            }
        }
        let place = target.repository();
        let in_doubt = match self.claims.get(&place) {
            Some(in_doubt) => *in_doubt,
            None => {
                let late = matches!(self.planner.names.claim(&self.name, &place), Claim::Late(_));
                let again = self.planner.planned.contains(&(self.name.clone(), place.clone()));
                self.claims.insert(place.clone(), late || again);
                late || again
            }
        };
        match self.planner.names.take(&self.name, &place, target.tag().as_str()) {
            Ok(()) => Ok((target, in_doubt)),
            Err(Collision { first, .. }) if has_two_homes(self.rule, &first) => Err(Refusal::NewerHome(first)),
            Err(Collision { first, .. }) => Err(Refusal::of(Failed::collision(source.clone(), &target, &first))),
        }
    }
}

/// Reason for a tag having no task.
enum Refusal {
    Failed(Box<Failed>),
    /// The preset reads it from this repository, a newer location.
    NewerHome(String),
}

impl Refusal {
    fn of(failed: Failed) -> Refusal {
        Refusal::Failed(Box::new(failed))
    }
}

/// Returns whether the rule's preset also reads a source with this identity.
fn has_two_homes(rule: &Rule, first: &str) -> bool {
    let name = first.split_once(" (").map_or(first, |(name, _)| name);
    let Some((registry, path)) = name.split_once('/') else { return false };
    registry.parse().is_ok_and(|registry| is_of_preset(&rule.source, &registry, path))
}

impl Failed {
    /// Creates the failure of a target that another source, `first`, already has.
    pub fn collision(source: SourceTag, target: &Target, first: &str) -> Failed {
        let detail = format!("{target} is already the target of {first}");
        let error = Error::new(Class::Collision, format!("copying {source}"), detail)
            .hint("give one of the two another `naming` or `to`");
        Failed { source, target: target.to_string(), error }
    }
}

impl Target {
    /// Returns the target without its tag.
    fn repository(&self) -> String {
        match self {
            Target::Registry(name) => format!("{}/{}", name.registry, name.repository),
            Target::Layout { folder, name, .. } => format!("oci:{}:{name}", folder.display()),
        }
    }

    /// Returns the tag.
    pub fn tag(&self) -> &Tag {
        match self {
            Target::Registry(name) => &name.tag,
            Target::Layout { tag, .. } => tag,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository(), self.tag())
    }
}

impl fmt::Display for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// Resolves possible collisions in a whole plan: a duplicate of a task is dropped, another source fails. Keeps the
/// order of the tasks; `rules` are those that they were planned under.
pub fn settle(tasks: Vec<PlannedTask>, rules: &[Rule]) -> (Vec<PlannedTask>, Vec<Failed>) {
    let platforms = |index: usize| rules.get(index).map(|rule| (platforms_of(rule), rule.sparse)).unwrap_or_default();
    let mut holders: HashMap<Target, (SourceTag, usize)> = HashMap::new();
    let mut settled: Vec<PlannedTask> = Vec::with_capacity(tasks.len());
    let mut failed = Vec::new();
    for task in tasks {
        match holders.get(&task.target) {
            Some((source, rule)) if task.in_doubt => {
                let of_preset = |rule: &Rule| is_of_preset(&rule.source, &source.registry, source.repository.as_str());
                let newer_home = *rule == task.rule && rules.get(*rule).is_some_and(of_preset);
                if !newer_home && (*source != task.source || platforms(*rule) != platforms(task.rule)) {
                    failed.push(Failed::collision(task.source, &task.target, &source.to_string()));
                }
            }
            _ => {
                holders.insert(task.target.clone(), (task.source.clone(), task.rule));
                settled.push(PlannedTask { in_doubt: false, ..task });
            }
        }
    }
    (settled, failed)
}

/// Slice of a plan (`--batch-size` and `--batch-number`); numbers start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Tasks in a slice.
    pub size: NonZeroUsize,
    /// Number of the slice, from 1.
    pub number: NonZeroUsize,
}

impl From<PlanSlice> for Slice {
    fn from(slice: PlanSlice) -> Slice {
        Slice { size: slice.size, number: slice.number }
    }
}

impl From<Slice> for PlanSlice {
    fn from(slice: Slice) -> PlanSlice {
        PlanSlice { size: slice.size, number: slice.number }
    }
}

impl Slice {
    /// Returns the slice's range of `total` tasks. The last slice may be shorter, those after it are empty.
    pub fn range(self, total: usize) -> Range<usize> {
        let end = self.number.get().saturating_mul(self.size.get());
        end.saturating_sub(self.size.get()).min(total)..end.min(total)
    }
}

/// Returns one slice of the plan, sorted by source repository, tag and target. Slices of equal listings add up to the
/// plan, each task once. (Plan in order of names to get equal collisions everywhere.)
pub fn cut(mut tasks: Vec<PlannedTask>, slice: Slice) -> Vec<PlannedTask> {
    tasks.sort_by_cached_key(|task| (Version::parse(task.source.tag.as_str()), task.source.tag.clone()));
    // Stable, so tags stay in order within a repository.
    tasks.sort_by(|a, b| {
        let (from, other) = (&a.source, &b.source);
        from.registry.cmp(&other.registry).then_with(|| compare_repositories(&from.repository, &other.repository))
    });
    for same in tasks.chunk_by_mut(|a, b| a.source == b.source) {
        same.sort_by(|a, b| (&a.target, a.rule).cmp(&(&b.target, b.rule)));
    }
    let range = slice.range(tasks.len());
    tasks.drain(range).collect()
}

#[cfg(test)]
mod tests;
