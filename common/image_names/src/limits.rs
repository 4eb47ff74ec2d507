//! Documented limits of files with images.

use imgsync_oci::limits::{DocsPage, Limit};

/// Returns the documented limits of files with images.
pub fn limits() -> Vec<Limit> {
    use DocsPage::Security;
    let alias_values = crate::yaml::MAX_ALIAS_VALUES as u64;
    vec![
        Limit::bytes(Security, "a file with names of images", crate::MAX_FILE_BYTES as u64, "the file is not read"),
        Limit::count(
            Security,
            "values in a document with names of images",
            crate::yaml::MAX_VALUES as u64,
            "the document is not read",
        ),
        Limit::count(Security, "values that aliases add to such a document", alias_values, "the document is not read"),
        Limit::count(
            Security,
            "names of images in a file",
            crate::recorder::MAX_NAMES as u64,
            "the rest of the file is not read",
        ),
        Limit::count(
            Security,
            "places that are remembered of an image",
            crate::image_list::MAX_PLACES as u64,
            "the others are counted",
        ),
    ]
}
