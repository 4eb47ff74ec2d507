//! Command-line arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use imgsync_common::batch::{Priority, Referrers};
use imgsync_common::config::IfRunning;
use imgsync_common::error::ErrorKind;
use imgsync_common::image::{Platform, RegistryName};
use imgsync_common::secret::Secret;
use imgsync_worker::cli::parse_duration;
use imgsync_worker::copy::ImageLocation;
use imgsync_worker::logging::LogFormat;

use super::completions::{CompletionsArgs, ManArgs};
use super::explain::ExplainArgs;
use super::import::ImportArgs;
use super::inspect::InspectArgs;
use super::legacy::{GcrArgs, LegacyArgs};
use super::notify::NotifyArgs;
use super::presets::{PresetsArgs, RunCommand};
use super::report::ReportArgs;
use super::tags::TagsArgs;
use super::verify::VerifyArgs;

/// Keeps container images in one registry the same as in another, without Docker and without local disk.
#[derive(Debug, Parser)]
#[command(name = "imgsync", version, disable_version_flag = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Say on stderr, in detail, what is done
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// How the log on stderr is written (RUST_LOG or --debug say what is in it); json: an object a line
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", env = "IMGSYNC_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Read the configuration from this file [default: ./imgsync.yaml, if it is there]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// RabbitMQ of a cluster (amqp:// or amqps://) [default: the configuration's]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    pub(crate) broker: Option<String>,
    /// Redis of a cluster (redis:// or rediss://) [default: the configuration's]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    pub(crate) store: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copy one image, now
    Sync(Box<SyncArgs>),
    /// Run the rules of the configuration, or presets
    Run(Box<RunCommand>),
    /// Copy a namespace of gcr.io to Docker Hub, as imgsync 2.1 did
    ///
    /// All its repositories and tags, to docker.io/<user>. What imgsync 2.1 called gcr.io_istio-release_pilot is still called
    /// so, also where the images are read elsewhere today. docs/from-2.1.md says what became of each flag.
    Gcr(Box<GcrArgs>),
    /// Copy Flannel to Docker Hub, as imgsync 2.1 did
    ///
    /// To docker.io/<user>, under the names of then. docs/from-2.1.md says what became of each flag.
    Flannel(Box<LegacyArgs>),
    /// Compare targets with their sources, and copy nothing
    ///
    /// Every digest of every image: the tag, its manifests, its blobs, and what refers to them. Of the rules, of what an earlier
    /// batch has copied, or of one image. Ends as `run` does: with the same reports, and 1 if something differs.
    Verify(Box<VerifyArgs>),
    /// Show what an image is made of: platforms, layers, sizes, what refers to it
    Inspect(InspectArgs),
    /// List the presets, and what they expand to
    Presets(PresetsArgs),
    /// Look at batches and steer them
    Batch(Box<BatchArgs>),
    /// Run rules at their times, and show how it goes: dashboard and JSON API
    ///
    /// Rules that have a `schedule:` are run at their times, in this process or by the cluster, until it is told to stop; the
    /// configuration is read again when it changes. In a cluster it also leads the batches that no `run` leads: of several
    /// that serve, one leads and the others stand by. docs/serving.md says more.
    Serve(Box<ServeArgs>),
    /// Say why a tag was, or was not, copied
    Explain(ExplainArgs),
    /// Carry what is known of target tags from one store to another
    Cache(CacheArgs),
    /// List tags, as a rule would choose them
    ///
    /// Of one repository each line on stdout is a tag; with a star in the pattern each is REGISTRY/REPOSITORY:TAG, as
    /// `imgsync sync` takes it. Repositories come in the order of their paths, tags from old to new, what is no version
    /// first. What was dropped, and why, is said on stderr. The exit code is 1 if something could not be listed.
    Tags(Box<TagsArgs>),
    /// Look at a configuration, or make one of another program's
    Config {
        #[command(subcommand)]
        action: Box<ConfigAction>,
    },
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them
    Man(ManArgs),
}

/// What is to be done with a configuration: the file of `-c`, else ./imgsync.yaml.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigAction {
    /// Say all that is wrong with it, each with its place; the exit code is 2 then
    Check,
    /// Print what it means, defaults filled in and secrets hidden
    Show,
    /// Print the JSON Schema of configurations, for editors
    Schema,
    /// Turn a file of skopeo, regsync or image-syncer, or a command line of imgsync 2.1, into a configuration
    ///
    /// It comes on stdout; what has no counterpart is said on stderr. No secret is repeated: each becomes a variable.
    Import(ImportArgs),
}

/// Copies one image from registry to registry: every platform of it, byte for byte, under the same digest.
///
/// Credentials come from the configuration, else from where docker and podman keep them (`docker login`).
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// The image to copy: alpine, gcr.io/distroless/static:nonroot, host:5000/a/b@sha256:…, oci:DIR:TAG
    #[arg(value_name = "SOURCE", value_parser = parse_location)]
    pub(crate) source: ImageLocation,
    /// Where to copy it; without a tag it keeps the source's [default: docker.io/<user>/<source's name with _ for />]
    #[arg(value_name = "TARGET", value_parser = parse_target)]
    pub(crate) target: Option<ImageLocation>,
    /// Copy this platform alone (os/arch[/variant]); the target then has that platform's digest
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,
    /// Signatures, SBOMs and other referrers that come along: all, none, or these artifact types
    #[arg(long, value_name = "all|none|TYPE,…", value_delimiter = ',', value_parser = parse_referrers)]
    pub(crate) referrers: Vec<String>,
    /// Copy layers that live at URLs of their own ("foreign"), in place of leaving them there
    #[arg(long)]
    pub(crate) foreign_layers: bool,
    /// Only say what would be copied
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Push even what the target has already
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// The user at the target's registry
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The user's password or token; visible to others on this machine: prefer --password-stdin, or IMGSYNC_PASSWORD
    ///
    /// The variable is used where --user stands and none of the two options does.
    // Not through clap's `env`: clap treats a set variable as a typed option, and would require --user.
    #[arg(long, value_name = "PASSWORD", requires = "user", value_parser = |text: &str| Ok::<_, String>(Secret::new(text)))]
    pub(crate) password: Option<Secret>,
    /// Read the password from stdin
    #[arg(long, requires = "user", conflicts_with = "password")]
    pub(crate) password_stdin: bool,
    /// Give up when registries were waited for so long (90s, 10m, 1h30m) [default: 10m, and more while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Compare both ends, and copy nothing (imgsync 2.1; today --dry-run)
    #[arg(long)]
    pub(crate) download_manifests: bool,
    /// Where imgsync 2.1 kept manifests; not needed any more, for `sync` always asks both ends
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Blobs in flight at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) concurrency: u16,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
}

impl SyncArgs {
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

/// Runs the rules of the configuration: lists, finds what is new or changed, copies it, and reports.
///
/// What the listings and the memory of earlier runs show to be unchanged costs no request. A run that was interrupted or
/// killed loses nothing: run it again, or `imgsync batch resume`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Only say what would be done, a line per image: action, source, target
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as one JSON object on stdout (with --dry-run: a line per image)
    #[arg(long)]
    pub(crate) json: bool,
    /// Print a JSON line per event on stdout while it runs
    #[arg(long)]
    pub(crate) events: bool,
    /// In a cluster: list, print the batch's id, and leave the rest to `imgsync serve`
    #[arg(long, conflicts_with_all = ["dry_run", "json", "events", "report"])]
    pub(crate) detach: bool,
    /// What to do while a batch of the same rules is running [default: the configuration's, else wait]
    ///
    /// `wait` waits for its end, then lists afresh and runs; one run waits, and later ones join its batch. `join` follows the running
    /// batch and ends with its exit code; it is refused where --force, --download-manifests or the slice differ. `supersede` stops the
    /// running batch. `fail` ends with exit code 2. A paused batch is left alone, with exit code 2; one whose process is gone is
    /// superseded.
    #[arg(long, value_name = "wait|join|supersede|fail")]
    pub(crate) if_running: Option<IfRunning>,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Cut the sorted list of all images into slices of this many, and run one of them
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<std::num::NonZeroUsize>,
    /// Which slice, from 1
    #[arg(long, value_name = "K", requires = "batch_size")]
    pub(crate) batch_number: Option<std::num::NonZeroUsize>,
    /// Images that are copied at a time [default: the configuration's, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// The name that --concurrency had in imgsync 2.1
    #[arg(long, value_name = "N", conflicts_with = "concurrency", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) process_limit: Option<u16>,
    /// Priority over other batches on the same routes: high, normal or low [default: each rule's]
    #[arg(long, value_name = "PRIORITY")]
    pub(crate) priority: Option<Priority>,
    /// Repositories that are listed at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    /// How long registries are waited for with one image (90s, 10m, 1h30m) [default: 10m, and more while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Ask both ends about everything, and push even what is there already
    #[arg(long)]
    pub(crate) force: bool,
    /// Compare both ends and remember what is equal, but copy nothing
    #[arg(long)]
    pub(crate) download_manifests: bool,
    /// Take the folder of manifests of imgsync 2.1 as a hint of what the target has
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Keep the state in this folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
    /// Set by `imgsync verify`: whether to read all bytes. Not a flag.
    #[arg(skip)]
    pub(crate) verify: Option<bool>,
}

/// The coordinator that stays.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Answer on this address, /metrics too [default: the configuration's, else 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Images that are copied at a time, where there is no cluster [default: the configuration's, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// Repositories that are listed at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    /// Keep the state in this folder, where there is no cluster [default: $XDG_STATE_HOME/imgsync, else
    /// ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
    /// Ask the one that runs and answers on that address whether it is ready, and end: 0 if it is, else 3
    #[arg(long)]
    pub(crate) check: bool,
}

/// What is known of target tags: what each is a copy of, and when it was last seen.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// The state in this folder, also where a cluster is configured [default: the cluster's, else this machine's]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) action: CacheAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// Write it as lines of JSON
    Export {
        /// To this file [default: stdout]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Read what `export` wrote; what is known already and was seen later stays
    Import {
        /// From this file [default: stdin]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Looks at batches, and steers them.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// The folder with the state [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: BatchCommand,
}

/// A batch's id, or how it begins; the newest where none is given.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchSelector {
    /// The batch's id, or its beginning [default: the newest batch]
    #[arg(value_name = "BATCH")]
    pub(crate) batch: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// List batches, newest first
    List {
        /// A JSON object per batch
        #[arg(long)]
        json: bool,
        /// At the most
        #[arg(long, value_name = "N", default_value = "20")]
        limit: usize,
    },
    /// Show how a batch stands, and what failed
    Show {
        #[command(flatten)]
        id: BatchSelector,
        /// As a JSON object
        #[arg(long)]
        json: bool,
        /// List every failure, not only the groups
        #[arg(long)]
        failures: bool,
    },
    /// Follow a batch until it ends: as a full view on a terminal, as lines elsewhere
    Watch {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Begin no more of its images until it is resumed
    Pause {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Go on with a batch that was paused, interrupted or killed, in this process unless another is running it
    Resume {
        #[command(flatten)]
        id: BatchSelector,
        #[command(flatten)]
        run: Box<ResumeArgs>,
    },
    /// Stop a batch for good: what is not done counts as cancelled
    Cancel {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Try again what failed, in this process unless another is running the batch
    Requeue {
        #[command(flatten)]
        id: BatchSelector,
        /// Only what failed like this (not_found, denied, unreachable …)
        #[arg(long, value_name = "CLASS", value_parser = parse_error_kind)]
        kind: Option<ErrorKind>,
        /// Only what has this registry at either end
        #[arg(long, value_name = "REGISTRY")]
        registry: Option<RegistryName>,
        #[command(flatten)]
        run: Box<ResumeArgs>,
    },
    /// Write the report of a batch
    Report {
        #[command(flatten)]
        id: BatchSelector,
        #[command(flatten)]
        report: ReportArgs,
    },
}

/// What a resumed run takes.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Images that are copied at a time [default: the configuration's, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// How long registries are waited for with one image (90s, 10m, 1h30m) [default: 10m, and more while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
}

impl From<ResumeArgs> for RunArgs {
    fn from(resumed: ResumeArgs) -> RunArgs {
        let ResumeArgs { json, report, concurrency, timeout, retry, notify } = resumed;
        RunArgs {
            dry_run: false,
            json,
            events: false,
            detach: false,
            if_running: None,
            report,
            batch_size: None,
            batch_number: None,
            concurrency,
            process_limit: None,
            priority: None,
            query_limit: 20,
            timeout,
            force: false,
            download_manifests: false,
            manifests: None,
            state: None,
            retry,
            notify,
            verify: None,
        }
    }
}

/// Parses an error kind by name.
fn parse_error_kind(text: &str) -> Result<ErrorKind, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        let all: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
        format!("there is no such class; there are {}", all.join(", "))
    })
}

/// How long something that fails is put up with.
#[derive(Debug, Args)]
#[command(next_help_heading = "Patience")]
pub(crate) struct RetryArgs {
    /// Tries of a request that makes no progress
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) attempts: u32,
    /// The longest first pause before trying again; it doubles, up to 30s, and Retry-After is obeyed
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) retry_delay: Duration,
    /// Give up on an answer or a stream that stands still, or drips, for this long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) stall_timeout: Duration,
}

/// Parses a reference to an image in a registry or in a layout.
pub(super) fn parse_location(text: &str) -> Result<ImageLocation, String> {
    text.parse::<ImageLocation>().map_err(|error| error.message().to_owned())
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
        return Err(format!("it names the registry {text} and no repository there: write {text}/NAME"));
    }
    parse_location(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
