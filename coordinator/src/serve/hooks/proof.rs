//! Checks that a notification comes from the configured sender. Comparisons take the same time wherever texts differ.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_config::{HookAuth, SECRET_PARAMETER};
use imgsync_model::batch::SigningKey;
use imgsync_oci::Digest;
use imgsync_oci::secret::Secret;

/// What must be checked further, after the head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadCheck {
    /// The sender is proved.
    Proved,
    /// The body carries the proof.
    NeedsBody,
    /// The sender is not the configured one.
    Refused,
}

/// Checks the head of a request. `is_local` says that it comes from this machine.
pub(super) fn check_head(auth: &HookAuth, headers: &HeaderMap, query: &str, is_local: bool) -> HeadCheck {
    let is_proved = match auth {
        HookAuth::Hmac { header, .. } if headers.contains_key(header) => return HeadCheck::NeedsBody,
        HookAuth::Hmac { .. } => false,
        HookAuth::Header { header, secret } => {
            let shown = headers.get(header).map(|value| value.as_bytes()).unwrap_or_default();
            let token = shown.strip_prefix(b"Bearer ").or(shown.strip_prefix(b"bearer ")).unwrap_or(shown);
            // The secret may itself be written with its scheme.
            is_equal(token, secret) | is_equal(shown, secret)
        }
        HookAuth::Basic { secret } => {
            basic_password(headers).is_some_and(|password| is_equal(password.as_bytes(), secret))
        }
        HookAuth::Query { secret } => {
            let parameters = url::form_urlencoded::parse(query.as_bytes());
            let shown = parameters.into_iter().find(|(name, _)| name == SECRET_PARAMETER);
            shown.is_some_and(|(_, value)| is_equal(value.as_bytes(), secret))
        }
        HookAuth::None => is_local,
    };
    if is_proved { HeadCheck::Proved } else { HeadCheck::Refused }
}

/// Checks the signature of a body.
pub(super) fn is_signed(auth: &HookAuth, headers: &HeaderMap, body: &[u8]) -> bool {
    let HookAuth::Hmac { header, secret } = auth else { return false };
    let Some(shown) = headers.get(header).and_then(|value| value.to_str().ok()) else { return false };
    let shown = shown.trim();
    let shown = shown.strip_prefix("sha256=").unwrap_or(shown).to_ascii_lowercase();
    let wanted = Secret::new(SigningKey::new(secret).sign(body));
    is_equal(shown.as_bytes(), &wanted)
}

/// Compares digests, so that timing reveals nothing about the secret.
fn is_equal(shown: &[u8], secret: &Secret) -> bool {
    Digest::sha256(shown) == Digest::sha256(secret.expose().as_bytes())
}

fn basic_password(headers: &HeaderMap) -> Option<String> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    const SECRET: &str = "0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_header_a_password_or_a_parameter_proves_the_sender() {
        let secret = || Secret::new(SECRET.to_owned());
        let header = HookAuth::Header { header: AUTHORIZATION, secret: secret() };
        let (basic, query) = (HookAuth::Basic { secret: secret() }, HookAuth::Query { secret: secret() });
        let basic_value = format!("Basic {}", STANDARD.encode(format!("anyone:{SECRET}")));
        for (auth, shown, parameters, wanted) in [
            (&header, "0123456789abcdef", "", true),
            (&header, "Bearer 0123456789abcdef", "", true),
            (&header, "Bearer 0123456789abcdeF", "", false),
            (&header, "", "secret=0123456789abcdef", false),
            (&basic, &*basic_value, "", true),
            (&basic, "Basic MDEyMzQ1Njc4OWFiY2RlZg==", "", false),
            (&query, "", "a=b&secret=0123456789abcdef", true),
            (&query, "", "secret=0123456789abcde", false),
            (&query, "0123456789abcdef", "", false),
        ] {
            let check = check_head(auth, &headers(&[("authorization", shown)]), parameters, true);
            assert_eq!(check == HeadCheck::Proved, wanted, "{auth:?} {shown} {parameters}");
        }
        assert_eq!(check_head(&HookAuth::None, &HeaderMap::new(), "", false), HeadCheck::Refused);
        assert_eq!(check_head(&HookAuth::None, &HeaderMap::new(), "", true), HeadCheck::Proved);
    }

    #[test]
    fn a_signature_is_that_of_the_bytes_as_they_came() {
        let name = HeaderName::from_static("x-hub-signature-256");
        // The example of docs.github.com, "Validating webhook deliveries".
        let auth = HookAuth::Hmac { header: name, secret: Secret::new("It's a Secret to Everybody".to_owned()) };
        let signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        for (shown, body, wanted) in [
            (format!("sha256={signature}"), "Hello, World!", true),
            (signature.to_owned(), "Hello, World!", true),
            (format!("sha256={signature}"), "Hello, World! ", false),
            ("sha256=".to_owned(), "Hello, World!", false),
        ] {
            let headers = headers(&[("x-hub-signature-256", &shown)]);
            assert_eq!(check_head(&auth, &headers, "", true), HeadCheck::NeedsBody);
            assert_eq!(is_signed(&auth, &headers, body.as_bytes()), wanted, "{shown} {body}");
        }
        assert_eq!(check_head(&auth, &HeaderMap::new(), "", true), HeadCheck::Refused);
    }
}
