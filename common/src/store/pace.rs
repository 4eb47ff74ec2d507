//! Rate limits, concurrency limits and quotas of registries, shared by all processes. See [`Pace`].

mod allowance;
mod sharing;
mod window;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

pub(crate) use allowance::Allowance;
pub(crate) use sharing::Sharing;
pub(crate) use window::QuotaWindow;

use crate::batch::End;
use crate::error::Result;
use crate::image::RegistryName;

/// How long a [`Grant::Free`] holds before the next request to the store.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The account that a registry counts requests for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The registry.
    pub registry: RegistryName,
    /// Name of the credential, or of the outgoing address for anonymous requests.
    pub who: Box<str>,
    /// Category of requests.
    pub part: AccountPart,
}

/// Categories of requests that registries limit separately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountPart {
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
    pub fn new(registry: &RegistryName, who: impl Into<Box<str>>) -> Account {
        Account { registry: registry.clone(), who: who.into(), part: AccountPart::All }
    }

    /// Returns the account at an endpoint, or `None` for a layout.
    pub fn at(end: &End, who: &str) -> Option<Account> {
        end.registry().map(|registry| Account::new(registry, who))
    }

    /// Returns the same account for one category of requests.
    #[must_use]
    pub fn of(&self, part: AccountPart) -> Account {
        Account { part, ..self.clone() }
    }

    /// Returns credential and category as one name. No user name contains a control character.
    pub(crate) fn key(&self) -> String {
        let part = match self.part {
            AccountPart::All => return self.who.to_string(),
            AccountPart::Pulls => "pulls",
            AccountPart::ManifestPuts => "manifest puts",
            AccountPart::UploadStarts => "upload starts",
        };
        format!("{}\u{1f}{part}", self.who)
    }
}

/// A process's request for permission to send requests of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ask {
    /// Configured requests per second. `None`: learned from 429 responses.
    pub limit: Option<f64>,
    /// Start slowly at a registry with no known rate: many processes would hit its limit at once.
    pub careful: bool,
    /// Number of waiting requests; at least one.
    pub wanted: u32,
    /// Number of requests sent since the last call without asking.
    pub sent: u32,
}

/// Permission to send requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// None for this long; then ask again.
    Wait(Duration),
    /// As many as needed, until [`LOOK_EVERY`] has passed.
    Free,
    /// One request after each of these delays from now, in ascending order: at least one, at most as many as wanted.
    Turns(Vec<Duration>),
}

/// A process's claim to concurrent requests of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Holder, unique to one process.
    pub holder: Box<str>,
    /// Concurrency limit over all processes. At least one.
    pub limit: u32,
    /// Requests in flight.
    pub using: u32,
    /// Requests wanted in flight, including current ones. Zero returns all permits.
    pub wanted: u32,
    /// TTL of the claim.
    pub lease: Duration,
}

/// Permits granted for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceShare {
    /// Requests allowed in flight from now on. With more in flight, start none until enough have ended.
    pub may: u32,
    /// Whether others wait: claim again as soon as fewer are used.
    pub contended: bool,
}

/// A registry's report of an account's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Requests left.
    pub remaining: u64,
    /// Limit per window.
    pub limit: Option<u64>,
    /// Length of the window, or the time until it resets.
    pub time: WindowTime,
    /// With this many requests left, none is sent before the window ends.
    pub reserve: u64,
}

/// Time information of a quota report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowTime {
    /// The window resets after this time.
    Reset(Duration),
    /// The window has this length; its start is unknown.
    Length(Duration),
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
/// the limit, so that nothing is sent too early. If no more than the reserve is left, [`AccountPart::Pulls`] of the
/// account are blocked until the window ends.
#[async_trait]
pub trait Pace: Send + Sync {
    /// Blocks an account until this time.
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()>;

    /// Returns until when each account is blocked, in order.
    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>>;

    /// Returns the requests per second learned from 429 responses for each account, in order; `None` if nothing was
    /// learned. For display only.
    async fn learnt(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>>;

    /// Requests permission to send.
    async fn grant(&self, account: &Account, ask: &Ask) -> Result<Grant>;

    /// Records a 429 response, and blocks the account for this long.
    async fn refused(&self, account: &Account, wait: Duration, ask: &Ask) -> Result<()>;

    /// Claims, renews or returns concurrency permits.
    async fn claim(&self, account: &Account, claim: &Claim) -> Result<PlaceShare>;

    /// Records a quota report. Returns the time until its window ends.
    async fn quota(&self, account: &Account, told: &Told) -> Result<Duration>;
}
