//! What one rule copied.

use std::collections::BTreeMap;

use imgsync_model::naming::TargetBase;
use imgsync_model::select::RepositoryPattern;
use imgsync_oci::Tag;

use super::name_mapping::NamePrefix;

/// Repositories that one rule copied: source and target, and a tag that has another name there.
#[derive(Debug, Default)]
pub(super) struct CopiedByRule(BTreeMap<(NamePrefix, NamePrefix), Option<(Tag, Tag)>>);

impl CopiedByRule {
    /// Adds a repository, and a tag with its other name in the mirror if it has one.
    pub(super) fn add(&mut self, names: (NamePrefix, NamePrefix), renamed: Option<(Tag, Tag)>) {
        let known = self.0.entry(names).or_default();
        if known.is_none() {
            *known = renamed;
        }
    }

    /// Returns source and target of each repository, and a tag that has another name there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&(NamePrefix, NamePrefix), &Option<(Tag, Tag)>)> {
        self.0.iter()
    }

    /// Whether the store knows nothing of the rule.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of repositories.
    pub(super) fn repositories(&self) -> usize {
        self.0.len()
    }

    /// Whether a repository that a pattern matches was copied to a target.
    pub(super) fn has_pattern(&self, pattern: &RepositoryPattern, base: &TargetBase) -> bool {
        let base = NamePrefix::target(base);
        self.0.keys().any(|(source, target)| {
            source.registry == *pattern.registry() && pattern.matches(&source.path) && base.contains(target)
        })
    }

    /// Whether a repository was copied to a target.
    pub(super) fn has_repository(&self, source: &NamePrefix, base: &TargetBase) -> bool {
        let base = NamePrefix::target(base);
        let from_base = self.0.range((source.clone(), base.clone())..);
        from_base
            .take_while(|((other, target), _)| other == source && target.registry == base.registry)
            .any(|((_, target), _)| base.contains(target))
    }
}
