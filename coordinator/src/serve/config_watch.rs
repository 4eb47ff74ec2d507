//! Reloads the configuration while serving.

use std::sync::Arc;
use std::time::Duration;

use imgsync_oci::humanize::pluralize;
use imgsync_registry::event::Events;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::active_config::{ActiveConfig, ConfigSource, ReloadStatus, RuntimeOptions};
use super::{emit_notice, warn};
use crate::orchestrator::Backend;

/// Interval between looks at the file.
const CONFIG_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Reloads the configuration on SIGHUP and when its file changes, until stopped. An invalid configuration is
/// reported, and the previous one stays in use.
pub(super) async fn watch_config(
    source: &ConfigSource,
    (backend, options): (&Backend, &RuntimeOptions),
    active_config: &watch::Sender<Arc<ActiveConfig>>,
    reload_status: &watch::Sender<ReloadStatus>,
    events: &Events,
    stop: &CancellationToken,
) {
    let mut sighups = SighupStream::new();
    let mut known = source.content();
    while !stop.is_cancelled() {
        let requested = tokio::select! {
            () = sighups.recv() => true,
            () = tokio::time::sleep(CONFIG_POLL_INTERVAL) => false,
            () = stop.cancelled() => return,
        };
        let content = source.content();
        // A missing file is being replaced.
        if !requested && (content == known || content.is_none()) {
            continue;
        }
        known = content;
        let former = active_config.borrow().clone();
        let made = (source.read)().and_then(|loaded| {
            ActiveConfig::new(loaded, backend, options, Some(&former)).map_err(|error| match error.hint() {
                Some(hint) => format!("{error}\nhint: {hint}"),
                None => error.to_string(),
            })
        });
        let error = match made {
            Ok(next) => {
                emit_notice(
                    events,
                    &format!("configuration reloaded: {}", pluralize(next.rules.len() as u64, "rule", "rules")),
                );
                active_config.send_replace(Arc::new(next));
                None
            }
            Err(error) => {
                warn(
                    events,
                    &format!("cannot reload the configuration; the previous one stays in use:\n{}", error.trim()),
                );
                Some(error)
            }
        };
        reload_status.send_replace(ReloadStatus { at: Timestamp::now(), error });
    }
}

impl ConfigSource {
    fn content(&self) -> Option<Vec<u8>> {
        std::fs::read(self.file.as_ref()?).ok()
    }
}

/// SIGHUP, which requests a reload of the configuration.
struct SighupStream(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

impl SighupStream {
    #[cfg(unix)]
    fn new() -> SighupStream {
        SighupStream(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok())
    }

    #[cfg(not(unix))]
    fn new() -> SighupStream {
        SighupStream()
    }

    async fn recv(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
