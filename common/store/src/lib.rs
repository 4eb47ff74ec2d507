//! State shared by all processes of a batch.
//!
//! Ten traits, each with a contract: the [`Ledger`] of batches and their tasks, the [`DigestCache`] of target tags,
//! the [`BlobIndex`] of blob locations at targets, the [`RateLimitStore`] that registries allow, [`Leases`] by name,
//! the [`WorkerRegistry`] of workers and routes, the last runs of [`Schedules`], the [`ProvenanceStore`] of target
//! tags, the [`PushInbox`] of pushes that hooks told of, and [`TagRecorder`], which writes under a lease. A [`Store`] implements all of them: [`SqliteStore`] on one
//! machine, [`RedisStore`] in a cluster.

mod blob_index;
mod cache;
mod clock;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod idempotency_key;
mod lease_guard;
mod leases;
mod ledger;
mod limits;
pub mod log_throttle;
pub mod outage;
mod plan;
pub mod private_files;
mod provenance;
mod push_inbox;
mod records;
mod redis;
mod replication;
mod schedules;
mod sqlite;
mod timeline;
mod worker_registry;

pub use self::redis::{RedisOptions, RedisStore, SentinelLogin};
pub use blob_index::{BLOB_GENERATION, BlobIndex, BlobProof, HashedFile, PROOF_TTL};
pub(crate) use blob_index::{is_proof_valid, proof_hour};
pub use cache::{CacheEntry, CacheImport, CacheScope, CachedTag, DigestCache, export_cache, import_cache};
pub(crate) use clock::latest_deadline_ms;
pub use clock::{CLOCK_TOLERANCE, Clock, MAX_DEADLINE_AHEAD, ManualClock, SystemClock, age, is_in_future};
pub use idempotency_key::IdempotencyKey;
pub use imgsync_rate_limit::{
    Account, ConcurrencyClaim, ConcurrencyGrant, GRANT_TTL, QuotaPeriod, QuotaReport, RateGrant, RateLimitCategory,
    RateLimitStore, RateRequest,
};
pub use lease_guard::{CONFIRMATION_MAX_AGE, LeaseGuard, LeaseView, TryAcquireResult};
pub use leases::{
    Fence, LeaseResult, Leases, leader_lease_name, listing_lease_name, prune_lease_name, start_lease_name,
    tag_lease_name, waiting_lease_name,
};
pub use ledger::{
    AppendResult, Batch, BatchState, ClaimResult, EmptyRule, FailedTask, FinishReply, LEASE_TTL, LeaseStatus, Ledger,
    ListingFailure, NewBatch, ReclaimScope, Reclaimed, RecordCounts, RequeueFilter, RescheduleReply, TaskHolder,
    TaskRow, Usage, is_start_lease_lost,
};
pub use limits::limits;
pub use plan::{PlanBlock, PlanCompletion, PlanSegment, PlanSize};
pub use provenance::{ProvenanceStore, PruneOutcome, PruneRecord, TagProvenance};
pub use push_inbox::{
    AddedPushes, MAX_ALL_PUSHES, MAX_PENDING_PUSHES, MAX_PUSH_IDS, PUSH_ID_TTL, PendingPush, Postponed, PushInbox,
    PushRule, ReceivedPush, hash_push_id,
};
pub use records::{ProvenanceUpdate, TagRecord, TagRecorder};
pub use replication::{StoreReplica, StoreReplication};
pub use schedules::{LastRun, Schedules};
pub use sqlite::{LockHolder, LockUse, RunLock, SqliteStore};
pub use timeline::{BatchTimeline, MAX_SLOWEST_TASKS, MAX_TIME_BUCKETS, SlowTask, TimeBucket, WorkerStats};
pub use worker_registry::{
    BROKER_ALARM_HINT, BrokerAlarm, HEARTBEAT_TTL, Heartbeat, ROUTE_RETENTION, RouteThroughput, RunningTask,
    UnservedRoute, WorkerRegistry,
};

/// All store traits together.
pub trait Store:
    Ledger
    + DigestCache
    + BlobIndex
    + RateLimitStore
    + Leases
    + WorkerRegistry
    + Schedules
    + ProvenanceStore
    + PushInbox
    + TagRecorder
{
}

impl<
    T: Ledger
        + DigestCache
        + BlobIndex
        + RateLimitStore
        + Leases
        + WorkerRegistry
        + Schedules
        + ProvenanceStore
        + PushInbox
        + TagRecorder,
> Store for T
{
}
