//! Converts configurations of other programs: files of skopeo, regsync and image-syncer, and command lines of imgsync
//! 2.1. Settings without an equivalent are reported, and secrets are never copied: each becomes a variable.
//!
//! A file is parsed into an untyped tree, each format converts it into a [`ConfigDraft`], and that is written as YAML.

mod draft;
mod image_syncer;
mod legacy;
mod regsync;
mod skopeo;
mod target_mapping;

use std::fmt;
use std::str::FromStr;

use imgsync_config::{list_item_lines, parse_yaml_tree};
use serde_json::Value;

pub use draft::ConfigDraft;

/// Format of a file, by program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportFormat {
    /// `skopeo sync --src yaml`.
    Skopeo,
    /// regclient's regsync.
    Regsync,
    /// AliyunContainerService/image-syncer.
    ImageSyncer,
}

impl FromStr for ImportFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<ImportFormat, String> {
        match text {
            "skopeo" => Ok(ImportFormat::Skopeo),
            "regsync" => Ok(ImportFormat::Regsync),
            "image-syncer" => Ok(ImportFormat::ImageSyncer),
            other => Err(format!("unknown format `{other}`: use skopeo, regsync or image-syncer")),
        }
    }
}

impl fmt::Display for ImportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImportFormat::Skopeo => "skopeo",
            ImportFormat::Regsync => "regsync",
            ImportFormat::ImageSyncer => "image-syncer",
        })
    }
}

/// Values that a file does not contain.
#[derive(Debug, Clone, Default)]
pub struct ImportHints {
    /// Target.
    pub to: Option<String>,
    /// Naming style of targets.
    pub naming: Option<String>,
    /// Contents of image-syncer's separate credentials file.
    pub auth: Option<String>,
}

/// Converts a file into a configuration. Errors contain no secret of the file.
pub fn import_file(
    text: &str,
    format: Option<ImportFormat>,
    hints: &ImportHints,
) -> Result<(ImportFormat, ConfigDraft), String> {
    let tree = parse_yaml_tree(text)?;
    let format = match format.or_else(|| guess_format(&tree)) {
        Some(format) => format,
        None => return Err("unknown format: it is not a file of skopeo, regsync or image-syncer; set --format".into()),
    };
    let mut draft = ConfigDraft::default();
    match format {
        ImportFormat::Skopeo => skopeo::read_file(&tree, hints, &mut draft)?,
        ImportFormat::Regsync => regsync::read_file(&tree, &list_item_lines(text, "sync"), &mut draft)?,
        ImportFormat::ImageSyncer => {
            let auth =
                hints.auth.as_deref().map(parse_yaml_tree).transpose().map_err(|error| format!("--auth: {error}"))?;
            image_syncer::read_file(&tree, auth.as_ref(), hints, &mut draft)?;
        }
    }
    Ok((format, draft))
}

/// Detects the format of a text that is certainly not an imgsync configuration.
pub fn detect_format(text: &str) -> Option<ImportFormat> {
    let tree = parse_yaml_tree(text).ok()?;
    let keys: Vec<&String> = tree.as_object()?.keys().collect();
    let ours = ["rules", "registries", "cluster", "notify", "report", "serve"];
    if keys.iter().any(|key| ours.contains(&key.as_str())) {
        return None;
    }
    // Require image names, because any mapping of texts would otherwise be a file of image-syncer.
    let names_images = tree.get("images").is_some() || keys.iter().all(|key| key.contains('/'));
    guess_format(&tree).filter(|format| *format != ImportFormat::ImageSyncer || names_images)
}

/// Converts a command line of imgsync 2.1 into a configuration.
pub fn import_command(line: &str) -> Result<ConfigDraft, String> {
    legacy::read_command(line)
}

/// Guesses the format by keys that only one has.
fn guess_format(tree: &Value) -> Option<ImportFormat> {
    let map = tree.as_object()?;
    if map.get("sync").is_some_and(Value::is_array) {
        return Some(ImportFormat::Regsync);
    }
    if map.get("images").is_some_and(Value::is_object) {
        return Some(ImportFormat::ImageSyncer);
    }
    let is_skopeo = |value: &Value| {
        let keys = ["images", "images-by-tag-regex", "images-by-semver"];
        value.as_object().is_some_and(|value| keys.iter().any(|key| value.contains_key(*key)))
    };
    if map.values().any(is_skopeo) {
        return Some(ImportFormat::Skopeo);
    }
    let is_place = |value: &Value| value.is_null() || value.is_string() || value.is_array();
    (!map.is_empty() && map.values().all(is_place)).then_some(ImportFormat::ImageSyncer)
}

/// Returns a value as text; `None` if it is empty or not a scalar.
fn as_text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

fn is_true(value: Option<&Value>) -> bool {
    as_text(value).is_some_and(|text| ["true", "yes", "on"].contains(&text.to_ascii_lowercase().as_str()))
}

/// Returns a single value, or each item of a list.
fn as_texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(|item| as_text(Some(item))).collect(),
        one => as_text(one).into_iter().collect(),
    }
}

/// Returns the texts of a filter: a list, or a single one. Fails if a part of it is none, because it would then select
/// more than it says.
fn filter_texts<'a>(map: &'a serde_json::Map<String, Value>, key: &str) -> Result<Vec<&'a str>, String> {
    let (items, count) = match map.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => (as_texts(map.get(key)), items.len()),
        Some(one) => (as_texts(Some(one)), 1),
    };
    match items.len() == count {
        true => Ok(items),
        false => Err(format!("`{key}` is not a list of texts")),
    }
}

/// Returns the keys that are not converted.
fn unknown_keys<'a>(map: &'a serde_json::Map<String, Value>, known: &[&str]) -> Vec<&'a str> {
    map.keys().map(String::as_str).filter(|key| !known.contains(key) && !key.starts_with("x-")).collect()
}

#[cfg(test)]
mod regsync_tests;
#[cfg(test)]
mod tests;
