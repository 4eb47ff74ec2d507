//! Request parts: the path parameter, the query and the JSON body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt as _;
use imgsync_common::printable::printable_within;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::trouble::Trouble;

const MOST_BYTES: usize = 16 * 1024;
/// How long an oversized body is drained: a client that is still sending does not read the response.
const PATIENCE: Duration = Duration::from_secs(5);
pub(super) const MOST_ROWS: usize = 1_000;
const ROWS: usize = 100;

/// The parameter of the path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, Trouble> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Named(name)),
            Err(_) => Err(Trouble::bad("the path is not UTF-8")),
        }
    }
}

/// Accepts an empty body or an empty object.
pub(super) async fn nothing(request: Request) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    body::<Nothing>(request).await.map(drop)
}

/// Parses a JSON body; none if it is empty.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<Option<T>, Trouble> {
    let is_json = is_json(request.headers());
    let bytes = read(request.into_body()).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if !is_json {
        let why = "the body is JSON, and says so: Content-Type: application/json";
        return Err(Trouble::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", why));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Trouble::bad(format!("the body is not what is wanted: {}", printable_within(&error.to_string(), 200)))
    })
}

async fn read(body: Body) -> Result<Vec<u8>, Trouble> {
    let mut parts = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Trouble::bad("the body broke off"))?;
        if bytes.len() + part.len() > MOST_BYTES {
            let rest = async { while parts.next().await.is_some_and(|part| part.is_ok()) {} };
            let _ = tokio::time::timeout(PATIENCE, rest).await;
            let why = format!("the body has more than {MOST_BYTES} bytes");
            return Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", why));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Query parameters.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the query. Unknown and repeated parameters are errors.
    pub(super) fn of(query: Option<String>, known: &[&str]) -> Result<Query, Trouble> {
        let query = query.unwrap_or_default();
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (at, (name, _)) in pairs.iter().enumerate() {
            let shown = printable_within(name, 50);
            if !known.contains(&name.as_str()) {
                let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Trouble::bad(format!("there is no parameter `{shown}`: this takes {there}")));
            }
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(Trouble::bad(format!("the parameter `{shown}` is there twice")));
            }
        }
        Ok(Query(pairs))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(its, _)| its == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn whole(&self, name: &str, from: usize, to: usize) -> Result<Option<usize>, Trouble> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse::<usize>() {
            Ok(number) if (from..=to).contains(&number) && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Some(number))
            }
            _ => Err(Trouble::bad(format!("`{name}` is a whole number from {from} to {to}"))),
        }
    }

    /// Returns the number of rows of a page.
    pub(super) fn limit(&self) -> Result<usize, Trouble> {
        Ok(self.whole("limit", 1, MOST_ROWS)?.unwrap_or(ROWS))
    }

    /// Returns the index of the first row of a page.
    pub(super) fn from(&self) -> Result<u32, Trouble> {
        let from = self.whole("from", 0, u32::MAX as usize)?.unwrap_or(0);
        Ok(u32::try_from(from).unwrap_or(u32::MAX))
    }
}
