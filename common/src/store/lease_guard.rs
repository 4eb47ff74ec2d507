//! [`LeaseGuard`]: a lease that is renewed for as long as it is needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Leases, Named};
use crate::error::{Error, Result};

/// A lease is renewed this many times in its term, so that two renewals may fail before it is lost.
const RENEWALS_PER_TERM: u32 = 3;

/// When leases expire is kept as microseconds since this moment.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The result of asking for a lease.
#[derive(Debug)]
pub enum Leased {
    /// The lease is held, and renewed until the guard is dropped.
    Acquired(LeaseGuard),
    /// Another process holds it.
    HeldBy(String),
}

/// A lease by name. A task of its own renews it until the guard is released or dropped, or the lease is lost: then
/// [`LeaseGuard::lost`] is cancelled, and nothing may be written any more that the lease protects.
#[derive(Debug)]
pub struct LeaseGuard {
    token: u64,
    expires: Arc<AtomicU64>,
    lost: CancellationToken,
    released: CancellationToken,
    _release: DropGuard,
}

impl LeaseGuard {
    /// Asks once for a lease of this term. A holder must be unique to what it protects: two uses that share a holder share
    /// the lease, and the first to release it ends the other's.
    pub async fn try_acquire(leases: Arc<dyn Leases>, name: &str, holder: &str, term: Duration) -> Result<Leased> {
        LazyLock::force(&START);
        let asked = Instant::now();
        match leases.acquire(name, holder, term).await? {
            Named::Others { holder, .. } => Ok(Leased::HeldBy(holder)),
            Named::Yours { epoch } => {
                let (lost, release, released) =
                    (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
                let expires = Arc::new(AtomicU64::new(micros(asked + term)));
                let renewal = Renewal {
                    leases,
                    expires: expires.clone(),
                    name: name.to_owned(),
                    holder: holder.to_owned(),
                    term,
                    token: epoch,
                    lost: lost.clone(),
                };
                let (asked_to_release, has_released) = (release.clone(), released.clone());
                tokio::spawn(async move {
                    renewal.run(asked, &asked_to_release).await;
                    has_released.cancel();
                });
                Ok(Leased::Acquired(LeaseGuard {
                    token: epoch,
                    expires,
                    lost,
                    released,
                    _release: release.drop_guard(),
                }))
            }
        }
    }

    /// Asks for a lease until it is acquired, or `cancel` ends the wait with an error that names `tried`.
    pub async fn acquire(
        leases: Arc<dyn Leases>,
        (name, holder): (&str, &str),
        (term, poll_interval): (Duration, Duration),
        cancel: &CancellationToken,
        tried: &str,
    ) -> Result<LeaseGuard> {
        loop {
            if let Leased::Acquired(guard) = LeaseGuard::try_acquire(leases.clone(), name, holder, term).await? {
                return Ok(guard);
            }
            tokio::select! {
                () = sleep(poll_interval) => {}
                () = cancel.cancelled() => return Err(Error::cancelled(tried)),
            }
        }
    }

    /// Cancels a token when the lease is lost, for as long as the guard lives.
    pub fn cancel_when_lost(&self, token: CancellationToken) {
        let (lost, released) = (self.lost.clone(), self.released.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = lost.cancelled() => token.cancel(),
                () = released.cancelled() => {}
            }
        });
    }

    /// The fencing token: greater than that of every holder before.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Is cancelled when the lease is lost: another holds it, or it could not be renewed within its term.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether the lease holds: it is not lost, and its term has not passed. A process that was paused for longer than that
    /// is told so before its renewal has run again.
    pub fn is_held(&self) -> bool {
        !self.lost.is_cancelled() && micros(Instant::now()) < self.expires.load(Ordering::Acquire)
    }

    /// Releases the lease, and returns when the store has done so. A guard that is dropped does the same in the background.
    pub async fn release(self) {
        let LeaseGuard { released, _release, .. } = self;
        drop(_release);
        released.cancelled().await;
    }
}

fn micros(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_micros()).unwrap_or(u64::MAX)
}

/// Renews one lease.
struct Renewal {
    leases: Arc<dyn Leases>,
    expires: Arc<AtomicU64>,
    name: String,
    holder: String,
    term: Duration,
    token: u64,
    lost: CancellationToken,
}

impl Renewal {
    async fn run(self, asked: Instant, release: &CancellationToken) {
        tokio::select! {
            () = self.renew(asked) => self.lost.cancel(),
            () = release.cancelled() => {}
        }
        // A lease that cannot be released expires. One that another holds by now is left alone by the store.
        _ = timeout(self.term, self.leases.release(&self.name, &self.holder)).await;
    }

    /// Renews the lease. Returns when it is lost.
    async fn renew(&self, asked: Instant) {
        let interval = self.term / RENEWALS_PER_TERM;
        let mut expires = asked + self.term;
        let mut next = asked + interval;
        loop {
            tokio::time::sleep_until(next.min(expires)).await;
            let now = Instant::now();
            if now >= expires {
                return;
            }
            next = now + interval;
            match timeout(expires - now, self.leases.acquire(&self.name, &self.holder, self.term)).await {
                Ok(Ok(Named::Yours { epoch })) if epoch == self.token => {
                    expires = now + self.term;
                    self.expires.store(micros(expires), Ordering::Release);
                }
                // It expired, and was acquired anew: in between it may have been another's.
                Ok(Ok(Named::Yours { .. } | Named::Others { .. })) | Err(_) => return,
                Ok(Err(error)) => tracing::debug!("{} could not be renewed: {error}", self.name),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;

    use super::*;
    use crate::error::Class;
    use crate::store::{SqliteStore, SystemClock};

    const TERM: Duration = Duration::from_millis(400);

    async fn store() -> Arc<dyn Leases> {
        Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap())
    }

    async fn acquired(leases: &Arc<dyn Leases>, holder: &str) -> LeaseGuard {
        match LeaseGuard::try_acquire(leases.clone(), "a name", holder, TERM).await.unwrap() {
            Leased::Acquired(guard) => guard,
            held => panic!("{held:?}"),
        }
    }

    #[tokio::test]
    async fn a_lease_is_renewed_until_it_is_released() {
        let leases = store().await;
        let guard = acquired(&leases, "one").await;
        sleep(TERM * 3).await;
        assert!(guard.is_held());
        let other = LeaseGuard::try_acquire(leases.clone(), "a name", "two", TERM).await.unwrap();
        assert!(matches!(other, Leased::HeldBy(holder) if holder == "one"));
        let first = guard.token();
        guard.release().await;
        assert!(acquired(&leases, "two").await.token() > first);
    }

    #[tokio::test]
    async fn a_guard_that_is_dropped_releases_its_lease() {
        let leases = store().await;
        drop(acquired(&leases, "one").await);
        let (ours, terms) = (("a name", "two"), (TERM, Duration::from_millis(5)));
        LeaseGuard::acquire(leases, ours, terms, &CancellationToken::new(), "waiting").await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_that_another_holds_by_now_is_lost_and_its_end_leaves_the_other_alone() {
        let leases = store().await;
        let guard = acquired(&leases, "one").await;
        let stop = CancellationToken::new();
        guard.cancel_when_lost(stop.clone());
        leases.release("a name", "one").await.unwrap();
        let _other = acquired(&leases, "two").await;
        stop.cancelled().await;
        assert!(!guard.is_held());
        guard.release().await;
        assert_eq!(leases.held("a name").await.unwrap().as_deref(), Some("two"));
    }

    /// Answers as it should until it is away.
    struct Away(Arc<dyn Leases>, AtomicBool);

    #[async_trait]
    impl Leases for Away {
        async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<Named> {
            match self.1.load(Ordering::Relaxed) {
                true => Err(Error::new(Class::Unreachable, "leasing", "the store is away")),
                false => self.0.acquire(name, holder, lease).await,
            }
        }

        async fn held(&self, name: &str) -> Result<Option<String>> {
            self.0.held(name).await
        }

        async fn release(&self, name: &str, holder: &str) -> Result<()> {
            self.0.release(name, holder).await
        }
    }

    #[tokio::test]
    async fn a_lease_that_cannot_be_renewed_within_its_term_is_lost() {
        let away = Arc::new(Away(store().await, AtomicBool::new(false)));
        let guard = acquired(&(away.clone() as Arc<dyn Leases>), "one").await;
        away.1.store(true, Ordering::Relaxed);
        assert!(guard.is_held());
        guard.lost().cancelled().await;
        assert!(!guard.is_held());
    }
}
