//! All that serving is, at the same time: leading, beginning batches at their times, working where there is no cluster,
//! answering, and reading the configuration again.

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

/// Live batches that are looked at when work begins.
const BATCHES: usize = 1_000;

/// Where it is answered, and to whom.
#[derive(Debug)]
pub struct Doors {
    /// Bound already.
    pub listener: TcpListener,
    /// Who may ask.
    pub access: Access,
    /// What is answered besides, to anybody: `/metrics`.
    pub more: Router,
}

/// A coordinator that stays.
pub struct Office {
    house: House,
    origin: Origin,
    manner: Manner,
    events: Events,
    current: watch::Sender<Arc<Current>>,
}

impl Office {
    /// One that has not begun, with the configuration as it was read first.
    ///
    /// # Errors
    /// `Invalid` where a rule cannot be run here.
    pub fn new(house: House, first: Given, origin: Origin, manner: Manner, events: Events) -> Result<Office> {
        let current = watch::Sender::new(Arc::new(Current::of(first, &house, &manner)?));
        Ok(Office { house, origin, manner, events, current })
    }

    /// Returns what gives the rules that have figures, as the configuration stands.
    pub fn watched_rules(&self) -> impl Fn() -> Vec<WatchedRule> + Send + Sync + use<> {
        let current = self.current.subscribe();
        move || current.borrow().watched_rules()
    }

    /// Serves until told to stop. What is listed is broken off and gone on with by the next; what runs here may end, for as
    /// long as the manner says.
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

    /// Whoever ran these before is gone, and so is its queue.
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

    /// Works, where no cluster does. A changed configuration is for what is begun from then on: what runs ends with the one
    /// that it was begun with.
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

/// Says when broker or store are away, and when they are back, until told to stop.
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
