//! containerd: `hosts.toml` for each source registry, in the tree of `/etc/containerd/certs.d`.

use std::collections::BTreeMap;

use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::{Serialize, Serializer};

use super::{
    AddedPrefix, Expressed, FileKind, NameRange, OutputFile, RenderedMirrors, SharedNames, added_prefix,
    certificate_file, endpoint_notes, file_header, target_registries,
};
use crate::mirrors::MirroredNames;
use crate::mirrors::mirror_registry::MirrorRegistry;

const FORMAT: &str = "containerd";
pub(super) const FILE: &str = "hosts.toml";

/// A `hosts.toml`. The server and how to reach it stand before the hosts, or TOML would make them a part of the last one.
#[derive(Serialize)]
struct HostsFile {
    server: String,
    #[serde(flatten)]
    access: HostAccess,
    host: Hosts,
}

/// Hosts by their URLs, in the order in which they are asked.
struct Hosts(Vec<(String, HostEntry)>);

impl Serialize for Hosts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(url, entry)| (url, entry)))
    }
}

#[derive(Serialize)]
struct HostEntry {
    capabilities: [&'static str; 2],
    /// The URL has the whole path of the API; without it, containerd appends `/v2` to the path.
    #[serde(skip_serializing_if = "is_false")]
    override_path: bool,
    #[serde(flatten)]
    access: HostAccess,
}

/// TLS of a host.
#[derive(Serialize)]
struct HostAccess {
    #[serde(skip_serializing_if = "is_false")]
    skip_verify: bool,
    /// Relative to the folder of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl HostAccess {
    /// Returns how a registry is reached, and the file with its certificates if it has any.
    fn of_registry(registry: &MirrorRegistry, folder: &str) -> (HostAccess, Option<OutputFile>) {
        let file = certificate_file(registry, format!("{folder}/{}", registry.ca_file()), FORMAT);
        let ca = file.as_ref().map(|_| registry.ca_file());
        (HostAccess { skip_verify: registry.skips_verification, ca }, file)
    }
}

/// Renders a folder for each source registry.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let expressed = Expressed::split(&names.mappings, |mapping| {
        let added = added_prefix(mapping, FORMAT)?;
        // A folder is for all names of its registry.
        let range = NameRange::of_registry(&mapping.source.registry, &mapping.target.registry, &added);
        shared.check(&range).map(|()| added)
    });
    let mut folders: BTreeMap<&RegistryName, Vec<AddedPrefix>> = BTreeMap::new();
    for (mapping, added) in &expressed.mappings {
        let mirrors = folders.entry(&mapping.source.registry).or_default();
        let mirror = (mapping.target.registry.clone(), added.clone());
        if !mirrors.contains(&mirror) {
            mirrors.push(mirror);
        }
    }
    let mut files = Vec::new();
    for (source, mirrors) in &folders {
        // A port's colon is valid in the name of the folder.
        let folder = source.as_str();
        let server = names.registries.get(source)?;
        let (access, certificate) = HostAccess::of_registry(&server, folder);
        let mut certificates: Vec<OutputFile> = certificate.into_iter().collect();
        let mut hosts = Vec::new();
        for (registry, added) in mirrors {
            let mirror = names.registries.get(registry)?;
            let url = match added.is_empty() {
                true => mirror.url.clone(),
                false => format!("{}/v2/{added}", mirror.url),
            };
            let (access, certificate) = HostAccess::of_registry(&mirror, folder);
            let entry = HostEntry { capabilities: ["pull", "resolve"], override_path: !added.is_empty(), access };
            hosts.push((url, entry));
            certificates.extend(certificate.filter(|file| !certificates.contains(file)));
        }
        let file = HostsFile { server: server.url, access, host: Hosts(hosts) };
        let text = toml::to_string(&file)
            .map_err(|error| Error::new(ErrorKind::Local, format!("writing {FILE}"), error.to_string()))?;
        let text = format!("{}{text}", file_header(FORMAT));
        files.push(OutputFile { path: format!("{folder}/{FILE}"), kind: FileKind::Main, text });
        files.extend(certificates);
    }
    let kept = || expressed.mappings.iter().map(|(mapping, _)| *mapping);
    let mut notes = shared.into_warnings();
    notes.extend(expressed.notes.iter().cloned());
    notes.extend(endpoint_notes(&target_registries(&names.registries, kept())?));
    if !files.is_empty() {
        notes.push(
            "the tree belongs in the folder that `config_path` of containerd's registry section names, such as \
             /etc/containerd/certs.d"
                .to_owned(),
        );
    }
    let reachable = expressed.reachable();
    Ok(RenderedMirrors { files, unreachable: expressed.unreachable, notes, reachable })
}
