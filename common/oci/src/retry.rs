//! Retry policy of requests: which errors are retried, how often, and after which delay. Whether a task is tried again
//! depends on the same [`is_transient`].
//!
//! [`RetryState::next_delay`] computes without sleeping, so it can be tested without a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use rand::Rng;

use crate::error::{Error, ErrorKind};

/// Returns whether an error is transient: a retry may succeed. All others are permanent.
pub fn is_transient(error: &Error) -> bool {
    match error.kind() {
        _ if error.is_out_of_files() => true,
        ErrorKind::Unreachable
        | ErrorKind::TimedOut
        | ErrorKind::ServerError
        | ErrorKind::RateLimited
        | ErrorKind::TokenExpired => true,
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::Corrupt
        | ErrorKind::Refused
        | ErrorKind::Incomplete
        | ErrorKind::Unsupported
        | ErrorKind::Outdated
        | ErrorKind::InvalidResponse
        | ErrorKind::Insecure
        | ErrorKind::Invalid
        | ErrorKind::Local
        | ErrorKind::Collision
        | ErrorKind::Immutable
        | ErrorKind::RefusedByPolicy
        | ErrorKind::Differs
        | ErrorKind::Cancelled => false,
    }
}

/// Returns whether the system ran out of file descriptors: in this process (EMFILE) or on the machine (ENFILE).
pub fn is_out_of_files(error: &std::io::Error) -> bool {
    let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Returns the error kind of an HTTP status, before anything else about the response is known.
pub fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 | 403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        429 => ErrorKind::RateLimited,
        408 | 425 | 499 | 500 | 502 | 503 | 504 | 520..=524 => ErrorKind::ServerError,
        300..=399 => ErrorKind::InvalidResponse,
        400..=498 => ErrorKind::Refused,
        _ => ErrorKind::InvalidResponse,
    }
}

/// How long to wait for other work of this process to close files.
pub const OUT_OF_FILES_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Number and delays of retries.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Maximum attempts of a request without progress, the first included.
    pub attempts: u32,
    /// Upper bound of the first delay.
    pub first_delay: Duration,
    /// Upper bound of every delay; `Retry-After` may ask for more.
    pub max_delay: Duration,
    /// Maximum `Retry-After` that is waited for; a longer one ends the task with "rate limited".
    pub max_retry_after: Duration,
    /// How long to keep waiting for a registry that rejects requests with 429. Such waits count as no attempt, for they
    /// are the registry's. Zero counts them like other errors.
    pub rate_limit_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            max_retry_after: Duration::from_secs(300),
            rate_limit_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// Retry budget of a whole task, shared by all its requests so that nested retries do not multiply. It bounds endless
/// failures, not the needs of an image with many blobs. A retry takes one; an operation that succeeds returns its
/// retries.
#[derive(Debug, Clone)]
pub struct RetryBudget(Arc<AtomicU32>);

impl RetryBudget {
    /// Creates a budget of so many retries.
    pub fn new(retries: u32) -> RetryBudget {
        RetryBudget(Arc::new(AtomicU32::new(retries)))
    }

    fn try_spend(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn refund(&self, retries: u32) {
        self.0.fetch_add(retries, Ordering::Relaxed);
    }
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget::new(200)
    }
}

/// Retry state of one operation.
#[derive(Debug)]
pub struct RetryState {
    policy: RetryPolicy,
    budget: RetryBudget,
    started: Instant,
    attempts: u32,
    /// Including attempts that do not count.
    total_attempts: u32,
    rate_limited_since: Option<Instant>,
    out_of_files_since: Option<Instant>,
    /// Consecutive requests that the server did not process.
    unprocessed: u32,
    spent: u32,
    delays: backon::ExponentialBackoff,
}

/// Maximum consecutive retries of requests that a server did not process (HTTP/2: a refused stream or GOAWAY) before
/// one counts as an attempt: a connection that is being closed causes a few, a server that accepts nothing causes them
/// all.
pub(crate) const MAX_UNPROCESSED_RETRIES: u32 = 20;
/// Upper bound of the delay before the first of them; it grows by as much each time.
const UNPROCESSED_DELAY_STEP: Duration = Duration::from_millis(25);

impl RetryState {
    /// Creates the state before the first attempt.
    pub fn new(policy: RetryPolicy, budget: &RetryBudget) -> RetryState {
        RetryState {
            policy,
            budget: budget.clone(),
            started: Instant::now(),
            attempts: 0,
            total_attempts: 0,
            rate_limited_since: None,
            out_of_files_since: None,
            unprocessed: 0,
            spent: 0,
            delays: exponential_backoff(policy),
        }
    }

    /// Resets the state after progress.
    pub fn reset(&mut self) {
        (self.total_attempts, self.rate_limited_since, self.out_of_files_since, self.unprocessed) = (0, None, None, 0);
        if self.attempts > 0 {
            self.attempts = 0;
            self.delays = exponential_backoff(self.policy);
            self.budget.refund(std::mem::take(&mut self.spent));
        }
    }

    /// Records a failed attempt. Returns the delay before the next one, or the final error with the number of attempts.
    pub fn next_delay(&mut self, error: Error) -> Result<(Duration, Error), Error> {
        if error.attempts() > 1 {
            // An error that was retried inside is not retried around it: attempts would multiply.
            return Err(error);
        }
        self.total_attempts += 1;
        if error.kind() == ErrorKind::RateLimited
            && !self.policy.rate_limit_timeout.is_zero()
            && let Some(wait) = error.retry_after()
        {
            return self.rate_limit_delay(error, wait);
        }
        if error.is_out_of_files() {
            return self.out_of_files_delay(error);
        }
        if error.is_unprocessed() && self.unprocessed < MAX_UNPROCESSED_RETRIES {
            self.unprocessed += 1;
            let bound = (UNPROCESSED_DELAY_STEP * self.unprocessed).min(self.policy.max_delay);
            return Ok((rand::rng().random_range(Duration::ZERO..=bound), error));
        }
        self.attempts += 1;
        if !is_transient(&error) {
            return Err(self.final_error(error));
        }
        if self.attempts >= self.policy.attempts || !self.budget.try_spend() {
            return Err(self.final_error(error));
        }
        self.spent += 1;
        let bound = self.delays.next().unwrap_or(self.policy.max_delay);
        // Full jitter: clients that failed together return spread out.
        let delay = rand::rng().random_range(Duration::ZERO..=bound);
        match error.retry_after() {
            Some(wait) if wait > self.policy.max_retry_after => Err(self.retry_after_too_long(error, wait)),
            // Never before the time that the registry named, and not all at that moment; nor sooner than without it: a
            // date in the past or a negative number names no time.
            Some(wait) => Ok(((wait + delay.min(wait / 4 + Duration::from_millis(50))).max(delay), error)),
            None => Ok((delay, error)),
        }
    }

    /// Returns the delay of a rate limit, which counts as no attempt, until the timeout.
    fn rate_limit_delay(&mut self, error: Error, wait: Duration) -> Result<(Duration, Error), Error> {
        let since = *self.rate_limited_since.get_or_insert_with(Instant::now);
        if wait > self.policy.max_retry_after || since.elapsed() + wait > self.policy.rate_limit_timeout {
            return Err(self.retry_after_too_long(error, wait));
        }
        let apart = (wait / 4 + Duration::from_millis(50)).min(self.policy.first_delay);
        Ok((wait + rand::rng().random_range(Duration::ZERO..=apart), error))
    }

    /// Returns the delay until other work of this process may have closed files. It counts as no attempt.
    fn out_of_files_delay(&mut self, error: Error) -> Result<(Duration, Error), Error> {
        let since = *self.out_of_files_since.get_or_insert_with(Instant::now);
        if since.elapsed() > OUT_OF_FILES_TIMEOUT {
            return Err(self.final_error(error));
        }
        Ok((rand::rng().random_range(self.policy.first_delay / 10..=self.policy.first_delay), error))
    }

    fn retry_after_too_long(&self, error: Error, wait: Duration) -> Error {
        let hint = format!("the registry asks to wait {}: retry after that", format_duration(wait));
        self.final_error(error).with_hint(hint)
    }

    /// Waits for [`RetryState::next_delay`] with `sleep`, which returns false if it was cancelled. Calls `seen` with the
    /// error, the attempts and the delay first.
    pub async fn wait_before_retry<S: Future<Output = bool>>(
        &mut self,
        error: Error,
        sleep: impl FnOnce(Duration) -> S,
        seen: impl FnOnce(&Error, u32, Duration),
    ) -> Result<(), Error> {
        let (delay, error) = self.next_delay(error)?;
        seen(&error, self.total_attempts, delay);
        match sleep(delay).await {
            true => Ok(()),
            false => Err(self.final_error(error).with_kind(ErrorKind::Cancelled)),
        }
    }

    fn final_error(&self, error: Error) -> Error {
        error.with_attempts(self.total_attempts, self.started.elapsed())
    }
}

impl Drop for RetryState {
    fn drop(&mut self) {
        // Most operations succeed; where the task failed, the budget is not used again.
        self.budget.refund(self.spent);
    }
}

fn exponential_backoff(policy: RetryPolicy) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new()
        .with_min_delay(policy.first_delay)
        .with_max_delay(policy.max_delay)
        .without_max_times()
        .build()
}

/// Formats a duration for people: `90 s`, `0.4 s`, `5 min`.
pub fn format_duration(span: Duration) -> String {
    match span.as_secs_f64() {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Error {
        Error::new(ErrorKind::ServerError, "reading x", "503")
    }

    #[test]
    fn a_transient_error_is_tried_five_times_and_says_so() {
        let mut retry = RetryState::new(RetryPolicy::default(), &RetryBudget::default());
        for _ in 0..4 {
            retry.next_delay(failure()).unwrap();
        }
        assert_eq!(retry.next_delay(failure()).unwrap_err().attempts(), 5);
    }

    #[test]
    fn a_permanent_error_is_tried_once() {
        let mut retry = RetryState::new(RetryPolicy::default(), &RetryBudget::default());
        let error = retry.next_delay(Error::new(ErrorKind::NotFound, "reading x", "404")).unwrap_err();
        assert_eq!(error.attempts(), 1);
    }

    #[test]
    fn what_was_tried_often_enough_within_is_not_tried_again_around_it() {
        let mut retry = RetryState::new(RetryPolicy::default(), &RetryBudget::default());
        let error = retry.next_delay(failure().with_attempts(5, Duration::from_secs(1))).unwrap_err();
        assert_eq!(error.attempts(), 5);
    }

    #[test]
    fn pauses_grow_within_their_bounds() {
        let policy = RetryPolicy { attempts: 100, ..RetryPolicy::default() };
        let mut retry = RetryState::new(policy, &RetryBudget::new(100));
        let mut bound = policy.first_delay;
        for _ in 0..50 {
            let (delay, _) = retry.next_delay(failure()).unwrap();
            assert!(delay <= bound, "{delay:?} > {bound:?}");
            bound = (bound * 2).min(policy.max_delay);
        }
    }

    #[test]
    fn retry_after_is_obeyed_and_one_that_is_too_long_ends_it() {
        let mut retry = RetryState::new(RetryPolicy::default(), &RetryBudget::default());
        let asked = Duration::from_secs(7);
        let (delay, _) = retry.next_delay(failure().with_retry_after(Some(asked))).unwrap();
        assert!(delay >= asked && delay <= asked * 2);
        let error = retry.next_delay(failure().with_retry_after(Some(Duration::from_secs(3600)))).unwrap_err();
        assert!(error.hint().unwrap().contains("60 min"));
    }

    #[test]
    fn a_retry_after_that_names_no_time_shortens_no_pause() {
        // Full jitter makes each delay anything below its bound: enough of them show the bound.
        let policy = RetryPolicy { attempts: 200, first_delay: Duration::from_secs(8), ..RetryPolicy::default() };
        let mut retry = RetryState::new(policy, &RetryBudget::default());
        let pauses = (0..100).map(|_| retry.next_delay(failure().with_retry_after(Some(Duration::ZERO))).unwrap().0);
        assert!(pauses.max().unwrap() > Duration::from_secs(8));
    }

    #[test]
    fn unprocessed_requests_spend_neither_attempts_nor_budget_up_to_a_limit() {
        let policy = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        let untaken = || Error::new(ErrorKind::Unreachable, "reading x", "refused stream").mark_unprocessed();
        let mut retry = RetryState::new(policy, &RetryBudget::new(1));
        for _ in 0..MAX_UNPROCESSED_RETRIES {
            let (delay, _) = retry.next_delay(untaken()).unwrap();
            assert!(delay <= UNPROCESSED_DELAY_STEP * MAX_UNPROCESSED_RETRIES);
        }
        retry.next_delay(untaken()).expect("the first attempt of two");
        assert_eq!(retry.next_delay(untaken()).unwrap_err().attempts(), MAX_UNPROCESSED_RETRIES + 2);
        let mut retry = RetryState::new(policy, &RetryBudget::new(0));
        for _ in 0..5 * MAX_UNPROCESSED_RETRIES {
            retry.next_delay(untaken()).unwrap();
            retry.reset();
        }
    }

    #[test]
    fn rate_limited_requests_count_no_attempt_until_the_timeout() {
        let policy =
            RetryPolicy { attempts: 1, rate_limit_timeout: Duration::from_secs(100), ..RetryPolicy::default() };
        let limited = |wait| Error::new(ErrorKind::RateLimited, "reading x", "429").with_retry_after(wait);
        let second = Some(Duration::from_secs(1));
        let mut retry = RetryState::new(policy, &RetryBudget::new(0));
        for _ in 0..50 {
            retry.next_delay(limited(second)).unwrap();
        }
        assert_eq!(retry.next_delay(limited(Some(Duration::from_secs(101)))).unwrap_err().attempts(), 51);
        assert!(
            RetryState::new(policy, &RetryBudget::default()).next_delay(limited(None)).is_err(),
            "nothing to wait for"
        );
        let no_wait = RetryPolicy { rate_limit_timeout: Duration::ZERO, ..policy };
        assert!(
            RetryState::new(no_wait, &RetryBudget::default()).next_delay(limited(second)).is_err(),
            "there is another way"
        );
    }

    #[test]
    fn too_many_open_files_count_no_attempt_until_the_timeout() {
        let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
        let failure = || Error::new(ErrorKind::Local, "opening x", "Too many open files").mark_out_of_files();
        let mut retry = RetryState::new(policy, &RetryBudget::new(0));
        for _ in 0..50 {
            assert!(retry.next_delay(failure()).unwrap().0 <= policy.first_delay);
        }
        retry.out_of_files_since = retry.out_of_files_since.map(|since| since - OUT_OF_FILES_TIMEOUT);
        assert_eq!(retry.next_delay(failure()).unwrap_err().attempts(), 51);
        let codes = [24, 23, 13].map(|code| is_out_of_files(&std::io::Error::from_raw_os_error(code)));
        assert_eq!(codes, [true, true, false]);
    }

    #[test]
    fn nested_retries_share_one_budget_which_success_refills() {
        let budget = RetryBudget::new(3);
        let mut one = RetryState::new(RetryPolicy::default(), &budget);
        one.next_delay(failure()).unwrap();
        one.next_delay(failure()).unwrap();
        let mut other = RetryState::new(RetryPolicy::default(), &budget);
        other.next_delay(failure()).unwrap();
        assert!(one.next_delay(failure()).is_err());
        other.reset();
        assert!(RetryState::new(RetryPolicy::default(), &budget).next_delay(failure()).is_ok());
    }

    #[test]
    fn an_image_of_many_blobs_that_all_fail_at_once_has_retries_enough() {
        let budget = RetryBudget::default();
        let mut blobs: Vec<RetryState> = (0..40).map(|_| RetryState::new(RetryPolicy::default(), &budget)).collect();
        for blob in &mut blobs {
            for _ in 0..4 {
                blob.next_delay(failure()).unwrap();
            }
        }
    }

    #[test]
    fn progress_forgets_what_failed_before() {
        let mut retry = RetryState::new(RetryPolicy::default(), &RetryBudget::new(4));
        for _ in 0..1000 {
            retry.next_delay(failure()).unwrap();
            retry.reset();
        }
    }
}
