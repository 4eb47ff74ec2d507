//! OpenShift 4.13 and later: ImageDigestMirrorSet and ImageTagMirrorSet. Two objects are needed, because the first applies
//! to pulls by digest only and the second to pulls by tag only.

use imgsync_config::to_yaml;
use imgsync_oci::error::Result;
use serde::Serialize;

use super::mirror_entries::{MirrorEntries, mirror_entries};
use super::{RenderedMirrors, SharedNames, endpoint_notes, target_registries, yaml_file};
use crate::mirrors::MirroredNames;
use crate::mirrors::name_mapping::NameMapping;

const FORMAT: &str = "openshift";
pub(super) const FILE: &str = "imgsync-mirrors.yaml";
const API_VERSION: &str = "config.openshift.io/v1";
/// Name of the objects; the second of a kind has a number.
const OBJECT_NAME: &str = "imgsync-mirrors";
/// Maximum number of sources in an object: an object of Kubernetes has at most 1.5 MiB, and a source with two mirrors takes
/// 300 bytes.
const MAX_SOURCES: usize = 2000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MirrorSet<S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: S,
}

#[derive(Serialize)]
struct Metadata {
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DigestMirrors<'a> {
    image_digest_mirrors: &'a [SourceMirrors],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TagMirrors<'a> {
    image_tag_mirrors: &'a [SourceMirrors],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceMirrors {
    source: String,
    mirrors: Vec<String>,
    mirror_source_policy: &'static str,
}

/// Renders one file with both objects.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let MirrorEntries { entries, expressed } = mirror_entries(&names.mappings, &mut shared, check_hosts);
    let sources = |with_digests: bool| -> Vec<SourceMirrors> {
        let mut sources = Vec::new();
        for (source, mirrors) in &entries {
            let usable = mirrors.iter().filter(|mirror| mirror.keeps_digests || !with_digests);
            let mirrors: Vec<String> = usable.map(|mirror| mirror.target.to_string()).collect();
            if !mirrors.is_empty() {
                let mirror_source_policy = "AllowContactingSource";
                sources.push(SourceMirrors { source: source.to_string(), mirrors, mirror_source_policy });
            }
        }
        sources
    };
    let mut documents = Vec::new();
    for (number, part) in sources(true).chunks(MAX_SOURCES).enumerate() {
        let spec = DigestMirrors { image_digest_mirrors: part };
        documents.push(to_yaml(&mirror_set("ImageDigestMirrorSet", number, spec)));
    }
    let image_tag_mirrors = sources(false);
    for (number, part) in image_tag_mirrors.chunks(MAX_SOURCES).enumerate() {
        let spec = TagMirrors { image_tag_mirrors: part };
        documents.push(to_yaml(&mirror_set("ImageTagMirrorSet", number, spec)));
    }
    let mut rendered = RenderedMirrors { reachable: expressed.reachable(), ..RenderedMirrors::default() };
    rendered.notes = shared.into_warnings();
    rendered.notes.extend(expressed.notes.iter().cloned());
    let mirrors = target_registries(&names.registries, expressed.mappings.iter().map(|(mapping, ())| *mapping))?;
    rendered.unreachable = expressed.unreachable;
    if image_tag_mirrors.is_empty() {
        return Ok(rendered);
    }
    let notes = &mut rendered.notes;
    notes.extend(endpoint_notes(&mirrors));
    for mirror in &mirrors {
        if mirror.is_insecure() {
            notes.push(format!(
                "mirror sets cannot say that {} has no TLS, or none to verify: add it to \
                 `spec.registrySources.insecureRegistries` of image.config.openshift.io/cluster",
                mirror.name
            ));
        }
        if mirror.ca.is_some() {
            notes.push(format!(
                "mirror sets have no certificates: add those of {} to the ConfigMap that `spec.additionalTrustedCA` of \
                 image.config.openshift.io/cluster names",
                mirror.name
            ));
        }
    }
    rendered.files.push(yaml_file(FILE, FORMAT, &documents));
    Ok(rendered)
}

fn mirror_set<S>(kind: &'static str, number: usize, spec: S) -> MirrorSet<S> {
    let name = match number {
        0 => OBJECT_NAME.to_owned(),
        number => format!("{OBJECT_NAME}-{}", number + 1),
    };
    MirrorSet { api_version: API_VERSION, kind, metadata: Metadata { name }, spec }
}

/// Refuses registries that the schema of mirror sets does not allow: it has names and IPv4 addresses, with a port or without.
fn check_hosts(mapping: &NameMapping) -> Result<(), String> {
    let is_host = |host: &str| host.starts_with(|c: char| c.is_ascii_alphanumeric()) && !host.contains('_');
    match [&mapping.source.registry, &mapping.target.registry].iter().all(|registry| is_host(registry.as_str())) {
        true => Ok(()),
        false => Err("OpenShift's mirror sets allow no IPv6 addresses and no `_` in the name of a registry".to_owned()),
    }
}
