//! Request parts: the path parameter, the query and the JSON body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt as _;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::sanitize::sanitize_within;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error_response::ErrorResponse;

const MAX_BODY_BYTES: usize = 16 * 1024;
/// Maximum size of a body that is ignored, such as that of a registry's webhook.
const MAX_IGNORED_BODY_BYTES: usize = 1024 * 1024;
/// How long an oversized body is drained: a client that is still sending does not read the response.
const BODY_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const MAX_PAGE_ROWS: usize = 1_000;
const DEFAULT_PAGE_ROWS: usize = 100;

/// The parameter of the path.
pub(super) struct PathId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathId, ErrorResponse> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(PathId(name)),
            Err(_) => Err(ErrorResponse::bad_request("the path is not UTF-8")),
        }
    }
}

/// Accepts an empty body or an empty object.
pub(super) async fn expect_empty_body(request: Request) -> Result<(), ErrorResponse> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct EmptyBody {}
    read_json::<EmptyBody>(request).await.map(drop)
}

/// Reads and drops a body, whatever it contains: webhooks of registries describe what was pushed.
pub(super) async fn ignore_body(request: Request) -> Result<(), ErrorResponse> {
    read_limited(request.into_body(), MAX_IGNORED_BODY_BYTES).await.map(drop)
}

/// Parses a JSON body; none if it is empty.
pub(super) async fn read_json<T: DeserializeOwned>(request: Request) -> Result<Option<T>, ErrorResponse> {
    let is_json = is_json(request.headers());
    let bytes = read_limited(request.into_body(), MAX_BODY_BYTES).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if !is_json {
        let why = "the body must be JSON with Content-Type: application/json";
        return Err(ErrorResponse::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", why));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        ErrorResponse::bad_request(format!("invalid body: {}", sanitize_within(&error.to_string(), 200)))
    })
}

/// Reads a body up to a size.
pub(super) async fn read_limited(body: Body, limit: usize) -> Result<Vec<u8>, ErrorResponse> {
    let mut parts = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| ErrorResponse::bad_request("the body ended early"))?;
        if bytes.len() + part.len() > limit {
            let rest = async { while parts.next().await.is_some_and(|part| part.is_ok()) {} };
            let _ = tokio::time::timeout(BODY_DRAIN_TIMEOUT, rest).await;
            let why = format!("the body has more than {limit} bytes");
            return Err(ErrorResponse::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", why));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Rows of a list that a query asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageRange {
    pub(super) from: usize,
    pub(super) limit: usize,
}

impl PageRange {
    /// Returns the rows of the page, and the index of the next page if there is one.
    pub(super) fn select<T>(self, all: &[T]) -> (&[T], Option<usize>) {
        let start = self.from.min(all.len());
        let end = start.saturating_add(self.limit).min(all.len());
        (&all[start..end], (end < all.len()).then_some(end))
    }
}

/// Query parameters.
pub(super) struct QueryParams(Vec<(String, String)>);

impl QueryParams {
    /// Parses the query. Unknown and repeated parameters are errors.
    pub(super) fn parse(query: Option<String>, known: &[&str]) -> Result<QueryParams, ErrorResponse> {
        let query = query.unwrap_or_default();
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (at, (name, _)) in pairs.iter().enumerate() {
            let shown = sanitize_within(name, 50);
            if !known.contains(&name.as_str()) {
                let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(ErrorResponse::bad_request(format!("unknown parameter `{shown}`; allowed: {there}")));
            }
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(ErrorResponse::bad_request(format!("the parameter `{shown}` is given twice")));
            }
        }
        Ok(QueryParams(pairs))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(its, _)| its == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn parse_integer(&self, name: &str, from: usize, to: usize) -> Result<Option<usize>, ErrorResponse> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse::<usize>() {
            Ok(number) if (from..=to).contains(&number) && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Some(number))
            }
            _ => Err(ErrorResponse::bad_request(format!("`{name}` must be an integer from {from} to {to}"))),
        }
    }

    /// Returns the rows of a page: `from` and `limit`.
    pub(super) fn page_range(&self) -> Result<PageRange, ErrorResponse> {
        Ok(PageRange { from: self.start_index()? as usize, limit: self.limit()? })
    }

    /// Returns the number of rows of a page.
    pub(super) fn limit(&self) -> Result<usize, ErrorResponse> {
        Ok(self.parse_integer("limit", 1, MAX_PAGE_ROWS)?.unwrap_or(DEFAULT_PAGE_ROWS))
    }

    /// Parses the id of a batch.
    pub(super) fn batch_id(&self, name: &str) -> Result<Option<BatchId>, ErrorResponse> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ErrorResponse::bad_request(format!("`{name}` must be the id of a batch")))
        };
        self.get(name).map(parse).transpose()
    }

    /// Returns the index of the first row of a page.
    pub(super) fn start_index(&self) -> Result<u32, ErrorResponse> {
        let from = self.parse_integer("from", 0, u32::MAX as usize)?.unwrap_or(0);
        Ok(u32::try_from(from).unwrap_or(u32::MAX))
    }
}

/// Parses an error kind of a query or a body.
pub(super) fn parse_error_kind(text: &str) -> Result<ErrorKind, ErrorResponse> {
    serde_json::from_value(text.into())
        .map_err(|_| ErrorResponse::bad_request(format!("`kind` is not an error kind: {}", sanitize_within(text, 100))))
}
