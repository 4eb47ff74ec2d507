//! `imgsync run`: runs the rules of a configuration, in this process or in the cluster.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_config::{IfRunning, NotifyConfig, Rule, RuleSource, RuleTarget, verification_identity};
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::group_digits;
use imgsync_oci::retry::RetryPolicy;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Client, SharedRateLimit};
use imgsync_store::{Batch, BatchState, is_start_lease_lost, leader_lease_name, outage};
use imgsync_worker::copy::{BundleSide, CopyLimits};
use imgsync_worker::runner::Shutdown;
use imgsync_worker::settings::{DRAIN_TIMEOUT, MAX_WAIT_IN_SLOT, RATE_LIMIT_DEADLINE_IN_SLOT};
use imgsync_worker::task_events::TaskEvents;
use tokio_util::sync::CancellationToken;

use super::batch_progress::BatchProgress;
use super::exit::{Exit, exit_for_batch, fail};
use super::global::GlobalArgs;
use super::presets::parse_preset;
use super::printer::Printer;
use super::report::{ReportOptions, print_report};
use super::rule_selection::select_rules;
use super::run_args::RunArgs;
use super::settings::{Settings, config_dir};
use super::target::TargetArgs;
use super::watch::print_abandoned;
use super::{backend, signals};
use crate::batch_view::GLOBAL_LEADER;
use crate::notify::{Notifier, deliver_once};
use crate::orchestrator::{
    AdmissionResult, Backend, BatchWaitResult, CreatedBatch, LaggingPushes, RUN_ROLE, ReclaimPolicy, Run, RunResult,
    RunSettings, Slice, build_copier, coordinator_name, find_active_leader, tidy_provenance, wait_until_over,
    watch_throttling,
};
use crate::report::{self, Report, ReportLevel};
use clap::Args;
use imgsync_config::Preset;

/// Maximum times that a start is tried again because its lease has ended.
const MAX_LOST_STARTS: u32 = 3;

/// `imgsync run`.
#[derive(Debug, Args)]
pub(crate) struct RunCommand {
    /// Configuration to run, as after -c
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Run a preset instead of the configuration's rules; may be repeated
    ///
    /// `imgsync presets` lists them. The name alone, or with versions: --preset distroless --preset "kubeadm >=1.30". Use it with --to, --naming and
    /// --user.
    #[arg(long, value_name = "PRESET", value_parser = parse_preset)]
    pub(crate) preset: Vec<Preset>,
    /// Run only this rule: its name, id or number, from 1; may be repeated
    ///
    /// A rule without a name has the one that reports show. The run is that of a configuration with these rules alone:
    /// it waits for runs of the same ones, and prunes no tags of the others.
    #[arg(long, value_name = "RULE", conflicts_with = "preset")]
    pub(crate) rule: Vec<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

/// Runs the command.
pub(crate) async fn run(args: RunCommand, global: &GlobalArgs, printer: &Printer) -> Exit {
    let RunCommand { file, preset, rule, run, target } = args;
    if let Some(hint) = file.as_deref().and_then(|file| hint_for_missing_file(file, &run)) {
        let file = file.unwrap_or_default();
        printer.error(&format!("there is no configuration {}", file.display()), Some(&hint));
        return Exit::Usage;
    }
    let global = match global.with_file(file, printer) {
        Ok(global) => global,
        Err(exit) => return exit,
    };
    let mut settings = match Settings::load(&global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if !preset.is_empty() {
        let sources = preset.into_iter().map(RuleSource::Preset).collect();
        if let Err(error) = target.set_rules(sources, None, &mut settings, printer).await {
            return fail(&error, printer);
        }
    } else if target.is_typed() {
        let hint = "pass --preset; rules of a configuration have their own targets";
        printer.error("--to, --naming and --user require --preset", Some(hint));
        return Exit::Usage;
    } else if !rule.is_empty()
        && !settings.config.rules.is_empty()
        && let Err(error) = select_rules(&mut settings, &rule)
    {
        return fail(&error, printer);
    }
    run_rules(run, &settings, printer).await
}

/// Returns what to type instead of a FILE that is none: a preset, or the value of `--report`.
fn hint_for_missing_file(file: &Path, args: &RunArgs) -> Option<String> {
    let name = file.to_str().filter(|_| !file.exists())?;
    match parse_preset(name) {
        Ok(_) => Some(format!("`imgsync run --preset {name}` runs the preset")),
        Err(_) if args.report.report == Some(None) => {
            Some(format!("if it is the file of the report, write `--report={name}`"))
        }
        Err(_) => None,
    }
}

/// Runs the rules of these settings.
pub(crate) async fn run_rules(args: RunArgs, settings: &Settings, printer: &Printer) -> Exit {
    if args.process_limit.is_some() {
        printer.line("--process-limit is superseded by --concurrency, and does the same");
    }
    if settings.config.rules.is_empty() {
        let hint = "write some in imgsync.yaml, name a file with -c (examples/quickstart.yaml is one), or a preset with --preset";
        printer.error("there are no rules to run", Some(hint));
        return Exit::Usage;
    }
    if let Err(error) = refuse_partial_archives(&args, settings) {
        return fail(&error, printer);
    }
    if args.dry_run {
        return match super::dry_run::run(&args, settings, printer).await {
            Ok(exit) => exit,
            Err(error) => fail(&error, printer),
        };
    }
    match run_batch(&args, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn run_batch(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    // Reports errors of a template before anything is copied.
    let options = args.report.resolve(settings)?;
    let notifier = build_notifier(args, settings, printer)?;
    let backend = backend::open(settings, args.state.as_ref(), printer).await?;
    if backend.is_cluster() {
        refuse_layouts(settings)?;
    }
    if args.detach {
        require_leader(&backend).await?;
    }
    let work = RunContext::new(args, settings, &backend, printer)?;
    let (wanted, name) = (&options, args.report.report_name.as_deref());
    let mut made = match work.start(None).await? {
        StartOutcome::Created(made) => made,
        StartOutcome::Joined(id) if args.detach => {
            printer.data(&id.to_string());
            return Ok(Exit::Done);
        }
        StartOutcome::Joined(id) => {
            return work.report_joined(id, (wanted, name), args.json, printer).await;
        }
        StartOutcome::Abandoned => return Ok(Exit::Interrupted),
    };
    let _lock = made.lock.take();
    let keep = jiff::SignedDuration::try_from(settings.config.batch_retention).unwrap_or(jiff::SignedDuration::MAX);
    if let Ok(before) = backend.clock.now().checked_sub(keep) {
        backend.store.remove_before(before).await?;
    }
    // The rules that this run leaves out still claim their tags.
    tidy_provenance(&*backend.store, settings.whole_config(), backend.clock.now()).await?;
    let id = made.id;
    let ended = work.follow(id, &notifier, async |run| run.list_and_run(*made).await).await?;
    if args.detach {
        printer.data(&id.to_string());
        if ended.batch.state.is_stopped() {
            printer.error(&format!("batch {id} was {} while it was listed", ended.batch.state), None);
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
fn batch_not_found(id: BatchId) -> Error {
    Error::new(ErrorKind::NotFound, format!("reading batch {id}"), "it is no longer in the store")
        .with_hint("`imgsync batch list` shows all batches")
}

/// Builds the notifier of the run.
pub(crate) fn build_notifier(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Notifier> {
    // The leader of a detached batch sends its notifications.
    let notify_config = match args.detach {
        true => NotifyConfig::default(),
        false => args.notify.resolve(&settings.config.notify, printer),
    };
    let notifier = Notifier::new(&notify_config, settings.folder(), args.retry.retry_delay)?;
    Ok(notifier.with_dashboard(settings.config.serve.dashboard_url()))
}

/// Rejects archives of which this run would write a part only.
fn refuse_partial_archives(args: &RunArgs, settings: &Settings) -> Result<()> {
    let archives = |rule: &Rule| -> Vec<PathBuf> { rule.to.iter().filter_map(RuleTarget::archive_file).collect() };
    let whole = &settings.whole_config().rules;
    for rule in &settings.config.rules {
        for file in archives(rule) {
            let refused = |detail: String, hint: &str| {
                let operation = format!("running {}", rule.label());
                Err(Error::new(ErrorKind::Invalid, operation, detail).with_hint(hint))
            };
            if args.batch_size.is_some() {
                let detail = format!("{} is written as a whole, and --batch-size selects a part", file.display());
                return refused(detail, "leave out --batch-size, or write to a registry or a folder (oci:DIR)");
            }
            let is_left_out = |other: &&Rule| {
                !settings.config.rules.iter().any(|rule| rule.id() == other.id()) && archives(other).contains(&file)
            };
            if let Some(other) = whole.iter().find(is_left_out) {
                let detail = format!("{} also has the images of {}, which is left out", file.display(), other.label());
                return refused(detail, "run both rules, or give each a file of its own");
            }
        }
    }
    Ok(())
}

/// Rejects image layouts and archives: they are on one machine, and tasks run on others.
pub(crate) fn refuse_layouts(settings: &Settings) -> Result<()> {
    let is_layout = |rule: &&Rule| rule.source.is_local() || rule.to.iter().any(RuleTarget::is_local);
    match settings.config.rules.iter().find(is_layout) {
        Some(rule) => {
            let operation = format!("running {}", rule.label());
            let detail = "image layouts and archives work in one process only, and a cluster is configured";
            Err(Error::new(ErrorKind::Invalid, operation, detail).with_hint(
                "run it with a configuration without `cluster:`, and without IMGSYNC_BROKER and IMGSYNC_STORE",
            ))
        }
        None => Ok(()),
    }
}

/// Checks that a coordinator can lead a detached batch.
async fn require_leader(backend: &Backend) -> Result<()> {
    let operation = "handing the batch over to `imgsync serve`";
    if !backend.is_cluster() {
        let detail = "no cluster is configured";
        return Err(
            Error::new(ErrorKind::Invalid, operation, detail).with_hint("leave out --detach, or configure a cluster")
        );
    }
    // A coordinator that was killed a moment ago still holds its lease, and would not run the batch.
    match find_active_leader(backend, &leader_lease_name(GLOBAL_LEADER), &format!("run on {}", coordinator_name()))
        .await?
    {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::Unreachable, operation, "no coordinator is running")
            .with_hint("start `imgsync serve` somewhere, or leave out --detach")),
    }
}

/// Result of starting a batch.
pub(crate) enum StartOutcome {
    /// The batch was created.
    Created(Box<CreatedBatch>),
    /// An equivalent batch was followed until it ended; with `--detach` it was only found.
    Joined(BatchId),
    /// The followed batch was abandoned by its process.
    Abandoned,
}

/// A run with its dependencies, for `run`, `batch resume` and `batch requeue`.
pub(crate) struct RunContext<'a> {
    settings: &'a Settings,
    backend: &'a Backend,
    client: Client,
    progress: Arc<BatchProgress>,
    run_settings: RunSettings,
    if_running: IfRunning,
    limits: CopyLimits,
    stop: Shutdown,
    /// Whether copying has started.
    is_copying: Arc<AtomicBool>,
    printer: Printer,
    bundle: Option<BundleSide>,
}

impl<'a> RunContext<'a> {
    pub(crate) fn new(
        args: &RunArgs,
        settings: &'a Settings,
        backend: &'a Backend,
        printer: &Printer,
    ) -> Result<RunContext<'a>> {
        let mut client = settings.client()?;
        let first_delay = args.retry.retry_delay;
        client.retry = RetryPolicy {
            attempts: args.retry.attempts,
            first_delay,
            max_delay: client.retry.max_delay.max(first_delay),
            max_retry_after: MAX_WAIT_IN_SLOT,
            rate_limit_timeout: RATE_LIMIT_DEADLINE_IN_SLOT,
        };
        client.stall_timeout = args.retry.stall_timeout;
        let is_cluster = backend.is_cluster();
        client.shared_rate_limit =
            Some(SharedRateLimit { store: backend.store.clone(), slow_start: is_cluster, exclusive: !is_cluster });
        let time = args.timeout.unwrap_or(settings.config.timeout);
        let slice = match (args.batch_size, args.batch_number) {
            (Some(size), Some(number)) => Some(Slice { size, number }),
            (Some(size), None) => Some(Slice { size, number: NonZeroUsize::MIN }),
            _ => None,
        };
        let (stop, is_copying) = (Shutdown::default(), Arc::new(AtomicBool::new(false)));
        let copies = is_copying.clone();
        signals::drain_on_signal(&stop, move || copies.load(Ordering::Relaxed), printer.clone());
        Ok(RunContext {
            settings,
            backend,
            client: Client::new(client, CredentialEnvironment::from_process()),
            progress: BatchProgress::new(printer, args.events),
            run_settings: RunSettings {
                name: args.report.report_name.clone(),
                legacy_report: args.legacy_report,
                force: args.force,
                prime: args.download_manifests,
                verify: args.verify,
                manifests: args.manifests.clone(),
                slice,
                pushed: None,
                lagging_pushes: LaggingPushes::default(),
                priority: args.priority,
                query_limit: args.query_limit.into(),
                concurrency: args.concurrency.or(args.process_limit).map_or(settings.config.concurrency, usize::from),
                attempts: args.retry.attempts,
                timeout: (time, args.timeout.is_some()),
                drain: DRAIN_TIMEOUT,
                detach: args.detach,
                reclaim_policy: ReclaimPolicy::default(),
            },
            if_running: args.if_running.unwrap_or(settings.config.if_running),
            limits: CopyLimits { timeout: time, timeout_is_exact: args.timeout.is_some(), ..CopyLimits::default() },
            stop,
            is_copying,
            printer: printer.clone(),
            bundle: None,
        })
    }

    /// Lets a bundle take part in the copies.
    pub(crate) fn with_bundle(self, bundle: BundleSide) -> RunContext<'a> {
        RunContext { bundle: Some(bundle), ..self }
    }

    /// Returns the registry client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns a token that the first signal cancels.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.drain.child_token()
    }

    fn build_run(&self) -> Run<'_> {
        Run {
            backend: self.backend,
            config: &self.settings.config,
            folder: config_dir(self.settings),
            client: self.client.clone(),
            copier: match &self.bundle {
                Some(bundle) => build_copier(self.backend, &self.client, self.limits).with_bundle(bundle.clone()),
                None => build_copier(self.backend, &self.client, self.limits),
            },
            settings: self.run_settings.clone(),
            role: RUN_ROLE,
            events: TaskEvents::new(self.progress.clone()),
            drain: self.stop.drain.clone(),
            abort: self.stop.abort.clone(),
        }
    }

    /// Creates a batch once no other batch of the same rules runs, or follows an equivalent one. `of`: the batch to
    /// compare again, instead of the rules.
    pub(crate) async fn start(&self, verified: Option<&Batch>) -> Result<StartOutcome> {
        let run = self.build_run();
        let options = match verified {
            Some(of) => run.verification_options(of)?,
            None => run.options().await,
        };
        let rules = |slice| match verified {
            Some(of) => verification_identity(of.id),
            None => run.rules_digest(slice),
        };
        let say = |what: &str| self.printer.line(what);
        let mut losses = 0;
        loop {
            let admission = run.admission(self.if_running, &options, &rules, &say);
            let id = match admission.admit().await? {
                AdmissionResult::Admitted(permit) => {
                    let made = run.create(*permit, rules(self.run_settings.slice), options.clone()).await;
                    match made {
                        // As in a failover of the store. Nothing was created.
                        Err(error) if is_start_lease_lost(&error) && losses < MAX_LOST_STARTS => losses += 1,
                        made => return made.map(|made| StartOutcome::Created(Box::new(made))),
                    }
                    continue;
                }
                AdmissionResult::Join(id) => id,
            };
            if self.run_settings.detach {
                return Ok(StartOutcome::Joined(id));
            }
            self.printer.line(&format!("batch {id}"));
            let over = tokio::select! {
                over = wait_until_over(&*self.backend.store, id, |_| {}) => over?,
                () = self.progress.run(&*self.backend.store, id, false) => unreachable!("it goes on until dropped"),
                () = self.stop.drain.cancelled() => {
                    self.printer.line(&format!("batch {id} continues; `imgsync batch watch {id}` follows it"));
                    return Err(Error::cancelled(format!("following batch {id}")));
                }
            };
            self.progress.finish();
            match over {
                BatchWaitResult::Ended(_) => return Ok(StartOutcome::Joined(id)),
                BatchWaitResult::Abandoned(view) if self.if_running == IfRunning::Join => {
                    print_abandoned(&view, &self.printer);
                    return Ok(StartOutcome::Abandoned);
                }
                // It is superseded then, or another process has resumed it.
                BatchWaitResult::Abandoned(_) => {}
            }
        }
    }

    /// Executes the batch, showing progress and handling signals.
    pub(crate) async fn follow(
        &self,
        id: BatchId,
        notifier: &Notifier,
        execute: impl AsyncFnOnce(&Run<'_>) -> Result<RunResult>,
    ) -> Result<RunResult> {
        let run = self.build_run();
        self.is_copying.store(true, Ordering::Relaxed);
        self.printer.line(&format!("batch {id}"));
        let (store, name) = (&*self.backend.store, coordinator_name());
        let ended = tokio::select! {
            ended = execute(&run) => ended,
            () = watch_throttling(store, id, &self.client, notifier, &run.events, &name) => unreachable!("it goes on until dropped"),
            () = outage::forward_events(&self.backend.health, |event| self.progress.report_health_event(event)) => unreachable!("it goes on until dropped"),
            () = self.progress.run(&*self.backend.store, id, self.backend.is_cluster()) => unreachable!("it goes on until dropped"),
        };
        self.progress.finish();
        // Releases its share of rate limits to other processes.
        self.client.release_shared().await;
        ended
    }

    /// Reports the result of a batch that another process ran. That process sends the notifications.
    pub(crate) async fn report_joined(
        &self,
        id: BatchId,
        wanted: (&ReportOptions, Option<&str>),
        json: bool,
        printer: &Printer,
    ) -> Result<Exit> {
        let nobody = Notifier::new(&NotifyConfig::default(), self.settings.folder(), Duration::from_secs(1))?;
        let batch = self.backend.store.batch(id).await?.ok_or_else(|| batch_not_found(id))?;
        let ended = RunResult { batch, interrupted: false, refused: Vec::new() };
        self.report(&ended, wanted, json, &nobody, printer).await
    }

    /// Reports the result: report or JSON, notifications, and the exit code.
    pub(crate) async fn report(
        &self,
        ended: &RunResult,
        (options, name): (&ReportOptions, Option<&str>),
        json: bool,
        notifier: &Notifier,
        printer: &Printer,
    ) -> Result<Exit> {
        let id = ended.batch.id;
        let mut report = Report::load(&*self.backend.store, id).await?;
        report.dashboard = self.settings.config.serve.dashboard_url();
        if let Some(name) = name {
            report.title = name.to_owned();
        }
        let level = options.shape.level();
        if json {
            let mut text = Vec::new();
            report::write_json(&report, level, &mut text).await?;
            printer.data(String::from_utf8_lossy(&text).trim_end());
        }
        if let Some(file) = &options.file {
            match report::write_file(&report, &options.shape, file).await {
                Ok(()) => printer.line(&format!("report written to {}", file.display())),
                // Notifications are sent all the same.
                Err(error) => printer.report_file_error(&error),
            }
        }
        let mut text = Vec::new();
        // A requested report is on stdout; otherwise totals and failures are printed.
        let lists_failures = match options.on_stdout && !json {
            true => {
                report::write(&report, &options.shape, &mut text).await?;
                print_report(&String::from_utf8_lossy(&text), &options.shape, printer);
                level >= ReportLevel::Failures
            }
            false => {
                let shown = if options.is_explicit { level } else { ReportLevel::Failures };
                let style = options.shape.text_style(&report);
                report::write_text(&report, shown, style, &mut text).await?;
                printer.line(String::from_utf8_lossy(&text).trim_end());
                shown >= ReportLevel::Failures && !printer.is_quiet()
            }
        };
        if !ended.interrupted && !notifier.is_empty() {
            // Notifications list failures unless another level was requested.
            let report_level = options.shape.level.unwrap_or(ReportLevel::Failures);
            match deliver_once(&self.backend.store, &report, notifier, report_level, &coordinator_name()).await {
                Ok(warnings) => warnings.unwrap_or_default().iter().for_each(|warning| printer.warning(warning)),
                Err(error) => printer.warning(&format!("not all notifications were sent: {error}")),
            }
        }
        if ended.interrupted {
            printer.line(&format!(
                "interrupted: `imgsync batch resume {id}` continues the batch; running the rules again does too"
            ));
            if self.backend.is_cluster() {
                printer.line(&format!(
                    "workers finish the tasks already queued, and an `imgsync serve` with these rules also continues the \
                     listing; `imgsync batch cancel {id}` stops them too"
                ));
            }
        }
        let prune_problems = report.pruned.iter().filter(|line| line.outcome.needs_attention()).count();
        let exit = exit_for_run(ended, report.unlisted.is_empty() && prune_problems == 0);
        if matches!(exit, Exit::Failed | Exit::CouldNotStart) {
            let counts = &ended.batch.counts;
            let (failed, cancelled, unlisted) = (counts.failed, counts.cancelled, report.unlisted.len());
            let parts = [
                (failed, "failed"),
                (cancelled, "cancelled"),
                (unlisted as u64, "not listed"),
                (prune_problems as u64, "not removed"),
            ];
            let parts = parts
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{} {what}", group_digits(*count)));
            let stopped = match ended.batch.state {
                BatchState::Superseded => Some("superseded by a later run of the same rules".to_owned()),
                BatchState::Cancelled => Some("the batch was cancelled".to_owned()),
                _ => None,
            };
            let parts: Vec<String> = parts.chain(stopped).collect();
            let hint = match lists_failures {
                true => "`imgsync explain REF` explains a tag".to_owned(),
                false => format!(
                    "`imgsync batch report {id} --report-level 2` lists them; `imgsync explain REF` explains a tag"
                ),
            };
            printer.error(&format!("the batch is incomplete: {}", parts.join(", ")), Some(&hint));
        }
        Ok(exit)
    }
}

/// Returns the exit code of a run.
fn exit_for_run(ended: &RunResult, all_listed: bool) -> Exit {
    let counts = &ended.batch.counts;
    match () {
        () if ended.interrupted => Exit::Interrupted,
        () if counts.total == 0
            && !ended.refused.is_empty()
            && ended.refused.iter().all(|error| error.kind() == ErrorKind::Unreachable) =>
        {
            Exit::CouldNotStart
        }
        () => exit_for_batch(&ended.batch, all_listed),
    }
}
