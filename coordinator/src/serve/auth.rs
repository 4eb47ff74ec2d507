//! Authorization of requests.
//!
//! Reads need no token on loopback and need it elsewhere; changes always need it. A request through a proxy counts as
//! coming from elsewhere, whatever the proxy's address: it names one of `hosts`, or carries a forwarding header. The
//! token travels in a header of its own, which pages of other sites cannot send. Foreign host names (DNS rebinding)
//! and cross-origin requests are rejected even with the token.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, FORWARDED, ORIGIN, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use imgsync_oci::Digest;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::log_throttle;
use imgsync_worker::host_check::{authorities, host_of, is_loopback_name};

use super::error_response::ErrorResponse;
use crate::orchestrator::push_metrics;

/// Allows only resources of this server, and no framing.
const CSP_DIRECTIVES: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const METRICS_PATH: &str = "/metrics";
/// Headers that proxies add to forwarded requests.
const PROXY_HEADERS: [HeaderName; 5] = [
    FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Decides which requests are allowed.
#[derive(Clone)]
pub struct AuthPolicy(Arc<Inner>);

struct Inner {
    /// SHA-256 digest of the token.
    token: Digest,
    is_loopback: bool,
    /// Allowed host names besides the server's own address.
    hosts: Vec<String>,
}

impl AuthPolicy {
    /// Creates the policy for a server that listens on `address` and that proxies reach as `hosts`.
    pub fn new(address: SocketAddr, token: &str, hosts: &[String]) -> AuthPolicy {
        AuthPolicy(Arc::new(Inner {
            token: Digest::sha256(token.as_bytes()),
            is_loopback: address.ip().is_loopback(),
            hosts: hosts.to_vec(),
        }))
    }

    /// Returns the host names under which proxies forward requests.
    pub(super) fn hosts(&self) -> &[String] {
        &self.0.hosts
    }

    /// Returns whether reads need the token.
    pub fn reading_needs_token(&self) -> bool {
        !self.0.is_loopback
    }

    /// Whether the request carries the token. Compares digests, so that timing reveals nothing about the token.
    fn has_valid_token(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        shown.is_some_and(|token| Digest::sha256(token.as_bytes()) == self.0.token)
    }

    /// Whether the authority is one of `hosts`, which means that a proxy forwarded the request.
    fn is_proxy_host(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        self.0.hosts.iter().any(|known| *known == authority || known == host_of(&authority))
    }

    /// Whether the server accepts requests under this host name.
    fn accepts_host(&self, authority: &str) -> bool {
        // DNS rebinding can point a foreign name here, but not a loopback name. Off loopback the token protects
        // requests under any name.
        self.is_proxy_host(authority) || !self.0.is_loopback || is_loopback_name(authority)
    }

    /// Rejects host names that the server does not accept.
    fn check_hosts(&self, names: &[String]) -> Result<(), ErrorResponse> {
        match names.iter().find(|name| !self.accepts_host(name)) {
            None => Ok(()),
            Some(foreign) => {
                let why = format!("the host name {} is not allowed", sanitize(foreign));
                Err(ErrorResponse::new(StatusCode::MISDIRECTED_REQUEST, "denied", why)
                    .hint("use the server's address, or add the name to `serve: {hosts: …}` in its configuration"))
            }
        }
    }

    /// Checks a probe, which needs no token. `/metrics` names registries, so it needs the token through a proxy.
    fn check_probe(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ErrorResponse> {
        let names = authorities(uri, headers);
        self.check_hosts(&names)?;
        let is_asked_by_proxy = names.iter().any(|name| self.is_proxy_host(name))
            || (self.0.is_loopback && PROXY_HEADERS.iter().any(|name| headers.contains_key(name)));
        match uri.path() == METRICS_PATH && is_asked_by_proxy && !self.has_valid_token(headers) {
            true => Err(unauthorized(headers, "reading metrics through a proxy requires the token")),
            false => Ok(()),
        }
    }

    /// Returns whether a request comes from this machine, and not through a proxy on it.
    pub(super) fn is_from_this_machine(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let names = authorities(uri, headers);
        self.0.is_loopback
            && names.iter().all(|name| is_loopback_name(name) && !self.is_proxy_host(name))
            && !PROXY_HEADERS.iter().any(|name| headers.contains_key(name))
    }

    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ErrorResponse> {
        let names = authorities(uri, headers);
        let Some(host) = names.first() else {
            return Err(ErrorResponse::new(StatusCode::BAD_REQUEST, "invalid", "the request has no Host header"));
        };
        self.check_hosts(&names)?;
        if let Some(origin) = headers.get(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let from = origin.split_once("://").map_or("", |(_, authority)| authority).to_ascii_lowercase();
            let is_ours = from == host.to_ascii_lowercase() || self.0.hosts.contains(&from);
            if from.is_empty() || !is_ours {
                let why = format!("requests from the origin {} are not allowed", sanitize(origin));
                return Err(ErrorResponse::new(StatusCode::FORBIDDEN, "denied", why));
            }
        }
        if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            let why = "cross-site requests are not allowed";
            return Err(ErrorResponse::new(StatusCode::FORBIDDEN, "denied", why));
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let is_asked_by_proxy = names.iter().any(|name| self.is_proxy_host(name))
            || PROXY_HEADERS.iter().any(|name| headers.contains_key(name));
        if (reads && self.0.is_loopback && !is_asked_by_proxy) || self.has_valid_token(headers) {
            return Ok(());
        }
        Err(unauthorized(
            headers,
            match reads {
                true if self.0.is_loopback => "reading through a proxy requires the token",
                true => "reading requires the token on addresses other than loopback",
                false => "changes require the token",
            },
        ))
    }
}

fn unauthorized(headers: &HeaderMap, why: &str) -> ErrorResponse {
    let why = if headers.contains_key(AUTHORIZATION) { "the token is not valid" } else { why };
    ErrorResponse::new(StatusCode::UNAUTHORIZED, "denied", why).hint(
        "send `Authorization: Bearer TOKEN`; the token is the configured one, or the one the server printed when it \
         started",
    )
}

/// Authorizes API requests.
pub(super) async fn guard(State(access): State<AuthPolicy>, request: Request, next: Next) -> Response {
    match access.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => deny(error),
    }
}

/// Authorizes requests for health and metrics.
pub(super) async fn guard_probes(State(access): State<AuthPolicy>, request: Request, next: Next) -> Response {
    match access.check_probe(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => deny(error),
    }
}

/// Checks the host names of notifications, which have secrets of their own in place of the token.
pub(super) async fn guard_hooks(State(access): State<AuthPolicy>, request: Request, next: Next) -> Response {
    match access.check_hosts(&authorities(request.uri(), request.headers())) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            push_metrics::count("host", 1);
            log_throttle::warn("hooks: host", &format!("refused a notification: {}", error.details()["message"]));
            deny(error)
        }
    }
}

fn deny(error: ErrorResponse) -> Response {
    let is_unknown = error.status() == StatusCode::UNAUTHORIZED;
    let mut response = error.into_response();
    if is_unknown {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"imgsync\""));
    }
    response
}

/// Sets the security headers of every response.
pub(super) async fn set_security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CSP_DIRECTIVES));
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl std::fmt::Debug for AuthPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn check_status(address: &str, method: Method, headers: &[(&str, &str)]) -> Option<u16> {
        let access = AuthPolicy::new(address.parse().unwrap(), TOKEN, &["sync.example".to_owned()]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        access.check(&method, &Uri::from_static("/"), &map).err().map(|response| response.status().as_u16())
    }

    fn probe_status(address: &str, path: &'static str, headers: &[(&str, &str)]) -> Option<u16> {
        let access = AuthPolicy::new(address.parse().unwrap(), TOKEN, &["sync.example".to_owned()]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        access.check_probe(&Uri::from_static(path), &map).err().map(|response| response.status().as_u16())
    }

    #[test]
    fn what_comes_through_a_proxy_needs_the_token_for_reading_too() {
        let here = "127.0.0.1:8080";
        let good = ("authorization", "Bearer 0123456789abcdef");
        for name in ["sync.example", "SYNC.example:443"] {
            assert_eq!(check_status(here, Method::GET, &[("host", name)]), Some(401), "{name}");
            assert_eq!(check_status(here, Method::HEAD, &[("host", name)]), Some(401), "{name}");
            assert_eq!(check_status(here, Method::GET, &[("host", name), good]), None, "{name}");
        }
        let host = ("host", here);
        for name in PROXY_HEADERS {
            let says = (name.as_str(), "203.0.113.7");
            assert_eq!(check_status(here, Method::GET, &[host, says]), Some(401), "{name}");
            assert_eq!(check_status(here, Method::GET, &[host, says, good]), None, "{name}");
        }
    }

    #[test]
    fn probes_on_loopback_come_by_its_own_names_and_elsewhere_by_any() {
        let (here, out) = ("127.0.0.1:8080", "0.0.0.0:8080");
        for path in ["/healthz", "/readyz", "/metrics"] {
            for own in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
                assert_eq!(probe_status(here, path, &[("host", own)]), None, "{path} {own}");
            }
            for foreign in ["evil.example", "10.1.2.3:8080"] {
                assert_eq!(probe_status(here, path, &[("host", foreign)]), Some(421), "{path} {foreign}");
                assert_eq!(probe_status(out, path, &[("host", foreign)]), None, "{path} {foreign}");
                let both = [("host", "localhost"), ("host", foreign)];
                assert_eq!(probe_status(here, path, &both), Some(421), "{path} {foreign} beside another");
            }
            assert_eq!(probe_status(here, path, &[]), None, "{path}: HTTP/1.0 names none");
        }
        let good = ("authorization", "Bearer 0123456789abcdef");
        for address in [here, out] {
            let proxy = ("host", "sync.example");
            assert_eq!(probe_status(address, "/healthz", &[proxy]), None);
            assert_eq!(probe_status(address, "/metrics", &[proxy]), Some(401), "it names registries");
            assert_eq!(probe_status(address, "/metrics", &[proxy, good]), None);
        }
        let through = [("host", here), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(
            (probe_status(here, "/metrics", &through), probe_status(here, "/readyz", &through)),
            (Some(401), None)
        );
    }

    #[test]
    fn reading_is_free_on_loopback_and_changing_nowhere() {
        let (here, out) = ("127.0.0.1:8080", "0.0.0.0:8080");
        let host = ("host", "127.0.0.1:8080");
        let good = ("authorization", "Bearer 0123456789abcdef");
        let bad = ("authorization", "Bearer 0123456789abcdee");
        assert_eq!(check_status(here, Method::GET, &[host]), None);
        assert_eq!(check_status(here, Method::POST, &[host]), Some(401));
        assert_eq!(check_status(here, Method::POST, &[host, bad]), Some(401));
        assert_eq!(check_status(here, Method::POST, &[host, good]), None);
        assert_eq!(check_status(here, Method::POST, &[host, ("authorization", "bearer 0123456789abcdef")]), None);
        assert_eq!(check_status(here, Method::POST, &[host, ("authorization", "Basic 0123456789abcdef")]), Some(401));
        assert_eq!(check_status(out, Method::GET, &[host]), Some(401));
        assert_eq!(check_status(out, Method::GET, &[host, good]), None);
        assert_eq!(check_status(out, Method::GET, &[("host", "anything.example"), good]), None);
    }

    #[test]
    fn foreign_names_and_foreign_pages_are_refused_even_with_the_token() {
        let here = "127.0.0.1:8080";
        let good = ("authorization", "Bearer 0123456789abcdef");
        for (name, wanted) in [
            ("localhost:8080", None),
            ("LOCALHOST", None),
            ("[::1]:8080", None),
            ("127.9.9.9:1", None),
            ("sync.example", None),
            ("sync.example:443", None),
            ("evil.example", Some(421)),
            ("127.0.0.1.evil.example:8080", Some(421)),
            ("localhost.evil.example", Some(421)),
            ("10.0.0.1:8080", Some(421)),
        ] {
            assert_eq!(check_status(here, Method::POST, &[("host", name), good]), wanted, "{name}");
        }
        assert_eq!(check_status(here, Method::GET, &[good]), Some(400), "without a host");
        let host = ("host", "localhost:8080");
        for (origin, wanted) in [
            ("http://localhost:8080", None),
            ("https://sync.example", None),
            ("http://evil.example", Some(403)),
            ("http://localhost:9999", Some(403)),
            ("null", Some(403)),
        ] {
            assert_eq!(check_status(here, Method::POST, &[host, good, ("origin", origin)]), wanted, "{origin}");
        }
        assert_eq!(check_status(here, Method::GET, &[host, ("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(check_status(here, Method::GET, &[host, ("sec-fetch-site", "same-origin")]), None);
    }
}
