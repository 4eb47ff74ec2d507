//! OpenShift 4.13 and later: ImageDigestMirrorSet and ImageTagMirrorSet. Two objects are needed, because the first applies
//! to pulls by digest only and the second to pulls by tag only.

use imgsync_config::to_yaml;
use imgsync_oci::error::Result;
use serde::Serialize;

use super::mirror_entries::mirror_entries;
use super::{Expressed, RenderedMirrors, endpoint_notes, target_registries, yaml_file};
use crate::mirrors::MirroredNames;

const FORMAT: &str = "openshift";
const FILE: &str = "imgsync-mirrors.yaml";
const API_VERSION: &str = "config.openshift.io/v1";
/// Name of both objects.
const OBJECT_NAME: &str = "imgsync-mirrors";

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
    name: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DigestMirrors {
    image_digest_mirrors: Vec<SourceMirrors>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TagMirrors {
    image_tag_mirrors: Vec<SourceMirrors>,
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
    let entries = mirror_entries(&names.mappings);
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
    let metadata = || Metadata { name: OBJECT_NAME };
    let mut documents = Vec::new();
    let image_digest_mirrors = sources(true);
    if !image_digest_mirrors.is_empty() {
        let (kind, spec) = ("ImageDigestMirrorSet", DigestMirrors { image_digest_mirrors });
        documents.push(to_yaml(&MirrorSet { api_version: API_VERSION, kind, metadata: metadata(), spec }));
    }
    let image_tag_mirrors = sources(false);
    if image_tag_mirrors.is_empty() {
        return Ok(RenderedMirrors::default());
    }
    let (kind, spec) = ("ImageTagMirrorSet", TagMirrors { image_tag_mirrors });
    documents.push(to_yaml(&MirrorSet { api_version: API_VERSION, kind, metadata: metadata(), spec }));
    let mirrors = target_registries(&names.registries, names.mappings.iter())?;
    let mut notes = endpoint_notes(&mirrors);
    for mirror in &mirrors {
        if mirror.is_plain || mirror.skips_verification {
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
    let files = vec![yaml_file(FILE, FORMAT, &documents)];
    let reachable = Expressed::split(&names.mappings, |_| Ok(())).reachable();
    Ok(RenderedMirrors { files, unreachable: Vec::new(), notes, reachable })
}
