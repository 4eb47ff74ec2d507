//! The first seam: from where a task is planned to where it is run.
//!
//! A [`TaskQueue`] is a transport and remembers nothing that matters: what is done and what is not stands in the ledger
//! ([`crate::store::Ledger`]), which absorbs what is delivered twice and plans again what was lost.

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

/// What is urgent is asked for first, but for one turn in so many: nothing else ever starves.
pub const URGENT_TURNS: usize = 5;

/// The waits that every queue offers before a message comes back, shortest first.
pub const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(5 * 60), Duration::from_secs(30 * 60)];

/// Which lanes a worker takes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lanes {
    /// All.
    All,
    /// These.
    Only(BTreeSet<Lane>),
    /// All but these, which are parked or out of reach.
    Except(BTreeSet<Lane>),
}

impl Lanes {
    /// Whether a lane is one of them.
    pub fn contains(&self, lane: &Lane) -> bool {
        match self {
            Lanes::All => true,
            Lanes::Only(lanes) => lanes.contains(lane),
            Lanes::Except(lanes) => !lanes.contains(lane),
        }
    }
}

/// What became of a block that was published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The positions in the block of messages that the queue has no room for. All others are the queue's now.
    pub refused: Vec<usize>,
}

/// Carries messages to workers.
///
/// # Contract
/// - **At least once.** A message that was confirmed is delivered until it is acknowledged: again if the delivery is
///   dropped or given back, if its worker dies, or if the broker thinks that it did. It may be delivered twice even though
///   nothing went wrong. An embedded queue ends with its process.
/// - **No order** is promised. Messages of one batch and lane come roughly in the order in which they were published.
/// - **Fair.** A lane with many messages waiting does not hold up one with few, and a batch not another, as long as who
///   publishes gives each its share. Messages of high priority are taken first in most turns, and others in one of
///   [`URGENT_TURNS`] at least.
/// - **Bounded.** What there is no room for is refused, not dropped; room for one batch is not used up by another for
///   ever.
/// - A queue never looks into the ledger, and a message that is waiting does not know whether it is still wanted.
/// - All methods may be called at the same time from anywhere; a call that is dropped before it ends loses no message,
///   though what it published may have been.
#[async_trait]
pub trait TaskQueue: Send + Sync {
    /// Hands over a block of messages, and returns when each is confirmed or refused. An error means that any of them
    /// may or may not have been taken: publish them again.
    async fn publish(&self, block: &[(Lane, Message)]) -> Result<Published>;

    /// Hands over one message that was taken before, so that it is delivered again, not before this wait is over. A queue
    /// may wait longer, as for [`Delivery::give_back_after`]. A message without a wait has a right to its place: it is
    /// refused only where the queue itself is full.
    async fn publish_later(&self, lane: &Lane, message: &Message, wait: Duration) -> Result<()>;

    /// Waits until it may be worth publishing again what was refused. May return early.
    async fn room(&self);

    /// Waits for a message of these lanes: none if cancelled first. Take a slot first, then a delivery: what is taken is
    /// withheld from others.
    async fn take(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// The same for messages of high priority alone.
    async fn take_urgent(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// How many messages are ready to be taken in each of these lanes, of any priority; those with workers or waiting for their time are
    /// not counted.
    async fn waiting(&self, lanes: &[Lane]) -> Result<Vec<u64>>;

    /// The next message that the broker gave up on: it was delivered too often without being acknowledged. None where
    /// there is none now, or ever.
    async fn take_dead(&self, _cancel: &CancellationToken) -> Result<Option<Dead>> {
        Ok(None)
    }
}

/// A message, withheld from others until it is acknowledged or given back. Dropped, it is delivered again.
pub struct Delivery {
    /// In which lane it came.
    pub lane: Lane,
    /// What is to be done.
    pub message: Message,
    /// Whether it may have been delivered before. A hint: the ledger's lease decides.
    pub redelivered: bool,
    receipt: Box<dyn Receipt>,
}

/// A message that the broker gave up on. Dropped, it is given out again.
pub struct Dead {
    /// In which lane it was.
    pub lane: Lane,
    /// What was to be done.
    pub message: Message,
    /// What the broker says of it, in words.
    pub why: String,
    receipt: Box<dyn Receipt>,
}

impl Dead {
    /// By a queue, for what it gave up on.
    pub fn new(lane: Lane, message: Message, why: String, receipt: Box<dyn Receipt>) -> Dead {
        Dead { lane, message, why, receipt }
    }

    /// It was seen to.
    pub async fn acknowledge(self) -> Result<()> {
        self.receipt.acknowledge().await
    }
}

/// A queue's side of a [`Delivery`]. Dropped without a call, the message is delivered again.
#[async_trait]
pub trait Receipt: Send {
    /// The message is done with.
    async fn acknowledge(self: Box<Self>) -> Result<()>;

    /// The message is for anyone, at once or after a wait.
    async fn give_back(self: Box<Self>, message: Message, after: Duration) -> Result<()>;
}

impl Delivery {
    /// By a queue, for what it delivers.
    pub fn new(lane: Lane, message: Message, redelivered: bool, receipt: Box<dyn Receipt>) -> Delivery {
        Delivery { lane, message, redelivered, receipt }
    }

    /// The message is done with: the ledger has its outcome, or does not want it. After an error it may be delivered
    /// once more.
    pub async fn acknowledge(self) -> Result<()> {
        self.receipt.acknowledge().await
    }

    /// Anyone may take it, now.
    pub async fn give_back(self) -> Result<()> {
        self.give_back_after(Duration::ZERO).await
    }

    /// Anyone may take it, not before this wait is over. A queue may wait longer, up to the next of [`RETRY_DELAYS`], and
    /// the longest of these for all that are longer. The message may be a narrower one than was delivered: change
    /// [`Delivery::message`] first.
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
