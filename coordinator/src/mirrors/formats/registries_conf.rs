//! CRI-O, podman, buildah and skopeo: a file of `/etc/containers/registries.conf.d`, version 2.

use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::Serialize;

use super::mirror_entries::mirror_entries;
use super::{
    Expressed, FileKind, OutputFile, RenderedMirrors, certificate_file, endpoint_notes, file_header, target_registries,
};
use crate::mirrors::MirroredNames;

const FORMAT: &str = "registries.conf";
const FILE: &str = "imgsync-mirrors.conf";

#[derive(Serialize)]
struct RegistriesFile {
    registry: Vec<SourceEntry>,
}

#[derive(Serialize)]
struct SourceEntry {
    prefix: String,
    /// The source itself; as deep as the prefix.
    location: String,
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
    let mut registry = Vec::new();
    for (source, mirrors) in mirror_entries(&names.mappings) {
        let mut mirror = Vec::new();
        for entry in mirrors {
            let settings = names.registries.get(&entry.target.registry)?;
            mirror.push(MirrorEntry {
                location: entry.target.to_string(),
                insecure: settings.is_plain || settings.skips_verification,
                pull_from_mirror: (!entry.keeps_digests).then_some("tag-only"),
            });
        }
        registry.push(SourceEntry { prefix: source.to_string(), location: source.to_string(), mirror });
    }
    if registry.is_empty() {
        return Ok(RenderedMirrors::default());
    }
    let text = toml::to_string(&RegistriesFile { registry })
        .map_err(|error| Error::new(ErrorKind::Local, format!("writing {FILE}"), error.to_string()))?;
    let text = format!("{}{text}", file_header(FORMAT));
    let mut files = vec![OutputFile { path: FILE.to_owned(), kind: FileKind::Main, text }];
    let mirrors = target_registries(&names.registries, names.mappings.iter())?;
    let mut notes = endpoint_notes(&mirrors);
    notes.push(format!("{FILE} belongs in /etc/containers/registries.conf.d"));
    for mirror in &mirrors {
        let path = format!("certs.d/{}/ca.crt", mirror.name);
        if let Some(file) = certificate_file(mirror, path.clone(), FORMAT) {
            notes.push(format!("nodes trust {} by the file {path} (--out writes it) in /etc/containers", mirror.name));
            files.push(file);
        }
    }
    let reachable = Expressed::split(&names.mappings, |_| Ok(())).reachable();
    Ok(RenderedMirrors { files, unreachable: Vec::new(), notes, reachable })
}
