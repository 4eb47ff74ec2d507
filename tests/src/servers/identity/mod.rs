//! Plays the services of clouds that hand out identities: metadata services and token services, on one loopback address.
//! Each request is checked against what the real service documents, and recorded.

mod amazon;
mod azure;
mod google;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use azure::APP_SECRET;
pub use google::{SERVICE_ACCOUNT, SERVICE_ACCOUNT_KEY};

/// A recorded request.
#[derive(Clone, Debug)]
pub struct RecordedIdentityRequest {
    /// Method.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Query.
    pub query: String,
    /// Body.
    pub body: String,
    /// Status of the answer.
    pub status: u16,
}

/// Behaviour of the services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityBehavior {
    /// As documented.
    #[default]
    Right,
    /// Accepts the connection, and never answers.
    Stall,
    /// Answers with many megabytes.
    Huge,
    /// Answers with a page, as captive portals do.
    Html,
    /// Redirects to another path of its own.
    Redirect,
    /// Answers so many requests with 503, and the next ones as documented.
    Busy(u32),
    /// Refuses the identity, in the words of the real service.
    Refuse,
}

/// What the services hand out, and what they require.
#[derive(Clone, Debug)]
pub struct IdentityGrants {
    /// Key id, secret key and session token of Amazon's roles.
    pub keys: (&'static str, &'static str, &'static str),
    /// Token that a workload shows: in files, and in `Authorization`.
    pub workload_token: &'static str,
    /// Access token of Google's services, and of Entra.
    pub access_token: &'static str,
    /// Life of what is handed out in seconds.
    pub lifetime: u64,
    /// Client id of Azure's identity, if it must be named.
    pub client_id: Option<&'static str>,
    /// Whether each access token of Google's services differs from the one before, as those of the real ones do.
    pub every_token_differs: bool,
}

/// The services, stopped on drop.
#[derive(Debug)]
pub struct IdentityServices {
    shared: Arc<Shared>,
    address: SocketAddr,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    grants: Mutex<IdentityGrants>,
    behavior: Mutex<IdentityBehavior>,
    requests: Mutex<Vec<RecordedIdentityRequest>>,
}

/// A request as the services see it.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    body: &'a str,
    refuses: bool,
    /// How many requests came before.
    number: usize,
    origin: String,
}

impl Asked<'_> {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns a field of the form in the body.
    fn field(&self, name: &str) -> String {
        pair(self.body, name)
    }

    /// Returns a parameter of the query.
    fn parameter(&self, name: &str) -> String {
        pair(self.query, name)
    }

    fn is_form(&self) -> bool {
        *self.method == Method::POST && self.header("content-type") == "application/x-www-form-urlencoded"
    }
}

fn pair(pairs: &str, name: &str) -> String {
    let url = reqwest::Url::parse(&format!("http://pairs/?{pairs}")).expect("pairs are a query");
    let found = url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    found.unwrap_or_default()
}

/// An answer of a service.
type Answer = (StatusCode, Vec<(&'static str, String)>, String);

fn json(status: u16, value: &serde_json::Value) -> Answer {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, vec![("content-type", "application/json".to_owned())], value.to_string())
}

fn text(status: u16, text: impl Into<String>) -> Answer {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, vec![("content-type", "text/plain".to_owned())], text.into())
}

impl IdentityServices {
    /// Starts the services.
    pub async fn start(grants: IdentityGrants) -> Self {
        let shared =
            Arc::new(Shared { grants: Mutex::new(grants), behavior: Mutex::default(), requests: Mutex::default() });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let router = Router::new().fallback(answer).with_state((Arc::clone(&shared), address));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            let server = axum::serve(listener, router);
            tokio::select! {
                _ = server.into_future() => {}
                () = stopped => {}
            }
        });
        Self { shared, address, _stop: stop.drop_guard() }
    }

    /// Returns the host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the behaviour.
    pub fn behave(&self, behavior: IdentityBehavior) {
        *self.shared.behavior.lock().expect("it is whole") = behavior;
    }

    /// Changes what is handed out.
    pub fn grant(&self, change: impl FnOnce(&mut IdentityGrants)) {
        change(&mut self.shared.grants.lock().expect("they are whole"));
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<RecordedIdentityRequest> {
        self.shared.requests.lock().expect("the memory is whole").clone()
    }

    /// Returns the paths of all requests so far, with their methods and the status of the answers.
    pub fn paths(&self) -> Vec<String> {
        let requests = self.requests();
        requests.iter().map(|asked| format!("{} {} {}", asked.method, asked.path, asked.status)).collect()
    }
}

async fn answer(
    State((shared, address)): State<(Arc<Shared>, SocketAddr)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let behavior = *shared.behavior.lock().expect("it is whole");
    let grants = shared.grants.lock().expect("they are whole").clone();
    let body = String::from_utf8_lossy(&body).into_owned();
    let record = |status: StatusCode| {
        shared.requests.lock().expect("the memory is whole").push(RecordedIdentityRequest {
            method: method.to_string(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            body: body.clone(),
            status: status.as_u16(),
        });
    };
    match behavior {
        IdentityBehavior::Right | IdentityBehavior::Refuse | IdentityBehavior::Busy(0) => {}
        IdentityBehavior::Busy(left) => {
            *shared.behavior.lock().expect("it is whole") = IdentityBehavior::Busy(left - 1);
            record(StatusCode::SERVICE_UNAVAILABLE);
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        IdentityBehavior::Stall => {
            record(StatusCode::REQUEST_TIMEOUT);
            return std::future::pending().await;
        }
        IdentityBehavior::Huge => {
            record(StatusCode::OK);
            return Body::from(vec![b'x'; 32 << 20]).into_response();
        }
        IdentityBehavior::Html => {
            record(StatusCode::OK);
            return ([(header::CONTENT_TYPE, "text/html")], "<html>Welcome! Please log in.</html>").into_response();
        }
        IdentityBehavior::Redirect => {
            record(StatusCode::FOUND);
            return (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response();
        }
    }
    let asked = Asked {
        method: &method,
        path: uri.path(),
        query: uri.query().unwrap_or_default(),
        headers: &headers,
        body: &body,
        number: shared.requests.lock().expect("the memory is whole").len(),
        refuses: behavior == IdentityBehavior::Refuse,
        origin: format!("http://{address}"),
    };
    let found = amazon::answer(&asked, &grants)
        .or_else(|| google::answer(&asked, &grants))
        .or_else(|| azure::answer(&asked, &grants))
        .unwrap_or_else(|| text(404, "not found"));
    let (status, headers, body) = found;
    record(status);
    let mut response = (status, body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    response
}
