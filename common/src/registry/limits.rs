//! The limits of the registry client that the documentation states.

use super::{catalog, paged, tags, transport};
use crate::limits::{Limit, Page};

/// The rows of the registry client.
pub fn limits() -> Vec<Limit> {
    use Page::Security;
    vec![
        Limit::bytes(Security, "a page of tags", tags::MAX_PAGE_BYTES as u64, "the repository is not listed"),
        Limit::bytes(Security, "a page of a catalog", catalog::MAX_PAGE_BYTES as u64, "the registry is not listed"),
        Limit::count(Security, "entries of a listing", paged::MAX_ENTRIES as u64, "the repository is not listed"),
        Limit::count(
            Security,
            "pages in a row with nothing new",
            paged::MAX_BARREN_PAGES as u64,
            "the repository is not listed",
        ),
        Limit::count(Security, "redirects of a request", transport::MAX_REDIRECTS as u64, "the request fails"),
    ]
}
