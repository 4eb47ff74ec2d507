//! `imgsync verify`: compares targets with their sources, in a batch or for one image.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::{Digest, Platform};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::Events;
use imgsync_registry::{Client, Context};
use imgsync_worker::cli::parse_duration;
use imgsync_worker::copy::{
    Copier, CopyLimits, CopyRequest, Finding, FindingKind, ImageLocation, PlatformSelection, RequiredReferrers,
    VerifySettings,
};
use serde::Serialize;

use super::batch::find_by_prefix;
use super::batch_progress::BatchProgress;
use super::exit::{self, Exit, fail};
use super::global::GlobalArgs;
use super::notify::NotifyArgs;
use super::printer::Printer;
use super::report::ReportArgs;
use super::retry_args::RetryArgs;
use super::rule_selection::{select_rules, settings_of_batch};
use super::run::{RunContext, StartOutcome, build_notifier, refuse_layouts};
use super::run_args::{ResumeArgs, RunArgs};
use super::settings::Settings;
use super::stdin_archive::{StdinOptions, finish_stdin, is_stdin, open_stdin, pipe_timeouts};
use super::sync_stats::format_requests;
use super::values::parse_location;
use super::{backend, signals};

/// Hint for one image whose target tag has another digest: without the rule, its selection of platforms is unknown.
const STALE_TAG_HINT: &str = "copy it again with `imgsync sync`; if a rule with `platforms` copied it, compare with \
                              `imgsync verify --rule RULE`";

/// Compares targets with their sources.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Source image to compare; without SOURCE and TARGET, all images of the configuration's rules
    #[arg(value_name = "SOURCE", value_parser = parse_location, requires = "target")]
    pub(crate) source: Option<ImageLocation>,
    /// Target image; without a tag, the source's tag is used
    #[arg(value_name = "TARGET", value_parser = parse_location)]
    pub(crate) target: Option<ImageLocation>,
    /// Only this rule: its name, id or number, from 1; may be repeated
    #[arg(long, value_name = "RULE", conflicts_with_all = ["source", "batch"])]
    pub(crate) rule: Vec<String>,
    /// Compare what this batch copied or found unchanged: batch id or prefix
    #[arg(long, value_name = "BATCH", conflicts_with = "source")]
    pub(crate) batch: Option<String>,
    /// Read and hash all blobs of the targets, instead of checking that they exist
    #[arg(long)]
    pub(crate) deep: bool,
    /// Compare only this platform of the image
    #[arg(long, value_name = "PLATFORM", requires = "source")]
    pub(crate) platform: Option<Platform>,
    /// Do not compare signatures and other referrers of the image
    #[arg(long, requires = "source")]
    pub(crate) no_referrers: bool,
    /// Save an archive from stdin to a temporary file in this folder first: for those whose index comes last
    #[arg(long, value_name = "DIR", requires = "source", hide_short_help = true)]
    pub(crate) spool: Option<PathBuf>,
    /// Print the result as one JSON object on stdout
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Number of images to compare concurrently [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Limits")]
    pub(crate) concurrency: Option<u16>,
    /// Time limit per image (90s, 10m, 1h30m) [default: 10m, longer for large images with --deep]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
}

/// Output of `--json` for one image.
#[derive(Debug, Serialize)]
struct VerifyJson<'a> {
    source: &'a ImageLocation,
    target: &'a ImageLocation,
    #[serde(flatten)]
    result: VerifyOutput<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum VerifyOutput<'a> {
    Identical(VerifyStats<'a>),
    Different(VerifyStats<'a>),
    Failed { kind: ErrorKind, error: String },
}

#[derive(Debug, Serialize)]
struct VerifyStats<'a> {
    digest: &'a Digest,
    manifests: u64,
    blobs: u64,
    bytes: u64,
    referrers: u64,
    requests: VerifyRequests,
    findings: &'a [Finding],
}

#[derive(Debug, Serialize)]
struct VerifyRequests {
    source: u64,
    target: u64,
}

/// Runs the command.
pub(crate) async fn run(args: VerifyArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if let (Some(source), Some(target)) = (&args.source, &args.target) {
        return verify_image(&args, source, target, &settings, printer).await;
    }
    match verify_batch(args, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

/// Verifies the rules or an earlier batch, in a batch of its own.
async fn verify_batch(args: VerifyArgs, mut settings: Settings, printer: &Printer) -> Result<Exit> {
    let VerifyArgs { rule, batch, deep, json, report, concurrency, timeout, state, retry, notify, .. } = args;
    if batch.is_none() && settings.config.rules.is_empty() {
        let hint = "pass a configuration with -c, a batch with --batch, or one image: imgsync verify SOURCE TARGET";
        printer.error("there are no rules to verify", Some(hint));
        return Ok(Exit::Usage);
    }
    if !rule.is_empty() {
        select_rules(&mut settings, &rule)?;
    }
    let mut run: RunArgs = ResumeArgs { json, report, concurrency, timeout, retry, notify }.into();
    run.state = state;
    run.verify = Some(deep);
    let options = run.report.resolve(&settings)?;
    let notifier = build_notifier(&run, &settings, printer)?;
    let backend = backend::open(&settings, run.state.as_ref(), printer).await?;
    if backend.is_cluster() {
        refuse_layouts(&settings)?;
    }
    let verified = match batch {
        None => None,
        Some(prefix) => {
            let id = find_by_prefix(&*backend.store, &prefix).await?;
            let found = backend.store.batch(id).await?;
            Some(found.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("reading batch {id}"), "it is not in the store")
            })?)
        }
    };
    if let Some(batch) = &verified {
        settings = settings_of_batch(&settings, batch);
    }
    let work = RunContext::new(&run, &settings, &backend, printer)?;
    let (wanted, name) = (&options, run.report.report_name.as_deref());
    let mut made = match work.start(verified.as_ref()).await? {
        StartOutcome::Created(made) => made,
        StartOutcome::Joined(id) => return work.report_joined(id, (wanted, name), run.json, printer).await,
        StartOutcome::Abandoned => return Ok(Exit::Interrupted),
    };
    let (_lock, id) = (made.lock.take(), made.id);
    let ended = match &verified {
        None => work.follow(id, &notifier, async |run| run.list_and_run(*made).await).await?,
        Some(of) => work.follow(id, &notifier, async |run| run.verify(*made, of).await).await?,
    };
    work.report(&ended, (wanted, name), run.json, &notifier, printer).await
}

/// Verifies one image.
async fn verify_image(
    args: &VerifyArgs,
    source: &ImageLocation,
    target: &ImageLocation,
    settings: &Settings,
    printer: &Printer,
) -> Exit {
    match compare_image(args, source, target, settings, printer).await {
        Ok(exit) => exit,
        Err(error) => {
            if args.json {
                let result = VerifyOutput::Failed { kind: error.kind(), error: error.to_string() };
                print_json(printer, &VerifyJson { source, target, result });
            }
            printer.failure(&error);
            exit::for_error(&error)
        }
    }
}

async fn compare_image(
    args: &VerifyArgs,
    source: &ImageLocation,
    target: &ImageLocation,
    settings: &Settings,
    printer: &Printer,
) -> Result<Exit> {
    let mut client = settings.client()?;
    args.retry.apply(&mut client);
    let context = Context { events: Events::new(BatchProgress::new(printer, false)), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let defaults = CopyLimits::default();
    let limits = CopyLimits {
        timeout: args.timeout.unwrap_or(defaults.timeout),
        timeout_is_exact: args.timeout.is_some(),
        concurrent_blobs: args.concurrency.map_or(defaults.concurrent_blobs, usize::from),
    };
    if let ImageLocation::Layout(image) = target
        && !image.dir.is_dir()
    {
        let operation = format!("comparing {source} with {target}");
        return Err(Error::new(ErrorKind::NotFound, operation, format!("there is no folder {}", image.dir.display())));
    }
    if is_stdin(source) && is_stdin(target) {
        let operation = format!("comparing {source} with {target}");
        return Err(Error::new(ErrorKind::Invalid, operation, "stdin cannot be both the source and the target")
            .with_hint("save one of the archives to a file"));
    }
    let timeouts = pipe_timeouts(Some(limits.timeout), client.stall_timeout);
    let options = StdinOptions { spool: args.spool.as_deref(), timeouts };
    let stdin_archive = open_stdin([source, target], options, &context.cancel).await?;
    let copier = Copier::new(Client::new(client, CredentialEnvironment::from_process()), limits);
    let job = CopyRequest {
        platforms: args.platform.clone().map_or(PlatformSelection::All, PlatformSelection::One),
        stdin_archive: stdin_archive.clone(),
        ..CopyRequest::new(source.clone(), target.clone())
    };
    let referrers = if args.no_referrers { RequiredReferrers::None } else { RequiredReferrers::All };
    let verified = copier.verify(&job, &VerifySettings { deep: args.deep, referrers }, &context).await?;
    finish_stdin(stdin_archive.as_ref()).await?;
    let stats = VerifyStats {
        digest: &verified.digest,
        manifests: verified.manifests,
        blobs: verified.blobs,
        bytes: verified.bytes,
        referrers: verified.referrers,
        requests: VerifyRequests {
            source: verified.source_traffic.total_requests(),
            target: verified.target_traffic.total_requests(),
        },
        findings: &verified.findings,
    };
    let is_identical = verified.findings.is_empty();
    let seen = [
        pluralize(verified.manifests, "manifest", "manifests"),
        pluralize(verified.blobs, "blob", "blobs"),
        pluralize(verified.referrers, "referrer", "referrers"),
    ]
    .join(", ");
    if args.json {
        let result = if is_identical { VerifyOutput::Identical(stats) } else { VerifyOutput::Different(stats) };
        print_json(printer, &VerifyJson { source, target, result });
    } else {
        for finding in &verified.findings {
            printer.text(&finding.detail);
        }
        if is_identical {
            printer.data(&format!("identical {}", verified.digest));
        }
    }
    match verified.to_error(&job) {
        None => {
            let requests = format_requests(&verified.source_traffic, &verified.target_traffic);
            printer.line(&format!("identical: {target} and {source}: {seen}, {requests}"));
            Ok(Exit::Done)
        }
        Some(error) => {
            let differences = pluralize(verified.findings.len() as u64, "difference", "differences");
            let is_stale = verified.findings.iter().any(|finding| finding.kind == FindingKind::StaleTag);
            let hint = if is_stale { Some(STALE_TAG_HINT) } else { error.hint() };
            printer.error(&format!("different: {target} and {source}: {differences}"), hint);
            Ok(Exit::Failed)
        }
    }
}

fn print_json(printer: &Printer, output: &VerifyJson<'_>) {
    // These types always serialize.
    printer.data(&serde_json::to_string(output).unwrap_or_default());
}
