//! An axum router served on a free loopback port.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running router, stopped on drop.
#[derive(Debug)]
pub(super) struct RouterServer {
    pub(super) address: SocketAddr,
    _stop: DropGuard,
}

impl RouterServer {
    /// Starts serving the router.
    pub(super) async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let _ = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned()).await;
        });
        Self { address, _stop: stop.drop_guard() }
    }
}
