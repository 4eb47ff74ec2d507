//! What is asked right before a tag is put: whether the task still is ours, whether somebody else is writing that tag, and
//! whether an old plan still says what the source has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Digest;
use imgsync_common::store::{Named, Standing, target_tag};

use super::Runner;
use super::task::Held;
use crate::copy::Gate;

/// How often a tag that another is writing is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(super) struct TaskGate<'a> {
    runner: &'a Runner,
    held: &'a Held<'a>,
    plan_is_old: bool,
    moved: AtomicBool,
}

impl<'a> TaskGate<'a> {
    pub(super) fn new(runner: &'a Runner, held: &'a Held<'a>, plan_is_old: bool) -> TaskGate<'a> {
        TaskGate { runner, held, plan_is_old, moved: AtomicBool::new(false) }
    }

    /// Whether the tag was not put because the source's had moved. Asking forgets it.
    pub(super) fn moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    fn tried(&self) -> String {
        format!("writing {}", self.held.target)
    }

    /// One writes a tag at a time, so that a later batch never loses to an earlier one.
    async fn hold_tag(&self) -> Result<()> {
        let (name, holder) = (target_tag(self.held.target), self.holder());
        loop {
            match self.runner.store.acquire(&name, &holder, self.runner.lease).await? {
                Named::Yours { .. } => return Ok(()),
                Named::Others { .. } => tokio::select! {
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                    () = self.held.context.cancel.cancelled() => return Err(Error::cancelled(self.tried())),
                },
            }
        }
    }

    fn holder(&self) -> String {
        self.runner.settings.holds_tags_as.clone()
    }

    async fn ask(&self, source: &Digest) -> Result<()> {
        self.hold_tag().await?;
        match self.runner.store.check(self.held.ticket, self.held.epoch, self.runner.lease).await? {
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

    pub(super) async fn release(&self) {
        // A lease that is not let go runs out.
        let _ = self.runner.store.release(&target_tag(self.held.target), &self.holder()).await;
    }
}

impl Gate for TaskGate<'_> {
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.ask(source))
    }
}
