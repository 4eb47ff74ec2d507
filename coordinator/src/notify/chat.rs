//! Settings, requests and replies that all chat services share: one text message per notification, posted as JSON to a
//! URL that contains a token. The files in `targets/` add format, signature and error codes of each service.

use std::path::Path;
use std::time::Duration;

use imgsync_config::{ChatConfig, ChatKind, NotifyCondition, NotifyConfig, WebhookUrl};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use serde_json::Value;
use url::Url;

use super::http_sender::{HttpReply, HttpSender, status_error};
use super::notification::NotificationEvent;
use super::notification::{Notification, NotificationText, load_template, truncate_lines};
use super::target::{NotificationTarget, TargetContext, with_hint};
use crate::report::ReportTemplate;

/// Timeout of a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Hint for a URL that the chat service does not know.
pub(super) const UNKNOWN_ROBOT_HINT: &str = "the robot's URL is wrong, or the robot was removed";

/// A chat group, whatever its service.
#[derive(Debug)]
pub(super) struct Chat {
    kind: ChatKind,
    url: WebhookUrl,
    secret: Option<Secret>,
    template: Option<ReportTemplate>,
    on: NotifyCondition,
    http: HttpSender,
}

impl Chat {
    /// Builds the configured groups of a service.
    pub(super) fn build_all<T: NotificationTarget + 'static>(
        kind: ChatKind,
        notify: &NotifyConfig,
        context: &TargetContext<'_>,
        target: fn(Chat) -> T,
    ) -> Result<Vec<Box<dyn NotificationTarget>>> {
        let configured = notify.chats.iter().filter(|chat| chat.kind == kind);
        let chats = configured.map(|chat| Chat::new(chat, context.folder, context.http.clone()));
        chats.map(|chat| Ok(Box::new(target(chat?)) as Box<dyn NotificationTarget>)).collect()
    }

    fn new(configured: &ChatConfig, folder: &Path, http: HttpSender) -> Result<Chat> {
        let template = load_template(configured.template.as_deref(), folder)?;
        let ChatConfig { kind, url, secret, on, .. } = configured.clone();
        Ok(Chat { kind, url, secret, template, on, http })
    }

    /// Returns the configuration key of the service.
    pub(super) fn key(&self) -> &'static str {
        self.kind.key()
    }

    /// Identifies the group by its URL, which contains a secret.
    pub(super) fn address(&self) -> String {
        self.url.expose().to_string()
    }

    /// Returns whether the group is notified of an event.
    pub(super) fn wants(&self, event: NotificationEvent) -> bool {
        event.meets(self.on)
    }

    /// Formats an error as a warning.
    pub(super) fn describe_failure(&self, error: &Error) -> String {
        format!("{} notification failed: {}", self.kind.name(), with_hint(error))
    }

    /// Returns the URL, with its token.
    pub(super) fn url(&self) -> Url {
        self.url.expose().clone()
    }

    /// Returns the secret that signs messages.
    pub(super) fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// Renders a notification as the text of a message.
    pub(super) async fn render(&self, notification: &Notification<'_>) -> Result<NotificationText> {
        NotificationText::render(notification, self.template.as_ref()).await
    }

    /// Posts a message. `request` returns URL and body, once for each attempt: signatures expire soon. `read` returns
    /// the error of a reply.
    pub(super) async fn post(
        &self,
        request: impl Fn() -> (Url, Value),
        read: impl Fn(&str, &HttpReply) -> Option<Error>,
    ) -> Result<()> {
        let operation = format!("sending a message to {} by {}", self.kind.name(), self.url);
        let read = |answer: &HttpReply| read(&operation, answer);
        let request = |client: &reqwest::Client| {
            let (url, body) = request();
            client.post(url).json(&body)
        };
        self.http.send(self.url.expose(), &operation, SEND_TIMEOUT, request, read).await
    }

    /// Returns the error of a JSON reply with an error code; 0 is success. `classify` returns the kind and hint of
    /// another code.
    pub(super) fn check_coded_reply(
        &self,
        operation: &str,
        answer: &HttpReply,
        classify: fn(i64) -> (ErrorKind, Option<&'static str>),
    ) -> Option<Error> {
        let status = answer.status.as_u16();
        let Ok(reply) = serde_json::from_slice::<Value>(&answer.body) else {
            let detail = format!("HTTP {status}, not a {} response", self.kind.name());
            return Some(status_error(operation, answer, &detail));
        };
        let number = |names: &[&str]| names.iter().find_map(|name| reply.get(*name)?.as_i64());
        let code = number(&["errcode", "code", "StatusCode"]);
        if answer.status.is_success() && code == Some(0) {
            return None;
        }
        let text = ["errmsg", "msg", "StatusMessage"].iter().find_map(|name| reply.get(*name)?.as_str());
        let code = code.unwrap_or(-1);
        let detail = format!("{} {code}: {}", self.kind.name(), sanitize_within(text.unwrap_or("no message"), 200));
        if !answer.status.is_success() {
            return Some(status_error(operation, answer, &detail));
        }
        let (kind, hint) = classify(code);
        let error = Error::new(kind, operation, detail).with_status(status, Some(code.to_string()));
        Some(match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        })
    }
}

/// Returns title and text in at most `most` bytes; of markup, the text alone.
pub(super) fn plain_text(message: &NotificationText, most: usize) -> String {
    match message.is_markup {
        true => truncate_lines(&message.text, most, str::len),
        false => truncate_lines(&format!("{}\n\n{}", message.title, message.text), most, str::len),
    }
}

/// Asserts that a message with a long text is cut to `most` bytes and counts the lines that it omits. `text_of`
/// returns the text of the message.
#[cfg(test)]
pub(super) fn assert_cuts_long_text(text_of: impl Fn(&NotificationText) -> Value, most: usize) {
    let title = "imgsync: 1 of 2 images failed".to_owned();
    let text = "镜像 gcr.io/a/b:v1 失败\n".repeat(2_000);
    let message = text_of(&NotificationText { title, text, is_markup: false });
    let text = message.as_str().unwrap();
    assert!(text.len() <= most && text.contains("more lines"), "{}", text.len());
}
