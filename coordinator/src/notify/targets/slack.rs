//! Slack, by incoming webhooks (api.slack.com/messaging/webhooks).

use imgsync_config::ChatKind;
use imgsync_oci::error::Error;
use serde_json::{Value, json};

use crate::notify::chat::ChatService;
use crate::notify::http_sender::{HttpReply, status_error};
use crate::notify::notification::{NotificationText, truncate_lines};

/// Slack's formats, signatures and error codes.
#[derive(Debug)]
pub(super) struct Slack;

impl ChatService for Slack {
    const KIND: ChatKind = ChatKind::Slack;

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
}

/// Escapes text for Slack's markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn nothing_in_a_text_is_markup_of_slack() {
        let title = "imgsync: 1 of 2 images failed".to_owned();
        let body = Slack::message_body(&NotificationText {
            title,
            text: "a <!channel> & ```b```".to_owned(),
            is_markup: false,
        });
        assert_eq!(body["text"], "*imgsync: 1 of 2 images failed*\n```\na &lt;!channel&gt; &amp; '''b'''\n```");
    }

    #[test]
    fn a_long_text_is_cut_for_slack() {
        assert_cuts_long_text(|message| Slack::message_body(message)["text"].clone(), 4_000 * 4);
    }
}
