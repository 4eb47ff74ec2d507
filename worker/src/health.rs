//! `/healthz` and `/readyz` for supervisors, and a client for images without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::future::BoxFuture;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{host_check, server};

/// Checks readiness: `Err` with the reason if the process is not ready, else a list of warnings.
pub type ReadinessCheck = Arc<dyn Fn() -> BoxFuture<'static, std::result::Result<Vec<String>, String>> + Send + Sync>;

/// Timeout of a readiness request; the process checks broker and store before it responds.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum response size in bytes; no response is that long.
const MAX_RESPONSE_BYTES: u64 = 16 * 1024;

/// Binds a listener, so that an address in use is reported at startup.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = "choose another address with --listen";
        Error::new(ErrorKind::Local, format!("listening on {address}"), error.to_string())
            .with_hint(hint)
            .with_source(error)
    })
}

/// Serves `/healthz` while the process lives, `/readyz` according to `ready` (503 with the reason), and `more`, until
/// stopped.
pub async fn serve(listener: TcpListener, ready: ReadinessCheck, more: Router, stop: CancellationToken) {
    let router = router(ready).merge(more);
    let router = match listener.local_addr() {
        Ok(address) => host_check::reject_foreign_hosts(router, address.ip()),
        Err(_) => router,
    };
    server::serve(listener, router, &stop).await;
}

/// Returns a router with `/healthz` and `/readyz`, for a larger server.
pub fn router(ready: ReadinessCheck) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(get_readyz)).with_state(ready)
}

async fn get_readyz(State(ready): State<ReadinessCheck>) -> (StatusCode, String) {
    match ready().await {
        Ok(complaints) => {
            (StatusCode::OK, ["ready".to_owned()].into_iter().chain(complaints).map(|line| line + "\n").collect())
        }
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Checks whether the process listening on an address is ready; an unspecified address means loopback.
///
/// # Errors
///
/// `Unreachable` if nothing responds, or with the reason if the process is not ready.
pub async fn check_ready(address: SocketAddr) -> Result<()> {
    let address = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    };
    let operation = format!("checking http://{address}/readyz");
    let failed = |why: String| Error::new(ErrorKind::Unreachable, &operation, why);
    let answer = match tokio::time::timeout(READY_TIMEOUT, fetch(address)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let hint = "is a worker running there? Use the address of its --listen";
            return Err(failed(error.to_string()).with_hint(hint).with_source(error));
        }
        Err(_) => return Err(failed(format!("no response within {} s", READY_TIMEOUT.as_secs()))),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => {
            // The response has a line for each reason, and one for each hint.
            let lines: Vec<_> = body.trim().lines().map(sanitize).map(|line| line.to_string()).collect();
            Err(failed(format!("not ready: {}", lines.join("; "))))
        }
    }
}

async fn fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn on_loopback_a_foreign_name_is_refused_and_elsewhere_every_name_is_answered() {
        for (listens_on, wanted) in [([127, 0, 0, 1], "421"), ([0, 0, 0, 0], "200")] {
            let listener = bind(SocketAddr::from((listens_on, 0))).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let stop = CancellationToken::new();
            let ready: ReadinessCheck = Arc::new(|| Box::pin(async { Ok(Vec::new()) }));
            let more = Router::new().route("/metrics", get(async || "metrics"));
            let answering = tokio::spawn(serve(listener, ready, more, stop.clone()));
            for path in ["/healthz", "/readyz", "/metrics"] {
                for (host, wanted) in [("evil.example", wanted), ("10.1.2.3:8080", wanted), ("localhost", "200")] {
                    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.unwrap();
                    assert_eq!(answer.split(' ').nth(1), Some(wanted), "{path} by {host}: {answer}");
                }
            }
            stop.cancel();
            answering.await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_listens_says_whether_it_is_ready_and_one_that_is_gone_is_told_from_it() {
        for (ready, wanted) in [
            (Ok(vec!["the broker blocks publishers".to_owned()]), None),
            (Err("the broker is away\u{1b}[31m".to_owned()), Some("broker is away")),
            (Err("no broker\nhint: start it".to_owned()), Some("not ready: no broker; hint: start it")),
        ] {
            let listener = bind(SocketAddr::from(([0, 0, 0, 0], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let answers = ready.clone();
            let ready: ReadinessCheck = Arc::new(move || {
                let ready = answers.clone();
                Box::pin(async move { ready })
            });
            let answering = tokio::spawn(serve(listener, ready, Router::new(), stop.clone()));
            let asked = check_ready(address).await;
            match wanted {
                None => asked.unwrap(),
                Some(why) => {
                    let error = asked.unwrap_err().to_string();
                    assert!(error.contains(why) && !error.contains('\u{1b}'), "{error}");
                }
            }
            stop.cancel();
            answering.await.unwrap();
            let gone = check_ready(address).await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::Unreachable);
            assert!(gone.hint().unwrap().contains("--listen"));
        }
    }
}
