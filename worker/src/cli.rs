//! Command-line arguments of `imgsync-worker`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory as _, Parser};
use imgsync_oci::RegistryName;

use crate::telemetry::logging::LogFormat;

/// Run a worker of an imgsync cluster: take tasks from RabbitMQ, copy images, record results in Redis.
///
/// Run any number of workers on any number of machines. SIGTERM (or Ctrl-C) drains: copies in progress get up to 30
/// seconds to finish, the rest is requeued; a second one aborts them. Exit codes: 0 stopped on request, 2 wrong usage
/// or configuration, 3 broker or store unreachable at the start.
#[derive(Debug, Parser)]
#[command(name = "imgsync-worker", version, max_term_width = 100)]
pub struct Arguments {
    /// URL of RabbitMQ, the task queue (amqp:// or amqps://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    pub broker: Option<String>,
    /// URL of Redis, the store of batches (redis:// or rediss://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    pub store: Option<String>,
    /// Read registries, credentials and the cluster key from this file [default: ./imgsync.yaml, if it exists]
    ///
    /// If it names targets (`defaults: {to: …}`, or rules), the worker pushes nowhere else.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Copy this many images at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,
    /// Limit blob bytes per second, in and out each, such as 20MiB [default: `bandwidth` of the configuration]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub bandwidth: Option<u64>,
    /// Serve only routes with one of these registries as source or target
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',')]
    pub registries: Vec<RegistryName>,
    /// Serve /healthz, /readyz and /metrics on this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Check whether the worker listening on the address of --listen is ready, and exit: 0 if ready, else 3
    #[arg(long, requires = "listen")]
    pub check: bool,
    /// Wait this long for broker and store at the start
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration_or_seconds)]
    pub wait: Duration,
    /// Try a request without progress, and an image with a transient error, this many times
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,
    /// Time out a response or stream that stalls or trickles for this long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration_or_seconds)]
    pub stall_timeout: Duration,
    /// Seconds until a task's lease expires if its worker stops renewing it
    #[arg(long, value_name = "SECONDS", default_value = "30", hide = true, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub lease: u64,
    /// Log in detail
    #[arg(long)]
    pub debug: bool,
    /// Format of the log on stderr; json: one object per line, with batch, task and worker
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "IMGSYNC_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Returns the command-line definition, for manual pages, completions and the reference.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses a size in bytes.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0);
    size.ok_or_else(|| format!("`{text}` is not a size such as 20MiB"))
}

/// Parses a duration: `90s`, `1h30m`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = "write a time such as 90s, 10m or 1h30m";
    let span: jiff::Span = text.parse().map_err(|_| help.to_owned())?;
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let span = span.to_duration(days).map_err(|_| help.to_owned())?;
    match Duration::try_from(span) {
        Ok(span) if !span.is_zero() => Ok(span),
        _ => Err("it must be greater than zero".to_owned()),
    }
}

/// Parses a duration; a bare number is in seconds.
fn parse_duration_or_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) => parse_duration(&format!("{seconds}s")),
        Err(_) => parse_duration(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(
            (parse_duration_or_seconds("30"), parse_duration_or_seconds("2m")),
            (Ok(Duration::from_secs(30)), Ok(Duration::from_secs(120)))
        );
        for bad in ["", "0s", "-1s", "ten", "10"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
