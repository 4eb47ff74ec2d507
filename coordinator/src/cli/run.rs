//! `imgsync run`: runs the rules of a configuration, in this process or in the cluster.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::config::{Destination, IfRunning, Notify, Rule, Source, verification_identity};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::outage;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, SharedPace};
use imgsync_common::retry::Policy;
use imgsync_common::store::{Batch, Control, leader};
use imgsync_worker::copy::Limits;
use imgsync_worker::runner::Stop;
use imgsync_worker::settings::{DRAIN_LIMIT, LONGEST_SLEEP, SLOT_PATIENCE};

use super::args::{Global, RunArgs};
use super::exit::{self, Exit};
use super::presets::RunCommand;
use super::printer::Printer;
use super::report::Wanted;
use super::settings::Settings;
use super::watch::print_left;
use super::watching::Watching;
use super::{signals, state};
use crate::batches::{
    Admitted, Care, House, Made, Over, RUN_ROLE, Run, RunEnd, RunSettings, SERVE, Slice, coordinator_name, copier,
    living_leader, tidy_provenance, until_over,
};
use crate::notify::{Notifier, tell_once, watch};
use crate::report::{self, Level, Report};

/// Runs the command.
pub(crate) async fn run(args: RunCommand, global: &Global, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let RunCommand { preset, run, target } = args;
    if !preset.is_empty() {
        let sources = preset.into_iter().map(Source::Preset).collect();
        if let Err(error) = target.set_rules(sources, None, &mut settings, printer).await {
            return fail(&error, printer);
        }
    } else if target.is_typed() {
        let hint = "name presets with --preset; what rules of a configuration do, they say themselves";
        printer.error("--to, --naming and --user go with --preset, and there is none", Some(hint));
        return Exit::Usage;
    }
    go(run, &settings, printer).await
}

/// Runs the rules of these settings.
pub(crate) async fn go(args: RunArgs, settings: &Settings, printer: &Printer) -> Exit {
    if args.process_limit.is_some() {
        printer.line("--process-limit is superseded by --concurrency, and does the same");
    }
    if settings.config.rules.is_empty() {
        let hint = "write some in imgsync.yaml, name a file with -c (examples/quickstart.yaml is one), or a preset with --preset";
        printer.error("there are no rules to run", Some(hint));
        return Exit::Usage;
    }
    if args.dry_run {
        return match super::dry_run::run(&args, settings, printer).await {
            Ok(exit) => exit,
            Err(error) => fail(&error, printer),
        };
    }
    match start(&args, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

/// Prints an error that ended a command without counts, and returns the exit code.
pub(crate) fn fail(error: &Error, printer: &Printer) -> Exit {
    printer.failure(error);
    match error.class() {
        // Mostly errors of store or broker: nothing was started.
        Class::Local
        | Class::Denied
        | Class::Insecure
        | Class::BadAnswer
        | Class::ServerError
        | Class::RateLimited
        | Class::TimedOut => Exit::CouldNotStart,
        _ => exit::of_error(error),
    }
}

async fn start(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    // Reports errors of a template before anything is copied.
    let wanted = args.report.resolve(settings)?;
    let notifier = notifier(args, settings, printer)?;
    let house = state::open(settings, args.state.as_ref()).await?;
    if house.is_cluster() {
        refuse_layouts(settings)?;
    }
    if args.detach {
        check_leader(&house).await?;
    }
    let work = Work::new(args, settings, &house, printer)?;
    let (wanted, name) = (&wanted, args.report.report_name.as_deref());
    let mut made = match work.start(None).await? {
        Started::Made(made) => made,
        Started::Joined(id) if args.detach => {
            printer.data(&id.to_string());
            return Ok(Exit::Done);
        }
        Started::Joined(id) => {
            return work.report_joined(id, (wanted, name), args.json, printer).await;
        }
        Started::Left => return Ok(Exit::Interrupted),
    };
    let _lock = made.lock.take();
    let keep = jiff::SignedDuration::try_from(settings.config.keep).unwrap_or(jiff::SignedDuration::MAX);
    if let Ok(before) = house.clock.now().checked_sub(keep) {
        house.store.remove_before(before).await?;
    }
    tidy_provenance(&*house.store, &settings.config, house.clock.now()).await?;
    let id = made.id;
    let ended = work.follow(id, &notifier, async |run| run.list_made(*made).await).await?;
    if args.detach {
        printer.data(&id.to_string());
        if ended.batch.control.is_stopped() {
            printer.error(&format!("batch {id} was {} while it was listed", ended.batch.control), None);
            return Ok(Exit::Failed);
        }
        return Ok(match ended.refused.is_empty() {
            true => Exit::Done,
            false => Exit::Failed,
        });
    }
    work.report(&ended, (wanted, name), args.json, &notifier, printer).await
}

/// The batch was removed since.
fn gone(id: BatchId) -> Error {
    Error::new(Class::NotFound, format!("reading batch {id}"), "the store does not have it any more")
        .hint("imgsync batch list shows those that there are")
}

/// Builds the notifier of the run.
pub(crate) fn notifier(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Notifier> {
    // The leader of a detached batch sends its notifications.
    let told = match args.detach {
        true => Notify::default(),
        false => args.notify.resolve(&settings.config.notify, printer),
    };
    Notifier::new(&told, settings.folder(), args.patience.retry_delay)
}

/// Rejects image layouts: a layout is on one machine, and tasks run on others.
pub(crate) fn refuse_layouts(settings: &Settings) -> Result<()> {
    let is_layout = |rule: &&Rule| {
        matches!(rule.source, Source::Layout(_)) || rule.to.iter().any(|to| matches!(to, Destination::Layout(_)))
    };
    match settings.config.rules.iter().find(is_layout) {
        Some(rule) => {
            let tried = format!("running {}", rule.place());
            let detail = "an image layout works in one process only, and a cluster is configured";
            Err(Error::new(Class::Invalid, tried, detail)
                .hint("run it with a configuration without `cluster:`, and without IMGSYNC_BROKER and IMGSYNC_STORE"))
        }
        None => Ok(()),
    }
}

/// Checks that a coordinator can lead a detached batch.
async fn check_leader(house: &House) -> Result<()> {
    let tried = "leaving a batch to another coordinator";
    if !house.is_cluster() {
        let detail = "there is no cluster: all is done in this process";
        return Err(Error::new(Class::Invalid, tried, detail).hint("leave out --detach, or configure a cluster"));
    }
    // A coordinator that was killed a moment ago still holds its lease, and would not run the batch.
    match living_leader(house, &leader(SERVE), &format!("run on {}", coordinator_name())).await? {
        Some(_) => Ok(()),
        None => Err(Error::new(Class::Unreachable, tried, "none is there that would feed it to the workers")
            .hint("start `imgsync serve` somewhere, or leave out --detach")),
    }
}

/// Result of starting a batch.
pub(crate) enum Started {
    /// The batch was created.
    Made(Box<Made>),
    /// An equivalent batch was followed until it ended; with `--detach` it was only found.
    Joined(BatchId),
    /// The followed batch was abandoned by its process.
    Left,
}

/// A run with its dependencies, for `run`, `batch resume` and `batch requeue`.
pub(crate) struct Work<'a> {
    settings: &'a Settings,
    house: &'a House,
    client: Client,
    watching: Arc<Watching>,
    run: RunSettings,
    if_running: IfRunning,
    limits: Limits,
    stop: Stop,
    /// Whether copying has started.
    copies: Arc<AtomicBool>,
    printer: Printer,
}

impl<'a> Work<'a> {
    pub(crate) fn new(args: &RunArgs, settings: &'a Settings, house: &'a House, printer: &Printer) -> Result<Work<'a>> {
        let mut client = settings.client()?;
        let first_delay = args.patience.retry_delay;
        client.retry = Policy {
            attempts: args.patience.attempts,
            first_delay,
            max_delay: client.retry.max_delay.max(first_delay),
            max_wait: LONGEST_SLEEP,
            patience: SLOT_PATIENCE,
        };
        client.stall = args.patience.stall_timeout;
        let is_cluster = house.is_cluster();
        client.pace = Some(SharedPace { store: house.store.clone(), careful: is_cluster, alone: !is_cluster });
        let time = args.timeout.unwrap_or(settings.config.timeout);
        let slice = match (args.batch_size, args.batch_number) {
            (Some(size), Some(number)) => Some(Slice { size, number }),
            (Some(size), None) => Some(Slice { size, number: NonZeroUsize::MIN }),
            _ => None,
        };
        let (stop, copies) = (Stop::default(), Arc::new(AtomicBool::new(false)));
        signals::drain_on_signal(&stop, copies.clone(), printer.clone());
        Ok(Work {
            settings,
            house,
            client: Client::new(client, Environment::from_process()),
            watching: Watching::new(printer, args.events),
            run: RunSettings {
                name: args.report.report_name.clone(),
                force: args.force,
                prime: args.download_manifests,
                verify: args.verify,
                manifests: args.manifests.clone(),
                slice,
                priority: args.priority,
                query_limit: args.query_limit.into(),
                concurrency: args.concurrency.or(args.process_limit).map_or(settings.config.concurrency, usize::from),
                attempts: args.patience.attempts,
                time: (time, args.timeout.is_some()),
                drain: DRAIN_LIMIT,
                detach: args.detach,
                care: Care::default(),
            },
            if_running: args.if_running.unwrap_or(settings.config.if_running),
            limits: Limits { time, time_is_exact: args.timeout.is_some(), ..Limits::default() },
            stop,
            copies,
            printer: printer.clone(),
        })
    }

    fn run(&self) -> Run<'_> {
        Run {
            house: self.house,
            config: &self.settings.config,
            folder: folder(self.settings),
            client: self.client.clone(),
            copier: copier(self.house, &self.client, self.limits),
            settings: self.run.clone(),
            role: RUN_ROLE,
            events: Events::to(self.watching.clone()),
            drain: self.stop.drain.clone(),
            abort: self.stop.abort.clone(),
        }
    }

    /// Creates a batch once no other batch of the same rules runs, or follows an equivalent one. `of`: the batch to
    /// compare again, instead of the rules.
    pub(crate) async fn start(&self, of: Option<&Batch>) -> Result<Started> {
        let run = self.run();
        let options = match of {
            Some(of) => run.verification_options(of)?,
            None => run.options().await,
        };
        let rules = |slice| match of {
            Some(of) => verification_identity(of.id),
            None => run.rules(slice),
        };
        let say = |what: &str| self.printer.line(what);
        loop {
            let admission = run.admission(self.if_running, &options, &rules, &say);
            let id = match admission.admit().await? {
                Admitted::Turn(turn) => {
                    return run
                        .make(*turn, rules(self.run.slice), options)
                        .await
                        .map(|made| Started::Made(Box::new(made)));
                }
                Admitted::Join(id) => id,
            };
            if self.run.detach {
                return Ok(Started::Joined(id));
            }
            self.printer.line(&format!("batch {id}"));
            let over = tokio::select! {
                over = until_over(&*self.house.store, id, |_| {}) => over?,
                () = self.watching.keep_going(&*self.house.store, id, false) => unreachable!("it goes on until dropped"),
                () = self.stop.drain.cancelled() => {
                    self.printer.line(&format!("batch {id} goes on; `imgsync batch watch {id}` follows it"));
                    return Err(Error::cancelled(format!("following batch {id}")));
                }
            };
            self.watching.finish();
            match over {
                Over::Ended(_) => return Ok(Started::Joined(id)),
                Over::Left(view) if self.if_running == IfRunning::Join => {
                    print_left(&view, &self.printer);
                    return Ok(Started::Left);
                }
                // It is superseded then, or another process has resumed it.
                Over::Left(_) => {}
            }
        }
    }

    /// Executes the batch, showing progress and handling signals.
    pub(crate) async fn follow(
        &self,
        id: BatchId,
        notifier: &Notifier,
        work: impl AsyncFnOnce(&Run<'_>) -> Result<RunEnd>,
    ) -> Result<RunEnd> {
        let run = self.run();
        self.copies.store(true, Ordering::Relaxed);
        self.printer.line(&format!("batch {id}"));
        let (store, name) = (&*self.house.store, coordinator_name());
        let ended = tokio::select! {
            ended = work(&run) => ended,
            () = watch(store, id, &self.client, notifier, &run.events, &name) => unreachable!("it goes on until dropped"),
            () = outage::follow(&self.house.health, |event| self.watching.tell_outage(event)) => unreachable!("it goes on until dropped"),
            () = self.watching.keep_going(&*self.house.store, id, self.house.is_cluster()) => unreachable!("it goes on until dropped"),
        };
        self.watching.finish();
        // Releases its share of rate limits to other processes.
        self.client.let_go().await;
        ended
    }

    /// Reports the result of a batch that another process ran. That process sends the notifications.
    pub(crate) async fn report_joined(
        &self,
        id: BatchId,
        wanted: (&Wanted, Option<&str>),
        json: bool,
        printer: &Printer,
    ) -> Result<Exit> {
        let nobody = Notifier::new(&Notify::default(), self.settings.folder(), Duration::from_secs(1))?;
        let batch = self.house.store.batch(id).await?.ok_or_else(|| gone(id))?;
        let ended = RunEnd { batch, interrupted: false, refused: Vec::new() };
        self.report(&ended, wanted, json, &nobody, printer).await
    }

    /// Reports the result: report or JSON, notifications, and the exit code.
    pub(crate) async fn report(
        &self,
        ended: &RunEnd,
        (wanted, name): (&Wanted, Option<&str>),
        json: bool,
        notifier: &Notifier,
        printer: &Printer,
    ) -> Result<Exit> {
        let id = ended.batch.id;
        let mut report = Report::of(&*self.house.store, id).await?;
        if let Some(name) = name {
            report.title = name.to_owned();
        }
        let level = wanted.shape.level();
        if json {
            let mut text = Vec::new();
            report::write_json(&report, level, &mut text).await?;
            printer.data(String::from_utf8_lossy(&text).trim_end());
        }
        if let Some(file) = &wanted.file {
            match report::write_file(&report, &wanted.shape, file).await {
                Ok(()) => printer.line(&format!("the report is in {}", file.display())),
                // Notifications are sent all the same.
                Err(error) => printer.lost_file(&error),
            }
        }
        let mut text = Vec::new();
        // A requested report is on stdout; otherwise totals and failures are printed.
        match wanted.on_stdout && !json {
            true => {
                report::write(&report, &wanted.shape, &mut text).await?;
                printer.data(String::from_utf8_lossy(&text).trim_end());
            }
            false => {
                let shown = if wanted.is_typed { level } else { Level::Failures };
                report::write_text(&report, shown, &mut text).await?;
                printer.line(String::from_utf8_lossy(&text).trim_end());
            }
        }
        if !ended.interrupted && !notifier.is_empty() {
            // Notifications list failures unless another level was requested.
            let told = wanted.shape.level.unwrap_or(Level::Failures);
            match tell_once(&self.house.store, &report, notifier, told, &coordinator_name()).await {
                Ok(warnings) => warnings.unwrap_or_default().iter().for_each(|warning| printer.warning(warning)),
                Err(error) => printer.warning(&format!("not all were told of the end: {error}")),
            }
        }
        if ended.interrupted {
            printer
                .line(&format!("interrupted: `imgsync batch resume {id}` goes on; running the rules again does too"));
            if self.house.is_cluster() {
                printer.line(&format!(
                    "workers go on with what they were given; `imgsync batch cancel {id}` stops that too"
                ));
            }
        }
        let troubles = report.pruned.iter().filter(|line| line.outcome.is_trouble()).count();
        let exit = exit_of(ended, report.unlisted.is_empty() && troubles == 0);
        if matches!(exit, Exit::Failed | Exit::CouldNotStart) {
            let counts = &ended.batch.counts;
            let (failed, cancelled, unlisted) = (counts.failed, counts.cancelled, report.unlisted.len());
            let parts = [
                (failed, "failed"),
                (cancelled, "cancelled"),
                (unlisted as u64, "not listed"),
                (troubles as u64, "not removed"),
            ];
            let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
            let stopped = match ended.batch.control {
                Control::Superseded => Some("a later run of the same rules took its place".to_owned()),
                Control::Cancelled => Some("the batch was cancelled".to_owned()),
                _ => None,
            };
            let parts: Vec<String> = parts.chain(stopped).collect();
            printer.error(
                &format!("not all is done: {}", parts.join(", ")),
                Some(&format!("imgsync batch report {id} --report-level 2 names them; `imgsync explain REF` says why")),
            );
        }
        Ok(exit)
    }
}

/// Returns the exit code of a run.
fn exit_of(ended: &RunEnd, all_listed: bool) -> Exit {
    let counts = &ended.batch.counts;
    match () {
        () if ended.interrupted => Exit::Interrupted,
        () if counts.total == 0
            && !ended.refused.is_empty()
            && ended.refused.iter().all(|error| error.class() == Class::Unreachable) =>
        {
            Exit::CouldNotStart
        }
        () => exit_of_batch(&ended.batch, all_listed),
    }
}

/// Returns the exit code of an ended batch. `all_listed`: everything could be listed, and every removal succeeded. A
/// stopped batch is never a success, even if it was stopped before its first task was listed.
pub(super) fn exit_of_batch(batch: &Batch, all_listed: bool) -> Exit {
    let counts = &batch.counts;
    match counts.failed > 0 || counts.cancelled > 0 || batch.control.is_stopped() || !all_listed {
        true => Exit::Failed,
        false => Exit::Done,
    }
}

/// Returns the base folder of relative paths of the configuration.
pub(crate) fn folder(settings: &Settings) -> &Path {
    settings.folder()
}
