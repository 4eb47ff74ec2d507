//! Configurations that make clusters and container engines pull from a mirror: collects the names that rules write, from
//! the store or from the rules, and renders them for each consumer.

mod copied_names;
mod formats;
mod mirror_registry;
mod name_mapping;
mod rule_names;

use std::collections::HashSet;
use std::path::Path;

use imgsync_config::Config;
use imgsync_oci::error::Result;
use imgsync_store::Store;

use self::copied_names::CopiedNames;
pub(crate) use self::formats::{FileKind, MirrorFormat, OutputFile, RenderedMirrors, WRITTEN_BY, render};
use self::mirror_registry::MirrorRegistries;
use self::name_mapping::NameMapping;
use self::rule_names::names_of_rule;

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
    /// From the store: what the rule copied, as a number of repositories.
    Store(usize),
    /// From the rule, because the store has nothing of it.
    Rule,
}

/// The names that the rules of a configuration write.
#[derive(Debug)]
pub(crate) struct MirroredNames {
    /// Mappings in the order of the rules, each once.
    mappings: Vec<NameMapping>,
    /// Names that no format can reach.
    unreachable: Vec<UnreachableName>,
    /// The label of each rule, and where its names are from.
    pub(crate) origins: Vec<(String, NameOrigin)>,
    /// Remarks about rules.
    notes: Vec<String>,
    registries: MirrorRegistries,
}

/// Collects the names that the rules write: of each rule, what it copied if the store knows that, else what the rule says.
/// Without a store, all are from the rules. `folder`: base of relative paths of the configuration.
pub(crate) async fn collect_names(config: &Config, folder: &Path, store: Option<&dyn Store>) -> Result<MirroredNames> {
    let mut copied = CopiedNames::for_rules(&config.rules)?;
    if let Some(store) = store {
        copied.read_provenance(store).await?;
        copied.read_batches(store).await?;
    }
    let registries = MirrorRegistries::new(config, folder);
    let mut names = MirroredNames {
        mappings: Vec::new(),
        unreachable: Vec::new(),
        origins: Vec::new(),
        notes: Vec::new(),
        registries,
    };
    let mut known = HashSet::new();
    for (rule, copied) in config.rules.iter().zip(copied.into_names()) {
        let origin = match copied.is_empty() {
            true => NameOrigin::Rule,
            false => NameOrigin::Store(copied.repositories()),
        };
        let found = match copied.is_empty() {
            true => names_of_rule(rule, folder).await?,
            false => copied.into_rule_names(rule),
        };
        names.origins.push((rule.label(), origin));
        if !found.mappings.is_empty() && found.mappings.iter().all(|mapping| !mapping.keeps_digests) {
            names.notes.push(format!(
                "{}: with `platforms`, the mirror has other digests than the source: images are pulled by tag only; `sparse: \
                 true` keeps the digests",
                rule.label()
            ));
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
