//! State shared by all request handlers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::HOST;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;
use imgsync_store::Store;
use imgsync_worker::health::ReadinessCheck;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::active_config::{ActiveConfig, ReloadStatus};
use super::auth::AuthPolicy;
use super::dto::BatchResponse;
use super::event_stream::EventHub;
use super::failure_group_cache::FailureGroupCache;
use super::routes::{self, RoutesResponse};
use super::rules::{RuleCache, RuleResponse, RuleStateContext};
use super::scheduler::Scheduler;
use super::workers::{WorkerResponse, WorkerSamples};
use crate::batch_view::BatchView;
use crate::orchestrator::{Backend, Leadership, StateChange, is_leader};

/// A client does not wait longer for a store that is down.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the documentation is.
const DOCS_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/tree/main/docs");

/// State shared by all request handlers.
pub struct AppState {
    pub(super) backend: Backend,
    pub(super) active_config: watch::Receiver<Arc<ActiveConfig>>,
    pub(super) reload_status: watch::Receiver<ReloadStatus>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) scheduler: Scheduler,
    pub(super) event_hub: Arc<EventHub>,
    pub(super) failure_groups: FailureGroupCache,
    pub(super) rule_cache: RuleCache,
    pub(super) state_confirmations: StateConfirmations,
    pub(super) worker_samples: WorkerSamples,
    /// Limits concurrent searches.
    pub(super) search_permits: Semaphore,
    /// Limits concurrent reports, each of which reads a batch whole.
    pub(super) report_permits: Semaphore,
    /// Limits the memory of notifications that are read.
    pub(super) hook_permits: Semaphore,
    /// The same for bodies that prove their sender.
    pub(super) unproved_hook_permits: Semaphore,
    /// Notified of pushes that this process has received.
    pub(super) push_arrived: Arc<Notify>,
    pub(super) auth: AuthPolicy,
    pub(super) ready: ReadinessCheck,
    /// Notified when batches may have new tasks.
    pub(super) work_available: Arc<Notify>,
    pub(super) started_at: Timestamp,
    pub(super) stop: CancellationToken,
}

/// Changes of batches' states that are watched over, in case the store loses them.
#[derive(Default)]
pub(super) struct StateConfirmations(Mutex<HashMap<BatchId, AbortHandle>>);

impl StateConfirmations {
    /// Watches over the last change of a batch, and no longer over an earlier one.
    pub(super) fn start(&self, batch: BatchId, change: StateChange) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, task| !task.is_finished());
        let confirm = async move {
            if let Err(error) = change.confirm().await {
                tracing::warn!("{error}");
            }
        };
        if let Some(earlier) = running.insert(batch, tokio::spawn(confirm).abort_handle()) {
            earlier.abort();
        }
    }
}

/// Status of the server.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StatusResponse {
    version: &'static str,
    /// `embedded` or `cluster`.
    mode: &'static str,
    /// Whether this process is the leader.
    leader: bool,
    started: Timestamp,
    /// Whether reads need the token, too.
    reading_needs_token: bool,
    /// URL of the documentation.
    docs: &'static str,
    configuration: ConfigStatusResponse,
}

#[derive(Debug, Clone, Serialize)]
struct ConfigStatusResponse {
    /// Time of the last load.
    read: Timestamp,
    /// Why the last load failed; the previous configuration is still in use.
    error: Option<String>,
    rules: usize,
}

impl AppState {
    pub(super) fn store(&self) -> &dyn Store {
        &*self.backend.store
    }

    pub(super) fn status(&self) -> StatusResponse {
        let ReloadStatus { at, error } = self.reload_status.borrow().clone();
        StatusResponse {
            version: env!("CARGO_PKG_VERSION"),
            mode: if self.backend.is_cluster() { "cluster" } else { "embedded" },
            leader: self.is_leader(),
            started: self.started_at,
            reading_needs_token: self.auth.reading_needs_token(),
            docs: DOCS_URL,
            configuration: ConfigStatusResponse { read: at, error, rules: self.active_config.borrow().rules.len() },
        }
    }

    /// Returns whether this process is the leader.
    pub(super) fn is_leader(&self) -> bool {
        is_leader(&self.leadership.borrow())
    }

    /// Returns all rules with their state, in the order of the configuration.
    pub(super) async fn rules(&self) -> Result<Arc<Vec<RuleResponse>>> {
        let current = self.active_config.borrow().clone();
        let (store, is_leader) = (self.store(), self.is_leader());
        self.rule_cache.rules(RuleStateContext { store, scheduler: &self.scheduler, current, is_leader }).await
    }

    /// Reads the workers with their throughput.
    pub(super) async fn workers(&self) -> Result<Vec<WorkerResponse>> {
        let current = self.active_config.borrow().clone();
        self.worker_samples.load(self.store(), &current.config).await
    }

    /// Counts the repositories and patterns of a batch that could not be listed.
    pub(super) async fn unlisted_count(&self, batch: BatchId) -> Result<u64> {
        Ok(self.store().count_records(&[batch]).await?.first().map_or(0, |records| records.unlisted))
    }

    /// Converts a batch, with the rule that it runs.
    pub(super) fn batch_response(&self, view: &BatchView, unlisted: u64) -> BatchResponse {
        let rule = self.active_config.borrow().rule_of_batch(&view.batch.rules).map(|rule| rule.id.clone());
        BatchResponse::from_view(view, unlisted, rule)
    }

    /// Returns the URL of the dashboard: that of the first proxy, else the one of this request.
    pub(super) fn dashboard_url(&self, headers: &HeaderMap) -> Option<String> {
        if let Some(host) = self.auth.hosts().first() {
            return Some(format!("https://{host}"));
        }
        headers.get(HOST)?.to_str().ok().map(|host| format!("http://{host}"))
    }

    pub(super) async fn routes(&self, workers: &[WorkerResponse]) -> Result<RoutesResponse> {
        let current = self.active_config.borrow().clone();
        routes::read_routes(&self.backend, &current.client, workers).await
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}
