//! The one reader of the store that publishes to the event stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;
use imgsync_oci::retry::is_transient;
use imgsync_store::Batch;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::app::AppState;
use super::dto::TimelineResponse;
use super::event_stream::{MAX_BATCHES, Topic};
use super::overview::OverviewResponse;
use super::rules::RuleResponse;
use crate::batch_view::BatchView;

const BATCH_POLL_INTERVAL: Duration = Duration::from_millis(500);
const STATUS_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of comment lines, so that proxies keep an idle connection open.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Minimum interval between timeline and failure events of a batch.
const DETAILS_INTERVAL: Duration = Duration::from_secs(2);

/// Last known state of a batch.
struct BatchSnapshot {
    view: BatchView,
    unlisted_count: u64,
    /// State and time of the last timeline and failure events.
    details: Option<(Batch, Instant)>,
}

/// Polls the store.
struct Poller<'a> {
    app: &'a AppState,
    snapshots: HashMap<BatchId, BatchSnapshot>,
    /// The rules as last published, and the number of their changes.
    rules: Option<Arc<Vec<RuleResponse>>>,
    rules_version: u64,
}

/// Polls the store and publishes changes, until stopped.
pub(super) async fn run_poller(app: &AppState, stop: &CancellationToken) {
    // A client that reconnects after a restart must not take an old number for a new one.
    let rules_version = u64::try_from(app.started_at.as_millisecond()).unwrap_or_default();
    let mut poller = Poller { app, snapshots: HashMap::new(), rules: None, rules_version };
    let mut around: Option<Instant> = None;
    let mut alive = Instant::now();
    let mut warned = false;
    loop {
        tokio::select! {
            () = app.event_hub.wait_for_subscriber() => {}
            () = stop.cancelled() => return,
        }
        let polled = async {
            poller.poll_batches().await?;
            if around.is_none_or(|at| at.elapsed() >= STATUS_POLL_INTERVAL) {
                poller.poll_status().await?;
                around = Some(Instant::now());
            }
            Ok::<(), imgsync_oci::error::Error>(())
        };
        match polled.await {
            Ok(()) => warned = false,
            // Logged once; what was published last stays visible.
            Err(error) if !std::mem::replace(&mut warned, true) => tracing::warn!("{error}"),
            Err(_) => {}
        }
        if alive.elapsed() >= KEEPALIVE_INTERVAL {
            alive = Instant::now();
            app.event_hub.send_keepalive();
        }
        tokio::select! {
            () = tokio::time::sleep(BATCH_POLL_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Poller<'_> {
    async fn poll_batches(&mut self) -> Result<()> {
        let store = &*self.app.backend.store;
        let batches = store.batches(MAX_BATCHES).await?;
        let is_gone = |id: &BatchId| !batches.iter().any(|batch| batch.id == *id);
        if self.snapshots.keys().any(is_gone) {
            self.snapshots.retain(|id, _| !is_gone(id));
            self.app.event_hub.forget(|subject| match subject {
                Topic::Batch(id) | Topic::Timeline(id) | Topic::Failures(id) => is_gone(id),
                Topic::Status | Topic::Overview | Topic::Workers | Topic::Routes => false,
            });
        }
        for batch in batches {
            match self.poll_batch(batch).await {
                // One unreadable batch does not hide the others.
                Err(error) if !is_transient(&error) => tracing::debug!("{error}"),
                polled => polled?,
            }
        }
        Ok(())
    }

    async fn poll_batch(&mut self, batch: Batch) -> Result<()> {
        let (store, hub) = (&*self.app.backend.store, &self.app.event_hub);
        let view = BatchView::load(store, batch.clone()).await?;
        let before = self.snapshots.get(&batch.id);
        let was_live = before.is_some_and(|seen| seen.view.batch.ended_at.is_none());
        let is_live = batch.ended_at.is_none();
        let has_changed = before.is_none_or(|seen| seen.view != view);
        let (mut unlisted_count, mut details) = match self.snapshots.remove(&batch.id) {
            Some(seen) => (seen.unlisted_count, seen.details),
            None => (self.app.unlisted_count(batch.id).await?, None),
        };
        // Clients request the timeline of batches that ended before the first poll.
        let is_stale = details.as_ref().is_none_or(|(as_of, _)| *as_of != batch);
        let is_due = details.as_ref().is_none_or(|(_, at)| at.elapsed() >= DETAILS_INTERVAL);
        if is_stale && (is_live || was_live || details.is_some()) && (is_due || !is_live) {
            unlisted_count = self.app.unlisted_count(batch.id).await?;
            let timeline = store.timeline(batch.id).await?;
            hub.publish(Topic::Timeline(batch.id), &TimelineResponse::from_timeline(batch.id, timeline));
            let groups = self.app.failure_groups.get_or_compute(store, &batch).await?;
            hub.publish(Topic::Failures(batch.id), &*groups);
            details = Some((batch.clone(), Instant::now()));
            hub.publish(Topic::Batch(batch.id), &self.app.batch_response(&view, unlisted_count));
            if !is_live {
                let id = batch.id;
                hub.forget(|subject| *subject == Topic::Timeline(id) || *subject == Topic::Failures(id));
            }
        } else if has_changed {
            hub.publish(Topic::Batch(batch.id), &self.app.batch_response(&view, unlisted_count));
        }
        self.snapshots.insert(batch.id, BatchSnapshot { view, unlisted_count, details });
        Ok(())
    }

    async fn poll_status(&mut self) -> Result<()> {
        let (app, hub) = (self.app, &self.app.event_hub);
        hub.publish(Topic::Status, &app.status());
        let workers = app.workers().await?;
        let routes = app.routes(&workers).await?;
        let overview = OverviewResponse::load(app, &workers, &routes).await?;
        hub.publish(Topic::Workers, &json!({"workers": workers}));
        hub.publish(Topic::Routes, &routes);
        // Rules are read page by page; the number says when they changed.
        let rules = app.rules().await?;
        if self.rules.as_ref() != Some(&rules) {
            self.rules = Some(rules);
            self.rules_version += 1;
        }
        hub.publish(Topic::Overview, &json!({"overview": overview, "rules_version": self.rules_version}));
        Ok(())
    }
}
