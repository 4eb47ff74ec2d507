//! Plans what was pushed, as hooks told: the rules as always, limited to these tags. A notification says where to look;
//! what is copied is what the source shows.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use imgsync_config::Rule;
use imgsync_model::batch::{Failure, PushedReference, PushedRepository, RepositoryLocator, TaskResult, TaskSpec};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::retry::RetryBudget;
use imgsync_oci::{RegistryName, RepositoryName, Tag};
use imgsync_registry::{Access, Context};
use jiff::Timestamp;

use super::super::plan::{Planner, RepositoryPlan};
use super::super::prune_plan::PrunePlan;
use super::{LocatorCache, PlanBuilder, local_source};
use crate::discovery::{RepositoryListing, list_repository};
use crate::presets::{SourceSelector, source_selectors};

mod conflicts;
mod images;
mod lagging;
mod named;
mod read;

pub use lagging::{LaggingByBatch, LaggingPushes};
use named::NamedListings;
use read::{ShownPushes, pin_tags};

/// Time for which a batch waits until tags show what was pushed. Those that do not are asked for again in another batch.
const TAG_WAIT: Duration = Duration::from_secs(5);
/// Concurrent requests for tags and manifests of a repository.
const MAX_CONCURRENT_REQUESTS: usize = 8;

/// What is shared by the repositories of a batch of pushes.
struct PushPlan<'a> {
    planner: Mutex<Planner>,
    named: NamedListings,
    /// Keys of the segments that the plan has.
    done: &'a HashSet<String>,
    /// Until when tags are waited for.
    deadline: Instant,
}

/// A part of a rule's source that reads a repository.
struct RulePart<'a> {
    number: usize,
    rule: &'a Rule,
    /// `None` for a rule that names each image.
    selector: Option<&'a SourceSelector>,
}

impl PlanBuilder<'_> {
    /// Plans the pushes, except those of the segments that the plan has. Repositories do not wait for each other.
    pub(super) async fn list_pushed(&self, pushed: &[PushedRepository], done: &HashSet<String>) -> Result<()> {
        let (planner, deadline) = (Mutex::new(Planner::new()), Instant::now() + TAG_WAIT);
        let shared = PushPlan { planner, named: self.read_named_images(pushed).await?, done, deadline };
        let mut plans: Vec<BoxFuture<'_, _>> = Vec::with_capacity(pushed.len());
        for pushed in pushed {
            plans.push(self.plan_repository(&shared, pushed).boxed());
        }
        let mut planned = futures_util::stream::iter(plans).buffer_unordered(self.query_limit.max(1));
        while let Some(planned) = planned.next().await {
            match planned {
                Err(error) if error.is_cancelled() => return Ok(()),
                planned => planned?,
            }
            if self.context.cancel.is_cancelled() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Plans the pushes to a repository. Records what cannot be read; returns only errors of the ledger.
    async fn plan_repository(&self, shared: &PushPlan<'_>, pushed: &PushedRepository) -> Result<()> {
        if self.context.cancel.is_cancelled() {
            return Ok(());
        }
        let (pushes, listing) = match self.read_repository(shared, pushed).await {
            Ok(read) => read,
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => {
                return self.record_unlisted(format!("{}/{}", pushed.registry, pushed.repository), &error).await;
            }
        };
        if pushes.is_empty() {
            return Ok(());
        }
        self.plan_pushes(shared, pushed, &pushes, listing).await?;
        self.plan_named_images(shared, pushed, &pushes).await
    }

    /// Asks the registry what was pushed, and lists the repository if other tags count.
    async fn read_repository(
        &self,
        shared: &PushPlan<'_>,
        pushed: &PushedRepository,
    ) -> Result<(ShownPushes, Option<RepositoryListing>)> {
        let context = Context { budget: RetryBudget::default(), ..self.context.clone() };
        let PushedRepository { registry, repository: name, .. } = pushed;
        let repository = self.client.repository(registry, name, Access::Pull, &context, &self.counters.0)?;
        let pushes = self.read_pushes(&repository, pushed, shared.deadline).await?;
        if !pushes.has_repository() {
            return Ok((pushes, None));
        }
        let (mut follows_deletion, mut needs_others) = (false, false);
        for rule in self.rules {
            for part in source_selectors(&rule.source).unwrap_or_default() {
                if part.reads(registry, name) {
                    follows_deletion |= pushes.has_deletion && rule.prune.is_some();
                    needs_others |= !pushes.decides([&part.selection, &rule.selection]);
                }
            }
        }
        if !follows_deletion && !needs_others {
            return Ok((pushes, None));
        }
        match list_repository(&repository).await {
            // The whole repository was deleted, of which a run of the whole rule decides.
            Err(error) if error.kind() == ErrorKind::NotFound && pushes.has_deletion && !pushes.has_tag() => {
                Ok((pushes, None))
            }
            // What the pushed tags alone decide is copied. What needs the listing stays pending.
            Err(error) if !error.is_cancelled() => {
                let unlisted = match needs_others {
                    true => format!("{registry}/{name}"),
                    false => describe_push((registry, name), &PushedReference::Deletion),
                };
                self.record_unlisted(unlisted, &error).await?;
                Ok((pushes, None))
            }
            listing => Ok((pushes, Some(listing?))),
        }
    }

    /// Plans the pushes by the rules that read repositories.
    async fn plan_pushes(
        &self,
        shared: &PushPlan<'_>,
        pushed: &PushedRepository,
        pushes: &ShownPushes,
        mut listing: Option<RepositoryListing>,
    ) -> Result<()> {
        if let Some(listing) = &mut listing {
            pin_tags(listing, &pushes.tags);
        }
        let PushedRepository { registry, repository, .. } = pushed;
        let now = self.backend.clock.now();
        let name = format!("{registry}/{repository}");
        self.clear_missing_tags(pushed, pushes).await?;
        for (number, rule) in self.rules.iter().enumerate() {
            for (part, selector) in source_selectors(&rule.source).unwrap_or_default().iter().enumerate() {
                let key = format!("{number} {part} {name}");
                if !selector.reads(registry, repository) || shared.done.contains(&key) {
                    continue;
                }
                if let Some(listing) = &listing {
                    self.record_missing_tags((number, rule, selector), listing, pushes, now).await?;
                }
                let is_decided = pushes.decides([&selector.selection, &rule.selection]);
                let narrow = match &listing {
                    None => is_decided.then(|| pushes.listing(registry, repository)),
                    Some(listing) => is_decided.then(|| pushes.narrow_listing(listing)),
                };
                let Some(listing) = narrow.as_ref().or(listing.as_ref()) else { continue };
                let rule = RulePart { number, rule, selector: Some(selector) };
                self.plan_part(shared, (key, now), &rule, listing, pushes).await?;
            }
        }
        Ok(())
    }

    /// Ends the grace periods of pushed tags that exist, if a rule prunes.
    async fn clear_missing_tags(&self, pushed: &PushedRepository, pushes: &ShownPushes) -> Result<()> {
        let is_there = |tag: &Tag| matches!(pushes.tags.get(tag), Some(Some(_)));
        if !pushes.has_tag() || self.rules.iter().all(|rule| rule.prune.is_none()) {
            return Ok(());
        }
        let source = RepositoryLocator::in_registry(pushed.registry.clone(), &pushed.repository);
        let made = self.backend.store.provenance_by_source(&source).await?;
        let back = made.into_iter().filter(|made| made.missing_since.is_some() && is_there(&made.source_tag));
        let changes: Vec<_> = back.map(|made| (made.target, None)).collect();
        match changes.is_empty() {
            true => Ok(()),
            false => self.backend.store.set_missing_since(&source, changes).await,
        }
    }

    /// Records which sources of mirrored tags are missing after a deletion, for a rule that prunes: the grace period begins
    /// now. Only a run of the whole rule removes them, with all limits of `prune`.
    async fn record_missing_tags(
        &self,
        (number, rule, selector): (usize, &Rule, &SourceSelector),
        listing: &RepositoryListing,
        pushes: &ShownPushes,
        now: Timestamp,
    ) -> Result<()> {
        let Some(mut pruning) = PrunePlan::for_rule(rule, number).filter(|_| pushes.has_deletion) else {
            return Ok(());
        };
        // A pushed tag that does not exist may be one that is not set yet.
        pruning.except(pushes.tags.iter().filter(|(_, digest)| digest.is_none()).map(|(tag, _)| tag.clone()));
        pruning.compare_listing(&*self.backend.store, (rule, Some(selector)), listing, now, true).await
    }

    /// Plans the pushes by a part of a rule, from a listing.
    async fn plan_part(
        &self,
        shared: &PushPlan<'_>,
        (key, now): (String, Timestamp),
        part: &RulePart<'_>,
        listing: &RepositoryListing,
        pushes: &ShownPushes,
    ) -> Result<()> {
        let plan = {
            let mut planner = shared.planner.lock().unwrap_or_else(PoisonError::into_inner);
            planner.plan(part.number, part.rule, part.selector, listing, now)
        };
        match &plan.refused {
            Some(error) => {
                let repository = format!("{}/{}", listing.registry, listing.repository);
                self.record_unlisted(self.describe_repository(part.rule, repository), error).await
            }
            None => self.add_pushes(key, now, part, plan, pushes).await,
        }
    }

    /// Adds the tasks of the pushes to the plan.
    async fn add_pushes(
        &self,
        key: String,
        listed_at: Timestamp,
        part: &RulePart<'_>,
        plan: RepositoryPlan,
        pushes: &ShownPushes,
    ) -> Result<()> {
        let RulePart { number, rule, selector } = *part;
        let RepositoryPlan { tasks: planned, failed, digest_tags, memory: _memory, .. } = plan;
        let mut locators = LocatorCache {
            folder: self.folder,
            local_source: local_source(rule, self.folder)?,
            locators: HashMap::new(),
        };
        let mut tasks = Vec::with_capacity(planned.len());
        for task in &planned {
            tasks.push(locators.task_spec(task)?);
        }
        let of_images = self.find_images(rule, &tasks, &pushes.images).await?;
        // Only a rule that names images has tasks for digests without a tag.
        let is_named_digest =
            |task: &TaskSpec| task.pinned_digest().is_some_and(|digest| pushes.manifests.contains(digest));
        let is_pushed = |task: &TaskSpec| {
            pushes.is_unknown
                || pushes.tags.contains_key(&task.source.tag)
                || of_images.contains(&task.source.tag)
                || is_named_digest(task)
        };
        tasks.retain(is_pushed);
        self.refuse_loops(&mut tasks).await?;
        let taken = self.take_collisions(rule, selector, &mut tasks).await?;
        let mut tasks = self.unchanged_filter.filter(tasks, &digest_tags).await?;
        for (task, result) in tasks.iter_mut().filter(|(task, _)| of_images.contains(&task.source.tag)) {
            *result = None;
            task.digest_tags = task.digest_tags.with_new();
        }
        tasks.extend(taken);
        for failed in failed.into_iter().filter(|failed| pushes.tags.contains_key(&failed.source.tag)) {
            match locators.failed_task_spec(number, &failed) {
                Some(task) => tasks.push((task, Some(TaskResult::Failed(Failure::from_error(&failed.error, 1))))),
                None => self.record_unlisted(failed.source.to_string(), &failed.error).await?,
            }
        }
        self.append(key, listed_at, tasks).await
    }
}

/// Names a push, as failures of listings do.
pub(crate) fn describe_push(
    (registry, repository): (&RegistryName, &RepositoryName),
    reference: &PushedReference,
) -> String {
    reference.name_in(registry, repository)
}
