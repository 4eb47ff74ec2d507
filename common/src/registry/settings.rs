//! How registries are spoken to: what the configuration says of each, and what holds for all.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::credentials::Credential;
use super::hop::Allowed;
use crate::config::SecretUrl;
use crate::image::RegistryName;
use crate::retry::Policy;
use crate::secret::Secret;
use crate::store::Pace;
use crate::vendor::ListingBy;

/// What holds for one registry. The default suits all that follow the specification.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// Where its API is, if not at its name: a mirror, a pull-through cache, a test.
    pub endpoint: Option<Url>,
    /// Whose API lists its repositories and tags.
    pub listing: ListingBy,
    /// Where its vendor's own API is, if that is not known.
    pub api: Option<Url>,
    /// Read from first and in this order; what they lack or fail at is read from the registry itself.
    pub mirrors: Vec<Url>,
    /// Whether it is spoken to without TLS; unset: only where it is on this machine's loopback.
    pub plain_http: Option<bool>,
    /// Certificates of authorities that are trusted besides the system's, as PEM.
    pub ca: Vec<Vec<u8>>,
    /// A client's certificate and key, as PEM.
    pub identity: Option<Secret>,
    /// Take any certificate.
    pub insecure: bool,
    /// Never use HTTP/2.
    pub http1: bool,
    /// The proxy to it (http, https, socks5, socks5h); unset: the environment's.
    pub proxy: Option<SecretUrl>,
    /// It may redirect to, and name token services at, private addresses.
    pub allow_private: bool,
    /// Addresses of a cloud's metadata service that it may have or lead to, which are refused to all others.
    pub allow_metadata: Vec<IpAddr>,
    /// Credentials that go before those of docker and containers; the first is used.
    pub credentials: Vec<Credential>,
    /// More of them, for pulling alone, used in turn with the first of `credentials` if there is one. Each has its own pace
    /// and quota.
    pub pull_credentials: Vec<Credential>,
    /// Requests a second that it accepts, all kinds together; none: what is known of it ([`known`](super::known)), else
    /// as many as there are.
    pub requests_per_second: Option<f64>,
    /// Requests that may be open at a time, by all who share a pace; none: as many as there are. Where a registry is both
    /// source and target, one whose answer has begun is no longer counted: an upload may be waiting to send it on.
    pub concurrency: Option<usize>,
    /// How much of a quota of pulls is left to others.
    pub pull_reserve: Reserve,
    /// Bytes of blobs a second, for reading and for writing each, in this process.
    pub bandwidth: Option<u64>,
    /// A name for the address that limits of anonymous users are counted by.
    pub egress: Option<Box<str>>,
    /// Make what a push needs and is missing: repositories of ECR, projects of Harbor.
    pub create: bool,
    /// Upload blobs by PATCHes of this many bytes rather than in one PUT.
    pub chunk: Option<u64>,
}

impl RegistrySettings {
    /// Where else than others it may lead.
    pub(crate) fn allowed(&self) -> Allowed<'_> {
        Allowed { private: self.allow_private, metadata: &self.allow_metadata }
    }
}

/// How much of a quota is left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// So many requests.
    Count(u64),
    /// A part of the quota, in percent; rounded up.
    Percent(u8),
}

impl Default for Reserve {
    fn default() -> Reserve {
        Reserve::Count(0)
    }
}

impl Reserve {
    /// How many requests that is.
    pub fn of(self, limit: Option<u64>) -> u64 {
        match self {
            Reserve::Count(count) => count,
            Reserve::Percent(percent) => limit.map_or(0, |limit| limit.saturating_mul(percent.into()).div_ceil(100)),
        }
    }
}

/// What holds for all registries.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// By registry; all others have the default.
    pub registries: BTreeMap<RegistryName, RegistrySettings>,
    /// What is tried again, and how.
    pub retry: Policy,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer, or a stream, may stand still.
    pub stall: Duration,
    /// A token this old may have run out in spite of what its answer said: a 400 or 403 may then mean that.
    pub doubtful_age: Duration,
    /// How long a mirror that failed is left alone, at the least.
    pub mirror_rest: Duration,
    /// The pace of registries, where it is shared with other processes.
    pub pace: Option<SharedPace>,
    /// Bytes of blobs a second, for reading and for writing each, of all registries together.
    pub bandwidth: Option<u64>,
}

/// A pace that is shared with other processes, or with those that come later.
#[derive(Clone)]
pub struct SharedPace {
    /// Where it is kept.
    pub store: Arc<dyn Pace>,
    /// Begin slowly with registries of which nothing is known; see [`crate::store::Ask`].
    pub careful: bool,
    /// No other process asks at the same time: rates and places are this one's own, and waits and quotas are kept for those
    /// that come later.
    pub alone: bool,
}

impl fmt::Debug for SharedPace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedPace")
    }
}

impl Default for ClientSettings {
    fn default() -> ClientSettings {
        ClientSettings {
            registries: BTreeMap::new(),
            retry: Policy::default(),
            connect_timeout: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            doubtful_age: Duration::from_secs(30),
            mirror_rest: Duration::from_secs(30),
            pace: None,
            bandwidth: None,
        }
    }
}
