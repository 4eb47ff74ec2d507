//! What went wrong with a request, from the status and the words of its answer, or from how the connection ended.

use ::http::StatusCode;

use super::hop;
use super::http::chain;
use crate::error::{Class, Error};
use crate::retry;

/// What kind of failure an answer is, by its status and what its body says.
pub(crate) fn classify(status: StatusCode, code: Option<&str>, message: &str, told_to_wait: bool) -> Class {
    let code = code.unwrap_or_default();
    let limited = code == "TOOMANYREQUESTS" || {
        let message = message.to_ascii_lowercase();
        message.contains("rate limit") || message.contains("too many requests")
    };
    match (status.as_u16(), code) {
        (403, _) if told_to_wait || limited => Class::RateLimited,
        (400 | 404, "MANIFEST_BLOB_UNKNOWN") => Class::Incomplete,
        (400 | 404, "BLOB_UNKNOWN") if status == StatusCode::BAD_REQUEST => Class::Incomplete,
        // Tried: distribution answers this to a session that is gone, or whose state was broken by a cut connection.
        (_, "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN") => Class::NotFound,
        (400, _) if limited => Class::RateLimited,
        (status, _) => retry::class_of_status(status),
    }
}

/// Whether a refusal is about a token that is too old: ECR's `Your authorization token has expired. Reauthenticate…`.
pub(crate) fn says_expired(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    detail.contains("token") && ["expired", "has run out", "no longer valid"].iter().any(|word| detail.contains(word))
}

/// The error of a request that got no answer, or whose answer broke off.
pub(crate) fn transport_error(error: reqwest::Error, tried: &str) -> Error {
    // Without the URL: its query may hold a signature.
    let error = error.without_url();
    let text = plain(&words(&error));
    if let Some(tls) = find::<rustls::Error>(&error) {
        return match tls {
            rustls::Error::InvalidMessage(_) => Error::new(Class::Unreachable, tried, format!("no TLS there: {text}"))
                .hint("if the registry speaks plain HTTP, set `tls: off` for it under `registries`"),
            _ => Error::new(Class::Insecure, tried, text).hint(of_certificate(tls)),
        }
        .because(error);
    }
    // HTTP/2 keeps no more than the words of what broke its connection.
    if text.contains("received fatal alert") {
        return Error::new(Class::Insecure, tried, text)
            .hint(
                "the registry ended the TLS connection: it may want a client certificate (`client_cert`, `client_key`)",
            )
            .because(error);
    }
    if find::<hop::NotPublic>(&error).is_some() {
        return Error::new(Class::Insecure, tried, text)
            .hint("if that is meant, set `allow_private: true` for the registry under `registries`")
            .because(error);
    }
    if error.is_builder() {
        return Error::new(Class::Invalid, tried, text).because(error);
    }
    if error.is_timeout() && !error.is_connect() {
        return Error::new(Class::TimedOut, tried, format!("the connection stood still: {text}")).because(error);
    }
    let failed = Error::new(Class::Unreachable, tried, &text);
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

/// What to do about a certificate that is not trusted.
fn of_certificate(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
    };
    match error {
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "name the registry as its certificate does, or give it one for the name that you use"
        }
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => "the registry needs a new certificate, or a clock is wrong: its, or this machine's",
        _ => {
            "if the certificate is of an authority of your own, or its own, set `ca:` for the registry under `registries`"
        }
    }
}

/// Without what the HTTP client says of its own insides.
fn plain(words: &str) -> String {
    let mut text = words;
    for inside in
        ["error sending request: ", "client error (Connect): ", "client error (SendRequest): ", "tcp connect error: "]
    {
        text = text.strip_prefix(inside).unwrap_or(text);
    }
    text.to_owned()
}

/// An error and all below it in one line.
pub(crate) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error)
}

fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hides the error that it was made of from `source`.
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
        assert_eq!(class(404, "MANIFEST_UNKNOWN", "", false), Class::NotFound);
        assert_eq!(class(400, "MANIFEST_INVALID", "", false), Class::Refused);
        assert_eq!(class(502, "", "", false), Class::ServerError);
        assert_eq!(class(522, "", "", false), Class::ServerError);
        assert_eq!(class(501, "", "", false), Class::BadAnswer);
        assert_eq!(class(405, "UNSUPPORTED", "", false), Class::Refused);
    }
}
