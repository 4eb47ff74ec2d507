//! Docker: `registry-mirrors` of `daemon.json`. They are for Docker Hub alone, and have no path.

use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::Serialize;

use super::{
    Expressed, FileKind, NameRange, OutputFile, RenderedMirrors, SharedNames, certificate_file, endpoint_notes,
    target_registries,
};
use crate::mirrors::MirroredNames;

const FORMAT: &str = "docker";
pub(super) const FILE: &str = "daemon.json";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct DaemonFile {
    registry_mirrors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    insecure_registries: Vec<String>,
}

/// Renders one file.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let expressed = Expressed::split(&names.mappings, |mapping| {
        if !mapping.source.registry.is_docker_hub() {
            return Err(
                "Docker's mirrors are for docker.io alone: pull such an image by its name in the mirror".to_owned()
            );
        }
        match mapping.added_prefix() {
            Some("") => shared.check(&NameRange::of_registry(&mapping.source.registry, &mapping.target.registry, "")),
            _ => Err("Docker's mirrors have no path and change no name: use `naming: keep` and a `to` without a path"
                .to_owned()),
        }
    });
    let mirrors = target_registries(&names.registries, expressed.mappings.iter().map(|(mapping, ())| *mapping))?;
    let mut rendered = RenderedMirrors { reachable: expressed.reachable(), ..RenderedMirrors::default() };
    rendered.unreachable = expressed.unreachable;
    if mirrors.is_empty() {
        return Ok(rendered);
    }
    let insecure = mirrors.iter().filter(|mirror| mirror.is_insecure());
    let file = DaemonFile {
        registry_mirrors: mirrors.iter().map(|mirror| mirror.url.clone()).collect(),
        insecure_registries: insecure.map(|mirror| mirror.host().to_owned()).collect(),
    };
    let text = serde_json::to_string_pretty(&file)
        .map_err(|error| Error::new(ErrorKind::Local, format!("writing {FILE}"), error.to_string()))?;
    rendered.files.push(OutputFile { path: FILE.to_owned(), kind: FileKind::Main, text: format!("{text}\n") });
    rendered.notes = shared.into_warnings();
    rendered.notes.extend(expressed.notes);
    rendered.notes.extend(endpoint_notes(&mirrors));
    rendered.notes.push("merge the keys into /etc/docker/daemon.json, and reload dockerd".to_owned());
    for mirror in &mirrors {
        let path = format!("certs.d/{}/ca.crt", mirror.host());
        if let Some(file) = certificate_file(mirror, path.clone(), FORMAT) {
            rendered
                .notes
                .push(format!("docker trusts {} by the file {path} (--out writes it) in /etc/docker", mirror.name));
            rendered.files.push(file);
        }
    }
    Ok(rendered)
}
