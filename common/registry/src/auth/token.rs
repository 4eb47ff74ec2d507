//! Client of the token service (Docker registry v2 token specification).

use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use url::Url;

use super::super::context::RequestKind;
use super::super::credentials::Credential;
use super::super::providers::{CredentialSource, refuse_foreign_realm};
use super::super::request_body::RequestBody;
use super::super::request_class::RequestClass;
use super::super::transport::Response;
use super::super::{Repository, ssrf};
use super::{Access, Authorization, CachedToken, FoundLogin, TokenScope, basic_header};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;

/// Lifetime of a token whose response does not contain one (Docker registry v2 token specification, `expires_in`).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A refused credential that helpers and files returned less than this ago is not looked up again.
const MIN_CREDENTIAL_AGE: Duration = Duration::from_secs(1);
/// An anonymous token that stands in for the machine's identity is used for no longer than this.
const OUTAGE_LIFETIME: Duration = Duration::from_secs(10);
/// Size limit of a token response.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Size limit of a token: servers limit request headers to less, and many tokens are cached.
pub(crate) const MAX_TOKEN_BYTES: usize = 32 << 10;

/// What is asked of a token service.
struct TokenRequest<'a> {
    realm: &'a Url,
    service: Option<&'a str>,
    /// The scopes as they are written.
    scopes: &'a [String],
    scope: &'a TokenScope,
    operation: &'a str,
}

impl Repository {
    /// Fetches a token from the token service.
    pub(super) async fn fetch_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &TokenScope,
        scopes: Option<Vec<String>>,
    ) -> Result<CachedToken> {
        let written = scopes.clone().unwrap_or_else(|| scope.to_scopes());
        let operation = format!("getting a token for {} from {}", self.label(), ssrf::origin(realm));
        let wanted = TokenRequest { realm, service, scopes: &written, scope, operation: &operation };
        let (response, with_credentials) = Box::pin(self.request_with_login(&wanted)).await?;
        let text = response.token.or(response.access_token).filter(|token| !token.is_empty()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidResponse, &operation, "the token service answered without a token")
        })?;
        if text.len() > MAX_TOKEN_BYTES {
            let detail = format!("the token has {} bytes, more than the allowed {MAX_TOKEN_BYTES}", text.len());
            return Err(Error::new(ErrorKind::InvalidResponse, &operation, detail));
        }
        let secret = Secret::new(text);
        // The registry may echo it long after it was replaced.
        secret.keep_masked();
        let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose())).map_err(|_| {
            Error::new(ErrorKind::InvalidResponse, &operation, "the token holds characters that no header can carry")
        })?;
        header.set_sensitive(true);
        let since = Instant::now();
        let mut lifetime = lifetime(response.expires_in);
        if !with_credentials && self.registry.auth.fallback.has_outage() {
            lifetime = lifetime.min(OUTAGE_LIFETIME);
        }
        let margin = (lifetime / 4).min(Duration::from_secs(30));
        Ok(CachedToken {
            authorization: Authorization { header, since, with_credentials },
            renew_at: since + (lifetime - margin.min(lifetime)),
            scopes,
            _secret: secret,
        })
    }

    /// Requests a token with the credentials of this repository. If nobody named the identity that the machine has, and it
    /// is refused or not there for now, images are read anonymously: a machine may be allowed less than everybody. Returns
    /// whether the token is that of a user.
    async fn request_with_login(&self, wanted: &TokenRequest<'_>) -> Result<(TokenResponse, bool)> {
        let TokenScope { access, credential_index, .. } = *wanted.scope;
        let fallback = &self.registry.auth.fallback;
        let is_denied = |error: &Error| error.kind() == ErrorKind::Denied;
        let FoundLogin { credential, is_issued, outage } = self.find_login_for(wanted).await?;
        let had_outage = fallback.record_outage(outage.is_some());
        if let Some(outage) = outage {
            if access != Access::Pull {
                return Err(outage);
            }
            if !had_outage {
                self.context
                    .warn(format!("{outage}; meanwhile, images of {} are read anonymously", self.registry.name));
            }
            return match self.request_with_retries(wanted, None).await {
                Err(error) if is_denied(&error) => Err(outage),
                answer => Ok((answer?, false)),
            };
        }
        let refused = match self.request_with_retries(wanted, credential.as_ref()).await {
            Err(error) if is_denied(&error) && credential.is_some() => error,
            answer => return Ok((answer?, credential.is_some())),
        };
        let is_auto = self.registry.settings.credential_source == CredentialSource::Auto;
        let may_be_anonymous = is_auto && is_issued && access == Access::Pull;
        // Where another login changed nothing, none is requested for each repository.
        let was_refused = may_be_anonymous && fallback.refuses_identity();
        if was_refused && let Ok(answer) = self.request_with_retries(wanted, None).await {
            return Ok((answer, false));
        }
        // A credential from a helper may have expired since, as the tokens of clouds do.
        let before = Instant::now().checked_sub(MIN_CREDENTIAL_AGE).unwrap_or_else(Instant::now);
        let fresh = match self.refresh_credential(credential_index, before).await {
            true => self.find_login_for(wanted).await?.into_credential(),
            false => Ok(None),
        };
        let refused = match fresh {
            Ok(Some(fresh)) if credential.as_ref() != Some(&fresh) => {
                match self.request_with_retries(wanted, Some(&fresh)).await {
                    Err(error) if is_denied(&error) => error,
                    answer => return Ok((answer?, true)),
                }
            }
            Ok(_) => refused,
            Err(outage) => outage,
        };
        if may_be_anonymous
            && !was_refused
            && let Ok(answer) = self.request_with_retries(wanted, None).await
        {
            fallback.record_refusal(true);
            return Ok((answer, false));
        }
        Err(refused)
    }

    /// Returns the credentials for a token service. Not every one gets what a cloud issued.
    async fn find_login_for(&self, wanted: &TokenRequest<'_>) -> Result<FoundLogin> {
        let found = self.find_login(wanted.scope.credential_index).await?;
        if found.is_issued {
            refuse_foreign_realm(&self.registry, wanted.realm, wanted.operation)?;
        }
        Ok(found)
    }

    async fn request_with_retries(
        &self,
        wanted: &TokenRequest<'_>,
        credential: Option<&Credential>,
    ) -> Result<TokenResponse> {
        self.with_retries(|| self.request_token(wanted, credential)).await
    }

    async fn request_token(&self, wanted: &TokenRequest<'_>, credential: Option<&Credential>) -> Result<TokenResponse> {
        let TokenRequest { realm, service, scopes, operation, .. } = *wanted;
        let credential_index = wanted.scope.credential_index;
        let http = self.http_client_for(realm, None);
        let kind = RequestClass::auxiliary(credential_index);
        self.await_rate(kind, operation).await?;
        if let Some(Credential::IdentityToken { token, .. }) = credential {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            let body = RequestBody::Bytes(refresh_form(token, service, scopes).into());
            self.counters.count(RequestKind::Token);
            let response = self.send_once(&http, Method::POST, realm.clone(), headers, body, operation).await?;
            if !matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
                return self.read_token(kind, response, true, operation).await;
            }
        }
        let mut url = realm.clone();
        if matches!(credential, Some(Credential::IdentityToken { .. })) {
            self.await_rate(kind, operation).await?;
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut headers = HeaderMap::new();
        match credential {
            Some(Credential::Basic { username, password }) => {
                headers.insert(header::AUTHORIZATION, basic_header(username, password)?);
            }
            Some(Credential::IdentityToken { username, token }) => {
                let username = username.as_deref().unwrap_or("<token>");
                headers.insert(header::AUTHORIZATION, basic_header(username, token)?);
            }
            None => {}
        }
        self.counters.count(RequestKind::Token);
        let response = self.send_once(&http, Method::GET, url, headers, RequestBody::Empty, operation).await?;
        self.read_token(kind, response, credential.is_some(), operation).await
    }

    async fn read_token(
        &self,
        kind: RequestClass,
        response: Response,
        with_credentials: bool,
        operation: &str,
    ) -> Result<TokenResponse> {
        if !response.status().is_success() {
            let error = response.into_error(operation).await.with_registry(&self.registry.name);
            let error = self.observe_error(kind, error).await;
            return Err(match error.kind() {
                ErrorKind::Denied | ErrorKind::Refused | ErrorKind::NotFound => {
                    let hint = self.login_hint(with_credentials);
                    error.with_kind(ErrorKind::Denied).with_hint(hint)
                }
                _ => error,
            });
        }
        let bytes = response.bytes(MAX_ANSWER_BYTES, operation).await?;
        // The parser's error quotes its input, which may be the token.
        serde_json::from_slice(&bytes).map_err(|error| {
            let at = format!("line {}, column {}", error.line(), error.column());
            Error::new(
                ErrorKind::InvalidResponse,
                operation,
                format!("the token service's answer cannot be parsed ({at})"),
            )
        })
    }
}

/// Builds the form that exchanges an identity token (Docker registry v2 token specification, OAuth2).
fn refresh_form(token: &Secret, service: Option<&str>, scopes: &[String]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "imgsync")
        .append_pair("refresh_token", token.expose())
        .append_pair("scope", &scopes.join(" "));
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.finish()
}

/// Returns how long a token is used, given its response; at most a day.
fn lifetime(expires_in: Option<f64>) -> Duration {
    let lifetime = match expires_in {
        Some(seconds) if seconds >= 1.0 => Duration::try_from_secs_f64(seconds).unwrap_or(DEFAULT_LIFETIME),
        _ => DEFAULT_LIFETIME,
    };
    lifetime.min(Duration::from_secs(24 * 3600))
}

#[derive(Debug, Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default, deserialize_with = "number")]
    expires_in: Option<f64>,
}

/// Parses a token response and describes the result, for fuzzing.
#[cfg(test)]
pub(in super::super) fn fuzz_parse(bytes: &[u8]) -> String {
    match serde_json::from_slice::<TokenResponse>(bytes) {
        Ok(answer) => format!("{answer:?} {:?}", lifetime(answer.expires_in)),
        Err(error) => format!("{:?}", error.classify()),
    }
}

/// Deserializes a number that some services send as a string; anything else counts as missing.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Number(number) => number.as_f64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_answer_is_read_however_it_is_written() {
        let read = |text: &str| serde_json::from_str::<TokenResponse>(text).unwrap();
        assert_eq!(read(r#"{"token":"a","expires_in":"300"}"#).expires_in, Some(300.0));
        assert_eq!(read(r#"{"access_token":"a","expires_in":null}"#).expires_in, None);
        assert_eq!(read(r#"{"access_token":"a","issued_at":"x"}"#).access_token.as_deref(), Some("a"));
    }
}
