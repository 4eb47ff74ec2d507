//! Reads a pipe in a thread of its own, so that a wait has a limit and can be cancelled.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_oci::retry::format_duration;
use tokio_util::sync::CancellationToken;

use super::error::LayoutError;

/// What a pipe holds by default.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait to be read, so that the pipe is emptied while the last ones are hashed.
const QUEUED_CHUNKS: usize = 8;
/// How often a wait for the pipe looks at the cancellation.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long to wait for a pipe.
#[derive(Debug, Clone, Copy)]
pub struct PipeTimeouts {
    /// For the first byte: the other program may have much to prepare.
    pub start: PipeTimeout,
    /// For each byte after it.
    pub stall: PipeTimeout,
}

/// One of these time limits.
#[derive(Debug, Clone, Copy)]
pub struct PipeTimeout {
    /// The time.
    pub limit: Duration,
    /// The option that changes it, for messages.
    pub option: Option<&'static str>,
}

/// Reads a pipe in a thread of its own, so that a wait has a limit and can be cancelled.
#[derive(Debug)]
pub struct PipeReader {
    chunks: Receiver<io::Result<Vec<u8>>>,
    /// The current chunk, and how much of it was read.
    chunk: (Vec<u8>, usize),
    timeouts: PipeTimeouts,
    cancel: CancellationToken,
    has_started: bool,
    failure: PipeFailure,
}

/// The error of a pipe. Decoders pass on only that something failed.
#[derive(Debug, Clone, Default)]
pub(super) struct PipeFailure(Arc<Mutex<Option<io::Error>>>);

impl PipeFailure {
    pub(super) fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the error of the pipe in place of one that it has caused.
    pub(super) fn explain(&self, error: LayoutError) -> LayoutError {
        self.take().map_or(error, |failure| LayoutError::reading("", failure))
    }

    fn record(&self, error: io::Error) -> io::Error {
        let passed_on = io::Error::from(error.kind());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        passed_on
    }
}

impl PipeReader {
    /// Starts the thread.
    pub fn start(mut pipe: File, timeouts: PipeTimeouts, cancel: CancellationToken) -> io::Result<PipeReader> {
        let (sender, chunks) = sync_channel(QUEUED_CHUNKS);
        // A read cannot be interrupted: the thread ends with the pipe, with its reader or with the process.
        std::thread::Builder::new().name("archive-pipe".to_owned()).spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = match pipe.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(length) => {
                        chunk.truncate(length);
                        Ok(chunk)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let has_failed = read.is_err();
                if sender.send(read).is_err() || has_failed {
                    return;
                }
            }
        })?;
        Ok(PipeReader {
            chunks,
            chunk: Default::default(),
            timeouts,
            cancel,
            has_started: false,
            failure: PipeFailure::default(),
        })
    }

    /// Returns where the error of the pipe is recorded.
    pub(super) fn failure(&self) -> PipeFailure {
        self.failure.clone()
    }

    /// Waits for the next chunk; `None` at the end.
    fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let PipeTimeout { limit, option } = if self.has_started { self.timeouts.stall } else { self.timeouts.start };
        let began = Instant::now();
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match self.chunks.recv_timeout(CANCEL_POLL_INTERVAL) {
                Ok(chunk) => {
                    self.has_started = true;
                    return chunk.map(Some);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if began.elapsed() < limit => {}
                Err(RecvTimeoutError::Timeout) => {
                    let option = option.map(|option| format!(" ({option})")).unwrap_or_default();
                    let message = format!("nothing came through the pipe for {}{option}", format_duration(limit));
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
            }
        }
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.1 == self.chunk.0.len() {
            let chunk = self.next_chunk().map_err(|error| self.failure.record(error))?;
            self.chunk = (chunk.unwrap_or_default(), 0);
        }
        let rest = &self.chunk.0[self.chunk.1..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.chunk.1 += length;
        Ok(length)
    }
}
