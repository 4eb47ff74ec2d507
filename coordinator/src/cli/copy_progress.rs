//! Progress of one copy: a bar per blob and a total on a terminal, periodic lines elsewhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use imgsync_oci::Digest;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{BlobOutcome, Event, Observer};
use indicatif::ProgressBar;

use super::printer::Printer;

const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// More bars would fill a terminal.
const MAX_BARS: usize = 16;

/// Shows the progress of one copy.
pub(crate) struct CopyProgress {
    printer: Printer,
    total: Option<ProgressBar>,
    state: Mutex<BlobTotals>,
}

#[derive(Default)]
struct BlobTotals {
    expected_bytes: u64,
    expected_blobs: usize,
    done_bytes: u64,
    done_blobs: usize,
    in_flight: HashMap<Digest, BlobProgress>,
}

struct BlobProgress {
    moved: Arc<AtomicU64>,
    bar: Option<ProgressBar>,
}

impl CopyProgress {
    pub(crate) fn new(printer: &Printer) -> Arc<CopyProgress> {
        let total = printer.shows_bars().then(|| {
            let style =
                "{prefix:>14} {wide_bar} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4} left";
            let bar = printer.bars().add(ProgressBar::new(0).with_style(printer.bar_style(style)));
            bar.with_prefix("total")
        });
        Arc::new(CopyProgress { printer: printer.clone(), total, state: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, BlobTotals> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates bars or prints lines until dropped.
    pub(crate) async fn run(&self) {
        let started = Instant::now();
        let every = if self.total.is_some() { REDRAW_INTERVAL } else { LINE_INTERVAL };
        loop {
            tokio::time::sleep(every).await;
            match &self.total {
                Some(total) => self.update_bars(total),
                None => self.print_line(started.elapsed()),
            }
        }
    }

    fn update_bars(&self, total: &ProgressBar) {
        let state = self.state();
        for blob in state.in_flight.values() {
            if let Some(bar) = &blob.bar {
                bar.set_position(blob.moved.load(Ordering::Relaxed));
            }
        }
        total.set_length(state.expected_bytes);
        total.set_position(state.bytes_so_far());
    }

    fn print_line(&self, elapsed: Duration) {
        let state = self.state();
        let (done, all) = (state.bytes_so_far(), state.expected_bytes);
        let rate = done as f64 / elapsed.as_secs_f64();
        let left = match rate > 0.0 && all > done {
            true => {
                format!(", {} left", format_duration(Duration::from_secs_f64(((all - done) as f64 / rate).min(1e9))))
            }
            false => String::new(),
        };
        self.printer.line(&format!(
            "{} of {}, {} of {}, {}/s{left}",
            group_digits(state.done_blobs as u64),
            pluralize(state.expected_blobs as u64, "blob", "blobs"),
            ByteSize(done),
            ByteSize(all),
            ByteSize(rate as u64)
        ));
    }

    /// Removes the bars.
    pub(crate) fn finish(&self) {
        for blob in self.state().in_flight.values() {
            blob.bar.iter().for_each(ProgressBar::finish_and_clear);
        }
        self.total.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl BlobTotals {
    fn bytes_so_far(&self) -> u64 {
        self.done_bytes + self.in_flight.values().map(|blob| blob.moved.load(Ordering::Relaxed)).sum::<u64>()
    }
}

impl Observer for CopyProgress {
    fn on_event(&self, event: &Event) {
        match event {
            Event::ManifestRead { blob_bytes, blobs, .. } => {
                let mut state = self.state();
                state.expected_bytes += blob_bytes;
                state.expected_blobs += blobs;
            }
            Event::BlobStarted { digest, size, moved } => {
                let mut state = self.state();
                let room = state.in_flight.values().filter(|blob| blob.bar.is_some()).count() < MAX_BARS;
                let bar = (self.total.is_some() && room).then(|| {
                    let style = "{prefix:>14} {wide_bar} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12}";
                    let bar = self
                        .printer
                        .bars()
                        .insert_from_back(1, ProgressBar::new(*size).with_style(self.printer.bar_style(style)));
                    bar.with_prefix(digest.short().to_owned())
                });
                state.in_flight.insert(digest.clone(), BlobProgress { moved: moved.clone(), bar });
            }
            Event::BlobDone { digest, size, outcome } => {
                tracing::debug!(%digest, size, ?outcome, "blob is at the target");
                let mut state = self.state();
                state.done_bytes += size;
                state.done_blobs += 1;
                if let Some(bar) = state.in_flight.remove(digest).and_then(|blob| blob.bar) {
                    bar.finish_and_clear();
                }
                drop(state);
                if self.total.is_some() && *outcome == BlobOutcome::Copied {
                    self.printer.line(&format!("{:>14} {}", digest.short(), ByteSize(*size)));
                }
            }
            Event::BlobFailed { digest } => {
                if let Some(bar) = self.state().in_flight.remove(digest).and_then(|blob| blob.bar) {
                    bar.finish_and_clear();
                }
            }
            Event::ManifestPut { digest } => tracing::debug!(%digest, "manifest is at the target"),
            Event::Retrying { error, wait, .. } => {
                self.printer.line(&format!("{error}; retrying in {}", format_duration(*wait)));
            }
            Event::Warning { message } | Event::RepeatedWarning { message, .. } => self.printer.warning(message),
            Event::Notice { message } => self.printer.line(message),
            // One image has no tasks; the other events are for metrics.
            Event::RequestCompleted { .. } | Event::RequestDelayed { .. } => {}
        }
    }
}

/// Shows progress, and records whether anything reached the target.
pub(crate) struct CopyObserver {
    pub(crate) progress: Arc<CopyProgress>,
    arrived: AtomicBool,
    /// Bytes sent so far, of each started blob.
    started_blobs: Mutex<Vec<Arc<AtomicU64>>>,
}

impl CopyObserver {
    pub(crate) fn new(printer: &Printer) -> CopyObserver {
        CopyObserver {
            progress: CopyProgress::new(printer),
            arrived: AtomicBool::new(false),
            started_blobs: Mutex::default(),
        }
    }

    pub(crate) fn has_transferred(&self) -> bool {
        let started_blobs = self.started_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        self.arrived.load(Ordering::Relaxed) || started_blobs.iter().any(|moved| moved.load(Ordering::Relaxed) > 0)
    }
}

impl Observer for CopyObserver {
    fn on_event(&self, event: &Event) {
        match event {
            Event::BlobStarted { moved, .. } => {
                self.started_blobs.lock().unwrap_or_else(PoisonError::into_inner).push(moved.clone());
            }
            Event::BlobDone { .. } | Event::ManifestPut { .. } => self.arrived.store(true, Ordering::Relaxed),
            _ => {}
        }
        self.progress.on_event(event);
    }
}
