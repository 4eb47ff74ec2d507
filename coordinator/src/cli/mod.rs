//! The command line: what was typed → what it means → the command. Commands never read the environment themselves.

mod args;
mod batch;
mod cache;
mod config;
mod dry_run;
mod exit;
mod explain;
mod notify;
mod original;
mod presets;
mod printer;
mod progress;
mod report;
mod run;
mod screen;
mod serve;
mod settings;
mod signals;
mod state;
mod sync;
mod tags;
mod target;
mod watch;
mod watching;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::args::{Cli, Command};
use self::exit::Exit;
use self::printer::Printer;

/// Of each thread: a build without optimizations keeps deep nests of futures in wide frames.
const STACK_BYTES: usize = 8 << 20;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows whether it was asked for help (stdout, 0) or given something wrong (stderr).
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let printer = Printer::new(cli.global.quiet);
    logging(cli.global.debug);
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
            Some(Command::Config { action }) => config::run(action, &cli.global, &printer),
            None => {
                printer.line(&Cli::command().render_help().to_string());
                Exit::Usage
            }
        }
    });
    // What was left behind (a name look-up in a thread of its own) does not keep us.
    runtime.shutdown_background();
    exit.into()
}

fn logging(debug: bool) {
    use tracing_subscriber::EnvFilter;
    let default = if debug { "imgsync=debug,imgsync_common=debug,imgsync_worker=debug,warn" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = log.try_init();
}
