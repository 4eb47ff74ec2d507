//! Documented limits of image layouts.

use imgsync_oci::limits::{DocsPage, Limit};

/// Returns the documented limits of image layouts.
pub fn limits() -> Vec<Limit> {
    vec![Limit::time(
        DocsPage::Operating,
        "waiting for another program's lock on an image layout",
        crate::lock::LOCK_TIMEOUT,
        "the attempt fails and is retried",
    )]
}
