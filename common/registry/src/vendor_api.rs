//! Client of a vendor's own registry API: JSON lists by pages, with the vendor's authentication. Retries, rate limits,
//! proxy, certificates and size limits are those of the registry, and secrets go nowhere else.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use url::Url;

use super::auth::{Authorization, basic_header};
use super::context::RequestKind;
use super::credential_pool::CredentialPool;
use super::credentials::Credential;
use super::pagination::{ListPage, PageSource, Paginator};
use super::request_body::RequestBody;
use super::transport::{RequestSpec, Response};
use super::{
    Access, Client, Context, MAX_CACHED_REPOSITORIES, Registry, RegistryCatalog, Repository, base_url, is_loopback,
    ssrf,
};
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::secret::Secret;
use imgsync_oci::vendor::{self, ListingMethod, Vendor};

/// Size limit of a page of a hundred entries, of some kilobytes each at most.
const MAX_PAGE_BYTES: usize = 32 << 20;
/// Size limit of a login response.
const MAX_LOGIN_BYTES: usize = 1 << 20;
/// Service name of Harbor's token service; a registry that uses it is a Harbor.
const HARBOR_SERVICE: &str = "harbor-registry";
/// User name under which Quay takes OAuth tokens for passwords; its API takes nothing else.
const QUAY_TOKEN_USER: &str = "$oauthtoken";

/// State of a registry's vendor API.
#[derive(Debug)]
pub(crate) struct VendorApiState {
    vendor: Vendor,
    /// Not configured, but recognised by the registry's responses.
    is_recognised: bool,
    registry: Arc<Registry>,
    login: tokio::sync::Mutex<HubLogin>,
    notes: Mutex<GenerationalCache<String, String>>,
}

/// Login state at Docker Hub.
#[derive(Debug, Default)]
enum HubLogin {
    #[default]
    None,
    LoggedIn(Credential, Authorization),
    /// Refused credentials are not sent again: too many failures lock an account.
    Refused(Credential, String),
}

/// A vendor's API, with the context of its requests.
#[derive(Debug, Clone)]
pub struct VendorApi {
    state: Arc<VendorApiState>,
    /// The registry's side, whose credentials are used.
    registry_side: Repository,
    /// The API's side.
    api_side: Repository,
}

/// The pages of a list, one request each.
pub struct VendorApiPages<P> {
    api: VendorApi,
    paginator: Paginator,
    operation: String,
    of: PhantomData<fn() -> P>,
}

impl<P> fmt::Debug for VendorApiPages<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({})", self.operation)
    }
}

impl VendorApiState {
    /// Returns the credential pool of its requests.
    pub(super) fn credential_pool(&self) -> &Arc<CredentialPool> {
        &self.registry.credential_pool
    }
}

impl Client {
    fn vendor_api_state(&self, registry: &Arc<Registry>) -> Result<Option<Arc<VendorApiState>>> {
        let mut apis = self.0.apis.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = apis.get(&registry.name) {
            return Ok(Some(found.clone()));
        }
        let settings = &registry.settings;
        let (endpoint, api) = (settings.endpoint.as_ref(), settings.api.as_ref());
        let listing = vendor::resolve_listing(&registry.name, settings.listing, endpoint, api).map_err(|detail| {
            Error::new(ErrorKind::Invalid, format!("choosing the listing API of {}", registry.name), detail)
        })?;
        let is_recognised = listing.is_none();
        let listing = match listing {
            Some(listing) => listing,
            None if settings.listing == ListingMethod::Auto
                && endpoint.is_none()
                && registry.auth.service().as_deref() == Some(HARBOR_SERVICE) =>
            {
                vendor::VendorEndpoint { vendor: Vendor::Harbor, url: None }
            }
            None => return Ok(None),
        };
        let base = listing.vendor.api_base_url(listing.url.as_ref().unwrap_or(&base_url(&registry.name, settings)));
        let is_same = ssrf::same_origin(&base, &registry.base);
        let (name, pool) = match is_same {
            true => (registry.name.clone(), registry.credential_pool.clone()),
            false => {
                let name = api_host_name(&base)?;
                let pool = self.build_credential_pool(&name, settings);
                (name, pool)
            }
        };
        let mut settings = settings.clone();
        if !is_same {
            // It was configured for the registry alone.
            settings.identity = None;
        }
        let found = Arc::new(VendorApiState {
            vendor: listing.vendor,
            is_recognised,
            registry: Arc::new(self.build_registry_at(&name, base, settings, pool, None)?),
            login: tokio::sync::Mutex::default(),
            notes: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)),
        });
        apis.insert(registry.name.clone(), found.clone());
        Ok(Some(found))
    }
}

impl Repository {
    /// Returns the vendor API that lists this repository's registry, if any. A Harbor is recognised by its challenge,
    /// so the result can change once the registry has answered.
    pub fn vendor_api(&self) -> Result<Option<VendorApi>> {
        let Some(state) = self.client.vendor_api_state(&self.registry)? else { return Ok(None) };
        let access = if self.access == Access::Catalog { Access::Catalog } else { Access::Pull };
        let registry_side = Repository { access, ..self.clone() };
        let api_side = Repository { registry: state.registry.clone(), access: Access::Catalog, ..self.clone() };
        Ok(Some(VendorApi { state, registry_side, api_side }))
    }
}

impl RegistryCatalog {
    /// Returns the vendor API that lists this registry, if any.
    pub fn vendor_api(&self) -> Result<Option<VendorApi>> {
        self.0.vendor_api()
    }
}

impl VendorApi {
    /// Returns the vendor.
    pub fn vendor(&self) -> Vendor {
        self.state.vendor
    }

    /// Whether it is not configured but recognised by the registry's responses.
    pub fn is_recognised(&self) -> bool {
        self.state.is_recognised
    }

    /// Returns the registry that it lists.
    pub fn registry(&self) -> &RegistryName {
        self.registry_side.registry()
    }

    /// Returns the context of its requests.
    pub fn context(&self) -> &Context {
        self.registry_side.context()
    }

    /// Whether there are credentials that the API accepts.
    pub async fn accepts_credentials(&self) -> Result<bool> {
        Ok(match (self.vendor(), self.registry_side.find_credential(self.credential_index()).await?) {
            (_, None) => false,
            (Vendor::Quay, Some(Credential::Basic { username, .. })) => username == QUAY_TOKEN_USER,
            (_, Some(credential)) => matches!(credential, Credential::Basic { .. }),
        })
    }

    /// Whether there are credentials for the registry, even if the API does not accept them.
    pub async fn has_credentials(&self) -> Result<bool> {
        Ok(self.registry_side.find_credential(self.credential_index()).await?.is_some())
    }

    /// Returns the index of the credential: always the first that pulls, so that a login at the vendor is reused. The
    /// same as at the registry itself.
    fn credential_index(&self) -> usize {
        self.registry_side.registry.credential_pool.pull_indexes().first().copied().unwrap_or_default()
    }

    /// Builds a URL below the base. Each part is escaped.
    pub fn url(&self, parts: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.api_side.registry.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Lists page by page. `what` is listed, for errors: "the tags of quay.io/a/b".
    pub fn pages<P: ListPage>(&self, first: Url, what: &str) -> VendorApiPages<P> {
        let operation = format!("listing {what} by {}'s API", self.vendor().name());
        let api = VendorApi {
            registry_side: self.registry_side.with_own_clock(),
            api_side: self.api_side.with_own_clock(),
            ..self.clone()
        };
        VendorApiPages { api, paginator: Paginator::new(first), operation, of: PhantomData }
    }

    /// Posts JSON to a path below the base, once, with the main credential.
    pub(super) async fn post(
        &self,
        parts: &[&str],
        json: String,
        login: Authorization,
        operation: &str,
    ) -> Result<Response> {
        self.require_tls(operation)?;
        let outgoing = RequestSpec::new(Method::POST, self.url(parts, &[]), operation)
            .header(header::CONTENT_TYPE, "application/json")
            .body(RequestBody::Bytes(json.into()));
        self.api_side.send_as(outgoing, 0, Some(login)).await.map_err(|error| self.with_unreachable_hint(error))
    }

    /// Returns a cached note.
    pub fn get_note(&self, about: &str) -> Option<String> {
        self.notes().get(about).cloned()
    }

    /// Caches a note as long as the client lives. Returns the previous one.
    pub fn set_note(&self, about: &str, what: &str) -> Option<String> {
        self.notes().insert(about.to_owned(), what.to_owned())
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, GenerationalCache<String, String>> {
        self.state.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the authorization to send. `stale` was refused and is not used again.
    async fn get_authorization(&self, stale: Option<&Authorization>, operation: &str) -> Result<Option<Authorization>> {
        let Some(credential) = self.registry_side.find_credential(self.credential_index()).await? else {
            return Ok(None);
        };
        let Credential::Basic { username, password } = &credential else { return Ok(None) };
        self.require_tls(operation)?;
        let header = match self.vendor() {
            Vendor::Harbor => basic_header(username, password)?,
            Vendor::GitHub => bearer(password, operation)?,
            Vendor::Quay if username == QUAY_TOKEN_USER => bearer(password, operation)?,
            Vendor::Quay => return Ok(None),
            Vendor::Hub => return self.hub_login(&credential, stale).await.map(Some),
        };
        Ok(Some(Authorization { header, since: Instant::now(), with_credentials: true }))
    }

    /// Refuses to send a password over plain HTTP if the registry uses TLS, except to this machine.
    fn require_tls(&self, operation: &str) -> Result<()> {
        let (api, registry) = (&self.api_side.registry.base, &self.registry_side.registry.base);
        let is_here = api.host_str().is_some_and(is_loopback);
        if api.scheme() == "http" && registry.scheme() == "https" && !is_here {
            let detail = format!("credentials would be sent over plain HTTP to {}", ssrf::origin(api));
            return Err(Error::new(ErrorKind::Insecure, operation, detail)
                .with_hint(format!("write `api:` of {} with https://", self.registry())));
        }
        Ok(())
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
            self.vendor().name(),
            self.registry()
        ))
    }

    /// Docker Hub issues short-lived tokens for user and password (Docker Hub API, "Create access token").
    async fn hub_login(&self, credential: &Credential, stale: Option<&Authorization>) -> Result<Authorization> {
        let operation = format!("logging in at {} for {}", ssrf::origin(&self.api_side.registry.base), self.registry());
        let mut login = self.state.login.lock().await;
        match &*login {
            HubLogin::LoggedIn(with, authorization)
                if with == credential && stale.is_none_or(|stale| stale.since < authorization.since) =>
            {
                return Ok(authorization.clone());
            }
            HubLogin::Refused(with, detail) if with == credential => return Err(self.hub_refused(&operation, detail)),
            _ => {}
        }
        match self.api_side.with_retries(|| self.hub_token(credential, &operation)).await {
            Ok(token) => {
                let authorization = Authorization {
                    header: bearer(&token, &operation)?,
                    since: Instant::now(),
                    with_credentials: true,
                };
                *login = HubLogin::LoggedIn(credential.clone(), authorization.clone());
                Ok(authorization)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Refused) => {
                *login = HubLogin::Refused(credential.clone(), error.message().to_owned());
                Err(self.hub_refused(&operation, error.message()))
            }
            Err(error) => Err(error),
        }
    }

    fn hub_refused(&self, operation: &str, detail: &str) -> Error {
        Error::new(ErrorKind::Denied, operation, detail)
            .with_registry(&self.api_side.registry.name)
            .with_hint(self.denied_hint(true))
    }

    async fn hub_token(&self, credential: &Credential, operation: &str) -> Result<Secret> {
        let Credential::Basic { username, password } = credential else {
            return Err(Error::new(ErrorKind::Invalid, operation, "an identity token cannot be used there"));
        };
        let fields = [(["auth", "token"], ["identifier", "secret"]), (["users", "login"], ["username", "password"])];
        let mut response = None;
        for (path, [user, secret]) in fields {
            let body = serde_json::json!({user: username, secret: password.expose()});
            let outgoing = RequestSpec::new(Method::POST, self.url(&path, &[]), operation)
                .header(header::CONTENT_TYPE, "application/json")
                .body(RequestBody::Bytes(body.to_string().into()))
                .kind(RequestKind::Token);
            let given = self
                .api_side
                .send_as(outgoing, self.credential_index(), None)
                .await
                .map_err(|error| self.with_unreachable_hint(error))?;
            // The older endpoint: a custom API may have only that one.
            let is_unknown = matches!(given.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            response = Some(given);
            if !is_unknown {
                break;
            }
        }
        let Some(response) = response else {
            return Err(Error::new(ErrorKind::InvalidResponse, operation, "no login endpoint was found"));
        };
        if response.status() != StatusCode::OK {
            return Err(self.error_from_response(response, operation).await);
        }
        let bytes = response.bytes(MAX_LOGIN_BYTES, operation).await?;
        let given: HubToken = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::InvalidResponse, operation, format!("the answer cannot be parsed: {error}"))
        })?;
        given
            .access_token
            .or(given.token)
            .ok_or_else(|| Error::new(ErrorKind::InvalidResponse, operation, "the answer holds no token"))
    }

    /// Returns the error of a response, with a hint.
    pub(super) async fn error_from_response(&self, response: Response, operation: &str) -> Error {
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

    /// Returns the hint for denied access.
    pub fn denied_hint(&self, with_credentials: bool) -> String {
        let registry = self.registry();
        match self.vendor() {
            Vendor::GitHub => format!(
                "GitHub's API needs a token with `read:packages`: set `username` and `password` of {registry} under \
                 `registries`"
            ),
            Vendor::Quay => format!(
                "Quay's API takes OAuth tokens and no robot accounts: set `username: $oauthtoken` and the token as \
                 `password` of {registry} under `registries`"
            ),
            Vendor::Hub if with_credentials => format!(
                "check the user and the access token for {registry}: an account with a second factor or single sign-on \
                 needs an access token in place of its password"
            ),
            Vendor::Harbor if with_credentials => format!(
                "check the user and password for {registry}; a robot account needs the permissions to list repositories \
                 and artifacts"
            ),
            Vendor::Hub | Vendor::Harbor => format!(
                "no credentials for {registry} were found: run `docker login {registry}`, or set them under `registries`"
            ),
        }
    }
}

impl PageSource for VendorApi {
    async fn fetch_page(&self, url: &Url, operation: &str) -> Result<Response> {
        let mut stale = None;
        loop {
            let login = self.get_authorization(stale.as_ref(), operation).await?;
            let mut outgoing = RequestSpec::new(Method::GET, url.clone(), operation);
            outgoing = match self.vendor() {
                Vendor::GitHub => outgoing
                    .header(header::ACCEPT, "application/vnd.github+json")
                    .header(HeaderName::from_static("x-github-api-version"), "2022-11-28"),
                _ => outgoing.header(header::ACCEPT, "application/json"),
            };
            let response = self
                .api_side
                .send_as(outgoing, self.credential_index(), login.clone())
                .await
                .map_err(|error| self.with_unreachable_hint(error))?;
            if response.status() == StatusCode::OK {
                return Ok(response);
            }
            // Docker Hub's tokens expire after some minutes.
            if response.status() == StatusCode::UNAUTHORIZED
                && self.vendor() == Vendor::Hub
                && stale.is_none()
                && login.is_some()
            {
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

impl<P: ListPage> VendorApiPages<P> {
    /// Returns the next page; `None` after the last. An error response is an error, never an empty page.
    pub async fn next_page(&mut self) -> Result<Option<P>> {
        self.paginator.next_page(&self.api, MAX_PAGE_BYTES, &self.operation).await
    }
}

#[derive(Deserialize)]
struct HubToken {
    #[serde(default)]
    access_token: Option<Secret>,
    #[serde(default)]
    token: Option<Secret>,
}

fn bearer(token: &Secret, operation: &str) -> Result<HeaderValue> {
    token.keep_masked();
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
        Error::new(ErrorKind::Invalid, operation, "the token holds characters that no header can carry")
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Returns the name of an API on another host than the registry, for errors and rate limits.
pub(super) fn api_host_name(base: &Url) -> Result<RegistryName> {
    let host = base.host_str().unwrap_or_default();
    let host = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    host.parse().map_err(|error: imgsync_oci::ParseReferenceError| {
        Error::new(ErrorKind::Invalid, format!("requesting {}", ssrf::origin(base)), error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::CredentialEnvironment;
    use crate::{ClientSettings, RegistrySettings, TrafficCounters};

    fn api(registry: &str, settings: RegistrySettings) -> VendorApi {
        let name: RegistryName = registry.parse().unwrap();
        let settings = ClientSettings { registries: [(name.clone(), settings)].into(), ..Default::default() };
        let client = Client::new(settings, CredentialEnvironment::default());
        let (repository, context) = ("me/app".parse().unwrap(), Context::default());
        let repository =
            client.repository(&name, &repository, Access::Push, &context, &TrafficCounters::new()).unwrap();
        repository.vendor_api().unwrap().unwrap()
    }

    fn with(username: &str, api: Option<&str>) -> RegistrySettings {
        let credential = Credential::Basic { username: username.to_owned(), password: Secret::new("secret") };
        let api = api.map(|api| api.parse().unwrap());
        RegistrySettings { credentials: vec![credential], api, ..Default::default() }
    }

    #[test]
    fn each_part_of_an_address_is_escaped_and_stays_one() {
        let harbor = RegistrySettings { listing: ListingMethod::Vendor(Vendor::Harbor), ..Default::default() };
        let url = api("h.example.org", harbor).url(&["projects", "p", "repositories", "a%2Fb"], &[("q", "tags=*")]);
        assert_eq!(url.as_str(), "https://h.example.org/api/v2.0/projects/p/repositories/a%252Fb?q=tags%3D*");
        let url = api("ghcr.io", RegistrySettings::default()).url(&["orgs", "o", "packages", "container", "a/b"], &[]);
        assert_eq!(url.as_str(), "https://api.github.com/orgs/o/packages/container/a%2Fb");
    }

    #[tokio::test]
    async fn no_password_goes_in_plain_http_to_an_api_of_a_registry_with_tls() {
        let error = api("docker.io", with("me", Some("http://api.example.org")))
            .get_authorization(None, "listing")
            .await
            .unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("secret")), (ErrorKind::Insecure, false));
    }

    #[tokio::test]
    async fn an_oauth_token_is_told_from_a_robot_account() {
        for (user, is_taken) in [("$oauthtoken", true), ("me+robot", false)] {
            let api = api("quay.io", with(user, None));
            assert_eq!(api.accepts_credentials().await.unwrap(), is_taken, "{user}");
            assert_eq!(api.get_authorization(None, "listing").await.unwrap().is_some(), is_taken, "{user}");
            assert!(api.has_credentials().await.unwrap());
        }
    }
}
