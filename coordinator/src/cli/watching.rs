//! Progress of a batch: a line per running task and a total on a terminal, periodic lines elsewhere, or a JSON line
//! per event.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use imgsync_common::batch::{BatchId, Ticket};
use imgsync_common::event::{Arrival, Event, Observer, TaskEnd};
use imgsync_common::image::Digest;
use imgsync_common::outage::OutageEvent;
use imgsync_common::repeated;
use imgsync_common::retry::seconds;
use imgsync_common::store::{Batch, Store};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::printer::Printer;
use crate::batches::Crew;

const TICK: Duration = Duration::from_millis(500);
/// Interval of lines without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const COMPLAIN_AFTER: Duration = Duration::from_secs(5);
/// More lines would fill a terminal.
const MOST_LINES: usize = 20;

/// Shows the progress of a batch.
pub(crate) struct Watching {
    printer: Printer,
    /// Whether events are printed on stdout as JSON lines.
    as_json: bool,
    total: Option<ProgressBar>,
    running: Mutex<HashMap<Ticket, Option<ProgressBar>>>,
    moved: Mutex<Moved>,
}

/// Bytes transferred, including blobs in flight.
#[derive(Default)]
struct Moved {
    done: u64,
    in_flight: HashMap<Digest, Arc<AtomicU64>>,
}

impl Moved {
    fn bytes(&self) -> u64 {
        self.done + self.in_flight.values().map(|moved| moved.load(Ordering::Relaxed)).sum::<u64>()
    }
}

impl Watching {
    pub(crate) fn new(printer: &Printer, as_json: bool) -> Arc<Watching> {
        let total = (printer.shows_bars() && !as_json).then(|| {
            let style = "{wide_bar} {pos}/{len}  {msg}";
            printer.bars().add(ProgressBar::new(0).with_style(styled(style)))
        });
        Arc::new(Watching {
            printer: printer.clone(),
            as_json,
            total,
            running: Mutex::default(),
            moved: Mutex::default(),
        })
    }

    /// Updates the display until dropped.
    pub(crate) async fn keep_going(&self, store: &dyn Store, id: BatchId, is_cluster: bool) {
        let started = Instant::now();
        let mut complained = (Vec::new(), Instant::now());
        let mut line_at = Instant::now() + LINE_EVERY;
        loop {
            tokio::time::sleep(TICK).await;
            let complains = is_cluster && complained.1.elapsed() > COMPLAIN_AFTER;
            if self.total.is_none() && !complains && Instant::now() < line_at {
                continue;
            }
            let Ok(Some(batch)) = store.batch(id).await else { continue };
            if complains {
                // This process publishes, and reports a broker alarm itself.
                let crew = Crew::of(store, &batch).await.map(|crew| Crew { broker_alarm: None, ..crew });
                let complaints = crew.map(|crew| crew.complaints()).unwrap_or_default();
                if complaints != complained.0 {
                    complaints.iter().for_each(|complaint| self.printer.warning(complaint));
                }
                complained = (complaints, Instant::now());
            }
            // By this process, or by the workers.
            let moved = self.moved().bytes().max(batch.spent.bytes.copied);
            let line = progress_line(&batch, moved, started.elapsed());
            match &self.total {
                Some(total) => {
                    total.set_length(batch.counts.total);
                    total.set_position(batch.counts.ended());
                    total.set_message(line);
                }
                None if self.as_json || Instant::now() < line_at => {}
                None => {
                    line_at = Instant::now() + LINE_EVERY;
                    self.printer.line(&format!("{} of {}: {line}", batch.counts.ended(), of(&batch)));
                }
            }
        }
    }

    /// Reports the start or the end of an outage.
    pub(crate) fn tell_outage(&self, event: &OutageEvent) {
        let message = event.to_string();
        self.on(&match event {
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

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Option<ProgressBar>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) -> std::sync::MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, value: &serde_json::Value) {
        if self.as_json {
            self.printer.data(&value.to_string());
        }
    }
}

/// Formats the total, and whether it may still grow.
fn of(batch: &Batch) -> String {
    match batch.sealed_at {
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
    if batch.sealed_at.is_some() && counts.open() > 0 && done > 0.0 {
        let left = (counts.open() as f64 / done).min(1e9);
        line.push_str(&format!(", {} left", seconds(Duration::from_secs_f64(left))));
    }
    line
}

impl Observer for Watching {
    fn on(&self, event: &Event) {
        match event {
            Event::TaskStarted { ticket, source, target } => {
                tracing::debug!(task = ticket.index, "begins {source} to {target}");
                self.event(&json!({"event": "started", "task": ticket.index, "source": source, "target": target}));
                let mut running = self.running();
                let room = running.values().flatten().count() < MOST_LINES;
                let bar = (self.total.is_some() && room).then(|| {
                    let bar = ProgressBar::new_spinner().with_style(styled("{spinner} {wide_msg} {elapsed}"));
                    let bar = self.printer.bars().insert_from_back(1, bar);
                    bar.set_message(source.clone());
                    bar.enable_steady_tick(Duration::from_millis(200));
                    bar
                });
                running.insert(*ticket, bar);
            }
            Event::TaskEnded { ticket, end } => {
                if let Some(Some(bar)) = self.running().remove(ticket) {
                    bar.finish_and_clear();
                }
                tracing::debug!(task = ticket.index, ?end, "ended");
                self.event(&ended(ticket.index, end));
                match end {
                    TaskEnd::Failed { error, .. } => self.printer.line(&format!("failed: {error}")),
                    TaskEnd::Later { error, wait } => {
                        self.printer.line(&format!("{error}; trying again in {}", seconds(*wait)));
                    }
                    TaskEnd::Copied { .. }
                    | TaskEnd::Unchanged
                    | TaskEnd::Cancelled
                    | TaskEnd::GivenBack
                    | TaskEnd::Stale => {}
                }
            }
            Event::Retrying { error, class, attempt, wait, .. } => {
                tracing::info!("{error}; trying again in {}", seconds(*wait));
                self.event(&json!({
                    "event": "retrying", "error": error, "class": class, "attempt": attempt, "seconds": wait.as_secs_f64()
                }));
            }
            Event::Warning { message } => {
                self.event(&json!({"event": "warning", "message": message}));
                self.printer.warning(message);
            }
            Event::RepeatedWarning { kind, message } => {
                self.event(&json!({"event": "warning", "message": message}));
                let printer = self.printer.clone();
                repeated::write(kind, message, move |line| printer.warning(line));
            }
            Event::Notice { message } => {
                self.event(&json!({"event": "notice", "message": message}));
                self.printer.line(message);
            }
            Event::BlobStarted { digest, moved, .. } => {
                self.moved().in_flight.insert(digest.clone(), moved.clone());
            }
            Event::BlobDone { digest, size, arrival } => {
                let mut moved = self.moved();
                moved.in_flight.remove(digest);
                if *arrival == Arrival::Copied {
                    moved.done += size;
                }
            }
            Event::BlobFailed { digest } => _ = self.moved().in_flight.remove(digest),
            Event::ManifestRead { .. }
            | Event::ManifestPut { .. }
            | Event::Answered { .. }
            | Event::HeldBack { .. }
            | Event::PutBack { .. } => {}
        }
    }
}

fn ended(task: u32, end: &TaskEnd) -> serde_json::Value {
    match end {
        TaskEnd::Copied { bytes, read } => {
            json!({"event": "copied", "task": task, "bytes": bytes, "read": read})
        }
        TaskEnd::Unchanged => json!({"event": "unchanged", "task": task}),
        TaskEnd::Failed { class, error } => json!({"event": "failed", "task": task, "class": class, "error": error}),
        TaskEnd::Cancelled => json!({"event": "cancelled", "task": task}),
        TaskEnd::Later { error, wait } => {
            json!({"event": "later", "task": task, "error": error, "seconds": wait.as_secs_f64()})
        }
        TaskEnd::GivenBack => json!({"event": "given_back", "task": task}),
        TaskEnd::Stale => json!({"event": "stale", "task": task}),
    }
}

fn styled(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
