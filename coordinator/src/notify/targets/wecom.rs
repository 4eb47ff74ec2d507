//! WeCom, by group robots (developer.work.weixin.qq.com/document/path/91770).

use imgsync_config::ChatKind;
use imgsync_oci::error::ErrorKind;
use serde_json::{Value, json};

use crate::notify::chat::{ChatService, UNKNOWN_ROBOT_HINT, plain_text};
use crate::notify::notification::NotificationText;

/// WeCom's formats, signatures and error codes.
#[derive(Debug)]
pub(super) struct WeCom;

impl ChatService for WeCom {
    const KIND: ChatKind = ChatKind::WeCom;

    /// Formats a message. The limit is 2,048 bytes.
    fn message_body(message: &NotificationText) -> Value {
        json!({"msgtype": "text", "text": {"content": plain_text(message, 2_000)}})
    }

    fn classify_code(code: i64) -> (ErrorKind, Option<&'static str>) {
        match code {
            45_009 | 45_033 => (ErrorKind::RateLimited, None),
            -1 => (ErrorKind::ServerError, None),
            93_000 => (ErrorKind::Denied, Some(UNKNOWN_ROBOT_HINT)),
            _ => (ErrorKind::Refused, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::chat::assert_cuts_long_text;

    #[test]
    fn a_long_text_is_cut_for_wecom() {
        assert_cuts_long_text(|message| WeCom::message_body(message)["text"]["content"].clone(), 2_048);
    }
}
