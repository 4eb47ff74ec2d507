//! What is tried again, how often, and after how long: the only place that decides it (field notes, "What to retry").
//!
//! The arithmetic is apart from the sleeping: [`Retry::next_delay`] can be tested without a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::error::{Class, Error};

/// Whether an error may be gone when the same is tried again. All else is final.
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

/// Whether the system refused because too many files are open: in this process (EMFILE) or on the machine (ENFILE).
pub fn is_out_of_files(error: &std::io::Error) -> bool {
    let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Which class an HTTP status is of, before anything else about the answer is known.
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

/// How long is waited for other work of this process to close files.
pub const OUT_OF_FILES_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How often, and with which pauses.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Tries of one request without any progress, the first included.
    pub attempts: u32,
    /// The upper bound of the first pause.
    pub first_delay: Duration,
    /// The upper bound of every pause; `Retry-After` may ask for more.
    pub max_delay: Duration,
    /// The longest `Retry-After` that is waited out; a longer one ends the task with "rate limited".
    pub max_wait: Duration,
    /// For how long a registry that refuses requests for being too many (429) is waited for. No try is counted meanwhile:
    /// it is the registry's wait. Nothing: they are counted as all others.
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

/// The retries that a whole task may still spend, shared by all its requests so that nested retries do not multiply. It
/// bounds what goes wrong without end, not what an image of many blobs may need. A retry takes one; when what was retried succeeds, its retries are given back.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicU32>);

impl Budget {
    /// A budget of so many retries.
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

/// The state of trying one thing.
#[derive(Debug)]
pub struct Retry {
    policy: Policy,
    budget: Budget,
    started: Instant,
    attempts: u32,
    /// With those that do not count.
    tries: u32,
    limited_since: Option<Instant>,
    out_of_files_since: Option<Instant>,
    /// Requests in a row that the server did not take.
    untaken: u32,
    spent: u32,
    delays: backon::ExponentialBackoff,
}

/// Requests that a server says it did not take (a refused stream or GOAWAY of HTTP/2) are repeated so often in a row before
/// one counts as an attempt: a connection that is being closed gives a few, a server that takes nothing gives them all.
pub(crate) const MAX_UNTAKEN: u32 = 20;
/// The pause before the first of them, which grows by as much each time.
const UNTAKEN_DELAY: Duration = Duration::from_millis(25);

impl Retry {
    /// The first try is about to be made.
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

    /// Something was achieved: what failed before it is forgotten.
    pub fn progressed(&mut self) {
        (self.tries, self.limited_since, self.out_of_files_since, self.untaken) = (0, None, None, 0);
        if self.attempts > 0 {
            self.attempts = 0;
            self.delays = delays(self.policy);
            self.budget.give_back(std::mem::take(&mut self.spent));
        }
    }

    /// A try failed. Either how long to wait before the next one, or the error to end with, which says how often it was
    /// tried.
    pub fn next_delay(&mut self, error: Error) -> Result<(Duration, Error), Error> {
        if error.attempts() > 1 {
            // What was tried often enough within is not tried again around it: the times would multiply.
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
        // Full jitter: many clients that failed together come back apart.
        let delay = rand::rng().random_range(Duration::ZERO..=bound);
        match error.wait() {
            Some(wait) if wait > self.policy.max_wait => Err(self.too_long(error, wait)),
            // Never before the time that the registry named, and not all at that very moment; nor sooner than without it:
            // a date that is past or a number below zero names no time.
            Some(wait) => Ok(((wait + delay.min(wait / 4 + Duration::from_millis(50))).max(delay), error)),
            None => Ok((delay, error)),
        }
    }

    /// There were too many requests: the registry is waited for, as long as that is borne here.
    fn wait_out(&mut self, error: Error, wait: Duration) -> Result<(Duration, Error), Error> {
        let since = *self.limited_since.get_or_insert_with(Instant::now);
        if wait > self.policy.max_wait || since.elapsed() + wait > self.policy.patience {
            return Err(self.too_long(error, wait));
        }
        let apart = (wait / 4 + Duration::from_millis(50)).min(self.policy.first_delay);
        Ok((wait + rand::rng().random_range(Duration::ZERO..=apart), error))
    }

    /// Too many files are open: other work of this process closes some. No try is counted.
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

    /// Waits as [`Retry::next_delay`] says, unless cancelled. `seen` is told of the error and the wait first.
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
        // Success is the common end; where the task failed, nobody asks the budget again.
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

/// A span of time for people: `90 s`, `0.4 s`, `5 min`.
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
        // Full jitter makes each pause anything below its bound: enough of them show the bound.
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
