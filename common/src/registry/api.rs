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
use super::context::Counted;
use super::credentials::Credential;
use super::login::Logins;
use super::paged::{Ask, Cursor, Page};
use super::transport::{Answer, Outgoing, Payload};
use super::{Access, Client, Context, MAX_REPOSITORY_NOTES, Registry, Repository, Root, base_of, hop, is_loopback};
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::image::RegistryName;
use crate::secret::Secret;
use crate::vendor::{self, ListingBy, Vendor};

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
pub(crate) struct ApiHome {
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
    In(Credential, Authorization),
    /// Refused credentials are not sent again: too many failures lock an account.
    Refused(Credential, String),
}

/// A vendor's API, with the context of its requests.
#[derive(Debug, Clone)]
pub struct Api {
    shared: Arc<ApiHome>,
    /// The registry's side, whose credentials are used.
    home: Repository,
    /// The API's side.
    asked: Repository,
}

/// The pages of a list, one request each.
pub struct Pages<P> {
    api: Api,
    cursor: Cursor,
    tried: String,
    of: PhantomData<fn() -> P>,
}

impl<P> fmt::Debug for Pages<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({})", self.tried)
    }
}

impl ApiHome {
    /// Returns the credential pool of its requests.
    pub(super) fn logins(&self) -> &Arc<Logins> {
        &self.registry.logins
    }
}

impl Client {
    fn api_home(&self, registry: &Arc<Registry>) -> Result<Option<Arc<ApiHome>>> {
        let mut apis = self.0.apis.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = apis.get(&registry.name) {
            return Ok(Some(found.clone()));
        }
        let settings = &registry.settings;
        let (endpoint, api) = (settings.endpoint.as_ref(), settings.api.as_ref());
        let listing = vendor::listing(&registry.name, settings.listing, endpoint, api)
            .map_err(|detail| Error::new(Class::Invalid, format!("finding what lists {}", registry.name), detail))?;
        let is_recognised = listing.is_none();
        let listing = match listing {
            Some(listing) => listing,
            None if settings.listing == ListingBy::Auto
                && endpoint.is_none()
                && registry.auth.service().as_deref() == Some(HARBOR_SERVICE) =>
            {
                vendor::Listing { vendor: Vendor::Harbor, at: None }
            }
            None => return Ok(None),
        };
        let base = listing.vendor.base(listing.at.as_ref().unwrap_or(&base_of(&registry.name, settings)));
        let is_same = hop::same_origin(&base, &registry.base);
        let (name, logins) = match is_same {
            true => (registry.name.clone(), registry.logins.clone()),
            false => {
                let name = host_of(&base)?;
                let logins = self.logins_of(&name, settings);
                (name, logins)
            }
        };
        let mut settings = settings.clone();
        if !is_same {
            // It was configured for the registry alone.
            settings.identity = None;
        }
        let found = Arc::new(ApiHome {
            vendor: listing.vendor,
            is_recognised,
            registry: Arc::new(self.connect(&name, base, settings, logins, None)?),
            login: tokio::sync::Mutex::default(),
            notes: Mutex::new(GenerationalCache::new(MAX_REPOSITORY_NOTES)),
        });
        apis.insert(registry.name.clone(), found.clone());
        Ok(Some(found))
    }
}

impl Repository {
    /// Returns the vendor API that lists this repository's registry, if any. A Harbor is recognised by its challenge,
    /// so the result can change once the registry has answered.
    pub fn vendor_api(&self) -> Result<Option<Api>> {
        let Some(shared) = self.client.api_home(&self.registry)? else { return Ok(None) };
        let access = if self.access == Access::Catalog { Access::Catalog } else { Access::Pull };
        let home = Repository { access, ..self.clone() };
        let asked = Repository { registry: shared.registry.clone(), access: Access::Catalog, ..self.clone() };
        Ok(Some(Api { shared, home, asked }))
    }
}

impl Root {
    /// Returns the vendor API that lists this registry, if any.
    pub fn vendor_api(&self) -> Result<Option<Api>> {
        self.0.vendor_api()
    }
}

impl Api {
    /// Returns the vendor.
    pub fn vendor(&self) -> Vendor {
        self.shared.vendor
    }

    /// Whether it is not configured but recognised by the registry's responses.
    pub fn is_recognised(&self) -> bool {
        self.shared.is_recognised
    }

    /// Returns the registry that it lists.
    pub fn registry(&self) -> &RegistryName {
        self.home.registry()
    }

    /// Returns the context of its requests.
    pub fn context(&self) -> &Context {
        self.home.context()
    }

    /// Whether there are credentials that the API accepts.
    pub async fn takes_our_credentials(&self) -> Result<bool> {
        Ok(match (self.vendor(), self.home.credential(self.who()).await?) {
            (_, None) => false,
            (Vendor::Quay, Some(Credential::Basic { username, .. })) => username == QUAY_TOKEN_USER,
            (_, Some(credential)) => matches!(credential, Credential::Basic { .. }),
        })
    }

    /// Whether there are credentials for the registry, even if the API does not accept them.
    pub async fn has_credentials(&self) -> Result<bool> {
        Ok(self.home.credential(self.who()).await?.is_some())
    }

    /// Returns the index of the credential: always the first that pulls, so that a login at the vendor is reused. The
    /// same as at the registry itself.
    fn who(&self) -> usize {
        self.home.registry.logins.pulling().first().copied().unwrap_or_default()
    }

    /// Builds a URL below the base. Each part is escaped.
    pub fn url(&self, parts: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.asked.registry.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Lists page by page. `what` is listed, for errors: "the tags of quay.io/a/b".
    pub fn pages<P: Page>(&self, first: Url, what: &str) -> Pages<P> {
        let tried = format!("listing {what} by {}'s API", self.vendor().name());
        let api = Api { home: self.home.with_own_clock(), asked: self.asked.with_own_clock(), ..self.clone() };
        Pages { api, cursor: Cursor::new(first), tried, of: PhantomData }
    }

    /// Posts JSON to a path below the base, once, with the main credential.
    pub(super) async fn post(&self, parts: &[&str], json: String, login: Authorization, tried: &str) -> Result<Answer> {
        self.must_be_private(tried)?;
        let outgoing = Outgoing::new(Method::POST, self.url(parts, &[]), tried)
            .header(header::CONTENT_TYPE, "application/json")
            .payload(Payload::Bytes(json.into()));
        self.asked.send_as(outgoing, 0, Some(login)).await.map_err(|error| self.unreached(error))
    }

    /// Returns a cached note.
    pub fn noted(&self, about: &str) -> Option<String> {
        self.notes().get(about).cloned()
    }

    /// Caches a note as long as the client lives. Returns the previous one.
    pub fn note(&self, about: &str, what: &str) -> Option<String> {
        self.notes().insert(about.to_owned(), what.to_owned())
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, GenerationalCache<String, String>> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the authorization to send. `stale` was refused and is not used again.
    async fn login(&self, stale: Option<&Authorization>, tried: &str) -> Result<Option<Authorization>> {
        let Some(credential) = self.home.credential(self.who()).await? else { return Ok(None) };
        let Credential::Basic { username, password } = &credential else { return Ok(None) };
        self.must_be_private(tried)?;
        let header = match self.vendor() {
            Vendor::Harbor => basic_header(username, password)?,
            Vendor::GitHub => bearer(password, tried)?,
            Vendor::Quay if username == QUAY_TOKEN_USER => bearer(password, tried)?,
            Vendor::Quay => return Ok(None),
            Vendor::Hub => return self.hub_login(&credential, stale).await.map(Some),
        };
        Ok(Some(Authorization { header, since: Instant::now(), with_credentials: true }))
    }

    /// Refuses to send a password over plain HTTP if the registry uses TLS, except to this machine.
    fn must_be_private(&self, tried: &str) -> Result<()> {
        let (api, registry) = (&self.asked.registry.base, &self.home.registry.base);
        let is_here = api.host_str().is_some_and(is_loopback);
        if api.scheme() == "http" && registry.scheme() == "https" && !is_here {
            let detail = format!("credentials would go in plain HTTP to {}", hop::origin(api));
            return Err(Error::new(Class::Insecure, tried, detail)
                .hint(format!("write `api:` of {} with https://", self.registry())));
        }
        Ok(())
    }

    /// Whether an error means that this API, on another host than the registry, is unreachable while the registry may
    /// be reachable, as behind filtering networks.
    pub fn is_out_of_reach(&self, error: &Error) -> bool {
        error.is_unconnected() && self.asked.registry().host() != self.registry().host()
    }

    fn unreached(&self, error: Error) -> Error {
        if !self.is_out_of_reach(&error) {
            return error;
        }
        let advice = error.advice().map(|advice| format!("{advice}; ")).unwrap_or_default();
        error.hint(format!(
            "{advice}where {}'s API cannot be reached at all, set `listing: registry` for {} under `registries`",
            self.vendor().name(),
            self.registry()
        ))
    }

    /// Docker Hub issues short-lived tokens for user and password (Docker Hub API, "Create access token").
    async fn hub_login(&self, credential: &Credential, stale: Option<&Authorization>) -> Result<Authorization> {
        let tried = format!("logging in at {} for {}", hop::origin(&self.asked.registry.base), self.registry());
        let mut login = self.shared.login.lock().await;
        match &*login {
            HubLogin::In(with, authorization)
                if with == credential && stale.is_none_or(|stale| stale.since < authorization.since) =>
            {
                return Ok(authorization.clone());
            }
            HubLogin::Refused(with, detail) if with == credential => return Err(self.hub_refused(&tried, detail)),
            _ => {}
        }
        match self.asked.with_retries(|| self.hub_token(credential, &tried)).await {
            Ok(token) => {
                let authorization =
                    Authorization { header: bearer(&token, &tried)?, since: Instant::now(), with_credentials: true };
                *login = HubLogin::In(credential.clone(), authorization.clone());
                Ok(authorization)
            }
            Err(error) if matches!(error.class(), Class::Denied | Class::Refused) => {
                *login = HubLogin::Refused(credential.clone(), error.detail().to_owned());
                Err(self.hub_refused(&tried, error.detail()))
            }
            Err(error) => Err(error),
        }
    }

    fn hub_refused(&self, tried: &str, detail: &str) -> Error {
        Error::new(Class::Denied, tried, detail).at(&self.asked.registry.name).hint(self.denied(true))
    }

    async fn hub_token(&self, credential: &Credential, tried: &str) -> Result<Secret> {
        let Credential::Basic { username, password } = credential else {
            return Err(Error::new(Class::Invalid, tried, "an identity token is of no use there"));
        };
        let fields = [(["auth", "token"], ["identifier", "secret"]), (["users", "login"], ["username", "password"])];
        let mut answer = None;
        for (path, [user, secret]) in fields {
            let body = serde_json::json!({user: username, secret: password.expose()});
            let outgoing = Outgoing::new(Method::POST, self.url(&path, &[]), tried)
                .header(header::CONTENT_TYPE, "application/json")
                .payload(Payload::Bytes(body.to_string().into()))
                .counted(Counted::Token);
            let given = self.asked.send_as(outgoing, self.who(), None).await.map_err(|error| self.unreached(error))?;
            // The older endpoint: a custom API may have only that one.
            let is_unknown = matches!(given.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            answer = Some(given);
            if !is_unknown {
                break;
            }
        }
        let Some(answer) = answer else { return Err(Error::new(Class::BadAnswer, tried, "there is no way to log in")) };
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer, tried).await);
        }
        let bytes = answer.bytes(MAX_LOGIN_BYTES, tried).await?;
        let given: HubToken = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Class::BadAnswer, tried, format!("the answer cannot be parsed: {error}")))?;
        given
            .access_token
            .or(given.token)
            .ok_or_else(|| Error::new(Class::BadAnswer, tried, "the answer holds no token"))
    }

    /// Returns the error of a response, with a hint.
    pub(super) async fn refusal(&self, answer: Answer, tried: &str) -> Error {
        let (with_credentials, errand) = (answer.is_with_credentials(), answer.errand());
        let error = answer.into_error(tried).await.at(&self.asked.registry.name);
        let error = self.asked.mind(errand, error).await;
        match error.class() {
            Class::Denied => error.hint(self.denied(with_credentials)),
            Class::RateLimited if !with_credentials => {
                error.hint(format!("credentials for {} usually allow more", self.registry()))
            }
            _ => error,
        }
    }

    /// Returns the hint for denied access.
    pub fn denied(&self, with_credentials: bool) -> String {
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

impl Ask for Api {
    async fn ask(&self, url: &Url, tried: &str) -> Result<Answer> {
        let mut stale = None;
        loop {
            let login = self.login(stale.as_ref(), tried).await?;
            let mut outgoing = Outgoing::new(Method::GET, url.clone(), tried);
            outgoing = match self.vendor() {
                Vendor::GitHub => outgoing
                    .header(header::ACCEPT, "application/vnd.github+json")
                    .header(HeaderName::from_static("x-github-api-version"), "2022-11-28"),
                _ => outgoing.header(header::ACCEPT, "application/json"),
            };
            let answer =
                self.asked.send_as(outgoing, self.who(), login.clone()).await.map_err(|error| self.unreached(error))?;
            if answer.status() == StatusCode::OK {
                return Ok(answer);
            }
            // Docker Hub's tokens expire after some minutes.
            if answer.status() == StatusCode::UNAUTHORIZED
                && self.vendor() == Vendor::Hub
                && stale.is_none()
                && login.is_some()
            {
                stale = login;
                continue;
            }
            return Err(self.refusal(answer, tried).await);
        }
    }

    fn repository(&self) -> &Repository {
        &self.asked
    }
}

impl<P: Page> Pages<P> {
    /// Returns the next page; `None` after the last. An error response is an error, never an empty page.
    pub async fn next_page(&mut self) -> Result<Option<P>> {
        self.cursor.next_page(&self.api, MAX_PAGE_BYTES, &self.tried).await
    }
}

#[derive(Deserialize)]
struct HubToken {
    #[serde(default)]
    access_token: Option<Secret>,
    #[serde(default)]
    token: Option<Secret>,
}

fn bearer(token: &Secret, tried: &str) -> Result<HeaderValue> {
    token.remember();
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| Error::new(Class::Invalid, tried, "the token holds characters that no header can carry"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Returns the name of an API on another host than the registry, for errors and rate limits.
pub(super) fn host_of(base: &Url) -> Result<RegistryName> {
    let host = base.host_str().unwrap_or_default();
    let host = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    host.parse().map_err(|error: crate::image::ParseReferenceError| {
        Error::new(Class::Invalid, format!("asking {}", hop::origin(base)), error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::credentials::Environment;
    use crate::registry::{ClientSettings, RegistrySettings, Tally};

    fn api(registry: &str, settings: RegistrySettings) -> Api {
        let name: RegistryName = registry.parse().unwrap();
        let settings = ClientSettings { registries: [(name.clone(), settings)].into(), ..Default::default() };
        let client = Client::new(settings, Environment::default());
        let (repository, context) = ("me/app".parse().unwrap(), Context::default());
        let repository = client.repository(&name, &repository, Access::Push, &context, &Tally::new()).unwrap();
        repository.vendor_api().unwrap().unwrap()
    }

    fn with(username: &str, api: Option<&str>) -> RegistrySettings {
        let credential = Credential::Basic { username: username.to_owned(), password: Secret::new("secret") };
        let api = api.map(|api| api.parse().unwrap());
        RegistrySettings { credentials: vec![credential], api, ..Default::default() }
    }

    #[test]
    fn each_part_of_an_address_is_escaped_and_stays_one() {
        let harbor = RegistrySettings { listing: ListingBy::Vendor(Vendor::Harbor), ..Default::default() };
        let url = api("h.example.org", harbor).url(&["projects", "p", "repositories", "a%2Fb"], &[("q", "tags=*")]);
        assert_eq!(url.as_str(), "https://h.example.org/api/v2.0/projects/p/repositories/a%252Fb?q=tags%3D*");
        let url = api("ghcr.io", RegistrySettings::default()).url(&["orgs", "o", "packages", "container", "a/b"], &[]);
        assert_eq!(url.as_str(), "https://api.github.com/orgs/o/packages/container/a%2Fb");
    }

    #[tokio::test]
    async fn no_password_goes_in_plain_http_to_an_api_of_a_registry_with_tls() {
        let error =
            api("docker.io", with("me", Some("http://api.example.org"))).login(None, "listing").await.unwrap_err();
        assert_eq!((error.class(), error.to_string().contains("secret")), (Class::Insecure, false));
    }

    #[tokio::test]
    async fn an_oauth_token_is_told_from_a_robot_account() {
        for (user, is_taken) in [("$oauthtoken", true), ("me+robot", false)] {
            let api = api("quay.io", with(user, None));
            assert_eq!(api.takes_our_credentials().await.unwrap(), is_taken, "{user}");
            assert_eq!(api.login(None, "listing").await.unwrap().is_some(), is_taken, "{user}");
            assert!(api.has_credentials().await.unwrap());
        }
    }
}
