//! `imgsync run --dry-run`: a line per task with what would be done, found out by reading alone.

use std::sync::Arc;

use futures_util::StreamExt as _;
use imgsync_common::error::Result;
use imgsync_common::event::Events;
use imgsync_common::image::Reference;
use imgsync_common::layout::{ImageName, LayoutRef};
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_worker::copy::{Copier, Job, Limits, Location, Platforms};
use serde_json::json;

use super::args::RunArgs;
use super::exit::Exit;
use super::printer::Printer;
use super::run::folder;
use super::settings::Settings;
use super::signals;
use super::watching::Watching;
use crate::batches::{Dry, PlannedTask, Slice, Target};

/// Tasks that are looked at at a time.
const AT_ONCE: usize = 20;

pub(super) async fn run(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let mut client = settings.client()?;
    client.retry.attempts = args.patience.attempts;
    client.retry.first_delay = args.patience.retry_delay;
    client.stall = args.patience.stall_timeout;
    let client = Client::new(client, Environment::from_process());
    let context = Context { events: Events::to(Watching::new(printer, false)), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let slice =
        args.batch_size.map(|size| Slice { size, number: args.batch_number.unwrap_or(std::num::NonZeroUsize::MIN) });
    let dry = Dry {
        client: &client,
        context: &context,
        rules: &settings.config.rules,
        folder: folder(settings),
        slice,
        query_limit: args.query_limit.into(),
    };
    let planned = dry.plan(&Tally::new()).await?;
    let mut failed = planned.failed.len() + planned.unlisted.len();
    for (source, target, error) in &planned.failed {
        print(args, printer, source, target, "fail", Some(&error.to_string()));
    }
    let copier = Arc::new(Copier::new(client.clone(), Limits::default()));
    let mut looked = futures_util::stream::iter(planned.tasks)
        .map(|task| {
            let (copier, context) = (copier.clone(), context.clone());
            let rule = &settings.config.rules[task.rule];
            let platforms = Platforms::of_rule(&rule.platforms, rule.sparse);
            let place = dry.source_of(&task);
            async move {
                let target = location(&task.target, folder(settings));
                let job = Job { platforms, force: args.force, listed: task.digest.clone(), ..Job::new(place, target) };
                let same = copier.compare(&job, &context).await;
                (task, same)
            }
        })
        .buffered(AT_ONCE);
    let (mut copies, mut unchanged) = (0, 0);
    while let Some((task, same)) = looked.next().await {
        let PlannedTask { source, target, .. } = &task;
        let (what, error) = match same {
            Ok(Some(_)) if !args.force => ("unchanged", None),
            Ok(_) => ("copy", None),
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => ("fail", Some(error.to_string())),
        };
        match what {
            "copy" => copies += 1,
            "unchanged" => unchanged += 1,
            _ => failed += 1,
        }
        print(args, printer, &source.to_string(), &target.to_string(), what, error.as_deref());
    }
    printer.line(&format!("{copies} to copy, {unchanged} unchanged, {failed} failing; nothing was written"));
    Ok(if failed > 0 { Exit::Failed } else { Exit::Done })
}

fn print(args: &RunArgs, printer: &Printer, source: &str, target: &str, what: &str, error: Option<&str>) {
    if args.json {
        let mut line = json!({"source": source, "target": target, "action": what});
        if let Some(error) = error {
            line["error"] = error.into();
        }
        printer.data(&line.to_string());
        return;
    }
    printer.data(&match error {
        None => format!("{what} {source} {target}"),
        Some(error) => format!("{what} {source} {target} {error}"),
    });
}

fn location(target: &Target, folder: &std::path::Path) -> Location {
    match target {
        Target::Registry(name) => Location::Registry(Reference {
            registry: name.registry.clone(),
            repository: name.repository.clone(),
            tag: Some(name.tag.clone()),
            digest: None,
        }),
        Target::Layout { folder: layout, name, tag } => {
            let image = format!("{name}:{tag}").parse().map_or_else(|_| ImageName::Tag(tag.clone()), ImageName::Full);
            Location::Layout(LayoutRef { dir: folder.join(layout), image: Some(image) })
        }
    }
}
