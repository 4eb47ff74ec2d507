//! `notify:`: who is told when a batch has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue};
use url::Url;

use super::keys::{NOTIFY, TELEGRAM, WEBHOOK};
use super::reader::{Fields, Reader};
use super::yaml::{Node, Value};
use crate::secret::Secret;

/// What the configuration says about notifications.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notify {
    /// A group of Telegram. What is missing can come from flags or the environment.
    pub telegram: Option<Telegram>,
    /// Each is told of every batch that it wants to hear of.
    pub webhooks: Vec<Webhook>,
}

/// `telegram:`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telegram {
    /// The bot's token.
    pub token: Option<Secret>,
    /// The chat: a number, or `@name`.
    pub group: Option<String>,
    /// Where the Bot API is; Telegram's own where this is none. http or https.
    pub api: Option<Url>,
    /// Which batches.
    pub on: When,
}

/// An entry of `webhook:`.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    /// Where to.
    pub url: WebhookUrl,
    /// Sent with it; the names are lowercase and valid, and so are the values.
    pub headers: BTreeMap<String, Secret>,
    /// A template of the body; a relative path begins where the configuration file is.
    pub template: Option<PathBuf>,
    /// Signs the body.
    pub secret: Option<Secret>,
    /// Which batches.
    pub on: When,
}

/// A webhook's URL, of which only scheme and host are shown: paths and queries of such hold tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl(Url);

/// Which batches somebody is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// All.
    #[default]
    Always,
    /// Those in which something was copied, or not all was done.
    Changes,
    /// Those in which not all was done.
    Failure,
}

impl When {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            When::Always => "always",
            When::Changes => "changes",
            When::Failure => "failure",
        }
    }

    /// Whether a batch is one of these.
    pub fn is_met(self, copied: bool, failed: bool) -> bool {
        match self {
            When::Always => true,
            When::Changes => copied || failed,
            When::Failure => failed,
        }
    }
}

impl WebhookUrl {
    /// The URL, for whoever connects there.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        match self.0.port() {
            Some(port) => write!(f, ":{port}/***"),
            None => f.write_str("/***"),
        }
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn read(reader: &Reader, node: &Node) -> Notify {
    let Some(fields) = reader.fields(node, &NOTIFY) else { return Notify::default() };
    Notify {
        telegram: fields.get("telegram").map(|node| telegram(reader, node)),
        webhooks: match fields.get("webhook") {
            Some(node) => reader.several(node).iter().filter_map(|node| webhook(reader, node)).collect(),
            None => Vec::new(),
        },
    }
}

fn telegram(reader: &Reader, node: &Node) -> Telegram {
    let Some(fields) = reader.fields(node, &TELEGRAM) else { return Telegram::default() };
    let group = fields.get("group").and_then(|node| {
        let group = reader.text(node)?;
        if !is_group(group) {
            reader.refuse(
                node,
                format!("`{group}` is neither a chat's number nor @name"),
                Some("a group's number begins with -100; a bot that is in it is told by getUpdates".to_owned()),
            );
            return None;
        }
        Some(group.to_owned())
    });
    Telegram {
        token: fields.get("token").and_then(|node| reader.secret(node)),
        group,
        api: fields.get("api").and_then(|node| reader.url(node, &["https", "http"])),
        on: when(reader, &fields),
    }
}

/// Whether this can be a chat of Telegram.
pub(super) fn is_group(text: &str) -> bool {
    text.strip_prefix('@').is_some_and(|name| !name.is_empty()) || text.parse::<i64>().is_ok_and(|number| number != 0)
}

fn webhook(reader: &Reader, node: &Node) -> Option<Webhook> {
    let fields = reader.fields(node, &WEBHOOK)?;
    let headers = fields.get("headers").map(|node| headers(reader, node)).unwrap_or_default();
    let secret = fields.get("secret").and_then(|node| reader.secret(node));
    let template = fields.get("template").and_then(|node| reader.text(node)).map(PathBuf::from);
    let on = when(reader, &fields);
    let Some(named) = fields.get("url") else {
        reader.report(&fields.at, "`url` is missing: where to?");
        return None;
    };
    let written = reader.secret(named)?;
    match Url::parse(written.expose()) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => {
            Some(Webhook { url: WebhookUrl(url), headers, template, secret, on })
        }
        // What is refused is not shown.
        _ => {
            reader.report(&named.at, "this is not a URL: it begins with https:// or http://");
            None
        }
    }
}

fn headers(reader: &Reader, node: &Node) -> BTreeMap<String, Secret> {
    let mut headers = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        if !matches!(node.value, Value::Null | Value::Broken) {
            reader.report(&node.at, format!("`headers` is a mapping of names, and this is {}", node.kind()));
        }
        return headers;
    };
    for entry in entries {
        let Some(value) = reader.secret(&entry.value) else { continue };
        let name = match HeaderName::from_bytes(entry.key.as_bytes()) {
            Ok(name) => name,
            Err(_) => {
                reader.report(&entry.key_at, format!("`{}` is no name of a header", entry.key));
                continue;
            }
        };
        match HeaderValue::from_str(value.expose()) {
            Ok(_) => _ = headers.insert(name.as_str().to_owned(), value),
            Err(_) => reader.report(&entry.value.at, "a header's value is one line of visible characters"),
        }
    }
    headers
}

fn when(reader: &Reader, fields: &Fields<'_>) -> When {
    let Some(node) = fields.get("on") else { return When::default() };
    match reader.text(node) {
        Some("always") => When::Always,
        Some("changes") => When::Changes,
        Some("failure") => When::Failure,
        Some(other) => {
            reader.refuse(node, format!("`{other}` is none of always, changes and failure"), None);
            When::default()
        }
        None => When::default(),
    }
}

impl Telegram {
    /// Whether a text can name a chat: a number that is not 0, or `@name`.
    pub fn is_group(text: &str) -> bool {
        is_group(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, File};
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let environment = |name: &str| (name == "TOKEN").then(|| "123:abc".to_owned());
        let file = File { name: "c.yaml", text, environment: &environment, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn who_is_told_is_read_and_shown_without_secrets() {
        let text = "notify:
  telegram: {token: \"${TOKEN}\", group: -1001234567890, on: failure}
  webhook:
  - {url: 'https://hooks.example/T0/secretpath', headers: {X-Key: hushhush}, secret: sesame, on: changes}
  - url: http://127.0.0.1:8080/x
";
        let config = read(text).unwrap();
        let telegram = config.notify.telegram.clone().unwrap();
        assert_eq!(telegram.group.as_deref(), Some("-1001234567890"));
        assert_eq!((telegram.on, telegram.token.unwrap().expose()), (When::Failure, "123:abc"));
        let first = &config.notify.webhooks[0];
        assert_eq!(first.headers["x-key"].expose(), "hushhush");
        assert_eq!((first.on, config.notify.webhooks[1].on), (When::Changes, When::Always));
        let shown = config.to_yaml_redacted();
        for secret in ["123:abc", "secretpath", "hushhush", "sesame"] {
            assert!(!shown.contains(secret), "{shown}");
            assert!(!format!("{config:?}").contains(secret));
        }
        read(&shown).unwrap();
        assert!(config.has_secrets_inline());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (text, wanted) in [
            ("notify: {telegram: {group: friends}}", "neither a chat's number nor @name"),
            ("notify: {telegram: {on: never}}", "none of always, changes and failure"),
            ("notify: {webhook: {url: 'ftp://x.example/secretpath'}}", "this is not a URL"),
            ("notify: {webhook: {on: always}}", "`url` is missing"),
            ("notify: {webhook: {url: 'https://x', headers: {\"a b\": c}}}", "no name of a header"),
            ("notify: {telegramm: {}}", "did you mean `telegram`?"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(wanted) && !said.contains("secretpath"), "{said}");
        }
    }
}
