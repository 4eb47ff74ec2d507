//! A batch from its rules to its end: list the sources, lead, wait; embedded, also run the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use imgsync_common::batch::{BatchId, Options, Planned, Priority, RuleOptions, TaskState, Verify};
use imgsync_common::config::{Config, Destination, IfRunning, Purpose, Referrers, Rule, batch_identity};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::image::Digest;
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_common::store::{Batch, Control, LockUse, NewBatch, RunLock, Sealed, Sweep, TaskRow};
use imgsync_worker::copy::Copier;
use imgsync_worker::runner::Stop;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Turn};
use super::hands::Hands;
use super::house::House;
use super::lead::{Care, Leader, stop_altered};
use super::listing_lease::ListingLease;
use super::plan::Slice;
use super::remove::Remover;
use super::seal::{Listed, Sealing};
use super::settle::Settler;
use crate::presets::parts;

/// Interval between checks whether the batch has ended or was cancelled by another process.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Role in lease holder names of `imgsync run` and other commands that run one batch.
pub const RUN_ROLE: &str = "run";
/// Role in lease holder names of `imgsync serve`.
pub const SERVE_ROLE: &str = "serve";

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Title of the batch in reports, in place of the names of its rules.
    pub name: Option<String>,
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
    /// Priority of all tasks, in place of each rule's.
    pub priority: Option<Priority>,
    /// Maximum number of repositories listed concurrently.
    pub query_limit: usize,
    /// Maximum number of concurrent tasks.
    pub concurrency: usize,
    /// Maximum attempts of a task that fails with a transient error.
    pub attempts: u32,
    /// Minimum timeout of an image, and whether that is also the maximum.
    pub time: (Duration, bool),
    /// How long running tasks may continue after the first signal.
    pub drain: Duration,
    /// Whether to return once the batch is listed: `imgsync serve` leads it, and workers run it.
    pub detach: bool,
    /// Policy for reclaiming lost tasks.
    pub care: Care,
}

/// Dependencies and settings of a run.
pub struct Run<'a> {
    /// Queue and store.
    pub house: &'a House,
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
    pub events: Events,
    /// Cancelled by the first signal: stops taking tasks and lets running ones finish.
    pub drain: CancellationToken,
    /// Cancelled by the second signal: aborts.
    pub abort: CancellationToken,
}

/// A batch that was created and has to be listed.
#[derive(Debug)]
pub struct Made {
    /// Batch id.
    pub id: BatchId,
    options: Option<Options>,
    listing: Option<ListingLease>,
    /// Run lock of an embedded store.
    pub lock: Option<RunLock>,
}

/// Result of a run.
#[derive(Debug)]
pub struct RunEnd {
    /// Current state of the batch.
    pub batch: Batch,
    /// Whether the run was interrupted and can be resumed.
    pub interrupted: bool,
    /// Errors of the rules of which nothing could be listed.
    pub refused: Vec<Error>,
}

impl Run<'_> {
    /// Prepares the admission of a batch of the rules. `say` receives messages on what it waits for.
    pub fn admission<'b>(
        &'b self,
        if_running: IfRunning,
        options: &'b Options,
        rules: &'b (dyn Fn(Option<Slice>) -> Digest + Sync),
        say: &'b (dyn Fn(&str) + Sync),
    ) -> Admission<'b> {
        Admission {
            house: self.house,
            rules,
            slice: self.settings.slice,
            options,
            if_running,
            name: format!("{} on {}", self.role, super::coordinator_name()),
            has_lock: self.role == SERVE_ROLE,
            cancel: &self.drain,
            say,
        }
    }

    /// Creates the batch. This process holds its listing lease from before it is in the store.
    pub async fn make(&self, mut turn: Turn, rules: Digest, options: Options) -> Result<Made> {
        let made = self.make_in(&mut turn, rules, options).await;
        turn.end().await;
        made
    }

    async fn make_in(&self, turn: &mut Turn, rules: Digest, options: Options) -> Result<Made> {
        let (store, id) = (&self.house.store, self.house.new_batch_id().await?);
        let batch = NewBatch { id, rules, options: options.encode(), supersedes: turn.supersedes };
        if turn.awaits_lock {
            // Creating the batch cancels the superseded one, whose process then ends and releases the lock.
            store.create(batch).await?;
            turn.end().await;
            let lock = tokio::select! {
                lock = self.wait_for_lock() => lock,
                () = self.drain.cancelled() => Err(Error::cancelled(format!("starting batch {id}"))),
            };
            if lock.is_err() {
                store.cancel(id).await?;
            }
            turn.lock = lock?;
            let listing = ListingLease::acquire(self.house, id, &self.name(id)).await?;
            return Ok(Made { id, options: Some(options), listing: Some(listing), lock: turn.lock.take() });
        }
        let listing = ListingLease::acquire(self.house, id, &self.name(id)).await?;
        store.create(batch).await?;
        Ok(Made { id, options: Some(options), listing: Some(listing), lock: turn.lock.take() })
    }

    async fn wait_for_lock(&self) -> Result<Option<RunLock>> {
        loop {
            if let Ok(lock) = self.house.try_lock(LockUse::Run).await? {
                return Ok(lock);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Lists a created batch, and runs it.
    pub async fn list_made(&self, made: Made) -> Result<RunEnd> {
        let Made { id, options, listing, .. } = made;
        self.go(id, options, listing).await
    }

    /// Returns the options of a batch that verifies what `of` has copied or found unchanged.
    pub fn verification_options(&self, of: &Batch) -> Result<Options> {
        let before = Options::decode(&of.options, &format!("batch {}", of.id))?;
        // If the configuration has other rules now, their settings do not apply.
        let is_ours = of.rules == fingerprint(self.config, None);
        let mut verify = self.verification().unwrap_or_default();
        verify.referrers.retain(|_| is_ours);
        Ok(Options {
            title: format!("verification of batch {}", of.id),
            force: false,
            prime: false,
            verify: Some(verify),
            timeout_seconds: self.settings.time.0.as_secs().max(1),
            timeout_is_exact: self.settings.time.1,
            ..before
        })
    }

    /// Verifies what the batch `of` has copied or found unchanged, in a batch created for that.
    pub async fn verify(&self, made: Made, of: &Batch) -> Result<RunEnd> {
        const PAGE: usize = 2_000;
        let (store, Made { id, listing, .. }) = (&self.house.store, made);
        let mut from = 0;
        loop {
            let rows = store.tasks(of.id, None, from, PAGE).await?;
            let Some(last) = rows.last() else { break };
            let key = format!("part {from}");
            from = last.task.index + 1;
            let is_there = |row: &TaskRow| matches!(row.state, TaskState::Copied | TaskState::Unchanged);
            // The digest of the former listing is out of date.
            let planned = |row: TaskRow| (Planned { digest: None, ..row.task.planned }, None);
            let tasks: Vec<_> = rows.into_iter().filter(is_there).map(planned).collect();
            if !tasks.is_empty() {
                store.append(id, Sealed { key, listed_at: self.house.clock.now(), tasks }).await?;
            }
        }
        store.seal_all(id).await?;
        self.go(id, None, listing).await
    }

    /// Returns the identity of a batch of these rules.
    pub fn rules(&self, slice: Option<Slice>) -> Digest {
        identity(self.config, slice, self.settings.verify)
    }

    fn verification(&self) -> Option<Verify> {
        let of = |rule: &Rule| match &rule.referrers {
            Referrers::All => None,
            Referrers::None => Some(Vec::new()),
            Referrers::Types(types) => Some(types.clone()),
        };
        let referrers = self.config.rules.iter().map(of).collect();
        self.settings.verify.map(|deep| Verify { deep, referrers })
    }

    /// Resumes a batch that was left unfinished, or whose failures were requeued.
    pub async fn again(&self, id: BatchId) -> Result<RunEnd> {
        let batch = self.look(id).await?;
        let tried = format!("resuming batch {id}");
        if batch.control.is_stopped() {
            let detail = format!("it is {}", batch.control);
            return Err(Error::new(Class::Invalid, tried, detail)
                .hint("run the rules again: what is there is not copied twice"));
        }
        let options = match batch.sealed_at {
            Some(_) => None,
            None if batch.rules == self.rules(self.settings.slice) => Some(self.options().await),
            None => {
                let detail = "its listing was not finished, and the configuration now has other rules";
                return Err(Error::new(Class::Invalid, tried, detail)
                    .hint("give the configuration that it was run with (-c), or run the rules again"));
            }
        };
        let listing = match &options {
            Some(_) => Some(ListingLease::take_over(self.house, id, &self.name(id)).await?),
            None => None,
        };
        if !self.house.is_cluster() && !self.settings.detach {
            // The process that ran it is gone, and so is its queue.
            self.house.store.sweep(id, Sweep::Everything).await?;
        }
        if batch.control == Control::Paused && !self.settings.detach {
            self.house.store.resume(id).await?;
        }
        self.go(id, options, listing).await
    }

    /// Runs a batch. With options, it is listed first.
    async fn go(&self, id: BatchId, options: Option<Options>, lease: Option<ListingLease>) -> Result<RunEnd> {
        let more = Notify::new();
        let over = CancellationToken::new();
        let stop = Stop { drain: self.drain.child_token(), abort: self.abort.child_token() };
        let listing = Context { cancel: self.drain.child_token(), events: self.events.clone(), ..Context::default() };
        let list = async {
            let listed = match options {
                Some(options) => match lease {
                    Some(lease) => lease.hold_for(self.list(id, options, &listing, &more)).await,
                    None => self.list(id, options, &listing, &more).await,
                },
                None => Ok(Listed::default()),
            };
            if self.settings.detach {
                stop.drain.cancel();
            }
            listed
        };
        let work = async {
            match self.house.is_cluster() || self.settings.detach {
                // Workers run the tasks.
                true => stop.drain.cancelled().await,
                false => self.hands(id).work(&stop).await,
            }
            over.cancel();
        };
        let watch = async {
            let result = self.watch(id, &over).await;
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
            let leader = Leader::new(self.house, &self.name(id), self.settings.care, self.events.clone());
            let (led, ()) = tokio::join!(
                async {
                    let led = leader.lead(id, &more, &stop.drain).await;
                    if led.is_err() {
                        // Nothing can be done without the ledger.
                        stop.drain.cancel();
                    }
                    led
                },
                leader.mind_the_dead(&stop.drain)
            );
            led
        };
        let (listed, (), watched, (), led) = tokio::join!(list, work, watch, limit, lead);
        let went = listed.and_then(|listed| watched.and(led).map(|()| listed));
        if let Err(error) = &went {
            stop_altered(self.house, id, error).await;
        }
        let Some(batch) = self.house.store.batch(id).await? else { return Err(lost(id)) };
        let Listed { refused, prunings } = went?;
        let interrupted = batch.ended_at.is_none();
        // After the copies, unless those are detached: what is pruned is none of them.
        if !self.drain.is_cancelled() && (self.settings.detach || batch.control == Control::Done) {
            let context =
                Context { cancel: self.drain.child_token(), events: self.events.clone(), ..Context::default() };
            let remover = Remover {
                house: self.house,
                client: &self.client,
                context: &context,
                rules: &self.config.rules,
                batch: id,
                holder: &self.name(id),
            };
            remover.run(prunings).await?;
        }
        Ok(RunEnd { batch, interrupted, refused })
    }

    /// Creates the in-process worker.
    fn hands(&self, id: BatchId) -> Hands {
        Hands {
            house: self.house.clone(),
            client: self.client.clone(),
            copier: self.copier.clone(),
            name: format!("{}-{}", std::process::id(), &id.to_string()[..8]),
            slots: self.settings.concurrency,
            attempts: self.settings.attempts,
            traffic: self.config.traffic,
            events: self.events.clone(),
        }
    }

    /// Returns the holder name of this process in leases of the batch.
    fn name(&self, id: BatchId) -> String {
        format!("{} {id} on {}", self.role, super::coordinator_name())
    }

    async fn list(&self, batch: BatchId, options: Options, context: &Context, more: &Notify) -> Result<Listed> {
        let tallies = (Tally::new(), Tally::new());
        // A slice, or a run that only compares, prunes nothing.
        let prunes = self.settings.slice.is_none() && !options.prime && options.verify.is_none();
        let settler = Settler::new(
            self.house,
            &self.client,
            context,
            options,
            self.settings.manifests.clone(),
            tallies.1.clone(),
        );
        let sealing = Sealing {
            house: self.house,
            client: &self.client,
            context,
            rules: &self.config.rules,
            folder: self.folder,
            batch,
            slice: self.settings.slice,
            prunes,
            query_limit: self.settings.query_limit,
            settler: &settler,
            tallies,
            more,
            parts: Mutex::default(),
        };
        let listed = sealing.run().await;
        if listed.is_err() {
            self.drain.cancel();
        }
        listed
    }

    /// Waits until the batch has ended or `over` is cancelled.
    async fn watch(&self, id: BatchId, over: &CancellationToken) -> Result<()> {
        loop {
            let Some(batch) = self.house.store.batch(id).await? else { return Err(lost(id)) };
            if batch.ended_at.is_some() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = over.cancelled() => return Ok(()),
            }
        }
    }

    async fn look(&self, id: BatchId) -> Result<Batch> {
        self.house.store.batch(id).await?.ok_or_else(|| {
            Error::new(Class::NotFound, format!("looking for batch {id}"), "the store does not have it")
                .hint("imgsync batch list shows those that there are")
        })
    }

    /// Builds the options of a batch of the rules.
    pub async fn options(&self) -> Options {
        let (time, timeout_is_exact) = self.settings.time;
        Options {
            title: self.settings.name.clone().unwrap_or_else(|| self.title()),
            rules: self.config.rules.iter().map(|rule| self.rule_options(rule)).collect(),
            force: self.settings.force,
            prime: self.settings.prime,
            verify: self.verification(),
            slice: self.settings.slice.map(Into::into),
            timeout_seconds: time.as_secs().max(1),
            timeout_is_exact,
            accounts: self.accounts().await,
        }
    }

    fn rule_options(&self, rule: &Rule) -> RuleOptions {
        RuleOptions { priority: self.settings.priority.unwrap_or(rule.priority), ..rule_options(rule) }
    }

    fn title(&self) -> String {
        let title = crate::report::title(self.config);
        if self.settings.verify.is_some() { format!("verification of {title}") } else { title }
    }

    /// Returns the names of the credentials used for the registries of the rules.
    async fn accounts(&self) -> BTreeMap<String, String> {
        let mut accounts = BTreeMap::new();
        let rules = self.config.rules.iter();
        let sources = rules.clone().flat_map(|rule| parts(&rule.source).unwrap_or_default());
        let sources = sources.map(|part| part.pattern.registry().clone());
        let targets = rules.flat_map(|rule| &rule.to).filter_map(|to| match to {
            Destination::Registry(base) => Some(base.registry.clone()),
            Destination::Layout(_) => None,
        });
        for registry in sources.chain(targets).collect::<BTreeSet<_>>() {
            // The process that runs the tasks resolves what cannot be resolved here.
            if let Ok(Some(user)) = self.client.user_of(&registry).await {
                accounts.insert(registry.to_string(), user);
            }
        }
        accounts
    }
}

/// Returns the error of a batch that has vanished from the store.
fn lost(id: BatchId) -> Error {
    let detail = "the store has lost it: was it emptied?";
    Error::new(Class::NotFound, format!("watching batch {id}"), detail)
        .hint("run the rules again: what is at the target is not copied twice")
}

pub(super) fn rule_options(rule: &Rule) -> RuleOptions {
    RuleOptions {
        name: rule.title(),
        from: rule.reads(),
        to: rule.writes(),
        platforms: rule.platforms.clone(),
        immutable: rule.immutable.iter().map(ToString::to_string).collect(),
        backup: rule.backup.as_ref().map(ToString::to_string),
        sparse: rule.sparse,
        referrers: rule.referrers.clone(),
        foreign_layers: rule.foreign_layers,
        priority: rule.priority,
        verify_every_seconds: rule.verify_every.as_secs(),
        referrers_every_seconds: rule.referrers_every.as_secs(),
    }
}

/// Returns the identity of a batch that copies by these rules, or by one slice of them.
pub fn fingerprint(config: &Config, slice: Option<Slice>) -> Digest {
    identity(config, slice, None)
}

fn identity(config: &Config, slice: Option<Slice>, verify: Option<bool>) -> Digest {
    let slice = slice.map(|slice| (slice.number.get(), slice.size.get()));
    batch_identity(&config.rules, Purpose { slice, verify })
}

/// Builds a copier that shares its knowledge of blobs with later runs.
pub fn copier(house: &House, client: &Client, limits: imgsync_worker::copy::Limits) -> Copier {
    Copier::new(client.clone(), limits).with_index(house.store.clone())
}
