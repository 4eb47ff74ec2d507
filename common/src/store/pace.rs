//! What registries asked to wait for. See [`Pace`].

use async_trait::async_trait;
use jiff::Timestamp;

use crate::batch::End;
use crate::error::Result;
use crate::image::RegistryName;

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

/// Remembers until when registries are to be left alone.
///
/// # Contract
/// The latest time that was named for an account holds. One that is past is as none.
#[async_trait]
pub trait Pace: Send + Sync {
    /// No request before this time.
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()>;

    /// Until when to wait for each of these, in their order.
    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>>;
}
