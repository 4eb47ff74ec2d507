//! WeCom, by group robots (developer.work.weixin.qq.com/document/path/91770).

use async_trait::async_trait;
use imgsync_config::{ChatKind, NotifyConfig};
use imgsync_oci::error::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::notify::chat::{Chat, UNKNOWN_ROBOT_HINT, plain_text};
use crate::notify::notification::NotificationEvent;
use crate::notify::notification::{Notification, NotificationText};
use crate::notify::target::{NotificationTarget, TargetContext};

/// A WeCom group.
#[derive(Debug)]
struct WeCom(Chat);

/// Builds the configured groups.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    Chat::build_all(ChatKind::WeCom, notify, context, WeCom)
}

#[async_trait]
impl NotificationTarget for WeCom {
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
        let check = |operation: &str, answer: &_| self.0.check_coded_reply(operation, answer, classify_code);
        self.0.post(|| (self.0.url(), body.clone()), check).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        self.0.describe_failure(error)
    }
}

/// Formats a message. The limit is 2,048 bytes.
fn message_body(message: &NotificationText) -> Value {
    json!({"msgtype": "text", "text": {"content": plain_text(message, 2_000)}})
}

/// Returns the error kind and hint of a reply code. Rate limits are errors that are retried.
fn classify_code(code: i64) -> (ErrorKind, Option<&'static str>) {
    match code {
        45_009 | 45_033 => (ErrorKind::RateLimited, None),
        -1 => (ErrorKind::ServerError, None),
        93_000 => (ErrorKind::Denied, Some(UNKNOWN_ROBOT_HINT)),
        _ => (ErrorKind::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_wecom() {
        assert_cuts_long_text(|message| message_body(message)["text"]["content"].clone(), 2_048);
    }
}
