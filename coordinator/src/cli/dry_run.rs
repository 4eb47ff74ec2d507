//! `imgsync run --dry-run`: prints the planned action of each task, using read requests only.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use imgsync_layout::{ArchiveRef, ImageName, LayoutRef};
use imgsync_oci::Reference;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::Events;
use imgsync_registry::{Access, Client, Context, TrafficCounters};
use imgsync_worker::copy::{Copier, CopyLimits, CopyRequest, ImageLocation, Overwrite, PlatformSelection};
use serde_json::json;

use super::batch_progress::BatchProgress;
use super::exit::Exit;
use super::printer::Printer;
use super::run_args::RunArgs;
use super::settings::{Settings, config_dir};
use super::{backend, signals};
use crate::orchestrator::{DryRun, PlannedTarget, PlannedTask, PrunePlan, Slice};

const MAX_CONCURRENT_COMPARISONS: usize = 20;
/// Maximum number of different hints in the error of a dry run.
const MAX_HINTS: usize = 3;

pub(super) async fn run(args: &RunArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let mut client = settings.client()?;
    client.retry.attempts = args.retry.attempts;
    client.retry.first_delay = args.retry.retry_delay;
    client.stall_timeout = args.retry.stall_timeout;
    let client = Client::new(client, CredentialEnvironment::from_process());
    let context = Context { events: Events::new(BatchProgress::new(printer, false)), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let slice =
        args.batch_size.map(|size| Slice { size, number: args.batch_number.unwrap_or(std::num::NonZeroUsize::MIN) });
    let store = match settings.config.rules.iter().any(|rule| rule.prune.is_some()) {
        true => Some(backend::open_store(settings, args.state.as_ref()).await?),
        false => None,
    };
    let dry = DryRun {
        client: &client,
        context: &context,
        rules: &settings.config.rules,
        folder: config_dir(settings),
        slice,
        query_limit: args.query_limit.into(),
        store: store.as_deref(),
    };
    let mut planned = dry.plan(&TrafficCounters::new()).await?;
    let prunings = std::mem::take(&mut planned.prune_plans);
    let targets: HashSet<String> = planned.tasks.iter().map(|task| task.target.to_string()).collect();
    let mut failed = planned.failed.len();
    let (total, unlisted) = (planned.tasks.len() + failed, std::mem::take(&mut planned.unlisted));
    for (source, target, error) in &planned.failed {
        print(args, printer, (source, target), "fail", (None, Some(&error.to_string())));
    }
    let copier = Arc::new(Copier::new(client.clone(), CopyLimits::default()));
    let mut comparisons = futures_util::stream::iter(planned.tasks)
        .map(|task| {
            let (copier, context) = (copier.clone(), context.clone());
            let rule = &settings.config.rules[task.rule];
            let platforms = PlatformSelection::from_rule(&rule.platforms, rule.sparse);
            let policy = rule.policy.clone().map(Arc::new);
            let source = dry.source_location(&task);
            let is_immutable =
                settings.config.rules[task.rule].immutable.iter().any(|p| p.matches(task.source.tag.as_str()));
            async move {
                let target = to_location(&task.target, config_dir(settings));
                let job = CopyRequest {
                    platforms,
                    policy,
                    force: args.force,
                    listed_digest: task.digest.clone(),
                    overwrite: if is_immutable { Overwrite::Never } else { Overwrite::Allowed },
                    ..CopyRequest::new(source, target)
                };
                let same = copier.compare(&job, &context).await;
                (task, same)
            }
        })
        .buffered(MAX_CONCURRENT_COMPARISONS);
    let (mut copies, mut unchanged) = (0_u64, 0_u64);
    let mut written = BTreeMap::new();
    while let Some((task, same)) = comparisons.next().await {
        let PlannedTask { source, target, .. } = &task;
        let (what, error) = match same {
            Ok(Some(_)) if !args.force => ("unchanged", None),
            Ok(_) => ("copy", None),
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => ("fail", Some(error.to_string())),
        };
        match what {
            "copy" => {
                copies += 1;
                if let PlannedTarget::Registry(name) = target {
                    written.entry(name.registry.to_string()).or_insert_with(|| name.clone());
                }
            }
            "unchanged" => unchanged += 1,
            _ => failed += 1,
        }
        let rule = settings.config.rules[task.rule].title();
        print(args, printer, (&source.to_string(), &target.to_string()), what, (Some(&rule), error.as_deref()));
    }
    for target in written.values() {
        let counters = TrafficCounters::new();
        let repository = client.repository(&target.registry, &target.repository, Access::Push, &context, &counters)?;
        if repository.rejects_credentials().await? {
            let registry = &target.registry;
            printer.warning(&format!(
                "{registry} rejects the stored credentials; pushes will fail: check its user and password in `docker \
                 login` or `registries`"
            ));
        }
    }
    let removals = print_removals(args, settings, printer, prunings, &targets);
    let mut parts = vec![(copies, "to copy"), (unchanged, "unchanged"), (failed as u64, "failing")];
    parts.extend(
        [(unlisted.len() as u64, "not listed"), (removals as u64, "to remove")].iter().filter(|part| part.0 > 0),
    );
    let parts: Vec<String> = parts.iter().map(|(count, what)| format!("{} {what}", group_digits(*count))).collect();
    printer.line(&format!("{}; nothing was written", parts.join(", ")));
    report_incomplete(failed as u64, &unlisted, printer);
    Ok(match () {
        () if total == 0
            && !unlisted.is_empty()
            && unlisted.iter().all(|(_, error)| error.kind() == ErrorKind::Unreachable) =>
        {
            Exit::CouldNotStart
        }
        () if failed > 0 || !unlisted.is_empty() => Exit::Failed,
        () => Exit::Done,
    })
}

/// Prints the error of a dry run that found failures, with the hints of the listings that failed.
fn report_incomplete(failed: u64, unlisted: &[(String, Error)], printer: &Printer) {
    let parts = [(failed, "failing"), (unlisted.len() as u64, "not listed")];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", group_digits(*count)))
        .collect();
    if parts.is_empty() {
        return;
    }
    let mut hints: Vec<&str> = Vec::new();
    for hint in unlisted.iter().filter_map(|(_, error)| error.hint()) {
        if hints.len() < MAX_HINTS && !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    let hint = match hints.is_empty() {
        true => "the output says why, for each image".to_owned(),
        false => hints.join("; "),
    };
    printer.error(&format!("the dry run is incomplete: {}", parts.join(", ")), Some(&hint));
}

/// Prints the planned removals and returns their number.
fn print_removals(
    args: &RunArgs,
    settings: &Settings,
    printer: &Printer,
    prunings: Vec<PrunePlan>,
    targets: &HashSet<String>,
) -> usize {
    let mut removals = 0;
    for mut pruning in prunings {
        let rule = &settings.config.rules[pruning.rule];
        let (label, title) = (rule.label(), rule.title());
        if pruning.waiting() > 0 {
            let waiting = pluralize(pruning.waiting(), "tag is", "tags are");
            printer.line(&format!("{label}: {waiting} gone at the source, and kept until `keep_days` have passed"));
        }
        let left = pruning.take_unauthenticated().len() as u64;
        if left > 0 {
            let left = pluralize(left, "tag is", "tags are");
            printer.line(&format!(
                "{label}: {left} gone at the source, and kept: the record is not signed with this cluster.key"
            ));
        }
        match pruning.finalize() {
            Err(why) => printer.line(&format!("{label}: nothing would be removed: {why}")),
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
    printer.text(&match error {
        None => format!("{what} {source} {target}"),
        Some(error) => format!("{what} {source} {target} {error}"),
    });
}

fn to_location(target: &PlannedTarget, folder: &std::path::Path) -> ImageLocation {
    match target {
        PlannedTarget::Registry(name) => ImageLocation::Registry(Reference {
            registry: name.registry.clone(),
            repository: name.repository.clone(),
            tag: Some(name.tag.clone()),
            digest: None,
        }),
        PlannedTarget::Layout { folder: layout, name, tag } => {
            let image = format!("{name}:{tag}").parse().map_or_else(|_| ImageName::Tag(tag.clone()), ImageName::Full);
            ImageLocation::Layout(LayoutRef { dir: folder.join(layout), image: Some(image) })
        }
        PlannedTarget::Archive { format, file, name, tag } => {
            let image = format!("{name}:{tag}").parse().map_or_else(|_| ImageName::Tag(tag.clone()), ImageName::Full);
            let (format, file) = (*format, folder.join(file));
            ImageLocation::Archive(ArchiveRef { format, file, image: Some(image) })
        }
    }
}
