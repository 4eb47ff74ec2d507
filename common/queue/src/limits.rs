//! Documented limits of the queue.

use imgsync_oci::limits::{DocsPage, Limit};

/// Returns the documented limits of the queue.
pub fn limits() -> Vec<Limit> {
    vec![
        Limit::count(
            DocsPage::Security,
            "messages in `sync.refused`",
            crate::MAX_REFUSED_MESSAGES.unsigned_abs().into(),
            "the oldest are dropped",
        ),
        Limit::bytes(
            DocsPage::Security,
            "all messages in `sync.refused`",
            crate::MAX_REFUSED_BYTES.unsigned_abs().into(),
            "the oldest are dropped",
        ),
    ]
}
