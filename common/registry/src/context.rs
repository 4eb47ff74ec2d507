//! Request context: cancellation, retry budget, events and traffic counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::listing_memory::ListingShare;
use crate::event::{Event, Events};
use crate::wait::WaitClock;
use imgsync_oci::retry::RetryBudget;

/// Context shared by all requests of a task.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Cancels all requests.
    pub cancel: CancellationToken,
    /// Retries that are left.
    pub budget: RetryBudget,
    /// Receives events.
    pub events: Events,
    /// Paused while imgsync itself holds requests back.
    pub clock: WaitClock,
    /// Memory share of the listing being read. `None`: each listing has its own.
    pub listing_memory: Option<ListingShare>,
}

impl Context {
    /// Returns a context with a child cancellation token.
    pub fn child(&self) -> Context {
        Context { cancel: self.cancel.child_token(), ..self.clone() }
    }

    /// Emits a warning.
    pub fn warn(&self, message: impl AsRef<str>) {
        let message = imgsync_oci::sanitize::sanitize(message.as_ref()).into_owned();
        self.events.emit(Event::Warning { message });
    }
}

impl Default for Events {
    fn default() -> Events {
        Events::none()
    }
}

/// Counters of requests and bytes for one endpoint of a copy. All counts are exact.
#[derive(Debug, Default)]
pub struct TrafficCounters {
    requests: AtomicU64,
    referrers: AtomicU64,
    tokens: AtomicU64,
    redirects: AtomicU64,
    retries: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Snapshot of a [`TrafficCounters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrafficSnapshot {
    /// Requests to the registry's API, failed attempts included. Excludes the kinds below.
    pub requests: u64,
    /// Requests that read or write referrers and digest tags.
    pub referrers: u64,
    /// Token requests.
    pub tokens: u64,
    /// Requests to redirect targets.
    pub redirects: u64,
    /// Number of requests that were retries.
    pub retries: u64,
    /// Blob bytes received.
    pub received: u64,
    /// Blob bytes sent.
    pub sent: u64,
}

impl TrafficSnapshot {
    /// Returns the number of all requests sent, of every kind.
    pub fn total_requests(&self) -> u64 {
        self.requests + self.referrers + self.tokens + self.redirects
    }
}

/// Which counter a request increments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Request,
    Referrers,
    Token,
    Redirect,
}

impl TrafficCounters {
    /// Creates zeroed counters.
    pub fn new() -> Arc<TrafficCounters> {
        Arc::default()
    }

    /// Returns the current values.
    pub fn snapshot(&self) -> TrafficSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficSnapshot {
            requests: read(&self.requests),
            referrers: read(&self.referrers),
            tokens: read(&self.tokens),
            redirects: read(&self.redirects),
            retries: read(&self.retries),
            received: read(&self.received),
            sent: read(&self.sent),
        }
    }

    pub(crate) fn count(&self, what: RequestKind) {
        let counter = match what {
            RequestKind::Request => &self.requests,
            RequestKind::Referrers => &self.referrers,
            RequestKind::Token => &self.tokens,
            RequestKind::Redirect => &self.redirects,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn record_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds blob bytes received from the source.
    pub fn record_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds blob bytes handed to the target's connection.
    pub fn record_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}
