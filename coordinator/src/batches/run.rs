//! A batch from its rules to its end: list and seal, feed, watch; and in one process, work.

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

/// How often the ledger is asked whether the batch has ended, or was stopped by someone else.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The name of `imgsync run`, and of other commands that run one batch, in leases.
pub const RUN_ROLE: &str = "run";
/// The name of `imgsync serve` in leases.
pub const SERVE_ROLE: &str = "serve";

/// How a batch is run.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// What reports call the batch, in place of what the rules copy.
    pub name: Option<String>,
    /// Ask everything, and push what is there already.
    pub force: bool,
    /// Compare and remember; copy nothing.
    pub prime: bool,
    /// Compare all that there is, and copy nothing; whether all bytes are read.
    pub verify: Option<bool>,
    /// The original's folder of manifests, as a hint of what was synced.
    pub manifests: Option<PathBuf>,
    /// A part of the sorted whole.
    pub slice: Option<Slice>,
    /// How urgent all of it is, in place of what each rule says.
    pub priority: Option<Priority>,
    /// Repositories that are listed at a time.
    pub query_limit: usize,
    /// Tasks at a time.
    pub concurrency: usize,
    /// Tries of a task that fails in passing.
    pub attempts: u32,
    /// What an image is given at the least, and whether that is all it gets.
    pub time: (Duration, bool),
    /// How long running tasks may go on after the first signal.
    pub drain: Duration,
    /// Whether to leave a batch to others once it is listed: who serves feeds it, and workers do it.
    pub detach: bool,
    /// How the batch is looked after.
    pub care: Care,
}

/// What a run works with.
pub struct Run<'a> {
    /// Queue and store.
    pub house: &'a House,
    /// The rules.
    pub config: &'a Config,
    /// Where relative paths of the configuration begin.
    pub folder: &'a Path,
    /// Registries.
    pub client: Client,
    /// Copies.
    pub copier: Copier,
    /// How.
    pub settings: RunSettings,
    /// What this process is: [`RUN_ROLE`] or [`SERVE_ROLE`].
    pub role: &'static str,
    /// Who is told.
    pub events: Events,
    /// The first signal: takes no more, and what runs may end.
    pub drain: CancellationToken,
    /// The second: stops at once.
    pub abort: CancellationToken,
}

/// A batch that was made, and is to be listed.
#[derive(Debug)]
pub struct Made {
    /// Its id.
    pub id: BatchId,
    options: Option<Options>,
    listing: Option<ListingLease>,
    /// The right to run tasks with the store, where one process has it at a time.
    pub lock: Option<RunLock>,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunEnd {
    /// The batch as it stands.
    pub batch: Batch,
    /// Whether it was interrupted, and can be resumed.
    pub interrupted: bool,
    /// Rules of which nothing could be listed.
    pub refused: Vec<Error>,
}

impl Run<'_> {
    /// Asks for the turn to make a batch of the rules. `say` is told what is waited for.
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

    /// Makes the batch, which is to be listed next. It is this process's to list from the moment on in which it is there.
    pub async fn make(&self, mut turn: Turn, rules: Digest, options: Options) -> Result<Made> {
        let made = self.make_in(&mut turn, rules, options).await;
        turn.end().await;
        made
    }

    async fn make_in(&self, turn: &mut Turn, rules: Digest, options: Options) -> Result<Made> {
        let (store, id) = (&self.house.store, self.house.new_batch_id().await?);
        let batch = NewBatch { id, rules, options: options.encode(), supersedes: turn.supersedes };
        if turn.awaits_lock {
            // The batch that it supersedes is stopped by that, and then its process ends.
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

    /// Lists a batch that was made, and runs it.
    pub async fn list_made(&self, made: Made) -> Result<RunEnd> {
        let Made { id, options, listing, .. } = made;
        self.go(id, options, listing).await
    }

    /// The options of a batch that compares again what another one has copied, or found unchanged.
    pub fn verification_options(&self, of: &Batch) -> Result<Options> {
        let before = Options::decode(&of.options, &format!("batch {}", of.id))?;
        // Of a configuration that has other rules by now, nothing follows for these.
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

    /// Compares again what another batch has copied, or found unchanged, in a batch that was made for it.
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
            // What a listing said then says nothing now.
            let planned = |row: TaskRow| (Planned { digest: None, ..row.task.planned }, None);
            let tasks: Vec<_> = rows.into_iter().filter(is_there).map(planned).collect();
            if !tasks.is_empty() {
                store.append(id, Sealed { key, listed_at: self.house.clock.now(), tasks }).await?;
            }
        }
        store.seal_all(id).await?;
        self.go(id, None, listing).await
    }

    /// What tells batches of these rules from others.
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

    /// Goes on with a batch that was left unfinished, or whose failures were requeued.
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
            // Whoever ran it before is gone, and so is its queue.
            self.house.store.sweep(id, Sweep::Everything).await?;
        }
        if batch.control == Control::Paused && !self.settings.detach {
            self.house.store.resume(id).await?;
        }
        self.go(id, options, listing).await
    }

    /// Runs a batch: with options, it is to be listed first.
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
                // Workers do.
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
                        // Without the ledger there is nothing more to do.
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
        // After the copies, unless those are left to others: what is removed is none of them.
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

    /// The one worker where all is done in this process.
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

    /// Under which name this process leads the batch.
    fn name(&self, id: BatchId) -> String {
        format!("{} {id} on {}", self.role, super::coordinator_name())
    }

    async fn list(&self, batch: BatchId, options: Options, context: &Context, more: &Notify) -> Result<Listed> {
        let tallies = (Tally::new(), Tally::new());
        // A part of the whole, or what only compares, removes nothing.
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

    /// Returns when the batch has ended, or when the work is over for another reason.
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

    /// What a batch of the rules is made with.
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

    /// The names of the credentials that are used here, of the registries that the rules name.
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
            // What cannot be found out here is left to who runs the tasks.
            if let Ok(Some(user)) = self.client.user_of(&registry).await {
                accounts.insert(registry.to_string(), user);
            }
        }
        accounts
    }
}

/// A batch that was there a moment ago.
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

/// The identity of a batch that copies by these rules, or by one slice of them.
pub fn fingerprint(config: &Config, slice: Option<Slice>) -> Digest {
    identity(config, slice, None)
}

fn identity(config: &Config, slice: Option<Slice>, verify: Option<bool>) -> Digest {
    let slice = slice.map(|slice| (slice.number.get(), slice.size.get()));
    batch_identity(&config.rules, Purpose { slice, verify })
}

/// A copier for many tasks, which shares with later runs what it learns of blobs.
pub fn copier(house: &House, client: &Client, limits: imgsync_worker::copy::Limits) -> Copier {
    Copier::new(client.clone(), limits).with_index(house.store.clone())
}
