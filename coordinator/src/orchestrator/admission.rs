//! Admission of batches. Of the same rules one batch runs at a time, and one run waits for its end.
//!
//! A batch is created under the lease [`start_lease_name`] of its rules, so that concurrent runs see each other. The waiting
//! run holds [`waiting_lease_name`]; later runs follow the batch that it creates. Embedded, [`LockUse::Run`] also limits a state
//! directory to one run, whatever its rules.

use std::time::Duration;

use imgsync_config::IfRunning;
use imgsync_model::batch::{BatchId, BatchOptions};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{
    Batch, BatchState, Fence, LeaseGuard, LockHolder, LockUse, RunLock, TryAcquireResult, start_lease_name,
    waiting_lease_name,
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::leader::LEADER_LEASE_TTL;
use super::owner::{confirm_owner, wait_until_over};
use super::plan::Slice;
use crate::batch_view::{find_owner, resume_command};

/// Interval between attempts to acquire a lease or the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of batches, the newest, that are searched for the one a waiting run has created.
const MAX_RECENT_BATCHES: usize = 100;

/// Requests admission of a batch.
pub struct Admission<'a> {
    pub(super) backend: &'a Backend,
    /// Returns the identity of batches of these rules, as a whole or for a slice.
    pub(super) rules_digest: &'a (dyn Fn(Option<Slice>) -> Digest + Sync),
    pub(super) slice: Option<Slice>,
    /// Options of the batch.
    pub(super) options: &'a BatchOptions,
    /// Action while a batch of the same rules is running.
    pub(super) if_running: IfRunning,
    /// Holder name of this process in leases.
    pub(super) holder: String,
    /// Whether this process already holds the run lock.
    pub(super) has_lock: bool,
    pub(super) cancel: &'a CancellationToken,
    /// Receives messages on what admission waits for.
    pub(super) on_notice: &'a (dyn Fn(&str) + Sync),
}

/// Result of an admission.
#[derive(Debug)]
pub enum AdmissionResult {
    /// The batch may be created.
    Admitted(Box<StartPermit>),
    /// Another run creates, or has created, an equal batch: follow it, and end as it does.
    Join(BatchId),
}

/// Permit to create a batch, held by one process at a time for the same rules.
#[derive(Debug)]
pub struct StartPermit {
    /// Run lock of an embedded store.
    pub(super) lock: Option<RunLock>,
    /// Another process still holds the lock, and releases it when its batch is superseded.
    pub(super) awaits_lock: bool,
    pub(super) supersedes: Option<BatchId>,
    /// The first is the one of [`start_lease_name`].
    leases: Vec<LeaseGuard>,
}

impl StartPermit {
    /// Returns the fence of the lease that excludes other starts.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.leases.first().map(|lease| lease.fence().clone())
    }

    /// Releases the leases.
    pub(super) async fn release(&mut self) {
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
    Running(ActiveRun),
    /// Another run is waiting for the end of such a batch.
    Waiting {
        /// Holder name of the waiting run.
        holder: String,
        /// Newest batch in the store.
        newest_batch: Option<BatchId>,
    },
}

/// A running batch, or another process with the same state directory.
#[derive(Debug)]
pub(crate) struct ActiveRun {
    batch: Option<Box<Batch>>,
    holder: String,
    since: Option<Timestamp>,
}

impl ActiveRun {
    /// Describes what is running, its owner and its start.
    fn describe(&self) -> String {
        let since =
            self.since.map(|since| since.strftime(" since %Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
        match &self.batch {
            Some(batch) => format!("batch {} of the same rules is run by {}{since}", batch.id, self.holder),
            None => format!("{} is running with this state directory{since}", self.holder),
        }
    }
}

impl Obstacle {
    /// Describes the obstacle.
    pub(crate) fn describe(&self) -> String {
        match self {
            Obstacle::Paused(id) => format!("batch {id} of the same rules is paused"),
            Obstacle::Running(running) => running.describe(),
            Obstacle::Waiting { holder, .. } => format!("{holder} is waiting for a batch of the same rules to end"),
        }
    }

    /// Returns the error of a run that does not wait.
    pub(crate) fn refusal(&self, operation: &str) -> Error {
        let error = Error::new(ErrorKind::Invalid, operation, self.describe());
        match self {
            Obstacle::Paused(id) => {
                error.with_hint(format!("`{}` resumes it, `imgsync batch cancel {id}` cancels it", resume_command(*id)))
            }
            Obstacle::Running(ActiveRun { batch: Some(batch), .. }) => error.with_hint(format!(
                "`imgsync batch watch {0}` follows it, `imgsync batch cancel {0}` cancels it; --if-running wait waits \
                 for it",
                batch.id
            )),
            Obstacle::Running(_) | Obstacle::Waiting { .. } => {
                error.with_hint("--if-running wait waits for it; `imgsync batch list` shows all batches")
            }
        }
    }
}

impl Admission<'_> {
    /// Waits for a permit as far as `if_running` allows, or returns the batch to follow instead.
    pub async fn admit(&self) -> Result<AdmissionResult> {
        let mut waits = None;
        let admitted = tokio::select! {
            admitted = self.wait_for_permit(&mut waits) => admitted,
            () = self.cancel.cancelled() => Err(Error::cancelled(OPERATION)),
        };
        match (admitted, waits) {
            (Ok(AdmissionResult::Admitted(mut permit)), waits) => {
                permit.leases.extend(waits);
                Ok(AdmissionResult::Admitted(permit))
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
    pub(crate) async fn try_admit(&self) -> Result<std::result::Result<StartPermit, Obstacle>> {
        let (store, name) = (self.backend.store.clone(), start_lease_name(&self.rules_digest()));
        // Starts of one process also exclude each other.
        let holder = format!("{} {}", self.holder, BatchId::generate());
        let (ours, timing) = ((&*name, &*holder), (LEADER_LEASE_TTL, POLL_INTERVAL));
        let lease = LeaseGuard::acquire(store, ours, timing, self.cancel, OPERATION).await?;
        let admitted = self.find_obstacle(false).await;
        self.attach_lease(lease, admitted).await
    }

    async fn attach_lease(
        &self,
        lease: LeaseGuard,
        admitted: Result<std::result::Result<StartPermit, Obstacle>>,
    ) -> Result<std::result::Result<StartPermit, Obstacle>> {
        match admitted {
            Ok(Ok(mut permit)) => {
                permit.leases.push(lease);
                Ok(Ok(permit))
            }
            other => {
                lease.release().await;
                other
            }
        }
    }

    async fn wait_for_permit(&self, waits: &mut Option<LeaseGuard>) -> Result<AdmissionResult> {
        let store = &self.backend.store;
        let (starting, waiting) = (start_lease_name(&self.rules_digest()), waiting_lease_name(&self.rules_digest()));
        let timing = (LEADER_LEASE_TTL, POLL_INTERVAL);
        let mut notified_of: Option<String> = None;
        let mut notify_once = |current_holder: &str, what: &str| {
            if notified_of.as_deref() != Some(current_holder) {
                (self.on_notice)(what);
                notified_of = Some(current_holder.to_owned());
            }
        };
        loop {
            let lease =
                LeaseGuard::acquire(store.clone(), (&starting, &self.holder), timing, self.cancel, OPERATION).await?;
            let admitted = self.find_obstacle(waits.is_some()).await;
            let obstacle = match self.attach_lease(lease, admitted).await? {
                Ok(permit) => return Ok(AdmissionResult::Admitted(Box::new(permit))),
                Err(obstacle) => obstacle,
            };
            let running = match obstacle {
                Obstacle::Paused(_) => return Err(obstacle.refusal(OPERATION)),
                _ if self.if_running == IfRunning::Fail => return Err(obstacle.refusal(OPERATION)),
                Obstacle::Waiting { holder, newest_batch } => {
                    notify_once(
                        &holder,
                        &format!("{holder} is already waiting for a batch of the same rules: joining it"),
                    );
                    match self.wait_for_batch(&waiting, (&holder, newest_batch)).await? {
                        Some(id) => return Ok(AdmissionResult::Join(id)),
                        None => continue,
                    }
                }
                Obstacle::Running(running) => running,
            };
            if let (IfRunning::Join, Some(batch)) = (self.if_running, &running.batch) {
                self.check_joins(batch)?;
                (self.on_notice)(&format!("{}: joining it", running.describe()));
                return Ok(AdmissionResult::Join(batch.id));
            }
            if waits.is_none() {
                match LeaseGuard::try_acquire(store.clone(), &waiting, &self.holder, LEADER_LEASE_TTL).await? {
                    TryAcquireResult::Acquired(guard) => *waits = Some(guard),
                    // Another run came first: follow that one.
                    TryAcquireResult::HeldBy(_) => continue,
                }
            }
            notify_once(&running.holder, &format!("{}: waiting for it to end", running.describe()));
            let Some(guard) = waits.as_ref() else { continue };
            let lost = guard.lost().clone();
            tokio::select! {
                over = self.wait_for_run(&running) => over?,
                () = lost.cancelled() => *waits = None,
            }
        }
    }

    fn rules_digest(&self) -> Digest {
        (self.rules_digest)(self.slice)
    }

    /// Looks for obstacles to a new batch, under the lease that admits one process at a time. `waits` says that this is
    /// the waiting run.
    async fn find_obstacle(&self, waits: bool) -> Result<std::result::Result<StartPermit, Obstacle>> {
        let (store, rules) = (&self.backend.store, self.rules_digest());
        if !waits
            && self.if_running != IfRunning::Supersede
            && let Some(by) = store.lease_holder(&waiting_lease_name(&rules)).await?
        {
            let newest_batch = store.batches(1).await?.first().map(|batch| batch.id);
            return Ok(Err(Obstacle::Waiting { holder: by, newest_batch }));
        }
        let lock = match self.has_lock {
            true => Ok(None),
            false => self.backend.try_lock(LockUse::Run).await?,
        };
        if let Err(holder) = &lock
            && holder.used_for == Some(LockUse::Serve)
        {
            return Err(self.backend.lock_refusal(holder));
        }
        let found = match store.find_unfinished(&rules).await? {
            Some(id) => store.batch(id).await?.filter(|batch| batch.state.is_live()),
            None => None,
        };
        let permit = |lock, supersedes| StartPermit { lock, awaits_lock: false, supersedes, leases: Vec::new() };
        let Some(batch) = found else {
            if self.if_running == IfRunning::Join {
                self.check_slices().await?;
            }
            return Ok(match lock {
                Ok(lock) => Ok(permit(lock, None)),
                Err(holder) => Err(Obstacle::Running(active_process(&holder))),
            });
        };
        if batch.state == BatchState::Paused {
            return Ok(Err(Obstacle::Paused(batch.id)));
        }
        if self.options.pushed.is_some() {
            // A later batch of pushes has others: an interrupted one is resumed, not superseded.
            let (holder, since) = ("a coordinator".to_owned(), Some(batch.created_at));
            return Ok(Err(Obstacle::Running(ActiveRun { since, batch: Some(Box::new(batch)), holder })));
        }
        let id = batch.id;
        let by = match &lock {
            // No other process runs with this state directory.
            Ok(Some(_)) => None,
            _ => confirm_owner(&**store, id).await?,
        };
        let running = match (lock, by) {
            (Ok(lock), None) => {
                (self.on_notice)(&format!(
                    "batch {id} of the same rules was interrupted: superseding it (images already copied stay)"
                ));
                return Ok(Ok(permit(lock, Some(id))));
            }
            // The lock holder runs another batch.
            (Err(holder), None) => return Ok(Err(Obstacle::Running(active_process(&holder)))),
            (Ok(_), Some(by)) => ActiveRun { since: Some(batch.created_at), batch: Some(Box::new(batch)), holder: by },
            (Err(holder), Some(_)) => {
                ActiveRun { holder: holder.to_string(), since: Some(batch.created_at), batch: Some(Box::new(batch)) }
            }
        };
        if self.if_running != IfRunning::Supersede {
            return Ok(Err(Obstacle::Running(running)));
        }
        (self.on_notice)(&format!("{}: superseding it", running.describe()));
        let awaits_lock = !self.backend.is_cluster() && !self.has_lock;
        Ok(Ok(StartPermit { awaits_lock, ..permit(None, Some(id)) }))
    }

    /// Waits until what is running has ended or was abandoned.
    async fn wait_for_run(&self, running: &ActiveRun) -> Result<()> {
        let store = &*self.backend.store;
        let Some(batch) = &running.batch else {
            while store.may_have_owners().await? {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            return Ok(());
        };
        let mut is_paused = false;
        let seen = |batch: &Batch| {
            let pauses = batch.state == BatchState::Paused;
            if pauses && !std::mem::replace(&mut is_paused, pauses) {
                let command = resume_command(batch.id);
                (self.on_notice)(&format!("batch {} is paused: `{command}` resumes it", batch.id));
            }
            is_paused = pauses;
        };
        wait_until_over(store, batch.id, seen).await?;
        Ok(())
    }

    /// Waits until the waiting run has created its batch. Returns `None` if it has not, or if this run cannot follow
    /// that batch.
    async fn wait_for_batch(&self, waiting: &str, (by, newest): (&str, Option<BatchId>)) -> Result<Option<BatchId>> {
        let store = &self.backend.store;
        while store.lease_holder(waiting).await?.as_deref() == Some(by) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let rules = self.rules_digest();
        let batches = store.batches(MAX_RECENT_BATCHES).await?;
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
        let its = BatchOptions::decode(&batch.options, &format!("batch {}", batch.id))?;
        let differences = differences(&its, self.options);
        if differences.is_empty() {
            return Ok(());
        }
        let detail = format!("it was started with other options: {} differ", differences.join(", "));
        Err(Error::new(ErrorKind::Invalid, format!("joining batch {}", batch.id), detail)
            .with_hint("pass the same options, or wait for it with --if-running wait"))
    }

    /// Refuses to join while another slice of the same plan is running.
    async fn check_slices(&self) -> Result<()> {
        let store = &*self.backend.store;
        for batch in store.batches(MAX_RECENT_BATCHES).await?.into_iter().filter(|batch| batch.ended_at.is_none()) {
            // A batch that cannot be decoded is none of these rules.
            let Ok(options) = BatchOptions::decode(&batch.options, "a batch") else { continue };
            let slice = options.slice.map(Slice::from);
            if slice != self.slice
                && (self.rules_digest)(slice) == batch.rules
                && find_owner(store, &batch).await?.is_some()
            {
                self.check_joins(&batch)?;
            }
        }
        Ok(())
    }
}

/// Operation named in errors.
const OPERATION: &str = "starting a batch of these rules";

/// Returns the flags by which two batches of the same rules differ.
fn differences(one: &BatchOptions, other: &BatchOptions) -> Vec<&'static str> {
    let differs = [
        (one.force != other.force, "--force"),
        (one.prime != other.prime, "--download-manifests"),
        (one.slice != other.slice, "--batch-size and --batch-number"),
        (one.verify.as_ref().map(|verify| verify.deep) != other.verify.as_ref().map(|verify| verify.deep), "--deep"),
    ];
    differs.into_iter().filter(|(differs, _)| *differs).map(|(_, flag)| flag).collect()
}

fn active_process(holder: &LockHolder) -> ActiveRun {
    ActiveRun { batch: None, holder: holder.to_string(), since: holder.since }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_change_what_is_done_are_named() {
        let plain = BatchOptions { title: "a".into(), timeout_seconds: 1, ..BatchOptions::default() };
        let other = BatchOptions { title: "b".into(), timeout_seconds: 2, ..BatchOptions::default() };
        assert!(differences(&plain, &other).is_empty());
        let slice =
            imgsync_model::batch::PlanSlice { size: std::num::NonZeroUsize::MIN, number: std::num::NonZeroUsize::MIN };
        let other = BatchOptions { force: true, prime: true, slice: Some(slice), ..BatchOptions::default() };
        assert_eq!(differences(&plain, &other), ["--force", "--download-manifests", "--batch-size and --batch-number"]);
    }
}
