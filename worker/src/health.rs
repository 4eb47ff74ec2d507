//! `/healthz` and `/readyz`, for those who watch over processes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Says whether the process is ready for work; if not, why.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, std::result::Result<(), String>> + Send + Sync>;

/// A listener, so that an address that is taken is known at the start.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = "choose another address with --listen";
        Error::new(Class::Local, format!("listening on {address}"), error.to_string()).hint(hint).because(error)
    })
}

/// Answers until stopped: `/healthz` while the process lives, `/readyz` as `ready` says (503 and why).
pub async fn answer(listener: TcpListener, ready: Ready, stop: CancellationToken) {
    let router =
        Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(is_ready)).with_state(ready);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::warn!("health is not answered any more: {error}");
    }
}

async fn is_ready(State(ready): State<Ready>) -> (StatusCode, String) {
    match ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
