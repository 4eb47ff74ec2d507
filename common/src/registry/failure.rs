//! Maps failed requests to errors, by the status and body of the response or by how the connection ended.

use std::borrow::Cow;

use ::http::StatusCode;
use rustls::pki_types::UnixTime;

use super::authorities::UnknownAuthority;
use super::hop;
use super::http::chain;
use crate::error::{Class, Error};
use crate::retry;

/// Messages of the HTTP and SOCKS connectors for a proxy that requires authentication.
const PROXY_REFUSALS: [&str; 4] = [
    "proxy authorization required",
    "credentials not accepted",
    "server does not support user/pass authentication",
    "server implements authentication incorrectly",
];
/// Hint for servers that close a TLS connection.
const CLIENT_CERTIFICATE: &str =
    "the registry ended the TLS connection: it may want a client certificate (`client_cert`, `client_key`)";
/// Hint for authorities that are not trusted.
pub(super) const OWN_AUTHORITY: &str =
    "if the certificate is of an authority of your own, or its own, set `ca:` for the registry under `registries`";

/// Classifies an error response by its status, code and message.
pub(crate) fn classify(status: StatusCode, code: Option<&str>, message: &str, told_to_wait: bool) -> Class {
    let code = code.unwrap_or_default();
    let limited = code == "TOOMANYREQUESTS" || {
        let message = message.to_ascii_lowercase();
        message.contains("rate limit") || message.contains("too many requests")
    };
    match (status.as_u16(), code) {
        (403, _) if told_to_wait || limited => Class::RateLimited,
        // distribution answers 500 if something else is wrong with the manifest as well, such as a foreign layer's URL.
        (400 | 404 | 500, "MANIFEST_BLOB_UNKNOWN") => Class::Incomplete,
        (400 | 404, "BLOB_UNKNOWN") if status == StatusCode::BAD_REQUEST => Class::Incomplete,
        // Seen: distribution answers so for a session that is gone, or whose state a cut connection broke.
        (_, "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN") => Class::NotFound,
        (400, _) if limited => Class::RateLimited,
        (status, _) => retry::class_of_status(status),
    }
}

/// Whether a refusal is about an expired token: ECR's `Your authorization token has expired. Reauthenticate…`.
pub(crate) fn says_expired(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    detail.contains("token") && ["expired", "has run out", "no longer valid"].iter().any(|word| detail.contains(word))
}

/// Target of a request and the proxy in between, for error messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Registry that the request is for.
    pub registry: String,
    /// Origin that the request is sent to.
    pub host: String,
    /// Whether that is another origin than the registry's own: a redirect or the like.
    pub is_elsewhere: bool,
    /// Whether messages name the origin besides the registry.
    pub is_named: bool,
    /// Proxy in between, without user and password.
    pub proxy: Option<String>,
    /// Whether the proxy is sent a user name.
    pub is_proxy_told_who: bool,
}

impl Way {
    /// Returns the operation's text, with the origin added where it matters.
    pub(crate) fn tried<'t>(&self, tried: &'t str) -> Cow<'t, str> {
        match self.is_named && !tried.contains(&self.host) {
            true => format!("{tried}, at {}", self.host).into(),
            false => tried.into(),
        }
    }

    /// Returns the error of a proxy that requires authentication.
    pub(crate) fn proxy_refusal(&self, tried: &str) -> Error {
        let proxy = self.proxy.as_deref().unwrap_or("in between");
        let detail = match self.is_proxy_told_who {
            true => format!("the proxy {proxy} does not take the user and password that it was given (407)"),
            false => format!("the proxy {proxy} wants a user and a password (407)"),
        };
        Error::new(Class::Denied, self.tried(tried), detail).hint(format!(
            "write them as http://USER:PASSWORD@HOST:PORT in HTTPS_PROXY, or in `proxy:` for {} under `registries`",
            self.registry
        ))
    }

    /// Whether a failed connection was one to the proxy.
    fn ends_at_proxy(&self, text: &str) -> bool {
        let forwards =
            || self.host.starts_with("http:") && self.proxy.as_deref().is_some_and(|it| it.starts_with("http"));
        self.proxy.is_some() && (text.contains("failed to create underlying connection") || forwards())
    }
}

/// Returns the hint for plain HTTP sent to a TLS port.
pub(crate) fn tls_on(registry: &str) -> String {
    format!("if {registry} speaks TLS, set `tls: on` for it under `registries`")
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
pub(crate) fn transport_error(error: reqwest::Error, tried: &str, way: &Way) -> Error {
    // Without the URL: its query may hold a signature.
    let error = error.without_url();
    let text = plain(&words(&error));
    let tried = way.tried(tried);
    let at_proxy = error.is_connect() && way.ends_at_proxy(&text);
    let whose = match &way.proxy {
        Some(proxy) if at_proxy => format!("the proxy {proxy}"),
        _ => way.host.clone(),
    };
    if PROXY_REFUSALS.iter().any(|words| text.contains(words)) {
        return way.proxy_refusal(&tried).because(error);
    }
    if let Some(tls) = find::<rustls::Error>(&error) {
        return match tls {
            rustls::Error::InvalidMessage(_) if error.is_connect() => {
                let hint = match at_proxy {
                    true => "a proxy that is itself reached without TLS is written http://HOST:PORT".to_owned(),
                    false => {
                        format!("if {0} speaks plain HTTP, set `tls: off` for it under `registries`", way.registry)
                    }
                };
                Error::new(Class::BadAnswer, &tried, format!("{whose} does not speak TLS: {text}")).hint(hint)
            }
            rustls::Error::InvalidMessage(_) => Error::new(Class::Unreachable, &tried, &text),
            _ => Error::new(Class::Insecure, &tried, of_certificate(tls, &whose).unwrap_or(text)).hint(advice(tls)),
        }
        .because(error);
    }
    // HTTP/2 reports only a text for what broke its connection.
    if text.contains("received fatal alert") {
        return Error::new(Class::Insecure, tried, text).hint(CLIENT_CERTIFICATE).because(error);
    }
    if find::<std::io::Error>(&error).is_some_and(retry::is_out_of_files) {
        return Error::new(Class::Local, tried, text).out_of_files().because(error);
    }
    if let Some(withheld) = find::<hop::Withheld>(&error) {
        let key = match withheld {
            hop::Withheld::Inside(_) => "allow_private: true".to_owned(),
            hop::Withheld::Metadata(_, address) => format!("allow_metadata: {address}"),
        };
        return Error::new(Class::Insecure, tried, text)
            .hint(format!("if that is meant, set `{key}` for the registry under `registries`"))
            .because(error);
    }
    if error.is_builder() {
        return Error::new(Class::Invalid, tried, text).because(error);
    }
    if text.contains("invalid HTTP version parsed") && way.host.starts_with("http:") {
        // The first bytes of a TLS response, or of another protocol.
        return Error::new(Class::BadAnswer, tried, format!("{whose} does not speak HTTP: {text}"))
            .hint(tls_on(&way.registry))
            .because(error);
    }
    if error.is_timeout() && !error.is_connect() {
        return Error::new(Class::TimedOut, tried, format!("the connection stood still: {text}")).because(error);
    }
    let detail = match &way.proxy {
        Some(proxy) if error.is_connect() => format!("by the proxy {proxy}: {text}"),
        _ => text.clone(),
    };
    let failed = Error::new(Class::Unreachable, tried, detail);
    if find::<h2::Error>(&error).is_some_and(is_untaken) {
        return failed.untaken().because(error);
    }
    let failed = match () {
        () if text.contains("failed to lookup address") || text.contains("dns error") => {
            failed.hint(match text.contains("socks proxy") {
                true => "this machine resolves the name for a proxy of `socks5://`; with `socks5h://` the proxy does",
                false => "the host's name does not resolve: check its spelling, DNS, and whether a proxy is needed",
            })
        }
        () if error.is_connect() => {
            failed.hint("check the host, its port, and whether a firewall or proxy is in between")
        }
        () => failed,
    };
    match error.is_connect() {
        true => failed.unconnected().because(error),
        false => failed.because(error),
    }
}

/// Describes a certificate error where rustls prints times as seconds since 1970 or has no text.
fn of_certificate(error: &rustls::Error, whose: &str) -> Option<String> {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext, Other};
    match error {
        rustls::Error::InvalidCertificate(Other(other)) => {
            let unknown = other.0.downcast_ref::<UnknownAuthority>()?;
            Some(format!("the certificate of {whose} is not trusted: {unknown}"))
        }
        rustls::Error::InvalidCertificate(ExpiredContext { not_after, .. }) => {
            Some(format!("the certificate of {whose} expired on {}", date(*not_after)?))
        }
        rustls::Error::InvalidCertificate(NotValidYetContext { not_before, .. }) => {
            Some(format!("the certificate of {whose} is valid from {} only", date(*not_before)?))
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
fn is_untaken(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

/// Returns the hint for a TLS error.
fn advice(error: &rustls::Error) -> Cow<'static, str> {
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
            "it may speak TLS 1.0 or 1.1 only: let it, or what stands before it, speak TLS 1.2 or 1.3".into()
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName) => {
            "there is nothing of that name: name the registry as its certificate does".into()
        }
        rustls::Error::AlertReceived(_) => CLIENT_CERTIFICATE.into(),
        rustls::Error::InvalidCertificate(Other(other)) => match other.0.downcast_ref::<UnknownAuthority>() {
            Some(unknown) => unknown.advice().into(),
            None => OWN_AUTHORITY.into(),
        },
        _ => OWN_AUTHORITY.into(),
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
pub(crate) fn words(error: &(dyn std::error::Error + 'static)) -> String {
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

    fn class(status: u16, code: &str, message: &str, told_to_wait: bool) -> Class {
        classify(StatusCode::from_u16(status).unwrap(), Some(code).filter(|c| !c.is_empty()), message, told_to_wait)
    }

    #[test]
    fn a_rate_limit_in_disguise_is_seen() {
        assert_eq!(class(403, "", "", true), Class::RateLimited);
        assert_eq!(class(403, "DENIED", "API rate limit exceeded", false), Class::RateLimited);
        assert_eq!(class(403, "DENIED", "no", false), Class::Denied);
        assert_eq!(class(429, "", "", false), Class::RateLimited);
    }

    #[test]
    fn missing_content_is_told_from_a_missing_manifest() {
        assert_eq!(class(400, "MANIFEST_BLOB_UNKNOWN", "", false), Class::Incomplete);
        assert_eq!(class(500, "MANIFEST_BLOB_UNKNOWN", "", false), Class::Incomplete);
        assert_eq!(class(404, "MANIFEST_UNKNOWN", "", false), Class::NotFound);
        assert_eq!(class(400, "MANIFEST_INVALID", "", false), Class::Refused);
        assert_eq!(class(502, "", "", false), Class::ServerError);
        assert_eq!(class(522, "", "", false), Class::ServerError);
        assert_eq!(class(501, "", "", false), Class::BadAnswer);
        assert_eq!(class(405, "UNSUPPORTED", "", false), Class::Refused);
    }
}
