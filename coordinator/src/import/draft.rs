//! Draft of an imported configuration.

mod view;

use std::collections::BTreeMap;
use std::fmt::Display;

use imgsync_config::{YamlNumber, YamlText};
use serde::{Serialize, Serializer};
use serde_saphyr::{FlowMap, LitString};

/// End of a template that gives a fixed name; a template must use a variable of the source.
pub(super) const FIXED_NAME_END: &str = "' if basename }}";

/// A value of the draft.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum DraftValue {
    /// A text: a literal or a variable.
    Text(YamlText),
    /// A number.
    Number(YamlNumber),
    /// True or false.
    Flag(bool),
    /// A text of several lines, such as a certificate.
    Lines(LitString),
}

impl DraftValue {
    /// Creates a literal text.
    pub(super) fn text(value: impl Display) -> DraftValue {
        DraftValue::Text(YamlText::new(value))
    }

    /// Creates a literal text in PEM, with a line for each of its lines.
    pub(super) fn pem(text: &str) -> DraftValue {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.len() > 1 && !text.contains('$') {
            true => DraftValue::Lines(LitString(format!("{}\n", lines.join("\n")))),
            false => DraftValue::text(text),
        }
    }

    /// Converts what was written in place of a number; anything else stays a text.
    pub(super) fn number(written: &str) -> DraftValue {
        let fraction = || written.parse::<f64>().ok().filter(|number| number.is_finite()).map(YamlNumber::from);
        match written.parse().ok().map(YamlNumber::Whole).or_else(fraction) {
            Some(number) => DraftValue::Number(number),
            None => DraftValue::text(written),
        }
    }

    /// Creates a reference to an environment variable.
    pub(super) fn variable(name: &str) -> DraftValue {
        DraftValue::Text(YamlText::variable(name))
    }
}

/// Keys of a registry, in order of occurrence.
#[derive(Debug, Default)]
struct RegistryFields(Vec<(&'static str, DraftValue)>);

impl Serialize for RegistryFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// Top-level keys of the draft.
#[derive(Debug, Default, Serialize)]
pub(super) struct DraftSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) concurrency: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) notify: Option<FlowMap<DraftNotify>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<FlowMap<DraftReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) defaults: Option<FlowMap<DraftDefaults>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<YamlText>,
}

/// `defaults` of the draft.
#[derive(Debug, Default, Serialize)]
pub(super) struct DraftDefaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) referrers: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schedule: Option<DraftSchedule>,
}

/// Which referrers a rule copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum DraftReferrers {
    /// Those of `defaults`.
    #[default]
    Default,
    /// All or none.
    All(bool),
    /// Those of these artifact types.
    Types(Vec<String>),
}

/// `schedule` of a rule or of `defaults`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum DraftSchedule {
    /// A cron expression in UTC.
    Cron(YamlText),
    /// A cron expression in another time zone.
    Zoned { cron: YamlText, zone: YamlText },
    /// An interval.
    Every { every: YamlText },
}

/// `notify` of the draft.
#[derive(Debug, Serialize)]
pub(super) struct DraftNotify {
    pub(super) telegram: DraftTelegram,
}

/// `telegram` of the draft.
#[derive(Debug, Serialize)]
pub(super) struct DraftTelegram {
    pub(super) token: YamlText,
    pub(super) group: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api: Option<YamlText>,
}

/// `report` of the draft.
#[derive(Debug, Serialize)]
pub(super) struct DraftReport {
    pub(super) file: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) level: Option<u8>,
}

/// A rule of the draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DraftRule {
    pub(super) from: String,
    pub(super) exclude_repositories: Vec<String>,
    pub(super) preset: Option<String>,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) semver: Option<String>,
    pub(super) platforms: Vec<String>,
    pub(super) to: Vec<String>,
    pub(super) naming: Option<String>,
    pub(super) sparse: bool,
    pub(super) copy_foreign_layers: bool,
    pub(super) referrers: DraftReferrers,
    pub(super) backup: Option<String>,
    pub(super) schedule: Option<DraftSchedule>,
}

/// An imported configuration with notes for the user.
#[derive(Debug, Default)]
pub struct ConfigDraft {
    registries: BTreeMap<String, RegistryFields>,
    /// Settings of no registry and no rule.
    pub(super) settings: DraftSettings,
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

    /// Returns the number of omissions: parts of the file that select other images, tags, names or bytes.
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
        let RegistryFields(fields) = self.registries.entry(canonical_registry(registry)).or_default();
        if !fields.iter().any(|(known, _)| *known == key) {
            fields.push((key, value));
        }
    }

    /// Whether a registry has a key.
    pub(super) fn has_registry_key(&self, registry: &str, key: &str) -> bool {
        self.registries
            .get(&canonical_registry(registry))
            .is_some_and(|fields| fields.0.iter().any(|(known, _)| *known == key))
    }

    /// Sets a secret of a registry as a variable. `written` is the value in the file: a reference to a variable is
    /// kept.
    pub(super) fn set_secret(&mut self, registry: &str, key: &'static str, written: &str) {
        let name = parse_variable(written).unwrap_or_else(|| {
            let host: String = registry.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let name = format!("{host}_{key}").to_ascii_uppercase();
            let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("REGISTRY_{name}") } else { name };
            self.variables.insert(name.clone(), format!("the {} of {registry}", key.replace('_', " ")));
            name
        });
        self.set_registry_key(registry, key, DraftValue::variable(&name));
    }

    /// Sets a user name, which is not a secret: a literal or a variable.
    pub(super) fn set_username(&mut self, registry: &str, written: &str) {
        let value = match parse_variable(written) {
            Some(name) => DraftValue::variable(&name),
            None => DraftValue::text(written),
        };
        self.set_registry_key(registry, "username", value);
    }

    /// Adds a variable that must be set.
    pub(super) fn require_variable(&mut self, name: &str, what: &str) {
        self.variables.insert(name.to_owned(), what.to_owned());
    }

    pub(super) fn add_rule(&mut self, rule: DraftRule) {
        if rule.naming.as_ref().is_some_and(|naming| naming.contains(FIXED_NAME_END)) {
            self.add_note("`naming: \"{{ 'NAME' if basename }}\"` is NAME for every image of the rule");
        }
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }

    /// Fails if there is no rule, with the notes, which say why.
    pub(super) fn require_rules(&self) -> Result<(), String> {
        if !self.rules.is_empty() {
            return Ok(());
        }
        let notes: String = self.notes.iter().map(|note| format!("\nnote: {note}")).collect();
        Err(format!("the file names no image that can be copied{notes}"))
    }

    /// Moves a schedule that all rules share to `defaults`.
    pub(super) fn share_schedule(&mut self) {
        let Some(shared) = self.rules.first().and_then(|rule| rule.schedule.clone()) else { return };
        if self.rules.iter().all(|rule| rule.schedule.as_ref() == Some(&shared)) {
            self.rules.iter_mut().for_each(|rule| rule.schedule = None);
            self.settings.defaults.get_or_insert_with(|| FlowMap(DraftDefaults::default())).0.schedule = Some(shared);
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
