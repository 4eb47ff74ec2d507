//! A response with an unread body. Every read of a body ends: at the last byte, at a size limit, on cancellation, or if
//! the other side stalls or sends too slowly.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::failure::{RequestTarget, classify, may_expect_tls, says_wants_tls, tls_on, transport_error};
use super::request_class::RequestClass;
use super::resizable_semaphore::Permit;
use super::{error_body, quota_headers, retry_after, ssrf};
use crate::wait::WaitCredit;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry;

/// Bytes read of an error body.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Time limit for reading an error body. The status tells most of it.
pub(super) const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for draining an unneeded body: a new connection takes no longer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes drained of such a body.
const MAX_DRAIN_BYTES: usize = 256 << 10;
/// Minimum rate of a body in bytes per second, averaged over the stall timeout; 160 streams that share a line of 64
/// KiB/s still reach three times as much each.
pub(super) const MIN_BODY_BYTES_PER_SECOND: u64 = 128;

/// A response whose body is not read yet.
#[derive(Debug)]
pub(crate) struct Response {
    pub(super) response: reqwest::Response,
    /// URL that it came from, after redirects.
    pub(super) url: Url,
    pub(super) target: RequestTarget,
    /// Network that it came from.
    pub(super) network_scope: ssrf::NetworkScope,
    /// Whether it and all redirects to it came from public addresses, without a proxy.
    pub(super) is_publicly_routed: bool,
    pub(super) with_credentials: bool,
    /// When the request was sent.
    pub(super) began: Instant,
    pub(super) class: RequestClass,
    /// Concurrency permits, held until the body is read.
    pub(super) _permits: [Option<Permit>; 2],
    /// Cancels reading the body.
    pub(super) cancel: CancellationToken,
    /// How long the body may stall or be slow.
    pub(super) credit: WaitCredit,
    pub(super) stall_timeout: Duration,
}

impl Response {
    pub(super) fn new(
        response: reqwest::Response,
        url: Url,
        target: RequestTarget,
        began: Instant,
        stall_timeout: Duration,
        cancel: CancellationToken,
    ) -> Response {
        Response {
            response,
            url,
            target,
            network_scope: ssrf::NetworkScope::Public,
            is_publicly_routed: false,
            with_credentials: false,
            began,
            class: RequestClass::auxiliary(0),
            _permits: Default::default(),
            cancel,
            credit: WaitCredit::new(stall_timeout, MIN_BODY_BYTES_PER_SECOND),
            stall_timeout,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the response is available to anybody: from public addresses, without credentials.
    pub(crate) fn is_public(&self) -> bool {
        self.is_publicly_routed
            && !self.with_credentials
            && self.url.username().is_empty()
            && self.url.password().is_none()
    }

    pub(crate) fn is_with_credentials(&self) -> bool {
        self.with_credentials
    }

    pub(crate) fn class(&self) -> RequestClass {
        self.class
    }

    pub(crate) fn text_header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.text_header(header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok())
    }

    /// Reads the next chunk of the body; `None` at its end. Fails if the body stalls for the stall timeout, or brings
    /// fewer than [`MIN_BODY_BYTES_PER_SECOND`] bytes per second over that time. Only time spent in this call counts.
    pub(crate) async fn next_chunk(&mut self, operation: &str) -> Result<Option<Bytes>> {
        let began = Instant::now();
        let read = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Error::cancelled(operation)),
            read = tokio::time::timeout(self.credit.remaining(), self.response.chunk()) => read,
        };
        let waited = began.elapsed();
        let Ok(read) = read else { return Err(self.stall_error(waited, operation)) };
        let chunk = read.map_err(|error| transport_error(error, operation, &self.target))?;
        self.credit.record(waited, chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        Ok(chunk)
    }

    /// Waits for a future, unless the context is cancelled.
    pub(super) async fn or_cancelled<T>(&self, work: impl Future<Output = T>, operation: &str) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled(operation)),
            done = work => Ok(done),
        }
    }

    fn stall_error(&self, waited: Duration, operation: &str) -> Error {
        let limit = retry::format_duration(self.stall_timeout);
        // With a tolerance: the timeout's clock ticks in milliseconds.
        let detail = match waited + Duration::from_millis(5) >= self.stall_timeout {
            true => format!("the response stalled for {limit}"),
            false => {
                format!("the response arrived at less than {MIN_BODY_BYTES_PER_SECOND} bytes a second for {limit}")
            }
        };
        Error::new(ErrorKind::TimedOut, self.target.with_origin(operation), detail)
    }

    /// Reads the whole body, of at most `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: usize, operation: &str) -> Result<Bytes> {
        let too_large = || {
            Error::new(
                ErrorKind::InvalidResponse,
                operation,
                format!("the response is larger than {} MiB", limit.div_ceil(1 << 20)),
            )
        };
        if self.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.next_chunk(operation).await? {
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    /// Reads up to `limit` bytes within a time, fewer if the body breaks off, is slow or the context is cancelled.
    async fn read_up_to(&mut self, limit: usize, time: Duration) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while read.len() < limit
                && let Ok(Some(chunk)) = self.response.chunk().await
            {
                read.extend_from_slice(&chunk);
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            _ = tokio::time::timeout(time.min(self.stall_timeout), reading) => {}
        }
        read
    }

    /// Reads the rest of a short body, so that the connection can be reused.
    pub(crate) async fn drain(mut self) {
        self.read_up_to(MAX_DRAIN_BYTES, DRAIN_TIMEOUT).await;
    }

    /// Converts the response into an error.
    pub(crate) async fn into_error(mut self, operation: &str) -> Error {
        let status = self.status();
        let body = self.read_up_to(MAX_ERROR_BYTES, ERROR_BODY_TIMEOUT).await;
        let parsed = error_body::parse(self.text_header(header::CONTENT_TYPE), &body);
        // By the server's clock, since its headers may contain absolute times.
        let now = retry_after::server_time(self.headers());
        let quota = quota_headers::parse(self.headers(), now);
        let mut wait = retry_after::retry_delay(self.headers(), quota.as_ref(), now);
        let exhausted = quota.as_ref().is_some_and(quota_headers::Quota::is_exhausted);
        let kind = classify(status, parsed.code.as_deref(), &parsed.message, wait.is_some() || exhausted);
        if kind == ErrorKind::RateLimited && wait.is_none() && exhausted {
            wait = quota.and_then(|quota| quota.reset);
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED && self.target.proxy.is_some() {
            return self.target.proxy_auth_error(operation).with_status(status.as_u16(), None);
        }
        let mut detail = format!("answered {status}");
        if let Some(code) = &parsed.code {
            detail.push_str(&format!(" {code}"));
        }
        if !parsed.message.is_empty() {
            detail.push_str(&format!(": {}", parsed.message));
        }
        let error = Error::new(kind, self.target.with_origin(operation), detail);
        let error = match status == StatusCode::BAD_REQUEST {
            true if says_wants_tls(&String::from_utf8_lossy(&body)) => error.with_hint(tls_on(&self.target.registry)),
            // A TLS port answers plain HTTP so; of a HEAD, the explanation in the body is lost.
            true if body.is_empty() && self.target.origin.starts_with("http:") => {
                error.with_hint(may_expect_tls(&self.target.registry))
            }
            _ => error,
        };
        error.with_status(status.as_u16(), parsed.code).with_missing_content(parsed.missing).with_retry_after(wait)
    }
}
