//! Waits for another process that writes the same archive.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use imgsync_layout::{LOCK_TIMEOUT, describe_lock_holder};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_registry::Context;

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time before the first warning of a wait, and between warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(5);

/// Locks a file until it is closed. Returns false if the file system has no locks.
pub(crate) async fn lock(file: &File, path: &Path, operation: &str, context: &Context) -> Result<bool> {
    lock_with_timeout(file, path, operation, context, LOCK_TIMEOUT).await
}

async fn lock_with_timeout(
    file: &File,
    path: &Path,
    operation: &str,
    context: &Context,
    limit: Duration,
) -> Result<bool> {
    let started = Instant::now();
    let mut next_warning = WARN_INTERVAL.min(limit / 4);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(false),
            Err(TryLockError::Error(error)) => {
                let detail = format!("locking {} failed: {error}", path.display());
                return Err(Error::new(ErrorKind::Local, operation, detail).with_source(error));
            }
        }
        let waited = started.elapsed();
        if waited >= limit {
            let holder = describe_lock_holder(file);
            let detail = format!("{holder} has been writing it for more than {}", format_duration(waited));
            return Err(Error::new(ErrorKind::TimedOut, operation, detail)
                .with_hint("wait for the other process, or write to another file"));
        }
        if waited >= next_warning {
            next_warning += WARN_INTERVAL;
            context.warn(format!(
                "waiting for the lock of {}: held by {} for {}; gives up after {}",
                path.display(),
                describe_lock_holder(file),
                format_duration(waited),
                format_duration(limit)
            ));
        }
        tokio::select! {
            () = context.cancel.cancelled() => return Err(Error::cancelled(operation)),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use imgsync_registry::event::{Event, Events, Observer};

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
    async fn a_second_writer_waits_with_warnings_and_then_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("partial");
        let holder = File::create(&path).unwrap();
        holder.lock().unwrap();
        let ours = File::open(&path).unwrap();
        let warnings = Arc::new(Warnings::default());
        let context = Context { events: Events::new(warnings.clone()), ..Context::default() };
        let limit = Duration::from_millis(200);
        let error = lock_with_timeout(&ours, &path, "writing x", &context, limit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let process = format!("process {} (", std::process::id());
        assert!(error.to_string().contains(&process), "{error}");
        assert!(warnings.0.lock().unwrap()[0].contains(&process));

        context.cancel.cancel();
        let error = lock(&ours, &path, "writing x", &context).await.unwrap_err();
        assert!(error.is_cancelled());
        drop(holder);
        assert!(lock(&ours, &path, "writing x", &context).await.unwrap());
    }
}
