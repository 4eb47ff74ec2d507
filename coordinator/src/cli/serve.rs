//! `imgsync serve`: the long-running coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use imgsync_common::config::Config;
use imgsync_common::error::Result;
use imgsync_common::event::{Event, Events, Observer, TaskEnd};
use imgsync_common::registry::Client;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::repeated;
use imgsync_common::retry::seconds;
use imgsync_common::secret::Secret;
use imgsync_common::store::{LockUse, RunLock};
use imgsync_worker::health::{self, Ready};
use imgsync_worker::runner::Stop;
use imgsync_worker::settings::DRAIN_LIMIT;
use imgsync_worker::{metrics, service};
use tokio_util::sync::CancellationToken;

use super::args::{Global, ServeArgs};
use super::exit::Exit;
use super::notify::NotifyArgs;
use super::printer::Printer;
use super::run::fail;
use super::settings::{Settings, Wrong};
use super::{signals, state};
use crate::batches::{House, Rules, figures};
use crate::serve::{Access, Doors, Given, Manner, Office, Origin, Token, token};
use crate::words::many;

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Runs the command.
pub(crate) async fn run(args: ServeArgs, global: &Global, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let listen = args.listen.or(settings.config.serve.listen).unwrap_or(LISTEN);
    if args.check {
        return health::ask(listen).await.map_or_else(|error| fail(&error, printer), |()| Exit::Done);
    }
    match work(&args, listen, global, &settings, printer).await {
        Ok(()) => Exit::Done,
        Err(error) => fail(&error, printer),
    }
}

async fn work(
    args: &ServeArgs,
    listen: SocketAddr,
    global: &Global,
    settings: &Settings,
    printer: &Printer,
) -> Result<()> {
    let listener = health::bind(listen).await?;
    let address = listener.local_addr().unwrap_or(listen);
    let stop = Stop::default();
    let (house, ready, _lock) = house(args, settings, &stop.drain).await?;
    let variable = std::env::var("IMGSYNC_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::new);
    // Without a home folder, the token is not stored.
    let folder = state::folder(args.state.as_ref()).ok();
    let token = token(variable.as_ref().or(settings.config.serve.token.as_ref()), folder.as_deref())?;
    let access = Access::new(address, token.secret.expose(), &settings.config.serve.hosts);
    let manner = Manner {
        concurrency: args.concurrency.map(usize::from),
        query_limit: args.query_limit.into(),
        attempts: args.patience.attempts,
        first_delay: args.patience.retry_delay,
        stall: args.patience.stall_timeout,
        drain: DRAIN_LIMIT,
    };
    let first = given(settings, &args.notify, printer)?;
    let origin = origin(global, args.notify.clone(), settings, printer);
    let rules = Rules::default();
    let client = Client::new(settings.client()?, Environment::from_process());
    let (metrics, refresh) = figures::of(&house, client, rules.clone());
    let said = Said { printer: printer.clone(), is_cluster: house.is_cluster() };
    let events = Events::to_all(vec![Arc::new(said), metrics.clone()]);
    let more = metrics::router(metrics, Some(refresh));
    signals::drain_on_signal(&stop, Arc::new(true.into()), printer.clone());
    let office = Office::new(house, first, origin, manner, events)?;
    let _ = rules.set(Box::new(office.watched_rules()));
    welcome(address, &token, settings, printer);
    office.run(Doors { listener, access, more }, ready, &stop).await;
    printer.stamped("ended");
    Ok(())
}

/// Opens the backend, with its readiness check and the lock that it needs without a cluster.
async fn house(
    args: &ServeArgs,
    settings: &Settings,
    drain: &CancellationToken,
) -> Result<(House, Ready, Option<RunLock>)> {
    if let Some(addresses) = settings.cluster()? {
        let cluster = state::connect(&addresses).await?;
        let house = House::of_cluster(&cluster);
        return Ok((house, service::ready(&cluster, drain), None));
    }
    let house = House::embedded(&state::folder(args.state.as_ref())?).await?;
    let lock = house.lock(LockUse::Serve).await?;
    let (store, drain) = (house.store.clone(), drain.clone());
    let ready: Ready = Arc::new(move || {
        let (store, drain) = (store.clone(), drain.clone());
        Box::pin(async move {
            match () {
                () if drain.is_cancelled() => Err("it is about to end".to_owned()),
                () => service::takes_writes(&*store).await.map(|()| Vec::new()),
            }
        })
    });
    Ok((house, ready, lock))
}

/// Prints the address and how to sign in.
fn welcome(address: SocketAddr, token: &Token, settings: &Settings, printer: &Printer) {
    printer.line(&format!("answers on http://{address} (/healthz, /readyz and /metrics, too)"));
    match (&token.file, token.is_made_up) {
        // The URL signs the browser in: the fragment is never sent to a server.
        (Some(file), true) => printer.line(&format!(
            "the dashboard, with the right to change things: http://{}/#token={} (the token is kept in {})",
            reachable(address),
            token.secret.expose(),
            file.display()
        )),
        (None, true) => printer.line(&format!(
            "the dashboard, with the right to change things: http://{}/#token={} (the token is of this start alone: \
             set `serve: {{token: …}}` or IMGSYNC_TOKEN)",
            reachable(address),
            token.secret.expose()
        )),
        (_, false) => printer.line("changes need the configured token; the dashboard asks for it"),
    }
    let Config { rules, .. } = &settings.config;
    match rules.iter().filter(|rule| rule.schedule.is_some()).count() {
        0 => printer.line("no rule has a `schedule:`: rules are run when somebody starts them"),
        scheduled => {
            let all = many(rules.len() as u64, "rule", "rules");
            let are = if scheduled == 1 { "is" } else { "are" };
            printer.line(&format!(
                "{scheduled} of {all} {are} run at {}",
                if scheduled == 1 { "its times" } else { "their times" }
            ));
        }
    }
}

/// Returns the address for a browser on this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port()),
        false => address,
    }
}

fn given(settings: &Settings, notify: &NotifyArgs, printer: &Printer) -> Result<Given> {
    Ok(Given {
        config: settings.config.clone(),
        folder: settings.folder().to_owned(),
        client: settings.client()?,
        notify: notify.resolve(&settings.config.notify, printer),
    })
}

/// Returns the source of reloads. Changes that need a restart are reported and not applied.
fn origin(global: &Global, notify: NotifyArgs, first: &Settings, printer: &Printer) -> Origin {
    let file: Option<PathBuf> = Some(Settings::path(global));
    let (global, printer) = (global.clone(), printer.clone());
    let (cluster, serve) = (first.config.cluster.clone(), first.config.serve.clone());
    let read = move || {
        let (settings, warning) = Settings::read(&global).map_err(|wrong| match wrong {
            Wrong::Unreadable(why) | Wrong::Refused(why) => why,
        })?;
        warning.iter().for_each(|warning| printer.warning(warning));
        if settings.config.cluster != cluster || settings.config.serve != serve {
            printer.warning("what changed in `cluster:` or `serve:` holds from the next start on");
        }
        given(&settings, &notify, &printer).map_err(|error| error.to_string())
    };
    Origin { file, read: Box::new(read) }
}

/// Prints events as lines.
struct Said {
    printer: Printer,
    is_cluster: bool,
}

impl Observer for Said {
    fn on(&self, event: &Event) {
        match event {
            Event::Notice { message } => self.printer.stamped(message),
            Event::Warning { message } => self.printer.stamped_warning(message),
            Event::RepeatedWarning { kind, message } => {
                let printer = self.printer.clone();
                repeated::write(kind, message, move |line| printer.stamped_warning(line));
            }
            Event::TaskEnded { end: TaskEnd::Failed { error, .. }, .. } if !self.is_cluster => {
                self.printer.stamped(&format!("failed: {error}"));
            }
            Event::TaskEnded { end: TaskEnd::Later { error, wait }, .. } if !self.is_cluster => {
                self.printer.stamped(&format!("{error}; trying again in {}", seconds(*wait)));
            }
            _ => {}
        }
    }
}
