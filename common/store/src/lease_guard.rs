//! [`LeaseGuard`]: a lease that is renewed until it is released.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Fence, LeaseResult, Leases};
use imgsync_oci::error::{Error, Result};

/// Renewals per term: three may fail before the lease is lost.
const RENEWALS_PER_TERM: u32 = 4;
/// Maximum age of a renewal that needs no confirmation before the lease is used. Store leases last several times
/// longer, so nobody else can have acquired it since, unless the store has lost its latest writes.
pub const CONFIRMATION_MAX_AGE: Duration = Duration::from_secs(1);

/// Reference for renewal times, which are kept as microseconds since this instant.
static REFERENCE_INSTANT: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Result of [`LeaseGuard::try_acquire`].
#[derive(Debug)]
pub enum TryAcquireResult {
    /// Acquired, and renewed until the guard is dropped.
    Acquired(LeaseGuard),
    /// Held by another process.
    HeldBy(String),
}

/// A named lease. A background task renews it until the guard is released or dropped, or the lease is lost: then
/// [`LeaseGuard::lost`] is cancelled, and nothing that the lease protects may be written any more.
#[derive(Debug)]
pub struct LeaseGuard {
    lease: Arc<Lease>,
    released: CancellationToken,
    _release: DropGuard,
}

impl LeaseGuard {
    /// Tries once to acquire a lease with this term. The holder name must be unique to what it protects: two uses of
    /// one name share the lease, and the first release ends it for both.
    pub async fn try_acquire(
        leases: Arc<dyn Leases>,
        name: &str,
        holder: &str,
        term: Duration,
    ) -> Result<TryAcquireResult> {
        LazyLock::force(&REFERENCE_INSTANT);
        let asked_at = Instant::now();
        match leases.acquire(name, holder, term).await? {
            LeaseResult::HeldBy { holder, .. } => Ok(TryAcquireResult::HeldBy(holder)),
            LeaseResult::Acquired { token } => {
                let fence = Fence { name: name.to_owned(), holder: holder.to_owned(), token };
                let renewed = AtomicU64::new(micros_since_reference(asked_at));
                let lease = Arc::new(Lease { leases, fence, term, renewed, lost: CancellationToken::new() });
                let (release, released) = (CancellationToken::new(), CancellationToken::new());
                let (renewal, asked_to_release, has_released) = (lease.clone(), release.clone(), released.clone());
                tokio::spawn(async move {
                    renewal.renew_then_release(&asked_to_release).await;
                    has_released.cancel();
                });
                Ok(TryAcquireResult::Acquired(LeaseGuard { lease, released, _release: release.drop_guard() }))
            }
        }
    }

    /// Acquires a lease, polling until it is free. `cancel` ends the wait with an error that names the operation.
    pub async fn acquire(
        leases: Arc<dyn Leases>,
        (name, holder): (&str, &str),
        (term, poll_interval): (Duration, Duration),
        cancel: &CancellationToken,
        operation: &str,
    ) -> Result<LeaseGuard> {
        loop {
            if let TryAcquireResult::Acquired(guard) =
                LeaseGuard::try_acquire(leases.clone(), name, holder, term).await?
            {
                return Ok(guard);
            }
            tokio::select! {
                () = sleep(poll_interval) => {}
                () = cancel.cancelled() => return Err(Error::cancelled(operation)),
            }
        }
    }

    /// Cancels a token when the lease is lost, for as long as the guard lives.
    pub fn cancel_when_lost(&self, token: CancellationToken) {
        let (lost, released) = (self.lease.lost.clone(), self.released.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = lost.cancelled() => token.cancel(),
                () = released.cancelled() => {}
            }
        });
    }

    /// Returns the fence that the store compares before it records what the lease protects. Its token is greater than
    /// that of every earlier holder.
    pub fn fence(&self) -> &Fence {
        &self.lease.fence
    }

    /// Returns a token that is cancelled when the lease is lost: another process holds it, or it could not be renewed
    /// within its term.
    pub fn lost(&self) -> &CancellationToken {
        &self.lease.lost
    }

    /// Returns whether the lease is held as far as this process knows: it is not lost, and its term has not passed. A
    /// process that was suspended for longer than the term sees this before its next renewal.
    pub fn is_held(&self) -> bool {
        self.lease.is_held()
    }

    /// Confirms with the store that the lease is still held, and renews it, unless it was renewed less than `max_age`
    /// ago. Returns `false` if it is lost. Call it directly before writing what the lease protects.
    pub async fn confirm(&self, max_age: Duration) -> Result<bool> {
        if self.is_held() && self.lease.renewed_at().elapsed() < max_age {
            return Ok(true);
        }
        let held = self.lease.renew().await?;
        if !held {
            self.lease.lost.cancel();
        }
        Ok(held)
    }

    /// Runs a future under the lease, and stops it when the lease is lost: then returns `None`. A process suspended for
    /// longer than the term polls it no further.
    pub async fn run<T>(&self, protected: impl Future<Output = T>) -> Option<T> {
        self.lease.run(protected).await
    }

    /// Returns a view of the lease for other tasks of this process.
    pub fn view(&self) -> LeaseView {
        LeaseView(self.lease.clone())
    }

    /// Releases the lease, and returns when the store has done so. Dropping the guard releases it in the background.
    pub async fn release(self) {
        let LeaseGuard { released, _release, .. } = self;
        drop(_release);
        released.cancelled().await;
    }
}

/// A view of a lease, whose guard renews it. The view does not keep the lease.
#[derive(Debug, Clone)]
pub struct LeaseView(Arc<Lease>);

impl LeaseView {
    /// Returns whether the lease is held, as [`LeaseGuard::is_held`] does.
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Runs a future under the lease, as [`LeaseGuard::run`] does.
    pub async fn run<T>(&self, protected: impl Future<Output = T>) -> Option<T> {
        self.0.run(protected).await
    }
}

fn micros_since_reference(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*REFERENCE_INSTANT).as_micros()).unwrap_or(u64::MAX)
}

/// A lease as shared by its guard and its renewal task.
struct Lease {
    leases: Arc<dyn Leases>,
    fence: Fence,
    term: Duration,
    /// When the last successful renewal was requested.
    renewed: AtomicU64,
    lost: CancellationToken,
}

impl Lease {
    fn renewed_at(&self) -> Instant {
        *REFERENCE_INSTANT + Duration::from_micros(self.renewed.load(Ordering::Acquire))
    }

    fn is_held(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < self.renewed_at() + self.term
    }

    async fn run<T>(&self, protected: impl Future<Output = T>) -> Option<T> {
        let (mut protected, mut lost) = (pin!(protected), pin!(self.lost.cancelled()));
        poll_fn(|context| {
            if lost.as_mut().poll(context).is_ready() || !self.is_held() {
                return Poll::Ready(None);
            }
            protected.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// Renews the lease until it is lost or released, then releases it in the store.
    async fn renew_then_release(&self, release: &CancellationToken) {
        tokio::select! {
            () = self.renew_until_lost() => self.lost.cancel(),
            () = self.lost.cancelled() => {}
            () = release.cancelled() => {}
        }
        // The store has forgotten an expired lease. A late release would end the one that this holder has acquired since.
        if Instant::now() >= self.renewed_at() + self.term {
            return;
        }
        // A lease that cannot be released expires. The store leaves a lease of another holder alone.
        _ = timeout(self.term, self.leases.release(&self.fence.name, &self.fence.holder)).await;
    }

    async fn renew_until_lost(&self) {
        let interval = self.term / RENEWALS_PER_TERM;
        let mut next = self.renewed_at() + interval;
        loop {
            sleep_until(next.min(self.renewed_at() + self.term)).await;
            next = Instant::now() + interval;
            // A call that retries waits longer and longer. A new one asks at once, in case the store is back.
            match timeout(interval, self.renew()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!("{} could not be renewed: {error}", self.fence.name),
                Err(_) => tracing::debug!("{} could not be renewed: the store does not respond", self.fence.name),
            }
        }
    }

    /// Renews the lease. Returns `false` if it is lost. An error comes from the store, within the term.
    async fn renew(&self) -> Result<bool> {
        let now = Instant::now();
        let expires = self.renewed_at() + self.term;
        if now >= expires || self.lost.is_cancelled() {
            return Ok(false);
        }
        let Fence { name, holder, token } = &self.fence;
        match timeout(expires - now, self.leases.acquire(name, holder, self.term)).await {
            Ok(Ok(LeaseResult::Acquired { token: renewed_token })) if renewed_token == *token => {
                self.renewed.fetch_max(micros_since_reference(now), Ordering::AcqRel);
                Ok(true)
            }
            // It expired and was acquired anew: another process may have held it in between.
            Ok(Ok(LeaseResult::Acquired { .. } | LeaseResult::HeldBy { .. })) | Err(_) => Ok(false),
            Ok(Err(error)) => Err(error),
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fence.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;

    use super::*;
    use crate::{SqliteStore, SystemClock};
    use imgsync_oci::error::ErrorKind;

    const TERM: Duration = Duration::from_millis(400);

    async fn store() -> Arc<dyn Leases> {
        Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap())
    }

    async fn acquired(leases: &Arc<dyn Leases>, holder: &str) -> LeaseGuard {
        match LeaseGuard::try_acquire(leases.clone(), "a name", holder, TERM).await.unwrap() {
            TryAcquireResult::Acquired(guard) => guard,
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
        assert!(matches!(other, TryAcquireResult::HeldBy(holder) if holder == "one"));
        let first = guard.fence().token;
        guard.release().await;
        assert!(acquired(&leases, "two").await.fence().token > first);
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
        assert_eq!(leases.lease_holder("a name").await.unwrap().as_deref(), Some("two"));
    }

    #[tokio::test]
    async fn a_lease_is_confirmed_by_the_store_unless_it_was_renewed_a_moment_ago() {
        let leases = store().await;
        let guard = acquired(&leases, "one").await;
        assert!(guard.confirm(Duration::ZERO).await.unwrap());
        leases.release("a name", "one").await.unwrap();
        let _other = acquired(&leases, "two").await;
        assert!(guard.confirm(TERM).await.unwrap(), "this process knows no better");
        assert!(!guard.confirm(Duration::ZERO).await.unwrap());
        assert!(!guard.is_held() && guard.lost().is_cancelled());
        assert!(!guard.confirm(TERM).await.unwrap(), "what is lost stays lost");
    }

    #[tokio::test]
    async fn what_a_lease_protects_goes_no_step_further_after_a_pause_beyond_its_term() {
        let leases = store().await;
        let guard = acquired(&leases, "one").await;
        assert_eq!(guard.run(async { 1 }).await, Some(1));
        let steps = AtomicBool::new(false);
        let protected = async {
            // Blocks the only thread of this runtime, like a frozen process: nothing is renewed.
            std::thread::sleep(TERM * 2);
            tokio::task::yield_now().await;
            steps.store(true, Ordering::Relaxed);
        };
        assert_eq!(guard.run(protected).await, None);
        assert!(!steps.load(Ordering::Relaxed));
    }

    /// Leases of a store that is slow to release.
    struct SlowLeases(Arc<dyn Leases>);

    #[async_trait]
    impl Leases for SlowLeases {
        async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<LeaseResult> {
            self.0.acquire(name, holder, lease).await
        }

        async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
            self.0.first_held(names).await
        }

        async fn release(&self, name: &str, holder: &str) -> Result<()> {
            sleep(TERM / 4).await;
            self.0.release(name, holder).await
        }
    }

    #[tokio::test]
    async fn an_expired_lease_is_not_released_after_its_holder_has_acquired_it_again() {
        let slow: Arc<dyn Leases> = Arc::new(SlowLeases(store().await));
        let guard = acquired(&slow, "one").await;
        // Like a frozen process.
        std::thread::sleep(TERM * 2);
        assert_eq!(guard.run(std::future::pending::<()>()).await, None);
        drop(guard);
        let again = acquired(&slow, "one").await;
        assert_eq!(again.run(sleep(TERM)).await, Some(()));
    }

    /// Leases of a store that leaves a number of renewals unanswered.
    struct StalledLeases(Arc<dyn Leases>, AtomicU64);

    #[async_trait]
    impl Leases for StalledLeases {
        async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<LeaseResult> {
            if self.1.load(Ordering::Relaxed) > 0 {
                self.1.fetch_sub(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
            self.0.acquire(name, holder, lease).await
        }

        async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
            self.0.first_held(names).await
        }

        async fn release(&self, name: &str, holder: &str) -> Result<()> {
            self.0.release(name, holder).await
        }
    }

    #[tokio::test]
    async fn a_renewal_that_is_not_answered_is_repeated_within_the_term() {
        let stalled = Arc::new(StalledLeases(store().await, AtomicU64::new(0)));
        let guard = acquired(&(stalled.clone() as Arc<dyn Leases>), "one").await;
        let view = guard.view();
        stalled.1.store(2, Ordering::Relaxed);
        assert_eq!(guard.run(sleep(TERM * 2)).await, Some(()));
        assert_eq!(stalled.1.load(Ordering::Relaxed), 0);
        assert!(view.is_held());
        stalled.1.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(view.run(std::future::pending::<()>()).await, None);
        assert!(!guard.is_held() && !view.is_held());
    }

    /// Leases of a store that becomes unreachable.
    struct UnreachableLeases(Arc<dyn Leases>, AtomicBool);

    #[async_trait]
    impl Leases for UnreachableLeases {
        async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<LeaseResult> {
            match self.1.load(Ordering::Relaxed) {
                true => Err(Error::new(ErrorKind::Unreachable, "leasing", "the store is unreachable")),
                false => self.0.acquire(name, holder, lease).await,
            }
        }

        async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
            self.0.first_held(names).await
        }

        async fn release(&self, name: &str, holder: &str) -> Result<()> {
            self.0.release(name, holder).await
        }
    }

    #[tokio::test]
    async fn a_lease_that_cannot_be_renewed_within_its_term_is_lost() {
        let away = Arc::new(UnreachableLeases(store().await, AtomicBool::new(false)));
        let guard = acquired(&(away.clone() as Arc<dyn Leases>), "one").await;
        away.1.store(true, Ordering::Relaxed);
        assert!(guard.is_held());
        guard.lost().cancelled().await;
        assert!(!guard.is_held());
    }
}
