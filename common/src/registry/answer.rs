//! A response with an unread body. Every read of a body ends: at the last byte, at a size limit, on cancellation, or if
//! the other side stalls or sends too slowly.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::failure::{Way, classify, says_wants_tls, tls_on, transport_error};
use super::pace::Errand;
use super::seats::Seat;
use super::{api_error, hop, ratelimit, retry_after};
use crate::error::{Class, Error, Result};
use crate::retry;
use crate::wait::WaitCredit;

/// Bytes read of an error body.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Time limit for reading an error body. The status tells most of it.
pub(super) const ERROR_BODY_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for draining an unneeded body: a new connection takes no longer.
const DRAIN_BODY_LIMIT: Duration = Duration::from_secs(1);
/// Bytes drained of such a body.
const MAX_DRAIN_BYTES: usize = 256 << 10;
/// Minimum rate of a body in bytes per second, averaged over the stall timeout; 160 streams that share a line of 64
/// KiB/s still reach three times as much each.
pub(super) const MIN_BODY_RATE: u64 = 128;

/// A response whose body is not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) response: reqwest::Response,
    /// URL that it came from, after redirects.
    pub(super) url: Url,
    pub(super) way: Way,
    /// Network that it came from.
    pub(super) reach: hop::Reach,
    /// Whether it and all redirects to it came from public addresses, without a proxy.
    pub(super) is_from_outside: bool,
    pub(super) with_credentials: bool,
    /// When the request was sent.
    pub(super) began: Instant,
    pub(super) errand: Errand,
    /// Concurrency permits, held until the body is read.
    pub(super) _seats: [Option<Seat>; 2],
    /// Cancels reading the body.
    pub(super) cancel: CancellationToken,
    /// How long the body may stall or be slow.
    pub(super) credit: WaitCredit,
    pub(super) stall: Duration,
}

impl Answer {
    pub(super) fn new(
        response: reqwest::Response,
        url: Url,
        way: Way,
        began: Instant,
        stall: Duration,
        cancel: CancellationToken,
    ) -> Answer {
        Answer {
            response,
            url,
            way,
            reach: hop::Reach::Public,
            is_from_outside: false,
            with_credentials: false,
            began,
            errand: Errand::aside(0),
            _seats: Default::default(),
            cancel,
            credit: WaitCredit::new(stall, MIN_BODY_RATE),
            stall,
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
        self.is_from_outside
            && !self.with_credentials
            && self.url.username().is_empty()
            && self.url.password().is_none()
    }

    pub(crate) fn is_with_credentials(&self) -> bool {
        self.with_credentials
    }

    pub(crate) fn errand(&self) -> Errand {
        self.errand
    }

    pub(crate) fn text_header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.text_header(header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok())
    }

    /// Reads the next chunk of the body; `None` at its end. Fails if the body stalls for the stall timeout, or brings
    /// fewer than [`MIN_BODY_RATE`] bytes per second over that time. Only time spent in this call counts.
    pub(crate) async fn chunk(&mut self, tried: &str) -> Result<Option<Bytes>> {
        let began = Instant::now();
        let read = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Error::cancelled(tried)),
            read = tokio::time::timeout(self.credit.left(), self.response.chunk()) => read,
        };
        let waited = began.elapsed();
        let Ok(read) = read else { return Err(self.too_slow(waited, tried)) };
        let chunk = read.map_err(|error| transport_error(error, tried, &self.way))?;
        self.credit.record(waited, chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        Ok(chunk)
    }

    /// Waits for a future, unless the context is cancelled.
    pub(super) async fn or_cancelled<T>(&self, work: impl Future<Output = T>, tried: &str) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled(tried)),
            done = work => Ok(done),
        }
    }

    fn too_slow(&self, waited: Duration, tried: &str) -> Error {
        let limit = retry::seconds(self.stall);
        // With a tolerance: the timeout's clock ticks in milliseconds.
        let detail = match waited + Duration::from_millis(5) >= self.stall {
            true => format!("the answer stood still for {limit}"),
            false => format!("the answer came at less than {MIN_BODY_RATE} bytes a second for {limit}"),
        };
        Error::new(Class::TimedOut, self.way.tried(tried), detail)
    }

    /// Reads the whole body, of at most `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: usize, tried: &str) -> Result<Bytes> {
        let too_large = || {
            Error::new(Class::BadAnswer, tried, format!("the answer is larger than {} MiB", limit.div_ceil(1 << 20)))
        };
        if self.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk(tried).await? {
            if whole.len() + chunk.len() > limit {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    /// Reads up to `limit` bytes within a time, fewer if the body breaks off, is slow or the context is cancelled.
    async fn read_some(&mut self, limit: usize, time: Duration) -> Vec<u8> {
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
            _ = tokio::time::timeout(time.min(self.stall), reading) => {}
        }
        read
    }

    /// Reads the rest of a short body, so that the connection can be reused.
    pub(crate) async fn drain(mut self) {
        self.read_some(MAX_DRAIN_BYTES, DRAIN_BODY_LIMIT).await;
    }

    /// Converts the response into an error.
    pub(crate) async fn into_error(mut self, tried: &str) -> Error {
        let status = self.status();
        let body = self.read_some(MAX_ERROR_BYTES, ERROR_BODY_LIMIT).await;
        let said = api_error::parse(self.text_header(header::CONTENT_TYPE), &body);
        // By the server's clock, since its headers may contain absolute times.
        let now = retry_after::time_of(self.headers());
        let quota = ratelimit::parse(self.headers(), now);
        let mut wait = retry_after::wait(self.headers(), quota.as_ref(), now);
        let exhausted = quota.as_ref().is_some_and(ratelimit::Quota::is_exhausted);
        let class = classify(status, said.code.as_deref(), &said.message, wait.is_some() || exhausted);
        if class == Class::RateLimited && wait.is_none() && exhausted {
            wait = quota.and_then(|quota| quota.reset);
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED && self.way.proxy.is_some() {
            return self.way.proxy_refusal(tried).answered(status.as_u16(), None);
        }
        let mut detail = format!("answered {status}");
        if let Some(code) = &said.code {
            detail.push_str(&format!(" {code}"));
        }
        if !said.message.is_empty() {
            detail.push_str(&format!(": {}", said.message));
        }
        let error = Error::new(class, self.way.tried(tried), detail);
        let error = match status == StatusCode::BAD_REQUEST && says_wants_tls(&String::from_utf8_lossy(&body)) {
            true => error.hint(tls_on(&self.way.registry)),
            false => error,
        };
        error.answered(status.as_u16(), said.code).naming(said.missing).retry_after(wait)
    }
}
