//! Options of commands that run batches.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use imgsync_config::IfRunning;
use imgsync_model::batch::Priority;
use imgsync_worker::cli::parse_duration;

use super::notify::NotifyArgs;
use super::report::ReportArgs;
use super::retry_args::RetryArgs;

/// Runs the rules of the configuration: lists tags, copies what is new or changed, and writes a report.
///
/// Tags that the listings and the digest cache show to be unchanged need no request. A run that was interrupted or
/// killed loses nothing: run it again, or `imgsync batch resume`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Print what would be done, one line per image: action, source, target
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Ignore the digest cache, and push all content, even if the target already has it
    #[arg(long)]
    pub(crate) force: bool,
    /// In a cluster: list, print the id, leave the batch to `imgsync serve`
    #[arg(long, conflicts_with_all = ["dry_run", "json", "events", "report"])]
    pub(crate) detach: bool,
    /// If a batch of the same rules is running: wait, join, supersede or fail [default: from the configuration, else wait]
    ///
    /// `wait` waits until it ends, then lists again and runs; only one run waits, and later runs join the batch of the
    /// waiting one. `join` follows the running batch and exits with its exit code; it fails if that batch has another
    /// --force, --download-manifests or slice. `supersede` stops the running batch. `fail` exits with code 2. A paused
    /// batch is not touched (exit code 2); an interrupted batch is superseded.
    #[arg(long, value_name = "ACTION", hide_short_help = true)]
    pub(crate) if_running: Option<IfRunning>,
    /// Split the sorted list of images into slices of this size, and run one slice
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) batch_size: Option<std::num::NonZeroUsize>,
    /// Number of the slice to run, from 1
    #[arg(long, value_name = "K", requires = "batch_size", hide_short_help = true)]
    pub(crate) batch_number: Option<std::num::NonZeroUsize>,
    /// Compare sources and targets and fill the digest cache, without copying
    #[arg(long, hide_short_help = true)]
    pub(crate) download_manifests: bool,
    /// Use the manifest folder of imgsync 2.1 as a hint of what the target has
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) manifests: Option<PathBuf>,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) state: Option<PathBuf>,
    /// Number of images to copy concurrently [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Limits")]
    pub(crate) concurrency: Option<u16>,
    /// Old name of --concurrency (imgsync 2.1)
    #[arg(long, value_name = "N", conflicts_with = "concurrency", value_parser = clap::value_parser!(u16).range(1..=1000))]
    #[arg(help_heading = "Limits", hide_short_help = true)]
    pub(crate) process_limit: Option<u16>,
    /// Time limit per image (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,
    /// Priority over other batches on the same routes: high, normal or low [default: from each rule]
    #[arg(long, value_name = "PRIORITY", help_heading = "Limits", hide_short_help = true)]
    pub(crate) priority: Option<Priority>,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    #[arg(help_heading = "Limits", hide_short_help = true)]
    pub(crate) query_limit: u16,
    /// Print the result as one JSON object on stdout (with --dry-run: one line per image)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// Print events as JSON lines on stdout
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub(crate) events: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
    /// Set by `imgsync verify`: whether to read all bytes. Not a flag.
    #[arg(skip)]
    pub(crate) verify: Option<bool>,
    /// Set by the commands of imgsync 2.1: whether text reports have the lines of 2.1. Not a flag.
    #[arg(skip)]
    pub(crate) legacy_report: bool,
}

/// Options of a resumed run.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Number of images to copy concurrently [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Limits")]
    pub(crate) concurrency: Option<u16>,
    /// Time limit per image (90s, 10m, 1h30m) [default: 10m, extended while bytes flow]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,
    /// Print the result as one JSON object on stdout
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
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
            legacy_report: false,
        }
    }
}
