//! Objects of Kubernetes and of programs whose files look like them.

use crate::packages;
use crate::pods;
use crate::recorder::{Certainty, Recorder};
use crate::walker::Walker;
use crate::yaml::{DocumentNode, Value};

/// Kinds whose `image` fields are containers': a bare word is an official image of Docker Hub there.
const WORKLOADS: [&str; 11] = [
    "Pod",
    "Deployment",
    "DaemonSet",
    "StatefulSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
    "CronJob",
    "PodTemplate",
    "DeploymentConfig",
    "ControllerRevision",
];
/// Reason why the images of a chart are not known.
const UNRENDERED_CHART: &str = "its images are in a chart: render it first, as with `helm template`";

/// Records the images of an object. `kind` is given for items of a list that have none of their own.
pub(crate) fn object(node: &DocumentNode, kind: Option<&str>, recorder: &mut Recorder) {
    let Some(kind) = node.get_text("kind").or(kind) else { return };
    let api = node.get_text("apiVersion").unwrap_or_default();
    let label = label(node, kind);
    if recorder.is_full() {
        return;
    }
    if let Some(of) = kind.strip_suffix("List")
        && let Some(items) = node.get("items")
    {
        let of = Some(of).filter(|of| !of.is_empty());
        return items.items().iter().for_each(|item| object(item, of, recorder));
    }
    match (kind, api.split('/').next().unwrap_or_default()) {
        ("Secret", _) => recorder.count_secret(),
        ("ConfigMap", _) => {
            let mut walker = Walker::new(recorder, &label, Certainty::Perhaps);
            for key in ["metadata", "data"] {
                if let Some(value) = node.get(key) {
                    walker.at_key(key, |walker| walker.texts(value));
                }
            }
        }
        ("CustomResourceDefinition", _) => {
            let mut walker = Walker::new(recorder, &label, Certainty::Perhaps);
            if let Some(spec) = node.get("spec") {
                walker.at_key("spec", |walker| defaults(walker, spec));
            }
        }
        ("Pod", _) => pods::pod(node, &label, recorder),
        ("Node", _) => pods::node(node, &label, recorder),
        ("Kustomization" | "Component", "kustomize.config.k8s.io") => {
            packages::kustomization(node, &label, recorder);
        }
        ("Kustomization", "kustomize.toolkit.fluxcd.io") => packages::flux_kustomization(node, &label, recorder),
        ("OCIRepository", _) => packages::oci_repository(node, &label, recorder),
        ("ImageRepository", "image.toolkit.fluxcd.io") => {
            recorder.elsewhere("it names a repository, whose tags are chosen elsewhere", node.line, &label);
        }
        ("HelmRelease" | "HelmChart" | "Application" | "ApplicationSet", _) => {
            recorder.elsewhere(UNRENDERED_CHART, node.line, &label);
            Walker::new(recorder, &label, Certainty::Perhaps).walk(node);
        }
        ("Images", "content.hauler.cattle.io") => packages::hauler_images(node, &label, recorder),
        ("Charts" | "Files", "content.hauler.cattle.io") => {
            recorder.elsewhere("charts and files are not read", node.line, &label);
        }
        ("ZarfPackageConfig" | "ZarfInitConfig", _) => packages::zarf(node, &label, recorder),
        ("ImageSetConfiguration", _) => packages::oc_mirror(node, &label, recorder),
        ("ImagesLock", _) => packages::images_lock(node, &label, recorder),
        _ => Walker::new(recorder, &label, Certainty::Sure).with_bare_names(WORKLOADS.contains(&kind)).walk(node),
    }
}

/// Returns `Kind/name`.
fn label(node: &DocumentNode, kind: &str) -> String {
    let metadata = node.get("metadata");
    let name = metadata.and_then(|metadata| metadata.get_text("name").or_else(|| metadata.get_text("generateName")));
    match name {
        Some(name) => format!("{kind}/{name}"),
        None => kind.to_owned(),
    }
}

/// Records what the default values in a schema may name.
fn defaults(walker: &mut Walker<'_>, node: &DocumentNode) {
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                walker.at_key(key, |walker| match &**key {
                    "default" => walker.walk(value),
                    _ => defaults(walker, value),
                });
            }
        }
        Value::List(items) => items.iter().for_each(|item| defaults(walker, item)),
        Value::Text(_) | Value::Null => {}
    }
}
