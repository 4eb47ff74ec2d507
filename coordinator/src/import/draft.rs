//! Draft of an imported configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use imgsync_config::yaml_scalar;

/// A value of the draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DraftValue {
    /// A literal, quoted if necessary.
    Plain(String),
    /// Name of an environment variable.
    Variable(String),
}

impl DraftValue {
    fn to_yaml(&self) -> String {
        match self {
            DraftValue::Plain(text) => yaml_scalar(text),
            DraftValue::Variable(name) => format!("\"${{{name}}}\""),
        }
    }
}

/// A rule of the draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DraftRule {
    pub(super) from: String,
    pub(super) preset: Option<String>,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) semver: Option<String>,
    pub(super) platforms: Vec<String>,
    pub(super) to: Vec<String>,
    pub(super) naming: Option<String>,
    pub(super) referrers: Vec<String>,
    pub(super) backup: Option<String>,
}

/// An imported configuration with notes for the user.
#[derive(Debug, Default)]
pub struct ConfigDraft {
    registries: BTreeMap<String, Vec<(&'static str, DraftValue)>>,
    /// Top-level keys with values in YAML.
    settings: BTreeMap<&'static str, String>,
    rules: Vec<DraftRule>,
    notes: Vec<String>,
    variables: BTreeMap<String, String>,
    omissions: usize,
}

impl ConfigDraft {
    /// Returns notes on settings without an equivalent or with another meaning, each once, in order of occurrence.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the environment variables that must be set, with descriptions; variables that the file itself uses are
    /// not included.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Returns the number of omissions: images missing from the configuration, and exclusions missing from it.
    pub fn omissions(&self) -> usize {
        self.omissions
    }

    pub(super) fn record_omission(&mut self, what: impl std::fmt::Display) {
        self.omissions += 1;
        self.add_note(format!("left out: {what}"));
    }

    pub(super) fn add_note(&mut self, note: impl Into<String>) {
        let note = imgsync_oci::sanitize::sanitize(&note.into()).into_owned();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Sets a key of a registry; the first value wins.
    pub(super) fn set_registry_key(&mut self, registry: &str, key: &'static str, value: DraftValue) {
        let fields = self.registries.entry(canonical_registry(registry)).or_default();
        if !fields.iter().any(|(known, _)| *known == key) {
            fields.push((key, value));
        }
    }

    /// Whether a registry has a key.
    pub(super) fn has_registry_key(&self, registry: &str, key: &str) -> bool {
        self.registries
            .get(&canonical_registry(registry))
            .is_some_and(|fields| fields.iter().any(|(known, _)| *known == key))
    }

    /// Sets a secret of a registry as a variable. `to_yaml` is the value in the file: a reference to a variable is
    /// kept.
    pub(super) fn set_secret(&mut self, registry: &str, key: &'static str, written: &str) {
        let name = parse_variable(written).unwrap_or_else(|| {
            let host: String = registry.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let name = format!("{host}_{key}").to_ascii_uppercase();
            let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("REGISTRY_{name}") } else { name };
            self.variables.insert(name.clone(), format!("the {} of {registry}", key.replace('_', " ")));
            name
        });
        self.set_registry_key(registry, key, DraftValue::Variable(name));
    }

    /// Sets a user name, which is not a secret: a literal or a variable.
    pub(super) fn set_username(&mut self, registry: &str, written: &str) {
        let value = parse_variable(written).map_or_else(|| DraftValue::Plain(written.to_owned()), DraftValue::Variable);
        self.set_registry_key(registry, "username", value);
    }

    /// Adds a variable that must be set.
    pub(super) fn require_variable(&mut self, name: &str, what: &str) {
        self.variables.insert(name.to_owned(), what.to_owned());
    }

    /// Sets a top-level key, with its value in YAML.
    pub(super) fn set_top_level(&mut self, key: &'static str, yaml: String) {
        self.settings.entry(key).or_insert(yaml);
    }

    pub(super) fn add_rule(&mut self, rule: DraftRule) {
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Writes the configuration as YAML.
    pub fn to_yaml(&self) -> String {
        let mut yaml = String::new();
        if !self.registries.is_empty() {
            yaml.push_str("registries:\n");
            for (name, fields) in &self.registries {
                let fields: Vec<String> =
                    fields.iter().map(|(key, value)| format!("{key}: {}", value.to_yaml())).collect();
                _ = writeln!(yaml, "  {}: {{{}}}", yaml_scalar(name), fields.join(", "));
            }
        }
        for (key, value) in &self.settings {
            _ = writeln!(yaml, "{key}: {value}");
        }
        yaml.push_str("rules:\n");
        for rule in &self.rules {
            rule.write_yaml(&mut yaml);
        }
        yaml
    }
}

impl DraftRule {
    fn write_yaml(&self, yaml: &mut String) {
        match &self.preset {
            Some(preset) => _ = writeln!(yaml, "  - preset: {}", yaml_scalar(preset)),
            None => _ = writeln!(yaml, "  - from: {}", yaml_scalar(&self.from)),
        }
        let list = |items: &[String]| {
            let items: Vec<String> = items.iter().map(yaml_scalar).collect();
            format!("[{}]", items.join(", "))
        };
        let mut tags = Vec::new();
        if !self.include.is_empty() {
            tags.push(format!("include: {}", list(&self.include)));
        }
        if !self.exclude.is_empty() {
            tags.push(format!("exclude: {}", list(&self.exclude)));
        }
        tags.extend(self.semver.iter().map(|range| format!("semver: {}", yaml_scalar(range))));
        if !tags.is_empty() {
            _ = writeln!(yaml, "    tags: {{{}}}", tags.join(", "));
        }
        if !self.platforms.is_empty() {
            _ = writeln!(yaml, "    platforms: {}", list(&self.platforms));
        }
        match self.to.as_slice() {
            [] => {}
            [one] => _ = writeln!(yaml, "    to: {}", yaml_scalar(one)),
            several => _ = writeln!(yaml, "    to: {}", list(several)),
        }
        if let Some(naming) = &self.naming {
            _ = writeln!(yaml, "    naming: {}", yaml_scalar(naming));
        }
        if !self.referrers.is_empty() {
            _ = writeln!(yaml, "    referrers: {}", list(&self.referrers));
        }
        if let Some(backup) = &self.backup {
            _ = writeln!(yaml, "    backup: {}", yaml_scalar(backup));
        }
    }
}

/// Maps Docker Hub's host names to `docker.io`.
fn canonical_registry(registry: &str) -> String {
    match registry {
        "registry-1.docker.io" | "index.docker.io" | "registry.hub.docker.com" | "hub.docker.com" => "docker.io".into(),
        other => other.to_owned(),
    }
}

/// Parses a reference to a variable: `${NAME}`, `$NAME`, regsync's `{{env "NAME"}}`.
pub(super) fn parse_variable(written: &str) -> Option<String> {
    let written = written.trim();
    let inside = written
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'))
        .or_else(|| written.strip_prefix('$'))
        .or_else(|| {
            let inside = written.strip_prefix("{{")?.strip_suffix("}}")?.trim();
            let name = inside.strip_prefix("env")?.trim();
            name.strip_prefix(['"', '\'', '`'])?.strip_suffix(['"', '\'', '`'])
        })?;
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    is_name(inside).then(|| inside.to_owned())
}
