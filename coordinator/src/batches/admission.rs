//! Admission of batches. Of the same rules one batch runs at a time, and one run waits for its end.
//!
//! A batch is created under the lease [`starting`] of its rules, so that concurrent runs see each other. The waiting
//! run holds [`waiting`]; later runs follow the batch that it creates. Embedded, [`LockUse::Run`] also limits a state
//! directory to one run, whatever its rules.

use std::time::Duration;

use imgsync_common::batch::{BatchId, Options};
use imgsync_common::config::IfRunning;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Digest;
use imgsync_common::store::{Batch, Control, LeaseGuard, Leased, LockHolder, LockUse, RunLock, starting, waiting};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::house::House;
use super::lead::LEADER_TERM;
use super::owner::{resume_command, sure_owner, until_over};
use super::plan::Slice;

/// Interval between attempts to acquire a lease or the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of batches, the newest, that are searched for the one a waiting run has created.
const RECENT: usize = 100;

/// Requests admission of a batch.
pub struct Admission<'a> {
    pub(super) house: &'a House,
    /// Returns the identity of batches of these rules, as a whole or for a slice.
    pub(super) rules: &'a (dyn Fn(Option<Slice>) -> Digest + Sync),
    pub(super) slice: Option<Slice>,
    /// Options of the batch.
    pub(super) options: &'a Options,
    /// Action while a batch of the same rules is running.
    pub(super) if_running: IfRunning,
    /// Holder name of this process in leases.
    pub(super) name: String,
    /// Whether this process already holds the run lock.
    pub(super) has_lock: bool,
    pub(super) cancel: &'a CancellationToken,
    /// Receives messages on what admission waits for.
    pub(super) say: &'a (dyn Fn(&str) + Sync),
}

/// Result of an admission.
#[derive(Debug)]
pub enum Admitted {
    /// The batch may be created.
    Turn(Box<Turn>),
    /// Another run creates, or has created, an equal batch: follow it, and end as it does.
    Join(BatchId),
}

/// Permit to create a batch, held by one process at a time for the same rules.
#[derive(Debug)]
pub struct Turn {
    /// Run lock of an embedded store.
    pub(super) lock: Option<RunLock>,
    /// Another process still holds the lock, and releases it when its batch is superseded.
    pub(super) awaits_lock: bool,
    pub(super) supersedes: Option<BatchId>,
    leases: Vec<LeaseGuard>,
}

impl Turn {
    /// Releases the leases.
    pub(super) async fn end(&mut self) {
        for lease in self.leases.drain(..) {
            lease.release().await;
        }
    }
}

/// Obstacle to creating a batch now.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// A batch of the same rules is paused.
    Paused(BatchId),
    /// A batch of the same rules is running, or another process with the same state directory.
    Running(Running),
    /// Another run is waiting for the end of such a batch.
    Waiting {
        /// Holder name of the waiting run.
        by: String,
        /// Newest batch in the store.
        newest: Option<BatchId>,
    },
}

/// A running batch, or another process with the same state directory.
#[derive(Debug)]
pub(crate) struct Running {
    batch: Option<Box<Batch>>,
    by: String,
    since: Option<Timestamp>,
}

impl Running {
    /// Describes what is running, its owner and its start.
    fn describe(&self) -> String {
        let since =
            self.since.map(|since| since.strftime(" since %Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
        match &self.batch {
            Some(batch) => format!("batch {} of the same rules is run by {}{since}", batch.id, self.by),
            None => format!("{} is running with this state directory{since}", self.by),
        }
    }
}

impl Obstacle {
    /// Describes the obstacle.
    pub(crate) fn describe(&self) -> String {
        match self {
            Obstacle::Paused(id) => format!("batch {id} of the same rules is paused"),
            Obstacle::Running(running) => running.describe(),
            Obstacle::Waiting { by, .. } => format!("{by} waits for the end of a batch of the same rules"),
        }
    }

    /// Returns the error of a run that does not wait.
    pub(crate) fn refusal(&self, tried: &str) -> Error {
        let error = Error::new(Class::Invalid, tried, self.describe());
        match self {
            Obstacle::Paused(id) => error.hint(format!(
                "`{}` goes on with it, `imgsync batch cancel {id}` ends it",
                resume_command(*id)
            )),
            Obstacle::Running(Running { batch: Some(batch), .. }) => error.hint(format!(
                "`imgsync batch watch {0}` follows it, `imgsync batch cancel {0}` ends it; --if-running wait waits for its end",
                batch.id
            )),
            Obstacle::Running(_) | Obstacle::Waiting { .. } => {
                error.hint("--if-running wait waits for its end; `imgsync batch list` shows what there is")
            }
        }
    }
}

impl Admission<'_> {
    /// Waits for a permit as far as `if_running` allows, or returns the batch to follow instead.
    pub async fn admit(&self) -> Result<Admitted> {
        let mut waits = None;
        let admitted = tokio::select! {
            admitted = self.ask(&mut waits) => admitted,
            () = self.cancel.cancelled() => Err(Error::cancelled(TRIED)),
        };
        match (admitted, waits) {
            (Ok(Admitted::Turn(mut turn)), waits) => {
                turn.leases.extend(waits);
                Ok(Admitted::Turn(turn))
            }
            (admitted, waits) => {
                if let Some(waits) = waits {
                    waits.release().await;
                }
                admitted
            }
        }
    }

    /// Returns a permit, or the obstacle, without waiting for its end.
    pub(crate) async fn try_turn(&self) -> Result<std::result::Result<Turn, Obstacle>> {
        let (store, name) = (self.house.store.clone(), starting(&self.rules()));
        let (ours, pace) = ((&*name, &*self.name), (LEADER_TERM, POLL_INTERVAL));
        let lease = LeaseGuard::acquire(store, ours, pace, self.cancel, TRIED).await?;
        let looked = self.look(false).await;
        self.finish_look(lease, looked).await
    }

    async fn finish_look(
        &self,
        lease: LeaseGuard,
        looked: Result<std::result::Result<Turn, Obstacle>>,
    ) -> Result<std::result::Result<Turn, Obstacle>> {
        match looked {
            Ok(Ok(mut turn)) => {
                turn.leases.push(lease);
                Ok(Ok(turn))
            }
            other => {
                lease.release().await;
                other
            }
        }
    }

    async fn ask(&self, waits: &mut Option<LeaseGuard>) -> Result<Admitted> {
        let store = &self.house.store;
        let (starting, waiting) = (starting(&self.rules()), waiting(&self.rules()));
        let pace = (LEADER_TERM, POLL_INTERVAL);
        let mut said: Option<String> = None;
        let mut say = |who: &str, what: &str| {
            if said.as_deref() != Some(who) {
                (self.say)(what);
                said = Some(who.to_owned());
            }
        };
        loop {
            let lease = LeaseGuard::acquire(store.clone(), (&starting, &self.name), pace, self.cancel, TRIED).await?;
            let looked = self.look(waits.is_some()).await;
            let obstacle = match self.finish_look(lease, looked).await? {
                Ok(turn) => return Ok(Admitted::Turn(Box::new(turn))),
                Err(obstacle) => obstacle,
            };
            let running = match obstacle {
                Obstacle::Paused(_) => return Err(obstacle.refusal(TRIED)),
                _ if self.if_running == IfRunning::Fail => return Err(obstacle.refusal(TRIED)),
                Obstacle::Waiting { by, newest } => {
                    say(
                        &by,
                        &format!("{by} waits already for the end of a batch of the same rules: this run joins it"),
                    );
                    match self.follow(&waiting, (&by, newest)).await? {
                        Some(id) => return Ok(Admitted::Join(id)),
                        None => continue,
                    }
                }
                Obstacle::Running(running) => running,
            };
            if let (IfRunning::Join, Some(batch)) = (self.if_running, &running.batch) {
                self.check_joins(batch)?;
                (self.say)(&format!("{}: this run joins it", running.describe()));
                return Ok(Admitted::Join(batch.id));
            }
            if waits.is_none() {
                match LeaseGuard::try_acquire(store.clone(), &waiting, &self.name, LEADER_TERM).await? {
                    Leased::Acquired(guard) => *waits = Some(guard),
                    // Another run came first: follow that one.
                    Leased::HeldBy(_) => continue,
                }
            }
            say(&running.by, &format!("{}: waiting for its end", running.describe()));
            let Some(guard) = waits.as_ref() else { continue };
            let lost = guard.lost().clone();
            tokio::select! {
                over = self.until_over(&running) => over?,
                () = lost.cancelled() => *waits = None,
            }
        }
    }

    fn rules(&self) -> Digest {
        (self.rules)(self.slice)
    }

    /// Looks for obstacles to a new batch, under the lease that admits one process at a time. `waits` says that this is
    /// the waiting run.
    async fn look(&self, waits: bool) -> Result<std::result::Result<Turn, Obstacle>> {
        let (store, rules) = (&self.house.store, self.rules());
        if !waits
            && self.if_running != IfRunning::Supersede
            && let Some(by) = store.held(&waiting(&rules)).await?
        {
            let newest = store.batches(1).await?.first().map(|batch| batch.id);
            return Ok(Err(Obstacle::Waiting { by, newest }));
        }
        let lock = match self.has_lock {
            true => Ok(None),
            false => self.house.try_lock(LockUse::Run).await?,
        };
        if let Err(holder) = &lock
            && holder.used_for == Some(LockUse::Serve)
        {
            return Err(self.house.lock_refusal(holder));
        }
        let found = match store.unfinished(&rules).await? {
            Some(id) => store.batch(id).await?.filter(|batch| batch.control.is_live()),
            None => None,
        };
        let turn = |lock, supersedes| Turn { lock, awaits_lock: false, supersedes, leases: Vec::new() };
        let Some(batch) = found else {
            if self.if_running == IfRunning::Join {
                self.check_slices().await?;
            }
            return Ok(match lock {
                Ok(lock) => Ok(turn(lock, None)),
                Err(holder) => Err(Obstacle::Running(of_process(&holder))),
            });
        };
        if batch.control == Control::Paused {
            return Ok(Err(Obstacle::Paused(batch.id)));
        }
        let id = batch.id;
        let by = match &lock {
            // No other process runs with this state directory.
            Ok(Some(_)) => None,
            _ => sure_owner(&**store, id).await?,
        };
        let running = match (lock, by) {
            (Ok(lock), None) => {
                (self.say)(&format!(
                    "batch {id} of the same rules was interrupted: this run takes its place (what it has copied stays)"
                ));
                return Ok(Ok(turn(lock, Some(id))));
            }
            // The lock holder runs another batch.
            (Err(holder), None) => return Ok(Err(Obstacle::Running(of_process(&holder)))),
            (Ok(_), Some(by)) => Running { since: Some(batch.created_at), batch: Some(Box::new(batch)), by },
            (Err(holder), Some(_)) => {
                Running { by: holder.to_string(), since: Some(batch.created_at), batch: Some(Box::new(batch)) }
            }
        };
        if self.if_running != IfRunning::Supersede {
            return Ok(Err(Obstacle::Running(running)));
        }
        (self.say)(&format!("{}: it is superseded by this run", running.describe()));
        let awaits_lock = !self.house.is_cluster() && !self.has_lock;
        Ok(Ok(Turn { awaits_lock, ..turn(None, Some(id)) }))
    }

    /// Waits until what is running has ended or was abandoned.
    async fn until_over(&self, running: &Running) -> Result<()> {
        let store = &*self.house.store;
        let Some(batch) = &running.batch else {
            while store.may_have_owners().await? {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            return Ok(());
        };
        let mut is_paused = false;
        let seen = |batch: &Batch| {
            let pauses = batch.control == Control::Paused;
            if pauses && !std::mem::replace(&mut is_paused, pauses) {
                let command = resume_command(batch.id);
                (self.say)(&format!("batch {} is paused: `{command}` goes on with it", batch.id));
            }
            is_paused = pauses;
        };
        until_over(store, batch.id, seen).await?;
        Ok(())
    }

    /// Waits until the waiting run has created its batch. Returns `None` if it has not, or if this run cannot follow
    /// that batch.
    async fn follow(&self, waiting: &str, (by, newest): (&str, Option<BatchId>)) -> Result<Option<BatchId>> {
        let store = &self.house.store;
        while store.held(waiting).await?.as_deref() == Some(by) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let rules = self.rules();
        let batches = store.batches(RECENT).await?;
        let made =
            batches.into_iter().find(|batch| batch.rules == rules && newest.is_none_or(|newest| batch.id > newest));
        let Some(made) = made else { return Ok(None) };
        match self.check_joins(&made) {
            Ok(()) => Ok(Some(made.id)),
            Err(error) if self.if_running == IfRunning::Join => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Refuses to follow a batch with other options.
    fn check_joins(&self, batch: &Batch) -> Result<()> {
        let its = Options::decode(&batch.options, &format!("batch {}", batch.id))?;
        let differences = differences(&its, self.options);
        if differences.is_empty() {
            return Ok(());
        }
        let detail = format!("it was started with other options: {} differ", differences.join(", "));
        Err(Error::new(Class::Invalid, format!("joining batch {}", batch.id), detail)
            .hint("give the same options, or wait for its end with --if-running wait"))
    }

    /// Refuses to join while another slice of the same plan is running.
    async fn check_slices(&self) -> Result<()> {
        let store = &*self.house.store;
        for batch in store.batches(RECENT).await?.into_iter().filter(|batch| batch.ended_at.is_none()) {
            // A batch that cannot be decoded is none of these rules.
            let Ok(options) = Options::decode(&batch.options, "a batch") else { continue };
            let slice = options.slice.map(Slice::from);
            if slice != self.slice
                && (self.rules)(slice) == batch.rules
                && super::owner::owner(store, &batch).await?.is_some()
            {
                self.check_joins(&batch)?;
            }
        }
        Ok(())
    }
}

/// Operation named in errors.
const TRIED: &str = "starting a batch of these rules";

/// Returns the flags by which two batches of the same rules differ.
fn differences(one: &Options, other: &Options) -> Vec<&'static str> {
    let differs = [
        (one.force != other.force, "--force"),
        (one.prime != other.prime, "--download-manifests"),
        (one.slice != other.slice, "--batch-size and --batch-number"),
        (one.verify.as_ref().map(|verify| verify.deep) != other.verify.as_ref().map(|verify| verify.deep), "--deep"),
    ];
    differs.into_iter().filter(|(differs, _)| *differs).map(|(_, flag)| flag).collect()
}

fn of_process(holder: &LockHolder) -> Running {
    Running { batch: None, by: holder.to_string(), since: holder.since }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_change_what_is_done_are_named() {
        let plain = Options { title: "a".into(), timeout_seconds: 1, ..Options::default() };
        let other = Options { title: "b".into(), timeout_seconds: 2, ..Options::default() };
        assert!(differences(&plain, &other).is_empty());
        let slice =
            imgsync_common::batch::PlanSlice { size: std::num::NonZeroUsize::MIN, number: std::num::NonZeroUsize::MIN };
        let other = Options { force: true, prime: true, slice: Some(slice), ..Options::default() };
        assert_eq!(differences(&plain, &other), ["--force", "--download-manifests", "--batch-size and --batch-number"]);
    }
}
