//! The event stream. One poller reads the store and publishes to all subscribers; without subscribers it reads
//! nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use imgsync_common::batch::BatchId;
use imgsync_common::error::Result;
use imgsync_common::retry::is_passing;
use imgsync_common::store::{Batch, Heartbeat};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::shape::{BatchShape, CourseShape};
use crate::batches::BatchView;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(2);
/// Minimum interval between timeline and failure events of a batch.
const DETAILS_EVERY: Duration = Duration::from_secs(2);
/// Interval of comment lines, so that proxies keep an idle connection open.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// Limit of published batches, the newest ones.
pub(super) const BATCHES: usize = 50;
/// A subscriber that lags this many events behind gets a snapshot.
const BEHIND: usize = 256;
const MOST_WATCHERS: usize = 1_000;

/// Publishes events to all subscribers.
#[derive(Debug)]
pub struct Live {
    sender: broadcast::Sender<Bytes>,
    /// Last event of each topic, for new subscribers, in the order in which they are sent.
    known: Mutex<BTreeMap<Subject, Bytes>>,
    watchers: watch::Sender<usize>,
}

/// Topic of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Status,
    Schedules,
    Workers,
    Lanes,
    Batch(BatchId),
    Course(BatchId),
    Failures(BatchId),
}

impl Subject {
    fn event(&self) -> &'static str {
        match self {
            Subject::Status => "status",
            Subject::Schedules => "schedules",
            Subject::Workers => "workers",
            Subject::Lanes => "lanes",
            Subject::Batch(_) => "batch",
            Subject::Course(_) => "course",
            Subject::Failures(_) => "failures",
        }
    }
}

impl Default for Live {
    fn default() -> Live {
        Live { sender: broadcast::Sender::new(BEHIND), known: Mutex::default(), watchers: watch::Sender::new(0) }
    }
}

/// A subscription, counted until dropped.
struct Watcher(Arc<Live>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watchers.send_modify(|watchers| *watchers -= 1);
    }
}

impl Live {
    /// Subscribes in the format `text/event-stream`: first a snapshot, then new events. None if there are too many
    /// subscribers.
    pub(super) fn events(
        self: &Arc<Live>,
        stop: CancellationToken,
    ) -> Option<impl Stream<Item = std::result::Result<Bytes, std::convert::Infallible>> + use<>> {
        let has_room = self.watchers.send_if_modified(|watchers| {
            let has_room = *watchers < MOST_WATCHERS;
            *watchers += usize::from(has_room);
            has_room
        });
        let watcher = has_room.then(|| Watcher(self.clone()))?;
        let (first, receiver) = self.join();
        let state = (watcher, receiver, Some(first), stop);
        Some(futures_util::stream::unfold(state, async |(watcher, mut receiver, first, stop)| {
            if let Some(first) = first {
                return Some((Ok(first), (watcher, receiver, None, stop)));
            }
            let told = tokio::select! {
                told = receiver.recv() => told,
                () = stop.cancelled() => return None,
            };
            match told {
                Ok(event) => Some((Ok(event), (watcher, receiver, None, stop))),
                Err(RecvError::Lagged(_)) => {
                    let (first, receiver) = watcher.0.join();
                    Some((Ok(first), (watcher, receiver, None, stop)))
                }
                Err(RecvError::Closed) => None,
            }
        }))
    }

    /// Returns a snapshot and a receiver of later events. No event is lost between them: publishers hold the same
    /// lock.
    fn join(&self) -> (Bytes, broadcast::Receiver<Bytes>) {
        let known = self.known();
        let mut all = b"retry: 2000\n\n".to_vec();
        known.values().for_each(|event| all.extend_from_slice(event));
        (all.into(), self.sender.subscribe())
    }

    /// Publishes an event, unless it equals the last one of its topic.
    fn tell(&self, subject: Subject, value: &impl Serialize) {
        let Ok(json) = serde_json::to_string(value) else { return };
        let mut text = String::with_capacity(json.len() + 32);
        // JSON has no line breaks of its own.
        let _ = write!(text, "event: {}\ndata: {json}\n\n", subject.event());
        let event = Bytes::from(text);
        let mut known = self.known();
        if known.get(&subject) != Some(&event) {
            known.insert(subject, event.clone());
            let _ = self.sender.send(event);
        }
    }

    /// Drops the last events of these topics: new subscribers do not get them.
    fn forget(&self, is_meant: impl Fn(&Subject) -> bool) {
        self.known().retain(|subject, _| !is_meant(subject));
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Subject, Bytes>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_watched(&self) {
        let mut watchers = self.watchers.subscribe();
        let _ = watchers.wait_for(|watchers| *watchers > 0).await;
    }
}

/// Last known state of a batch.
struct Seen {
    view: BatchView,
    unlisted: usize,
    /// State and time of the last timeline and failure events.
    details: Option<(Batch, Instant)>,
}

/// Polls the store.
struct Reader<'a> {
    app: &'a App,
    seen: HashMap<BatchId, Seen>,
}

/// Polls the store and publishes changes, until stopped.
pub(super) async fn keep(app: &App, stop: &CancellationToken) {
    let mut reader = Reader { app, seen: HashMap::new() };
    let mut around: Option<Instant> = None;
    let mut alive = Instant::now();
    let mut warned = false;
    loop {
        tokio::select! {
            () = app.live.until_watched() => {}
            () = stop.cancelled() => return,
        }
        let looked = async {
            reader.look_at_batches().await?;
            if around.is_none_or(|at| at.elapsed() >= LOOK_AROUND_EVERY) {
                reader.look_around().await?;
                around = Some(Instant::now());
            }
            Ok::<(), imgsync_common::error::Error>(())
        };
        match looked.await {
            Ok(()) => warned = false,
            // Logged once; what was published last stays visible.
            Err(error) if !std::mem::replace(&mut warned, true) => tracing::warn!("{error}"),
            Err(_) => {}
        }
        if alive.elapsed() >= ALIVE_EVERY {
            alive = Instant::now();
            let _ = app.live.sender.send(Bytes::from_static(b": alive\n\n"));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Reader<'_> {
    async fn look_at_batches(&mut self) -> Result<()> {
        let store = &*self.app.house.store;
        let batches = store.batches(BATCHES).await?;
        let is_gone = |id: &BatchId| !batches.iter().any(|batch| batch.id == *id);
        if self.seen.keys().any(is_gone) {
            self.seen.retain(|id, _| !is_gone(id));
            self.app.live.forget(|subject| match subject {
                Subject::Batch(id) | Subject::Course(id) | Subject::Failures(id) => is_gone(id),
                Subject::Status | Subject::Schedules | Subject::Workers | Subject::Lanes => false,
            });
        }
        for batch in batches {
            match self.look_at(batch).await {
                // One unreadable batch does not hide the others.
                Err(error) if !is_passing(&error) => tracing::debug!("{error}"),
                looked => looked?,
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, batch: Batch) -> Result<()> {
        let (store, live) = (&*self.app.house.store, &self.app.live);
        let view = BatchView::of(store, batch.clone()).await?;
        let before = self.seen.get(&batch.id);
        let was_live = before.is_some_and(|seen| seen.view.batch.ended_at.is_none());
        let is_live = batch.ended_at.is_none();
        let has_changed = before.is_none_or(|seen| seen.view != view);
        let (mut unlisted, mut details) = match self.seen.remove(&batch.id) {
            Some(seen) => (seen.unlisted, seen.details),
            None => (store.unlisted(batch.id).await?.len(), None),
        };
        // Clients request the timeline of batches that ended before the first poll.
        let is_stale = details.as_ref().is_none_or(|(as_of, _)| *as_of != batch);
        let is_due = details.as_ref().is_none_or(|(_, at)| at.elapsed() >= DETAILS_EVERY);
        if is_stale && (is_live || was_live || details.is_some()) && (is_due || !is_live) {
            unlisted = store.unlisted(batch.id).await?.len();
            let course = store.course(batch.id).await?;
            live.tell(Subject::Course(batch.id), &CourseShape::of(batch.id, course));
            let groups = self.app.groups.of(store, &batch).await?;
            live.tell(Subject::Failures(batch.id), &*groups);
            details = Some((batch.clone(), Instant::now()));
            live.tell(Subject::Batch(batch.id), &BatchShape::of(&view, unlisted));
            if !is_live {
                let id = batch.id;
                live.forget(|subject| *subject == Subject::Course(id) || *subject == Subject::Failures(id));
            }
        } else if has_changed {
            live.tell(Subject::Batch(batch.id), &BatchShape::of(&view, unlisted));
        }
        self.seen.insert(batch.id, Seen { view, unlisted, details });
        Ok(())
    }

    async fn look_around(&mut self) -> Result<()> {
        let (app, live) = (self.app, &self.app.live);
        live.tell(Subject::Status, &app.status());
        let workers: Vec<Heartbeat> = app.house.store.workers().await?;
        live.tell(Subject::Workers, &workers);
        live.tell(Subject::Schedules, &app.timetable.entries().await?);
        live.tell(Subject::Lanes, &app.lanes(&workers).await?);
        Ok(())
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
    async fn who_comes_later_is_told_how_all_stands_and_then_what_changes() {
        let live = Arc::new(Live::default());
        live.tell(Subject::Workers, &"none");
        live.tell(Subject::Workers, &"one");
        let mut events = pin!(live.events(CancellationToken::new()).unwrap());
        assert_eq!(next(&mut events).await, "retry: 2000\n\nevent: workers\ndata: \"one\"\n\n");
        live.tell(Subject::Workers, &"one");
        live.tell(Subject::Status, &"new\nline");
        assert_eq!(next(&mut events).await, "event: status\ndata: \"new\\nline\"\n\n");
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_anew_how_all_stands() {
        let live = Arc::new(Live::default());
        let mut events = pin!(live.events(CancellationToken::new()).unwrap());
        next(&mut events).await;
        for number in 0..=BEHIND {
            live.tell(Subject::Workers, &number);
        }
        assert_eq!(next(&mut events).await, format!("retry: 2000\n\nevent: workers\ndata: {BEHIND}\n\n"));
    }

    #[tokio::test]
    async fn who_watches_is_counted_until_it_goes_and_ends_when_told_to() {
        let live = Arc::new(Live::default());
        let stop = CancellationToken::new();
        {
            let mut events = pin!(live.events(stop.clone()).unwrap());
            assert_eq!(*live.watchers.borrow(), 1);
            next(&mut events).await;
            stop.cancel();
            assert!(events.next().await.is_none());
        }
        assert_eq!(*live.watchers.borrow(), 0);
    }
}
