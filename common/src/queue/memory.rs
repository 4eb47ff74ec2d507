//! In-memory queue for a single process. See [`MemoryQueue`].

use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Lanes, Published, Receipt, TaskQueue, URGENT_TURNS};
use crate::batch::{BatchId, Lane, Message, Priority};
use crate::error::Result;

/// Default limit of ready messages per batch, priority and route.
pub const WINDOW: usize = 2_000;

/// A [`TaskQueue`] in memory. It serves batches of a priority in turn, and the routes of a batch in turn; four messages
/// of normal priority for one of low. Delays are exact. Cheap to clone; clones share the queue.
#[derive(Clone)]
pub struct MemoryQueue(Arc<Shared>);

struct Shared {
    window: usize,
    state: Mutex<State>,
    /// Signals that a message is ready, or is due earlier than expected.
    arrived: Notify,
    /// Signals that a message was received.
    left: Notify,
}

#[derive(Default)]
struct State {
    /// Batches with ready messages for each of [`Priority::ALL`], the next one first.
    batches: [VecDeque<(BatchId, OfBatch)>; 3],
    /// Counts of all messages received, and of those that were not urgent.
    turns: [usize; 2],
    later: BinaryHeap<Later>,
    /// Orders messages that are due at the same time.
    sequence: u64,
}

/// Ready messages of a batch by route, the next route first; none is empty.
#[derive(Default)]
struct OfBatch(VecDeque<(Lane, VecDeque<Waiting>)>);

struct Waiting {
    message: Message,
    redelivered: bool,
}

struct Later {
    due: Instant,
    sequence: u64,
    lane: Lane,
    waiting: Waiting,
}

impl MemoryQueue {
    /// Creates an empty queue with a limit of [`WINDOW`] ready messages per batch and route.
    pub fn new() -> MemoryQueue {
        MemoryQueue::with_window(WINDOW)
    }

    /// Creates an empty queue with this limit of ready messages per batch and route; at least one.
    pub fn with_window(window: usize) -> MemoryQueue {
        MemoryQueue(Arc::new(Shared {
            window: window.max(1),
            state: Mutex::default(),
            arrived: Notify::new(),
            left: Notify::new(),
        }))
    }
}

impl MemoryQueue {
    async fn take_next(&self, lanes: &Lanes, only_urgent: bool, cancel: &CancellationToken) -> Option<Delivery> {
        loop {
            if cancel.is_cancelled() {
                return None;
            }
            // Listen before looking, so that no arrival in between is missed.
            let arrived = self.0.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let next_due = {
                let mut state = self.0.state();
                if let Some((lane, waiting)) = state.take(lanes, only_urgent) {
                    self.0.left.notify_waiters();
                    let receipt =
                        MemoryReceipt { queue: self.0.clone(), held: Some((lane.clone(), waiting.message.clone())) };
                    return Some(Delivery::new(lane, waiting.message, waiting.redelivered, Box::new(receipt)));
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

impl Shared {
    /// A panic elsewhere leaves the state consistent: nothing panics between two changes that belong together.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, lane: Lane, waiting: Waiting, after: Duration) {
        self.state().put(lane, waiting, after);
        // A single woken consumer may not serve this route.
        self.arrived.notify_waiters();
    }
}

impl State {
    /// Enqueues regardless of the limit: messages that were received before may always return.
    fn put(&mut self, lane: Lane, waiting: Waiting, after: Duration) {
        if after.is_zero() {
            self.row(&waiting.message, &lane).push_back(waiting);
        } else {
            self.sequence += 1;
            self.later.push(Later { due: Instant::now() + after, sequence: self.sequence, lane, waiting });
        }
    }

    /// Returns the queue of a message's batch, priority and route.
    fn row(&mut self, message: &Message, lane: &Lane) -> &mut VecDeque<Waiting> {
        let batches = &mut self.batches[message.priority as usize];
        let at = batches.iter().position(|(id, _)| *id == message.batch).unwrap_or_else(|| {
            batches.push_back((message.batch, OfBatch::default()));
            batches.len() - 1
        });
        let lanes = &mut batches[at].1.0;
        let at = lanes.iter().position(|(its, _)| its == lane).unwrap_or_else(|| {
            lanes.push_back((lane.clone(), VecDeque::new()));
            lanes.len() - 1
        });
        &mut lanes[at].1
    }

    fn wake_those_due(&mut self) {
        let now = Instant::now();
        while self.later.peek().is_some_and(|later| later.due <= now) {
            if let Some(Later { lane, waiting, .. }) = self.later.pop() {
                self.put(lane, waiting, Duration::ZERO);
            }
        }
    }

    /// Pops the next message of these routes; the turn decides which priority goes first.
    fn take(&mut self, lanes: &Lanes, only_urgent: bool) -> Option<(Lane, Waiting)> {
        self.wake_those_due();
        let [turn, plain_turn] = self.turns.map(|turns| turns % URGENT_TURNS);
        let plain = match plain_turn + 1 == URGENT_TURNS {
            true => [Priority::Low, Priority::Normal],
            false => [Priority::Normal, Priority::Low],
        };
        let order = match turn + 1 == URGENT_TURNS {
            true => [plain[0], plain[1], Priority::High],
            false => [Priority::High, plain[0], plain[1]],
        };
        let wanted = order.into_iter().filter(|priority| priority.is_urgent() || !only_urgent);
        let (priority, taken) = wanted.into_iter().find_map(|one| Some((one, self.take_of(one, lanes)?)))?;
        self.turns[0] = self.turns[0].wrapping_add(1);
        self.turns[1] = self.turns[1].wrapping_add(usize::from(!priority.is_urgent()));
        Some(taken)
    }

    /// Pops the next message of a priority; its batch, and its route within that, move to the end.
    fn take_of(&mut self, priority: Priority, lanes: &Lanes) -> Option<(Lane, Waiting)> {
        let batches = &mut self.batches[priority as usize];
        let serves = |(lane, _): &(Lane, VecDeque<Waiting>)| lanes.contains(lane);
        let at = batches.iter().position(|(_, batch)| batch.0.iter().any(serves))?;
        let (id, mut batch) = batches.remove(at)?;
        let at = batch.0.iter().position(serves)?;
        let (lane, mut messages) = batch.0.remove(at)?;
        let taken = messages.pop_front()?;
        if !messages.is_empty() {
            batch.0.push_back((lane.clone(), messages));
        }
        if !batch.0.is_empty() {
            batches.push_back((id, batch));
        }
        Some((lane, taken))
    }

    fn next_due(&self) -> Option<Instant> {
        self.later.peek().map(|later| later.due)
    }
}

#[async_trait]
impl TaskQueue for MemoryQueue {
    async fn publish(&self, block: &[(Lane, Message)]) -> Result<Published> {
        let mut refused = Vec::new();
        {
            let mut state = self.0.state();
            state.wake_those_due();
            for (position, (lane, message)) in block.iter().enumerate() {
                let row = state.row(message, lane);
                if row.len() >= self.0.window {
                    refused.push(position);
                } else {
                    row.push_back(Waiting { message: message.clone(), redelivered: false });
                }
            }
        }
        self.0.arrived.notify_waiters();
        Ok(Published { refused })
    }

    async fn publish_later(&self, lane: &Lane, message: &Message, wait: Duration) -> Result<()> {
        self.0.put_back(lane.clone(), Waiting { message: message.clone(), redelivered: true }, wait);
        Ok(())
    }

    async fn room(&self) {
        // Half a second, in case a message was received before this began to wait.
        _ = tokio::time::timeout(Duration::from_millis(500), self.0.left.notified()).await;
    }

    async fn take(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        Ok(self.take_next(lanes, false, cancel).await)
    }

    async fn take_urgent(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        Ok(self.take_next(lanes, true, cancel).await)
    }

    async fn waiting(&self, lanes: &[Lane]) -> Result<Vec<u64>> {
        let mut state = self.0.state();
        state.wake_those_due();
        let count = |lane: &Lane| {
            let rows = state.batches.iter().flatten().flat_map(|(_, batch)| &batch.0);
            rows.filter(|(its, _)| its == lane).map(|(_, messages)| messages.len() as u64).sum()
        };
        Ok(lanes.iter().map(count).collect())
    }
}

struct MemoryReceipt {
    queue: Arc<Shared>,
    held: Option<(Lane, Message)>,
}

#[async_trait]
impl Receipt for MemoryReceipt {
    async fn acknowledge(mut self: Box<Self>) -> Result<()> {
        self.held = None;
        Ok(())
    }

    async fn give_back(mut self: Box<Self>, message: Message, after: Duration) -> Result<()> {
        if let Some((lane, _)) = self.held.take() {
            self.queue.put_back(lane, Waiting { message, redelivered: true }, after);
        }
        Ok(())
    }
}

impl Drop for MemoryReceipt {
    fn drop(&mut self) {
        if let Some((lane, message)) = self.held.take() {
            self.queue.put_back(lane, Waiting { message, redelivered: true }, Duration::ZERO);
        }
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Later) -> std::cmp::Ordering {
        // The heap pops the greatest first: the soonest is the greatest.
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Later) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Later {
    fn eq(&self, other: &Later) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Later {}

#[cfg(test)]
mod tests {
    use super::super::contract::{Subject, message};
    use super::*;

    async fn make() -> Subject {
        Subject {
            queue: Arc::new(MemoryQueue::with_window(1_000)),
            room: 1_000,
            shortest_wait: Duration::from_millis(30),
            guard: Box::new(()),
        }
    }

    crate::queue_contract_tests!(make);

    #[tokio::test]
    async fn a_batch_is_refused_beyond_its_window_and_another_is_not() {
        let queue = MemoryQueue::with_window(2);
        let (large, small) = (BatchId::generate(), BatchId::generate());
        let block: Vec<_> = (0..4).map(|index| message("gcr.io", large, index)).collect();
        assert_eq!(queue.publish(&block).await.unwrap().refused, [2, 3]);
        assert_eq!(queue.publish(&[message("gcr.io", small, 0)]).await.unwrap().refused, [0usize; 0]);
        assert_eq!(queue.publish(&[message("quay.io", large, 5)]).await.unwrap().refused, [0usize; 0]);
    }

    #[tokio::test]
    async fn four_messages_of_normal_priority_come_for_one_of_low() {
        let queue = MemoryQueue::new();
        let batches = [Priority::Low, Priority::Normal].map(|priority| (priority, BatchId::generate()));
        for (priority, batch) in batches {
            let block = (0..50).map(|index| message("gcr.io", batch, index));
            let block: Vec<_> = block.map(|(lane, message)| (lane, Message { priority, ..message })).collect();
            queue.publish(&block).await.unwrap();
        }
        let cancel = CancellationToken::new();
        let mut low = 0;
        for _ in 0..50 {
            let delivery = queue.take(&Lanes::All, &cancel).await.unwrap().unwrap();
            low += usize::from(delivery.message.priority == Priority::Low);
            delivery.acknowledge().await.unwrap();
        }
        assert_eq!(low, 10);
    }

    #[tokio::test]
    async fn many_lanes_of_one_batch_have_no_more_turns_than_one_of_another() {
        let queue = MemoryQueue::new();
        let (wide, narrow) = (BatchId::generate(), BatchId::generate());
        for lane in 0..10 {
            let block: Vec<_> = (0..10).map(|index| message(&format!("r{lane}.io"), wide, index)).collect();
            queue.publish(&block).await.unwrap();
        }
        queue.publish(&(0..5).map(|index| message("gcr.io", narrow, index)).collect::<Vec<_>>()).await.unwrap();
        let cancel = CancellationToken::new();
        let mut of_narrow = 0;
        for _ in 0..10 {
            let delivery = queue.take(&Lanes::All, &cancel).await.unwrap().unwrap();
            of_narrow += usize::from(delivery.message.batch == narrow);
            delivery.acknowledge().await.unwrap();
        }
        assert_eq!(of_narrow, 5);
    }
}
