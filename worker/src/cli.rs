//! Command-line arguments of `imgsync-worker`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory as _, Parser};
use imgsync_common::image::RegistryName;

use crate::logging::LogFormat;

/// A worker of an imgsync cluster: takes tasks from RabbitMQ, copies images, and tells Redis how it went.
///
/// Start as many as you like, on as many machines. SIGTERM (or Ctrl-C) finishes copies in progress for up to 30 seconds
/// and gives the rest back; a second one aborts them. Exit codes: 0 ended as it was told to, 2 wrong usage or configuration, 3 broker or store out
/// of reach at the start.
#[derive(Debug, Parser)]
#[command(name = "imgsync-worker", version, max_term_width = 100)]
pub struct Arguments {
    /// RabbitMQ, where the tasks are (amqp:// or amqps://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    pub broker: Option<String>,
    /// Redis, where the progress of batches is (redis:// or rediss://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    pub store: Option<String>,
    /// Read registries, credentials and the cluster's key from this file [default: ./imgsync.yaml, if it is there]
    ///
    /// Where it names targets (`defaults: {to: …}`, or rules), nothing is pushed elsewhere.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Images that are copied at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,
    /// Bytes of blobs a second, in and out each, such as 20MiB [default: the configuration's `bandwidth`, else no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub bandwidth: Option<u64>,
    /// Serve only lanes with one of these registries at either end
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',')]
    pub registries: Vec<RegistryName>,
    /// Answer /healthz, /readyz and /metrics on this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Ask the worker that answers on the address of --listen whether it is ready, and end: 0 if it is, else 3
    #[arg(long, requires = "listen")]
    pub check: bool,
    /// How long to wait for broker and store at the start
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration_or_seconds)]
    pub wait: Duration,
    /// Tries of a request that makes no progress, and of an image that fails in passing
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,
    /// Give up on an answer or a stream that stands still, or drips, for this long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration_or_seconds)]
    pub stall_timeout: Duration,
    /// How long a task is held without word from its worker
    #[arg(long, value_name = "SECONDS", default_value = "30", hide = true, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub lease: u64,
    /// Say in detail what is done
    #[arg(long)]
    pub debug: bool,
    /// How the log on stderr is written; json: an object a line, with batch, task and worker
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
        _ => Err("it must be more than nothing".to_owned()),
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
