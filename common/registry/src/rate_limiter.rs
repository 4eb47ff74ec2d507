//! Rate limiter of one account at a registry: request rate, quotas and holds, which may be shared with other processes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rand::Rng as _;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::quota_headers::Quota;
use super::rejection_backoff::RejectionBackoff;
use super::settings::{QuotaReserve, SharedRateLimit};
use imgsync_oci::humanize::group_digits;
use imgsync_rate_limit::{
    Account, GRANT_TTL, QuotaPeriod, QuotaReport, QuotaWindow, RateAllocator, RateGrant, RateLimitCategory,
    RateLimitStore, RateRequest,
};

/// Longer waits are returned to the caller, who may do something else meanwhile.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// Timeout of a call to the shared store.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the local limiter is used after a failed call to the store.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Granted turns older than this are discarded.
const TURN_EXPIRY: Duration = Duration::from_millis(250);
/// Minimum interval between quota reports to the store while the quota is not low.
const QUOTA_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A hold on requests to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitHold {
    /// Time left, from now.
    pub wait: Duration,
    /// Reason in words, to follow the registry's name.
    pub reason: String,
}

/// Rate limiter of one account at one registry.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limit: Option<f64>,
    shared: Option<SharedRateLimit>,
    /// Account that the registry counts requests for; needed only for shared limits.
    account: OnceCell<Account>,
    began: Instant,
    local: Mutex<LocalState>,
    /// Granted turns that are not taken yet. The lock holder is next.
    turns: tokio::sync::Mutex<VecDeque<Instant>>,
    waiting: AtomicU32,
    reserve: QuotaReserve,
}

#[derive(Debug, Default)]
struct LocalState {
    /// Used where limits are not shared, and while the store is unavailable.
    allowance: RateAllocator,
    not_before: Option<Instant>,
    /// The same, where the registry did not say for how long.
    not_before_estimated: Option<Instant>,
    /// Backoff by kind of request.
    backoffs: [RejectionBackoff; 6],
    /// Manifest reads are held until then: the quota is exhausted.
    pulls_held_until: Option<Instant>,
    /// Tasks that read manifests are held until then: the quota is exhausted but for the reserve.
    tasks_held_until: Option<Instant>,
    quota: QuotaWindow,
    quota_limit: Option<u64>,
    quota_ends_at: Option<Instant>,
    quota_reported_at: Option<Instant>,
    /// Whether the quota counts more than manifest reads: other responses report it, too.
    quota_covers_all_requests: bool,
    /// Whether the store granted single turns rather than unlimited requests.
    has_store_turns: bool,
    /// When the store last granted unlimited requests.
    unlimited_since: Option<Instant>,
    /// Requests passed without a grant that are not reported to the store yet.
    unreported_requests: u32,
    store_away_until: Option<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(limit: Option<f64>, reserve: QuotaReserve, shared: Option<SharedRateLimit>) -> RateLimiter {
        RateLimiter {
            limit,
            shared,
            account: OnceCell::new(),
            began: Instant::now(),
            local: Mutex::default(),
            turns: tokio::sync::Mutex::default(),
            waiting: AtomicU32::new(0),
            reserve,
        }
    }

    /// Sets the account, once, if limits are shared.
    pub(crate) async fn init_account<F: Future<Output = Account>>(&self, account: impl FnOnce() -> F) {
        let Some(shared) = &self.shared else { return };
        let name = async {
            let account = account().await;
            // Holds recorded before this process started.
            let accounts = [account.clone(), account.with_category(RateLimitCategory::Pulls)];
            if let Ok(Ok(until)) = tokio::time::timeout(STORE_TIMEOUT, shared.store.blocked_until(&accounts)).await {
                let now = Timestamp::now();
                let wait = |until: &Option<Timestamp>| {
                    let wait = Duration::try_from(until.as_ref()?.duration_since(now)).ok()?;
                    Instant::now().checked_add(wait)
                };
                let mut own = self.local();
                own.not_before = own.not_before.max(until.first().and_then(wait));
                own.tasks_held_until = own.tasks_held_until.max(until.get(1).and_then(wait));
                if self.reserve == QuotaReserve::default() {
                    own.pulls_held_until = own.tasks_held_until;
                }
            }
            account
        };
        self.account.get_or_init(|| name).await;
    }

    /// Returns the shared store and the account, once that is known.
    pub(crate) fn shared_store(&self) -> Option<(&Arc<dyn RateLimitStore>, &Account)> {
        self.shared.as_ref().map(|shared| &shared.store).zip(self.account.get())
    }

    /// Waits until one more request may be sent. Returns the remaining wait as an error if it is too long, or, with
    /// `another_way`, as soon as the registry requires any wait.
    pub(crate) async fn acquire(&self, reads_manifest: bool, another_way: bool) -> Result<(), Duration> {
        loop {
            if let Some(wait) = self.held_for(reads_manifest) {
                if another_way || wait > MAX_SLEEP {
                    return Err(wait);
                }
                // Spread wake-ups.
                let apart = rand::rng().random_range(Duration::ZERO..Duration::from_millis(50));
                tokio::time::sleep(wait + apart).await;
                continue;
            }
            match self.unlimited_for() {
                Some(age) if age < GRANT_TTL => return self.pass_uncounted(),
                // One caller asks the store while the others go on.
                Some(_) => match self.turns.try_lock() {
                    Ok(mut line) => self.request_grant(&mut line, 1).await,
                    Err(_) => return self.pass_uncounted(),
                },
                None => {
                    if self.wait_for_turn().await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Passes one request, to be reported to the store later.
    fn pass_uncounted(&self) -> Result<(), Duration> {
        self.local().unreported_requests += 1;
        Ok(())
    }

    /// Waits for a turn. Returns false if a hold or an unlimited grant came in the meantime.
    async fn wait_for_turn(&self) -> bool {
        let _waiting = TurnWaiter::register(&self.waiting);
        let mut line = self.turns.lock().await;
        if self.held_for(false).is_some() || self.unlimited_for().is_some() {
            return false;
        }
        let now = Instant::now();
        while line.front().is_some_and(|turn| *turn + TURN_EXPIRY < now) {
            line.pop_front();
        }
        if line.is_empty() {
            self.request_grant(&mut line, self.waiting.load(Ordering::Relaxed)).await;
        }
        let Some(turn) = line.pop_front() else { return false };
        // With the lock held, so that no turns are requested before the granted ones are used.
        tokio::time::sleep_until(turn).await;
        self.held_for(false).is_none()
    }

    /// Requests a grant.
    async fn request_grant(&self, line: &mut VecDeque<Instant>, wanted: u32) {
        let ask = self.build_request(wanted);
        let granted = match self.store().filter(|(shared, _)| !shared.exclusive) {
            Some((shared, account)) => {
                match tokio::time::timeout(STORE_TIMEOUT, shared.store.acquire_rate(account, &ask)).await {
                    Ok(Ok(grant)) => Some(grant),
                    Ok(Err(error)) => self.fall_back_to_local(&error.to_string()),
                    Err(_) => self.fall_back_to_local("timed out"),
                }
            }
            None => None,
        };
        let now = Instant::now();
        let time = self.now_millis();
        let mut own = self.local();
        let granted = match granted {
            Some(granted) => {
                own.allowance.clear_assumed_rate();
                let turns = if let RateGrant::Scheduled(turns) = &granted { turns.len() } else { 0 };
                // Counted locally as well, in case the store becomes unavailable.
                own.allowance.record_sent(time, turns.try_into().unwrap_or(u32::MAX));
                own.has_store_turns = turns > 0;
                granted
            }
            None => match own.allowance.allocate(time, &RateRequest { slow_start: false, ..ask }) {
                None => RateGrant::Unlimited,
                Some(turns) => {
                    RateGrant::Scheduled(turns.into_iter().map(|wait| Duration::from_secs_f64(wait / 1000.0)).collect())
                }
            },
        };
        line.clear();
        own.unlimited_since = matches!(granted, RateGrant::Unlimited).then_some(now);
        match granted {
            RateGrant::Wait(wait) => own.not_before = own.not_before.max(now.checked_add(wait)),
            RateGrant::Scheduled(turns) => line.extend(turns.into_iter().map(|wait| now + wait)),
            RateGrant::Unlimited => {}
        }
    }

    /// Ends the backoff of a kind of request after a success.
    pub(crate) fn on_success(&self, kind: usize) {
        if let Some(backoff) = self.local().backoffs.get_mut(kind) {
            backoff.reset();
        }
    }

    /// Records a rejection (429), with the wait that the registry asked for. If it did not say, returns the wait to
    /// use: until the exhausted quota resets, or a growing backoff. Returns `None` also when it has rejected all
    /// requests of that kind for too long.
    pub(crate) async fn on_rejected(
        &self,
        wait: Option<Duration>,
        reads_manifest: bool,
        kind: usize,
    ) -> Option<Duration> {
        if wait.is_none()
            && reads_manifest
            && let Some(wait) = self.hold_exhausted_quota()
        {
            if let Some((shared, account)) = self.store() {
                let until = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
                let pulls = account.with_category(RateLimitCategory::Pulls);
                let recorded = shared.store.block_until(&pulls, until);
                if !matches!(tokio::time::timeout(STORE_TIMEOUT, recorded).await, Ok(Ok(()))) {
                    self.fall_back_to_local("a rate limit hold could not be recorded");
                }
            }
            return Some(wait);
        }
        let guessed = match wait {
            Some(_) => None,
            None => self.local().backoffs.get_mut(kind).and_then(|backoff| backoff.on_rejected(Instant::now())),
        };
        // A repeated rejection after a wait that was too short does not mean a higher rate.
        let cuts = guessed.is_none_or(|(_, is_first)| is_first);
        let guessed = guessed.map(|(wait, _)| wait);
        let wait = wait.or(guessed).unwrap_or_default();
        let ask = self.build_request(1);
        {
            let mut own = self.local();
            let until = Instant::now().checked_add(wait);
            own.not_before = own.not_before.max(until);
            if guessed.is_some() {
                own.not_before_estimated = own.not_before_estimated.max(until);
            }
            own.unlimited_since = None;
            match cuts {
                true => own.allowance.on_throttled(self.now_millis(), &ask),
                false => own.allowance.record_sent(self.now_millis(), ask.sent),
            }
        }
        if let Some((shared, account)) = self.store().filter(|(shared, _)| !shared.exclusive) {
            let report = async {
                match cuts {
                    true => shared.store.record_throttled(account, wait, &ask).await,
                    false => {
                        let until = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
                        shared.store.block_until(account, until).await
                    }
                }
            };
            match tokio::time::timeout(STORE_TIMEOUT, report).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = self.fall_back_to_local(&error.to_string()),
                Err(_) => _ = self.fall_back_to_local("timed out"),
            }
        }
        guessed
    }

    /// Returns the time until an exhausted quota resets: one that was reported, had little left, and is now rejecting.
    fn hold_exhausted_quota(&self) -> Option<Duration> {
        let mut own = self.local();
        let little = own.quota_limit.map_or(10.0, |limit| limit as f64 / 4.0).max(1.0);
        let ends = own.quota_ends_at.filter(|_| own.quota.remaining <= little)?;
        let wait = ends.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return None;
        }
        (own.pulls_held_until, own.tasks_held_until) = (Some(ends), Some(ends));
        Some(wait)
    }

    /// Records a quota that the registry reported. Returns the resulting hold, if there was none before.
    pub(crate) async fn on_quota(&self, quota: &Quota, reads_manifest: bool) -> Option<RateLimitHold> {
        let remaining = quota.remaining?;
        let period = match (quota.reset, quota.window) {
            (Some(reset), _) => QuotaPeriod::ResetsIn(reset),
            (None, Some(window)) if !window.is_zero() => QuotaPeriod::WindowLength(window),
            _ => return None,
        };
        let report = QuotaReport { remaining, limit: quota.limit, period, reserve: self.reserve.requests(quota.limit) };
        let is_low = remaining <= report.reserve;
        let (was_held, is_reported) = {
            let (now, millis) = (Instant::now(), self.now_millis());
            let mut own = self.local();
            own.quota_covers_all_requests |= !reads_manifest;
            own.quota_limit = quota.limit;
            let (ends, is_new) = own.quota.update(millis, &report);
            if is_new {
                (own.pulls_held_until, own.tasks_held_until) = (None, None);
            }
            own.quota_ends_at = now.checked_add(Duration::from_secs_f64((ends - millis).max(0.0) / 1000.0));
            let was_held = own.tasks_held_until.is_some_and(|until| until > now);
            let is_reported = is_new
                || (is_low && !was_held)
                || own.quota_reported_at.is_none_or(|report| now.duration_since(report) >= QUOTA_REPORT_INTERVAL);
            if is_reported {
                own.quota_reported_at = Some(now);
            }
            if !was_held {
                own.hold_for_quota(remaining, is_low);
            }
            (was_held, is_reported)
        };
        if is_reported && let Some((shared, account)) = self.store() {
            match tokio::time::timeout(STORE_TIMEOUT, shared.store.record_quota(account, &report)).await {
                Ok(Ok(wait)) => {
                    // Another process may have seen this window start earlier.
                    let mut own = self.local();
                    own.quota_ends_at = Instant::now().checked_add(wait);
                    own.hold_for_quota(remaining, is_low);
                }
                Ok(Err(error)) => _ = self.fall_back_to_local(&error.to_string()),
                Err(_) => _ = self.fall_back_to_local("timed out"),
            }
        } else if remaining == 0 {
            self.local().hold_for_quota(remaining, is_low);
        }
        self.current_hold(true).filter(|_| is_low && !was_held)
    }

    /// Returns the current hold on new work with this registry; with `pulls`, on work that reads manifests.
    pub(crate) fn current_hold(&self, pulls: bool) -> Option<RateLimitHold> {
        let now = Instant::now();
        let own = self.local();
        let wait = |until: Option<Instant>| {
            until.map(|until| until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
        };
        if let Some(wait) = wait(own.not_before) {
            let reason = match own.not_before == own.not_before_estimated {
                true => "rejects requests without saying for how long",
                false => "is rate limiting",
            };
            return Some(RateLimitHold { wait, reason: reason.to_owned() });
        }
        let wait = wait(own.tasks_held_until.max(own.pulls_held_until)).filter(|_| pulls)?;
        let of = own.quota_limit.map(|limit| format!(" of {}", group_digits(limit))).unwrap_or_default();
        let reason = match own.quota_reported_at {
            Some(_) => format!("has {}{of} pulls left", group_digits(own.quota.remaining.max(0.0) as u64)),
            None => "has no pulls left beyond its reserve".to_owned(),
        };
        Some(RateLimitHold { wait, reason })
    }

    /// Returns the store, unless it is considered unavailable.
    fn store(&self) -> Option<(&SharedRateLimit, &Account)> {
        let is_away = self.local().store_away_until.is_some_and(|until| until > Instant::now());
        self.shared.as_ref().zip(self.account.get()).filter(|_| !is_away)
    }

    /// Falls back to the local limiter, at the rate granted before if there was one.
    fn fall_back_to_local(&self, why: &str) -> Option<RateGrant> {
        tracing::warn!("the shared rate limit is unavailable, this process uses its own limit for now: {why}");
        let time = self.now_millis();
        let mut own = self.local();
        own.store_away_until = Some(Instant::now() + STORE_RETRY_AFTER);
        if std::mem::take(&mut own.has_store_turns) {
            own.allowance.assume_recent_rate(time);
        }
        None
    }

    fn build_request(&self, wanted: u32) -> RateRequest {
        let sent = std::mem::take(&mut self.local().unreported_requests);
        let slow_start = self.shared.as_ref().is_some_and(|shared| shared.slow_start);
        RateRequest { limit: self.limit, slow_start, wanted, sent }
    }

    fn held_for(&self, reads_manifest: bool) -> Option<Duration> {
        let own = self.local();
        let until = own.not_before.max(own.pulls_held_until.filter(|_| reads_manifest))?;
        drop(own);
        Some(until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// Time since the store granted unlimited requests; `None` if it did not.
    fn unlimited_for(&self) -> Option<Duration> {
        self.local().unlimited_since.map(|since| since.elapsed())
    }

    /// Milliseconds, for the allowance.
    fn now_millis(&self) -> f64 {
        1_000_000.0 + self.began.elapsed().as_secs_f64() * 1000.0
    }

    fn local(&self) -> MutexGuard<'_, LocalState> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalState {
    /// Applies the holds of a low or exhausted quota.
    fn hold_for_quota(&mut self, remaining: u64, is_low: bool) {
        if is_low {
            self.tasks_held_until = self.quota_ends_at;
        }
        if remaining == 0 {
            self.pulls_held_until = self.quota_ends_at;
            if self.quota_covers_all_requests {
                self.not_before = self.not_before.max(self.quota_ends_at);
            }
        }
    }
}

/// Counts a caller as waiting for a turn until dropped.
struct TurnWaiter<'a>(&'a AtomicU32);

impl TurnWaiter<'_> {
    fn register(count: &AtomicU32) -> TurnWaiter<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        TurnWaiter(count)
    }
}

impl Drop for TurnWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
