//! Walks through the values of a document, and records the fields that name images and the strings that may.

use std::fmt::Write as _;

use imgsync_oci::{Reference, is_registry_part};

use crate::recorder::{Certainty, Recorder};
use crate::templates::{has_template, image_values, parse_image};
use crate::tokens::images_in;
use crate::yaml::{DocumentNode, Value};

/// Keys whose values name images, in resources of any kind.
const IMAGE_KEYS: [&str; 4] = ["image", "baseImage", "imageName", "sidecarImage"];
/// Keys whose values are never images, however they look.
const IGNORED_KEYS: [&str; 15] = [
    "apiVersion",
    "kind",
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "labels",
    "matchLabels",
    "managedFields",
    "ownerReferences",
    "clusterIP",
    "binaryData",
    "caBundle",
    // A copy of the manifest itself.
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// Keys that show that the mapping describes a container.
const CONTAINER_KEYS: [&str; 8] =
    ["name", "command", "args", "env", "imagePullPolicy", "resources", "script", "source"];
/// Keys of lists of containers.
const CONTAINER_LISTS: [&str; 5] = ["containers", "initContainers", "ephemeralContainers", "sidecars", "steps"];
/// Keys from which an operator completes an image.
const VERSION_KEYS: [&str; 5] = ["version", "tag", "imageTag", "digest", "sha"];
/// Placeholder that Istio replaces when it injects its proxy.
const INJECTED_IMAGE: &str = "auto";

/// Walks through a document.
pub(crate) struct Walker<'a> {
    recorder: &'a mut Recorder,
    /// Certainty of fields that name images.
    certainty: Certainty,
    /// Whether a bare word is an image: in the containers of workloads.
    allows_bare_names: bool,
    path: String,
}

impl<'a> Walker<'a> {
    /// Creates a walker. Paths begin with the label.
    pub(crate) fn new(recorder: &'a mut Recorder, label: &str, certainty: Certainty) -> Walker<'a> {
        let path = if label.is_empty() { String::new() } else { format!("{label} ") };
        Walker { recorder, certainty, allows_bare_names: false, path }
    }

    /// Takes bare words as images, too.
    pub(crate) fn with_bare_names(self, allowed: bool) -> Walker<'a> {
        Walker { allows_bare_names: allowed, ..self }
    }

    /// Calls `visit` with a key added to the path.
    pub(crate) fn at_key(&mut self, key: &str, visit: impl FnOnce(&mut Walker<'a>)) {
        let length = self.path.len();
        if !self.path.is_empty() && !self.path.ends_with(' ') {
            self.path.push('.');
        }
        self.path.push_str(key);
        visit(self);
        self.path.truncate(length);
    }

    /// Calls `visit` with an index added to the path.
    pub(crate) fn at_index(&mut self, index: usize, visit: impl FnOnce(&mut Walker<'a>)) {
        let length = self.path.len();
        // Writing to a String does not fail.
        _ = write!(self.path, "[{index}]");
        visit(self);
        self.path.truncate(length);
    }

    /// Returns the recorder and the current path.
    pub(crate) fn parts(&mut self) -> (&mut Recorder, &str) {
        (self.recorder, &self.path)
    }

    /// Walks through a value.
    pub(crate) fn walk(&mut self, node: &DocumentNode) {
        self.walk_value(node, "");
    }

    fn walk_value(&mut self, node: &DocumentNode, key: &str) {
        if self.recorder.is_full() {
            return;
        }
        match &node.value {
            Value::Null => {}
            Value::Text(_) => self.text(node),
            Value::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.at_index(at, |walker| walker.walk_value(item, key));
                }
            }
            Value::Map(entries) => {
                let used = self.image_mapping(node, key);
                for (key, value) in entries {
                    if !used.contains(&&**key) {
                        self.entry(node, key, value);
                    }
                }
            }
        }
    }

    /// Walks through the entry of a mapping.
    pub(crate) fn entry(&mut self, mapping: &DocumentNode, key: &str, value: &DocumentNode) {
        if IGNORED_KEYS.contains(&key) {
            return;
        }
        self.at_key(key, |walker| match &value.value {
            Value::Text(text) if IMAGE_KEYS.contains(&key) => walker.image(mapping, key, text, value.line),
            Value::Text(text) if is_image_like(key) => match parse_image(text.trim()) {
                Ok(image) if image.tag.is_some() || image.digest.is_some() => {
                    walker.recorder.found(image, Certainty::Perhaps, value.line, &walker.path);
                }
                _ => walker.text(value),
            },
            _ => walker.walk_value(value, key),
        });
    }

    /// Records the value of a field that names an image.
    fn image(&mut self, mapping: &DocumentNode, key: &str, text: &str, line: usize) {
        let text = text.trim();
        if text == INJECTED_IMAGE {
            let reason = "Istio replaces it by the image of its proxy";
            return self.recorder.undecided(text, self.certainty, reason, line, &self.path);
        }
        if self.certainty == Certainty::Sure
            && !self.allows_bare_names
            && parse_image(text).is_ok_and(|image| image.tag.is_none() && image.digest.is_none())
            && !(key == "image" && self.is_container(mapping))
        {
            let reason = match is_bare(text) {
                true => "it has no registry, tag or digest: it may name something else",
                false => "it has no tag: its operator chooses one",
            };
            return self.recorder.undecided(text, Certainty::Sure, reason, line, &self.path);
        }
        self.recorder.image_field(text, self.certainty, line, &self.path);
    }

    /// Returns whether a mapping describes a container, whose image is `latest` without a tag. Containers have no field
    /// for a version.
    fn is_container(&self, mapping: &DocumentNode) -> bool {
        let list = self.path.rsplit(['.', ' ']).nth(1).unwrap_or_default();
        let is_listed = list.split_once('[').is_some_and(|(list, _)| CONTAINER_LISTS.contains(&list));
        (is_listed || CONTAINER_KEYS.iter().any(|key| mapping.get(key).is_some()))
            && VERSION_KEYS.iter().all(|key| mapping.get(key).is_none())
    }

    /// Records an image that a mapping names in parts. Returns the keys that it used.
    fn image_mapping(&mut self, node: &DocumentNode, key: &str) -> Vec<&'static str> {
        let is_image = IMAGE_KEYS.contains(&key) || is_image_like(key);
        // The volume source `image`.
        if is_image && let Some(reference) = node.get("reference").and_then(|value| Some((value.text()?, value.line))) {
            let (text, line) = reference;
            self.at_key("reference", |walker| walker.recorder.image_field(text, walker.certainty, line, &walker.path));
            return vec!["reference"];
        }
        let named = if is_image { node.get_text("name") } else { None };
        let Some(repository) = node.get_text("repository").or(named) else { return Vec::new() };
        if repository.contains("://") && !repository.starts_with("oci://") && !repository.starts_with("docker://") {
            return Vec::new();
        }
        // The operator of NVIDIA: repository, image and version.
        let image = node.get_text("image");
        if image.is_some_and(|image| !has_template(image) && image.contains(['/', ':', '@'])) {
            // It is complete, and the repository is that of something else.
            return Vec::new();
        }
        let tag = node.get_text("tag").or_else(|| node.get_text("version").filter(|_| image.is_some()));
        let digest = node.get_text("digest").or_else(|| node.get_text("sha256")).or_else(|| node.get_text("sha"));
        if tag.is_none() && digest.is_none() && !is_image {
            return Vec::new();
        }
        let written = join_parts(node.get_text("registry"), repository, image, tag, digest);
        let used = vec!["registry", "repository", "image", "tag", "version", "digest"];
        let line = node.get("repository").map_or(node.line, |value| value.line);
        match parse_image(&written) {
            Ok(image) if image.tag.is_none() && image.digest.is_none() => {
                if self.certainty == Certainty::Sure {
                    let reason = "it has no tag: its operator or chart chooses one";
                    self.recorder.undecided(&written, Certainty::Sure, reason, line, self.path.trim_end());
                }
            }
            _ => self.recorder.image_field(&written, self.certainty, line, self.path.trim_end()),
        }
        used
    }

    /// Records the images that all texts in a value may name.
    pub(crate) fn texts(&mut self, node: &DocumentNode) {
        match &node.value {
            Value::Map(entries) => {
                for (key, value) in entries {
                    // Kubernetes repeats there what the object has.
                    if !["kubectl.kubernetes.io/last-applied-configuration", "managedFields"].contains(&&**key) {
                        self.at_key(key, |walker| walker.texts(value));
                    }
                }
            }
            Value::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.at_index(at, |walker| walker.texts(item));
                }
            }
            Value::Text(_) => self.text(node),
            Value::Null => {}
        }
    }

    /// Records the images that a text may name.
    pub(crate) fn text(&mut self, node: &DocumentNode) {
        let Some(text) = node.text() else { return };
        for (offset, line) in text.lines().enumerate() {
            let words: Vec<Reference> = images_in(line).collect();
            let number = node.line_at(offset);
            for value in image_values(line) {
                // Most are found as words, too.
                if !parse_image(value).is_ok_and(|image| words.contains(&image)) {
                    self.recorder.image_field(value, Certainty::Perhaps, number, &self.path);
                }
            }
            for image in words {
                self.recorder.found(image, Certainty::Perhaps, number, &self.path);
            }
        }
    }
}

/// Returns whether a key names an image by its ending: `proxyImage`, `init_image`.
fn is_image_like(key: &str) -> bool {
    key.ends_with("Image") || key.ends_with("_image") || key.ends_with("-image") || key.ends_with("_IMAGE")
}

/// Returns whether a name has neither registry, tag nor digest.
fn is_bare(text: &str) -> bool {
    let has_registry = text.split_once('/').is_some_and(|(first, _)| is_registry_part(first));
    !has_registry && text.parse::<Reference>().is_ok_and(|image| image.tag.is_none() && image.digest.is_none())
}

/// Joins the parts of a name.
fn join_parts(
    registry: Option<&str>,
    repository: &str,
    image: Option<&str>,
    tag: Option<&str>,
    digest: Option<&str>,
) -> String {
    let mut name = String::new();
    if let Some(registry) = registry {
        name.push_str(registry.trim_end_matches('/'));
        name.push('/');
    }
    name.push_str(repository.trim_end_matches('/'));
    if let Some(image) = image {
        name.push('/');
        name.push_str(image);
    }
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (tag, digest) = match (tag, digest) {
        (Some(tag), None) if tag.starts_with("sha256:") => (None, Some(tag)),
        parts => parts,
    };
    if let Some(tag) = tag {
        // Some charts write `tag: 1.0@sha256:…`.
        name.push(':');
        name.push_str(tag);
    }
    if let Some(digest) = digest
        && !name.contains('@')
    {
        name.push_str(if is_hex(digest) { "@sha256:" } else { "@" });
        name.push_str(digest);
    }
    name
}
