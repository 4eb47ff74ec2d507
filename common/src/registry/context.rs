//! On whose behalf requests are made: what may stop them, what they may spend, and who counts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::listing_memory::ListingShare;
use crate::event::{Event, Events};
use crate::retry::Budget;
use crate::wait::WaitClock;

/// What all requests of one task have in common.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Stops everything.
    pub cancel: CancellationToken,
    /// The retries that are left.
    pub budget: Budget,
    /// Who is told.
    pub events: Events,
    /// Stands still while requests are held back by imgsync itself.
    pub clock: WaitClock,
    /// The memory of the listing that is read; each listing has its own where there is none.
    pub listing: Option<ListingShare>,
}

impl Context {
    /// The same, with a token of its own below this one's.
    pub fn child(&self) -> Context {
        Context { cancel: self.cancel.child_token(), ..self.clone() }
    }

    /// Passes a warning on.
    pub fn warn(&self, message: impl AsRef<str>) {
        let message = crate::printable::printable(message.as_ref()).into_owned();
        self.events.emit(Event::Warning { message });
    }
}

impl Default for Events {
    fn default() -> Events {
        Events::none()
    }
}

/// What went over the line to one end of a copy. All counters are exact.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
    referrers: AtomicU64,
    tokens: AtomicU64,
    redirects: AtomicU64,
    retries: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// The numbers of a [`Tally`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Requests to the registry's API, tries that failed included; those below are not.
    pub requests: u64,
    /// Requests that ask for, or keep, referrers and signature tags.
    pub referrers: u64,
    /// Requests for tokens.
    pub tokens: u64,
    /// Requests to where the registry redirected.
    pub redirects: u64,
    /// How many of the requests were tries again.
    pub retries: u64,
    /// Bytes of blobs that came.
    pub received: u64,
    /// Bytes of blobs that went.
    pub sent: u64,
}

/// What a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Request,
    Referrers,
    Token,
    Redirect,
}

impl Tally {
    /// A tally that stands at nothing.
    pub fn new() -> Arc<Tally> {
        Arc::default()
    }

    /// Where it stands.
    pub fn read(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: read(&self.requests),
            referrers: read(&self.referrers),
            tokens: read(&self.tokens),
            redirects: read(&self.redirects),
            retries: read(&self.retries),
            received: read(&self.received),
            sent: read(&self.sent),
        }
    }

    pub(crate) fn count(&self, what: Counted) {
        let counter = match what {
            Counted::Request => &self.requests,
            Counted::Referrers => &self.referrers,
            Counted::Token => &self.tokens,
            Counted::Redirect => &self.redirects,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of blobs that came from the source.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of blobs that were handed to the target's connection.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}
