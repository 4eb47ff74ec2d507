//! Starts rules on their schedules and on request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imgsync_config::{Config, IfRunning};
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::{Batch, LastRun, is_in_future};
use imgsync_worker::task_events::TaskEvents;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::active_config::{ActiveConfig, ActiveRule, config_of_batch};
use super::{warn, warn_repeatedly};
use crate::orchestrator::{Backend, CreatedBatch, Obstacle, Run};

const SCHEDULE_POLL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_CONCURRENT_LISTINGS: usize = 4;
/// Assumed age of the last run if its time is unknown: no schedule has a longer interval than from one 29 February to
/// the next but one.
const OVERDUE_OFFSET: SignedDuration = SignedDuration::from_hours(9 * 366 * 24);
/// Limit of batches checked for interrupted listings, the newest ones.
const MAX_RESUMED_BATCHES: usize = 1_000;

/// Starts batches. Cheap to clone; clones share the state.
#[derive(Clone)]
pub struct Scheduler(Arc<Inner>);

struct Inner {
    backend: Backend,
    active_config: watch::Receiver<Arc<ActiveConfig>>,
    /// Notified of new batches.
    work_available: Arc<Notify>,
    events: TaskEvents,
    stop: CancellationToken,
    tasks: TaskTracker,
    listing_permits: Semaphore,
    /// Batches that this process lists.
    in_progress: Mutex<HashSet<BatchId>>,
    /// Batches that this process has created: the store may have lost that.
    created: Mutex<GenerationalCache<BatchId, ()>>,
    /// Serializes starts, which first check whether the rule is running.
    start_lock: tokio::sync::Mutex<()>,
    /// Consecutive skipped runs of each rule.
    skipped: Mutex<HashMap<String, u64>>,
}

/// A rule with its schedule and its runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScheduleEntry {
    /// Id of the rule.
    pub rule: String,
    /// Display name.
    pub name: String,
    /// Source.
    pub from: String,
    /// Targets.
    pub to: Vec<String>,
    /// Schedule in words; none if the rule is only started manually.
    pub schedule: Option<String>,
    /// Time of the next scheduled run.
    pub next: Option<Timestamp>,
    /// Batch of the last run.
    pub last: Option<BatchId>,
    /// Running or paused batch of the rule.
    pub running: Option<BatchId>,
    /// Scheduled runs skipped since the last run because a batch of the rule was running or paused. Counted by the
    /// leading process.
    pub skipped: u64,
}

impl Scheduler {
    /// Creates a scheduler that has started nothing.
    pub fn new(
        backend: &Backend,
        active_config: watch::Receiver<Arc<ActiveConfig>>,
        work_available: Arc<Notify>,
        events: TaskEvents,
        stop: &CancellationToken,
    ) -> Scheduler {
        Scheduler(Arc::new(Inner {
            backend: backend.clone(),
            active_config,
            work_available,
            events,
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            listing_permits: Semaphore::new(MAX_CONCURRENT_LISTINGS),
            in_progress: Mutex::default(),
            created: Mutex::new(GenerationalCache::new(MAX_RESUMED_BATCHES)),
            start_lock: tokio::sync::Mutex::default(),
            skipped: Mutex::default(),
        }))
    }

    /// Starts rules on their schedules while this process leads, until stopped. Returns when no listing is in
    /// progress.
    pub async fn run(&self, mut is_leader: watch::Receiver<bool>) {
        let inner = &self.0;
        let mut is_new = true;
        let mut write_losses = inner.backend.store.write_losses();
        while !inner.stop.is_cancelled() {
            is_new |= !*is_leader.borrow_and_update();
            // The end of a plan may be lost.
            is_new |= write_losses.as_mut().is_some_and(|losses| {
                let has_changed = losses.has_changed().unwrap_or(false);
                losses.mark_unchanged();
                has_changed
            });
            tokio::select! {
                led = is_leader.wait_for(|leads| *leads) => if led.is_err() { break },
                () = inner.stop.cancelled() => break,
            }
            if std::mem::take(&mut is_new)
                && let Err(error) = self.resume_interrupted().await
            {
                is_new = true;
                warn_repeatedly(&inner.events, "resuming interrupted batches", &error);
            }
            if let Err(error) = self.start_due_rules().await {
                warn_repeatedly(&inner.events, "starting the rules that are due", &error);
            }
            tokio::select! {
                () = tokio::time::sleep(SCHEDULE_POLL_INTERVAL) => {}
                () = inner.stop.cancelled() => {}
            }
        }
        inner.tasks.close();
        inner.tasks.wait().await;
    }

    /// Starts a rule now.
    ///
    /// # Errors
    /// `NotFound` if no rule has this id or name; `Invalid` if it is running; the store's.
    pub async fn start(&self, name: &str) -> Result<BatchId> {
        let inner = &self.0;
        let current = inner.active_config.borrow().clone();
        let operation = || format!("starting rule {}", sanitize(name));
        let rule = current.rule(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation(), "the configuration has no rule of this name or id")
                .with_hint("the configuration may have changed: reload the schedules")
        })?;
        let _turn = inner.start_lock.lock().await;
        let id = self.start_rule(&current, rule).await?.map_err(|obstacle| {
            Error::new(ErrorKind::Invalid, operation(), obstacle.describe())
                .with_hint("wait until it ends, or cancel it; a paused batch can be resumed")
        })?;
        self.record_start(&rule.id, Timestamp::now(), Some(id)).await?;
        Ok(id)
    }

    /// Returns the rules of a configuration with their schedules, without their running batches.
    pub(super) async fn entries(&self, current: &ActiveConfig) -> Result<Vec<ScheduleEntry>> {
        let known = self.last_runs().await?;
        let mut entries = Vec::new();
        for rule in &current.rules {
            let last_run = known.get(&rule.id);
            let now = Timestamp::now();
            let from = last_run.map(|last_run| last_run.at).filter(|at| !is_in_future(*at, now)).unwrap_or(now);
            let next =
                rule.schedule.as_ref().and_then(|schedule| schedule.next_after(from, &rule.id)).map(|due| due.at);
            entries.push(ScheduleEntry {
                rule: rule.id.clone(),
                name: rule.name.clone(),
                from: rule.from.clone(),
                to: rule.to.clone(),
                schedule: rule.schedule.as_ref().map(ToString::to_string),
                next,
                last: last_run.and_then(|last_run| last_run.batch),
                running: None,
                skipped: self.skipped().get(&rule.id).copied().unwrap_or_default(),
            });
        }
        Ok(entries)
    }

    /// Returns whether this process lists a batch.
    pub(super) fn is_listing(&self, batch: BatchId) -> bool {
        self.in_progress().contains(&batch)
    }

    /// Resumes interrupted listings: in a cluster those of batches that a scheduler started, else all, because no
    /// other process uses the store.
    async fn resume_interrupted(&self) -> Result<()> {
        let inner = &self.0;
        let current = inner.active_config.borrow().clone();
        let last_run: HashSet<BatchId> =
            self.last_runs().await?.values().filter_map(|last_run| last_run.batch).collect();
        for batch in inner.backend.store.batches(MAX_RESUMED_BATCHES).await? {
            let is_broken_off = batch.state.is_live() && batch.plan_completed_at.is_none();
            let is_ours =
                !inner.backend.is_cluster() || last_run.contains(&batch.id) || self.created().get(&batch.id).is_some();
            if !is_broken_off || !is_ours || self.in_progress().contains(&batch.id) {
                continue;
            }
            let config = current.config_for(&batch.rules).cloned();
            match config.or_else(|| config_of_batch(&current.config, &batch)) {
                Some(config) => self.resume_listing(&current, config, &batch),
                None => warn(
                    &inner.events,
                    &format!(
                        "the listing of batch {0} was interrupted, and its rules are no longer in the configuration: \
                         `imgsync batch cancel {0}` ends it",
                        batch.id
                    ),
                ),
            }
        }
        Ok(())
    }

    fn resume_listing(&self, current: &Arc<ActiveConfig>, config: Config, batch: &Batch) {
        let (this, current, id) = (self.clone(), current.clone(), batch.id);
        self.in_progress().insert(id);
        self.0.tasks.spawn(async move {
            let inner = &this.0;
            let run = current.build_run(&inner.backend, &config, inner.events.clone(), &inner.stop);
            if let Err(error) = run.resume(id).await {
                warn(&inner.events, &error.to_string());
            }
            this.in_progress().remove(&id);
        });
    }

    async fn start_due_rules(&self) -> Result<()> {
        let inner = &self.0;
        let current = inner.active_config.borrow().clone();
        let scheduled: Vec<_> = current.rules.iter().filter_map(|rule| Some((rule, rule.schedule.as_ref()?))).collect();
        if scheduled.is_empty() {
            return Ok(());
        }
        let known = self.last_runs().await?;
        let now = Timestamp::now();
        for (rule, schedule) in scheduled {
            let last = match known.get(&rule.id) {
                Some(last_run) if is_in_future(last_run.at, now) => {
                    self.reset_future_start(rule, last_run, now).await?
                }
                Some(last_run) => *last_run,
                None if schedule.starts_immediately() => {
                    let _turn = inner.start_lock.lock().await;
                    // A blocked first run is not skipped: it starts once the other batch has ended.
                    if let Ok(id) = self.start_rule(&current, rule).await? {
                        self.record_start(&rule.id, now, Some(id)).await?;
                    }
                    continue;
                }
                None => {
                    self.record_start(&rule.id, now, None).await?;
                    continue;
                }
            };
            let Some(due) = schedule.next_after(last.at, &rule.id).filter(|due| due.at <= now) else { continue };
            let _turn = inner.start_lock.lock().await;
            let next = schedule.last_run_to_record(due, now);
            match self.start_rule(&current, rule).await? {
                Err(obstacle) => {
                    let skipped = self.skipped().get(&rule.id).map_or(1, |skipped| skipped + 1);
                    warn(
                        &inner.events,
                        &format!(
                            "{} skipped its scheduled run ({} in a row): {}",
                            rule.title(),
                            pluralize(skipped, "time", "times"),
                            obstacle.describe()
                        ),
                    );
                    self.record_start(&rule.id, next, last.batch).await?;
                    self.skipped().insert(rule.id.clone(), skipped);
                }
                Ok(id) => {
                    self.record_start(&rule.id, next, Some(id)).await?;
                    self.skipped().remove(&rule.id);
                }
            }
        }
        Ok(())
    }

    /// Discards the time of a last run in the future: the rule is due now, as after a missed run.
    async fn reset_future_start(&self, rule: &ActiveRule, last_run: &LastRun, now: Timestamp) -> Result<LastRun> {
        warn(
            &self.0.events,
            &format!(
                "{}: the last run is in the future, on {}: a clock was or is wrong; the rule is due now",
                rule.title(),
                last_run.at.strftime("%Y-%m-%d")
            ),
        );
        let at = now.checked_sub(OVERDUE_OFFSET).unwrap_or(Timestamp::UNIX_EPOCH);
        self.record_start(&rule.id, at, last_run.batch).await?;
        Ok(LastRun { at, ..*last_run })
    }

    /// Creates a batch and lists it in the background; or returns the obstacle.
    async fn start_rule(
        &self,
        current: &Arc<ActiveConfig>,
        rule: &ActiveRule,
    ) -> Result<std::result::Result<BatchId, Obstacle>> {
        let (batch_sender, started) = oneshot::channel();
        let (this, current, title) = (self.clone(), current.clone(), rule.title());
        let rule = rule.clone();
        self.0.tasks.spawn(async move {
            this.create_and_list(&current, &rule, batch_sender).await;
        });
        started.await.unwrap_or_else(|_| Err(Error::cancelled(format!("starting {title}"))))
    }

    async fn create_and_list(
        &self,
        current: &ActiveConfig,
        rule: &ActiveRule,
        batch_sender: oneshot::Sender<Result<std::result::Result<BatchId, Obstacle>>>,
    ) {
        let inner = &self.0;
        let run = current.build_run(&inner.backend, rule.config(), inner.events.clone(), &inner.stop);
        let made = match self.create_batch(&run).await {
            Ok(Ok(made)) => made,
            Ok(Err(obstacle)) => return drop(batch_sender.send(Ok(Err(obstacle)))),
            Err(error) => return drop(batch_sender.send(Err(error))),
        };
        let id = made.id;
        self.in_progress().insert(id);
        self.created().insert(id, ());
        let _ = batch_sender.send(Ok(Ok(id)));
        inner.work_available.notify_one();
        if let Ok(_place) = inner.listing_permits.acquire().await {
            // Listing failures are reported when they are recorded.
            if let Err(error) = run.list_and_run(made).await {
                warn(&inner.events, &error.to_string());
            }
        }
        self.in_progress().remove(&id);
    }

    async fn create_batch(&self, run: &Run<'_>) -> Result<std::result::Result<CreatedBatch, Obstacle>> {
        let (options, rules) = (run.options().await, |slice| run.rules_digest(slice));
        let say = |what: &str| warn(&self.0.events, what);
        let permit = run.admission(IfRunning::Fail, &options, &rules, &say).try_admit().await?;
        match permit {
            Ok(permit) => run.create(permit, rules(None), options).await.map(Ok),
            Err(obstacle) => Ok(Err(obstacle)),
        }
    }

    async fn record_start(&self, rule: &str, at: Timestamp, batch: Option<BatchId>) -> Result<()> {
        self.0.backend.store.record_schedule_run(rule, LastRun { at, batch }).await
    }

    async fn last_runs(&self) -> Result<BTreeMap<String, LastRun>> {
        Ok(self.0.backend.store.schedule_runs().await?.into_iter().collect())
    }

    fn skipped(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn created(&self) -> std::sync::MutexGuard<'_, GenerationalCache<BatchId, ()>> {
        self.0.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_progress(&self) -> std::sync::MutexGuard<'_, HashSet<BatchId>> {
        self.0.in_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scheduler")
    }
}
