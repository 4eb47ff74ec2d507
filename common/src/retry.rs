//! Retry policy: which errors are retried, how often, and after which delay. Nothing else decides this.
//!
//! [`Retry::next_delay`] computes without sleeping, so it can be tested without a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::error::{Class, Error};

/// Returns whether an error is transient: a retry may succeed. All others are permanent.
pub fn is_passing(error: &Error) -> bool {
    match error.class() {
        _ if error.is_out_of_files() => true,
        Class::Unreachable | Class::TimedOut | Class::ServerError | Class::RateLimited | Class::TokenExpired => true,
        Class::NotFound
        | Class::Denied
        | Class::Corrupt
        | Class::Refused
        | Class::Incomplete
        | Class::Unsupported
        | Class::Outdated
        | Class::BadAnswer
        | Class::Insecure
        | Class::Invalid
        | Class::Local
        | Class::Collision
        | Class::Immutable
        | Class::Differs
        | Class::Cancelled => false,
    }
}

/// Returns whether the system ran out of file descriptors: in this process (EMFILE) or on the machine (ENFILE).
pub fn is_out_of_files(error: &std::io::Error) -> bool {
    let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Returns the error kind of an HTTP status, before anything else about the response is known.
pub fn class_of_status(status: u16) -> Class {
    match status {
        401 | 403 => Class::Denied,
        404 | 410 => Class::NotFound,
        429 => Class::RateLimited,
        408 | 425 | 499 | 500 | 502 | 503 | 504 | 520..=524 => Class::ServerError,
        300..=399 => Class::BadAnswer,
        400..=498 => Class::Refused,
        _ => Class::BadAnswer,
    }
}

/// How long to wait for other work of this process to close files.
pub const OUT_OF_FILES_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Number and delays of retries.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Maximum attempts of a request without progress, the first included.
    pub attempts: u32,
    /// Upper bound of the first delay.
    pub first_delay: Duration,
    /// Upper bound of every delay; `Retry-After` may ask for more.
    pub max_delay: Duration,
    /// Maximum `Retry-After` that is waited for; a longer one ends the task with "rate limited".
    pub max_wait: Duration,
    /// How long to keep waiting for a registry that rejects requests with 429. Such waits count as no attempt, for they
    /// are the registry's. Zero counts them like other errors.
    pub patience: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            max_wait: Duration::from_secs(300),
            patience: Duration::from_secs(15 * 60),
        }
    }
}

/// Retry budget of a whole task, shared by all its requests so that nested retries do not multiply. It bounds endless
/// failures, not the needs of an image with many blobs. A retry takes one; an operation that succeeds returns its
/// retries.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicU32>);

impl Budget {
    /// Creates a budget of so many retries.
    pub fn new(retries: u32) -> Budget {
        Budget(Arc::new(AtomicU32::new(retries)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self, retries: u32) {
        self.0.fetch_add(retries, Ordering::Relaxed);
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::new(200)
    }
}

/// Retry state of one operation.
#[derive(Debug)]
pub struct Retry {
    policy: Policy,
    budget: Budget,
    started: Instant,
    attempts: u32,
    /// Including attempts that do not count.
    tries: u32,
    limited_since: Option<Instant>,
    out_of_files_since: Option<Instant>,
    /// Consecutive requests that the server did not process.
    untaken: u32,
    spent: u32,
    delays: backon::ExponentialBackoff,
}

/// Maximum consecutive retries of requests that a server did not process (HTTP/2: a refused stream or GOAWAY) before
/// one counts as an attempt: a connection that is being closed causes a few, a server that accepts nothing causes them
/// all.
pub(crate) const MAX_UNTAKEN: u32 = 20;
/// Delay before the first of them; it grows by as much each time.
const UNTAKEN_DELAY: Duration = Duration::from_millis(25);

impl Retry {
    /// Creates the state before the first attempt.
    pub fn new(policy: Policy, budget: &Budget) -> Retry {
        Retry {
            policy,
            budget: budget.clone(),
            started: Instant::now(),
            attempts: 0,
            tries: 0,
            limited_since: None,
            out_of_files_since: None,
            untaken: 0,
            spent: 0,
            delays: delays(policy),
        }
    }

    /// Resets the state after progress.
    pub fn progressed(&mut self) {
        (self.tries, self.limited_since, self.out_of_files_since, self.untaken) = (0, None, None, 0);
        if self.attempts > 0 {
            self.attempts = 0;
            self.delays = delays(self.policy);
            self.budget.give_back(std::mem::take(&mut self.spent));
        }
    }

    /// Records a failed attempt. Returns the delay before the next one, or the final error with the number of attempts.
    pub fn next_delay(&mut self, error: Error) -> Result<(Duration, Error), Error> {
        if error.attempts() > 1 {
            // An error that was retried inside is not retried around it: attempts would multiply.
            return Err(error);
        }
        self.tries += 1;
        if error.class() == Class::RateLimited
            && !self.policy.patience.is_zero()
            && let Some(wait) = error.wait()
        {
            return self.wait_out(error, wait);
        }
        if error.is_out_of_files() {
            return self.wait_for_files(error);
        }
        if error.is_untaken() && self.untaken < MAX_UNTAKEN {
            self.untaken += 1;
            let bound = (UNTAKEN_DELAY * self.untaken).min(self.policy.max_delay);
            return Ok((rand::rng().random_range(Duration::ZERO..=bound), error));
        }
        self.attempts += 1;
        if !is_passing(&error) {
            return Err(self.last(error));
        }
        if self.attempts >= self.policy.attempts || !self.budget.take() {
            return Err(self.last(error));
        }
        self.spent += 1;
        let bound = self.delays.next().unwrap_or(self.policy.max_delay);
        // Full jitter: clients that failed together return spread out.
        let delay = rand::rng().random_range(Duration::ZERO..=bound);
        match error.wait() {
            Some(wait) if wait > self.policy.max_wait => Err(self.too_long(error, wait)),
            // Never before the time that the registry named, and not all at that moment; nor sooner than without it: a
            // date in the past or a negative number names no time.
            Some(wait) => Ok(((wait + delay.min(wait / 4 + Duration::from_millis(50))).max(delay), error)),
            None => Ok((delay, error)),
        }
    }

    /// Returns the delay of a rate limit, which counts as no attempt, until the timeout.
    fn wait_out(&mut self, error: Error, wait: Duration) -> Result<(Duration, Error), Error> {
        let since = *self.limited_since.get_or_insert_with(Instant::now);
        if wait > self.policy.max_wait || since.elapsed() + wait > self.policy.patience {
            return Err(self.too_long(error, wait));
        }
        let apart = (wait / 4 + Duration::from_millis(50)).min(self.policy.first_delay);
        Ok((wait + rand::rng().random_range(Duration::ZERO..=apart), error))
    }

    /// Returns the delay until other work of this process may have closed files. It counts as no attempt.
    fn wait_for_files(&mut self, error: Error) -> Result<(Duration, Error), Error> {
        let since = *self.out_of_files_since.get_or_insert_with(Instant::now);
        if since.elapsed() > OUT_OF_FILES_PATIENCE {
            return Err(self.last(error));
        }
        Ok((rand::rng().random_range(self.policy.first_delay / 10..=self.policy.first_delay), error))
    }

    fn too_long(&self, error: Error, wait: Duration) -> Error {
        let hint = format!("the registry is to be left alone for {}: try again then", seconds(wait));
        self.last(error).hint(hint)
    }

    /// Waits for [`Retry::next_delay`], unless cancelled. Calls `seen` with the error, the attempts and the delay
    /// first.
    pub async fn pause(
        &mut self,
        error: Error,
        cancel: &CancellationToken,
        seen: impl FnOnce(&Error, u32, Duration),
    ) -> Result<(), Error> {
        let (delay, error) = self.next_delay(error)?;
        seen(&error, self.tries, delay);
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = cancel.cancelled() => Err(self.last(error).as_class(Class::Cancelled)),
        }
    }

    fn last(&self, error: Error) -> Error {
        error.after(self.tries, self.started.elapsed())
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        // Most operations succeed; where the task failed, the budget is not used again.
        self.budget.give_back(self.spent);
    }
}

fn delays(policy: Policy) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new()
        .with_min_delay(policy.first_delay)
        .with_max_delay(policy.max_delay)
        .without_max_times()
        .build()
}

/// Formats a duration for people: `90 s`, `0.4 s`, `5 min`.
pub fn seconds(span: Duration) -> String {
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
        Error::new(Class::ServerError, "reading x", "503")
    }

    #[test]
    fn a_passing_error_is_tried_five_times_and_says_so() {
        let mut retry = Retry::new(Policy::default(), &Budget::default());
        for _ in 0..4 {
            retry.next_delay(failure()).unwrap();
        }
        assert_eq!(retry.next_delay(failure()).unwrap_err().attempts(), 5);
    }

    #[test]
    fn a_final_error_is_tried_once() {
        let mut retry = Retry::new(Policy::default(), &Budget::default());
        let error = retry.next_delay(Error::new(Class::NotFound, "reading x", "404")).unwrap_err();
        assert_eq!(error.attempts(), 1);
    }

    #[test]
    fn what_was_tried_often_enough_within_is_not_tried_again_around_it() {
        let mut retry = Retry::new(Policy::default(), &Budget::default());
        let error = retry.next_delay(failure().after(5, Duration::from_secs(1))).unwrap_err();
        assert_eq!(error.attempts(), 5);
    }

    #[test]
    fn pauses_grow_within_their_bounds() {
        let policy = Policy { attempts: 100, ..Policy::default() };
        let mut retry = Retry::new(policy, &Budget::new(100));
        let mut bound = policy.first_delay;
        for _ in 0..50 {
            let (delay, _) = retry.next_delay(failure()).unwrap();
            assert!(delay <= bound, "{delay:?} > {bound:?}");
            bound = (bound * 2).min(policy.max_delay);
        }
    }

    #[test]
    fn retry_after_is_obeyed_and_one_that_is_too_long_ends_it() {
        let mut retry = Retry::new(Policy::default(), &Budget::default());
        let asked = Duration::from_secs(7);
        let (delay, _) = retry.next_delay(failure().retry_after(Some(asked))).unwrap();
        assert!(delay >= asked && delay <= asked * 2);
        let error = retry.next_delay(failure().retry_after(Some(Duration::from_secs(3600)))).unwrap_err();
        assert!(error.advice().unwrap().contains("60 min"));
    }

    #[test]
    fn a_retry_after_that_names_no_time_shortens_no_pause() {
        // Full jitter makes each delay anything below its bound: enough of them show the bound.
        let policy = Policy { attempts: 200, first_delay: Duration::from_secs(8), ..Policy::default() };
        let mut retry = Retry::new(policy, &Budget::default());
        let pauses = (0..100).map(|_| retry.next_delay(failure().retry_after(Some(Duration::ZERO))).unwrap().0);
        assert!(pauses.max().unwrap() > Duration::from_secs(8));
    }

    #[test]
    fn requests_that_were_not_taken_spend_neither_attempts_nor_budget_and_end_all_the_same() {
        let policy = Policy { attempts: 2, ..Policy::default() };
        let untaken = || Error::new(Class::Unreachable, "reading x", "refused stream").untaken();
        let mut retry = Retry::new(policy, &Budget::new(1));
        for _ in 0..MAX_UNTAKEN {
            let (delay, _) = retry.next_delay(untaken()).unwrap();
            assert!(delay <= UNTAKEN_DELAY * MAX_UNTAKEN);
        }
        retry.next_delay(untaken()).expect("the first attempt of two");
        assert_eq!(retry.next_delay(untaken()).unwrap_err().attempts(), MAX_UNTAKEN + 2);
        let mut retry = Retry::new(policy, &Budget::new(0));
        for _ in 0..5 * MAX_UNTAKEN {
            retry.next_delay(untaken()).unwrap();
            retry.progressed();
        }
    }

    #[test]
    fn too_many_requests_are_waited_out_and_no_try_is_counted_until_patience_ends() {
        let policy = Policy { attempts: 1, patience: Duration::from_secs(100), ..Policy::default() };
        let limited = |wait| Error::new(Class::RateLimited, "reading x", "429").retry_after(wait);
        let second = Some(Duration::from_secs(1));
        let mut retry = Retry::new(policy, &Budget::new(0));
        for _ in 0..50 {
            retry.next_delay(limited(second)).unwrap();
        }
        assert_eq!(retry.next_delay(limited(Some(Duration::from_secs(101)))).unwrap_err().attempts(), 51);
        assert!(Retry::new(policy, &Budget::default()).next_delay(limited(None)).is_err(), "nothing to wait for");
        let hasty = Policy { patience: Duration::ZERO, ..policy };
        assert!(Retry::new(hasty, &Budget::default()).next_delay(limited(second)).is_err(), "there is another way");
    }

    #[test]
    fn too_many_open_files_are_waited_out_and_no_try_is_counted() {
        let policy = Policy { attempts: 1, ..Policy::default() };
        let failure = || Error::new(Class::Local, "opening x", "Too many open files").out_of_files();
        let mut retry = Retry::new(policy, &Budget::new(0));
        for _ in 0..50 {
            assert!(retry.next_delay(failure()).unwrap().0 <= policy.first_delay);
        }
        retry.out_of_files_since = retry.out_of_files_since.map(|since| since - OUT_OF_FILES_PATIENCE);
        assert_eq!(retry.next_delay(failure()).unwrap_err().attempts(), 51);
        let codes = [24, 23, 13].map(|code| is_out_of_files(&std::io::Error::from_raw_os_error(code)));
        assert_eq!(codes, [true, true, false]);
    }

    #[test]
    fn nested_retries_share_one_budget_which_success_refills() {
        let budget = Budget::new(3);
        let mut one = Retry::new(Policy::default(), &budget);
        one.next_delay(failure()).unwrap();
        one.next_delay(failure()).unwrap();
        let mut other = Retry::new(Policy::default(), &budget);
        other.next_delay(failure()).unwrap();
        assert!(one.next_delay(failure()).is_err());
        other.progressed();
        assert!(Retry::new(Policy::default(), &budget).next_delay(failure()).is_ok());
    }

    #[test]
    fn an_image_of_many_blobs_that_all_fail_at_once_has_retries_enough() {
        let budget = Budget::default();
        let mut blobs: Vec<Retry> = (0..40).map(|_| Retry::new(Policy::default(), &budget)).collect();
        for blob in &mut blobs {
            for _ in 0..4 {
                blob.next_delay(failure()).unwrap();
            }
        }
    }

    #[test]
    fn progress_forgets_what_failed_before() {
        let mut retry = Retry::new(Policy::default(), &Budget::new(4));
        for _ in 0..1000 {
            retry.next_delay(failure()).unwrap();
            retry.progressed();
        }
    }
}
