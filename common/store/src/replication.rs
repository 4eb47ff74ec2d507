//! What is known of the servers of a replicated store.

use std::time::Duration;

/// Servers of a store, as the master and the Sentinels report them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreReplication {
    /// Number of Sentinels in the URL of the store; 0 without Sentinels.
    pub sentinels_configured: u64,
    /// Number of Sentinels that answer and know the master.
    pub sentinels: u64,
    /// Number of replicas that the Sentinels know, also those that are down; `None` if no Sentinel says it.
    pub replicas_known: Option<u64>,
    /// Replicas that are connected to the master; `None` if it does not say: the user may not call `INFO`.
    pub replicas: Option<Vec<StoreReplica>>,
}

/// A replica that is connected to the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreReplica {
    /// Host and port.
    pub name: String,
    /// Time since it last confirmed what it has, in whole seconds.
    pub lag: Duration,
}
