//! DingTalk, by custom robots (open.dingtalk.com/document/robots/custom-robot-access).

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_config::{ChatKind, NotifyConfig};
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use crate::notify::chat::{Chat, UNKNOWN_ROBOT_HINT, plain_text};
use crate::notify::notification::NotificationEvent;
use crate::notify::notification::{Notification, NotificationText};
use crate::notify::target::{NotificationTarget, TargetContext};

/// A DingTalk group.
#[derive(Debug)]
struct DingTalk(Chat);

/// Builds the configured groups.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    Chat::build_all(ChatKind::DingTalk, notify, context, DingTalk)
}

#[async_trait]
impl NotificationTarget for DingTalk {
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
            Some(secret) => (sign(self.0.url(), secret, Timestamp::now()), body.clone()),
            None => (self.0.url(), body.clone()),
        };
        let check = |operation: &str, answer: &_| self.0.check_coded_reply(operation, answer, classify_code);
        self.0.post(request, check).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        self.0.describe_failure(error)
    }
}

/// Formats a message. The limit of the whole body is 20 KB.
fn message_body(message: &NotificationText) -> Value {
    json!({"msgtype": "text", "text": {"content": plain_text(message, 9_000)}})
}

/// Adds the signature to the URL.
fn sign(mut url: Url, secret: &Secret, now: Timestamp) -> Url {
    let time = now.as_millisecond();
    let text = format!("{time}\n{}", secret.expose());
    let sign = STANDARD.encode(SigningKey::new(secret).sign_raw(text.as_bytes()));
    url.query_pairs_mut().append_pair("timestamp", &time.to_string()).append_pair("sign", &sign);
    url
}

/// Returns the error kind and hint of a reply code. Rate limits are errors that are retried.
fn classify_code(code: i64) -> (ErrorKind, Option<&'static str>) {
    match code {
        130_101 => (ErrorKind::RateLimited, None),
        -1 => (ErrorKind::ServerError, None),
        310_000 => (
            ErrorKind::Denied,
            Some(
                "rejected by the robot's security settings: check `secret`, the clock and IP address of this machine, \
                 and the keyword",
            ),
        ),
        300_001 | 300_005 => (ErrorKind::Denied, Some(UNKNOWN_ROBOT_HINT)),
        _ => (ErrorKind::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_dingtalk() {
        assert_cuts_long_text(|message| message_body(message)["text"]["content"].clone(), 10_000);
    }
}
