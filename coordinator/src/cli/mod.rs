//! The command line: arguments → settings → command. Commands never read the environment themselves.

mod backend;
mod batch;
mod batch_progress;
mod bundle;
mod cache;
mod completions;
mod config;
mod copy_progress;
#[cfg(test)]
mod docs_gen;
mod dry_run;
mod exit;
mod explain;
mod foreign_usage;
mod global;
mod images;
mod import;
mod inspect;
mod legacy;
mod legacy_args;
mod mirrors;
mod notify;
mod policy_keys;
mod presets;
mod printer;
mod report;
mod retry_args;
mod rule_selection;
mod run;
mod run_args;
mod serve;
mod settings;
mod show;
mod signals;
mod stdin;
mod stdin_archive;
mod sync;
mod sync_archive;
mod sync_stats;
mod tags;
mod target;
mod tui;
mod typed_line;
mod usage;
mod values;
mod verify;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
use imgsync_worker::cli::print_parser_message;
use imgsync_worker::telemetry::logging::{self, LogFormat};

use self::batch::BatchArgs;
use self::bundle::BundleArgs;
use self::cache::CacheArgs;
use self::completions::{CompletionsArgs, ManArgs};
use self::config::ConfigAction;
use self::exit::Exit;
use self::explain::ExplainArgs;
use self::global::GlobalArgs;
use self::images::ImagesArgs;
use self::inspect::InspectArgs;
use self::legacy::{GcrArgs, LegacyArgs};
pub(crate) use self::legacy_args::{LegacyCommand, LegacySource};
use self::mirrors::MirrorsArgs;
use self::presets::PresetsArgs;
use self::printer::Printer;
use self::run::RunCommand;
use self::serve::ServeArgs;
use self::sync::SyncArgs;
use self::tags::TagsArgs;
use self::verify::VerifyArgs;

/// Debug builds nest futures in large stack frames, and overflow the default of 2 MiB.
const THREAD_STACK_BYTES: usize = 8 << 20;
/// How long the exit waits for threads that cannot be cancelled.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Mirrors container images between registries, without Docker and without local disk.
#[derive(Debug, Parser)]
#[command(name = "imgsync", version, disable_version_flag = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copy one image
    ///
    /// Copies every platform, byte for byte, under the same digest. Credentials come from the configuration, else from
    /// `docker login`. The last line of the output counts all requests, including those for tokens and redirects, and
    /// says how many of them were for referrers and digest tags.
    #[command(visible_aliases = ["copy", "cp"])]
    Sync(Box<SyncArgs>),
    /// Run the rules of the configuration, or presets
    #[command(alias = "once")]
    Run(Box<RunCommand>),
    /// Copy a namespace of gcr.io to Docker Hub, as imgsync 2.1 did
    ///
    /// Copies all its repositories and tags to docker.io/<user>. Target names are those of imgsync 2.1
    /// (gcr.io_istio-release_pilot), even if the images have moved since. docs/how-to/from-2.1.md lists each flag.
    Gcr(Box<GcrArgs>),
    /// Copy Flannel to Docker Hub, as imgsync 2.1 did
    ///
    /// Copies to docker.io/<user>, under the target names of imgsync 2.1. docs/how-to/from-2.1.md lists each flag.
    Flannel(Box<LegacyArgs>),
    /// Compare targets with their sources without copying
    ///
    /// Compares every digest of every image: of the tag, its manifests, its blobs and its referrers. The images are those
    /// that the rules select, those of an earlier batch, or a single one. Reports and exit codes are those of `run`; the
    /// exit code is 1 if something differs.
    Verify(Box<VerifyArgs>),
    /// Show the platforms, layers, sizes and referrers of an image
    Inspect(InspectArgs),
    /// List the presets and the repositories they expand to
    Presets(PresetsArgs),
    /// Show and control batches
    Batch(Box<BatchArgs>),
    /// Carry images in signed files to machines without a network (docs/how-to/air-gap.md)
    Bundle(Box<BundleArgs>),
    /// Run rules on their schedules, with a dashboard and a JSON API
    ///
    /// Runs rules that have a `schedule:`, in this process or in the cluster, until it receives SIGTERM. It reloads the
    /// configuration when the file changes. In a cluster it also leads the batches that no `run` leads: of several
    /// coordinators, one is the leader and the others are standbys. See docs/how-to/serving.md.
    #[command(alias = "server")]
    Serve(Box<ServeArgs>),
    /// Explain why a tag was or was not copied
    Explain(ExplainArgs),
    /// Export and import the digest cache
    Cache(CacheArgs),
    /// List the tags that a rule would select
    ///
    /// For one repository, each line on stdout is a tag; for a pattern with a star, each line is
    /// REGISTRY/REPOSITORY:TAG, as `imgsync sync` takes it. Repositories are sorted by path. In each, tags that are not
    /// versions come first, then versions from old to new. Dropped tags are printed on stderr with the reasons. The exit
    /// code is 1 if a repository could not be listed.
    #[command(visible_alias = "ls", alias = "list-tags")]
    Tags(Box<TagsArgs>),
    /// List the images that manifests, compose files, Dockerfiles and lists name
    ///
    /// Reads Kubernetes manifests (also the output of `helm template`, `kustomize build` and `kubectl get -o yaml`),
    /// custom resources, compose files, Dockerfiles, files of hauler, zarf, oc-mirror and imgpkg, and lists with a name a
    /// line. Each line on stdout is an image. What may be an image, what cannot be decided, such as a template that was
    /// not rendered, and what was not understood is listed on stderr. The exit code is 1 if something was not decided or
    /// not understood, or missing for --check. See docs/how-to/cluster-images.md.
    Images(Box<ImagesArgs>),
    /// Write the configuration that makes nodes pull from the mirror
    ///
    /// Writes it for containerd, CRI-O and podman, Docker, K3s and RKE2, OpenShift, Kyverno or kustomize: for the images
    /// that the rules copied, by what the store knows, and that they name. Credentials are never written.
    /// Names that the consumer cannot pull from the mirror are listed on stderr, and the exit code is 1. See
    /// docs/how-to/cluster-nodes.md.
    Mirrors(Box<MirrorsArgs>),
    /// Check, show, test and import configurations
    Config {
        #[command(subcommand)]
        action: Box<ConfigAction>,
    },
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands to a folder
    Man(ManArgs),
    /// Print the version
    Version,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let typed: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(usage::join_report_file(typed.clone())) {
        Ok(cli) => cli,
        Err(error) => return print_parser_error(error, &typed).into(),
    };
    imgsync_worker::file_limit::raise_limit();
    let printer = Printer::new(cli.global.quiet).with_log(cli.global.log_format == LogFormat::Json);
    let format = cli.global.log_format;
    let name = crate::orchestrator::coordinator_name();
    let _logging = logging::init(
        format,
        default_log_filter(cli.global.debug, format),
        &[("program", "imgsync"), ("worker", &name)],
    );
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().thread_stack_size(THREAD_STACK_BYTES).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                printer.error(&format!("cannot start: {error}"), None);
                return Exit::CouldNotStart.into();
            }
        };
    let exit = runtime.block_on(async {
        match cli.command {
            Some(Command::Run(args)) => run::run(*args, &cli.global, &printer).await,
            Some(Command::Gcr(args)) => legacy::gcr(*args, &cli.global, &printer).await,
            Some(Command::Flannel(args)) => legacy::flannel(*args, &cli.global, &printer).await,
            Some(Command::Presets(args)) => presets::run(&args, &printer),
            Some(Command::Serve(args)) => serve::run(*args, &cli.global, &printer).await,
            Some(Command::Cache(args)) => cache::run(args, &cli.global, &printer).await,
            Some(Command::Explain(args)) => explain::run(args, &cli.global, &printer).await,
            Some(Command::Bundle(args)) => bundle::run(*args, &cli.global, &printer).await,
            Some(Command::Batch(args)) => batch::run(*args, &cli.global, &printer).await,
            Some(Command::Sync(args)) => sync::run(*args, &cli.global, &printer).await,
            Some(Command::Images(args)) => images::run(*args, &cli.global, &printer).await,
            Some(Command::Mirrors(args)) => mirrors::run(*args, &cli.global, &printer).await,
            Some(Command::Tags(args)) => tags::run(*args, &cli.global, &printer).await,
            Some(Command::Verify(args)) => verify::run(*args, &cli.global, &printer).await,
            Some(Command::Inspect(args)) => inspect::run(args, &cli.global, &printer).await,
            Some(Command::Config { action }) => config::run(*action, &cli.global, &printer).await,
            Some(Command::Completions(args)) => completions::completions(&args, &printer),
            Some(Command::Man(args)) => completions::man(&args, &printer),
            Some(Command::Version) => {
                printer.data(Cli::command().render_version().trim_end());
                Exit::Done
            }
            None => {
                printer.line(&Cli::command().render_help().to_string());
                if let Some(file) = &cli.global.config {
                    let hint = format!("type `imgsync run -c {}` to run its rules", file.display());
                    printer.error("no command is given", Some(&hint));
                }
                Exit::Usage
            }
        }
    });
    imgsync_store::log_throttle::flush();
    // Drops the remaining tasks, and with the last of them the store, which closes its file. A blocking DNS lookup
    // delays the exit no longer than this.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    // Takes precedence over the result of the command: the output is incomplete.
    if printer.output_lost() { Exit::OutputLost.into() } else { exit.into() }
}

/// Prints help and version on stdout, and a usage error with a hint on stderr.
fn print_parser_error(error: clap::Error, typed: &[OsString]) -> Exit {
    let (is_error, hint) = (error.use_stderr(), usage::hint(&error, typed));
    let printed = print_parser_message(error, hint.as_deref());
    if is_error {
        return Exit::Usage;
    }
    let printer = Printer::new(false);
    _ = printed.map_err(|error| printer.report_stdout_error(&error));
    if printer.output_lost() { Exit::OutputLost } else { Exit::Done }
}

/// Returns the log filter that applies without RUST_LOG. The JSON log includes the messages that users see as lines.
fn default_log_filter(debug: bool, format: LogFormat) -> &'static str {
    match (debug, format) {
        // The errors of the broker's client are reported in our own words.
        (true, _) => "imgsync=debug,lapin=off,warn",
        (false, LogFormat::Text) => "lapin=off,warn",
        (false, LogFormat::Json) => "imgsync::cli=info,lapin=off,warn",
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// Calls `check` with the short help of each command.
    fn for_each_help(command: &clap::Command, name: &str, check: &impl Fn(&str, &str)) {
        check(name, &command.clone().term_width(100).render_help().to_string());
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            for_each_help(below, &format!("{name} {}", below.get_name()), check);
        }
    }

    #[test]
    fn the_help_of_every_command_fits_on_a_screen() {
        let mut command = Cli::command();
        command.build();
        for_each_help(&command, "imgsync", &|name, help| {
            assert!(help.lines().count() <= 40, "{name} -h has {} lines:\n{help}", help.lines().count());
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        });
    }

    #[test]
    fn the_long_help_names_every_option_under_a_heading() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand_mut("run").unwrap();
        let long = run.clone().term_width(100).render_long_help().to_string();
        for option in run.get_arguments().filter_map(|option| option.get_long()) {
            assert!(long.contains(&format!("--{option}")), "{option}: {long}");
        }
        for heading in ["Limits:", "Output:", "Retries and timeouts:", "Notifications:", "Target:", "Global options:"] {
            assert!(long.contains(&format!("\n{heading}\n")), "{heading}: {long}");
        }
    }

    #[test]
    fn usual_names_of_commands_work() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command.unwrap());
        for line in ["imgsync copy a r.example/b", "imgsync cp docker://a docker://r.example/b"] {
            assert!(matches!(parse(line), Ok(Command::Sync(_))), "{line}");
        }
        for line in ["imgsync ls r.example/a", "imgsync list-tags docker://r.example/a"] {
            assert!(matches!(parse(line), Ok(Command::Tags(_))), "{line}");
        }
        assert!(matches!(parse("imgsync once -c regsync.yml"), Ok(Command::Run(_))));
        assert!(matches!(parse("imgsync server"), Ok(Command::Serve(_))));
        assert!(matches!(parse("imgsync batch ls"), Ok(Command::Batch(_))));
        assert!(matches!(parse("imgsync config validate a.yaml"), Ok(Command::Config { .. })));
        assert!(Cli::try_parse_from(["imgsync", "run", "--verbose"]).unwrap().global.debug);
    }
}
