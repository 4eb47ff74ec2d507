//! Rules with their state, from the newest batches of each: one read of the store for all rules, and one of each batch
//! that ended since the last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{Batch, BatchState, Store};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::active_config::ActiveConfig;
use super::scheduler::{ScheduleEntry, Scheduler};
use crate::batch_view::{BatchStatus, BatchView};
use crate::report::advice::{self, NextStep};
use crate::report::failure_groups::answering_registries;

/// Batches of each rule in which its last good and last failed run are looked for.
pub(super) const MAX_RUNS: usize = 20;
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
    InSync,
}

impl RuleState {
    pub(super) const ALL: [RuleState; 8] = [
        RuleState::Failing,
        RuleState::Interrupted,
        RuleState::Paused,
        RuleState::Running,
        RuleState::Cancelled,
        RuleState::NothingSelected,
        RuleState::NeverRun,
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
    pub(super) unlisted: usize,
    /// Kind and message of one of the errors.
    pub(super) kind: Option<ErrorKind>,
    /// The registry that answered with it, if the message names one.
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
    unlisted: usize,
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
    last_good: Option<Timestamp>,
    last_failure: Option<LastFailure>,
    failing_since: Option<Timestamp>,
    /// Tags of the newest batch that listed everything.
    tags: Option<TagCounts>,
}

/// What an ended batch reads besides its counts.
#[derive(Debug, Clone)]
struct EndedBatch {
    unlisted: usize,
    is_good: bool,
    example: Option<ErrorExample>,
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
    /// By batch and end, because a batch can be requeued.
    ended: HashMap<(BatchId, Timestamp), EndedBatch>,
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
        identities: &[Digest; 2],
        before: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>> {
        let identities = if identities[0] == identities[1] { &identities[..1] } else { &identities[..] };
        let mut batches = store.newest_batches(identities, before, limit).await?;
        batches.sort_unstable_by_key(|batch| std::cmp::Reverse(batch.id));
        batches.truncate(limit);
        let mut entries = Vec::with_capacity(batches.len());
        for batch in batches {
            let ended = self.0.lock().await.ended_batch(&batch, store).await?;
            let shared = identities.len() > 1 && batch.rules == identities[1];
            let BatchView { batch, state, .. } = BatchView::load(store, batch).await?;
            let end = batch.ended_at.unwrap_or_else(Timestamp::now);
            let unlisted = match &ended {
                Some(ended) => ended.unlisted,
                None => store.listing_failures(batch.id).await?.len(),
            };
            entries.push(HistoryEntry {
                batch: batch.id,
                state,
                shared,
                good: ended.is_some_and(|ended| ended.is_good),
                started: batch.created_at,
                ended: batch.ended_at,
                seconds: end.duration_since(batch.created_at).as_secs_f64().max(0.0),
                total: batch.counts.total,
                copied: batch.counts.copied,
                unchanged: batch.counts.unchanged,
                failed: batch.counts.failed,
                cancelled: batch.counts.cancelled,
                unlisted,
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
        self.update_histories(store, &identities, &newest).await?;
        let views = load_views(context, newest).await?;
        let entries = context.scheduler.entries(current).await?;
        let rules = current.rules.iter().zip(entries).map(|(rule, mut schedule)| {
            let [own, all] = current.identities_of(rule);
            let is_alone = own == all;
            let all_view = views.get(&all).filter(|_| !is_alone);
            let last = views.get(&own).into_iter().chain(all_view).max_by_key(|view| view.batch.id);
            let shared = last.is_some_and(|last| !is_alone && last.batch.rules == all);
            let none = RunHistory::default();
            let its = self.histories.get(&own).unwrap_or(&none);
            let common = self.histories.get(&all).filter(|_| !is_alone).unwrap_or(&none);
            let last_failure =
                [&its.last_failure, &common.last_failure].into_iter().flatten().max_by_key(|failure| failure.at);
            let history = if shared { common } else { its };
            let state = last.map_or(RuleState::NeverRun, |last| state_of(last, history));
            schedule.last = last.map(|last| last.batch.id).or(schedule.last);
            schedule.running = views
                .get(&own)
                .filter(|view| matches!(view.state, BatchStatus::Running | BatchStatus::Paused))
                .map(|view| view.batch.id);
            RuleResponse {
                schedule,
                state,
                tags: views.get(&own).and_then(|view| live_tags(&view.batch)).or(its.tags),
                last_good: its.last_good.max(common.last_good),
                last_failure: last_failure.cloned(),
                failing_since: history.failing_since,
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
        identities: &[Digest],
        newest: &HashMap<Digest, Batch>,
    ) -> Result<()> {
        let key = |batch: &Batch| (batch.id, batch.ended_at, batch.state, batch.run);
        let changed: Vec<Digest> = newest
            .iter()
            .filter(|(rules, batch)| self.histories.get(rules).and_then(|known| known.key) != Some(key(batch)))
            .map(|(rules, _)| rules.clone())
            .collect();
        let found = by_rules(store.newest_batches(&changed, None, MAX_RUNS).await?);
        for (rules, batches) in found {
            let mut history = RunHistory { key: newest.get(&rules).map(key), ..RunHistory::default() };
            for batch in &batches {
                // A listing with failures does not show all tags.
                let ended = self.ended_batch(batch, store).await?;
                if ended.is_none_or(|ended| ended.unlisted == 0)
                    && let Some(tags) = planned_tags(batch)
                {
                    history.tags = Some(tags);
                    break;
                }
            }
            for batch in &batches {
                let Some(ended) = self.ended_batch(batch, store).await? else { continue };
                let Some(at) = batch.ended_at.filter(|_| batch.state == BatchState::Done) else { continue };
                if ended.is_good {
                    history.last_good = Some(at);
                    break;
                }
                history.failing_since = Some(at);
                if history.last_failure.is_none() {
                    history.last_failure = Some(last_failure(batch, at, &ended));
                }
            }
            // The last failure may be older than the last good run.
            if history.last_failure.is_none() {
                for batch in &batches {
                    let is_bad = batch.state == BatchState::Done && batch.counts.failed > 0;
                    let Some(at) = batch.ended_at.filter(|_| is_bad) else { continue };
                    if let Some(ended) = self.ended_batch(batch, store).await? {
                        history.last_failure = Some(last_failure(batch, at, &ended));
                        break;
                    }
                }
            }
            self.histories.insert(rules, history);
        }
        let known: HashSet<&Digest> = identities.iter().collect();
        self.histories.retain(|rules, _| known.contains(rules) && newest.contains_key(rules));
        if self.ended.len() > 2 * MAX_RUNS * identities.len().max(100) {
            self.ended.clear();
        }
        Ok(())
    }

    /// Returns what an ended batch says, read once.
    async fn ended_batch(&mut self, batch: &Batch, store: &dyn Store) -> Result<Option<EndedBatch>> {
        let Some(at) = batch.ended_at else { return Ok(None) };
        if let Some(known) = self.ended.get(&(batch.id, at)) {
            return Ok(Some(known.clone()));
        }
        let ended = match read_ended(batch, store).await {
            Ok(ended) => ended,
            // Removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.ended.insert((batch.id, at), ended.clone());
        Ok(Some(ended))
    }
}

async fn read_ended(batch: &Batch, store: &dyn Store) -> Result<EndedBatch> {
    let unlisted = store.listing_failures(batch.id).await?;
    let pruned = store.prune_records(batch.id).await?;
    let has_prune_problem = pruned.iter().any(|record| record.outcome.needs_attention());
    let example = match batch.counts.failed {
        0 => unlisted.first().map(|failure| ErrorExample {
            kind: failure.kind,
            error: failure.error.clone(),
            registry: failure.repository.split_once('/').map(|(host, _)| host.to_owned()),
        }),
        _ => store.failures(batch.id, 0, 1).await?.pop().map(|failed| ErrorExample {
            registry: <[String; 1]>::try_from(answering_registries(&failed)).ok().map(|[registry]| registry),
            kind: failed.failure.kind,
            error: failed.failure.error,
        }),
    };
    let is_good = batch.state == BatchState::Done
        && batch.counts.failed + batch.counts.cancelled == 0
        && unlisted.is_empty()
        && !has_prune_problem;
    Ok(EndedBatch { unlisted: unlisted.len(), is_good, example })
}

fn last_failure(batch: &Batch, at: Timestamp, ended: &EndedBatch) -> LastFailure {
    let kind = ended.example.as_ref().map(|example| example.kind);
    LastFailure {
        batch: batch.id,
        at,
        failed: batch.counts.failed,
        unlisted: ended.unlisted,
        kind,
        title: kind.map(advice::title),
        registry: ended.example.as_ref().and_then(|example| example.registry.clone()),
        error: ended.example.as_ref().map(|example| example.error.clone()),
        advice: kind.map(advice::for_kind),
        next_step: kind.map(advice::next_step),
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
