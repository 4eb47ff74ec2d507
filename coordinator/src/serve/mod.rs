//! `imgsync serve`: runs rules on their schedules, and serves the dashboard, the API and the event stream.
//!
//! [`Server`] runs everything. `active_config` holds the active configuration; `scheduler` starts batches; leading and
//! working are in [`batches`](crate::orchestrator). `router` combines the routes: `api` (JSON, with the event stream of
//! `event_stream`) and `assets` (the dashboard). `auth` authorizes requests. `hooks` has the
//! notifications of registries.

mod active_config;
mod active_hook;
mod api;
mod app;
mod assets;
mod auth;
mod config_watch;
mod dto;
mod error_response;
mod event_poller;
mod event_stream;
mod extract;
mod failed_rules;
mod failure_group_cache;
mod hooks;
mod image_files;
mod named_images;
mod overview;
mod router;
mod routes;
mod row_filter;
mod rules;
mod rules_api;
mod scheduler;
mod search;
mod server;
mod store_contact;
mod token;
mod workers;

use imgsync_oci::error::Error;
use imgsync_registry::event::{Event, Events};

pub use active_config::{
    ActiveConfig, ActiveRule, ConfigSource, LoadedConfig, ReloadStatus, RuntimeOptions, config_of_batch,
};
pub use app::AppState;
pub use auth::AuthPolicy;
pub use event_stream::EventHub;
#[cfg(test)]
pub(crate) use hooks::MAX_HOOK_BYTES;
pub use router::router;
pub use scheduler::{ScheduleEntry, Scheduler};
pub use server::{HttpBinding, Server};
pub use token::{ApiToken, load_token};

/// Emits a notice.
fn emit_notice(events: &Events, what: &str) {
    events.emit(Event::Notice { message: what.to_owned() });
}

/// Emits a warning.
fn warn(events: &Events, what: &str) {
    events.emit(Event::Warning { message: what.to_owned() });
}

/// Emits a warning about an error that repeats while its cause lasts.
fn warn_repeatedly(events: &Events, what: &str, error: &Error) {
    let kind = format!("{what}: {}", error.kind());
    events.emit(Event::RepeatedWarning { kind, message: error.to_string() });
}
