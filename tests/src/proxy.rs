//! Proxies that lead any host name to a loopback address, so that tests reach "public" registries.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::Authority;

/// A request to a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRequest {
    /// `CONNECT`, the method of a plain request, or `SOCKS5`.
    pub method: String,
    /// Host as the client named it.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `user:password`, if sent.
    pub credentials: Option<String>,
    /// Whether the proxy knew the host and connected.
    pub forwarded: bool,
}

/// The proxy. It stops with its connections on drop.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<ProxyState>,
    address: SocketAddr,
    scheme: &'static str,
}

#[derive(Debug)]
struct ProxyState {
    table: Mutex<HashMap<String, String>>,
    requests: Mutex<Vec<ProxyRequest>>,
    credentials: Mutex<Option<String>>,
    refuse: AtomicBool,
    stop: CancellationToken,
}

#[derive(Clone)]
enum Protocol {
    Http,
    Https(TlsAcceptor),
    Socks5,
}

impl Proxy {
    /// Starts an HTTP proxy.
    pub async fn http() -> Self {
        Self::start(Protocol::Http, "http").await
    }

    /// Starts an HTTP proxy behind TLS, with a loopback certificate of this authority.
    pub async fn https(authority: &Authority) -> Self {
        Self::start(Protocol::Https(authority.acceptor(&[], &["http/1.1"], false)), "https").await
    }

    /// Starts a SOCKS5 proxy. Clients that let it resolve names use `socks5h://`.
    pub async fn socks5() -> Self {
        Self::start(Protocol::Socks5, "socks5h").await
    }

    async fn start(protocol: Protocol, scheme: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(ProxyState {
            table: Mutex::default(),
            requests: Mutex::default(),
            credentials: Mutex::default(),
            refuse: AtomicBool::new(false),
            stop: CancellationToken::new(),
        });
        tokio::spawn(accept(listener, protocol, Arc::clone(&shared)));
        Self { shared, address, scheme }
    }

    /// Leads a host name with any port to `HOST:PORT`. Other names are refused; loopback addresses need no entry.
    #[must_use]
    pub fn map_host(self, host: &str, to: &str) -> Self {
        let mut table = self.shared.table.lock().expect("the table is whole");
        table.insert(host.to_owned(), to.to_owned());
        drop(table);
        self
    }

    /// Requires a user and a password.
    #[must_use]
    pub fn require_credentials(self, user: &str, password: &str) -> Self {
        let mut credentials = self.shared.credentials.lock().expect("they are whole");
        *credentials = Some(format!("{user}:{password}"));
        drop(credentials);
        self
    }

    /// Sets whether all requests are refused.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Returns `http://127.0.0.1:PORT`, `https://…` or `socks5h://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns all requests.
    pub fn requests(&self) -> Vec<ProxyRequest> {
        self.shared.requests.lock().expect("the memory is whole").clone()
    }

    /// Returns the host of each request.
    pub fn hosts(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.host).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl ProxyState {
    /// Records a request and connects if it is allowed.
    async fn record_and_connect(
        &self,
        method: &str,
        host: &str,
        port: u16,
        credentials: Option<String>,
    ) -> Result<TcpStream, Refusal> {
        let wanted = self.credentials.lock().expect("they are whole").clone();
        let result = if wanted.is_some() && wanted != credentials {
            Err(Refusal::Credentials)
        } else {
            self.connect(host, port).await.ok_or(Refusal::Unreachable)
        };
        self.requests.lock().expect("the memory is whole").push(ProxyRequest {
            method: method.to_owned(),
            host: host.to_owned(),
            port,
            credentials,
            forwarded: result.is_ok(),
        });
        result
    }

    async fn connect(&self, host: &str, port: u16) -> Option<TcpStream> {
        if self.refuse.load(Ordering::SeqCst) {
            return None;
        }
        let led = self.table.lock().expect("the table is whole").get(host).cloned();
        let loopback = || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let to = led.or_else(|| loopback().then(|| format!("{host}:{port}")))?;
        TcpStream::connect(to).await.ok()
    }
}

enum Refusal {
    Credentials,
    Unreachable,
}

async fn accept(listener: TcpListener, protocol: Protocol, shared: Arc<ProxyState>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else { continue };
        let (protocol, shared) = (protocol.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let serve = async {
                match protocol {
                    Protocol::Http => serve_http(client, &shared).await,
                    Protocol::Https(acceptor) => serve_http(acceptor.accept(client).await?, &shared).await,
                    Protocol::Socks5 => serve_socks(client, &shared).await,
                }
            };
            // Clients must notice broken connections themselves.
            tokio::select! {
                _ = serve => {}
                () = shared.stop.cancelled() => {}
            }
        });
    }
}

/// Serves one HTTP proxy request: a tunnel, or a plain request after which the connection is closed.
async fn serve_http(mut client: impl AsyncRead + AsyncWrite + Unpin, shared: &ProxyState) -> io::Result<()> {
    let (head, rest) = read_head(&mut client).await?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a request to a proxy");
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().ok_or_else(malformed)?);
    let tunnel = method == "CONNECT";
    let (authority, path) = if tunnel {
        (target, String::new())
    } else {
        let (authority, path) =
            target.strip_prefix("http://").ok_or_else(malformed)?.split_once('/').ok_or_else(malformed)?;
        (authority, format!("/{path}"))
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| malformed())?),
        None => (authority, 80),
    };
    let (ours, theirs): (Vec<_>, Vec<_>) = lines.filter(|line| !line.is_empty()).partition(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        name.starts_with("proxy-") || name == "connection"
    });
    let mut server = match shared.record_and_connect(method, host, port, credentials(&ours)).await {
        Ok(server) => server,
        Err(refusal) => {
            let status = match refusal {
                Refusal::Credentials => {
                    "407 Proxy Authentication Required\r\nproxy-authenticate: Basic realm=\"proxy\""
                }
                Refusal::Unreachable => "502 Bad Gateway",
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
    };
    if tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        let headers: String = theirs.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        server.write_all(head.as_bytes()).await?;
    }
    server.write_all(&rest).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

/// Reads a request head, and the part of the body that came with it.
async fn read_head(client: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), rest));
        }
        if client.read_buf(&mut read).await? == 0 || read.len() > 64 * 1024 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn credentials(headers: &[&str]) -> Option<String> {
    let pairs = headers.iter().filter_map(|line| line.split_once(':'));
    let mut values = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization")).map(|(_, value)| value);
    let encoded = values.next()?.trim().strip_prefix("Basic ")?;
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

/// RFC 1928, CONNECT only, and RFC 1929.
async fn serve_socks(mut client: TcpStream, shared: &ProxyState) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not SOCKS5");
    if client.read_u8().await? != 5 {
        return Err(malformed());
    }
    let methods = read_counted(&mut client).await?;
    let wanted = shared.credentials.lock().expect("they are whole").clone();
    let refused = |credentials: Option<String>| ProxyRequest {
        method: "SOCKS5".to_owned(),
        host: String::new(),
        port: 0,
        credentials,
        forwarded: false,
    };
    let credentials = if methods.contains(&2) {
        client.write_all(&[5, 2]).await?;
        client.read_u8().await?;
        let user = read_counted(&mut client).await?;
        let password = read_counted(&mut client).await?;
        let said = format!("{}:{}", String::from_utf8_lossy(&user), String::from_utf8_lossy(&password));
        if wanted.is_some_and(|wanted| wanted != said) {
            shared.requests.lock().expect("the memory is whole").push(refused(Some(said)));
            return client.write_all(&[1, 1]).await;
        }
        client.write_all(&[1, 0]).await?;
        Some(said)
    } else if wanted.is_some() {
        shared.requests.lock().expect("the memory is whole").push(refused(None));
        return client.write_all(&[5, 0xff]).await;
    } else {
        client.write_all(&[5, 0]).await?;
        None
    };
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let host = match request {
        [5, 1, _, 1] => IpAddr::from(client.read_u32().await?.to_be_bytes()).to_string(),
        [5, 1, _, 3] => String::from_utf8_lossy(&read_counted(&mut client).await?).into_owned(),
        [5, 1, _, 4] => IpAddr::from(client.read_u128().await?.to_be_bytes()).to_string(),
        _ => return Err(malformed()),
    };
    let port = client.read_u16().await?;
    let reply = |code| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    match shared.record_and_connect("SOCKS5", &host, port, credentials).await {
        Ok(mut server) => {
            client.write_all(&reply(0)).await?;
            copy_bidirectional(&mut client, &mut server).await.map(|_| ())
        }
        Err(Refusal::Credentials) => client.write_all(&reply(2)).await,
        Err(Refusal::Unreachable) => client.write_all(&reply(4)).await,
    }
}

async fn read_counted(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
