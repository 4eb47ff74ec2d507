//! What a worker does, as lines of its log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use imgsync_common::batch::Ticket;
use imgsync_common::event::{Event, Observer, TaskEnd};
use imgsync_common::repeated;
use imgsync_common::retry::seconds;

/// Writes a line for each task that ended, and for what is tried again.
#[derive(Debug, Default)]
pub struct Log {
    running: Mutex<HashMap<Ticket, (String, Instant)>>,
}

impl Log {
    /// One that has written nothing yet.
    pub fn new() -> Arc<Log> {
        Arc::default()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, (String, Instant)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lines about a task are about.
pub(crate) fn about(ticket: &Ticket) -> tracing::Span {
    // At the level of errors, so that no filter of levels leaves its fields out.
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
                // Who does the task is in a span of it already.
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
            // All slots meet a registry that fails.
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
