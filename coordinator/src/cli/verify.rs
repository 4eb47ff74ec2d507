//! `imgsync verify`: compares targets with their sources, in a batch or for one image.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::image::{Digest, Platform};
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, Context};
use imgsync_common::retry::Policy;
use imgsync_worker::arguments::duration;
use imgsync_worker::copy::{Check, Copier, Finding, Job, Limits, Location, Platforms, WhichReferrers};
use serde::Serialize;

use super::args::{Global, Patience, Resumed, RunArgs, location};
use super::batch::by_prefix;
use super::exit::{self, Exit};
use super::notify::NotifyArgs;
use super::printer::Printer;
use super::report::ReportArgs;
use super::run::{Started, Work, fail, notifier, refuse_layouts};
use super::settings::Settings;
use super::watching::Watching;
use super::{signals, state};
use crate::words::many;

/// Compares targets with their sources.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// One image alone, and where its copy is; without both, what the rules of the configuration copy
    #[arg(value_name = "SOURCE", value_parser = location, requires = "target")]
    pub(crate) source: Option<Location>,
    /// Its copy; without a tag it has the source's
    #[arg(value_name = "TARGET", value_parser = location)]
    pub(crate) target: Option<Location>,
    /// Only this rule of the configuration, from 1; may be repeated
    #[arg(long, value_name = "N", conflicts_with_all = ["source", "batch"], value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rule: Vec<u32>,
    /// What this batch has copied or found unchanged: its id, or how that begins
    #[arg(long, value_name = "BATCH", conflicts_with = "source")]
    pub(crate) batch: Option<String>,
    /// Read all bytes of the targets; without it, it is asked whether they are there
    #[arg(long)]
    pub(crate) deep: bool,
    /// Of one image, this platform alone was copied
    #[arg(long, value_name = "PLATFORM", requires = "source")]
    pub(crate) platform: Option<Platform>,
    /// Of one image, do not look for signatures and other referrers
    #[arg(long, requires = "source")]
    pub(crate) no_referrers: bool,
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Images that are compared at a time [default: the configuration's, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// What one image is given (90s, 10m, 1h30m) [default: 10m, and more for large images with --deep]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Keep the state in this folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) patience: Patience,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
}

/// Output of `--json` for one image.
#[derive(Debug, Serialize)]
struct Output<'a> {
    source: &'a Location,
    target: &'a Location,
    #[serde(flatten)]
    result: Outcome<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcome<'a> {
    Equal(Figures<'a>),
    Differs(Figures<'a>),
    Failed { class: Class, error: String },
}

#[derive(Debug, Serialize)]
struct Figures<'a> {
    digest: &'a Digest,
    manifests: u64,
    blobs: u64,
    bytes: u64,
    referrers: u64,
    requests: Requests,
    findings: &'a [Finding],
}

#[derive(Debug, Serialize)]
struct Requests {
    source: u64,
    target: u64,
}

/// Runs the command.
pub(crate) async fn run(args: VerifyArgs, global: &Global, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if let (Some(source), Some(target)) = (&args.source, &args.target) {
        return one(&args, source, target, &settings, printer).await;
    }
    match several(args, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

/// Verifies the rules or an earlier batch, in a batch of its own.
async fn several(args: VerifyArgs, mut settings: Settings, printer: &Printer) -> Result<Exit> {
    let VerifyArgs { rule, batch, deep, json, report, concurrency, timeout, state, patience, notify, .. } = args;
    let rules = &mut settings.config.rules;
    if batch.is_none() && rules.is_empty() {
        let hint = "name a configuration with -c, a batch with --batch, or one image: imgsync verify SOURCE TARGET";
        printer.error("there are no rules to compare by", Some(hint));
        return Ok(Exit::Usage);
    }
    if let Some(beyond) = rule.iter().find(|number| **number as usize > rules.len()) {
        let detail = format!("there is no rule {beyond}: the configuration has {}", rules.len());
        return Err(Error::new(Class::Invalid, "choosing the rules", detail));
    }
    if !rule.is_empty() {
        let mut number = 0;
        rules.retain(|_| {
            number += 1;
            rule.contains(&number)
        });
    }
    let mut run: RunArgs = Resumed { json, report, concurrency, timeout, patience, notify }.into();
    run.state = state;
    run.verify = Some(deep);
    let wanted = run.report.resolve(&settings)?;
    let notifier = notifier(&run, &settings, printer)?;
    let house = state::open(&settings, run.state.as_ref()).await?;
    if house.is_cluster() {
        refuse_layouts(&settings)?;
    }
    let of = match batch {
        None => None,
        Some(prefix) => {
            let id = by_prefix(&*house.store, &prefix).await?;
            let found = house.store.batch(id).await?;
            Some(found.ok_or_else(|| {
                Error::new(Class::NotFound, format!("looking for batch {id}"), "the store does not have it")
            })?)
        }
    };
    let work = Work::new(&run, &settings, &house, printer)?;
    let (wanted, name) = (&wanted, run.report.report_name.as_deref());
    let mut made = match work.start(of.as_ref()).await? {
        Started::Made(made) => made,
        Started::Joined(id) => return work.report_joined(id, (wanted, name), run.json, printer).await,
        Started::Left => return Ok(Exit::Interrupted),
    };
    let (_lock, id) = (made.lock.take(), made.id);
    let ended = match &of {
        None => work.follow(id, &notifier, async |run| run.list_made(*made).await).await?,
        Some(of) => work.follow(id, &notifier, async |run| run.verify(*made, of).await).await?,
    };
    work.report(&ended, (wanted, name), run.json, &notifier, printer).await
}

/// Verifies one image.
async fn one(args: &VerifyArgs, source: &Location, target: &Location, settings: &Settings, printer: &Printer) -> Exit {
    match compare(args, source, target, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => {
            if args.json {
                let result = Outcome::Failed { class: error.class(), error: error.to_string() };
                print(printer, &Output { source, target, result });
            }
            printer.failure(&error);
            exit::of_error(&error)
        }
    }
}

async fn compare(
    args: &VerifyArgs,
    source: &Location,
    target: &Location,
    settings: &Settings,
    printer: &Printer,
) -> Result<Exit> {
    let mut client = settings.client()?;
    client.retry = Policy { attempts: args.patience.attempts, first_delay: args.patience.retry_delay, ..client.retry };
    client.retry.max_delay = client.retry.max_delay.max(client.retry.first_delay);
    client.stall = args.patience.stall_timeout;
    let context = Context { events: Events::to(Watching::new(printer, false)), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let defaults = Limits::default();
    let limits = Limits {
        time: args.timeout.unwrap_or(defaults.time),
        time_is_exact: args.timeout.is_some(),
        blobs: args.concurrency.map_or(defaults.blobs, usize::from),
    };
    if let Location::Layout(image) = target
        && !image.dir.is_dir()
    {
        let tried = format!("comparing {source} with {target}");
        return Err(Error::new(Class::NotFound, tried, format!("there is no folder {}", image.dir.display())));
    }
    let copier = Copier::new(Client::new(client, Environment::from_process()), limits);
    let job = Job {
        platforms: args.platform.clone().map_or(Platforms::All, Platforms::One),
        ..Job::new(source.clone(), target.clone())
    };
    let referrers = if args.no_referrers { WhichReferrers::None } else { WhichReferrers::All };
    let verified = copier.verify(&job, &Check { deep: args.deep, referrers }, &context).await?;
    let figures = Figures {
        digest: &verified.digest,
        manifests: verified.manifests,
        blobs: verified.blobs,
        bytes: verified.bytes,
        referrers: verified.referrers,
        requests: Requests { source: verified.source.requests, target: verified.target.requests },
        findings: &verified.findings,
    };
    let is_equal = verified.findings.is_empty();
    let seen = [
        many(verified.manifests, "manifest", "manifests"),
        many(verified.blobs, "blob", "blobs"),
        many(verified.referrers, "referrer", "referrers"),
    ]
    .join(", ");
    if args.json {
        let result = if is_equal { Outcome::Equal(figures) } else { Outcome::Differs(figures) };
        print(printer, &Output { source, target, result });
    } else {
        for finding in &verified.findings {
            printer.data(&finding.detail);
        }
        if is_equal {
            printer.data(&format!("equal {}", verified.digest));
        }
    }
    match verified.error(&job) {
        None => {
            printer.line(&format!("{target} has all that {source} has: {seen}"));
            Ok(Exit::Done)
        }
        Some(error) => {
            let differences = many(verified.findings.len() as u64, "place", "places");
            printer.error(&format!("{target} differs from {source} in {differences}"), error.advice());
            Ok(Exit::Failed)
        }
    }
}

fn print(printer: &Printer, output: &Output<'_>) {
    // These types always serialize.
    printer.data(&serde_json::to_string(output).unwrap_or_default());
}
