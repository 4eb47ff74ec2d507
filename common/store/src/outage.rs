//! Outages of the servers that a process depends on: the broker and the store.
//!
//! Many calls, from all slots and connections of a process, meet the same outage. [`ServerHealth`] reports it once when
//! it begins and once when it ends; logs, metrics and `/readyz` are built on that.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use imgsync_oci::retry::format_duration;
use imgsync_oci::sanitize::sanitize;

/// Number of events that a slow receiver may lag behind before it misses some.
const EVENT_CHANNEL_CAPACITY: usize = 64;

/// How a server fails in an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageKind {
    /// It does not respond.
    Unreachable,
    /// The store responds, but refuses writes.
    RefusesWrites,
    /// The broker responds, but blocks publishers: it is low on memory or disk.
    Blocked,
}

/// An outage of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The server, such as `the store redis://10.0.0.7:6379`.
    pub server: Arc<str>,
    /// How it fails.
    pub kind: OutageKind,
    /// Time of the first failure.
    pub since: Timestamp,
    /// Error of the first failed call.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
    /// Number of failed calls so far.
    pub failures: u64,
}

/// Change of the health of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    /// A lost connection was replaced.
    Reconnected(NodeConnection),
    /// The store is used on another server, which has become the master.
    FailedOver {
        /// The store.
        server: Arc<str>,
        /// Host and port of the new master.
        master: String,
    },
    /// The outage began.
    Began(Outage),
    /// The outage ended, with its length.
    Ended(Outage, Duration),
    /// The store has lost writes that it had confirmed.
    WritesLost {
        /// The server.
        server: Arc<str>,
        /// The lost writes are at most this old; `None` if nothing of this process is left.
        within: Option<Duration>,
    },
}

/// A connection to a node of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConnection {
    /// What it is for: `publishing`.
    pub purpose: &'static str,
    /// Host and port of the node.
    pub node: String,
}

/// Health of a server, as the calls of this process find it. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct ServerHealth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Arc<str>,
    /// Number of outages, read by each call that succeeds.
    count: AtomicUsize,
    outages: Mutex<Vec<(Outage, Instant)>>,
    /// Nodes of the latest connections, by purpose.
    nodes: Mutex<BTreeMap<&'static str, String>>,
    reconnects: AtomicU64,
    /// Host and port of the server that Sentinels named last.
    master: Mutex<Option<(String, u64)>>,
    failovers: AtomicU64,
    events: broadcast::Sender<HealthEvent>,
}

impl ServerHealth {
    /// Creates the health of a server without outages; `server` names it in messages.
    pub fn new(server: impl Into<Arc<str>>) -> ServerHealth {
        let events = broadcast::Sender::new(EVENT_CHANNEL_CAPACITY);
        ServerHealth(Arc::new(Inner {
            server: server.into(),
            count: AtomicUsize::new(0),
            outages: Mutex::default(),
            nodes: Mutex::default(),
            reconnects: AtomicU64::new(0),
            master: Mutex::default(),
            failovers: AtomicU64::new(0),
            events,
        }))
    }

    /// Records a failed call. Returns whether an outage of this kind begins with it.
    pub fn record_failure(&self, kind: OutageKind, reason: &str, hint: Option<&str>) -> bool {
        let mut outages = self.outages();
        if let Some((outage, _)) = outages.iter_mut().find(|(outage, _)| outage.kind == kind) {
            outage.failures += 1;
            return false;
        }
        let outage = Outage {
            server: self.0.server.clone(),
            kind,
            since: Timestamp::now(),
            reason: sanitize(reason).into_owned(),
            hint: hint.map(str::to_owned),
            failures: 1,
        };
        outages.push((outage.clone(), Instant::now()));
        self.0.count.store(outages.len(), Ordering::Relaxed);
        // Sent under the lock, so that events come in order.
        let _ = self.0.events.send(HealthEvent::Began(outage));
        true
    }

    /// Ends the outage of this kind, if there is one.
    pub fn record_recovery(&self, kind: OutageKind) {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut outages = self.outages();
        if let Some(at) = outages.iter().position(|(outage, _)| outage.kind == kind) {
            let (outage, began) = outages.swap_remove(at);
            self.0.count.store(outages.len(), Ordering::Relaxed);
            let _ = self.0.events.send(HealthEvent::Ended(outage, began.elapsed()));
        }
    }

    /// Reports that the server has lost writes of this time.
    pub fn record_write_loss(&self, within: Option<Duration>) {
        let _outages = self.outages();
        let _ = self.0.events.send(HealthEvent::WritesLost { server: self.0.server.clone(), within });
    }

    /// Returns the current outage of this kind, if any.
    pub fn outage(&self, kind: OutageKind) -> Option<Outage> {
        self.outages().iter().find(|(outage, _)| outage.kind == kind).map(|(outage, _)| outage.clone())
    }

    /// Returns the current outages.
    pub fn current_outages(&self) -> Vec<Outage> {
        self.outages().iter().map(|(outage, _)| outage.clone()).collect()
    }

    /// Records a connection to a node. If it replaces an earlier one of the same purpose, it counts as a reconnect.
    pub fn record_connection(&self, purpose: &'static str, node: &str) {
        let replaced = self.nodes().insert(purpose, node.to_owned());
        if replaced.is_some() {
            self.0.reconnects.fetch_add(1, Ordering::Relaxed);
            let _ = self.0.events.send(HealthEvent::Reconnected(NodeConnection { purpose, node: node.to_owned() }));
        }
    }

    /// Returns the latest connection of each purpose.
    pub fn connections(&self) -> Vec<NodeConnection> {
        let connection = |(purpose, node): (&&'static str, &String)| NodeConnection { purpose, node: node.clone() };
        self.nodes().iter().map(connection).collect()
    }

    /// Returns the number of connections that replaced a lost one.
    pub fn reconnects(&self) -> u64 {
        self.0.reconnects.load(Ordering::Relaxed)
    }

    /// Records a connection to a master that Sentinels have named. Another one of a later epoch counts as a failover:
    /// Sentinels may give one server different names.
    pub fn record_master(&self, master: &str, epoch: u64) {
        let replaced = self.0.master.lock().unwrap_or_else(PoisonError::into_inner).replace((master.to_owned(), epoch));
        if replaced.is_some_and(|(name, earlier)| name != master && epoch > earlier) {
            self.0.failovers.fetch_add(1, Ordering::Relaxed);
            let (server, master) = (self.0.server.clone(), master.to_owned());
            let _ = self.0.events.send(HealthEvent::FailedOver { server, master });
        }
    }

    /// Returns host and port of the master that Sentinels named last, if there are any.
    pub fn master(&self) -> Option<String> {
        self.0.master.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(name, _)| name.clone())
    }

    /// Returns how often the master has changed.
    pub fn failovers(&self) -> u64 {
        self.0.failovers.load(Ordering::Relaxed)
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to the events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<HealthEvent> {
        self.0.events.subscribe()
    }

    /// Returns whether there are subscribers.
    pub fn has_subscribers(&self) -> bool {
        self.0.events.receiver_count() > 0
    }

    fn outages(&self) -> MutexGuard<'_, Vec<(Outage, Instant)>> {
        self.0.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forwards the outage events of these servers until it is dropped.
pub async fn forward_events(servers: &[ServerHealth], on_event: impl Fn(&HealthEvent)) {
    let each = servers.iter().map(|server| {
        let (mut events, notify) = (server.subscribe(), &on_event);
        async move {
            loop {
                match events.recv().await {
                    Ok(event) => notify(&event),
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
            OutageKind::Unreachable => write!(f, "{server} is unreachable: {reason}")?,
            OutageKind::RefusesWrites => write!(f, "{server} refuses writes: {reason}")?,
            OutageKind::Blocked => write!(f, "{server} blocks publishers: {reason}")?,
        }
        self.hint.iter().try_for_each(|hint| write!(f, " (hint: {hint})"))
    }
}

impl fmt::Display for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} through the broker node {}", self.purpose, self.node)
    }
}

impl fmt::Display for HealthEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthEvent::Reconnected(connection) => write!(f, "{connection} (reconnected)"),
            HealthEvent::FailedOver { server, master } => write!(f, "{server} has a new master: {master}"),
            HealthEvent::Began(outage) => outage.fmt(f),
            HealthEvent::WritesLost { server, within } => {
                write!(f, "{server} has lost writes that it had confirmed, as after a failover: ")?;
                match within {
                    Some(within) => write!(f, "those of the last {} at most", format_duration(*within))?,
                    None => write!(f, "all that this process knows of")?,
                }
                write!(f, "; imgsync checks leases, queues and plans")
            }
            HealthEvent::Ended(outage, lasted) => {
                let what = match outage.kind {
                    OutageKind::Unreachable => "is reachable again",
                    OutageKind::RefusesWrites => "accepts writes again",
                    OutageKind::Blocked => "accepts messages again",
                };
                write!(f, "{} {what} after {}", outage.server, format_duration(*lasted))?;
                match outage.failures {
                    0 | 1 => Ok(()),
                    failures => write!(f, " ({failures} failed calls)"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_master_is_a_failover_and_the_same_one_is_not() {
        let store = ServerHealth::new("the store redis+sentinel://s/m");
        let mut events = store.subscribe();
        for (master, epoch) in [("a:1", 1), ("a:1", 1), ("10.0.0.1:1", 1), ("b:1", 2), ("b:1", 3), ("a:1", 4)] {
            store.record_master(master, epoch);
        }
        assert_eq!((store.failovers(), store.master().as_deref(), store.reconnects()), (2, Some("a:1"), 0));
        assert_eq!(events.try_recv().unwrap().to_string(), "the store redis+sentinel://s/m has a new master: b:1");
    }

    #[tokio::test]
    async fn a_connection_that_replaces_a_lost_one_is_counted_and_reported() {
        let broker = ServerHealth::new("the broker amqp://b");
        let mut events = broker.subscribe();
        broker.record_connection("publishing", "a:5672");
        broker.record_connection("consuming", "b:5672");
        let nodes = || broker.connections().iter().map(|it| format!("{} {}", it.purpose, it.node)).collect::<Vec<_>>();
        assert_eq!((nodes(), broker.reconnects()), (vec!["consuming b:5672".into(), "publishing a:5672".into()], 0));
        assert!(events.try_recv().is_err(), "the first connections are no news");
        broker.record_connection("publishing", "b:5672");
        assert_eq!((nodes(), broker.reconnects()), (vec!["consuming b:5672".into(), "publishing b:5672".into()], 1));
        let line = events.try_recv().unwrap().to_string();
        assert_eq!(line, "publishing through the broker node b:5672 (reconnected)");
    }

    #[tokio::test]
    async fn an_outage_begins_and_ends_once_however_many_calls_fail() {
        let store = ServerHealth::new("the store redis://s");
        let mut events = store.subscribe();
        store.record_recovery(OutageKind::Unreachable);
        for call in 0..500 {
            assert_eq!(
                store.record_failure(OutageKind::Unreachable, &format!("refused {call}"), Some("start it")),
                call == 0
            );
        }
        store.record_failure(OutageKind::RefusesWrites, "OOM\u{1b}[31m", None);
        assert_eq!(store.outage(OutageKind::Unreachable).unwrap().failures, 500);
        store.record_recovery(OutageKind::Unreachable);
        store.record_recovery(OutageKind::Unreachable);
        store.record_recovery(OutageKind::RefusesWrites);
        assert_eq!(store.outage(OutageKind::Unreachable), None);
        let mut lines = Vec::new();
        while let Ok(event) = events.try_recv() {
            lines.push(event.to_string());
        }
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], "the store redis://s is unreachable: refused 0 (hint: start it)");
        assert!(lines[1].starts_with("the store redis://s refuses writes: OOM") && !lines[1].contains('\u{1b}'));
        assert_eq!(lines[2], "the store redis://s is reachable again after 0.0 s (500 failed calls)");
        assert_eq!(lines[3], "the store redis://s accepts writes again after 0.0 s");
    }
}
