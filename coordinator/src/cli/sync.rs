//! `imgsync sync`: copies one image.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytesize::ByteSize;
use imgsync_common::batch::ForeignLayers;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events, Observer};
use imgsync_common::image::{Digest, Reference};
use imgsync_common::layout::{Entry, ImageName, Layout, LayoutRef};
use imgsync_common::registry::credentials::{Credential, Environment};
use imgsync_common::registry::{Client, ClientSettings, Context, Traffic};
use imgsync_common::retry::{Policy, seconds};
use imgsync_common::secret::Secret;
use imgsync_worker::copy::{CLEAN_UP, Copier, Done, Job, Limits, Location, Moved, Open, Outcome, Platforms, Survey};
use serde::Serialize;

use super::args::{Global, SyncArgs};
use super::exit::{self, Exit};
use super::printer::Printer;
use super::progress::Progress;
use super::settings::Settings;
use super::signals;
use super::target::{hub, password};
use crate::words::many;

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct Output<'a> {
    source: &'a Location,
    target: Option<&'a Location>,
    #[serde(flatten)]
    result: Outcomes<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcomes<'a> {
    Copied(Figures<'a>),
    Unchanged(Figures<'a>),
    WouldCopy { digest: &'a Digest, manifests: usize, blobs: usize, bytes: u64, bytes_there: u64 },
    WouldNotChange { digest: &'a Digest },
    Failed { class: Class, error: String, hint: Option<&'a str>, attempts: u32 },
    Cancelled { error: String },
}

#[derive(Debug, Serialize)]
struct Figures<'a> {
    digest: &'a Digest,
    bytes: Moved,
    blobs: Moved,
    manifests: u64,
    referrers: u64,
    requests: Requests,
    traffic: BothEnds,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Requests {
    source: u64,
    target: u64,
}

#[derive(Debug, Serialize)]
struct BothEnds {
    source: Traffic,
    target: Traffic,
}

/// Runs the command.
pub(crate) async fn run(args: SyncArgs, global: &Global, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let mut target = None;
    let watch = Arc::new(Watch::new(printer));
    match work(&args, &settings, printer, &watch, &mut target).await {
        Ok(()) => Exit::Done,
        Err(error) => {
            if args.json {
                let result = match error.is_cancelled() {
                    true => Outcomes::Cancelled { error: error.to_string() },
                    false => Outcomes::Failed {
                        class: error.class(),
                        error: error.to_string(),
                        hint: error.advice(),
                        attempts: error.attempts(),
                    },
                };
                print(printer, &Output { source: &args.source, target: target.as_ref(), result });
            }
            printer.failure(&error);
            exit::of_copy(&error, watch.saw_something_move())
        }
    }
}

/// Shows progress, and records whether anything reached the target.
struct Watch {
    progress: Arc<Progress>,
    arrived: AtomicBool,
    /// Bytes sent so far, of each started blob.
    begun: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Watch {
    fn new(printer: &Printer) -> Watch {
        Watch { progress: Progress::new(printer), arrived: AtomicBool::new(false), begun: Mutex::default() }
    }

    fn saw_something_move(&self) -> bool {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        self.arrived.load(Ordering::Relaxed) || begun.iter().any(|moved| moved.load(Ordering::Relaxed) > 0)
    }
}

impl Observer for Watch {
    fn on(&self, event: &Event) {
        match event {
            Event::BlobStarted { moved, .. } => {
                self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(moved.clone());
            }
            Event::BlobDone { .. } | Event::ManifestPut { .. } => self.arrived.store(true, Ordering::Relaxed),
            _ => {}
        }
        self.progress.on(event);
    }
}

async fn work(
    args: &SyncArgs,
    settings: &Settings,
    printer: &Printer,
    watch: &Arc<Watch>,
    named: &mut Option<Location>,
) -> Result<()> {
    let mut client = settings.client()?;
    let password = password(args.user.as_deref(), args.password.as_ref(), args.password_stdin)?;
    client.retry = Policy { attempts: args.patience.attempts, first_delay: args.patience.retry_delay, ..client.retry };
    client.retry.max_delay = client.retry.max_delay.max(client.retry.first_delay);
    client.stall = args.patience.stall_timeout;
    let source = only_image(&args.source).await?;
    let target = tagged(target(args, &mut client, password).await?, &source);
    *named = Some(target.clone());

    let progress = &watch.progress;
    let context = Context { events: Events::to(watch.clone()), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let defaults = Limits::default();
    let limits = Limits {
        blobs: args.concurrency.into(),
        time: args.timeout.unwrap_or(defaults.time),
        time_is_exact: args.timeout.is_some(),
    };
    let copier = Copier::new(Client::new(client, Environment::from_process()), limits);
    let job = Job {
        platforms: args.platform.clone().map_or(Platforms::All, Platforms::One),
        force: args.force,
        referrers: args.referrers(),
        foreign_layers: if args.foreign_layers { ForeignLayers::Copy } else { ForeignLayers::Keep },
        ..Job::new(source, target.clone())
    };
    if args.manifests.is_some() {
        printer.line("--manifests is superseded: `sync` asks both ends, and needs no folder to know what is there");
    }
    if args.download_manifests {
        printer.line("--download-manifests is superseded by --dry-run, and does the same: nothing is copied");
    }
    if args.dry_run || args.download_manifests {
        let survey = copier.survey(&job, &context).await?;
        tell_survey(args, &target, &survey, printer);
        return Ok(());
    }
    let copied = tokio::select! {
        copied = copier.copy(&job, &Open, &context) => copied,
        () = progress.keep_going() => unreachable!("it goes on until dropped"),
        () = too_long_after(&context) => Err(Error::cancelled(format!("copying {} to {target}", args.source))),
    };
    progress.finish();
    tell(args, &target, &copied?, printer);
    Ok(())
}

/// Waits after Ctrl-C until the time to cancel uploads at the target is over.
async fn too_long_after(context: &Context) {
    context.cancel.cancelled().await;
    tokio::time::sleep(CLEAN_UP).await;
}

/// Returns the target: the given one, else the source's flat name below the user at Docker Hub. Given credentials
/// apply to its registry.
async fn target(args: &SyncArgs, client: &mut ClientSettings, password: Option<Secret>) -> Result<Location> {
    let registry = match &args.target {
        Some(Location::Registry(target)) => target.registry.clone(),
        Some(layout @ Location::Layout(_)) => return Ok(layout.clone()),
        None => hub(),
    };
    if let (Some(user), Some(password)) = (&args.user, password) {
        let credential = Credential::Basic { username: user.clone(), password };
        client.registries.entry(registry.clone()).or_default().credentials = vec![credential];
    }
    if let Some(target) = &args.target {
        return Ok(target.clone());
    }
    let user = match &args.user {
        Some(user) => Some(user.clone()),
        None => Client::new(client.clone(), Environment::from_process()).user_of(&registry).await?,
    };
    let invalid = |detail: String| Error::new(Class::Invalid, "choosing the target", detail);
    let user = user.ok_or_else(|| {
        invalid("no TARGET was given, and no user at Docker Hub to make one for".to_owned())
            .hint("name a target, or give --user, or run `docker login`")
    })?;
    let Location::Registry(source) = &args.source else {
        return Err(invalid("no TARGET was given, and an image of a layout has no name to make one from".to_owned()));
    };
    let flat = imgsync_common::naming::flat(&source.name());
    let repository = format!("{}/{flat}", user.to_ascii_lowercase())
        .parse()
        .map_err(|error: imgsync_common::image::ParseReferenceError| invalid(error.to_string()))?;
    Ok(Location::Registry(Reference { registry, repository, tag: source.tag_or_latest(), digest: None }))
}

/// Resolves a layout without an image name that contains one image.
async fn only_image(source: &Location) -> Result<Location> {
    let Location::Layout(whole @ LayoutRef { image: None, .. }) = source else { return Ok(source.clone()) };
    let entries = Layout::open(&whole.dir).await?.entries().await?;
    let image = match &entries[..] {
        [Entry { repository: None, tag: Some(tag), .. }] => Some(ImageName::Tag(tag.clone())),
        [Entry { name: Some(name), repository: Some(_), .. }] => name.parse().ok().map(ImageName::Full),
        _ => None,
    };
    Ok(Location::Layout(LayoutRef { image, ..whole.clone() }))
}

/// Adds the source's tag to a target without tag and digest.
fn tagged(target: Location, source: &Location) -> Location {
    match target {
        Location::Registry(reference) if reference.tag.is_none() && reference.digest.is_none() => {
            Location::Registry(Reference { tag: source.tag(), ..reference })
        }
        other => other,
    }
}

fn tell(args: &SyncArgs, target: &Location, done: &Done, printer: &Printer) {
    tracing::info!(
        source = %args.source, %target, outcome = ?done.outcome, digest = %done.digest,
        source_traffic = ?done.source, target_traffic = ?done.target, "done"
    );
    if args.json {
        let figures = Figures {
            digest: &done.digest,
            bytes: done.bytes,
            blobs: done.blobs,
            manifests: done.manifests,
            referrers: done.referrers,
            requests: Requests { source: done.source.requests, target: done.target.requests },
            traffic: BothEnds { source: done.source, target: done.target },
            seconds: (done.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        let result = match done.outcome {
            Outcome::Copied => Outcomes::Copied(figures),
            Outcome::Unchanged => Outcomes::Unchanged(figures),
        };
        print(printer, &Output { source: &args.source, target: Some(target), result });
    } else {
        printer.data(&pinned(target, &done.digest));
    }
    if matches!(target, Location::Registry(Reference { tag: None, digest: None, .. })) {
        printer.warning("the source has no tag and none was named: the target has the image under its digest alone");
    }
    let requests = format!("{} + {}", done.source.requests, many(done.target.requests, "request", "requests"));
    printer.line(&match done.outcome {
        Outcome::Unchanged => format!("unchanged: {} is at {target} already ({requests})", args.source),
        Outcome::Copied if done.manifests == done.referrers && done.referrers > 0 => {
            let new = many(done.referrers, "new referrer", "new referrers");
            format!("{} is at {target} already; copied {new}, {requests}", args.source)
        }
        Outcome::Copied => {
            let part = |blobs: u64, bytes: u64, how: &str| match blobs {
                0 => String::new(),
                _ => format!(", {} {how} ({})", many(blobs, "blob", "blobs"), ByteSize(bytes)),
            };
            format!(
                "copied {} to {target} in {}: {}{}{}{}{}, {requests}",
                args.source,
                seconds(done.elapsed),
                many(done.manifests, "manifest", "manifests"),
                match done.referrers {
                    0 => String::new(),
                    1 => ", 1 of them a referrer".to_owned(),
                    referrers => format!(", {referrers} of them referrers"),
                },
                part(done.blobs.copied, done.bytes.copied, "copied"),
                part(done.blobs.mounted, done.bytes.mounted, "mounted"),
                part(done.blobs.reused, done.bytes.reused, "there already"),
            )
        }
    });
}

fn tell_survey(args: &SyncArgs, target: &Location, survey: &Survey, printer: &Printer) {
    if args.json {
        let result = match survey.outcome {
            Outcome::Unchanged => Outcomes::WouldNotChange { digest: &survey.digest },
            Outcome::Copied => Outcomes::WouldCopy {
                digest: &survey.digest,
                manifests: survey.manifests,
                blobs: survey.blobs,
                bytes: survey.bytes,
                bytes_there: survey.bytes_there,
            },
        };
        print(printer, &Output { source: &args.source, target: Some(target), result });
        return;
    }
    printer.data(&match survey.outcome {
        Outcome::Unchanged => format!("unchanged {} {target}", args.source),
        Outcome::Copied => format!(
            "copy {} {target} {}, {}, {}; {} there already",
            args.source,
            many(survey.manifests as u64, "manifest", "manifests"),
            many(survey.blobs as u64, "blob", "blobs"),
            ByteSize(survey.bytes),
            ByteSize(survey.bytes_there)
        ),
    });
}

/// Returns an immutable reference.
fn pinned(target: &Location, digest: &Digest) -> String {
    match target {
        Location::Registry(target) => Reference { digest: Some(digest.clone()), ..target.clone() }.to_string(),
        Location::Layout(target) => format!("oci:{}@{digest}", target.dir.display()),
    }
}

fn print(printer: &Printer, output: &Output<'_>) {
    match serde_json::to_string(output) {
        Ok(line) => _ = printer.data(&line),
        Err(error) => printer.error(&format!("the result cannot be written as JSON: {error}"), None),
    }
}
