//! Progress of a batch: a line per running task and a total on a terminal, periodic lines elsewhere, or a JSON line
//! per event.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use imgsync_model::batch::{BatchId, BatchOptions, Failure, TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::Digest;
use imgsync_oci::humanize::group_digits;
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{BlobOutcome, Event, Observer};
use imgsync_store::log_throttle;
use imgsync_store::outage::HealthEvent;
use imgsync_store::{Batch, BatchState, Store};
use imgsync_worker::task_events::TaskObserver;
use indicatif::ProgressBar;
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
            printer.bars().add(ProgressBar::new(0).with_style(printer.bar_style("{wide_bar} {pos}/{len}  {msg}")))
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
        let mut verification = None;
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
            let is_verification = *verification.get_or_insert_with(|| is_verification(&batch));
            let line = progress_line(&batch, is_verification, moved, started.elapsed());
            match &self.total {
                Some(total) => {
                    total.set_length(batch.counts.total);
                    total.set_position(batch.counts.ended());
                    total.set_message(line);
                }
                None if self.as_json || Instant::now() < line_at => {}
                None => {
                    line_at = Instant::now() + LINE_INTERVAL;
                    self.printer.line(&format!("{}: {line}", format_ended(&batch)));
                }
            }
        }
    }

    /// Reports the start or the end of an outage. Logs which node of the broker is used after a loss.
    pub(crate) fn report_health_event(&self, event: &HealthEvent) {
        let message = event.to_string();
        if let HealthEvent::Reconnected(connection) = event {
            return log_throttle::info(&connection.to_string(), &message);
        }
        self.on_event(&match event {
            HealthEvent::Began(_) | HealthEvent::WritesLost { .. } => Event::Warning { message },
            HealthEvent::Ended(..) | HealthEvent::FailedOver { .. } | HealthEvent::Reconnected(_) => {
                Event::Notice { message }
            }
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

/// Returns whether a batch compares targets with their sources, and copies nothing.
pub(crate) fn is_verification(batch: &Batch) -> bool {
    BatchOptions::decode(&batch.options, "the batch").is_ok_and(|options| options.verify.is_some())
}

/// Formats how many images have ended, and of how many: "5 of 1,200", "5 of 40 so far" while they are listed.
pub(crate) fn format_ended(batch: &Batch) -> String {
    let so_far = if batch.plan_completed_at.is_some() { "" } else { " so far" };
    format!("{} of {}{so_far}", group_digits(batch.counts.ended()), group_digits(batch.counts.total))
}

/// Formats outcomes, bytes and transfer rate, and the time left; or that the batch is paused.
pub(crate) fn progress_line(batch: &Batch, is_verification: bool, moved: u64, elapsed: Duration) -> String {
    let counts = &batch.counts;
    let is_paused = batch.state == BatchState::Paused;
    let number = group_digits;
    let mut line = if is_paused { "paused, ".to_owned() } else { String::new() };
    line.push_str(&match is_verification {
        true => format!("{} identical, {} different or failed", number(counts.unchanged), number(counts.failed)),
        false => format!(
            "{} copied, {} unchanged, {} failed",
            number(counts.copied),
            number(counts.unchanged),
            number(counts.failed)
        ),
    });
    if counts.cancelled > 0 {
        line.push_str(&format!(", {} cancelled", number(counts.cancelled)));
    }
    let rate = moved as f64 / elapsed.as_secs_f64().max(0.001);
    if moved > 0 {
        line.push_str(&format!(", {}", ByteSize(moved)));
        if !is_paused {
            line.push_str(&format!(", {}/s", ByteSize(rate as u64)));
        }
    }
    if let Some(left) = time_left(batch, elapsed) {
        line.push_str(&format!(", {} left", format_duration(left)));
    }
    line
}

/// Estimates the time until the batch ends; `None` while it is listed or paused.
pub(crate) fn time_left(batch: &Batch, elapsed: Duration) -> Option<Duration> {
    let per_second = batch.counts.ended() as f64 / elapsed.as_secs_f64().max(0.001);
    let runs = batch.plan_completed_at.is_some() && batch.state == BatchState::Running;
    let unfinished = batch.counts.unfinished();
    (runs && unfinished > 0 && per_second > 0.0)
        .then(|| Duration::from_secs_f64((unfinished as f64 / per_second).min(1e9)))
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
                    let style = self.printer.bar_style("{spinner} {wide_msg} {elapsed}");
                    let bar = ProgressBar::new_spinner().with_style(style);
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
            TaskEvent::Reclaimed { .. } | TaskEvent::WritesLost => {}
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

#[cfg(test)]
mod tests {
    use imgsync_model::batch::TaskCounts;
    use jiff::Timestamp;

    use super::*;

    fn batch(state: BatchState) -> Batch {
        let counts =
            TaskCounts { total: 20_000, copied: 9_000, failed: 1_000, waiting: 10_000, ..TaskCounts::default() };
        Batch {
            id: BatchId::generate(),
            state,
            run: 0,
            rules: Digest::sha256(b""),
            options: String::new(),
            supersedes: None,
            created_at: Timestamp::now(),
            plan_completed_at: Some(Timestamp::now()),
            ended_at: None,
            counts,
            queued: 0,
            retrying: 0,
            usage: Default::default(),
        }
    }

    #[test]
    fn progress_says_paused_and_then_no_time_that_is_left() {
        let hour = Duration::from_secs(3600);
        let line = progress_line(&batch(BatchState::Running), false, 3600 << 20, hour);
        assert_eq!(line, "9,000 copied, 0 unchanged, 1,000 failed, 3.5 GiB, 1.0 MiB/s, 60 min left");
        let line = progress_line(&batch(BatchState::Paused), false, 3600 << 20, hour);
        assert_eq!(line, "paused, 9,000 copied, 0 unchanged, 1,000 failed, 3.5 GiB");
        assert_eq!(format_ended(&batch(BatchState::Paused)), "10,000 of 20,000");
        let listed = Batch { plan_completed_at: None, ..batch(BatchState::Running) };
        assert_eq!(format_ended(&listed), "10,000 of 20,000 so far");
    }

    #[test]
    fn the_progress_of_a_verification_counts_identical_images() {
        let counts = TaskCounts { total: 9, unchanged: 7, failed: 2, ..TaskCounts::default() };
        let verified = Batch { counts, ..batch(BatchState::Running) };
        assert_eq!(progress_line(&verified, true, 0, Duration::from_secs(1)), "7 identical, 2 different or failed");
    }
}
