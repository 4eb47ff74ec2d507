//! Command-line arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use imgsync_config::IfRunning;
use imgsync_model::batch::{Priority, Referrers};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::secret::Secret;
use imgsync_oci::{Platform, RegistryName};
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

/// Mirrors container images between registries, without Docker and without local disk.
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

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Print debug messages on stderr
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Format of the log on stderr: text, or json with one object per line (RUST_LOG and --debug set the level)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", env = "IMGSYNC_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Print nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Read the configuration from this file [default: ./imgsync.yaml, if it exists]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// URL of the cluster's RabbitMQ (amqp:// or amqps://) [default: from the configuration]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    pub(crate) broker: Option<String>,
    /// URL of the cluster's Redis (redis:// or rediss://) [default: from the configuration]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    pub(crate) store: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copy one image
    Sync(Box<SyncArgs>),
    /// Run the rules of the configuration, or presets
    Run(Box<RunCommand>),
    /// Copy a namespace of gcr.io to Docker Hub, as imgsync 2.1 did
    ///
    /// Copies all its repositories and tags to docker.io/<user>. Target names are those of imgsync 2.1
    /// (gcr.io_istio-release_pilot), also where the images have moved since. docs/from-2.1.md lists each flag.
    Gcr(Box<GcrArgs>),
    /// Copy Flannel to Docker Hub, as imgsync 2.1 did
    ///
    /// Copies to docker.io/<user>, under the target names of imgsync 2.1. docs/from-2.1.md lists each flag.
    Flannel(Box<LegacyArgs>),
    /// Compare targets with their sources without copying
    ///
    /// Compares every digest of every image: the tag, its manifests, its blobs and its referrers. Compares what the
    /// rules select, what an earlier batch copied, or one image. Reports and exit codes are those of `run`; the exit
    /// code is 1 if something differs.
    Verify(Box<VerifyArgs>),
    /// Show the platforms, layers, sizes and referrers of an image
    Inspect(InspectArgs),
    /// List the presets and the repositories they expand to
    Presets(PresetsArgs),
    /// Show and control batches
    Batch(Box<BatchArgs>),
    /// Run rules on their schedules, with a dashboard and a JSON API
    ///
    /// Runs rules that have a `schedule:`, in this process or in the cluster, until it receives SIGTERM. It reloads the
    /// configuration when the file changes. In a cluster it also leads the batches that no `run` leads: of several
    /// coordinators, one is the leader and the others are standbys. See docs/serving.md.
    Serve(Box<ServeArgs>),
    /// Explain why a tag was or was not copied
    Explain(ExplainArgs),
    /// Export and import the digest cache
    Cache(CacheArgs),
    /// List the tags that a rule would select
    ///
    /// For one repository, each line on stdout is a tag; for a pattern with a star, each line is
    /// REGISTRY/REPOSITORY:TAG, as `imgsync sync` takes it. Repositories are sorted by path, tags from old to new, tags
    /// that are not versions first. Dropped tags and the reasons are printed on stderr. The exit code is 1 if a
    /// repository could not be listed.
    Tags(Box<TagsArgs>),
    /// Check, show and import configurations
    Config {
        #[command(subcommand)]
        action: Box<ConfigAction>,
    },
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them
    Man(ManArgs),
}

/// Checks, shows and imports configurations: the file of `-c`, else ./imgsync.yaml.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every error with its position; the exit code is 2 if there is one
    Check,
    /// Print the configuration with defaults filled in and secrets masked
    Show,
    /// Print the JSON Schema of configurations, for editors
    Schema,
    /// Convert a file of skopeo, regsync or image-syncer, or a command line of imgsync 2.1, into a configuration
    ///
    /// Prints it on stdout, and what has no counterpart on stderr. Secrets are replaced by environment variables.
    Import(ImportArgs),
}

/// Copies one image between registries: every platform, byte for byte, under the same digest.
///
/// Credentials come from the configuration, else from the credential files of docker and podman (`docker login`).
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// The image to copy: alpine, gcr.io/distroless/static:nonroot, host:5000/a/b@sha256:…, oci:DIR:TAG
    #[arg(value_name = "SOURCE", value_parser = parse_location)]
    pub(crate) source: ImageLocation,
    /// The target; without a tag, the source's tag is used [default: docker.io/<user>/<source's name with _ for />]
    #[arg(value_name = "TARGET", value_parser = parse_target)]
    pub(crate) target: Option<ImageLocation>,
    /// Copy only this platform (os/arch[/variant]); the target then has that platform's digest
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,
    /// Referrers to copy with the image (signatures, SBOMs …): all, none, or these artifact types
    #[arg(long, value_name = "all|none|TYPE,…", value_delimiter = ',', value_parser = parse_referrers)]
    pub(crate) referrers: Vec<String>,
    /// Copy foreign layers (those with `urls`) instead of leaving them where they are
    #[arg(long)]
    pub(crate) foreign_layers: bool,
    /// Print what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Push content that the target already has
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
    /// The variable is used when --user is given without either option.
    // Not through clap's `env`: clap treats a set variable as a typed option, and would require --user.
    #[arg(long, value_name = "PASSWORD", requires = "user", value_parser = |text: &str| Ok::<_, String>(Secret::new(text)))]
    pub(crate) password: Option<Secret>,
    /// Read the password from stdin
    #[arg(long, requires = "user", conflicts_with = "password")]
    pub(crate) password_stdin: bool,
    /// Time limit of the copy (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Compare source and target, and copy nothing (imgsync 2.1; superseded by --dry-run)
    #[arg(long)]
    pub(crate) download_manifests: bool,
    /// Manifest folder of imgsync 2.1; ignored: `sync` always asks source and target
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Number of concurrent blob transfers
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

/// Runs the rules of the configuration: lists tags, copies what is new or changed, and writes a report.
///
/// Tags that the listings and the digest cache show to be unchanged need no request. A run that was interrupted or
/// killed loses nothing: run it again, or `imgsync batch resume`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Print what would be done, one line per image: action, source, target
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as one JSON object on stdout (with --dry-run: one line per image)
    #[arg(long)]
    pub(crate) json: bool,
    /// Print events as JSON lines on stdout
    #[arg(long)]
    pub(crate) events: bool,
    /// In a cluster: list, print the batch id, and let `imgsync serve` run the batch
    #[arg(long, conflicts_with_all = ["dry_run", "json", "events", "report"])]
    pub(crate) detach: bool,
    /// What to do if a batch of the same rules is running [default: from the configuration, else wait]
    ///
    /// `wait` waits until it ends, then lists again and runs; one run waits, and later runs join its batch. `join`
    /// follows the running batch and exits with its exit code; it fails if --force, --download-manifests or the slice
    /// differ. `supersede` stops the running batch. `fail` exits with code 2. A paused batch is not touched (exit code
    /// 2); an interrupted batch is superseded.
    #[arg(long, value_name = "wait|join|supersede|fail")]
    pub(crate) if_running: Option<IfRunning>,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Split the sorted list of images into slices of this size, and run one slice
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<std::num::NonZeroUsize>,
    /// Number of the slice to run, from 1
    #[arg(long, value_name = "K", requires = "batch_size")]
    pub(crate) batch_number: Option<std::num::NonZeroUsize>,
    /// Number of images to copy concurrently [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// Old name of --concurrency (imgsync 2.1)
    #[arg(long, value_name = "N", conflicts_with = "concurrency", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) process_limit: Option<u16>,
    /// Priority over other batches on the same routes: high, normal or low [default: from each rule]
    #[arg(long, value_name = "PRIORITY")]
    pub(crate) priority: Option<Priority>,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    /// Time limit per image (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Ignore the digest cache, and push content that the target already has
    #[arg(long)]
    pub(crate) force: bool,
    /// Compare sources and targets and fill the digest cache, without copying
    #[arg(long)]
    pub(crate) download_manifests: bool,
    /// Use the manifest folder of imgsync 2.1 as a hint of what the target has
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
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

/// Runs rules on their schedules.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Listen on this address; serves /metrics too [default: from the configuration, else 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Number of images to copy concurrently, without a cluster [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    /// State folder, without a cluster [default: $XDG_STATE_HOME/imgsync, else
    /// ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
    /// Check whether the coordinator that listens on that address is ready: exit code 0 if it is, else 3
    #[arg(long)]
    pub(crate) check: bool,
}

/// Exports and imports the digest cache: the source digest of each target tag, and when the tag was last seen.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// State folder to use even if a cluster is configured [default: the cluster's store, else the default state
    /// folder]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) action: CacheAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// Write the digest cache as JSON lines
    Export {
        /// File to write [default: stdout]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Read the output of `export`; newer entries in the cache are kept
    Import {
        /// File to read [default: stdin]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Shows and controls batches.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: BatchCommand,
}

/// A batch id or its prefix; by default the newest batch.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchSelector {
    /// Batch id or a unique prefix of it [default: the newest batch]
    #[arg(value_name = "BATCH")]
    pub(crate) batch: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// List batches, newest first
    List {
        /// Print one JSON object per batch
        #[arg(long)]
        json: bool,
        /// Maximum number of batches
        #[arg(long, value_name = "N", default_value = "20")]
        limit: usize,
    },
    /// Show the progress of a batch, and what failed
    Show {
        #[command(flatten)]
        id: BatchSelector,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// List every failure instead of groups only
        #[arg(long)]
        failures: bool,
    },
    /// Watch a batch until it ends: full screen on a terminal, lines otherwise
    Watch {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Pause a batch: start no more of its images until it is resumed
    Pause {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Resume a paused or interrupted batch, in this process unless another process runs it
    Resume {
        #[command(flatten)]
        id: BatchSelector,
        #[command(flatten)]
        run: Box<ResumeArgs>,
    },
    /// Cancel a batch: unfinished images count as cancelled
    Cancel {
        #[command(flatten)]
        id: BatchSelector,
    },
    /// Requeue failed images, in this process unless another process runs the batch
    Requeue {
        #[command(flatten)]
        id: BatchSelector,
        /// Only failures of this kind (not_found, denied, unreachable …)
        #[arg(long, value_name = "KIND", value_parser = parse_error_kind)]
        kind: Option<ErrorKind>,
        /// Only failures with this registry as source or target
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

/// Options of a resumed run.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Number of images to copy concurrently [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: Option<u16>,
    /// Time limit per image (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
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
        format!("unknown error kind; expected one of {}", all.join(", "))
    })
}

/// Retries and timeouts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Retries and timeouts")]
pub(crate) struct RetryArgs {
    /// Attempts per request that makes no progress
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) attempts: u32,
    /// Upper bound of the first retry delay; doubles up to 30s; Retry-After is honoured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) retry_delay: Duration,
    /// Abort a response or stream that makes no or too little progress for this long
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
        return Err(format!("{text} names a registry without a repository: write {text}/NAME"));
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
