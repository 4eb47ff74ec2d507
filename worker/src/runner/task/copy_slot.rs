//! The slots in which tasks copy. A task needs none while it compares source and target.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use imgsync_model::batch::Priority;
use imgsync_oci::error::{Error, Result};
use imgsync_store::BatchState;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::super::in_flight::InFlightMessage;
use super::super::{Runner, Shutdown};
use super::LeasedTask;

/// Slots of a runner.
pub(in crate::runner) struct CopySlots {
    permits: Arc<Semaphore>,
    /// Number of tasks of high priority that wait for a slot.
    urgent_waiters: AtomicUsize,
}

/// Counts a waiting task of high priority until dropped.
struct UrgentWaiter<'a>(&'a AtomicUsize);

impl Drop for UrgentWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CopySlots {
    pub(in crate::runner) fn new(slots: usize) -> CopySlots {
        CopySlots { permits: Arc::new(Semaphore::new(slots.max(1))), urgent_waiters: AtomicUsize::new(0) }
    }

    /// Returns a slot that is free at once.
    fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Waits for a slot. Tasks of high priority get one before all others; returns `None` if there are no slots.
    async fn acquire(&self, priority: Priority) -> Option<OwnedSemaphorePermit> {
        let is_urgent = priority == Priority::High;
        let _waiter = is_urgent.then(|| {
            self.urgent_waiters.fetch_add(1, Ordering::Relaxed);
            UrgentWaiter(&self.urgent_waiters)
        });
        loop {
            let permit = self.permits.clone().acquire_owned().await.ok()?;
            if is_urgent || self.urgent_waiters.load(Ordering::Relaxed) == 0 {
                return Some(permit);
            }
            // The next that waits gets it, and this task waits behind all others.
            drop(permit);
            tokio::task::yield_now().await;
        }
    }
}

/// Slot of one task, held from the first copy to the end of the task.
pub(super) struct CopySlot {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    has_own_slot: bool,
    /// Stops the wait for a permit.
    drain: CancellationToken,
    is_given_back: AtomicBool,
    /// In microseconds.
    waited: AtomicU64,
}

impl CopySlot {
    pub(super) fn new(delivered: &InFlightMessage, stop: &Shutdown) -> CopySlot {
        CopySlot {
            permit: Mutex::default(),
            has_own_slot: delivered.has_own_slot,
            drain: stop.drain.clone(),
            is_given_back: AtomicBool::new(false),
            waited: AtomicU64::new(0),
        }
    }

    /// Whether the task did not get a slot because the worker shuts down or its batch was paused: it goes back to the
    /// plan.
    pub(super) fn is_given_back(&self) -> bool {
        self.is_given_back.load(Ordering::Relaxed)
    }

    /// Returns how long the task has waited for the slot.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Ordering::Relaxed))
    }
}

impl Runner {
    /// Waits until a task may copy, unless it has its slot. A cancelled task and a worker that shuts down do not wait,
    /// and if the batch was paused meanwhile, the task goes back to the plan.
    pub(in crate::runner) async fn acquire_copy_slot(&self, task: &LeasedTask<'_>) -> Result<()> {
        let CopySlot { permit, has_own_slot, drain, is_given_back, waited } = &task.copy_slot;
        let mut permit = permit.lock().await;
        if *has_own_slot || permit.is_some() {
            return Ok(());
        }
        *permit = self.copy_slots.try_acquire();
        if permit.is_some() {
            return Ok(());
        }
        let cancelled = || Error::cancelled(format!("copying {}", task.message.source));
        let began = Instant::now();
        let acquired = tokio::select! {
            biased;
            () = task.context.cancel.cancelled() => None,
            () = drain.cancelled() => {
                is_given_back.store(true, Ordering::Relaxed);
                None
            }
            acquired = self.copy_slots.acquire(task.message.priority) => acquired,
        };
        waited.fetch_add(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let acquired = acquired.ok_or_else(cancelled)?;
        let batch = self.store.batch(task.task_ref.batch).await?;
        if batch.is_some_and(|batch| batch.state == BatchState::Paused) {
            is_given_back.store(true, Ordering::Relaxed);
            return Err(cancelled());
        }
        *permit = Some(acquired);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_task_of_high_priority_gets_a_slot_before_those_that_wait_longer() {
        let slots = CopySlots::new(1);
        let held = slots.acquire(Priority::Normal).await.unwrap();
        let (mut first, mut second) = (pin!(slots.acquire(Priority::Normal)), pin!(slots.acquire(Priority::Low)));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        let mut urgent = pin!(slots.acquire(Priority::High));
        assert!(poll!(&mut urgent).is_pending());
        drop(held);
        // Each of the others passes the slot on.
        let held = loop {
            assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
            if let Poll::Ready(permit) = poll!(&mut urgent) {
                break permit.unwrap();
            }
        };
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        drop(held);
        let (first, second) = tokio::join!(async { first.await.map(drop) }, async { second.await.map(drop) });
        assert!(first.is_some() && second.is_some());
    }

    #[tokio::test]
    async fn an_urgent_task_that_stops_waiting_holds_up_no_other() {
        let slots = CopySlots::new(1);
        let held = slots.acquire(Priority::Normal).await.unwrap();
        let mut waiting = Box::pin(slots.acquire(Priority::Normal));
        let mut urgent = Box::pin(slots.acquire(Priority::High));
        assert!(poll!(&mut waiting).is_pending() && poll!(&mut urgent).is_pending());
        drop(urgent);
        drop(held);
        assert!(waiting.await.is_some());
    }
}
