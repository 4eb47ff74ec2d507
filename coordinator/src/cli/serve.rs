//! `imgsync serve`: the coordinator that stays.

use std::sync::Arc;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events, Observer};
use imgsync_common::registry::Client;
use imgsync_common::registry::credentials::Environment;
use imgsync_worker::{health, metrics, service};
use tokio_util::sync::CancellationToken;

use super::args::{Global, ServeArgs};
use super::exit::Exit;
use super::printer::Printer;
use super::run::fail;
use super::settings::Settings;
use super::signals;
use crate::batches::{Care, House, coordinator_name, figures, serve};
use crate::notify::Notifier;

/// Runs the command.
pub(crate) async fn run(args: ServeArgs, global: &Global, printer: &Printer) -> Exit {
    if args.check {
        return health::ask(args.listen).await.map_or_else(|error| fail(&error, printer), |()| Exit::Done);
    }
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match work(&args, &settings, printer).await {
        Ok(()) => Exit::Done,
        Err(error) => fail(&error, printer),
    }
}

async fn work(args: &ServeArgs, settings: &Settings, printer: &Printer) -> Result<()> {
    let Some(addresses) = settings.cluster()? else {
        let detail = "it leads the batches of a cluster, and none is configured";
        return Err(Error::new(Class::Invalid, "serving", detail)
            .hint("write `cluster:` in the configuration, or give --broker and --store; without, `imgsync run` does all by itself"));
    };
    let told = args.notify.resolve(&settings.config.notify, printer);
    let notifier = Arc::new(Notifier::new(&told, settings.folder(), std::time::Duration::from_secs(1))?);
    let listener = health::bind(args.listen).await?;
    let cluster = addresses.connect(&coordinator_name()).await?;
    let house = House::of_cluster(Arc::new(cluster.queue.clone()), Arc::new(cluster.store.clone()));
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone(), printer.clone());
    let address = listener.local_addr().map_or_else(|_| args.listen.to_string(), |address| address.to_string());
    printer.line(&format!("answers /healthz, /readyz and /metrics on http://{address}"));
    let client = Client::new(settings.client()?, Environment::from_process());
    let (metrics, refresh) = figures::of(&house, client.clone());
    let events = Events::to_all(vec![Arc::new(Said(printer.clone())), metrics.clone()]);
    let more = metrics::router(metrics, Some(refresh));
    let answering = tokio::spawn(health::answer(listener, service::ready(&cluster, &stop), more, stop.clone()));
    serve(&house, Care::default(), settings.config.keep, (&notifier, &client), &events, &stop).await;
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), answering).await;
    printer.line("ended");
    Ok(())
}

/// Says what happens, as lines.
struct Said(Printer);

impl Observer for Said {
    fn on(&self, event: &Event) {
        if let Event::Warning { message } = event {
            self.0.line(message);
        }
    }
}
