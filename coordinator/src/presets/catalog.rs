//! Contents of `presets.toml`.

use std::sync::LazyLock;

use imgsync_common::config::{KnownPreset, Preset};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::select::RepositoryPattern;
use serde::Deserialize;

use super::versions::Versions;

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let mut catalog: Catalog = toml::from_str(include_str!("presets.toml")).expect("a test reads it");
    for known in &mut catalog.presets {
        known.reads = known.homes.iter().flat_map(Home::patterns).collect();
        known.versions = catalog.versions.iter().find(|versions| versions.preset == known.name).cloned();
    }
    catalog
});

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    #[serde(rename = "preset")]
    presets: Vec<Known>,
    versions: Option<Versions>,
}

/// A preset.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Name of the preset.
    pub name: String,
    /// Short description.
    pub about: String,
    #[serde(rename = "home")]
    pub(super) homes: Vec<Home>,
    #[serde(skip)]
    pub(super) versions: Option<Versions>,
    #[serde(skip)]
    reads: Vec<RepositoryPattern>,
}

/// Current and former locations of a preset's images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Home {
    /// Current registry and path.
    at: String,
    /// Repositories below it: names, or `**` for all.
    repositories: Vec<String>,
    /// Former locations, newest first.
    #[serde(default)]
    was: Vec<String>,
    /// Location read by imgsync 2.1.
    original: Option<String>,
    /// Repositories that 2.1 had there; empty means all.
    #[serde(default)]
    originals: Vec<String>,
}

impl Home {
    pub(super) fn patterns(&self) -> impl Iterator<Item = RepositoryPattern> {
        let pattern = |below: &String| format!("{}/{below}", self.at).parse().expect("a test reads each");
        self.repositories.iter().map(pattern)
    }

    /// Returns the name that a repository had in imgsync 2.1.
    pub(super) fn original_of(&self, name: &str) -> Option<String> {
        let below = self.below(name)?;
        if !self.originals.is_empty() && !self.originals.iter().any(|had| had == below) {
            return None;
        }
        Some(format!("{}/{below}", self.original.as_ref()?))
    }

    /// Returns the names that a repository had at former locations, newest first.
    pub(super) fn was_of(&self, name: &str) -> Vec<String> {
        let Some(below) = self.below(name) else { return Vec::new() };
        let had = |home: &&String| {
            self.originals.is_empty()
                || Some(*home) != self.original.as_ref()
                || self.originals.iter().any(|it| it == below)
        };
        self.was.iter().filter(had).map(|home| format!("{home}/{below}")).collect()
    }

    fn below<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(&self.at)?.strip_prefix('/')
    }
}

impl Known {
    /// Returns the patterns that the preset reads.
    pub fn reads(&self) -> &[RepositoryPattern] {
        &self.reads
    }

    /// Returns current and former locations as registry and path, current ones first.
    pub fn homes(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.homes.iter().map(|home| (home.at.as_str(), home.was.as_slice()))
    }

    /// Whether the preset supports `versions`.
    pub fn has_versions(&self) -> bool {
        self.versions.is_some()
    }
}

/// Returns all presets.
pub fn all() -> &'static [Known] {
    &CATALOG.presets
}

/// Returns all presets in the form that the configuration needs.
pub fn known() -> Vec<KnownPreset<'static>> {
    let known = |known: &'static Known| KnownPreset {
        name: &known.name,
        has_versions: known.has_versions(),
        reads: known.reads(),
    };
    all().iter().map(known).collect()
}

/// Finds a preset by name.
pub fn find(preset: &Preset) -> Result<&'static Known> {
    let wrong = |(message, hint): (String, String)| {
        Error::new(Class::Invalid, format!("taking the preset {preset}"), message).hint(hint)
    };
    preset.find(&known()).map_err(wrong)?;
    let found = all().iter().find(|known| known.name == preset.name);
    found.ok_or_else(|| Error::new(Class::Invalid, format!("taking the preset {preset}"), "there is no such preset"))
}

/// Finds the preset that replaces a location read by imgsync 2.1, such as `gcr.io/istio-release`.
pub fn of_original(home: &str) -> Option<&'static Known> {
    all().iter().find(|known| known.homes.iter().any(|here| here.original.as_deref() == Some(home)))
}

/// Returns the name that a repository (`registry/path`) had in imgsync 2.1; `None` if no preset has it.
pub fn original_of(name: &str) -> Option<String> {
    all().iter().flat_map(|known| &known.homes).find_map(|home| home.original_of(name))
}
