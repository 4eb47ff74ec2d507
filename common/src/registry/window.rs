//! How many requests of one kind a registry takes at a time, learnt by this process: as many as there are until it is
//! overloaded; then half of those that were open, and one more for each round of requests that go well.
//!
//! Learnt by each process, not by all together: what is overloaded may as well be the line of one machine, and a registry
//! that is overloaded by all tells all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::Method;
use tokio::time::Instant;
use url::Url;

use super::seats::{Seat, Seats};
use crate::event::Errand;

/// What was learnt is forgotten after so long without overload.
const FORGET: Duration = Duration::from_secs(600);

/// What is asked of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Manifests,
    Blobs,
    Push,
    List,
}

impl Action {
    /// What a request is for.
    pub(crate) fn of(method: &Method, url: &Url) -> Action {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Action::Push;
        }
        let mut segments = url.path_segments().into_iter().flatten().rev().skip(1);
        match segments.next() {
            Some("manifests") => Action::Manifests,
            Some("blobs") => Action::Blobs,
            // The state of an upload.
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

/// A window for each kind.
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

/// The window of one kind.
#[derive(Debug)]
pub(crate) struct Window {
    seats: Seats,
    learnt: Mutex<Learnt>,
}

#[derive(Debug, Default)]
struct Learnt {
    /// How many; none: as many as there are.
    size: Option<f64>,
    cut_at: Option<Instant>,
    /// When there was the last overload.
    seen_at: Option<Instant>,
}

/// A request under way.
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
    /// Waits until one more may be under way.
    pub(crate) async fn enter(&self) -> Entry {
        let seat = self.seats.take().await;
        Entry { seat, began: Instant::now() }
    }

    /// For what goes on with something that was begun: to wait for others could be to wait for itself.
    pub(crate) fn enter_at_once(&self) -> Entry {
        Entry { seat: self.seats.squeeze(), began: Instant::now() }
    }

    /// A request went well.
    pub(crate) fn well(&self, now: Instant) {
        let mut learnt = self.learnt();
        let Some(size) = learnt.size else { return };
        if learnt.seen_at.is_none_or(|seen| now.duration_since(seen) >= FORGET) {
            *learnt = Learnt::default();
            self.seats.set(usize::MAX);
            return;
        }
        // What is not used is not found to be possible.
        if self.seats.taken() as f64 * 2.0 >= size {
            let grown = size + 1.0 / size;
            learnt.size = Some(grown);
            self.seats.set(grown as usize);
        }
    }

    /// A request met overload. What was under way when this was last heard of has nothing new to say.
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
