//! Rate limits, concurrency limits and quotas of registries, shared by all processes. See [`RateLimitStore`].

mod concurrency_allocator;
mod quota_window;
mod rate_allocator;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

pub use concurrency_allocator::ConcurrencyAllocator;
pub use quota_window::QuotaWindow;
pub use rate_allocator::RateAllocator;

use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;

/// How long a [`RateGrant::Unlimited`] holds before the next request to the store.
pub const GRANT_TTL: Duration = Duration::from_millis(250);

/// The account that a registry counts requests for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The registry.
    pub registry: RegistryName,
    /// Name of the credential, or of the outgoing address for anonymous requests.
    pub credential: Box<str>,
    /// Category of requests.
    pub category: RateLimitCategory,
}

/// Categories of requests that registries limit separately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RateLimitCategory {
    /// All requests.
    #[default]
    All,
    /// Manifest reads (GET), which quotas count.
    Pulls,
    /// Manifest writes.
    ManifestPuts,
    /// Upload starts.
    UploadStarts,
}

impl Account {
    /// Creates an account for all requests.
    pub fn new(registry: &RegistryName, credential: impl Into<Box<str>>) -> Account {
        Account { registry: registry.clone(), credential: credential.into(), category: RateLimitCategory::All }
    }

    /// Returns the same account for one category of requests.
    #[must_use]
    pub fn with_category(&self, category: RateLimitCategory) -> Account {
        Account { category, ..self.clone() }
    }

    /// Returns credential and category as one name. No user name contains a control character.
    pub fn key(&self) -> String {
        let part = match self.category {
            RateLimitCategory::All => return self.credential.to_string(),
            RateLimitCategory::Pulls => "pulls",
            RateLimitCategory::ManifestPuts => "manifest puts",
            RateLimitCategory::UploadStarts => "upload starts",
        };
        format!("{}\u{1f}{part}", self.credential)
    }
}

/// A process's request for permission to send requests of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RateRequest {
    /// Configured requests per second. `None`: learned from 429 responses.
    pub limit: Option<f64>,
    /// Start slowly at a registry with no known rate: many processes would hit its limit at once.
    pub slow_start: bool,
    /// Number of waiting requests; at least one.
    pub wanted: u32,
    /// Number of requests sent since the last call without asking.
    pub sent: u32,
}

/// Permission to send requests.
#[derive(Debug, Clone, PartialEq)]
pub enum RateGrant {
    /// None for this long; then ask again.
    Wait(Duration),
    /// As many as needed, until [`GRANT_TTL`] has passed.
    Unlimited,
    /// One request after each of these delays from now, in ascending order: at least one, at most as many as wanted.
    Scheduled(Vec<Duration>),
}

/// A process's claim to concurrent requests of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConcurrencyClaim {
    /// Holder, unique to one process.
    pub holder: Box<str>,
    /// Concurrency limit over all processes. At least one.
    pub limit: u32,
    /// Requests in flight.
    pub in_use: u32,
    /// Requests wanted in flight, including current ones. Zero returns all permits.
    pub wanted: u32,
    /// TTL of the claim.
    pub ttl: Duration,
}

/// Permits granted for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyGrant {
    /// Requests allowed in flight from now on. With more in flight, start none until enough have ended.
    pub permits: u32,
    /// Whether others wait: claim again as soon as fewer are used.
    pub contended: bool,
}

/// A registry's report of an account's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaReport {
    /// Requests left.
    pub remaining: u64,
    /// Limit per window.
    pub limit: Option<u64>,
    /// Length of the window, or the time until it resets.
    pub period: QuotaPeriod,
    /// With this many requests left, none is sent before the window ends.
    pub reserve: u64,
}

/// Time information of a quota report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaPeriod {
    /// The window resets after this time.
    ResetsIn(Duration),
    /// The window has this length; its start is unknown.
    WindowLength(Duration),
}

/// Rate limits of registries, shared by all processes: requests per second, concurrency, quotas, and blocks until a
/// time.
///
/// # Contract
/// The block of an account that ends last wins. One that has ended counts as none. Times are those of the store.
///
/// Request slots granted to all processes are spread at the allowed rate, with a burst of a quarter of a second.
/// Without a configured limit, requests are unlimited until the first 429 (after some seconds of slow start, if
/// requested). Then the rate is half of what was sent; it grows by 5 % per second of use, is halved at most once a
/// second, and expires ten minutes after the last 429.
///
/// Concurrency permits of all holders together stay within the limit, except for requests that a holder still has in
/// flight after its claim expired. If more are wanted than available, every holder may have an equal share, those that
/// waited longest first; with more holders than permits, they rotate.
///
/// A quota window is assumed to start when it is first reported, or when the remaining requests rise by a quarter of
/// the limit, so that nothing is sent too early. If no more than the reserve is left, [`RateLimitCategory::Pulls`] of
/// the account are blocked until the window ends.
#[async_trait]
pub trait RateLimitStore: Send + Sync {
    /// Blocks an account until this time.
    async fn block_until(&self, account: &Account, until: Timestamp) -> Result<()>;

    /// Returns until when each account is blocked, in order.
    async fn blocked_until(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>>;

    /// Returns the requests per second learned from 429 responses for each account, in order; `None` if nothing was
    /// learned. For display only.
    async fn learned_rates(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>>;

    /// Requests permission to send.
    async fn acquire_rate(&self, account: &Account, request: &RateRequest) -> Result<RateGrant>;

    /// Records a 429 response, and blocks the account for this long.
    async fn record_throttled(&self, account: &Account, wait: Duration, request: &RateRequest) -> Result<()>;

    /// Claims, renews or returns concurrency permits.
    async fn claim_concurrency(&self, account: &Account, claim: &ConcurrencyClaim) -> Result<ConcurrencyGrant>;

    /// Records a quota report. Returns the time until its window ends.
    async fn record_quota(&self, account: &Account, report: &QuotaReport) -> Result<Duration>;
}
