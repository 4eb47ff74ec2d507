//! Names of a rule without a store: what its patterns and files say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use imgsync_config::{Rule, RuleSource};
use imgsync_image_names::Certainty;
use imgsync_model::naming::{NamingStyle, SourceName, TargetBase};
use imgsync_model::select::RepositoryPattern;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{RegistryName, RepositoryName, Tag};

use super::UnreachableName;
use super::copied_by_rule::CopiedByRule;
use super::name_mapping::{MappingScope, MirrorGap, NameMapping, NamePrefix, count_levels, join};
use crate::images::ImageSearch;
use crate::presets::{SourceSelector, source_selectors};

/// The names of one rule.
#[derive(Debug, Default)]
pub(super) struct RuleNames {
    /// Mappings of source names.
    pub(super) mappings: Vec<NameMapping>,
    /// Names that no format can reach.
    pub(super) unreachable: Vec<UnreachableName>,
    /// Remarks.
    pub(super) notes: Vec<String>,
}

impl RuleNames {
    /// Adds a name that no format can reach.
    pub(super) fn add_unreachable(&mut self, name: String, reason: impl Into<String>) {
        self.unreachable.push(UnreachableName { reason: reason.into(), name });
    }

    /// Adds the targets of a rule that are no registries.
    pub(super) fn add_local_targets(&mut self, rule: &Rule) {
        for target in rule.to.iter().filter(|target| target.is_local()) {
            let reason = "nothing can be pulled from a layout or an archive; `to` must be a registry";
            self.add_unreachable(format!("{} in {target}", rule.source_label()), reason);
        }
    }
}

/// Whether the mirror has the digests of the source: a selection of platforms changes those of indexes.
fn keeps_digests(rule: &Rule) -> bool {
    rule.platforms.is_empty() || rule.sparse
}

/// Returns the names that a rule copied.
pub(super) fn names_of_copies(rule: &Rule, copied: &CopiedByRule) -> RuleNames {
    let mut names = RuleNames::default();
    for ((source, target), renamed) in copied.iter() {
        let gap = renamed.as_ref().map(|_| MirrorGap::OtherTags);
        if let Some((tag, other)) = renamed {
            let reason = "tags have other names in the mirror, and clusters cannot rename them; a naming template without \
                          `:` keeps them";
            names.add_unreachable(format!("{source}:{tag} in {target}:{other}"), reason);
        }
        let (scope, keeps_digests) = (MappingScope::Repository, keeps_digests(rule));
        let (source, target) = (source.clone(), target.clone());
        names.mappings.push(NameMapping { source, target, scope, keeps_digests, gap });
    }
    names
}

/// Returns the names that a rule will write, as far as they are known before the first run. Leaves out what was copied.
pub(super) async fn names_of_rule(rule: &Rule, folder: &Path, copied: &CopiedByRule) -> Result<RuleNames> {
    let mut names = RuleNames::default();
    names.add_local_targets(rule);
    let bases: Vec<(&TargetBase, NamingStyle)> = registry_targets(rule).collect();
    if bases.is_empty() {
        return Ok(names);
    }
    let is_copied = |(registry, repository): (&RegistryName, &RepositoryName), base: &TargetBase| {
        copied.has_repository(&NamePrefix::repository(registry, repository), base)
    };
    match &rule.source {
        RuleSource::Repositories(_) | RuleSource::Preset(_) => {
            for part in source_selectors(&rule.source)? {
                for (base, style) in bases.iter().filter(|(base, _)| !copied.has_pattern(&part.pattern, base)) {
                    add_pattern(rule, &part, base, style, &mut names);
                }
            }
        }
        RuleSource::Digests(source) => {
            let repository = (&source.registry, &source.repository);
            for (base, style) in bases.iter().filter(|(base, _)| !is_copied(repository, base)) {
                add_repository(rule, repository, None, base, style, &mut names);
            }
        }
        RuleSource::Images(paths) => {
            let named = match named_repositories(paths, folder).await {
                Err(error) if !copied.is_empty() => {
                    names.notes.push(format!(
                        "warning: {}: images that were not copied yet are not known: {error}",
                        rule.label()
                    ));
                    BTreeSet::new()
                }
                named => named?,
            };
            for (registry, repository) in named {
                let repository = (&registry, &repository);
                for (base, style) in bases.iter().filter(|(base, _)| !is_copied(repository, base)) {
                    add_repository(rule, repository, None, base, style, &mut names);
                }
            }
        }
        RuleSource::Layout(_) | RuleSource::Archive(..) => {
            if copied.is_empty() {
                let reason = "the names in a layout or archive are known after its first run";
                names.add_unreachable(rule.source_label(), reason);
            }
        }
    }
    Ok(names)
}

/// Returns the repositories of the images that files name for sure.
async fn named_repositories(paths: &[PathBuf], folder: &Path) -> Result<BTreeSet<(RegistryName, RepositoryName)>> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| folder.join(path)).collect();
    let read = move || -> Result<_> {
        let mut search = ImageSearch::default();
        paths.iter().try_for_each(|path| search.add_path(path))?;
        let images = search.images.iter(Certainty::Sure);
        Ok(images.map(|(image, _)| (image.registry.clone(), image.repository.clone())).collect())
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::new(ErrorKind::Local, "reading the images of a rule", error.to_string()))?
}

/// Adds the mapping of one repository.
fn add_repository(
    rule: &Rule,
    (registry, repository): (&RegistryName, &RepositoryName),
    original: Option<&str>,
    base: &TargetBase,
    style: &NamingStyle,
    names: &mut RuleNames,
) {
    let name = format!("{registry}/{repository}");
    if style.depends_on_tag() {
        let reason = "the naming template uses {{tag}}, and the tags are known after the first run; a template without it \
                      needs no run";
        return names.add_unreachable(name, reason);
    }
    let tag = Tag::latest();
    match style.target_name(base, &SourceName { registry, repository, tag: &tag, original }) {
        Ok(target) => names.mappings.push(NameMapping {
            source: NamePrefix::repository(registry, repository),
            target: NamePrefix::repository(&target.registry, &target.repository),
            scope: MappingScope::Repository,
            keeps_digests: keeps_digests(rule),
            gap: None,
        }),
        Err(error) => names.add_unreachable(name, format!("the target rejects its name: {error}")),
    }
}

/// Adds the mapping of a pattern: of one repository, or of all names below a path if the style keeps them.
fn add_pattern(rule: &Rule, part: &SourceSelector, base: &TargetBase, style: &NamingStyle, names: &mut RuleNames) {
    let pattern = &part.pattern;
    let registry = pattern.registry();
    if let Some(repository) = pattern.repository() {
        let original = part.original_name(registry, &repository);
        return add_repository(rule, (registry, &repository), original.as_deref(), base, style, names);
    }
    let prefix = base.prefix.as_ref().map(RepositoryName::as_str).unwrap_or_default();
    let path = match style {
        NamingStyle::Keep => Some(join(prefix, pattern.prefix())),
        NamingStyle::Full => full_registry_path(base, registry).map(|above| join(&above, pattern.prefix())),
        NamingStyle::Basename if is_one_level(pattern) => Some(prefix.to_owned()),
        NamingStyle::Basename | NamingStyle::Flat | NamingStyle::Original | NamingStyle::Template(_) => None,
    };
    let Some(path) = path else {
        let reason = format!(
            "with `naming: {style}`, the names of a pattern are known after the first run; `naming: keep` and `naming: full` \
             need no run"
        );
        return names.add_unreachable(format!("{pattern} in {base}"), reason);
    };
    if base.registry.is_docker_hub() {
        // A name of two levels is not known to result from every match.
        let reason = "the names of a pattern in Docker Hub are known after the first run";
        return names.add_unreachable(format!("{pattern} in {base}"), reason);
    }
    names.mappings.push(NameMapping {
        source: NamePrefix { registry: registry.clone(), path: pattern.prefix().to_owned() },
        target: NamePrefix { registry: base.registry.clone(), path },
        scope: if is_one_level(pattern) { MappingScope::OneLevel } else { MappingScope::AllLevels },
        keeps_digests: keeps_digests(rule),
        gap: (!matches_all_below_prefix(pattern)).then_some(MirrorGap::OtherNames),
    });
}

/// Whether a pattern matches all names one level below its prefix, or all at any level.
fn matches_all_below_prefix(pattern: &RepositoryPattern) -> bool {
    let whole = join(pattern.registry().as_str(), pattern.prefix());
    let text = pattern.to_string();
    pattern.excluded().is_empty()
        && text
            .strip_prefix(&whole)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|rest| matches!(rest, "*" | "**"))
}

/// Returns the path that `naming: full` puts before the paths of a registry.
fn full_registry_path(base: &TargetBase, registry: &RegistryName) -> Option<String> {
    let (sample, tag) = ("a".parse().ok()?, Tag::latest());
    let source = SourceName { registry, repository: &sample, tag: &tag, original: None };
    let name = NamingStyle::Full.target_name(base, &source).ok()?;
    name.repository.as_str().strip_suffix("/a").map(str::to_owned)
}

/// Whether all matches are one level below the prefix of the pattern.
fn is_one_level(pattern: &RepositoryPattern) -> bool {
    let Some(shortest) = pattern.shortest_match() else { return false };
    count_levels(shortest.as_str()) == count_levels(pattern.prefix()) + 1 && !pattern.can_match_below(shortest.as_str())
}

/// Whether a rule would read this repository.
pub(super) fn reads(
    rule: &Rule,
    parts: &[SourceSelector],
    registry: &RegistryName,
    repository: &RepositoryName,
) -> bool {
    match &rule.source {
        RuleSource::Repositories(_) => parts.iter().any(|part| part.reads(registry, repository)),
        RuleSource::Digests(source) => source.registry == *registry && source.repository == *repository,
        // A preset also reads from its former locations; files and layouts are not read again.
        RuleSource::Preset(_) | RuleSource::Images(_) | RuleSource::Layout(_) | RuleSource::Archive(..) => true,
    }
}

/// Returns the registry targets of a rule, with their styles.
pub(super) fn registry_targets(rule: &Rule) -> impl Iterator<Item = (&TargetBase, NamingStyle)> {
    rule.to.iter().filter_map(|to| Some((to.registry()?, rule.style_at(to))))
}
