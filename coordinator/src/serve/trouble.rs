//! Error responses: a status, and an object with error kind, message and hint.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use imgsync_common::error::{Class, Error};
use serde_json::json;

/// An error response.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    status: StatusCode,
    class: &'static str,
    message: String,
    hint: Option<String>,
}

impl Trouble {
    /// Creates an error response. `class` is a [`Class`] as text.
    pub(super) fn new(status: StatusCode, class: &'static str, message: impl Into<String>) -> Trouble {
        Trouble { status, class, message: message.into(), hint: None }
    }

    /// Creates a 404 response.
    pub(super) fn not_found(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Creates a 400 response: the request is malformed.
    pub(super) fn bad(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// Creates a 409 response: the request is well formed, but conflicts with the current state.
    pub(super) fn conflict(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::CONFLICT, "invalid", message)
    }

    /// Adds a hint.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Trouble {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        let status = match error.class() {
            Class::NotFound => StatusCode::NOT_FOUND,
            // Handlers validate the request first: this is a conflict with the current state.
            Class::Invalid => StatusCode::CONFLICT,
            Class::Unreachable | Class::TimedOut | Class::ServerError | Class::Cancelled => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Class::Denied
            | Class::TokenExpired
            | Class::RateLimited
            | Class::Corrupt
            | Class::Refused
            | Class::Incomplete
            | Class::Unsupported
            | Class::BadAnswer
            | Class::Insecure
            | Class::Local
            | Class::Collision
            | Class::Outdated
            | Class::Immutable
            | Class::Differs => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let hint = error.advice().map(str::to_owned);
        Trouble { status, class: error.class().as_str(), message: error.to_string(), hint }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let Trouble { status, class, message, hint } = self;
        (status, Json(json!({"error": {"class": class, "message": message, "hint": hint}}))).into_response()
    }
}
