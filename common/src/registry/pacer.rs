//! Rate limiter of one account at a registry: request rate, quotas and holds, which may be shared with other processes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rand::Rng as _;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::patience::Streak;
use super::ratelimit::Quota;
use super::settings::{Reserve, SharedPace};
use crate::store::{Account, AccountPart, Allowance, Ask, Grant, LOOK_EVERY, Pace, QuotaWindow, Told, WindowTime};

/// Longer waits are returned to the caller, who may do something else meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Timeout of a call to the shared store.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the local limiter is used after a failed call to the store.
const AWAY: Duration = Duration::from_secs(5);
/// Granted turns older than this are discarded.
const LAPSE: Duration = Duration::from_millis(250);
/// Minimum interval between quota reports to the store while the quota is not low.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A hold on requests to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Time left, from now.
    pub wait: Duration,
    /// Reason in words, to follow the registry's name.
    pub why: String,
}

/// Rate limiter of one account at one registry.
#[derive(Debug)]
pub(crate) struct Pacer {
    limit: Option<f64>,
    shared: Option<SharedPace>,
    /// Account that the registry counts requests for; needed only for shared limits.
    account: OnceCell<Account>,
    began: Instant,
    own: Mutex<Own>,
    /// Granted turns that are not taken yet. The lock holder is next.
    line: tokio::sync::Mutex<VecDeque<Instant>>,
    waiting: AtomicU32,
    reserve: Reserve,
}

#[derive(Debug, Default)]
struct Own {
    /// Used where limits are not shared, and while the store is unavailable.
    allowance: Allowance,
    not_before: Option<Instant>,
    /// The same, where the registry did not say for how long.
    not_before_as_guessed: Option<Instant>,
    /// Backoff by kind of request.
    streaks: [Streak; 6],
    /// Manifest reads are held until then: the quota is exhausted.
    pulls_from: Option<Instant>,
    /// Tasks that read manifests are held until then: the quota is exhausted but for the reserve.
    begin_from: Option<Instant>,
    quota: QuotaWindow,
    quota_of: Option<u64>,
    quota_ends: Option<Instant>,
    quota_told: Option<Instant>,
    /// Whether the quota counts more than manifest reads: other responses report it, too.
    quota_is_wide: bool,
    /// Whether the store granted single turns rather than unlimited requests.
    paced: bool,
    /// When the store last granted unlimited requests.
    free_since: Option<Instant>,
    /// Requests passed without a grant that are not reported to the store yet.
    sent: u32,
    away_until: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new(limit: Option<f64>, reserve: Reserve, shared: Option<SharedPace>) -> Pacer {
        Pacer {
            limit,
            shared,
            account: OnceCell::new(),
            began: Instant::now(),
            own: Mutex::default(),
            line: tokio::sync::Mutex::default(),
            waiting: AtomicU32::new(0),
            reserve,
        }
    }

    /// Sets the account, once, if limits are shared.
    pub(crate) async fn at<F: Future<Output = Account>>(&self, account: impl FnOnce() -> F) {
        let Some(shared) = &self.shared else { return };
        let name = async {
            let account = account().await;
            // Holds recorded before this process started.
            let asked = [account.clone(), account.of(AccountPart::Pulls)];
            if let Ok(Ok(until)) = tokio::time::timeout(ANSWER, shared.store.not_before(&asked)).await {
                let now = Timestamp::now();
                let wait = |until: &Option<Timestamp>| {
                    let wait = Duration::try_from(until.as_ref()?.duration_since(now)).ok()?;
                    Instant::now().checked_add(wait)
                };
                let mut own = self.own();
                own.not_before = own.not_before.max(until.first().and_then(wait));
                own.begin_from = own.begin_from.max(until.get(1).and_then(wait));
                if self.reserve == Reserve::default() {
                    own.pulls_from = own.begin_from;
                }
            }
            account
        };
        self.account.get_or_init(|| name).await;
    }

    /// Returns the shared store and the account, once that is known.
    pub(crate) fn shared(&self) -> Option<(&Arc<dyn Pace>, &Account)> {
        self.shared.as_ref().map(|shared| &shared.store).zip(self.account.get())
    }

    /// Waits until one more request may be sent. Returns the remaining wait as an error if it is too long, or, with
    /// `another_way`, as soon as the registry requires any wait.
    pub(crate) async fn pass(&self, reads_manifest: bool, another_way: bool) -> Result<(), Duration> {
        loop {
            if let Some(wait) = self.held_off(reads_manifest) {
                if another_way || wait > LONGEST_SLEEP {
                    return Err(wait);
                }
                // Spread wake-ups.
                let apart = rand::rng().random_range(Duration::ZERO..Duration::from_millis(50));
                tokio::time::sleep(wait + apart).await;
                continue;
            }
            match self.free_for() {
                Some(age) if age < LOOK_EVERY => return self.go_freely(),
                // One caller asks the store while the others go on.
                Some(_) => match self.line.try_lock() {
                    Ok(mut line) => self.ask(&mut line, 1).await,
                    Err(_) => return self.go_freely(),
                },
                None => {
                    if self.take_turn().await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Passes one request, to be reported to the store later.
    fn go_freely(&self) -> Result<(), Duration> {
        self.own().sent += 1;
        Ok(())
    }

    /// Waits for a turn. Returns false if a hold or an unlimited grant came in the meantime.
    async fn take_turn(&self) -> bool {
        let _waiting = Waiting::begin(&self.waiting);
        let mut line = self.line.lock().await;
        if self.held_off(false).is_some() || self.free_for().is_some() {
            return false;
        }
        let now = Instant::now();
        while line.front().is_some_and(|turn| *turn + LAPSE < now) {
            line.pop_front();
        }
        if line.is_empty() {
            self.ask(&mut line, self.waiting.load(Ordering::Relaxed)).await;
        }
        let Some(turn) = line.pop_front() else { return false };
        // With the lock held, so that no turns are requested before the granted ones are used.
        tokio::time::sleep_until(turn).await;
        self.held_off(false).is_none()
    }

    /// Requests a grant.
    async fn ask(&self, line: &mut VecDeque<Instant>, wanted: u32) {
        let ask = self.question(wanted);
        let granted = match self.store().filter(|(shared, _)| !shared.alone) {
            Some((shared, account)) => match tokio::time::timeout(ANSWER, shared.store.grant(account, &ask)).await {
                Ok(Ok(grant)) => Some(grant),
                Ok(Err(error)) => self.do_without(&error.to_string()),
                Err(_) => self.do_without("no answer in time"),
            },
            None => None,
        };
        let now = Instant::now();
        let time = self.time();
        let mut own = self.own();
        let granted = match granted {
            Some(granted) => {
                own.allowance.forget_presumed();
                let turns = if let Grant::Turns(turns) = &granted { turns.len() } else { 0 };
                // Counted locally as well, in case the store becomes unavailable.
                own.allowance.count(time, turns.try_into().unwrap_or(u32::MAX));
                own.paced = turns > 0;
                granted
            }
            None => match own.allowance.grant(time, &Ask { careful: false, ..ask }) {
                None => Grant::Free,
                Some(turns) => {
                    Grant::Turns(turns.into_iter().map(|wait| Duration::from_secs_f64(wait / 1000.0)).collect())
                }
            },
        };
        line.clear();
        own.free_since = matches!(granted, Grant::Free).then_some(now);
        match granted {
            Grant::Wait(wait) => own.not_before = own.not_before.max(now.checked_add(wait)),
            Grant::Turns(turns) => line.extend(turns.into_iter().map(|wait| now + wait)),
            Grant::Free => {}
        }
    }

    /// Ends the backoff of a kind of request after a success.
    pub(crate) fn went_well(&self, kind: usize) {
        if let Some(streak) = self.own().streaks.get_mut(kind) {
            streak.ended();
        }
    }

    /// Records a rejection (429), with the wait that the registry asked for. If it did not say, returns the wait to
    /// use: until the exhausted quota resets, or a growing backoff. Returns `None` also when it has rejected all
    /// requests of that kind for too long.
    pub(crate) async fn refused(&self, wait: Option<Duration>, reads_manifest: bool, kind: usize) -> Option<Duration> {
        if wait.is_none()
            && reads_manifest
            && let Some(wait) = self.is_used_up()
        {
            if let Some((shared, account)) = self.store() {
                let until = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
                let pulls = account.of(AccountPart::Pulls);
                let noted = shared.store.hold_off(&pulls, until);
                if !matches!(tokio::time::timeout(ANSWER, noted).await, Ok(Ok(()))) {
                    self.do_without("a wait could not be noted");
                }
            }
            return Some(wait);
        }
        let guessed = match wait {
            Some(_) => None,
            None => self.own().streaks.get_mut(kind).and_then(|streak| streak.refused(Instant::now())),
        };
        // A repeated rejection after a wait that was too short does not mean a higher rate.
        let cuts = guessed.is_none_or(|(_, is_first)| is_first);
        let guessed = guessed.map(|(wait, _)| wait);
        let wait = wait.or(guessed).unwrap_or_default();
        let ask = self.question(1);
        {
            let mut own = self.own();
            let until = Instant::now().checked_add(wait);
            own.not_before = own.not_before.max(until);
            if guessed.is_some() {
                own.not_before_as_guessed = own.not_before_as_guessed.max(until);
            }
            own.free_since = None;
            match cuts {
                true => own.allowance.refused(self.time(), &ask),
                false => own.allowance.count(self.time(), ask.sent),
            }
        }
        if let Some((shared, account)) = self.store().filter(|(shared, _)| !shared.alone) {
            let told = async {
                match cuts {
                    true => shared.store.refused(account, wait, &ask).await,
                    false => {
                        let until = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
                        shared.store.hold_off(account, until).await
                    }
                }
            };
            match tokio::time::timeout(ANSWER, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = self.do_without(&error.to_string()),
                Err(_) => _ = self.do_without("no answer in time"),
            }
        }
        guessed
    }

    /// Returns the time until an exhausted quota resets: one that was reported, had little left, and is now rejecting.
    fn is_used_up(&self) -> Option<Duration> {
        let mut own = self.own();
        let little = own.quota_of.map_or(10.0, |limit| limit as f64 / 4.0).max(1.0);
        let ends = own.quota_ends.filter(|_| own.quota.left <= little)?;
        let wait = ends.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return None;
        }
        (own.pulls_from, own.begin_from) = (Some(ends), Some(ends));
        Some(wait)
    }

    /// Records a quota that the registry reported. Returns the resulting hold, if there was none before.
    pub(crate) async fn told(&self, quota: &Quota, reads_manifest: bool) -> Option<Hold> {
        let remaining = quota.remaining?;
        let time = match (quota.reset, quota.window) {
            (Some(reset), _) => WindowTime::Reset(reset),
            (None, Some(window)) if !window.is_zero() => WindowTime::Length(window),
            _ => return None,
        };
        let told = Told { remaining, limit: quota.limit, time, reserve: self.reserve.of(quota.limit) };
        let is_low = remaining <= told.reserve;
        let (was_held, tell) = {
            let (now, millis) = (Instant::now(), self.time());
            let mut own = self.own();
            own.quota_is_wide |= !reads_manifest;
            own.quota_of = quota.limit;
            let (ends, is_new) = own.quota.told(millis, &told);
            if is_new {
                (own.pulls_from, own.begin_from) = (None, None);
            }
            own.quota_ends = now.checked_add(Duration::from_secs_f64((ends - millis).max(0.0) / 1000.0));
            let was_held = own.begin_from.is_some_and(|until| until > now);
            let tell = is_new
                || (is_low && !was_held)
                || own.quota_told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
            if tell {
                own.quota_told = Some(now);
            }
            if !was_held {
                own.hold_for_quota(remaining, is_low);
            }
            (was_held, tell)
        };
        if tell && let Some((shared, account)) = self.store() {
            match tokio::time::timeout(ANSWER, shared.store.quota(account, &told)).await {
                Ok(Ok(wait)) => {
                    // Another process may have seen this window start earlier.
                    let mut own = self.own();
                    own.quota_ends = Instant::now().checked_add(wait);
                    own.hold_for_quota(remaining, is_low);
                }
                Ok(Err(error)) => _ = self.do_without(&error.to_string()),
                Err(_) => _ = self.do_without("no answer in time"),
            }
        } else if remaining == 0 {
            self.own().hold_for_quota(remaining, is_low);
        }
        self.hold(true).filter(|_| is_low && !was_held)
    }

    /// Returns the current hold on new work with this registry; with `pulls`, on work that reads manifests.
    pub(crate) fn hold(&self, pulls: bool) -> Option<Hold> {
        let now = Instant::now();
        let own = self.own();
        let wait = |until: Option<Instant>| {
            until.map(|until| until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
        };
        if let Some(wait) = wait(own.not_before) {
            let why = match own.not_before == own.not_before_as_guessed {
                true => "refuses more requests and does not say for how long",
                false => "asked to be left alone",
            };
            return Some(Hold { wait, why: why.to_owned() });
        }
        let wait = wait(own.begin_from.max(own.pulls_from)).filter(|_| pulls)?;
        let of = own.quota_of.map(|limit| format!(" of {limit}")).unwrap_or_default();
        let why = match own.quota_told {
            Some(_) => format!("has {}{of} pulls left", own.quota.left),
            None => "has no pulls left, or no more than are kept".to_owned(),
        };
        Some(Hold { wait, why })
    }

    /// Returns the store, unless it is considered unavailable.
    fn store(&self) -> Option<(&SharedPace, &Account)> {
        let is_away = self.own().away_until.is_some_and(|until| until > Instant::now());
        self.shared.as_ref().zip(self.account.get()).filter(|_| !is_away)
    }

    /// Falls back to the local limiter, at the rate granted before if there was one.
    fn do_without(&self, why: &str) -> Option<Grant> {
        tracing::warn!("the shared pace is not known, each process has its own for now: {why}");
        let time = self.time();
        let mut own = self.own();
        own.away_until = Some(Instant::now() + AWAY);
        if std::mem::take(&mut own.paced) {
            own.allowance.presume(time);
        }
        None
    }

    fn question(&self, wanted: u32) -> Ask {
        let sent = std::mem::take(&mut self.own().sent);
        let careful = self.shared.as_ref().is_some_and(|shared| shared.careful);
        Ask { limit: self.limit, careful, wanted, sent }
    }

    fn held_off(&self, reads_manifest: bool) -> Option<Duration> {
        let own = self.own();
        let until = own.not_before.max(own.pulls_from.filter(|_| reads_manifest))?;
        drop(own);
        Some(until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// Time since the store granted unlimited requests; `None` if it did not.
    fn free_for(&self) -> Option<Duration> {
        self.own().free_since.map(|since| since.elapsed())
    }

    /// Milliseconds, for the allowance.
    fn time(&self) -> f64 {
        1_000_000.0 + self.began.elapsed().as_secs_f64() * 1000.0
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    /// Applies the holds of a low or exhausted quota.
    fn hold_for_quota(&mut self, remaining: u64, is_low: bool) {
        if is_low {
            self.begin_from = self.quota_ends;
        }
        if remaining == 0 {
            self.pulls_from = self.quota_ends;
            if self.quota_is_wide {
                self.not_before = self.not_before.max(self.quota_ends);
            }
        }
    }
}

/// Counts a caller as waiting for a turn until dropped.
struct Waiting<'a>(&'a AtomicU32);

impl Waiting<'_> {
    fn begin(count: &AtomicU32) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
