//! DingTalk, by custom robots (open.dingtalk.com/document/robots/custom-robot-access).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_config::ChatKind;
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use crate::notify::chat::{ChatService, UNKNOWN_ROBOT_HINT, plain_text};
use crate::notify::notification::NotificationText;

/// DingTalk's formats, signatures and error codes.
#[derive(Debug)]
pub(super) struct DingTalk;

impl ChatService for DingTalk {
    const KIND: ChatKind = ChatKind::DingTalk;

    /// Formats a message. The limit of the whole body is 20 KB.
    fn message_body(message: &NotificationText) -> Value {
        json!({"msgtype": "text", "text": {"content": plain_text(message, 9_000)}})
    }

    fn sign(url: Url, body: Value, secret: &Secret, now: Timestamp) -> (Url, Value) {
        (signed_url(url, secret, now), body)
    }

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
}

/// Adds the signature to the URL.
fn signed_url(mut url: Url, secret: &Secret, now: Timestamp) -> Url {
    let time = now.as_millisecond();
    let text = format!("{time}\n{}", secret.expose());
    let sign = STANDARD.encode(SigningKey::new(secret).sign_raw(text.as_bytes()));
    url.query_pairs_mut().append_pair("timestamp", &time.to_string()).append_pair("sign", &sign);
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_dingtalk() {
        assert_cuts_long_text(|message| DingTalk::message_body(message)["text"]["content"].clone(), 10_000);
    }
}
