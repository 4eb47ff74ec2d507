//! Checks right before a tag is put: that this worker still holds the task's lease, that no other task is writing the
//! tag, and that the source still matches an old plan.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Digest;
use imgsync_common::store::{CONFIRMED_FOR, LeaseGuard, Standing, target_tag};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Runner;
use super::task::Held;
use crate::copy::Gate;

/// Interval at which the lease of a tag that another task is writing is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct TaskGate<'a> {
    runner: &'a Runner,
    held: &'a Held<'a>,
    plan_is_old: bool,
    moved: AtomicBool,
    /// Lease of the target tag, once acquired.
    tag: Mutex<Option<LeaseGuard>>,
    /// Cancelled when the lease of the target tag is lost.
    lost: CancellationToken,
}

impl<'a> TaskGate<'a> {
    pub(super) fn new(runner: &'a Runner, held: &'a Held<'a>, plan_is_old: bool) -> TaskGate<'a> {
        TaskGate {
            runner,
            held,
            plan_is_old,
            moved: AtomicBool::new(false),
            tag: Mutex::new(None),
            lost: CancellationToken::new(),
        }
    }

    /// Returns whether the tag was not put because the source tag had moved, and resets the flag.
    pub(super) fn moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Runs a copy, and stops it when the lease of its target tag is lost: another task may be writing the tag. After a
    /// process pause longer than the lease, the copy does not continue.
    pub(super) async fn guard<T>(&self, copy: impl Future<Output = Result<T>>) -> Result<T> {
        let (mut copy, mut lost) = (pin!(copy), pin!(self.lost.cancelled()));
        poll_fn(|context| {
            // The copy itself holds the lock while it acquires the lease.
            let has_expired = || self.tag.try_lock().is_ok_and(|tag| tag.as_ref().is_some_and(|tag| !tag.is_held()));
            if lost.as_mut().poll(context).is_ready() || has_expired() {
                return Poll::Ready(Err(self.lease_lost()));
            }
            copy.as_mut().poll(context)
        })
        .await
    }

    fn tried(&self) -> String {
        format!("writing {}", self.held.target)
    }

    fn lease_lost(&self) -> Error {
        let detail = "the lease of the target tag was lost: another may be writing it";
        Error::new(Class::ServerError, self.tried(), detail)
    }

    /// Acquires the lease of the target tag, or confirms it. Only one task writes a tag at a time, so an earlier batch
    /// never overwrites a later one; each run of a task is a separate holder.
    async fn lease_tag(&self) -> Result<()> {
        let mut tag = self.tag.lock().await;
        if let Some(guard) = &*tag {
            return match guard.confirm(CONFIRMED_FOR).await? {
                true => Ok(()),
                false => Err(self.lease_lost()),
            };
        }
        let Held { ticket, target, context, .. } = self.held;
        let holder =
            format!("{}/{}/{}/{}", self.runner.settings.name, ticket.batch, ticket.index, self.held.holder.token);
        let guard = LeaseGuard::acquire(
            self.runner.store.clone(),
            (&target_tag(target), &holder),
            (self.runner.lease, POLL_INTERVAL),
            &context.cancel,
            &self.tried(),
        )
        .await?;
        guard.cancel_when_lost(self.lost.clone());
        *tag = Some(guard);
        Ok(())
    }

    async fn check(&self, source: &Digest) -> Result<()> {
        self.lease_tag().await?;
        match self.runner.store.check(self.held.ticket, self.held.holder, self.runner.lease).await? {
            Standing::Held { .. } => {}
            Standing::Lost | Standing::Stop => return Err(Error::cancelled(self.tried())),
        }
        if self.plan_is_old
            && let Some(now) = self.runner.ask_source(self.held).await?
            && now != *source
            && self.runner.read_source(self.held).await?.is_some_and(|now| now != *source)
        {
            self.moved.store(true, Ordering::Relaxed);
            return Err(Error::new(Class::ServerError, self.tried(), "the source's tag moved on while it was copied"));
        }
        Ok(())
    }

    /// Returns the lease of the tag, to hold until the result is recorded; `None` if no tag was written.
    pub(super) fn into_lease(self) -> Option<LeaseGuard> {
        self.tag.into_inner()
    }

    /// Releases the lease of the tag before the copy restarts.
    pub(super) async fn release(&self) {
        if let Some(guard) = self.tag.lock().await.take() {
            guard.release().await;
        }
    }
}

impl Gate for TaskGate<'_> {
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.check(source))
    }

    fn before_put(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.lease_tag())
    }
}
