//! Outages of the servers that a process depends on: the broker and the store.
//!
//! Many calls meet the same outage, from all slots and connections of a process. [`ServerHealth`] turns them into one
//! beginning and one end, which logs, metrics and `/readyz` are made of.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::printable::printable;
use crate::retry::seconds;

/// Events that a slow receiver may be behind before it misses some.
const MAX_BEHIND: usize = 64;

/// What a server in an outage does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageKind {
    /// It does not answer.
    Away,
    /// The store answers, and takes no writes.
    RefusesWrites,
    /// The broker answers, and takes no messages: it is short of memory or disk.
    Blocked,
}

/// A server's outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The server, such as `the store redis://10.0.0.7:6379`.
    pub server: Arc<str>,
    /// What it does not do.
    pub kind: OutageKind,
    /// When it was first noticed.
    pub since: Timestamp,
    /// What the first call that failed was told.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
    /// Calls that failed so far.
    pub failures: u64,
}

/// An outage began, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutageEvent {
    /// It began.
    Began(Outage),
    /// It ended, after so long.
    Ended(Outage, Duration),
}

/// How one server stands, as all calls of this process find it. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct ServerHealth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Arc<str>,
    /// How many outages there are: asked by each call that succeeds.
    count: AtomicUsize,
    outages: Mutex<Vec<(Outage, Instant)>>,
    events: broadcast::Sender<OutageEvent>,
}

impl ServerHealth {
    /// Creates the health of a server that is well; `server` names it in words.
    pub fn new(server: impl Into<Arc<str>>) -> ServerHealth {
        let events = broadcast::Sender::new(MAX_BEHIND);
        ServerHealth(Arc::new(Inner {
            server: server.into(),
            count: AtomicUsize::new(0),
            outages: Mutex::default(),
            events,
        }))
    }

    /// Records that a call failed. Returns whether an outage of this kind begins with it.
    pub fn fail(&self, kind: OutageKind, reason: &str, hint: Option<&str>) -> bool {
        let mut outages = self.outages();
        if let Some((outage, _)) = outages.iter_mut().find(|(outage, _)| outage.kind == kind) {
            outage.failures += 1;
            return false;
        }
        let outage = Outage {
            server: self.0.server.clone(),
            kind,
            since: Timestamp::now(),
            reason: printable(reason).into_owned(),
            hint: hint.map(str::to_owned),
            failures: 1,
        };
        outages.push((outage.clone(), Instant::now()));
        self.0.count.store(outages.len(), Ordering::Relaxed);
        // While the lock is held: events come in the order in which things happened.
        let _ = self.0.events.send(OutageEvent::Began(outage));
        true
    }

    /// Records that an outage of this kind is over, if there is one.
    pub fn recover(&self, kind: OutageKind) {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut outages = self.outages();
        if let Some(at) = outages.iter().position(|(outage, _)| outage.kind == kind) {
            let (outage, began) = outages.swap_remove(at);
            self.0.count.store(outages.len(), Ordering::Relaxed);
            let _ = self.0.events.send(OutageEvent::Ended(outage, began.elapsed()));
        }
    }

    /// Returns the outage of this kind, if there is one now.
    pub fn outage(&self, kind: OutageKind) -> Option<Outage> {
        self.outages().iter().find(|(outage, _)| outage.kind == kind).map(|(outage, _)| outage.clone())
    }

    /// Receives each outage's beginning and end from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<OutageEvent> {
        self.0.events.subscribe()
    }

    /// Whether anybody receives its outages.
    pub fn is_followed(&self) -> bool {
        self.0.events.receiver_count() > 0
    }

    fn outages(&self) -> MutexGuard<'_, Vec<(Outage, Instant)>> {
        self.0.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on the beginnings and ends of outages of these servers, until dropped.
pub async fn follow(servers: &[ServerHealth], tell: impl Fn(&OutageEvent)) {
    let each = servers.iter().map(|server| {
        let (mut events, tell) = (server.subscribe(), &tell);
        async move {
            loop {
                match events.recv().await {
                    Ok(event) => tell(&event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    });
    futures_util::future::join_all(each).await;
    std::future::pending().await
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outage { server, reason, .. } = self;
        match self.kind {
            OutageKind::Away => write!(f, "{server} is away: {reason}")?,
            OutageKind::RefusesWrites => write!(f, "{server} takes no writes: {reason}")?,
            OutageKind::Blocked => write!(f, "{server} takes no messages: {reason}")?,
        }
        self.hint.iter().try_for_each(|hint| write!(f, " (hint: {hint})"))
    }
}

impl fmt::Display for OutageEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutageEvent::Began(outage) => outage.fmt(f),
            OutageEvent::Ended(outage, lasted) => {
                let what = match outage.kind {
                    OutageKind::Away => "is back",
                    OutageKind::RefusesWrites => "takes writes again",
                    OutageKind::Blocked => "takes messages again",
                };
                write!(f, "{} {what} after {}", outage.server, seconds(*lasted))?;
                match outage.failures {
                    0 | 1 => Ok(()),
                    failures => write!(f, " ({failures} calls failed meanwhile)"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outage_begins_and_ends_once_however_many_calls_fail() {
        let store = ServerHealth::new("the store redis://s");
        let mut events = store.subscribe();
        store.recover(OutageKind::Away);
        for call in 0..500 {
            assert_eq!(store.fail(OutageKind::Away, &format!("refused {call}"), Some("start it")), call == 0);
        }
        store.fail(OutageKind::RefusesWrites, "OOM\u{1b}[31m", None);
        assert_eq!(store.outage(OutageKind::Away).unwrap().failures, 500);
        store.recover(OutageKind::Away);
        store.recover(OutageKind::Away);
        store.recover(OutageKind::RefusesWrites);
        assert_eq!(store.outage(OutageKind::Away), None);
        let mut lines = Vec::new();
        while let Ok(event) = events.try_recv() {
            lines.push(event.to_string());
        }
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], "the store redis://s is away: refused 0 (hint: start it)");
        assert!(lines[1].starts_with("the store redis://s takes no writes: OOM") && !lines[1].contains('\u{1b}'));
        assert_eq!(lines[2], "the store redis://s is back after 0.0 s (500 calls failed meanwhile)");
        assert_eq!(lines[3], "the store redis://s takes writes again after 0.0 s");
    }
}
