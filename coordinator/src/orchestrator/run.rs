//! A batch from its rules to its end: list the sources, lead, wait; embedded, also run the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use imgsync_config::{BatchPurpose, Config, IfRunning, Referrers, Rule, batch_identity};
use imgsync_model::batch::{BatchId, BatchOptions, Priority, PushedRepository, RuleOptions, VerifyOptions};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::event::Event;
use imgsync_registry::{Client, Context, TrafficCounters};
use imgsync_store::{Batch, BatchState, ReclaimScope};
use imgsync_worker::copy::Copier;
use imgsync_worker::runner::{ArchiveTargets, Shutdown};
use imgsync_worker::task_events::TaskEvents;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, StartPermit};
use super::archive_writer::ArchiveWriter;
use super::backend::Backend;
use super::batch_creation::{BatchCreator, CreatedBatch, batch_lost};
use super::leader::{Leader, ReclaimPolicy, cancel_tampered_batch};
use super::listing_lease::ListingLease;
use super::local_worker::LocalWorker;
use super::plan::Slice;
use super::plan_builder::{LaggingPushes, ListingSummary, PlanBuilder};
use super::plan_source::{PlanSource, PlanWatch, lost_completion_warning, plan_lost, plan_verification};
use super::prune_plan::PrunePlan;
use super::pruner::Pruner;
use super::rule_options::rule_options;
use super::unchanged_filter::UnchangedFilter;
use crate::images::named_registries;
use crate::presets::source_selectors;

/// Interval between checks whether the batch has ended or was cancelled by another process.
const BATCH_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often a batch that the store loses is created again.
const MAX_RECREATIONS: u32 = 3;

/// Role in lease holder names of `imgsync run` and other commands that run one batch.
pub const RUN_ROLE: &str = "run";
/// Role in lease holder names of `imgsync serve`.
pub const SERVE_ROLE: &str = "serve";

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Title of the batch in reports, in place of the names of its rules.
    pub name: Option<String>,
    /// Whether text reports have the lines of imgsync 2.1.
    pub legacy_report: bool,
    /// Skip the digest cache, and push even what the target has.
    pub force: bool,
    /// Compare and fill the digest cache; copy nothing.
    pub prime: bool,
    /// Compare both endpoints and copy nothing; `true` reads all bytes.
    pub verify: Option<bool>,
    /// Manifest directory of imgsync 2.1, imported as a hint of what the targets have.
    pub manifests: Option<PathBuf>,
    /// Slice of the sorted plan.
    pub slice: Option<Slice>,
    /// The pushes that the batch is limited to.
    pub pushed: Option<Vec<PushedRepository>>,
    /// Receives the pushes whose tags do not show yet what was pushed.
    pub lagging_pushes: LaggingPushes,
    /// Priority of all tasks, in place of each rule's.
    pub priority: Option<Priority>,
    /// Maximum number of repositories listed concurrently.
    pub query_limit: usize,
    /// Maximum number of concurrent tasks.
    pub concurrency: usize,
    /// Maximum attempts of a task that fails with a transient error.
    pub attempts: u32,
    /// Minimum timeout of an image, and whether that is also the maximum.
    pub timeout: (Duration, bool),
    /// How long running tasks may continue after the first signal.
    pub drain: Duration,
    /// Whether to return once the batch is listed: `imgsync serve` leads it, and workers run it.
    pub detach: bool,
    /// Policy for reclaiming lost tasks.
    pub reclaim_policy: ReclaimPolicy,
}

/// Dependencies and settings of a run.
pub struct Run<'a> {
    /// Queue and store.
    pub backend: &'a Backend,
    /// Configuration with the rules.
    pub config: &'a Config,
    /// Base directory of relative paths in the configuration.
    pub folder: &'a Path,
    /// Registry client.
    pub client: Client,
    /// Copies images.
    pub copier: Copier,
    /// Settings of the run.
    pub settings: RunSettings,
    /// Role of this process: [`RUN_ROLE`] or [`SERVE_ROLE`].
    pub role: &'static str,
    /// Receives events.
    pub events: TaskEvents,
    /// Cancelled by the first signal: stops taking tasks and lets running ones finish.
    pub drain: CancellationToken,
    /// Cancelled by the second signal: aborts.
    pub abort: CancellationToken,
}

/// Result of a run.
#[derive(Debug)]
pub struct RunResult {
    /// Current state of the batch.
    pub batch: Batch,
    /// Whether the run was interrupted and can be resumed.
    pub interrupted: bool,
    /// Errors of the rules of which nothing could be listed.
    pub refused: Vec<Error>,
}

impl Run<'_> {
    /// Prepares the admission of a batch of the rules. `on_notice` receives messages on what it waits for.
    pub fn admission<'b>(
        &'b self,
        if_running: IfRunning,
        options: &'b BatchOptions,
        rules_digest: &'b (dyn Fn(Option<Slice>) -> Digest + Sync),
        on_notice: &'b (dyn Fn(&str) + Sync),
    ) -> Admission<'b> {
        Admission {
            backend: self.backend,
            rules_digest,
            slice: self.settings.slice,
            options,
            if_running,
            holder: format!("{} on {}", self.role, super::coordinator_name()),
            has_lock: self.role == SERVE_ROLE,
            cancel: &self.drain,
            on_notice,
        }
    }

    /// Creates the batch. This process holds its listing lease from before it is in the store.
    pub async fn create(&self, mut permit: StartPermit, rules: Digest, options: BatchOptions) -> Result<CreatedBatch> {
        let id = self.backend.new_batch_id().await?;
        let made = self.create_with_permit(&mut permit, id, (rules, options)).await;
        permit.release().await;
        made
    }

    /// Creates a batch again that the store has lost, under the same id. Returns its listing lease.
    async fn create_again(&self, id: BatchId, options: &BatchOptions) -> Result<Option<ListingLease>> {
        let (rules, warn) = (|slice| self.rules_digest(slice), |what: &str| self.warn(what));
        // Whoever wanted to start the same rules meanwhile did not see it.
        let admitted = self.admission(IfRunning::Fail, options, &rules, &warn).try_admit().await?;
        let mut permit = admitted.map_err(|obstacle| {
            let error = batch_lost(id);
            Error::new(error.kind(), error.operation(), format!("{}, and {}", error.message(), obstacle.describe()))
                .with_hint("`imgsync batch list` shows all batches")
        })?;
        self.warn(&format!(
            "the store no longer has batch {id}: it was emptied, or has lost its latest writes, as after a failover; \
             creating it again"
        ));
        let made = self.create_with_permit(&mut permit, id, (rules(self.settings.slice), options.clone())).await;
        permit.release().await;
        Ok(made?.listing_lease)
    }

    fn warn(&self, message: &str) {
        self.events.emit(Event::Warning { message: message.to_owned() });
    }

    async fn create_with_permit(
        &self,
        permit: &mut StartPermit,
        id: BatchId,
        batch: (Digest, BatchOptions),
    ) -> Result<CreatedBatch> {
        let creator =
            BatchCreator { backend: self.backend, holder_name: &|id| self.holder_name(id), cancel: &self.drain };
        creator.create(permit, id, batch).await
    }

    /// Lists a created batch, and runs it. If the store loses the batch, creates it again.
    pub async fn list_and_run(&self, made: CreatedBatch) -> Result<RunResult> {
        let CreatedBatch { id, options, mut listing_lease, lock: _lock } = made;
        let Some(options) = options else { return self.execute(id, PlanSource::Complete, listing_lease).await };
        let mut losses = 0;
        loop {
            let result = self.execute(id, PlanSource::Rules(options.clone()), listing_lease.take()).await;
            let is_lost = self.backend.is_cluster()
                && !self.drain.is_cancelled()
                && matches!(&result, Err(error) if error.kind() == ErrorKind::NotFound)
                && self.backend.store.batch(id).await?.is_none();
            losses += u32::from(is_lost);
            if !is_lost || losses > MAX_RECREATIONS {
                return result;
            }
            listing_lease = self.create_again(id, &options).await?;
        }
    }

    /// Returns the options of a batch that verifies what `of` has copied or found unchanged.
    pub fn verification_options(&self, of: &Batch) -> Result<BatchOptions> {
        let before = BatchOptions::decode(&of.options, &format!("batch {}", of.id))?;
        // If the configuration has other rules now, their settings do not apply.
        let is_ours = of.rules == fingerprint(self.config, None);
        let mut verify = self.verification().unwrap_or_default();
        verify.referrers.retain(|_| is_ours);
        Ok(BatchOptions {
            title: format!("verification of batch {}", of.id),
            force: false,
            prime: false,
            legacy_report: false,
            verify: Some(verify),
            timeout_seconds: self.settings.timeout.0.as_secs().max(1),
            timeout_is_exact: self.settings.timeout.1,
            ..before
        })
    }

    /// Verifies what the batch `of` has copied or found unchanged, in a batch created for that.
    pub async fn verify(&self, made: CreatedBatch, of: &Batch) -> Result<RunResult> {
        let CreatedBatch { id, listing_lease, .. } = made;
        self.execute(id, PlanSource::Verification(of), listing_lease).await
    }

    /// Returns the identity of a batch of these rules.
    pub fn rules_digest(&self, slice: Option<Slice>) -> Digest {
        self.identity(slice, self.settings.pushed.is_some())
    }

    fn identity(&self, slice: Option<Slice>, pushed: bool) -> Digest {
        let purpose = BatchPurpose { slice: slice.map(slice_numbers), verify: self.settings.verify, pushed };
        rules_identity(self.config, purpose)
    }

    fn verification(&self) -> Option<VerifyOptions> {
        let of = |rule: &Rule| match &rule.referrers {
            Referrers::All => None,
            Referrers::None => Some(Vec::new()),
            Referrers::Types(types) => Some(types.clone()),
        };
        let referrers = self.config.rules.iter().map(of).collect();
        self.settings.verify.map(|deep| VerifyOptions { deep, referrers })
    }

    /// Resumes a batch that was left unfinished, or whose failures were requeued.
    pub async fn resume(&self, id: BatchId) -> Result<RunResult> {
        let batch = self.load_batch(id).await?;
        let operation = format!("resuming batch {id}");
        if batch.state.is_stopped() {
            let detail = format!("it is {}", batch.state);
            return Err(Error::new(ErrorKind::Invalid, operation, detail)
                .with_hint("run the rules again: images at the target are not copied again"));
        }
        let options = match batch.plan_completed_at {
            Some(_) => None,
            None => {
                // As it was started, which `run --force` or `--name` or a hook may have done.
                let options = BatchOptions::decode(&batch.options, &format!("batch {id}"));
                let is_of_pushes = options.as_ref().is_ok_and(|options| options.pushed.is_some());
                if batch.rules != self.identity(self.settings.slice, is_of_pushes) {
                    let detail = "its listing is incomplete, and the configuration has different rules now";
                    return Err(Error::new(ErrorKind::Invalid, operation, detail)
                        .with_hint("pass the configuration that it was started with (-c), or run the rules again"));
                }
                Some(options?)
            }
        };
        let listing = match &options {
            Some(_) => Some(ListingLease::take_over(self.backend, id, &self.holder_name(id)).await?),
            None => None,
        };
        if !self.backend.is_cluster() && !self.settings.detach {
            // The process that ran it is gone, and so is its queue.
            self.backend.store.reclaim(id, ReclaimScope::Everything).await?;
        }
        if batch.state == BatchState::Paused && !self.settings.detach {
            self.backend.store.resume(id).await?;
        }
        let plan = options.map_or(PlanSource::Complete, PlanSource::Rules);
        self.execute(id, plan, listing).await
    }

    /// Runs a batch, whose plan is made first unless it is complete.
    async fn execute(&self, id: BatchId, source: PlanSource<'_>, mut lease: Option<ListingLease>) -> Result<RunResult> {
        let (plan_changed, plan_watch) = (Notify::new(), PlanWatch::default());
        // One name for all: a store that went back in time may have the first lease again.
        let holder = lease.as_ref().map_or_else(|| self.holder_name(id), |lease| lease.holder().to_owned());
        let over = CancellationToken::new();
        let stop = Shutdown { drain: self.drain.child_token(), abort: self.abort.child_token() };
        let listing =
            Context { cancel: self.drain.child_token(), events: self.events.transfers().clone(), ..Context::default() };
        let list = async {
            loop {
                let is_listed = Arc::new(AtomicBool::new(false));
                let list = self.make_plan(id, &source, &listing, (&plan_changed, &is_listed));
                let listed = match lease.take() {
                    Some(lease) => lease.hold_for(list, is_listed.clone()).await,
                    None => Ok(list.await),
                };
                let listed = match listed {
                    Ok(listed) => listed?,
                    Err(why) => {
                        listing.warn(format!("batch {id}: another process has taken over its listing: {why}"));
                        if self.settings.detach {
                            stop.drain.cancel();
                        }
                        tokio::select! {
                            () = stop.drain.cancelled() => return Ok(ListingSummary::default()),
                            left = ListingLease::acquire_when_left(self.backend, id, &holder) => {
                                lease = Some(left?);
                                continue;
                            }
                        }
                    }
                };
                let is_complete = !listing.cancel.is_cancelled();
                plan_watch.is_complete.store(is_complete, Ordering::Release);
                if self.settings.detach && !(is_complete && self.is_plan_lost(id).await?) {
                    stop.drain.cancel();
                }
                tokio::select! {
                    () = stop.drain.cancelled() => return Ok(listed),
                    () = plan_watch.was_lost.notified() => {}
                }
                plan_watch.is_complete.store(false, Ordering::Release);
                listing.warn(lost_completion_warning(id));
                if let PlanSource::Complete = source {
                    return Err(plan_lost(id));
                }
                lease = Some(ListingLease::acquire(self.backend, id, &holder).await?);
            }
        };
        let list = async {
            let listed = list.await;
            match &listed {
                // The store has lost the batch, which may be created again.
                Err(error) if error.kind() == ErrorKind::NotFound => stop.drain.cancel(),
                Err(_) => self.drain.cancel(),
                Ok(_) => {}
            }
            listed
        };
        let work = async {
            match self.backend.is_cluster() || self.settings.detach {
                // Workers run the tasks.
                true => stop.drain.cancelled().await,
                false => {
                    let (archives, worker_over) = (ArchiveTargets::default(), CancellationToken::new());
                    let worker = self.local_worker(id, &archives);
                    let copy = async {
                        worker.run(&stop).await;
                        worker_over.cancel();
                    };
                    let writer = self.archive_writer(id, &archives, &stop.abort);
                    tokio::join!(copy, writer.run(&worker_over));
                }
            }
            over.cancel();
        };
        let watch = async {
            let result = self.wait_for_end(id, &plan_watch, &over).await;
            listing.cancel.cancel();
            stop.drain.cancel();
            result
        };
        let limit = async {
            stop.drain.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(self.settings.drain) => stop.abort.cancel(),
                () = over.cancelled() => {}
            }
        };
        let lead = async {
            if self.settings.detach {
                return Ok(());
            }
            let leader =
                Leader::new(self.backend, &self.holder_name(id), self.settings.reclaim_policy, self.events.clone());
            let (lead_result, ()) = tokio::join!(
                async {
                    let lead_result = leader.lead_batch(id, &plan_changed, &stop.drain).await;
                    if lead_result.is_err() {
                        // Nothing can be done without the ledger.
                        stop.drain.cancel();
                    }
                    lead_result
                },
                leader.requeue_dead_letters(&stop.drain)
            );
            lead_result
        };
        let (listed, (), watched, (), lead_result) = tokio::join!(list, work, watch, limit, lead);
        let went = listed.and_then(|listed| watched.and(lead_result).map(|()| listed));
        if let Err(error) = &went {
            cancel_tampered_batch(self.backend, id, error).await;
        }
        let Some(batch) = self.backend.store.batch(id).await? else { return Err(batch_lost(id)) };
        let ListingSummary { refused, prune_plans } = went?;
        let interrupted = batch.ended_at.is_none();
        if !self.drain.is_cancelled() && batch.state == BatchState::Done {
            self.prune(id, prune_plans).await?;
        }
        Ok(RunResult { batch, interrupted, refused })
    }

    /// Returns whether a plan that was made complete is incomplete.
    async fn is_plan_lost(&self, id: BatchId) -> Result<bool> {
        let batch = self.backend.store.batch(id).await?;
        Ok(batch.is_some_and(|batch| batch.state.is_live() && batch.plan_completed_at.is_none()))
    }

    /// Makes the plan of a batch from its source, and makes it complete.
    async fn make_plan(
        &self,
        id: BatchId,
        source: &PlanSource<'_>,
        context: &Context,
        (plan_changed, is_listed): (&Notify, &AtomicBool),
    ) -> Result<ListingSummary> {
        match source {
            PlanSource::Complete => Ok(ListingSummary::default()),
            PlanSource::Verification(of) => {
                plan_verification(self.backend, id, of).await?;
                plan_changed.notify_one();
                Ok(ListingSummary::default())
            }
            PlanSource::Rules(options) => {
                let mut listed = self.list(id, options.clone(), context, plan_changed).await?;
                is_listed.store(!context.cancel.is_cancelled(), Ordering::Release);
                // Who detaches prunes while it holds the lease: the leader waits for that with its report.
                if self.settings.detach && !self.drain.is_cancelled() {
                    self.prune(id, std::mem::take(&mut listed.prune_plans)).await?;
                }
                Ok(listed)
            }
        }
    }

    /// Deletes what the plans say: after the copies, or beside those of others, because what is pruned is none of them.
    async fn prune(&self, id: BatchId, plans: Vec<PrunePlan>) -> Result<()> {
        let context =
            Context { cancel: self.drain.child_token(), events: self.events.transfers().clone(), ..Context::default() };
        let pruner = Pruner {
            backend: self.backend,
            client: &self.client,
            context: &context,
            rules: &self.config.rules,
            batch: id,
            holder: &self.holder_name(id),
        };
        pruner.run(plans).await
    }

    /// Creates the in-process worker.
    fn local_worker(&self, id: BatchId, archives: &ArchiveTargets) -> LocalWorker {
        LocalWorker {
            backend: self.backend.clone(),
            client: self.client.clone(),
            copier: self.copier.clone(),
            name: format!("{}-{}", std::process::id(), &id.to_string()[..8]),
            slots: self.settings.concurrency,
            attempts: self.settings.attempts,
            monthly_quota: self.config.monthly_quota,
            events: self.events.clone(),
            archives: Some(archives.clone()),
        }
    }

    /// Creates the writer of the archives that the in-process worker collects images for.
    fn archive_writer<'b>(
        &'b self,
        id: BatchId,
        archives: &'b ArchiveTargets,
        abort: &CancellationToken,
    ) -> ArchiveWriter<'b> {
        ArchiveWriter {
            store: &*self.backend.store,
            copier: &self.copier,
            archives,
            batch: id,
            force: self.settings.force,
            retry: self.client.settings().retry,
            events: &self.events,
            context: Context {
                cancel: abort.child_token(),
                events: self.events.transfers().clone(),
                ..Context::default()
            },
        }
    }

    /// Returns the holder name of this process in leases of the batch.
    fn holder_name(&self, id: BatchId) -> String {
        format!("{} {id} on {}", self.role, super::coordinator_name())
    }

    async fn list(
        &self,
        batch: BatchId,
        options: BatchOptions,
        context: &Context,
        plan_changed: &Notify,
    ) -> Result<ListingSummary> {
        let counters = (TrafficCounters::new(), TrafficCounters::new());
        // A part of the rules, or a run that only compares, prunes nothing.
        let is_part = self.settings.slice.is_some() || options.pushed.is_some();
        let prunes = !is_part && !options.prime && options.verify.is_none();
        let pushed = options.pushed.clone();
        let unchanged_filter = UnchangedFilter::new(
            self.backend,
            &self.client,
            context,
            options,
            self.settings.manifests.clone(),
            counters.1.clone(),
        );
        let plan_builder = PlanBuilder {
            backend: self.backend,
            client: &self.client,
            context,
            rules: &self.config.rules,
            folder: self.folder,
            batch,
            slice: self.settings.slice,
            pushed: pushed.as_deref(),
            lagging_pushes: &self.settings.lagging_pushes,
            prunes,
            query_limit: self.settings.query_limit,
            unchanged_filter: &unchanged_filter,
            counters,
            plan_changed,
            plan_index: Mutex::default(),
        };
        plan_builder.run().await
    }

    /// Waits until the batch has ended or `over` is cancelled, and watches over its plan.
    async fn wait_for_end(&self, id: BatchId, plan_watch: &PlanWatch, over: &CancellationToken) -> Result<()> {
        let mut ended = self.backend.store.ended_batches();
        loop {
            // Before the read: what ends after it is seen.
            if let Some(ended) = &mut ended {
                ended.mark_unchanged();
            }
            let was_complete = plan_watch.is_complete.load(Ordering::Acquire);
            let Some(batch) = self.backend.store.batch(id).await? else { return Err(batch_lost(id)) };
            if batch.ended_at.is_some() {
                return Ok(());
            }
            plan_watch.compare(was_complete, &batch);
            let one_ends = async {
                match &mut ended {
                    Some(ended) => _ = ended.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = one_ends => {}
                () = tokio::time::sleep(BATCH_POLL_INTERVAL) => {}
                () = over.cancelled() => return Ok(()),
            }
        }
    }

    async fn load_batch(&self, id: BatchId) -> Result<Batch> {
        self.backend.store.batch(id).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("reading batch {id}"), "it is not in the store")
                .with_hint("`imgsync batch list` shows all batches")
        })
    }

    /// Builds the options of a batch of the rules.
    pub async fn options(&self) -> BatchOptions {
        let (time, timeout_is_exact) = self.settings.timeout;
        BatchOptions {
            title: self.settings.name.clone().unwrap_or_else(|| self.title()),
            rules: self.config.rules.iter().map(|rule| self.rule_options(rule)).collect(),
            force: self.settings.force,
            prime: self.settings.prime,
            verify: self.verification(),
            slice: self.settings.slice.map(Into::into),
            pushed: self.settings.pushed.clone(),
            timeout_seconds: time.as_secs().max(1),
            timeout_is_exact,
            legacy_report: self.settings.legacy_report,
            accounts: self.accounts().await,
        }
    }

    fn rule_options(&self, rule: &Rule) -> RuleOptions {
        RuleOptions { priority: self.settings.priority.unwrap_or(rule.priority), ..rule_options(rule) }
    }

    fn title(&self) -> String {
        let title = crate::report::rules_title(self.config);
        if self.settings.pushed.is_some() {
            return format!("pushes to {title}");
        }
        if self.settings.verify.is_some() { format!("verification of {title}") } else { title }
    }

    /// Returns the names of the credentials used for the registries of the rules.
    async fn accounts(&self) -> BTreeMap<String, String> {
        let mut accounts = BTreeMap::new();
        let rules = self.config.rules.iter();
        let sources = rules.clone().flat_map(|rule| source_selectors(&rule.source).unwrap_or_default());
        let mut named = BTreeSet::new();
        for rule in rules.clone() {
            named.extend(named_registries(&rule.source, self.folder).await);
        }
        let sources = sources.map(|part| part.pattern.registry().clone()).chain(named);
        let targets = rules.flat_map(|rule| &rule.to).filter_map(|to| Some(to.registry()?.registry.clone()));
        for registry in sources.chain(targets).collect::<BTreeSet<_>>() {
            // The process that runs the tasks resolves what cannot be resolved here.
            if let Ok(Some(user)) = self.client.find_username(&registry).await {
                accounts.insert(registry.to_string(), user);
            }
        }
        accounts
    }
}

/// Returns the identity of a batch that copies by these rules, or by one slice of them.
pub fn fingerprint(config: &Config, slice: Option<Slice>) -> Digest {
    rules_identity(config, BatchPurpose { slice: slice.map(slice_numbers), ..BatchPurpose::default() })
}

/// Returns the identity of a batch that copies what was pushed, as these rules say.
pub fn pushes_fingerprint(config: &Config) -> Digest {
    rules_identity(config, BatchPurpose { pushed: true, ..BatchPurpose::default() })
}

fn rules_identity(config: &Config, purpose: BatchPurpose) -> Digest {
    batch_identity(&config.rules, purpose)
}

fn slice_numbers(slice: Slice) -> (usize, usize) {
    (slice.number.get(), slice.size.get())
}

/// Builds a copier that shares its knowledge of blobs with later runs.
pub fn build_copier(backend: &Backend, client: &Client, limits: imgsync_worker::copy::CopyLimits) -> Copier {
    Copier::new(client.clone(), limits).with_index(backend.store.clone())
}
