//! Chat robots of Slack, WeCom, Feishu (Lark) and DingTalk. One text message per batch, truncated to the limit of the
//! chat.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_config::ChatKind;
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use super::http_sender::{HttpReply, HttpSender, status_error};
use super::notification::{Notification, load_template, truncate_lines};
use crate::report::ReportTemplate;

/// Timeout of a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A chat group.
#[derive(Debug)]
pub(super) struct Chat {
    kind: ChatKind,
    url: imgsync_config::WebhookUrl,
    secret: Option<Secret>,
    pub(super) template: Option<ReportTemplate>,
    http: HttpSender,
}

impl Chat {
    /// Creates the channel from its configuration.
    pub(super) fn new(configured: &imgsync_config::ChatConfig, folder: &Path, http: HttpSender) -> Result<Chat> {
        let template = load_template(configured.template.as_deref(), folder)?;
        let imgsync_config::ChatConfig { kind, url, secret, .. } = configured.clone();
        Ok(Chat { kind, url, secret, template, http })
    }

    /// Returns the display name of the chat service.
    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Returns the configuration key of the chat service.
    pub(super) fn key(&self) -> &'static str {
        self.kind.key()
    }

    /// Identifies the recipient by its URL, which contains a secret.
    pub(super) fn address(&self) -> String {
        self.url.expose().to_string()
    }

    /// Sends a message.
    pub(super) async fn send(&self, message: &Notification) -> Result<()> {
        let operation = format!("sending a message to {} by {}", self.kind.name(), self.url);
        let read = |answer: &HttpReply| match self.kind {
            ChatKind::Slack => check_slack_reply(&operation, answer),
            ChatKind::WeCom | ChatKind::Feishu | ChatKind::DingTalk => self.check_reply(&operation, answer),
        };
        // Signed again for each attempt, because signatures expire soon.
        let request = |client: &reqwest::Client| {
            let (url, body) = self.signed(message, Timestamp::now());
            client.post(url).json(&body)
        };
        self.http.send(self.url.expose(), &operation, SEND_TIMEOUT, request, read).await
    }

    /// Returns URL and body, with a signature if there is a secret.
    fn signed(&self, message: &Notification, now: Timestamp) -> (Url, Value) {
        let mut url = self.url.expose().clone();
        let mut body = message_body(self.kind, message);
        let Some(secret) = &self.secret else { return (url, body) };
        match self.kind {
            ChatKind::Feishu => {
                let time = now.as_second();
                // Feishu's key is the text that is usually signed, and the signed text is empty.
                let key = SigningKey::new(&Secret::new(format!("{time}\n{}", secret.expose())));
                body["timestamp"] = time.to_string().into();
                body["sign"] = STANDARD.encode(key.sign_raw(b"")).into();
            }
            ChatKind::DingTalk => {
                let time = now.as_millisecond();
                let text = format!("{time}\n{}", secret.expose());
                let sign = STANDARD.encode(SigningKey::new(secret).sign_raw(text.as_bytes()));
                url.query_pairs_mut().append_pair("timestamp", &time.to_string()).append_pair("sign", &sign);
            }
            ChatKind::Slack | ChatKind::WeCom => {}
        }
        (url, body)
    }

    /// Returns the error of a reply with an error code.
    fn check_reply(&self, operation: &str, answer: &HttpReply) -> Option<Error> {
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
        let (kind, hint) = classify_code(self.kind, code);
        let error = Error::new(kind, operation, detail).with_status(status, Some(code.to_string()));
        Some(match hint {
            "" => error,
            hint => error.with_hint(hint),
        })
    }
}

/// Returns the error kind and hint of a reply code. Rate limits are errors that are retried.
fn classify_code(kind: ChatKind, code: i64) -> (ErrorKind, &'static str) {
    match (kind, code) {
        (ChatKind::DingTalk, 130_101)
        | (ChatKind::Feishu, 11_232 | 99_991_400)
        | (ChatKind::WeCom, 45_009 | 45_033) => (ErrorKind::RateLimited, ""),
        (ChatKind::DingTalk | ChatKind::WeCom, -1) => (ErrorKind::ServerError, ""),
        (ChatKind::DingTalk, 310_000) => (
            ErrorKind::Denied,
            "rejected by the robot's security settings: check `secret`, the clock and IP address of this machine, and \
             the keyword",
        ),
        (ChatKind::DingTalk, 300_001 | 300_005) | (ChatKind::WeCom, 93_000) => {
            (ErrorKind::Denied, "the robot's URL is wrong, or the robot was removed")
        }
        (ChatKind::Feishu, 19_021) => (ErrorKind::Denied, "check `secret` and the clock of this machine"),
        (ChatKind::Feishu, 19_022 | 19_024) => (
            ErrorKind::Denied,
            "the robot's security settings require a keyword, or another IP address than this machine's",
        ),
        (ChatKind::Feishu, 19_001) => (ErrorKind::Denied, "the robot's URL is wrong, or the robot was removed"),
        _ => (ErrorKind::Refused, ""),
    }
}

/// Returns the error of a reply. Slack replies with single words.
fn check_slack_reply(operation: &str, answer: &HttpReply) -> Option<Error> {
    if answer.status.is_success() {
        return None;
    }
    let body = String::from_utf8_lossy(&answer.body);
    let is_word = body.len() <= 60 && body.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !body.is_empty();
    let detail = match is_word {
        true => format!("HTTP {}: {body}", answer.status.as_u16()),
        false => format!("HTTP {}", answer.status.as_u16()),
    };
    let error = status_error(operation, answer, &detail);
    Some(match answer.status.as_u16() {
        403 | 404 | 410 => error.with_hint("the webhook URL is wrong, or was revoked with its app or channel"),
        _ => error,
    })
}

/// Formats a message for a chat service.
fn message_body(kind: ChatKind, message: &Notification) -> Value {
    let Notification { title, text, is_markup } = message;
    match kind {
        // The limit is 40,000 characters; Slack folds text after 4,000.
        ChatKind::Slack => {
            let text = match is_markup {
                true => truncate_lines(text, 3_900, |text| text.chars().count()),
                false => {
                    let fenced =
                        truncate_lines(&escape(text).replace("```", "'''"), 3_500, |text| text.chars().count());
                    format!("*{}*\n```\n{fenced}\n```", escape(title))
                }
            };
            json!({"text": text})
        }
        // The limit is 2,048 bytes.
        ChatKind::WeCom => json!({"msgtype": "text", "text": {"content": full_text(message, 2_000)}}),
        // The limit of the whole body is 20 KB, and a Chinese character takes six bytes of it.
        ChatKind::Feishu => json!({"msg_type": "text", "content": {"text": full_text(message, 9_000)}}),
        ChatKind::DingTalk => json!({"msgtype": "text", "text": {"content": full_text(message, 9_000)}}),
    }
}

fn full_text(message: &Notification, most: usize) -> String {
    match message.is_markup {
        true => truncate_lines(&message.text, most, str::len),
        false => truncate_lines(&format!("{}\n\n{}", message.title, message.text), most, str::len),
    }
}

/// Escapes text for Slack's markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Notification {
        Notification { title: "imgsync: 1 of 2 images failed".to_owned(), text: text.to_owned(), is_markup: false }
    }

    #[test]
    fn nothing_in_a_text_is_markup_of_slack() {
        let body = message_body(ChatKind::Slack, &message("a <!channel> & ```b```"));
        assert_eq!(body["text"], "*imgsync: 1 of 2 images failed*\n```\na &lt;!channel&gt; &amp; '''b'''\n```");
    }

    #[test]
    fn a_long_text_is_cut_for_each() {
        let long = "镜像 gcr.io/a/b:v1 失败\n".repeat(2_000);
        for (kind, pointer, most) in [
            (ChatKind::Slack, "/text", 4_000 * 4),
            (ChatKind::WeCom, "/text/content", 2_048),
            (ChatKind::Feishu, "/content/text", 10_000),
            (ChatKind::DingTalk, "/text/content", 10_000),
        ] {
            let body = message_body(kind, &message(&long));
            let text = body.pointer(pointer).unwrap().as_str().unwrap();
            assert!(text.len() <= most && text.contains("more lines"), "{kind:?}: {}", text.len());
        }
    }
}
