//! When the next request to a registry may go: its pace, which may be shared with other processes, and how many may be
//! open at a time in this one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::settings::{RegistrySettings, SharedPace};
use crate::store::{Account, Allowance, Ask, Grant, LOOK_EVERY};

/// A longer wait is not slept out: who asked is told, and may do something else.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long requests stop for after a refusal that does not say it.
const SHORT_WAIT: Duration = Duration::from_millis(500);
/// A store that does not answer so soon is gone on without …
const ANSWER: Duration = Duration::from_secs(1);
/// … for so long.
const AWAY: Duration = Duration::from_secs(5);
/// A turn that nobody took for so long has lapsed.
const LAPSE: Duration = Duration::from_millis(250);

/// The pace of one registry.
#[derive(Debug)]
pub(crate) struct Pacer {
    limit: Option<f64>,
    shared: Option<SharedPace>,
    /// Whom the registry counts requests for; needed where the pace is shared.
    account: OnceCell<Account>,
    began: Instant,
    own: Mutex<Own>,
    /// Turns that were given and not taken yet. Who has the lock is next.
    line: tokio::sync::Mutex<VecDeque<Instant>>,
    waiting: AtomicU32,
    permits: Option<Arc<Semaphore>>,
}

#[derive(Debug, Default)]
struct Own {
    /// Where the pace is not shared, and while the store is away.
    allowance: Allowance,
    not_before: Option<Instant>,
    /// All is free, as was said then.
    free_since: Option<Instant>,
    /// Requests made freely, which the store was not told of yet.
    sent: u32,
    away_until: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new(settings: &RegistrySettings, shared: Option<SharedPace>) -> Pacer {
        Pacer {
            limit: settings.requests_per_second,
            shared,
            account: OnceCell::new(),
            began: Instant::now(),
            own: Mutex::default(),
            line: tokio::sync::Mutex::default(),
            waiting: AtomicU32::new(0),
            permits: settings.concurrency.map(|most| Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)))),
        }
    }

    /// Names the account, once, where that matters.
    pub(crate) async fn at<F: Future<Output = Account>>(&self, account: impl FnOnce() -> F) {
        if self.shared.is_some() {
            self.account.get_or_init(account).await;
        }
    }

    /// Returns when one more request may go. Where that is too far off, how far.
    pub(crate) async fn pass(&self) -> Result<(), Duration> {
        loop {
            if let Some(wait) = self.held_off() {
                if wait > LONGEST_SLEEP {
                    return Err(wait);
                }
                // Not all at that very moment.
                let apart = rand::rng().random_range(Duration::ZERO..Duration::from_millis(50));
                tokio::time::sleep(wait + apart).await;
                continue;
            }
            match self.free_for() {
                Some(age) if age < LOOK_EVERY => return self.go_freely(),
                // One looks, the others go on meanwhile.
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

    /// One more request, of which the store is told later.
    fn go_freely(&self) -> Result<(), Duration> {
        self.own().sent += 1;
        Ok(())
    }

    /// Waits in line for a turn. Says no where the rules have changed meanwhile.
    async fn take_turn(&self) -> bool {
        let _waiting = Waiting::begin(&self.waiting);
        let mut line = self.line.lock().await;
        if self.held_off().is_some() || self.free_for().is_some() {
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
        // With the lock held: no more turns are asked for before those that were given are used.
        tokio::time::sleep_until(turn).await;
        self.held_off().is_none()
    }

    /// Asks what may go now.
    async fn ask(&self, line: &mut VecDeque<Instant>, wanted: u32) {
        let ask = self.question(wanted);
        let granted = match self.store() {
            Some((shared, account)) => match tokio::time::timeout(ANSWER, shared.store.grant(account, &ask)).await {
                Ok(Ok(grant)) => Some(grant),
                Ok(Err(error)) => self.do_without(&error.to_string()),
                Err(_) => self.do_without("no answer in time"),
            },
            None => None,
        };
        let now = Instant::now();
        let mut own = self.own();
        let granted =
            granted.unwrap_or_else(|| match own.allowance.grant(self.time(), &Ask { careful: false, ..ask }) {
                None => Grant::Free,
                Some(turns) => {
                    Grant::Turns(turns.into_iter().map(|wait| Duration::from_secs_f64(wait / 1000.0)).collect())
                }
            });
        line.clear();
        own.free_since = matches!(granted, Grant::Free).then_some(now);
        match granted {
            Grant::Wait(wait) => own.not_before = own.not_before.max(now.checked_add(wait)),
            Grant::Turns(turns) => line.extend(turns.into_iter().map(|wait| now + wait)),
            Grant::Free => {}
        }
    }

    /// A request was refused; the registry wants none for so long, if it said so.
    pub(crate) async fn refused(&self, wait: Option<Duration>) {
        let wait = wait.unwrap_or(SHORT_WAIT);
        let ask = self.question(1);
        {
            let mut own = self.own();
            own.not_before = own.not_before.max(Instant::now().checked_add(wait));
            own.free_since = None;
            own.allowance.refused(self.time(), &ask);
        }
        if let Some((shared, account)) = self.store() {
            match tokio::time::timeout(ANSWER, shared.store.refused(account, wait, &ask)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = self.do_without(&error.to_string()),
                Err(_) => _ = self.do_without("no answer in time"),
            }
        }
    }

    /// A place among the requests that may be open at a time; none where there is no limit.
    pub(crate) async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.permits.clone()?.acquire_owned().await.ok()
    }

    /// The store, unless it is away.
    fn store(&self) -> Option<(&SharedPace, &Account)> {
        let is_away = self.own().away_until.is_some_and(|until| until > Instant::now());
        self.shared.as_ref().zip(self.account.get()).filter(|_| !is_away)
    }

    fn do_without(&self, why: &str) -> Option<Grant> {
        tracing::warn!("the shared pace is not known, each process has its own for now: {why}");
        self.own().away_until = Some(Instant::now() + AWAY);
        None
    }

    fn question(&self, wanted: u32) -> Ask {
        let sent = std::mem::take(&mut self.own().sent);
        let careful = self.shared.as_ref().is_some_and(|shared| shared.careful);
        Ask { limit: self.limit, careful, wanted, sent }
    }

    fn held_off(&self) -> Option<Duration> {
        let until = self.own().not_before?;
        Some(until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// How long ago it was said that all is free; none if it is not.
    fn free_for(&self) -> Option<Duration> {
        self.own().free_since.map(|since| since.elapsed())
    }

    /// In milliseconds, for the allowance.
    fn time(&self) -> f64 {
        1_000_000.0 + self.began.elapsed().as_secs_f64() * 1000.0
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits for a turn, until dropped.
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
