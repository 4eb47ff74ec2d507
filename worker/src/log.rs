//! Log lines of a worker's tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use imgsync_common::batch::Ticket;
use imgsync_common::event::{Event, Observer, TaskEnd};
use imgsync_common::repeated;
use imgsync_common::retry::seconds;

/// Logs each finished task and each retry.
#[derive(Debug, Default)]
pub struct Log {
    running: Mutex<HashMap<Ticket, (String, Instant)>>,
}

impl Log {
    /// Creates an observer that has logged nothing.
    pub fn new() -> Arc<Log> {
        Arc::default()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, (String, Instant)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the span of a task's log lines.
pub(crate) fn about(ticket: &Ticket) -> tracing::Span {
    // Level ERROR, so that no level filter drops the span's fields.
    tracing::error_span!("task", batch = %ticket.batch, task = ticket.index)
}

impl Observer for Log {
    fn on(&self, event: &Event) {
        match event {
            Event::TaskStarted { ticket, source, target } => {
                tracing::debug!(batch = %ticket.batch, task = ticket.index, "begins {source} to {target}");
                self.running().insert(*ticket, (format!("{source} to {target}"), Instant::now()));
            }
            Event::TaskEnded { ticket, end } => {
                let Some((what, began)) = self.running().remove(ticket) else { return };
                let time = seconds(began.elapsed());
                // The worker that runs the task has entered its span already.
                let span = tracing::Span::current();
                let _about = if span.is_none() { about(ticket) } else { span }.entered();
                match end {
                    TaskEnd::Copied { bytes, .. } => tracing::info!("copied {what}: {bytes} bytes in {time}"),
                    TaskEnd::Unchanged => tracing::info!("unchanged {what}"),
                    TaskEnd::Failed { error, .. } => tracing::warn!("failed {what}: {error}"),
                    TaskEnd::Cancelled => tracing::info!("cancelled {what}"),
                    TaskEnd::Later { error, wait } => {
                        tracing::info!("put off {what} for {}: {error}", seconds(*wait));
                    }
                    TaskEnd::GivenBack => tracing::info!("gave back {what}"),
                    TaskEnd::Stale => {
                        tracing::info!("not counted {what}: the task is another worker's by now, or had ended before");
                    }
                }
            }
            // Many slots hit the same failing registry.
            Event::Retrying { error, class, registry, wait, .. } => {
                let registry = registry.as_ref().map(ToString::to_string).unwrap_or_default();
                let kind = format!("trying again: {class} {registry}");
                repeated::info(&kind, &format!("{error}; trying again in {}", seconds(*wait)));
            }
            Event::Warning { message } => repeated::warn(message, message),
            Event::RepeatedWarning { kind, message } => repeated::warn(kind, message),
            Event::Notice { message } => tracing::info!("{message}"),
            _ => {}
        }
    }
}
