//! Documented limits of messages.

use imgsync_oci::limits::{DocsPage, Limit};

use crate::batch::MAX_MESSAGE_BYTES;

/// Returns the documented limits of messages.
pub fn limits() -> Vec<Limit> {
    vec![Limit::bytes(
        DocsPage::Security,
        "a message on the queue",
        MAX_MESSAGE_BYTES as u64,
        "the message is refused; its size and digest are kept instead",
    )]
}
