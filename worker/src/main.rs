//! The program `imgsync-worker`: a worker of the cluster.

use std::process::ExitCode;

use clap::Parser;

/// A worker of an imgsync cluster: takes tasks from RabbitMQ and copies images.
///
/// This version has no cluster yet: `imgsync` does all the work in one process.
#[derive(Debug, Parser)]
#[command(name = "imgsync-worker", version, max_term_width = 100)]
struct Cli {
    /// RabbitMQ, where the tasks are
    #[arg(long, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    broker: Option<String>,
    /// Redis, where the progress of batches is
    #[arg(long, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    store: Option<String>,
}

fn main() -> ExitCode {
    let Cli { .. } = Cli::parse();
    #[expect(clippy::print_stderr, reason = "all that this program has to say")]
    {
        eprintln!("error: this version has no cluster yet\nhint: `imgsync` does all the work in one process");
    }
    ExitCode::from(2)
}
