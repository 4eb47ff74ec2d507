//! State of the registry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::fault_rules::FaultRule;
use super::options::FaultRegistryBuilder;
use super::request_log::RequestLog;
use super::request_type::RequestType;
use crate::images::{Blob, TestManifest};

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: FaultRegistryBuilder,
    pub(super) address: SocketAddr,
    pub(super) log: RequestLog,
    pub(super) rules: Mutex<Vec<FaultRule>>,
    pub(super) stop: CancellationToken,
    pub(super) slots: Option<Arc<Semaphore>>,
    pub(super) connections: AtomicU64,
    pub(super) peak: AtomicU64,
    /// Requests that only quirks made necessary.
    pub(super) wasted_requests: AtomicU64,
    /// Connections still to close with GOAWAY at their first request.
    pub(super) pending_goaways: AtomicU64,
    /// Variations made so far.
    pub(super) variations: Mutex<Vec<(RequestType, String)>>,
    /// Token bucket of each kind's rate: tokens left and time of the last update.
    buckets: Mutex<HashMap<RequestType, (f64, Instant)>>,
    /// Blob bodies sent so far.
    pub(super) bodies: AtomicU64,
    /// Manifests pulled so far.
    pub(super) pulls: AtomicU64,
    in_flight: AtomicU64,
    /// Token bucket of the overall rate: tokens left and time of the last update.
    rate_tokens: Mutex<(f64, Instant)>,
    /// Start of the quota window and manifests read, by user.
    pulls_by_user: Mutex<HashMap<String, (Instant, u64)>>,
    open: Mutex<CancellationToken>,
    first_valid_token: AtomicU64,
    counter: AtomicU64,
    store: Mutex<FaultRegistryStore>,
}

#[derive(Debug, Default)]
pub(super) struct FaultRegistryStore {
    pub(super) repositories: BTreeMap<String, StoredRepository>,
    pub(super) uploads: HashMap<String, Arc<Mutex<OpenUpload>>>,
    /// Created projects, besides those of repositories.
    pub(super) projects: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct StoredRepository {
    pub(super) manifests: BTreeMap<String, StoredManifest>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) blobs: BTreeMap<String, StoredBlob>,
}

/// A manifest and its upload time in milliseconds since 1970.
#[derive(Clone, Debug)]
pub(super) struct StoredManifest {
    pub(super) manifest: TestManifest,
    pub(super) uploaded: u64,
}

#[derive(Clone, Debug)]
pub(super) enum StoredBlob {
    Kept(Blob),
    /// Size of a blob that was hashed and discarded.
    Forgotten(u64),
}

impl StoredBlob {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Kept(blob) => blob.size(),
            Self::Forgotten(size) => *size,
        }
    }
}

/// An open upload session.
#[derive(Debug)]
pub(super) struct OpenUpload {
    pub(super) repository: String,
    pub(super) size: u64,
    pub(super) content: Option<Vec<u8>>,
    pub(super) sha256: Sha256,
    /// A chunk below the minimum size arrived, so it must be the last one.
    pub(super) has_short_chunk: bool,
    /// PATCH requests so far.
    pub(super) patches: u64,
}

impl OpenUpload {
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.content {
            Some(kept) => kept.extend_from_slice(bytes),
            None => self.sha256.update(bytes),
        }
    }
}

impl Inner {
    pub(super) fn new(options: FaultRegistryBuilder, address: SocketAddr) -> Self {
        Self {
            slots: options.max_concurrent.map(|slots| Arc::new(Semaphore::new(slots))),
            rate_tokens: Mutex::new((options.rate.map_or(0.0, |(_, burst)| burst), Instant::now())),
            pulls_by_user: Mutex::default(),
            options,
            address,
            log: RequestLog::new(),
            rules: Mutex::default(),
            stop: CancellationToken::new(),
            connections: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            wasted_requests: AtomicU64::new(0),
            pending_goaways: AtomicU64::new(0),
            variations: Mutex::default(),
            buckets: Mutex::default(),
            bodies: AtomicU64::new(0),
            pulls: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            open: Mutex::default(),
            first_valid_token: AtomicU64::new(0),
            counter: AtomicU64::new(0),
            store: Mutex::default(),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, FaultRegistryStore> {
        self.store.lock().expect("the store is whole")
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.options.authority.is_some() { "https" } else { "http" };
        match self.options.quirks.host {
            Some(host) => format!("{scheme}://{host}"),
            None => format!("{scheme}://{}", self.address),
        }
    }

    /// Reports whether the new connection is to be closed with GOAWAY at its first request, and counts it.
    pub(super) fn take_goaway(&self) -> bool {
        self.pending_goaways.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// Counts a request that is needed through no fault of the client.
    pub(super) fn count_wasted_request(&self) {
        self.wasted_requests.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns a number that was never returned before.
    pub(super) fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::SeqCst)
    }

    /// Registers a connection. Its token is cancelled when all connections are closed.
    pub(super) fn connection(&self) -> CancellationToken {
        self.connections.fetch_add(1, Ordering::SeqCst);
        self.open.lock().expect("a token is whole").child_token()
    }

    pub(super) fn close_connections(&self) {
        let mut open = self.open.lock().expect("a token is whole");
        std::mem::take(&mut *open).cancel();
    }

    pub(super) fn expire_tokens(&self) {
        self.first_valid_token.store(self.next() + 1, Ordering::SeqCst);
    }

    /// Number of the first token that has not expired.
    pub(super) fn first_valid_token(&self) -> u64 {
        self.first_valid_token.load(Ordering::SeqCst)
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes a token of the overall rate; false if there is none.
    pub(super) fn is_within_rate(&self) -> bool {
        let Some((per_second, burst)) = self.options.rate else { return true };
        take(&mut self.rate_tokens.lock().expect("the tokens are whole"), per_second, burst)
    }

    /// Takes a token of a kind's rate, with a burst of one second's worth; false if there is none.
    pub(super) fn is_within_rate_of(&self, kind: RequestType, per_second: f64) -> bool {
        let mut buckets = self.buckets.lock().expect("the rates are whole");
        take(buckets.entry(kind).or_insert((per_second, Instant::now())), per_second, per_second)
    }

    /// Counts a pull of a user if `counts`. Returns the remaining quota, or `None` if it is used up.
    pub(super) fn take_pull(&self, user: &str, counts: bool) -> Option<u64> {
        let Some((limit, window)) = self.options.pulls else { return Some(0) };
        let mut pulls = self.pulls_by_user.lock().expect("the pulls are whole");
        let now = Instant::now();
        let used = pulls.get(user).filter(|(began, _)| now.duration_since(*began) < window).copied();
        if !counts {
            return Some(used.map_or(limit, |(_, used)| limit.saturating_sub(used)));
        }
        let (began, used) = used.unwrap_or((now, 0));
        if used >= limit {
            return None;
        }
        pulls.insert(user.to_owned(), (began, used + 1));
        Some(limit - used - 1)
    }

    pub(super) fn begin_request(self: &Arc<Self>) -> OpenRequest {
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        OpenRequest { inner: Arc::clone(self), slot: None }
    }
}

/// Takes a token from a bucket, if there is one.
fn take(tokens: &mut (f64, Instant), per_second: f64, burst: f64) -> bool {
    let now = Instant::now();
    let left = burst.min(tokens.0 + now.duration_since(tokens.1).as_secs_f64() * per_second);
    *tokens = (if left >= 1.0 { left - 1.0 } else { left }, now);
    left >= 1.0
}

/// A request in flight, until dropped.
#[derive(Debug)]
pub(super) struct OpenRequest {
    inner: Arc<Inner>,
    /// Permit of the concurrency limit.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.inner.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FaultRegistryStore {
    /// Reports whether the project of a repository exists.
    pub(super) fn has_project(&self, repository: &str) -> bool {
        let project = repository.split('/').next().unwrap_or_default();
        let is_in = |name: &String| name.strip_prefix(project).is_some_and(|rest| rest.starts_with('/'));
        self.projects.contains(project) || self.repositories.keys().any(is_in)
    }

    pub(super) fn repository(&mut self, name: &str) -> &mut StoredRepository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    /// Returns a manifest by tag or digest, with its digest.
    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, StoredManifest)> {
        let repository = self.repositories.get(repository)?;
        let digest = repository.tags.get(reference).map_or(reference, String::as_str);
        repository.manifests.get(digest).map(|held| (digest.to_owned(), held.clone()))
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<StoredBlob> {
        self.repositories.get(repository)?.blobs.get(digest).cloned()
    }
}

/// Returns the time in milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as u64
}
