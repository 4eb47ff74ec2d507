//! Feishu and Lark, by custom robots (open.feishu.cn/document/client-docs/bot-v3/add-custom-bot).

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

/// Feishu's formats, signatures and error codes.
#[derive(Debug)]
pub(super) struct Feishu;

impl ChatService for Feishu {
    const KIND: ChatKind = ChatKind::Feishu;

    /// Formats a message. The limit of the whole body is 20 KB, and a Chinese character takes six bytes of it.
    fn message_body(message: &NotificationText) -> Value {
        json!({"msg_type": "text", "content": {"text": plain_text(message, 9_000)}})
    }

    fn sign(url: Url, body: Value, secret: &Secret, now: Timestamp) -> (Url, Value) {
        (url, signed_body(body, secret, now))
    }

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
}

/// Adds the signature to a body.
fn signed_body(mut body: Value, secret: &Secret, now: Timestamp) -> Value {
    let time = now.as_second();
    // Feishu's key is the text that is usually signed, and the signed text is empty.
    let key = SigningKey::new(&Secret::new(format!("{time}\n{}", secret.expose())));
    body["timestamp"] = time.to_string().into();
    body["sign"] = STANDARD.encode(key.sign_raw(b"")).into();
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_feishu() {
        assert_cuts_long_text(|message| Feishu::message_body(message)["content"]["text"].clone(), 10_000);
    }
}
