//! Files of programs that carry or deploy images: charts, kustomize, Flux, hauler, zarf, oc-mirror, imgpkg.

use crate::recorder::{Certainty, Recorder};
use crate::yaml::{self, DocumentNode};

/// Annotations of a chart with a list of its images.
const CHART_ANNOTATIONS: [&str; 3] = ["helm.sh/images", "images", "artifacthub.io/images"];

/// Returns whether a document is a `Chart.yaml`.
pub(crate) fn is_chart(root: &DocumentNode) -> bool {
    matches!(root.get_text("apiVersion"), Some("v1" | "v2"))
        && root.get_text("name").is_some()
        && root.get_text("version").is_some()
}

/// Records the images that the annotations of a chart list.
pub(crate) fn chart(root: &DocumentNode, recorder: &mut Recorder) {
    let label = format!("chart {}", root.get_text("name").unwrap_or_default());
    let mut is_listed = false;
    for (key, value) in root.get("annotations").map(DocumentNode::entries).unwrap_or_default() {
        let Some(text) = value.text().filter(|_| CHART_ANNOTATIONS.contains(&&**key)) else { continue };
        is_listed = true;
        let path = format!("{label} annotations.{key}");
        let (roots, error) = yaml::parse(text);
        if let Some(error) = error {
            recorder.problem(
                format!("its list of images is not read: {}", error.message),
                value.line_at(error.line.saturating_sub(1)),
                &path,
            );
        }
        for (at, item) in roots.iter().flat_map(|root| root.items()).enumerate() {
            let path = format!("{path}[{at}]");
            let line = item.get("image").unwrap_or(item).line.saturating_sub(1);
            let line = value.line_at(line);
            match item.get_text("image").or(item.text()) {
                Some(image) => recorder.image_field(image, Certainty::Sure, line, &path),
                None => recorder.undecided(
                    item.get_text("name").unwrap_or_default(),
                    Certainty::Sure,
                    "it has no image",
                    line,
                    &path,
                ),
            }
        }
    }
    if !is_listed {
        let reason = "its images are in its templates: render it with `helm template`";
        recorder.elsewhere(reason, root.line, &label);
    }
}

/// Records the images that a kustomization replaces. Only `kustomize build` shows all.
pub(crate) fn kustomization(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    recorder.elsewhere("its other images are in its resources: build it with `kustomize build`", root.line, label);
    replaced_images(root.get("images"), &format!("{label} images"), recorder);
}

/// Records the images that a Kustomization of Flux replaces.
pub(crate) fn flux_kustomization(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    recorder.elsewhere("its images are in the folder that it names", root.line, label);
    replaced_images(root.get("spec").and_then(|spec| spec.get("images")), &format!("{label} spec.images"), recorder);
}

fn replaced_images(images: Option<&DocumentNode>, path: &str, recorder: &mut Recorder) {
    for (at, image) in images.map(DocumentNode::items).unwrap_or_default().iter().enumerate() {
        let path = format!("{path}[{at}]");
        let Some(name) = image.get_text("newName").or_else(|| image.get_text("name")) else { continue };
        match (image.get_text("newTag"), image.get_text("digest")) {
            (None, None) => {
                recorder.undecided(
                    name,
                    Certainty::Sure,
                    "its tag is in the resources: build it with `kustomize build`",
                    image.line,
                    &path,
                );
            }
            (tag, digest) => {
                let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
                let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
                recorder.image_field(&format!("{name}{tag}{digest}"), Certainty::Sure, image.line, &path);
            }
        }
    }
}

/// Records the artifact of an OCIRepository of Flux.
pub(crate) fn oci_repository(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let Some(spec) = root.get("spec") else { return };
    let Some(url) = spec.get_text("url") else { return };
    let path = format!("{label} spec.url");
    let line = spec.get("url").map_or(spec.line, |url| url.line);
    let part = |key: &str| spec.get("ref").and_then(|chosen| chosen.get_text(key));
    match (part("digest"), part("semver"), part("tag")) {
        (Some(digest), ..) => recorder.image_field(&format!("{url}@{digest}"), Certainty::Sure, line, &path),
        (None, Some(range), _) => {
            recorder.undecided(
                &format!("{url} {range}"),
                Certainty::Sure,
                "Flux chooses its tag by a range of versions",
                line,
                &path,
            );
        }
        (None, None, tag) => {
            let tag = tag.unwrap_or("latest");
            recorder.image_field(&format!("{url}:{tag}"), Certainty::Sure, line, &path);
        }
    }
}

/// Records the images of a manifest of hauler.
pub(crate) fn hauler_images(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let images = root.get("spec").and_then(|spec| spec.get("images"));
    named_images(images, &format!("{label} spec.images"), recorder);
}

/// Records a list of images, as names or as mappings with a name.
fn named_images(images: Option<&DocumentNode>, path: &str, recorder: &mut Recorder) {
    for (at, image) in images.map(DocumentNode::items).unwrap_or_default().iter().enumerate() {
        let path = format!("{path}[{at}]");
        match image.text().or_else(|| image.get_text("name")) {
            Some(name) => recorder.image_field(name, Certainty::Sure, image.line, &path),
            None => recorder.undecided("", Certainty::Sure, "it has no name", image.line, &path),
        }
    }
}

/// Records the images of a package of zarf.
pub(crate) fn zarf(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let components = root.get("components").map(DocumentNode::items).unwrap_or_default();
    for (at, component) in components.iter().enumerate() {
        let path = format!("{label} components[{at}]");
        named_images(component.get("images"), &format!("{path}.images"), recorder);
        for archive in component.get("imageArchives").map(DocumentNode::items).unwrap_or_default() {
            recorder.elsewhere("its images are in an archive", archive.line, &format!("{path}.imageArchives"));
        }
    }
}

/// Records the images that a configuration of oc-mirror names.
pub(crate) fn oc_mirror(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    let Some(mirror) = root.get("mirror") else { return };
    named_images(mirror.get("additionalImages"), &format!("{label} mirror.additionalImages"), recorder);
    for key in ["platform", "operators", "helm"] {
        if let Some(part) = mirror.get(key) {
            recorder.elsewhere(
                "its images are in catalogs, releases or charts, which only oc-mirror reads",
                part.line,
                &format!("{label} mirror.{key}"),
            );
        }
    }
}

/// Records the images of a lock file of imgpkg and kbld.
pub(crate) fn images_lock(root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    for (at, image) in root.get("images").map(DocumentNode::items).unwrap_or_default().iter().enumerate() {
        let path = format!("{label} images[{at}].image");
        match image.get_text("image") {
            Some(name) => recorder.image_field(name, Certainty::Sure, image.line, &path),
            None => recorder.undecided("", Certainty::Sure, "it has no image", image.line, &path),
        }
    }
}
