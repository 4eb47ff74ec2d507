//! The command line: arguments → settings → command. Commands never read the environment themselves.

mod args;
mod batch;
mod cache;
mod command_line;
mod config;
mod dry_run;
mod exit;
mod explain;
mod import;
mod inspect;
mod notify;
mod original;
mod pages;
mod presets;
mod printer;
mod progress;
#[cfg(test)]
mod reference;
mod report;
mod run;
mod screen;
mod serve;
mod settings;
mod show;
mod signals;
mod state;
mod sync;
mod tags;
mod target;
mod verify;
mod watch;
mod watching;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use imgsync_worker::logging::{self, LogFormat};

use self::args::{Cli, Command};
pub(crate) use self::command_line::{Original, OriginalSource};
use self::exit::Exit;
use self::printer::Printer;

/// Debug builds nest futures in large stack frames, and overflow the default of 2 MiB.
const STACK_BYTES: usize = 8 << 20;
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
            _ = printed.map_err(|error| printer.lost_on_stdout(&error));
            return if printer.has_lost() { Exit::OutputLost.into() } else { Exit::Done.into() };
        }
    };
    imgsync_worker::files::raise_limit();
    let printer = Printer::new(cli.global.quiet).into_log(cli.global.log_format == LogFormat::Json);
    let format = cli.global.log_format;
    let name = crate::batches::coordinator_name();
    let _logging =
        logging::begin(format, default_log(cli.global.debug, format), &[("program", "imgsync"), ("worker", &name)]);
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.error(&format!("cannot start: {error}"), None);
            return Exit::CouldNotStart.into();
        }
    };
    let exit = runtime.block_on(async {
        match cli.command {
            Some(Command::Run(args)) => run::run(*args, &cli.global, &printer).await,
            Some(Command::Gcr(args)) => original::gcr(*args, &cli.global, &printer).await,
            Some(Command::Flannel(args)) => original::flannel(*args, &cli.global, &printer).await,
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
            Some(Command::Completions(args)) => pages::completions(&args, &printer),
            Some(Command::Man(args)) => pages::man(&args, &printer),
            None => {
                printer.line(&Cli::command().render_help().to_string());
                Exit::Usage
            }
        }
    });
    imgsync_common::repeated::flush();
    // Drops the remaining tasks, and with the last of them the store, which closes its file. A blocking DNS lookup
    // delays the exit no longer than this.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    // Takes precedence over the result of the command: the output is incomplete.
    if printer.has_lost() { Exit::OutputLost.into() } else { exit.into() }
}

/// Returns the log filter that applies without RUST_LOG. The JSON log includes the messages that users see as lines.
fn default_log(debug: bool, format: LogFormat) -> &'static str {
    match (debug, format) {
        // The errors of the broker's client are reported in our own words.
        (true, _) => "imgsync=debug,imgsync_common=debug,imgsync_worker=debug,lapin=off,warn",
        (false, LogFormat::Text) => "lapin=off,warn",
        (false, LogFormat::Json) => "imgsync::cli=info,lapin=off,warn",
    }
}
