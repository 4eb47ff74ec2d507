//! Runs the program: resolves arguments and configuration, handles signals.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use imgsync_common::config::{Config, Destination, File};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::naming::Base;
use imgsync_common::outage::{self, OutageEvent};
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, SharedPace};
use imgsync_common::repeated;
use imgsync_common::retry::{Policy, is_passing};
use imgsync_common::secret::Secret;
use imgsync_worker::arguments::Arguments;
use imgsync_worker::cluster::{Addresses, Given};
use imgsync_worker::log::Log;
use imgsync_worker::metrics::{self, Metrics};
use imgsync_worker::runner::{Allowed, Stop};
use imgsync_worker::service::{self, Figures, Worker};
use imgsync_worker::settings::{ABORT_LIMIT, DRAIN_LIMIT, LONGEST_SLEEP, SLOT_PATIENCE};
use imgsync_worker::traffic::Traffic;
use imgsync_worker::{StopSignals, files, health, logging, process_name, settings};
use tokio_util::sync::CancellationToken;

/// Configuration file read if none is given.
const DEFAULT_FILE: &str = "imgsync.yaml";
/// Time to requeue tasks after a drain timeout, when nobody is there to press keys.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(8);
/// Stack size of each thread in bytes: debug builds overflow the default 2 MiB with the nested futures of a copy.
const STACK_BYTES: usize = 8 << 20;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = match Arguments::try_parse() {
        Ok(cli) => cli,
        Err(error) => return said_by_clap(&error),
    };
    files::raise_limit();
    let name = process_name();
    let _logging =
        logging::begin(cli.log_format, default_log(cli.debug), &[("program", "imgsync-worker"), ("worker", &name)]);
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: cannot start: {error}"));
            return ExitCode::from(3);
        }
    };
    let ended = runtime.block_on(run(cli, name));
    // Do not wait for blocking threads such as a name lookup.
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

/// Prints help and version to stdout, and usage errors to stderr.
fn said_by_clap(error: &clap::Error) -> ExitCode {
    match error.print() {
        _ if error.use_stderr() => ExitCode::from(2),
        // A closed stdout is no error.
        Err(unwritten) if unwritten.kind() != std::io::ErrorKind::BrokenPipe => {
            say(&format!("error: writing to stdout: {unwritten}"));
            ExitCode::from(3)
        }
        _ => ExitCode::SUCCESS,
    }
}

async fn run(cli: Arguments, name: String) -> Result<()> {
    if let Some(address) = cli.listen.filter(|_| cli.check) {
        return health::ask(address).await;
    }
    let (config, folder) = read_config(cli.config.as_deref())?;
    let key = std::env::var("IMGSYNC_KEY").ok().filter(|key| !key.is_empty()).map(Secret::new);
    // An empty variable counts as unset.
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
    client.stall = cli.stall_timeout;
    client.bandwidth = cli.bandwidth.or(client.bandwidth);
    let stop = Stop::default();
    let hurry = CancellationToken::new();
    end_on_signal(stop.clone(), hurry.clone());
    let cluster = tokio::select! {
        cluster = addresses.connect_within(&name, cli.wait, is_passing, say) => cluster?,
        () = stop.drain.cancelled() => return Ok(()),
    };
    client.pace = Some(SharedPace { store: std::sync::Arc::new(cluster.store.clone()), careful: true, alone: false });
    let client = Client::new(client, Environment::from_process());
    let allowed = Allowed { registries: BTreeSet::from_iter(cli.registries), targets: targets(&config) };
    let slots = usize::from(cli.concurrency);
    let figures = Figures::default();
    let metrics = Metrics::new("imgsync-worker", |registry| figures.register(registry));
    let events = Events::to_all(vec![Log::new(), metrics.clone()]);
    let worker = Worker::new(&name, &cluster, &client, (slots, cli.attempts), allowed, events)
        .with_figures(figures)
        .with_lease(Duration::from_secs(cli.lease))
        .with_traffic(config.traffic.map(Traffic::new));
    let over = CancellationToken::new();
    let answering = listener.map(|listener| {
        tokio::spawn(health::answer(
            listener,
            service::ready(&cluster, &stop.drain),
            metrics::router(metrics, None),
            over.clone(),
        ))
    });
    say(&format!("worker {name} takes up to {slots} images at a time"));
    let health = cluster.health();
    tokio::select! {
        () = worker.run(&stop) => {}
        () = outage::follow(&health, log_outage) => unreachable!("it goes on until dropped"),
        () = after_all(&stop, &hurry) => say("what still ran is given back"),
    }
    over.cancel();
    if let Some(answering) = answering {
        let _ = tokio::time::timeout(Duration::from_secs(1), answering).await;
    }
    repeated::flush();
    say("ended");
    Ok(())
}

/// Logs that broker or store are unavailable, or available again.
fn log_outage(event: &OutageEvent) {
    match event {
        OutageEvent::Began(_) => tracing::warn!("{event}"),
        OutageEvent::Ended(..) => tracing::info!("{event}"),
    }
}

/// Reads the configuration; also returns its folder.
fn read_config(named: Option<&Path>) -> Result<(Config, PathBuf)> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok((Config::default(), PathBuf::new()));
        }
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

/// Returns the targets named in a configuration.
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

/// Drains on the first signal, with a time limit; aborts on the second.
fn end_on_signal(stop: Stop, hurry: CancellationToken) {
    let mut signals = StopSignals::new();
    tokio::spawn(async move {
        signals.next().await;
        say("finishing copies in progress; press Ctrl-C again to abort");
        stop.drain.cancel();
        tokio::select! {
            () = signals.next() => hurry.cancel(),
            () = tokio::time::sleep(DRAIN_LIMIT) => {}
        }
        stop.abort.cancel();
        signals.next().await;
        hurry.cancel();
    });
}

/// Returns when an aborted program has had its time to clean up.
async fn after_all(stop: &Stop, hurry: &CancellationToken) {
    stop.abort.cancelled().await;
    let hurried = async {
        hurry.cancelled().await;
        tokio::time::sleep(ABORT_LIMIT).await;
    };
    tokio::select! {
        () = hurried => {}
        () = tokio::time::sleep(GIVE_BACK_LIMIT) => {}
    }
}

/// Returns the log filter used unless RUST_LOG is set.
fn default_log(debug: bool) -> &'static str {
    match debug {
        // The broker client's own messages repeat errors that imgsync reports.
        true => "imgsync_common=debug,imgsync_worker=debug,lapin=off,warn",
        false => "imgsync_common=info,imgsync_worker=info,lapin=off,warn",
    }
}

/// Prints a line to stderr, or logs it in JSON mode: the program's only output beside its log.
fn say(line: &str) {
    match logging::is_json() {
        true => tracing::info!("{line}"),
        // A closed stderr does not stop the worker.
        false => _ = writeln!(std::io::stderr(), "{line}"),
    }
}
