//! Starts rules on their schedules and on request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_config::{Config, IfRunning};
use imgsync_model::batch::{BatchId, Priority, PushedRepository};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::{Batch, LastRun, is_in_future, listing_lease_name};
use imgsync_worker::task_events::TaskEvents;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::active_config::{ActiveConfig, ActiveRule, config_of_batch};
use super::image_files::ImageFiles;
use super::store_contact::StoreContact;
use super::{emit_notice, warn, warn_repeatedly};
use crate::orchestrator::{Backend, CreatedBatch, LaggingByBatch, LaggingPushes, Leadership, Obstacle, Run, is_leader};

const SCHEDULE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between looks for interrupted listings, in turns of [`SCHEDULE_POLL_INTERVAL`].
const TURNS_PER_RESUME: u32 = 2;
/// Pause after a listing could not be resumed; it doubles with each failure.
const MIN_RESUME_PAUSE: Duration = Duration::from_secs(4);
const MAX_RESUME_PAUSE: Duration = Duration::from_secs(300);
const MAX_CONCURRENT_LISTINGS: usize = 4;
/// Assumed age of the last run if its time is unknown: no schedule has a longer interval than from one 29 February to
/// the next but one.
const OVERDUE_OFFSET: SignedDuration = SignedDuration::from_hours(9 * 366 * 24);
/// Listings of pushes at a time, beside those of whole rules.
const MAX_CONCURRENT_PUSH_LISTINGS: usize = 4;
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
    push_permits: Semaphore,
    /// Batches that this process lists.
    in_progress: Mutex<HashSet<BatchId>>,
    /// Interrupted batches of unknown rules, each reported once.
    unknown: Mutex<HashSet<BatchId>>,
    /// Interrupted batches that could not be resumed: how often, and when to try again.
    failed_resumptions: Mutex<HashMap<BatchId, (u32, Instant)>>,
    /// Serializes starts, which first check whether the rule is running.
    start_lock: tokio::sync::Mutex<()>,
    store_contact: StoreContact,
    /// Pushes that the batches of pushes have not found, for listings that break off.
    lagging: Mutex<LaggingByBatch>,
    /// Files of rules that name their images in files.
    image_files: tokio::sync::Mutex<ImageFiles>,
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
    /// Scheduled runs skipped since the last run because a batch of the rule was running or paused.
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
            push_permits: Semaphore::new(MAX_CONCURRENT_PUSH_LISTINGS),
            in_progress: Mutex::default(),
            failed_resumptions: Mutex::default(),
            unknown: Mutex::default(),
            start_lock: tokio::sync::Mutex::default(),
            store_contact: StoreContact::default(),
            lagging: Mutex::default(),
            image_files: tokio::sync::Mutex::default(),
        }))
    }

    /// Starts rules on their schedules, and resumes interrupted listings, while this process leads, until stopped.
    /// Returns when no listing is in progress.
    pub async fn run(&self, mut leadership: watch::Receiver<Leadership>) {
        let inner = &self.0;
        let lead = async {
            let mut turn: u32 = 0;
            loop {
                if !is_leader(&leadership.borrow()) {
                    turn = 0;
                }
                let lease = match leadership.wait_for(is_leader).await {
                    Ok(lease) => lease.clone(),
                    Err(_) => return,
                };
                // A process that was suspended goes no step further once another one leads.
                if let Some(lease) = lease
                    && lease.run(self.lead_once(turn)).await == Some(true)
                {
                    turn = turn.wrapping_add(1);
                }
                tokio::time::sleep(SCHEDULE_POLL_INTERVAL).await;
            }
        };
        tokio::select! {
            () = lead => {}
            () = inner.store_contact.watch(&*inner.backend.store) => {}
            () = inner.stop.cancelled() => {}
        }
        inner.tasks.close();
        inner.tasks.wait().await;
    }

    /// Does what is due in a turn. Returns whether the next turn may follow: else, interrupted listings were not found.
    async fn lead_once(&self, turn: u32) -> bool {
        let inner = &self.0;
        // Without a cluster, no other process starts or lists batches meanwhile.
        let is_due = if inner.backend.is_cluster() { turn.is_multiple_of(TURNS_PER_RESUME) } else { turn == 0 };
        let mut are_found = true;
        if is_due && let Err(error) = self.resume_interrupted().await {
            warn_repeatedly(&inner.events, "resuming interrupted batches", &error);
            are_found = false;
        }
        if let Err(error) = self.start_due_rules().await {
            warn_repeatedly(&inner.events, "starting the rules that are due", &error);
        }
        if let Err(error) = self.start_changed_rules(turn == 0).await {
            warn_repeatedly(&inner.events, "starting the rules whose files have changed", &error);
        }
        are_found
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
        self.start_whole(&current, rule).await?.map_err(|obstacle| {
            Error::new(ErrorKind::Invalid, operation(), obstacle.describe())
                .with_hint("wait until it ends, or cancel it; a paused batch can be resumed")
        })
    }

    /// Starts a rule now; or returns the obstacle.
    pub(super) async fn start_whole(
        &self,
        current: &Arc<ActiveConfig>,
        rule: &ActiveRule,
    ) -> Result<std::result::Result<BatchId, Obstacle>> {
        let _turn = self.0.start_lock.lock().await;
        let started = self.start_rule(current, rule, None).await?;
        if let Ok(id) = started {
            self.record_start(&rule.id, LastRun { at: Timestamp::now(), batch: Some(id), skipped: 0 }).await?;
        }
        Ok(started)
    }

    /// Starts a batch of what was pushed, as a rule says; or returns the obstacle: another one of the rule. `lagging`
    /// receives the pushes that the batch has not found.
    pub(super) async fn start_pushes(
        &self,
        current: &Arc<ActiveConfig>,
        rule: &ActiveRule,
        pushed: Vec<PushedRepository>,
        lagging: &LaggingPushes,
    ) -> Result<std::result::Result<BatchId, Obstacle>> {
        self.start_rule(current, rule, Some((pushed, lagging.clone()))).await
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
                skipped: last_run.map_or(0, |last_run| last_run.skipped),
            });
        }
        Ok(entries)
    }

    /// Returns whether this process lists a batch.
    pub(super) fn is_listing(&self, batch: BatchId) -> bool {
        self.in_progress().contains(&batch)
    }

    /// Resumes interrupted listings of the rules of the configuration, whichever process started them. In a cluster, it
    /// may still be alive.
    async fn resume_interrupted(&self) -> Result<()> {
        let inner = &self.0;
        let current = inner.active_config.borrow().clone();
        let store = &inner.backend.store;
        let batches = store.batches(MAX_RESUMED_BATCHES).await?;
        self.unknown().retain(|id| batches.iter().any(|batch| batch.id == *id));
        self.failed_resumptions().retain(|id, _| batches.iter().any(|batch| batch.id == *id));
        for batch in batches {
            let is_broken_off = batch.state.is_live() && batch.plan_completed_at.is_none();
            let waits = self.failed_resumptions().get(&batch.id).is_some_and(|(_, until)| *until > Instant::now());
            if !is_broken_off || waits || self.in_progress().contains(&batch.id) {
                continue;
            }
            let is_left = !inner.backend.is_cluster()
                || (inner.store_contact.is_steady()
                    && store.lease_holder(&listing_lease_name(batch.id)).await?.is_none());
            if !is_left {
                continue;
            }
            let config = current.config_for(&batch.rules).cloned();
            match config.or_else(|| config_of_batch(&current.config, &batch)) {
                Some(config) => self.resume_listing(&current, config, &batch),
                // Other coordinators, or the command that started it, may have its rules.
                None if self.unknown().insert(batch.id) => warn(
                    &inner.events,
                    &format!(
                        "the listing of batch {0} was interrupted, and its rules are not in this configuration: \
                         `imgsync batch resume {0}` with its configuration continues it, `imgsync batch cancel {0}` ends it",
                        batch.id
                    ),
                ),
                None => {}
            }
        }
        Ok(())
    }

    fn resume_listing(&self, current: &Arc<ActiveConfig>, config: Config, batch: &Batch) {
        let (this, current, id) = (self.clone(), current.clone(), batch.id);
        self.in_progress().insert(id);
        self.0.tasks.spawn(async move {
            let inner = &this.0;
            let mut run = current.build_run(&inner.backend, &config, inner.events.clone(), &inner.stop);
            run.settings.lagging_pushes = this.lagging().find(id);
            if let Err(error) = run.resume(id).await {
                warn_repeatedly(&inner.events, "resuming interrupted batches", &error);
                let mut failed = this.failed_resumptions();
                let (failures, until) = failed.entry(id).or_insert((0, Instant::now()));
                let pause = MIN_RESUME_PAUSE.saturating_mul(1 << (*failures).min(16)).min(MAX_RESUME_PAUSE);
                (*failures, *until) = (*failures + 1, Instant::now() + pause);
            } else {
                this.failed_resumptions().remove(&id);
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
                    if let Ok(id) = self.start_rule(&current, rule, None).await? {
                        self.record_start(&rule.id, LastRun { at: now, batch: Some(id), skipped: 0 }).await?;
                    }
                    continue;
                }
                None => {
                    self.record_start(&rule.id, LastRun { at: now, batch: None, skipped: 0 }).await?;
                    continue;
                }
            };
            let Some(due) = schedule.next_after(last.at, &rule.id).filter(|due| due.at <= now) else { continue };
            let _turn = inner.start_lock.lock().await;
            let next = schedule.last_run_to_record(due, now);
            match self.start_rule(&current, rule, None).await? {
                Err(obstacle) => {
                    let skipped = last.skipped + 1;
                    // Recorded first: who reads the message finds the skipped run in the API.
                    self.record_start(&rule.id, LastRun { at: next, batch: last.batch, skipped }).await?;
                    warn(
                        &inner.events,
                        &format!(
                            "{} skipped its scheduled run ({} in a row): {}",
                            rule.title(),
                            pluralize(skipped, "time", "times"),
                            obstacle.describe()
                        ),
                    );
                }
                Ok(id) => {
                    self.record_start(&rule.id, LastRun { at: next, batch: Some(id), skipped: 0 }).await?;
                }
            }
        }
        Ok(())
    }

    /// Starts the rules whose images are named in files that have changed. `is_new`: this process has begun to lead.
    async fn start_changed_rules(&self, is_new: bool) -> Result<()> {
        let inner = &self.0;
        let current = inner.active_config.borrow().clone();
        let mut image_files = inner.image_files.lock().await;
        if is_new {
            image_files.forget();
        }
        let last_runs = match image_files.has_new_rules(&current) {
            true => self.last_runs().await?,
            false => BTreeMap::new(),
        };
        for (id, version) in image_files.find_changed(&current, &last_runs).await? {
            let Some(rule) = current.rules.iter().find(|rule| rule.id == id) else { continue };
            // While a batch of the rule is running, the next turn tries again.
            if let Ok(batch) = self.start_whole(&current, rule).await? {
                image_files.record_start(&id, version);
                emit_notice(&inner.events, &format!("{}: its files have changed, batch {batch}", rule.title()));
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
        let last_run = LastRun { at, ..*last_run };
        self.record_start(&rule.id, last_run).await?;
        Ok(last_run)
    }

    /// Creates a batch and lists it in the background; or returns the obstacle.
    async fn start_rule(
        &self,
        current: &Arc<ActiveConfig>,
        rule: &ActiveRule,
        pushed: Option<(Vec<PushedRepository>, LaggingPushes)>,
    ) -> Result<std::result::Result<BatchId, Obstacle>> {
        let (batch_sender, started) = oneshot::channel();
        let (this, current, title) = (self.clone(), current.clone(), rule.title());
        let rule = rule.clone();
        self.0.tasks.spawn(async move {
            this.create_and_list(&current, &rule, pushed, batch_sender).await;
        });
        started.await.unwrap_or_else(|_| Err(Error::cancelled(format!("starting {title}"))))
    }

    async fn create_and_list(
        &self,
        current: &ActiveConfig,
        rule: &ActiveRule,
        pushed: Option<(Vec<PushedRepository>, LaggingPushes)>,
        batch_sender: oneshot::Sender<Result<std::result::Result<BatchId, Obstacle>>>,
    ) {
        let inner = &self.0;
        let mut run = current.build_run(&inner.backend, rule.config(), inner.events.clone(), &inner.stop);
        let permits = if pushed.is_some() { &inner.push_permits } else { &inner.listing_permits };
        run.settings.priority = pushed.is_some().then_some(Priority::High);
        if let Some((pushed, lagging)) = pushed {
            (run.settings.pushed, run.settings.lagging_pushes) = (Some(pushed), lagging);
        }
        let made = match self.create_batch(&run).await {
            Ok(Ok(made)) => made,
            Ok(Err(obstacle)) => return drop(batch_sender.send(Ok(Err(obstacle)))),
            Err(error) => return drop(batch_sender.send(Err(error))),
        };
        let id = made.id;
        self.in_progress().insert(id);
        self.lagging().insert(id, &run.settings.lagging_pushes);
        let _ = batch_sender.send(Ok(Ok(id)));
        inner.work_available.notify_one();
        if let Ok(_place) = permits.acquire().await {
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

    async fn record_start(&self, rule: &str, last_run: LastRun) -> Result<()> {
        self.0.backend.store.record_schedule_run(rule, last_run).await
    }

    async fn last_runs(&self) -> Result<BTreeMap<String, LastRun>> {
        Ok(self.0.backend.store.schedule_runs().await?.into_iter().collect())
    }

    fn unknown(&self) -> std::sync::MutexGuard<'_, HashSet<BatchId>> {
        self.0.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_resumptions(&self) -> std::sync::MutexGuard<'_, HashMap<BatchId, (u32, Instant)>> {
        self.0.failed_resumptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lagging(&self) -> std::sync::MutexGuard<'_, LaggingByBatch> {
        self.0.lagging.lock().unwrap_or_else(PoisonError::into_inner)
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
