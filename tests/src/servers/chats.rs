//! Webhook bots of Slack, WeCom, Feishu and DingTalk, and a ping target: each applies the documented checks of the real
//! one and records messages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;
use serde_json::{Value, json};

use super::router_server::RouterServer;

/// Token in the URL of each bot.
const TOKEN: &str = "t0k3n-in-the-url";
/// Secret of signed bots.
const SECRET: &str = "SEC-of-the-robot";
/// Lifetime of a signature.
const SIGNATURE_TTL_SECONDS: i64 = 3600;

/// A received message or ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Target: slack, wecom, feishu, dingtalk or ping.
    pub to: &'static str,
    /// Text of the message as shown there.
    pub text: String,
}

/// The server of all bots, stopped on drop.
#[derive(Debug)]
pub struct ChatServer {
    shared: Arc<ChatServerState>,
    server: RouterServer,
}

#[derive(Debug, Default)]
struct ChatServerState {
    messages: Mutex<Vec<ChatMessage>>,
    requests: Mutex<u64>,
    /// Responses sent in place of the normal ones, once each.
    refusals: Mutex<Vec<(u16, String)>>,
}

impl ChatServer {
    /// Starts the server.
    pub async fn start() -> Self {
        let shared = Arc::new(ChatServerState::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        Self { shared, server: RouterServer::start(router).await }
    }

    /// Returns the URL of a bot, as its settings show it.
    ///
    /// # Panics
    /// If there is no such bot.
    pub fn url(&self, to: &str) -> String {
        let path = match to {
            "slack" => format!("/services/T000/B000/{TOKEN}"),
            "wecom" => format!("/cgi-bin/webhook/send?key={TOKEN}"),
            "feishu" => format!("/open-apis/bot/v2/hook/{TOKEN}"),
            "dingtalk" => format!("/robot/send?access_token={TOKEN}"),
            "ping" => format!("/ping/{TOKEN}"),
            other => panic!("no robot is called {other}"),
        };
        format!("http://{}{path}", self.server.address)
    }

    /// Returns the secret of signed bots.
    pub fn secret(&self) -> &'static str {
        SECRET
    }

    /// Returns the secret part of its URLs.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// Returns the messages in order.
    pub fn messages(&self) -> Vec<ChatMessage> {
        self.shared.messages.lock().expect("no test panics in here").clone()
    }

    /// Returns the messages to one target.
    pub fn messages_to(&self, to: &str) -> Vec<String> {
        self.messages().into_iter().filter(|said| said.to == to).map(|said| said.text).collect()
    }

    /// Counts all requests.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.lock().expect("no test panics in here")
    }

    /// Sends this status and body to the next request.
    pub fn refuse_once(&self, status: u16, body: impl Into<String>) {
        self.shared.refusals.lock().expect("no test panics in here").push((status, body.into()));
    }
}

async fn answer(
    State(shared): State<Arc<ChatServerState>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    *shared.requests.lock().expect("no test panics in here") += 1;
    let refusal = {
        let mut refusals = shared.refusals.lock().expect("no test panics in here");
        if refusals.is_empty() { None } else { Some(refusals.remove(0)) }
    };
    if let Some((status, body)) = refusal {
        return (StatusCode::from_u16(status).expect("a status"), body).into_response();
    }
    let said = |to: &'static str, text: &str| {
        shared.messages.lock().expect("no test panics in here").push(ChatMessage { to, text: text.to_owned() });
    };
    if uri.path() == format!("/ping/{TOKEN}") && method == Method::GET {
        said("ping", "");
        return "OK".into_response();
    }
    let is_json =
        headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let parsed: Option<Value> = serde_json::from_slice(&body).ok().filter(|_| method == Method::POST && is_json);
    match uri.path() {
        path if path == format!("/services/T000/B000/{TOKEN}") => match slack(parsed.as_ref()) {
            Ok(text) => {
                said("slack", &text);
                "ok".into_response()
            }
            Err((status, word)) => (StatusCode::from_u16(status).expect("a status"), word).into_response(),
        },
        path if path.starts_with("/services/") => (StatusCode::NOT_FOUND, "no_team").into_response(),
        "/cgi-bin/webhook/send" => match wecom(&query, parsed.as_ref()) {
            Ok(text) => {
                said("wecom", &text);
                Json(json!({"errcode": 0, "errmsg": "ok"})).into_response()
            }
            Err((code, words)) => Json(json!({"errcode": code, "errmsg": words})).into_response(),
        },
        path if path == format!("/open-apis/bot/v2/hook/{TOKEN}") => match feishu(body.len(), parsed.as_ref()) {
            Ok(text) => {
                said("feishu", &text);
                Json(json!({"code": 0, "data": {}, "msg": "success"})).into_response()
            }
            Err((code, words)) => Json(json!({"code": code, "data": {}, "msg": words})).into_response(),
        },
        "/robot/send" => match dingtalk(&query, parsed.as_ref()) {
            Ok(text) => {
                said("dingtalk", &text);
                Json(json!({"errcode": 0, "errmsg": "ok"})).into_response()
            }
            Err((code, words)) => Json(json!({"errcode": code, "errmsg": words})).into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Slack: `text`, not empty, at most 40,000 characters, with everything but markup escaped.
fn slack(body: Option<&Value>) -> Result<String, (u16, &'static str)> {
    let text = body.and_then(|body| body["text"].as_str()).ok_or((400, "invalid_payload"))?;
    match text.chars().count() {
        0 => Err((400, "no_text")),
        40_001.. => Err((400, "msg_too_long")),
        // `<!channel>` would notify everybody.
        _ if text.contains("<!") || text.contains("<@") => Err((400, "a_mention_that_nobody_wrote")),
        _ => Ok(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")),
    }
}

type Refused = (i64, String);

/// WeCom: `msgtype` and a `content` of at most 2,048 bytes.
fn wecom(query: &HashMap<String, String>, body: Option<&Value>) -> Result<String, Refused> {
    if query.get("key").map(String::as_str) != Some(TOKEN) {
        return Err((93_000, "invalid webhook url".to_owned()));
    }
    let body = body.ok_or((47_001, "data format error".to_owned()))?;
    if body["msgtype"] != "text" {
        return Err((40_008, "invalid message type".to_owned()));
    }
    let text = body["text"]["content"].as_str().ok_or((44_004, "empty content".to_owned()))?;
    match text.len() {
        0 => Err((44_004, "empty content".to_owned())),
        2_049.. => Err((40_058, format!("text.content exceed max length 2048. invalid length: {}", text.len()))),
        _ => Ok(text.to_owned()),
    }
}

/// Feishu: HMAC-SHA256 of nothing, keyed by the time in seconds, a line feed and the secret; at most 20 KB.
fn feishu(size: usize, body: Option<&Value>) -> Result<String, Refused> {
    let body = body.ok_or((9_499, "Bad Request".to_owned()))?;
    if size > 20_000 {
        return Err((9_499, "Bad Request: the body is too large".to_owned()));
    }
    let time = body["timestamp"].as_str().and_then(|time| time.parse::<i64>().ok()).unwrap_or_default();
    let key = hmac::Key::new(hmac::HMAC_SHA256, format!("{time}\n{SECRET}").as_bytes());
    let wanted = STANDARD.encode(hmac::sign(&key, b""));
    if (Timestamp::now().as_second() - time).abs() > SIGNATURE_TTL_SECONDS || body["sign"] != wanted.as_str() {
        return Err((19_021, "sign match fail or timestamp is not within one hour from current time".to_owned()));
    }
    match (body["msg_type"].as_str(), body["content"]["text"].as_str()) {
        (Some("text"), Some(text)) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err((9_499, "Bad Request".to_owned())),
    }
}

/// DingTalk: signed in the query by HMAC-SHA256 of the time in milliseconds, a line feed and the secret; at most 20,000
/// bytes.
fn dingtalk(query: &HashMap<String, String>, body: Option<&Value>) -> Result<String, Refused> {
    if query.get("access_token").map(String::as_str) != Some(TOKEN) {
        return Err((300_005, "token is not exist".to_owned()));
    }
    let time = query.get("timestamp").and_then(|time| time.parse::<i64>().ok()).unwrap_or_default();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let wanted = STANDARD.encode(hmac::sign(&key, format!("{time}\n{SECRET}").as_bytes()));
    if (Timestamp::now().as_millisecond() - time).abs() > SIGNATURE_TTL_SECONDS * 1000
        || query.get("sign") != Some(&wanted)
    {
        return Err((310_000, "sign not match".to_owned()));
    }
    let body = body.ok_or((43_004, "invalid Content-Type or body".to_owned()))?;
    match (body["msgtype"].as_str(), body["text"]["content"].as_str()) {
        (Some("text"), Some(text)) if !text.is_empty() && text.len() <= 20_000 => Ok(text.to_owned()),
        _ => Err((40_035, "invalid parameter".to_owned())),
    }
}
