//! Ctrl-C and SIGTERM: the first stops the work in an orderly way, the second ends the program at once.

use imgsync_worker::asked_to_stop;
use tokio_util::sync::CancellationToken;

use super::printer::Printer;

/// Cancels the token when the program is asked to stop.
pub(crate) fn cancel_on_signal(cancel: CancellationToken, printer: Printer) {
    tokio::spawn(async move {
        asked_to_stop().await;
        printer.line("stopping; once more to stop at once");
        cancel.cancel();
        asked_to_stop().await;
        #[expect(clippy::exit, reason = "asked for twice: nothing is waited for any more")]
        std::process::exit(4);
    });
}

/// The first signal lets what runs end, the second stops it, the third ends the program.
pub(crate) fn drain_on_signal(drain: CancellationToken, abort: CancellationToken, printer: Printer) {
    tokio::spawn(async move {
        asked_to_stop().await;
        printer.line("letting the running images end; once more to stop them");
        drain.cancel();
        asked_to_stop().await;
        printer.line("stopping");
        abort.cancel();
        tokio::select! {
            () = asked_to_stop() => {}
            // Uploads that are being cancelled at the target are waited for no longer.
            () = tokio::time::sleep(std::time::Duration::from_secs(5)) => {}
        }
        #[expect(clippy::exit, reason = "asked for again: nothing is waited for any more")]
        std::process::exit(4);
    });
}
