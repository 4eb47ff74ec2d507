//! The command line: arguments → settings → command. Commands never read the environment themselves.

mod args;
mod backend;
mod batch;
mod batch_progress;
mod cache;
mod completions;
mod config;
mod copy_progress;
#[cfg(test)]
mod docs_gen;
mod dry_run;
mod exit;
mod explain;
mod import;
mod inspect;
mod legacy;
mod legacy_args;
mod notify;
mod presets;
mod printer;
mod report;
mod run;
mod serve;
mod settings;
mod show;
mod signals;
mod sync;
mod tags;
mod target;
mod tui;
mod verify;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use imgsync_worker::logging::{self, LogFormat};

use self::args::{Cli, Command};
use self::exit::Exit;
pub(crate) use self::legacy_args::{LegacyCommand, LegacySource};
use self::printer::Printer;

/// Debug builds nest futures in large stack frames, and overflow the default of 2 MiB.
const THREAD_STACK_BYTES: usize = 8 << 20;
/// How long the exit waits for threads that cannot be cancelled.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows whether help was requested (stdout, 0) or the usage is wrong (stderr).
            let printed = error.print();
            if error.use_stderr() {
                return Exit::Usage.into();
            }
            let printer = Printer::new(false);
            _ = printed.map_err(|error| printer.report_stdout_error(&error));
            return if printer.output_lost() { Exit::OutputLost.into() } else { Exit::Done.into() };
        }
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
            Some(Command::Batch(args)) => batch::run(*args, &cli.global, &printer).await,
            Some(Command::Sync(args)) => sync::run(*args, &cli.global, &printer).await,
            Some(Command::Tags(args)) => tags::run(*args, &cli.global, &printer).await,
            Some(Command::Verify(args)) => verify::run(*args, &cli.global, &printer).await,
            Some(Command::Inspect(args)) => inspect::run(args, &cli.global, &printer).await,
            Some(Command::Config { action }) => config::run(*action, &cli.global, &printer),
            Some(Command::Completions(args)) => completions::completions(&args, &printer),
            Some(Command::Man(args)) => completions::man(&args, &printer),
            None => {
                printer.line(&Cli::command().render_help().to_string());
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

/// Returns the log filter that applies without RUST_LOG. The JSON log includes the messages that users see as lines.
fn default_log_filter(debug: bool, format: LogFormat) -> &'static str {
    match (debug, format) {
        // The errors of the broker's client are reported in our own words.
        (true, _) => "imgsync=debug,lapin=off,warn",
        (false, LogFormat::Text) => "lapin=off,warn",
        (false, LogFormat::Json) => "imgsync::cli=info,lapin=off,warn",
    }
}
