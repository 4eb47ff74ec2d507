//! Things that one process does at a time. See [`Leases`].

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::batch::{BatchId, Place};
use crate::error::Result;

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

/// Leases by name: who leads, who writes a target tag, who uploads a blob.
///
/// # Contract
/// Of all that ask for a name at a time, one holds it; until it lets go, or its lease ends without being renewed. Who holds
/// it renews it by asking again.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Holds a name for so long from now, or says who does.
    async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<Named>;

    /// Lets go of a name, if it is this one's.
    async fn release(&self, name: &str, holder: &str) -> Result<()>;
}

/// The name that a coordinator holds while it leads: for one batch, or for all.
pub fn leader(of: &str) -> String {
    format!("leader:{of}")
}

/// The name that is held while the rules of a batch are listed.
pub fn listing(batch: BatchId) -> String {
    format!("listing:{batch}")
}

/// The name that is held while a target tag is written.
pub fn target_tag(target: &Place) -> String {
    format!("tag:{target}")
}
