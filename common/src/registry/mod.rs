//! Registry client (OCI distribution-spec v1.1), limited to what copying images needs.
//!
//! A [`Client`] holds connections, credentials and settings. A [`Repository`] is a handle to one repository, with an
//! [`Access`] and the [`Context`] of its requests. [`crate::retry`] decides what is retried.

mod answer;
mod api;
pub mod api_error;
mod auth;
mod authorities;
mod bandwidth;
mod blobs;
mod catalog;
mod certificates;
pub mod challenge;
mod context;
mod create;
pub mod credentials;
mod failure;
#[cfg(test)]
mod fuzz;
mod hop;
mod http;
pub mod known;
mod limits;
pub mod link;
mod listing_memory;
mod login;
mod manifests;
mod mirrors;
mod mounts;
mod pace;
mod pacer;
mod page_reader;
mod paged;
mod patience;
mod places;
mod proxies;
pub mod range;
pub mod ratelimit;
mod referrers;
pub mod retry_after;
mod seats;
mod sending;
mod settings;
mod tags;
mod transport;
mod uploads;
mod window;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

pub use api::{Api, Pages};
pub use auth::Access;
pub use bandwidth::Meter;
pub use blobs::{BlobStream, Opened};
pub use catalog::{CatalogPages, Root};
pub use certificates::certificates_as_pem;
pub use context::{Context, Tally, Traffic};
pub(crate) use http::tls_trusting;
pub use http::{client_for_others, install_tls_provider};
pub use limits::limits;
pub use listing_memory::{ListingGroup, ListingShare};
pub use manifests::{Deleted, Head, ManifestPut, ManifestRef};
pub use pacer::Hold;
pub use page_reader::{Entries, Entry};
pub use paged::{Next, Page};
pub use patience::PATIENCE;
pub use referrers::FallbackTag;
pub use sending::Sent;
pub use settings::{ClientSettings, RegistrySettings, Reserve, SharedPace};
pub use tags::{ListedManifest, TagPage, TagPages};
pub use uploads::{Part, Started, Upload};

use self::api::ApiHome;
use self::auth::Auth;
use self::bandwidth::Throttle;
use self::credentials::{CredentialStore, Environment};
use self::failure::Way;
use self::http::{HttpClients, Toward};
use self::login::Logins;
use self::mirrors::Mirror;
use self::mounts::Mounts;
use self::proxies::Proxies;
use self::referrers::FallbackLocks;
use self::window::Windows;
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::image::{RegistryName, RepositoryName};
use crate::retry::{Policy, Retry};
use crate::wait::WaitClock;

/// Docker Hub's API endpoint; `docker.io` itself serves a web site.
const DOCKER_HUB_ENDPOINT: &str = "https://registry-1.docker.io";

/// Repositories cached for each registry, in each cache: those without the referrers API, those that were created,
/// those that a vendor's API does not list.
const MAX_REPOSITORY_NOTES: usize = 10_000;

/// Size of each PATCH to Azure's registries, which were seen to cut bodies of more than 20 MB.
const AZURE_CHUNK: u64 = 16 << 20;

/// A client for registries. Cheap to clone; clones share connections, tokens and everything learned about registries.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

/// A registry's name and its endpoint, if that differs.
type Whereabouts = (RegistryName, Option<Url>);

#[derive(Debug)]
struct Shared {
    settings: ClientSettings,
    credentials: CredentialStore,
    http: HttpClients,
    registries: Mutex<HashMap<RegistryName, Arc<Registry>>>,
    /// Vendor APIs by the registries that they list.
    apis: Mutex<HashMap<RegistryName, Arc<ApiHome>>>,
    fallbacks: FallbackLocks,
    /// Credential pools by registry and endpoint, so registries that share a mirror share its rate limit.
    logins: Mutex<HashMap<Whereabouts, Arc<Logins>>>,
    /// For reading and for writing.
    throttles: [Option<Arc<Throttle>>; 2],
    /// Blob bytes transferred, in both directions.
    moved: Arc<AtomicU64>,
}

/// One registry, with its settings and learned state.
#[derive(Debug)]
struct Registry {
    name: RegistryName,
    base: Url,
    settings: RegistrySettings,
    http: reqwest::Client,
    /// For redirects and other URLs that the registry names.
    http_elsewhere: reqwest::Client,
    /// The same, limited to public addresses.
    http_public_only: reqwest::Client,
    /// The most public network in which the registry was connected to.
    reach: Mutex<Option<hop::Reach>>,
    /// Networks in which hosts were connected to, for name resolution.
    seen: Arc<hop::Seen>,
    auth: Auth,
    mounts: Mounts,
    making: create::Making,
    /// The largest accepted request body, where larger ones were refused; 0 if unknown.
    body_limit: AtomicU64,
    /// Whether HEAD requests for manifests missed what GET found.
    heads_fail: AtomicBool,
    /// Repositories without the referrers API, and when that was seen. By repository: one host can serve several
    /// registries.
    no_referrers: Mutex<GenerationalCache<RepositoryName, Instant>>,
    logins: Arc<Logins>,
    /// Counts pulls, to rotate the pull credentials.
    turn: AtomicUsize,
    windows: Windows,
    /// For reading and for writing.
    meters: [Meter; 2],
    /// Whether it was opened for reading, and for writing.
    ends: (AtomicBool, AtomicBool),
    /// Mirrors, read from first.
    mirrors: Vec<Arc<Registry>>,
    /// Mirror state, if this registry is a mirror itself.
    mirror: Option<Mirror>,
}

impl Client {
    /// Creates a client. Credentials that the settings do not contain are searched for where docker and podman store
    /// them, as `environment` says.
    pub fn new(settings: ClientSettings, environment: Environment) -> Client {
        let throttle = || settings.bandwidth.map(|rate| Arc::new(Throttle::new(rate)));
        Client(Arc::new(Shared {
            throttles: [throttle(), throttle()],
            settings,
            credentials: CredentialStore::new(Default::default(), environment),
            http: HttpClients::default(),
            registries: Mutex::default(),
            apis: Mutex::default(),
            fallbacks: FallbackLocks::default(),
            logins: Mutex::default(),
            moved: Arc::default(),
        }))
    }

    /// Opens a repository for `access`. Fails only if the registry's settings are invalid (a bad certificate).
    pub fn repository(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        access: Access,
        context: &Context,
        tally: &Arc<Tally>,
    ) -> Result<Repository> {
        let registry = self.registry(registry)?;
        match access {
            Access::Pull => registry.ends.0.store(true, Ordering::Relaxed),
            Access::Push => registry.ends.1.store(true, Ordering::Relaxed),
            Access::Delete | Access::Catalog => {}
        }
        let turn = match access {
            Access::Pull => registry.turn.fetch_add(1, Ordering::Relaxed),
            Access::Push | Access::Delete | Access::Catalog => 0,
        };
        Ok(Repository {
            client: self.clone(),
            registry,
            turn,
            name: repository.clone(),
            access,
            context: context.clone(),
            tally: tally.clone(),
        })
    }

    /// Returns the settings.
    pub fn settings(&self) -> &ClientSettings {
        &self.0.settings
    }

    /// Returns the user name of the credentials found for a registry, if any.
    pub async fn user_of(&self, registry: &RegistryName) -> Result<Option<String>> {
        let registry = self.registry(registry)?;
        Ok(auth::credential(self, &registry, "", 0).await?.and_then(auth::user))
    }

    /// Checks that a registry is reachable; any response counts. Tries once, within the connect timeout.
    pub async fn ping(&self, registry: &RegistryName, context: &Context) -> Result<()> {
        let registry = self.registry(registry)?;
        let tried = format!("reaching {}", registry.name);
        let url = registry.base.join("v2/").map_err(|error| Error::new(Class::Invalid, &tried, error.to_string()))?;
        let way = registry.way(&url)?;
        hop::refuse_metadata(&url, registry.settings.allowed(), &tried)?;
        let request = registry.http.get(url).timeout(self.0.settings.connect_timeout);
        tokio::select! {
            answer = request.send() => match answer {
                Ok(_) => Ok(()),
                Err(error) => Err(failure::transport_error(error, &tried, &way).at(&registry.name)),
            },
            () = context.cancel.cancelled() => Err(Error::cancelled(tried)),
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

    fn build(&self, name: &RegistryName, settings: RegistrySettings, mirror: Option<Mirror>) -> Result<Registry> {
        let base = base_of(name, &settings);
        let key = (name.clone(), settings.endpoint.clone());
        let logins = {
            let mut logins = self.0.logins.lock().unwrap_or_else(PoisonError::into_inner);
            logins.entry(key).or_insert_with(|| self.logins_of(name, &settings)).clone()
        };
        self.connect(name, base, settings, logins, mirror)
    }

    fn logins_of(&self, name: &RegistryName, settings: &RegistrySettings) -> Arc<Logins> {
        Arc::new(Logins::new(name, settings, self.0.settings.pace.as_ref()))
    }

    /// Builds a registry at a base URL.
    fn connect(
        &self,
        name: &RegistryName,
        base: Url,
        settings: RegistrySettings,
        logins: Arc<Logins>,
        mirror: Option<Mirror>,
    ) -> Result<Registry> {
        let meter = |all: &Option<Arc<Throttle>>| {
            let own = settings.bandwidth.map(|rate| Arc::new(Throttle::new(rate)));
            Meter::new(all.iter().cloned().chain(own), &self.0.moved)
        };
        let meters = self.0.throttles.each_ref().map(meter);
        let client = |toward| self.0.http.get(&self.0.settings, &settings, toward);
        let is_link_local = hop::literal_reach(&base) == Some(hop::Reach::LinkLocal);
        let (http, http_elsewhere) = match settings.allow_private || is_link_local {
            true => (client(Toward::Home)?, client(Toward::Elsewhere)?),
            false => (client(Toward::Home)?, client(Toward::NotLinkLocal)?),
        };
        let http_public_only = client(Toward::Public)?;
        Ok(Registry {
            name: name.clone(),
            base,
            mirrors: self.mirrors(&settings)?,
            mirror,
            settings,
            http,
            http_elsewhere,
            http_public_only,
            reach: Mutex::new(None),
            seen: self.0.http.seen.clone(),
            auth: Auth::default(),
            mounts: Mounts::default(),
            making: create::Making::default(),
            body_limit: AtomicU64::new(0),
            heads_fail: AtomicBool::new(false),
            no_referrers: Mutex::new(GenerationalCache::new(MAX_REPOSITORY_NOTES)),
            logins,
            turn: AtomicUsize::new(0),
            windows: Windows::default(),
            meters,
            ends: Default::default(),
        })
    }
}

impl Registry {
    /// Describes how requests to a URL are sent. Fails if the proxy that the environment sets for it is invalid.
    fn way(&self, url: &Url) -> Result<Way> {
        let proxy = match &self.settings.proxy {
            Some(proxy) => Some(proxy.expose()),
            None => Proxies::of_environment().to(url)?,
        };
        let is_elsewhere = !hop::same_origin(url, &self.base);
        Ok(Way {
            registry: self.name.to_string(),
            host: hop::origin(url),
            is_elsewhere,
            is_named: is_elsewhere || self.settings.endpoint.is_some(),
            proxy: proxy.map(proxies::shown),
            is_proxy_told_who: proxy.is_some_and(|proxy| !proxy.username().is_empty()),
        })
    }

    /// Whether requests to a URL go through a proxy.
    fn is_proxied(&self, url: &Url) -> bool {
        self.settings.proxy.is_some() || Proxies::of_environment().to(url).is_ok_and(|proxy| proxy.is_some())
    }

    /// The network that the registry was connected to in; of several the most public. Before the first connection it is
    /// derived from the name.
    fn reach(&self) -> hop::Reach {
        let known = *self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        known.or_else(|| hop::literal_reach(&self.base)).unwrap_or(hop::Reach::Public)
    }

    /// Returns the network that a response came from. Behind a proxy the peer address is the proxy's and is ignored.
    fn reach_of(&self, url: &Url, peer: Option<SocketAddr>) -> hop::Reach {
        let is_direct = !self.is_proxied(url);
        let reach = match peer.filter(|_| is_direct) {
            Some(peer) => hop::reach(peer.ip()),
            None => hop::literal_reach(url).unwrap_or(hop::Reach::Public),
        };
        if hop::same_origin(url, &self.base) {
            let mut known = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some(known.map_or(reach, |known| known.min(reach)));
            if let Some(host) = url.host_str().filter(|_| is_direct) {
                self.seen.note(host.trim_end_matches('.'), reach);
            }
        }
        reach
    }

    /// Whether the registry is a source and a target.
    fn is_both_ends(&self) -> bool {
        self.ends.0.load(Ordering::Relaxed) && self.ends.1.load(Ordering::Relaxed)
    }
}

/// Whether a registry is Azure's.
fn is_azure(name: &RegistryName) -> bool {
    name.host().ends_with(".azurecr.io")
}

fn is_loopback(host: &str) -> bool {
    host.parse::<RegistryName>().is_ok_and(|name| name.is_loopback())
}

/// Returns the base URL: plain HTTP for loopback and HTTPS for all others, unless the settings override it.
fn base_of(name: &RegistryName, settings: &RegistrySettings) -> Url {
    let scheme = match settings.plain_http.unwrap_or_else(|| name.is_loopback()) {
        true => "http",
        false => "https",
    };
    let mut base = match (&settings.endpoint, name.is_docker_hub()) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, true) => Url::parse(DOCKER_HUB_ENDPOINT).expect("a constant URL parses"),
        (None, false) => Url::parse(&format!("{scheme}://{name}")).expect("a checked registry name makes a URL"),
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
    turn: usize,
    name: RepositoryName,
    access: Access,
    context: Context,
    tally: Arc<Tally>,
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
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Returns the context of its requests.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the same repository with another context.
    #[must_use]
    pub fn within(&self, context: &Context) -> Repository {
        Repository { context: context.clone(), ..self.clone() }
    }

    /// Returns the same repository with a wait clock of its own.
    fn with_own_clock(&self) -> Repository {
        self.within(&Context { clock: WaitClock::default(), ..self.context.clone() })
    }

    /// Returns how long a response or a stream may stall.
    pub fn stall(&self) -> Duration {
        self.client.0.settings.stall
    }

    /// Returns the meter that uploaded blob bytes pass through.
    pub fn meter(&self) -> Meter {
        self.registry.meters[1].clone()
    }

    /// Whether the registry may support blob mounts.
    pub fn takes_mounts(&self) -> bool {
        !self.registry.mounts.are_unknown()
    }

    /// Returns the size of each PATCH, if blobs are to be uploaded in chunks.
    pub fn chunk(&self) -> Option<u64> {
        let chunk = self.registry.settings.chunk.or_else(|| is_azure(&self.registry.name).then_some(AZURE_CHUNK));
        match self.registry.body_limit.load(Ordering::Relaxed) {
            0 => chunk,
            limit => Some(chunk.map_or(limit, |chunk| chunk.min(limit))),
        }
    }

    /// Records that the registry accepts bodies of this size and refused larger ones.
    pub fn limit_bodies(&self, bytes: u64) {
        self.registry.body_limit.store(bytes, Ordering::Relaxed);
    }

    /// Returns fresh retry state for one request.
    pub fn retry(&self) -> Retry {
        Retry::new(self.policy(), &self.context.budget)
    }

    /// Returns retry state for listings. Listings of sources are retried for longer, since they have no second chance
    /// and delay nothing else; listings of targets only save requests.
    pub(crate) fn patient_retry(&self) -> Retry {
        let (policy, most) = (self.policy(), Policy::default());
        if self.access == Access::Push {
            return self.retry();
        }
        let (max_wait, patience) = (policy.max_wait.max(most.max_wait), policy.patience.max(most.patience));
        Retry::new(Policy { max_wait, patience, ..policy }, &self.context.budget)
    }

    fn policy(&self) -> Policy {
        let policy = self.client.0.settings.retry;
        match self.registry.mirror {
            // There is another registry to read from.
            Some(_) => Policy { attempts: 1, patience: Duration::ZERO, ..policy },
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
        base_of(&name.parse().unwrap(), settings).to_string()
    }

    #[test]
    fn only_loopback_is_spoken_to_without_tls_unless_told() {
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
    fn azure_is_sent_blobs_in_pieces_unless_the_settings_say_how_large() {
        let chunk = |name: &str, chunk| {
            let name: RegistryName = name.parse().unwrap();
            let one = RegistrySettings { chunk, ..Default::default() };
            let settings = ClientSettings { registries: [(name.clone(), one)].into(), ..Default::default() };
            let client = Client::new(settings, Environment::default());
            let (repository, context) = ("a".parse().unwrap(), Context::default());
            client.repository(&name, &repository, Access::Push, &context, &Tally::new()).unwrap().chunk()
        };
        assert_eq!(chunk("team.azurecr.io", None), Some(16 << 20));
        assert_eq!(chunk("team.azurecr.io", Some(1 << 20)), Some(1 << 20));
        assert_eq!(chunk("azurecr.io.example.com", None), None);
    }

    #[test]
    fn docker_hub_and_endpoints_live_elsewhere() {
        assert_eq!(base("docker.io", &RegistrySettings::default()), "https://registry-1.docker.io/");
        let mirror =
            RegistrySettings { endpoint: Some("http://127.0.0.1:1/proxy".parse().unwrap()), ..Default::default() };
        assert_eq!(base("gcr.io", &mirror), "http://127.0.0.1:1/proxy/");
    }
}
