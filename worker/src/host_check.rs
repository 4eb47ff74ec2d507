//! Host check for servers on loopback. A web page can point its own host name at 127.0.0.1 (DNS rebinding): its
//! requests carry that name and are rejected.

use std::net::IpAddr;

use axum::Router;
use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};

/// Returns the host of an authority, without port and brackets.
pub fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(host, _)| host);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

/// Whether an authority names this machine in a way no foreign page can: `localhost`, or a loopback address.
pub fn is_loopback_name(authority: &str) -> bool {
    let host = host_of(authority).to_ascii_lowercase();
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns all authorities of a request: from its target and from every Host header. A header that is no text becomes
/// an unknown host.
pub fn authorities(uri: &Uri, headers: &HeaderMap) -> Vec<String> {
    let target = uri.authority().map(ToString::to_string);
    let named = headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned());
    target.into_iter().chain(named).filter(|authority| !authority.is_empty()).collect()
}

/// Rejects requests for another host (421) if the server listens on loopback only. On other addresses, probes use pod
/// addresses and service names. Requests without a host do not come from a browser.
pub fn reject_foreign_hosts(router: Router, listens_on: IpAddr) -> Router {
    match listens_on.is_loopback() {
        true => router.layer(from_fn(refuse_foreign_names)),
        false => router,
    }
}

async fn refuse_foreign_names(request: Request, next: Next) -> Response {
    match authorities(request.uri(), request.headers()).iter().all(|authority| is_loopback_name(authority)) {
        true => next.run(request).await,
        false => (StatusCode::MISDIRECTED_REQUEST, "unknown host name\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_no_page_can_have_are_this_machines() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:8080", "[::1]"] {
            assert!(is_loopback_name(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "127.0.0.1.evil.example:1",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0:1",
            "\u{fffd}",
        ] {
            assert!(!is_loopback_name(bad), "{bad}");
        }
    }
}
