//! Log lines of a worker's tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::task_events::TaskObserver;
use imgsync_model::batch::{TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{Event, Observer};
use imgsync_store::log_throttle;

/// Logs each finished task and each retry.
#[derive(Debug, Default)]
pub struct TaskLog {
    running: Mutex<HashMap<TaskRef, (String, Instant)>>,
}

impl TaskLog {
    /// Creates an observer that has logged nothing.
    pub fn new() -> Arc<TaskLog> {
        Arc::default()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<TaskRef, (String, Instant)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the span of a task's log lines.
pub(crate) fn task_span(task_ref: &TaskRef) -> tracing::Span {
    // Level ERROR, so that no level filter drops the span's fields.
    tracing::error_span!("task", batch = %task_ref.batch, task = task_ref.index)
}

impl Observer for TaskLog {
    fn on_event(&self, event: &Event) {
        match event {
            // Many slots hit the same failing registry.
            Event::Retrying { error, kind: error_kind, registry, wait, .. } => {
                let registry = registry.as_ref().map(ToString::to_string).unwrap_or_default();
                let throttle_key = format!("retrying: {error_kind} {registry}");
                log_throttle::info(&throttle_key, &format!("{error}; retrying in {}", format_duration(*wait)));
            }
            Event::Warning { message } => log_throttle::warn(message, message),
            Event::RepeatedWarning { kind, message } => log_throttle::warn(kind, message),
            Event::Notice { message } => tracing::info!("{message}"),
            _ => {}
        }
    }
}

impl TaskObserver for TaskLog {
    fn on_task(&self, event: &TaskEvent) {
        match event {
            TaskEvent::Started { task: task_ref, source, target } => {
                tracing::debug!(batch = %task_ref.batch, task = task_ref.index, "starting {source} to {target}");
                self.running().insert(*task_ref, (format!("{source} to {target}"), Instant::now()));
            }
            TaskEvent::Ended { task: task_ref, completion } => {
                let Some((what, started_at)) = self.running().remove(task_ref) else { return };
                let time = format_duration(started_at.elapsed());
                // The worker that runs the task has entered its span already.
                let span = tracing::Span::current();
                let _about = if span.is_none() { task_span(task_ref) } else { span }.entered();
                match completion {
                    TaskCompletion::Finished { result, bytes, .. } => match result {
                        TaskResult::Copied => tracing::info!("copied {what}: {bytes} bytes in {time}"),
                        TaskResult::Unchanged => tracing::info!("unchanged {what}"),
                        TaskResult::Failed(failure) => tracing::warn!("failed {what}: {}", failure.error),
                        TaskResult::Cancelled => tracing::info!("cancelled {what}"),
                    },
                    TaskCompletion::Rescheduled { error, wait } => {
                        tracing::info!("rescheduled {what} in {}: {error}", format_duration(*wait));
                    }
                    TaskCompletion::Requeued => tracing::info!("requeued {what}"),
                    TaskCompletion::Stale => {
                        tracing::info!(
                            "result of {what} not counted: another worker holds the task, or it had already finished"
                        );
                    }
                }
            }
            TaskEvent::Reclaimed { .. } | TaskEvent::WritesLost => {}
        }
    }
}
