//! HTTP requests that are retried on transient errors. Their URLs contain tokens, so no error shows one.

use std::error::Error as _;
use std::time::Duration;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::client_for_others;
use imgsync_common::retry::{Budget, Policy, Retry, class_of_status};
use reqwest::{Client, RequestBuilder, StatusCode};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Maximum bytes of a reply that are read.
const MAX_ANSWER: usize = 64 << 10;

/// Sends HTTP requests with retries.
#[derive(Debug, Clone)]
pub(super) struct Post {
    policy: Policy,
}

/// An HTTP reply.
pub(super) struct Answer {
    /// Status.
    pub(super) status: StatusCode,
    /// `Retry-After`, in whole seconds.
    pub(super) retry_after: Option<Duration>,
    /// Beginning of the body.
    pub(super) body: Vec<u8>,
}

impl Post {
    pub(super) fn new(policy: Policy) -> Post {
        Post { policy }
    }

    /// Sends what `request` builds until `read` accepts the reply or returns a permanent error. `tried` names the
    /// operation, without secrets.
    pub(super) async fn send(
        &self,
        url: &Url,
        tried: &str,
        limit: Duration,
        request: impl Fn(&Client) -> RequestBuilder,
        read: impl Fn(&Answer) -> Option<Error>,
    ) -> Result<()> {
        let client = client_for_others(url)?;
        let mut retry = Retry::new(self.policy, &Budget::default());
        loop {
            let error = match answer(request(&client).timeout(limit)).await {
                Ok(answer) => match read(&answer) {
                    None => return Ok(()),
                    Some(error) => error,
                },
                Err(error) => failure(tried, error),
            };
            tracing::debug!("{error}");
            retry.pause(error, &CancellationToken::new(), |_, _, _| {}).await?;
        }
    }
}

async fn answer(request: RequestBuilder) -> reqwest::Result<Answer> {
    let mut response = request.send().await?;
    let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut answer =
        Answer { status: response.status(), retry_after: seconds.map(Duration::from_secs), body: Vec::new() };
    while answer.body.len() < MAX_ANSWER
        && let Some(chunk) = response.chunk().await?
    {
        answer.body.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - answer.body.len())]);
    }
    Ok(answer)
}

/// Converts a transport error, without its URL.
fn failure(tried: &str, error: reqwest::Error) -> Error {
    let class = if error.is_timeout() { Class::TimedOut } else { Class::Unreachable };
    let error = error.without_url();
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        next = error.source();
    }
    Error::new(class, tried, words)
}

/// Returns the error of a reply by its status.
pub(super) fn refused(tried: &str, answer: &Answer, detail: &str) -> Error {
    let status = answer.status.as_u16();
    Error::new(class_of_status(status), tried, detail).answered(status, None).retry_after(answer.retry_after)
}
