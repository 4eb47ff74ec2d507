//! `imgsync batch …`: looking at batches and steering them, also from another terminal while a run goes on.

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::Client;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::store::{Batch, Control, RequeueFilter, Store, leader};
use serde_json::json;

use super::args::{BatchArgs, BatchCommand, Global, Named, RunArgs};
use super::exit::Exit;
use super::printer::Printer;
use super::report::Wanted;
use super::run::{Work, fail, notifier};
use super::settings::Settings;
use super::state;
use super::watch::watch;
use crate::batches::{Crew, House, SERVE, coordinator_name, living_leader, waits};
use crate::report::{self, Level, Report};

/// Running tasks that are shown, at the most.
const MOST_AT_WORK: usize = 50;

/// Runs the command.
pub(crate) async fn run(args: BatchArgs, global: &Global, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match work(args, &settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn work(args: BatchArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let store = async || state::store(settings, args.state.as_ref()).await;
    match args.command {
        BatchCommand::List { json, limit } => list(&*store().await?, json, limit, printer).await,
        BatchCommand::Show { id, json } => {
            let is_cluster = settings.cluster()?.is_some() && args.state.is_none();
            show(&*store().await?, &id, (json, is_cluster), settings, printer).await
        }
        BatchCommand::Watch { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            let client = Client::new(settings.client()?, Environment::from_process());
            let is_cluster = settings.cluster()?.is_some() && args.state.is_none();
            watch(&*store, id, (&client, is_cluster), printer).await
        }
        BatchCommand::Pause { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            say(printer, id, store.pause(id).await?, Control::Paused)
        }
        BatchCommand::Cancel { id } => {
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            say(printer, id, store.cancel(id).await?, Control::Cancelled)
        }
        BatchCommand::Resume { id, run } => {
            let house = state::open(settings, args.state.as_ref()).await?;
            let id = resolve(&*house.store, &id).await?;
            resume(&house, id, (*run).into(), settings, printer).await
        }
        BatchCommand::Requeue { id, class, registry, run } => {
            let filter = match (class, registry) {
                (Some(class), _) => RequeueFilter::Class(class),
                (None, Some(registry)) => RequeueFilter::Registry(registry),
                (None, None) => RequeueFilter::All,
            };
            let house = state::open(settings, args.state.as_ref()).await?;
            let id = resolve(&*house.store, &id).await?;
            let requeued = house.store.requeue(id, filter).await?;
            printer.line(&format!("{requeued} failed images go back into the plan of batch {id}"));
            match requeued {
                0 => Ok(Exit::Done),
                // Where a run goes on, it takes them up; else they are run here.
                _ => resume(&house, id, (*run).into(), settings, printer).await,
            }
        }
        BatchCommand::Report { id, report } => {
            // The file that is configured is for runs.
            let wanted = report.resolve(&settings.without_report())?;
            write_report(&*store().await?, &id, (&wanted, report.report_name.as_deref()), printer).await
        }
    }
}

/// The batch that was named, by its id or the beginning of it; the newest where none was.
async fn resolve(store: &dyn Store, id: &Named) -> Result<BatchId> {
    match &id.batch {
        Some(prefix) => store.resolve(prefix).await,
        None => store.batches(1).await?.first().map(|batch| batch.id).ok_or_else(|| {
            Error::new(Class::NotFound, "looking for the newest batch", "there is none yet")
                .hint("`imgsync run` makes one")
        }),
    }
}

fn say(printer: &Printer, id: BatchId, now: Control, wanted: Control) -> Result<Exit> {
    match now == wanted {
        true => {
            printer.line(&format!("batch {id} is {now}"));
            Ok(Exit::Done)
        }
        false => Err(Error::new(Class::Invalid, format!("changing batch {id}"), format!("it is {now}"))),
    }
}

async fn list(store: &dyn Store, json: bool, limit: usize, printer: &Printer) -> Result<Exit> {
    let batches = store.batches(limit).await?;
    if batches.is_empty() {
        printer.line("no batch was made yet: `imgsync run` makes one");
    } else if !json {
        printer.line(&format!(
            "{:<36}  {:<10}  {:<19}  {:>7} {:>7} {:>9} {:>6} {:>9}",
            "BATCH", "STATE", "STARTED (UTC)", "TOTAL", "COPIED", "UNCHANGED", "FAILED", "CANCELLED"
        ));
    }
    for batch in batches {
        let counts = &batch.counts;
        printer.data(&match json {
            true => to_json(&batch).to_string(),
            false => format!(
                "{:<36}  {:<10}  {:<19}  {:>7} {:>7} {:>9} {:>6} {:>9}",
                batch.id.to_string(),
                batch.control.as_str(),
                batch.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                counts.total,
                counts.copied,
                counts.unchanged,
                counts.failed,
                counts.cancelled
            ),
        });
    }
    Ok(Exit::Done)
}

fn to_json(batch: &Batch) -> serde_json::Value {
    json!({
        "batch": batch.id,
        "state": batch.control,
        "counts": batch.counts,
        "bytes": batch.spent.bytes,
        "requests": batch.spent.requests,
        "started": batch.created_at.to_string(),
        "sealed": batch.sealed_at.map(|time| time.to_string()),
        "ended": batch.ended_at.map(|time| time.to_string()),
        "run": batch.run,
        "supersedes": batch.supersedes,
    })
}

async fn show(
    store: &dyn Store,
    id: &Named,
    (json, is_cluster): (bool, bool),
    settings: &Settings,
    printer: &Printer,
) -> Result<Exit> {
    let id = resolve(store, id).await?;
    let report = Report::of(store, id).await?;
    let crew = match is_cluster {
        true => Some(Crew::of(store, &report.batch).await?),
        false => None,
    };
    let client = Client::new(settings.client()?, Environment::from_process());
    let waits = waits(store, &report.batch, &client).await?;
    if json {
        let mut shown = to_json(&report.batch);
        shown["waits"] = json!(waits);
        if let Some(crew) = &crew {
            shown["workers"] = json!(crew.workers);
            shown["complaints"] = json!(crew.complaints());
        }
        printer.data(&shown.to_string());
        return Ok(Exit::Done);
    }
    let mut text = Vec::new();
    report::write_text(&report, Level::Failures, &mut text).await?;
    printer.data(String::from_utf8_lossy(&text).trim_end());
    for wait in waits {
        printer.data(&format!("Waiting: {wait}"));
    }
    if let Some(crew) = crew {
        show_crew(id, &crew, printer);
    }
    Ok(Exit::Done)
}

/// Who works, on what, and what keeps the batch from going on.
fn show_crew(id: BatchId, crew: &Crew, printer: &Printer) {
    let slots: u32 = crew.workers.iter().map(|worker| worker.slots).sum();
    let running: usize = crew.workers.iter().map(|worker| worker.running.len()).sum();
    printer.data(&format!("Workers: {}, {running} of {slots} slots busy", crew.workers.len()));
    for (worker, source, target) in crew.at_work(id).take(MOST_AT_WORK) {
        printer.data(&format!("  {worker}: {source} -> {target}"));
    }
    for complaint in crew.complaints() {
        printer.data(&format!("Attention: {complaint}"));
    }
}

async fn resume(house: &House, id: BatchId, run: RunArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let _lock = match house.lock() {
        Ok(lock) => lock,
        // A run goes on in another process: it will take up what is resumed.
        Err(_) => {
            let now = house.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}; the run in the other process goes on with it"));
            return Ok(Exit::Done);
        }
    };
    // What is listed is left to whoever leads already; a listing that was broken off is gone on with here.
    if house.is_cluster() && house.store.batch(id).await?.is_some_and(|batch| batch.sealed_at.is_some()) {
        let asks = format!("resume on {}", coordinator_name());
        let led_by = match living_leader(house, &leader(&id.to_string()), &asks).await? {
            Some(holder) => Some(holder),
            None => living_leader(house, &leader(SERVE), &asks).await?,
        };
        if let Some(holder) = led_by {
            let now = house.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}, and led by {holder}; `imgsync batch watch {id}` follows it"));
            return Ok(Exit::Done);
        }
    }
    let wanted = run.report.resolve(settings)?;
    let notifier = notifier(&run, settings, printer)?;
    let work = Work::new(&run, settings, house, printer)?;
    let ended = work.follow(id, &notifier, async |run| run.again(id).await).await?;
    work.report(&ended, (&wanted, run.report.report_name.as_deref()), run.json, &notifier, printer).await
}

async fn write_report(
    store: &dyn Store,
    id: &Named,
    (wanted, name): (&Wanted, Option<&str>),
    printer: &Printer,
) -> Result<Exit> {
    let id = resolve(store, id).await?;
    let mut report = Report::of(store, id).await?;
    if let Some(name) = name {
        report.title = name.to_owned();
    }
    match &wanted.file {
        Some(file) => {
            report::write_file(&report, &wanted.shape, file).await?;
            printer.line(&format!("the report is in {}", file.display()));
        }
        None => {
            let mut text = Vec::new();
            report::write(&report, &wanted.shape, &mut text).await?;
            printer.data(String::from_utf8_lossy(&text).trim_end());
        }
    }
    Ok(Exit::Done)
}
