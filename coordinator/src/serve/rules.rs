//! Rules with their state, from the newest batches of each: a few reads of the store for all rules, and one of each rule
//! whose newest batch failed since the last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{Batch, BatchState, RecordCounts, Store};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::active_config::{ActiveConfig, ActiveRule};
use super::failed_rules::read_failed_rules;
use super::scheduler::{ScheduleEntry, Scheduler};
use crate::batch_view::{BatchStatus, BatchView, is_good, or_removed};
use crate::report::advice::{self, NextStep};
use crate::report::failure_groups::answering_registries;

/// Batches of each rule in which its last good and last failed run are looked for.
pub(super) const MAX_RUNS: usize = 20;
/// Batches whose records are counted in one read.
const BATCHES_PER_READ: usize = 1_000;
/// How long a history with a failure is reused: an older batch of it may be requeued.
const FAILURE_TTL: Duration = Duration::from_secs(10);
/// How long the state of the rules is reused.
const CACHE_TTL: Duration = Duration::from_secs(1);

/// State of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RuleState {
    /// Its last run failed: images, or repositories that could not be listed.
    Failing,
    /// No process runs its batch.
    Interrupted,
    Paused,
    Running,
    /// Its last run was cancelled.
    Cancelled,
    /// Its last run selected no tag.
    NothingSelected,
    NeverRun,
    /// It was started, but its batches are older than `keep` and were removed.
    NoRecentRun,
    InSync,
}

impl RuleState {
    pub(super) const ALL: [RuleState; 9] = [
        RuleState::Failing,
        RuleState::Interrupted,
        RuleState::Paused,
        RuleState::Running,
        RuleState::Cancelled,
        RuleState::NothingSelected,
        RuleState::NeverRun,
        RuleState::NoRecentRun,
        RuleState::InSync,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            RuleState::Failing => "failing",
            RuleState::Interrupted => "interrupted",
            RuleState::Paused => "paused",
            RuleState::Running => "running",
            RuleState::Cancelled => "cancelled",
            RuleState::NothingSelected => "nothing_selected",
            RuleState::NeverRun => "never_run",
            RuleState::NoRecentRun => "no_recent_run",
            RuleState::InSync => "in_sync",
        }
    }
}

/// A rule with its state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RuleResponse {
    #[serde(flatten)]
    pub(super) schedule: ScheduleEntry,
    pub(super) state: RuleState,
    /// Tags of its last complete listing; none if it was never listed alone.
    pub(super) tags: Option<TagCounts>,
    /// When its last good run ended.
    pub(super) last_good: Option<Timestamp>,
    /// Its last run with failures.
    pub(super) last_failure: Option<LastFailure>,
    /// End of the first of the runs that failed in a row; none if the last one was good.
    pub(super) failing_since: Option<Timestamp>,
    /// Whether its last batch ran all rules of the configuration.
    pub(super) shared: bool,
    #[serde(skip)]
    pub(super) last_batch: Option<BatchId>,
}

/// Tags of a rule's last complete listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct TagCounts {
    pub(super) in_sync: u64,
    pub(super) total: u64,
}

/// A run with failures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LastFailure {
    pub(super) batch: BatchId,
    pub(super) at: Timestamp,
    /// Failed images.
    pub(super) failed: u64,
    /// Repositories and patterns that could not be listed.
    pub(super) unlisted: u64,
    /// Kind and message of one of the errors.
    pub(super) kind: Option<ErrorKind>,
    /// The registry that answered with it, if it is known.
    pub(super) registry: Option<String>,
    pub(super) title: Option<&'static str>,
    pub(super) error: Option<String>,
    pub(super) advice: Option<&'static str>,
    pub(super) next_step: Option<NextStep>,
}

/// A batch of a rule's history.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HistoryEntry {
    batch: BatchId,
    state: BatchStatus,
    /// Whether it ran all rules of the configuration.
    shared: bool,
    /// Whether a push started it, as a hook told: it copied nothing else.
    pushed: bool,
    /// Whether it ended with everything listed and nothing failed.
    good: bool,
    started: Timestamp,
    ended: Option<Timestamp>,
    seconds: f64,
    total: u64,
    copied: u64,
    unchanged: u64,
    failed: u64,
    cancelled: u64,
    unlisted: u64,
    bytes: u64,
}

impl HistoryEntry {
    pub(super) fn batch(&self) -> BatchId {
        self.batch
    }
}

/// What changes when a batch moves on: until then its history is reused.
type HistoryKey = (BatchId, Option<Timestamp>, BatchState, u32);

/// What the batches of one identity say.
#[derive(Debug, Clone, Default)]
struct RunHistory {
    key: Option<HistoryKey>,
    read_at: Option<Instant>,
    last_good: Option<Timestamp>,
    last_failure: Option<LastFailure>,
    /// Positions of the rules that failed then, if the batch ran all of them and it is known.
    failed_rules: Option<Arc<BTreeSet<usize>>>,
    failing_since: Option<Timestamp>,
    /// Tags of the newest batch that listed everything.
    tags: Option<TagCounts>,
}

impl RunHistory {
    /// Returns whether it is the history up to a batch, and may be reused.
    fn is_current(&self, key: HistoryKey) -> bool {
        let is_fresh = || self.read_at.is_some_and(|at| at.elapsed() < FAILURE_TTL);
        self.key == Some(key) && (self.last_failure.is_none() || is_fresh())
    }

    /// Returns what the batches of all rules together say of one of them. If it did not fail in the last failed run, that
    /// run was good for it.
    fn for_rule(&self, number: usize) -> RunHistory {
        match (&self.last_failure, &self.failed_rules) {
            (Some(failure), Some(failed)) if !failed.contains(&number) => RunHistory {
                last_good: self.last_good.max(Some(failure.at)),
                last_failure: None,
                failing_since: None,
                ..self.clone()
            },
            _ => self.clone(),
        }
    }
}

/// One of the errors of a batch.
#[derive(Debug, Clone)]
struct ErrorExample {
    kind: ErrorKind,
    error: String,
    registry: Option<String>,
}

#[derive(Default)]
struct Inner {
    histories: HashMap<Digest, RunHistory>,
    /// Whether batches that pruned were good: by batch, end and prune records, because a batch can be requeued, and is
    /// pruned after its end.
    pruning_batches: HashMap<(BatchId, Timestamp, u64), bool>,
    last: Option<(Instant, Arc<ActiveConfig>, Arc<Vec<RuleResponse>>)>,
}

/// What the state of the rules follows from.
pub(super) struct RuleStateContext<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) scheduler: &'a Scheduler,
    pub(super) current: Arc<ActiveConfig>,
    /// Whether this process leads.
    pub(super) is_leader: bool,
}

/// Caches what the batches of the rules say.
#[derive(Default)]
pub(super) struct RuleCache(tokio::sync::Mutex<Inner>);

impl RuleCache {
    /// Returns all rules in the order of the configuration.
    pub(super) async fn rules(&self, context: RuleStateContext<'_>) -> Result<Arc<Vec<RuleResponse>>> {
        let mut inner = self.0.lock().await;
        if let Some((at, config, rules)) = &inner.last
            && at.elapsed() < CACHE_TTL
            && Arc::ptr_eq(config, &context.current)
        {
            return Ok(rules.clone());
        }
        let rules = Arc::new(inner.load(&context).await?);
        inner.last = Some((Instant::now(), context.current, rules.clone()));
        Ok(rules)
    }

    /// Drops the reused state: a batch was started or changed.
    pub(super) async fn invalidate(&self) {
        self.0.lock().await.last = None;
    }

    /// Returns the newest batches of a rule, older than `before`, newest first.
    pub(super) async fn history(
        &self,
        store: &dyn Store,
        (current, rule): (&ActiveConfig, &ActiveRule),
        before: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>> {
        let [own, all] = current.identities_of(rule);
        let mut batches = store.newest_batches(&current.all_identities_of(rule), before, limit).await?;
        batches.sort_unstable_by_key(|batch| std::cmp::Reverse(batch.id));
        batches.truncate(limit);
        let records = count_records(store, batches.iter()).await?;
        let mut entries = Vec::with_capacity(batches.len());
        for batch in batches {
            let records = records.get(&batch.id).copied().unwrap_or_default();
            let good = self.0.lock().await.is_good(&batch, records, store).await?;
            let shared = own != all && batch.rules == all;
            let pushed = rule.is_of_pushes(&batch);
            let BatchView { batch, state, .. } = BatchView::load(store, batch).await?;
            let end = batch.ended_at.unwrap_or_else(Timestamp::now);
            entries.push(HistoryEntry {
                batch: batch.id,
                state,
                shared,
                pushed,
                good,
                started: batch.created_at,
                ended: batch.ended_at,
                seconds: end.duration_since(batch.created_at).as_secs_f64().max(0.0),
                total: batch.counts.total,
                copied: batch.counts.copied,
                unchanged: batch.counts.unchanged,
                failed: batch.counts.failed,
                cancelled: batch.counts.cancelled,
                unlisted: records.unlisted,
                bytes: batch.usage.bytes.copied,
            });
        }
        Ok(entries)
    }
}

impl Inner {
    async fn load(&mut self, context: &RuleStateContext<'_>) -> Result<Vec<RuleResponse>> {
        let (store, current) = (context.store, &context.current);
        let identities: Vec<Digest> = current.batch_identities();
        let newest: HashMap<Digest, Batch> = by_rules(store.newest_batches(&identities, None, 1).await?)
            .into_iter()
            .filter_map(|(rules, batches)| Some((rules, batches.into_iter().next()?)))
            .collect();
        self.update_histories(store, current, &newest).await?;
        let views = load_views(context, newest).await?;
        let entries = context.scheduler.entries(current).await?;
        let rules = current.rules.iter().zip(entries).enumerate().map(|(number, (rule, mut schedule))| {
            let [own, all] = current.identities_of(rule);
            let is_alone = own == all;
            let all_view = views.get(&all).filter(|_| !is_alone);
            let last = views.get(&own).into_iter().chain(all_view).max_by_key(|view| view.batch.id);
            let shared = last.is_some_and(|last| !is_alone && last.batch.rules == all);
            let none = RunHistory::default();
            let its = self.histories.get(&own).unwrap_or(&none);
            let common = self.histories.get(&all).filter(|_| !is_alone).map(|history| history.for_rule(number));
            let common = common.as_ref().unwrap_or(&none);
            let last_failure =
                [&its.last_failure, &common.last_failure].into_iter().flatten().max_by_key(|failure| failure.at);
            let history = if shared { common } else { its };
            let state = match (last, schedule.last) {
                (Some(last), _) => state_of(last, history),
                (None, Some(_)) => RuleState::NoRecentRun,
                (None, None) => RuleState::NeverRun,
            };
            let last_good = its.last_good.max(common.last_good);
            schedule.last = last.map(|last| last.batch.id).or(schedule.last);
            schedule.running = views
                .get(&own)
                .filter(|view| matches!(view.state, BatchStatus::Running | BatchStatus::Paused))
                .map(|view| view.batch.id);
            RuleResponse {
                schedule,
                state,
                tags: views.get(&own).and_then(|view| live_tags(&view.batch)).or(its.tags),
                last_good,
                last_failure: last_failure.cloned(),
                failing_since: failing_since(history, last_good),
                shared,
                last_batch: last.map(|last| last.batch.id),
            }
        });
        Ok(rules.collect())
    }

    /// Reads the history of the identities whose newest batch moved on.
    async fn update_histories(
        &mut self,
        store: &dyn Store,
        current: &ActiveConfig,
        newest: &HashMap<Digest, Batch>,
    ) -> Result<()> {
        let identities = current.batch_identities();
        let key = |batch: &Batch| (batch.id, batch.ended_at, batch.state, batch.run);
        let changed: Vec<Digest> = newest
            .iter()
            .filter(|(rules, batch)| !self.histories.get(rules).is_some_and(|known| known.is_current(key(batch))))
            .map(|(rules, _)| rules.clone())
            .collect();
        let found = by_rules(store.newest_batches(&changed, None, MAX_RUNS).await?);
        let records = count_records(store, found.values().flatten()).await?;
        for (rules, batches) in found {
            let records_of = |batch: &Batch| records.get(&batch.id).copied().unwrap_or_default();
            let mut history =
                RunHistory { key: newest.get(&rules).map(key), read_at: Some(Instant::now()), ..RunHistory::default() };
            // A listing with failures does not show all tags.
            let listed = batches.iter().filter(|batch| records_of(batch).unlisted == 0);
            history.tags = listed.into_iter().find_map(planned_tags);
            let mut failed = None;
            for batch in &batches {
                let Some(at) = batch.ended_at.filter(|_| batch.state == BatchState::Done) else { continue };
                let records = records_of(batch);
                if history.last_good.is_some() {
                    // The last failure may be older than the last good run. Problems of pruning before it are not
                    // worth a read of each batch.
                    if batch.counts.failed > 0 || records.unlisted > 0 {
                        failed = Some((batch, at, records));
                        break;
                    }
                    continue;
                }
                if self.is_good(batch, records, store).await? {
                    history.last_good = Some(at);
                    if failed.is_some() {
                        break;
                    }
                } else {
                    history.failing_since = Some(at);
                    failed.get_or_insert((batch, at, records));
                }
            }
            if let Some((batch, at, records)) = failed {
                history.last_failure = Some(read_failure(batch, at, records, store).await?);
                if rules == *current.all_rules_identity() && current.rules.len() > 1 {
                    let failed = read_failed_rules(store, batch, records, &current.rules).await?;
                    history.failed_rules = failed.map(Arc::new);
                }
            }
            self.histories.insert(rules, history);
        }
        let known: HashSet<&Digest> = identities.iter().collect();
        self.histories.retain(|rules, _| known.contains(rules) && newest.contains_key(rules));
        if self.pruning_batches.len() > 2 * MAX_RUNS * identities.len().max(100) {
            self.pruning_batches.clear();
        }
        Ok(())
    }

    /// Returns whether a batch is good. Reads what a batch has pruned only once.
    async fn is_good(&mut self, batch: &Batch, records: RecordCounts, store: &dyn Store) -> Result<bool> {
        let key = batch.ended_at.filter(|_| records.pruned > 0).map(|at| (batch.id, at, records.pruned));
        if let Some(known) = key.and_then(|key| self.pruning_batches.get(&key)) {
            return Ok(*known);
        }
        let good = is_good(store, batch, records).await?;
        if let Some(key) = key {
            self.pruning_batches.insert(key, good);
        }
        Ok(good)
    }
}

/// Counts the records of batches, by batch.
async fn count_records(
    store: &dyn Store,
    batches: impl Iterator<Item = &Batch>,
) -> Result<HashMap<BatchId, RecordCounts>> {
    let ids: Vec<BatchId> = batches.map(|batch| batch.id).collect();
    let mut found = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(BATCHES_PER_READ) {
        found.extend(ids.iter().copied().zip(store.count_records(ids).await?));
    }
    Ok(found)
}

/// Reads one of the errors of a batch.
async fn read_failure(batch: &Batch, at: Timestamp, records: RecordCounts, store: &dyn Store) -> Result<LastFailure> {
    let example = match (batch.counts.failed, records.unlisted) {
        (0, 0) => None,
        (0, _) => or_removed(store.listing_failures(batch.id).await)?.into_iter().next().map(|failure| ErrorExample {
            kind: failure.kind,
            registry: failure.repository.split_once('/').map(|(host, _)| host.to_owned()),
            error: failure.error,
        }),
        _ => or_removed(store.failures(batch.id, 0, 1).await)?.pop().map(|failed| ErrorExample {
            registry: <[String; 1]>::try_from(answering_registries(&failed)).ok().map(|[registry]| registry),
            kind: failed.failure.kind,
            error: failed.failure.error,
        }),
    };
    let kind = example.as_ref().map(|example| example.kind);
    let (registry, error) = example.map(|example| (example.registry, example.error)).unzip();
    Ok(LastFailure {
        batch: batch.id,
        at,
        failed: batch.counts.failed,
        unlisted: records.unlisted,
        kind,
        registry: registry.flatten(),
        title: kind.map(advice::title),
        error,
        advice: kind.map(advice::for_kind),
        next_step: kind.map(advice::next_step),
    })
}

/// Returns when the failures in a row began. A good run of all rules together ends a row of failures, too.
fn failing_since(history: &RunHistory, last_good: Option<Timestamp>) -> Option<Timestamp> {
    let since = history.failing_since?;
    match last_good.filter(|good| *good > since) {
        None => Some(since),
        Some(good) => history.last_failure.as_ref().map(|failure| failure.at).filter(|at| *at > good),
    }
}

fn planned_tags(batch: &Batch) -> Option<TagCounts> {
    let counts = &batch.counts;
    batch
        .plan_completed_at
        .is_some()
        .then_some(TagCounts { in_sync: counts.copied + counts.unchanged, total: counts.total })
}

/// Returns the tags of a batch in progress, which change without a change of its history.
fn live_tags(batch: &Batch) -> Option<TagCounts> {
    planned_tags(batch).filter(|_| batch.ended_at.is_none())
}

fn state_of(last: &BatchView, history: &RunHistory) -> RuleState {
    match last.state {
        BatchStatus::Running => RuleState::Running,
        BatchStatus::Paused => RuleState::Paused,
        BatchStatus::Interrupted => RuleState::Interrupted,
        BatchStatus::Cancelled | BatchStatus::Superseded => RuleState::Cancelled,
        BatchStatus::Done if history.failing_since.is_some() => RuleState::Failing,
        BatchStatus::Done if last.batch.counts.total == 0 => RuleState::NothingSelected,
        BatchStatus::Done => RuleState::InSync,
    }
}

fn by_rules(batches: Vec<Batch>) -> HashMap<Digest, Vec<Batch>> {
    let mut found: HashMap<Digest, Vec<Batch>> = HashMap::new();
    for batch in batches {
        found.entry(batch.rules.clone()).or_default().push(batch);
    }
    found
}

/// Returns the batches with their status. Reads the owner of a batch only if this process does not list it.
async fn load_views(
    context: &RuleStateContext<'_>,
    newest: HashMap<Digest, Batch>,
) -> Result<HashMap<Digest, BatchView>> {
    let mut views = HashMap::with_capacity(newest.len());
    for (rules, batch) in newest {
        let is_ours = match batch.plan_completed_at {
            None => context.scheduler.is_listing(batch.id),
            Some(_) => context.is_leader,
        };
        let view = match (batch.ended_at, batch.state, is_ours) {
            (None, BatchState::Running, true) => BatchView { batch, state: BatchStatus::Running, owner: None },
            _ => BatchView::load(context.store, batch).await?,
        };
        views.insert(rules, view);
    }
    Ok(views)
}

/// Returns the number of rules in each state.
pub(super) fn count_states(rules: &[RuleResponse]) -> BTreeMap<&'static str, usize> {
    let mut counts: BTreeMap<&'static str, usize> =
        RuleState::ALL.into_iter().map(|state| (state.as_str(), 0)).collect();
    for rule in rules {
        *counts.entry(rule.state.as_str()).or_default() += 1;
    }
    counts
}
