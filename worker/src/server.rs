//! HTTP server for ports that anyone may connect to: it serves requests however many connections a client holds open.
//! Request headers have a deadline, idle connections are closed, and beyond the maximum of connections the one longest
//! without a request is closed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use imgsync_store::log_throttle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Maximum open connections: well below 1,024, the minimum of open files of a process.
pub const MAX_CONNECTIONS: usize = 512;
/// Timeout of request headers, and of a connection without a request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a connection without traffic in either direction. The event stream writes more often.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum size of request headers, in bytes.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Time connections get to close at shutdown: idle keep-alive connections have nothing left to send.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay after a failed accept: the process may have too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves until stopped.
pub async fn serve(listener: TcpListener, router: Router, stop: &CancellationToken) {
    let connections = Arc::new(Connections::default());
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log_throttle::warn("accept", &format!("accepting a connection failed: {error}"));
                // Closing a connection may free the missing file descriptor.
                connections.close_oldest_without_request();
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_RETRY_DELAY) => continue,
                    () = stop.cancelled() => break,
                }
            }
        };
        tokio::select! {
            () = connections.make_room() => {}
            () = stop.cancelled() => break,
        }
        let (connection, router, stop) = (connections.open(), router.clone(), stop.clone());
        tasks.spawn(async move { serve_connection(stream, router, &connection, &stop).await });
    }
    drop(listener);
    tasks.close();
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, tasks.wait()).await;
    connections.close_all();
}

/// Serves the requests of one connection.
async fn serve_connection(stream: TcpStream, router: Router, open: &ConnectionGuard, stop: &CancellationToken) {
    let _ = stream.set_nodelay(true);
    let state = open.state.clone();
    let io = TokioIo::new(ActivityStream { stream, state: state.clone() });
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        // Counted until the whole response is sent.
        let active_request = ActiveRequest::start(&state);
        let answer = router.call(request.map(Body::new));
        async move { answer.await.map(|answer| track_body(answer, active_request)) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(io, service);
    let mut conversation = std::pin::pin!(conversation);
    tokio::select! {
        _ = conversation.as_mut() => return,
        () = open.state.close.cancelled() => return,
        () = open.state.wait_until_idle() => return,
        () = stop.cancelled() => conversation.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = conversation => {}
        () = open.state.close.cancelled() => {}
        () = open.state.wait_until_idle() => {}
    }
}

/// Open connections, by age.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<(u64, BTreeMap<u64, Arc<ConnectionActivity>>)>,
    ended: Notify,
}

/// Activity of a connection.
#[derive(Debug)]
struct ConnectionActivity {
    opened_at: Instant,
    /// Time of the last byte in either direction, in milliseconds since the start.
    last_activity_ms: AtomicU64,
    /// Requests whose responses are not fully sent.
    active_requests: AtomicUsize,
    close: CancellationToken,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<ConnectionActivity>>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>) -> ConnectionGuard {
        let state = Arc::new(ConnectionActivity {
            opened_at: Instant::now(),
            last_activity_ms: AtomicU64::new(0),
            active_requests: AtomicUsize::new(0),
            close: CancellationToken::new(),
        });
        let mut open = self.lock();
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, state.clone());
        ConnectionGuard { id, state, connections: self.clone() }
    }

    /// Waits until another connection may be opened.
    async fn make_room(&self) {
        loop {
            let ended = self.ended.notified();
            if self.lock().1.len() < MAX_CONNECTIONS || self.close_oldest_without_request() {
                return;
            }
            ended.await;
        }
    }

    /// Closes the oldest connection without a request in progress.
    fn close_oldest_without_request(&self) -> bool {
        let mut open = self.lock();
        let oldest = open.1.iter().find(|(_, state)| state.active_requests.load(Ordering::Relaxed) == 0);
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        open.1.remove(&id).is_some_and(|state| {
            state.close.cancel();
            true
        })
    }

    fn close_all(&self) {
        self.lock().1.values().for_each(|state| state.close.cancel());
    }
}

impl ConnectionActivity {
    fn record_activity(&self) {
        let passed = u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_activity_ms.store(passed, Ordering::Relaxed);
    }

    /// Returns once the connection has been idle for [`IDLE_TIMEOUT`].
    async fn wait_until_idle(&self) {
        loop {
            let last = self.opened_at + Duration::from_millis(self.last_activity_ms.load(Ordering::Relaxed));
            if last.elapsed() >= IDLE_TIMEOUT {
                return;
            }
            tokio::time::sleep_until((last + IDLE_TIMEOUT).into()).await;
        }
    }
}

/// Counts a connection as open until dropped.
struct ConnectionGuard {
    id: u64,
    state: Arc<ConnectionActivity>,
    connections: Arc<Connections>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.lock().1.remove(&self.id);
        self.connections.ended.notify_waiters();
    }
}

/// Counts a request as in progress until dropped.
struct ActiveRequest(Arc<ConnectionActivity>);

impl ActiveRequest {
    fn start(state: &Arc<ConnectionActivity>) -> ActiveRequest {
        state.active_requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(state.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

fn track_body(answer: Response<Body>, active_request: ActiveRequest) -> Response<TrackedBody> {
    answer.map(|body| TrackedBody { body, _in_progress: active_request })
}

/// Response body that keeps its request in progress until it is sent.
struct TrackedBody {
    body: Body,
    _in_progress: ActiveRequest,
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// TCP stream that records the time of the last byte.
struct ActivityStream {
    stream: TcpStream,
    state: Arc<ConnectionActivity>,
}

impl AsyncRead for ActivityStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.state.record_activity();
        }
        read
    }
}

impl AsyncWrite for ActivityStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.state.record_activity();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        if written.is_ready() {
            self.state.record_activity();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
