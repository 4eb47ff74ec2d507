//! Source selectors: repositories of one location, and a selection of their tags.

use imgsync_config::RuleSource;
use imgsync_model::naming::flatten_name;
use imgsync_model::select::{RepositoryPattern, SelectionResult, TagCandidate, TagSelection, compare_tags};
use imgsync_oci::error::Result;
use imgsync_oci::{RegistryName, RepositoryName};
use jiff::Timestamp;

use super::catalog::{ImageHome, find};
use super::version_table::parse_triple;
use crate::discovery::RepositoryListing;

/// A repository pattern with a tag selection, applied before the rule's own.
#[derive(Debug, Clone)]
pub struct SourceSelector {
    /// The repositories.
    pub pattern: RepositoryPattern,
    /// Selection of tags; the rule's own selection sees only these.
    pub selection: TagSelection,
    pub(super) expectation: Option<Expectation>,
    pub(super) home: Option<ImageHome>,
}

/// Patterns of target names, with `…` for each star.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetNamePatterns {
    /// By the current location.
    pub target: String,
    /// With `naming: original`.
    pub original: String,
}

/// Expectation about a listing, reported if it is not met.
#[derive(Debug, Clone)]
pub(super) enum Expectation {
    /// All tags named by the selection are listed.
    Tags {
        /// Product that needs them.
        of: String,
    },
    /// All versions, by major and minor, are in the table.
    Versions {
        /// Product of the versions.
        of: String,
        oldest: (u64, u64),
        newest: (u64, u64),
    },
}

impl SourceSelector {
    /// Selects all tags of a pattern, as a rule without a preset does.
    pub fn from_pattern(pattern: RepositoryPattern) -> SourceSelector {
        SourceSelector { pattern, selection: TagSelection::default(), expectation: None, home: None }
    }

    /// Returns whether it reads a repository.
    pub fn reads(&self, registry: &RegistryName, repository: &RepositoryName) -> bool {
        self.pattern.registry() == registry && self.pattern.matches(repository.as_str())
    }

    /// Returns a repository's name in imgsync 2.1, as `registry/repository`; `None` if it was not read there.
    pub fn original_name(&self, registry: &RegistryName, repository: &RepositoryName) -> Option<String> {
        self.home.as_ref()?.original_name(&format!("{registry}/{repository}"))
    }

    /// Returns the patterns of target names.
    pub fn target_name_patterns(&self) -> TargetNamePatterns {
        let pattern = self.pattern.to_string();
        let open = |name: &str| flatten_name(&name.replace("**", "…").replace('*', "…"));
        let original = self.home.as_ref().and_then(|home| home.original_name(&pattern));
        TargetNamePatterns { target: open(&pattern), original: open(original.as_deref().unwrap_or(&pattern)) }
    }

    /// Returns the former locations of these repositories, newest first.
    pub fn former_locations(&self) -> Vec<String> {
        self.home.as_ref().map(|home| home.former_names(&self.pattern.to_string())).unwrap_or_default()
    }

    /// Evaluates tags by this selection, then by the rule's own.
    pub fn evaluate(
        &self,
        own: &TagSelection,
        tags: impl Iterator<Item = TagCandidate>,
        now: Timestamp,
    ) -> SelectionResult {
        if self.selection == TagSelection::default() {
            return own.evaluate(tags, now);
        }
        let first = self.selection.evaluate(tags, now);
        let mut evaluation = own.evaluate(first.kept, now);
        evaluation.dropped.extend(first.dropped);
        evaluation.dropped.sort_by(|a, b| compare_tags(&a.0.tag, &b.0.tag));
        evaluation
    }

    /// Returns warnings about a listing that does not meet the expectation.
    pub fn check_listing(&self, listing: &RepositoryListing) -> Vec<String> {
        let name = format!("{}/{}", listing.registry, listing.repository);
        match &self.expectation {
            None => Vec::new(),
            Some(Expectation::Tags { of }) => {
                let named = self.selection.include.iter().filter_map(|pattern| pattern.literal());
                let missing: Vec<&str> = named.filter(|tag| listing.get(tag).is_none()).collect();
                match missing.is_empty() {
                    true => Vec::new(),
                    false => vec![format!("{name} does not list {}, which {of} needs", missing.join(", "))],
                }
            }
            Some(Expectation::Versions { of, oldest, newest }) => {
                let tags = listing.tags.iter().map(|listed| TagCandidate::new(&listed.tag));
                let kept = self.selection.evaluate(tags, Timestamp::UNIX_EPOCH).kept;
                let mut minors: Vec<(u64, u64)> =
                    kept.iter().filter_map(|candidate| parse_triple(&candidate.tag)).map(|(a, b, _)| (a, b)).collect();
                minors.sort_unstable();
                minors.dedup();
                let list = |minors: Vec<&(u64, u64)>| {
                    minors.iter().map(|(major, minor)| format!("{major}.{minor}")).collect::<Vec<_>>().join(", ")
                };
                let newer = list(minors.iter().filter(|minor| *minor > newest).collect());
                let older = list(minors.iter().filter(|minor| *minor < oldest).collect());
                let mut remarks = Vec::new();
                let is = |list: &str| if list.contains(',') { "are" } else { "is" };
                if !newer.is_empty() {
                    let known = format!("{}.{}", newest.0, newest.1);
                    remarks.push(format!(
                        "{of} {newer} {} newer than this imgsync's table; using the images of {known}. A newer \
                         imgsync may list them",
                        is(&newer)
                    ));
                }
                if !older.is_empty() {
                    remarks.push(format!(
                        "{of} {older} {} older than this imgsync's table; list the images it needs besides its own in \
                         a separate rule",
                        is(&older)
                    ));
                }
                remarks
            }
        }
    }
}

/// Returns the selectors of a source: those of a preset, or one for the pattern. A layout is read as a whole and has
/// none; neither has a source that names each image.
pub fn source_selectors(source: &RuleSource) -> Result<Vec<SourceSelector>> {
    match source {
        RuleSource::Repositories(pattern) => Ok(vec![SourceSelector::from_pattern(pattern.clone())]),
        RuleSource::Layout(_) | RuleSource::Archive(..) | RuleSource::Images(_) | RuleSource::Digests(_) => {
            Ok(Vec::new())
        }
        RuleSource::Preset(preset) => {
            let known = find(preset)?;
            let parts = match (&preset.versions, &known.versions) {
                (Some(range), Some(versions)) => versions.source_selectors(range),
                _ => known.patterns().iter().cloned().map(SourceSelector::from_pattern).collect(),
            };
            let at_home = |part: SourceSelector| {
                let meant = |home: &&ImageHome| home.patterns().any(|pattern| covers(&pattern, &part.pattern));
                let home = known.homes.iter().find(meant).cloned();
                SourceSelector { home, ..part }
            };
            Ok(parts.into_iter().map(at_home).collect())
        }
    }
}

/// Whether a preset reads this repository: two of its locations may have the same tag under one target name.
pub fn preset_contains(source: &RuleSource, registry: &RegistryName, repository: &str) -> bool {
    let RuleSource::Preset(preset) = source else { return false };
    let reads = find(preset).map(|known| known.patterns()).unwrap_or_default();
    reads.iter().any(|pattern| pattern.registry() == registry && pattern.matches(repository))
}

/// Whether the first pattern matches everything that the second one does.
fn covers(pattern: &RepositoryPattern, part: &RepositoryPattern) -> bool {
    let within = |repository: RepositoryName| pattern.matches(repository.as_str());
    pattern.registry() == part.registry() && (pattern == part || part.repository().is_some_and(within))
}
