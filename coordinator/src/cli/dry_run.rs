//! `imgsync run --dry-run`: prints the planned action of each task, using read requests only.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use imgsync_common::error::{Class, Result};
use imgsync_common::event::Events;
use imgsync_common::image::Reference;
use imgsync_common::layout::{ImageName, LayoutRef};
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_worker::copy::{Copier, Job, Limits, Location, Overwrite, Platforms};
use serde_json::json;

use super::args::RunArgs;
use super::exit::Exit;
use super::printer::Printer;
use super::run::folder;
use super::settings::Settings;
use super::watching::Watching;
use super::{signals, state};
use crate::batches::{Dry, PlannedTask, Pruning, Slice, Target};
use crate::words::many;

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
    let store = match settings.config.rules.iter().any(|rule| rule.prune.is_some()) {
        true => Some(state::store(settings, args.state.as_ref()).await?),
        false => None,
    };
    let dry = Dry {
        client: &client,
        context: &context,
        rules: &settings.config.rules,
        folder: folder(settings),
        slice,
        query_limit: args.query_limit.into(),
        store: store.as_deref(),
    };
    let mut planned = dry.plan(&Tally::new()).await?;
    let prunings = std::mem::take(&mut planned.prunings);
    let targets: HashSet<String> = planned.tasks.iter().map(|task| task.target.to_string()).collect();
    let mut failed = planned.failed.len();
    let (total, unlisted) = (planned.tasks.len() + failed, std::mem::take(&mut planned.unlisted));
    for (source, target, error) in &planned.failed {
        print(args, printer, (source, target), "fail", (None, Some(&error.to_string())));
    }
    let copier = Arc::new(Copier::new(client.clone(), Limits::default()));
    let mut looked = futures_util::stream::iter(planned.tasks)
        .map(|task| {
            let (copier, context) = (copier.clone(), context.clone());
            let rule = &settings.config.rules[task.rule];
            let platforms = Platforms::of_rule(&rule.platforms, rule.sparse);
            let place = dry.source_of(&task);
            let is_immutable =
                settings.config.rules[task.rule].immutable.iter().any(|p| p.matches(task.source.tag.as_str()));
            async move {
                let target = location(&task.target, folder(settings));
                let job = Job {
                    platforms,
                    force: args.force,
                    listed: task.digest.clone(),
                    overwrite: if is_immutable { Overwrite::Never } else { Overwrite::Allowed },
                    ..Job::new(place, target)
                };
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
        let rule = settings.config.rules[task.rule].title();
        print(args, printer, (&source.to_string(), &target.to_string()), what, (Some(&rule), error.as_deref()));
    }
    let removals = removals(args, settings, printer, prunings, &targets);
    let removing = if removals > 0 { format!(", {removals} to remove") } else { String::new() };
    let not_listed = if unlisted.is_empty() { String::new() } else { format!(", {} not listed", unlisted.len()) };
    printer.line(&format!(
        "{copies} to copy, {unchanged} unchanged, {failed} failing{not_listed}{removing}; nothing was written"
    ));
    Ok(match () {
        () if total == 0
            && !unlisted.is_empty()
            && unlisted.iter().all(|(_, error)| error.class() == Class::Unreachable) =>
        {
            Exit::CouldNotStart
        }
        () if failed > 0 || !unlisted.is_empty() => Exit::Failed,
        () => Exit::Done,
    })
}

/// Prints the planned removals and returns their number.
fn removals(
    args: &RunArgs,
    settings: &Settings,
    printer: &Printer,
    prunings: Vec<Pruning>,
    targets: &HashSet<String>,
) -> usize {
    let mut removals = 0;
    for mut pruning in prunings {
        let rule = &settings.config.rules[pruning.rule];
        let (place, title) = (rule.place(), rule.title());
        if pruning.waiting() > 0 {
            let waiting = many(pruning.waiting(), "tag is", "tags are");
            printer.line(&format!("{place}: {waiting} gone at the source, and kept for now"));
        }
        let left = pruning.take_unauthenticated().len() as u64;
        if left > 0 {
            let left = many(left, "tag is", "tags are");
            printer.line(&format!("{place}: {left} gone at the source, and left: not recorded with this cluster.key"));
        }
        match pruning.decide() {
            Err(why) => printer.line(&format!("{place}: nothing would be removed: {why}")),
            Ok(due) => {
                for due in due.into_iter().filter(|due| !targets.contains(&due.target.to_string())) {
                    removals += 1;
                    let ends = (due.source.to_string(), due.target.to_string());
                    print(args, printer, (&ends.0, &ends.1), "remove", (Some(&title), None));
                }
            }
        }
    }
    removals
}

/// Prints a line: the action, and the rule and the error if they are known.
fn print(
    args: &RunArgs,
    printer: &Printer,
    (source, target): (&str, &str),
    what: &str,
    (rule, error): (Option<&str>, Option<&str>),
) {
    if args.json {
        let mut line = json!({"source": source, "target": target, "action": what});
        if let Some(rule) = rule {
            line["rule"] = rule.into();
        }
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
