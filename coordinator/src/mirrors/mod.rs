//! Configurations that make clusters and container engines pull from a mirror: collects the names that rules write, from
//! the store or from the rules, and renders them for each consumer.

mod copied_by_rule;
mod copied_names;
mod formats;
mod mirror_registry;
mod name_mapping;
mod rule_names;
mod shared_names;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use imgsync_config::{Config, RuleSource};
use imgsync_oci::error::Result;
use imgsync_store::Store;

use self::copied_names::CopiedNames;
pub(crate) use self::formats::{FileKind, MirrorFormat, OutputFile, RenderedMirrors, WRITTEN_BY, render};
use self::mirror_registry::MirrorRegistries;
use self::name_mapping::{MirrorGap, NameMapping, NamePrefix};
use self::rule_names::{names_of_copies, names_of_rule, registry_targets};
use crate::presets;

/// A name that cannot be pulled from the mirror, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnreachableName {
    /// The reason, with the naming style that would make it reachable.
    pub(crate) reason: String,
    /// The name, and its name in the mirror if there is one.
    pub(crate) name: String,
}

/// Where the names of a rule are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameOrigin {
    /// From the store.
    Store {
        /// Number of repositories that the rule copied.
        copied: usize,
        /// Number of names of the rule of which nothing was copied yet.
        not_copied: usize,
    },
    /// From the rule, because the store has nothing of it.
    Rule,
}

/// The names that the rules of a configuration write.
#[derive(Debug)]
pub(crate) struct MirroredNames {
    /// Mappings in the order of the rules, each once.
    mappings: Vec<NameMapping>,
    /// Mappings of rules that were not chosen: their images are in the mirrors, too.
    other_mappings: Vec<NameMapping>,
    /// Names that no format can reach.
    unreachable: Vec<UnreachableName>,
    /// The label of each rule, and where its names are from.
    pub(crate) origins: Vec<(String, NameOrigin)>,
    /// Remarks about rules.
    notes: Vec<String>,
    aliases: Aliases,
    /// Targets of the rules that have a path.
    target_paths: HashSet<NamePrefix>,
    /// Whether images of several sources may have the same name in a mirror.
    pub(crate) allows_shared_names: bool,
    registries: MirrorRegistries,
}

impl MirroredNames {
    /// Adds the names of rules that were not chosen, which nodes must not get in place of others.
    pub(crate) fn add_other_rules(&mut self, others: MirroredNames) {
        self.other_mappings.extend(others.mappings);
        for (source_and_target, images) in others.aliases {
            self.aliases.entry(source_and_target).or_default().extend(images);
        }
        self.target_paths.extend(others.target_paths);
    }
}

/// Sources and targets of presets, with the images that are there: names at several locations of a preset may be of the same.
type Aliases = HashMap<(NamePrefix, NamePrefix), BTreeSet<String>>;

/// Collects the names that the rules write: of each rule, what it copied if the store knows that, and what the rule says of
/// the rest. Without a store, all are from the rules. `folder`: base of relative paths of the configuration.
pub(crate) async fn collect_names(config: &Config, folder: &Path, store: Option<&dyn Store>) -> Result<MirroredNames> {
    let mut copied = CopiedNames::for_rules(&config.rules)?;
    if let Some(store) = store {
        copied.read_provenance(store).await?;
        copied.read_batches(store).await?;
    }
    let registries = MirrorRegistries::new(config, folder);
    let mut names = MirroredNames {
        mappings: Vec::new(),
        other_mappings: Vec::new(),
        unreachable: Vec::new(),
        origins: Vec::new(),
        notes: Vec::new(),
        aliases: Aliases::new(),
        target_paths: HashSet::new(),
        allows_shared_names: false,
        registries,
    };
    let mut known = HashSet::new();
    for (rule, copied) in config.rules.iter().zip(copied.into_names()) {
        let mut rest = names_of_rule(rule, folder, &copied).await?;
        if store.is_some() {
            rest.mappings.iter_mut().for_each(|mapping| mapping.gap = Some(MirrorGap::NotCopied));
        }
        let origin = match copied.repositories() {
            0 => NameOrigin::Rule,
            copied => NameOrigin::Store { copied, not_copied: rest.mappings.len() },
        };
        let mut found = names_of_copies(rule, &copied);
        found.mappings.append(&mut rest.mappings);
        found.unreachable.append(&mut rest.unreachable);
        names.notes.append(&mut rest.notes);
        names.origins.push((rule.label(), origin));
        if !found.mappings.is_empty() && found.mappings.iter().all(|mapping| !mapping.keeps_digests) {
            names.notes.push(format!(
                "{}: with `platforms`, the mirror has other digests than the source: images are pulled by tag only; `sparse: \
                 true` keeps the digests",
                rule.label()
            ));
        }
        let targets = registry_targets(rule).map(|(base, _)| NamePrefix::target(base));
        names.target_paths.extend(targets.filter(|target| !target.path.is_empty()));
        if let RuleSource::Preset(preset) = &rule.source {
            let definition = presets::find(preset)?;
            for NameMapping { source, target, .. } in &found.mappings {
                let text = source.to_string();
                let images = definition.paths_below(&text).map(|path| format!("{}: {path}", preset.name));
                names.aliases.entry((source.clone(), target.clone())).or_default().extend(images);
            }
        }
        for mapping in found.mappings {
            if known.insert(mapping.clone()) {
                names.mappings.push(mapping);
            }
        }
        names.unreachable.extend(found.unreachable);
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
