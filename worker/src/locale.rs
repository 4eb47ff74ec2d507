//! The locale of this process.

use imgsync_oci::locale;

/// Returns whether the locale of this process shows more than ASCII.
pub fn is_process_utf8() -> bool {
    locale::is_utf8(|name| std::env::var(name).ok())
}
