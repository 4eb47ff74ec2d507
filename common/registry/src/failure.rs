//! Maps failed requests to errors, by the status and body of the response or by how the connection ended.

use std::borrow::Cow;

use ::http::StatusCode;
use rustls::pki_types::UnixTime;

use super::http::chain;
use super::ssrf;
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::retry;
use imgsync_tls::{UnknownAuthority, with_dates};

/// Messages of the HTTP and SOCKS connectors for a proxy that requires authentication.
const PROXY_REFUSALS: [&str; 4] = [
    "proxy authorization required",
    "credentials not accepted",
    "server does not support user/pass authentication",
    "server implements authentication incorrectly",
];
/// Hint for servers that close a TLS connection.
const CLIENT_CERTIFICATE: &str =
    "the registry closed the TLS connection: it may require a client certificate (`client_cert`, `client_key`)";

/// Classifies an error response by its status, code and message.
pub(crate) fn classify(status: StatusCode, code: Option<&str>, message: &str, has_retry_after: bool) -> ErrorKind {
    let code = code.unwrap_or_default();
    let limited = code == "TOOMANYREQUESTS" || {
        let message = message.to_ascii_lowercase();
        message.contains("rate limit") || message.contains("too many requests")
    };
    match (status.as_u16(), code) {
        (403, _) if has_retry_after || limited => ErrorKind::RateLimited,
        // distribution answers 500 if something else is wrong with the manifest as well, such as a foreign layer's URL.
        (400 | 404 | 500, "MANIFEST_BLOB_UNKNOWN") => ErrorKind::Incomplete,
        (400 | 404, "BLOB_UNKNOWN") if status == StatusCode::BAD_REQUEST => ErrorKind::Incomplete,
        // Seen: distribution answers so for a session that is gone, or whose state a cut connection broke.
        (_, "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN") => ErrorKind::NotFound,
        (400, _) if limited => ErrorKind::RateLimited,
        (status, _) => retry::kind_of_status(status),
    }
}

/// Whether a refusal is about an expired token: ECR's `Your authorization token has expired. Reauthenticate…`.
pub(crate) fn says_expired(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    detail.contains("token") && ["expired", "has run out", "no longer valid"].iter().any(|word| detail.contains(word))
}

/// Target of a request and the proxy in between, for error messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestTarget {
    /// Registry that the request is for.
    pub registry: String,
    /// Origin that the request is sent to.
    pub origin: String,
    /// Whether that is another origin than the registry's own: a redirect or the like.
    pub is_other_origin: bool,
    /// Whether messages name the origin besides the registry.
    pub names_origin: bool,
    /// Proxy in between, without user and password.
    pub proxy: Option<String>,
    /// Whether the proxy is sent a user name.
    pub has_proxy_credentials: bool,
}

impl RequestTarget {
    /// Returns the operation's text, with the origin added where it matters.
    pub(crate) fn with_origin<'t>(&self, operation: &'t str) -> Cow<'t, str> {
        match self.names_origin && !operation.contains(&self.origin) {
            true => format!("{operation}, at {}", self.origin).into(),
            false => operation.into(),
        }
    }

    /// Returns the error of a proxy that requires authentication.
    pub(crate) fn proxy_auth_error(&self, operation: &str) -> Error {
        let proxy = self.proxy.as_deref().unwrap_or("in between");
        let detail = match self.has_proxy_credentials {
            true => format!("the proxy {proxy} rejects the user and password (407)"),
            false => format!("the proxy {proxy} requires a user and a password (407)"),
        };
        Error::new(ErrorKind::Denied, self.with_origin(operation), detail).with_hint(format!(
            "write them as http://USER:PASSWORD@HOST:PORT in HTTPS_PROXY, or in `proxy:` for {} under `registries`",
            self.registry
        ))
    }

    /// Whether a failed connection was one to the proxy.
    fn failed_at_proxy(&self, text: &str) -> bool {
        let forwards =
            || self.origin.starts_with("http:") && self.proxy.as_deref().is_some_and(|it| it.starts_with("http"));
        self.proxy.is_some() && (text.contains("failed to create underlying connection") || forwards())
    }
}

/// Returns the hint for plain HTTP sent to a TLS port.
pub(crate) fn tls_on(registry: &str) -> String {
    format!("if {registry} speaks TLS, set `tls: on` for it under `registries`")
}

/// Returns the hint for plain HTTP that a registry rejects without a reason.
pub(crate) fn may_expect_tls(registry: &str) -> String {
    format!(
        "{registry} may expect TLS: set `tls: on` for it under `registries`; plain HTTP is the default for loopback \
         addresses"
    )
}

/// Whether a response rejects plain HTTP on a TLS port: the texts of Go, nginx and Apache.
pub(crate) fn says_wants_tls(message: &str) -> bool {
    [
        "HTTP request to an HTTPS server",
        "plain HTTP request was sent to HTTPS port",
        "plain HTTP to an SSL-enabled server port",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// Returns the error of a request that got no response, or whose response broke off.
pub(crate) fn transport_error(error: reqwest::Error, operation: &str, target: &RequestTarget) -> Error {
    // Without the URL: its query may hold a signature.
    let error = error.without_url();
    let text = plain(&error_chain(&error));
    let operation = target.with_origin(operation);
    let at_proxy = error.is_connect() && target.failed_at_proxy(&text);
    let subject = match &target.proxy {
        Some(proxy) if at_proxy => format!("the proxy {proxy}"),
        _ => target.origin.clone(),
    };
    if PROXY_REFUSALS.iter().any(|words| text.contains(words)) {
        return target.proxy_auth_error(&operation).with_source(error);
    }
    if let Some(tls) = find::<rustls::Error>(&error) {
        return match tls {
            rustls::Error::InvalidMessage(_) if error.is_connect() => {
                let hint = match at_proxy {
                    true => "write a proxy that does not use TLS as http://HOST:PORT".to_owned(),
                    false => {
                        format!("if {0} speaks plain HTTP, set `tls: off` for it under `registries`", target.registry)
                    }
                };
                Error::new(ErrorKind::InvalidResponse, &operation, format!("{subject} does not speak TLS: {text}"))
                    .with_hint(hint)
            }
            rustls::Error::InvalidMessage(_) => Error::new(ErrorKind::Unreachable, &operation, &text),
            _ => Error::new(
                ErrorKind::Insecure,
                &operation,
                describe_certificate_error(tls, &subject).unwrap_or_else(|| with_dates(&text).into_owned()),
            )
            .with_hint(tls_hint(tls)),
        }
        .with_source(error);
    }
    // HTTP/2 reports only a text for what broke its connection.
    if text.contains("received fatal alert") {
        return Error::new(ErrorKind::Insecure, operation, text).with_hint(CLIENT_CERTIFICATE).with_source(error);
    }
    if find::<std::io::Error>(&error).is_some_and(retry::is_out_of_files) {
        return Error::new(ErrorKind::Local, operation, text).mark_out_of_files().with_source(error);
    }
    if let Some(withheld) = find::<ssrf::BlockedAddress>(&error) {
        let key = match withheld {
            ssrf::BlockedAddress::Private(_) => "allow_private: true".to_owned(),
            ssrf::BlockedAddress::Metadata(_, address) => format!("allow_metadata: {address}"),
        };
        return Error::new(ErrorKind::Insecure, operation, text)
            .with_hint(format!("if that is intended, set `{key}` for the registry under `registries`"))
            .with_source(error);
    }
    if error.is_builder() {
        return Error::new(ErrorKind::Invalid, operation, text).with_source(error);
    }
    if text.contains("invalid HTTP version parsed") && target.origin.starts_with("http:") {
        // The first bytes of a TLS response, or of another protocol.
        return Error::new(ErrorKind::InvalidResponse, operation, format!("{subject} does not speak HTTP: {text}"))
            .with_hint(tls_on(&target.registry))
            .with_source(error);
    }
    if error.is_timeout() && !error.is_connect() {
        return Error::new(ErrorKind::TimedOut, operation, format!("the connection stalled: {text}"))
            .with_source(error);
    }
    let detail = match &target.proxy {
        Some(proxy) if error.is_connect() => format!("by the proxy {proxy}: {text}"),
        _ => text.clone(),
    };
    let failed = Error::new(ErrorKind::Unreachable, operation, detail);
    if find::<h2::Error>(&error).is_some_and(is_unprocessed) {
        return failed.mark_unprocessed().with_source(error);
    }
    let failed = match () {
        () if text.contains("failed to lookup address") || text.contains("dns error") => {
            failed.with_hint(match text.contains("socks proxy") {
                true => "this machine resolves the name for a proxy of `socks5://`; with `socks5h://` the proxy does",
                false => "the host's name does not resolve: check its spelling, DNS, and whether a proxy is needed",
            })
        }
        () if error.is_connect() && target.proxy.is_some() => failed.with_hint(proxy_hint(&text)),
        () if error.is_connect() => {
            failed.with_hint("check the host, its port, and whether a firewall or proxy is in between")
        }
        () => failed,
    };
    match error.is_connect() {
        true => failed.mark_connect_error().with_source(error),
        false => failed.with_source(error),
    }
}

/// Returns the hint for a connection that did not come about through a proxy.
fn proxy_hint(text: &str) -> &'static str {
    // The connector's text for a proxy that answers CONNECT with an error.
    match text.contains("tunnel error: unsuccessful") {
        true => "the proxy runs, but did not connect to the host: check its rules and its log",
        false => "check the proxy: that it runs, its address and port, and its kind (http:// or socks5h://)",
    }
}

/// Describes a certificate error where rustls prints times as seconds since 1970 or has no text.
fn describe_certificate_error(error: &rustls::Error, subject: &str) -> Option<String> {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext, Other};
    match error {
        rustls::Error::InvalidCertificate(Other(other)) => {
            let unknown = other.0.downcast_ref::<UnknownAuthority>()?;
            Some(format!("the certificate of {subject} is not trusted: {unknown}"))
        }
        rustls::Error::InvalidCertificate(ExpiredContext { not_after, .. }) => {
            Some(format!("the certificate of {subject} expired on {}", date(*not_after)?))
        }
        rustls::Error::InvalidCertificate(NotValidYetContext { not_before, .. }) => {
            Some(format!("the certificate of {subject} is valid from {} only", date(*not_before)?))
        }
        _ => None,
    }
}

fn date(time: UnixTime) -> Option<String> {
    let time = jiff::Timestamp::from_second(time.as_secs().try_into().ok()?).ok()?;
    Some(time.strftime("%Y-%m-%d").to_string())
}

/// Whether a server reported over HTTP/2 that it did not process a request: it refused the stream, or closed the
/// connection to streams that new (RFC 9113, 8.7).
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

/// Returns the hint for a TLS error.
fn tls_hint(error: &rustls::Error) -> Cow<'static, str> {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, Other,
    };
    match error {
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "name the registry as its certificate does, or give it one for the name that you use".into()
        }
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => "the registry needs a new certificate, or a clock is wrong: its, or this machine's".into(),
        rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)
        | rustls::Error::PeerIncompatible(_) => {
            "it may support TLS 1.0 or 1.1 only: enable TLS 1.2 or 1.3 there, or at the proxy in front of it".into()
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName) => {
            "the server does not know that name: name the registry as its certificate does".into()
        }
        rustls::Error::AlertReceived(_) => CLIENT_CERTIFICATE.into(),
        rustls::Error::InvalidCertificate(Other(other)) => match other.0.downcast_ref::<UnknownAuthority>() {
            Some(unknown) => unknown.hint().into(),
            None => imgsync_tls::UNTRUSTED_AUTHORITY_HINT.into(),
        },
        _ => imgsync_tls::UNTRUSTED_AUTHORITY_HINT.into(),
    }
}

/// Strips the HTTP client's own prefixes.
fn plain(words: &str) -> String {
    let mut text = words;
    for inside in
        ["error sending request: ", "client error (Connect): ", "client error (SendRequest): ", "tcp connect error: "]
    {
        text = text.strip_prefix(inside).unwrap_or(text);
    }
    text.to_owned()
}

/// Returns an error and its sources in one line.
pub(crate) fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error)
}

fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // `source` of an io::Error skips the error that it wraps.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(found) = find::<E>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(status: u16, code: &str, message: &str, has_retry_after: bool) -> ErrorKind {
        classify(StatusCode::from_u16(status).unwrap(), Some(code).filter(|c| !c.is_empty()), message, has_retry_after)
    }

    #[test]
    fn a_rate_limit_sent_as_403_is_recognised() {
        assert_eq!(classified(403, "", "", true), ErrorKind::RateLimited);
        assert_eq!(classified(403, "DENIED", "API rate limit exceeded", false), ErrorKind::RateLimited);
        assert_eq!(classified(403, "DENIED", "no", false), ErrorKind::Denied);
        assert_eq!(classified(429, "", "", false), ErrorKind::RateLimited);
    }

    #[test]
    fn missing_content_is_told_from_a_missing_manifest() {
        assert_eq!(classified(400, "MANIFEST_BLOB_UNKNOWN", "", false), ErrorKind::Incomplete);
        assert_eq!(classified(500, "MANIFEST_BLOB_UNKNOWN", "", false), ErrorKind::Incomplete);
        assert_eq!(classified(404, "MANIFEST_UNKNOWN", "", false), ErrorKind::NotFound);
        assert_eq!(classified(400, "MANIFEST_INVALID", "", false), ErrorKind::Refused);
        assert_eq!(classified(502, "", "", false), ErrorKind::ServerError);
        assert_eq!(classified(522, "", "", false), ErrorKind::ServerError);
        assert_eq!(classified(501, "", "", false), ErrorKind::InvalidResponse);
        assert_eq!(classified(405, "UNSUPPORTED", "", false), ErrorKind::Refused);
    }
}
