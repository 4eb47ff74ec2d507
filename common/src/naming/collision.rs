//! Two images under one name.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::{Base, Origin, Style, TargetName};
use crate::image::{RegistryName, RepositoryName, Tag};
use crate::select::Selection;

/// A register of who writes where. Fed with repositories as they are found, then with tags as they are listed; it
/// remembers each pair of repositories once, and tags (16 bytes each) only of targets that more than one source writes
/// to. So its memory grows with the number of repositories.
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
    /// Whether a tag passed while there was one claimant, and so was not remembered.
    passed: bool,
    tags: HashMap<u64, u32>,
}

/// What a claim to a target repository met with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody else writes there.
    Alone,
    /// So does this other source; tags are compared from here on.
    Shared(String),
    /// So does this other source, and tags of it have passed that were not remembered: ask the plan whether it holds
    /// the target tag already.
    Late(String),
}

/// A target tag that two sources want. The first one has it, the second fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target} is already the target of {first}")]
pub struct Collision {
    /// The target, repository and tag.
    pub target: String,
    /// The source repository that has it.
    pub first: String,
    /// The source repository that wants it too.
    pub second: String,
}

impl Names {
    /// An empty register.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that a source repository is going to be copied to a target repository. To be called for all repositories
    /// before their tags, as far as they are known by then; again for the same pair does no harm.
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

    /// Takes a target tag for a source, or says who has it. Templates that put the tag into the repository's name may
    /// take without a claim: then they are compared with others that do so too.
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

    /// Target repositories that several sources write to, with these, sorted.
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

/// A rule that reads one repository, known before anything is listed.
#[derive(Clone, Copy, Debug)]
pub struct FixedRule<'a> {
    /// The source registry.
    pub registry: &'a RegistryName,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// Which tags.
    pub selection: &'a Selection,
    /// Where to.
    pub base: &'a Base,
    /// Under which name.
    pub style: &'a Style,
}

/// Whether two rules write different images under one name whatever the registries hold: different sources, one target
/// repository, and tags that are chosen alike. `None` where that depends on which tags there are; then [`Names`] finds
/// it.
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
    // Two tags, since a template may write a tag of its own.
    met("1.0").filter(|_| met("latest").is_some()).map(|target| TargetName { tag: Tag::latest(), ..target })
}
