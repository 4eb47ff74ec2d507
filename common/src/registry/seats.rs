//! A semaphore whose number of permits can change while permits are held.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// A resizable semaphore, fair in the order of requests. Cheap to clone; clones share the permits.
#[derive(Debug, Clone)]
pub(crate) struct Seats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Arc<Semaphore>,
    state: Mutex<State>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Number of permits there should be.
    wanted: usize,
    /// Number of permits there are, held or free: above `wanted` until enough holders drop theirs.
    made: usize,
    /// Peak of permits held or waited for, since this was last read.
    most: usize,
}

/// A permit, held until dropped.
#[derive(Debug)]
pub(crate) struct Seat(Seats);

impl Seats {
    pub(crate) fn new(number: usize) -> Seats {
        let number = number.min(Semaphore::MAX_PERMITS);
        Seats(Arc::new(Inner {
            free: Arc::new(Semaphore::new(number)),
            state: Mutex::new(State { wanted: number, made: number, most: 0 }),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Creates a semaphore with the largest possible number of permits.
    pub(crate) fn unlimited() -> Seats {
        Seats::new(Semaphore::MAX_PERMITS)
    }

    /// Sets the number of permits. Permits already issued stay valid until dropped.
    pub(crate) fn set(&self, number: usize) {
        let number = number.min(Semaphore::MAX_PERMITS);
        let mut state = self.state();
        state.wanted = number;
        if number > state.made {
            self.0.free.add_permits(number - state.made);
            state.made = number;
        } else {
            state.made -= self.0.free.forget_permits(state.made - number);
        }
    }

    /// Acquires a permit if one is free now.
    pub(crate) fn try_take(&self) -> Option<Seat> {
        self.0.free.try_acquire().ok()?.forget();
        Some(self.sit())
    }

    /// Acquires a permit, waiting for one.
    pub(crate) async fn take(&self) -> Seat {
        let _waiting = Waiting::begin(&self.0.waiting);
        {
            let (taken, waiting) = (self.taken(), self.waiting());
            let mut state = self.state();
            state.most = state.most.max(taken + waiting);
        }
        // The semaphore is never closed.
        if let Ok(permit) = self.0.free.acquire().await {
            permit.forget();
        }
        self.sit()
    }

    /// Acquires a permit without waiting, adding one if none is free: for callers that must not wait.
    pub(crate) fn squeeze(&self) -> Seat {
        self.try_take().unwrap_or_else(|| {
            self.state().made += 1;
            self.sit()
        })
    }

    fn sit(&self) -> Seat {
        let taken = self.taken();
        let mut state = self.state();
        state.most = state.most.max(taken);
        drop(state);
        Seat(self.clone())
    }

    /// Returns the number of permits held.
    pub(crate) fn taken(&self) -> usize {
        let state = self.state();
        state.made.saturating_sub(self.0.free.available_permits())
    }

    /// Returns the number of callers waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Returns the peak of permits held or waited for since the last call.
    pub(crate) fn most(&self) -> usize {
        let now = self.taken() + self.waiting();
        std::mem::replace(&mut self.state().most, now).max(now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.0.state();
        match state.made > state.wanted {
            true => state.made -= 1,
            false => self.0.0.free.add_permits(1),
        }
    }
}

/// Counts a caller as waiting until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn begin(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fewer_seats_make_nobody_stand_up_and_more_are_there_at_once() {
        let seats = Seats::new(3);
        let taken = [seats.take().await, seats.take().await, seats.take().await];
        assert!(seats.try_take().is_none());
        seats.set(1);
        assert_eq!((seats.taken(), seats.most()), (3, 3));
        let [first, second, third] = taken;
        drop(first);
        drop(second);
        assert!(seats.try_take().is_none(), "the third has the only one");
        drop(third);
        let one = seats.try_take().unwrap();
        assert!(seats.try_take().is_none());
        seats.set(2);
        let two = seats.try_take().unwrap();
        let squeezed = seats.squeeze();
        assert_eq!(seats.taken(), 3);
        drop((one, two, squeezed));
        assert_eq!(seats.taken(), 0);
        assert!(seats.try_take().is_some());
    }
}
