//! State shared by all request handlers.

use std::sync::Arc;

use imgsync_common::error::Result;
use imgsync_common::store::{Heartbeat, Store};
use imgsync_worker::health::Ready;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::current::{Current, Reading};
use super::groups::Groups;
use super::lanes::{self, LanesShape};
use super::live::Live;
use super::timetable::Timetable;
use crate::batches::House;

/// State shared by all request handlers.
pub struct App {
    pub(super) house: House,
    pub(super) current: watch::Receiver<Arc<Current>>,
    pub(super) readings: watch::Receiver<Reading>,
    pub(super) leads: watch::Receiver<bool>,
    pub(super) timetable: Timetable,
    pub(super) live: Arc<Live>,
    pub(super) groups: Groups,
    pub(super) access: Access,
    pub(super) ready: Ready,
    /// Notified when batches may have new tasks.
    pub(super) more: Arc<Notify>,
    pub(super) started_at: Timestamp,
    pub(super) stop: CancellationToken,
}

/// Status of the server.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StatusShape {
    version: &'static str,
    /// `embedded` or `cluster`.
    mode: &'static str,
    /// Whether this process is the leader.
    leads: bool,
    started: Timestamp,
    /// Whether reads need the token, too.
    reading_needs_token: bool,
    configuration: ConfigurationShape,
}

#[derive(Debug, Clone, Serialize)]
struct ConfigurationShape {
    /// Time of the last load.
    read: Timestamp,
    /// Why the last load failed; the previous configuration is still in use.
    error: Option<String>,
    rules: usize,
}

impl App {
    pub(super) fn store(&self) -> &dyn Store {
        &*self.house.store
    }

    pub(super) fn status(&self) -> StatusShape {
        let Reading { at, error } = self.readings.borrow().clone();
        StatusShape {
            version: env!("CARGO_PKG_VERSION"),
            mode: if self.house.is_cluster() { "cluster" } else { "embedded" },
            leads: *self.leads.borrow(),
            started: self.started_at,
            reading_needs_token: self.access.reading_needs_token(),
            configuration: ConfigurationShape { read: at, error, rules: self.current.borrow().rules.len() },
        }
    }

    pub(super) async fn lanes(&self, workers: &[Heartbeat]) -> Result<LanesShape> {
        let current = self.current.borrow().clone();
        lanes::look(&self.house, &current.client, workers).await
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}
