//! Events that libraries emit. Libraries never print: progress bars, terminal view, dashboard, metrics, logs and
//! reports are built on these.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::batch::Ticket;
use crate::error::Class;
use crate::image::{Digest, RegistryName};

/// How a blob reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Its bytes were transferred.
    Copied,
    /// The target mounted it from another of its repositories.
    Mounted,
    /// The target had it already.
    Reused,
}

/// Purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// Reading a manifest.
    Manifests,
    /// Reading a blob.
    Blobs,
    /// Writing: uploads, manifests, tags.
    Push,
    /// Listing, and other requests.
    List,
    /// A request to another server: a redirect target or a token service.
    Elsewhere,
}

impl Errand {
    /// Returns the label used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Errand::Manifests => "manifests",
            Errand::Blobs => "blobs",
            Errand::Push => "push",
            Errand::List => "list",
            Errand::Elsewhere => "elsewhere",
        }
    }
}

/// Why a request is delayed before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// The rate limit or a quota.
    Pace,
    /// The limit on open requests.
    Place,
}

impl Delay {
    /// Returns the label used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Delay::Pace => "pace",
            Delay::Place => "place",
        }
    }
}

/// An event of the libraries.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request ended, with or without a response.
    Answered {
        /// The registry.
        registry: RegistryName,
        /// Purpose of the request.
        errand: Errand,
        /// The status; none without a response.
        status: Option<u16>,
        /// Time from sending to the head of the response.
        took: Duration,
    },
    /// A request was delayed.
    HeldBack {
        /// The registry.
        registry: RegistryName,
        /// Reason of the delay.
        by: Delay,
        /// Length of the delay.
        time: Duration,
    },
    /// Tasks whose workers or messages were lost returned to the plan.
    PutBack {
        /// Tasks lost by their workers.
        leased: u64,
        /// Tasks lost by the queue.
        queued: u64,
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
        arrival: Arrival,
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
        class: Class,
        /// The registry that failed, if any.
        registry: Option<RegistryName>,
        /// Attempts so far.
        attempt: u32,
        /// Delay until the next attempt.
        wait: Duration,
    },
    /// A worker started a task.
    TaskStarted {
        /// The task.
        ticket: Ticket,
        /// The source tag.
        source: String,
        /// The target tag.
        target: String,
    },
    /// A worker finished its work on a task.
    TaskEnded {
        /// The task.
        ticket: Ticket,
        /// How it ended.
        end: TaskEnd,
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

/// How a worker's work on a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// The image was copied.
    Copied {
        /// Bytes of blobs transferred.
        bytes: u64,
        /// Bytes of blobs read from the source for this task: fewer where another task read them for both.
        read: u64,
    },
    /// The target was up to date.
    Unchanged,
    /// The task failed permanently.
    Failed {
        /// Kind of the error.
        class: Class,
        /// The text, safe to print.
        error: String,
    },
    /// The task was cancelled with its batch.
    Cancelled,
    /// The task failed with a transient error and is rescheduled.
    Later {
        /// The text, safe to print.
        error: String,
        /// Delay until the next attempt.
        wait: Duration,
    },
    /// The task went back to the queue: another worker has it, or may have it.
    GivenBack,
    /// The ledger discarded the result: another worker has the task by now, or it had ended before.
    Stale,
}

/// Receives events. Called from many tasks at once: it must be quick and never block.
pub trait Observer: Send + Sync {
    /// Handles an event.
    fn on(&self, event: &Event);
}

/// A handle for emitting events; cheap to clone.
#[derive(Clone)]
pub struct Events(Option<Arc<dyn Observer>>);

/// Forwards events to several observers, in order.
struct Several(Vec<Arc<dyn Observer>>);

impl Observer for Several {
    fn on(&self, event: &Event) {
        for observer in &self.0 {
            observer.on(event);
        }
    }
}

impl Events {
    /// Creates a handle with one observer.
    pub fn to(observer: Arc<dyn Observer>) -> Events {
        Events(Some(observer))
    }

    /// Creates a handle with several observers.
    pub fn to_all(observers: Vec<Arc<dyn Observer>>) -> Events {
        Events::to(Arc::new(Several(observers)))
    }

    /// Creates a handle that discards events.
    pub fn none() -> Events {
        Events(None)
    }

    /// Emits an event.
    pub fn emit(&self, event: Event) {
        if let Some(observer) = &self.0 {
            observer.on(&event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
