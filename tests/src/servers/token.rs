//! A token service for docker-registry: ES256-signed JWTs, and a record of requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A recorded token request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// User, if credentials were sent.
    pub user: Option<String>,
    /// Requested scopes.
    pub scopes: Vec<String>,
    /// Whether a token was issued.
    pub granted: bool,
}

/// The service, stopped on drop.
#[derive(Debug)]
pub struct TokenServer {
    shared: Arc<TokenServerState>,
    address: SocketAddr,
    certificate: String,
    _stop: DropGuard,
}

#[derive(Debug)]
struct TokenServerState {
    user: String,
    password: String,
    ttl: Duration,
    key: EcdsaKeyPair,
    random: SystemRandom,
    certificate: Vec<u8>,
    requests: Mutex<Vec<TokenRequest>>,
}

impl TokenServer {
    /// Service name of the registry.
    pub const SERVICE: &'static str = "harness-registry";
    /// Issuer of the tokens.
    pub const ISSUER: &'static str = "harness-tokens";

    /// Starts a service with a single user.
    pub async fn start(user: &str, password: &str, ttl: Duration) -> Self {
        let key = KeyPair::generate().expect("ring makes a key");
        let certificate = CertificateParams::new(vec!["tokens".to_owned()]).expect("a name").self_signed(&key);
        let certificate = certificate.expect("the service signs itself");
        let random = SystemRandom::new();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &random);
        let shared = Arc::new(TokenServerState {
            user: user.to_owned(),
            password: password.to_owned(),
            ttl,
            key: signer.expect("the key is a P-256 key"),
            random,
            certificate: certificate.der().to_vec(),
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let router = Router::new().route("/token", get(answer)).with_state(Arc::clone(&shared));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            let server = axum::serve(listener, router);
            tokio::select! {
                _ = server.into_future() => {}
                () = stopped => {}
            }
        });
        Self { shared, address, certificate: certificate.pem(), _stop: stop.drop_guard() }
    }

    /// Returns its URL.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// Returns the certificate that the registry must trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<TokenRequest> {
        self.shared.requests.lock().expect("the memory is whole").clone()
    }
}

async fn answer(
    State(shared): State<Arc<TokenServerState>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> (StatusCode, Json<Value>) {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let pair = given.and_then(|given| STANDARD.decode(given.strip_prefix("Basic ")?).ok());
    let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
    let query = query.unwrap_or_default();
    let address = url_query(&query);
    let scopes: Vec<String> =
        address.flat_map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let granted = pair.as_deref() == Some(format!("{}:{}", shared.user, shared.password).as_str());
    shared.requests.lock().expect("the memory is whole").push(TokenRequest {
        user: pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(user, _)| user.to_owned()),
        scopes: scopes.clone(),
        granted,
    });
    if !granted {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]})),
        );
    }
    (StatusCode::OK, Json(json!({"token": shared.sign(&scopes), "expires_in": shared.ttl.as_secs()})))
}

/// Parses the scopes of a query.
fn url_query(query: &str) -> impl Iterator<Item = String> + '_ {
    let url = reqwest::Url::parse(&format!("http://tokens/?{query}")).expect("a query is a query");
    let pairs: Vec<_> = url.query_pairs().into_owned().collect();
    pairs.into_iter().filter(|(name, _)| name == "scope").map(|(_, value)| value)
}

impl TokenServerState {
    fn sign(&self, scopes: &[String]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
        let access: Vec<_> = scopes.iter().filter_map(|scope| access(scope)).collect();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": TokenServer::ISSUER,
            "sub": self.user,
            "aud": TokenServer::SERVICE,
            "exp": now + self.ttl.as_secs(),
            "nbf": now - 10,
            "iat": now,
            "jti": format!("{now}-{}", scopes.len()),
            "access": access,
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&self.random, message.as_bytes()).expect("ring signs");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Converts `repository:name:pull,push` into docker-registry's access claim.
fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}
