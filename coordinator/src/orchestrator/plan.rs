//! Plans the tasks of a listing under a rule. Pure: selects tags, names targets, explains dropped tags, and detects
//! collisions of target tags. Collisions that need no listing are errors of the configuration.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;

use imgsync_config::{Rule, RuleTarget};
use imgsync_model::batch::PlanSlice;
use imgsync_model::naming::{Collision, NamingStyle, SourceName, TargetClaim, TargetName, TargetRegister};
use imgsync_model::select::{DropReason, TagCandidate, Version};
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::{ArchiveFormat, Digest, DigestTagHints, Platform, RegistryName, RepositoryName, Tag};
use imgsync_registry::ListingShare;
use jiff::Timestamp;

use super::digest_tags::DigestTagIndex;
use crate::discovery::{RepositoryListing, compare_repositories};
use crate::presets::{SourceSelector, preset_contains};

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
    pub target: PlannedTarget,
    /// Whether an earlier task may have this target, which only the whole plan shows. The same source for the same
    /// platforms makes this task redundant, any other makes it fail ([`PlanFailure::collision`]); see [`resolve_conflicts`].
    pub may_collide: bool,
    /// Hints on the digest tags of the image in the listing.
    pub digest_tag_hints: DigestTagHints,
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
pub enum PlannedTarget {
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
    /// In an archive.
    Archive {
        /// Format of the archive.
        format: ArchiveFormat,
        /// File of the archive.
        file: PathBuf,
        /// Name of the image in the archive.
        name: String,
        /// Tag.
        tag: Tag,
    },
}

/// A selected tag that cannot be copied.
#[derive(Debug)]
pub struct PlanFailure {
    /// Source tag.
    pub source: SourceTag,
    /// Target, as far as it has a name.
    pub target: String,
    /// Reason: a collision, or a name that is invalid at the target.
    pub error: Error,
}

/// Plan of one listing under one rule.
#[derive(Debug, Default)]
pub struct RepositoryPlan {
    /// Tasks by version, oldest first (tags without a version come first), then by target.
    pub tasks: Vec<PlannedTask>,
    /// Dropped tags with the reason, in the same order.
    pub dropped: Vec<(String, DropReason)>,
    /// Number of selected tags.
    pub chosen: usize,
    /// Selected tags that fail.
    pub failed: Vec<PlanFailure>,
    /// Digest tags, if the rule copies referrers.
    pub digest_tags: DigestTagIndex,
    /// Reason for having no tasks: fewer selected tags than the rule's `min`, or missing dates that it selects by.
    pub refused: Option<Error>,
    /// Memory reserved for the listing.
    pub memory: Option<ListingShare>,
}

/// Plans listings and tracks the writers of target repositories, in memory that grows with the repositories.
#[derive(Debug, Default)]
pub struct Planner {
    names: TargetRegister,
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
    pub fn plan(
        &mut self,
        index: usize,
        rule: &Rule,
        part: Option<&SourceSelector>,
        listing: &RepositoryListing,
        now: Timestamp,
    ) -> RepositoryPlan {
        if let Some(error) = listing.missing_dates_error(&rule.selection) {
            return RepositoryPlan { refused: Some(error), ..RepositoryPlan::default() };
        }
        let candidates =
            listing.tags.iter().map(|listed| TagCandidate { tag: listed.tag.clone(), created: listed.created });
        let listed = listing.tags.len();
        let mut evaluation = match part {
            Some(part) => part.evaluate(&rule.selection, candidates, now),
            None => rule.selection.evaluate(candidates, now),
        };
        if listing.is_named {
            // Files of zarf name signatures by their tags.
            let named = evaluation.dropped.extract_if(.., |(_, reason)| *reason == DropReason::DigestTag);
            evaluation.kept.extend(named.map(|(candidate, _)| candidate));
        }
        let lacks_dates = |(_, reason): &(TagCandidate, DropReason)| *reason == DropReason::NoDate;
        if evaluation.kept.is_empty() && listing.is_undated() && evaluation.dropped.iter().any(lacks_dates) {
            return RepositoryPlan { refused: Some(listing.no_dates_error()), ..RepositoryPlan::default() };
        }
        let chosen = evaluation.kept.len();
        let drops = evaluation.count_drops();
        let original = part.and_then(|part| part.original_name(&listing.registry, &listing.repository));
        let dropped = evaluation.dropped.into_iter().map(|(candidate, reason)| (candidate.tag, reason)).collect();
        let digest_tags = match rule.referrers.copies_any() {
            true => DigestTagIndex::from_listing(listing),
            false => DigestTagIndex::default(),
        };
        // Other tags are unknown: the image is asked for each kind.
        let digest_tag_hints = if listing.is_named { DigestTagHints::default() } else { digest_tags.hints() };
        let memory = listing.memory.clone();
        let mut plan = RepositoryPlan { dropped, chosen, digest_tags, memory, ..RepositoryPlan::default() };
        let name = format!("{}/{}", listing.registry, listing.repository);
        if let Some(min) = evaluation.below_min {
            let (all, are) = (pluralize(listed as u64, "tag", "tags"), if chosen == 1 { "is" } else { "are" });
            let mut detail = format!(
                "{} of {all} {are} selected, and `min` is {}",
                group_digits(chosen as u64),
                group_digits(min as u64)
            );
            if drops.total() > 0 {
                detail.push_str(&format!(" ({drops})"));
            }
            let error = Error::new(ErrorKind::NotFound, format!("selecting the tags of {name}"), detail);
            plan.refused =
                Some(error.with_hint("nothing is copied from it; `imgsync tags` shows the dropped tags and why"));
            return plan;
        }
        let mut writer =
            TargetAssigner { planner: self, rule, name: source_identity(&name, rule), claims: HashMap::new() };
        let mut taken: HashMap<PlannedTarget, Tag> = HashMap::new();
        let mut elsewhere: Vec<(String, DropReason)> = Vec::new();
        for candidate in &evaluation.kept {
            // All kept candidates are valid tags.
            let Ok(tag) = candidate.tag.parse::<Tag>() else { continue };
            let source = SourceTag { registry: listing.registry.clone(), repository: listing.repository.clone(), tag };
            let first = plan.tasks.len();
            for destination in &rule.to {
                match writer.assign_target(destination, &source, original.as_deref(), &mut taken) {
                    Ok((target, may_collide)) => plan.tasks.push(PlannedTask {
                        rule: index,
                        source: source.clone(),
                        digest: listing.digest(&candidate.tag).cloned(),
                        target,
                        may_collide,
                        digest_tag_hints,
                    }),
                    Err(TargetRefusal::NewerLocation(first)) => {
                        elsewhere.push((candidate.tag.clone(), DropReason::DuplicateInPreset(first)))
                    }
                    Err(TargetRefusal::Failed(failed)) => plan.failed.push(*failed),
                }
            }
            plan.tasks[first..].sort_by(|a, b| a.target.cmp(&b.target));
        }
        plan.dropped.extend(elsewhere);
        let TargetAssigner { claims, name, .. } = writer;
        self.planned.extend(claims.into_keys().map(|target| (name.clone(), target)));
        plan
    }
}

/// Returns the identity of a source among writers: an image filtered to other platforms is another image.
fn source_identity(name: &str, rule: &Rule) -> String {
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
struct TargetAssigner<'a> {
    planner: &'a mut Planner,
    rule: &'a Rule,
    name: String,
    /// Target repositories so far, and whether an unknown task may have a tag there.
    claims: HashMap<String, bool>,
}

impl TargetAssigner<'_> {
    /// Returns the target of a tag, and whether it may collide.
    fn assign_target(
        &mut self,
        destination: &RuleTarget,
        source: &SourceTag,
        original: Option<&str>,
        taken: &mut HashMap<PlannedTarget, Tag>,
    ) -> Result<(PlannedTarget, bool), TargetRefusal> {
        let SourceTag { registry, repository, tag } = source;
        let style = self.rule.style_at(destination);
        let source_name = SourceName { registry, repository, tag, original };
        let target = match destination {
            RuleTarget::Registry(base) => style.target_name(base, &source_name).map(PlannedTarget::Registry),
            RuleTarget::Layout(folder) => {
                let name = style.layout_name(&source_name);
                name.map(|(name, tag)| PlannedTarget::Layout { folder: folder.clone(), name, tag })
            }
            RuleTarget::Archive(format, file) => {
                let (format, file) = (*format, file.clone());
                let name = style.layout_name(&source_name);
                name.map(|(name, tag)| PlannedTarget::Archive { format, file, name, tag })
            }
        };
        let target = target.map_err(|error| {
            let refused = Error::new(ErrorKind::Refused, format!("copying {source}"), error.to_string());
            TargetRefusal::from_failure(PlanFailure { source: source.clone(), target: error.name, error: refused })
        })?;
        if let PlannedTarget::Registry(name) = &target
            && (&name.registry, &name.repository, &name.tag) == (registry, repository, tag)
        {
            let error = Error::new(ErrorKind::Invalid, format!("copying {source}"), "source and target are the same");
            return Err(TargetRefusal::from_failure(PlanFailure {
                source: source.clone(),
                target: target.to_string(),
                error,
            }));
        }
        // Only a template can map two tags of a repository to one name.
        if matches!(style, NamingStyle::Template(_)) {
            let first = taken.entry(target.clone()).or_insert_with(|| tag.clone());
            if first != tag {
                let first = SourceTag { tag: first.clone(), ..source.clone() };
                return Err(TargetRefusal::from_failure(PlanFailure::collision(
                    source.clone(),
                    &target,
                    &first.to_string(),
                )));
            }
        }
        let target_repository = target.repository();
        let in_doubt = match self.claims.get(&target_repository) {
            Some(in_doubt) => *in_doubt,
            None => {
                let late = matches!(
                    self.planner.names.claim_repository(&self.name, &target_repository),
                    TargetClaim::SharedAfterTags(_)
                );
                let again = self.planner.planned.contains(&(self.name.clone(), target_repository.clone()));
                self.claims.insert(target_repository.clone(), late || again);
                late || again
            }
        };
        match self.planner.names.claim_tag(&self.name, &target_repository, target.tag().as_str()) {
            Ok(()) => Ok((target, in_doubt)),
            Err(Collision { first, .. }) if is_same_preset(self.rule, &first) => {
                Err(TargetRefusal::NewerLocation(first))
            }
            Err(Collision { first, .. }) => {
                Err(TargetRefusal::from_failure(PlanFailure::collision(source.clone(), &target, &first)))
            }
        }
    }
}

/// Reason for a tag having no task.
enum TargetRefusal {
    Failed(Box<PlanFailure>),
    /// The preset reads it from this repository, a newer location.
    NewerLocation(String),
}

impl TargetRefusal {
    fn from_failure(failed: PlanFailure) -> TargetRefusal {
        TargetRefusal::Failed(Box::new(failed))
    }
}

/// Returns whether the rule's preset also reads a source with this identity.
fn is_same_preset(rule: &Rule, first: &str) -> bool {
    let name = first.split_once(" (").map_or(first, |(name, _)| name);
    let Some((registry, path)) = name.split_once('/') else { return false };
    registry.parse().is_ok_and(|registry| preset_contains(&rule.source, &registry, path))
}

impl PlanFailure {
    /// Creates the failure of a target that another source, `first`, already has.
    pub fn collision(source: SourceTag, target: &PlannedTarget, first: &str) -> PlanFailure {
        let detail = format!("{target} is already the target of {first}");
        let error = Error::new(ErrorKind::Collision, format!("copying {source}"), detail)
            .with_hint("set a different `naming` or `to` for one of the two");
        PlanFailure { source, target: target.to_string(), error }
    }
}

impl PlannedTarget {
    /// Returns the target without its tag.
    fn repository(&self) -> String {
        match self {
            PlannedTarget::Registry(name) => format!("{}/{}", name.registry, name.repository),
            PlannedTarget::Layout { folder, name, .. } => format!("oci:{}:{name}", folder.display()),
            PlannedTarget::Archive { format, file, name, .. } => {
                format!("{}{}:{name}", format.scheme(), file.display())
            }
        }
    }

    /// Returns the tag.
    pub fn tag(&self) -> &Tag {
        match self {
            PlannedTarget::Registry(name) => &name.tag,
            PlannedTarget::Layout { tag, .. } | PlannedTarget::Archive { tag, .. } => tag,
        }
    }
}

impl fmt::Display for PlannedTarget {
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
pub fn resolve_conflicts(tasks: Vec<PlannedTask>, rules: &[Rule]) -> (Vec<PlannedTask>, Vec<PlanFailure>) {
    let platforms = |index: usize| rules.get(index).map(|rule| (platforms_of(rule), rule.sparse)).unwrap_or_default();
    let mut holders: HashMap<PlannedTarget, (SourceTag, usize)> = HashMap::new();
    let mut resolved: Vec<PlannedTask> = Vec::with_capacity(tasks.len());
    let mut failed = Vec::new();
    for task in tasks {
        match holders.get(&task.target) {
            Some((source, rule)) if task.may_collide => {
                let of_preset =
                    |rule: &Rule| preset_contains(&rule.source, &source.registry, source.repository.as_str());
                let newer_home = *rule == task.rule && rules.get(*rule).is_some_and(of_preset);
                if !newer_home && (*source != task.source || platforms(*rule) != platforms(task.rule)) {
                    failed.push(PlanFailure::collision(task.source, &task.target, &source.to_string()));
                }
            }
            _ => {
                holders.insert(task.target.clone(), (task.source.clone(), task.rule));
                resolved.push(PlannedTask { may_collide: false, ..task });
            }
        }
    }
    (resolved, failed)
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
pub fn cut_slice(mut tasks: Vec<PlannedTask>, slice: Slice) -> Vec<PlannedTask> {
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
