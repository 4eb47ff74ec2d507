//! Error responses: a status, and an object with error kind, message and hint.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::sanitize::sanitize_within;
use serde_json::json;

/// An error response.
#[derive(Debug, Clone)]
pub(super) struct ErrorResponse {
    status: StatusCode,
    kind: &'static str,
    message: String,
    hint: Option<String>,
}

impl ErrorResponse {
    /// Creates an error response. `kind` is a [`ErrorKind`] as text.
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ErrorResponse {
        ErrorResponse { status, kind, message: message.into(), hint: None }
    }

    /// Creates a 404 response.
    pub(super) fn not_found(message: impl Into<String>) -> ErrorResponse {
        ErrorResponse::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Creates a 404 response for a rule that the configuration does not have.
    pub(super) fn no_rule(id: &str) -> ErrorResponse {
        let id = sanitize_within(id, 100);
        ErrorResponse::not_found(format!("the configuration has no rule {id}")).hint("GET /rules lists them")
    }

    /// Creates a 400 response: the request is malformed.
    pub(super) fn bad_request(message: impl Into<String>) -> ErrorResponse {
        ErrorResponse::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// Creates a 409 response: the request is well formed, but conflicts with the current state.
    pub(super) fn conflict(message: impl Into<String>) -> ErrorResponse {
        ErrorResponse::new(StatusCode::CONFLICT, "invalid", message)
    }

    /// Adds a hint.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> ErrorResponse {
        self.hint = Some(hint.into());
        self
    }

    /// Returns what went wrong, as JSON.
    pub(super) fn details(&self) -> serde_json::Value {
        json!({"kind": self.kind, "message": self.message, "hint": self.hint})
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<Error> for ErrorResponse {
    fn from(error: Error) -> ErrorResponse {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            // Handlers validate the request first: this is a conflict with the current state.
            ErrorKind::Invalid => StatusCode::CONFLICT,
            ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::ServerError | ErrorKind::Cancelled => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorKind::Denied
            | ErrorKind::TokenExpired
            | ErrorKind::RateLimited
            | ErrorKind::Corrupt
            | ErrorKind::Refused
            | ErrorKind::Incomplete
            | ErrorKind::Unsupported
            | ErrorKind::InvalidResponse
            | ErrorKind::Insecure
            | ErrorKind::Local
            | ErrorKind::Collision
            | ErrorKind::Outdated
            | ErrorKind::Immutable
            | ErrorKind::RefusedByPolicy
            | ErrorKind::Differs => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let hint = error.hint().map(str::to_owned);
        ErrorResponse { status, kind: error.kind().as_str(), message: error.to_string(), hint }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.details()}))).into_response()
    }
}
