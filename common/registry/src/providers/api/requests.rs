//! Requests to a listing API.

use ::http::{HeaderName, Method, StatusCode, header};
use url::Url;

use super::ProviderApi;
use crate::Repository;
use crate::auth::Authorization;
use crate::context::RequestKind;
use crate::pagination::PageSource;
use crate::request_body::RequestBody;
use crate::transport::{RequestSpec, Response};
use imgsync_oci::error::{Error, ErrorKind, Result};

impl ProviderApi {
    /// Builds a URL below the base. Each part is escaped.
    pub(in crate::providers) fn url(&self, parts: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.api_side.registry.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Posts JSON to a path below the base, once, with the main credential.
    pub(in crate::providers) async fn post(
        &self,
        parts: &[&str],
        json: String,
        login: Authorization,
        operation: &str,
    ) -> Result<Response> {
        self.require_tls(operation)?;
        let outgoing = self.json_request(parts, json, operation);
        self.api_side.send_as(outgoing, 0, Some(login)).await.map_err(|error| self.with_unreachable_hint(error))
    }

    /// Posts JSON for a token to a path below the base, once and without authorization.
    pub(in crate::providers) async fn post_login(
        &self,
        parts: &[&str],
        json: String,
        operation: &str,
    ) -> Result<Response> {
        let outgoing = self.json_request(parts, json, operation).kind(RequestKind::Token);
        let sent = self.api_side.send_as(outgoing, self.credential_index(), None).await;
        sent.map_err(|error| self.with_unreachable_hint(error))
    }

    fn json_request<'a>(&self, parts: &[&str], json: String, operation: &'a str) -> RequestSpec<'a> {
        RequestSpec::new(Method::POST, self.url(parts, &[]), operation)
            .header(header::CONTENT_TYPE, "application/json")
            .body(RequestBody::Bytes(json.into()))
    }

    /// Returns the error of a response, with a hint.
    pub(in crate::providers) async fn error_from_response(&self, response: Response, operation: &str) -> Error {
        let (with_credentials, kind) = (response.is_with_credentials(), response.class());
        let error = response.into_error(operation).await.with_registry(&self.api_side.registry.name);
        let error = self.api_side.observe_error(kind, error).await;
        match error.kind() {
            ErrorKind::Denied => error.with_hint(self.denied_hint(with_credentials)),
            ErrorKind::RateLimited if !with_credentials => {
                error.with_hint(format!("credentials for {} usually allow more", self.registry()))
            }
            _ => error,
        }
    }

    /// Whether an error means that this API, on another host than the registry, is unreachable while the registry may
    /// be reachable, as behind filtering networks.
    pub fn is_api_unreachable(&self, error: &Error) -> bool {
        error.is_connect_error() && self.api_side.registry().host() != self.registry().host()
    }

    fn with_unreachable_hint(&self, error: Error) -> Error {
        if !self.is_api_unreachable(&error) {
            return error;
        }
        let hint = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
        error.with_hint(format!(
            "{hint}where {}'s API cannot be reached at all, set `listing: registry` for {} under `registries`",
            self.name(),
            self.registry()
        ))
    }
}

impl PageSource for ProviderApi {
    async fn fetch_page(&self, url: &Url, operation: &str) -> Result<Response> {
        let mut stale = None;
        loop {
            let login = self.get_authorization(stale.as_ref(), operation).await?;
            let (login, can_expire) = match login {
                Some(login) => (Some(login.authorization), login.can_expire),
                None => (None, false),
            };
            let outgoing = RequestSpec::new(Method::GET, url.clone(), operation);
            let outgoing = self
                .state
                .listing
                .headers()
                .iter()
                .fold(outgoing, |outgoing, (name, value)| outgoing.header(HeaderName::from_static(name), value));
            let response = self
                .api_side
                .send_as(outgoing, self.credential_index(), login.clone())
                .await
                .map_err(|error| self.with_unreachable_hint(error))?;
            if response.status() == StatusCode::OK {
                return Ok(response);
            }
            if response.status() == StatusCode::UNAUTHORIZED && can_expire && stale.is_none() {
                stale = login;
                continue;
            }
            return Err(self.error_from_response(response, operation).await);
        }
    }

    fn repository(&self) -> &Repository {
        &self.api_side
    }
}
