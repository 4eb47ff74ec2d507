//! Contents of `presets.toml`.

use std::sync::LazyLock;

use imgsync_config::{Preset, PresetInfo};
use imgsync_model::select::RepositoryPattern;
use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use super::version_table::VersionTable;

static CATALOG: LazyLock<PresetCatalog> = LazyLock::new(|| {
    let mut catalog: PresetCatalog = toml::from_str(include_str!("presets.toml")).expect("a test reads it");
    for known in &mut catalog.presets {
        known.patterns = known.homes.iter().flat_map(ImageHome::patterns).collect();
        known.versions = catalog.versions.iter().find(|versions| versions.preset == known.name).cloned();
    }
    catalog
});

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresetCatalog {
    #[serde(rename = "preset")]
    presets: Vec<PresetDefinition>,
    versions: Option<VersionTable>,
}

/// A preset.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresetDefinition {
    /// Name of the preset.
    pub name: String,
    /// Short description.
    pub about: String,
    #[serde(rename = "home")]
    pub(super) homes: Vec<ImageHome>,
    #[serde(skip)]
    pub(super) versions: Option<VersionTable>,
    #[serde(skip)]
    patterns: Vec<RepositoryPattern>,
}

/// Current and former locations of a preset's images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageHome {
    /// Current registry and path.
    at: String,
    /// Repositories below it: names, or `**` for all.
    repositories: Vec<String>,
    /// Former locations, newest first.
    #[serde(default)]
    former_homes: Vec<String>,
    /// Location read by imgsync 2.1.
    original: Option<String>,
    /// Repositories that 2.1 had there; empty means all.
    #[serde(default)]
    original_repositories: Vec<String>,
}

impl ImageHome {
    pub(super) fn patterns(&self) -> impl Iterator<Item = RepositoryPattern> {
        let pattern = |below: &String| format!("{}/{below}", self.at).parse().expect("a test reads each");
        self.repositories.iter().map(pattern)
    }

    /// Returns the name that a repository had in imgsync 2.1.
    pub(super) fn original_name(&self, name: &str) -> Option<String> {
        let below = self.strip_home(name)?;
        if !self.original_repositories.is_empty() && !self.original_repositories.iter().any(|had| had == below) {
            return None;
        }
        Some(format!("{}/{below}", self.original.as_ref()?))
    }

    /// Returns the names that a repository had at former locations, newest first.
    pub(super) fn former_names(&self, name: &str) -> Vec<String> {
        let Some(below) = self.strip_home(name) else { return Vec::new() };
        let had = |home: &&String| {
            self.original_repositories.is_empty()
                || Some(*home) != self.original.as_ref()
                || self.original_repositories.iter().any(|it| it == below)
        };
        self.former_homes.iter().filter(had).map(|home| format!("{home}/{below}")).collect()
    }

    fn strip_home<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(&self.at)?.strip_prefix('/')
    }
}

impl PresetDefinition {
    /// Returns the patterns that the preset reads.
    pub fn patterns(&self) -> &[RepositoryPattern] {
        &self.patterns
    }

    /// Returns current and former locations as registry and path, current ones first.
    pub fn homes(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.homes.iter().map(|home| (home.at.as_str(), home.former_homes.as_slice()))
    }

    /// Returns the paths of a name (`registry/path`) below current and former locations of the preset. Names with the same
    /// path are of the same image.
    pub(crate) fn paths_below<'n>(&self, name: &'n str) -> impl Iterator<Item = &'n str> {
        let homes = self.homes.iter().flat_map(|here| std::iter::once(&here.at).chain(&here.former_homes));
        homes.filter_map(move |home| {
            let rest = name.strip_prefix(home.as_str())?;
            if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
        })
    }

    /// Whether the preset supports `versions`.
    pub fn has_versions(&self) -> bool {
        self.versions.is_some()
    }
}

/// Returns all presets.
pub fn all() -> &'static [PresetDefinition] {
    &CATALOG.presets
}

/// Returns all presets in the form that the configuration needs.
pub fn known_presets() -> Vec<PresetInfo<'static>> {
    let known = |known: &'static PresetDefinition| PresetInfo {
        name: &known.name,
        has_versions: known.has_versions(),
        repositories: known.patterns(),
    };
    all().iter().map(known).collect()
}

/// Finds a preset by name.
pub fn find(preset: &Preset) -> Result<&'static PresetDefinition> {
    let wrong = |(message, hint): (String, String)| {
        Error::new(ErrorKind::Invalid, format!("resolving the preset {preset}"), message).with_hint(hint)
    };
    preset.find(&known_presets()).map_err(wrong)?;
    let found = all().iter().find(|known| known.name == preset.name);
    found.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("resolving the preset {preset}"), "there is no such preset")
    })
}

/// Finds the preset that replaces a location read by imgsync 2.1, such as `gcr.io/istio-release`.
pub fn find_by_original(home: &str) -> Option<&'static PresetDefinition> {
    all().iter().find(|known| known.homes.iter().any(|here| here.original.as_deref() == Some(home)))
}

/// Returns the name that a repository (`registry/path`) had in imgsync 2.1; `None` if no preset has it.
pub fn original_name(name: &str) -> Option<String> {
    all().iter().flat_map(|known| &known.homes).find_map(|home| home.original_name(name))
}
