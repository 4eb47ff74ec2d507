//! Writes a configuration as YAML: its meaning, with defaults filled in and secrets masked.
//!
//! Views are structs with the keys of a file in their order. They contain no secrets, so no serializer can show one.

mod hooks;
mod notify;
mod registry;
mod rule;
mod scalar;

use std::collections::BTreeMap;
use std::time::Duration;

use imgsync_model::canonical::Canonical;
use jiff::{SignedDuration, Span, SpanRound, Unit};
use serde::Serialize;

use self::hooks::HookView;
use self::notify::NotifyView;
use self::registry::{AddressView, RegistryView};
use self::rule::RuleView;
pub use self::scalar::{YamlList, YamlNumber, YamlText, is_empty_list, yaml_list};
use super::{ClusterConfig, Config, NotifyConfig, ReportConfig, SecretUrl, ServeConfig};

/// Domain and version of [`Config::worker_hash`].
const WORKER_HASH_DOMAIN: &str = "imgsync worker configuration 1";
/// Hex digits of [`Config::worker_hash`].
const WORKER_HASH_LENGTH: usize = 12;

/// Replacement for a secret, and for values that are easily mistaken for one.
const MASK: &str = "***";

impl Config {
    /// Returns the configuration as YAML that can be read again; secrets are `***`.
    pub fn to_yaml_redacted(&self) -> String {
        to_yaml(&ConfigView::from(self))
    }

    /// Returns a hash of what workers use of the configuration: the settings of registries without their secrets, and
    /// the targets. A coordinator and a worker with different hashes do not use the same file.
    pub fn worker_hash(&self) -> String {
        let registries: BTreeMap<&str, RegistryView> =
            self.registries.iter().map(|(name, settings)| (name.as_str(), settings.into())).collect();
        let targets = self.default_targets.iter().chain(self.rules.iter().flat_map(|rule| &rule.to));
        let hash = Canonical::default()
            .field(1, to_yaml(&registries))
            .set(2, targets.map(ToString::to_string))
            .digest(WORKER_HASH_DOMAIN);
        hash.hex()[..WORKER_HASH_LENGTH].to_owned()
    }
}

/// Writes a value as YAML in block style: plain scalars where possible, quotes where needed.
///
/// # Panics
/// If the value fails to serialize itself.
pub fn to_yaml(value: &impl Serialize) -> String {
    let options = serde_saphyr::ser_options! {
        compact_list_indent: false,
        prefer_block_scalars: false,
        // `off` and dates are text.
        yaml_12: true,
        no_lang_directive: true,
    };
    serde_saphyr::to_string_with_options(value, options).expect("a view serializes")
}

/// View of a configuration.
#[derive(Serialize)]
struct ConfigView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterView>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    registries: BTreeMap<&'a str, RegistryView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    defaults: Option<DefaultsView>,
    rules: Vec<RuleView>,
    verify_every: YamlText,
    referrers_every: YamlText,
    keep: YamlText,
    concurrency: usize,
    if_running: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    monthly_quota: Option<u64>,
    timeout: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<ReportView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify: Option<NotifyView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serve: Option<ServeView>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hooks: BTreeMap<&'a str, HookView>,
}

impl<'a> From<&'a Config> for ConfigView<'a> {
    fn from(config: &'a Config) -> Self {
        let registries = config.registries.iter().map(|(name, settings)| (name.as_str(), settings.into())).collect();
        ConfigView {
            cluster: config.cluster.as_ref().map(ClusterView::from),
            registries,
            defaults: (!config.default_targets.is_empty())
                .then(|| DefaultsView { to: yaml_list(&config.default_targets) }),
            rules: config.rules.iter().map(RuleView::from).collect(),
            verify_every: duration(config.verify_every),
            referrers_every: duration(config.referrers_every),
            keep: duration(config.batch_retention),
            concurrency: config.concurrency,
            if_running: YamlText::new(config.if_running),
            bandwidth: config.bandwidth,
            monthly_quota: config.monthly_quota,
            timeout: duration(config.timeout),
            report: config.report.as_ref().map(ReportView::from),
            notify: (config.notify != NotifyConfig::default()).then(|| NotifyView::from(&config.notify)),
            serve: (config.serve != ServeConfig::default()).then(|| ServeView::from(&config.serve)),
            hooks: config.hooks.iter().map(|(name, hook)| (name.as_str(), hook.into())).collect(),
        }
    }
}

/// View of `cluster`.
#[derive(Serialize)]
struct ClusterView {
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<BrokerView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<AddressView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_username: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_password: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    ca: YamlList,
}

impl From<&ClusterConfig> for ClusterView {
    fn from(cluster: &ClusterConfig) -> Self {
        ClusterView {
            broker: BrokerView::new(&cluster.broker),
            store: cluster.store.as_ref().map(AddressView::from),
            sentinel_username: cluster.sentinel_username.as_ref().map(|_| YamlText::new(MASK)),
            sentinel_password: cluster.sentinel_password.as_ref().map(YamlText::new),
            key: cluster.key.as_ref().map(YamlText::new),
            ca: yaml_list(&cluster.ca),
        }
    }
}

/// View of `cluster.broker`.
#[derive(Serialize)]
#[serde(untagged)]
enum BrokerView {
    One(AddressView),
    Many(Vec<AddressView>),
}

impl BrokerView {
    fn new(urls: &[SecretUrl]) -> Option<BrokerView> {
        match urls {
            [] => None,
            [url] => Some(BrokerView::One(url.into())),
            urls => Some(BrokerView::Many(urls.iter().map(AddressView::from).collect())),
        }
    }
}

/// View of `defaults`.
#[derive(Serialize)]
struct DefaultsView {
    to: YamlList,
}

/// View of `report`.
#[derive(Serialize)]
struct ReportView {
    file: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<YamlText>,
}

impl From<&ReportConfig> for ReportView {
    fn from(report: &ReportConfig) -> Self {
        ReportView {
            file: YamlText::new(report.file.display()),
            level: report.level,
            template: report.template.as_ref().map(|path| YamlText::new(path.display())),
        }
    }
}

/// View of `serve`.
#[derive(Serialize)]
struct ServeView {
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    hosts: YamlList,
}

impl From<&ServeConfig> for ServeView {
    fn from(serve: &ServeConfig) -> Self {
        ServeView {
            listen: serve.listen.map(YamlText::new),
            token: serve.token.as_ref().map(YamlText::new),
            hosts: yaml_list(&serve.hosts),
        }
    }
}

/// Formats a duration as `1d 12h`, the way files write it.
fn duration(duration: Duration) -> YamlText {
    let balanced = SignedDuration::try_from(duration).ok().and_then(|duration| {
        let round = SpanRound::new().largest(Unit::Day).days_are_24_hours();
        Span::try_from(duration).ok()?.round(round).ok()
    });
    match balanced {
        Some(span) => YamlText::new(format_args!("{span:#}")),
        None => YamlText::new(format_args!("{}s", duration.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use super::*;

    #[test]
    fn sections_and_rules_are_written_in_the_order_of_the_reference() {
        let text = r#"
cluster: {broker: 'amqp://me:p@h', ca: ca.pem}
registries: {'localhost:5000': {identity_token: t, requests_per_second: 0.5, pull_reserve: 5%, insecure: true}, a.io: }
rules:
  - {preset: kubeadm ~1.31, to: r.io, tags: {newest: {count: 3, by: date}}, priority: high, schedule: {every: 1h, jitter: 3m}}
  - from: {repositories: 'gcr.io/a/**', exclude: gcr.io/a/b}
    name: x
    to: [r.io, x.io]
    naming: keep
    prune: {keep_days: 3}
    referrers: [application/spdx+json]
notify:
  feishu: {url: 'https://f/x', secret: s}
  slack: {url: 'https://s/x'}
  webhook: {url: 'https://h/x', headers: {X-A: b}}
  email: {server: 'smtps://[::1]', username: u, password: p, from: a@b.example, to: c@d.example}
report: '${ODD}.txt'
serve: {listen: '[::1]:80', hosts: a.example}
"#;
        let read = |text: &str| {
            let environment = |name: &str| (name == "ODD").then(|| "a: $${b}".to_owned());
            Config::read(&ConfigFile { name: "c.yaml", text, environment: &environment, presets: None }).unwrap()
        };
        let config = read(text);
        let written = config.to_yaml_redacted();
        insta::assert_snapshot!(written, @r#"
        cluster:
          broker:
            url: amqp://h
            username: "***"
            password: "***"
          ca: [ca.pem]
        registries:
          a.io: {}
          "localhost:5000":
            identity_token: "***"
            insecure: true
            requests_per_second: 0.5
            pull_reserve: 5%
        rules:
          - preset: {kubeadm: {versions: ~1.31}}
            tags:
              newest: {count: 3, by: date}
            to: [r.io]
            referrers: true
            schedule:
              every: 1h
              jitter: 3m
            priority: high
            verify_every: 7d
            referrers_every: 7d
          - name: x
            from:
              repositories: gcr.io/a/**
              exclude: [gcr.io/a/b]
            to: [r.io, x.io]
            naming: keep
            referrers: [application/spdx+json]
            prune: {keep_days: 3, limit: 10%}
            verify_every: 7d
            referrers_every: 7d
        verify_every: 7d
        referrers_every: 7d
        keep: 90d
        concurrency: 20
        if_running: wait
        timeout: 10m
        report:
          file: "a: $$$${b}.txt"
        notify:
          webhook:
            - url: https://h/***
              headers:
                x-a: "***"
              on: always
          slack:
            - url: https://s/***
              on: always
          feishu:
            - url: https://f/***
              secret: "***"
              on: always
          email:
            - server: smtps://[::1]:465
              username: "***"
              password: "***"
              from: a@b.example
              to: [c@d.example]
              on: always
        serve:
          listen: "[::1]:80"
          hosts: [a.example]
        "#);
        let mut again = read(&written);
        for (rule, again) in config.rules.iter().zip(&mut again.rules) {
            again.line = rule.line;
        }
        assert_eq!((&config.rules, &config.report, &config.serve), (&again.rules, &again.report, &again.serve));
    }

    #[test]
    fn the_nodes_of_a_broker_are_a_list_without_their_passwords() {
        let text = "cluster: {broker: ['amqp://me:p@a', {url: 'amqp://b:5673', username: me, password: p}], \
                    store: 'redis://s'}\n";
        let read = |text: &str| {
            Config::read(&ConfigFile { name: "c.yaml", text, environment: &|_| None, presets: None }).unwrap()
        };
        let config = read(text);
        let shown = config.to_yaml_redacted();
        let begin = shown.split("registries").next().unwrap().split("verify_every").next().unwrap();
        insta::assert_snapshot!(begin, @r#"
        cluster:
          broker:
            - url: amqp://a
              username: "***"
              password: "***"
            - url: amqp://b:5673
              username: "***"
              password: "***"
          store: redis://s
        rules: []
        "#);
        assert_eq!(read(&shown).to_yaml_redacted(), shown);
    }

    #[test]
    fn the_worker_hash_is_that_of_registries_and_targets_without_secrets() {
        let hash = |registries: &str, rule: &str| {
            let text = format!("registries: {{gcr.io: {registries}}}\nrules:\n- {{from: gcr.io/a/b, {rule}}}\n");
            let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
            Config::read(&file).unwrap().worker_hash()
        };
        let known = hash("{username: u, password: one}", "to: r.example/m");
        assert_eq!(known, hash("{username: u, password: two}", "to: r.example/m, schedule: {every: 1h}, name: n"));
        assert_ne!(known, hash("{username: u, password: one, concurrency: 3}", "to: r.example/m"));
        assert_ne!(known, hash("{username: u, password: one}", "to: r.example/other"));
    }
}
