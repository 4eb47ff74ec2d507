//! Pipe of one large blob: bytes are read from the source, hashed, and sent as an upload body.
//!
//! A broken source is reopened at the current offset while the upload waits. After a broken upload the pipe rewinds to
//! the offset that the target holds: snapshots of the hash state ensure that every byte sent is hashed exactly once.
//! The last bytes are held back until the hash of the whole blob is verified.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryState;
use imgsync_oci::{Descriptor, Hasher};
use imgsync_registry::wait::{ClockPause, WaitClock};
use imgsync_registry::{BandwidthMeter, SendProgress, TrafficCounters};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::blob_subscription::BlobSubscription;
use super::endpoints::CopySource;
use super::source_stream::SourceStream;

/// Chunk size, small enough to observe the progress of a slow target.
const CHUNK_SIZE: usize = 64 << 10;
/// Maximum snapshots of the hash state, taken at multiples of at least [`MIN_SNAPSHOT_INTERVAL`].
const MAX_SNAPSHOTS: u64 = 1024;
const MIN_SNAPSHOT_INTERVAL: u64 = 1 << 20;

/// Blob content that can be sent repeatedly, from any offset.
#[derive(Clone)]
pub(crate) struct ResumableBody {
    state: Arc<Mutex<BodyState>>,
    progress: Arc<TransferProgress>,
    clock: WaitClock,
    /// Aborts the current body.
    abort: Arc<std::sync::Mutex<CancellationToken>>,
}

/// Progress of a body while it is sent.
#[derive(Debug, Default)]
pub(crate) struct TransferProgress {
    /// Bytes handed to the HTTP client, including repeated ones.
    bytes_taken: AtomicU64,
    /// Whether the source is being waited for.
    waiting_for_source: AtomicBool,
    /// Number of bodies waiting for the bandwidth limit.
    throttled_bodies: AtomicUsize,
    /// Offset after the last byte handed out.
    sent_offset: Arc<AtomicU64>,
    /// Whether part of the content is not known to be public.
    not_public: AtomicBool,
}

struct BodyState {
    source: CopySource,
    traffic: Arc<TrafficCounters>,
    blob: Descriptor,
    stream: Option<SourceStream>,
    retry: RetryState,
    /// Read and hashed, but not handed out yet.
    pending: Bytes,
    /// Offset of the first byte of `pending`.
    sent_offset: u64,
    hashed: u64,
    hasher: Hasher,
    snapshots: Vec<(u64, Hasher)>,
    /// Bytes below this offset are read only for the hash.
    send_from: u64,
    /// Bytes to skip in a stream that started before the requested offset.
    skip: u64,
    /// Offset at the last failure; anything beyond is progress.
    hashed_at_failure: u64,
    failure: Option<Error>,
    progress: Arc<TransferProgress>,
    abort: Arc<std::sync::Mutex<CancellationToken>>,
}

/// Error that ends a body early: the source failed (see [`BodyState::failure`]), or the body was aborted.
#[derive(Debug, thiserror::Error)]
#[error("the blob source ended")]
pub(crate) struct BodyEnded;

/// Marks the source as waited for until dropped, even if the waiting future is cancelled.
struct SourceWaitGuard(Arc<TransferProgress>);

impl SourceWaitGuard {
    fn start(progress: &Arc<TransferProgress>) -> SourceWaitGuard {
        progress.waiting_for_source.store(true, Ordering::Relaxed);
        SourceWaitGuard(progress.clone())
    }
}

impl Drop for SourceWaitGuard {
    fn drop(&mut self) {
        self.0.waiting_for_source.store(false, Ordering::Relaxed);
    }
}

/// Marks a body as waiting for the bandwidth limit until dropped.
struct ThrottleGuard(Arc<TransferProgress>, #[expect(dead_code, reason = "held until dropped")] ClockPause);

impl ThrottleGuard {
    fn start(progress: &Arc<TransferProgress>, clock: &WaitClock) -> ThrottleGuard {
        progress.throttled_bodies.fetch_add(1, Ordering::Relaxed);
        ThrottleGuard(progress.clone(), clock.pause())
    }
}

impl Drop for ThrottleGuard {
    fn drop(&mut self) {
        self.0.throttled_bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ResumableBody {
    /// Creates a body at the start of a blob. `sent_offset` receives the offset.
    pub(crate) fn new(
        source: &CopySource,
        traffic: &Arc<TrafficCounters>,
        blob: &Descriptor,
        sent_offset: Arc<AtomicU64>,
        clock: &WaitClock,
    ) -> ResumableBody {
        let progress = Arc::new(TransferProgress { sent_offset, ..TransferProgress::default() });
        let hasher = Hasher::new(blob.digest.algorithm());
        let abort = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        ResumableBody {
            state: Arc::new(Mutex::new(BodyState {
                source: source.clone(),
                traffic: traffic.clone(),
                blob: blob.clone(),
                stream: None,
                retry: source.retry(),
                pending: Bytes::new(),
                sent_offset: 0,
                hashed: 0,
                snapshots: vec![(0, hasher.clone())],
                hasher,
                send_from: 0,
                skip: 0,
                hashed_at_failure: 0,
                failure: None,
                progress: progress.clone(),
                abort: abort.clone(),
            })),
            progress,
            clock: clock.clone(),
            abort,
        }
    }

    /// Starts with the content of a shared reader.
    pub(crate) async fn with_shared_reader(self, subscription: Option<BlobSubscription>) -> ResumableBody {
        if let Some(share) = subscription {
            self.progress.not_public.store(true, Ordering::Relaxed);
            self.state.lock().await.stream = Some(SourceStream::Shared(share));
        }
        self
    }

    /// Returns a body from the current offset to `end`, exclusive. It fails once the content is rewound or a later body
    /// is created: a stalled connection can hold on to its body for long.
    pub(crate) async fn stream_until(&self, end: u64, meter: BandwidthMeter) -> reqwest::Body {
        reqwest::Body::wrap_stream(self.chunks(end, meter).await)
    }

    /// Returns the chunks of such a body.
    pub(crate) async fn chunks(
        &self,
        end: u64,
        meter: BandwidthMeter,
    ) -> impl Stream<Item = std::result::Result<Bytes, BodyEnded>> + Send + use<> {
        let abort = self.lock_state().await.renew_abort_token();
        let state = self.state.clone();
        let (progress, clock) = (self.progress.clone(), self.clock.clone());
        let begin = (state, abort, meter, (progress, clock), None::<tokio::time::Instant>);
        futures_util::stream::try_unfold(begin, move |(shared, abort, meter, (progress, clock), more_at)| async move {
            if let Some(until) = more_at {
                let _throttled = ThrottleGuard::start(&progress, &clock);
                tokio::select! {
                    biased;
                    () = abort.cancelled() => return Err(BodyEnded),
                    () = tokio::time::sleep_until(until) => {}
                }
            }
            let mut state = tokio::select! {
                biased;
                () = abort.cancelled() => return Err(BodyEnded),
                state = shared.clone().lock_owned() => state,
            };
            // Cancellation happens between two chunks, so nothing that was read is lost.
            let next = tokio::select! {
                biased;
                () = abort.cancelled() => return Err(BodyEnded),
                next = state.next_chunk(end) => next,
            };
            match next {
                Ok(Some(piece)) => {
                    clock.record_sent(piece.len() as u64);
                    let more_at = meter.record(piece.len());
                    Ok(Some((piece, (shared, abort, meter, (progress, clock), more_at))))
                }
                Ok(None) => Ok(None),
                Err(error) => {
                    state.failure = Some(error);
                    Err(BodyEnded)
                }
            }
        })
    }

    /// Closes the source stream until more bytes are needed; then it is reopened at the current offset. An idle stream
    /// blocks others on the same connection.
    pub(crate) async fn pause_source(&self) {
        self.lock_state().await.stream = None;
    }

    /// Rewinds to an offset that was handed out before.
    pub(crate) async fn rewind(&self, offset: u64) {
        self.lock_state().await.rewind(offset);
    }

    /// Aborts the current body; returns the source's error if that ended it.
    pub(crate) async fn take_failure(&self) -> Option<Error> {
        let mut state = self.lock_state().await;
        state.renew_abort_token();
        state.failure.take()
    }

    /// Locks the state, after aborting the body that holds it.
    async fn lock_state(&self) -> OwnedMutexGuard<BodyState> {
        self.abort.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        self.state.clone().lock_owned().await
    }

    /// Returns the progress of the current body.
    pub(crate) fn progress(&self) -> &TransferProgress {
        &self.progress
    }

    /// Returns a function that reports the progress of a body ending at `end`.
    pub(crate) fn progress_reporter(&self, end: u64) -> impl Fn() -> SendProgress + Send + Sync + use<> {
        let progress = self.progress.clone();
        move || SendProgress {
            bytes: progress.bytes_taken.load(Ordering::Relaxed),
            is_complete: progress.sent_offset() >= end,
            is_locally_stalled: progress.waiting_for_source() || progress.throttled_bodies.load(Ordering::Relaxed) > 0,
        }
    }
}

impl TransferProgress {
    /// Whether the source is being waited for.
    fn waiting_for_source(&self) -> bool {
        self.waiting_for_source.load(Ordering::Relaxed)
    }

    /// Whether all content is known to be public.
    pub(crate) fn is_public(&self) -> bool {
        !self.not_public.load(Ordering::Relaxed)
    }

    /// Returns the offset after the last byte handed out.
    pub(crate) fn sent_offset(&self) -> u64 {
        self.sent_offset.load(Ordering::Relaxed)
    }
}

impl BodyState {
    /// Creates the abort token of the next body.
    fn renew_abort_token(&self) -> CancellationToken {
        let next = CancellationToken::new();
        *self.abort.lock().unwrap_or_else(PoisonError::into_inner) = next.clone();
        next
    }

    /// Returns the next chunk before `end`; `None` at `end`.
    async fn next_chunk(&mut self, end: u64) -> Result<Option<Bytes>> {
        if self.sent_offset >= end {
            return Ok(None);
        }
        if self.pending.is_empty() {
            let _waiting = SourceWaitGuard::start(&self.progress);
            self.fill_pending().await?;
        }
        let length =
            self.pending.len().min(CHUNK_SIZE).min(usize::try_from(end - self.sent_offset).unwrap_or(CHUNK_SIZE));
        let piece = self.pending.split_to(length);
        self.sent_offset += length as u64;
        self.progress.sent_offset.store(self.sent_offset, Ordering::Relaxed);
        self.progress.bytes_taken.fetch_add(length as u64, Ordering::Relaxed);
        Ok(Some(piece))
    }

    /// Reads until there is something to hand out, and retries transient errors of the source.
    async fn fill_pending(&mut self) -> Result<()> {
        loop {
            match self.read_chunk().await {
                Ok(()) => {
                    // Immediately: other blobs wait for the retries this one has spent.
                    if self.hashed > self.hashed_at_failure {
                        self.retry.reset();
                    }
                    if !self.pending.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    self.stream = None;
                    self.hashed_at_failure = self.hashed;
                    let source = self.source.clone();
                    source.pause(&mut self.retry, error).await?;
                }
            }
        }
    }

    /// Reads one chunk from the source, opening it if needed. New bytes go to `pending`; it stays empty if the target
    /// already has the whole chunk.
    async fn read_chunk(&mut self) -> Result<()> {
        if self.stream.is_none() {
            let (stream, begins) = self.source.blob_open(&self.blob, self.hashed, &self.traffic).await?;
            self.skip = self.hashed - begins;
            self.progress.not_public.fetch_or(!stream.is_public(), Ordering::Relaxed);
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let is_shared = matches!(stream, SourceStream::Shared(_));
        let Some(mut chunk) = stream.next_chunk().await? else {
            if is_shared {
                // The shared reader continues without us or gave up: read by ourselves.
                self.stream = None;
                return Ok(());
            }
            let detail = format!("the stream ended after {} of {} bytes", self.hashed, self.blob.size);
            return Err(Error::new(ErrorKind::Unreachable, self.operation(), detail));
        };
        let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        let _ = chunk.split_to(skipped);
        self.skip -= skipped as u64;
        let after = self.hashed + chunk.len() as u64;
        if after > self.blob.size {
            let detail = format!("longer than the {} bytes in the manifest", self.blob.size);
            return Err(Error::new(ErrorKind::Corrupt, self.operation(), detail));
        }
        let before = self.hashed;
        self.hash(&chunk);
        if after == self.blob.size {
            self.stream = None;
            let found = self.hasher.clone().finish();
            if found != self.blob.digest {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    self.operation(),
                    format!("the content has the digest {found}"),
                ));
            }
        }
        if after > self.send_from {
            let known = usize::try_from(self.send_from.saturating_sub(before)).unwrap_or(usize::MAX);
            let _ = chunk.split_to(known.min(chunk.len()));
            self.pending = chunk;
        }
        Ok(())
    }

    fn operation(&self) -> String {
        self.source.describe_read(&self.blob.digest)
    }

    /// Hashes a chunk, and takes a snapshot at each multiple of the interval.
    fn hash(&mut self, mut chunk: &[u8]) {
        let interval = self.snapshot_interval();
        while !chunk.is_empty() {
            let to_next = usize::try_from(interval - self.hashed % interval).unwrap_or(usize::MAX);
            let (now, later) = chunk.split_at(to_next.min(chunk.len()));
            self.hasher.update(now);
            self.hashed += now.len() as u64;
            if self.hashed.is_multiple_of(interval) {
                self.snapshots.push((self.hashed, self.hasher.clone()));
            }
            chunk = later;
        }
    }

    fn snapshot_interval(&self) -> u64 {
        (self.blob.size / MAX_SNAPSHOTS).max(MIN_SNAPSHOT_INTERVAL)
    }

    fn rewind(&mut self, offset: u64) {
        // Unless more was hashed than can be handed out: after a digest mismatch everything is read again.
        if offset == self.sent_offset && self.hashed <= self.sent_offset + self.pending.len() as u64 {
            return;
        }
        while self.snapshots.len() > 1 && self.snapshots.last().is_some_and(|(at, _)| *at > offset) {
            self.snapshots.pop();
        }
        let (at, hasher) = self.snapshots.last().cloned().unwrap_or((0, Hasher::new(self.blob.digest.algorithm())));
        self.stream = None;
        self.pending = Bytes::new();
        self.hashed = at;
        self.hashed_at_failure = at;
        self.hasher = hasher;
        self.send_from = offset;
        self.sent_offset = offset;
        self.progress.sent_offset.store(offset, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use imgsync_oci::retry::{RetryBudget, RetryPolicy};
    use imgsync_oci::{Digest, MediaType};
    use imgsync_registry::credentials::CredentialEnvironment;
    use imgsync_registry::{Access, Client, ClientSettings, Context};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SIZE: u64 = 3 << 20;

    /// Creates a body on a registry whose answers the test writes.
    async fn resumable_body(budget: &RetryBudget) -> (ResumableBody, TcpListener, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = listener.local_addr().unwrap().to_string().parse().unwrap();
        let context = Context { budget: budget.clone(), ..Context::default() };
        let counters = TrafficCounters::new();
        let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
        let client = Client::new(
            ClientSettings { retry: policy, ..ClientSettings::default() },
            CredentialEnvironment::default(),
        );
        let source = client.repository(&registry, &"a".parse().unwrap(), Access::Pull, &context, &counters).unwrap();
        let bytes: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
        let blob = Descriptor::new(MediaType::new("application/octet-stream"), Digest::sha256(&bytes), SIZE);
        (
            ResumableBody::new(&CopySource::Registry(source), &counters, &blob, Arc::default(), &context.clock),
            listener,
            bytes,
        )
    }

    /// Accepts a request, and responds with these bytes of the blob, starting at `from`.
    async fn respond(listener: &TcpListener, bytes: &[u8], from: u64) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = match from {
            0 => format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"),
            from => format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{SIZE}\r\n\r\n",
                SIZE - from,
                SIZE - 1
            ),
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    fn budget_allows_retry(budget: &RetryBudget) -> bool {
        let failure = Error::new(ErrorKind::ServerError, "reading x", "503");
        imgsync_oci::retry::RetryState::new(RetryPolicy::default(), budget).next_delay(failure).is_ok()
    }

    #[tokio::test]
    async fn a_retry_is_refunded_with_the_first_bytes_after_a_break() {
        let budget = RetryBudget::new(1);
        let (feed, listener, bytes) = resumable_body(&budget).await;
        let mut pieces = std::pin::pin!(feed.chunks(SIZE, BandwidthMeter::default()).await);
        let play = async {
            drop(respond(&listener, &bytes[..1000], 0).await);
            let stream = respond(&listener, &[], 1000).await;
            assert!(!budget_allows_retry(&budget), "a break costs a retry until it is mended");
            stream
        };
        let read = async {
            assert_eq!(pieces.next().await.unwrap().unwrap().len(), 1000);
            pieces.next().await.unwrap().unwrap()
        };
        let play = async {
            let mut stream = play.await;
            stream.write_all(&bytes[1000..1500]).await.unwrap();
            stream
        };
        let (_stream, piece) = tokio::join!(play, read);
        assert_eq!(piece, bytes[1000..1000 + piece.len()]);
        assert!(budget_allows_retry(&budget), "it is not kept until the blob is done");
    }

    #[tokio::test]
    async fn a_dropped_body_stops_counting_as_waiting_for_the_source() {
        let (feed, _listener, _) = resumable_body(&RetryBudget::default()).await;
        let mut pieces = Box::pin(feed.chunks(SIZE, BandwidthMeter::default()).await);
        assert!(tokio::time::timeout(Duration::from_millis(50), pieces.next()).await.is_err());
        assert!(feed.progress().waiting_for_source());
        drop(pieces);
        assert!(!feed.progress().waiting_for_source());
    }

    #[tokio::test]
    async fn hash_snapshots_are_kept_at_every_mib() {
        let (feed, listener, bytes) = resumable_body(&RetryBudget::default()).await;
        let mut pieces = Box::pin(feed.chunks(SIZE, BandwidthMeter::default()).await);
        let read = async {
            while let Some(piece) = pieces.next().await {
                piece.unwrap();
            }
        };
        let _ = tokio::join!(respond(&listener, &bytes, 0), read);
        let kept: Vec<u64> = feed.state.lock().await.snapshots.iter().map(|(at, _)| *at >> 20).collect();
        assert_eq!(kept, [0, 1, 2, 3]);
    }
}
