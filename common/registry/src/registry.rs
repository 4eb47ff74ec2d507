//! One registry: its base URL, connections, and what is learned about it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use url::Url;

use super::aimd::AimdWindows;
use super::auth::RegistryAuth;
use super::credential_pool::CredentialPool;
use super::environment_proxies::{self, EnvironmentProxies};
use super::failure::RequestTarget;
use super::mirrors::MirrorState;
use super::mount_support::MountSupport;
use super::providers::provisioning::ProvisionState;
use super::{BandwidthMeter, RegistrySettings, providers, ssrf};
use crate::referrers::ReferrersApiSlot;
use imgsync_oci::error::Result;
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::{RegistryName, RepositoryName};

/// One registry, with its settings and learned state.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) name: RegistryName,
    pub(crate) base: Url,
    pub(crate) settings: RegistrySettings,
    pub(crate) http: reqwest::Client,
    /// For redirects and other URLs that the registry names.
    pub(crate) http_redirect: reqwest::Client,
    /// The same, limited to public addresses.
    pub(crate) http_public_only: reqwest::Client,
    /// The most public network in which the registry was connected to.
    pub(crate) network_scope: Mutex<Option<ssrf::NetworkScope>>,
    /// Networks in which hosts were connected to, for name resolution.
    pub(crate) host_scopes: Arc<ssrf::HostScopes>,
    pub(crate) auth: RegistryAuth,
    pub(crate) mount_support: MountSupport,
    pub(crate) provision: ProvisionState,
    /// The largest accepted request body, where larger ones were refused; 0 if unknown.
    pub(crate) body_limit: AtomicU64,
    /// Whether HEAD requests for manifests missed what GET found.
    pub(crate) heads_unreliable: AtomicBool,
    /// Which repositories have the referrers API.
    pub(crate) referrers_apis: Mutex<GenerationalCache<RepositoryName, ReferrersApiSlot>>,
    pub(crate) credential_pool: Arc<CredentialPool>,
    /// Counts pulls, to rotate the pull credentials.
    pub(crate) pull_counter: AtomicUsize,
    pub(crate) windows: AimdWindows,
    /// For reading and for writing.
    pub(crate) meters: [BandwidthMeter; 2],
    /// Whether it was opened for reading, and for writing.
    pub(crate) used_as: (AtomicBool, AtomicBool),
    /// Mirrors, read from first.
    pub(crate) mirrors: Vec<Arc<Registry>>,
    /// Mirror state, if this registry is a mirror itself.
    pub(crate) mirror_state: Option<MirrorState>,
}

impl Registry {
    /// Returns the user name of the credentials that the cloud which the settings name issues to this machine. It is known
    /// without a login.
    pub(crate) fn issued_username(&self, credential_index: usize) -> Option<&'static str> {
        match (&self.credential_pool.get(credential_index).credential, self.settings.credential_source) {
            (None, providers::CredentialSource::Machine(provider)) => provider.issued_username(),
            _ => None,
        }
    }

    /// Describes how requests to a URL are sent. Fails if the proxy that the environment sets for it is invalid.
    pub(crate) fn request_target(&self, url: &Url) -> Result<RequestTarget> {
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
    pub(crate) fn is_proxied(&self, url: &Url) -> bool {
        self.settings.proxy.is_some()
            || EnvironmentProxies::from_environment().proxy_for(url).is_ok_and(|proxy| proxy.is_some())
    }

    /// The network that the registry was connected to in; of several the most public. Before the first connection it is
    /// derived from the name.
    pub(crate) fn network_scope(&self) -> ssrf::NetworkScope {
        let known = *self.network_scope.lock().unwrap_or_else(PoisonError::into_inner);
        known.or_else(|| ssrf::literal_scope(&self.base)).unwrap_or(ssrf::NetworkScope::Public)
    }

    /// Returns the network that a response came from. Behind a proxy the peer address is the proxy's and is ignored.
    pub(crate) fn record_peer_scope(&self, url: &Url, peer: Option<SocketAddr>) -> ssrf::NetworkScope {
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
    pub(crate) fn is_source_and_target(&self) -> bool {
        self.used_as.0.load(Ordering::Relaxed) && self.used_as.1.load(Ordering::Relaxed)
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    host.parse::<RegistryName>().is_ok_and(|name| name.is_loopback())
}

/// Returns the base URL: plain HTTP for loopback and HTTPS for all others, unless the settings override it.
pub(crate) fn base_url(name: &RegistryName, settings: &RegistrySettings) -> Url {
    let scheme = match settings.plain_http.unwrap_or_else(|| name.is_loopback()) {
        true => "http",
        false => "https",
    };
    let mut base = match (&settings.endpoint, providers::endpoint(name)) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(endpoint)) => Url::parse(endpoint).expect("a constant URL parses"),
        (None, None) => Url::parse(&format!("{scheme}://{name}")).expect("a checked registry name makes a URL"),
    };
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    base
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
    fn docker_hub_and_endpoints_override_the_base_url() {
        assert_eq!(base("docker.io", &RegistrySettings::default()), "https://registry-1.docker.io/");
        let mirror =
            RegistrySettings { endpoint: Some("http://127.0.0.1:1/proxy".parse().unwrap()), ..Default::default() };
        assert_eq!(base("gcr.io", &mirror), "http://127.0.0.1:1/proxy/");
    }
}
