//! Starts rules on their schedules and on request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::config::{Config, IfRunning};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::printable::printable;
use imgsync_common::store::{Batch, Begun, is_ahead};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::current::{Current, Known};
use super::{warn, warn_repeatedly};
use crate::batches::{BatchState, BatchView, House, Made, Obstacle, Run};
use crate::words::many;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const LISTED_AT_ONCE: usize = 4;
/// Assumed age of the last run if its time is unknown: no schedule has a longer interval than from one 29 February to
/// the next but one.
const LONG_AGO: SignedDuration = SignedDuration::from_hours(9 * 366 * 24);
/// Limit of batches checked for interrupted listings, the newest ones.
const BATCHES: usize = 1_000;

/// Starts batches. Cheap to clone; clones share the state.
#[derive(Clone)]
pub struct Timetable(Arc<Inner>);

struct Inner {
    house: House,
    current: watch::Receiver<Arc<Current>>,
    /// Notified of new batches.
    more: Arc<Notify>,
    events: Events,
    stop: CancellationToken,
    tasks: TaskTracker,
    listing: Semaphore,
    /// Batches that this process lists.
    listed: Mutex<HashSet<BatchId>>,
    /// Serializes starts, which first check whether the rule is running.
    begin: tokio::sync::Mutex<()>,
    /// Consecutive skipped runs of each rule.
    skipped: Mutex<HashMap<String, u64>>,
}

/// A rule with its schedule and its runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
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

impl Timetable {
    /// Creates a scheduler that has started nothing.
    pub fn new(
        house: &House,
        current: watch::Receiver<Arc<Current>>,
        more: Arc<Notify>,
        events: Events,
        stop: &CancellationToken,
    ) -> Timetable {
        Timetable(Arc::new(Inner {
            house: house.clone(),
            current,
            more,
            events,
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            listing: Semaphore::new(LISTED_AT_ONCE),
            listed: Mutex::default(),
            begin: tokio::sync::Mutex::default(),
            skipped: Mutex::default(),
        }))
    }

    /// Starts rules on their schedules while this process leads, until stopped. Returns when no listing is in
    /// progress.
    pub async fn keep(&self, mut leads: watch::Receiver<bool>) {
        let inner = &self.0;
        let mut is_new = true;
        while !inner.stop.is_cancelled() {
            is_new |= !*leads.borrow_and_update();
            tokio::select! {
                led = leads.wait_for(|leads| *leads) => if led.is_err() { break },
                () = inner.stop.cancelled() => break,
            }
            if std::mem::take(&mut is_new)
                && let Err(error) = self.take_up().await
            {
                warn(&inner.events, &error.to_string());
            }
            if let Err(error) = self.begin_those_due().await {
                warn_repeatedly(&inner.events, "beginning the rules that are due", &error);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
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
        let current = inner.current.borrow().clone();
        let tried = || format!("starting rule {}", printable(name));
        let rule = current.rule(name).ok_or_else(|| {
            Error::new(Class::NotFound, tried(), "the configuration has no such rule")
                .hint("it may have been changed: look at the schedules again")
        })?;
        let _turn = inner.begin.lock().await;
        let id = self.begin(&current, rule).await?.map_err(|obstacle| {
            Error::new(Class::Invalid, tried(), obstacle.describe())
                .hint("wait for its end, or cancel it; one that is paused can be resumed")
        })?;
        self.note(&rule.id, Timestamp::now(), Some(id)).await?;
        Ok(id)
    }

    /// Returns all rules with their schedules.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let inner = &self.0;
        let current = inner.current.borrow().clone();
        let known = self.known().await?;
        let mut entries = Vec::new();
        for rule in &current.rules {
            let begun = known.get(&rule.id);
            let now = Timestamp::now();
            let from = begun.map(|begun| begun.at).filter(|at| !is_ahead(*at, now)).unwrap_or(now);
            let next = rule.schedule.as_ref().and_then(|schedule| schedule.after(from, &rule.id)).map(|due| due.at);
            entries.push(Entry {
                rule: rule.id.clone(),
                name: rule.name.clone(),
                from: rule.from.clone(),
                to: rule.to.clone(),
                schedule: rule.schedule.as_ref().map(ToString::to_string),
                next,
                last: begun.and_then(|begun| begun.batch),
                running: self.running(rule).await?,
                skipped: self.skipped().get(&rule.id).copied().unwrap_or_default(),
            });
        }
        Ok(entries)
    }

    /// Returns the running or paused batch of a rule.
    async fn running(&self, rule: &Known) -> Result<Option<BatchId>> {
        let store = &*self.0.house.store;
        let Some(id) = store.unfinished(&rule.rules).await? else { return Ok(None) };
        let Some(batch) = store.batch(id).await? else { return Ok(None) };
        let view = BatchView::of(store, batch).await?;
        Ok((view.state != BatchState::Interrupted).then_some(id))
    }

    /// Resumes interrupted listings: in a cluster those of batches that a scheduler started, else all, because no
    /// other process uses the store.
    async fn take_up(&self) -> Result<()> {
        let inner = &self.0;
        let current = inner.current.borrow().clone();
        let begun: HashSet<BatchId> = self.known().await?.values().filter_map(|begun| begun.batch).collect();
        for batch in inner.house.store.batches(BATCHES).await? {
            let is_broken_off = batch.control.is_live() && batch.sealed_at.is_none();
            let is_ours = !inner.house.is_cluster() || begun.contains(&batch.id);
            if !is_broken_off || !is_ours || self.listed().contains(&batch.id) {
                continue;
            }
            match current.config_of(&batch.rules) {
                Some(config) => self.go_on(&current, config.clone(), &batch),
                None => warn(
                    &inner.events,
                    &format!(
                        "the listing of batch {0} was broken off, and its rules are not in the configuration: \
                         `imgsync batch cancel {0}` ends it",
                        batch.id
                    ),
                ),
            }
        }
        Ok(())
    }

    fn go_on(&self, current: &Arc<Current>, config: Config, batch: &Batch) {
        let (this, current, id) = (self.clone(), current.clone(), batch.id);
        self.listed().insert(id);
        self.0.tasks.spawn(async move {
            let inner = &this.0;
            let run = current.run(&inner.house, &config, inner.events.clone(), &inner.stop);
            if let Err(error) = run.again(id).await {
                warn(&inner.events, &error.to_string());
            }
            this.listed().remove(&id);
        });
    }

    async fn begin_those_due(&self) -> Result<()> {
        let inner = &self.0;
        let current = inner.current.borrow().clone();
        let scheduled: Vec<_> = current.rules.iter().filter_map(|rule| Some((rule, rule.schedule.as_ref()?))).collect();
        if scheduled.is_empty() {
            return Ok(());
        }
        let known = self.known().await?;
        let now = Timestamp::now();
        for (rule, schedule) in scheduled {
            let last = match known.get(&rule.id) {
                Some(begun) if is_ahead(begun.at, now) => self.forget_future(rule, begun, now).await?,
                Some(begun) => *begun,
                None if schedule.begins_at_once() => {
                    let _turn = inner.begin.lock().await;
                    // A blocked first run is not skipped: it starts once the other batch has ended.
                    if let Ok(id) = self.begin(&current, rule).await? {
                        self.note(&rule.id, now, Some(id)).await?;
                    }
                    continue;
                }
                None => {
                    self.note(&rule.id, now, None).await?;
                    continue;
                }
            };
            let Some(due) = schedule.after(last.at, &rule.id).filter(|due| due.at <= now) else { continue };
            let _turn = inner.begin.lock().await;
            let next = schedule.begun(due, now);
            match self.begin(&current, rule).await? {
                Err(obstacle) => {
                    let skipped = self.skipped().get(&rule.id).map_or(1, |skipped| skipped + 1);
                    warn(
                        &inner.events,
                        &format!(
                            "{} is not begun again ({} skipped in a row): {}",
                            rule.title(),
                            many(skipped, "time", "times"),
                            obstacle.describe()
                        ),
                    );
                    self.note(&rule.id, next, last.batch).await?;
                    self.skipped().insert(rule.id.clone(), skipped);
                }
                Ok(id) => {
                    self.note(&rule.id, next, Some(id)).await?;
                    self.skipped().remove(&rule.id);
                }
            }
        }
        Ok(())
    }

    /// Discards the time of a last run in the future: the rule is due now, as after a missed run.
    async fn forget_future(&self, rule: &Known, begun: &Begun, now: Timestamp) -> Result<Begun> {
        warn(
            &self.0.events,
            &format!(
                "{} was last begun in the future, on {}: a clock was wrong then, or is now; it is due now",
                rule.title(),
                begun.at.strftime("%Y-%m-%d")
            ),
        );
        let at = now.checked_sub(LONG_AGO).unwrap_or(Timestamp::UNIX_EPOCH);
        self.note(&rule.id, at, begun.batch).await?;
        Ok(Begun { at, ..*begun })
    }

    /// Creates a batch and lists it in the background; or returns the obstacle.
    async fn begin(&self, current: &Arc<Current>, rule: &Known) -> Result<std::result::Result<BatchId, Obstacle>> {
        let (begun, is_begun) = oneshot::channel();
        let (this, current, title) = (self.clone(), current.clone(), rule.title());
        let rule = rule.clone();
        self.0.tasks.spawn(async move {
            this.list(&current, &rule, begun).await;
        });
        is_begun.await.unwrap_or_else(|_| Err(Error::cancelled(format!("starting {title}"))))
    }

    async fn list(
        &self,
        current: &Current,
        rule: &Known,
        begun: oneshot::Sender<Result<std::result::Result<BatchId, Obstacle>>>,
    ) {
        let inner = &self.0;
        let run = current.run(&inner.house, rule.config(), inner.events.clone(), &inner.stop);
        let made = match self.make(&run).await {
            Ok(Ok(made)) => made,
            Ok(Err(obstacle)) => return drop(begun.send(Ok(Err(obstacle)))),
            Err(error) => return drop(begun.send(Err(error))),
        };
        let id = made.id;
        self.listed().insert(id);
        let _ = begun.send(Ok(Ok(id)));
        inner.more.notify_one();
        if let Ok(_place) = inner.listing.acquire().await {
            // Listing failures are reported when they are recorded.
            if let Err(error) = run.list_made(made).await {
                warn(&inner.events, &error.to_string());
            }
        }
        self.listed().remove(&id);
    }

    async fn make(&self, run: &Run<'_>) -> Result<std::result::Result<Made, Obstacle>> {
        let (options, rules) = (run.options().await, |slice| run.rules(slice));
        let say = |what: &str| warn(&self.0.events, what);
        let turn = run.admission(IfRunning::Fail, &options, &rules, &say).try_turn().await?;
        match turn {
            Ok(turn) => run.make(turn, rules(None), options).await.map(Ok),
            Err(obstacle) => Ok(Err(obstacle)),
        }
    }

    async fn note(&self, rule: &str, at: Timestamp, batch: Option<BatchId>) -> Result<()> {
        self.0.house.store.note_schedule(rule, Begun { at, batch }).await
    }

    async fn known(&self) -> Result<BTreeMap<String, Begun>> {
        Ok(self.0.house.store.schedules().await?.into_iter().collect())
    }

    fn skipped(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, HashSet<BatchId>> {
        self.0.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Timetable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Timetable")
    }
}
