//! Dry run: plans without a ledger and without writing anything.

use std::path::Path;
use std::sync::Arc;

use imgsync_config::{Rule, RuleSource};
use imgsync_layout::{ArchiveRef, ImageName, LayoutRef};
use imgsync_oci::Reference;
use imgsync_oci::error::{Error, Result};
use imgsync_registry::{Client, Context, TrafficCounters};
use imgsync_store::Store;
use imgsync_worker::copy::ImageLocation;
use jiff::Timestamp;

use super::listings::RuleListing;
use super::listings_ahead::ListingsAhead;
use super::plan::{PlannedTask, Planner, Slice, cut_slice, resolve_conflicts};
use super::prune_plan::PrunePlan;
use super::selection_counts::{SelectionCounts, empty_rule_warning};
use crate::discovery::{DiscoveryItem, RepositoryOrder};

/// Plans a dry run.
pub struct DryRun<'a> {
    /// Registry client.
    pub client: &'a Client,
    /// Request context.
    pub context: &'a Context,
    /// Rules to plan.
    pub rules: &'a [Rule],
    /// Base directory of relative paths.
    pub folder: &'a Path,
    /// Slice of the sorted plan.
    pub slice: Option<Slice>,
    /// Maximum number of repositories listed concurrently.
    pub query_limit: usize,
    /// Store with the provenance of target tags; without one, nothing is planned to be pruned.
    pub store: Option<&'a dyn Store>,
}

/// Result of a dry run.
#[derive(Debug, Default)]
pub struct DryRunPlan {
    /// Tasks, sorted.
    pub tasks: Vec<PlannedTask>,
    /// Selected tags that would fail: source, target, error.
    pub failed: Vec<(String, String, Error)>,
    /// Repositories that could not be listed, with the error.
    pub unlisted: Vec<(String, Error)>,
    /// Prune plans of the rules.
    pub prune_plans: Vec<PrunePlan>,
}

impl DryRun<'_> {
    /// Lists and plans. Warns of what cannot be listed.
    pub async fn plan(&self, counters: &Arc<TrafficCounters>) -> Result<DryRunPlan> {
        let mut dry = DryRunPlan::default();
        let mut planner = Planner::new();
        let now = Timestamp::now();
        let mut tasks = Vec::new();
        let order = RepositoryOrder::ByName;
        let mut ahead =
            ListingsAhead::new(self.rules, self.folder, self.client, self.context, counters, self.query_limit, order);
        while let Some((number, rule, listings)) = ahead.next().await {
            let mut prune_plan = if self.slice.is_none() { PrunePlan::for_rule(rule, number) } else { None };
            let mark_incomplete = |prune_plan: &mut Option<PrunePlan>, what: &str| {
                if let Some(pruning) = prune_plan {
                    pruning.refuse(format!("{what} could not be listed"));
                }
            };
            let mut listings = match listings {
                Ok(listings) => listings,
                Err(error) => {
                    mark_incomplete(&mut prune_plan, &rule.source.to_string());
                    dry.prune_plans.extend(prune_plan);
                    self.record_unlisted(&mut dry, rule.label(), error)?;
                    continue;
                }
            };
            let mut chosen = SelectionCounts::default();
            loop {
                ahead.start_more();
                match listings.next().await {
                    Ok(None) => break,
                    Ok(Some(RuleListing { item: DiscoveryItem::Failed(unlisted), .. })) => {
                        mark_incomplete(&mut prune_plan, &unlisted.repository);
                        chosen.mark_incomplete();
                        self.record_unlisted(&mut dry, unlisted.repository, unlisted.error)?;
                    }
                    Ok(Some(RuleListing { item: DiscoveryItem::Listed(listing), selector })) => {
                        let plan = planner.plan(number, rule, selector.as_deref(), &listing, now);
                        chosen.add_listing(&listing, &plan);
                        tasks.extend(plan.tasks);
                        let failed = plan.failed.into_iter();
                        dry.failed
                            .extend(failed.map(|failed| (failed.source.to_string(), failed.target, failed.error)));
                        if let (Some(pruning), Some(store)) = (&mut prune_plan, self.store) {
                            pruning.compare_listing(store, (rule, selector.as_deref()), &listing, now, false).await?;
                        }
                        if let Some(error) = plan.refused {
                            if let Some(pruning) = &mut prune_plan {
                                pruning.refuse(error.to_string());
                            }
                            self.record_unlisted(
                                &mut dry,
                                format!("{}/{}", listing.registry, listing.repository),
                                error,
                            )?;
                        }
                    }
                    Err(error) => {
                        mark_incomplete(&mut prune_plan, &rule.source.to_string());
                        chosen.mark_incomplete();
                        self.record_unlisted(&mut dry, rule.label(), error)?;
                        break;
                    }
                }
            }
            dry.prune_plans.extend(prune_plan);
            if let Some(empty) = chosen.empty_rule(rule, number) {
                self.context.warn(empty_rule_warning(rule, &empty));
            }
        }
        let (tasks, failed) = resolve_conflicts(tasks, self.rules);
        dry.failed.extend(failed.into_iter().map(|failed| (failed.source.to_string(), failed.target, failed.error)));
        dry.tasks = match self.slice {
            Some(slice) => cut_slice(tasks, slice),
            None => tasks,
        };
        Ok(dry)
    }

    fn record_unlisted(&self, dry: &mut DryRunPlan, what: String, error: Error) -> Result<()> {
        if error.is_cancelled() {
            return Err(error);
        }
        self.context.warn(error.to_string());
        dry.unlisted.push((what, error));
        Ok(())
    }

    /// Returns the location of a task's source.
    pub fn source_location(&self, task: &PlannedTask) -> ImageLocation {
        let pinned = task.digest.clone().filter(|digest| digest.is_pinned_by(&task.source.tag));
        let reference = Reference {
            registry: task.source.registry.clone(),
            repository: task.source.repository.clone(),
            tag: Some(task.source.tag.clone()).filter(|_| pinned.is_none()),
            digest: pinned,
        };
        match &self.rules[task.rule].source {
            RuleSource::Layout(path) => ImageLocation::Layout(LayoutRef {
                dir: self.folder.join(path),
                image: Some(ImageName::Full(reference)),
            }),
            RuleSource::Archive(format, path) => ImageLocation::Archive(ArchiveRef {
                format: *format,
                file: self.folder.join(path),
                image: Some(ImageName::Full(reference)),
            }),
            RuleSource::Repositories(_) | RuleSource::Preset(_) | RuleSource::Images(_) | RuleSource::Digests(_) => {
                ImageLocation::Registry(reference)
            }
        }
    }
}
