//! What is asked right before a tag is put: whether the task still is ours, whether somebody else is writing that tag, and
//! whether an old plan still says what the source has.

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

/// How often the lease of a tag that another task writes is asked for again.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct TaskGate<'a> {
    runner: &'a Runner,
    held: &'a Held<'a>,
    plan_is_old: bool,
    moved: AtomicBool,
    /// The lease of the target tag, once it was asked for.
    tag: Mutex<Option<LeaseGuard>>,
    /// Is cancelled when the lease of the target tag is lost.
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

    /// Whether the tag was not put because the source's had moved. Asking forgets it.
    pub(super) fn moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Runs a copy, and stops it when the lease of its target tag is lost: another may be writing the tag. A process that
    /// was paused for longer than the term of the lease goes no step further.
    pub(super) async fn guard<T>(&self, copy: impl Future<Output = Result<T>>) -> Result<T> {
        let (mut copy, mut lost) = (pin!(copy), pin!(self.lost.cancelled()));
        poll_fn(|context| {
            // Locked by the copy itself, where it waits for the lease.
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

    /// Acquires the lease of the target tag, or confirms it. One task writes a tag at a time, so that a later batch never
    /// loses to an earlier one; each task and run of it is a holder of its own.
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

    /// Gives the lease of the tag away, to be held until what was written is recorded; none where no tag was written.
    pub(super) fn into_lease(self) -> Option<LeaseGuard> {
        self.tag.into_inner()
    }

    /// Releases the lease of the tag, before the copy begins again.
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
