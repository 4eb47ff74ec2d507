//! Transport below AMQP: TCP, and TLS by the same rustls as everywhere else.
//!
//! lapin's own TLS pulls in PKCS #12 readers with obsolete ciphers. Built without it, lapin silently speaks plain TCP
//! to `amqps://`: so connections are opened here, and never by lapin's `connect`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::CONNECT_TIMEOUT;
use imgsync_oci::error::Result;
use imgsync_tls::client_tls_config;

/// Byte stream of a connection, plain or TLS.
type TcpOrTls = Compat<Abortable<Either<TcpStream, TlsStream<TcpStream>>>>;

/// Opens a connection to an address. `tls_config` is used if the URL's scheme is `amqps`; the certificate must be valid
/// for the host of the URL.
pub(super) async fn open(
    uri: AMQPUri,
    address: SocketAddr,
    options: ConnectionProperties,
    tls: Arc<ClientConfig>,
) -> lapin::Result<Connection> {
    let kit = RuntimeParts::new(Tokio::current(), TokioReactor(Tokio::current()));
    // lapin reads in a thread of its own, which would wait for a silent server for ever if this call is dropped.
    let abort = CancellationToken::new();
    let guard = abort.clone().drop_guard();
    let connect = async move |uri: AMQPUri, _: Runtime<RuntimeParts<Tokio, TokioReactor>>| {
        let bytes = tokio::time::timeout(CONNECT_TIMEOUT, connect(&uri, address, tls.clone()));
        let bytes = tokio::select! {
            bytes = bytes => bytes.map_err(|_| timed_out())??,
            () = abort.cancelled() => return Err(timed_out().into()),
        };
        Ok(AsyncTcpStream::Plain(Abortable::new(bytes, abort.clone()).compat()))
    };
    let connection = Connection::connector(uri, Runtime::new(kit), connect, options).await?;
    guard.disarm();
    Ok(connection)
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "timed out")
}

/// Builds the TLS configuration: trusts `ca` (PEM) in addition to the system's authorities.
pub(super) fn tls_config(ca: Option<&str>) -> Result<Arc<ClientConfig>> {
    let own: Vec<Vec<u8>> = ca.iter().map(|pem| pem.as_bytes().to_vec()).collect();
    let mut config = client_tls_config(&own)?;
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}

async fn connect(
    uri: &AMQPUri,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
    // URLs write IPv6 addresses in brackets.
    let host = uri.authority.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    match uri.scheme {
        AMQPScheme::AMQP => Ok(Either::Left(stream)),
        AMQPScheme::AMQPS => {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            Ok(Either::Right(TlsConnector::from(tls).connect(name, stream).await?))
        }
    }
}

/// A stream whose reads fail once it was aborted.
struct Abortable<S> {
    stream: S,
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Abortable<S> {
    fn new(stream: S, abort: CancellationToken) -> Abortable<S> {
        Abortable { stream, aborted: Box::pin(abort.cancelled_owned()) }
    }
}

impl<S: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Abortable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.aborted.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out())),
            Poll::Pending => Pin::new(&mut self.stream).poll_read(cx, to),
        }
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for Abortable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Tokio's sockets, with or without TLS.
#[derive(Debug, Clone)]
struct TokioReactor(Tokio);

impl Reactor for TokioReactor {
    type TcpStream = TcpOrTls;
    type Sleep = tokio::time::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // Nothing here registers handles of its own.
        Err::<TcpOrTls, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    #[allow(clippy::manual_async_fn, reason = "the future must not borrow what it is asked of")]
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        async move {
            let stream = Either::Left(TcpStream::connect(address).await?);
            Ok(Abortable::new(stream, CancellationToken::new()).compat())
        }
    }
}
