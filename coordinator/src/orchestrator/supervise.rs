//! Supervision of background tasks: restarts those that fail or panic.

use std::time::Duration;

use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::panics::catch_panic;
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{Event, Events};
use tokio_util::sync::CancellationToken;

/// Pause after the first failure, which doubles with each further one, and the maximum pause.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Runs a task until it succeeds or `stop` is cancelled. Logs each error and panic with the number of failures, and
/// restarts the task after a growing pause. Gives up a task whose subject is gone (`NotFound`).
pub(super) async fn supervise<F: Future<Output = Result<()>>>(
    what: &str,
    events: &Events,
    stop: &CancellationToken,
    task: impl FnMut() -> F,
) {
    supervise_with(PAUSES, what, (events, stop), task).await;
}

async fn supervise_with<F: Future<Output = Result<()>>>(
    (first_pause, max_pause): (Duration, Duration),
    what: &str,
    (events, stop): (&Events, &CancellationToken),
    mut task: impl FnMut() -> F,
) {
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let error = match catch_panic(what, task()).await {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return report(events, &format!("{what}: giving up: {error}"));
            }
            Err(error) => error,
        };
        failures += 1;
        let pause = first_pause.saturating_mul(1 << (failures - 1).min(10)).min(max_pause);
        let times = if failures == 1 { String::new() } else { format!(" ({failures} times)") };
        report(events, &format!("{what} failed{times}: {error}; retrying in {}", format_duration(pause)));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

fn report(events: &Events, message: &str) {
    events.emit(Event::Warning { message: message.to_owned() });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use imgsync_oci::error::Error;
    use imgsync_registry::event::Observer;

    use super::*;

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Observer for Warnings {
        fn on_event(&self, event: &Event) {
            if let Event::Warning { message } = event {
                self.0.lock().unwrap().push(message.clone());
            }
        }
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_logged_and_run_again() {
        let warnings = Arc::new(Warnings::default());
        let runs = AtomicU32::new(0);
        let (events, stop) = (Events::new(warnings.clone()), CancellationToken::new());
        let pauses = (Duration::from_millis(100), Duration::from_millis(150));
        supervise_with(pauses, "leading a batch", (&events, &stop), || async {
            match runs.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Error::new(ErrorKind::Local, "reading the plan", "it is damaged")),
                1 => panic!("an index is out of bounds"),
                _ => Ok(()),
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        let warnings = warnings.0.lock().unwrap();
        assert_eq!(warnings[0], "leading a batch failed: reading the plan: it is damaged; retrying in 0.1 s");
        assert!(warnings[1].starts_with("leading a batch failed (2 times): leading a batch: internal error: panicked"));
        assert!(warnings[1].contains("an index is out of bounds"), "{warnings:?}");
    }

    #[tokio::test]
    async fn a_task_whose_subject_is_gone_is_given_up() {
        let warnings = Arc::new(Warnings::default());
        supervise("leading a batch", &Events::new(warnings.clone()), &CancellationToken::new(), || async {
            Err(Error::new(ErrorKind::NotFound, "reading the batch", "there is none"))
        })
        .await;
        assert!(warnings.0.lock().unwrap()[0].contains("giving up"));
    }
}
