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
