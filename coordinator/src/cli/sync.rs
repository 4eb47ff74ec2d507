//! `imgsync sync`: copies one image.

use imgsync_model::batch::Referrers;
use imgsync_oci::Platform;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_worker::cli::parse_duration;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_config::{Config, ImagePolicy};
use imgsync_layout::{ArchiveRef, ImageName, IndexEntry, Layout, LayoutRef};
use imgsync_model::batch::ForeignLayers;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_oci::secret::Secret;
use imgsync_oci::{Digest, Reference};
use imgsync_registry::credentials::{Credential, CredentialEnvironment};
use imgsync_registry::event::Events;
use imgsync_registry::{Client, ClientSettings, Context};
use imgsync_worker::copy::{
    Copier, CopyLimits, CopyOutcome, CopyPreview, CopyReport, CopyRequest, ImageLocation, NoGate, PlatformSelection,
};
use serde::Serialize;

use super::copy_progress::CopyObserver;
use super::exit::{self, Exit};
use super::global::GlobalArgs;
use super::policy_keys::signed_by;
use super::printer::Printer;
use super::retry_args::RetryArgs;
use super::settings::Settings;
use super::signals;
use super::stdin_archive::{StdinOptions, finish_stdin, is_stdin, open_stdin, pipe_timeouts};
use super::sync_archive::{ArchiveOptions, CompressionOption, copy_to_archive};
use super::sync_stats::{CopyStats, EndpointRequests, EndpointTraffic, format_requests};
use super::target::{docker_hub, read_password};
use super::values::parse_location;
use clap::Args;

/// Copies one image between registries: every platform, byte for byte, under the same digest.
///
/// Credentials come from the configuration, else from the credential files of docker and podman (`docker login`).
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// The image to copy: alpine, gcr.io/distroless/static:nonroot, host:5000/a/b@sha256:…, oci:DIR:TAG,
    /// oci-archive:FILE:TAG, docker-archive:FILE:TAG; as FILE, - is stdin
    #[arg(value_name = "SOURCE", value_parser = parse_location)]
    pub(crate) source: ImageLocation,
    /// The target; without a tag, the source's tag is used [default: docker.io/<user>/<source's name with _ for />]
    #[arg(value_name = "TARGET", value_parser = parse_target)]
    pub(crate) target: Option<ImageLocation>,
    /// With several images for one archive: all but the last are sources, and the last is the archive
    #[arg(value_name = "MORE", value_parser = parse_location)]
    pub(crate) more: Vec<ImageLocation>,
    /// Copy only this platform (os/arch[/variant]) instead of all; the target then has that platform's digest
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,
    /// Referrers to copy with the image (signatures, SBOMs …): all, none, or these artifact types
    #[arg(long, value_name = "all|none|TYPE,…", value_delimiter = ',', value_parser = parse_referrers)]
    pub(crate) referrers: Vec<String>,
    /// Copy foreign layers (those with `urls`) instead of leaving them where they are
    #[arg(long)]
    pub(crate) foreign_layers: bool,
    /// Copy the image only if one of these keys of cosign has signed it; can be repeated [default: `defaults.policy`]
    #[arg(long, value_name = "FILE")]
    pub(crate) signed_by: Vec<PathBuf>,
    /// Ignore `defaults.policy` of the configuration
    #[arg(long, conflicts_with = "signed_by", hide_short_help = true)]
    pub(crate) no_policy: bool,
    /// Compression of a target archive; uncompressed ones can be resumed, and all tools load them
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, hide_short_help = true)]
    pub(crate) archive_compress: CompressionOption,
    /// Save an archive from stdin to a temporary file in this folder first: for those whose index comes last
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) spool: Option<PathBuf>,
    /// Print what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Push all content, even if the target already has it
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// The user at the target's registry
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    pub(crate) user: Option<String>,
    /// The user's password or token; visible to others on this machine: prefer --password-stdin, or IMGSYNC_PASSWORD
    ///
    /// The variable is used when --user is given without either option.
    // Not through clap's `env`: clap treats a set variable as a typed option, and would require --user.
    #[arg(long, value_name = "PASSWORD", requires = "user", value_parser = |text: &str| Ok::<_, String>(Secret::new(text)))]
    #[arg(help_heading = "Target", hide_short_help = true)]
    pub(crate) password: Option<Secret>,
    /// Read the password from stdin
    #[arg(long, requires = "user", conflicts_with = "password", help_heading = "Target")]
    pub(crate) password_stdin: bool,
    /// Time limit of the copy (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,
    /// Compare source and target, and copy nothing (imgsync 2.1; superseded by --dry-run)
    #[arg(long, hide_short_help = true)]
    pub(crate) download_manifests: bool,
    /// Manifest folder of imgsync 2.1; ignored: `sync` always asks source and target
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) manifests: Option<PathBuf>,
    /// Number of concurrent blob transfers
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=200))]
    #[arg(help_heading = "Limits")]
    pub(crate) concurrency: u16,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
}

impl SyncArgs {
    /// Whether nothing is to be copied.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run || self.download_manifests
    }

    /// Splits the images into sources and a target.
    fn endpoints(&self) -> Result<(Vec<ImageLocation>, Option<ImageLocation>)> {
        let Some((target, more)) = self.more.split_last() else {
            return Ok((vec![self.source.clone()], self.target.clone()));
        };
        if !matches!(target, ImageLocation::Archive(_)) {
            let detail = format!("several sources were given, and {target} is not an archive");
            return Err(Error::new(ErrorKind::Invalid, "choosing the target", detail).with_hint(
                "several images go into one archive (oci-archive:FILE); to copy many, write rules for `imgsync run`",
            ));
        }
        let sources = [&self.source].into_iter().chain(&self.target).chain(more);
        Ok((sources.cloned().collect(), Some(target.clone())))
    }

    /// Returns what the image must be.
    fn policy(&self, config: &Config) -> Result<Option<Arc<ImagePolicy>>> {
        let policy = match self.signed_by.is_empty() {
            true => config.default_policy().filter(|_| !self.no_policy).cloned(),
            false => Some(signed_by(&self.signed_by)?),
        };
        Ok(policy.map(Arc::new))
    }

    /// Returns the referrers to copy with the image.
    pub(crate) fn referrers(&self) -> Referrers {
        match &self.referrers[..] {
            [] => Referrers::All,
            [all] if all == "all" => Referrers::All,
            [none] if none == "none" => Referrers::None,
            types => Referrers::Types(types.to_vec()),
        }
    }
}

/// Parses `all`, `none`, or an artifact type.
fn parse_referrers(text: &str) -> Result<String, String> {
    match text {
        "all" | "none" => {}
        _ => Referrers::check_type(text).map_err(|error| format!("{error}; or all, or none"))?,
    }
    Ok(text.to_owned())
}

/// Parses a target. Rejects `host:port`, which would otherwise be an image of Docker Hub with a numeric tag.
fn parse_target(text: &str) -> Result<ImageLocation, String> {
    if let Some((host, port)) = text.split_once(':')
        && !host.contains('/')
        && (host == "localhost" || host.contains('.'))
        && port.parse::<u16>().is_ok()
    {
        return Err(format!("{text} names a registry without a repository: write {text}/NAME"));
    }
    parse_location(text)
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct SyncJson<'a> {
    source: &'a ImageLocation,
    target: Option<&'a ImageLocation>,
    #[serde(flatten)]
    result: SyncOutput<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum SyncOutput<'a> {
    Copied(CopyStats<'a>),
    Unchanged(CopyStats<'a>),
    WouldCopy { digest: &'a Digest, manifests: usize, blobs: usize, bytes: u64, bytes_present: u64 },
    WouldNotChange { digest: &'a Digest },
    Failed { kind: ErrorKind, error: String, hint: Option<&'a str>, attempts: u32 },
    Cancelled { error: String },
}

/// Runs the command.
pub(crate) async fn run(args: SyncArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let mut target = None;
    let observer = Arc::new(CopyObserver::new(printer));
    match execute(&args, &settings, printer, &observer, &mut target).await {
        Ok(()) => Exit::Done,
        Err(error) => {
            if args.json {
                let result = match error.is_cancelled() {
                    true => SyncOutput::Cancelled { error: error.to_string() },
                    false => SyncOutput::Failed {
                        kind: error.kind(),
                        error: error.to_string(),
                        hint: error.hint(),
                        attempts: error.attempts(),
                    },
                };
                print_json(printer, &SyncJson { source: &args.source, target: target.as_ref(), result });
            }
            printer.failure(&error);
            exit::for_copy_error(&error, observer.has_transferred())
        }
    }
}

async fn execute(
    args: &SyncArgs,
    settings: &Settings,
    printer: &Printer,
    observer: &Arc<CopyObserver>,
    named: &mut Option<ImageLocation>,
) -> Result<()> {
    let mut client = settings.client()?;
    let (sources, given_target) = args.endpoints()?;
    if args.password_stdin && sources.iter().any(is_stdin) {
        let detail = "stdin cannot be both the password and the archive: save the archive to a file";
        return Err(Error::new(ErrorKind::Invalid, "reading stdin", detail));
    }
    let password = read_password(args.user.as_deref(), args.password.as_ref(), args.password_stdin)?;
    args.retry.apply(&mut client);
    let defaults = CopyLimits::default();
    let limits = CopyLimits {
        concurrent_blobs: args.concurrency.into(),
        timeout: args.timeout.unwrap_or(defaults.timeout),
        timeout_is_exact: args.timeout.is_some(),
    };
    let context = Context { events: Events::new(observer.clone()), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let timeouts = pipe_timeouts(Some(limits.timeout), client.stall_timeout);
    let options = StdinOptions { spool: args.spool.as_deref(), timeouts };
    let stdin_archive = open_stdin(&sources, options, &context.cancel).await?;
    let mut resolved = Vec::new();
    for source in &sources {
        resolved.push(resolve_single_image(source, stdin_archive.as_ref()).await?);
    }
    let source = resolved[0].clone();
    let target = with_source_tag(resolve_target(args, given_target.as_ref(), &mut client, password).await?, &source);
    *named = Some(target.clone());
    if args.archive_compress != CompressionOption::None && !matches!(target, ImageLocation::Archive(_)) {
        let detail = "--archive-compress is for archives as targets (oci-archive:FILE, docker-archive:FILE)";
        return Err(Error::new(ErrorKind::Invalid, "choosing the target", detail));
    }

    let progress = &observer.progress;
    let copier = Copier::new(Client::new(client, CredentialEnvironment::from_process()), limits);
    let job = CopyRequest {
        platforms: args.platform.clone().map_or(PlatformSelection::All, PlatformSelection::One),
        policy: args.policy(&settings.config)?,
        force: args.force,
        referrers: args.referrers(),
        stdin_archive: stdin_archive.clone(),
        foreign_layers: if args.foreign_layers { ForeignLayers::Copy } else { ForeignLayers::Keep },
        ..CopyRequest::new(source, target.clone())
    };
    if args.manifests.is_some() {
        printer.line("--manifests is ignored: `sync` asks source and target");
    }
    if args.download_manifests {
        printer.line("--download-manifests is superseded by --dry-run, and does the same: nothing is copied");
    }
    if let ImageLocation::Archive(archive) = &target {
        let options = ArchiveOptions {
            dry_run: args.is_dry_run(),
            json: args.json,
            compression: args.archive_compress,
            reader_timeout: timeouts.start,
        };
        return copy_to_archive(options, resolved, archive, job, &copier, &context, (progress, printer)).await;
    }
    if args.is_dry_run() {
        let survey = copier.preview(&job, &context).await?;
        finish_stdin(stdin_archive.as_ref()).await?;
        print_preview(args, &target, &survey, printer);
        return Ok(());
    }
    let copied = tokio::select! {
        copied = copier.copy(&job, &NoGate, &context) => copied,
        () = progress.run() => unreachable!("it goes on until dropped"),
        () = signals::wait_for_cleanup(&context.cancel) => Err(Error::cancelled(format!("copying {} to {target}", args.source))),
    };
    progress.finish();
    let copied = copied?;
    finish_stdin(stdin_archive.as_ref()).await?;
    print_result(args, &target, &copied, printer);
    Ok(())
}

/// Returns the target: the given one, else the source's flat name below the user at Docker Hub. Given credentials
/// apply to its registry.
async fn resolve_target(
    args: &SyncArgs,
    given: Option<&ImageLocation>,
    client: &mut ClientSettings,
    password: Option<Secret>,
) -> Result<ImageLocation> {
    let registry = match given {
        Some(ImageLocation::Registry(target)) => target.registry.clone(),
        Some(local @ (ImageLocation::Layout(_) | ImageLocation::Archive(_))) => return Ok(local.clone()),
        None => docker_hub(),
    };
    if let (Some(user), Some(password)) = (&args.user, password) {
        let credential = Credential::Basic { username: user.clone(), password };
        client.registries.entry(registry.clone()).or_default().credentials = vec![credential];
    }
    if let Some(target) = given {
        return Ok(target.clone());
    }
    let user = match &args.user {
        Some(user) => Some(user.clone()),
        None => Client::new(client.clone(), CredentialEnvironment::from_process()).find_username(&registry).await?,
    };
    let invalid = |detail: String| Error::new(ErrorKind::Invalid, "choosing the target", detail);
    let user = user.ok_or_else(|| {
        invalid("no TARGET was given, and no Docker Hub user is known".to_owned())
            .with_hint("pass a TARGET or --user, or run `docker login`")
    })?;
    let ImageLocation::Registry(source) = &args.source else {
        return Err(invalid("no TARGET was given, and the source is not in a registry".to_owned()));
    };
    let flat = imgsync_model::naming::flatten_name(&source.name());
    let repository = format!("{}/{flat}", user.to_ascii_lowercase())
        .parse()
        .map_err(|error: imgsync_oci::ParseReferenceError| invalid(error.to_string()))?;
    Ok(ImageLocation::Registry(Reference { registry, repository, tag: source.tag_or_latest(), digest: None }))
}

/// Resolves a layout or archive without an image name that contains one image.
async fn resolve_single_image(source: &ImageLocation, stdin: Option<&Layout>) -> Result<ImageLocation> {
    let layout = match source {
        ImageLocation::Layout(LayoutRef { image: None, dir }) => Layout::open(dir).await?,
        ImageLocation::Archive(archive @ ArchiveRef { image: None, .. }) => match stdin {
            Some(opened) if archive.is_stdio() => opened.clone(),
            _ => Layout::open_archive_file(archive).await?,
        },
        _ => return Ok(source.clone()),
    };
    let image = match &layout.images().await?[..] {
        [IndexEntry { repository: None, tag: Some(tag), .. }] => Some(ImageName::Tag(tag.clone())),
        [IndexEntry { name: Some(name), repository: Some(_), .. }] => name.parse().ok().map(ImageName::Full),
        _ => None,
    };
    Ok(match source.clone() {
        ImageLocation::Layout(whole) => ImageLocation::Layout(LayoutRef { image, ..whole }),
        ImageLocation::Archive(whole) => ImageLocation::Archive(ArchiveRef { image, ..whole }),
        registry @ ImageLocation::Registry(_) => registry,
    })
}

/// Adds the source's tag to a target without tag and digest.
fn with_source_tag(target: ImageLocation, source: &ImageLocation) -> ImageLocation {
    match target {
        ImageLocation::Registry(reference) if reference.tag.is_none() && reference.digest.is_none() => {
            ImageLocation::Registry(Reference { tag: source.tag(), ..reference })
        }
        other => other,
    }
}

fn print_result(args: &SyncArgs, target: &ImageLocation, done: &CopyReport, printer: &Printer) {
    tracing::info!(
        source = %args.source, %target, outcome = ?done.outcome, digest = %done.digest,
        source_traffic = ?done.source_traffic, target_traffic = ?done.target_traffic, "done"
    );
    if args.json {
        let stats = CopyStats {
            digest: &done.digest,
            bytes: done.bytes,
            blobs: done.blobs,
            manifests: done.manifests,
            referrers: done.referrers,
            requests: EndpointRequests {
                source: done.source_traffic.total_requests(),
                target: done.target_traffic.total_requests(),
            },
            traffic: EndpointTraffic { source: done.source_traffic, target: done.target_traffic },
            seconds: (done.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        let result = match done.outcome {
            CopyOutcome::Copied => SyncOutput::Copied(stats),
            CopyOutcome::Unchanged => SyncOutput::Unchanged(stats),
        };
        print_json(printer, &SyncJson { source: &args.source, target: Some(target), result });
    } else {
        printer.data(&pin_digest(target, &done.digest));
    }
    if matches!(target, ImageLocation::Registry(Reference { tag: None, digest: None, .. })) {
        printer.warning("the source has no tag and none was given: the target has the image by digest only");
    }
    let requests = format_requests(&done.source_traffic, &done.target_traffic);
    printer.line(&match done.outcome {
        CopyOutcome::Unchanged => format!("unchanged: {} is already at {target}, {requests}", args.source),
        CopyOutcome::Copied if done.manifests == done.referrers && done.referrers > 0 => {
            let new = pluralize(done.referrers, "new referrer", "new referrers");
            format!("{} is unchanged at {target}; copied {new}, {requests}", args.source)
        }
        CopyOutcome::Copied => {
            let part = |blobs: u64, bytes: u64, how: &str| match blobs {
                0 => String::new(),
                _ => format!(", {} {how} ({})", pluralize(blobs, "blob", "blobs"), ByteSize(bytes)),
            };
            format!(
                "copied {} to {target} in {}: {}{}{}{}{}, {requests}",
                args.source,
                format_duration(done.elapsed),
                pluralize(done.manifests, "manifest", "manifests"),
                match done.referrers {
                    0 => String::new(),
                    1 => ", 1 of them a referrer".to_owned(),
                    referrers => format!(", {} of them referrers", group_digits(referrers)),
                },
                part(done.blobs.copied, done.bytes.copied, "copied"),
                part(done.blobs.mounted, done.bytes.mounted, "mounted"),
                part(done.blobs.reused, done.bytes.reused, "already present"),
            )
        }
    });
}

fn print_preview(args: &SyncArgs, target: &ImageLocation, preview: &CopyPreview, printer: &Printer) {
    if args.json {
        let result = match preview.outcome {
            CopyOutcome::Unchanged => SyncOutput::WouldNotChange { digest: &preview.digest },
            CopyOutcome::Copied => SyncOutput::WouldCopy {
                digest: &preview.digest,
                manifests: preview.manifests,
                blobs: preview.blobs,
                bytes: preview.bytes,
                bytes_present: preview.bytes_present,
            },
        };
        print_json(printer, &SyncJson { source: &args.source, target: Some(target), result });
        return;
    }
    printer.text(&match preview.outcome {
        CopyOutcome::Unchanged => format!("unchanged {} {target}", args.source),
        CopyOutcome::Copied => format!(
            "copy {} {target} {}, {}, {}; {} already present",
            args.source,
            pluralize(preview.manifests as u64, "manifest", "manifests"),
            pluralize(preview.blobs as u64, "blob", "blobs"),
            ByteSize(preview.bytes),
            ByteSize(preview.bytes_present)
        ),
    });
}

/// Returns an immutable reference.
fn pin_digest(target: &ImageLocation, digest: &Digest) -> String {
    match target {
        ImageLocation::Registry(target) => Reference { digest: Some(digest.clone()), ..target.clone() }.to_string(),
        ImageLocation::Layout(target) => format!("oci:{}@{digest}", target.dir.display()),
        ImageLocation::Archive(target) => format!("{}@{digest}", target.without_image()),
    }
}

fn print_json(printer: &Printer, output: &SyncJson<'_>) {
    match serde_json::to_string(output) {
        Ok(line) => _ = printer.data(&line),
        Err(error) => printer.error(&format!("the result cannot be written as JSON: {error}"), None),
    }
}
