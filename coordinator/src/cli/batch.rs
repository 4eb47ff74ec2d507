//! `imgsync batch …`: shows and controls batches, also while another process runs them.

use super::show::view_to_json;
use imgsync_model::batch::{BatchId, BatchOptions};
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::Client;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_store::{Batch, BatchState, LockUse, RequeueFilter, Store, leader_lease_name, listing_lease_name};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::backend;
use super::batch_progress::is_verification;
use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::report::{ReportArgs, ReportOptions, print_report};
use super::rule_selection::settings_of_batch;
use super::run::{RunContext, build_notifier};
use super::run_args::{ResumeArgs, RunArgs};
use super::settings::Settings;
use super::show::BatchDetails;
use super::tui::truncate;
use super::values::parse_error_kind;
use super::watch::{confirm_change, watch};
use crate::batch_view::{BatchView, GLOBAL_LEADER, find_owner};
use crate::orchestrator::{Backend, StateChange, coordinator_name, find_active_leader};
use crate::report::{self, Report};
use clap::{Args, Subcommand};

/// Shows and controls batches.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: BatchCommand,
}

/// A batch id or its prefix; by default the newest batch.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchSelector {
    /// Batch id or a unique prefix of it [default: the newest batch]
    #[arg(value_name = "BATCH")]
    pub(crate) batch: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// List batches, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Print one JSON object per batch
        #[arg(long)]
        json: bool,
        /// Maximum number of batches
        #[arg(long, value_name = "N", default_value = "20")]
        limit: usize,
    },
    /// Show the progress of a batch, and what failed
    Show {
        #[command(flatten)]
        id: BatchSelector,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// List every failure instead of groups only
        #[arg(long)]
        failures: bool,
    },
    /// Watch a batch until it ends: full screen on a terminal, lines otherwise
    Watch {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Pause a batch: start no more of its images until it is resumed
    Pause {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Resume a paused or interrupted batch, in this process unless another process runs it
    Resume {
        #[command(flatten)]
        id: BatchSelector,
        #[command(flatten)]
        run: Box<ResumeArgs>,
    },
    /// Cancel a batch: unfinished images count as cancelled
    Cancel {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Requeue failed images, in this process unless another process runs the batch
    Requeue {
        #[command(flatten)]
        id: BatchSelector,
        /// Only failures of this kind (not_found, denied, unreachable …)
        #[arg(long, value_name = "KIND", value_parser = parse_error_kind)]
        kind: Option<ErrorKind>,
        /// Only failures with this registry as source or target
        #[arg(long, value_name = "REGISTRY")]
        registry: Option<RegistryName>,
        #[command(flatten)]
        run: Box<ResumeArgs>,
    },
    /// Write the report of a batch
    Report {
        #[command(flatten)]
        id: BatchSelector,
        #[command(flatten)]
        report: ReportArgs,
    },
}

/// Runs the command.
pub(crate) async fn run(args: BatchArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match execute(args, &settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn execute(args: BatchArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let store = async || backend::open_store(settings, args.state.as_ref()).await;
    match args.command {
        BatchCommand::List { json, limit } => list(&*store().await?, json, limit, printer).await,
        BatchCommand::Show { id, json, failures } => {
            let is_cluster = settings.cluster()?.is_some() && args.state.is_none();
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            let shown = BatchDetails::read(&*store, id, is_cluster, settings).await?;
            match json {
                true => _ = printer.data(&shown.to_json(failures).await?.to_string()),
                false => shown.print(failures, printer).await?,
            }
            Ok(Exit::Done)
        }
        BatchCommand::Watch { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            let client = Client::new(settings.client()?, CredentialEnvironment::from_process());
            let is_cluster = settings.cluster()?.is_some() && args.state.is_none();
            watch(&store, id, (&client, is_cluster), printer).await
        }
        BatchCommand::Pause { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            change_state(store, id, BatchState::Paused, printer).await
        }
        BatchCommand::Cancel { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            change_state(store, id, BatchState::Cancelled, printer).await
        }
        BatchCommand::Resume { id, run } => {
            let backend = backend::open(settings, args.state.as_ref(), printer).await?;
            let id = resolve(&*backend.store, &id).await?;
            let batch = get_batch(&*backend.store, id).await?;
            if batch.ended_at.is_some() {
                let detail = format!("it is {}", batch.state);
                return Err(Error::new(ErrorKind::Invalid, format!("resuming batch {id}"), detail).with_hint(
                    match batch.state {
                        BatchState::Done => format!("`imgsync batch requeue {id}` requeues its failed images"),
                        _ => "run the rules again: images at the target are not copied again".to_owned(),
                    },
                ));
            }
            resume(&backend, id, ((*run).into(), None), settings, printer).await
        }
        BatchCommand::Requeue { id, kind, registry, run } => {
            let backend = backend::open(settings, args.state.as_ref(), printer).await?;
            let id = resolve(&*backend.store, &id).await?;
            let is_filtered = kind.is_some() || registry.is_some();
            let requeued = backend.store.requeue(id, RequeueFilter { kind, registry }).await?;
            match requeued {
                0 => {
                    let records = backend.store.count_records(&[id]).await?.first().copied().unwrap_or_default();
                    printer.line(&nothing_to_requeue(id, is_filtered, records.unlisted));
                    let now = get_batch(&*backend.store, id).await?.state;
                    print_control_result(run.json, json!({"batch": id, "state": now, "requeued": 0}), printer);
                    Ok(Exit::Done)
                }
                // The process that runs the batch picks them up; if there is none, this process runs them.
                _ => {
                    let images = pluralize(requeued, "failed image", "failed images");
                    printer.line(&format!("{images} of batch {id} requeued"));
                    resume(&backend, id, ((*run).into(), Some(requeued)), settings, printer).await
                }
            }
        }
        BatchCommand::Report { id, report } => {
            // The configured file is for runs.
            let wanted = report.resolve(&settings.without_report())?;
            let dashboard = settings.config.serve.dashboard_url();
            write_report(&*store().await?, &id, (&wanted, report.report_name.as_deref()), dashboard, printer).await
        }
    }
}

/// Describes why nothing was requeued, and how repositories that were not listed are listed again.
fn nothing_to_requeue(id: BatchId, is_filtered: bool, unlisted: u64) -> String {
    let images = match is_filtered {
        true => format!("no failed images of batch {id} match"),
        false => format!("batch {id} has no failed images to requeue"),
    };
    match unlisted {
        0 => images,
        1 => format!("{images}; 1 repository was not listed: `imgsync run` lists it again"),
        _ => {
            format!("{images}; {} repositories were not listed: `imgsync run` lists them again", group_digits(unlisted))
        }
    }
}

/// Resolves a batch by its id or a prefix of it; by default the newest batch.
async fn resolve(store: &dyn Store, id: &BatchSelector) -> Result<BatchId> {
    match &id.batch {
        Some(prefix) => find_by_prefix(store, prefix).await,
        None => store.batches(1).await?.first().map(|batch| batch.id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "finding the newest batch", "there are no batches yet")
                .with_hint("`imgsync run` creates one")
        }),
    }
}

/// Finds a batch by a prefix of its id. An unknown id is a usage error.
pub(super) async fn find_by_prefix(store: &dyn Store, prefix: &str) -> Result<BatchId> {
    store.resolve(prefix).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.with_kind(ErrorKind::Invalid),
        _ => error,
    })
}

async fn get_batch(store: &dyn Store, id: BatchId) -> Result<Batch> {
    store.batch(id).await?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("reading batch {id}"), "it is no longer in the store")
            .with_hint("`imgsync batch list` shows all batches")
    })
}

/// Prints the result of a control command on a batch that another process runs.
fn print_control_result(json: bool, result: serde_json::Value, printer: &Printer) {
    if json {
        printer.data(&result.to_string());
    }
}

/// Pauses or cancels a batch. If a failover of the store may lose that, watches over it for a while.
async fn change_state(store: Arc<dyn Store>, id: BatchId, wanted: BatchState, printer: &Printer) -> Result<Exit> {
    let (change, may_be_lost) = StateChange::by_command(store, id, wanted);
    let exit = print_state(printer, id, change.apply().await?, wanted)?;
    if may_be_lost {
        confirm_change(id, wanted, change.confirm(), printer).await?;
    }
    Ok(exit)
}

fn print_state(printer: &Printer, id: BatchId, now: BatchState, wanted: BatchState) -> Result<Exit> {
    match now == wanted {
        true => {
            printer.line(&format!("batch {id} is {now}"));
            Ok(Exit::Done)
        }
        false => Err(Error::new(ErrorKind::Invalid, format!("changing batch {id}"), format!("it is {now}"))),
    }
}

async fn list(store: &dyn Store, json: bool, limit: usize, printer: &Printer) -> Result<Exit> {
    let batches = BatchView::load_all(store, store.batches(limit).await?).await?;
    if batches.is_empty() {
        printer.line("there are no batches yet: `imgsync run` creates one");
    } else if !json {
        printer.data(&format!(
            "{:<36}  {:<11}  {:<19}  {:>9} {:>9} {:>9} {:>7} {:>9}  {}",
            "BATCH", "STATE", "STARTED (UTC)", "TOTAL", "COPIED", "UNCHANGED", "FAILED", "CANCELLED", "RULES"
        ));
    }
    let width = rules_width();
    let ids: Vec<BatchId> = batches.iter().map(|view| view.batch.id).collect();
    let records = store.count_records(&ids).await?;
    for (view, records) in batches.iter().zip(records) {
        let batch = &view.batch;
        let counts = &batch.counts;
        // Which failures of a verification are differences is in its report only.
        let different = if is_verification(batch) { counts.failed } else { 0 };
        match json {
            true => printer.data(&view_to_json(view).to_string()),
            false => printer.text(&format!(
                "{:<36}  {:<11}  {:<19}  {:>9} {:>9} {:>9} {:>7} {:>9}  {}",
                batch.id.to_string(),
                report::outcome(view.state, counts, (different, records.unlisted)),
                batch.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                group_digits(counts.total),
                group_digits(counts.copied),
                group_digits(counts.unchanged),
                group_digits(counts.failed),
                group_digits(counts.cancelled),
                truncate(&batch_title(batch), width)
            )),
        };
    }
    if !json {
        let notices = batches.iter().filter_map(|view| Some((view.batch.id, view.notice()?)));
        notices.for_each(|(id, notice)| printer.line(&format!("batch {id}: {notice}")));
    }
    Ok(Exit::Done)
}

/// Width of a row of the list before its rules.
const LIST_COLUMNS: usize = 121;
/// Minimum width of the rules of a row, also where that breaks the line.
const MIN_RULES_WIDTH: usize = 20;

/// Returns the width that the terminal leaves for the rules of a batch. Elsewhere they are listed in full.
fn rules_width() -> usize {
    let width = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size).and_then(|size| size.ok());
    width.map_or(usize::MAX, |(columns, _)| usize::from(columns).saturating_sub(LIST_COLUMNS).max(MIN_RULES_WIDTH))
}

/// Returns the rules of a batch in a few words, or its `--report-name`. Options that cannot be decoded have none.
fn batch_title(batch: &Batch) -> String {
    BatchOptions::decode(&batch.options, "a batch").map(|options| options.title).unwrap_or_default()
}

async fn resume(
    backend: &Backend,
    id: BatchId,
    (run, requeued): (RunArgs, Option<u64>),
    settings: &Settings,
    printer: &Printer,
) -> Result<Exit> {
    let control_result = |state: BatchState, led_by: Option<&str>| {
        let mut result = json!({"batch": id, "state": state});
        if let Some(requeued) = requeued {
            result["requeued"] = json!(requeued);
        }
        if let Some(leader) = led_by {
            result["led_by"] = json!(leader);
        }
        result
    };
    let _lock = match backend.try_lock(LockUse::Run).await? {
        Ok(lock) => lock,
        Err(holder) if find_owner(&*backend.store, &get_batch(&*backend.store, id).await?).await?.is_none() => {
            return Err(backend.lock_refusal(&holder));
        }
        // The run in the other process picks up the resumed batch.
        Err(_) => {
            let now = backend.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}; the run in the other process continues it"));
            print_control_result(run.json, control_result(now, None), printer);
            return Ok(Exit::Done);
        }
    };
    // The process that lists or leads the batch continues it; an interrupted listing is resumed here.
    if backend.is_cluster() {
        let own_name = format!("resume on {}", coordinator_name());
        let is_listed = get_batch(&*backend.store, id).await?.plan_completed_at.is_some();
        let led_by = match is_listed {
            false => find_active_leader(backend, &listing_lease_name(id), &own_name).await?,
            true => match find_active_leader(backend, &leader_lease_name(&id.to_string()), &own_name).await? {
                Some(holder) => Some(holder),
                None => find_active_leader(backend, &leader_lease_name(GLOBAL_LEADER), &own_name).await?,
            },
        };
        if let Some(holder) = led_by {
            let holder = holder.replacen(&format!(" {id}"), "", 1);
            let now = backend.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}, and led by {holder}; `imgsync batch watch {id}` follows it"));
            print_control_result(run.json, control_result(now, Some(&holder)), printer);
            return Ok(Exit::Done);
        }
    }
    let settings = &settings_of_batch(settings, &get_batch(&*backend.store, id).await?);
    let wanted = run.report.resolve(settings)?;
    let notifier = build_notifier(&run, settings, printer)?;
    let work = RunContext::new(&run, settings, backend, printer)?;
    let ended = work.follow(id, &notifier, async |run| run.resume(id).await).await?;
    work.report(&ended, (&wanted, run.report.report_name.as_deref()), run.json, &notifier, printer).await
}

async fn write_report(
    store: &dyn Store,
    id: &BatchSelector,
    (options, name): (&ReportOptions, Option<&str>),
    dashboard: Option<String>,
    printer: &Printer,
) -> Result<Exit> {
    let id = resolve(store, id).await?;
    let mut report = Report::load(store, id).await?;
    report.dashboard = dashboard;
    if let Some(name) = name {
        report.title = name.to_owned();
    }
    match &options.file {
        Some(file) => match report::write_file(&report, &options.shape, file).await {
            Ok(()) => printer.line(&format!("report written to {}", file.display())),
            Err(error) => printer.report_file_error(&error),
        },
        None => {
            let mut text = Vec::new();
            report::write(&report, &options.shape, &mut text).await?;
            print_report(&String::from_utf8_lossy(&text), &options.shape, printer);
        }
    }
    Ok(Exit::Done)
}
