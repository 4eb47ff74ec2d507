//! Ctrl-C and SIGTERM: a command that drains finishes copies in progress; others, and any at the second signal,
//! abort.

use std::time::Duration;

use imgsync_worker::StopSignals;
use imgsync_worker::copy::CLEANUP_TIMEOUT;
use imgsync_worker::runner::Shutdown;
use imgsync_worker::settings::{ABORT_TIMEOUT, DRAIN_TIMEOUT};
use tokio_util::sync::CancellationToken;

use super::printer::Printer;

/// Cancels the token at the first signal, and ends the program [`ABORT_TIMEOUT`] later at the latest.
pub(crate) fn cancel_on_signal(cancel: CancellationToken, printer: Printer) {
    let mut signals = StopSignals::new();
    tokio::spawn(async move {
        signals.next().await;
        printer.line("stopping");
        cancel.cancel();
        end_within(ABORT_TIMEOUT, signals).await;
    });
}

/// Drains at the first signal, for at most [`DRAIN_TIMEOUT`], and aborts at the second. Whatever the program is doing
/// then (listing, waiting for the store, sending notifications), it ends at most [`ABORT_TIMEOUT`] later. `copies`:
/// whether there may be copies to finish.
pub(crate) fn drain_on_signal(stop: &Shutdown, copies: impl Fn() -> bool + Send + 'static, printer: Printer) {
    let mut signals = StopSignals::new();
    let Shutdown { drain, abort } = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        printer.line(match copies() {
            true => "finishing copies in progress; press Ctrl-C again to abort",
            false => "stopping",
        });
        drain.cancel();
        let limit = tokio::select! {
            () = signals.next() => ABORT_TIMEOUT,
            // Nobody is waiting at a terminal: aborted tasks get time to be recorded.
            () = tokio::time::sleep(DRAIN_TIMEOUT) => 5 * ABORT_TIMEOUT,
        };
        printer.line("stopping");
        abort.cancel();
        end_within(limit, signals).await;
    });
}

async fn end_within(limit: Duration, mut signals: StopSignals) {
    tokio::select! {
        () = signals.next() => {}
        () = tokio::time::sleep(limit) => {}
    }
    #[expect(clippy::exit, reason = "what was asked to stop has not: nothing is waited for any more")]
    std::process::exit(4);
}

/// Waits after Ctrl-C until the time to cancel uploads at the target is over.
pub(crate) async fn wait_for_cleanup(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CLEANUP_TIMEOUT).await;
}
