//! Formats of the consumers: a file for each.

mod containerd;
mod docker;
mod k3s;
mod kustomize;
mod kyverno;
mod mirror_entries;
mod openshift;
mod registries_conf;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;

use super::mirror_registry::{MirrorRegistries, MirrorRegistry};
use super::name_mapping::{MappingScope, NameMapping, NamePrefix};
use super::{MirroredNames, UnreachableName};

/// How each written file begins, if its format has comments: such files may be written again.
pub(crate) const WRITTEN_BY: &str = "# Written by `imgsync mirrors`";

/// A consumer of mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MirrorFormat {
    /// containerd: a `hosts.toml` for each source registry.
    Containerd,
    /// CRI-O, podman, buildah and skopeo.
    RegistriesConf,
    /// Docker: `daemon.json`.
    Docker,
    /// K3s and RKE2: `registries.yaml`.
    K3s,
    /// OpenShift: ImageDigestMirrorSet and ImageTagMirrorSet.
    OpenShift,
    /// Kyverno: a policy that mutates Pods.
    Kyverno,
    /// kustomize: a component with `images`.
    Kustomize,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// The output itself.
    Main,
    /// Certificates that the output refers to, or that nodes need.
    Certificate,
}

/// A file for a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputFile {
    /// Relative path.
    pub(crate) path: String,
    /// What it is for.
    pub(crate) kind: FileKind,
    /// Content.
    pub(crate) text: String,
}

/// The files of a consumer, and what they do not reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RenderedMirrors {
    /// The files.
    pub(crate) files: Vec<OutputFile>,
    /// Names that cannot be pulled from the mirror in this way, sorted.
    pub(crate) unreachable: Vec<UnreachableName>,
    /// Remarks: what else nodes need, and what is risky.
    pub(crate) notes: Vec<String>,
    /// Number of names that can be pulled from the mirror: repositories, or patterns of them.
    pub(crate) reachable: usize,
}

/// Renders the files of a consumer.
pub(crate) fn render(names: &MirroredNames, format: MirrorFormat) -> Result<RenderedMirrors> {
    let mut rendered = match format {
        MirrorFormat::Containerd => containerd::render(names)?,
        MirrorFormat::RegistriesConf => registries_conf::render(names)?,
        MirrorFormat::Docker => docker::render(names)?,
        MirrorFormat::K3s => k3s::render(names)?,
        MirrorFormat::OpenShift => openshift::render(names)?,
        MirrorFormat::Kyverno => kyverno::render(names)?,
        MirrorFormat::Kustomize => kustomize::render(names)?,
    };
    rendered.unreachable.extend(names.unreachable.iter().cloned());
    rendered.unreachable.sort();
    rendered.unreachable.dedup();
    rendered.notes.splice(0..0, names.notes.iter().cloned());
    Ok(rendered)
}

/// Mappings that a format can express, each with what it needs of it.
struct Expressed<'a, T> {
    mappings: Vec<(&'a NameMapping, T)>,
    unreachable: Vec<UnreachableName>,
}

impl<'a, T> Expressed<'a, T> {
    /// Splits mappings into those that a format can express, and the others with the reason. A name is unreachable only if
    /// it has no other mapping that is expressed.
    fn split(mappings: &'a [NameMapping], express: impl Fn(&'a NameMapping) -> Result<T, String>) -> Expressed<'a, T> {
        let (mut expressed, mut refused) = (Vec::new(), Vec::new());
        for mapping in mappings {
            match express(mapping) {
                Ok(value) => expressed.push((mapping, value)),
                Err(reason) => refused.push((mapping, reason)),
            }
        }
        let reached: HashSet<_> = expressed.iter().map(|(mapping, _)| (&mapping.source, mapping.scope)).collect();
        refused.retain(|(mapping, _)| !reached.contains(&(&mapping.source, mapping.scope)));
        let unreachable = refused.into_iter().map(|(mapping, reason)| unreachable(mapping, reason)).collect();
        Expressed { mappings: expressed, unreachable }
    }

    /// Returns the number of different source names.
    fn reachable(&self) -> usize {
        count_names(self.mappings.iter().map(|(mapping, _)| *mapping))
    }
}

/// Returns the number of different source names.
fn count_names<'a>(mappings: impl Iterator<Item = &'a NameMapping>) -> usize {
    mappings.map(|mapping| (&mapping.source, mapping.scope)).collect::<HashSet<_>>().len()
}

fn unreachable(mapping: &NameMapping, reason: impl Into<String>) -> UnreachableName {
    let below = match mapping.scope {
        MappingScope::Repository => "",
        MappingScope::OneLevel => "/*",
        MappingScope::AllLevels => "/**",
    };
    let name = format!("{}{below} in {}{below}", mapping.source, mapping.target);
    UnreachableName { reason: reason.into(), name }
}

/// Refuses names of which the mirror may lack some, for formats without a way back to the source.
fn check_exact(mapping: &NameMapping) -> Result<(), String> {
    match mapping.is_exact {
        true => Ok(()),
        false => Err(
            "the mirror has only a part of these names, or other tags, and there is no way back to the source: write \
                      after a run, and use a naming template that keeps tags"
                .to_owned(),
        ),
    }
}

/// Returns the path that a mapping adds before the source path, for formats that can do no more.
fn added_prefix(mapping: &NameMapping, consumer: &str) -> Result<String, String> {
    mapping.added_prefix().map(str::to_owned).ok_or_else(|| {
        format!("{consumer} can only put a path before the name, and here the name changes: use `naming: keep` or `naming: full`")
    })
}

/// A mirror: registry and added path.
type AddedPrefix = (RegistryName, String);

/// Returns the source registries of each mirror to which names are added under the same path.
fn sources_of_prefixes<'a>(
    mappings: impl Iterator<Item = &'a NameMapping>,
) -> BTreeMap<AddedPrefix, BTreeSet<&'a RegistryName>> {
    let mut sources = BTreeMap::<AddedPrefix, BTreeSet<&RegistryName>>::new();
    for mapping in mappings {
        if let Some(added) = mapping.added_prefix() {
            let mirror = (mapping.target.registry.clone(), added.to_owned());
            sources.entry(mirror).or_default().insert(&mapping.source.registry);
        }
    }
    sources
}

/// Warns of mirrors in which the names of several registries cannot be told apart.
fn shared_prefix_notes(sources: &BTreeMap<AddedPrefix, BTreeSet<&RegistryName>>) -> Vec<String> {
    let shared = sources.iter().filter(|(_, registries)| registries.len() > 1);
    shared
        .map(|((registry, path), registries)| {
            let names: Vec<&str> = registries.iter().map(|name| name.as_str()).collect();
            let mirror = NamePrefix { registry: registry.clone(), path: path.clone() };
            format!(
                "warning: {mirror} holds names of {} without their registries: a node that pulls a name of one may get the \
                 image of another; `naming: full` keeps them apart",
                names.join(", ")
            )
        })
        .collect()
}

/// Returns the registries of mirrors, in order, each once.
fn target_registries<'a>(
    registries: &MirrorRegistries,
    mappings: impl Iterator<Item = &'a NameMapping>,
) -> Result<Vec<MirrorRegistry>> {
    let names: BTreeSet<&RegistryName> = mappings.map(|mapping| &mapping.target.registry).collect();
    let found: Result<Vec<MirrorRegistry>> = names.into_iter().map(|name| registries.get(name)).collect();
    found
}

/// Returns remarks about endpoints, which nodes do not use.
fn endpoint_notes(mirrors: &[MirrorRegistry]) -> Vec<String> {
    let note = |mirror: &MirrorRegistry| {
        let endpoint = mirror.endpoint.as_ref()?;
        Some(format!("nodes reach {} by its name: its `endpoint` {endpoint} is for imgsync alone", mirror.name))
    };
    mirrors.iter().filter_map(note).collect()
}

/// Returns the head of a file in a format with comments.
fn file_header(format: &str) -> String {
    format!("{WRITTEN_BY} --format {format}. Changes are lost when it is written again.\n")
}

/// Returns the file with the certificates of a mirror, if it has any.
fn certificate_file(mirror: &MirrorRegistry, path: String, format: &str) -> Option<OutputFile> {
    let ca = mirror.ca.as_ref()?;
    Some(OutputFile { path, kind: FileKind::Certificate, text: format!("{}{ca}", file_header(format)) })
}

/// Joins YAML documents under a head.
fn yaml_file(path: &str, format: &str, documents: &[String]) -> OutputFile {
    let text = format!("{}{}", file_header(format), documents.join("---\n"));
    OutputFile { path: path.to_owned(), kind: FileKind::Main, text }
}

#[cfg(test)]
mod tests;
