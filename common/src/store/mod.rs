//! State shared by all processes of a batch.
//!
//! Nine traits, each with a contract: the [`Ledger`] of batches and their tasks, the [`DigestCache`] of target tags,
//! the [`BlobIndex`] of blob locations at targets, the [`Pace`] that registries allow, [`Leases`] by name, the
//! [`Roster`] of workers and routes, the last runs of [`Schedules`], the [`Origins`] of target tags, and
//! [`TagRecords`], which writes under a lease. A [`Store`] implements all of them: [`SqliteStore`] on one machine,
//! [`RedisStore`] in a cluster.

mod blob_index;
mod cache;
mod clock;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod course;
mod lease_guard;
mod leases;
mod ledger;
mod origins;
mod pace;
mod records;
mod redis;
mod request;
mod roster;
mod schedules;
mod sqlite;

pub use self::redis::{RedisOptions, RedisStore};
pub use blob_index::{BLOB_GENERATION, BlobIndex, HashedFile, PROOF_TTL, Proof};
pub(crate) use blob_index::{is_proof_believed, proof_hour};
pub use cache::{CacheEntry, CacheScope, DigestCache, Imported, Known, export_cache, import_cache};
pub(crate) use clock::latest_end;
pub use clock::{CLOCK_TOLERANCE, Clock, LONGEST_AHEAD, ManualClock, SystemClock, age, is_ahead};
pub use course::{Course, MAX_PARTS, MAX_SLOWEST, Part, Share, Slow};
pub use lease_guard::{CONFIRMED_FOR, LeaseGuard, Leased};
pub use leases::{Fence, Leases, Named, leader, listing, removal, starting, target_tag, waiting};
pub use ledger::{
    Appended, Batch, Block, Control, EmptyRule, FailedTask, Finished, LEASE, Ledger, NewBatch, RequeueFilter, Retried,
    Sealed, Spent, Standing, Start, Sweep, Swept, TaskHolder, TaskRow, Unlisted,
};
pub use origins::{Origin, Origins, PruneOutcome, Pruned};
pub(crate) use pace::Allowance;
pub(crate) use pace::QuotaWindow;
pub use pace::{Account, AccountPart, Ask, Claim, Grant, LOOK_EVERY, Pace, PlaceShare, Told, WindowTime};
pub use records::{TagOrigin, TagRecord, TagRecords};
pub use request::RequestId;
pub use roster::{BROKER_ALARM_HINT, BrokerAlarm, Doing, Feeding, HEARTBEAT, Heartbeat, LANE_KEPT, Roster, Unserved};
pub use schedules::{Begun, Schedules};
pub use sqlite::{LockHolder, LockUse, RunLock, SqliteStore};

/// All store traits together.
pub trait Store: Ledger + DigestCache + BlobIndex + Pace + Leases + Roster + Schedules + Origins + TagRecords {}

impl<T: Ledger + DigestCache + BlobIndex + Pace + Leases + Roster + Schedules + Origins + TagRecords> Store for T {}
