//! `preset:`: a known source by name, with its versions. The caller passes in the known presets.

use std::fmt;
use std::str::FromStr;

use super::reader::ValueReader;
use super::schema_table::PRESET;
use super::yaml::{YamlNode, YamlValue};
use imgsync_model::select::{RepositoryPattern, VersionRange};

/// A reference to a preset: `kubeadm`, or `kubeadm >=1.30` for the images of these versions.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Name of the preset.
    pub name: String,
    /// Version range; `None` for all.
    pub versions: Option<VersionRange>,
}

/// Facts about a known preset that the configuration needs.
#[derive(Clone, Copy, Debug)]
pub struct PresetInfo<'a> {
    /// Name of the preset.
    pub name: &'a str,
    /// Whether it supports versions.
    pub has_versions: bool,
    /// Repositories that it reads.
    pub repositories: &'a [RepositoryPattern],
}

impl FromStr for Preset {
    type Err = String;

    /// Parses `kubeadm`, `kubeadm >=1.30`, `kubeadm ~1.31 || ~1.32`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(text.len());
        let (name, range) = text.split_at(end);
        if name.is_empty() {
            return Err(format!("`{text}` is not a preset's name"));
        }
        let range = range.trim();
        let versions = match range.is_empty() {
            true => None,
            false => Some(range.parse::<VersionRange>().map_err(|error| {
                format!("after the preset's name comes a version range such as `{name} >=1.30`: {error}")
            })?),
        };
        Ok(Self { name: name.to_owned(), versions })
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.versions {
            Some(versions) => write!(f, " {versions}"),
            None => Ok(()),
        }
    }
}

impl Preset {
    /// Finds the preset among the known ones, or returns an error message and a hint.
    pub fn find<'k, 'a>(&self, known: &'k [PresetInfo<'a>]) -> Result<&'k PresetInfo<'a>, (String, String)> {
        let name = &self.name;
        let Some(found) = known.iter().find(|preset| preset.name == name) else {
            let longer = known.iter().find(|preset| name.len() > 2 && preset.name.starts_with(name.as_str()));
            let near = known.iter().map(|preset| (strsim::damerau_levenshtein(preset.name, name), preset.name)).min();
            let near = near.filter(|(distance, _)| *distance <= 3).map(|(_, near)| near);
            let meant = longer.map(|preset| preset.name).or(near);
            let meant = meant.map(|meant| format!(", did you mean `{meant}`?")).unwrap_or_default();
            let names: Vec<&str> = known.iter().map(|preset| preset.name).collect();
            return Err((format!("there is no preset `{name}`{meant}"), format!("available: {}", names.join(", "))));
        };
        if self.versions.is_some() && !found.has_versions {
            return Err((
                format!("the preset `{name}` does not support versions"),
                "filter tags with `tags`, such as `tags: {semver: \">=1.20\"}`".to_owned(),
            ));
        }
        Ok(found)
    }
}

/// Reads the value of `preset:`: a name, or a name with settings.
pub(super) fn read(reader: &ValueReader, node: &YamlNode, known: Option<&[PresetInfo<'_>]>) -> Option<Preset> {
    let preset = match &node.value {
        YamlValue::Map(entries) => {
            let [entry] = entries.as_slice() else {
                reader.report_with_hint(
                    &node.at,
                    "a preset with settings is a mapping of one name",
                    "write `preset: {kubeadm: {versions: \">=1.30\"}}`; a second preset needs its own rule",
                );
                return None;
            };
            let fields = reader.fields(&entry.value, &PRESET)?;
            let versions = match fields.get("versions") {
                Some(node) => Some(reader.parse(node)?),
                None => None,
            };
            Preset { name: entry.key.clone(), versions }
        }
        _ => reader.parse::<Preset>(node)?,
    };
    if let Some(Err((message, hint))) = known.map(|known| preset.find(known)) {
        match &node.value {
            YamlValue::Map(entries) => match entries.first() {
                Some(entry) => reader.report_with_hint(&entry.key_at, message, hint),
                None => reader.report_with_hint(&node.at, message, hint),
            },
            _ => reader.report_value(node, message, Some(hint)),
        }
        return None;
    }
    Some(preset)
}
