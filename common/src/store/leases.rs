//! Things that one process does at a time. See [`Leases`].

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::batch::{BatchId, Home, Place};
use crate::error::Result;
use crate::image::Digest;

/// The answer to who wants to hold a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// It is yours, under this epoch.
    Yours {
        /// The fencing token: greater than that of every holder before, also of those that the store has forgotten, for it
        /// is never below the store's time in microseconds; the same for as long as it is held.
        epoch: u64,
    },
    /// It is another's.
    Others {
        /// Whose.
        holder: String,
        /// When it ends unless it is renewed.
        until: Timestamp,
    },
}

/// What proves that a lease is held, and under which token: a store compares it in the same step in which it records what
/// the lease protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The name of the lease.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// The fencing token under which it was acquired.
    pub token: u64,
}

/// Leases by name: who leads, who writes a target tag, who uploads a blob.
///
/// # Contract
/// Of all that ask for a name at a time, one holds it; until it lets go, or its lease ends without being renewed. Who holds
/// it renews it by asking again.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Holds a name for so long from now, or says who does.
    async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<Named>;

    /// The first of these names that somebody holds now, and who.
    async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>>;

    /// Who holds a name now, if anybody does.
    async fn held(&self, name: &str) -> Result<Option<String>> {
        Ok(self.first_held(&[name.to_owned()]).await?.map(|(_, holder)| holder))
    }

    /// Lets go of a name, if it is this one's.
    async fn release(&self, name: &str, holder: &str) -> Result<()>;

    /// Whether a process that lists or leads batches may be alive. Where only one may at a time, it is known whether that
    /// one is, before its leases have expired.
    async fn may_have_owners(&self) -> Result<bool> {
        Ok(true)
    }
}

/// The name that a coordinator holds while it leads: for one batch, or for all.
pub fn leader(of: &str) -> String {
    format!("leader:{of}")
}

/// The name that is held while the rules of a batch are listed.
pub fn listing(batch: BatchId) -> String {
    format!("listing:{batch}")
}

/// The name that is held for the moment in which a batch of these rules is made, so that of two one sees the other's.
pub fn starting(rules: &Digest) -> String {
    format!("starting:{rules}")
}

/// The name that is held by the one run that waits for the end of a batch of these rules.
pub fn waiting(rules: &Digest) -> String {
    format!("waiting:{rules}")
}

/// The name that is held while a target tag is written.
pub fn target_tag(target: &Place) -> String {
    format!("tag:{target}")
}

/// The name that is held while tags are removed from a target's repository.
pub fn removal(target: &Home) -> String {
    format!("removal:{target}")
}
