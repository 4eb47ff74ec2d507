//! Collisions: two images with one target name.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::{Base, Origin, Style, TargetName};
use crate::image::{RegistryName, RepositoryName, Tag};
use crate::select::Selection;

/// Register of target names and their sources. Takes repositories as they are discovered, then tags as they are listed.
/// It stores each pair of repositories once, and tags (16 bytes each) only for targets with several sources, so its
/// memory grows with the number of repositories.
#[derive(Debug, Default)]
pub struct Names {
    sources: HashMap<String, u32>,
    names: Vec<String>,
    targets: HashMap<String, Target>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Target {
    claimants: Vec<u32>,
    /// Whether a tag was claimed while there was one source, and so was not stored.
    passed: bool,
    tags: HashMap<u64, u32>,
}

/// Result of claiming a target repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No other source writes to it.
    Alone,
    /// This other source writes to it too; tags are compared from now on.
    Shared(String),
    /// This other source writes to it too, and earlier tags were not stored: check the plan for the target tag.
    Late(String),
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

impl Names {
    /// Creates an empty register.
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims a target repository for a source repository. Call it for all known repositories before their tags;
    /// repeating it is safe.
    pub fn claim(&mut self, source: &str, target: &str) -> Claim {
        let source = self.id(source);
        let entry = self.targets.entry(target.to_owned()).or_insert_with(|| Target {
            claimants: Vec::with_capacity(1),
            passed: false,
            tags: HashMap::new(),
        });
        if !entry.claimants.contains(&source) {
            entry.claimants.push(source);
        }
        match entry.claimants.iter().find(|&&other| other != source) {
            None => Claim::Alone,
            Some(&other) if entry.passed => Claim::Late(self.names[other as usize].clone()),
            Some(&other) => Claim::Shared(self.names[other as usize].clone()),
        }
    }

    /// Claims a target tag for a source, or fails with the source that has it. Templates with the tag in the
    /// repository's name may do so without claiming the repository: such tags are compared with each other.
    pub fn take(&mut self, source: &str, target: &str, tag: &str) -> Result<(), Collision> {
        let id = self.id(source);
        let hash = self.hasher.hash_one(tag);
        let entry = self.targets.entry(target.to_owned()).or_insert_with(|| Target {
            claimants: Vec::new(),
            passed: false,
            tags: HashMap::new(),
        });
        if entry.claimants == [id] {
            entry.passed = true;
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
    pub fn shared(&self) -> Vec<(&str, Vec<&str>)> {
        let mut shared: Vec<_> = self
            .targets
            .iter()
            .filter(|(_, target)| target.claimants.len() > 1)
            .map(|(name, target)| {
                let mut sources: Vec<&str> =
                    target.claimants.iter().map(|&id| self.names[id as usize].as_str()).collect();
                sources.sort_unstable();
                (name.as_str(), sources)
            })
            .collect();
        shared.sort_unstable();
        shared
    }

    #[cfg(test)]
    pub(super) fn remembered_tags(&self) -> usize {
        self.targets.values().map(|target| target.tags.len()).sum()
    }

    fn id(&mut self, source: &str) -> u32 {
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
pub struct FixedRule<'a> {
    /// The source registry.
    pub registry: &'a RegistryName,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// Tag selection.
    pub selection: &'a Selection,
    /// Target.
    pub base: &'a Base,
    /// Naming style.
    pub style: &'a Style,
}

/// Finds a collision that two rules have whatever the registries hold: different sources, one target repository, and
/// selections that certainly overlap. Returns `None` if it depends on the tags; then [`Names`] finds it.
pub fn must_collide(a: &FixedRule<'_>, b: &FixedRule<'_>) -> Option<TargetName> {
    if (a.registry, a.repository) == (b.registry, b.repository) || !a.selection.surely_overlaps(b.selection) {
        return None;
    }
    let name = |rule: &FixedRule<'_>, tag: &str| {
        let tag: Tag = tag.parse().ok()?;
        let origin = Origin { registry: rule.registry, repository: rule.repository, tag: &tag, original: None };
        rule.style.name(rule.base, &origin).ok()
    };
    let met = |tag: &str| name(a, tag).filter(|target| name(b, tag).as_ref() == Some(target));
    // Two tags, because a template may set a fixed tag.
    met("1.0").filter(|_| met("latest").is_some()).map(|target| TargetName { tag: Tag::latest(), ..target })
}
