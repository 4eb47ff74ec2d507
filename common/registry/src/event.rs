//! Events of requests and transfers. Libraries never print: progress bars, terminal view, dashboard, metrics, logs and
//! reports are built on these.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Digest, RegistryName};

/// How a blob reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobOutcome {
    /// Its bytes were transferred.
    Copied,
    /// The target mounted it from another of its repositories.
    Mounted,
    /// The target had it already.
    Reused,
}

/// Purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPurpose {
    /// Reading a manifest.
    Manifests,
    /// Reading a blob.
    Blobs,
    /// Writing: uploads, manifests, tags.
    Push,
    /// Listing, and other requests.
    List,
    /// A request to another server: a redirect target or a token service.
    OtherHost,
}

impl RequestPurpose {
    /// Returns the label used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            RequestPurpose::Manifests => "manifests",
            RequestPurpose::Blobs => "blobs",
            RequestPurpose::Push => "push",
            RequestPurpose::List => "list",
            RequestPurpose::OtherHost => "other_host",
        }
    }
}

/// Why a request is delayed before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleReason {
    /// The rate limit or a quota.
    RateLimit,
    /// The limit on open requests.
    Concurrency,
}

impl ThrottleReason {
    /// Returns the label used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ThrottleReason::RateLimit => "rate_limit",
            ThrottleReason::Concurrency => "concurrency",
        }
    }
}

/// An event of the libraries.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request ended, with or without a response.
    RequestCompleted {
        /// The registry.
        registry: RegistryName,
        /// Purpose of the request.
        purpose: RequestPurpose,
        /// The status; none without a response.
        status: Option<u16>,
        /// Time from sending to the head of the response.
        duration: Duration,
    },
    /// A request was delayed.
    RequestDelayed {
        /// The registry.
        registry: RegistryName,
        /// Reason of the delay.
        reason: ThrottleReason,
        /// Length of the delay.
        delay: Duration,
    },
    /// A blob is about to be transferred or mounted. `moved` counts the bytes sent, and is live.
    BlobStarted {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Bytes that the target has received so far.
        moved: Arc<AtomicU64>,
    },
    /// A blob is at the target.
    BlobDone {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// How it got there.
        outcome: BlobOutcome,
    },
    /// A blob failed; the following event says why.
    BlobFailed {
        /// The blob.
        digest: Digest,
    },
    /// A manifest was read, and more blobs are known to be needed.
    ManifestRead {
        /// The manifest.
        digest: Digest,
        /// Bytes of its blobs that were not counted before.
        blob_bytes: u64,
        /// Number of those blobs.
        blobs: usize,
    },
    /// A manifest was put to the target.
    ManifestPut {
        /// The manifest.
        digest: Digest,
    },
    /// An operation failed and will be retried.
    Retrying {
        /// Operation and failure, safe to print.
        error: String,
        /// Kind of the error.
        kind: ErrorKind,
        /// The registry that failed, if any.
        registry: Option<RegistryName>,
        /// Attempts so far.
        attempt: u32,
        /// Delay until the next attempt.
        wait: Duration,
    },
    /// A warning that does not end the work.
    Warning {
        /// The text, safe to print.
        message: String,
    },
    /// A warning that many tasks of a process may cause at once: one of each kind is shown a minute, with the number of
    /// those suppressed.
    RepeatedWarning {
        /// Key that warnings of one cause share.
        kind: String,
        /// The text, safe to print.
        message: String,
    },
    /// An informational message.
    Notice {
        /// The text, safe to print.
        message: String,
    },
}

/// Receives events. Called from many tasks at once: it must be quick and never block.
pub trait Observer: Send + Sync {
    /// Handles an event.
    fn on_event(&self, event: &Event);
}

/// A handle for emitting events; cheap to clone.
#[derive(Clone)]
pub struct Events(Option<Arc<dyn Observer>>);

/// Forwards events to several observers, in order.
struct FanOutObserver(Vec<Arc<dyn Observer>>);

impl Observer for FanOutObserver {
    fn on_event(&self, event: &Event) {
        for observer in &self.0 {
            observer.on_event(event);
        }
    }
}

impl Events {
    /// Creates a handle with one observer.
    pub fn new(observer: Arc<dyn Observer>) -> Events {
        Events(Some(observer))
    }

    /// Creates a handle with several observers.
    pub fn fan_out(observers: Vec<Arc<dyn Observer>>) -> Events {
        Events::new(Arc::new(FanOutObserver(observers)))
    }

    /// Creates a handle that discards events.
    pub fn none() -> Events {
        Events(None)
    }

    /// Emits an event.
    pub fn emit(&self, event: Event) {
        if let Some(observer) = &self.0 {
            observer.on_event(&event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
