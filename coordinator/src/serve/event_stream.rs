//! The event stream. One poller reads the store and publishes to all subscribers; without subscribers it reads
//! nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use imgsync_model::batch::BatchId;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Limit of published batches, the newest ones.
pub(super) const MAX_BATCHES: usize = 50;
/// A subscriber that lags this many events behind gets a snapshot.
const CHANNEL_CAPACITY: usize = 256;
const MAX_SUBSCRIBERS: usize = 1_000;

/// Publishes events to all subscribers.
#[derive(Debug)]
pub struct EventHub {
    sender: broadcast::Sender<Bytes>,
    /// Last event of each topic, for new subscribers, in the order in which they are sent.
    latest: Mutex<BTreeMap<Topic, Bytes>>,
    subscribers: watch::Sender<usize>,
}

/// Topic of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Status,
    Overview,
    Workers,
    Routes,
    Batch(BatchId),
    Timeline(BatchId),
    Failures(BatchId),
}

impl Topic {
    fn event_name(&self) -> &'static str {
        match self {
            Topic::Status => "status",
            Topic::Overview => "overview",
            Topic::Workers => "workers",
            Topic::Routes => "routes",
            Topic::Batch(_) => "batch",
            Topic::Timeline(_) => "timeline",
            Topic::Failures(_) => "failures",
        }
    }
}

impl Default for EventHub {
    fn default() -> EventHub {
        EventHub {
            sender: broadcast::Sender::new(CHANNEL_CAPACITY),
            latest: Mutex::default(),
            subscribers: watch::Sender::new(0),
        }
    }
}

/// A subscription, counted until dropped.
struct Subscription(Arc<EventHub>);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.subscribers.send_modify(|watchers| *watchers -= 1);
    }
}

impl EventHub {
    /// Subscribes in the format `text/event-stream`: first a snapshot, then new events. None if there are too many
    /// subscribers.
    pub(super) fn subscribe(
        self: &Arc<EventHub>,
        stop: CancellationToken,
    ) -> Option<impl Stream<Item = std::result::Result<Bytes, std::convert::Infallible>> + use<>> {
        let has_room = self.subscribers.send_if_modified(|watchers| {
            let has_room = *watchers < MAX_SUBSCRIBERS;
            *watchers += usize::from(has_room);
            has_room
        });
        let subscription = has_room.then(|| Subscription(self.clone()))?;
        let (first, receiver) = self.snapshot();
        let state = (subscription, receiver, Some(first), stop);
        Some(futures_util::stream::unfold(state, async |(watcher, mut receiver, first, stop)| {
            if let Some(first) = first {
                return Some((Ok(first), (watcher, receiver, None, stop)));
            }
            let received = tokio::select! {
                received = receiver.recv() => received,
                () = stop.cancelled() => return None,
            };
            match received {
                Ok(event) => Some((Ok(event), (watcher, receiver, None, stop))),
                Err(RecvError::Lagged(_)) => {
                    let (first, receiver) = watcher.0.snapshot();
                    Some((Ok(first), (watcher, receiver, None, stop)))
                }
                Err(RecvError::Closed) => None,
            }
        }))
    }

    /// Returns a snapshot and a receiver of later events. No event is lost between them: publishers hold the same
    /// lock.
    fn snapshot(&self) -> (Bytes, broadcast::Receiver<Bytes>) {
        let known = self.latest();
        let mut all = b"retry: 2000\n\n".to_vec();
        known.values().for_each(|event| all.extend_from_slice(event));
        (all.into(), self.sender.subscribe())
    }

    /// Publishes an event, unless it equals the last one of its topic.
    pub(super) fn publish(&self, subject: Topic, value: &impl Serialize) {
        let Ok(json) = serde_json::to_string(value) else { return };
        let mut text = String::with_capacity(json.len() + 32);
        // JSON has no line breaks of its own.
        let _ = write!(text, "event: {}\ndata: {json}\n\n", subject.event_name());
        let event = Bytes::from(text);
        let mut known = self.latest();
        if known.get(&subject) != Some(&event) {
            known.insert(subject, event.clone());
            let _ = self.sender.send(event);
        }
    }

    /// Drops the last events of these topics: new subscribers do not get them.
    pub(super) fn forget(&self, is_meant: impl Fn(&Topic) -> bool) {
        self.latest().retain(|subject, _| !is_meant(subject));
    }

    fn latest(&self) -> MutexGuard<'_, BTreeMap<Topic, Bytes>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a comment line, so that proxies keep an idle connection open.
    pub(super) fn send_keepalive(&self) {
        let _ = self.sender.send(Bytes::from_static(b": alive\n\n"));
    }

    pub(super) async fn wait_for_subscriber(&self) {
        let mut watchers = self.subscribers.subscribe();
        let _ = watchers.wait_for(|watchers| *watchers > 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt as _;

    use super::*;

    async fn next(
        stream: &mut (impl Stream<Item = std::result::Result<Bytes, std::convert::Infallible>> + Unpin),
    ) -> String {
        String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_late_subscriber_gets_the_latest_state_and_then_changes() {
        let live = Arc::new(EventHub::default());
        live.publish(Topic::Workers, &"none");
        live.publish(Topic::Workers, &"one");
        let mut events = pin!(live.subscribe(CancellationToken::new()).unwrap());
        assert_eq!(next(&mut events).await, "retry: 2000\n\nevent: workers\ndata: \"one\"\n\n");
        live.publish(Topic::Workers, &"one");
        live.publish(Topic::Status, &"new\nline");
        assert_eq!(next(&mut events).await, "event: status\ndata: \"new\\nline\"\n\n");
    }

    #[tokio::test]
    async fn a_lagging_subscriber_gets_the_latest_state_again() {
        let live = Arc::new(EventHub::default());
        let mut events = pin!(live.subscribe(CancellationToken::new()).unwrap());
        next(&mut events).await;
        for number in 0..=CHANNEL_CAPACITY {
            live.publish(Topic::Workers, &number);
        }
        assert_eq!(next(&mut events).await, format!("retry: 2000\n\nevent: workers\ndata: {CHANNEL_CAPACITY}\n\n"));
    }

    #[tokio::test]
    async fn a_subscriber_is_counted_until_dropped_and_ends_on_shutdown() {
        let live = Arc::new(EventHub::default());
        let stop = CancellationToken::new();
        {
            let mut events = pin!(live.subscribe(stop.clone()).unwrap());
            assert_eq!(*live.subscribers.borrow(), 1);
            next(&mut events).await;
            stop.cancel();
            assert!(events.next().await.is_none());
        }
        assert_eq!(*live.subscribers.borrow(), 0);
    }
}
