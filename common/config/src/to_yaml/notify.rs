//! View of `notify`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Serialize, Serializer};

use super::super::{ChatConfig, ChatKind, EmailConfig, NotifyCondition, NotifyConfig, TelegramConfig, WebhookConfig};
use super::{MASK, YamlList, YamlText, duration, is_empty_list, yaml_list};

/// View of `notify`.
#[derive(Serialize)]
pub(super) struct NotifyView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    telegram: Option<TelegramView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhook: Vec<WebhookView<'a>>,
    /// Lists of chats by service, in the order of [`ChatKind::ALL`].
    #[serde(flatten, serialize_with = "serialize_chats")]
    chats: &'a [ChatConfig],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    email: Vec<EmailView>,
    #[serde(skip_serializing_if = "is_empty_list")]
    ping: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttled: Option<YamlText>,
}

impl<'a> From<&'a NotifyConfig> for NotifyView<'a> {
    fn from(notify: &'a NotifyConfig) -> Self {
        let is_default = notify.throttled == NotifyConfig::default().throttled;
        NotifyView {
            telegram: notify.telegram.as_ref().map(TelegramView::from),
            webhook: notify.webhooks.iter().map(WebhookView::from).collect(),
            chats: &notify.chats,
            email: notify.emails.iter().map(EmailView::from).collect(),
            ping: yaml_list(&notify.pings),
            throttled: (!is_default).then(|| duration(notify.throttled)),
        }
    }
}

/// Writes the lists of chats that are not empty.
fn serialize_chats<S: Serializer>(chats: &[ChatConfig], serializer: S) -> Result<S::Ok, S::Error> {
    let lists = ChatKind::ALL.map(|kind| {
        let chats: Vec<ChatView> = chats.iter().filter(|chat| chat.kind == kind).map(ChatView::from).collect();
        (kind.key(), chats)
    });
    serializer.collect_map(lists.into_iter().filter(|(_, chats)| !chats.is_empty()))
}

/// View of `telegram`.
#[derive(Serialize)]
struct TelegramView {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<YamlText>,
    on: YamlText,
}

impl From<&TelegramConfig> for TelegramView {
    fn from(telegram: &TelegramConfig) -> Self {
        TelegramView {
            token: telegram.token.as_ref().map(YamlText::new),
            group: telegram.group.as_ref().map(YamlText::new),
            api: telegram.api.as_ref().map(YamlText::new),
            on: condition(telegram.on),
        }
    }
}

/// View of an entry of `webhook`.
#[derive(Serialize)]
struct WebhookView<'a> {
    url: YamlText,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<YamlText>,
    on: YamlText,
}

impl<'a> From<&'a WebhookConfig> for WebhookView<'a> {
    fn from(webhook: &'a WebhookConfig) -> Self {
        WebhookView {
            url: YamlText::new(&webhook.url),
            headers: webhook.headers.iter().map(|(name, value)| (name.as_str(), YamlText::new(value))).collect(),
            template: webhook.template.as_deref().map(path),
            secret: webhook.secret.as_ref().map(YamlText::new),
            on: condition(webhook.on),
        }
    }
}

/// View of an entry of a chat service.
#[derive(Serialize)]
struct ChatView {
    url: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<YamlText>,
    on: YamlText,
}

impl From<&ChatConfig> for ChatView {
    fn from(chat: &ChatConfig) -> Self {
        ChatView {
            url: YamlText::new(&chat.url),
            secret: chat.secret.as_ref().map(YamlText::new),
            template: chat.template.as_deref().map(path),
            on: condition(chat.on),
        }
    }
}

/// View of an entry of `email`.
#[derive(Serialize)]
struct EmailView {
    server: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    ca: YamlList,
    from: YamlText,
    to: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<YamlText>,
    on: YamlText,
}

impl From<&EmailConfig> for EmailView {
    fn from(email: &EmailConfig) -> Self {
        let (scheme, host) = (if email.implicit_tls { "smtps" } else { "smtp" }, &email.host);
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        EmailView {
            server: YamlText::new(format_args!("{scheme}://{host}:{}", email.port)),
            username: email.login.as_ref().map(|_| YamlText::new(MASK)),
            password: email.login.as_ref().map(|(_, password)| YamlText::new(password)),
            ca: yaml_list(&email.ca),
            from: YamlText::new(&email.from),
            to: yaml_list(&email.to),
            template: email.template.as_deref().map(path),
            on: condition(email.on),
        }
    }
}

fn condition(condition: NotifyCondition) -> YamlText {
    YamlText::new(condition.as_str())
}

fn path(path: &Path) -> YamlText {
    YamlText::new(path.display())
}
