//! Rules that make requests fail.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::request_log::RecordedRequest;
use super::request_type::RequestType;
use super::state::Inner;

type Compute = Arc<dyn Fn(&RecordedRequest) -> FaultAction + Send + Sync>;
type Predicate = Arc<dyn Fn(&RecordedRequest) -> bool + Send + Sync>;

/// Conditions of a rule.
#[derive(Clone, Default)]
pub struct RequestMatcher {
    kinds: Vec<RequestType>,
    repository: Option<String>,
    reference: Option<String>,
    predicates: Vec<Predicate>,
}

impl RequestMatcher {
    /// Matches all requests.
    pub fn any() -> Self {
        Self::default()
    }

    /// Matches requests of a kind.
    pub fn kind(kind: RequestType) -> Self {
        Self::kinds(&[kind])
    }

    /// Matches requests of several kinds.
    pub fn kinds(kinds: &[RequestType]) -> Self {
        Self { kinds: kinds.to_vec(), ..Self::default() }
    }

    /// Requires this repository.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Requires this tag or digest.
    #[must_use]
    pub fn reference(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    /// Requires this path without the query, which need not be a registry path.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        let path = path.to_owned();
        self.when(move |record| record.path == path)
    }

    /// Requires this predicate.
    #[must_use]
    pub fn when(mut self, predicate: impl Fn(&RecordedRequest) -> bool + Send + Sync + 'static) -> Self {
        self.predicates.push(Arc::new(predicate));
        self
    }

    fn matches(&self, record: &RecordedRequest) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        (self.kinds.is_empty() || self.kinds.contains(&record.kind))
            && same(&self.repository, &record.repository)
            && same(&self.reference, &record.reference)
            && self.predicates.iter().all(|predicate| predicate(record))
    }
}

impl From<RequestType> for RequestMatcher {
    fn from(kind: RequestType) -> Self {
        Self::kind(kind)
    }
}

impl fmt::Debug for RequestMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kinds, repository, reference, predicates } = self;
        write!(f, "{kinds:?} {repository:?} {reference:?} predicates: {}", predicates.len())
    }
}

/// A fault. Byte counts refer to the body; several actions of one rule apply together.
#[derive(Clone, Debug)]
pub enum FaultAction {
    /// Sends this response after reading and discarding the request body.
    Status {
        /// The status.
        code: u16,
        /// Headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Sends no response and keeps the connection open.
    StallForever,
    /// Stops the response body after this many bytes and keeps the connection open.
    StallAfter {
        /// Bytes sent before the stall.
        bytes: u64,
    },
    /// Sends the response body one byte at a time, after this many bytes.
    Drip {
        /// Bytes sent before.
        after: u64,
        /// Interval between bytes.
        every: Duration,
    },
    /// Sends the response head, and everything after it on the connection, one byte at a time.
    DripHead {
        /// Interval between bytes.
        every: Duration,
    },
    /// Never ends the response head. HTTP/1.1 only.
    EndlessHead,
    /// Closes the connection after this many bytes of the response body.
    CutAfter {
        /// Bytes sent before.
        bytes: u64,
    },
    /// Closes the connection without a response and without reading the request body.
    CutBefore,
    /// Refuses the HTTP/2 stream (REFUSED_STREAM).
    RefuseStream,
    /// Carries out the request and closes the connection in place of the response.
    CutInsteadOfAnswer,
    /// Closes the connection after this many bytes of the request body. The registry's options decide what is kept of
    /// it.
    CutUploadAfter {
        /// Bytes read before.
        bytes: u64,
    },
    /// Stops reading the request body after this many bytes and keeps the connection open.
    StallUploadAfter {
        /// Bytes read before.
        bytes: u64,
    },
    /// Reads the request body one byte at a time, after this many bytes.
    DripUpload {
        /// Bytes read before.
        after: u64,
        /// Interval between bytes.
        every: Duration,
    },
    /// Responds before the request body has ended.
    AnswerUploadEarly {
        /// Bytes read before.
        after: u64,
        /// The status.
        status: u16,
    },
    /// Changes one byte of the response body.
    Corrupt {
        /// Offset in the body.
        at: u64,
    },
    /// Shortens the response body, and its Content-Length with it.
    Truncate {
        /// Bytes kept.
        to: u64,
    },
    /// Delays the response.
    Delay(Duration),
    /// Limits the rate of request and response bodies.
    Throttle {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// Redirects. `{path}` in the URL is replaced with the request's path and query.
    Redirect {
        /// The URL.
        to: String,
        /// Redirect status, such as 307.
        status: u16,
    },
    /// Sets a header of the normal response.
    SetHeader(String, String),
    /// Removes a header of the normal response.
    RemoveHeader(String),
    /// Replaces the body of the normal response.
    ReplaceBody(Bytes),
    /// Responds 200 with this many MiB of filler, generated while sending.
    BigBody {
        /// MiB.
        mib: u64,
        /// Whether to announce Content-Length.
        announced: bool,
    },
    /// Computes the action from the request, see `FaultAction::compute`.
    Computed(Computed),
    /// Waits for a permit of this semaphore: `Arc::new(Semaphore::new(0))`, then `add_permits`.
    Gate(Arc<Semaphore>),
}

/// An action computed from the request.
#[derive(Clone)]
pub struct Computed(Compute);

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl FaultAction {
    /// Computes the action from the request, as tests do for a vendor's API.
    pub fn compute(answer: impl Fn(&RecordedRequest) -> FaultAction + Send + Sync + 'static) -> Self {
        Self::Computed(Computed(Arc::new(answer)))
    }

    /// Responds 200 with JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::Status {
            code: 200,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.to_string().into(),
        }
    }

    /// Responds with this status and OCI error code.
    pub fn error(status: u16, code: &str) -> Self {
        Self::Status {
            code: status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: super::response::error_body(code, "as the test asked for").into(),
        }
    }

    /// Responds with this status and no body.
    pub fn status(code: u16) -> Self {
        Self::Status { code, headers: Vec::new(), body: Bytes::new() }
    }

    /// Responds 429 with this `Retry-After`.
    pub fn too_many_requests(retry_after: &str) -> Self {
        Self::Status {
            code: 429,
            headers: vec![("retry-after".to_owned(), retry_after.to_owned())],
            body: super::response::error_body("TOOMANYREQUESTS", "as the test asked for").into(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct FaultRule {
    what: RequestMatcher,
    skip: u64,
    times: Option<u64>,
    seen: Arc<AtomicU64>,
    hits: Arc<AtomicU64>,
    removed: Arc<AtomicBool>,
    actions: Vec<FaultAction>,
}

impl FaultRule {
    /// Reports whether the rule applies to this request, and counts it.
    fn try_apply(&self, record: &RecordedRequest) -> bool {
        if self.removed.load(Ordering::SeqCst) || !self.what.matches(record) {
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

/// A rule under construction. By default it applies once.
#[derive(Debug)]
#[must_use = "a rule does nothing before `act`"]
pub struct FaultRuleBuilder<'a> {
    inner: &'a Arc<Inner>,
    what: RequestMatcher,
    skip: u64,
    times: Option<u64>,
}

impl<'a> FaultRuleBuilder<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>, what: RequestMatcher) -> Self {
        Self { inner, what, skip: 0, times: Some(1) }
    }

    /// Skips the first `count` matching requests.
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Sets how often the rule applies.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// Applies the rule until it is removed.
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    /// Sets the action and activates the rule.
    pub fn act(self, action: FaultAction) -> RuleHandle {
        self.act_all([action])
    }

    /// Sets several actions that apply together, and activates the rule.
    pub fn act_all(self, actions: impl IntoIterator<Item = FaultAction>) -> RuleHandle {
        let rule = FaultRule {
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

/// Handle of an active rule. Dropping it does not remove the rule.
#[derive(Clone, Debug)]
pub struct RuleHandle {
    hits: Arc<AtomicU64>,
    removed: Arc<AtomicBool>,
}

impl RuleHandle {
    /// Returns how often the rule has applied.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }

    /// Removes the rule.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }
}

/// Returns the actions of the first active rule that matches.
pub(super) fn actions_for(rules: &[FaultRule], record: &RecordedRequest) -> Vec<FaultAction> {
    let rule = rules.iter().find(|rule| rule.try_apply(record));
    let actions = rule.into_iter().flat_map(|rule| rule.actions.iter());
    let known = actions.map(|action| match action {
        FaultAction::Computed(Computed(compute)) => compute(record),
        other => other.clone(),
    });
    known.collect()
}
