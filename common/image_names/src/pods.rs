//! Pods and nodes of a running cluster: what they name, and the digests that run.

use std::collections::HashMap;

use imgsync_oci::{Digest, Reference};

use crate::recorder::{Certainty, Recorder};
use crate::templates::{parse_image, strip_scheme};
use crate::walker::Walker;
use crate::yaml::DocumentNode;

const CONTAINER_LISTS: [(&str, &str); 3] = [
    ("containers", "containerStatuses"),
    ("initContainers", "initContainerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
];

/// Records the images of a pod, with the digests of its status.
pub(crate) fn pod(node: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let status = node.get("status");
    let mut walker = Walker::new(recorder, label, Certainty::Sure).with_bare_names(true);
    if let Some(metadata) = node.get("metadata") {
        walker.entry(node, "metadata", metadata);
    }
    let Some(spec) = node.get("spec") else { return };
    for (list, statuses) in CONTAINER_LISTS {
        let mut running = running_digests(status.and_then(|status| status.get(statuses)));
        let containers = spec.get(list).map(DocumentNode::items).unwrap_or_default();
        for (at, container) in containers.iter().enumerate() {
            let digest = container.get_text("name").and_then(|name| running.remove(name)).map(|image| image.digest);
            walker.at_key("spec", |walker| {
                walker.at_key(list, |walker| {
                    walker.at_index(at, |walker| read_container(walker, container, digest.flatten()));
                });
            });
        }
        // Containers that the specification does not have.
        let mut others: Vec<(&str, Reference)> = running.into_iter().collect();
        others.sort_unstable();
        for (name, image) in others {
            walker.at_key("status", |walker| {
                walker.at_key(statuses, |walker| {
                    let (recorder, path) = walker.parts();
                    let path = format!("{path}[{name}].imageID");
                    recorder.found(image, Certainty::Sure, status.map_or(0, |status| status.line), &path);
                });
            });
        }
    }
    walker.at_key("spec", |walker| {
        for (key, value) in spec.entries() {
            if CONTAINER_LISTS.iter().all(|(list, _)| **key != **list) {
                walker.entry(spec, key, value);
            }
        }
    });
}

/// Records the image of a container with the digest that runs, and what its other fields may name.
fn read_container(walker: &mut Walker<'_>, container: &DocumentNode, running: Option<Digest>) {
    for (key, value) in container.entries() {
        let image = value.text().filter(|_| &**key == "image").and_then(|text| parse_image(text.trim()).ok());
        match image {
            Some(image) if running.is_some() && image.digest.is_none() => walker.at_key(key, |walker| {
                let (recorder, path) = walker.parts();
                recorder.found_running(image, Certainty::Sure, running.clone(), value.line, path);
            }),
            _ => walker.entry(container, key, value),
        }
    }
}

/// Returns the images by digest that run, by the names of their containers.
fn running_digests(statuses: Option<&DocumentNode>) -> HashMap<&str, Reference> {
    let statuses = statuses.map(DocumentNode::items).unwrap_or_default();
    let image = |status: &DocumentNode| {
        let image: Reference = strip_scheme(status.get_text("imageID")?).parse().ok()?;
        image.digest.is_some().then_some(image)
    };
    statuses.iter().filter_map(|status| Some((status.get_text("name")?, image(status)?))).collect()
}

/// Records the images that a node has.
pub(crate) fn node(node: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let images =
        node.get("status").and_then(|status| status.get("images")).map(DocumentNode::items).unwrap_or_default();
    for (at, image) in images.iter().enumerate() {
        let names = image.get("names").map(DocumentNode::items).unwrap_or_default();
        let path = format!("{label} status.images[{at}]");
        let parsed: Vec<(Reference, usize)> = names
            .iter()
            .filter_map(|name| Some((strip_scheme(name.text()?).parse::<Reference>().ok()?, name.line)))
            .collect();
        let digest = parsed.iter().find_map(|(image, _)| image.digest.clone());
        let is_tagged = parsed.iter().any(|(image, _)| image.tag.is_some());
        for (image, line) in parsed {
            match (&image.tag, is_tagged) {
                (Some(_), _) => recorder.found_running(image, Certainty::Sure, digest.clone(), line, &path),
                (None, false) => recorder.found(image, Certainty::Sure, line, &path),
                (None, true) => {}
            }
        }
    }
}
