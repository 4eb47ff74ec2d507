//! Responses before they are sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::images::Blob;

#[derive(Debug)]
pub(super) struct FaultResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ResponseBody,
}

/// A response body that is read lazily.
#[derive(Clone, Debug)]
pub(super) enum ResponseBody {
    Bytes(Bytes),
    /// Range of a blob.
    Blob(Blob, u64, u64),
    /// This many filler bytes.
    Filler(u64),
}

impl ResponseBody {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob(_, start, end) => end - start,
            Self::Filler(size) => *size,
        }
    }

    /// Reads a range of the body.
    pub(super) fn read(&self, start: u64, end: u64) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.slice(start as usize..end as usize),
            Self::Blob(blob, base, _) => blob.read(base + start..base + end),
            Self::Filler(_) => Bytes::from(vec![b'x'; (end - start) as usize]),
        }
    }
}

impl FaultResponse {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: ResponseBody::Bytes(Bytes::new()) }
    }

    pub(super) fn from_status_code(status: u16) -> Self {
        Self::new(StatusCode::from_u16(status).expect("a test asks for a valid status"))
    }

    pub(super) fn header(mut self, name: impl TryInto<HeaderName>, value: impl ToString) -> Self {
        let name = name.try_into().unwrap_or_else(|_| panic!("not the name of a header"));
        let value = HeaderValue::from_str(&value.to_string()).expect("a header's value");
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = ResponseBody::Bytes(body.into());
        self
    }

    pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self::new(status).header(header::CONTENT_TYPE, "application/json").body(body.to_string())
    }

    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::new(status).header(header::CONTENT_TYPE, "application/json").body(error_body(code, message))
    }

    pub(super) fn not_found(code: &str) -> Self {
        Self::error(StatusCode::NOT_FOUND, code, "it is not here")
    }
}

pub(super) fn error_body(code: &str, message: &str) -> String {
    json!({"errors": [{"code": code, "message": message, "detail": null}]}).to_string()
}
