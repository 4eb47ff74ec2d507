//! Names of rules from the store: what they copied.

use std::collections::HashMap;

use imgsync_config::Rule;
use imgsync_model::batch::{RepositoryLocator, TagLocator, TaskState};
use imgsync_model::naming::{NamingStyle, SourceName, TargetBase};
use imgsync_oci::error::Result;
use imgsync_oci::{Reference, RegistryName, RepositoryName, Tag, is_registry_part};
use imgsync_store::Store;

use super::copied_by_rule::CopiedByRule;
use super::name_mapping::NamePrefix;
use super::rule_names::{reads, registry_targets};
use crate::presets::{SourceSelector, source_selectors};

/// Maximum number of batches in which the tasks of a rule are searched, newest first.
const MAX_BATCHES: usize = 10;
const TASK_PAGE_SIZE: usize = 5000;

/// Repositories that rules copied, by what the store knows.
pub(super) struct CopiedNames<'a> {
    rules: Vec<(&'a Rule, Vec<SourceSelector>)>,
    copied: Vec<CopiedByRule>,
    /// The rules that write a repository, for rules whose names do not depend on tags.
    decided: HashMap<(NamePrefix, NamePrefix), Vec<usize>>,
}

impl<'a> CopiedNames<'a> {
    /// Creates an empty collection.
    pub(super) fn for_rules(rules: &'a [Rule]) -> Result<CopiedNames<'a>> {
        let rules: Vec<_> =
            rules.iter().map(|rule| Ok((rule, source_selectors(&rule.source)?))).collect::<Result<_>>()?;
        let copied = rules.iter().map(|_| CopiedByRule::default()).collect();
        Ok(CopiedNames { rules, copied, decided: HashMap::new() })
    }

    /// Adds the target tags that imgsync wrote.
    pub(super) async fn read_provenance(&mut self, store: &dyn Store) -> Result<()> {
        for source in store.provenance_sources().await? {
            let Some(name) = source_name(&source) else { continue };
            for record in store.provenance_by_source(&source).await?.into_iter().filter(|record| record.is_authentic) {
                self.add(&name, &record.source_tag, &record.target);
            }
        }
        Ok(())
    }

    /// Adds the images that the newest batches copied or found unchanged, until each rule has some.
    pub(super) async fn read_batches(&mut self, store: &dyn Store) -> Result<()> {
        let mut is_seen = vec![false; self.rules.len()];
        for batch in store.batches(MAX_BATCHES).await? {
            for state in [TaskState::Copied, TaskState::Unchanged] {
                let mut from = 0;
                loop {
                    let page = store.tasks(batch.id, Some(state), from, TASK_PAGE_SIZE).await?;
                    let Some(last) = page.last() else { break };
                    from = last.task.index.saturating_add(1);
                    for spec in page.iter().map(|row| &row.task.spec) {
                        let Some(name) = source_name(&spec.source.repository) else { continue };
                        for rule in self.add(&name, &spec.source.tag, &spec.target) {
                            is_seen[rule] = true;
                        }
                    }
                }
            }
            if is_seen.iter().all(|is_seen| *is_seen) {
                break;
            }
        }
        Ok(())
    }

    /// Returns what each rule copied.
    pub(super) fn into_names(self) -> Vec<CopiedByRule> {
        self.copied
    }

    /// Adds a tag to the rules that write it, and returns them. Tags that no rule writes any more are left out.
    fn add(&mut self, source: &(RegistryName, RepositoryName), tag: &Tag, target: &TagLocator) -> Vec<usize> {
        let Some((registry, repository)) = target.repository.registry() else { return Vec::new() };
        let names = (NamePrefix::repository(&source.0, &source.1), NamePrefix::repository(registry, &repository));
        let rules = match self.decided.get(&names) {
            Some(decided) => decided.clone(),
            None => {
                let found = self.find_rules(source, tag, target);
                // A style that depends on tags may write other tags of this repository elsewhere.
                if !self.rules.iter().any(|(rule, _)| registry_targets(rule).any(|(_, style)| style.depends_on_tag())) {
                    self.decided.insert(names.clone(), found.clone());
                }
                found
            }
        };
        for rule in &rules {
            self.copied[*rule].add(names.clone(), (*tag != target.tag).then(|| (tag.clone(), target.tag.clone())));
        }
        rules
    }

    fn find_rules(&self, source: &(RegistryName, RepositoryName), tag: &Tag, target: &TagLocator) -> Vec<usize> {
        let rules = self.rules.iter().enumerate();
        rules.filter(|(_, (rule, parts))| writes(rule, parts, source, tag, target)).map(|(index, _)| index).collect()
    }
}

/// Whether a rule would write this target for this source, if it selects the tag.
fn writes(
    rule: &Rule,
    parts: &[SourceSelector],
    (registry, repository): &(RegistryName, RepositoryName),
    tag: &Tag,
    target: &TagLocator,
) -> bool {
    let Some((target_registry, target_repository)) = target.repository.registry() else { return false };
    let mut originals: Vec<Option<String>> =
        parts.iter().map(|part| part.original_name(registry, repository)).collect();
    originals.push(None);
    let is_it = |base: &TargetBase, style: &NamingStyle, original: &Option<String>| {
        let name = SourceName { registry, repository, tag, original: original.as_deref() };
        style.target_name(base, &name).is_ok_and(|name| {
            name.registry == *target_registry && name.repository == target_repository && name.tag == target.tag
        })
    };
    reads(rule, parts, registry, repository)
        && registry_targets(rule).any(|(base, style)| originals.iter().any(|original| is_it(base, &style, original)))
}

/// Returns the name that clusters use for a source; `None` for an image of a layout or archive without a full name.
fn source_name(source: &RepositoryLocator) -> Option<(RegistryName, RepositoryName)> {
    if let Some((registry, repository)) = source.registry() {
        return Some((registry.clone(), repository));
    }
    let (first, _) = source.path().split_once('/').filter(|(first, _)| is_registry_part(first))?;
    let name: Reference = source.path().parse().ok()?;
    (!first.is_empty() && name.tag.is_none() && name.digest.is_none()).then_some((name.registry, name.repository))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgsync_config::{Config, ConfigFile};
    use imgsync_oci::Digest;
    use imgsync_store::{ProvenanceStore as _, SqliteStore, SystemClock};

    use super::*;

    fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
        let repository = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
        TagLocator { repository: Arc::new(repository), tag: tag.parse().unwrap() }
    }

    #[tokio::test]
    async fn a_repository_is_of_each_rule_that_writes_it_and_layouts_name_their_sources() {
        let text = "rules: [{from: gcr.io/a/b, to: m.example/m, naming: basename, tags: {include: [v1]}}, \
                    {from: gcr.io/a/*, to: m.example/m, naming: basename, tags: {include: [v2]}}, \
                    {from: \"oci:/images\", to: m.example/m, naming: keep}, {from: quay.io/a/b, to: m.example/m}]";
        let file = ConfigFile { name: "", text, environment: &|_| None, presets: None };
        let config = Config::read(&file).unwrap();
        let store = SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap();
        for (source, target) in [
            (tag_locator("gcr.io", "a/b", "v1"), tag_locator("m.example", "m/b", "v1")),
            (tag_locator("oci:/images", "quay.io/c/d", "v1"), tag_locator("m.example", "m/c/d", "v1")),
            (tag_locator("oci:/images", "", "v1"), tag_locator("m.example", "m/e", "v1")),
            (tag_locator("quay.io", "a/b", "v1"), tag_locator("other.example", "m/quay.io_a_b", "v1")),
        ] {
            store.record_provenance(&source, &target, &Digest::sha256(b"1")).await.unwrap();
        }
        let mut names = CopiedNames::for_rules(&config.rules).unwrap();
        names.read_provenance(&store).await.unwrap();
        let copied: Vec<Vec<String>> = names
            .into_names()
            .into_iter()
            .map(|copied| copied.iter().map(|((source, target), _)| format!("{source} {target}")).collect())
            .collect();
        let shared = ["gcr.io/a/b m.example/m/b"];
        assert_eq!(copied[..2], [shared, shared]);
        assert_eq!(copied[2], ["quay.io/c/d m.example/m/c/d"]);
        assert!(copied[3].is_empty(), "another target than the rule's: {copied:?}");
    }
}
