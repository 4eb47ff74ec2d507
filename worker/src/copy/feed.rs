//! The pipe of one large blob: bytes come from the source, are hashed, and go out as the body of an upload.
//!
//! A source that breaks is opened again at the offset that was reached, while the upload waits. A target that breaks
//! makes the feed go back to what the target holds: the state of the hash was kept at intervals, so that all bytes that
//! are sent are hashed, and none twice. The last bytes are held back until the hash of the whole is right.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Hasher};
use imgsync_common::registry::Tally;
use imgsync_common::retry::Retry;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::ends::{BlobStream, Source};

/// Pieces are handed out in this size, so that a slow target is seen to take them one by one.
const PIECE: usize = 64 << 10;
/// Kept states of the hash: at the most this many, and never nearer than [`SNAPSHOT_INTERVAL`].
const SNAPSHOTS: u64 = 1024;
const SNAPSHOT_INTERVAL: u64 = 1 << 20;

/// A blob being read, to be sent once or several times.
#[derive(Clone)]
pub(crate) struct Feed {
    state: Arc<Mutex<State>>,
    gauge: Arc<Gauge>,
    /// Ends the body that was made last.
    abort: Arc<std::sync::Mutex<CancellationToken>>,
}

/// What can be seen of a feed from outside while a body is being sent.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    /// Grows with every piece that was handed out.
    pieces: AtomicU64,
    /// Whether it is the source that is waited for.
    waiting_for_source: AtomicBool,
    /// The offset after the last byte that was handed out.
    handed: Arc<AtomicU64>,
}

struct State {
    source: Source,
    tally: Arc<Tally>,
    blob: Descriptor,
    stream: Option<BlobStream>,
    retry: Retry,
    /// Came from the source and was hashed, but was not handed out yet.
    pending: Bytes,
    /// The offset of the first byte of `pending`.
    handed: u64,
    hashed: u64,
    hasher: Hasher,
    snapshots: Vec<(u64, Hasher)>,
    /// Bytes below this offset are read again for the hash only.
    send_from: u64,
    /// Bytes still to be left out of the stream, which began earlier than it was asked to.
    skip: u64,
    /// How far it was when it last failed: what comes after that is progress.
    hashed_at_failure: u64,
    failure: Option<Error>,
    gauge: Arc<Gauge>,
    abort: Arc<std::sync::Mutex<CancellationToken>>,
}

/// Why a body ended early: the source failed, which the feed knows more of, or nobody wants the body any more.
#[derive(Debug, thiserror::Error)]
#[error("the source of the blob ended")]
struct Ended;

impl Feed {
    /// A feed at the beginning of a blob. `handed` shows how far it is.
    pub(crate) fn new(source: &Source, tally: &Arc<Tally>, blob: &Descriptor, handed: Arc<AtomicU64>) -> Feed {
        let gauge = Arc::new(Gauge { handed, ..Gauge::default() });
        let hasher = Hasher::new(blob.digest.algorithm());
        let abort = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        Feed {
            state: Arc::new(Mutex::new(State {
                source: source.clone(),
                tally: tally.clone(),
                blob: blob.clone(),
                stream: None,
                retry: source.retry(),
                pending: Bytes::new(),
                handed: 0,
                hashed: 0,
                snapshots: vec![(0, hasher.clone())],
                hasher,
                send_from: 0,
                skip: 0,
                hashed_at_failure: 0,
                failure: None,
                gauge: gauge.clone(),
                abort: abort.clone(),
            })),
            gauge,
            abort,
        }
    }

    /// A body with the bytes from where the feed stands to before `end`. It ends with an error once the feed has been
    /// rewound, or a later body made: a connection that stands still can hold on to a body for long.
    pub(crate) async fn body(&self, end: u64) -> reqwest::Body {
        let abort = self.locked().await.renew();
        let state = self.state.clone();
        reqwest::Body::wrap_stream(futures_util::stream::try_unfold(
            (state, abort),
            move |(shared, abort)| async move {
                let mut state = tokio::select! {
                    biased;
                    () = abort.cancelled() => return Err(Ended),
                    state = shared.clone().lock_owned() => state,
                };
                // What is given up here is given up between two chunks: nothing that was read is lost.
                let next = tokio::select! {
                    biased;
                    () = abort.cancelled() => return Err(Ended),
                    next = state.next(end) => next,
                };
                match next {
                    Ok(Some(piece)) => Ok(Some((piece, (shared, abort)))),
                    Ok(None) => Ok(None),
                    Err(error) => {
                        state.failure = Some(error);
                        Err(Ended)
                    }
                }
            },
        ))
    }

    /// Goes back, or not, to an offset that was handed out already.
    pub(crate) async fn rewind(&self, offset: u64) {
        self.locked().await.rewind(offset);
    }

    /// Ends the last body, and gives the source's error, if it was the source that ended it.
    pub(crate) async fn take_failure(&self) -> Option<Error> {
        let mut state = self.locked().await;
        state.renew();
        state.failure.take()
    }

    /// The state, for which the last body must let go.
    async fn locked(&self) -> OwnedMutexGuard<State> {
        self.abort.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        self.state.clone().lock_owned().await
    }

    /// What can be seen while a body is being sent.
    pub(crate) fn gauge(&self) -> &Gauge {
        &self.gauge
    }
}

impl Gauge {
    /// Grows while the target takes bytes.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Whether it is the source that is waited for.
    pub(crate) fn waiting_for_source(&self) -> bool {
        self.waiting_for_source.load(Ordering::Relaxed)
    }

    /// The offset after the last byte that was handed out.
    pub(crate) fn handed(&self) -> u64 {
        self.handed.load(Ordering::Relaxed)
    }
}

impl State {
    /// The token of the next body.
    fn renew(&self) -> CancellationToken {
        let next = CancellationToken::new();
        *self.abort.lock().unwrap_or_else(PoisonError::into_inner) = next.clone();
        next
    }

    /// The next piece before `end`; `None` when all were handed out.
    async fn next(&mut self, end: u64) -> Result<Option<Bytes>> {
        if self.handed >= end {
            return Ok(None);
        }
        if self.pending.is_empty() {
            self.gauge.waiting_for_source.store(true, Ordering::Relaxed);
            let filled = self.fill().await;
            self.gauge.waiting_for_source.store(false, Ordering::Relaxed);
            filled?;
        }
        let length = self.pending.len().min(PIECE).min(usize::try_from(end - self.handed).unwrap_or(PIECE));
        let piece = self.pending.split_to(length);
        self.handed += length as u64;
        self.gauge.handed.store(self.handed, Ordering::Relaxed);
        self.gauge.pieces.fetch_add(1, Ordering::Relaxed);
        Ok(Some(piece))
    }

    /// Reads on until there is something to hand out, through whatever breaks of the source can be mended.
    async fn fill(&mut self) -> Result<()> {
        loop {
            match self.read().await {
                Ok(()) if !self.pending.is_empty() => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    self.stream = None;
                    if self.hashed > self.hashed_at_failure {
                        self.hashed_at_failure = self.hashed;
                        self.retry.progressed();
                    }
                    let source = self.source.clone();
                    source.pause(&mut self.retry, error).await?;
                }
            }
        }
    }

    /// Takes one chunk from the source, opening it where needed. What was asked for is in `pending`, which stays empty
    /// where the chunk was of bytes that the target has already.
    async fn read(&mut self) -> Result<()> {
        if self.stream.is_none() {
            let (stream, begins) = self.source.blob_open(&self.blob, self.hashed, &self.tally).await?;
            self.skip = self.hashed - begins;
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let tried = || self.source.reading(&self.blob.digest);
        let Some(mut chunk) = stream.chunk().await? else {
            let detail = format!("the stream ended after {} of {} bytes", self.hashed, self.blob.size);
            return Err(Error::new(Class::Unreachable, tried(), detail));
        };
        let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        let _ = chunk.split_to(skipped);
        self.skip -= skipped as u64;
        let after = self.hashed + chunk.len() as u64;
        if after > self.blob.size {
            let detail = format!("it has more than the {} bytes that the manifest gives it", self.blob.size);
            return Err(Error::new(Class::Corrupt, tried(), detail));
        }
        self.hasher.update(&chunk);
        let before = std::mem::replace(&mut self.hashed, after);
        if after == self.blob.size {
            self.stream = None;
            let found = self.hasher.clone().finish();
            if found != self.blob.digest {
                return Err(Error::new(Class::Corrupt, tried(), format!("its bytes have the digest {found}")));
            }
        } else if after - self.snapshots.last().map_or(0, |(offset, _)| *offset) >= self.interval() {
            self.snapshots.push((after, self.hasher.clone()));
        }
        if after > self.send_from {
            let known = usize::try_from(self.send_from.saturating_sub(before)).unwrap_or(usize::MAX);
            let _ = chunk.split_to(known.min(chunk.len()));
            self.pending = chunk;
        }
        Ok(())
    }

    fn interval(&self) -> u64 {
        (self.blob.size / SNAPSHOTS).max(SNAPSHOT_INTERVAL)
    }

    fn rewind(&mut self, offset: u64) {
        if offset == self.handed {
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
        self.handed = offset;
        self.gauge.handed.store(offset, Ordering::Relaxed);
    }
}
