//! The coordinator process: leads batches, starts scheduled rules, runs tasks if there is no cluster, serves HTTP and
//! reloads the configuration, all concurrently.

use std::sync::Arc;

use axum::Router;
use imgsync_common::error::Result;
use imgsync_common::event::{Event, Events};
use imgsync_common::outage::{self, OutageEvent};
use imgsync_common::store::Sweep;
use imgsync_worker::health::Ready;
use imgsync_worker::runner::Stop;
use imgsync_worker::server;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Access;
use super::app::App;
use super::current::{Current, Given, Manner, Origin, Reading, keep};
use super::groups::Groups;
use super::live::{self, Live};
use super::router::router;
use super::timetable::Timetable;
use crate::batches::{Care, Duties, Hands, House, WatchedRule, serve};

/// Batches checked at startup for tasks of a previous process.
const BATCHES: usize = 1_000;

/// HTTP listener, authorization policy and extra routes.
#[derive(Debug)]
pub struct Doors {
    /// The bound listener.
    pub listener: TcpListener,
    /// Authorization policy.
    pub access: Access,
    /// Extra routes that need no token: `/metrics`.
    pub more: Router,
}

/// A long-running coordinator.
pub struct Office {
    house: House,
    origin: Origin,
    manner: Manner,
    events: Events,
    current: watch::Sender<Arc<Current>>,
}

impl Office {
    /// Creates a coordinator with its initial configuration, without starting it.
    ///
    /// # Errors
    /// `Invalid` if a rule cannot run here.
    pub fn new(house: House, first: Given, origin: Origin, manner: Manner, events: Events) -> Result<Office> {
        let current = watch::Sender::new(Arc::new(Current::of(first, &house, &manner)?));
        Ok(Office { house, origin, manner, events, current })
    }

    /// Returns a function that lists the rules of the active configuration that have metrics.
    pub fn watched_rules(&self) -> impl Fn() -> Vec<WatchedRule> + Send + Sync + use<> {
        let current = self.current.subscribe();
        move || current.borrow().watched_rules()
    }

    /// Runs until `stop` is triggered. The next start resumes interrupted listings; copies in progress may finish
    /// within the drain limit of the [`Manner`].
    pub async fn run(&self, doors: Doors, ready: Ready, stop: &Stop) {
        let drain = &stop.drain;
        let more = Arc::new(Notify::new());
        let leads = watch::Sender::new(false);
        let readings = watch::Sender::new(Reading { at: Timestamp::now(), error: None });
        let (house, events) = (&self.house, &self.events);
        let timetable = Timetable::new(house, self.current.subscribe(), more.clone(), events.clone(), drain);
        let app = Arc::new(App {
            house: house.clone(),
            current: self.current.subscribe(),
            readings: readings.subscribe(),
            leads: leads.subscribe(),
            timetable: timetable.clone(),
            live: Arc::new(Live::default()),
            groups: Groups::default(),
            access: doors.access,
            ready,
            more: more.clone(),
            started_at: Timestamp::now(),
            stop: drain.clone(),
        });
        if !house.is_cluster() {
            self.take_back().await;
        }
        let duties = watch::Sender::new(self.duties());
        let follow = async {
            let mut changes = self.current.subscribe();
            loop {
                tokio::select! {
                    _ = changes.changed() => drop(duties.send_replace(self.duties())),
                    () = drain.cancelled() => break,
                }
            }
        };
        let watched = duties.subscribe();
        tokio::join!(
            serve(house, Care::default(), &watched, (&more, &leads), events, drain),
            timetable.keep(leads.subscribe()),
            self.work(stop),
            live::keep(&app, drain),
            tell_outages(house, events, drain),
            server::serve(doors.listener, router(app.clone(), doors.more), drain),
            keep(&self.origin, (house, &self.manner), &self.current, &readings, events, drain),
            follow,
        );
        let current = self.current.borrow().clone();
        current.client.let_go().await;
    }

    /// Reclaims all tasks: the process that ran them is gone, and so is its queue.
    async fn take_back(&self) {
        match self.house.store.batches(BATCHES).await {
            Ok(batches) => {
                for batch in batches.iter().filter(|batch| batch.ended_at.is_none()) {
                    if let Err(error) = self.house.store.sweep(batch.id, Sweep::Everything).await {
                        super::warn(&self.events, &error.to_string());
                    }
                }
            }
            Err(error) => super::warn(&self.events, &error.to_string()),
        }
    }

    fn duties(&self) -> Duties {
        let current = self.current.borrow();
        let config = Arc::new(current.config.clone());
        Duties { config, notifier: current.notifier.clone(), client: current.client.clone() }
    }

    /// Runs in-process workers if there is no cluster. A reloaded configuration applies to new tasks; running tasks
    /// finish with the one they started with.
    async fn work(&self, stop: &Stop) {
        if self.house.is_cluster() {
            return;
        }
        let mut changes = self.current.subscribe();
        let shifts = TaskTracker::new();
        let mut number = 0;
        while !stop.drain.is_cancelled() {
            let current = changes.borrow_and_update().clone();
            number += 1;
            let shift = Stop { drain: stop.drain.child_token(), abort: stop.abort.child_token() };
            let hands = Hands {
                house: self.house.clone(),
                client: current.client.clone(),
                copier: current.copier.clone(),
                name: format!("{}-{number}", imgsync_worker::process_name()),
                slots: current.concurrency(),
                attempts: current.attempts(),
                traffic: current.config.traffic,
                events: self.events.clone(),
            };
            let its = shift.clone();
            shifts.spawn(async move {
                hands.work(&its).await;
                hands.client.let_go().await;
            });
            tokio::select! {
                _ = changes.changed() => shift.drain.cancel(),
                () = stop.drain.cancelled() => {}
            }
        }
        shifts.close();
        tokio::select! {
            () = shifts.wait() => {}
            () = tokio::time::sleep(self.manner.drain) => {
                stop.abort.cancel();
                shifts.wait().await;
            }
        }
    }
}

/// Reports outages of broker and store, until stopped.
async fn tell_outages(house: &House, events: &Events, stop: &CancellationToken) {
    let tell = |event: &OutageEvent| {
        events.emit(match event {
            OutageEvent::Began(_) => Event::Warning { message: event.to_string() },
            OutageEvent::Ended(..) => Event::Notice { message: event.to_string() },
        });
    };
    tokio::select! {
        () = outage::follow(&house.health, tell) => {}
        () = stop.cancelled() => {}
    }
}

impl std::fmt::Debug for Office {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Office")
    }
}
