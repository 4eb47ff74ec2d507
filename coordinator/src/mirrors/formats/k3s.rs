//! K3s and RKE2: `registries.yaml`. Each registry has mirrors and rewrites of paths; a rewrite applies to all its mirrors.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use imgsync_config::to_yaml;
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use serde::Serialize;

use super::{
    Expressed, NameRange, RenderedMirrors, SharedNames, certificate_file, count_names, endpoint_notes, limited,
    target_registries, unreachable, yaml_file,
};
use crate::mirrors::MirroredNames;
use crate::mirrors::name_mapping::{MappingScope, NameMapping, NamePrefix, escape_regex, join};

const FORMAT: &str = "k3s";
pub(super) const FILE: &str = "registries.yaml";
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
    let mut first_mappings: HashMap<(&NamePrefix, MappingScope), &NameMapping> = HashMap::new();
    let mut left_out = Vec::new();
    let mut shared = SharedNames::new(names);
    let expressed = Expressed::split(&names.mappings, |mapping| shared.check(&NameRange::of_mapping(mapping)));
    rendered.unreachable = expressed.unreachable;
    rendered.notes = expressed.notes;
    for (mapping, ()) in expressed.mappings {
        let chosen = by_registry.entry(&mapping.source.registry).or_default();
        match first_mappings.get(&(&mapping.source, mapping.scope)) {
            None => {
                first_mappings.insert((&mapping.source, mapping.scope), mapping);
                chosen.push(mapping);
            }
            // Another path needs another rewrite, and there is one for all mirrors of a registry.
            Some(first) if first.target.path != mapping.target.path => left_out
                .push(format!("{} is pulled from {}, not from {}", mapping.source, first.target, mapping.target)),
            Some(_) => chosen.push(mapping),
        }
    }
    rendered.notes.extend(limited(left_out));
    let mut mirrors = BTreeMap::new();
    let mut used: Vec<&NameMapping> = Vec::new();
    for (registry, mut chosen) in by_registry {
        drop_overlapping(&mut chosen, &mut rendered);
        let rewrite = match common_prefix(&chosen, &mut shared) {
            Some(prefix) if prefix.is_empty() => BTreeMap::new(),
            Some(prefix) => BTreeMap::from([("^(.*)$".to_owned(), format!("{prefix}/$1"))]),
            None => {
                drop_shared(&mut chosen, &mut shared, &mut rendered);
                chosen.iter().filter_map(|mapping| rewrite_of(mapping)).collect()
            }
        };
        if chosen.is_empty() {
            continue;
        }
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
    rendered.notes.extend(shared.into_warnings());
    if mirrors.is_empty() {
        return Ok(rendered);
    }
    let mut registries = target_registries(&names.registries, used.iter().copied())?;
    rendered.notes.extend(endpoint_notes(&registries));
    // The sources are asked last, and the file replaces what nodes know of them.
    for source in used.iter().map(|mapping| &mapping.source.registry).collect::<BTreeSet<_>>() {
        let source = names.registries.get(source)?;
        if !registries.contains(&source) {
            registries.push(source);
        }
    }
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

/// Returns the path that is added before all names, if one is, and no other source has images there.
fn common_prefix(chosen: &[&NameMapping], shared: &mut SharedNames<'_>) -> Option<String> {
    let first = chosen.first()?.added_prefix()?;
    let is_common = chosen.iter().all(|mapping| mapping.added_prefix() == Some(first));
    let is_alone = |mapping: &&NameMapping| {
        !shared.is_shared(&NameRange::of_registry(&mapping.source.registry, &mapping.target.registry, first))
    };
    (is_common && chosen.iter().all(is_alone)).then(|| first.to_owned())
}

/// Drops mappings of names under which the mirrors have images of another source, and all of them if names without a rewrite
/// do. Each mirror of the registry is asked for each name.
fn drop_shared(chosen: &mut Vec<&NameMapping>, shared: &mut SharedNames<'_>, rendered: &mut RenderedMirrors) {
    let mirrors: BTreeSet<&RegistryName> = chosen.iter().map(|mapping| &mapping.target.registry).collect();
    chosen.retain(|mapping| {
        let checked = mirrors.iter().try_for_each(|mirror| {
            shared.check_unchanged(&mapping.source.registry, mirror)?;
            let NameRange { source, target, levels } = NameRange::of_mapping(mapping);
            shared.check(&NameRange { source, target: NamePrefix::whole(mirror).child(&target.path), levels })
        });
        checked.map_err(|reason| rendered.unreachable.push(unreachable(mapping, reason))).is_ok()
    });
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
