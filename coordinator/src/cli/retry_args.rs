//! Options for retries and timeouts.

use std::time::Duration;

use clap::Args;
use imgsync_oci::retry::RetryPolicy;
use imgsync_registry::ClientSettings;
use imgsync_worker::cli::parse_duration;

/// Retries and timeouts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Retries and timeouts")]
pub(crate) struct RetryArgs {
    /// Number of attempts for a request that makes no progress
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    #[arg(hide_short_help = true)]
    pub(crate) attempts: u32,
    /// Upper bound of the first retry delay; doubles up to 30s; Retry-After is honoured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) retry_delay: Duration,
    /// Abort a response or stream that makes no or too little progress for this long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) stall_timeout: Duration,
}

impl RetryArgs {
    /// Applies them to the settings of a client.
    pub(crate) fn apply(&self, client: &mut ClientSettings) {
        client.retry = RetryPolicy { attempts: self.attempts, first_delay: self.retry_delay, ..client.retry };
        client.retry.max_delay = client.retry.max_delay.max(client.retry.first_delay);
        client.stall_timeout = self.stall_timeout;
    }
}
