//! In-memory queue for a single process. See [`MemoryQueue`].

use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{AckHandle, Delivery, PRIORITY_CYCLE_TURNS, PublishResult, RouteFilter, TaskQueue};
use imgsync_model::batch::{BatchId, Message, Priority, Route};
use imgsync_oci::error::Result;

/// Default limit of ready messages per batch, priority and route.
pub const DEFAULT_ROUTE_CAPACITY: usize = 2_000;

/// A [`TaskQueue`] in memory. It serves batches of a priority in turn, and the routes of a batch in turn; four messages
/// of normal priority for one of low. Delays are exact. Cheap to clone; clones share the queue.
#[derive(Clone)]
pub struct MemoryQueue(Arc<Inner>);

struct Inner {
    route_capacity: usize,
    state: Mutex<QueueState>,
    /// Signals that a message is ready, or is due earlier than expected.
    message_available: Notify,
    /// Signals that a message was received.
    capacity_freed: Notify,
}

#[derive(Default)]
struct QueueState {
    /// Batches with ready messages for each of [`Priority::ALL`], the next one first.
    batches: [VecDeque<(BatchId, BatchQueues)>; 3],
    /// Counts of all messages received, and of those that were not urgent.
    turn_counts: [usize; 2],
    delayed: BinaryHeap<DelayedMessage>,
    /// Orders messages that are due at the same time.
    sequence: u64,
}

/// Ready messages of a batch by route, the next route first; none is empty.
#[derive(Default)]
struct BatchQueues(VecDeque<(Route, VecDeque<QueuedMessage>)>);

struct QueuedMessage {
    message: Message,
    redelivered: bool,
}

struct DelayedMessage {
    due: Instant,
    sequence: u64,
    route: Route,
    queued: QueuedMessage,
}

impl MemoryQueue {
    /// Creates an empty queue with a limit of [`DEFAULT_ROUTE_CAPACITY`] ready messages per batch and route.
    pub fn new() -> MemoryQueue {
        MemoryQueue::with_route_capacity(DEFAULT_ROUTE_CAPACITY)
    }

    /// Creates an empty queue with this limit of ready messages per batch and route; at least one.
    pub fn with_route_capacity(window: usize) -> MemoryQueue {
        MemoryQueue(Arc::new(Inner {
            route_capacity: window.max(1),
            state: Mutex::default(),
            message_available: Notify::new(),
            capacity_freed: Notify::new(),
        }))
    }
}

impl MemoryQueue {
    async fn receive_next(
        &self,
        routes: &RouteFilter,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Option<Delivery> {
        loop {
            if cancel.is_cancelled() {
                return None;
            }
            // Listen before looking, so that no arrival in between is missed.
            let arrived = self.0.message_available.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let next_due = {
                let mut state = self.0.state();
                if let Some((route, waiting)) = state.pop_next(routes, only_urgent) {
                    self.0.capacity_freed.notify_waiters();
                    let ack_handle = MemoryAckHandle {
                        queue: self.0.clone(),
                        unacknowledged: Some((route.clone(), waiting.message.clone())),
                    };
                    return Some(Delivery::new(route, waiting.message, waiting.redelivered, Box::new(ack_handle)));
                }
                state.next_due()
            };
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = arrived => {}
                () = due => {}
                () = cancel.cancelled() => return None,
            }
        }
    }
}

impl Default for MemoryQueue {
    fn default() -> MemoryQueue {
        MemoryQueue::new()
    }
}

impl fmt::Debug for MemoryQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryQueue")
    }
}

impl Inner {
    /// A panic elsewhere leaves the state consistent: nothing panics between two changes that belong together.
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requeue(&self, route: Route, waiting: QueuedMessage, after: Duration) {
        self.state().enqueue(route, waiting, after);
        // A single woken consumer may not serve this route.
        self.message_available.notify_waiters();
    }
}

impl QueueState {
    /// Enqueues regardless of the limit: messages that were received before may always return.
    fn enqueue(&mut self, route: Route, queued: QueuedMessage, after: Duration) {
        if after.is_zero() {
            self.route_queue(&queued.message, &route).push_back(queued);
        } else {
            self.sequence += 1;
            self.delayed.push(DelayedMessage { due: Instant::now() + after, sequence: self.sequence, route, queued });
        }
    }

    /// Returns the queue of a message's batch, priority and route.
    fn route_queue(&mut self, message: &Message, route: &Route) -> &mut VecDeque<QueuedMessage> {
        let batches = &mut self.batches[message.priority as usize];
        let at = batches.iter().position(|(id, _)| *id == message.batch).unwrap_or_else(|| {
            batches.push_back((message.batch, BatchQueues::default()));
            batches.len() - 1
        });
        let routes = &mut batches[at].1.0;
        let at = routes.iter().position(|(its, _)| its == route).unwrap_or_else(|| {
            routes.push_back((route.clone(), VecDeque::new()));
            routes.len() - 1
        });
        &mut routes[at].1
    }

    fn enqueue_due(&mut self) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|later| later.due <= now) {
            if let Some(DelayedMessage { route, queued, .. }) = self.delayed.pop() {
                self.enqueue(route, queued, Duration::ZERO);
            }
        }
    }

    /// Pops the next message of these routes; the turn decides which priority goes first.
    fn pop_next(&mut self, routes: &RouteFilter, only_urgent: bool) -> Option<(Route, QueuedMessage)> {
        self.enqueue_due();
        let [turn, plain_turn] = self.turn_counts.map(|turns| turns % PRIORITY_CYCLE_TURNS);
        let plain = match plain_turn + 1 == PRIORITY_CYCLE_TURNS {
            true => [Priority::Low, Priority::Normal],
            false => [Priority::Normal, Priority::Low],
        };
        let order = match turn + 1 == PRIORITY_CYCLE_TURNS {
            true => [plain[0], plain[1], Priority::High],
            false => [Priority::High, plain[0], plain[1]],
        };
        let wanted = order.into_iter().filter(|priority| priority.is_urgent() || !only_urgent);
        let (priority, taken) = wanted.into_iter().find_map(|one| Some((one, self.pop_priority(one, routes)?)))?;
        self.turn_counts[0] = self.turn_counts[0].wrapping_add(1);
        self.turn_counts[1] = self.turn_counts[1].wrapping_add(usize::from(!priority.is_urgent()));
        Some(taken)
    }

    /// Pops the next message of a priority; its batch, and its route within that, move to the end.
    fn pop_priority(&mut self, priority: Priority, routes: &RouteFilter) -> Option<(Route, QueuedMessage)> {
        let batches = &mut self.batches[priority as usize];
        let serves = |(route, _): &(Route, VecDeque<QueuedMessage>)| routes.contains(route);
        let at = batches.iter().position(|(_, batch)| batch.0.iter().any(serves))?;
        let (id, mut batch) = batches.remove(at)?;
        let at = batch.0.iter().position(serves)?;
        let (route, mut messages) = batch.0.remove(at)?;
        let taken = messages.pop_front()?;
        if !messages.is_empty() {
            batch.0.push_back((route.clone(), messages));
        }
        if !batch.0.is_empty() {
            batches.push_back((id, batch));
        }
        Some((route, taken))
    }

    fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|later| later.due)
    }
}

#[async_trait]
impl TaskQueue for MemoryQueue {
    async fn publish(&self, block: &[(Route, Message)]) -> Result<PublishResult> {
        let mut rejected = Vec::new();
        {
            let mut state = self.0.state();
            state.enqueue_due();
            for (position, (route, message)) in block.iter().enumerate() {
                let row = state.route_queue(message, route);
                if row.len() >= self.0.route_capacity {
                    rejected.push(position);
                } else {
                    row.push_back(QueuedMessage { message: message.clone(), redelivered: false });
                }
            }
        }
        self.0.message_available.notify_waiters();
        Ok(PublishResult { rejected })
    }

    async fn publish_delayed(&self, route: &Route, message: &Message, wait: Duration) -> Result<()> {
        self.0.requeue(route.clone(), QueuedMessage { message: message.clone(), redelivered: true }, wait);
        Ok(())
    }

    async fn wait_for_capacity(&self) {
        // Half a second, in case a message was received before this began to wait.
        _ = tokio::time::timeout(Duration::from_millis(500), self.0.capacity_freed.notified()).await;
    }

    async fn receive(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        Ok(self.receive_next(routes, false, cancel).await)
    }

    async fn receive_urgent(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        Ok(self.receive_next(routes, true, cancel).await)
    }

    async fn is_alive(&self) -> bool {
        true
    }

    async fn count_ready(&self, routes: &[Route]) -> Result<Vec<u64>> {
        let mut state = self.0.state();
        state.enqueue_due();
        let count = |route: &Route| {
            let rows = state.batches.iter().flatten().flat_map(|(_, batch)| &batch.0);
            rows.filter(|(its, _)| its == route).map(|(_, messages)| messages.len() as u64).sum()
        };
        Ok(routes.iter().map(count).collect())
    }
}

struct MemoryAckHandle {
    queue: Arc<Inner>,
    unacknowledged: Option<(Route, Message)>,
}

#[async_trait]
impl AckHandle for MemoryAckHandle {
    async fn acknowledge(mut self: Box<Self>) -> Result<()> {
        self.unacknowledged = None;
        Ok(())
    }

    async fn requeue(mut self: Box<Self>, message: Message, after: Duration) -> Result<()> {
        if let Some((route, _)) = self.unacknowledged.take() {
            self.queue.requeue(route, QueuedMessage { message, redelivered: true }, after);
        }
        Ok(())
    }
}

impl Drop for MemoryAckHandle {
    fn drop(&mut self) {
        if let Some((route, message)) = self.unacknowledged.take() {
            self.queue.requeue(route, QueuedMessage { message, redelivered: true }, Duration::ZERO);
        }
    }
}

impl Ord for DelayedMessage {
    fn cmp(&self, other: &DelayedMessage) -> std::cmp::Ordering {
        // The heap pops the greatest first: the soonest is the greatest.
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for DelayedMessage {
    fn partial_cmp(&self, other: &DelayedMessage) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for DelayedMessage {
    fn eq(&self, other: &DelayedMessage) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for DelayedMessage {}

#[cfg(test)]
mod tests {
    use super::super::contract::{QueueUnderTest, message};
    use super::*;

    async fn make() -> QueueUnderTest {
        QueueUnderTest {
            queue: Arc::new(MemoryQueue::with_route_capacity(1_000)),
            capacity: 1_000,
            min_delay: Duration::from_millis(30),
            guard: Box::new(()),
        }
    }

    crate::queue_contract_tests!(make);

    #[tokio::test]
    async fn a_batch_is_rejected_beyond_its_capacity_and_another_is_not() {
        let queue = MemoryQueue::with_route_capacity(2);
        let (large, small) = (BatchId::generate(), BatchId::generate());
        let block: Vec<_> = (0..4).map(|index| message("gcr.io", large, index)).collect();
        assert_eq!(queue.publish(&block).await.unwrap().rejected, [2, 3]);
        assert_eq!(queue.publish(&[message("gcr.io", small, 0)]).await.unwrap().rejected, [0usize; 0]);
        assert_eq!(queue.publish(&[message("quay.io", large, 5)]).await.unwrap().rejected, [0usize; 0]);
    }

    #[tokio::test]
    async fn four_messages_of_normal_priority_come_for_one_of_low() {
        let queue = MemoryQueue::new();
        let batches = [Priority::Low, Priority::Normal].map(|priority| (priority, BatchId::generate()));
        for (priority, batch) in batches {
            let block = (0..50).map(|index| message("gcr.io", batch, index));
            let block: Vec<_> = block.map(|(route, message)| (route, Message { priority, ..message })).collect();
            queue.publish(&block).await.unwrap();
        }
        let cancel = CancellationToken::new();
        let mut low = 0;
        for _ in 0..50 {
            let delivery = queue.receive(&RouteFilter::All, &cancel).await.unwrap().unwrap();
            low += usize::from(delivery.message.priority == Priority::Low);
            delivery.acknowledge().await.unwrap();
        }
        assert_eq!(low, 10);
    }

    #[tokio::test]
    async fn many_routes_of_one_batch_have_no_more_turns_than_one_of_another() {
        let queue = MemoryQueue::new();
        let (wide, narrow) = (BatchId::generate(), BatchId::generate());
        for route in 0..10 {
            let block: Vec<_> = (0..10).map(|index| message(&format!("r{route}.io"), wide, index)).collect();
            queue.publish(&block).await.unwrap();
        }
        queue.publish(&(0..5).map(|index| message("gcr.io", narrow, index)).collect::<Vec<_>>()).await.unwrap();
        let cancel = CancellationToken::new();
        let mut of_narrow = 0;
        for _ in 0..10 {
            let delivery = queue.receive(&RouteFilter::All, &cancel).await.unwrap().unwrap();
            of_narrow += usize::from(delivery.message.batch == narrow);
            delivery.acknowledge().await.unwrap();
        }
        assert_eq!(of_narrow, 5);
    }
}
