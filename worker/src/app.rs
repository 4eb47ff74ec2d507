//! Runs the program: resolves arguments and configuration, handles signals.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use imgsync_config::{Config, ConfigFile, RuleTarget};
use imgsync_model::event::TaskEvent;
use imgsync_model::naming::TargetBase;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::locale::to_ascii;
use imgsync_oci::retry::{RetryPolicy, is_transient};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Client, SharedRateLimit};
use imgsync_store::log_throttle;
use imgsync_store::outage::{self, HealthEvent};
use imgsync_worker::cli::{Arguments, print_parser_message, usage_hint};
use imgsync_worker::cluster::{ClusterEndpoints, ClusterOverrides, ClusterSecrets};
use imgsync_worker::cluster_worker::{self, ClusterWorker, WorkerMetrics};
use imgsync_worker::locale::is_process_utf8;
use imgsync_worker::monthly_quota::MonthlyQuota;
use imgsync_worker::runner::{Shutdown, WorkerScope};
use imgsync_worker::settings::{ABORT_TIMEOUT, DRAIN_TIMEOUT, MAX_WAIT_IN_SLOT, RATE_LIMIT_DEADLINE_IN_SLOT};
use imgsync_worker::task_events::{TaskEvents, TaskObserver};
use imgsync_worker::telemetry::logging;
use imgsync_worker::telemetry::metrics::{self, Metrics};
use imgsync_worker::telemetry::task_log::TaskLog;
use imgsync_worker::{StopSignals, file_limit, health, process_name, settings};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Configuration file read if none is given.
const DEFAULT_CONFIG_FILE: &str = "imgsync.yaml";
/// Time to requeue tasks after a drain timeout, when nobody is there to press keys.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(8);
/// Stack size of each thread in bytes: debug builds overflow the default 2 MiB with the nested futures of a copy.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = match Arguments::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_usage(error),
    };
    file_limit::raise_limit();
    let name = process_name();
    let _logging = logging::init(
        cli.log_format,
        default_log_filter(cli.debug),
        &[("program", "imgsync-worker"), ("worker", &name)],
    );
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().thread_stack_size(THREAD_STACK_BYTES).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                print_line(&format!("error: cannot start: {error}"));
                return ExitCode::from(3);
            }
        };
    let ended = runtime.block_on(run(cli, name));
    // Do not wait for blocking threads such as a name lookup.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_line(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                print_line(&format!("hint: {hint}"));
            }
            ExitCode::from(match error.kind() {
                ErrorKind::Invalid => 2,
                _ => 3,
            })
        }
    }
}

/// Prints help and version to stdout, and usage errors to stderr.
fn print_usage(error: clap::Error) -> ExitCode {
    let (is_error, hint) = (error.use_stderr(), usage_hint(&error));
    match print_parser_message(error, hint.as_deref()) {
        _ if is_error => ExitCode::from(2),
        // A closed stdout is no error.
        Err(unwritten) if unwritten.kind() != std::io::ErrorKind::BrokenPipe => {
            print_line(&format!("error: writing to stdout: {unwritten}"));
            ExitCode::from(3)
        }
        _ => ExitCode::SUCCESS,
    }
}

async fn run(cli: Arguments, name: String) -> Result<()> {
    if let Some(address) = cli.listen.filter(|_| cli.check) {
        return health::check_ready(address).await;
    }
    let (config, folder) = read_config(cli.config.as_deref())?;
    let secrets = ClusterSecrets::from_environment()?;
    let overrides = ClusterOverrides { broker: cli.broker, store: cli.store, secrets };
    let Some(endpoints) = ClusterEndpoints::resolve(config.cluster.as_ref(), &overrides, &folder)? else {
        let detail = "no broker and no store configured";
        return Err(Error::new(ErrorKind::Invalid, "reading the cluster configuration", detail).with_hint(
            "set --broker and --store, IMGSYNC_BROKER and IMGSYNC_STORE, or `cluster:` in the configuration",
        ));
    };
    if let Some(warning) = endpoints.unsigned_warning() {
        print_line(&format!("warning: {warning}"));
    }
    let listener = match cli.listen {
        Some(address) => Some(health::bind(address).await?),
        None => None,
    };
    let mut client = settings::client_settings(&config, &folder)?;
    client.retry = RetryPolicy {
        attempts: cli.attempts,
        max_retry_after: MAX_WAIT_IN_SLOT,
        rate_limit_timeout: RATE_LIMIT_DEADLINE_IN_SLOT,
        ..client.retry
    };
    client.stall_timeout = cli.stall_timeout;
    client.bandwidth = cli.bandwidth.or(client.bandwidth);
    let stop = Shutdown::default();
    let force_exit = CancellationToken::new();
    shut_down_on_signal(stop.clone(), force_exit.clone());
    let cluster = tokio::select! {
        cluster = endpoints.connect_with_retries(&name, cli.wait, is_transient, print_line) => cluster?,
        () = stop.drain.cancelled() => return Ok(()),
    };
    client.shared_rate_limit =
        Some(SharedRateLimit { store: std::sync::Arc::new(cluster.store.clone()), slow_start: true, exclusive: false });
    let client = Client::new(client, CredentialEnvironment::from_process());
    let scope = WorkerScope { registries: BTreeSet::from_iter(cli.registries), targets: config_targets(&config) };
    let slots = usize::from(cli.concurrency);
    let worker_metrics = WorkerMetrics::default();
    let metrics = Metrics::new("imgsync-worker", |registry| worker_metrics.register(registry));
    let events = TaskEvents::fan_out(vec![TaskLog::new() as Arc<dyn TaskObserver>, metrics.clone()]);
    let worker = ClusterWorker::new(&name, &cluster, &client, (slots, cli.attempts), scope, events.clone())
        .with_metrics(worker_metrics)
        // A worker without a file has nothing to compare.
        .with_config_hash((config != Config::default()).then(|| config.worker_hash()))
        .with_lease(Duration::from_secs(cli.lease))
        .with_monthly_quota(config.monthly_quota.map(MonthlyQuota::new));
    let over = CancellationToken::new();
    let answering = listener.map(|listener| {
        tokio::spawn(health::serve(
            listener,
            cluster_worker::readiness_check(&cluster, &stop.drain),
            metrics::router(metrics, None),
            over.clone(),
        ))
    });
    for connection in cluster.queue.health().connections() {
        tracing::info!("{connection}");
    }
    if let Some(master) = cluster.store.health().master() {
        tracing::info!("storing on the master {master}");
    }
    print_line(&format!("worker {name} started with {}", pluralize(slots as u64, "slot", "slots")));
    let health = cluster.health();
    tokio::select! {
        () = worker.run(&stop) => {}
        () = outage::forward_events(&health, |event| report_health_event(event, &events)) => unreachable!("it goes on until dropped"),
        () = force_exit_after_abort(&stop, &force_exit) => print_line("tasks still running are requeued"),
    }
    over.cancel();
    if let Some(answering) = answering {
        let _ = tokio::time::timeout(Duration::from_secs(1), answering).await;
    }
    log_throttle::flush();
    print_line("stopped");
    Ok(())
}

/// Logs that broker or store are unavailable, or available again, or have lost writes, and which node of the broker is
/// used now.
fn report_health_event(event: &HealthEvent, events: &TaskEvents) {
    match event {
        HealthEvent::Reconnected(connection) => log_throttle::info(&connection.to_string(), &event.to_string()),
        HealthEvent::Began(_) => tracing::warn!("{event}"),
        HealthEvent::Ended(..) | HealthEvent::FailedOver { .. } => tracing::info!("{event}"),
        HealthEvent::WritesLost { .. } => {
            tracing::warn!("{event}");
            events.emit_task(TaskEvent::WritesLost);
        }
    }
}

/// Reads the configuration; also returns its folder.
fn read_config(named: Option<&Path>) -> Result<(Config, PathBuf)> {
    let path = named.unwrap_or(Path::new(DEFAULT_CONFIG_FILE));
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok((Config::default(), PathBuf::new()));
        }
        Err(error) => {
            return Err(Error::new(ErrorKind::Invalid, format!("reading the configuration {name}"), error.to_string()));
        }
    };
    let environment = |name: &str| std::env::var(name).ok();
    let file = ConfigFile { name: &name, text: &text, environment: &environment, presets: None };
    let config = Config::read(&file).map_err(|errors| {
        print_line(&errors.to_string());
        Error::new(ErrorKind::Invalid, format!("reading the configuration {name}"), "the configuration is invalid")
    })?;
    if let Some(warning) = settings::readable_secrets_warning(&config, path) {
        print_line(&format!("warning: {warning}"));
    }
    Ok((config, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// Returns the targets named in a configuration.
fn config_targets(config: &Config) -> Vec<TargetBase> {
    let named = config.default_targets.iter().chain(config.rules.iter().flat_map(|rule| &rule.to));
    let mut targets: Vec<TargetBase> = Vec::new();
    for destination in named {
        if let RuleTarget::Registry(base) = destination
            && !targets.contains(base)
        {
            targets.push(base.clone());
        }
    }
    targets
}

/// Drains on the first signal, with a time limit; aborts on the second.
fn shut_down_on_signal(stop: Shutdown, force_exit: CancellationToken) {
    let mut signals = StopSignals::new();
    tokio::spawn(async move {
        signals.next().await;
        print_line("finishing copies in progress; press Ctrl-C again to abort");
        stop.drain.cancel();
        tokio::select! {
            () = signals.next() => force_exit.cancel(),
            () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
        }
        stop.abort.cancel();
        signals.next().await;
        force_exit.cancel();
    });
}

/// Returns when an aborted program has had its time to clean up.
async fn force_exit_after_abort(stop: &Shutdown, force_exit: &CancellationToken) {
    stop.abort.cancelled().await;
    let abort_timeout = async {
        force_exit.cancelled().await;
        tokio::time::sleep(ABORT_TIMEOUT).await;
    };
    tokio::select! {
        () = abort_timeout => {}
        () = tokio::time::sleep(REQUEUE_TIMEOUT) => {}
    }
}

/// Returns the log filter used unless RUST_LOG is set.
fn default_log_filter(debug: bool) -> &'static str {
    match debug {
        // The broker client's own messages repeat errors that imgsync reports.
        true => "imgsync=debug,lapin=off,warn",
        false => "imgsync=info,lapin=off,warn",
    }
}

/// Prints a line to stderr, or logs it in JSON mode: the program's only output beside its log.
fn print_line(line: &str) {
    match logging::is_json() {
        true => tracing::info!("{line}"),
        // A closed stderr does not stop the worker.
        false if is_process_utf8() => _ = writeln!(std::io::stderr(), "{line}"),
        false => _ = writeln!(std::io::stderr(), "{}", to_ascii(line)),
    }
}
