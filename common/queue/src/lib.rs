//! Task queues: transport from the plan to the workers.
//!
//! A [`TaskQueue`] is only a transport. The ledger ([`imgsync_store::Ledger`]) knows which tasks are done: it absorbs
//! duplicate deliveries and plans lost tasks again.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(test)]
mod end_to_end_tests;
mod limits;
mod memory;
mod rabbitmq;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use imgsync_model::batch::{Message, Route};
use imgsync_oci::error::Result;

pub use limits::limits;
pub use memory::{DEFAULT_ROUTE_CAPACITY, MemoryQueue};
pub(crate) use rabbitmq::{MAX_REFUSED_BYTES, MAX_REFUSED_MESSAGES};
pub use rabbitmq::{RabbitQueue, RabbitSettings};

/// Length of the priority cycle: high priority goes first in all turns but one of so many, so that nothing starves.
pub const PRIORITY_CYCLE_TURNS: usize = 5;

/// Delays before redelivery that every queue offers, shortest first.
pub const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(5 * 60), Duration::from_secs(30 * 60)];

/// Selects the routes that a worker consumes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteFilter {
    /// All routes.
    All,
    /// Only these.
    Only(BTreeSet<Route>),
    /// All but these, which are paused or out of reach.
    Except(BTreeSet<Route>),
}

impl RouteFilter {
    /// Returns whether a route is selected.
    pub fn contains(&self, route: &Route) -> bool {
        match self {
            RouteFilter::All => true,
            RouteFilter::Only(routes) => routes.contains(route),
            RouteFilter::Except(routes) => !routes.contains(route),
        }
    }
}

/// Result of publishing a block of messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishResult {
    /// Positions in the block of messages that the queue had no room for. It accepted all others.
    pub rejected: Vec<usize>,
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
///   [`PRIORITY_CYCLE_TURNS`].
/// - **Bounded.** Messages without room are rejected, not dropped; one batch does not use up the room of another for
///   ever.
/// - A queue never reads the ledger, and a ready message may be obsolete.
/// - All methods are safe to call concurrently; a call that is dropped early loses no message, though its messages may
///   have been published.
#[async_trait]
pub trait TaskQueue: Send + Sync {
    /// Publishes a block of messages, and returns when each is confirmed or rejected. After an error any of them may or
    /// may not have been accepted: publish them again.
    async fn publish(&self, block: &[(Route, Message)]) -> Result<PublishResult>;

    /// Publishes one message that was received before, for delivery after `wait` at the earliest. A queue may delay it
    /// longer, as for [`Delivery::requeue_after`]. A message without a delay bypasses the limits of its batch: it is
    /// rejected only if the queue itself is full.
    async fn publish_delayed(&self, route: &Route, message: &Message, wait: Duration) -> Result<()>;

    /// Waits until it may be worth publishing rejected messages again. May return early.
    async fn wait_for_capacity(&self);

    /// Waits for a message of these routes; returns `None` if cancelled first. Acquire a slot first, then receive: a
    /// delivery is withheld from other workers.
    async fn receive(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// Receives like [`TaskQueue::receive`], from high priority only.
    async fn receive_urgent(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>>;

    /// Returns whether the queue responds now, whatever the state of the store. May wait for as long as it does not:
    /// callers set a time limit.
    async fn is_alive(&self) -> bool;

    /// Returns the number of ready messages of each route, of all priorities; unacknowledged and delayed ones are not
    /// counted.
    async fn count_ready(&self, routes: &[Route]) -> Result<Vec<u64>>;

    /// Returns the next dead letter: a message that was delivered too often without an acknowledgement. `None` if there
    /// is none now, or ever.
    async fn receive_dead_letter(&self, _cancel: &CancellationToken) -> Result<Option<DeadLetter>> {
        Ok(None)
    }
}

/// A message, withheld from others until it is acknowledged or requeued. Dropped, it is redelivered.
pub struct Delivery {
    /// The route.
    pub route: Route,
    /// The message.
    pub message: Message,
    /// Whether it may have been delivered before. A hint: the ledger's lease decides.
    pub redelivered: bool,
    ack_handle: Box<dyn AckHandle>,
}

/// A message that the broker dead-lettered. Dropped, it is delivered again.
pub struct DeadLetter {
    /// The route.
    pub route: Route,
    /// The message.
    pub message: Message,
    /// The broker's reason.
    pub reason: String,
    ack_handle: Box<dyn AckHandle>,
}

impl DeadLetter {
    /// Creates a dead letter; called by queues.
    pub fn new(route: Route, message: Message, reason: String, ack_handle: Box<dyn AckHandle>) -> DeadLetter {
        DeadLetter { route, message, reason, ack_handle }
    }

    /// Acknowledges the dead letter.
    pub async fn acknowledge(self) -> Result<()> {
        self.ack_handle.acknowledge().await
    }
}

/// A queue's side of a [`Delivery`]. Dropped without a call, the message is redelivered.
#[async_trait]
pub trait AckHandle: Send {
    /// Acknowledges the message.
    async fn acknowledge(self: Box<Self>) -> Result<()>;

    /// Returns the message to the queue, at once or after a delay.
    async fn requeue(self: Box<Self>, message: Message, after: Duration) -> Result<()>;
}

impl Delivery {
    /// Creates a delivery; called by queues.
    pub fn new(route: Route, message: Message, redelivered: bool, ack_handle: Box<dyn AckHandle>) -> Delivery {
        Delivery { route, message, redelivered, ack_handle }
    }

    /// Acknowledges the message: the ledger has its result, or does not need it. After an error it may be redelivered.
    pub async fn acknowledge(self) -> Result<()> {
        self.ack_handle.acknowledge().await
    }

    /// Returns the message to the queue at once.
    pub async fn requeue(self) -> Result<()> {
        self.requeue_after(Duration::ZERO).await
    }

    /// Returns the message to the queue for delivery after `wait` at the earliest. A queue may delay it longer, up to
    /// the next of [`RETRY_DELAYS`], and uses the longest of these for all longer waits. To return a message with fewer
    /// targets, change [`Delivery::message`] first.
    pub async fn requeue_after(self, wait: Duration) -> Result<()> {
        self.ack_handle.requeue(self.message, wait).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("route", &self.route)
            .field("message", &self.message)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}
