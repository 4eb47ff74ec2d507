//! Limits of the registry client, as listed in the documentation.

use super::credentials::HELPER_TIMEOUT;
use super::providers::identity;
use super::{
    ClientSettings, MAX_CACHED_REPOSITORIES, auth, catalog, listing_memory, page_reader, pagination, referrers,
    response, retry_after, send_progress, tags, transport,
};
use imgsync_oci::limits::{DocsPage, Limit};

/// Returns the limits of the registry client.
pub fn limits() -> Vec<Limit> {
    use DocsPage::{Operating, Security};
    vec![
        Limit::bytes(Security, "a page of tags", tags::MAX_PAGE_BYTES as u64, "the repository is not listed"),
        Limit::bytes(Security, "a page of a catalog", catalog::MAX_PAGE_BYTES as u64, "the registry is not listed"),
        Limit::count(Security, "entries of a listing", pagination::MAX_ENTRIES, "the repository is not listed"),
        Limit::bytes(Security, "all strings of a listing", pagination::MAX_TEXTS_BYTES, "the repository is not listed"),
        Limit::bytes(
            Security,
            "a string in a listing",
            page_reader::MAX_TEXT_BYTES as u64,
            "the repository is not listed",
        ),
        Limit::bytes(
            Security,
            "memory of all listings of a process",
            listing_memory::MAX_LISTINGS_BYTES,
            "only the listing that started first continues, up to its own limits; the others wait",
        ),
        Limit::count(Security, "referrers of a manifest", referrers::MAX_REFERRERS, "the task fails"),
        Limit::time(
            Security,
            "time that a listing waits for its registry, with the default stall timeout",
            ClientSettings::default().stall_timeout * pagination::MAX_LISTING_STALLS,
            "the repository is not listed",
        ),
        Limit::count(
            Security,
            "consecutive pages without new entries",
            pagination::MAX_EMPTY_PAGES as u64,
            "the repository is not listed",
        ),
        Limit::bytes(Security, "a token", auth::MAX_TOKEN_BYTES as u64, "the request fails"),
        Limit::count(
            Security,
            "cached tokens of a registry",
            auth::MAX_TOKENS as u64,
            "the least recently used are evicted and requested again",
        ),
        Limit::count(
            Security,
            "repositories of a registry whose capabilities are cached",
            MAX_CACHED_REPOSITORIES as u64,
            "the least recently used are evicted, and their capabilities detected again",
        ),
        Limit::time(
            Security,
            "waiting for a credential helper",
            HELPER_TIMEOUT,
            "the helper is killed; the task fails",
        ),
        Limit::time(
            Security,
            "waiting for an answer of a cloud's metadata service",
            identity::METADATA_TIMEOUT,
            "it is asked three times if it is expected to be there; else it counts as absent for a minute",
        ),
        Limit::bytes(
            Security,
            "an answer of a metadata service or a cloud's token service",
            identity::MAX_ANSWER_BYTES as u64,
            "the login fails",
        ),
        Limit::time(
            Security,
            "waiting for an answer of a cloud's token service",
            identity::SERVICE_TIMEOUT,
            "the login fails",
        ),
        Limit::time(Security, "a login with the identity of a machine", identity::LOGIN_TIMEOUT, "the login fails"),
        Limit::time(
            Operating,
            "a `Retry-After` that no quota header confirms",
            retry_after::MAX_UNCONFIRMED_DELAY,
            "imgsync waits no longer than this",
        ),
        Limit::count(Security, "redirects of a request", transport::MAX_REDIRECTS as u64, "the request fails"),
        Limit::bytes(
            Security,
            "minimum rate of a response body in bytes per second, averaged over the stall timeout",
            response::MIN_BODY_BYTES_PER_SECOND,
            "a slower request fails and is retried",
        ),
        Limit::bytes(
            Security,
            "minimum rate of an upload in bytes per second, averaged over the stall timeout",
            send_progress::MIN_SEND_BYTES_PER_SECOND,
            "a slower request fails and is retried",
        ),
        Limit::time(
            Security,
            "reading the body of an error response",
            response::ERROR_BODY_TIMEOUT,
            "the error shows what has been received",
        ),
    ]
}
