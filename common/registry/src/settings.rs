//! Settings of the registry client: for each registry, and for all.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::credentials::Credential;
use super::providers::{CredentialSource, ListingMethod};
use super::ssrf::AllowedAddresses;
use imgsync_oci::RegistryName;
use imgsync_oci::retry::RetryPolicy;
use imgsync_oci::secret::Secret;
use imgsync_oci::secret_url::SecretUrl;
use imgsync_rate_limit::RateLimitStore;

/// Settings of one registry. The default suits registries that follow the specification.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// API endpoint, if it differs from the name: a mirror, a pull-through cache, a test server.
    pub endpoint: Option<Url>,
    /// Which API lists its repositories and tags.
    pub listing: ListingMethod,
    /// Base URL of the provider's API, if it is not the known one.
    pub api: Option<Url>,
    /// Mirrors, read first and in this order. Whatever a mirror lacks or fails to serve is read from the registry
    /// itself.
    pub mirrors: Vec<Url>,
    /// Whether to use plain HTTP. Unset: only for loopback.
    pub plain_http: Option<bool>,
    /// Certificates of authorities, in PEM, that are trusted besides the system's.
    pub ca: Vec<Vec<u8>>,
    /// Client certificate and key, in PEM.
    pub identity: Option<Secret>,
    /// Accept any certificate.
    pub insecure: bool,
    /// Disable HTTP/2.
    pub http1: bool,
    /// Proxy for this registry (http, https, socks5, socks5h). Unset: the environment's.
    pub proxy: Option<SecretUrl>,
    /// Allow redirects and token services at private addresses.
    pub allow_private: bool,
    /// Refuse every address that is not public: nobody has configured this registry, its name was found in some text.
    pub public_only: bool,
    /// Addresses of cloud metadata services that this registry may have or redirect to; other registries may not.
    pub allow_metadata: Vec<IpAddr>,
    /// Credentials that take precedence over those of docker and containers; the first is used.
    pub credentials: Vec<Credential>,
    /// Where its credentials come from, if `credentials` is empty.
    pub credential_source: CredentialSource,
    /// Additional credentials for pulling only, rotated with the first of `credentials` if there is one. Each has its
    /// own rate limit and quota.
    pub pull_credentials: Vec<Credential>,
    /// Rate limit in requests per second, all kinds together. Unset: the documented limit ([`providers`](super::providers)), if
    /// any, else none.
    pub requests_per_second: Option<f64>,
    /// Concurrency limit, shared by all processes that share the rate limit. Unset: none. For a registry that is source
    /// and target, a request stops counting once its response begins, since an upload may be waiting to forward it.
    pub concurrency: Option<usize>,
    /// Part of the pull quota that is left to other clients.
    pub pull_reserve: QuotaReserve,
    /// Bandwidth limit for blobs in bytes per second, for reading and for writing each, in this process.
    pub bandwidth: Option<u64>,
    /// Name of the egress address by which the limits of anonymous users are counted.
    pub egress: Option<Box<str>>,
    /// Create what a push needs and lacks, at providers where that is possible: a repository, a project.
    pub create: bool,
    /// Upload blobs in PATCHes of this many bytes rather than in one PUT.
    pub chunk: Option<u64>,
}

impl RegistrySettings {
    /// Returns the non-public addresses that it may redirect to.
    pub(crate) fn allowed(&self) -> AllowedAddresses<'_> {
        AllowedAddresses { private: self.allow_private, metadata: &self.allow_metadata }
    }
}

/// Part of a quota that is left to other clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaReserve {
    /// A number of requests.
    Count(u64),
    /// A share of the quota in percent, rounded up.
    Percent(u8),
}

impl Default for QuotaReserve {
    fn default() -> QuotaReserve {
        QuotaReserve::Count(0)
    }
}

impl QuotaReserve {
    /// Returns the number of requests to leave.
    pub fn requests(self, limit: Option<u64>) -> u64 {
        match self {
            QuotaReserve::Count(count) => count,
            QuotaReserve::Percent(percent) => {
                limit.map_or(0, |limit| limit.saturating_mul(percent.into()).div_ceil(100))
            }
        }
    }
}

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Settings by registry; all others have the default.
    pub registries: BTreeMap<RegistryName, RegistrySettings>,
    /// Retry policy.
    pub retry: RetryPolicy,
    /// Time limit for establishing a connection.
    pub connect_timeout: Duration,
    /// How long a response, or a stream, may stall.
    pub stall_timeout: Duration,
    /// A token this old may have expired earlier than announced: a 400 or 403 may then mean that.
    pub suspect_token_age: Duration,
    /// Minimum time for which a mirror is skipped after a failure.
    pub mirror_backoff: Duration,
    /// Rate limits shared with other processes, if any.
    pub shared_rate_limit: Option<SharedRateLimit>,
    /// Bandwidth limit for blobs in bytes per second, for reading and for writing each, over all registries.
    pub bandwidth: Option<u64>,
}

/// Rate limits shared with other processes, or kept for later ones.
#[derive(Clone)]
pub struct SharedRateLimit {
    /// The store that holds them.
    pub store: Arc<dyn RateLimitStore>,
    /// Start slowly with registries without a known limit; see [`imgsync_rate_limit::RateRequest`].
    pub slow_start: bool,
    /// No other process runs at the same time: rate and concurrency limits are local, and only holds and quotas are
    /// stored for later processes.
    pub exclusive: bool,
}

impl fmt::Debug for SharedRateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedRateLimit")
    }
}

impl Default for ClientSettings {
    fn default() -> ClientSettings {
        ClientSettings {
            registries: BTreeMap::new(),
            retry: RetryPolicy::default(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            suspect_token_age: Duration::from_secs(30),
            mirror_backoff: Duration::from_secs(30),
            shared_rate_limit: None,
            bandwidth: None,
        }
    }
}
