//! Builds the plan of a batch: plans each listing, filters out unchanged tags, and appends the tasks to the ledger
//! repository by repository, so that they can start while other repositories are still being listed.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use imgsync_config::{Rule, RuleSource, absolute_path};
use imgsync_model::batch::{
    BatchId, Endpoint, Failure, PushedRepository, RepositoryLocator, RequestCounts, TagLocator, TaskResult, TaskSpec,
};
use imgsync_oci::ArchiveFormat;
use imgsync_oci::DigestTagHints;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{Client, Context, TrafficCounters};
use imgsync_store::{AppendResult, ListingFailure, PlanCompletion, PlanSegment, PlanSize, Usage};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::backend::Backend;
use super::digest_tags::DigestTagIndex;
use super::listings::RuleListing;
use super::listings_ahead::ListingsAhead;
use super::plan::{
    PlanFailure, PlannedTarget, PlannedTask, Planner, RepositoryPlan, Slice, SourceTag, cut_slice, resolve_conflicts,
};
use super::prune_plan::PrunePlan;
use super::selection_counts::{SelectionCounts, empty_rule_warning};
use super::unchanged_filter::UnchangedFilter;
use crate::discovery::{DiscoveryItem, RepositoryOrder};
use crate::presets::preset_contains;

mod pushed;

pub(crate) use pushed::describe_push;
pub use pushed::{LaggingByBatch, LaggingPushes};

/// Maximum number of repositories filtered and appended concurrently.
const MAX_CONCURRENT_REPOSITORIES: usize = 16;
/// Tasks per segment of a slice, which is not divided by repository.
const TASKS_PER_SLICE_SEGMENT: usize = 2000;

/// Builds the plan of a batch.
pub(super) struct PlanBuilder<'a> {
    pub(super) backend: &'a Backend,
    pub(super) client: &'a Client,
    pub(super) context: &'a Context,
    pub(super) rules: &'a [Rule],
    /// Base directory of relative paths.
    pub(super) folder: &'a Path,
    pub(super) batch: BatchId,
    pub(super) slice: Option<Slice>,
    /// The pushes that the plan is limited to.
    pub(super) pushed: Option<&'a [PushedRepository]>,
    /// Receives the pushes whose tags do not show yet what was pushed.
    pub(super) lagging_pushes: &'a LaggingPushes,
    /// Whether to look for target tags whose source is gone.
    pub(super) prunes: bool,
    pub(super) query_limit: usize,
    pub(super) unchanged_filter: &'a UnchangedFilter,
    pub(super) counters: (Arc<TrafficCounters>, Arc<TrafficCounters>),
    /// Notified when there are new tasks to dispatch.
    pub(super) plan_changed: &'a Notify,
    /// Index ranges of the plan by target repository.
    pub(super) plan_index: Mutex<PlanIndex>,
}

/// Index ranges of the plan by the target repositories they write to. Memory grows with the repositories.
#[derive(Debug, Default)]
pub(super) struct PlanIndex {
    ranges: HashMap<Arc<RepositoryLocator>, Vec<Range<u32>>>,
    /// There may be other ranges: the listing was started in another process, or the store has lost some.
    is_resumed: bool,
    /// Segments and tasks that are in the plan, as far as the store has acknowledged them.
    acknowledged: PlanSize,
    /// Losses of the store since the listing began.
    write_losses: Option<watch::Receiver<u64>>,
}

impl PlanIndex {
    fn record(&mut self, first: u32, homes: HashSet<Arc<RepositoryLocator>>, tasks: u32) {
        // Indexes only grow, unless the store has lost those that it gave out before.
        self.is_resumed |= u64::from(first) < self.acknowledged.tasks;
        self.acknowledged.segments += 1;
        self.acknowledged.tasks += u64::from(tasks);
        for home in homes {
            self.ranges.entry(home).or_default().push(first..first.saturating_add(tasks));
        }
    }

    /// Returns the ranges that may hold tasks for one of these repositories.
    fn ranges_for(&self, homes: &HashSet<Arc<RepositoryLocator>>) -> Vec<Range<u32>> {
        let has_lost_writes = self.write_losses.as_ref().is_some_and(|losses| losses.has_changed().unwrap_or(false));
        if self.is_resumed || has_lost_writes {
            return Vec::from([Range { start: 0, end: u32::MAX }]);
        }
        let mut parts: Vec<Range<u32>> =
            homes.iter().filter_map(|home| self.ranges.get(home)).flatten().cloned().collect();
        parts.sort_unstable_by_key(|part| (part.start, part.end));
        parts.dedup();
        parts
    }
}

/// Summary of the listing.
#[derive(Debug, Default)]
pub(super) struct ListingSummary {
    /// Errors of the rules of which nothing could be listed.
    pub(super) refused: Vec<Error>,
    /// Prune plans of the rules; empty if the listing was interrupted.
    pub(super) prune_plans: Vec<PrunePlan>,
}

impl PlanBuilder<'_> {
    /// Lists all rules and makes the total final. Records what cannot be listed in the ledger; returns only errors of
    /// the ledger.
    pub(super) async fn run(&self) -> Result<ListingSummary> {
        let mut counted = RequestCounts::default();
        loop {
            let listed = self.list().await?;
            if self.context.cancel.is_cancelled() {
                return Ok(listed);
            }
            let (source, target) = (self.counters.0.snapshot().requests, self.counters.1.snapshot().requests);
            let requests = RequestCounts { source: source - counted.source, target: target - counted.target };
            counted = RequestCounts { source, target };
            self.backend.store.add_usage(self.batch, Usage { requests, ..Usage::default() }).await?;
            let at_least = self.plan_index().acknowledged;
            match self.backend.store.complete_plan(self.batch, at_least).await? {
                PlanCompletion::Complete => {
                    self.plan_changed.notify_one();
                    return Ok(listed);
                }
                // What is in the plan is listed, too, but not added again.
                PlanCompletion::Incomplete(found) => {
                    self.context.warn(lost_segments_warning(self.batch, at_least, found))
                }
            }
        }
    }

    /// Lists all rules, and adds to the plan what it lacks.
    async fn list(&self) -> Result<ListingSummary> {
        let mut listed = ListingSummary::default();
        let write_losses = self.backend.store.write_losses();
        // Before the keys: the plan has at least the tasks of these.
        let tasks = self.backend.store.batch(self.batch).await?.map_or(0, |batch| batch.counts.total);
        let done: HashSet<String> = self.backend.store.segment_keys(self.batch).await?.into_iter().collect();
        *self.plan_index() = PlanIndex {
            is_resumed: !done.is_empty(),
            acknowledged: PlanSize { segments: done.len() as u64, tasks },
            write_losses,
            ..PlanIndex::default()
        };
        if let Some(pushed) = self.pushed {
            Box::pin(self.list_pushed(pushed, &done)).await?;
            return Ok(listed);
        }
        let mut planner = Planner::new();
        let mut all_tasks: Vec<PlannedTask> = Vec::new();
        let mut prune_plans: Vec<PrunePlan> = Vec::new();
        let mut digest_tags = DigestTagIndex::default();
        let order = if self.slice.is_some() { RepositoryOrder::ByName } else { RepositoryOrder::AsCompleted };
        let (client, counters) = (self.client, &self.counters.0);
        let mut ahead =
            ListingsAhead::new(self.rules, self.folder, client, self.context, counters, self.query_limit, order);
        // Repositories of any rules: those of one are filtered while the next one is consumed.
        let mut in_progress = FuturesUnordered::new();
        while let Some((number, rule, listings)) = with_progress(ahead.next(), &mut in_progress).await? {
            let mut prune_plan = if self.prunes { PrunePlan::for_rule(rule, number) } else { None };
            let mut listings = match listings {
                Ok(listings) => listings,
                Err(error) => {
                    mark_incomplete(&mut prune_plan, &rule.source);
                    prune_plans.extend(prune_plan);
                    self.refuse_rule(rule, error, &mut listed).await?;
                    continue;
                }
            };
            let mut chosen = SelectionCounts::default();
            loop {
                if self.context.cancel.is_cancelled() {
                    return Ok(listed);
                }
                ahead.start_more();
                while in_progress.len() >= MAX_CONCURRENT_REPOSITORIES {
                    in_progress.next().await.transpose()?;
                }
                match with_progress(listings.next(), &mut in_progress).await? {
                    Ok(None) => break,
                    Ok(Some(RuleListing { item: DiscoveryItem::Failed(unlisted), .. })) => {
                        mark_incomplete(&mut prune_plan, &unlisted.repository);
                        chosen.mark_incomplete();
                        self.record_unlisted(unlisted.repository, &unlisted.error).await?;
                    }
                    Ok(Some(RuleListing { item: DiscoveryItem::Listed(listing), selector })) => {
                        let key = format!("{number} {}/{}", listing.registry, listing.repository);
                        let now = self.backend.clock.now();
                        // Planned even if already in the ledger, to detect later collisions.
                        let plan = planner.plan(number, rule, selector.as_deref(), &listing, now);
                        chosen.add_listing(&listing, &plan);
                        if let Some(pruning) = &mut prune_plan {
                            let rule = (rule, selector.as_deref());
                            pruning.compare_listing(&*self.backend.store, rule, &listing, now, true).await?;
                        }
                        if let Some(error) = &plan.refused {
                            if let Some(pruning) = &mut prune_plan {
                                pruning.refuse(error.to_string());
                            }
                            let repository = format!("{}/{}", listing.registry, listing.repository);
                            self.record_unlisted(self.describe_repository(rule, repository), error).await?;
                        }
                        if self.slice.is_some() {
                            all_tasks.extend(plan.tasks);
                            digest_tags.merge(plan.digest_tags);
                            for failed in plan.failed {
                                self.record_unlisted(failed.source.to_string(), &failed.error).await?;
                            }
                        } else if !done.contains(&key) {
                            if plan.tasks.iter().any(|task| task.may_collide) {
                                // Tasks planned before must be in the ledger before it is queried.
                                while let Some(result) = in_progress.next().await {
                                    result?;
                                }
                            }
                            in_progress.push(self.add_repository(key, now, rule, number, plan));
                        }
                    }
                    Err(error) => {
                        mark_incomplete(&mut prune_plan, &rule.source);
                        chosen.mark_incomplete();
                        if !error.is_cancelled() {
                            self.refuse_rule(rule, error, &mut listed).await?;
                        }
                        break;
                    }
                }
            }
            prune_plans.extend(prune_plan);
            if let Some(empty) = chosen.empty_rule(rule, number) {
                self.context.warn(empty_rule_warning(rule, &empty));
                self.backend.store.record_empty_rule(self.batch, empty).await?;
            }
        }
        while let Some(result) = in_progress.next().await {
            result?;
        }
        if self.context.cancel.is_cancelled() {
            return Ok(listed);
        }
        if let Some(slice) = self.slice {
            self.add_slice(all_tasks, slice, &digest_tags).await?;
        }
        listed.prune_plans = prune_plans;
        Ok(listed)
    }

    async fn add_repository(
        &self,
        key: String,
        listed_at: Timestamp,
        rule: &Rule,
        number: usize,
        plan: RepositoryPlan,
    ) -> Result<()> {
        // Keeps the memory reserved until the tasks are written.
        let _memory = plan.memory;
        let mut homes = LocatorCache {
            folder: self.folder,
            local_source: local_source(rule, self.folder)?,
            locators: HashMap::new(),
        };
        let taken = self.find_taken_targets(&plan.tasks, &mut homes).await?;
        let mut tasks = Vec::with_capacity(plan.tasks.len());
        let mut failed = plan.failed;
        for task in plan.tasks {
            let planned = homes.task_spec(&task)?;
            match taken.get(&planned.target).filter(|_| task.may_collide) {
                None => tasks.push(planned),
                // Selected by two rules: one task.
                Some(source) if *source == planned.source => {}
                // Read from the newer location of the preset.
                Some(source) if is_of_same_preset(rule, &source.repository) => {}
                Some(source) => failed.push(PlanFailure::collision(task.source, &task.target, &source.to_string())),
            }
        }
        let mut tasks = self.unchanged_filter.filter(tasks, &plan.digest_tags).await?;
        for failed in failed {
            match homes.failed_task_spec(number, &failed) {
                Some(planned) => tasks.push((planned, Some(TaskResult::Failed(Failure::from_error(&failed.error, 1))))),
                // A target without a valid name cannot be in the plan.
                None => self.record_unlisted(failed.source.to_string(), &failed.error).await?,
            }
        }
        self.append(key, listed_at, tasks).await
    }

    async fn add_slice(&self, all_tasks: Vec<PlannedTask>, slice: Slice, digest_tags: &DigestTagIndex) -> Result<()> {
        let (tasks, failed) = resolve_conflicts(all_tasks, self.rules);
        for failed in failed {
            self.record_unlisted(failed.source.to_string(), &failed.error).await?;
        }
        let now = self.backend.clock.now();
        let tasks = cut_slice(tasks, slice);
        for (part, tasks) in tasks.chunks(TASKS_PER_SLICE_SEGMENT).enumerate() {
            let mut planned = Vec::with_capacity(tasks.len());
            for task in tasks {
                let source = local_source(&self.rules[task.rule], self.folder)?;
                planned.push(
                    LocatorCache { folder: self.folder, local_source: source, locators: HashMap::new() }
                        .task_spec(task)?,
                );
            }
            let planned = self.unchanged_filter.filter(planned, digest_tags).await?;
            self.append(format!("slice {part}"), now, planned).await?;
        }
        Ok(())
    }

    async fn append(
        &self,
        key: String,
        listed_at: Timestamp,
        tasks: Vec<(TaskSpec, Option<TaskResult>)>,
    ) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let homes = tasks.iter().map(|(planned, _)| planned.target.repository.clone()).collect();
        let number = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        match self.backend.store.append(self.batch, PlanSegment { key, listed_at, tasks }).await? {
            AppendResult::Appended(first) => self.plan_index().record(first, homes, number),
            // Retry after a lost response: the range is unknown.
            AppendResult::AlreadyPlanned => {
                let mut index = self.plan_index();
                index.is_resumed = true;
                // Another process may have added fewer tasks under this key.
                index.acknowledged.segments += 1;
            }
            // Cancelled by another process: stop listing.
            AppendResult::Closed(_) => self.context.cancel.cancel(),
        }
        self.plan_changed.notify_one();
        Ok(())
    }

    /// Returns the uncertain target tags that already have a task, with its source.
    async fn find_taken_targets(
        &self,
        tasks: &[PlannedTask],
        homes: &mut LocatorCache<'_>,
    ) -> Result<HashMap<TagLocator, TagLocator>> {
        let mut taken = HashMap::new();
        let mut in_doubt = HashSet::new();
        for task in tasks.iter().filter(|task| task.may_collide) {
            in_doubt.insert(homes.target_locator(&task.target)?.repository);
        }
        if in_doubt.is_empty() {
            return Ok(taken);
        }
        let parts = self.plan_index().ranges_for(&in_doubt);
        for Range { start: mut from, end } in parts {
            while from < end {
                let limit = (end - from).min(1000) as usize;
                let rows = self.backend.store.tasks(self.batch, None, from, limit).await?;
                let Some(last) = rows.last() else { break };
                from = last.task.index + 1;
                let planned = rows.into_iter().map(|row| row.task.spec);
                let to_those = planned.filter(|planned| in_doubt.contains(&planned.target.repository));
                taken.extend(to_those.map(|planned| (planned.target, planned.source)));
            }
        }
        Ok(taken)
    }

    fn plan_index(&self) -> MutexGuard<'_, PlanIndex> {
        self.plan_index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the rule's line if several rules read the same source, because each has a problem of its own.
    fn describe_repository(&self, rule: &Rule, repository: String) -> String {
        let alike = self.rules.iter().filter(|other| other.source.to_string() == rule.source.to_string()).count();
        if alike > 1 { format!("{repository} (by the rule in line {})", rule.line) } else { repository }
    }

    async fn record_unlisted(&self, repository: String, error: &Error) -> Result<()> {
        let text = match error.hint() {
            Some(hint) => format!("{error} ({hint})"),
            None => error.to_string(),
        };
        self.context.warn(&text);
        let unlisted = ListingFailure { repository, kind: error.kind(), error: text };
        self.backend.store.record_listing_failure(self.batch, unlisted).await
    }

    /// Records a rule of which nothing could be listed.
    async fn refuse_rule(&self, rule: &Rule, error: Error, listed: &mut ListingSummary) -> Result<()> {
        self.record_unlisted(rule.source.to_string(), &error).await?;
        listed.refused.push(error);
        Ok(())
    }
}

/// Describes a plan from which the store has lost acknowledged segments.
fn lost_segments_warning(batch: BatchId, acknowledged: PlanSize, found: PlanSize) -> String {
    format!(
        "batch {batch}: the store has lost a part of the plan that it had acknowledged, as after a failover: it has {} of \
         {} repositories, {} of {} tasks; listing again to add the rest",
        found.segments, acknowledged.segments, found.tasks, acknowledged.tasks
    )
}

/// Waits for `next`, to its end, while the repositories in progress go on. Returns their first error.
async fn with_progress<T>(
    next: impl Future<Output = T>,
    in_progress: &mut FuturesUnordered<impl Future<Output = Result<()>>>,
) -> Result<T> {
    let mut next = std::pin::pin!(next);
    loop {
        tokio::select! {
            next = &mut next => return Ok(next),
            Some(result) = in_progress.next() => result?,
        }
    }
}

/// Blocks pruning by a rule whose listing is incomplete.
fn mark_incomplete(prune_plan: &mut Option<PrunePlan>, what: &dyn std::fmt::Display) {
    if let Some(pruning) = prune_plan {
        pruning.refuse(format!("{what} could not be listed"));
    }
}

/// Returns whether the rule's preset reads a repository.
fn is_of_same_preset(rule: &Rule, home: &RepositoryLocator) -> bool {
    home.registry().is_some_and(|(registry, path)| preset_contains(&rule.source, registry, path.as_str()))
}

/// Returns the endpoint of the layout or archive that a rule reads; `None` for a rule that reads registries.
fn local_source(rule: &Rule, folder: &Path) -> Result<Option<Endpoint>> {
    match &rule.source {
        RuleSource::Layout(path) => layout_endpoint(&absolute_path(&folder.join(path))).map(Some),
        RuleSource::Archive(format, path) => archive_endpoint(*format, &absolute_path(&folder.join(path))).map(Some),
        RuleSource::Repositories(_) | RuleSource::Preset(_) | RuleSource::Images(_) | RuleSource::Digests(_) => {
            Ok(None)
        }
    }
}

fn archive_endpoint(format: ArchiveFormat, file: &Path) -> Result<Endpoint> {
    Endpoint::from_archive_file(format, file).ok_or_else(|| {
        let operation = format!("planning {format}:{}", file.display());
        Error::new(ErrorKind::Invalid, operation, "the path of an archive must be absolute UTF-8 text")
    })
}

/// Creates locators for planned tasks; tasks of one repository share its locator.
struct LocatorCache<'a> {
    folder: &'a Path,
    local_source: Option<Endpoint>,
    locators: HashMap<(String, String), Arc<RepositoryLocator>>,
}

impl LocatorCache<'_> {
    fn task_spec(&mut self, task: &PlannedTask) -> Result<TaskSpec> {
        Ok(TaskSpec {
            rule: task.rule as u32,
            source: self.source_locator(&task.source)?,
            digest: task.digest.clone(),
            target: self.target_locator(&task.target)?,
            digest_tags: task.digest_tag_hints,
        })
    }

    fn source_locator(&mut self, source: &SourceTag) -> Result<TagLocator> {
        let (end, path) = match &self.local_source {
            None => (Endpoint::Registry(source.registry.clone()), source.repository.to_string()),
            Some(end) => (end.clone(), format!("{}/{}", source.registry, source.repository)),
        };
        Ok(TagLocator { repository: self.repository_locator(end, &path)?, tag: source.tag.clone() })
    }

    fn target_locator(&mut self, target: &PlannedTarget) -> Result<TagLocator> {
        match target {
            PlannedTarget::Registry(name) => {
                let home =
                    self.repository_locator(Endpoint::Registry(name.registry.clone()), name.repository.as_str())?;
                Ok(TagLocator { repository: home, tag: name.tag.clone() })
            }
            PlannedTarget::Layout { folder, name, tag } => {
                let end = layout_endpoint(&absolute_path(&self.folder.join(folder)))?;
                Ok(TagLocator { repository: self.repository_locator(end, name)?, tag: tag.clone() })
            }
            PlannedTarget::Archive { format, file, name, tag } => {
                let end = archive_endpoint(*format, &absolute_path(&self.folder.join(file)))?;
                Ok(TagLocator { repository: self.repository_locator(end, name)?, tag: tag.clone() })
            }
        }
    }

    /// Returns the task of a planning failure, if its target has a valid name.
    fn failed_task_spec(&mut self, number: usize, failed: &PlanFailure) -> Option<TaskSpec> {
        let reference: imgsync_oci::Reference = failed.target.parse().ok()?;
        let repository = self
            .repository_locator(Endpoint::Registry(reference.registry.clone()), reference.repository.as_str())
            .ok()?;
        let target = TagLocator { repository, tag: reference.tag? };
        let source = self.source_locator(&failed.source).ok()?;
        Some(TaskSpec { rule: number as u32, source, digest: None, target, digest_tags: DigestTagHints::default() })
    }

    fn repository_locator(&mut self, end: Endpoint, path: &str) -> Result<Arc<RepositoryLocator>> {
        let key = (end.to_string(), path.to_owned());
        if let Some(home) = self.locators.get(&key) {
            return Ok(home.clone());
        }
        let home = RepositoryLocator::new(end, path)
            .map_err(|error| Error::new(ErrorKind::Invalid, format!("naming {path}"), error.to_string()))?;
        let home = Arc::new(home);
        self.locators.insert(key, home.clone());
        Ok(home)
    }
}

fn layout_endpoint(folder: &Path) -> Result<Endpoint> {
    Endpoint::from_layout_folder(folder).ok_or_else(|| {
        let operation = format!("using the layout {}", folder.display());
        Error::new(ErrorKind::Invalid, operation, "its path is not valid UTF-8")
    })
}
