//! Task queues: transport from the plan to the workers.
//!
//! A [`TaskQueue`] is only a transport. The ledger ([`crate::store::Ledger`]) knows which tasks are done: it absorbs
//! duplicate deliveries and plans lost tasks again.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod memory;
mod rabbitmq;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::batch::{Lane, Message};
use crate::error::Result;

pub use memory::{MemoryQueue, WINDOW};
pub(crate) use rabbitmq::{KEPT as KEPT_REFUSED, KEPT_BYTES as KEPT_REFUSED_BYTES};
pub use rabbitmq::{RabbitQueue, RabbitSettings};

/// Length of the priority cycle: high priority goes first in all turns but one of so many, so that nothing starves.
pub const URGENT_TURNS: usize = 5;

/// Delays before redelivery that every queue offers, shortest first.
pub const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(5 * 60), Duration::from_secs(30 * 60)];

/// Selects the routes that a worker consumes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lanes {
    /// All routes.
    All,
    /// Only these.
    Only(BTreeSet<Lane>),
    /// All but these, which are paused or out of reach.
    Except(BTreeSet<Lane>),
}

impl Lanes {
    /// Returns whether a route is selected.
    pub fn contains(&self, lane: &Lane) -> bool {
        match self {
            Lanes::All => true,
            Lanes::Only(lanes) => lanes.contains(lane),
            Lanes::Except(lanes) => !lanes.contains(lane),
        }
    }
}

/// Result of publishing a block of messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Positions in the block of messages that the queue had no room for. It accepted all others.
    pub refused: Vec<usize>,
}

/// Carries messages to workers.
///
/// # Contract
/// - **At least once.** A confirmed message is delivered until it is acknowledged: again if the delivery is dropped or
///   requeued, if its worker dies, or if the broker assumes so. It may be delivered twice even if nothing went wrong.
///   An embedded queue ends with its process.
/// - **No order** is promised. Messages of one batch and route arrive roughly in the order of publishing.
/// - **Fair.** A route with many ready messages does not delay one with few, nor one batch another, as long as the
///   publisher gives each its share. High priority goes first in most turns, and others in at least one of
///   [`URGENT_TURNS`].
/// - **Bounded.** Messages without room are rejected, not dropped; one batch does not use up the room of another for
///   ever.
/// - A queue never reads the ledger, and a ready message may be obsolete.
/// - All methods are safe to call concurrently; a call that is dropped early loses no message, though its messages may
///   have been published.
#[async_trait]
pub trait TaskQueue: Send + Sync {
    /// Publishes a block of messages, and returns when each is confirmed or rejected. After an error any of them may or
    /// may not have been accepted: publish them again.
    async fn publish(&self, block: &[(Lane, Message)]) -> Result<Published>;

    /// Publishes one message that was received before, for delivery after `wait` at the earliest. A queue may delay it
    /// longer, as for [`Delivery::give_back_after`]. A message without a delay bypasses the limits of its batch: it is
    /// rejected only if the queue itself is full.
    async fn publish_later(&self, lane: &Lane, message: &Message, wait: Duration) -> Result<()>;

    /// Waits until it may be worth publishing rejected messages again. May return early.
    async fn room(&self);

    /// Waits for a message of these routes; returns `None` if cancelled first. Acquire a slot first, then receive: a
    /// delivery is withheld from other workers.
    async fn take(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// Receives like [`TaskQueue::take`], from high priority only.
    async fn take_urgent(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// Returns the number of ready messages of each route, of all priorities; unacknowledged and delayed ones are not
    /// counted.
    async fn waiting(&self, lanes: &[Lane]) -> Result<Vec<u64>>;

    /// Returns the next dead letter: a message that was delivered too often without an acknowledgement. `None` if there
    /// is none now, or ever.
    async fn take_dead(&self, _cancel: &CancellationToken) -> Result<Option<Dead>> {
        Ok(None)
    }
}

/// A message, withheld from others until it is acknowledged or requeued. Dropped, it is redelivered.
pub struct Delivery {
    /// The route.
    pub lane: Lane,
    /// The message.
    pub message: Message,
    /// Whether it may have been delivered before. A hint: the ledger's lease decides.
    pub redelivered: bool,
    receipt: Box<dyn Receipt>,
}

/// A message that the broker dead-lettered. Dropped, it is delivered again.
pub struct Dead {
    /// The route.
    pub lane: Lane,
    /// The message.
    pub message: Message,
    /// The broker's reason.
    pub why: String,
    receipt: Box<dyn Receipt>,
}

impl Dead {
    /// Creates a dead letter; called by queues.
    pub fn new(lane: Lane, message: Message, why: String, receipt: Box<dyn Receipt>) -> Dead {
        Dead { lane, message, why, receipt }
    }

    /// Acknowledges the dead letter.
    pub async fn acknowledge(self) -> Result<()> {
        self.receipt.acknowledge().await
    }
}

/// A queue's side of a [`Delivery`]. Dropped without a call, the message is redelivered.
#[async_trait]
pub trait Receipt: Send {
    /// Acknowledges the message.
    async fn acknowledge(self: Box<Self>) -> Result<()>;

    /// Returns the message to the queue, at once or after a delay.
    async fn give_back(self: Box<Self>, message: Message, after: Duration) -> Result<()>;
}

impl Delivery {
    /// Creates a delivery; called by queues.
    pub fn new(lane: Lane, message: Message, redelivered: bool, receipt: Box<dyn Receipt>) -> Delivery {
        Delivery { lane, message, redelivered, receipt }
    }

    /// Acknowledges the message: the ledger has its result, or does not need it. After an error it may be redelivered.
    pub async fn acknowledge(self) -> Result<()> {
        self.receipt.acknowledge().await
    }

    /// Returns the message to the queue at once.
    pub async fn give_back(self) -> Result<()> {
        self.give_back_after(Duration::ZERO).await
    }

    /// Returns the message to the queue for delivery after `wait` at the earliest. A queue may delay it longer, up to
    /// the next of [`RETRY_DELAYS`], and uses the longest of these for all longer waits. To return a message with fewer
    /// targets, change [`Delivery::message`] first.
    pub async fn give_back_after(self, wait: Duration) -> Result<()> {
        self.receipt.give_back(self.message, wait).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("lane", &self.lane)
            .field("message", &self.message)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}
