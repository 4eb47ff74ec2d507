//! A webhook receiver that records requests, and refuses them on command.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

use super::router_server::RouterServer;

/// A received request.
#[derive(Clone, Debug)]
pub struct ReceivedWebhook {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl ReceivedWebhook {
    /// Returns a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Parses the body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// The receiver, stopped on drop.
#[derive(Debug)]
pub struct WebhookReceiver {
    shared: Arc<WebhookReceiverState>,
    server: RouterServer,
}

#[derive(Debug, Default)]
struct WebhookReceiverState {
    received: Mutex<Vec<ReceivedWebhook>>,
    refusals: Mutex<Vec<StatusCode>>,
}

impl WebhookReceiver {
    /// Starts a receiver that accepts everything.
    pub async fn start() -> Self {
        let shared = Arc::new(WebhookReceiverState::default());
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        Self { shared, server: RouterServer::start(router).await }
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Returns all requests in order, including refused ones.
    pub fn received(&self) -> Vec<ReceivedWebhook> {
        self.shared.received.lock().expect("no test panics in here").clone()
    }

    /// Refuses the next request with this status.
    pub fn refuse_once(&self, status: u16) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.shared.refusals.lock().expect("no test panics in here").push(status);
    }
}

async fn receive(
    State(shared): State<Arc<WebhookReceiverState>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let received =
        ReceivedWebhook { method: method.to_string(), target: uri.to_string(), headers, body: body.to_vec() };
    shared.received.lock().expect("no test panics in here").push(received);
    let mut refusals = shared.refusals.lock().expect("no test panics in here");
    if refusals.is_empty() { StatusCode::NO_CONTENT } else { refusals.remove(0) }
}
