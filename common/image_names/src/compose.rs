//! Compose files.

use crate::dockerfile;
use crate::recorder::{Certainty, Recorder};
use crate::templates::strip_scheme;
use crate::variables::expand;
use crate::walker::Walker;
use crate::yaml::{DocumentNode, Value};

/// Returns whether a document is a compose file.
pub(crate) fn is_compose(root: &DocumentNode) -> bool {
    let is_service = |(_, service): &(Box<str>, DocumentNode)| {
        ["image", "build", "extends", "provider", "command", "ports", "volumes", "environment", "deploy"]
            .iter()
            .any(|key| service.get(key).is_some())
    };
    match root.get("services") {
        Some(services) => services.entries().iter().any(is_service),
        None => {
            matches!(root.get("include"), Some(DocumentNode { value: Value::List(_), .. }))
                && root.get("kind").is_none()
        }
    }
}

/// Records the images of a compose file. Variables without a default are undecided: the environment is not read.
pub(crate) fn scan(root: &DocumentNode, recorder: &mut Recorder) {
    if let Some(include) = root.get("include") {
        recorder.elsewhere("it includes other files, which are not read", include.line, "include");
    }
    for (name, service) in root.get("services").map(DocumentNode::entries).unwrap_or_default() {
        read_service(name, service, recorder);
    }
}

fn read_service(name: &str, service: &DocumentNode, recorder: &mut Recorder) {
    let path = |key: &str| format!("services.{name}.{key}");
    let build = service.get("build").filter(|build| !matches!(build.value, Value::Null));
    if let Some(image) = service.get("image")
        && let Some(text) = image.text()
    {
        // With `build`, it names the result, which need not be in any registry.
        let certainty = if build.is_some() { Certainty::Perhaps } else { Certainty::Sure };
        record(text, certainty, image.line, &path("image"), recorder);
    }
    if let Some(extends) = service.get("extends")
        && extends.get_text("file").is_some()
    {
        recorder.elsewhere("it extends a service of another file, which is not read", extends.line, &path("extends"));
    }
    if let Some(build) = build {
        if let Some(inline) = build.get("dockerfile_inline")
            && let Some(text) = inline.text()
        {
            dockerfile::scan(text, inline.line.saturating_sub(1), &path("build.dockerfile_inline"), recorder);
        }
        for (context, value) in build.get("additional_contexts").map(DocumentNode::entries).unwrap_or_default() {
            if let Some(text) = value.text().filter(|text| text.starts_with("docker-image://")) {
                let path = path(&format!("build.additional_contexts.{context}"));
                record(text, Certainty::Sure, value.line, &path, recorder);
            }
        }
    }
    for (at, volume) in service.get("volumes").map(DocumentNode::items).unwrap_or_default().iter().enumerate() {
        if volume.get_text("type") == Some("image")
            && let Some(source) = volume.get("source")
            && let Some(text) = source.text()
        {
            record(text, Certainty::Sure, source.line, &path(&format!("volumes[{at}].source")), recorder);
        }
    }
    for key in ["command", "entrypoint", "environment"] {
        if let Some(value) = service.get(key) {
            Walker::new(recorder, "", Certainty::Perhaps).at_key(&path(key), |walker| walker.texts(value));
        }
    }
}

/// Records an image with its variables expanded.
fn record(text: &str, certainty: Certainty, line: usize, path: &str, recorder: &mut Recorder) {
    match expand(strip_scheme(text), &|_| None) {
        Ok(image) => recorder.image_field(&image, certainty, line, path),
        Err(reason) => recorder.undecided(text, certainty, reason, line, path),
    }
}
