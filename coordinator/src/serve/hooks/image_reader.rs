//! Reads the files that name images, so that pushes of these images trigger the rules.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::serve::active_config::ActiveConfig;

/// Interval between checks whether the files have changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the files of the rules that hooks may trigger, again when they change, until stopped.
pub(in crate::serve) async fn watch_named_images(
    mut active_config: watch::Receiver<Arc<ActiveConfig>>,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let named = active_config.borrow_and_update().triggered_images();
        let refreshed = async {
            for images in named {
                images.refresh().await;
            }
        };
        // A file system may hang.
        if stop.run_until_cancelled(refreshed).await.is_none() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
            changed = active_config.changed() => if changed.is_err() { return },
            () = stop.cancelled() => {}
        }
    }
}
