//! State shared by all request handlers.

use std::sync::Arc;

use imgsync_oci::error::Result;
use imgsync_store::{Heartbeat, Store};
use imgsync_worker::health::ReadinessCheck;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::active_config::{ActiveConfig, ReloadStatus};
use super::auth::AuthPolicy;
use super::event_stream::EventHub;
use super::failure_group_cache::FailureGroupCache;
use super::routes::{self, RoutesResponse};
use super::scheduler::Scheduler;
use crate::orchestrator::Backend;

/// State shared by all request handlers.
pub struct AppState {
    pub(super) backend: Backend,
    pub(super) active_config: watch::Receiver<Arc<ActiveConfig>>,
    pub(super) reload_status: watch::Receiver<ReloadStatus>,
    pub(super) is_leader: watch::Receiver<bool>,
    pub(super) scheduler: Scheduler,
    pub(super) event_hub: Arc<EventHub>,
    pub(super) failure_groups: FailureGroupCache,
    pub(super) auth: AuthPolicy,
    pub(super) ready: ReadinessCheck,
    /// Notified when batches may have new tasks.
    pub(super) work_available: Arc<Notify>,
    pub(super) started_at: Timestamp,
    pub(super) stop: CancellationToken,
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
            leader: *self.is_leader.borrow(),
            started: self.started_at,
            reading_needs_token: self.auth.reading_needs_token(),
            configuration: ConfigStatusResponse { read: at, error, rules: self.active_config.borrow().rules.len() },
        }
    }

    pub(super) async fn routes(&self, workers: &[Heartbeat]) -> Result<RoutesResponse> {
        let current = self.active_config.borrow().clone();
        routes::read_routes(&self.backend, &current.client, workers).await
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}
