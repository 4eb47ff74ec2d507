//! CRI-O, podman, buildah and skopeo: a file of `/etc/containers/registries.conf.d`, version 2.

use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::Serialize;

use super::mirror_entries::{MirrorEntries, mirror_entries};
use super::{
    FileKind, OutputFile, RenderedMirrors, SharedNames, certificate_file, endpoint_notes, file_header,
    target_registries,
};
use crate::mirrors::MirroredNames;

const FORMAT: &str = "registries.conf";
pub(super) const FILE: &str = "imgsync-mirrors.conf";

#[derive(Serialize)]
struct RegistriesFile {
    registry: Vec<SourceEntry>,
}

#[derive(Serialize)]
struct SourceEntry {
    prefix: String,
    /// The source itself; as deep as the prefix.
    location: String,
    /// Plain HTTP, or TLS with any certificate.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    mirror: Vec<MirrorEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    /// Plain HTTP, or TLS with any certificate.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull_from_mirror: Option<&'static str>,
}

/// Renders one file.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let MirrorEntries { entries, expressed } = mirror_entries(&names.mappings, &mut shared, |_| Ok(()));
    let mut rendered = RenderedMirrors { reachable: expressed.reachable(), ..RenderedMirrors::default() };
    rendered.notes = shared.into_warnings();
    rendered.notes.extend(expressed.notes.iter().cloned());
    let mut registry = Vec::new();
    for (source, mirrors) in entries {
        let mut mirror = Vec::new();
        for entry in mirrors {
            mirror.push(MirrorEntry {
                location: entry.target.to_string(),
                insecure: names.registries.get(&entry.target.registry)?.is_insecure(),
                pull_from_mirror: (!entry.keeps_digests).then_some("tag-only"),
            });
        }
        let insecure = names.registries.get(&source.registry)?.is_insecure();
        registry.push(SourceEntry { prefix: source.to_string(), location: source.to_string(), insecure, mirror });
    }
    let mirrors = target_registries(&names.registries, expressed.mappings.iter().map(|(mapping, ())| *mapping))?;
    rendered.unreachable = expressed.unreachable;
    if registry.is_empty() {
        return Ok(rendered);
    }
    let text = toml::to_string(&RegistriesFile { registry })
        .map_err(|error| Error::new(ErrorKind::Local, format!("writing {FILE}"), error.to_string()))?;
    let text = format!("{}{text}", file_header(FORMAT));
    rendered.files.push(OutputFile { path: FILE.to_owned(), kind: FileKind::Main, text });
    rendered.notes.extend(endpoint_notes(&mirrors));
    rendered.notes.push(format!("{FILE} belongs in /etc/containers/registries.conf.d"));
    for mirror in &mirrors {
        let path = format!("certs.d/{}/ca.crt", mirror.name);
        if let Some(file) = certificate_file(mirror, path.clone(), FORMAT) {
            rendered
                .notes
                .push(format!("nodes trust {} by the file {path} (--out writes it) in /etc/containers", mirror.name));
            rendered.files.push(file);
        }
    }
    Ok(rendered)
}
