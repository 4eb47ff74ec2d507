//! Transport below AMQP: TCP, and TLS by the same rustls as everywhere else.
//!
//! lapin's own TLS pulls in PKCS #12 readers with obsolete ciphers. Built without it, lapin silently speaks plain TCP
//! to `amqps://`: so connections are opened here, and never by lapin's `connect`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
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
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use tokio_util::either::Either;

use super::CONNECT_TIMEOUT;
use imgsync_oci::error::Result;
use imgsync_tls::client_tls_config;

/// Byte stream of a connection, plain or TLS.
type TcpOrTls = Compat<Either<TcpStream, TlsStream<TcpStream>>>;

/// Opens a connection to an address. `tls_config` is used if the URL's scheme is `amqps`; the certificate must be valid
/// for the host of the URL.
pub(super) async fn open(
    uri: AMQPUri,
    address: SocketAddr,
    options: ConnectionProperties,
    tls: Arc<ClientConfig>,
) -> lapin::Result<Connection> {
    let kit = RuntimeParts::new(Tokio::current(), TokioReactor(Tokio::current()));
    let connect = async move |uri: AMQPUri, _: Runtime<RuntimeParts<Tokio, TokioReactor>>| {
        let bytes = tokio::time::timeout(CONNECT_TIMEOUT, connect(&uri, address, tls.clone())).await;
        let bytes = bytes.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "timed out"))??;
        Ok(AsyncTcpStream::Plain(bytes.compat()))
    };
    Connection::connector(uri, Runtime::new(kit), connect, options).await
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
        async move { Ok(Either::Left(TcpStream::connect(address).await?).compat()) }
    }
}
