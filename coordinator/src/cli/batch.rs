//! `imgsync batch …`: shows and controls batches, also while another process runs them.

use imgsync_common::batch::{BatchId, Options};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::Client;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::store::{Batch, Control, LockUse, RequeueFilter, Store, leader, listing};
use serde_json::json;

use super::args::{BatchArgs, BatchCommand, Global, Named, RunArgs};
use super::exit::Exit;
use super::printer::Printer;
use super::report::Wanted;
use super::run::{Work, fail, notifier};
use super::settings::Settings;
use super::show::Shown;
use super::state;
use super::watch::watch;
use crate::batches::{BatchView, House, SERVE, coordinator_name, living_leader, owner};
use crate::report::{self, Report};
use crate::words::many;

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
        BatchCommand::Show { id, json, failures } => {
            let is_cluster = settings.cluster()?.is_some() && args.state.is_none();
            let store = store().await?;
            let id = resolve(&*store, &id).await?;
            let shown = Shown::read(&*store, id, is_cluster, settings).await?;
            match json {
                true => _ = printer.data(&shown.to_json(failures).await?.to_string()),
                false => shown.print(failures, printer).await?,
            }
            Ok(Exit::Done)
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
            let batch = look(&*house.store, id).await?;
            if batch.ended_at.is_some() {
                let detail = format!("it is {}", batch.control);
                return Err(Error::new(Class::Invalid, format!("resuming batch {id}"), detail).hint(
                    match batch.control {
                        Control::Done => format!("`imgsync batch requeue {id}` tries its failed images again"),
                        _ => "run the rules again: what is there is not copied twice".to_owned(),
                    },
                ));
            }
            resume(&house, id, ((*run).into(), None), settings, printer).await
        }
        BatchCommand::Requeue { id, class, registry, run } => {
            let house = state::open(settings, args.state.as_ref()).await?;
            let id = resolve(&*house.store, &id).await?;
            let requeued = house.store.requeue(id, RequeueFilter { class, registry }).await?;
            printer.line(&format!("{} of batch {id} requeued", many(requeued, "failed image", "failed images")));
            match requeued {
                0 => {
                    let now = look(&*house.store, id).await?.control;
                    print_steered(run.json, json!({"batch": id, "state": now, "requeued": 0}), printer);
                    Ok(Exit::Done)
                }
                // The process that runs the batch picks them up; if there is none, this process runs them.
                _ => resume(&house, id, ((*run).into(), Some(requeued)), settings, printer).await,
            }
        }
        BatchCommand::Report { id, report } => {
            // The configured file is for runs.
            let wanted = report.resolve(&settings.without_report())?;
            write_report(&*store().await?, &id, (&wanted, report.report_name.as_deref()), printer).await
        }
    }
}

/// Resolves a batch by its id or a prefix of it; by default the newest batch.
async fn resolve(store: &dyn Store, id: &Named) -> Result<BatchId> {
    match &id.batch {
        Some(prefix) => by_prefix(store, prefix).await,
        None => store.batches(1).await?.first().map(|batch| batch.id).ok_or_else(|| {
            Error::new(Class::NotFound, "looking for the newest batch", "there is none yet")
                .hint("`imgsync run` makes one")
        }),
    }
}

/// Finds a batch by a prefix of its id. An unknown id is a usage error.
pub(super) async fn by_prefix(store: &dyn Store, prefix: &str) -> Result<BatchId> {
    store.resolve(prefix).await.map_err(|error| match error.class() {
        Class::NotFound => error.as_class(Class::Invalid),
        _ => error,
    })
}

async fn look(store: &dyn Store, id: BatchId) -> Result<Batch> {
    store.batch(id).await?.ok_or_else(|| {
        Error::new(Class::NotFound, format!("reading batch {id}"), "the store does not have it any more")
            .hint("imgsync batch list shows those that there are")
    })
}

/// Prints the result of a control command on a batch that another process runs.
fn print_steered(json: bool, result: serde_json::Value, printer: &Printer) {
    if json {
        printer.data(&result.to_string());
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
    let batches = BatchView::of_all(store, store.batches(limit).await?).await?;
    if batches.is_empty() {
        printer.line("no batch was made yet: `imgsync run` makes one");
    } else if !json {
        printer.data(&format!(
            "{:<36}  {:<11}  {:<19}  {:>7} {:>7} {:>9} {:>6} {:>9}",
            "BATCH", "STATE", "STARTED (UTC)", "TOTAL", "COPIED", "UNCHANGED", "FAILED", "CANCELLED"
        ));
    }
    for view in &batches {
        let batch = &view.batch;
        let counts = &batch.counts;
        printer.data(&match json {
            true => to_json(view).to_string(),
            false => format!(
                "{:<36}  {:<11}  {:<19}  {:>7} {:>7} {:>9} {:>6} {:>9}",
                batch.id.to_string(),
                view.state.as_str(),
                batch.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                counts.total,
                counts.copied,
                counts.unchanged,
                counts.failed,
                counts.cancelled
            ),
        });
    }
    if !json {
        let notices = batches.iter().filter_map(|view| Some((view.batch.id, view.notice()?)));
        notices.for_each(|(id, notice)| printer.line(&format!("batch {id}: {notice}")));
    }
    Ok(Exit::Done)
}

pub(super) fn to_json(view: &BatchView) -> serde_json::Value {
    let batch = &view.batch;
    // A list shows what it can; commands on a single batch report options that cannot be decoded.
    let options = Options::decode(&batch.options, "a batch").unwrap_or_default();
    json!({
        "batch": batch.id,
        "state": view.state,
        "owner": view.owner,
        "resume": view.resume(),
        "priority": options.priority(),
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

async fn resume(
    house: &House,
    id: BatchId,
    (run, requeued): (RunArgs, Option<u64>),
    settings: &Settings,
    printer: &Printer,
) -> Result<Exit> {
    let steered = |state: Control, led_by: Option<&str>| {
        let mut result = json!({"batch": id, "state": state});
        if let Some(requeued) = requeued {
            result["requeued"] = json!(requeued);
        }
        if let Some(leader) = led_by {
            result["led_by"] = json!(leader);
        }
        result
    };
    let _lock = match house.try_lock(LockUse::Run).await? {
        Ok(lock) => lock,
        Err(holder) if owner(&*house.store, &look(&*house.store, id).await?).await?.is_none() => {
            return Err(house.lock_refusal(&holder));
        }
        // The run in the other process picks up the resumed batch.
        Err(_) => {
            let now = house.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}; the run in the other process goes on with it"));
            print_steered(run.json, steered(now, None), printer);
            return Ok(Exit::Done);
        }
    };
    // The process that lists or leads the batch continues it; an interrupted listing is resumed here.
    if house.is_cluster() {
        let asks = format!("resume on {}", coordinator_name());
        let is_listed = look(&*house.store, id).await?.sealed_at.is_some();
        let led_by = match is_listed {
            false => living_leader(house, &listing(id), &asks).await?,
            true => match living_leader(house, &leader(&id.to_string()), &asks).await? {
                Some(holder) => Some(holder),
                None => living_leader(house, &leader(SERVE), &asks).await?,
            },
        };
        if let Some(holder) = led_by {
            let holder = holder.replacen(&format!(" {id}"), "", 1);
            let now = house.store.resume(id).await?;
            printer.line(&format!("batch {id} is {now}, and led by {holder}; `imgsync batch watch {id}` follows it"));
            print_steered(run.json, steered(now, Some(&holder)), printer);
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
        Some(file) => match report::write_file(&report, &wanted.shape, file).await {
            Ok(()) => printer.line(&format!("the report is in {}", file.display())),
            Err(error) => printer.lost_file(&error),
        },
        None => {
            let mut text = Vec::new();
            report::write(&report, &wanted.shape, &mut text).await?;
            printer.data(String::from_utf8_lossy(&text).trim_end());
        }
    }
    Ok(Exit::Done)
}
