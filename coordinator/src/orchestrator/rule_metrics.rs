//! Metrics of each rule of `serve`, from the batches in the store: when it last started, ended and succeeded, its last
//! counts, and the outdated tags at its target.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use imgsync_model::batch::{BatchId, TaskState};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize_within;
use imgsync_store::{Batch, BatchState, Store, listing_lease_name};
use jiff::Timestamp;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::batch_view::is_good;

/// Maximum number of rules with metrics, the first of the configuration. A metric counts the others.
pub(crate) const MAX_RULES: usize = 100;
/// Maximum number of characters of a rule's source and target in labels.
const MAX_LABEL_CHARS: usize = 200;
/// Maximum number of batches whose completeness is read per refresh; the next refresh reads further ones.
const MAX_CHECKED_BATCHES: usize = 200;

/// A rule with metrics.
#[derive(Debug, Clone)]
pub struct WatchedRule {
    /// Value of the label `rule`.
    pub label: String,
    /// Source of the rule.
    pub from: String,
    /// Target of the rule.
    pub to: String,
    /// Identities of the batches that run it: of the rule alone, and of all rules together.
    pub batches: [Digest; 2],
    /// Maximum time between two of its scheduled runs; `None` without a schedule.
    pub interval: Option<Duration>,
}

/// Rules of the current configuration, once it has been read.
pub type WatchedRules = Arc<OnceLock<Box<dyn Fn() -> Vec<WatchedRule> + Send + Sync>>>;

type Label = (&'static str, String);
type RuleGaugeFamily<const N: usize> = Family<[Label; N], Gauge>;
type SecondsFamily = Family<[Label; 1], Gauge<f64, AtomicU64>>;

/// Gauges of all rules.
#[derive(Clone, Default)]
pub(super) struct RuleMetrics {
    info: RuleGaugeFamily<3>,
    interval: SecondsFamily,
    watched_since: SecondsFamily,
    last_start: SecondsFamily,
    last_end: SecondsFamily,
    last_good_end: SecondsFamily,
    last_tasks: RuleGaugeFamily<2>,
    last_unlisted: RuleGaugeFamily<1>,
    outdated: RuleGaugeFamily<1>,
    omitted: Gauge,
}

/// Cached results of ended batches.
#[derive(Default)]
pub(super) struct EndedBatchCache {
    /// Results by batch and end, because a batch can be requeued.
    summaries: HashMap<(BatchId, Timestamp), EndedBatchSummary>,
    /// When this process first saw each rule.
    first_seen: HashMap<String, Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct EndedBatchSummary {
    unlisted: usize,
    is_good: bool,
}

impl RuleMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("rule_info", "Source and target of a rule", self.info.clone());
        let mut seconds = |name: &str, help: &str, gauges: &SecondsFamily| {
            registry.register_with_unit(name, help, Unit::Seconds, gauges.clone());
        };
        seconds("rule_interval", "The longest time between two scheduled runs of a rule", &self.interval);
        let help = "Start of the known run history of a rule";
        seconds("rule_watched_since_timestamp", help, &self.watched_since);
        seconds("rule_last_start_timestamp", "When the last run of a rule started", &self.last_start);
        seconds("rule_last_end_timestamp", "When the last run of a rule ended", &self.last_end);
        let help = "When a run of a rule last ended with all repositories listed and nothing failed";
        seconds("rule_last_good_end_timestamp", help, &self.last_good_end);
        registry.register("rule_last_tasks", "Tasks of a rule's last run, by outcome", self.last_tasks.clone());
        let help = "Repositories that could not be listed in a rule's last run";
        registry.register("rule_last_unlisted", help, self.last_unlisted.clone());
        let help = "Tags of a rule's last complete listing that are missing or outdated at the target";
        registry.register("rule_outdated_tags", help, self.outdated.clone());
        registry.register("rules_omitted", "Rules without metrics of their own", self.omitted.clone());
    }

    /// Sets the gauges of these rules and removes those of all others. `orchestrator` are the newest first.
    pub(super) async fn refresh(
        &self,
        rules: &[WatchedRule],
        batches: &[Batch],
        store: &dyn Store,
        ended_batches: &mut EndedBatchCache,
    ) -> Result<()> {
        let (shown, omitted) = rules.split_at(rules.len().min(MAX_RULES));
        let mut all = Vec::with_capacity(shown.len());
        for rule in shown {
            let its: Vec<&Batch> = batches.iter().filter(|batch| rule.batches.contains(&batch.rules)).collect();
            let good = ended_batches.last_good_end(its.iter().copied(), store).await?;
            let last = match last_ended(its.iter().copied()) {
                Some(last) => Some((last, ended_batches.summary(last, store).await?)),
                None => None,
            };
            all.push((rule, its, good, last));
        }
        // Nothing is awaited from here on: a scrape sees the old or the new metrics.
        self.clear();
        self.omitted.set(gauge_from_usize(omitted.len()));
        let now = Timestamp::now();
        for (rule, its, good, last) in all {
            let label = [("rule", rule.label.clone())];
            let short = |text: &str| sanitize_within(text, MAX_LABEL_CHARS).into_owned();
            let info = [label[0].clone(), ("from", short(&rule.from)), ("to", short(&rule.to))];
            self.info.get_or_create_owned(&info).set(1);
            let set = |gauges: &SecondsFamily, value: f64| _ = gauges.get_or_create_owned(&label).set(value);
            rule.interval.iter().for_each(|interval| set(&self.interval, interval.as_secs_f64()));
            let seen = *ended_batches.first_seen.entry(rule.label.clone()).or_insert(now);
            let oldest = its.iter().map(|batch| batch.created_at).min();
            set(&self.watched_since, unix_seconds(oldest.map_or(seen, |oldest| oldest.min(seen))));
            its.iter()
                .map(|batch| batch.created_at)
                .max()
                .into_iter()
                .for_each(|at| set(&self.last_start, unix_seconds(at)));
            good.into_iter().for_each(|at| set(&self.last_good_end, unix_seconds(at)));
            if let Some((last, summary)) = last {
                last.ended_at.into_iter().for_each(|at| set(&self.last_end, unix_seconds(at)));
                for (outcome, count) in outcome_counts(last) {
                    let labels = [label[0].clone(), ("outcome", outcome.to_owned())];
                    self.last_tasks.get_or_create_owned(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
                }
                let unlisted = summary.map_or(0, |result| result.unlisted);
                self.last_unlisted.get_or_create_owned(&label).set(gauge_from_usize(unlisted));
            }
            if let Some(listed) =
                its.iter().filter(|batch| batch.plan_completed_at.is_some()).max_by_key(|batch| batch.id)
            {
                let current = listed.counts.copied + listed.counts.unchanged;
                let outdated = i64::try_from(listed.counts.total.saturating_sub(current)).unwrap_or(i64::MAX);
                self.outdated.get_or_create_owned(&label).set(outdated);
            }
        }
        let labels: HashSet<&String> = shown.iter().map(|rule| &rule.label).collect();
        ended_batches.first_seen.retain(|label, _| labels.contains(label));
        Ok(())
    }

    fn clear(&self) {
        let seconds = [&self.interval, &self.watched_since, &self.last_start, &self.last_end, &self.last_good_end];
        seconds.into_iter().for_each(Family::clear);
        [&self.last_unlisted, &self.outdated].into_iter().for_each(Family::clear);
        self.info.clear();
        self.last_tasks.clear();
    }
}

impl EndedBatchCache {
    /// Returns when the last successful of these batches ended: with all repositories listed and nothing failed. `None`
    /// if unknown.
    pub(super) async fn last_good_end(
        &mut self,
        batches: impl Iterator<Item = &Batch>,
        store: &dyn Store,
    ) -> Result<Option<Timestamp>> {
        let may_be_good =
            |batch: &&Batch| batch.state == BatchState::Done && batch.counts.failed + batch.counts.cancelled == 0;
        let mut ended: Vec<(Timestamp, &Batch)> =
            batches.filter(may_be_good).filter_map(|batch| Some((batch.ended_at?, batch))).collect();
        ended.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, batch) in ended.into_iter().take(MAX_CHECKED_BATCHES) {
            if self.summary(batch, store).await?.is_some_and(|result| result.is_good) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Returns the result of an ended batch. It is read once, unless the process that has listed the batch may still be
    /// pruning.
    async fn summary(&mut self, batch: &Batch, store: &dyn Store) -> Result<Option<EndedBatchSummary>> {
        let Some(ended_at) = batch.ended_at else { return Ok(None) };
        if let Some(summary) = self.summaries.get(&(batch.id, ended_at)) {
            return Ok(Some(*summary));
        }
        let may_change = store.lease_holder(&listing_lease_name(batch.id)).await?.is_some();
        let records = store.count_records(&[batch.id]).await?.first().copied().unwrap_or_default();
        let is_good = is_good(store, batch, records).await?;
        let summary = EndedBatchSummary { unlisted: records.unlisted as usize, is_good };
        if !may_change {
            self.summaries.insert((batch.id, ended_at), summary);
        }
        Ok(Some(summary))
    }

    /// Removes the results of batches that are gone.
    pub(super) fn retain_batches(&mut self, batches: &[Batch]) {
        let known: HashSet<BatchId> = batches.iter().map(|batch| batch.id).collect();
        self.summaries.retain(|(id, _), _| known.contains(id));
    }
}

/// Returns the batch that ended last.
pub(super) fn last_ended<'b>(batches: impl Iterator<Item = &'b Batch>) -> Option<&'b Batch> {
    batches.filter(|batch| batch.ended_at.is_some()).max_by_key(|batch| batch.ended_at)
}

/// Returns the counts of a batch by outcome.
pub(super) fn outcome_counts(batch: &Batch) -> [(&'static str, u64); 4] {
    let counts = &batch.counts;
    [
        (TaskState::Copied.as_str(), counts.copied),
        (TaskState::Unchanged.as_str(), counts.unchanged),
        (TaskState::Failed.as_str(), counts.failed),
        (TaskState::Cancelled.as_str(), counts.cancelled),
    ]
}

pub(super) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

fn gauge_from_usize(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use imgsync_oci::Digest;
    use imgsync_store::{
        Leases as _, Ledger as _, NewBatch, PlanSize, PruneOutcome, PruneRecord, SqliteStore, SystemClock,
    };

    use super::*;

    #[tokio::test]
    async fn a_batch_that_is_pruned_after_its_end_is_good_only_if_that_succeeds() {
        let store = SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap();
        let (id, mut cache) = (BatchId::generate(), EndedBatchCache::default());
        let rules = Digest::sha256(b"rules");
        let batch = NewBatch { id, rules, options: "{}".to_owned(), supersedes: None, fence: None };
        store.create(batch).await.unwrap();
        let lease = listing_lease_name(id);
        store.acquire(&lease, "it lists and prunes", Duration::from_secs(60)).await.unwrap();
        store.complete_plan(id, PlanSize::default()).await.unwrap();
        let ended = [store.batch(id).await.unwrap().unwrap()];
        let mut last_good = async || cache.last_good_end(ended.iter(), &store).await.unwrap();
        assert_eq!(last_good().await, ended[0].ended_at);
        let failed = PruneRecord {
            source: "s.example/a:1".to_owned(),
            target: "t.example/a:1".to_owned(),
            outcome: PruneOutcome::Failed,
            digest: None,
            reason: "answered 405".to_owned(),
        };
        store.record_pruned(id, failed).await.unwrap();
        store.release(&lease, "it lists and prunes").await.unwrap();
        assert_eq!(last_good().await, None);
    }
}
