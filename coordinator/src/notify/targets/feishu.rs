//! Feishu and Lark, by custom robots (open.feishu.cn/document/client-docs/bot-v3/add-custom-bot).

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_config::{ChatKind, NotifyConfig};
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::notify::chat::{Chat, UNKNOWN_ROBOT_HINT, plain_text};
use crate::notify::notification::NotificationEvent;
use crate::notify::notification::{Notification, NotificationText};
use crate::notify::target::{NotificationTarget, TargetContext};

/// A Feishu group.
#[derive(Debug)]
struct Feishu(Chat);

/// Builds the configured groups.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    Chat::build_all(ChatKind::Feishu, notify, context, Feishu)
}

#[async_trait]
impl NotificationTarget for Feishu {
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
        let request = || match self.0.secret() {
            Some(secret) => (self.0.url(), sign(body.clone(), secret, Timestamp::now())),
            None => (self.0.url(), body.clone()),
        };
        let check = |operation: &str, answer: &_| self.0.check_coded_reply(operation, answer, classify_code);
        self.0.post(request, check).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        self.0.describe_failure(error)
    }
}

/// Formats a message. The limit of the whole body is 20 KB, and a Chinese character takes six bytes of it.
fn message_body(message: &NotificationText) -> Value {
    json!({"msg_type": "text", "content": {"text": plain_text(message, 9_000)}})
}

/// Adds the signature to a body.
fn sign(mut body: Value, secret: &Secret, now: Timestamp) -> Value {
    let time = now.as_second();
    // Feishu's key is the text that is usually signed, and the signed text is empty.
    let key = SigningKey::new(&Secret::new(format!("{time}\n{}", secret.expose())));
    body["timestamp"] = time.to_string().into();
    body["sign"] = STANDARD.encode(key.sign_raw(b"")).into();
    body
}

/// Returns the error kind and hint of a reply code. Rate limits are errors that are retried.
fn classify_code(code: i64) -> (ErrorKind, Option<&'static str>) {
    match code {
        11_232 | 99_991_400 => (ErrorKind::RateLimited, None),
        19_021 => (ErrorKind::Denied, Some("check `secret` and the clock of this machine")),
        19_022 | 19_024 => (
            ErrorKind::Denied,
            Some("the robot's security settings require a keyword, or another IP address than this machine's"),
        ),
        19_001 => (ErrorKind::Denied, Some(UNKNOWN_ROBOT_HINT)),
        _ => (ErrorKind::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_feishu() {
        assert_cuts_long_text(|message| message_body(message)["content"]["text"].clone(), 10_000);
    }
}
