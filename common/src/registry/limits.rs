//! Limits of the registry client, as listed in the documentation.

use super::credentials::HELPER_LIMIT;
use super::{
    ClientSettings, MAX_REPOSITORY_NOTES, answer, auth, catalog, listing_memory, page_reader, paged, referrers,
    retry_after, sending, tags, transport,
};
use crate::limits::{Limit, Page};

/// Returns the limits of the registry client.
pub fn limits() -> Vec<Limit> {
    use Page::{Operating, Security};
    vec![
        Limit::bytes(Security, "a page of tags", tags::MAX_PAGE_BYTES as u64, "the repository is not listed"),
        Limit::bytes(Security, "a page of a catalog", catalog::MAX_PAGE_BYTES as u64, "the registry is not listed"),
        Limit::count(Security, "entries of a listing", paged::MAX_ENTRIES, "the repository is not listed"),
        Limit::bytes(Security, "the texts of a listing", paged::MAX_TEXTS_BYTES, "the repository is not listed"),
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
            ClientSettings::default().stall * paged::LISTING_STALLS,
            "the repository is not listed",
        ),
        Limit::count(
            Security,
            "pages in a row with nothing new",
            paged::MAX_BARREN_PAGES as u64,
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
            MAX_REPOSITORY_NOTES as u64,
            "notes that were not used for longest are forgotten and learnt again",
        ),
        Limit::time(
            Security,
            "the answer of a credential helper",
            HELPER_LIMIT,
            "the helper is killed; the task fails",
        ),
        Limit::time(
            Operating,
            "a Retry-After that no quota confirms",
            retry_after::LONGEST_UNCONFIRMED,
            "a longer one is cut to that",
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
