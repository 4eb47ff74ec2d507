//! A mail submission server (RFC 5321): TLS from the first byte or by STARTTLS, a login (RFC 4954), and recorded mails.
//! Checks the order of commands, line lengths and dot stuffing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tls::Authority;

/// A received mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMail {
    /// MAIL FROM.
    pub from: String,
    /// RCPT TO.
    pub to: Vec<String>,
    /// Headers and body, with dots unstuffed and line ends normalized.
    pub data: String,
}

impl ReceivedMail {
    /// Returns an unfolded header; encoded words stay encoded.
    pub fn header(&self, name: &str) -> Option<String> {
        let head = self.data.split("\n\n").next()?.replace("\n ", " ").replace("\n\t", " ");
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    /// Returns type and decoded content of each part.
    pub fn parts(&self) -> Vec<(String, String)> {
        let boundary = self.header("content-type").and_then(|kind| {
            let (_, rest) = kind.split_once("boundary=\"")?;
            rest.split_once('"').map(|(boundary, _)| boundary.to_owned())
        });
        let whole = [self.data.clone()];
        let parts: Vec<String> = match &boundary {
            None => whole.to_vec(),
            Some(boundary) => {
                let mark = format!("--{boundary}");
                let parts = self.data.split(&mark).skip(1);
                parts
                    .filter(|part| !part.starts_with("--"))
                    .map(|part| part.trim_start_matches('\n').to_owned())
                    .collect()
            }
        };
        parts.iter().map(|part| decoded(part)).collect()
    }
}

/// Returns type and decoded content of a part.
fn decoded(part: &str) -> (String, String) {
    let (head, body) = part.split_once("\n\n").unwrap_or((part, ""));
    let value = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let content = match value("content-transfer-encoding").as_deref() {
        Some("base64") => {
            let text: String = body.chars().filter(|c| !c.is_whitespace()).collect();
            String::from_utf8(STANDARD.decode(text).expect("base64")).expect("UTF-8")
        }
        Some("quoted-printable") => quoted_printable(body),
        _ => body.to_owned(),
    };
    (value("content-type").unwrap_or_default(), content)
}

fn quoted_printable(body: &str) -> String {
    let body = body.replace("=\n", "");
    let (mut bytes, mut rest) = (Vec::new(), body.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'=', [high, low, after @ ..]) => {
                let pair = [*high, *low];
                let pair = std::str::from_utf8(&pair).expect("two digits");
                bytes.push(u8::from_str_radix(pair, 16).expect("two digits"));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// The server, stopped on drop.
#[derive(Debug)]
pub struct MailServer {
    shared: Arc<MailServerState>,
    address: SocketAddr,
    authority: Authority,
    _stop: DropGuard,
}

struct MailServerState {
    tls: TlsAcceptor,
    login: (String, String),
    mails: Mutex<Vec<ReceivedMail>>,
    refusals: Mutex<Vec<String>>,
}

impl std::fmt::Debug for MailServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl MailServer {
    /// Starts a server with one user. `wrapped` means TLS from the first byte.
    pub async fn start(user: &str, password: &str, wrapped: bool) -> Self {
        let authority = Authority::new();
        let shared = Arc::new(MailServerState {
            tls: authority.acceptor(&[], &[], false),
            login: (user.to_owned(), password.to_owned()),
            mails: Mutex::default(),
            refusals: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let (stop, sharing) = (CancellationToken::new(), Arc::clone(&shared));
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => match accepted { Ok(accepted) => accepted, Err(_) => return },
                    () = stopped.cancelled() => return,
                };
                let shared = Arc::clone(&sharing);
                tokio::spawn(async move {
                    if wrapped {
                        if let Ok(stream) = shared.tls.accept(stream).await {
                            let _ = Session::new(&shared, true).run(BufReader::new(stream), true).await;
                        }
                        return;
                    }
                    let mut session = Session::new(&shared, false);
                    if let Ok(Some(stream)) = session.run(BufReader::new(stream), true).await
                        && let Ok(stream) = shared.tls.accept(stream.into_inner()).await
                    {
                        let _ = Session::new(&shared, true).run(BufReader::new(stream), false).await;
                    }
                });
            }
        });
        Self { shared, address, authority, _stop: stop.drop_guard() }
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns the CA certificate as PEM.
    pub fn ca(&self) -> &str {
        self.authority.pem()
    }

    /// Returns the received mails.
    pub fn mails(&self) -> Vec<ReceivedMail> {
        self.shared.mails.lock().expect("no test panics in here").clone()
    }

    /// Refuses the next recipient with this line, such as `451 4.3.0 later`.
    pub fn refuse_once(&self, line: &str) {
        self.shared.refusals.lock().expect("no test panics in here").push(line.to_owned());
    }
}

/// State of a connection.
struct Session<'a> {
    shared: &'a MailServerState,
    is_secure: bool,
    is_known: bool,
    from: Option<String>,
    to: Vec<String>,
}

impl<'a> Session<'a> {
    fn new(shared: &'a MailServerState, is_secure: bool) -> Self {
        Self { shared, is_secure, is_known: false, from: None, to: Vec::new() }
    }

    /// Serves commands until the client quits, or starts TLS, in which case it returns the stream.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut stream: BufReader<S>,
        greets: bool,
    ) -> std::io::Result<Option<BufReader<S>>> {
        if greets {
            stream.write_all(b"220 mail.example ESMTP\r\n").await?;
            stream.flush().await?;
        }
        loop {
            let Some(line) = read_line(&mut stream).await? else { return Ok(None) };
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let answer = match verb.to_ascii_uppercase().as_str() {
                "EHLO" if self.is_secure => "250-mail.example\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN".to_owned(),
                "EHLO" => "250-mail.example\r\n250 STARTTLS".to_owned(),
                "STARTTLS" if !self.is_secure => {
                    stream.write_all(b"220 2.0.0 go ahead\r\n").await?;
                    stream.flush().await?;
                    return Ok(Some(stream));
                }
                "AUTH" => self.login(rest),
                "QUIT" => {
                    stream.write_all(b"221 2.0.0 bye\r\n").await?;
                    stream.flush().await?;
                    return Ok(None);
                }
                "NOOP" | "RSET" => "250 2.0.0 well".to_owned(),
                _ if !self.is_secure => "530 5.7.0 must issue a STARTTLS command first".to_owned(),
                _ if !self.is_known => "530 5.7.0 authentication required".to_owned(),
                "MAIL" => {
                    self.from = Some(within(rest));
                    self.to.clear();
                    "250 2.1.0 well".to_owned()
                }
                "RCPT" if self.from.is_some() => {
                    let refusal = self.shared.refusals.lock().expect("no test panics in here").pop();
                    match refusal {
                        Some(refusal) => refusal,
                        None => {
                            self.to.push(within(rest));
                            "250 2.1.5 well".to_owned()
                        }
                    }
                }
                "DATA" if !self.to.is_empty() => {
                    stream.write_all(b"354 end with a dot\r\n").await?;
                    stream.flush().await?;
                    self.data(&mut stream).await?
                }
                _ => "503 5.5.1 not now".to_owned(),
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            stream.flush().await?;
        }
    }

    fn login(&mut self, rest: &str) -> String {
        let (user, password) = &self.shared.login;
        let wanted = STANDARD.encode(format!("\0{user}\0{password}"));
        self.is_known = self.is_secure && rest == format!("PLAIN {wanted}");
        match self.is_known {
            true => "235 2.7.0 well".to_owned(),
            false => "535 5.7.8 authentication credentials invalid".to_owned(),
        }
    }

    async fn data<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut BufReader<S>) -> std::io::Result<String> {
        let (mut data, mut too_long) = (String::new(), false);
        loop {
            let Some(line) = read_line(stream).await? else { return Ok("451 4.0.0 gone".to_owned()) };
            if line == "." {
                break;
            }
            too_long |= line.len() > 998;
            data.push_str(line.strip_prefix('.').unwrap_or(&line));
            data.push('\n');
        }
        if too_long {
            return Ok("550 5.6.0 a line is longer than 998 bytes".to_owned());
        }
        let mail = ReceivedMail { from: self.from.take().unwrap_or_default(), to: std::mem::take(&mut self.to), data };
        for name in ["From", "Date", "Message-ID", "Subject", "To"] {
            if mail.header(name).is_none() {
                return Ok(format!("550 5.6.0 there is no {name}"));
            }
        }
        self.shared.mails.lock().expect("no test panics in here").push(mail);
        Ok("250 2.0.0 taken".to_owned())
    }
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(Some(line.to_owned())),
        None => Err(std::io::Error::other("a line does not end in CR LF")),
    }
}

/// Returns the text between angle brackets.
fn within(text: &str) -> String {
    let rest = text.split_once('<').map_or(text, |(_, rest)| rest);
    rest.split('>').next().unwrap_or_default().to_owned()
}
