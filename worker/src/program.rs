//! What can be typed, what it means, and signals.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use imgsync_common::config::{Config, Destination, File};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::image::RegistryName;
use imgsync_common::naming::Base;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, SharedPace};
use imgsync_common::retry::{Policy, is_passing};
use imgsync_common::secret::Secret;
use imgsync_worker::cluster::{Addresses, Cluster, Given};
use imgsync_worker::log::Log;
use imgsync_worker::runner::{Allowed, Stop};
use imgsync_worker::service::{self, Worker};
use imgsync_worker::traffic::Traffic;
use imgsync_worker::{asked_to_stop, health, process_name, settings};

/// The file that is read where none was named.
const DEFAULT_FILE: &str = "imgsync.yaml";
/// How long what runs may go on after the first signal.
const DRAIN: Duration = Duration::from_secs(30);
/// How long what was stopped may take to clean up after itself.
const CLEAN_UP: Duration = Duration::from_secs(8);
/// A longer Retry-After is not slept out with a slot held: the task is given back.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long refusals (429) are waited out with a slot held, in waits that are each no longer than that.
const SLOT_PATIENCE: Duration = Duration::from_secs(60);
/// Of each thread: a build without optimizations keeps deep nests of futures in wide frames.
const STACK_BYTES: usize = 8 << 20;

/// A worker of an imgsync cluster: takes tasks from RabbitMQ, copies images, and tells Redis how it went.
///
/// Start as many as you like, on as many machines. SIGTERM (or Ctrl-C) lets the running images end for up to 30 seconds
/// and gives the rest back. Exit codes: 0 ended as it was told to, 2 wrong usage or configuration, 3 broker or store out
/// of reach at the start.
#[derive(Debug, Parser)]
#[command(name = "imgsync-worker", version, max_term_width = 100)]
struct Cli {
    /// RabbitMQ, where the tasks are (amqp:// or amqps://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_BROKER", hide_env_values = true)]
    broker: Option<String>,
    /// Redis, where the progress of batches is (redis:// or rediss://) [default: the configuration's]
    #[arg(long, value_name = "URL", env = "IMGSYNC_STORE", hide_env_values = true)]
    store: Option<String>,
    /// Read registries, credentials and the cluster's key from this file [default: ./imgsync.yaml, if it is there]
    ///
    /// Where it names targets (`defaults: {to: …}`, or rules), nothing is pushed elsewhere.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Images that are copied at a time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    concurrency: u16,
    /// Bytes of blobs a second, in and out each, such as 20MiB [default: the configuration's `bandwidth`, else no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bandwidth: Option<u64>,
    /// Serve only lanes with one of these registries at either end
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',')]
    registries: Vec<RegistryName>,
    /// Answer /healthz and /readyz on this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Ask the worker that answers on the address of --listen whether it is ready, and end: 0 if it is, else 3
    #[arg(long, requires = "listen")]
    check: bool,
    /// How long to wait for broker and store at the start
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    wait: u64,
    /// Tries of a request that makes no progress, and of an image that fails in passing
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: u32,
    /// Give up on an answer or a stream in which no byte has come or gone for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stall_timeout: u64,
    /// How long a task is held without word from its worker
    #[arg(long, value_name = "SECONDS", default_value = "30", hide = true, value_parser = clap::value_parser!(u64).range(5..=600))]
    lease: u64,
    /// Say in detail what is done
    #[arg(long)]
    debug: bool,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    logging(cli.debug);
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: cannot start: {error}"));
            return ExitCode::from(3);
        }
    };
    let ended = runtime.block_on(run(cli));
    // What was left behind (a name look-up in a thread of its own) does not keep us.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            if let Some(advice) = error.advice() {
                say(&format!("hint: {advice}"));
            }
            ExitCode::from(match error.class() {
                Class::Invalid => 2,
                _ => 3,
            })
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    if let Some(address) = cli.listen.filter(|_| cli.check) {
        return health::ask(address).await;
    }
    let (config, folder) = read_config(cli.config.as_deref())?;
    let key = std::env::var("IMGSYNC_KEY").ok().filter(|key| !key.is_empty()).map(Secret::new);
    // A variable that is set to nothing names nothing.
    let named = |url: Option<String>| url.filter(|url| !url.is_empty());
    let given = Given { broker: named(cli.broker), store: named(cli.store), key };
    let Some(addresses) = Addresses::resolve(config.cluster.as_ref(), &given, &folder)? else {
        let detail = "neither broker nor store is named";
        return Err(Error::new(Class::Invalid, "reading where the cluster is", detail).hint(
            "name them by --broker and --store, IMGSYNC_BROKER and IMGSYNC_STORE, or `cluster:` in the configuration",
        ));
    };
    let listener = match cli.listen {
        Some(address) => Some(health::bind(address).await?),
        None => None,
    };
    let mut client = settings::client_settings(&config, &folder)?;
    client.retry = Policy { attempts: cli.attempts, max_wait: LONGEST_SLEEP, patience: SLOT_PATIENCE, ..client.retry };
    client.stall = Duration::from_secs(cli.stall_timeout);
    client.bandwidth = cli.bandwidth.or(client.bandwidth);
    let name = process_name();
    let stop = Stop::default();
    end_on_signal(stop.clone());
    let cluster = tokio::select! {
        cluster = connect(&addresses, &name, Duration::from_secs(cli.wait)) => cluster?,
        () = stop.drain.cancelled() => return Ok(()),
    };
    client.pace = Some(SharedPace { store: std::sync::Arc::new(cluster.store.clone()), careful: true, alone: false });
    let client = Client::new(client, Environment::from_process());
    let allowed = Allowed { registries: BTreeSet::from_iter(cli.registries), targets: targets(&config) };
    let slots = usize::from(cli.concurrency);
    let worker = Worker::new(&name, &cluster, &client, (slots, cli.attempts), allowed, Events::to(Log::new()))
        .with_lease(Duration::from_secs(cli.lease))
        .with_traffic(config.traffic.map(Traffic::new));
    let over = tokio_util::sync::CancellationToken::new();
    let answering = listener
        .map(|listener| tokio::spawn(health::answer(listener, service::ready(&cluster, &stop.drain), over.clone())));
    say(&format!("worker {name} takes up to {slots} images at a time"));
    tokio::select! {
        () = worker.run(&stop) => {}
        () = after_all(&stop) => say("what still ran is given back"),
    }
    over.cancel();
    if let Some(answering) = answering {
        let _ = tokio::time::timeout(Duration::from_secs(1), answering).await;
    }
    say("ended");
    Ok(())
}

/// A number of bytes, as people write it.
fn size(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0);
    size.ok_or_else(|| format!("`{text}` is not a size such as 20MiB"))
}

/// The configuration and its folder.
fn read_config(named: Option<&Path>) -> Result<(Config, PathBuf)> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => String::new(),
        Err(error) => {
            return Err(Error::new(Class::Invalid, format!("reading the configuration {name}"), error.to_string()));
        }
    };
    let environment = |name: &str| std::env::var(name).ok();
    let file = File { name: &name, text: &text, environment: &environment, presets: None };
    let config = Config::read(&file).map_err(|errors| {
        say(&errors.to_string());
        Error::new(Class::Invalid, format!("reading the configuration {name}"), "it cannot be used as it is")
    })?;
    if let Some(warning) = settings::exposed(&config, path) {
        say(&format!("warning: {warning}"));
    }
    Ok((config, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// The targets that a configuration names.
fn targets(config: &Config) -> Vec<Base> {
    let named = config.to.iter().chain(config.rules.iter().flat_map(|rule| &rule.to));
    let mut targets: Vec<Base> = Vec::new();
    for destination in named {
        if let Destination::Registry(base) = destination
            && !targets.contains(base)
        {
            targets.push(base.clone());
        }
    }
    targets
}

/// Connects, trying again for as long as broker and store may take to come up.
async fn connect(addresses: &Addresses, name: &str, patience: Duration) -> Result<Cluster> {
    let started = Instant::now();
    let mut said = false;
    loop {
        match addresses.connect(name).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) if is_passing(&error) && started.elapsed() < patience => {
                if !std::mem::replace(&mut said, true) {
                    say(&format!("{error}; trying for {} s", patience.as_secs()));
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error.after(1, started.elapsed())),
        }
    }
}

/// The first signal lets what runs end, up to a limit; the second stops it.
fn end_on_signal(stop: Stop) {
    tokio::spawn(async move {
        asked_to_stop().await;
        say("letting the running images end; once more to stop them");
        stop.drain.cancel();
        tokio::select! {
            () = asked_to_stop() => {}
            () = tokio::time::sleep(DRAIN) => {}
        }
        stop.abort.cancel();
    });
}

/// When nothing is waited for any more.
async fn after_all(stop: &Stop) {
    stop.abort.cancelled().await;
    tokio::time::sleep(CLEAN_UP).await;
}

fn logging(debug: bool) {
    use tracing_subscriber::EnvFilter;
    let default = if debug {
        "imgsync_common=debug,imgsync_worker=debug,warn"
    } else {
        "imgsync_common=info,imgsync_worker=info,warn"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = log.try_init();
}

#[expect(clippy::print_stderr, reason = "the one place where this program speaks, beside its log")]
fn say(line: &str) {
    eprintln!("{line}");
}
