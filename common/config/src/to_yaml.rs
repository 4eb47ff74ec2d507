//! Converts a configuration back to YAML: its meaning, with defaults filled in and secrets hidden.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRound, Unit};

use super::{
    ChatKind, ClientIdentity, Config, CredentialConfig, ForeignLayers, NotifyConfig, Preset, Referrers, RegistryConfig,
    Rule, RuleSource, RuleTarget, SecretUrl, ServeConfig,
};
use imgsync_model::schedule::Recurrence;
use imgsync_model::select::{Newest, NewestBy, TagSelection};
use imgsync_oci::vendor::ListingMethod;

/// Replacement for a secret, and for values that are easily mistaken for one.
const MASK: &str = "***";

impl Config {
    /// Returns the configuration as YAML that can be read again; secrets are `***`.
    pub fn to_yaml_redacted(&self) -> String {
        let mut yaml = YamlWriter::default();
        if let Some(cluster) = &self.cluster {
            yaml.open("cluster");
            write_address(&mut yaml, "broker", cluster.broker.as_ref());
            write_address(&mut yaml, "store", cluster.store.as_ref());
            yaml.option("key", cluster.key.as_ref());
            yaml.list("ca", cluster.ca.iter().map(ToString::to_string));
            yaml.close();
        }
        if !self.registries.is_empty() {
            yaml.open("registries");
            for (name, settings) in &self.registries {
                yaml.open(&yaml_scalar(name));
                write_registry(&mut yaml, settings);
                yaml.close();
            }
            yaml.close();
        }
        if !self.default_targets.is_empty() {
            yaml.open("defaults");
            yaml.list("to", self.default_targets.iter().map(format_target));
            yaml.close();
        }
        if self.rules.is_empty() {
            yaml.raw("rules", "[]");
        } else {
            yaml.open("rules");
            for shown in &self.rules {
                yaml.item();
                write_rule(&mut yaml, shown);
                yaml.close();
            }
            yaml.close();
        }
        yaml.field("verify_every", format_duration(self.verify_every));
        yaml.field("referrers_every", format_duration(self.referrers_every));
        yaml.field("keep", format_duration(self.batch_retention));
        yaml.field("concurrency", self.concurrency);
        yaml.field("if_running", self.if_running);
        yaml.option("bandwidth", self.bandwidth);
        yaml.option("monthly_quota", self.monthly_quota);
        yaml.field("timeout", format_duration(self.timeout));
        if let Some(report) = &self.report {
            yaml.open("report");
            yaml.field("file", report.file.display());
            yaml.option("level", report.level);
            yaml.option("template", report.template.as_ref().map(|path| path.display()));
            yaml.close();
        }
        if self.notify != NotifyConfig::default() {
            yaml.open("notify");
            write_notify(&mut yaml, &self.notify);
            yaml.close();
        }
        if self.serve != ServeConfig::default() {
            yaml.open("serve");
            yaml.option("listen", self.serve.listen);
            yaml.option("token", self.serve.token.as_ref());
            yaml.list("hosts", self.serve.hosts.iter());
            yaml.close();
        }
        yaml.text
    }
}

fn write_registry(yaml: &mut YamlWriter, settings: &RegistryConfig) {
    match &settings.credential {
        Some(own) => write_credential(yaml, own),
        None => yaml.option("username", settings.username.as_ref().map(|_| MASK)),
    }
    if !settings.pull_credentials.is_empty() {
        yaml.open("credentials");
        for other in &settings.pull_credentials {
            yaml.item();
            write_credential(yaml, other);
            yaml.close();
        }
        yaml.close();
    }
    yaml.option("endpoint", settings.endpoint.as_ref());
    yaml.list("mirrors", settings.mirrors.iter().map(ToString::to_string));
    yaml.option("listing", Some(settings.listing).filter(|listing| *listing != ListingMethod::Auto));
    yaml.option("api", settings.api.as_ref());
    write_address(yaml, "proxy", settings.proxy.as_ref());
    yaml.option("tls", settings.plain_http.map(|plain| if plain { "off" } else { "on" }));
    yaml.list("ca", settings.ca.iter().map(ToString::to_string));
    if let Some(ClientIdentity { certificate, key }) = &settings.client_identity {
        yaml.field("client_cert", certificate);
        yaml.field("client_key", key);
    }
    for (name, on) in [
        ("insecure", settings.insecure),
        ("http1", settings.http1),
        ("allow_private", settings.allow_private),
        ("create", settings.create),
    ] {
        yaml.option(name, on.then_some(true));
    }
    yaml.list("allow_metadata", settings.allow_metadata.iter().map(ToString::to_string));
    yaml.option("requests_per_second", settings.requests_per_second);
    yaml.option("concurrency", settings.concurrency);
    yaml.option("pull_reserve", settings.pull_reserve);
    yaml.option("bandwidth", settings.bandwidth);
    yaml.option("egress", settings.egress.as_ref());
    yaml.option("chunk", settings.chunk_size);
}

fn write_notify(yaml: &mut YamlWriter, notify: &NotifyConfig) {
    if let Some(telegram) = &notify.telegram {
        yaml.open("telegram");
        yaml.option("token", telegram.token.as_ref());
        yaml.option("group", telegram.group.as_ref());
        yaml.option("api", telegram.api.as_ref());
        yaml.field("on", telegram.on.as_str());
        yaml.close();
    }
    if !notify.webhooks.is_empty() {
        yaml.open("webhook");
        for webhook in &notify.webhooks {
            yaml.item();
            yaml.field("url", &webhook.url);
            if !webhook.headers.is_empty() {
                yaml.open("headers");
                for (name, value) in &webhook.headers {
                    yaml.field(name, value);
                }
                yaml.close();
            }
            yaml.option("template", webhook.template.as_ref().map(|path| path.display()));
            yaml.option("secret", webhook.secret.as_ref());
            yaml.field("on", webhook.on.as_str());
            yaml.close();
        }
        yaml.close();
    }
    for kind in ChatKind::ALL {
        let chats: Vec<_> = notify.chats.iter().filter(|chat| chat.kind == kind).collect();
        if chats.is_empty() {
            continue;
        }
        yaml.open(kind.key());
        for chat in chats {
            yaml.item();
            yaml.field("url", &chat.url);
            yaml.option("secret", chat.secret.as_ref());
            yaml.option("template", chat.template.as_ref().map(|path| path.display()));
            yaml.field("on", chat.on.as_str());
            yaml.close();
        }
        yaml.close();
    }
    if !notify.emails.is_empty() {
        yaml.open("email");
        for email in &notify.emails {
            yaml.item();
            let (scheme, host) = (if email.implicit_tls { "smtps" } else { "smtp" }, &email.host);
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            yaml.field("server", format!("{scheme}://{host}:{}", email.port));
            if let Some((_, password)) = &email.login {
                yaml.field("username", MASK);
                yaml.field("password", password);
            }
            yaml.list("ca", email.ca.iter().map(ToString::to_string));
            yaml.field("from", &email.from);
            yaml.list("to", email.to.iter().cloned());
            yaml.option("template", email.template.as_ref().map(|path| path.display()));
            yaml.field("on", email.on.as_str());
            yaml.close();
        }
        yaml.close();
    }
    yaml.list("ping", notify.pings.iter().map(ToString::to_string));
    if notify.throttled != NotifyConfig::default().throttled {
        yaml.field("throttled", format_duration(notify.throttled));
    }
}

fn write_credential(yaml: &mut YamlWriter, credential: &CredentialConfig) {
    match credential {
        CredentialConfig::Basic { password, .. } => {
            yaml.field("username", MASK);
            yaml.field("password", password);
        }
        CredentialConfig::IdentityToken(token) => yaml.field("identity_token", token),
    }
}

/// Writes a server's address; shows that there is a login, but not the user: user and password are easily swapped.
fn write_address(yaml: &mut YamlWriter, key: &str, url: Option<&SecretUrl>) {
    let Some(url) = url else { return };
    let (has_username, has_password) = url.login_parts();
    if !has_username && !has_password {
        return yaml.field(key, url);
    }
    yaml.open(key);
    yaml.field("url", url);
    yaml.option("username", has_username.then_some(MASK));
    yaml.option("password", has_password.then_some(MASK));
    yaml.close();
}

fn write_rule(yaml: &mut YamlWriter, rule: &Rule) {
    yaml.option("name", rule.name.as_ref());
    match &rule.source {
        RuleSource::Preset(Preset { name, versions: None }) => yaml.field("preset", name),
        RuleSource::Preset(Preset { name, versions: Some(versions) }) => {
            yaml.raw("preset", &format!("{{{}: {{versions: {}}}}}", yaml_scalar(name), yaml_scalar(versions)));
        }
        RuleSource::Repositories(pattern) if pattern.excluded().is_empty() => yaml.field("from", pattern),
        RuleSource::Repositories(pattern) => {
            yaml.open("from");
            yaml.field("repositories", pattern.clone().excluding(Vec::new()));
            yaml.list("exclude", pattern.excluded().iter());
            yaml.close();
        }
        RuleSource::Layout(folder) => yaml.field("from", format!("oci:{}", folder.display())),
    }
    if rule.selection != TagSelection::default() {
        yaml.open("tags");
        write_selection(yaml, &rule.selection);
        yaml.close();
    }
    yaml.list("platforms", rule.platforms.iter().map(ToString::to_string));
    yaml.option("sparse", rule.sparse.then_some(true));
    yaml.option("foreign_layers", (rule.foreign_layers == ForeignLayers::Copy).then_some("copy"));
    yaml.list("to", rule.to.iter().map(format_target));
    // Omitted where it depends on the target or on the preset.
    let styles: Vec<String> = rule.to.iter().map(|to| rule.style_at(to).to_string()).collect();
    let preset = matches!(rule.source, RuleSource::Preset(_));
    if rule.naming.is_some() || (!preset && styles.windows(2).all(|pair| pair[0] == pair[1])) {
        yaml.option("naming", styles.first());
    }
    match &rule.referrers {
        Referrers::All => yaml.field("referrers", true),
        Referrers::None => yaml.field("referrers", false),
        Referrers::Types(types) => yaml.list("referrers", types.iter()),
    }
    yaml.list("immutable", rule.immutable.iter());
    yaml.option("backup", rule.backup.as_ref());
    if let Some(prune) = &rule.prune {
        let days = prune.grace_period.as_secs() / (24 * 60 * 60);
        yaml.raw("prune", &format!("{{keep_days: {days}, limit: {}}}", yaml_scalar(prune.limit)));
    }
    if let Some(schedule) = &rule.schedule {
        yaml.open("schedule");
        match &schedule.recurrence {
            Recurrence::Cron(pattern) => yaml.field("cron", pattern),
            Recurrence::Every(time) => yaml.field("every", format_duration(*time)),
        }
        yaml.option("jitter", Some(schedule.jitter).filter(|jitter| !jitter.is_zero()).map(format_duration));
        yaml.option("zone", schedule.zone.iana_name().filter(|name| *name != "UTC"));
        yaml.close();
    }
    yaml.option("priority", (!rule.priority.is_normal()).then_some(rule.priority));
    yaml.field("verify_every", format_duration(rule.verify_every));
    yaml.field("referrers_every", format_duration(rule.referrers_every));
}

fn write_selection(yaml: &mut YamlWriter, selection: &TagSelection) {
    yaml.list("include", selection.include.iter());
    yaml.list("exclude", selection.exclude.iter());
    yaml.option("semver", selection.range.as_ref());
    match selection.newest {
        Some(Newest { count, by: NewestBy::Version }) => yaml.field("newest", count),
        Some(Newest { count, by: NewestBy::Date }) => yaml.raw("newest", &format!("{{count: {count}, by: date}}")),
        None => {}
    }
    yaml.option("since", selection.since.as_ref());
    yaml.option("min", selection.min);
}

fn format_target(to: &RuleTarget) -> String {
    match to {
        RuleTarget::Registry(base) => base.to_string(),
        RuleTarget::Layout(folder) => format!("oci:{}", folder.display()),
    }
}

fn format_duration(duration: Duration) -> String {
    let balanced = SignedDuration::try_from(duration).ok().and_then(|duration| {
        let round = SpanRound::new().largest(Unit::Day).days_are_24_hours();
        Span::try_from(duration).ok()?.round(round).ok()
    });
    balanced.map_or_else(|| format!("{}s", duration.as_secs()), |span| format!("{span:#}"))
}

/// Writes block mappings and lists.
#[derive(Default)]
struct YamlWriter {
    text: String,
    depth: usize,
    /// Whether the next line begins a list item.
    begins_item: bool,
}

impl YamlWriter {
    fn line(&mut self, line: &str) {
        let mut indent = "  ".repeat(self.depth);
        if std::mem::take(&mut self.begins_item) {
            indent.replace_range(indent.len().saturating_sub(2).., "- ");
        }
        // Writing to a String does not fail.
        _ = writeln!(self.text, "{indent}{line}");
    }

    fn open(&mut self, key: &str) {
        self.line(&format!("{key}:"));
        self.depth += 1;
    }

    fn item(&mut self) {
        self.begins_item = true;
        self.depth += 1;
    }

    /// Ends the last `open` or `begins_item`. An empty one is written as `{}`.
    fn close(&mut self) {
        self.depth -= 1;
        if let Some(last) = self.text.lines().last()
            && last.ends_with(':')
            && last.len() - last.trim_start().len() == 2 * self.depth
        {
            self.text.truncate(self.text.len() - 1);
            self.text.push_str(" {}\n");
        }
    }

    fn raw(&mut self, key: &str, value: &str) {
        self.line(&format!("{key}: {value}"));
    }

    fn field(&mut self, key: &str, value: impl Display) {
        self.raw(key, &yaml_scalar(value));
    }

    fn option(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.field(key, value);
        }
    }

    fn list(&mut self, key: &str, items: impl Iterator<Item = impl Display>) {
        let items: Vec<String> = items.map(yaml_scalar).collect();
        if !items.is_empty() {
            self.raw(key, &format!("[{}]", items.join(", ")));
        }
    }
}

/// Quotes a value so that it is read back unchanged: plain words stay, and dollars that would begin a variable are
/// doubled.
pub fn yaml_scalar(value: impl Display) -> String {
    let value = value.to_string();
    let value = value.replace("$$", "$$$$").replace("${", "$${");
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
        && value.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && value != "null";
    if plain { value } else { serde_json::Value::String(value).to_string() }
}
