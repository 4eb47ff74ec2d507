//! Collisions: two images with one target name.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::{NamingStyle, SourceName, TargetBase, TargetName};
use crate::select::TagSelection;
use imgsync_oci::{RegistryName, RepositoryName, Tag};

/// Register of target names and their sources. Takes repositories as they are discovered, then tags as they are listed.
/// It stores each pair of repositories once, and tags (16 bytes each) only for targets with several sources, so its
/// memory grows with the number of repositories.
#[derive(Debug, Default)]
pub struct TargetRegister {
    sources: HashMap<String, u32>,
    names: Vec<String>,
    targets: HashMap<String, TargetEntry>,
    hasher: RandomState,
}

#[derive(Debug)]
struct TargetEntry {
    sources: Vec<u32>,
    /// Whether a tag was claimed while there was one source, and so was not stored.
    has_unrecorded_tags: bool,
    tags: HashMap<u64, u32>,
}

/// Result of claiming a target repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetClaim {
    /// No other source writes to it.
    Exclusive,
    /// This other source writes to it too; tags are compared from now on.
    Shared(String),
    /// This other source writes to it too, and earlier tags were not stored: check the plan for the target tag.
    SharedAfterTags(String),
}

/// Two sources with one target tag. The first keeps it, the second fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target} is already the target of {first}")]
pub struct Collision {
    /// The target repository and tag.
    pub target: String,
    /// The source repository that claimed it first.
    pub first: String,
    /// The source repository that claimed it second.
    pub second: String,
}

impl TargetRegister {
    /// Creates an empty register.
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims a target repository for a source repository. Call it for all known repositories before their tags;
    /// repeating it is safe.
    pub fn claim_repository(&mut self, source: &str, target: &str) -> TargetClaim {
        let source = self.intern_source(source);
        let entry = self.targets.entry(target.to_owned()).or_insert_with(|| TargetEntry {
            sources: Vec::with_capacity(1),
            has_unrecorded_tags: false,
            tags: HashMap::new(),
        });
        if !entry.sources.contains(&source) {
            entry.sources.push(source);
        }
        match entry.sources.iter().find(|&&other| other != source) {
            None => TargetClaim::Exclusive,
            Some(&other) if entry.has_unrecorded_tags => {
                TargetClaim::SharedAfterTags(self.names[other as usize].clone())
            }
            Some(&other) => TargetClaim::Shared(self.names[other as usize].clone()),
        }
    }

    /// Claims a target tag for a source, or fails with the source that has it. Templates with the tag in the
    /// repository's name may do so without claiming the repository: such tags are compared with each other.
    pub fn claim_tag(&mut self, source: &str, target: &str, tag: &str) -> Result<(), Collision> {
        let id = self.intern_source(source);
        let hash = self.hasher.hash_one(tag);
        let entry = self.targets.entry(target.to_owned()).or_insert_with(|| TargetEntry {
            sources: Vec::new(),
            has_unrecorded_tags: false,
            tags: HashMap::new(),
        });
        if entry.sources == [id] {
            entry.has_unrecorded_tags = true;
            return Ok(());
        }
        match *entry.tags.entry(hash).or_insert(id) {
            first if first == id => Ok(()),
            first => Err(Collision {
                target: format!("{target}:{tag}"),
                first: self.names[first as usize].clone(),
                second: source.to_owned(),
            }),
        }
    }

    /// Returns the target repositories with several sources, and these, sorted.
    pub fn shared_targets(&self) -> Vec<(&str, Vec<&str>)> {
        let mut shared: Vec<_> = self
            .targets
            .iter()
            .filter(|(_, target)| target.sources.len() > 1)
            .map(|(name, target)| {
                let mut sources: Vec<&str> =
                    target.sources.iter().map(|&id| self.names[id as usize].as_str()).collect();
                sources.sort_unstable();
                (name.as_str(), sources)
            })
            .collect();
        shared.sort_unstable();
        shared
    }

    #[cfg(test)]
    pub(super) fn recorded_tags(&self) -> usize {
        self.targets.values().map(|target| target.tags.len()).sum()
    }

    fn intern_source(&mut self, source: &str) -> u32 {
        if let Some(&id) = self.sources.get(source) {
            return id;
        }
        let id = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.sources.insert(source.to_owned(), id);
        self.names.push(source.to_owned());
        id
    }
}

/// A rule for a single source repository, known before listing.
#[derive(Clone, Copy, Debug)]
pub struct SingleRepositoryRule<'a> {
    /// The source registry.
    pub registry: &'a RegistryName,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// Tag selection.
    pub selection: &'a TagSelection,
    /// Target.
    pub base: &'a TargetBase,
    /// Naming style.
    pub style: &'a NamingStyle,
}

/// Finds a collision that two rules have whatever the registries hold: different sources, one target repository, and
/// selections that certainly overlap. Returns `None` if it depends on the tags; then [`TargetRegister`] finds it.
pub fn find_certain_collision(a: &SingleRepositoryRule<'_>, b: &SingleRepositoryRule<'_>) -> Option<TargetName> {
    if (a.registry, a.repository) == (b.registry, b.repository) || !a.selection.certainly_overlaps(b.selection) {
        return None;
    }
    let name = |rule: &SingleRepositoryRule<'_>, tag: &str| {
        let tag: Tag = tag.parse().ok()?;
        let source_name =
            SourceName { registry: rule.registry, repository: rule.repository, tag: &tag, original: None };
        rule.style.target_name(rule.base, &source_name).ok()
    };
    let met = |tag: &str| name(a, tag).filter(|target| name(b, tag).as_ref() == Some(target));
    // Two tags, because a template may set a fixed tag.
    met("1.0").filter(|_| met("latest").is_some()).map(|target| TargetName { tag: Tag::latest(), ..target })
}
