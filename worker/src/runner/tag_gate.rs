//! Checks right before a tag is put: that this worker still holds the task's lease, that no other task is writing the
//! tag, and that the source still matches an old plan.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{CONFIRMATION_MAX_AGE, LeaseGuard, LeaseStatus, tag_lease_name};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Runner;
use super::task::LeasedTask;
use crate::copy::TagGate;

/// Interval at which the lease of a tag that another task is writing is polled.
const TAG_LEASE_POLL_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct TaskGate<'a> {
    runner: &'a Runner,
    task: &'a LeasedTask<'a>,
    source_moved: AtomicBool,
    /// Lease of the target tag, once acquired.
    tag_lease: Mutex<Option<LeaseGuard>>,
    /// Cancelled when the lease of the target tag is lost.
    lease_lost: CancellationToken,
}

impl<'a> TaskGate<'a> {
    pub(super) fn new(runner: &'a Runner, task: &'a LeasedTask<'a>) -> TaskGate<'a> {
        TaskGate {
            runner,
            task,
            source_moved: AtomicBool::new(false),
            tag_lease: Mutex::new(None),
            lease_lost: CancellationToken::new(),
        }
    }

    /// Returns whether the tag was not put because the source tag had moved, and resets the flag.
    pub(super) fn take_source_moved(&self) -> bool {
        self.source_moved.swap(false, Ordering::Relaxed)
    }

    /// Runs a copy, and stops it when the lease of its target tag is lost: another task may be writing the tag. After a
    /// process pause longer than the lease, the copy does not continue.
    pub(super) async fn run_while_leased<T>(&self, copy: impl Future<Output = Result<T>>) -> Result<T> {
        let (mut copy, mut lost) = (pin!(copy), pin!(self.lease_lost.cancelled()));
        poll_fn(|context| {
            // The copy itself holds the lock while it acquires the lease.
            let has_expired =
                || self.tag_lease.try_lock().is_ok_and(|tag| tag.as_ref().is_some_and(|tag| !tag.is_held()));
            if lost.as_mut().poll(context).is_ready() || has_expired() {
                return Poll::Ready(Err(self.lease_lost_error()));
            }
            copy.as_mut().poll(context)
        })
        .await
    }

    fn operation(&self) -> String {
        format!("writing {}", self.task.target)
    }

    fn lease_lost_error(&self) -> Error {
        let detail = "the lease of the target tag was lost: another task may be writing it";
        Error::new(ErrorKind::ServerError, self.operation(), detail)
    }

    /// Acquires the lease of the target tag, or confirms it. Only one task writes a tag at a time, so an earlier batch
    /// never overwrites a later one; each run of a task is a separate holder.
    async fn acquire_or_confirm_lease(&self) -> Result<()> {
        let mut tag = self.tag_lease.lock().await;
        if let Some(guard) = &*tag {
            return match guard.confirm(CONFIRMATION_MAX_AGE).await? {
                true => Ok(()),
                false => Err(self.lease_lost_error()),
            };
        }
        let LeasedTask { task_ref, target, context, .. } = self.task;
        let holder =
            format!("{}/{}/{}/{}", self.runner.settings.name, task_ref.batch, task_ref.index, self.task.holder.token);
        let guard = LeaseGuard::acquire(
            self.runner.store.clone(),
            (&tag_lease_name(target), &holder),
            (self.runner.lease_ttl, TAG_LEASE_POLL_INTERVAL),
            &context.cancel,
            &self.operation(),
        )
        .await?;
        guard.cancel_when_lost(self.lease_lost.clone());
        *tag = Some(guard);
        Ok(())
    }

    async fn check(&self, source: &Digest) -> Result<()> {
        self.acquire_or_confirm_lease().await?;
        match self.runner.store.check(self.task.task_ref, self.task.holder, self.runner.lease_ttl).await? {
            LeaseStatus::Held { .. } => {}
            LeaseStatus::Lost | LeaseStatus::BatchStopped => return Err(Error::cancelled(self.operation())),
        }
        // The task may have waited for its slot.
        if self.task.is_plan_old(self.runner.clock.now())
            && let Some(now) = self.runner.head_source_tag(self.task).await?
            && now != *source
            && self.runner.read_source_digest(self.task).await?.is_some_and(|now| now != *source)
        {
            self.source_moved.store(true, Ordering::Relaxed);
            return Err(Error::new(ErrorKind::ServerError, self.operation(), "the source tag moved during the copy"));
        }
        Ok(())
    }

    /// Returns the lease of the tag, to hold until the result is recorded; `None` if no tag was written.
    pub(super) fn into_lease(self) -> Option<LeaseGuard> {
        self.tag_lease.into_inner()
    }

    /// Releases the lease of the tag before the copy restarts.
    pub(super) async fn release_lease(&self) {
        if let Some(guard) = self.tag_lease.lock().await.take() {
            guard.release().await;
        }
    }
}

impl TagGate for TaskGate<'_> {
    fn before_transfer(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.runner.acquire_copy_slot(self.task))
    }

    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.check(source))
    }

    fn before_put(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.acquire_or_confirm_lease())
    }
}
