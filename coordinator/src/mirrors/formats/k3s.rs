//! K3s and RKE2: `registries.yaml`. Each registry has mirrors and rewrites of paths; a rewrite applies to all its mirrors.

use std::collections::{BTreeMap, BTreeSet};

use imgsync_config::to_yaml;
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use serde::Serialize;

use super::{
    AddedPrefix, RenderedMirrors, certificate_file, count_names, endpoint_notes, shared_prefix_notes,
    sources_of_prefixes, target_registries, unreachable, yaml_file,
};
use crate::mirrors::MirroredNames;
use crate::mirrors::name_mapping::{MappingScope, NameMapping, escape_regex, join};

const FORMAT: &str = "k3s";
const FILE: &str = "registries.yaml";
/// Where nodes have the file.
const NODE_FOLDER: &str = "/etc/rancher/k3s";

#[derive(Serialize)]
struct RegistriesFile {
    mirrors: BTreeMap<String, RegistryMirrors>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    configs: BTreeMap<String, RegistryAccess>,
}

#[derive(Serialize)]
struct RegistryMirrors {
    endpoint: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rewrite: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RegistryAccess {
    tls: TlsAccess,
}

#[derive(Serialize)]
struct TlsAccess {
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_skip_verify: bool,
}

/// Renders one file.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut rendered = RenderedMirrors::default();
    let mut by_registry: BTreeMap<&RegistryName, Vec<&NameMapping>> = BTreeMap::new();
    for mapping in &names.mappings {
        let chosen = by_registry.entry(&mapping.source.registry).or_default();
        match chosen.iter().find(|other| (&other.source, other.scope) == (&mapping.source, mapping.scope)) {
            None => chosen.push(mapping),
            // Another path needs another rewrite, and there is one for all mirrors of a registry.
            Some(first) if first.target.path != mapping.target.path => rendered
                .notes
                .push(format!("{} is pulled from {}, not from {}", mapping.source, first.target, mapping.target)),
            Some(_) => chosen.push(mapping),
        }
    }
    let sources = sources_of_prefixes(names.mappings.iter());
    rendered.notes.extend(shared_prefix_notes(&BTreeMap::from_iter(
        // Rewrites of single repositories keep the registries apart.
        sources.iter().filter(|((_, path), _)| path.is_empty()).map(|(mirror, of)| (mirror.clone(), of.clone())),
    )));
    let mut mirrors = BTreeMap::new();
    let mut used: Vec<&NameMapping> = Vec::new();
    for (registry, mut chosen) in by_registry {
        drop_overlapping(&mut chosen, &mut rendered);
        let rewrite = match common_prefix(&chosen, &sources) {
            Some(prefix) if prefix.is_empty() => BTreeMap::new(),
            Some(prefix) => BTreeMap::from([("^(.*)$".to_owned(), format!("{prefix}/$1"))]),
            None => chosen.iter().filter_map(|mapping| rewrite_of(mapping)).collect(),
        };
        let mut endpoint: Vec<String> = Vec::new();
        for mapping in &chosen {
            let url = names.registries.get(&mapping.target.registry)?.url;
            if !endpoint.contains(&url) {
                endpoint.push(url);
            }
        }
        mirrors.insert(registry.to_string(), RegistryMirrors { endpoint, rewrite });
        used.extend(chosen);
    }
    if mirrors.is_empty() {
        return Ok(rendered);
    }
    let registries = target_registries(&names.registries, used.iter().copied())?;
    rendered.notes.extend(endpoint_notes(&registries));
    let mut configs = BTreeMap::new();
    for mirror in &registries {
        let certificate = certificate_file(mirror, mirror.ca_file(), FORMAT);
        if certificate.is_some() || mirror.skips_verification {
            let ca_file = certificate.as_ref().map(|file| format!("{NODE_FOLDER}/{}", file.path));
            let tls = TlsAccess { ca_file, insecure_skip_verify: mirror.skips_verification };
            configs.insert(mirror.host().to_owned(), RegistryAccess { tls });
        }
        if let Some(file) = certificate {
            rendered.notes.push(format!(
                "nodes trust {} by the file {} (--out writes it) in {NODE_FOLDER}; with RKE2, correct `ca_file`",
                mirror.name, file.path
            ));
            rendered.files.push(file);
        }
    }
    rendered.files.insert(0, yaml_file(FILE, FORMAT, &[to_yaml(&RegistriesFile { mirrors, configs })]));
    rendered.notes.push(format!(
        "{FILE} belongs in {NODE_FOLDER}, or in /etc/rancher/rke2; K3s and RKE2 read it when they start"
    ));
    rendered.reachable = count_names(used.into_iter());
    Ok(rendered)
}

/// Drops mappings of names that another mapping with another result contains: which rewrite is applied is not defined.
fn drop_overlapping(chosen: &mut Vec<&NameMapping>, rendered: &mut RenderedMirrors) {
    let rewrites = |mapping: &NameMapping| mapping.added_prefix().map(str::to_owned);
    let wide: Vec<&NameMapping> =
        chosen.iter().copied().filter(|mapping| mapping.scope != MappingScope::Repository).collect();
    chosen.retain(|mapping| {
        let hides = |other: &&NameMapping| {
            other.source != mapping.source
                && other.source.contains(&mapping.source)
                && (rewrites(other).is_none() || rewrites(other) != rewrites(mapping))
        };
        let hidden = wide.iter().find(|other| hides(other));
        if let Some(other) = hidden {
            let reason = format!(
                "K3s applies one of two rewrites, that of {} or this one, and does not say which: use the same path in both \
                 rules, or write after a run, when each repository has its own",
                other.source
            );
            rendered.unreachable.push(unreachable(mapping, reason));
        }
        hidden.is_none()
    });
}

/// Returns the path that is added before all names, if one is, and no other registry has names there.
fn common_prefix(chosen: &[&NameMapping], sources: &BTreeMap<AddedPrefix, BTreeSet<&RegistryName>>) -> Option<String> {
    let first = chosen.first()?.added_prefix()?;
    let is_common = chosen.iter().all(|mapping| mapping.added_prefix() == Some(first));
    let is_alone = |mapping: &&NameMapping| {
        let mirror = (mapping.target.registry.clone(), first.to_owned());
        sources.get(&mirror).is_some_and(|registries| registries.len() == 1)
    };
    (is_common && (first.is_empty() || chosen.iter().all(is_alone))).then(|| first.to_owned())
}

/// Returns the pattern of a mapping and its replacement; `None` if the path stays as it is.
fn rewrite_of(mapping: &NameMapping) -> Option<(String, String)> {
    if mapping.source.path == mapping.target.path {
        return None;
    }
    let (source, target) = (escape_regex(&mapping.source.path), &mapping.target.path);
    let below = match mapping.scope {
        MappingScope::Repository => return Some((format!("^{source}$"), target.clone())),
        MappingScope::OneLevel => "([^/]+)",
        MappingScope::AllLevels => "(.+)",
    };
    Some((format!("^{}$", join(&source, below)), join(target, "$1")))
}
