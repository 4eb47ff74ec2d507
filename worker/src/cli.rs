//! Command-line arguments of `imgsync-worker`.

mod usage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, CommandFactory as _, Parser};
use imgsync_oci::RegistryName;

pub use self::usage::print_parser_message;
use crate::telemetry::logging::LogFormat;

/// Run a worker of an imgsync cluster: take tasks from RabbitMQ, copy images, record results in Redis.
///
/// Run any number of workers on any number of machines. SIGTERM (or Ctrl-C) drains: copies in progress get up to 30
/// seconds to finish, the rest is requeued; a second one aborts them. Exit codes: 0 stopped on request, 2 wrong usage
/// or configuration, 3 broker or store unreachable at the start.
#[derive(Debug, Parser)]
#[command(name = "imgsync-worker", version, disable_version_flag = true, max_term_width = 100)]
pub struct Arguments {
    /// Read registries, credentials and the cluster key from this file [default: ./imgsync.yaml, if it exists]
    ///
    /// If it names targets (`defaults: {to: …}`, or rules), the worker pushes nowhere else.
    #[arg(short, long, value_name = "FILE", help_heading = "Cluster")]
    pub config: Option<PathBuf>,
    /// URL of RabbitMQ, the task queue, or URLs of its nodes, separated by commas [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true, help_heading = "Cluster")]
    pub broker: Vec<String>,
    /// URL of Redis, the store of batches (redis://, rediss://, redis+sentinel://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true, help_heading = "Cluster")]
    pub store: Option<String>,
    /// Wait this long for broker and store at the start
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration_or_seconds)]
    #[arg(help_heading = "Cluster")]
    pub wait: Duration,
    /// Copy this many images at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    #[arg(help_heading = "Tasks")]
    pub concurrency: u16,
    /// Limit blob bytes per second, in and out each, such as 20MiB [default: `bandwidth` of the configuration]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Tasks")]
    pub bandwidth: Option<u64>,
    /// Serve only routes with one of these registries as source or target
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',', help_heading = "Tasks")]
    pub registries: Vec<RegistryName>,
    /// Try a request without progress, and an image with a transient error, this many times
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    #[arg(help_heading = "Tasks")]
    pub attempts: u32,
    /// Time out a response or stream that stalls or trickles for this long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration_or_seconds)]
    #[arg(help_heading = "Tasks")]
    pub stall_timeout: Duration,
    /// Seconds until a task's lease expires if its worker stops renewing it
    #[arg(long, value_name = "SECONDS", default_value = "30", hide = true, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub lease: u64,
    /// Serve /healthz, /readyz and /metrics on this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS", help_heading = "Monitoring")]
    pub listen: Option<SocketAddr>,
    /// Check whether the worker listening on the address of --listen is ready, and exit: 0 if ready, else 3
    #[arg(long, requires = "listen", help_heading = "Monitoring")]
    pub check: bool,
    /// Log in detail
    #[arg(long, visible_alias = "verbose", help_heading = "Monitoring")]
    pub debug: bool,
    /// Format of the log on stderr; json: one object per line, with batch, task and worker
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        env = "IMGSYNC_LOG_FORMAT",
        help_heading = "Monitoring"
    )]
    pub log_format: LogFormat,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Returns what to type instead of arguments that are not valid.
pub fn usage_hint(error: &clap::Error) -> Option<String> {
    let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    match (error.kind(), argument.as_str()) {
        (ErrorKind::UnknownArgument, "version") => Some("type `imgsync-worker --version`".to_owned()),
        (ErrorKind::UnknownArgument, "help") => Some("type `imgsync-worker --help`".to_owned()),
        (ErrorKind::UnknownArgument, "run" | "start" | "serve") => {
            Some("a worker has no commands; type `imgsync-worker`, with options only".to_owned())
        }
        (ErrorKind::UnknownArgument, file) if file.ends_with(".yaml") || file.ends_with(".yml") => {
            Some(format!("type `imgsync-worker -c {file}`"))
        }
        (ErrorKind::UnknownArgument, "-f" | "--file") => Some("name the configuration after -c".to_owned()),
        (ErrorKind::UnknownArgument, "--to" | "--user" | "--password" | "--preset") => {
            Some("workers take their tasks from `imgsync run` or `imgsync serve`, and credentials from -c".to_owned())
        }
        _ => None,
    }
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

    fn hint(arguments: &[&str]) -> Option<String> {
        let typed = ["imgsync-worker"].iter().chain(arguments);
        usage_hint(&Arguments::try_parse_from(typed).unwrap_err())
    }

    #[test]
    fn arguments_of_other_programs_get_a_hint() {
        assert_eq!(hint(&["version"]).unwrap(), "type `imgsync-worker --version`");
        assert_eq!(hint(&["a/imgsync.yaml"]).unwrap(), "type `imgsync-worker -c a/imgsync.yaml`");
        assert!(hint(&["-f", "x.yaml"]).unwrap().contains("-c"));
        assert_eq!(hint(&["--nonsense"]), None);
        for version in ["-v", "-V", "--version"] {
            let shown = Arguments::try_parse_from(["imgsync-worker", version]).unwrap_err();
            assert_eq!(shown.kind(), ErrorKind::DisplayVersion, "{version}");
        }
        assert!(Arguments::try_parse_from(["imgsync-worker", "--verbose"]).unwrap().debug);
    }

    #[test]
    fn help_fits_on_a_screen() {
        let help = command().term_width(100).render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
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
