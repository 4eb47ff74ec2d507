//! What the libraries tell of their work. They never print: bars, terminal view, dashboard, metrics, logs and reports all
//! feed on these.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::batch::Ticket;
use crate::error::Class;
use crate::image::{Digest, RegistryName};

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

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// To read a manifest.
    Manifests,
    /// To read a blob.
    Blobs,
    /// To write: uploads, manifests, tags.
    Push,
    /// To list, or for something else.
    List,
    /// To another server: where the registry redirects to, or where its tokens are.
    Elsewhere,
}

impl Errand {
    /// As metrics have it.
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

/// What a request is held back for before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// The pace: so many requests a second, or a quota.
    Pace,
    /// A place: so many requests may be open at a time.
    Place,
}

impl Delay {
    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Delay::Pace => "pace",
            Delay::Place => "place",
        }
    }
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request was answered, or was not.
    Answered {
        /// The registry that it was for.
        registry: RegistryName,
        /// What for.
        errand: Errand,
        /// The status; none where no answer came.
        status: Option<u16>,
        /// From its sending to the head of the answer.
        took: Duration,
    },
    /// A request was held back.
    HeldBack {
        /// The registry that it is for.
        registry: RegistryName,
        /// By what.
        by: Delay,
        /// How long.
        time: Duration,
    },
    /// Tasks went back to the plan whose workers, or whose messages, were lost.
    PutBack {
        /// Lost by their workers.
        leased: u64,
        /// Lost by the queue.
        queued: u64,
    },
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
        /// The registry that failed, where one did.
        registry: Option<RegistryName>,
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
    /// A warning that many tasks of a process may cause at the same time: a line of each kind is shown once a minute, with
    /// the number of those that were left out.
    RepeatedWarning {
        /// What warnings of one cause have in common.
        kind: String,
        /// In words, safe to print.
        message: String,
    },
    /// Something that people may want to know, and that is no trouble.
    Notice {
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
    /// The ledger did not count its result: the task is another's by now, or had ended before.
    Stale,
}

/// Who is told. Called from many tasks at once: it must be quick and never block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on(&self, event: &Event);
}

/// A handle to whoever is told; cheap to clone.
#[derive(Clone)]
pub struct Events(Option<Arc<dyn Observer>>);

/// Tells several, one after the other.
struct Several(Vec<Arc<dyn Observer>>);

impl Observer for Several {
    fn on(&self, event: &Event) {
        for observer in &self.0 {
            observer.on(event);
        }
    }
}

impl Events {
    /// Tells this one.
    pub fn to(observer: Arc<dyn Observer>) -> Events {
        Events(Some(observer))
    }

    /// Tells all of these.
    pub fn to_all(observers: Vec<Arc<dyn Observer>>) -> Events {
        Events::to(Arc::new(Several(observers)))
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
