//! `imgsync batch …`: looking at batches and steering them, also from another terminal while a run goes on.

use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::store::{Batch, Control, RequeueFilter};
use serde_json::json;

use super::args::{BatchArgs, BatchCommand, Global, Named, ReportArgs, RunArgs};
use super::exit::Exit;
use super::printer::Printer;
use super::run::{Work, fail};
use super::settings::Settings;
use super::state;
use super::watching::progress_line;
use crate::batches::House;
use crate::report::{self, Level, Report};

/// How often `watch` looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) async fn run(args: BatchArgs, global: &Global, printer: &Printer) -> Exit {
    match work(args, global, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn work(args: BatchArgs, global: &Global, printer: &Printer) -> Result<Exit> {
    let house = state::open(args.state.as_ref()).await?;
    match args.command {
        BatchCommand::List { json, limit } => list(&house, json, limit, printer).await,
        BatchCommand::Show { id, json } => show(&house, &id, json, printer).await,
        BatchCommand::Watch { id } => watch(&house, &id, printer).await,
        BatchCommand::Pause { id } => {
            let id = resolve(&house, &id).await?;
            say(printer, id, house.store.pause(id).await?, Control::Paused)
        }
        BatchCommand::Cancel { id } => {
            let id = resolve(&house, &id).await?;
            say(printer, id, house.store.cancel(id).await?, Control::Cancelled)
        }
        BatchCommand::Resume { id, run } => resume(&house, &id, (*run).into(), global, printer).await,
        BatchCommand::Requeue { id, class, registry, run } => {
            let filter = match (class, registry) {
                (Some(class), _) => RequeueFilter::Class(class),
                (None, Some(registry)) => RequeueFilter::Registry(registry),
                (None, None) => RequeueFilter::All,
            };
            let id = resolve(&house, &id).await?;
            let requeued = house.store.requeue(id, filter).await?;
            printer.line(&format!("{requeued} failed images go back into the plan of batch {id}"));
            match requeued {
                0 => Ok(Exit::Done),
                // Where a run goes on, it takes them up; else they are run here.
                _ => resume(&house, &Named { batch: Some(id.to_string()) }, (*run).into(), global, printer).await,
            }
        }
        BatchCommand::Report { id, report } => write_report(&house, &id, &report, printer).await,
    }
}

/// The batch that was named, by its id or the beginning of it; the newest where none was.
async fn resolve(house: &House, id: &Named) -> Result<BatchId> {
    match &id.batch {
        Some(prefix) => house.store.resolve(prefix).await,
        None => house.store.batches(1).await?.first().map(|batch| batch.id).ok_or_else(|| {
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

async fn list(house: &House, json: bool, limit: usize, printer: &Printer) -> Result<Exit> {
    let batches = house.store.batches(limit).await?;
    if !json && !batches.is_empty() {
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

async fn show(house: &House, id: &Named, json: bool, printer: &Printer) -> Result<Exit> {
    let id = resolve(house, id).await?;
    let report = Report::of(&*house.store, id).await?;
    if json {
        printer.data(&to_json(&report.batch).to_string());
        return Ok(Exit::Done);
    }
    let mut text = Vec::new();
    report::write_text(&report, Level::Failures, &mut text).await?;
    printer.data(String::from_utf8_lossy(&text).trim_end());
    Ok(Exit::Done)
}

async fn watch(house: &House, id: &Named, printer: &Printer) -> Result<Exit> {
    let id = resolve(house, id).await?;
    let mut before = None;
    loop {
        let tried = format!("watching batch {id}");
        let batch = house.store.batch(id).await?.ok_or_else(|| Error::new(Class::NotFound, tried, "it is gone"))?;
        if before != Some(batch.counts) || batch.ended_at.is_some() {
            let elapsed = Duration::try_from(house.clock.now().duration_since(batch.created_at)).unwrap_or_default();
            let line = progress_line(&batch, batch.spent.bytes.copied, elapsed);
            printer.data(&format!("{} of {}: {line}", batch.counts.ended(), batch.counts.total));
        }
        if batch.ended_at.is_some() {
            return Ok(if batch.counts.failed + batch.counts.cancelled > 0 { Exit::Failed } else { Exit::Done });
        }
        before = Some(batch.counts);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn resume(house: &House, id: &Named, run: RunArgs, global: &Global, printer: &Printer) -> Result<Exit> {
    let id = resolve(house, id).await?;
    let _lock = match house.lock() {
        Ok(lock) => lock,
        // A run goes on in another process: it will take up what is resumed.
        Err(_) => {
            let now = house.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}; the run in the other process goes on with it"));
            return Ok(Exit::Done);
        }
    };
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return Ok(exit),
    };
    let work = Work::new(&run, &settings, house, printer)?;
    let ended = work.follow(id, async |run| run.again(id).await).await?;
    work.report(&ended, &run.report, run.json, printer).await
}

async fn write_report(house: &House, id: &Named, args: &ReportArgs, printer: &Printer) -> Result<Exit> {
    let id = resolve(house, id).await?;
    let report = Report::of(&*house.store, id).await?;
    let level = Level::from_number(args.report_level);
    match args.report.clone().flatten() {
        Some(file) => {
            report::write_file(&report, level, &file).await?;
            printer.line(&format!("the report is in {}", file.display()));
        }
        None => {
            let mut text = Vec::new();
            report::write_text(&report, level, &mut text).await?;
            printer.data(String::from_utf8_lossy(&text).trim_end());
        }
    }
    Ok(Exit::Done)
}
