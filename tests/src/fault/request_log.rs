//! Log of requests.

use std::fmt;
use std::sync::Mutex;
use std::time::Instant;

use http::HeaderMap;
use tokio::sync::watch;

use super::request_type::{RequestType, parameter};

/// A request and its outcome.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// Sequence number from 0, never reused.
    pub n: u64,
    /// Kind of request.
    pub kind: RequestType,
    /// HTTP method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query without the question mark.
    pub query: String,
    /// Repository in the path.
    pub repository: Option<String>,
    /// Tag or digest in the path; for uploads the digest in the query, or else the session.
    pub reference: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// Whether the request came over HTTP/2.
    pub http2: bool,
    /// Port of the client: requests with the same port share a connection.
    pub remote_port: u16,
    /// Response status, or `None` while or if there was no response.
    pub status: Option<u16>,
    /// Request body, except of uploads; at most 64 KiB.
    pub body: Vec<u8>,
    /// Bytes of the request body received.
    pub received: u64,
    /// Bytes of the response body sent.
    pub sent: u64,
    /// Whether the whole response body was sent.
    pub is_body_complete: bool,
    /// Time of arrival.
    pub at: Instant,
}

impl RecordedRequest {
    /// Returns a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Reports whether the request is for a digest tag of another image.
    pub fn is_for_digest_tag(&self) -> bool {
        let named = |tag: &str| tag.starts_with("sha256-") || tag.starts_with("sha512-");
        self.reference.as_deref().is_some_and(named)
    }

    /// Returns a decoded query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        parameter(&self.query, name)
    }
}

impl fmt::Display for RecordedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, kind, method, path, query, received, sent, remote_port, .. } = self;
        let status = self.status.map_or_else(|| "---".to_owned(), |status| status.to_string());
        let mark = if query.is_empty() { "" } else { "?" };
        write!(f, "{n:>4} :{remote_port} {status} {kind:?} {method} {path}{mark}{query} in={received} out={sent}")
    }
}

#[derive(Debug)]
pub(super) struct RequestLog {
    records: Mutex<(u64, Vec<RecordedRequest>)>,
    changed: watch::Sender<()>,
}

impl RequestLog {
    pub(super) fn new() -> Self {
        Self { records: Mutex::default(), changed: watch::Sender::new(()) }
    }

    pub(super) fn all(&self) -> Vec<RecordedRequest> {
        self.records.lock().expect("the log is whole").1.clone()
    }

    pub(super) fn count(&self, wanted: impl Fn(&RecordedRequest) -> bool) -> u64 {
        let records = self.records.lock().expect("the log is whole");
        records.1.iter().filter(|record| wanted(record)).count() as u64
    }

    pub(super) fn sum(&self, bytes: impl Fn(&RecordedRequest) -> u64) -> u64 {
        let records = self.records.lock().expect("the log is whole");
        records.1.iter().map(bytes).sum()
    }

    pub(super) fn clear(&self) {
        self.records.lock().expect("the log is whole").1.clear();
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Adds a request and numbers it.
    pub(super) fn add(&self, mut record: RecordedRequest) -> RecordedRequest {
        let mut records = self.records.lock().expect("the log is whole");
        record.n = records.0;
        records.0 += 1;
        records.1.push(record.clone());
        drop(records);
        self.changed.send_replace(());
        record
    }

    /// Updates a request, unless it was cleared.
    pub(super) fn update(&self, n: u64, change: impl FnOnce(&mut RecordedRequest)) {
        let mut records = self.records.lock().expect("the log is whole");
        if let Ok(index) = records.1.binary_search_by_key(&n, |record| record.n) {
            change(&mut records.1[index]);
        }
        drop(records);
        self.changed.send_replace(());
    }
}
