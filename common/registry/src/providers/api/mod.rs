//! Client of a provider's own registry API: JSON lists by pages, with the provider's authentication. Retries, rate
//! limits, proxy, certificates and size limits are those of the registry, and secrets go nowhere else. What differs
//! between providers is a [`ListingApi`].

mod login;
mod pages;
mod requests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use url::Url;

use super::{CredentialSource, ListingMethod, PROVIDERS, Provider, listing};
use crate::credential_pool::CredentialPool;
use crate::credentials::Credential;
use crate::{Access, Client, Context, MAX_CACHED_REPOSITORIES, Registry, RegistryCatalog, Repository, base_url, ssrf};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::secret::Secret;
use imgsync_oci::{RegistryName, RepositoryName};
use login::LoginState;

pub(super) use pages::{ApiPages, PAGE_SIZE, PageReader, parse_date, split_namespace};
pub use pages::{ListedPages, ListedTag};

/// A provider's API that lists repositories, and tags with digests and dates.
pub(crate) trait ListingApi: fmt::Debug + Send + Sync {
    /// Returns its name in the configuration, `listing:`.
    fn key(&self) -> &'static str;

    /// Returns its well-known address, if that is not on the registry's host. Other registries then need `api:`.
    fn known_url(&self) -> Option<&'static str> {
        None
    }

    /// Returns the path of requests below its address, with a trailing slash.
    fn path(&self) -> &'static str;

    /// Returns the end of an address's path by which the API is recognized at any host.
    fn self_hosted_path(&self) -> Option<&'static str> {
        None
    }

    /// Returns the headers of requests, in lower case.
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[("accept", "application/json")]
    }

    /// Returns how a user's password is sent.
    fn credential_use(&self, username: &str) -> CredentialUse;

    /// Whether it lists the repositories of all namespaces at once.
    fn lists_all_namespaces(&self) -> bool {
        false
    }

    /// Returns the error's text where it lists nothing without credentials.
    fn required_credentials(&self) -> Option<&'static str> {
        None
    }

    /// Whether it lists only public repositories, without an error, if it does not take the registry's credentials.
    fn lists_public_without_credentials(&self) -> bool {
        false
    }

    /// Returns the hint for credentials that were refused.
    fn refused_hint(&self, registry: &RegistryName) -> String;

    /// Returns the hint for access that was denied without credentials.
    fn anonymous_hint(&self, registry: &RegistryName) -> String {
        format!(
            "no credentials for {registry} were found: run `docker login {registry}`, or set them under `registries`"
        )
    }

    /// Lists the repositories of a namespace. The names are paths within the registry.
    fn list_repositories(&self, api: &ProviderApi, namespace: &str) -> ListedPages<String>;

    /// Lists the tags of a repository.
    fn list_tags(&self, api: &ProviderApi, name: &RepositoryName) -> ListedPages<ListedTag>;
}

/// How a user's password is sent to a listing API.
#[derive(Clone, Copy)]
pub(crate) enum CredentialUse {
    /// Not at all: the API does not take it.
    Unaccepted,
    /// With the user's name.
    Basic,
    /// As a token.
    Bearer,
    /// Once, in exchange for a token that expires.
    Exchange(&'static dyn TokenExchange),
}

/// Exchanges a user's password for a token.
#[async_trait]
pub(crate) trait TokenExchange: Sync {
    /// Requests a token, once.
    async fn request_token(
        &self,
        api: &ProviderApi,
        username: &str,
        password: &Secret,
        operation: &str,
    ) -> Result<Secret>;
}

/// State of a registry's listing API.
#[derive(Debug)]
pub(crate) struct ProviderApiState {
    provider: &'static Provider,
    listing: &'static dyn ListingApi,
    /// Not configured, but recognised by the registry's responses.
    is_recognised: bool,
    registry: Arc<Registry>,
    login: tokio::sync::Mutex<LoginState>,
    notes: Mutex<GenerationalCache<String, String>>,
}

/// A provider's listing API, with the context of its requests.
#[derive(Debug, Clone)]
pub struct ProviderApi {
    state: Arc<ProviderApiState>,
    /// The registry's side, whose credentials are used.
    registry_side: Repository,
    /// The API's side.
    api_side: Repository,
}

impl ProviderApiState {
    /// Returns the credential pool of its requests.
    pub(crate) fn credential_pool(&self) -> &Arc<CredentialPool> {
        &self.registry.credential_pool
    }
}

impl Client {
    fn provider_api_state(&self, registry: &Arc<Registry>) -> Result<Option<Arc<ProviderApiState>>> {
        let mut apis = self.0.apis.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = apis.get(&registry.name) {
            return Ok(Some(found.clone()));
        }
        let settings = &registry.settings;
        let (endpoint, api) = (settings.endpoint.as_ref(), settings.api.as_ref());
        let found = listing::resolve_listing(&registry.name, settings.listing, endpoint, api).map_err(|detail| {
            Error::new(ErrorKind::Invalid, format!("choosing the listing API of {}", registry.name), detail)
        })?;
        let is_recognised = found.is_none();
        let (provider, url) = match found {
            Some(found) => (found.provider, found.url),
            None if settings.listing == ListingMethod::Auto && endpoint.is_none() => match recognise(registry) {
                Some(provider) => (provider, None),
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let Some(listing) = provider.listing else { return Ok(None) };
        let base = provider.api_base_url(url.as_ref().unwrap_or(&base_url(&registry.name, settings)));
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
            // They were configured for the registry alone.
            settings.identity = None;
            if matches!(settings.credential_source, CredentialSource::Machine(_)) {
                settings.credential_source = CredentialSource::Anonymous;
            }
        }
        let found = Arc::new(ProviderApiState {
            provider,
            listing,
            is_recognised,
            registry: Arc::new(self.build_registry_at(&name, base, settings, pool, None)?),
            login: tokio::sync::Mutex::default(),
            notes: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)),
        });
        apis.insert(registry.name.clone(), found.clone());
        Ok(Some(found))
    }
}

/// Returns the provider that the registry's challenge reveals.
fn recognise(registry: &Registry) -> Option<&'static Provider> {
    let service = registry.auth.service()?;
    PROVIDERS.into_iter().find(|provider| provider.token_service == Some(service.as_str()))
}

impl Repository {
    /// Returns the provider's API that lists this repository's registry, if any. Some providers are recognised by their
    /// challenge, so the result can change once the registry has answered.
    pub fn provider_api(&self) -> Result<Option<ProviderApi>> {
        let Some(state) = self.client.provider_api_state(&self.registry)? else { return Ok(None) };
        let access = if self.access == Access::Catalog { Access::Catalog } else { Access::Pull };
        let registry_side = Repository { access, ..self.clone() };
        let api_side = Repository { registry: state.registry.clone(), access: Access::Catalog, ..self.clone() };
        Ok(Some(ProviderApi { state, registry_side, api_side }))
    }
}

impl RegistryCatalog {
    /// Returns the provider's API that lists this registry, if any.
    pub fn provider_api(&self) -> Result<Option<ProviderApi>> {
        self.0.provider_api()
    }
}

impl ProviderApi {
    /// Returns the provider's name for messages: "Quay's API".
    pub fn name(&self) -> &'static str {
        self.state.provider.name
    }

    /// Returns the provider.
    pub(super) fn provider(&self) -> &'static Provider {
        self.state.provider
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

    /// Whether it lists the repositories of all namespaces at once.
    pub fn lists_all_namespaces(&self) -> bool {
        self.state.listing.lists_all_namespaces()
    }

    /// Returns the error's text where it lists nothing without credentials.
    pub fn required_credentials(&self) -> Option<&'static str> {
        self.state.listing.required_credentials()
    }

    /// Whether it lists only public repositories, without an error, if it does not take the registry's credentials.
    pub fn lists_public_without_credentials(&self) -> bool {
        self.state.listing.lists_public_without_credentials()
    }

    /// Whether there are credentials that the API accepts.
    pub async fn accepts_credentials(&self) -> Result<bool> {
        Ok(match self.registry_side.find_credential(self.credential_index()).await? {
            Some(Credential::Basic { username, .. }) => {
                !matches!(self.state.listing.credential_use(&username), CredentialUse::Unaccepted)
            }
            _ => false,
        })
    }

    /// Whether there are credentials for the registry, even if the API does not accept them.
    pub async fn has_credentials(&self) -> Result<bool> {
        Ok(self.registry_side.find_credential(self.credential_index()).await?.is_some())
    }

    /// Returns the index of the credential: always the first that pulls, so that a login at the provider is reused. The
    /// same as at the registry itself.
    fn credential_index(&self) -> usize {
        self.registry_side.registry.credential_pool.pull_indexes().first().copied().unwrap_or_default()
    }

    /// Lists the repositories of a namespace, by their paths within the registry.
    pub fn list_repositories(&self, namespace: &str) -> ListedPages<String> {
        self.state.listing.list_repositories(self, namespace)
    }

    /// Lists the tags of a repository.
    pub fn list_tags(&self, name: &RepositoryName) -> ListedPages<ListedTag> {
        self.state.listing.list_tags(self, name)
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

    /// Returns the hint for denied access.
    pub fn denied_hint(&self, with_credentials: bool) -> String {
        match with_credentials {
            true => self.state.listing.refused_hint(self.registry()),
            false => self.state.listing.anonymous_hint(self.registry()),
        }
    }
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

    fn api(registry: &str, settings: RegistrySettings) -> ProviderApi {
        let name: RegistryName = registry.parse().unwrap();
        let settings = ClientSettings { registries: [(name.clone(), settings)].into(), ..Default::default() };
        let client = Client::new(settings, CredentialEnvironment::default());
        let (repository, context) = ("me/app".parse().unwrap(), Context::default());
        let repository =
            client.repository(&name, &repository, Access::Push, &context, &TrafficCounters::new()).unwrap();
        repository.provider_api().unwrap().unwrap()
    }

    fn with(username: &str, api: Option<&str>) -> RegistrySettings {
        let credential = Credential::Basic { username: username.to_owned(), password: Secret::new("secret") };
        let api = api.map(|api| api.parse().unwrap());
        RegistrySettings { credentials: vec![credential], api, ..Default::default() }
    }

    #[test]
    fn each_part_of_an_address_is_escaped_and_stays_one() {
        let harbor = RegistrySettings { listing: "harbor".parse().unwrap(), ..Default::default() };
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
