//! Leader service of `imgsync serve`: leads all batches that no `run` leads. Of several coordinators, one leads and the
//! others stand by.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::config::Config;
use imgsync_common::error::{Class, Result};
use imgsync_common::event::{Event, Events};
use imgsync_common::registry::Client;
use imgsync_common::repeated;
use imgsync_common::store::{Batch, Control, LeaseGuard, Leased, leader};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::batch_log::BatchLog;
use super::house::House;
use super::lead::{Care, LEADER_TERM, Leader};
use super::provenance::tidy_provenance;
use super::supervise::supervise;
use super::{SERVE, serve_name};
use crate::notify::{Notifier, deliver, is_news, watch as watch_waits};

/// Interval between looks for new batches.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Maximum number of batches, the newest, that are checked.
const BATCHES: usize = 1_000;
/// Interval between removals of old batches.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Configuration of the leader service, which may change while it runs.
#[derive(Debug, Clone)]
pub struct Duties {
    /// Configuration: how long batches are kept, and the rules whose provenance is kept.
    pub config: Arc<Config>,
    /// Notification targets.
    pub notifier: Arc<Notifier>,
    /// Client whose credentials determine which registry holds are reported.
    pub client: Client,
}

/// Leads all batches until `stop` is cancelled. `more` signals that there may be new batches or tasks; `leads`
/// publishes whether this process is the leader.
pub async fn serve(
    house: &House,
    care: Care,
    duties: &watch::Receiver<Duties>,
    (more, leads): (&Notify, &watch::Sender<bool>),
    events: &Events,
    stop: &CancellationToken,
) {
    let name = serve_name();
    let lease = leader(SERVE);
    let leader = Leader::new(house, &name, care, events.clone());
    let mut stood_by = false;
    while !stop.is_cancelled() {
        match LeaseGuard::try_acquire(house.store.clone(), &lease, &name, LEADER_TERM).await {
            Ok(Leased::Acquired(guard)) => {
                stood_by = false;
                leads.send_replace(true);
                say(events, "leads");
                let over = stop.child_token();
                tokio::select! {
                    () = lead_all(house, &leader, duties, (more, events, &name), &over) => {}
                    () = leader.mind_the_dead(&over) => {}
                    () = guard.lost().cancelled() => say(events, "leads no more: the lease was lost"),
                }
                leads.send_replace(false);
                over.cancel();
                guard.release().await;
            }
            Ok(Leased::HeldBy(holder)) => {
                if !std::mem::replace(&mut stood_by, true) {
                    say(events, &format!("stands by: {holder} leads"));
                }
            }
            Err(error) => {
                let kind = format!("asking who leads: {}", error.class());
                events.emit(Event::RepeatedWarning { kind, message: error.to_string() });
            }
        }
        pause(LOOK_EVERY, stop).await;
    }
}

/// State shared by the tasks of all led batches.
#[derive(Clone)]
struct Work {
    house: House,
    leads: Leader,
    duties: watch::Receiver<Duties>,
    events: Events,
    name: String,
    /// Batches whose notifications were delivered or given up.
    settled: Arc<Mutex<HashSet<BatchId>>>,
}

impl Work {
    /// Leads a batch, and sends its notifications once it has ended.
    async fn lead(&self, id: BatchId, log: &BatchLog, stop: &CancellationToken) -> Result<()> {
        let Duties { notifier, client, .. } = self.duties.borrow().clone();
        let (store, more, begin) = (&self.house.store, Notify::new(), || log.begin());
        let led = tokio::select! {
            led = self.leads.lead_telling(id, &more, stop, &begin) => led,
            () = watch_waits(&**store, id, &client, &notifier, &self.events, &self.name) => Ok(()),
        };
        if let Err(error) = led {
            // A batch that fails authentication was cancelled, which is its end.
            if store.control(id).await?.is_some_and(Control::is_live) {
                return Err(error);
            }
            warn(&self.events, &format!("batch {id} is not led any more: {error}"));
        }
        log.end(&**store).await?;
        self.tell(id, stop).await
    }

    /// Sends the notifications of a batch that has ended until all are delivered.
    async fn tell(&self, id: BatchId, stop: &CancellationToken) -> Result<()> {
        let notifier = || self.duties.borrow().notifier.clone();
        let at = (&self.house.store, &*self.house.clock);
        let is_settled = match deliver(at, id, notifier, (&self.events, &self.name), stop).await {
            // A batch that was tampered with cannot be reported, however often it is read.
            Err(error) if error.class() == Class::Insecure => {
                warn(&self.events, &format!("nobody is told of batch {id}: {error}"));
                true
            }
            told => told?,
        };
        if is_settled {
            self.settled().insert(id);
        }
        Ok(())
    }

    /// Returns whether an ended batch may have notifications to deliver, because its leader was killed or failed to.
    fn is_untold(&self, batch: &Batch) -> bool {
        !self.duties.borrow().notifier.is_empty()
            && is_news(batch, self.house.clock.now())
            && !self.settled().contains(&batch.id)
    }

    fn settled(&self) -> MutexGuard<'_, HashSet<BatchId>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leads each live batch in a task of its own, and notifies of those that have ended.
async fn lead_all(
    house: &House,
    leads: &Leader,
    duties: &watch::Receiver<Duties>,
    (more, events, name): (&Notify, &Events, &str),
    stop: &CancellationToken,
) {
    let work = Work {
        house: house.clone(),
        leads: leads.clone(),
        duties: duties.clone(),
        events: events.clone(),
        name: name.to_owned(),
        settled: Arc::default(),
    };
    let mut led: HashMap<BatchId, JoinHandle<()>> = HashMap::new();
    let mut tidied: Option<tokio::time::Instant> = None;
    while !stop.is_cancelled() {
        led.retain(|_, task| !task.is_finished());
        match house.store.batches(BATCHES).await {
            Ok(batches) => {
                work.settled().retain(|id| batches.iter().any(|batch| batch.id == *id && batch.ended_at.is_some()));
                for batch in batches {
                    let id = batch.id;
                    let is_live = batch.ended_at.is_none() && batch.control.is_live();
                    if led.contains_key(&id) || !(is_live || work.is_untold(&batch)) {
                        continue;
                    }
                    let (work, stop) = (work.clone(), stop.clone());
                    let log = BatchLog::new(&batch, events);
                    led.insert(
                        id,
                        tokio::spawn(async move {
                            match is_live {
                                true => {
                                    let (what, events) = (format!("leading batch {id}"), &work.events);
                                    supervise(&what, events, &stop, async || work.lead(id, &log, &stop).await).await;
                                }
                                false => {
                                    let what = format!("telling of batch {id}");
                                    supervise(&what, &work.events, &stop, async || work.tell(id, &stop).await).await;
                                }
                            }
                        }),
                    );
                }
            }
            Err(error) => repeated::warn(&format!("looking for batches: {}", error.class()), &error.to_string()),
        }
        if tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
            tidied = Some(tokio::time::Instant::now());
            let config = duties.borrow().config.clone();
            let keep = jiff::SignedDuration::try_from(config.keep).unwrap_or(jiff::SignedDuration::MAX);
            if let Ok(before) = house.clock.now().checked_sub(keep)
                && let Err(error) = house.store.remove_before(before).await
            {
                tracing::warn!("{error}");
            }
            if let Err(error) = tidy_provenance(&*house.store, &config, house.clock.now()).await {
                tracing::warn!("{error}");
            }
        }
        tokio::select! {
            () = more.notified() => {}
            () = pause(LOOK_EVERY, stop) => {}
        }
    }
    for (_, task) in led {
        let _ = task.await;
    }
}

fn say(events: &Events, what: &str) {
    events.emit(Event::Notice { message: what.to_owned() });
}

fn warn(events: &Events, what: &str) {
    events.emit(Event::Warning { message: what.to_owned() });
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
