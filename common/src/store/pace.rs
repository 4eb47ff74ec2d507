//! How fast registries may be asked, and what they asked to wait for. See [`Pace`].

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

/// Who was told [`Grant::Free`] asks again after so long.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whom a registry counts requests for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The registry.
    pub registry: RegistryName,
    /// The name of the credential; for anonymous requests that of the address that they come from.
    pub who: Box<str>,
    /// Of which requests.
    pub part: AccountPart,
}

/// Requests that a registry counts apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountPart {
    /// None: all of them.
    #[default]
    All,
    /// Reading manifests (GET), which quotas count.
    Pulls,
    /// Writing manifests.
    ManifestPuts,
    /// Opening uploads.
    UploadStarts,
}

impl Account {
    /// An account, for all requests.
    pub fn new(registry: &RegistryName, who: impl Into<Box<str>>) -> Account {
        Account { registry: registry.clone(), who: who.into(), part: AccountPart::All }
    }

    /// The account at an end; none if it is a layout.
    pub fn at(end: &End, who: &str) -> Option<Account> {
        end.registry().map(|registry| Account::new(registry, who))
    }

    /// The same account, for a part of its requests.
    #[must_use]
    pub fn of(&self, part: AccountPart) -> Account {
        Account { part, ..self.clone() }
    }

    /// Who and which part, as one name. No user's name has a control character in it.
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

/// What a process asks of an account's pace.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ask {
    /// Requests a second, where the configuration says how many; else it is learnt from refusals.
    pub limit: Option<f64>,
    /// Begin slowly with a registry of which nothing is known: many processes would meet a limit all at once.
    pub careful: bool,
    /// How many requests wait; at least one.
    pub wanted: u32,
    /// How many were made since the last time without asking.
    pub sent: u32,
}

/// What the pace of an account allows.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// Nothing, for so long; then ask again.
    Wait(Duration),
    /// As many as there are, until [`LOOK_EVERY`] has passed.
    Free,
    /// One request after each of these waits from now, which do not go down. At least one, and no more than were wanted.
    Turns(Vec<Duration>),
}

/// How many requests of an account a process wants to have open at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Which process; of it alone.
    pub holder: Box<str>,
    /// How many may be open at a time, by all together. At least one.
    pub limit: u32,
    /// How many it has open.
    pub using: u32,
    /// How many it would like to have open, these included. None: it gives all back.
    pub wanted: u32,
    /// How long this holds without word from it.
    pub lease: Duration,
}

/// What a process got of what it claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceShare {
    /// How many may be open from now on. Where there are more, no new one until enough of them have ended.
    pub may: u32,
    /// Whether others wait: it should ask again as soon as it uses less.
    pub contended: bool,
}

/// What a registry said of the quota of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// How many requests are left.
    pub remaining: u64,
    /// Of how many in a window.
    pub limit: Option<u64>,
    /// How long a window is, or how long it is from now to its end where that was said.
    pub time: WindowTime,
    /// With so many left, nothing more is begun before the window ends.
    pub reserve: u64,
}

/// What was said of the time for which a quota holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowTime {
    /// It begins anew in so long.
    Reset(Duration),
    /// It is so long; when it began is not known.
    Length(Duration),
}

/// The pace of registries, shared by all who ask them: so many requests a second, and until when none.
///
/// # Contract
/// The latest time that was named for an account holds. One that is past is as none. Times are the store's.
///
/// All turns that are given to anybody are spread as the rate demands, with a quarter of a second's worth at once. Without
/// a limit in the configuration all is free (for the careful after some seconds of growing rates) until a first refusal.
/// Then the rate is half of what it was, grows by 5 % in each second of use, is halved at most once a second, and is
/// forgotten ten minutes after the last refusal.
///
/// Places are for requests that are open at a time. All holders together have no more than the limit, but for what one
/// went on to use after its lease had run out. Where more is wanted than there is, each may have the same, those who
/// waited longest first; where there are more holders than places, they take turns.
///
/// A quota's window is taken to begin when it was first heard of, or when what is left went up by a quarter of the limit:
/// so nothing is begun too early. The end of a window in which no more than the reserve is left is held off until, for
/// [`AccountPart::Pulls`] of the account.
#[async_trait]
pub trait Pace: Send + Sync {
    /// No request before this time.
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()>;

    /// Until when to wait for each of these, in their order.
    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>>;

    /// How many requests a second were learnt of each of these from refusals, in their order; none where nothing was. For
    /// looking only.
    async fn learnt(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>>;

    /// What may be sent now.
    async fn grant(&self, account: &Account, ask: &Ask) -> Result<Grant>;

    /// The registry refused a request (429), and wants none for so long.
    async fn refused(&self, account: &Account, wait: Duration, ask: &Ask) -> Result<()>;

    /// Claims places for requests that are open at a time, renews the claim, or gives back what is not wanted any more.
    async fn claim(&self, account: &Account, claim: &Claim) -> Result<PlaceShare>;

    /// The registry said how much of a quota is left. Returns in how long its window ends.
    async fn quota(&self, account: &Account, told: &Told) -> Result<Duration>;
}
