//! Client of OCI registries (distribution-spec v1.1), usable without the rest of imgsync: what copying images needs.
//!
//! A [`Client`] holds connections, credentials and settings. A [`Repository`] is a handle to one repository, with an
//! [`Access`] and the [`Context`] of its requests. [`imgsync_oci::retry`] decides what is retried.

mod aimd;
mod auth;
mod bandwidth;
mod blobs;
mod catalog;
pub mod challenge;
mod concurrency;
mod context;
mod credential_pool;
pub mod credentials;
mod environment_proxies;
pub mod error_body;
pub mod event;
mod failure;
#[cfg(test)]
mod fuzz;
mod header_time;
mod http;
mod limits;
pub mod link;
mod listing_memory;
mod manifests;
mod mirrors;
mod mount_support;
mod page_reader;
mod pagination;
pub mod providers;
mod provision;
pub mod quota_headers;
pub mod range;
mod rate_limiter;
mod referrers;
mod rejection_backoff;
mod request_body;
mod request_class;
mod resizable_semaphore;
mod response;
pub mod retry_after;
mod send_progress;
mod settings;
mod ssrf;
mod tags;
mod throttling;
mod transport;
mod uploads;
mod vendor_api;
pub mod wait;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

pub use auth::Access;
pub use bandwidth::BandwidthMeter;
pub use blobs::{BlobStream, OpenBlob};
pub use catalog::{CatalogPages, RegistryCatalog};
pub use context::{Context, TrafficCounters, TrafficSnapshot};
pub use http::non_registry_client;
pub use limits::limits;
pub use listing_memory::{ListingGroup, ListingShare};
pub use manifests::{DeleteResult, ManifestHead, ManifestPut, ManifestRef};
pub use page_reader::{BoundedList, ListEntry};
pub use pagination::{ListPage, NextPage};
pub use rate_limiter::RateLimitHold;
pub use referrers::FallbackTag;
pub use rejection_backoff::REJECTION_TIMEOUT;
pub use send_progress::SendProgress;
pub use settings::{ClientSettings, QuotaReserve, RegistrySettings, SharedRateLimit};
pub use tags::{ListedManifest, TagPage, TagPages};
pub use uploads::{StartedUpload, UploadBody, UploadSession};
pub use vendor_api::{VendorApi, VendorApiPages};

use self::aimd::AimdWindows;
use self::auth::RegistryAuth;
use self::bandwidth::ByteRateLimiter;
use self::credential_pool::CredentialPool;
use self::credentials::{CredentialEnvironment, CredentialStore};
use self::environment_proxies::EnvironmentProxies;
use self::failure::RequestTarget;
use self::http::{ClientPurpose, HttpClients};
use self::mirrors::MirrorState;
use self::mount_support::MountSupport;
use self::referrers::FallbackLocks;
use self::vendor_api::VendorApiState;
use crate::wait::WaitClock;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::retry::{RetryPolicy, RetryState};
use imgsync_oci::{RegistryName, RepositoryName};

/// Repositories cached for each registry, in each cache: those without the referrers API, those that were created,
/// those that a vendor's API does not list.
const MAX_CACHED_REPOSITORIES: usize = 10_000;

/// A client for registries. Cheap to clone; clones share connections, tokens and everything learned about registries.
#[derive(Debug, Clone)]
pub struct Client(Arc<ClientInner>);

/// A registry's name and its endpoint, if that differs.
type RegistryKey = (RegistryName, Option<Url>);

#[derive(Debug)]
struct ClientInner {
    settings: ClientSettings,
    credentials: CredentialStore,
    http: HttpClients,
    registries: Mutex<HashMap<RegistryName, Arc<Registry>>>,
    /// Vendor APIs by the registries that they list.
    apis: Mutex<HashMap<RegistryName, Arc<VendorApiState>>>,
    fallback_locks: FallbackLocks,
    /// Credential pools by registry and endpoint, so registries that share a mirror share its rate limit.
    credential_pools: Mutex<HashMap<RegistryKey, Arc<CredentialPool>>>,
    /// For reading and for writing.
    bandwidth_limiters: [Option<Arc<ByteRateLimiter>>; 2],
    /// Blob bytes transferred, in both directions.
    bytes_moved: Arc<AtomicU64>,
}

/// One registry, with its settings and learned state.
#[derive(Debug)]
struct Registry {
    name: RegistryName,
    base: Url,
    settings: RegistrySettings,
    http: reqwest::Client,
    /// For redirects and other URLs that the registry names.
    http_redirect: reqwest::Client,
    /// The same, limited to public addresses.
    http_public_only: reqwest::Client,
    /// The most public network in which the registry was connected to.
    network_scope: Mutex<Option<ssrf::NetworkScope>>,
    /// Networks in which hosts were connected to, for name resolution.
    host_scopes: Arc<ssrf::HostScopes>,
    auth: RegistryAuth,
    mount_support: MountSupport,
    provision: provision::ProvisionState,
    /// The largest accepted request body, where larger ones were refused; 0 if unknown.
    body_limit: AtomicU64,
    /// Whether HEAD requests for manifests missed what GET found.
    heads_unreliable: AtomicBool,
    /// Repositories without the referrers API, and when that was seen. By repository: one host can serve several
    /// registries.
    without_referrers_api: Mutex<GenerationalCache<RepositoryName, Instant>>,
    credential_pool: Arc<CredentialPool>,
    /// Counts pulls, to rotate the pull credentials.
    pull_counter: AtomicUsize,
    windows: AimdWindows,
    /// For reading and for writing.
    meters: [BandwidthMeter; 2],
    /// Whether it was opened for reading, and for writing.
    used_as: (AtomicBool, AtomicBool),
    /// Mirrors, read from first.
    mirrors: Vec<Arc<Registry>>,
    /// Mirror state, if this registry is a mirror itself.
    mirror_state: Option<MirrorState>,
}

impl Client {
    /// Creates a client. Credentials that the settings do not contain are searched for where docker and podman store
    /// them, as `environment` says.
    pub fn new(settings: ClientSettings, environment: CredentialEnvironment) -> Client {
        let limiter = || settings.bandwidth.map(|rate| Arc::new(ByteRateLimiter::new(rate)));
        Client(Arc::new(ClientInner {
            bandwidth_limiters: [limiter(), limiter()],
            settings,
            credentials: CredentialStore::new(Default::default(), environment),
            http: HttpClients::default(),
            registries: Mutex::default(),
            apis: Mutex::default(),
            fallback_locks: FallbackLocks::default(),
            credential_pools: Mutex::default(),
            bytes_moved: Arc::default(),
        }))
    }

    /// Opens a repository for `access`. Fails only if the registry's settings are invalid (a bad certificate).
    pub fn repository(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        access: Access,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> Result<Repository> {
        let registry = self.registry(registry)?;
        match access {
            Access::Pull => registry.used_as.0.store(true, Ordering::Relaxed),
            Access::Push => registry.used_as.1.store(true, Ordering::Relaxed),
            Access::Delete | Access::Catalog => {}
        }
        let pull_index = match access {
            Access::Pull => registry.pull_counter.fetch_add(1, Ordering::Relaxed),
            Access::Push | Access::Delete | Access::Catalog => 0,
        };
        Ok(Repository {
            client: self.clone(),
            registry,
            pull_index,
            name: repository.clone(),
            access,
            context: context.clone(),
            counters: counters.clone(),
        })
    }

    /// Returns the settings.
    pub fn settings(&self) -> &ClientSettings {
        &self.0.settings
    }

    /// Returns the user name of the credentials found for a registry, if any.
    pub async fn find_username(&self, registry: &RegistryName) -> Result<Option<String>> {
        let registry = self.registry(registry)?;
        Ok(auth::find_credential(self, &registry, "", 0).await?.and_then(auth::user))
    }

    /// Checks that a registry is reachable; any response counts. Tries once, within the connect timeout.
    pub async fn ping(&self, registry: &RegistryName, context: &Context) -> Result<()> {
        let registry = self.registry(registry)?;
        let operation = format!("connecting to {}", registry.name);
        let url =
            registry.base.join("v2/").map_err(|error| Error::new(ErrorKind::Invalid, &operation, error.to_string()))?;
        let target = registry.request_target(&url)?;
        ssrf::refuse_metadata(&url, registry.settings.allowed(), &operation)?;
        let request = registry.http.get(url).timeout(self.0.settings.connect_timeout);
        tokio::select! {
            answer = request.send() => match answer {
                Ok(_) => Ok(()),
                Err(error) => Err(failure::transport_error(error, &operation, &target).with_registry(&registry.name)),
            },
            () = context.cancel.cancelled() => Err(Error::cancelled(operation)),
        }
    }

    fn registry(&self, name: &RegistryName) -> Result<Arc<Registry>> {
        let mut registries = self.0.registries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = registries.get(name) {
            return Ok(registry.clone());
        }
        let settings = self.0.settings.registries.get(name).cloned().unwrap_or_default();
        let registry = Arc::new(self.build(name, settings, None)?);
        registries.insert(name.clone(), registry.clone());
        Ok(registry)
    }

    fn build(&self, name: &RegistryName, settings: RegistrySettings, mirror: Option<MirrorState>) -> Result<Registry> {
        let base = base_url(name, &settings);
        let key = (name.clone(), settings.endpoint.clone());
        let pool = {
            let mut pools = self.0.credential_pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.entry(key).or_insert_with(|| self.build_credential_pool(name, &settings)).clone()
        };
        self.build_registry_at(name, base, settings, pool, mirror)
    }

    fn build_credential_pool(&self, name: &RegistryName, settings: &RegistrySettings) -> Arc<CredentialPool> {
        Arc::new(CredentialPool::new(name, settings, self.0.settings.shared_rate_limit.as_ref()))
    }

    /// Builds a registry at a base URL.
    fn build_registry_at(
        &self,
        name: &RegistryName,
        base: Url,
        settings: RegistrySettings,
        pool: Arc<CredentialPool>,
        mirror_state: Option<MirrorState>,
    ) -> Result<Registry> {
        let meter = |all: &Option<Arc<ByteRateLimiter>>| {
            let own = settings.bandwidth.map(|rate| Arc::new(ByteRateLimiter::new(rate)));
            BandwidthMeter::new(all.iter().cloned().chain(own), &self.0.bytes_moved)
        };
        let meters = self.0.bandwidth_limiters.each_ref().map(meter);
        let client = |purpose| self.0.http.get(&self.0.settings, &settings, purpose);
        let is_link_local = ssrf::literal_scope(&base) == Some(ssrf::NetworkScope::LinkLocal);
        let (http, http_redirect) = match settings.allow_private || is_link_local {
            true => (client(ClientPurpose::Registry)?, client(ClientPurpose::Redirect)?),
            false => (client(ClientPurpose::Registry)?, client(ClientPurpose::NotLinkLocal)?),
        };
        let http_public_only = client(ClientPurpose::Public)?;
        Ok(Registry {
            name: name.clone(),
            base,
            mirrors: self.build_mirrors(&settings)?,
            mirror_state,
            settings,
            http,
            http_redirect,
            http_public_only,
            network_scope: Mutex::new(None),
            host_scopes: self.0.http.host_scopes.clone(),
            auth: RegistryAuth::default(),
            mount_support: MountSupport::default(),
            provision: provision::ProvisionState::default(),
            body_limit: AtomicU64::new(0),
            heads_unreliable: AtomicBool::new(false),
            without_referrers_api: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)),
            credential_pool: pool,
            pull_counter: AtomicUsize::new(0),
            windows: AimdWindows::default(),
            meters,
            used_as: Default::default(),
        })
    }
}

impl Registry {
    /// Describes how requests to a URL are sent. Fails if the proxy that the environment sets for it is invalid.
    fn request_target(&self, url: &Url) -> Result<RequestTarget> {
        let proxy = match &self.settings.proxy {
            Some(proxy) => Some(proxy.expose()),
            None => EnvironmentProxies::from_environment().proxy_for(url)?,
        };
        let is_other_origin = !ssrf::same_origin(url, &self.base);
        Ok(RequestTarget {
            registry: self.name.to_string(),
            origin: ssrf::origin(url),
            is_other_origin,
            names_origin: is_other_origin || self.settings.endpoint.is_some(),
            proxy: proxy.map(environment_proxies::shown),
            has_proxy_credentials: proxy.is_some_and(|proxy| !proxy.username().is_empty()),
        })
    }

    /// Whether requests to a URL go through a proxy.
    fn is_proxied(&self, url: &Url) -> bool {
        self.settings.proxy.is_some()
            || EnvironmentProxies::from_environment().proxy_for(url).is_ok_and(|proxy| proxy.is_some())
    }

    /// The network that the registry was connected to in; of several the most public. Before the first connection it is
    /// derived from the name.
    fn network_scope(&self) -> ssrf::NetworkScope {
        let known = *self.network_scope.lock().unwrap_or_else(PoisonError::into_inner);
        known.or_else(|| ssrf::literal_scope(&self.base)).unwrap_or(ssrf::NetworkScope::Public)
    }

    /// Returns the network that a response came from. Behind a proxy the peer address is the proxy's and is ignored.
    fn record_peer_scope(&self, url: &Url, peer: Option<SocketAddr>) -> ssrf::NetworkScope {
        let is_direct = !self.is_proxied(url);
        let scope = match peer.filter(|_| is_direct) {
            Some(peer) => ssrf::network_scope(peer.ip()),
            None => ssrf::literal_scope(url).unwrap_or(ssrf::NetworkScope::Public),
        };
        if ssrf::same_origin(url, &self.base) {
            let mut known = self.network_scope.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some(known.map_or(scope, |known| known.min(scope)));
            if let Some(host) = url.host_str().filter(|_| is_direct) {
                self.host_scopes.record(host.trim_end_matches('.'), scope);
            }
        }
        scope
    }

    /// Whether the registry is a source and a target.
    fn is_source_and_target(&self) -> bool {
        self.used_as.0.load(Ordering::Relaxed) && self.used_as.1.load(Ordering::Relaxed)
    }
}

fn is_loopback(host: &str) -> bool {
    host.parse::<RegistryName>().is_ok_and(|name| name.is_loopback())
}

/// Returns the base URL: plain HTTP for loopback and HTTPS for all others, unless the settings override it.
fn base_url(name: &RegistryName, settings: &RegistrySettings) -> Url {
    let scheme = match settings.plain_http.unwrap_or_else(|| name.is_loopback()) {
        true => "http",
        false => "https",
    };
    let mut base = match (&settings.endpoint, providers::find(name).and_then(|provider| provider.endpoint)) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(endpoint)) => Url::parse(endpoint).expect("a constant URL parses"),
        (None, None) => Url::parse(&format!("{scheme}://{name}")).expect("a checked registry name makes a URL"),
    };
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    base
}

/// A handle to one repository of a registry.
#[derive(Debug, Clone)]
pub struct Repository {
    client: Client,
    registry: Arc<Registry>,
    /// Position in the rotation of pull credentials.
    pull_index: usize,
    name: RepositoryName,
    access: Access,
    context: Context,
    counters: Arc<TrafficCounters>,
}

impl Repository {
    /// Returns the registry's name.
    pub fn registry(&self) -> &RegistryName {
        &self.registry.name
    }

    /// Returns the repository's path.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Returns the counters of requests and bytes.
    pub fn counters(&self) -> &Arc<TrafficCounters> {
        &self.counters
    }

    /// Returns the context of its requests.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the same repository with another context.
    #[must_use]
    pub fn with_context(&self, context: &Context) -> Repository {
        Repository { context: context.clone(), ..self.clone() }
    }

    /// Returns the same repository with a wait clock of its own.
    fn with_own_clock(&self) -> Repository {
        self.with_context(&Context { clock: WaitClock::default(), ..self.context.clone() })
    }

    /// Returns how long a response or a stream may stall.
    pub fn stall_timeout(&self) -> Duration {
        self.client.0.settings.stall_timeout
    }

    /// Returns the meter that uploaded blob bytes pass through.
    pub fn upload_meter(&self) -> BandwidthMeter {
        self.registry.meters[1].clone()
    }

    /// Whether the registry may support blob mounts.
    pub fn supports_mounts(&self) -> bool {
        !self.registry.mount_support.is_unsupported()
    }

    /// Returns the size of each PATCH, if blobs are to be uploaded in chunks.
    pub fn upload_chunk_size(&self) -> Option<u64> {
        let chunk = self.registry.settings.chunk.or_else(|| providers::find(&self.registry.name)?.chunk_bytes);
        match self.registry.body_limit.load(Ordering::Relaxed) {
            0 => chunk,
            limit => Some(chunk.map_or(limit, |chunk| chunk.min(limit))),
        }
    }

    /// Records that the registry accepts bodies of this size and refused larger ones.
    pub fn set_body_limit(&self, bytes: u64) {
        self.registry.body_limit.store(bytes, Ordering::Relaxed);
    }

    /// Returns fresh retry state for one request.
    pub fn new_retry(&self) -> RetryState {
        RetryState::new(self.policy(), &self.context.budget)
    }

    /// Returns retry state for listings. Listings of sources are retried for longer, since they have no second chance
    /// and delay nothing else; listings of targets only save requests.
    pub(crate) fn new_listing_retry(&self) -> RetryState {
        let (policy, most) = (self.policy(), RetryPolicy::default());
        if self.access == Access::Push {
            return self.new_retry();
        }
        let (max_retry_after, rate_limit_timeout) =
            (policy.max_retry_after.max(most.max_retry_after), policy.rate_limit_timeout.max(most.rate_limit_timeout));
        RetryState::new(RetryPolicy { max_retry_after, rate_limit_timeout, ..policy }, &self.context.budget)
    }

    fn policy(&self) -> RetryPolicy {
        let policy = self.client.0.settings.retry;
        match self.registry.mirror_state {
            // There is another registry to read from.
            Some(_) => RetryPolicy { attempts: 1, rate_limit_timeout: Duration::ZERO, ..policy },
            None => policy,
        }
    }

    /// `registry/repository`, for messages.
    fn label(&self) -> String {
        match self.access {
            Access::Catalog => self.registry.name.to_string(),
            _ => format!("{}/{}", self.registry.name, self.name),
        }
    }

    /// Builds a URL below this repository. `path` must need no escaping.
    fn url(&self, path: &str) -> Url {
        let mut url = self.registry.base.clone();
        let base = url.path().to_owned();
        url.set_path(&match self.access {
            Access::Catalog => format!("{base}v2/{path}"),
            _ => format!("{base}v2/{}/{path}", self.name),
        });
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str, settings: &RegistrySettings) -> String {
        base_url(&name.parse().unwrap(), settings).to_string()
    }

    #[test]
    fn only_loopback_uses_plain_http_by_default() {
        let default = RegistrySettings::default();
        assert_eq!(base("gcr.io", &default), "https://gcr.io/");
        assert_eq!(base("10.0.0.1:5000", &default), "https://10.0.0.1:5000/");
        assert_eq!(base("localhost:5000", &default), "http://localhost:5000/");
        assert_eq!(base("[::1]:5000", &default), "http://[::1]:5000/");
        let off = RegistrySettings { plain_http: Some(true), ..Default::default() };
        assert_eq!(base("10.0.0.1:5000", &off), "http://10.0.0.1:5000/");
        let on = RegistrySettings { plain_http: Some(false), ..Default::default() };
        assert_eq!(base("localhost:5000", &on), "https://localhost:5000/");
    }

    #[test]
    fn azure_uploads_are_chunked_and_the_settings_override_the_size() {
        let chunk = |name: &str, chunk| {
            let name: RegistryName = name.parse().unwrap();
            let one = RegistrySettings { chunk, ..Default::default() };
            let settings = ClientSettings { registries: [(name.clone(), one)].into(), ..Default::default() };
            let client = Client::new(settings, CredentialEnvironment::default());
            let (repository, context) = ("a".parse().unwrap(), Context::default());
            client
                .repository(&name, &repository, Access::Push, &context, &TrafficCounters::new())
                .unwrap()
                .upload_chunk_size()
        };
        assert_eq!(chunk("team.azurecr.io", None), Some(16 << 20));
        assert_eq!(chunk("team.azurecr.io", Some(1 << 20)), Some(1 << 20));
        assert_eq!(chunk("azurecr.io.example.com", None), None);
    }

    #[test]
    fn docker_hub_and_endpoints_override_the_base_url() {
        assert_eq!(base("docker.io", &RegistrySettings::default()), "https://registry-1.docker.io/");
        let mirror =
            RegistrySettings { endpoint: Some("http://127.0.0.1:1/proxy".parse().unwrap()), ..Default::default() };
        assert_eq!(base("gcr.io", &mirror), "http://127.0.0.1:1/proxy/");
    }
}
