//! Ctrl-C and SIGTERM: copies in progress may finish where a command drains; else, and at the second signal, it aborts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_worker::StopSignals;
use imgsync_worker::runner::Stop;
use imgsync_worker::settings::{ABORT_LIMIT, DRAIN_LIMIT};
use tokio_util::sync::CancellationToken;

use super::printer::Printer;

/// Cancels the token at the first signal, and ends the program [`ABORT_LIMIT`] later at the latest.
pub(crate) fn cancel_on_signal(cancel: CancellationToken, printer: Printer) {
    let mut signals = StopSignals::new();
    tokio::spawn(async move {
        signals.next().await;
        printer.line("stopping");
        cancel.cancel();
        end_within(ABORT_LIMIT, signals).await;
    });
}

/// Drains at the first signal, for [`DRAIN_LIMIT`] at the most, and aborts at the second. Whatever the program is doing
/// then (listing, waiting for the store, telling of the result), it ends [`ABORT_LIMIT`] later at the latest.
/// `copies` says whether it has begun to copy: until then there is nothing to finish.
pub(crate) fn drain_on_signal(stop: &Stop, copies: Arc<AtomicBool>, printer: Printer) {
    let mut signals = StopSignals::new();
    let Stop { drain, abort } = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        printer.line(match copies.load(Ordering::Relaxed) {
            true => "finishing copies in progress; press Ctrl-C again to abort",
            false => "stopping",
        });
        drain.cancel();
        let limit = tokio::select! {
            () = signals.next() => ABORT_LIMIT,
            // Nobody presses keys: what is aborted may still be written down.
            () = tokio::time::sleep(DRAIN_LIMIT) => 5 * ABORT_LIMIT,
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
