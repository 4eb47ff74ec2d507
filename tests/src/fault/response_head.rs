//! Faults of the response head: a connection whose writes drip or never end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Fault of all further writes to a connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadFaultSlot(Arc<Mutex<Option<HeadFault>>>);

#[derive(Clone, Copy, Debug)]
pub(super) enum HeadFault {
    /// Writes one byte per interval.
    Drip(Duration),
    /// Writes the status line, and then headers without end.
    Endless,
}

impl HeadFaultSlot {
    pub(super) fn set(&self, how: HeadFault) {
        *self.0.lock().expect("the state is whole") = Some(how);
    }

    fn get(&self) -> Option<HeadFault> {
        *self.0.lock().expect("the state is whole")
    }
}

/// A connection whose writes can fail.
pub(super) struct FaultyConnection<S> {
    pub(super) stream: S,
    pub(super) head_fault: HeadFaultSlot,
    pause: Option<Pin<Box<Sleep>>>,
    has_status_line: bool,
}

const FILLER: &[u8] = b"x-more: and more and more and more and more and more and more and more\r\n";

impl<S> FaultyConnection<S> {
    pub(super) fn new(stream: S, head_fault: HeadFaultSlot) -> Self {
        Self { stream, head_fault, pause: None, has_status_line: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FaultyConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FaultyConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.head_fault.get() {
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
            Some(HeadFault::Drip(every)) => {
                let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(every)));
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
                let one = buf.len().min(1);
                Pin::new(&mut self.stream).poll_write(cx, &buf[..one])
            }
            Some(HeadFault::Endless) if !self.has_status_line => {
                self.has_status_line = true;
                let line = buf.windows(2).position(|pair| pair == b"\r\n").map_or(buf.len(), |at| at + 2);
                Pin::new(&mut self.stream).poll_write(cx, &buf[..line])
            }
            Some(HeadFault::Endless) => loop {
                ready!(Pin::new(&mut self.stream).poll_write(cx, FILLER))?;
            },
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
