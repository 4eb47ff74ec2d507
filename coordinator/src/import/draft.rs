//! A configuration in the making.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use imgsync_common::config::yaml_scalar;

/// A value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    /// As it is, quoted where it must be.
    Plain(String),
    /// A variable of the environment, by its name.
    Variable(String),
}

impl Text {
    fn written(&self) -> String {
        match self {
            Text::Plain(text) => yaml_scalar(text),
            Text::Variable(name) => format!("\"${{{name}}}\""),
        }
    }
}

/// A rule.
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

/// A configuration in the making, and what is to be said about it.
#[derive(Debug, Default)]
pub struct Draft {
    registries: BTreeMap<String, Vec<(&'static str, Text)>>,
    /// Keys of the top, with their values as YAML.
    settings: BTreeMap<&'static str, String>,
    rules: Vec<DraftRule>,
    notes: Vec<String>,
    variables: BTreeMap<String, String>,
    left_out: usize,
}

impl Draft {
    /// What has no counterpart, or means something else here; each once, in the order in which it was found.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The variables that the configuration wants to be set, and what each is; those of the file itself are not among
    /// them.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// How much of what was to be copied is not in the configuration, or how much that was not to be copied is.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    pub(super) fn leave_out(&mut self, what: impl std::fmt::Display) {
        self.left_out += 1;
        self.note(format!("left out: {what}"));
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        let note = imgsync_common::printable::printable(&note.into()).into_owned();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// A key of a registry; the first value stays.
    pub(super) fn registry(&mut self, registry: &str, key: &'static str, value: Text) {
        let fields = self.registries.entry(hub(registry)).or_default();
        if !fields.iter().any(|(known, _)| *known == key) {
            fields.push((key, value));
        }
    }

    /// Whether a registry has a key.
    pub(super) fn has(&self, registry: &str, key: &str) -> bool {
        self.registries.get(&hub(registry)).is_some_and(|fields| fields.iter().any(|(known, _)| *known == key))
    }

    /// A secret of a registry, as a variable. `written` is what stood in the file: a variable is taken as it is.
    pub(super) fn secret(&mut self, registry: &str, key: &'static str, written: &str) {
        let name = variable_of(written).unwrap_or_else(|| {
            let host: String = registry.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let name = format!("{host}_{key}").to_ascii_uppercase();
            let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("REGISTRY_{name}") } else { name };
            self.variables.insert(name.clone(), format!("the {} of {registry}", key.replace('_', " ")));
            name
        });
        self.registry(registry, key, Text::Variable(name));
    }

    /// A name that is no secret, or the variable that stands for it.
    pub(super) fn user(&mut self, registry: &str, written: &str) {
        let value = variable_of(written).map_or_else(|| Text::Plain(written.to_owned()), Text::Variable);
        self.registry(registry, "username", value);
    }

    /// A variable that the configuration wants.
    pub(super) fn variable(&mut self, name: &str, what: &str) {
        self.variables.insert(name.to_owned(), what.to_owned());
    }

    /// A key of the top, with its value as YAML.
    pub(super) fn setting(&mut self, key: &'static str, yaml: String) {
        self.settings.entry(key).or_insert(yaml);
    }

    pub(super) fn rule(&mut self, rule: DraftRule) {
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The configuration.
    pub fn yaml(&self) -> String {
        let mut yaml = String::new();
        if !self.registries.is_empty() {
            yaml.push_str("registries:\n");
            for (name, fields) in &self.registries {
                let fields: Vec<String> =
                    fields.iter().map(|(key, value)| format!("{key}: {}", value.written())).collect();
                _ = writeln!(yaml, "  {}: {{{}}}", yaml_scalar(name), fields.join(", "));
            }
        }
        for (key, value) in &self.settings {
            _ = writeln!(yaml, "{key}: {value}");
        }
        yaml.push_str("rules:\n");
        for rule in &self.rules {
            rule.write(&mut yaml);
        }
        yaml
    }
}

impl DraftRule {
    fn write(&self, yaml: &mut String) {
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

/// The names that Docker Hub goes by.
fn hub(registry: &str) -> String {
    match registry {
        "registry-1.docker.io" | "index.docker.io" | "registry.hub.docker.com" | "hub.docker.com" => "docker.io".into(),
        other => other.to_owned(),
    }
}

/// The variable that a value is: `${NAME}`, `$NAME`, regsync's `{{env "NAME"}}`.
pub(super) fn variable_of(written: &str) -> Option<String> {
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
