//! A semaphore whose number of permits can change while permits are held.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// A resizable semaphore, fair in the order of requests. Cheap to clone; clones share the permits.
#[derive(Debug, Clone)]
pub(crate) struct ResizableSemaphore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    semaphore: Arc<Semaphore>,
    state: Mutex<PermitCounts>,
    waiters: AtomicUsize,
}

#[derive(Debug)]
struct PermitCounts {
    /// Number of permits there should be.
    limit: usize,
    /// Number of permits there are, held or free: above `limit` until enough holders drop theirs.
    issued: usize,
    /// Peak of permits held or waited for, since this was last read.
    peak: usize,
}

/// A permit, held until dropped.
#[derive(Debug)]
pub(crate) struct Permit(ResizableSemaphore);

impl ResizableSemaphore {
    pub(crate) fn new(number: usize) -> ResizableSemaphore {
        let number = number.min(Semaphore::MAX_PERMITS);
        ResizableSemaphore(Arc::new(Inner {
            semaphore: Arc::new(Semaphore::new(number)),
            state: Mutex::new(PermitCounts { limit: number, issued: number, peak: 0 }),
            waiters: AtomicUsize::new(0),
        }))
    }

    /// Creates a semaphore with the largest possible number of permits.
    pub(crate) fn unlimited() -> ResizableSemaphore {
        ResizableSemaphore::new(Semaphore::MAX_PERMITS)
    }

    /// Sets the number of permits. Permits already issued stay valid until dropped.
    pub(crate) fn set_limit(&self, number: usize) {
        let number = number.min(Semaphore::MAX_PERMITS);
        let mut state = self.state();
        state.limit = number;
        if number > state.issued {
            self.0.semaphore.add_permits(number - state.issued);
            state.issued = number;
        } else {
            state.issued -= self.0.semaphore.forget_permits(state.issued - number);
        }
    }

    /// Acquires a permit if one is free now.
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        self.0.semaphore.try_acquire().ok()?.forget();
        Some(self.issue())
    }

    /// Acquires a permit, waiting for one.
    pub(crate) async fn acquire(&self) -> Permit {
        let _waiting = WaiterGuard::register(&self.0.waiters);
        {
            let (in_use, waiting) = (self.in_use(), self.waiters());
            let mut state = self.state();
            state.peak = state.peak.max(in_use + waiting);
        }
        // The semaphore is never closed.
        if let Ok(permit) = self.0.semaphore.acquire().await {
            permit.forget();
        }
        self.issue()
    }

    /// Acquires a permit without waiting, adding one if none is free: for callers that must not wait.
    pub(crate) fn force_acquire(&self) -> Permit {
        self.try_acquire().unwrap_or_else(|| {
            self.state().issued += 1;
            self.issue()
        })
    }

    fn issue(&self) -> Permit {
        let in_use = self.in_use();
        let mut state = self.state();
        state.peak = state.peak.max(in_use);
        drop(state);
        Permit(self.clone())
    }

    /// Returns the number of permits held.
    pub(crate) fn in_use(&self) -> usize {
        let state = self.state();
        state.issued.saturating_sub(self.0.semaphore.available_permits())
    }

    /// Returns the number of callers waiting.
    pub(crate) fn waiters(&self) -> usize {
        self.0.waiters.load(Ordering::Relaxed)
    }

    /// Returns the peak of permits held or waited for since the last call.
    pub(crate) fn take_peak(&self) -> usize {
        let now = self.in_use() + self.waiters();
        std::mem::replace(&mut self.state().peak, now).max(now)
    }

    fn state(&self) -> MutexGuard<'_, PermitCounts> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        match state.issued > state.limit {
            true => state.issued -= 1,
            false => self.0.0.semaphore.add_permits(1),
        }
    }
}

/// Counts a caller as waiting until dropped.
struct WaiterGuard<'a>(&'a AtomicUsize);

impl WaiterGuard<'_> {
    fn register(count: &AtomicUsize) -> WaiterGuard<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        WaiterGuard(count)
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shrinking_keeps_issued_permits_and_growing_adds_permits_at_once() {
        let semaphore = ResizableSemaphore::new(3);
        let in_use = [semaphore.acquire().await, semaphore.acquire().await, semaphore.acquire().await];
        assert!(semaphore.try_acquire().is_none());
        semaphore.set_limit(1);
        assert_eq!((semaphore.in_use(), semaphore.take_peak()), (3, 3));
        let [first, second, third] = in_use;
        drop(first);
        drop(second);
        assert!(semaphore.try_acquire().is_none(), "the third has the only one");
        drop(third);
        let one = semaphore.try_acquire().unwrap();
        assert!(semaphore.try_acquire().is_none());
        semaphore.set_limit(2);
        let two = semaphore.try_acquire().unwrap();
        let squeezed = semaphore.force_acquire();
        assert_eq!(semaphore.in_use(), 3);
        drop((one, two, squeezed));
        assert_eq!(semaphore.in_use(), 0);
        assert!(semaphore.try_acquire().is_some());
    }
}
