//! Telegram group: the report as messages, or as a file if it is too long (core.telegram.org/bots/api).

use async_trait::async_trait;
use imgsync_config::{NotifyCondition, NotifyConfig, TelegramConfig};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use reqwest::multipart::{Form, Part};
use serde::Deserialize;
use serde_json::json;
use std::fmt;
use std::time::Duration;
use url::Url;

use crate::notify::http_sender::{HttpReply, HttpSender, status_error};
use crate::notify::notification::{Notification, NotificationEvent, NotificationText};
use crate::notify::split::{split, utf16_length};
use crate::notify::target::{NotificationTarget, TargetContext};
use crate::notify::truncating_writer::TruncatingWriter;
use crate::report::{Report, ReportLevel, write_text};

const DEFAULT_API_URL: &str = "https://api.telegram.org";
/// Maximum length of a message, in UTF-16 units after its entities are parsed.
const MAX_MESSAGE_LENGTH: usize = 4096;
/// Maximum number of messages; a longer report is attached as a file.
const MAX_MESSAGES: usize = 3;
/// Maximum size of a file: bots may send 50 MB, including the form.
const MAX_FILE_BYTES: usize = 49_000_000;
/// Timeout of a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a file.
const FILE_TIMEOUT: Duration = Duration::from_secs(300);

/// A bot and its group.
struct Telegram {
    api: Url,
    token: Secret,
    group: String,
    on: NotifyCondition,
    http: HttpSender,
}

impl fmt::Debug for Telegram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Telegram({} at {})", self.group, self.api)
    }
}

/// Reply of the Bot API.
#[derive(Deserialize)]
struct BotApiReply {
    ok: bool,
    #[serde(default)]
    description: String,
    #[serde(default)]
    parameters: ReplyParameters,
}

#[derive(Default, Deserialize)]
struct ReplyParameters {
    retry_after: Option<u64>,
    migrate_to_chat_id: Option<i64>,
}

/// Builds the configured group.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let telegram = notify.telegram.as_ref().and_then(|configured| Telegram::new(configured, context.http.clone()));
    Ok(telegram.into_iter().map(|telegram| Box::new(telegram) as Box<dyn NotificationTarget>).collect())
}

#[async_trait]
impl NotificationTarget for Telegram {
    fn key(&self) -> &'static str {
        "telegram"
    }

    fn address(&self) -> String {
        format!("{} {}", self.api, self.group)
    }

    fn label(&self) -> String {
        format!("{} at {}", self.group, self.api)
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        event.meets(self.on)
    }

    async fn send(&self, notification: &Notification<'_>) -> Result<()> {
        match notification {
            Notification::BatchEnded { report, level } => self.send_report(report, *level).await,
            Notification::RegistryThrottled(notice) => self.send_message(&NotificationText::for_throttle(notice)).await,
            Notification::Test => self.send_message(&NotificationText::for_test()).await,
        }
    }

    fn describe_failure(&self, error: &Error) -> String {
        format!("Telegram notification failed: {error}")
    }
}

impl Telegram {
    /// Creates the target, or returns `None` if token or group are missing.
    fn new(configured: &TelegramConfig, http: HttpSender) -> Option<Telegram> {
        Some(Telegram {
            api: configured.api.clone().or_else(|| DEFAULT_API_URL.parse().ok())?,
            token: configured.token.clone()?,
            group: configured.group.clone()?,
            on: configured.on,
            http,
        })
    }

    /// Sends the report.
    async fn send_report(&self, report: &Report<'_>, level: ReportLevel) -> Result<()> {
        let mut file = TruncatingWriter::with_limit(MAX_FILE_BYTES);
        write_text(report, level, report.text_style(), &mut file).await?;
        let text = String::from_utf8_lossy(&file.text).into_owned();
        let parts = if utf16_length(&text) <= MAX_MESSAGE_LENGTH * MAX_MESSAGES {
            split(&text, MAX_MESSAGE_LENGTH)
        } else {
            Vec::new()
        };
        if (1..=MAX_MESSAGES).contains(&parts.len()) {
            for part in parts {
                self.send_text(&part).await?;
            }
            return Ok(());
        }
        let mut totals = Vec::new();
        write_text(report, ReportLevel::Totals, report.text_style(), &mut totals).await?;
        let totals = format!("{}\nThe rest is in the file.", String::from_utf8_lossy(&totals).trim_end());
        for part in split(&totals, MAX_MESSAGE_LENGTH) {
            self.send_text(&part).await?;
        }
        let id = report.batch.id;
        let text = match file.is_truncated {
            false => text,
            // Not within a line or a character.
            true => {
                let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
                format!(
                    "{lines}\nTruncated. Full report: imgsync batch report {id} --report=all.txt --report-level 3\n"
                )
            }
        };
        self.send_file(&format!("imgsync-{id}.txt"), text).await
    }

    async fn send_message(&self, message: &NotificationText) -> Result<()> {
        self.send_text(&format!("{}\n\n{}", message.title, message.text)).await
    }

    /// Sends preformatted text.
    async fn send_text(&self, text: &str) -> Result<()> {
        let url = self.method_url("sendMessage")?;
        let body = json!({
            "chat_id": self.group,
            "text": format!("<pre>{}</pre>", escape(text)),
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": true},
        });
        let operation = format!("sending a message to {} at {}", self.group, self.api);
        let read = |answer: &HttpReply| self.check_reply(&operation, answer);
        self.http.send(&url, &operation, MESSAGE_TIMEOUT, |client| client.post(url.clone()).json(&body), read).await
    }

    async fn send_file(&self, name: &str, text: String) -> Result<()> {
        let url = self.method_url("sendDocument")?;
        let text = bytes::Bytes::from(text);
        let operation = format!("sending a file to {} at {}", self.group, self.api);
        let read = |answer: &HttpReply| self.check_reply(&operation, answer);
        let request = |client: &reqwest::Client| {
            let length = text.len() as u64;
            let part = Part::stream_with_length(text.clone(), length).file_name(name.to_owned());
            let part = part.mime_str("text/plain; charset=utf-8").unwrap_or_else(|_| Part::bytes(Vec::new()));
            client.post(url.clone()).multipart(Form::new().text("chat_id", self.group.clone()).part("document", part))
        };
        self.http.send(&url, &operation, FILE_TIMEOUT, request, read).await
    }

    /// Returns the URL of an API method, which contains the token.
    fn method_url(&self, name: &str) -> Result<Url> {
        let base = self.api.as_str().trim_end_matches('/');
        format!("{base}/bot{}/{name}", self.token.expose()).parse().map_err(|_| {
            Error::new(
                ErrorKind::Invalid,
                format!("calling Telegram at {}", self.api),
                "the token is not valid in a URL",
            )
        })
    }

    /// Returns the error of a reply.
    fn check_reply(&self, operation: &str, answer: &HttpReply) -> Option<Error> {
        let Ok(reply) = serde_json::from_slice::<BotApiReply>(&answer.body) else {
            return Some(status_error(
                operation,
                answer,
                &format!("HTTP {}, not a Bot API response", answer.status.as_u16()),
            ));
        };
        if reply.ok && answer.status.is_success() {
            return None;
        }
        // A server other than Telegram's could echo the token.
        let description = reply.description.replace(self.token.expose(), "***");
        let mut detail = format!("HTTP {}, {}", answer.status.as_u16(), sanitize_within(&description, 200));
        match answer.status.as_u16() {
            401 | 404 => detail.push_str(" (is the token right?)"),
            403 => detail.push_str(" (is the bot a member of the group, and may it post?)"),
            400 if reply.parameters.migrate_to_chat_id.is_some() => {
                let id = reply.parameters.migrate_to_chat_id.unwrap_or_default();
                detail.push_str(&format!(" (the group was migrated: its chat ID is now {id})"));
            }
            400 if description.contains("chat not found") => {
                detail.push_str(" (is the chat ID right, and is the bot a member?)");
            }
            _ => {}
        }
        let delay = reply.parameters.retry_after.map(Duration::from_secs);
        let error = status_error(operation, answer, &detail);
        Some(match delay {
            Some(wait) => error.with_retry_after(Some(wait)),
            None => error,
        })
    }
}

/// Escapes text for Telegram's HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape("a<b>&amp;</pre>"), "a&lt;b&gt;&amp;amp;&lt;/pre&gt;");
    }
}
