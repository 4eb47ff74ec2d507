//! `notify:`: notification targets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use url::Url;

use super::reader::{SectionFields, ValueReader};
use super::registry::{PemSource, read_certificates};
use super::schema_table::{CHAT, ConfigSection, EMAIL, NOTIFY, SIGNED_CHAT, TELEGRAM, WEBHOOK};
use super::yaml::{YamlNode, YamlValue};
use imgsync_oci::secret::Secret;

/// Notification settings.
#[derive(Clone, Debug, PartialEq)]
pub struct NotifyConfig {
    /// A Telegram group. Flags or the environment may provide missing values.
    pub telegram: Option<TelegramConfig>,
    /// Webhooks.
    pub webhooks: Vec<WebhookConfig>,
    /// Group chats with a bot.
    pub chats: Vec<ChatConfig>,
    /// Email targets.
    pub emails: Vec<EmailConfig>,
    /// URLs to request after each successful batch.
    pub pings: Vec<WebhookUrl>,
    /// How long a registry may throttle a batch before targets are notified; an hour.
    pub throttled: Duration,
}

impl Default for NotifyConfig {
    fn default() -> NotifyConfig {
        NotifyConfig {
            telegram: None,
            webhooks: Vec::new(),
            chats: Vec::new(),
            emails: Vec::new(),
            pings: Vec::new(),
            throttled: Duration::from_secs(3600),
        }
    }
}

/// Chat service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatKind {
    /// Slack's incoming webhooks (api.slack.com/messaging/webhooks).
    Slack,
    /// WeCom's group robots (developer.work.weixin.qq.com/document/path/91770).
    WeCom,
    /// Feishu's and Lark's custom robots (open.feishu.cn/document/client-docs/bot-v3/add-custom-bot).
    Feishu,
    /// DingTalk's custom robots (open.dingtalk.com/document/robots/custom-robot-access).
    DingTalk,
}

impl ChatKind {
    /// All services, in the order of notification.
    pub const ALL: [ChatKind; 4] = [ChatKind::Slack, ChatKind::WeCom, ChatKind::Feishu, ChatKind::DingTalk];

    /// Returns the configuration key.
    pub fn key(self) -> &'static str {
        match self {
            ChatKind::Slack => "slack",
            ChatKind::WeCom => "wecom",
            ChatKind::Feishu => "feishu",
            ChatKind::DingTalk => "dingtalk",
        }
    }

    /// Returns the display name.
    pub fn name(self) -> &'static str {
        match self {
            ChatKind::Slack => "Slack",
            ChatKind::WeCom => "WeCom",
            ChatKind::Feishu => "Feishu",
            ChatKind::DingTalk => "DingTalk",
        }
    }

    fn section(self) -> &'static ConfigSection {
        match self {
            ChatKind::Slack | ChatKind::WeCom => &CHAT,
            ChatKind::Feishu | ChatKind::DingTalk => &SIGNED_CHAT,
        }
    }
}

/// An entry of `slack:`, `wecom:`, `feishu:` or `dingtalk:`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatConfig {
    /// The service.
    pub kind: ChatKind,
    /// The bot's URL.
    pub url: WebhookUrl,
    /// Secret that signs messages.
    pub secret: Option<Secret>,
    /// Template of the message; a relative path is relative to the configuration file.
    pub template: Option<PathBuf>,
    /// Which batches to report.
    pub on: NotifyCondition,
}

/// An entry of `email:`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmailConfig {
    /// Host of the server.
    pub host: String,
    /// Port of the server.
    pub port: u16,
    /// Implicit TLS; otherwise STARTTLS is required.
    pub implicit_tls: bool,
    /// User and password.
    pub login: Option<(String, Secret)>,
    /// Certificates to trust besides the system's.
    pub ca: Vec<PemSource>,
    /// Sender.
    pub from: String,
    /// Recipients; at least one.
    pub to: Vec<String>,
    /// Template of the text; a relative path is relative to the configuration file.
    pub template: Option<PathBuf>,
    /// Which batches to report.
    pub on: NotifyCondition,
}

/// `telegram:`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TelegramConfig {
    /// The bot's token.
    pub token: Option<Secret>,
    /// The chat: a number, or `@name`.
    pub group: Option<String>,
    /// URL of the Bot API; `None` uses Telegram's own. http or https.
    pub api: Option<Url>,
    /// Which batches to report.
    pub on: NotifyCondition,
}

/// An entry of `webhook:`.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookConfig {
    /// The URL.
    pub url: WebhookUrl,
    /// Additional headers; names are lowercase, and names and values are valid.
    pub headers: BTreeMap<String, Secret>,
    /// Template of the body; a relative path is relative to the configuration file.
    pub template: Option<PathBuf>,
    /// Secret that signs the body.
    pub secret: Option<Secret>,
    /// Which batches to report.
    pub on: NotifyCondition,
}

/// A webhook's URL, which shows only scheme and host: paths and queries of webhooks contain tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl(Url);

/// Which batches to report to a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NotifyCondition {
    /// All batches.
    #[default]
    Always,
    /// Batches that copied something, or did not succeed.
    Changes,
    /// Batches that did not succeed.
    Failure,
}

impl NotifyCondition {
    /// Returns the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            NotifyCondition::Always => "always",
            NotifyCondition::Changes => "changes",
            NotifyCondition::Failure => "failure",
        }
    }

    /// Returns whether to report a batch.
    pub fn is_met(self, copied: bool, failed: bool) -> bool {
        match self {
            NotifyCondition::Always => true,
            NotifyCondition::Changes => copied || failed,
            NotifyCondition::Failure => failed,
        }
    }
}

impl WebhookUrl {
    /// Returns the URL, for connecting.
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

pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> NotifyConfig {
    let Some(fields) = reader.fields(node, &NOTIFY) else { return NotifyConfig::default() };
    NotifyConfig {
        telegram: fields.get("telegram").map(|node| read_telegram(reader, node)),
        webhooks: match fields.get("webhook") {
            Some(node) => reader.one_or_many(node).iter().filter_map(|node| read_webhook(reader, node)).collect(),
            None => Vec::new(),
        },
        chats: ChatKind::ALL.into_iter().flat_map(|kind| read_chats(reader, &fields, kind)).collect(),
        emails: match fields.get("email") {
            Some(node) => reader.one_or_many(node).iter().filter_map(|node| read_email(reader, node)).collect(),
            None => Vec::new(),
        },
        pings: match fields.get("ping") {
            Some(node) => reader.one_or_many(node).iter().filter_map(|node| read_webhook_url(reader, node)).collect(),
            None => Vec::new(),
        },
        throttled: fields
            .get("throttled")
            .and_then(|node| reader.duration(node))
            .unwrap_or(NotifyConfig::default().throttled),
    }
}

fn read_chats(reader: &ValueReader, fields: &SectionFields<'_>, kind: ChatKind) -> Vec<ChatConfig> {
    let Some(node) = fields.get(kind.key()) else { return Vec::new() };
    reader.one_or_many(node).iter().filter_map(|node| read_chat(reader, node, kind)).collect()
}

fn read_chat(reader: &ValueReader, node: &YamlNode, kind: ChatKind) -> Option<ChatConfig> {
    let fields = reader.fields(node, kind.section())?;
    let secret = match kind {
        ChatKind::Slack | ChatKind::WeCom => None,
        ChatKind::Feishu | ChatKind::DingTalk => fields.get("secret").and_then(|node| reader.secret(node)),
    };
    let template = fields.get("template").and_then(|node| reader.text(node)).map(PathBuf::from);
    let on = read_condition(reader, &fields);
    let Some(named) = fields.get("url") else {
        reader.report(&fields.at, "`url` is missing");
        return None;
    };
    Some(ChatConfig { kind, url: read_webhook_url(reader, named)?, secret, template, on })
}

fn read_email(reader: &ValueReader, node: &YamlNode) -> Option<EmailConfig> {
    let fields = reader.fields(node, &EMAIL)?;
    let username = fields.get("username").and_then(|node| reader.username(node));
    let password = fields.get("password").and_then(|node| reader.secret(node));
    let on = read_condition(reader, &fields);
    for name in ["server", "from", "to"] {
        if fields.get(name).is_none() {
            reader.report(&fields.at, format!("`{name}` is missing"));
        }
    }
    if fields.get("username").is_some() != fields.get("password").is_some() {
        reader.report(&fields.at, "`username` and `password` go together");
    }
    let mut to = Vec::new();
    for node in fields.get("to").map(|node| reader.one_or_many(node)).into_iter().flatten() {
        to.extend(read_address(reader, node));
    }
    let server = fields.get("server").and_then(|node| reader.url(node, &["smtps", "smtp"]))?;
    let implicit_tls = server.scheme() == "smtps";
    Some(EmailConfig {
        host: server.host_str()?.trim_matches(['[', ']']).to_owned(),
        port: server.port().unwrap_or(if implicit_tls { 465 } else { 587 }),
        implicit_tls,
        login: username.zip(password),
        ca: fields.get("ca").map(|node| read_certificates(reader, node)).unwrap_or_default(),
        from: read_address(reader, fields.get("from")?)?,
        to: Some(to).filter(|to| !to.is_empty())?,
        template: fields.get("template").and_then(|node| reader.text(node)).map(PathBuf::from),
        on,
    })
}

/// Reads `name@host`, or `words <name@host>`.
fn read_address(reader: &ValueReader, node: &YamlNode) -> Option<String> {
    let text = reader.text(node)?.trim();
    let bare = text.strip_suffix('>').and_then(|text| text.rsplit_once('<')).map_or(text, |(_, bare)| bare);
    let is_one =
        bare.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    if !is_one || text.contains(['\r', '\n']) || bare.contains(char::is_whitespace) {
        reader.report_value(node, format!("`{text}` is not an address such as imgsync@example.com"), None);
        return None;
    }
    Some(text.to_owned())
}

/// Reads a URL that is not shown, because it contains a token.
fn read_webhook_url(reader: &ValueReader, node: &YamlNode) -> Option<WebhookUrl> {
    reader.hidden_url(node, &["https", "http"]).map(WebhookUrl)
}

fn read_telegram(reader: &ValueReader, node: &YamlNode) -> TelegramConfig {
    let Some(fields) = reader.fields(node, &TELEGRAM) else { return TelegramConfig::default() };
    let group = fields.get("group").and_then(|node| {
        let group = reader.text(node)?;
        if !is_group(group) {
            reader.report_value(
                node,
                format!("`{group}` is neither a chat id nor @name"),
                Some("a group's id begins with -100; getUpdates shows it to a bot in the group".to_owned()),
            );
            return None;
        }
        Some(group.to_owned())
    });
    TelegramConfig {
        token: fields.get("token").and_then(|node| reader.secret(node)),
        group,
        api: fields.get("api").and_then(|node| reader.url(node, &["https", "http"])),
        on: read_condition(reader, &fields),
    }
}

/// Returns whether a text can be a Telegram chat.
pub(super) fn is_group(text: &str) -> bool {
    text.strip_prefix('@').is_some_and(|name| !name.is_empty()) || text.parse::<i64>().is_ok_and(|number| number != 0)
}

fn read_webhook(reader: &ValueReader, node: &YamlNode) -> Option<WebhookConfig> {
    let fields = reader.fields(node, &WEBHOOK)?;
    let headers = fields.get("headers").map(|node| read_headers(reader, node)).unwrap_or_default();
    let secret = fields.get("secret").and_then(|node| reader.secret(node));
    let template = fields.get("template").and_then(|node| reader.text(node)).map(PathBuf::from);
    let on = read_condition(reader, &fields);
    let Some(named) = fields.get("url") else {
        reader.report(&fields.at, "`url` is missing");
        return None;
    };
    Some(WebhookConfig { url: read_webhook_url(reader, named)?, headers, template, secret, on })
}

fn read_headers(reader: &ValueReader, node: &YamlNode) -> BTreeMap<String, Secret> {
    let mut headers = BTreeMap::new();
    let YamlValue::Map(entries) = &node.value else {
        if !matches!(node.value, YamlValue::Null | YamlValue::Invalid) {
            reader.report(&node.at, format!("`headers` is a mapping, and this is {}", node.type_name()));
        }
        return headers;
    };
    for entry in entries {
        let Some(value) = reader.secret(&entry.value) else { continue };
        let name = match HeaderName::from_bytes(entry.key.as_bytes()) {
            Ok(name) => name,
            Err(_) => {
                reader.report(&entry.key_at, format!("`{}` is not a header name", entry.key));
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

fn read_condition(reader: &ValueReader, fields: &SectionFields<'_>) -> NotifyCondition {
    let Some(node) = fields.get("on") else { return NotifyCondition::default() };
    match reader.text(node) {
        Some("always") => NotifyCondition::Always,
        Some("changes") => NotifyCondition::Changes,
        Some("failure") => NotifyCondition::Failure,
        Some(other) => {
            reader.report_value(node, format!("`{other}` is not one of always, changes, failure"), None);
            NotifyCondition::default()
        }
        None => NotifyCondition::default(),
    }
}

impl TelegramConfig {
    /// Returns whether a text can name a chat: a number other than 0, or `@name`.
    pub fn is_group(text: &str) -> bool {
        is_group(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigFile};
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let environment = |name: &str| (name == "TOKEN").then(|| "123:abc".to_owned());
        let file = ConfigFile { name: "c.yaml", text, environment: &environment, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn notification_targets_are_read_and_shown_without_secrets() {
        let text = "notify:
  telegram: {token: \"${TOKEN}\", group: -1001234567890, on: failure}
  webhook:
  - {url: 'https://hooks.example/T0/secretpath', headers: {X-Key: hushhush}, secret: sesame, on: changes}
  - url: http://127.0.0.1:8080/x
  slack: {url: 'https://hooks.slack.example/services/slackpath'}
  dingtalk: [{url: 'https://oapi.example/robot/send?access_token=dingpath', secret: SECding, on: failure}]
  email: {server: 'smtp://mail.example', username: me, password: mailpass, from: 'imgsync <a@b.example>', to: [c@d.example]}
  ping: https://hc.example/pingpath
  throttled: 30m
";
        let config = read(text).unwrap();
        let telegram = config.notify.telegram.clone().unwrap();
        assert_eq!(telegram.group.as_deref(), Some("-1001234567890"));
        assert_eq!((telegram.on, telegram.token.unwrap().expose()), (NotifyCondition::Failure, "123:abc"));
        let first = &config.notify.webhooks[0];
        assert_eq!(first.headers["x-key"].expose(), "hushhush");
        assert_eq!((first.on, config.notify.webhooks[1].on), (NotifyCondition::Changes, NotifyCondition::Always));
        let shown = config.to_yaml_redacted();
        let [slack, dingtalk] = &config.notify.chats[..] else { panic!("{:?}", config.notify.chats) };
        assert_eq!(
            (slack.kind, dingtalk.kind, dingtalk.on),
            (ChatKind::Slack, ChatKind::DingTalk, NotifyCondition::Failure)
        );
        let mail = &config.notify.emails[0];
        assert_eq!((mail.host.as_str(), mail.port, mail.implicit_tls), ("mail.example", 587, false));
        assert_eq!((mail.to.as_slice(), config.notify.pings.len()), (["c@d.example".to_owned()].as_slice(), 1));
        assert_eq!(config.notify.throttled, Duration::from_secs(1800));
        let secrets =
            ["123:abc", "secretpath", "hushhush", "sesame", "slackpath", "dingpath", "SECding", "mailpass", "pingpath"];
        for secret in secrets {
            assert!(!shown.contains(secret), "{shown}");
            assert!(!format!("{config:?}").contains(secret));
        }
        read(&shown).unwrap();
        assert!(config.has_secrets_inline());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (text, wanted) in [
            ("notify: {telegram: {group: friends}}", "neither a chat id nor @name"),
            ("notify: {telegram: {on: never}}", "not one of always, changes, failure"),
            ("notify: {webhook: {url: 'ftp://x.example/secretpath'}}", "a URL with ftp:// cannot be used here"),
            ("notify: {webhook: {url: 'https://me:1/secretpath@x.example'}}", "the password in this URL is ambiguous"),
            ("notify: {webhook: {on: always}}", "`url` is missing"),
            ("notify: {webhook: {url: 'https://x', headers: {\"a b\": c}}}", "not a header name"),
            ("notify: {slack: {url: 'hooks.slack.example/secretpath'}}", "this is not a URL"),
            ("notify: {slack: {url: 'https://x.example', secret: secretpath}}", "`secret` is not a key of a chat"),
            ("notify: {email: {server: 'smtp://x.example', from: me, to: a@b.example}}", "`me` is not an address"),
            ("notify: {email: {server: 'smtp://x.example', from: a@b.example}}", "`to` is missing"),
            ("notify: {email: {server: 'imap://x.example', from: a@b.example, to: c@d.example}}", "smtp"),
            ("notify: {ping: secretpath}", "this is not a URL"),
            ("notify: {telegramm: {}}", "did you mean `telegram`?"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(wanted) && !said.contains("secretpath"), "{said}");
        }
    }
}
