//! `imgsync serve`: the long-running coordinator.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use imgsync_config::Config;
use imgsync_model::batch::{TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::error::Result;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_oci::secret::Secret;
use imgsync_registry::Client;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::{Event, Observer};
use imgsync_store::{LockUse, RunLock, log_throttle};
use imgsync_worker::cluster_worker;
use imgsync_worker::health::{self, ReadinessCheck};
use imgsync_worker::runner::Shutdown;
use imgsync_worker::settings::DRAIN_TIMEOUT;
use imgsync_worker::task_events::{TaskEvents, TaskObserver};
use imgsync_worker::telemetry::metrics;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::notify::NotifyArgs;
use super::printer::Printer;
use super::retry_args::RetryArgs;
use super::settings::{Settings, SettingsError};
use super::{backend, signals};
use crate::orchestrator::{Backend, WatchedRules, cluster_metrics};
use crate::serve::{ApiToken, AuthPolicy, ConfigSource, HttpBinding, LoadedConfig, RuntimeOptions, Server, load_token};
use clap::Args;

/// Runs rules on their schedules.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration to serve, as after -c
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Listen on this address; serves /metrics too [default: from the configuration, else 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Check whether the coordinator on the address of --listen is ready, and exit: 0 if ready, else 3
    #[arg(long)]
    pub(crate) check: bool,
    /// Number of images to copy concurrently, without a cluster [default: from the configuration, else 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Limits")]
    pub(crate) concurrency: Option<u16>,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    #[arg(help_heading = "Limits")]
    pub(crate) query_limit: u16,
    /// State folder, without a cluster [default: $XDG_STATE_HOME/imgsync, else
    /// ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
    #[command(flatten)]
    pub(crate) notify: NotifyArgs,
}

const DEFAULT_LISTEN_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Runs the command.
pub(crate) async fn run(args: ServeArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let global = match global.with_file(args.file.clone(), printer) {
        Ok(global) => global,
        Err(exit) => return exit,
    };
    let settings = match Settings::load(&global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let listen = args.listen.or(settings.config.serve.listen).unwrap_or(DEFAULT_LISTEN_ADDRESS);
    if args.check {
        return health::check_ready(listen).await.map_or_else(|error| fail(&error, printer), |()| Exit::Done);
    }
    match execute(&args, listen, &global, &settings, printer).await {
        Ok(()) => Exit::Done,
        Err(error) => fail(&error, printer),
    }
}

async fn execute(
    args: &ServeArgs,
    listen: SocketAddr,
    global: &GlobalArgs,
    settings: &Settings,
    printer: &Printer,
) -> Result<()> {
    let listener = health::bind(listen).await?;
    let address = listener.local_addr().unwrap_or(listen);
    let stop = Shutdown::default();
    let (backend, ready, _lock) = open_backend(args, settings, &stop.drain, printer).await?;
    let variable = std::env::var("IMGSYNC_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::new);
    // Without a home folder, the token is not stored.
    let folder = backend::state_dir(args.state.as_ref()).ok();
    let token = load_token(variable.as_ref().or(settings.config.serve.token.as_ref()), folder.as_deref())?;
    let auth = AuthPolicy::new(address, token.secret.expose(), &settings.config.serve.hosts);
    let options = RuntimeOptions {
        concurrency: args.concurrency.map(usize::from),
        query_limit: args.query_limit.into(),
        attempts: args.retry.attempts,
        first_delay: args.retry.retry_delay,
        stall: args.retry.stall_timeout,
        drain: DRAIN_TIMEOUT,
    };
    let overrides = ServeOverrides { listen: args.listen.map(|_| address), notify: args.notify.clone() };
    let first = load_config(settings, &overrides, printer)?;
    let config_source = config_source(global, overrides, settings, printer);
    let rules = WatchedRules::default();
    let client = Client::new(settings.client()?, CredentialEnvironment::from_process());
    let (metrics, refresh) = cluster_metrics::new_cluster_metrics(&backend, client, rules.clone());
    let event_printer = EventPrinter { printer: printer.clone(), is_cluster: backend.is_cluster() };
    let running = Arc::new(RunningTasks::default());
    let observers: Vec<Arc<dyn TaskObserver>> = vec![Arc::new(event_printer), metrics.clone(), running.clone()];
    let events = TaskEvents::fan_out(observers);
    let extra_routes = metrics::router(metrics, Some(refresh));
    signals::drain_on_signal(&stop, move || running.any(), printer.clone());
    let server = Server::new(backend, first, config_source, options, events)?;
    let _ = rules.set(Box::new(server.watched_rules()));
    print_banner(address, &token, settings, printer);
    server.run(HttpBinding { listener, auth, extra_routes }, ready, &stop).await;
    printer.timestamped("stopped");
    Ok(())
}

/// Opens the backend, with its readiness check and the lock that it needs without a cluster.
async fn open_backend(
    args: &ServeArgs,
    settings: &Settings,
    drain: &CancellationToken,
    printer: &Printer,
) -> Result<(Backend, ReadinessCheck, Option<RunLock>)> {
    if let Some(addresses) = settings.cluster()? {
        let cluster = backend::connect(&addresses, printer).await?;
        let backend = Backend::cluster(&cluster);
        return Ok((backend, cluster_worker::readiness_check(&cluster, drain), None));
    }
    let backend = Backend::embedded(&backend::state_dir(args.state.as_ref())?).await?;
    let lock = backend.lock(LockUse::Serve).await?;
    let (store, drain) = (backend.store.clone(), drain.clone());
    let ready: ReadinessCheck = Arc::new(move || {
        let (store, drain) = (store.clone(), drain.clone());
        Box::pin(async move {
            match () {
                () if drain.is_cancelled() => Err("it is shutting down".to_owned()),
                () => cluster_worker::check_store_writes(&*store).await.map(|()| Vec::new()),
            }
        })
    });
    Ok((backend, ready, lock))
}

/// Prints the address and how to sign in.
fn print_banner(address: SocketAddr, token: &ApiToken, settings: &Settings, printer: &Printer) {
    printer.line(&format!("listening on http://{address} (also /healthz, /readyz and /metrics)"));
    match (&token.file, token.is_generated) {
        // The URL signs the browser in: the fragment is never sent to a server.
        (Some(file), true) => printer.line(&format!(
            "dashboard, signed in: http://{}/#token={} (the token is stored in {})",
            browser_address(address),
            token.secret.expose(),
            file.display()
        )),
        (None, true) => printer.line(&format!(
            "dashboard, signed in: http://{}/#token={} (the token is valid until the process stops: \
             set `serve: {{token: …}}` or IMGSYNC_TOKEN)",
            browser_address(address),
            token.secret.expose()
        )),
        (_, false) => printer.line("changes require the configured token; the dashboard asks for it"),
    }
    let Config { rules, hooks, .. } = &settings.config;
    for (name, hook) in hooks {
        let (registry, kind, proof) = (&hook.registry, hook.kind, hook.auth.describe());
        printer.line(&format!("hook {name}: POST http://{address}/hooks/{name}, from {registry} ({kind}, {proof})"));
    }
    match rules.iter().filter(|rule| rule.schedule.is_some()).count() {
        0 => printer.line("no rule has a `schedule:`; start rules from the dashboard or the API"),
        scheduled => {
            let all = pluralize(rules.len() as u64, "rule", "rules");
            let are = if scheduled == 1 { "is" } else { "are" };
            printer.line(&format!(
                "{} of {all} {are} run on {}",
                group_digits(scheduled as u64),
                if scheduled == 1 { "its schedule" } else { "their schedules" }
            ));
        }
    }
}

/// Returns the address for a browser on this machine.
fn browser_address(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port()),
        false => address,
    }
}

/// Flags that override the configuration, also after a reload.
struct ServeOverrides {
    /// Address of `--listen`.
    listen: Option<SocketAddr>,
    notify: NotifyArgs,
}

fn load_config(settings: &Settings, overrides: &ServeOverrides, printer: &Printer) -> Result<LoadedConfig> {
    let mut config = settings.config.clone();
    // Notifications link to it.
    config.serve.listen = overrides.listen.or(config.serve.listen);
    Ok(LoadedConfig {
        config,
        folder: settings.folder().to_owned(),
        client: settings.client()?,
        notify: overrides.notify.resolve(&settings.config.notify, printer),
    })
}

/// Returns the source of reloads. Changes that need a restart are reported and not applied.
fn config_source(global: &GlobalArgs, overrides: ServeOverrides, first: &Settings, printer: &Printer) -> ConfigSource {
    let file: Option<PathBuf> = Some(Settings::config_path(global));
    let (global, printer) = (global.clone(), printer.clone());
    let (cluster, serve) = (first.config.cluster.clone(), first.config.serve.clone());
    let read = move || {
        let (settings, warning) = Settings::read(&global).map_err(|wrong| match wrong {
            SettingsError::Unreadable(why) | SettingsError::Invalid(why) => why,
        })?;
        warning.iter().for_each(|warning| printer.warning(warning));
        if settings.config.cluster != cluster || settings.config.serve != serve {
            printer.warning("changes of `cluster:` and `serve:` take effect at the next start");
        }
        load_config(&settings, &overrides, &printer).map_err(|error| error.to_string())
    };
    ConfigSource { file, read: Box::new(read) }
}

/// Counts the tasks that run in this process.
#[derive(Default)]
struct RunningTasks(Mutex<HashSet<TaskRef>>);

impl RunningTasks {
    fn any(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Observer for RunningTasks {
    fn on_event(&self, _: &Event) {}
}

impl TaskObserver for RunningTasks {
    fn on_task(&self, event: &TaskEvent) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            TaskEvent::Started { task, .. } => {
                running.insert(*task);
            }
            TaskEvent::Ended { task, .. } => {
                running.remove(task);
            }
            TaskEvent::Reclaimed { .. } | TaskEvent::WritesLost => {}
        }
    }
}

/// Prints events as lines.
struct EventPrinter {
    printer: Printer,
    is_cluster: bool,
}

impl Observer for EventPrinter {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Notice { message } => self.printer.timestamped(message),
            Event::Warning { message } => self.printer.timestamped_warning(message),
            Event::RepeatedWarning { kind, message } => {
                let printer = self.printer.clone();
                log_throttle::write(kind, message, move |line| printer.timestamped_warning(line));
            }
            _ => {}
        }
    }
}

impl TaskObserver for EventPrinter {
    fn on_task(&self, event: &TaskEvent) {
        match event {
            TaskEvent::Ended {
                completion: TaskCompletion::Finished { result: TaskResult::Failed(failure), .. },
                ..
            } if !self.is_cluster => {
                self.printer.timestamped(&format!("failed: {}", failure.error));
            }
            TaskEvent::Ended { completion: TaskCompletion::Rescheduled { error, wait }, .. } if !self.is_cluster => {
                self.printer.timestamped(&format!("{error}; retrying in {}", format_duration(*wait)));
            }
            _ => {}
        }
    }
}
