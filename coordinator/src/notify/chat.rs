//! Settings, requests and replies that all chat services share: one text message per notification, posted as JSON to a
//! URL that contains a token. The files in `targets/` add format, signature and error codes of each service.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use async_trait::async_trait;
use imgsync_config::{ChatConfig, ChatKind, NotifyCondition, NotifyConfig, WebhookUrl};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde_json::Value;
use url::Url;

use super::http_sender::{HttpReply, HttpSender, status_error};
use super::notification::{Notification, NotificationEvent, NotificationText, load_template, truncate_lines};
use super::target::{NotificationTarget, TargetContext, with_hint};
use crate::report::ReportTemplate;

/// Timeout of a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Hint for a URL that the chat service does not know.
pub(super) const UNKNOWN_ROBOT_HINT: &str = "the robot's URL is wrong, or the robot was removed";

/// What one chat service does in its own way.
pub(super) trait ChatService: fmt::Debug + Send + Sync + 'static {
    /// The kind in the configuration.
    const KIND: ChatKind;

    /// Formats a message.
    fn message_body(message: &NotificationText) -> Value;

    /// Signs a request with the group's secret.
    fn sign(url: Url, body: Value, _secret: &Secret, _now: Timestamp) -> (Url, Value) {
        (url, body)
    }

    /// Returns the error kind and hint of a code in a JSON reply. Rate limits are errors that are retried.
    fn classify_code(_code: i64) -> (ErrorKind, Option<&'static str>) {
        (ErrorKind::Refused, None)
    }

    /// Returns the error of a reply: by default, of a JSON reply with a code.
    fn check_reply(operation: &str, answer: &HttpReply) -> Option<Error> {
        check_coded_reply::<Self>(operation, answer)
    }
}

/// A chat group.
#[derive(Debug)]
pub(super) struct Chat<S> {
    url: WebhookUrl,
    secret: Option<Secret>,
    template: Option<ReportTemplate>,
    on: NotifyCondition,
    http: HttpSender,
    service: PhantomData<S>,
}

/// Builds the configured groups of a service.
pub(super) fn build<S: ChatService>(
    notify: &NotifyConfig,
    context: &TargetContext<'_>,
) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let build = |configured: &ChatConfig| {
        let template = load_template(configured.template.as_deref(), context.folder)?;
        let ChatConfig { url, secret, on, .. } = configured.clone();
        let chat = Chat::<S> { url, secret, template, on, http: context.http.clone(), service: PhantomData };
        Ok(Box::new(chat) as Box<dyn NotificationTarget>)
    };
    notify.chats.iter().filter(|chat| chat.kind == S::KIND).map(build).collect()
}

#[async_trait]
impl<S: ChatService> NotificationTarget for Chat<S> {
    fn key(&self) -> &'static str {
        S::KIND.key()
    }

    /// The URL, which contains a secret.
    fn address(&self) -> String {
        self.url.expose().to_string()
    }

    fn label(&self) -> String {
        self.url.to_string()
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        event.meets(self.on)
    }

    async fn send(&self, notification: &Notification<'_>) -> Result<()> {
        let body = S::message_body(&NotificationText::render(notification, self.template.as_ref()).await?);
        let operation = format!("sending a message to {} by {}", S::KIND.name(), self.url);
        // Once for each attempt: signatures expire soon.
        let request = |client: &reqwest::Client| {
            let (url, body) = (self.url.expose().clone(), body.clone());
            let (url, body) = match &self.secret {
                Some(secret) => S::sign(url, body, secret, Timestamp::now()),
                None => (url, body),
            };
            client.post(url).json(&body)
        };
        let read = |answer: &HttpReply| S::check_reply(&operation, answer);
        self.http.send(self.url.expose(), &operation, SEND_TIMEOUT, request, read).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        format!("{} notification failed: {}", S::KIND.name(), with_hint(error))
    }
}

/// Returns the error of a JSON reply with an error code; 0 is success.
fn check_coded_reply<S: ChatService + ?Sized>(operation: &str, answer: &HttpReply) -> Option<Error> {
    let status = answer.status.as_u16();
    let Ok(reply) = serde_json::from_slice::<Value>(&answer.body) else {
        let detail = format!("HTTP {status}, not a {} response", S::KIND.name());
        return Some(status_error(operation, answer, &detail));
    };
    let number = |names: &[&str]| names.iter().find_map(|name| reply.get(*name)?.as_i64());
    let code = number(&["errcode", "code", "StatusCode"]);
    if answer.status.is_success() && code == Some(0) {
        return None;
    }
    let text = ["errmsg", "msg", "StatusMessage"].iter().find_map(|name| reply.get(*name)?.as_str());
    let code = code.unwrap_or(-1);
    let detail = format!("{} {code}: {}", S::KIND.name(), sanitize_within(text.unwrap_or("no message"), 200));
    if !answer.status.is_success() {
        return Some(status_error(operation, answer, &detail));
    }
    let (kind, hint) = S::classify_code(code);
    let error = Error::new(kind, operation, detail).with_status(status, Some(code.to_string()));
    Some(match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
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
