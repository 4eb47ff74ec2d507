//! Dry run: plans without a ledger and without writing anything.

use std::path::Path;
use std::sync::Arc;

use imgsync_common::config::{Rule, Source};
use imgsync_common::error::{Error, Result};
use imgsync_common::image::Reference;
use imgsync_common::layout::{ImageName, LayoutRef};
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_common::store::Store;
use imgsync_worker::copy::Location;
use jiff::Timestamp;

use super::chosen::{Chosen, warning};
use super::listings::{Listings, Offer};
use super::plan::{PlannedTask, Planner, Slice, cut, settle};
use super::prune::Pruning;
use crate::enumerate::{self, Found, Order};

/// Plans a dry run.
pub struct Dry<'a> {
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
pub struct DryPlan {
    /// Tasks, sorted.
    pub tasks: Vec<PlannedTask>,
    /// Selected tags that would fail: source, target, error.
    pub failed: Vec<(String, String, Error)>,
    /// Repositories that could not be listed, with the error.
    pub unlisted: Vec<(String, Error)>,
    /// Prune plans of the rules.
    pub prunings: Vec<Pruning>,
}

impl Dry<'_> {
    /// Lists and plans. Warns of what cannot be listed.
    pub async fn plan(&self, tally: &Arc<Tally>) -> Result<DryPlan> {
        let mut dry = DryPlan::default();
        let mut planner = Planner::new();
        let now = Timestamp::now();
        let mut tasks = Vec::new();
        for (number, rule) in self.rules.iter().enumerate() {
            let options = enumerate::Options { query_limit: self.query_limit, order: Order::ByName };
            let mut pruning = if self.slice.is_none() { Pruning::of(rule, number) } else { None };
            let unsure = |pruning: &mut Option<Pruning>, what: &str| {
                if let Some(pruning) = pruning {
                    pruning.refuse(format!("{what} could not be listed"));
                }
            };
            let mut listings =
                match Listings::of(&rule.source, self.folder, self.client, options, self.context, tally).await {
                    Ok(listings) => listings,
                    Err(error) => {
                        unsure(&mut pruning, &rule.source.to_string());
                        dry.prunings.extend(pruning);
                        self.unlisted(&mut dry, rule.place(), error)?;
                        continue;
                    }
                };
            let mut chosen = Chosen::default();
            loop {
                match listings.next().await {
                    Ok(None) => break,
                    Ok(Some(Offer { found: Found::Unlisted(unlisted), .. })) => {
                        unsure(&mut pruning, &unlisted.repository);
                        chosen.missed();
                        self.unlisted(&mut dry, unlisted.repository, unlisted.error)?;
                    }
                    Ok(Some(Offer { found: Found::Listed(listing), part })) => {
                        let plan = planner.plan(number, rule, part.as_deref(), &listing, now);
                        chosen.count(&listing, &plan);
                        tasks.extend(plan.tasks);
                        let failed = plan.failed.into_iter();
                        dry.failed
                            .extend(failed.map(|failed| (failed.source.to_string(), failed.target, failed.error)));
                        if let (Some(pruning), Some(store)) = (&mut pruning, self.store) {
                            pruning.look(store, (rule, part.as_deref()), &listing, now, false).await?;
                        }
                        if let Some(error) = plan.refused {
                            if let Some(pruning) = &mut pruning {
                                pruning.refuse(error.to_string());
                            }
                            self.unlisted(&mut dry, format!("{}/{}", listing.registry, listing.repository), error)?;
                        }
                    }
                    Err(error) => {
                        unsure(&mut pruning, &rule.source.to_string());
                        chosen.missed();
                        self.unlisted(&mut dry, rule.place(), error)?;
                        break;
                    }
                }
            }
            dry.prunings.extend(pruning);
            if let Some(empty) = chosen.empty(rule, number) {
                self.context.warn(warning(rule, &empty));
            }
        }
        let (tasks, failed) = settle(tasks, self.rules);
        dry.failed.extend(failed.into_iter().map(|failed| (failed.source.to_string(), failed.target, failed.error)));
        dry.tasks = match self.slice {
            Some(slice) => cut(tasks, slice),
            None => tasks,
        };
        Ok(dry)
    }

    fn unlisted(&self, dry: &mut DryPlan, what: String, error: Error) -> Result<()> {
        if error.is_cancelled() {
            return Err(error);
        }
        self.context.warn(error.to_string());
        dry.unlisted.push((what, error));
        Ok(())
    }

    /// Returns the location of a task's source.
    pub fn source_of(&self, task: &PlannedTask) -> Location {
        let reference = Reference {
            registry: task.source.registry.clone(),
            repository: task.source.repository.clone(),
            tag: Some(task.source.tag.clone()),
            digest: None,
        };
        match &self.rules[task.rule].source {
            Source::Layout(path) => {
                Location::Layout(LayoutRef { dir: self.folder.join(path), image: Some(ImageName::Full(reference)) })
            }
            Source::Repositories(_) | Source::Preset(_) => Location::Registry(reference),
        }
    }
}
