//! Slack, by incoming webhooks (api.slack.com/messaging/webhooks).

use async_trait::async_trait;
use imgsync_config::{ChatKind, NotifyConfig};
use imgsync_oci::error::{Error, Result};
use serde_json::{Value, json};

use crate::notify::chat::Chat;
use crate::notify::http_sender::{HttpReply, status_error};
use crate::notify::notification::NotificationEvent;
use crate::notify::notification::{Notification, NotificationText, truncate_lines};
use crate::notify::target::{NotificationTarget, TargetContext};

/// A Slack channel.
#[derive(Debug)]
struct Slack(Chat);

/// Builds the configured channels.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    Chat::build_all(ChatKind::Slack, notify, context, Slack)
}

#[async_trait]
impl NotificationTarget for Slack {
    fn key(&self) -> &'static str {
        self.0.key()
    }

    fn address(&self) -> String {
        self.0.address()
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        self.0.wants(event)
    }

    async fn send(&self, notification: &Notification<'_>) -> Result<()> {
        let body = message_body(&self.0.render(notification).await?);
        self.0.post(|| (self.0.url(), body.clone()), check_reply).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        self.0.describe_failure(error)
    }
}

/// Formats a message. The limit is 40,000 characters; Slack folds text after 4,000.
fn message_body(message: &NotificationText) -> Value {
    let NotificationText { title, text, is_markup } = message;
    let text = match is_markup {
        true => truncate_lines(text, 3_900, |text| text.chars().count()),
        false => {
            let fenced = truncate_lines(&escape(text).replace("```", "'''"), 3_500, |text| text.chars().count());
            format!("*{}*\n```\n{fenced}\n```", escape(title))
        }
    };
    json!({"text": text})
}

/// Escapes text for Slack's markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the error of a reply. Slack replies with single words.
fn check_reply(operation: &str, answer: &HttpReply) -> Option<Error> {
    if answer.status.is_success() {
        return None;
    }
    let said = String::from_utf8_lossy(&answer.body);
    let is_word = said.len() <= 60 && said.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !said.is_empty();
    let detail = match is_word {
        true => format!("HTTP {}: {said}", answer.status.as_u16()),
        false => format!("HTTP {}", answer.status.as_u16()),
    };
    let error = status_error(operation, answer, &detail);
    Some(match answer.status.as_u16() {
        403 | 404 | 410 => error.with_hint("the webhook URL is wrong, or was revoked with its app or channel"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn nothing_in_a_text_is_markup_of_slack() {
        let title = "imgsync: 1 of 2 images failed".to_owned();
        let body =
            message_body(&NotificationText { title, text: "a <!channel> & ```b```".to_owned(), is_markup: false });
        assert_eq!(body["text"], "*imgsync: 1 of 2 images failed*\n```\na &lt;!channel&gt; &amp; '''b'''\n```");
    }

    #[test]
    fn a_long_text_is_cut_for_slack() {
        assert_cuts_long_text(|message| message_body(message)["text"].clone(), 4_000 * 4);
    }
}
