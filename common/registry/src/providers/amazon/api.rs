//! Signed requests to Amazon's APIs.

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use imgsync_oci::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use url::Url;

use super::sigv4::{self, SignableRequest};
use crate::providers::identity::SigningKeys;

/// Content type of requests to ECR.
pub(super) const JSON: &str = "application/x-amz-json-1.1";
/// Content type of requests to STS.
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// A POST to an API of Amazon's.
pub(super) struct ApiCall<'a> {
    pub(super) url: &'a Url,
    pub(super) region: &'a str,
    /// Name of the service in the signature.
    pub(super) service: &'a str,
    pub(super) content_type: &'a str,
    /// Action of a JSON API.
    pub(super) target: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl ApiCall<'_> {
    /// Returns the headers of the signed call.
    pub(super) fn headers(&self, keys: &SigningKeys, operation: &str) -> Result<HeaderMap> {
        let authority = self.url.host_str().unwrap_or_default();
        let authority = self.url.port().map_or_else(|| authority.to_owned(), |port| format!("{authority}:{port}"));
        let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        // In alphabetical order.
        let mut signed =
            vec![("content-type", self.content_type), ("host", authority.as_str()), ("x-amz-date", date.as_str())];
        signed.extend(keys.session.as_ref().map(|session| ("x-amz-security-token", session.expose())));
        signed.extend(self.target.map(|target| ("x-amz-target", target)));
        let request = SignableRequest { path: self.url.path(), headers: &signed, body: self.body };
        let signature = sigv4::authorization(&request, keys, &date, self.region, self.service);
        let mut headers = HeaderMap::new();
        for (name, value) in signed.iter().filter(|(name, _)| *name != "host") {
            headers.insert(HeaderName::from_static(name), header_value(value, operation)?);
        }
        headers.insert(header::AUTHORIZATION, header_value(&signature, operation)?);
        Ok(headers)
    }
}

fn header_value(text: &str, operation: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Error::new(ErrorKind::Invalid, operation, "an AWS key holds characters that no header can carry")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the code of an error without the namespace that some services write before it.
pub(super) fn short_code(code: &str) -> &str {
    code.rsplit('#').next().unwrap_or(code)
}

/// Whether an error means that temporary keys have ended.
pub(super) fn says_keys_ended(code: &str) -> bool {
    matches!(code, "ExpiredTokenException" | "ExpiredToken" | "RequestExpired")
}

/// Sets the kind and the hint of an error of Amazon's, by its code. `action` is what the keys must be allowed to do, in
/// the words of a policy; `alternative` is what else to do.
pub(super) fn classify(error: Error, code: &str, action: &str, alternative: &str) -> Error {
    match code {
        "ThrottlingException" | "TooManyRequestsException" | "Throttling" | "RequestLimitExceeded" => {
            error.with_kind(ErrorKind::RateLimited)
        }
        "ServerException" | "InternalFailure" | "ServiceUnavailable" | "IDPCommunicationError" => {
            error.with_kind(ErrorKind::ServerError)
        }
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => {
            error.with_kind(ErrorKind::Denied).with_hint(format!("allow `{action}` for these AWS keys{alternative}"))
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => wrong_keys(error),
        code if says_keys_ended(code) => wrong_keys(error),
        _ => error,
    }
}

fn wrong_keys(error: Error) -> Error {
    error.with_kind(ErrorKind::Denied).with_hint(
        "check the AWS keys (AWS_ACCESS_KEY_ID and related variables, or the profile in ~/.aws/credentials), and this \
         machine's clock",
    )
}
