//! What is to go wrong, and when.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::record::Record;
use super::route::Kind;
use super::state::Inner;

type Compute = Arc<dyn Fn(&Record) -> Action + Send + Sync>;
type Predicate = Arc<dyn Fn(&Record) -> bool + Send + Sync>;

/// Which requests a rule is about.
#[derive(Clone, Default)]
pub struct Match {
    kinds: Vec<Kind>,
    repository: Option<String>,
    reference: Option<String>,
    predicates: Vec<Predicate>,
}

impl Match {
    /// All requests.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of a kind.
    pub fn kind(kind: Kind) -> Self {
        Self::kinds(&[kind])
    }

    /// Requests of any of several kinds.
    pub fn kinds(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), ..Self::default() }
    }

    /// Only of this repository.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Only of this tag or digest.
    #[must_use]
    pub fn reference(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    /// Only of this path, without the query: also one that is none of a registry's.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        let path = path.to_owned();
        self.when(move |record| record.path == path)
    }

    /// Only where this holds too.
    #[must_use]
    pub fn when(mut self, predicate: impl Fn(&Record) -> bool + Send + Sync + 'static) -> Self {
        self.predicates.push(Arc::new(predicate));
        self
    }

    fn holds(&self, record: &Record) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        (self.kinds.is_empty() || self.kinds.contains(&record.kind))
            && same(&self.repository, &record.repository)
            && same(&self.reference, &record.reference)
            && self.predicates.iter().all(|predicate| predicate(record))
    }
}

impl From<Kind> for Match {
    fn from(kind: Kind) -> Self {
        Self::kind(kind)
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kinds, repository, reference, predicates } = self;
        write!(f, "{kinds:?} {repository:?} {reference:?} predicates: {}", predicates.len())
    }
}

/// What goes wrong. Byte counts are of the body; several actions of one rule apply together.
#[derive(Clone, Debug)]
pub enum Action {
    /// This answer in place of the normal one; the request's body is read to its end and thrown away.
    Status {
        /// The status.
        code: u16,
        /// Headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// No answer, ever; the connection stays open.
    StallForever,
    /// The answer's body stops after so many bytes; the connection stays open.
    StallAfter {
        /// Bytes that are sent.
        bytes: u64,
    },
    /// After so many bytes, the answer's body comes one byte at a time.
    Drip {
        /// Bytes that are sent before.
        after: u64,
        /// The time between two bytes.
        every: Duration,
    },
    /// The answer's head, and all that follows it on the connection, comes one byte at a time.
    DripHead {
        /// The time between two bytes.
        every: Duration,
    },
    /// The answer's head goes on and on. HTTP/1.1 only.
    EndlessHead,
    /// The connection is closed after so many bytes of the answer's body.
    CutAfter {
        /// Bytes that are sent.
        bytes: u64,
    },
    /// The connection is closed without an answer, and without reading the request's body.
    CutBefore,
    /// The stream of the request is refused, as HTTP/2 has it (REFUSED_STREAM): only where that is spoken.
    RefuseStream,
    /// The request is carried out, and the connection closed in place of the answer.
    CutInsteadOfAnswer,
    /// The connection is closed after so many bytes of the request's body. What came before is kept as the registry's option says.
    CutUploadAfter {
        /// Bytes that are read.
        bytes: u64,
    },
    /// Reading the request's body stops after so many bytes; the connection stays open.
    StallUploadAfter {
        /// Bytes that are read.
        bytes: u64,
    },
    /// After so many bytes, the request's body is read one byte at a time.
    DripUpload {
        /// Bytes that are read before.
        after: u64,
        /// The time between two bytes.
        every: Duration,
    },
    /// An answer before the request's body has ended.
    AnswerUploadEarly {
        /// Bytes that are read.
        after: u64,
        /// The status.
        status: u16,
    },
    /// One byte of the answer's body is another.
    Corrupt {
        /// Its offset in the body.
        at: u64,
    },
    /// The answer's body is shorter, and its Content-Length agrees.
    Truncate {
        /// Bytes that are left.
        to: u64,
    },
    /// The answer comes later.
    Delay(Duration),
    /// Bodies, in and out, move no faster.
    Throttle {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// The client is sent elsewhere. `{path}` in the URL becomes the request's path with its query.
    Redirect {
        /// The URL.
        to: String,
        /// The status, 307 for example.
        status: u16,
    },
    /// A header of the normal answer is set.
    SetHeader(String, String),
    /// A header of the normal answer is left out.
    RemoveHeader(String),
    /// The normal answer, with another body.
    ReplaceBody(Bytes),
    /// A 200 with so many MiB of nothing much, made as they are sent.
    BigBody {
        /// MiB.
        mib: u64,
        /// Whether Content-Length says so.
        announced: bool,
    },
    /// The action follows from the request: `Action::compute`.
    Computed(Computed),
    /// The request waits for a permit of this semaphore: `Arc::new(Semaphore::new(0))`, then `add_permits`.
    Gate(Arc<Semaphore>),
}

/// An action that follows from the request.
#[derive(Clone)]
pub struct Computed(Compute);

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl Action {
    /// An action that follows from the request: how a test plays a vendor's own API.
    pub fn compute(answer: impl Fn(&Record) -> Action + Send + Sync + 'static) -> Self {
        Self::Computed(Computed(Arc::new(answer)))
    }

    /// A 200 with JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::Status {
            code: 200,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.to_string().into(),
        }
    }

    /// An answer with this status and an OCI error of this code.
    pub fn error(status: u16, code: &str) -> Self {
        Self::Status {
            code: status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: super::answer::error_body(code, "as the test asked for").into(),
        }
    }

    /// An answer with this status, without a body.
    pub fn status(code: u16) -> Self {
        Self::Status { code, headers: Vec::new(), body: Bytes::new() }
    }

    /// 429 with this `Retry-After`.
    pub fn too_many(retry_after: &str) -> Self {
        Self::Status {
            code: 429,
            headers: vec![("retry-after".to_owned(), retry_after.to_owned())],
            body: super::answer::error_body("TOOMANYREQUESTS", "as the test asked for").into(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    what: Match,
    skip: u64,
    times: Option<u64>,
    seen: Arc<AtomicU64>,
    hits: Arc<AtomicU64>,
    removed: Arc<AtomicBool>,
    actions: Vec<Action>,
}

impl Rule {
    /// Whether the rule takes this request. Counts it if so.
    fn take(&self, record: &Record) -> bool {
        if self.removed.load(Ordering::SeqCst) || !self.what.holds(record) {
            return false;
        }
        if self.times.is_some_and(|times| self.hits.load(Ordering::SeqCst) >= times) {
            return false;
        }
        if self.seen.fetch_add(1, Ordering::SeqCst) < self.skip {
            return false;
        }
        self.hits.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// A rule that is being written. It applies once unless told otherwise.
#[derive(Debug)]
#[must_use = "a rule does nothing before `act`"]
pub struct On<'a> {
    inner: &'a Arc<Inner>,
    what: Match,
    skip: u64,
    times: Option<u64>,
}

impl<'a> On<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>, what: Match) -> Self {
        Self { inner, what, skip: 0, times: Some(1) }
    }

    /// The first `count` requests that match are left alone.
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// How often it applies.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// It applies until it is removed.
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    /// What happens. The rule is live from here on.
    pub fn act(self, action: Action) -> RuleHandle {
        self.act_all([action])
    }

    /// Several things that happen together.
    pub fn act_all(self, actions: impl IntoIterator<Item = Action>) -> RuleHandle {
        let rule = Rule {
            what: self.what,
            skip: self.skip,
            times: self.times,
            seen: Arc::default(),
            hits: Arc::default(),
            removed: Arc::default(),
            actions: actions.into_iter().collect(),
        };
        let handle = RuleHandle { hits: Arc::clone(&rule.hits), removed: Arc::clone(&rule.removed) };
        self.inner.rules.lock().expect("the rules are whole").push(rule);
        handle
    }
}

/// A live rule. Dropping the handle does not end it.
#[derive(Clone, Debug)]
pub struct RuleHandle {
    hits: Arc<AtomicU64>,
    removed: Arc<AtomicBool>,
}

impl RuleHandle {
    /// How often it has applied.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }

    /// Ends it.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }
}

/// The actions of the first live rule that matches.
pub(super) fn actions_for(rules: &[Rule], record: &Record) -> Vec<Action> {
    let rule = rules.iter().find(|rule| rule.take(record));
    let actions = rule.into_iter().flat_map(|rule| rule.actions.iter());
    let known = actions.map(|action| match action {
        Action::Computed(Computed(compute)) => compute(record),
        other => other.clone(),
    });
    known.collect()
}
