//! Progress of a batch: a line per running task and a total on a terminal, periodic lines elsewhere, or a JSON line
//! per event.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use imgsync_model::batch::{BatchId, Failure, TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::Digest;
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{BlobOutcome, Event, Observer};
use imgsync_store::log_throttle;
use imgsync_store::outage::OutageEvent;
use imgsync_store::{Batch, Store};
use imgsync_worker::task_events::TaskObserver;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::printer::Printer;
use crate::orchestrator::WorkerCoverage;

const REFRESH_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const COVERAGE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// More lines would fill a terminal.
const MAX_TASK_LINES: usize = 20;

/// Shows the progress of a batch.
pub(crate) struct BatchProgress {
    printer: Printer,
    /// Whether events are printed on stdout as JSON lines.
    as_json: bool,
    total: Option<ProgressBar>,
    running: Mutex<HashMap<TaskRef, Option<ProgressBar>>>,
    transferred: Mutex<TransferredBytes>,
}

/// Bytes transferred, including blobs in flight.
#[derive(Default)]
struct TransferredBytes {
    done: u64,
    in_flight: HashMap<Digest, Arc<AtomicU64>>,
}

impl TransferredBytes {
    fn bytes(&self) -> u64 {
        self.done + self.in_flight.values().map(|moved| moved.load(Ordering::Relaxed)).sum::<u64>()
    }
}

impl BatchProgress {
    pub(crate) fn new(printer: &Printer, as_json: bool) -> Arc<BatchProgress> {
        let total = (printer.shows_bars() && !as_json).then(|| {
            let style = "{wide_bar} {pos}/{len}  {msg}";
            printer.bars().add(ProgressBar::new(0).with_style(bar_style(style)))
        });
        Arc::new(BatchProgress {
            printer: printer.clone(),
            as_json,
            total,
            running: Mutex::default(),
            transferred: Mutex::default(),
        })
    }

    /// Updates the display until dropped.
    pub(crate) async fn run(&self, store: &dyn Store, id: BatchId, is_cluster: bool) {
        let started = Instant::now();
        let mut complained = (Vec::new(), Instant::now());
        let mut line_at = Instant::now() + LINE_INTERVAL;
        loop {
            tokio::time::sleep(REFRESH_INTERVAL).await;
            let complains = is_cluster && complained.1.elapsed() > COVERAGE_CHECK_INTERVAL;
            if self.total.is_none() && !complains && Instant::now() < line_at {
                continue;
            }
            let Ok(Some(batch)) = store.batch(id).await else { continue };
            if complains {
                // This process publishes, and reports a broker alarm itself.
                let coverage = WorkerCoverage::load(store, &batch)
                    .await
                    .map(|worker_coverage| WorkerCoverage { broker_alarm: None, ..worker_coverage });
                let complaints = coverage.map(|worker_coverage| worker_coverage.problems()).unwrap_or_default();
                if complaints != complained.0 {
                    complaints.iter().for_each(|complaint| self.printer.warning(complaint));
                }
                complained = (complaints, Instant::now());
            }
            // By this process, or by the workers.
            let moved = self.transferred().bytes().max(batch.usage.bytes.copied);
            let line = progress_line(&batch, moved, started.elapsed());
            match &self.total {
                Some(total) => {
                    total.set_length(batch.counts.total);
                    total.set_position(batch.counts.ended());
                    total.set_message(line);
                }
                None if self.as_json || Instant::now() < line_at => {}
                None => {
                    line_at = Instant::now() + LINE_INTERVAL;
                    self.printer.line(&format!("{} of {}: {line}", batch.counts.ended(), format_total(&batch)));
                }
            }
        }
    }

    /// Reports the start or the end of an outage.
    pub(crate) fn report_outage(&self, event: &OutageEvent) {
        let message = event.to_string();
        self.on_event(&match event {
            OutageEvent::Began(_) => Event::Warning { message },
            OutageEvent::Ended(..) => Event::Notice { message },
        });
    }

    /// Removes the display.
    pub(crate) fn finish(&self) {
        for bar in self.running().values().flatten() {
            bar.finish_and_clear();
        }
        self.total.iter().for_each(ProgressBar::finish_and_clear);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<TaskRef, Option<ProgressBar>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transferred(&self) -> std::sync::MutexGuard<'_, TransferredBytes> {
        self.transferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print_event(&self, value: &serde_json::Value) {
        if self.as_json {
            self.printer.data(&value.to_string());
        }
    }
}

/// Formats the total, and whether it may still grow.
fn format_total(batch: &Batch) -> String {
    match batch.plan_completed_at {
        Some(_) => batch.counts.total.to_string(),
        None => format!("{} so far", batch.counts.total),
    }
}

/// Formats outcomes, bytes and transfer rate, and the time left.
pub(crate) fn progress_line(batch: &Batch, moved: u64, elapsed: Duration) -> String {
    let counts = &batch.counts;
    let mut line = format!("{} copied, {} unchanged, {} failed", counts.copied, counts.unchanged, counts.failed);
    if counts.cancelled > 0 {
        line.push_str(&format!(", {} cancelled", counts.cancelled));
    }
    let rate = moved as f64 / elapsed.as_secs_f64().max(0.001);
    if moved > 0 {
        line.push_str(&format!(", {}, {}/s", ByteSize(moved), ByteSize(rate as u64)));
    }
    let done = counts.ended() as f64 / elapsed.as_secs_f64().max(0.001);
    if batch.plan_completed_at.is_some() && counts.unfinished() > 0 && done > 0.0 {
        let left = (counts.unfinished() as f64 / done).min(1e9);
        line.push_str(&format!(", {} left", format_duration(Duration::from_secs_f64(left))));
    }
    line
}

impl Observer for BatchProgress {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Retrying { error, kind, attempt, wait, .. } => {
                tracing::info!("{error}; retrying in {}", format_duration(*wait));
                self.print_event(&json!({
                    "event": "retrying", "error": error, "kind": kind, "attempt": attempt, "seconds": wait.as_secs_f64()
                }));
            }
            Event::Warning { message } => {
                self.print_event(&json!({"event": "warning", "message": message}));
                self.printer.warning(message);
            }
            Event::RepeatedWarning { kind, message } => {
                self.print_event(&json!({"event": "warning", "message": message}));
                let printer = self.printer.clone();
                log_throttle::write(kind, message, move |line| printer.warning(line));
            }
            Event::Notice { message } => {
                self.print_event(&json!({"event": "notice", "message": message}));
                self.printer.line(message);
            }
            Event::BlobStarted { digest, moved, .. } => {
                self.transferred().in_flight.insert(digest.clone(), moved.clone());
            }
            Event::BlobDone { digest, size, outcome } => {
                let mut moved = self.transferred();
                moved.in_flight.remove(digest);
                if *outcome == BlobOutcome::Copied {
                    moved.done += size;
                }
            }
            Event::BlobFailed { digest } => _ = self.transferred().in_flight.remove(digest),
            Event::ManifestRead { .. }
            | Event::ManifestPut { .. }
            | Event::RequestCompleted { .. }
            | Event::RequestDelayed { .. } => {}
        }
    }
}

impl TaskObserver for BatchProgress {
    fn on_task(&self, event: &TaskEvent) {
        match event {
            TaskEvent::Started { task: task_ref, source, target } => {
                tracing::debug!(task = task_ref.index, "started {source} to {target}");
                self.print_event(
                    &json!({"event": "started", "task": task_ref.index, "source": source, "target": target}),
                );
                let mut running = self.running();
                let room = running.values().flatten().count() < MAX_TASK_LINES;
                let bar = (self.total.is_some() && room).then(|| {
                    let bar = ProgressBar::new_spinner().with_style(bar_style("{spinner} {wide_msg} {elapsed}"));
                    let bar = self.printer.bars().insert_from_back(1, bar);
                    bar.set_message(source.clone());
                    bar.enable_steady_tick(Duration::from_millis(200));
                    bar
                });
                running.insert(*task_ref, bar);
            }
            TaskEvent::Ended { task: task_ref, completion } => {
                if let Some(Some(bar)) = self.running().remove(task_ref) {
                    bar.finish_and_clear();
                }
                tracing::debug!(task = task_ref.index, ?completion, "ended");
                self.print_event(&end_event(task_ref.index, completion));
                match completion {
                    TaskCompletion::Finished { result: TaskResult::Failed(failure), .. } => {
                        self.printer.line(&format!("failed: {}", failure.error));
                    }
                    TaskCompletion::Rescheduled { error, wait } => {
                        self.printer.line(&format!("{error}; retrying in {}", format_duration(*wait)));
                    }
                    TaskCompletion::Finished { .. } | TaskCompletion::Requeued | TaskCompletion::Stale => {}
                }
            }
            TaskEvent::Reclaimed { .. } => {}
        }
    }
}

fn end_event(task: u32, completion: &TaskCompletion) -> serde_json::Value {
    match completion {
        TaskCompletion::Finished { result, bytes, read } => match result {
            TaskResult::Copied => json!({"event": "copied", "task": task, "bytes": bytes, "read": read}),
            TaskResult::Unchanged => json!({"event": "unchanged", "task": task}),
            TaskResult::Failed(Failure { kind, error, .. }) => {
                json!({"event": "failed", "task": task, "kind": kind, "error": error})
            }
            TaskResult::Cancelled => json!({"event": "cancelled", "task": task}),
        },
        TaskCompletion::Rescheduled { error, wait } => {
            json!({"event": "rescheduled", "task": task, "error": error, "seconds": wait.as_secs_f64()})
        }
        TaskCompletion::Requeued => json!({"event": "requeued", "task": task}),
        TaskCompletion::Stale => json!({"event": "stale", "task": task}),
    }
}

fn bar_style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
