//! Configuration: from the text of a file to its meaning.
//!
//! [`Config::read`] parses the text of a file into a [`Config`] in which nothing is left to parse, or into
//! [`ConfigErrors`] that show all problems at once, each with file, line and carets. It is pure: the caller passes in
//! files and environment.
//!
//! Stages: `yaml` (a tree with source positions, `variables` expanded) → `reader` (values) → `registry` and `rule`
//! (meaning). `schema_table` is the table of all keys, from which unknown keys and the JSON Schema follow. `to_yaml` converts the
//! meaning back to YAML, through views that serde serializes.

mod absolute_path;
mod broker;
#[cfg(test)]
mod docs_tables;
mod errors;
mod hooks;
mod identity;
mod if_running;
mod limits;
mod masked_line;
mod notify;
mod preset;
mod reader;
mod registry;
mod report;
mod retention;
mod rule;
mod schedule;
mod schema;
mod schema_table;
mod serve;
mod to_yaml;
mod url;
mod variables;
mod yaml;

pub(crate) use errors::MAX_SHOWN_PROBLEMS;
pub(crate) use rule::{MAX_NAME_CHARS as MAX_RULE_NAME, MAX_POLICY_KEYS};
pub(crate) use yaml::{MAX_ADDED_BYTES, MAX_FILE_BYTES, MAX_VALUES};

use std::collections::BTreeMap;
use std::time::Duration;

use imgsync_model::naming::TargetBase;
use imgsync_oci::RegistryName;
use imgsync_oci::secret::Secret;

pub use absolute_path::absolute_path;
pub use broker::{BROKER_SCHEMES, BrokerUrlsError, check_broker_urls, split_broker_urls};
pub use errors::{ConfigErrors, ConfigProblem};
pub use hooks::{HookAuth, HookConfig, HookKind, SECRET_PARAMETER, unprotected_hook};
pub use identity::{BatchPurpose, batch_identity, verification_identity};
pub use if_running::IfRunning;
pub use imgsync_model::batch::{ForeignLayers, ImagePolicy, PolicyKey, Referrers};
pub use imgsync_oci::secret_url::{SecretUrl, UrlError};
pub use imgsync_oci::store_url::StoreUrl;
pub use limits::limits;
pub use notify::{
    ChatConfig, ChatKind, EmailConfig, NotifyCondition, NotifyConfig, TelegramConfig, WebhookConfig, WebhookUrl,
};
pub use preset::{Preset, PresetInfo};
pub use registry::{ClientIdentity, CredentialConfig, PemSource, PullReserve, RegistryConfig};
pub use report::ReportConfig;
pub use retention::{PruneConfig, PruneLimit};
pub use rule::{DigestsSource, Rule, RuleSource, RuleTarget};
pub use serve::ServeConfig;
pub use to_yaml::{YamlList, YamlNumber, YamlText, is_empty_list, to_yaml, yaml_list};

use reader::{SectionFields, ValueReader};
use schema_table::{CLUSTER, CONFIG};
use yaml::{YamlNode, YamlValue};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// URL schemes of a store.
pub const STORE_SCHEMES: [&str; 4] = ["redis", "rediss", "redis+sentinel", "rediss+sentinel"];

/// A configuration file and its context.
pub struct ConfigFile<'a> {
    /// File name, for messages.
    pub name: &'a str,
    /// Content of the file.
    pub text: &'a str,
    /// Looks up variables.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The known presets; `None` skips their check.
    pub presets: Option<&'a [PresetInfo<'a>]>,
}

/// A parsed configuration, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Cluster settings; `None` runs everything in one process.
    pub cluster: Option<ClusterConfig>,
    /// Registry settings by name; aliases such as `index.docker.io` are `docker.io` here.
    pub registries: BTreeMap<RegistryName, RegistryConfig>,
    /// Rules in the order of the file; may be empty, for commands that need only `read_registries`.
    pub rules: Vec<Rule>,
    /// `defaults.default_targets`, for commands without a rule.
    pub default_targets: Vec<RuleTarget>,
    /// How long a cached target tag is trusted; 7 days.
    pub verify_every: Duration,
    /// How often an unchanged image is checked for new referrers; 7 days.
    pub referrers_every: Duration,
    /// Retention of finished batches; 90 days.
    pub batch_retention: Duration,
    /// Number of images copied concurrently; 20.
    pub concurrency: usize,
    /// What a run does while a batch of the same rules is running.
    pub if_running: IfRunning,
    /// Bandwidth limit of a process in bytes per second, for each direction.
    pub bandwidth: Option<u64>,
    /// Monthly transfer quota of a worker's machine in bytes, in and out together.
    pub monthly_quota: Option<u64>,
    /// Minimum timeout of an image; 10 minutes.
    pub timeout: Duration,
    /// Report of a run.
    pub report: Option<ReportConfig>,
    /// Notification targets.
    pub notify: NotifyConfig,
    /// HTTP settings of `imgsync serve`.
    pub serve: ServeConfig,
    /// Hooks by name.
    pub hooks: BTreeMap<String, HookConfig>,
    defaults: rule::RuleDefaults,
    inline_secrets: bool,
}

/// `cluster:`. Flags or the environment may provide missing values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterConfig {
    /// RabbitMQ: a server, or nodes of a cluster; amqp or amqps. Empty if flags or the environment name it.
    pub broker: Vec<SecretUrl>,
    /// Redis or Valkey: a server, or the Sentinels of a master.
    pub store: Option<StoreUrl>,
    /// User of the Sentinels. That of the servers is in the URL.
    pub sentinel_username: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// Key that signs messages.
    pub key: Option<Secret>,
    /// Certificates to trust besides the system's, for both.
    pub ca: Vec<PemSource>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: None,
            registries: BTreeMap::new(),
            rules: Vec::new(),
            default_targets: Vec::new(),
            verify_every: 7 * DAY,
            referrers_every: 7 * DAY,
            batch_retention: 90 * DAY,
            concurrency: 20,
            if_running: IfRunning::default(),
            bandwidth: None,
            monthly_quota: None,
            timeout: Duration::from_secs(10 * 60),
            report: None,
            notify: NotifyConfig::default(),
            serve: ServeConfig::default(),
            hooks: BTreeMap::new(),
            defaults: rule::RuleDefaults::default(),
            inline_secrets: false,
        }
    }
}

impl Config {
    /// Parses and checks a configuration.
    pub fn read(file: &ConfigFile<'_>) -> Result<Self, ConfigErrors> {
        // Editors on Windows begin files with a byte-order mark.
        let text = file.text.strip_prefix('\u{feff}').unwrap_or(file.text);
        let parsed = yaml::parse(text, file.environment);
        let reader = ValueReader::default();
        let config = parsed.root.as_ref().map(|root| read_config(&reader, root, text, file.presets));
        let mut secrets = reader.secret_spans.take();
        secrets.extend(parsed.secrets);
        if parsed.root.is_none() {
            secrets.extend(errors::guess_secrets(text));
        }
        let mut found = parsed.problems;
        found.add(reader.problems.take());
        match config {
            Some(config) if found.is_empty() => Ok(Self { inline_secrets: reader.has_inline_secrets.get(), ..config }),
            _ => Err(ConfigErrors::new(file.name, text, found, &secrets)),
        }
    }

    /// Creates a rule with this source and the values of `defaults`, for commands with a source of their own. `default_targets` is
    /// empty if there is no default target.
    pub fn rule_from_defaults(&self, source: RuleSource) -> Rule {
        self.defaults.rule(source, docker_hub_target(&self.registries), (self.verify_every, self.referrers_every))
    }

    /// Returns the policy in `defaults`, for commands without a rule.
    pub fn default_policy(&self) -> Option<&ImagePolicy> {
        self.defaults.policy.as_ref().filter(|policy| !policy.is_empty())
    }

    /// Returns the keys of all policies, for the caller to read their files: a list for each policy.
    pub fn policy_keys_mut(&mut self) -> impl Iterator<Item = &mut Vec<PolicyKey>> {
        let of_rules = self.rules.iter_mut().map(|rule| &mut rule.policy);
        let policies = of_rules.chain([&mut self.defaults.policy]).flatten();
        policies.filter_map(|policy| policy.signed.as_mut()).map(|signed| &mut signed.keys)
    }

    /// Returns the Docker Hub user in `read_registries`, with or without a password.
    pub fn hub_user(&self) -> Option<&str> {
        let (_, settings) = self.registries.iter().find(|(registry, _)| registry.is_docker_hub())?;
        settings.username.as_deref()
    }

    /// Returns whether the file itself contains a password or a token, rather than a variable: then others should not
    /// be able to read it.
    pub fn has_secrets_inline(&self) -> bool {
        self.inline_secrets
    }
}

/// Parses any YAML or JSON into a tree, for files in other formats: scalars, also those with variables, stay as
/// written. An error names the line, and shows nothing of the file.
pub fn parse_yaml_tree(text: &str) -> Result<serde_json::Value, String> {
    let parsed = yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(text), &|_| Some(String::new()));
    if let Some(found) = parsed.problems.first() {
        let line = errors::line_and_column(text, found.at.start).0;
        return Err(format!("line {line}: {}", found.message));
    }
    Ok(parsed.root.map(|root| json_tree(&root)).unwrap_or_default())
}

/// Returns the lines where the items of a list at the top of a YAML document begin; empty if there is no such list.
pub fn list_item_lines(text: &str, key: &str) -> Vec<usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::parse(text, &|_| Some(String::new())).root;
    let Some(YamlValue::Map(entries)) = root.map(|root| root.value) else { return Vec::new() };
    let list = entries.into_iter().find(|entry| entry.key == key).map(|entry| entry.value.value);
    let Some(YamlValue::List(items)) = list else { return Vec::new() };
    items.iter().map(|item| errors::line_and_column(text, item.at.start).0).collect()
}

fn json_tree(node: &YamlNode) -> serde_json::Value {
    match &node.value {
        YamlValue::Null | YamlValue::Invalid => serde_json::Value::Null,
        YamlValue::Scalar(scalar) => scalar.raw.clone().into(),
        YamlValue::List(items) => items.iter().map(json_tree).collect(),
        YamlValue::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), json_tree(&entry.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

fn read_config(reader: &ValueReader, root: &YamlNode, text: &str, presets: Option<&[PresetInfo<'_>]>) -> Config {
    let mut config = Config::default();
    if matches!(root.value, YamlValue::Null) {
        reader.report_with_hint(
            &(0..0),
            "the configuration is empty",
            "write `rules`, or at least `registries`; `imgsync config import` makes one of another program's file",
        );
        return config;
    }
    let Some(fields) = reader.fields(root, &CONFIG) else { return config };
    let duration = |name, default| fields.get(name).and_then(|node| reader.duration(node)).unwrap_or(default);
    config.verify_every = duration("verify_every", config.verify_every);
    config.referrers_every = duration("referrers_every", config.referrers_every);
    config.batch_retention = duration("keep", config.batch_retention);
    config.timeout = duration("timeout", config.timeout);
    if let Some(concurrency) = fields.get("concurrency").and_then(|node| reader.integer(node, 1..=10_000)) {
        config.concurrency = concurrency;
    }
    config.if_running = fields.get("if_running").and_then(|node| reader.parse(node)).unwrap_or_default();
    config.bandwidth = fields.get("bandwidth").and_then(|node| reader.size(node));
    config.monthly_quota = fields.get("monthly_quota").and_then(|node| reader.size(node));
    config.report = fields.get("report").and_then(|node| report::read(reader, node));
    config.notify = fields.get("notify").map(|node| notify::read(reader, node)).unwrap_or_default();
    config.serve = fields.get("serve").map(|node| serve::read(reader, node)).unwrap_or_default();
    config.cluster = fields
        .get("cluster")
        .filter(|node| !matches!(node.value, YamlValue::Null))
        .map(|node| read_cluster(reader, node));
    config.registries = read_registries(reader, &fields);
    let defaults = fields.get("defaults").map(|node| rule::read_defaults(reader, node)).unwrap_or_default();
    config.default_targets = defaults.to.clone().unwrap_or_default();
    config.defaults = defaults.clone();
    let surroundings = rule::RuleContext {
        reader,
        presets,
        defaults,
        default_target: docker_hub_target(&config.registries),
        verify_every: config.verify_every,
        referrers_every: config.referrers_every,
        in_cluster: config.cluster.is_some(),
    };
    let nodes = fields.get("rules").map(|node| reader.list(node)).unwrap_or_default();
    let rules: Vec<(Rule, &YamlNode)> = nodes
        .iter()
        .filter_map(|node| {
            Some((rule::read(&surroundings, node, errors::line_and_column(text, node.at.start).0)?, node))
        })
        .collect();
    rule::check_collisions(reader, &rules);
    rule::check_archive_formats(reader, &rules);
    rule::titles::check_unique(reader, &rules);
    config.rules = rules.into_iter().map(|(rule, _)| rule).collect();
    rule::titles::set_titles(&mut config.rules);
    let listen = config.serve.listen;
    config.hooks = fields.get("hooks").map(|node| hooks::read(reader, node, &config.rules, listen)).unwrap_or_default();
    config
}

/// Returns `docker.io/<user>`, if that user is known.
fn docker_hub_target(registries: &BTreeMap<RegistryName, RegistryConfig>) -> Option<TargetBase> {
    let (registry, settings) = registries.iter().find(|(registry, _)| registry.is_docker_hub())?;
    let prefix = settings.username.as_deref()?.parse().ok()?;
    Some(TargetBase { registry: registry.clone(), prefix: Some(prefix) })
}

fn read_cluster(reader: &ValueReader, node: &YamlNode) -> ClusterConfig {
    let Some(fields) = reader.fields(node, &CLUSTER) else { return ClusterConfig::default() };
    let store: Option<StoreUrl> = fields.get("store").and_then(|node| reader.address(node, &STORE_SCHEMES, false));
    let sentinel_username = fields.get("sentinel_username").and_then(|node| reader.username(node));
    let sentinel_password = fields.get("sentinel_password").and_then(|node| reader.secret(node));
    for name in ["sentinel_username", "sentinel_password"] {
        if let (Some(node), Some(store)) = (fields.get(name), &store)
            && store.sentinels().is_none()
        {
            let why = format!("`{name}` is for Sentinels, and `store` is the URL of a server");
            reader.report_with_hint(&node.at, why, "write the store as redis+sentinel://…, or remove this key");
        }
    }
    ClusterConfig {
        broker: fields.get("broker").map(|node| broker::read(reader, node)).unwrap_or_default(),
        store,
        sentinel_username,
        sentinel_password,
        key: fields.get("key").and_then(|node| reader.secret(node)),
        ca: fields.get("ca").map(|node| registry::read_certificates(reader, node)).unwrap_or_default(),
    }
}

fn read_registries(reader: &ValueReader, fields: &SectionFields<'_>) -> BTreeMap<RegistryName, RegistryConfig> {
    let mut registries = BTreeMap::new();
    let Some(node) = fields.get("registries") else { return registries };
    let entries = match &node.value {
        YamlValue::Map(entries) => entries.as_slice(),
        YamlValue::Null | YamlValue::Invalid => &[],
        _ => {
            reader.report(&node.at, format!("`registries` is a mapping of hosts, and this is {}", node.type_name()));
            &[]
        }
    };
    for entry in entries {
        let name = entry.key.parse::<RegistryName>();
        let settings = registry::read(reader, &entry.value, name.as_ref().ok());
        if let Some((host, path)) = entry.key.split_once('/').filter(|_| !entry.key.contains("://")) {
            reader.report_with_hint(
                &entry.key_at,
                format!("a registry is a host, without the path `{path}`"),
                format!("write `{host}`"),
            );
            continue;
        }
        match name {
            Err(error) => reader.report(&entry.key_at, error.to_string()),
            Ok(name) if registries.contains_key(&name) => {
                reader.report(&entry.key_at, format!("`{}` is {name}, which is written above already", entry.key));
            }
            Ok(name) => {
                registries.insert(name, settings);
            }
        }
    }
    registries
}

#[cfg(test)]
mod tests;
