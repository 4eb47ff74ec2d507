//! Hooks of the active configuration, and which pushes their rules may want.

use std::sync::Arc;

use imgsync_config::{HookConfig, Rule};
use imgsync_model::batch::PushedReference;
use imgsync_model::select::{RepositoryPattern, TagCandidate, TagSelection};
use imgsync_oci::{DigestTag, RegistryName, RepositoryName};
use imgsync_store::PushRule;
use jiff::Timestamp;

use super::named_images::NamedImages;
use crate::presets::{SourceSelector, source_selectors};

/// A hook of the active configuration.
#[derive(Debug)]
pub(super) struct ActiveHook {
    pub(super) config: HookConfig,
    /// The rules that it may trigger.
    rules: Vec<TriggeredRule>,
}

/// What a rule reads, as far as one tag shows it: limits that depend on other tags are applied when it is copied.
#[derive(Debug)]
struct TriggeredRule {
    rule: PushRule,
    /// Whether signatures and other referrers matter.
    reads_referrers: bool,
    /// Whether it removes what its source no longer has.
    prunes: bool,
    parts: Vec<(RepositoryPattern, [TagSelection; 2])>,
    /// The images of a rule that names each.
    named: Option<Arc<NamedImages>>,
}

/// A rule that hooks may trigger.
pub(super) struct HookRule<'a> {
    pub(super) id: &'a str,
    pub(super) rule: &'a Rule,
    /// The images of a rule that names each.
    pub(super) named: Option<&'a Arc<NamedImages>>,
}

impl ActiveHook {
    /// Creates a hook with its rules.
    pub(super) fn new(config: HookConfig, rules: &[HookRule<'_>]) -> ActiveHook {
        let may_trigger = |rule: &Rule| config.rules.is_empty() || config.rules.contains(&rule.title());
        let triggered = rules.iter().filter(|rule| may_trigger(rule.rule)).map(TriggeredRule::new);
        let rules: Vec<TriggeredRule> = triggered.filter(|rule| rule.reads_from(&config.registry)).collect();
        if rules.is_empty() {
            let HookConfig { registry, kind, .. } = &config;
            tracing::warn!("the hook for {registry} ({kind}) can trigger no rule: none that it names reads from there");
        }
        ActiveHook { config, rules }
    }

    /// Returns whether it may trigger a rule.
    pub(super) fn triggers(&self, rule: &str) -> bool {
        self.rules.iter().any(|triggered| triggered.rule.id == rule)
    }

    /// Returns whether a rule that it may trigger prunes.
    pub(super) fn follows_deletions(&self) -> bool {
        self.rules.iter().any(|rule| rule.prunes)
    }

    /// Returns the rules whose images are named in files that could not be read yet: they may want any push.
    pub(super) fn unread_rules(&self) -> impl Iterator<Item = &PushRule> {
        self.rules
            .iter()
            .filter(|rule| rule.named.as_ref().is_some_and(|named| named.is_unread()))
            .map(|rule| &rule.rule)
    }

    /// Returns whether a rule other than these names images in files, which may have changed.
    pub(super) fn reads_files_beside(&self, rules: &[PushRule]) -> bool {
        let reads_files = |rule: &&TriggeredRule| rule.named.as_ref().is_some_and(|named| named.is_in_files());
        self.rules.iter().filter(reads_files).any(|rule| !rules.contains(&rule.rule))
    }

    /// Reads the files that name images, if they have changed.
    pub(super) async fn refresh_images(&self) {
        for named in self.rules.iter().filter_map(|rule| rule.named.as_ref()) {
            named.refresh().await;
        }
    }

    /// Returns the rules that may copy a push.
    pub(super) fn wanted_by(&self, repository: &RepositoryName, reference: &PushedReference) -> Vec<PushRule> {
        let wanted = self.rules.iter().filter(|rule| rule.wants(&self.config.registry, repository, reference));
        wanted.map(|rule| rule.rule.clone()).collect()
    }
}

impl TriggeredRule {
    fn new(HookRule { id, rule, named }: &HookRule<'_>) -> TriggeredRule {
        let selectors = source_selectors(&rule.source).unwrap_or_default();
        let own = without_context(&rule.selection);
        let part = |selector: SourceSelector| {
            let first = without_context(&selector.selection);
            (selector.pattern, [first, own.clone()])
        };
        TriggeredRule {
            rule: PushRule { id: (*id).to_owned(), name: rule.title() },
            reads_referrers: rule.referrers.copies_any() || rule.policy.is_some(),
            prunes: rule.prune.is_some(),
            parts: selectors.into_iter().map(part).collect(),
            named: named.cloned(),
        }
    }

    fn reads_from(&self, registry: &RegistryName) -> bool {
        self.parts.iter().any(|(pattern, _)| pattern.registry() == registry)
            || self.named.as_ref().is_some_and(|named| named.may_read_from(registry))
    }

    fn wants(&self, registry: &RegistryName, repository: &RepositoryName, reference: &PushedReference) -> bool {
        if let Some(named) = &self.named {
            return *reference != PushedReference::Deletion
                && named.may_have((registry, repository), reference, self.reads_referrers);
        }
        let mut parts = self
            .parts
            .iter()
            .filter(|(pattern, _)| pattern.registry() == registry && pattern.matches(repository.as_str()));
        match reference {
            PushedReference::Tag(tag, _) if DigestTag::parse_tag(tag.as_str()).is_some() => {
                self.reads_referrers && parts.next().is_some()
            }
            PushedReference::Tag(tag, _) => parts.any(|(_, selections)| {
                let selects = |selection: &TagSelection| {
                    !selection.evaluate([TagCandidate::new(tag.as_str())], Timestamp::UNIX_EPOCH).kept.is_empty()
                };
                selections.iter().all(selects)
            }),
            PushedReference::Manifest(_) => self.reads_referrers && parts.next().is_some(),
            PushedReference::Unknown => parts.next().is_some(),
            PushedReference::Deletion => self.prunes && parts.next().is_some(),
        }
    }
}

/// Returns the part of a selection that one tag alone decides.
fn without_context(selection: &TagSelection) -> TagSelection {
    let TagSelection { include, exclude, range, .. } = selection.clone();
    TagSelection { include, exclude, range, ..TagSelection::default() }
}
