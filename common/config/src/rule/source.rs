//! `from`, `preset`, `images` and `digests` of a rule: its source.

use std::path::PathBuf;

use super::super::preset;
use super::super::reader::{SectionFields, ValueReader};
use super::super::schema_table::FROM;
use super::super::yaml::{YamlNode, YamlValue};
use super::{DigestsSource, RuleContext, RuleSource};
use imgsync_model::select::RepositoryPattern;
use imgsync_oci::{ArchiveFormat, Digest, Tag};

/// Reads the source of a rule, and reports problems.
pub(super) fn read_source(surroundings: &RuleContext<'_>, fields: &SectionFields<'_>) -> Option<RuleSource> {
    let reader = surroundings.reader;
    if let Some(node) = fields.get("images") {
        for other in ["from", "preset", "digests"] {
            if let Some(entry) = fields.entry(other) {
                reader.report(&entry.key_at, format!("a rule has either `images` or `{other}`, not both"));
                return None;
            }
        }
        return read_image_files(reader, node).map(RuleSource::Images);
    }
    if let Some(node) = fields.get("digests") {
        return read_digests(reader, node, fields).map(RuleSource::Digests);
    }
    match (fields.get("preset"), fields.get("from")) {
        // Its key is misspelt, which was reported.
        (None, None) if ["from", "preset", "images"].iter().any(|key| fields.has_misspelt(key)) => None,
        (None, None) => {
            reader.report(&fields.at, "a rule needs `from`, `preset` or `images`");
            None
        }
        (Some(_), Some(_)) => {
            if let Some(entry) = fields.entry("preset") {
                reader.report(&entry.key_at, "a rule has either `from` or `preset`, not both");
            }
            None
        }
        (Some(node), None) => preset::read(reader, node, surroundings.presets).map(RuleSource::Preset),
        (None, Some(node)) if matches!(node.value, YamlValue::Map(_)) => {
            read_repositories(reader, node).map(RuleSource::Repositories)
        }
        (None, Some(node)) => {
            let text = reader.text(node)?;
            if let Some(layout) = text.strip_prefix("oci:") {
                return read_layout_path(reader, node, layout).map(RuleSource::Layout);
            }
            if let Some((format, file)) = ArchiveFormat::split_scheme(text) {
                return read_archive_path(reader, node, format, file).map(|file| RuleSource::Archive(format, file));
            }
            match text.parse::<RepositoryPattern>() {
                Ok(pattern) => Some(RuleSource::Repositories(pattern)),
                Err(error) => {
                    let hint = error.hint.clone();
                    reader.report_value(node, error, hint);
                    None
                }
            }
        }
    }
}

/// Reads the files and folders that name images.
fn read_image_files(reader: &ValueReader, node: &YamlNode) -> Option<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for item in reader.one_or_many(node) {
        let text = reader.text(item)?;
        if text.contains('*') {
            reader.report_value(item, "wildcards are not supported here", Some("name the folder".to_owned()));
            return None;
        }
        let path = PathBuf::from(text);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    (!paths.is_empty()).then_some(paths)
}

/// Reads `digests`, of the one repository in `from`.
fn read_digests(reader: &ValueReader, node: &YamlNode, fields: &SectionFields<'_>) -> Option<DigestsSource> {
    let Some(from) = fields.get("from") else {
        reader.report(&node.at, "`digests` needs `from`: the repository with these images");
        return None;
    };
    let text = reader.text(from)?;
    let pattern = match text.parse::<RepositoryPattern>() {
        Ok(pattern) => pattern,
        Err(error) => {
            let hint = error.hint.clone();
            reader.report_value(from, error, hint);
            return None;
        }
    };
    let Some(repository) = pattern.repository() else {
        reader.report_value(from, "`digests` needs one repository, without wildcards", None);
        return None;
    };
    let mut digests: Vec<Digest> = Vec::new();
    for item in reader.one_or_many(node) {
        let digest: Digest = reader.parse(item)?;
        if digest.pinned_tag().is_none() {
            let message = "an image by sha512 cannot be mirrored by a rule: no tag has room for the digest";
            reader.report_value(item, message, Some("copy it with `imgsync sync`".to_owned()));
            return None;
        }
        if !digests.contains(&digest) {
            digests.push(digest);
        }
    }
    let registry = pattern.registry().clone();
    (!digests.is_empty()).then_some(DigestsSource { registry, repository, digests })
}

/// Reads `from: {repositories: …, exclude: […]}`.
fn read_repositories(reader: &ValueReader, node: &YamlNode) -> Option<RepositoryPattern> {
    let fields = reader.fields(node, &FROM)?;
    let Some(repositories) = fields.get("repositories") else {
        reader.report(&fields.at, "`repositories` is missing");
        return None;
    };
    let text = reader.text(repositories)?;
    let pattern = match text.parse::<RepositoryPattern>() {
        _ if text.starts_with("oci:") => {
            reader.report_value(repositories, "a layout is read as a whole", Some(format!("write `from: {text}`")));
            return None;
        }
        Ok(pattern) => pattern,
        Err(error) => {
            let hint = error.hint.clone();
            reader.report_value(repositories, error, hint);
            return None;
        }
    };
    let mut excluded = Vec::new();
    for node in fields.get("exclude").map(|node| reader.one_or_many(node)).unwrap_or_default() {
        match pattern.parse_exclusion(reader.text(node)?) {
            Ok(_) if pattern.repository().is_some() => {
                reader.report_value(node, "`exclude` needs a pattern that matches several repositories", None);
            }
            Ok(other) if other == pattern => reader.report_value(node, format!("this excludes all of {pattern}"), None),
            Ok(other) => excluded.push(other),
            Err(error) => {
                let hint = error.hint.clone();
                reader.report_value(node, error, hint);
            }
        }
    }
    Some(pattern.excluding(excluded))
}

/// Reads the file of a whole archive.
pub(super) fn read_archive_path(
    reader: &ValueReader,
    node: &YamlNode,
    format: ArchiveFormat,
    text: &str,
) -> Option<PathBuf> {
    let scheme = format.scheme();
    if text.is_empty() {
        reader.report(&node.at, format!("`{scheme}` in a rule needs the name of a file"));
        return None;
    }
    if text == "-" || text.starts_with("-:") {
        let hint = format!("write `{scheme}FILE`; `imgsync sync` copies from and to a pipe");
        let error = "an archive in a rule is a file, not stdin or stdout: the next run reads it again";
        reader.report_value(node, error, Some(hint));
        return None;
    }
    if let Some((file, tag)) = text.rsplit_once(':')
        && tag.parse::<Tag>().is_ok()
    {
        reader.report_value(
            node,
            "an archive in a rule has no tag",
            Some(format!("write `{scheme}{file}` and `tags: {{include: [\"{tag}\"]}}`")),
        );
        return None;
    }
    if text.contains('*') {
        reader.report(&node.at, "an archive is always read as a whole: wildcards are not supported");
        return None;
    }
    Some(PathBuf::from(text))
}

/// Reads the folder of a whole layout.
pub(super) fn read_layout_path(reader: &ValueReader, node: &YamlNode, text: &str) -> Option<PathBuf> {
    if text.is_empty() {
        reader.report(&node.at, "`oci:` needs the name of a folder");
        return None;
    }
    if let Some((folder, tag)) = text.rsplit_once(':')
        && tag.parse::<Tag>().is_ok()
    {
        reader.report_value(
            node,
            "a layout in a rule has no tag",
            Some(format!("write `oci:{folder}` and `tags: {{include: [\"{tag}\"]}}`")),
        );
        return None;
    }
    if text.contains('*') {
        reader.report(&node.at, "a layout is always read as a whole: wildcards are not supported");
        return None;
    }
    Some(PathBuf::from(text))
}
