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

use super::resizable_semaphore::{Permit, ResizableSemaphore};
use crate::event::RequestPurpose;

/// A window is reset after this time without overload.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Kind of operation at a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Manifests,
    Blobs,
    Push,
    List,
}

impl OperationKind {
    /// Derives the kind from a request's method and path.
    pub(crate) fn from_request(method: &Method, url: &Url) -> OperationKind {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return OperationKind::Push;
        }
        let mut segments = url.path_segments().into_iter().flatten().rev().skip(1);
        match segments.next() {
            Some("manifests") => OperationKind::Manifests,
            Some("blobs") => OperationKind::Blobs,
            // The status of an upload.
            Some("uploads") => OperationKind::Push,
            _ => OperationKind::List,
        }
    }
}

impl From<OperationKind> for RequestPurpose {
    fn from(action: OperationKind) -> RequestPurpose {
        match action {
            OperationKind::Manifests => RequestPurpose::Manifests,
            OperationKind::Blobs => RequestPurpose::Blobs,
            OperationKind::Push => RequestPurpose::Push,
            OperationKind::List => RequestPurpose::List,
        }
    }
}

/// One window for each kind of operation.
#[derive(Debug, Default)]
pub(crate) struct AimdWindows([AimdWindow; 4]);

impl AimdWindows {
    pub(crate) fn get(&self, action: OperationKind) -> &AimdWindow {
        &self.0[match action {
            OperationKind::Manifests => 0,
            OperationKind::Blobs => 1,
            OperationKind::Push => 2,
            OperationKind::List => 3,
        }]
    }
}

/// Window of one kind of operation.
#[derive(Debug)]
pub(crate) struct AimdWindow {
    permits: ResizableSemaphore,
    state: Mutex<AimdState>,
}

#[derive(Debug, Default)]
struct AimdState {
    /// Window size. `None`: unlimited.
    size: Option<f64>,
    cut_at: Option<Instant>,
    /// Time of the last overload.
    seen_at: Option<Instant>,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    pub(crate) permit: Permit,
    began: Instant,
}

impl Default for AimdWindow {
    fn default() -> AimdWindow {
        AimdWindow { permits: ResizableSemaphore::unlimited(), state: Mutex::default() }
    }
}

impl AimdWindow {
    /// Acquires a permit, waiting until the window allows one more request.
    pub(crate) async fn acquire(&self) -> InFlightRequest {
        let permit = self.permits.acquire().await;
        InFlightRequest { permit, began: Instant::now() }
    }

    /// Acquires a permit without waiting, for requests that continue an open operation: waiting could deadlock with
    /// itself.
    pub(crate) fn force_acquire(&self) -> InFlightRequest {
        InFlightRequest { permit: self.permits.force_acquire(), began: Instant::now() }
    }

    /// Additive increase after a success.
    pub(crate) fn on_success(&self, now: Instant) {
        let mut state = self.state();
        let Some(size) = state.size else { return };
        if state.seen_at.is_none_or(|seen| now.duration_since(seen) >= FORGET_AFTER) {
            *state = AimdState::default();
            self.permits.set_limit(usize::MAX);
            return;
        }
        // A window that is not used does not grow.
        if self.permits.in_use() as f64 * 2.0 >= size {
            let grown = size + 1.0 / size;
            state.size = Some(grown);
            self.permits.set_limit(grown as usize);
        }
    }

    /// Multiplicative decrease after an overload. Requests that were in flight at the last decrease do not count again.
    pub(crate) fn on_overload(&self, entry: &InFlightRequest, now: Instant) {
        let mut state = self.state();
        state.seen_at = Some(now);
        if state.cut_at.is_some_and(|cut| entry.began <= cut) {
            return;
        }
        let size = (state.size.unwrap_or(self.permits.in_use() as f64) / 2.0).max(1.0);
        (state.size, state.cut_at) = (Some(size), Some(now));
        self.permits.set_limit(size as usize);
    }

    fn state(&self) -> MutexGuard<'_, AimdState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_kind_follows_from_method_and_path() {
        let of =
            |method, path: &str| OperationKind::from_request(&method, &format!("http://r/v2/{path}").parse().unwrap());
        assert_eq!(of(Method::GET, "a/manifests/manifests/1"), OperationKind::Manifests);
        assert_eq!(of(Method::HEAD, "a/blobs/sha256:00"), OperationKind::Blobs);
        assert_eq!(of(Method::GET, "a/blobs/uploads/1"), OperationKind::Push);
        assert_eq!(of(Method::PUT, "a/manifests/1"), OperationKind::Push);
        assert_eq!(of(Method::GET, "a/tags/list"), OperationKind::List);
        assert_eq!(of(Method::GET, "_catalog"), OperationKind::List);
    }

    #[tokio::test]
    async fn overload_halves_once_for_all_requests_in_flight_and_success_grows_by_one_a_round() {
        let window = AimdWindow::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let enter = |millis| InFlightRequest { began: at(millis), ..window.force_acquire() };
        let mut in_flight: Vec<InFlightRequest> = (0..20).map(|_| enter(0)).collect();
        for entry in in_flight.drain(..12) {
            window.on_overload(&entry, at(10));
        }
        assert_eq!(window.state().size, Some(10.0), "one event");
        while let Some(permit) = window.permits.try_acquire() {
            in_flight.push(InFlightRequest { permit, began: at(20) });
        }
        assert_eq!(in_flight.len(), 10);
        for _ in 0..10 {
            window.on_success(at(30));
        }
        assert_eq!(window.state().size.unwrap() as usize, 10);
        window.on_success(at(30));
        assert_eq!(window.state().size.unwrap() as usize, 11);
        for round in 0..10 {
            window.on_overload(&enter(100 + round * 10), at(105 + round * 10));
        }
        assert_eq!(window.state().size, Some(1.0), "never below one");
        window.on_success(at(1000) + FORGET_AFTER);
        assert_eq!(window.state().size, None);
    }
}
