//! Limits of the registry client, as listed in the documentation.

use super::credentials::HELPER_TIMEOUT;
use super::{
    ClientSettings, MAX_CACHED_REPOSITORIES, auth, catalog, listing_memory, page_reader, pagination, referrers,
    response, retry_after, send_progress, tags, transport,
};
use crate::limits::{DocsPage, Limit};

/// Returns the limits of the registry client.
pub fn limits() -> Vec<Limit> {
    use DocsPage::{Operating, Security};
    vec![
        Limit::bytes(Security, "a page of tags", tags::MAX_PAGE_BYTES as u64, "the repository is not listed"),
        Limit::bytes(Security, "a page of a catalog", catalog::MAX_PAGE_BYTES as u64, "the registry is not listed"),
        Limit::count(Security, "entries of a listing", pagination::MAX_ENTRIES, "the repository is not listed"),
        Limit::bytes(Security, "the texts of a listing", pagination::MAX_TEXTS_BYTES, "the repository is not listed"),
        Limit::bytes(
            Security,
            "one text in a listing",
            page_reader::MAX_TEXT_BYTES as u64,
            "the repository is not listed",
        ),
        Limit::bytes(
            Security,
            "memory of all listings of a process",
            listing_memory::MAX_LISTINGS_BYTES,
            "listings wait; only the one that is wanted first goes on, up to its own limits",
        ),
        Limit::count(Security, "referrers of a manifest", referrers::MAX_REFERRERS, "the task fails"),
        Limit::time(
            Security,
            "waiting for a registry in a listing, with the default stall limit",
            ClientSettings::default().stall_timeout * pagination::MAX_LISTING_STALLS,
            "the repository is not listed",
        ),
        Limit::count(
            Security,
            "pages in a row with nothing new",
            pagination::MAX_EMPTY_PAGES as u64,
            "the repository is not listed",
        ),
        Limit::bytes(Security, "a token", auth::MAX_TOKEN_BYTES as u64, "the request fails"),
        Limit::count(
            Security,
            "tokens remembered for a registry",
            auth::MAX_TOKENS as u64,
            "tokens that were not used for longest are forgotten and requested again",
        ),
        Limit::count(
            Security,
            "notes on repositories of a registry",
            MAX_CACHED_REPOSITORIES as u64,
            "notes that were not used for longest are forgotten and learnt again",
        ),
        Limit::time(
            Security,
            "the answer of a credential helper",
            HELPER_TIMEOUT,
            "the helper is killed; the task fails",
        ),
        Limit::time(
            Operating,
            "a Retry-After that no quota confirms",
            retry_after::MAX_UNCONFIRMED_DELAY,
            "a longer one is cut to that",
        ),
        Limit::count(Security, "redirects of a request", transport::MAX_REDIRECTS as u64, "the request fails"),
        Limit::bytes(
            Security,
            "bytes a second of a body that is read, over the stall limit, at least",
            response::MIN_BODY_BYTES_PER_SECOND,
            "the request fails and is tried again",
        ),
        Limit::bytes(
            Security,
            "bytes a second that a target takes, over the stall limit, at least",
            send_progress::MIN_SEND_BYTES_PER_SECOND,
            "the request fails and is tried again",
        ),
        Limit::time(
            Security,
            "the body of an error answer",
            response::ERROR_BODY_TIMEOUT,
            "what came is the error's text",
        ),
    ]
}
