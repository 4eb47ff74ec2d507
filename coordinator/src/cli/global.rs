//! Options of every command.

use std::path::PathBuf;

use clap::Args;
use imgsync_worker::telemetry::logging::LogFormat;

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
