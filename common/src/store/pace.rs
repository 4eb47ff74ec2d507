//! How fast registries may be asked, and what they asked to wait for. See [`Pace`].

mod allowance;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

pub(crate) use allowance::Allowance;

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
}

impl Account {
    /// The account at an end; none if it is a layout.
    pub fn at(end: &End, who: &str) -> Option<Account> {
        end.registry().map(|registry| Account { registry: registry.clone(), who: who.into() })
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

/// The pace of registries, shared by all who ask them: so many requests a second, and until when none.
///
/// # Contract
/// The latest time that was named for an account holds. One that is past is as none. Times are the store's.
///
/// All turns that are given to anybody are spread as the rate demands, with a quarter of a second's worth at once. Without
/// a limit in the configuration all is free (for the careful after some seconds of growing rates) until a first refusal.
/// Then the rate is half of what it was, grows by 5 % in each second of use, is halved at most once a second, and is
/// forgotten ten minutes after the last refusal.
#[async_trait]
pub trait Pace: Send + Sync {
    /// No request before this time.
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()>;

    /// Until when to wait for each of these, in their order.
    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>>;

    /// What may be sent now.
    async fn grant(&self, account: &Account, ask: &Ask) -> Result<Grant>;

    /// The registry refused a request (429), and wants none for so long.
    async fn refused(&self, account: &Account, wait: Duration, ask: &Ask) -> Result<()>;
}
