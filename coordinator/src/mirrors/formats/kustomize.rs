//! kustomize: a component with an `images` entry for each spelling of each repository.

use std::collections::{BTreeSet, HashSet};

use imgsync_config::to_yaml;
use imgsync_oci::error::Result;
use serde::Serialize;

use super::{Expressed, NameRange, RenderedMirrors, SharedNames, check_complete, yaml_file};
use crate::mirrors::MirroredNames;
use crate::mirrors::name_mapping::{MappingScope, NamePrefix};

const FORMAT: &str = "kustomize";
pub(super) const FILE: &str = "kustomization.yaml";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    api_version: &'static str,
    kind: &'static str,
    images: Vec<ImageEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageEntry {
    name: String,
    new_name: String,
}

/// Renders one file.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let expressed = Expressed::split(&names.mappings, |mapping| match mapping.scope {
        MappingScope::Repository => {
            check_complete(mapping)?;
            shared.check(&NameRange::of_mapping(mapping))
        }
        MappingScope::OneLevel | MappingScope::AllLevels => {
            Err("kustomize has an entry for each repository, and those of a pattern are known after the first run"
                .to_owned())
        }
    });
    let mut done = HashSet::new();
    let mut images = Vec::new();
    for (mapping, ()) in &expressed.mappings {
        // An entry has one new name: the first target.
        if done.insert(&mapping.source) {
            let entry = |name| ImageEntry { name, new_name: mapping.target.to_string() };
            images.extend(spellings(&mapping.source).into_iter().map(entry));
        }
    }
    let mut rendered = RenderedMirrors { reachable: expressed.reachable(), ..RenderedMirrors::default() };
    rendered.notes = shared.into_warnings();
    rendered.notes.extend(expressed.notes.iter().cloned());
    let with_other_digests = expressed.mappings.iter().filter(|(mapping, ())| !mapping.keeps_digests);
    let others: BTreeSet<String> = with_other_digests.map(|(mapping, ())| mapping.source.to_string()).collect();
    if !others.is_empty() {
        let names: Vec<String> = others.into_iter().collect();
        rendered.notes.push(format!(
            "warning: kustomize also changes images that are named by digest, and the mirror has other digests of {}",
            names.join(", ")
        ));
    }
    rendered.unreachable = expressed.unreachable;
    if images.is_empty() {
        return Ok(rendered);
    }
    let component = Component { api_version: "kustomize.config.k8s.io/v1alpha1", kind: "Component", images };
    rendered.files.push(yaml_file(FILE, FORMAT, &[to_yaml(&component)]));
    rendered.notes.push(
        "name the folder of kustomization.yaml under `components` of your kustomization; images of custom resources need \
         `configurations`, and nodes must be able to pull from the mirror"
            .to_owned(),
    );
    Ok(rendered)
}

/// Returns the names by which manifests name a repository: kustomize compares them as they are written.
fn spellings(source: &NamePrefix) -> Vec<String> {
    let mut names = vec![source.to_string()];
    if source.registry.is_docker_hub() {
        names.push(source.path.clone());
        if let Some(official) = source.path.strip_prefix("library/") {
            names.extend([format!("{}/{official}", source.registry), official.to_owned()]);
        }
    }
    names
}
