//! The limits of the registry client that the documentation states.

use super::credentials::HELPER_LIMIT;
use super::{ClientSettings, answer, catalog, paged, sending, tags, transport};
use crate::limits::{Limit, Page};

/// The rows of the registry client.
pub fn limits() -> Vec<Limit> {
    use Page::Security;
    vec![
        Limit::bytes(Security, "a page of tags", tags::MAX_PAGE_BYTES as u64, "the repository is not listed"),
        Limit::bytes(Security, "a page of a catalog", catalog::MAX_PAGE_BYTES as u64, "the registry is not listed"),
        Limit::count(Security, "entries of a listing", paged::MAX_ENTRIES as u64, "the repository is not listed"),
        Limit::time(
            Security,
            "waiting for a registry in a listing, with the default stall limit",
            ClientSettings::default().stall * paged::LISTING_STALLS,
            "the repository is not listed",
        ),
        Limit::count(
            Security,
            "pages in a row with nothing new",
            paged::MAX_BARREN_PAGES as u64,
            "the repository is not listed",
        ),
        Limit::time(
            Security,
            "the answer of a credential helper",
            HELPER_LIMIT,
            "the helper is killed; the task fails",
        ),
        Limit::count(Security, "redirects of a request", transport::MAX_REDIRECTS as u64, "the request fails"),
        Limit::bytes(
            Security,
            "bytes a second of a body that is read, over the stall limit, at least",
            answer::MIN_BODY_RATE,
            "the request fails and is tried again",
        ),
        Limit::bytes(
            Security,
            "bytes a second that a target takes, over the stall limit, at least",
            sending::MIN_SEND_RATE,
            "the request fails and is tried again",
        ),
        Limit::time(Security, "the body of an error answer", answer::ERROR_BODY_LIMIT, "what came is the error's text"),
    ]
}
