//! Formats of the consumers: a file for each.

mod containerd;
mod docker;
mod k3s;
mod kustomize;
mod kyverno;
mod mirror_entries;
mod openshift;
mod registries_conf;

use std::collections::{BTreeSet, HashSet};

use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::group_digits;

use super::mirror_registry::{MirrorRegistries, MirrorRegistry};
use super::name_mapping::{MappingScope, MirrorGap, NameMapping};
use super::shared_names::{NameRange, SharedNames};
use super::{MirroredNames, UnreachableName};

/// More mirrors that are left out are counted.
const MAX_LEFT_OUT: usize = 20;

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

impl MirrorFormat {
    /// Returns the name of its main file. containerd has one in the folder of each registry.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            MirrorFormat::Containerd => containerd::FILE,
            MirrorFormat::RegistriesConf => registries_conf::FILE,
            MirrorFormat::Docker => docker::FILE,
            MirrorFormat::K3s => k3s::FILE,
            MirrorFormat::OpenShift => openshift::FILE,
            MirrorFormat::Kyverno => kyverno::FILE,
            MirrorFormat::Kustomize => kustomize::FILE,
        }
    }
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
    /// Remarks about mirrors that are left out because the format cannot express them, for names that have another.
    notes: Vec<String>,
}

impl<'a, T> Expressed<'a, T> {
    /// Splits mappings into those that a format can express, and the others with the reason. A name is unreachable only if
    /// it has no other mapping that is expressed.
    fn split(
        mappings: &'a [NameMapping],
        mut express: impl FnMut(&'a NameMapping) -> Result<T, String>,
    ) -> Expressed<'a, T> {
        let (mut expressed, mut refused) = (Vec::new(), Vec::new());
        for mapping in mappings {
            match express(mapping) {
                Ok(value) => expressed.push((mapping, value)),
                Err(reason) => refused.push((mapping, reason)),
            }
        }
        let reached: HashSet<_> = expressed.iter().map(|(mapping, _)| (&mapping.source, mapping.scope)).collect();
        let (left_out, refused): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|(mapping, _)| reached.contains(&(&mapping.source, mapping.scope)));
        let notes = left_out
            .into_iter()
            .map(|(mapping, reason)| {
                format!("left out: {}, which has another mirror, because {reason}", label(mapping))
            })
            .collect();
        let notes = limited(notes);
        let unreachable = refused.into_iter().map(|(mapping, reason)| unreachable(mapping, reason)).collect();
        Expressed { mappings: expressed, unreachable, notes }
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
    UnreachableName { reason: reason.into(), name: label(mapping) }
}

/// Returns the first remarks about mirrors that are left out, and the number of the others.
fn limited(mut notes: Vec<String>) -> Vec<String> {
    let more = notes.len().saturating_sub(MAX_LEFT_OUT);
    notes.truncate(MAX_LEFT_OUT);
    if more > 0 {
        notes.push(format!("left out: {} more mirrors of names that have another", group_digits(more as u64)));
    }
    notes
}

/// Returns the names of a mapping, and its mirror.
fn label(mapping: &NameMapping) -> String {
    let below = match mapping.scope {
        MappingScope::Repository => "",
        MappingScope::OneLevel => "/*",
        MappingScope::AllLevels => "/**",
    };
    format!("{}{below} in {}{below}", mapping.source, mapping.target)
}

/// Refuses names of which the mirror may lack some, for formats without a way back to the source.
fn check_complete(mapping: &NameMapping) -> Result<(), String> {
    let missing = match mapping.gap {
        None => return Ok(()),
        Some(MirrorGap::OtherNames) => {
            "the rule copies only a part of these names: write after a run, when each repository has its own name here"
        }
        Some(MirrorGap::OtherTags) => "tags have other names in the mirror: use a naming template that keeps tags",
        Some(MirrorGap::NotCopied) => "nothing of it was copied yet: write after a run, or with --from-rules",
    };
    Err(format!("there is no way back to the source, and {missing}"))
}

/// Returns the path that a mapping adds before the source path, for formats that can do no more.
fn added_prefix(mapping: &NameMapping, consumer: &str) -> Result<String, String> {
    mapping.added_prefix().map(str::to_owned).ok_or_else(|| {
        format!("{consumer} can only put a path before the name, and here the name changes: use `naming: keep` or `naming: full`")
    })
}

/// A mirror: registry and added path.
type AddedPrefix = (RegistryName, String);

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
