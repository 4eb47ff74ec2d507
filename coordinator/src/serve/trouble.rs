//! What is answered where something cannot be done: a status, and an object with a class, words and advice.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use imgsync_common::error::{Class, Error};
use serde_json::json;

/// Why something was not done.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    status: StatusCode,
    class: &'static str,
    message: String,
    hint: Option<String>,
}

impl Trouble {
    /// With this status. `class` is one of [`Class`], as text.
    pub(super) fn new(status: StatusCode, class: &'static str, message: impl Into<String>) -> Trouble {
        Trouble { status, class, message: message.into(), hint: None }
    }

    /// There is no such thing.
    pub(super) fn not_found(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The request itself is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// It is well formed, and cannot be done as things stand.
    pub(super) fn conflict(message: impl Into<String>) -> Trouble {
        Trouble::new(StatusCode::CONFLICT, "invalid", message)
    }

    /// Adds what to do.
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
            // What was asked for is checked before: this is how things stand.
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
