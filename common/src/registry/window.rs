//! AIMD congestion windows: how many requests of one kind a registry accepts concurrently. Unlimited until the first
//! overload, which halves the number of open requests; one more for each round of successes after that.
//!
//! Windows are per process and not shared: the overload may be that of one machine's line, and an overloaded registry
//! signals it to all processes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::Method;
use tokio::time::Instant;
use url::Url;

use super::seats::{Seat, Seats};
use crate::event::Errand;

/// A window is reset after this time without overload.
const FORGET: Duration = Duration::from_secs(600);

/// Kind of operation at a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Manifests,
    Blobs,
    Push,
    List,
}

impl Action {
    /// Derives the kind from a request's method and path.
    pub(crate) fn of(method: &Method, url: &Url) -> Action {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Action::Push;
        }
        let mut segments = url.path_segments().into_iter().flatten().rev().skip(1);
        match segments.next() {
            Some("manifests") => Action::Manifests,
            Some("blobs") => Action::Blobs,
            // The status of an upload.
            Some("uploads") => Action::Push,
            _ => Action::List,
        }
    }
}

impl From<Action> for Errand {
    fn from(action: Action) -> Errand {
        match action {
            Action::Manifests => Errand::Manifests,
            Action::Blobs => Errand::Blobs,
            Action::Push => Errand::Push,
            Action::List => Errand::List,
        }
    }
}

/// One window for each kind of operation.
#[derive(Debug, Default)]
pub(crate) struct Windows([Window; 4]);

impl Windows {
    pub(crate) fn of(&self, action: Action) -> &Window {
        &self.0[match action {
            Action::Manifests => 0,
            Action::Blobs => 1,
            Action::Push => 2,
            Action::List => 3,
        }]
    }
}

/// Window of one kind of operation.
#[derive(Debug)]
pub(crate) struct Window {
    seats: Seats,
    learnt: Mutex<Learnt>,
}

#[derive(Debug, Default)]
struct Learnt {
    /// Window size. `None`: unlimited.
    size: Option<f64>,
    cut_at: Option<Instant>,
    /// Time of the last overload.
    seen_at: Option<Instant>,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seat: Seat,
    began: Instant,
}

impl Default for Window {
    fn default() -> Window {
        Window { seats: Seats::unlimited(), learnt: Mutex::default() }
    }
}

impl Window {
    /// Acquires a permit, waiting until the window allows one more request.
    pub(crate) async fn enter(&self) -> Entry {
        let seat = self.seats.take().await;
        Entry { seat, began: Instant::now() }
    }

    /// Acquires a permit without waiting, for requests that continue an open operation: waiting could deadlock with
    /// itself.
    pub(crate) fn enter_at_once(&self) -> Entry {
        Entry { seat: self.seats.squeeze(), began: Instant::now() }
    }

    /// Additive increase after a success.
    pub(crate) fn well(&self, now: Instant) {
        let mut learnt = self.learnt();
        let Some(size) = learnt.size else { return };
        if learnt.seen_at.is_none_or(|seen| now.duration_since(seen) >= FORGET) {
            *learnt = Learnt::default();
            self.seats.set(usize::MAX);
            return;
        }
        // A window that is not used does not grow.
        if self.seats.taken() as f64 * 2.0 >= size {
            let grown = size + 1.0 / size;
            learnt.size = Some(grown);
            self.seats.set(grown as usize);
        }
    }

    /// Multiplicative decrease after an overload. Requests that were in flight at the last decrease do not count again.
    pub(crate) fn overloaded(&self, entry: &Entry, now: Instant) {
        let mut learnt = self.learnt();
        learnt.seen_at = Some(now);
        if learnt.cut_at.is_some_and(|cut| entry.began <= cut) {
            return;
        }
        let size = (learnt.size.unwrap_or(self.seats.taken() as f64) / 2.0).max(1.0);
        (learnt.size, learnt.cut_at) = (Some(size), Some(now));
        self.seats.set(size as usize);
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_is_for_is_seen_in_its_path() {
        let of = |method, path: &str| Action::of(&method, &format!("http://r/v2/{path}").parse().unwrap());
        assert_eq!(of(Method::GET, "a/manifests/manifests/1"), Action::Manifests);
        assert_eq!(of(Method::HEAD, "a/blobs/sha256:00"), Action::Blobs);
        assert_eq!(of(Method::GET, "a/blobs/uploads/1"), Action::Push);
        assert_eq!(of(Method::PUT, "a/manifests/1"), Action::Push);
        assert_eq!(of(Method::GET, "a/tags/list"), Action::List);
        assert_eq!(of(Method::GET, "_catalog"), Action::List);
    }

    #[tokio::test]
    async fn overload_halves_once_for_all_that_was_under_way_and_success_grows_by_one_a_round() {
        let window = Window::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let enter = |millis| Entry { began: at(millis), ..window.enter_at_once() };
        let mut entries: Vec<Entry> = (0..20).map(|_| enter(0)).collect();
        for entry in entries.drain(..12) {
            window.overloaded(&entry, at(10));
        }
        assert_eq!(window.learnt().size, Some(10.0), "one event");
        while let Some(seat) = window.seats.try_take() {
            entries.push(Entry { seat, began: at(20) });
        }
        assert_eq!(entries.len(), 10);
        for _ in 0..10 {
            window.well(at(30));
        }
        assert_eq!(window.learnt().size.unwrap() as usize, 10);
        window.well(at(30));
        assert_eq!(window.learnt().size.unwrap() as usize, 11);
        for round in 0..10 {
            window.overloaded(&enter(100 + round * 10), at(105 + round * 10));
        }
        assert_eq!(window.learnt().size, Some(1.0), "never below one");
        window.well(at(1000) + FORGET);
        assert_eq!(window.learnt().size, None);
    }
}
