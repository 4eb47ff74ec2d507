//! HTTP requests that are retried on transient errors. Their URLs contain tokens, so no error shows one.

use std::error::Error as _;
use std::time::Duration;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{RetryBudget, RetryPolicy, RetryState, kind_of_status};
use imgsync_registry::non_registry_client;
use imgsync_registry::wait::sleep;
use imgsync_tls::with_dates;
use reqwest::{Client, RequestBuilder, StatusCode};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Maximum bytes of a reply that are read.
const MAX_REPLY_BYTES: usize = 64 << 10;

/// Sends HTTP requests with retries.
#[derive(Debug, Clone)]
pub(super) struct HttpSender {
    policy: RetryPolicy,
}

/// An HTTP reply.
pub(super) struct HttpReply {
    /// Status.
    pub(super) status: StatusCode,
    /// `Retry-After`, in whole seconds.
    pub(super) retry_after: Option<Duration>,
    /// Beginning of the body.
    pub(super) body: Vec<u8>,
}

impl HttpSender {
    pub(super) fn new(policy: RetryPolicy) -> HttpSender {
        HttpSender { policy }
    }

    /// Sends what `request` builds until `read` accepts the reply or returns a permanent error. `operation` names
    /// the request, without secrets.
    pub(super) async fn send(
        &self,
        url: &Url,
        operation: &str,
        limit: Duration,
        request: impl Fn(&Client) -> RequestBuilder,
        read: impl Fn(&HttpReply) -> Option<Error>,
    ) -> Result<()> {
        let client = non_registry_client(url)?;
        let mut retry = RetryState::new(self.policy, &RetryBudget::default());
        loop {
            let error = match send_once(request(&client).timeout(limit)).await {
                Ok(answer) => match read(&answer) {
                    None => return Ok(()),
                    Some(error) => error,
                },
                Err(error) => failure(operation, error),
            };
            tracing::debug!("{error}");
            retry
                .wait_before_retry(error, async |delay| sleep(delay, &CancellationToken::new()).await, |_, _, _| {})
                .await?;
        }
    }
}

async fn send_once(request: RequestBuilder) -> reqwest::Result<HttpReply> {
    let mut response = request.send().await?;
    let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut answer =
        HttpReply { status: response.status(), retry_after: seconds.map(Duration::from_secs), body: Vec::new() };
    while answer.body.len() < MAX_REPLY_BYTES
        && let Some(chunk) = response.chunk().await?
    {
        answer.body.extend_from_slice(&chunk[..chunk.len().min(MAX_REPLY_BYTES - answer.body.len())]);
    }
    Ok(answer)
}

/// Converts a transport error, without its URL.
fn failure(operation: &str, error: reqwest::Error) -> Error {
    let kind = if error.is_timeout() { ErrorKind::TimedOut } else { ErrorKind::Unreachable };
    let error = error.without_url();
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        next = error.source();
    }
    Error::new(kind, operation, with_dates(&message))
}

/// Returns the error of a reply by its status.
pub(super) fn status_error(operation: &str, answer: &HttpReply, detail: &str) -> Error {
    let status = answer.status.as_u16();
    Error::new(kind_of_status(status), operation, detail).with_status(status, None).with_retry_after(answer.retry_after)
}
