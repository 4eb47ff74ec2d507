//! Options of every command.

use std::path::PathBuf;

use clap::Args;
use imgsync_worker::telemetry::logging::LogFormat;

use super::exit::Exit;
use super::printer::Printer;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Read the configuration from this file [default: ./imgsync.yaml, if it exists]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print debug messages on stderr
    #[arg(long, visible_alias = "verbose", global = true)]
    pub(crate) debug: bool,
    /// Format of the log on stderr: text, or json with one object per line (RUST_LOG and --debug set the level)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", env = "IMGSYNC_LOG_FORMAT")]
    #[arg(hide_short_help = true)]
    pub(crate) log_format: LogFormat,
    /// URL of the cluster's RabbitMQ, or URLs of its nodes, separated by commas [default: from the configuration]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    #[arg(hide_short_help = true)]
    pub(crate) broker: Vec<String>,
    /// URL of the cluster's Redis (redis://, rediss://, redis+sentinel://) [default: from the configuration]
    #[arg(long, global = true, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    #[arg(hide_short_help = true)]
    pub(crate) store: Option<String>,
}

impl GlobalArgs {
    /// Returns the options with the configuration that a command takes as an argument, instead of after `-c`.
    pub(crate) fn with_file(&self, file: Option<PathBuf>, printer: &Printer) -> Result<GlobalArgs, Exit> {
        let Some(file) = file else { return Ok(self.clone()) };
        if let Some(other) = &self.config {
            let message = format!("two configurations are named: {} and {}", other.display(), file.display());
            printer.error(&message, Some("name one, as FILE or after -c"));
            return Err(Exit::Usage);
        }
        Ok(GlobalArgs { config: Some(file), ..self.clone() })
    }
}
