//! The slot in which a task copies. A task needs none while it compares source and target.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgsync_oci::error::{Error, Result};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::super::Shutdown;
use super::super::in_flight::InFlightMessage;
use super::LeasedTask;

/// Slot of one task, held from the first copy to the end of the task.
pub(super) struct CopySlot {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    has_own_slot: bool,
    /// Stops the wait for a permit.
    drain: CancellationToken,
    was_drained: AtomicBool,
    /// In microseconds.
    waited: AtomicU64,
}

impl CopySlot {
    pub(super) fn new(delivered: &InFlightMessage, stop: &Shutdown) -> CopySlot {
        CopySlot {
            permit: Mutex::default(),
            has_own_slot: delivered.has_own_slot,
            drain: stop.drain.clone(),
            was_drained: AtomicBool::new(false),
            waited: AtomicU64::new(0),
        }
    }

    /// Whether a shutdown ended the wait for the slot: another worker, or the next run, may take the task.
    pub(super) fn was_drained(&self) -> bool {
        self.was_drained.load(Ordering::Relaxed)
    }

    /// Returns how long the task has waited for the slot.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Ordering::Relaxed))
    }
}

impl LeasedTask<'_> {
    /// Waits until the task may copy, unless it has its slot. A cancelled task and a worker that shuts down do not wait.
    pub(in crate::runner) async fn acquire_copy_slot(&self, slots: &Arc<Semaphore>) -> Result<()> {
        let CopySlot { permit, has_own_slot, drain, was_drained, waited } = &self.copy_slot;
        let mut permit = permit.lock().await;
        if *has_own_slot || permit.is_some() {
            return Ok(());
        }
        let began = Instant::now();
        let acquired = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => None,
            () = drain.cancelled() => {
                was_drained.store(true, Ordering::Relaxed);
                None
            }
            acquired = slots.clone().acquire_owned() => acquired.ok(),
        };
        waited.fetch_add(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        *permit = Some(acquired.ok_or_else(|| Error::cancelled(format!("copying {}", self.message.source)))?);
        Ok(())
    }
}
