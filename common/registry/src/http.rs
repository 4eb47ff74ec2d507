//! HTTP clients, one for each distinct connection setup, so that registries share connection pools.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use url::Url;

use super::environment_proxies::{self, EnvironmentProxies};
use super::settings::{ClientSettings, RegistrySettings};
use super::ssrf::{AddressFilter, GuardedResolver, HostScopes, ResolvePolicy};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;

/// `User-Agent` header.
pub(crate) const USER_AGENT: &str =
    concat!("imgsync/", env!("CARGO_PKG_VERSION"), " (+", env!("CARGO_PKG_REPOSITORY"), ")");

/// HTTP/2 flow control window of a stream in bytes: large enough for long distances, small enough for many streams.
const STREAM_WINDOW: u32 = 512 << 10;
/// The connection window holds this many full stream windows, so that stalled streams do not block the others.
const CONNECTION_WINDOW_STREAMS: u32 = 128;

/// Everything in which two connection setups can differ.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    ca: Vec<Vec<u8>>,
    identity: Option<String>,
    insecure: bool,
    http1: bool,
    proxy: Option<String>,
    resolve_policy: ResolvePolicy,
    metadata: Vec<IpAddr>,
}

/// Prints no contents: they include private keys and the proxy's password.
impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey")
    }
}

/// Purpose of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientPurpose {
    /// Requests to the registry itself.
    Registry,
    /// Requests to other hosts: without the client certificate, which is for the registry alone.
    Redirect,
    /// The same, but names must not resolve to link-local addresses.
    NotLinkLocal,
    /// The same, but names must resolve to public addresses.
    Public,
}

/// Clients built so far, and the networks they connected to.
#[derive(Debug, Default)]
pub(crate) struct HttpClients {
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
    pub(crate) host_scopes: Arc<HostScopes>,
    /// Proxy passwords, held so that they are masked if a proxy echoes them.
    passwords: Mutex<Vec<Secret>>,
}

impl HttpClients {
    /// Returns a client for a registry and purpose, building it on first use.
    pub(crate) fn get(
        &self,
        settings: &ClientSettings,
        registry: &RegistrySettings,
        purpose: ClientPurpose,
    ) -> Result<reqwest::Client> {
        let key = ClientKey {
            ca: registry.ca.clone(),
            identity: registry
                .identity
                .as_ref()
                .filter(|_| purpose == ClientPurpose::Registry)
                .map(|secret| secret.expose().to_owned()),
            insecure: registry.insecure,
            http1: registry.http1,
            proxy: registry.proxy.as_ref().map(|proxy| proxy.expose().to_string()),
            resolve_policy: match purpose {
                _ if registry.public_only => ResolvePolicy::Public,
                ClientPurpose::Registry if registry.allow_private => ResolvePolicy::Anywhere,
                ClientPurpose::Registry => ResolvePolicy::Registry,
                ClientPurpose::Redirect => ResolvePolicy::Anywhere,
                ClientPurpose::NotLinkLocal => ResolvePolicy::NotLinkLocal,
                ClientPurpose::Public => ResolvePolicy::Public,
            },
            metadata: registry.allow_metadata.clone(),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(settings, &key, &self.host_scopes)?;
        let proxy = key.proxy.as_ref().and_then(|proxy| Url::parse(proxy).ok());
        let mut passwords = self.passwords.lock().unwrap_or_else(PoisonError::into_inner);
        for password in proxy.iter().chain(EnvironmentProxies::from_environment().urls()).filter_map(proxy_password) {
            if !passwords.contains(&password) {
                passwords.push(password);
            }
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn build(settings: &ClientSettings, key: &ClientKey, host_scopes: &Arc<HostScopes>) -> Result<reqwest::Client> {
    imgsync_tls::install_tls_provider();
    let invalid = |what: &str, error: reqwest::Error| {
        Error::new(ErrorKind::Invalid, format!("setting up connections: {what}"), chain(&error))
    };
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        // Shorter than the stall timeout, so that the error shows which of the two passed.
        .connect_timeout(settings.connect_timeout.min(settings.stall_timeout.mul_f32(0.9)))
        .tcp_keepalive(std::time::Duration::from_secs(30))
        // An abandoned, stalled connection may still hold a body: the kernel closes it.
        .tcp_user_timeout(settings.stall_timeout * 2)
        .tcp_nodelay(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(STREAM_WINDOW * CONNECTION_WINDOW_STREAMS)
        .http2_max_header_list_size(64 << 10)
        .tls_danger_accept_invalid_certs(key.insecure);
    if key.insecure {
        builder = builder.tls_certs_only(system_certificates());
        if let Some(pem) = &key.identity {
            let identity = reqwest::Identity::from_pem(pem.as_bytes())
                .map_err(|error| invalid("`client_cert` and `client_key`", error))?;
            builder = builder.identity(identity);
        }
    } else {
        let tls = imgsync_tls::tls_config(imgsync_tls::system_roots, &key.ca, key.identity.as_deref(), key.http1)?;
        builder = builder.tls_backend_preconfigured(tls);
    }
    if key.http1 {
        builder = builder.http1_only();
    }
    let environment = EnvironmentProxies::from_environment();
    builder = match &key.proxy {
        Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy).map_err(|error| invalid("`proxy`", error))?),
        None => with_environment_proxies(builder),
    };
    let proxies = match &key.proxy {
        Some(proxy) => Url::parse(proxy).ok().as_ref().and_then(environment_proxies::host).into_iter().collect(),
        None => environment.hosts(),
    };
    let (policy, metadata, host_scopes) = (key.resolve_policy, key.metadata.clone(), host_scopes.clone());
    builder = builder.dns_resolver(GuardedResolver(Arc::new(AddressFilter { proxies, policy, metadata, host_scopes })));
    builder.build().map_err(|error| invalid("TLS", error))
}

/// Adds the environment's proxies. Whether a variable is valid is checked with each request ([`EnvironmentProxies::proxy_for`]).
fn with_environment_proxies(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let proxies = EnvironmentProxies::from_environment();
    match proxies.is_empty() {
        true => builder.no_proxy(),
        false => builder.proxy(reqwest::Proxy::custom(move |url| proxies.proxy_for(url).ok().flatten().cloned())),
    }
}

/// Returns the password sent to a proxy.
fn proxy_password(proxy: &Url) -> Option<Secret> {
    let field = format!("p={}", proxy.password()?.replace('+', "%2B"));
    url::form_urlencoded::parse(field.as_bytes()).next().map(|(_, password)| Secret::new(password))
}

/// Builds a client for a URL that is not a registry's, such as a notification target. It follows no redirects, retries
/// nothing, and resolves no name to a cloud's metadata service. Fails if the proxy that the environment sets for the
/// URL is invalid.
pub fn non_registry_client(url: &Url) -> Result<reqwest::Client> {
    imgsync_tls::install_tls_provider();
    EnvironmentProxies::from_environment().proxy_for(url)?;
    let builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(std::time::Duration::from_secs(10))
        .tls_certs_only(system_certificates());
    let proxies = EnvironmentProxies::from_environment().hosts();
    let guarded =
        AddressFilter { proxies, policy: ResolvePolicy::Anywhere, metadata: Vec::new(), host_scopes: Arc::default() };
    let builder = with_environment_proxies(builder).dns_resolver(GuardedResolver(Arc::new(guarded)));
    builder.build().map_err(|error| Error::new(ErrorKind::Invalid, "setting up connections", chain(&error)))
}

/// Returns the system's authorities for the HTTP client, without those that it cannot parse.
pub(crate) fn system_certificates() -> Vec<reqwest::Certificate> {
    static ROOTS: OnceLock<Vec<reqwest::Certificate>> = OnceLock::new();
    let read =
        || imgsync_tls::system_roots().iter().filter_map(|der| reqwest::Certificate::from_der(der).ok()).collect();
    ROOTS.get_or_init(read).clone()
}

/// Returns an error and its sources in one line, without repetitions.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_proxy_is_known_as_it_is_sent() {
        let password =
            |written: &str| proxy_password(&written.parse().unwrap()).map(|secret| secret.expose().to_owned());
        assert_eq!(password("http://user:p%40s+s@Proxy.corp:3128/").as_deref(), Some("p@s+s"));
        assert_eq!(password("socks5h://u:pass@Inside:1080").as_deref(), Some("pass"));
        assert_eq!(password("http://proxy.corp:3128"), None);
    }
}
