//! CloudEvents over HTTP, structured or binary (cloudevents.io, "HTTP Protocol Binding").

use axum::http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{PayloadError, header, parse_json};

/// An event with its data.
pub(super) struct CloudEvent<T> {
    pub(super) kind: String,
    pub(super) id: Option<String>,
    pub(super) data: Option<T>,
}

#[derive(Deserialize)]
struct Structured<T> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    id: Option<String>,
    data: Option<T>,
}

/// In binary mode, type and id are headers, and the body is the data alone.
pub(super) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<CloudEvent<T>, PayloadError> {
    if let Some(kind) = header(headers, "ce-type") {
        let data = if body.is_empty() { None } else { Some(parse_json(body)?) };
        return Ok(CloudEvent { kind: kind.to_owned(), id: header(headers, "ce-id").map(str::to_owned), data });
    }
    let Structured { kind, id, data } = parse_json(body)?;
    Ok(CloudEvent { kind, id, data })
}
