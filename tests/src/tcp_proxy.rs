//! A TCP proxy that delays, throttles, counts and cuts connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Direction of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// The proxy. It stops with its connections on drop.
#[derive(Debug)]
pub struct TcpProxy {
    shared: Arc<TcpProxyState>,
    address: SocketAddr,
}

#[derive(Debug)]
struct TcpProxyState {
    to: Mutex<SocketAddr>,
    stop: CancellationToken,
    open: Mutex<CancellationToken>,
    refuse: AtomicBool,
    freeze: AtomicBool,
    /// Bytes of a client that freeze the proxy.
    freeze_on: Mutex<Option<Vec<u8>>>,
    connections: AtomicU64,
    live: AtomicU64,
    up: DirectionState,
    down: DirectionState,
}

/// Settings and counters of one direction, over all connections.
#[derive(Debug)]
struct DirectionState {
    bytes: AtomicU64,
    /// Byte count at which the connection that carries it is cut.
    cut_at: AtomicU64,
    delay_ms: AtomicU64,
    /// Bytes per second; 0 means no limit.
    bytes_per_second: AtomicU64,
}

impl DirectionState {
    fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            delay_ms: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
        }
    }
}

impl TcpProxy {
    /// Starts a proxy in front of `HOST:PORT`.
    ///
    /// # Panics
    /// If that is not an address.
    pub async fn start(to: &str) -> Self {
        Self::start_at("127.0.0.1:0", to).await
    }

    /// Starts a proxy at an address of this machine.
    ///
    /// # Panics
    /// If either is not an address, or the first is taken.
    pub async fn start_at(at: &str, to: &str) -> Self {
        let listener = TcpListener::bind(at).await.expect("the address is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(TcpProxyState {
            to: Mutex::new(to.parse().expect("an address and a port")),
            stop: CancellationToken::new(),
            open: Mutex::default(),
            refuse: AtomicBool::new(false),
            freeze: AtomicBool::new(false),
            freeze_on: Mutex::default(),
            connections: AtomicU64::new(0),
            live: AtomicU64::new(0),
            up: DirectionState::new(),
            down: DirectionState::new(),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, address }
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends new connections to another address.
    ///
    /// # Panics
    /// If that is not an address.
    pub fn retarget(&self, to: &str) {
        *self.shared.to.lock().expect("an address is whole") = to.parse().expect("an address and a port");
    }

    /// Cuts, once, the connection that carries the byte this far ahead.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        let route = self.direction_state(direction);
        route.cut_at.store(route.bytes.load(Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    /// Cuts all open connections.
    pub fn cut_all(&self) {
        std::mem::take(&mut *self.shared.open.lock().expect("a token is whole")).cancel();
    }

    /// Sets whether new connections are closed at once. Open ones continue.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Sets whether traffic is held. Connections stay open and silent.
    pub fn freeze(&self, freeze: bool) {
        self.shared.freeze.store(freeze, Ordering::SeqCst);
    }

    /// Holds traffic as [`TcpProxy::freeze`] does, from the moment when a client sends these bytes in one piece.
    pub fn freeze_on(&self, bytes: &[u8]) {
        *self.shared.freeze_on.lock().expect("the bytes are whole") = Some(bytes.to_vec());
    }

    /// Sets the delay of a direction, without throttling it.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.direction_state(direction).delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Throttles each connection in a direction; 0 means no limit.
    pub fn throttle(&self, direction: Direction, bytes_per_second: u64) {
        self.direction_state(direction).bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Returns the bytes carried in a direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.direction_state(direction).bytes.load(Ordering::SeqCst)
    }

    /// Counts the connections so far, including refused ones.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Counts the open connections.
    pub fn live_connections(&self) -> u64 {
        self.shared.live.load(Ordering::SeqCst)
    }

    fn direction_state(&self, direction: Direction) -> &DirectionState {
        self.shared.direction_state(direction)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl TcpProxyState {
    fn is_frozen_by(&self, bytes: &[u8]) -> bool {
        let freeze_on = self.freeze_on.lock().expect("the bytes are whole");
        freeze_on.as_ref().is_some_and(|wanted| bytes.windows(wanted.len()).any(|part| part == wanted))
    }

    fn direction_state(&self, direction: Direction) -> &DirectionState {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<TcpProxyState>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        if shared.refuse.load(Ordering::SeqCst) {
            // Closed by a reset, like a port without a listener.
            let _ = client.set_zero_linger();
            continue;
        }
        let cut = shared.open.lock().expect("a token is whole").child_token();
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.live.fetch_add(1, Ordering::SeqCst);
            let to = *shared.to.lock().expect("an address is whole");
            tokio::select! {
                () = carry(client, to, &shared) => {}
                () = cut.cancelled() => {}
                () = shared.stop.cancelled() => {}
            }
            shared.live.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Copies bytes both ways until both sides are done or one direction is cut.
async fn carry(client: TcpStream, to: SocketAddr, shared: &TcpProxyState) {
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = pump(client_read, server_write, shared, Direction::Up);
    let down = pump(server_read, client_write, shared, Direction::Down);
    let _ = tokio::try_join!(up, down);
}

/// The connection must be closed at once.
struct Cut;

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &TcpProxyState,
    direction: Direction,
) -> Result<(), Cut> {
    let route = shared.direction_state(direction);
    // Bytes wait here until they are due, so that a delay does not throttle.
    let (sender, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = from.read(&mut buffer).await.map_err(|_| Cut)?;
            if count == 0 {
                return Ok(());
            }
            let due = Instant::now() + Duration::from_millis(route.delay_ms.load(Ordering::SeqCst));
            sender.send((due, buffer[..count].to_vec())).await.map_err(|_| Cut)?;
        }
    };
    let write = async {
        while let Some((due, bytes)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            if direction == Direction::Up && shared.is_frozen_by(&bytes) {
                shared.freeze.store(true, Ordering::SeqCst);
            }
            while shared.freeze.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let bytes_per_second = route.bytes_per_second.load(Ordering::SeqCst);
            if bytes_per_second > 0 {
                tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / bytes_per_second as f64)).await;
            }
            let count = bytes.len() as u64;
            let before = route.bytes.fetch_add(count, Ordering::SeqCst);
            let cut_at = route.cut_at.load(Ordering::SeqCst);
            if before + count >= cut_at && route.cut_at.swap(u64::MAX, Ordering::SeqCst) != u64::MAX {
                let _ = to.write_all(&bytes[..cut_at.saturating_sub(before) as usize]).await;
                return Err(Cut);
            }
            to.write_all(&bytes).await.map_err(|_| Cut)?;
        }
        to.shutdown().await.map_err(|_| Cut)
    };
    tokio::try_join!(read, write).map(|_| ())
}
