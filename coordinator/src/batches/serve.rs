//! The coordinator that stays: leads every batch that no `run` does. Of several such, one leads, and the others wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::error::Result;
use imgsync_common::event::{Event, Events};
use imgsync_common::registry::Client;
use imgsync_common::store::{Batch, Named, Store, leader};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::house::House;
use super::lead::{Care, Leader};
use super::{SERVE, serve_name};
use crate::notify::{Notifier, is_ours_to_tell, watch as watch_waits};
use crate::report::{Level, Report};

/// How long it leads unless it says so again.
const LEADS: Duration = Duration::from_secs(15);
/// How often it looks for new batches, and says that it leads.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Of how many batches, the newest, it looks whether they are alive.
const BATCHES: usize = 1_000;
/// How long a batch that cannot be led is left alone.
const GIVEN_UP_FOR: Duration = Duration::from_secs(60);
/// How often old batches are removed.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// What the one who serves needs to know, and may change while it does.
#[derive(Debug, Clone)]
pub struct Duties {
    /// How long batches are kept.
    pub keep: Duration,
    /// Who is told how batches ended.
    pub notifier: Arc<Notifier>,
    /// Whose registries' waits are told of.
    pub client: Client,
}

/// Leads until told to stop. `more` says that there may be a new batch, or more of one; `leads` is told whether this is
/// the one that leads.
pub async fn serve(
    house: &House,
    care: Care,
    duties: &watch::Receiver<Duties>,
    (more, leads): (&Notify, &watch::Sender<bool>),
    events: &Events,
    stop: &CancellationToken,
) {
    let name = serve_name(house);
    let lease = leader(SERVE);
    let leader = Leader::new(house, &name, care, events.clone());
    let mut stood_by = false;
    while !stop.is_cancelled() {
        match house.store.acquire(&lease, &name, LEADS).await {
            Ok(Named::Yours { .. }) => {
                stood_by = false;
                leads.send_replace(true);
                say(events, "leads");
                let over = stop.child_token();
                tokio::select! {
                    () = lead_all(house, &leader, duties, (more, events, &name), &over) => {}
                    () = leader.mind_the_dead(&over) => {}
                    () = keep_lead(house, &lease, &name, events, &over) => {}
                }
                leads.send_replace(false);
                over.cancel();
                let _ = house.store.release(&lease, &name).await;
            }
            Ok(Named::Others { holder, .. }) => {
                if !std::mem::replace(&mut stood_by, true) {
                    say(events, &format!("stands by: {holder} leads"));
                }
            }
            Err(error) => say(events, &error.to_string()),
        }
        pause(LOOK_EVERY, stop).await;
    }
}

/// Says again and again that it leads. Ends when another does, or it was told to stop.
async fn keep_lead(house: &House, lease: &str, name: &str, events: &Events, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        pause(LEADS / 3, stop).await;
        match house.store.acquire(lease, name, LEADS).await {
            Ok(Named::Yours { .. }) => {}
            Ok(Named::Others { holder, .. }) => return say(events, &format!("leads no more: {holder} does")),
            // Should another lead by now, both do no harm.
            Err(error) => say(events, &error.to_string()),
        }
    }
}

/// Leads each batch that is alive, in a task of its own.
async fn lead_all(
    house: &House,
    leads: &Leader,
    duties: &watch::Receiver<Duties>,
    (more, events, name): (&Notify, &Events, &str),
    stop: &CancellationToken,
) {
    let mut led: HashMap<BatchId, JoinHandle<Result<()>>> = HashMap::new();
    // Those that cannot be led: their plans or options cannot be read.
    let mut given_up: HashMap<BatchId, Instant> = HashMap::new();
    let mut tidied: Option<Instant> = None;
    while !stop.is_cancelled() {
        let finished: Vec<BatchId> = led.iter().filter(|(_, task)| task.is_finished()).map(|(id, _)| *id).collect();
        for id in finished {
            let Some(task) = led.remove(&id) else { continue };
            if let Ok(Err(error)) = task.await {
                say(events, &format!("batch {id} is not led any more: {error}"));
                given_up.insert(id, Instant::now());
            }
        }
        given_up.retain(|_, at| at.elapsed() < GIVEN_UP_FOR);
        match house.store.batches(BATCHES).await {
            Ok(batches) => {
                let is_led = |batch: &&Batch| {
                    batch.ended_at.is_none() && batch.control.is_live() && !given_up.contains_key(&batch.id)
                };
                for batch in batches.iter().filter(is_led) {
                    led.entry(batch.id).or_insert_with(|| {
                        let (leads, id, stop) = (leads.clone(), batch.id, stop.clone());
                        let (store, duties) = (house.store.clone(), duties.clone());
                        let (events, name) = (events.clone(), name.to_owned());
                        tokio::spawn(async move {
                            let Duties { notifier, client, .. } = duties.borrow().clone();
                            let more = Notify::new();
                            let led = tokio::select! {
                                led = leads.lead(id, &more, &stop) => led,
                                () = watch_waits(&*store, id, &client, &notifier, &events, &name) => Ok(()),
                            };
                            let notifier = duties.borrow().notifier.clone();
                            let told = tell(&*store, id, &notifier, &events, &name).await;
                            led.and(told)
                        })
                    });
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
        if tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
            tidied = Some(Instant::now());
            let keep = duties.borrow().keep;
            let keep = jiff::SignedDuration::try_from(keep).unwrap_or(jiff::SignedDuration::MAX);
            if let Ok(before) = house.clock.now().checked_sub(keep)
                && let Err(error) = house.store.remove_before(before).await
            {
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

/// Tells of a batch that has ended, unless who led it before has done so.
async fn tell(store: &dyn Store, id: BatchId, notifier: &Notifier, events: &Events, name: &str) -> Result<()> {
    if notifier.is_empty() {
        return Ok(());
    }
    let report = Report::of(store, id).await?;
    if report.batch.ended_at.is_some() && is_ours_to_tell(store, id, name).await {
        for warning in notifier.tell(&report, Level::Failures).await {
            say(events, &warning);
        }
    }
    Ok(())
}

fn say(events: &Events, what: &str) {
    tracing::info!("{what}");
    events.emit(Event::Warning { message: what.to_owned() });
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
