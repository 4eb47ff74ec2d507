//! What the libraries tell of their work. They never print: bars, terminal view, dashboard, metrics, logs and reports all
//! feed on these.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::batch::Ticket;
use crate::error::Class;
use crate::image::Digest;

/// How a blob came to be at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Its bytes were moved.
    Copied,
    /// The target took it from another of its repositories.
    Mounted,
    /// It was there already.
    Reused,
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A blob is about to be moved or mounted. `moved` counts the bytes that went out, and is live.
    BlobStarted {
        /// Which blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Bytes taken by the target so far.
        moved: Arc<AtomicU64>,
    },
    /// A blob is at the target.
    BlobDone {
        /// Which blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// How it came there.
        arrival: Arrival,
    },
    /// A blob was given up; what follows says why.
    BlobFailed {
        /// Which blob.
        digest: Digest,
    },
    /// A manifest was read, and more blobs are known to be needed.
    ManifestRead {
        /// Which manifest.
        digest: Digest,
        /// Bytes of the blobs that it names and that were not counted before.
        blob_bytes: u64,
        /// How many those are.
        blobs: usize,
    },
    /// A manifest was put at the target.
    ManifestPut {
        /// Which manifest.
        digest: Digest,
    },
    /// Something failed and will be tried again.
    Retrying {
        /// What and why, safe to print.
        error: String,
        /// Its class.
        class: Class,
        /// Tries so far.
        attempt: u32,
        /// How long until the next.
        wait: Duration,
    },
    /// A worker has begun a task.
    TaskStarted {
        /// Which.
        ticket: Ticket,
        /// The source tag.
        source: String,
        /// The target tag.
        target: String,
    },
    /// A worker has let go of a task.
    TaskEnded {
        /// Which.
        ticket: Ticket,
        /// How.
        end: TaskEnd,
    },
    /// Something that people should know and that does not end the work.
    Warning {
        /// In words, safe to print.
        message: String,
    },
}

/// How a worker let go of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// The target has it now.
    Copied {
        /// Bytes of blobs that were moved.
        bytes: u64,
        /// Bytes of blobs that were read from the source for it: fewer where another task read them for both.
        read: u64,
    },
    /// The target had it.
    Unchanged,
    /// It failed for good.
    Failed {
        /// How.
        class: Class,
        /// In words, safe to print.
        error: String,
    },
    /// It was stopped with its batch.
    Cancelled,
    /// It failed in passing, and comes back.
    Later {
        /// In words, safe to print.
        error: String,
        /// After how long.
        wait: Duration,
    },
    /// Another has it, or may have it.
    GivenBack,
}

/// Who is told. Called from many tasks at once: it must be quick and never block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on(&self, event: &Event);
}

/// A handle to whoever is told; cheap to clone.
#[derive(Clone)]
pub struct Events(Option<Arc<dyn Observer>>);

impl Events {
    /// Tells this one.
    pub fn to(observer: Arc<dyn Observer>) -> Events {
        Events(Some(observer))
    }

    /// Tells nobody.
    pub fn none() -> Events {
        Events(None)
    }

    /// Passes an event on.
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
