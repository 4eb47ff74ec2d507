//! The client: its connections, credentials, registries and learned state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use url::Url;

use super::aimd::AimdWindows;
use super::auth::{self, RegistryAuth};
use super::bandwidth::{BandwidthMeter, ByteRateLimiter};
use super::credential_pool::CredentialPool;
use super::credentials::{CredentialEnvironment, CredentialStore};
use super::http::{ClientPurpose, HttpClients};
use super::mirrors::MirrorState;
use super::mount_support::MountSupport;
use super::providers::api::ProviderApiState;
use super::providers::identity::MachineIdentities;
use super::providers::provisioning::ProvisionState;
use super::referrers::FallbackLocks;
use super::{
    Access, ClientSettings, Context, MAX_CACHED_REPOSITORIES, Registry, RegistrySettings, Repository, TrafficCounters,
    base_url, failure, providers, ssrf,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::secret::Secret;
use imgsync_oci::{RegistryName, RepositoryName};

/// A client for registries. Cheap to clone; clones share connections, tokens and everything learned about registries.
#[derive(Debug, Clone)]
pub struct Client(pub(crate) Arc<ClientInner>);

/// A registry's name and its endpoint, if that differs.
type RegistryKey = (RegistryName, Option<Url>);

#[derive(Debug)]
pub(crate) struct ClientInner {
    pub(crate) settings: ClientSettings,
    pub(crate) credentials: CredentialStore,
    pub(crate) identities: MachineIdentities,
    pub(crate) http: HttpClients,
    pub(crate) registries: Mutex<HashMap<RegistryName, Arc<Registry>>>,
    /// Listing APIs by the registries that they list.
    pub(crate) apis: Mutex<HashMap<RegistryName, Arc<ProviderApiState>>>,
    pub(crate) fallback_locks: FallbackLocks,
    /// Credential pools by registry and endpoint, so registries that share a mirror share its rate limit.
    pub(crate) credential_pools: Mutex<HashMap<RegistryKey, Arc<CredentialPool>>>,
    /// For reading and for writing.
    pub(crate) bandwidth_limiters: [Option<Arc<ByteRateLimiter>>; 2],
    /// Blob bytes transferred, in both directions.
    pub(crate) bytes_moved: Arc<AtomicU64>,
    /// Held so that they are masked.
    _environment_secrets: Vec<Secret>,
}

impl Client {
    /// Creates a client. Credentials that the settings do not contain are searched for where docker and podman store
    /// them, as `environment` says.
    pub fn new(settings: ClientSettings, environment: CredentialEnvironment) -> Client {
        let limiter = || settings.bandwidth.map(|rate| Arc::new(ByteRateLimiter::new(rate)));
        Client(Arc::new(ClientInner {
            bandwidth_limiters: [limiter(), limiter()],
            settings,
            _environment_secrets: providers::environment_secrets(&environment),
            credentials: CredentialStore::new(Default::default(), environment),
            identities: MachineIdentities::default(),
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
        if let Some(issued) = registry.issued_username(0) {
            return Ok(Some(issued.to_owned()));
        }
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
        if registry.settings.public_only {
            ssrf::refuse_private(&url, &operation)?;
        }
        let request = registry.http.get(url).timeout(self.0.settings.connect_timeout);
        tokio::select! {
            answer = request.send() => match answer {
                Ok(_) => Ok(()),
                Err(error) => Err(failure::transport_error(error, &operation, &target).with_registry(&registry.name)),
            },
            () = context.cancel.cancelled() => Err(Error::cancelled(operation)),
        }
    }

    pub(crate) fn registry(&self, name: &RegistryName) -> Result<Arc<Registry>> {
        let mut registries = self.0.registries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = registries.get(name) {
            return Ok(registry.clone());
        }
        let settings = self.0.settings.registries.get(name).cloned().unwrap_or_default();
        let registry = Arc::new(self.build(name, settings, None)?);
        registries.insert(name.clone(), registry.clone());
        Ok(registry)
    }

    pub(crate) fn build(
        &self,
        name: &RegistryName,
        settings: RegistrySettings,
        mirror: Option<MirrorState>,
    ) -> Result<Registry> {
        let base = base_url(name, &settings);
        let key = (name.clone(), settings.endpoint.clone());
        let pool = {
            let mut pools = self.0.credential_pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.entry(key).or_insert_with(|| self.build_credential_pool(name, &settings)).clone()
        };
        self.build_registry_at(name, base, settings, pool, mirror)
    }

    pub(crate) fn build_credential_pool(
        &self,
        name: &RegistryName,
        settings: &RegistrySettings,
    ) -> Arc<CredentialPool> {
        Arc::new(CredentialPool::new(name, settings, self.0.settings.shared_rate_limit.as_ref()))
    }

    /// Builds a registry at a base URL.
    pub(crate) fn build_registry_at(
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
            provision: ProvisionState::default(),
            body_limit: AtomicU64::new(0),
            heads_unreliable: AtomicBool::new(false),
            referrers_apis: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)),
            credential_pool: pool,
            pull_counter: AtomicUsize::new(0),
            windows: AimdWindows::default(),
            meters,
            used_as: Default::default(),
        })
    }
}
