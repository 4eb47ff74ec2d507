//! Ctrl-C and SIGTERM: the first stops the work in an orderly way, the second ends the program at once.

use tokio_util::sync::CancellationToken;

use super::printer::Printer;

/// Cancels the token when the program is asked to stop.
pub(crate) fn cancel_on_signal(cancel: CancellationToken, printer: Printer) {
    tokio::spawn(async move {
        wait_for_signal().await;
        printer.line("stopping; once more to stop at once");
        cancel.cancel();
        wait_for_signal().await;
        #[expect(clippy::exit, reason = "asked for twice: nothing is waited for any more")]
        std::process::exit(4);
    });
}

/// The first signal lets what runs end, the second stops it, the third ends the program.
pub(crate) fn drain_on_signal(drain: CancellationToken, abort: CancellationToken, printer: Printer) {
    tokio::spawn(async move {
        wait_for_signal().await;
        printer.line("letting the running images end; once more to stop them");
        drain.cancel();
        wait_for_signal().await;
        printer.line("stopping");
        abort.cancel();
        tokio::select! {
            () = wait_for_signal() => {}
            // Uploads that are being cancelled at the target are waited for no longer.
            () = tokio::time::sleep(std::time::Duration::from_secs(5)) => {}
        }
        #[expect(clippy::exit, reason = "asked for again: nothing is waited for any more")]
        std::process::exit(4);
    });
}

async fn wait_for_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
