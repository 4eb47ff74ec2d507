//! The messages and files part of Telegram's Bot API. Applies the checks of the real API (core.telegram.org/bots/api)
//! and records posts.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use super::router_server::RouterServer;

/// Maximum length of a message in UTF-16 units, after parsing of entities.
const MAX_TEXT: usize = 4096;
/// Maximum file size in bytes.
const MAX_FILE: usize = 50_000_000;

/// A post in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TelegramPost {
    /// A message as shown to people, with its markup parsed.
    Message {
        /// Its text.
        text: String,
        /// Whether the whole text is preformatted.
        is_preformatted: bool,
    },
    /// A file.
    File {
        /// Its name.
        name: String,
        /// File content.
        content: Vec<u8>,
    },
}

/// The server, stopped on drop.
#[derive(Debug)]
pub struct TelegramServer {
    shared: Arc<TelegramServerState>,
    server: RouterServer,
}

#[derive(Debug)]
struct TelegramServerState {
    token: String,
    group: String,
    posts: Mutex<Vec<TelegramPost>>,
    requests: Mutex<u64>,
    /// Responses sent in place of the normal ones, once each.
    refusals: Mutex<Vec<(StatusCode, Value)>>,
}

impl TelegramServer {
    /// Starts a server with a single bot in a single group.
    pub async fn start(token: &str, group: &str) -> Self {
        let shared = Arc::new(TelegramServerState {
            token: token.to_owned(),
            group: group.to_owned(),
            posts: Mutex::default(),
            requests: Mutex::default(),
            refusals: Mutex::default(),
        });
        let router =
            Router::new().fallback(answer).layer(DefaultBodyLimit::max(2 * MAX_FILE)).with_state(Arc::clone(&shared));
        Self { shared, server: RouterServer::start(router).await }
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Returns the posts in order.
    pub fn posts(&self) -> Vec<TelegramPost> {
        self.shared.posts.lock().expect("no test panics in here").clone()
    }

    /// Returns the texts of the messages.
    pub fn texts(&self) -> Vec<String> {
        let text = |posted| match posted {
            TelegramPost::Message { text, .. } => Some(text),
            TelegramPost::File { .. } => None,
        };
        self.posts().into_iter().filter_map(text).collect()
    }

    /// Counts all requests.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.lock().expect("no test panics in here")
    }

    /// Tells the next request to retry after this many seconds.
    pub fn rate_limit_once(&self, seconds: u64) {
        let refusal = json!({
            "ok": false,
            "error_code": 429,
            "description": format!("Too Many Requests: retry after {seconds}"),
            "parameters": {"retry_after": seconds},
        });
        self.refuse_once(StatusCode::TOO_MANY_REQUESTS, refusal);
    }

    /// Sends this response to the next request.
    pub fn refuse_once(&self, status: StatusCode, answer: Value) {
        self.shared.refusals.lock().expect("no test panics in here").push((status, answer));
    }
}

async fn answer(State(shared): State<Arc<TelegramServerState>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    *shared.requests.lock().expect("no test panics in here") += 1;
    let refusal = {
        let mut refusals = shared.refusals.lock().expect("no test panics in here");
        if refusals.is_empty() { None } else { Some(refusals.remove(0)) }
    };
    if let Some((status, answer)) = refusal {
        return (status, Json(answer)).into_response();
    }
    match handle(&shared, uri.path(), &headers, &body) {
        Ok(posted) => {
            shared.posts.lock().expect("no test panics in here").push(posted);
            Json(json!({"ok": true, "result": {"message_id": 1}})).into_response()
        }
        Err((code, description)) => {
            let status = StatusCode::from_u16(code).expect("a status");
            let answer = json!({"ok": false, "error_code": code, "description": description});
            (status, Json(answer)).into_response()
        }
    }
}

type Refused = (u16, String);

fn bad(description: impl Into<String>) -> Refused {
    (400, format!("Bad Request: {}", description.into()))
}

fn handle(shared: &TelegramServerState, path: &str, headers: &HeaderMap, body: &[u8]) -> Result<TelegramPost, Refused> {
    let (token, method) =
        path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')).ok_or((404, "Not Found".to_owned()))?;
    if token != shared.token {
        return Err((401, "Unauthorized".to_owned()));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match method {
        "sendMessage" => {
            let body: Value = serde_json::from_slice(body).map_err(|_| bad("can't parse the request"))?;
            check_chat(shared, &text_of(&body["chat_id"]))?;
            message(&text_of(&body["text"]), body["parse_mode"].as_str())
        }
        "sendDocument" => {
            let boundary = kind.split_once("boundary=").map(|(_, rest)| rest.trim_matches('"'));
            let fields = multipart(body, boundary.ok_or_else(|| bad("no multipart form"))?);
            let chat = fields.iter().find(|field| field.name == "chat_id").ok_or_else(|| bad("chat_id is empty"))?;
            check_chat(shared, &String::from_utf8_lossy(&chat.content))?;
            let file = fields.into_iter().find(|field| field.name == "document");
            let file = file.ok_or_else(|| bad("there is no document in the request"))?;
            match (file.file, file.content.len()) {
                (None, _) | (_, 0) => Err(bad("file must be non-empty")),
                (_, size) if size > MAX_FILE => Err((413, "Request Entity Too Large".to_owned())),
                (Some(name), _) => Ok(TelegramPost::File { name, content: file.content }),
            }
        }
        _ => Err((404, "Not Found".to_owned())),
    }
}

/// Converts a string or a number to text.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn check_chat(shared: &TelegramServerState, chat: &str) -> Result<(), Refused> {
    match chat == shared.group {
        true => Ok(()),
        false => Err(bad("chat not found")),
    }
}

fn message(written: &str, mode: Option<&str>) -> Result<TelegramPost, Refused> {
    let (text, is_preformatted) = match mode {
        None => (written.to_owned(), false),
        Some("HTML") => parse_html(written).map_err(|why| bad(format!("can't parse entities: {why}")))?,
        Some(other) => return Err(bad(format!("unsupported parse_mode {other}"))),
    };
    let text = text.trim().to_owned();
    match text.encode_utf16().count() {
        0 => Err(bad("message text is empty")),
        long if long > MAX_TEXT => Err(bad("message is too long")),
        _ => Ok(TelegramPost::Message { text, is_preformatted }),
    }
}

/// Converts Telegram's HTML to text, and reports whether all of it is in `<pre>`.
fn parse_html(written: &str) -> Result<(String, bool), String> {
    const TAGS: [&str; 13] =
        ["b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "tg-spoiler", "code", "pre", "blockquote"];
    let (mut text, mut open, mut is_preformatted) = (String::new(), Vec::new(), true);
    let mut rest = written;
    while let Some(c) = rest.chars().next() {
        match c {
            '<' => {
                let (tag, after) = rest[1..].split_once('>').ok_or("unclosed start tag")?;
                rest = after;
                match tag.strip_prefix('/') {
                    Some(name) if open.last() == Some(&name) => _ = open.pop(),
                    Some(name) => return Err(format!("unmatched end tag \"{name}\"")),
                    None if TAGS.contains(&tag) => open.push(tag),
                    None => return Err(format!("unsupported start tag \"{tag}\"")),
                }
                continue;
            }
            '&' => {
                let (entity, after) = rest[1..].split_once(';').ok_or("an & that begins no entity")?;
                text.push(match entity {
                    "lt" => '<',
                    "gt" => '>',
                    "amp" => '&',
                    "quot" => '"',
                    other => return Err(format!("unknown entity \"{other}\"")),
                });
                rest = after;
            }
            c => {
                text.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        is_preformatted &= open.contains(&"pre");
    }
    match open.last() {
        Some(name) => Err(format!("can't find end tag corresponding to start tag \"{name}\"")),
        None => Ok((text, is_preformatted)),
    }
}

struct Field {
    name: String,
    file: Option<String>,
    content: Vec<u8>,
}

/// Parses the fields of a form (RFC 7578).
fn multipart(body: &[u8], boundary: &str) -> Vec<Field> {
    let mark = format!("--{boundary}");
    let mut fields = Vec::new();
    let mut starts = find_all(body, mark.as_bytes());
    starts.push(body.len());
    for pair in starts.windows(2) {
        let part = &body[(pair[0] + mark.len()).min(pair[1])..pair[1]];
        let Some(part) = part.strip_prefix(b"\r\n") else { continue };
        let Some(at) = find_all(part, b"\r\n\r\n").first().copied() else { continue };
        let head = String::from_utf8_lossy(&part[..at]).into_owned();
        let content = part[at + 4..].strip_suffix(b"\r\n").unwrap_or(&part[at + 4..]).to_vec();
        let value = |name: &str| {
            let (_, rest) = head.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        fields.push(Field { name: value(" name").unwrap_or_default(), file: value("filename"), content });
    }
    fields
}

fn find_all(body: &[u8], wanted: &[u8]) -> Vec<usize> {
    body.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_parsed_as_telegram_does() {
        assert_eq!(parse_html("<pre>a &lt;b&gt;</pre>"), Ok(("a <b>".to_owned(), true)));
        assert_eq!(parse_html("x <b>y</b>"), Ok(("x y".to_owned(), false)));
        for wrong in ["<pre>a", "<x>", "a < b", "a & b", "<b><i></b></i>", "&nbsp;"] {
            assert!(parse_html(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn length_is_counted_in_utf16_units_without_markup() {
        let wide = "🐳".repeat(2048);
        assert!(message(&format!("<pre>{wide}</pre>"), Some("HTML")).is_ok());
        let (code, why) = message(&format!("{wide}x"), None).unwrap_err();
        assert_eq!((code, why.as_str()), (400, "Bad Request: message is too long"));
    }
}
