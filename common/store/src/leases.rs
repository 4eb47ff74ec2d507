//! Named leases: what only one process does at a time. See [`Leases`].

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use imgsync_model::batch::{BatchId, RepositoryLocator};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;

/// Result of acquiring a named lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseResult {
    /// Acquired, or renewed.
    Acquired {
        /// The fencing token: greater than that of every earlier holder, also of leases that the store has lost,
        /// because it is never below the store's time in microseconds. It stays the same while the lease is held.
        token: u64,
    },
    /// Held by another process.
    HeldBy {
        /// The holder.
        holder: String,
        /// Expiry unless renewed.
        until: Timestamp,
    },
}

/// Proof of a held lease: the store compares it in the same step in which it records what the lease protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Lease name.
    pub name: String,
    /// Holder name.
    pub holder: String,
    /// Fencing token from the acquisition.
    pub token: u64,
}

/// Leases by name: of batch leaders, of target tags being written, of blobs being uploaded.
///
/// # Contract
/// A name has at most one holder, until it is released or expires. The holder renews its lease by acquiring it again.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Acquires or renews a lease for this time from now, or returns its holder.
    async fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseResult>;

    /// Returns the first of these names that is held now, with its holder.
    async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>>;

    /// Returns the holder of a name, if it is held now.
    async fn lease_holder(&self, name: &str) -> Result<Option<String>> {
        Ok(self.first_held(&[name.to_owned()]).await?.map(|(_, holder)| holder))
    }

    /// Releases a lease if this is its holder.
    async fn release(&self, name: &str, holder: &str) -> Result<()>;

    /// Returns whether a process that lists or leads batches may be alive. A store used by one process at a time knows
    /// this before its leases expire.
    async fn may_have_owners(&self) -> Result<bool> {
        Ok(true)
    }
}

/// Lease name of the leader of one batch, or of all.
pub fn leader_lease_name(scope: &str) -> String {
    format!("leader:{scope}")
}

/// Lease name held while the rules of a batch are listed.
pub fn listing_lease_name(batch: BatchId) -> String {
    format!("listing:{batch}")
}

/// Lease name held while a batch of these rules is created, so that of two creators one sees the other's batch.
pub fn start_lease_name(rules: &Digest) -> String {
    format!("starting:{rules}")
}

/// Lease name of the one run that waits for a batch of these rules to end.
pub fn waiting_lease_name(rules: &Digest) -> String {
    format!("waiting:{rules}")
}

/// Lease name held while a target tag is written: `REGISTRY/REPOSITORY:TAG`, such as a [`TagLocator`].
///
/// [`TagLocator`]: imgsync_model::batch::TagLocator
pub fn tag_lease_name(target: &dyn std::fmt::Display) -> String {
    format!("tag:{target}")
}

/// Lease name held while tags of a target repository are pruned.
pub fn prune_lease_name(target: &RepositoryLocator) -> String {
    format!("prune:{target}")
}
