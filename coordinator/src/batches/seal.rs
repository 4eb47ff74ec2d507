//! Builds the plan of a batch: plans each listing, filters out unchanged tags, and appends the tasks to the ledger
//! repository by repository, so that they can start while other repositories are still being listed.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use imgsync_common::batch::{BatchId, End, Failure, Home, Place, Planned, Requests, Verdict};
use imgsync_common::config::{Rule, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Company;
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_common::store::{Appended, Sealed, Spent, Unlisted};
use jiff::Timestamp;
use tokio::sync::Notify;

use super::chosen::{Chosen, warning};
use super::companions::Companions;
use super::house::House;
use super::listings::{Listings, Offer};
use super::plan::{Failed, Plan, PlannedTask, Planner, Slice, SourceTag, Target, cut, settle};
use super::prune::Pruning;
use super::settle::Settler;
use crate::enumerate::{self, Found, Order};
use crate::presets::is_of_preset;

/// Maximum number of repositories filtered and appended concurrently.
const AT_ONCE: usize = 16;
/// Tasks per segment of a slice, which is not divided by repository.
const SLICE_PART: usize = 2000;

/// Builds the plan of a batch.
pub(super) struct Sealing<'a> {
    pub(super) house: &'a House,
    pub(super) client: &'a Client,
    pub(super) context: &'a Context,
    pub(super) rules: &'a [Rule],
    /// Base directory of relative paths.
    pub(super) folder: &'a Path,
    pub(super) batch: BatchId,
    pub(super) slice: Option<Slice>,
    /// Whether to look for target tags whose source is gone.
    pub(super) prunes: bool,
    pub(super) query_limit: usize,
    pub(super) settler: &'a Settler,
    pub(super) tallies: (Arc<Tally>, Arc<Tally>),
    /// Notified when there are new tasks to dispatch.
    pub(super) more: &'a Notify,
    /// Index ranges of the plan by target repository.
    pub(super) parts: Mutex<Parts>,
}

/// Index ranges of the plan by the target repositories they write to. Memory grows with the repositories.
#[derive(Debug, Default)]
pub(super) struct Parts {
    known: HashMap<Arc<Home>, Vec<Range<u32>>>,
    /// There may be other ranges: the listing was started in another process.
    is_resumed: bool,
}

impl Parts {
    fn note(&mut self, first: u32, homes: HashSet<Arc<Home>>, tasks: u32) {
        for home in homes {
            self.known.entry(home).or_default().push(first..first.saturating_add(tasks));
        }
    }

    /// Returns the ranges that may hold tasks for one of these repositories.
    fn of(&self, homes: &HashSet<Arc<Home>>) -> Vec<Range<u32>> {
        if self.is_resumed {
            return Vec::from([Range { start: 0, end: u32::MAX }]);
        }
        let mut parts: Vec<Range<u32>> =
            homes.iter().filter_map(|home| self.known.get(home)).flatten().cloned().collect();
        parts.sort_unstable_by_key(|part| (part.start, part.end));
        parts.dedup();
        parts
    }
}

/// Summary of the listing.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Errors of the rules of which nothing could be listed.
    pub(super) refused: Vec<Error>,
    /// Prune plans of the rules; empty if the listing was interrupted.
    pub(super) prunings: Vec<Pruning>,
}

impl Sealing<'_> {
    /// Lists all rules and makes the total final. Records what cannot be listed in the ledger; returns only errors of
    /// the ledger.
    pub(super) async fn run(&self) -> Result<Listed> {
        let mut listed = Listed::default();
        let done: HashSet<String> = self.house.store.sealed(self.batch).await?.into_iter().collect();
        self.parts().is_resumed = !done.is_empty();
        let mut planner = Planner::new();
        let mut whole: Vec<PlannedTask> = Vec::new();
        let mut prunings: Vec<Pruning> = Vec::new();
        let mut companions = Companions::default();
        for (number, rule) in self.rules.iter().enumerate() {
            let order = if self.slice.is_some() { Order::ByName } else { Order::AsTheyEnd };
            let options = enumerate::Options { query_limit: self.query_limit, order };
            let mut pruning = if self.prunes { Pruning::of(rule, number) } else { None };
            let listings =
                Listings::of(&rule.source, self.folder, self.client, options, self.context, &self.tallies.0).await;
            let mut listings = match listings {
                Ok(listings) => listings,
                Err(error) => {
                    unsure(&mut pruning, &rule.source);
                    prunings.extend(pruning);
                    self.refuse(rule, error, &mut listed).await?;
                    continue;
                }
            };
            let mut chosen = Chosen::default();
            let mut under_way = FuturesUnordered::new();
            loop {
                if self.context.cancel.is_cancelled() {
                    return Ok(listed);
                }
                while under_way.len() >= AT_ONCE {
                    under_way.next().await.transpose()?;
                }
                let found = {
                    // Polled to completion: dropping the future would lose a listing.
                    let mut next = std::pin::pin!(listings.next());
                    loop {
                        tokio::select! {
                            found = &mut next => break found,
                            Some(result) = under_way.next() => result?,
                        }
                    }
                };
                match found {
                    Ok(None) => break,
                    Ok(Some(Offer { found: Found::Unlisted(unlisted), .. })) => {
                        unsure(&mut pruning, &unlisted.repository);
                        chosen.missed();
                        self.note(unlisted.repository, &unlisted.error).await?;
                    }
                    Ok(Some(Offer { found: Found::Listed(listing), part })) => {
                        let key = format!("{number} {}/{}", listing.registry, listing.repository);
                        let now = self.house.clock.now();
                        // Planned even if already in the ledger, to detect later collisions.
                        let plan = planner.plan(number, rule, part.as_deref(), &listing, now);
                        chosen.count(&listing, &plan);
                        if let Some(pruning) = &mut pruning {
                            let rule = (rule, part.as_deref());
                            pruning.look(&*self.house.store, rule, &listing, now, true).await?;
                        }
                        if let Some(error) = &plan.refused {
                            if let Some(pruning) = &mut pruning {
                                pruning.refuse(error.to_string());
                            }
                            let repository = format!("{}/{}", listing.registry, listing.repository);
                            self.note(self.of_rule(rule, repository), error).await?;
                        }
                        if self.slice.is_some() {
                            whole.extend(plan.tasks);
                            companions.add(plan.companions);
                            for failed in plan.failed {
                                self.note(failed.source.to_string(), &failed.error).await?;
                            }
                        } else if !done.contains(&key) {
                            if plan.tasks.iter().any(|task| task.in_doubt) {
                                // Tasks planned before must be in the ledger before it is queried.
                                while let Some(result) = under_way.next().await {
                                    result?;
                                }
                            }
                            under_way.push(self.seal(key, now, rule, number, plan));
                        }
                    }
                    Err(error) => {
                        unsure(&mut pruning, &rule.source);
                        chosen.missed();
                        if !error.is_cancelled() {
                            self.refuse(rule, error, &mut listed).await?;
                        }
                        break;
                    }
                }
            }
            while let Some(result) = under_way.next().await {
                result?;
            }
            prunings.extend(pruning);
            if let Some(empty) = chosen.empty(rule, number) {
                self.context.warn(warning(rule, &empty));
                self.house.store.note_empty_rule(self.batch, empty).await?;
            }
        }
        if self.context.cancel.is_cancelled() {
            return Ok(listed);
        }
        if let Some(slice) = self.slice {
            self.seal_slice(whole, slice, &companions).await?;
        }
        let requests = Requests { source: self.tallies.0.read().requests, target: self.tallies.1.read().requests };
        self.house.store.spend(self.batch, Spent { requests, ..Spent::default() }).await?;
        self.house.store.seal_all(self.batch).await?;
        self.more.notify_one();
        listed.prunings = prunings;
        Ok(listed)
    }

    async fn seal(&self, key: String, listed_at: Timestamp, rule: &Rule, number: usize, plan: Plan) -> Result<()> {
        // Keeps the memory reserved until the tasks are written.
        let _memory = plan.memory;
        let mut homes = Homes { folder: self.folder, source: source_end(rule, self.folder), made: HashMap::new() };
        let taken = self.taken(&plan.tasks, &mut homes).await?;
        let mut tasks = Vec::with_capacity(plan.tasks.len());
        let mut failed = plan.failed;
        for task in plan.tasks {
            let planned = homes.planned(&task)?;
            match taken.get(&planned.target).filter(|_| task.in_doubt) {
                None => tasks.push(planned),
                // Selected by two rules: one task.
                Some(source) if *source == planned.source => {}
                // Read from the newer location of the preset.
                Some(source) if is_of_same_preset(rule, &source.home) => {}
                Some(source) => failed.push(Failed::collision(task.source, &task.target, &source.to_string())),
            }
        }
        let mut tasks = self.settler.settle(tasks, &plan.companions).await?;
        for failed in failed {
            match homes.failed(number, &failed) {
                Some(planned) => tasks.push((planned, Some(Verdict::Failed(Failure::of(&failed.error, 1))))),
                // A target without a valid name cannot be in the plan.
                None => self.note(failed.source.to_string(), &failed.error).await?,
            }
        }
        self.append(key, listed_at, tasks).await
    }

    async fn seal_slice(&self, whole: Vec<PlannedTask>, slice: Slice, companions: &Companions) -> Result<()> {
        let (tasks, failed) = settle(whole, self.rules);
        for failed in failed {
            self.note(failed.source.to_string(), &failed.error).await?;
        }
        let now = self.house.clock.now();
        let tasks = cut(tasks, slice);
        for (part, tasks) in tasks.chunks(SLICE_PART).enumerate() {
            let mut planned = Vec::with_capacity(tasks.len());
            for task in tasks {
                let source = source_end(&self.rules[task.rule], self.folder);
                planned.push(Homes { folder: self.folder, source, made: HashMap::new() }.planned(task)?);
            }
            let planned = self.settler.settle(planned, companions).await?;
            self.append(format!("slice {part}"), now, planned).await?;
        }
        Ok(())
    }

    async fn append(&self, key: String, listed_at: Timestamp, tasks: Vec<(Planned, Option<Verdict>)>) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let homes = tasks.iter().map(|(planned, _)| planned.target.home.clone()).collect();
        let number = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        match self.house.store.append(self.batch, Sealed { key, listed_at, tasks }).await? {
            Appended::At(first) => self.parts().note(first, homes, number),
            // Retry after a lost response: the range is unknown.
            Appended::Already => self.parts().is_resumed = true,
            // Cancelled by another process: stop listing.
            Appended::Stopped(_) => self.context.cancel.cancel(),
        }
        self.more.notify_one();
        Ok(())
    }

    /// Returns the uncertain target tags that already have a task, with its source.
    async fn taken(&self, tasks: &[PlannedTask], homes: &mut Homes<'_>) -> Result<HashMap<Place, Place>> {
        let mut taken = HashMap::new();
        let mut in_doubt = HashSet::new();
        for task in tasks.iter().filter(|task| task.in_doubt) {
            in_doubt.insert(homes.target(&task.target)?.home);
        }
        if in_doubt.is_empty() {
            return Ok(taken);
        }
        let parts = self.parts().of(&in_doubt);
        for Range { start: mut from, end } in parts {
            while from < end {
                let limit = (end - from).min(1000) as usize;
                let rows = self.house.store.tasks(self.batch, None, from, limit).await?;
                let Some(last) = rows.last() else { break };
                from = last.task.index + 1;
                let planned = rows.into_iter().map(|row| row.task.planned);
                let to_those = planned.filter(|planned| in_doubt.contains(&planned.target.home));
                taken.extend(to_those.map(|planned| (planned.target, planned.source)));
            }
        }
        Ok(taken)
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the rule's line if several rules read the same source, because each has a problem of its own.
    fn of_rule(&self, rule: &Rule, repository: String) -> String {
        let alike = self.rules.iter().filter(|other| other.source.to_string() == rule.source.to_string()).count();
        if alike > 1 { format!("{repository} (by the rule in line {})", rule.line) } else { repository }
    }

    async fn note(&self, repository: String, error: &Error) -> Result<()> {
        let words = match error.advice() {
            Some(advice) => format!("{error} ({advice})"),
            None => error.to_string(),
        };
        self.context.warn(&words);
        let unlisted = Unlisted { repository, class: error.class(), error: words };
        self.house.store.note_unlisted(self.batch, unlisted).await
    }

    /// Records a rule of which nothing could be listed.
    async fn refuse(&self, rule: &Rule, error: Error, listed: &mut Listed) -> Result<()> {
        self.note(rule.source.to_string(), &error).await?;
        listed.refused.push(error);
        Ok(())
    }
}

/// Blocks pruning by a rule whose listing is incomplete.
fn unsure(pruning: &mut Option<Pruning>, what: &dyn std::fmt::Display) {
    if let Some(pruning) = pruning {
        pruning.refuse(format!("{what} could not be listed"));
    }
}

/// Returns whether the rule's preset reads a repository.
fn is_of_same_preset(rule: &Rule, home: &Home) -> bool {
    home.registry().is_some_and(|(registry, path)| is_of_preset(&rule.source, registry, path.as_str()))
}

/// Returns the path of the layout that a rule reads.
fn source_end(rule: &Rule, folder: &Path) -> Option<PathBuf> {
    match &rule.source {
        Source::Layout(path) => Some(absolute(&folder.join(path))),
        Source::Repositories(_) | Source::Preset(_) => None,
    }
}

/// Returns one path for a directory however it is written, so that the same layout is the same endpoint. It need not
/// exist.
fn absolute(path: &Path) -> PathBuf {
    let canonical = std::fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => Err(error),
    });
    canonical.or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Creates locators for planned tasks; tasks of one repository share its locator.
struct Homes<'a> {
    folder: &'a Path,
    source: Option<PathBuf>,
    made: HashMap<(String, String), Arc<Home>>,
}

impl Homes<'_> {
    fn planned(&mut self, task: &PlannedTask) -> Result<Planned> {
        Ok(Planned {
            rule: task.rule as u32,
            source: self.source(&task.source)?,
            digest: task.digest.clone(),
            target: self.target(&task.target)?,
            company: task.company,
        })
    }

    fn source(&mut self, source: &SourceTag) -> Result<Place> {
        let (end, path) = match &self.source {
            None => (End::Registry(source.registry.clone()), source.repository.to_string()),
            Some(folder) => (layout(folder)?, format!("{}/{}", source.registry, source.repository)),
        };
        Ok(Place { home: self.home(end, &path)?, tag: source.tag.clone() })
    }

    fn target(&mut self, target: &Target) -> Result<Place> {
        match target {
            Target::Registry(name) => {
                let home = self.home(End::Registry(name.registry.clone()), name.repository.as_str())?;
                Ok(Place { home, tag: name.tag.clone() })
            }
            Target::Layout { folder, name, tag } => {
                let end = layout(&absolute(&self.folder.join(folder)))?;
                Ok(Place { home: self.home(end, name)?, tag: tag.clone() })
            }
        }
    }

    /// Returns the task of a planning failure, if its target has a valid name.
    fn failed(&mut self, number: usize, failed: &Failed) -> Option<Planned> {
        let reference: imgsync_common::image::Reference = failed.target.parse().ok()?;
        let home = self.home(End::Registry(reference.registry.clone()), reference.repository.as_str()).ok()?;
        let target = Place { home, tag: reference.tag? };
        let source = self.source(&failed.source).ok()?;
        Some(Planned { rule: number as u32, source, digest: None, target, company: Company::default() })
    }

    fn home(&mut self, end: End, path: &str) -> Result<Arc<Home>> {
        let key = (end.to_string(), path.to_owned());
        if let Some(home) = self.made.get(&key) {
            return Ok(home.clone());
        }
        let home = Home::new(end, path)
            .map_err(|error| Error::new(Class::Invalid, format!("naming {path}"), error.to_string()))?;
        let home = Arc::new(home);
        self.made.insert(key, home.clone());
        Ok(home)
    }
}

fn layout(folder: &Path) -> Result<End> {
    End::layout(folder).ok_or_else(|| {
        let tried = format!("using the layout {}", folder.display());
        Error::new(Class::Invalid, tried, "its path is not text that can be written down")
    })
}
