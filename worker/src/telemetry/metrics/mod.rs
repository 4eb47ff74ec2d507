//! Prometheus metrics of the process: updated by events, exposed at `/metrics`. `docs/reference/metrics.md` lists all names.
//!
//! Labels are bounded: outcomes, error kinds and statuses by their sets, registries by [`MAX_REGISTRY_LABELS`].

mod blob_bytes;
mod exposition;
mod process;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::task_events::TaskObserver;
use imgsync_model::batch::{TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::RegistryName;
use imgsync_oci::error::ErrorKind;
use imgsync_registry::event::{Event, Observer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::exposition::{MetricsRefresh, router};

use self::blob_bytes::BlobsInFlight;

/// Maximum registries with a label value of their own; all others are `other`.
pub const MAX_REGISTRY_LABELS: usize = 50;

/// A label and its value.
pub type MetricLabel = (&'static str, String);
/// Labeled counters.
pub type LabeledCounters<const N: usize> = Family<[MetricLabel; N], Counter>;
/// Labeled counters of seconds.
type LabeledSeconds<const N: usize> = Family<[MetricLabel; N], Counter<f64, AtomicU64>>;
type LabeledHistograms = Family<[MetricLabel; 1], Histogram, fn() -> Histogram>;

/// From a response of a near cache to a registry about to time out, in seconds.
const REQUEST_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// From an unchanged tag to an image of many gigabytes, in seconds.
const TASK_BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

/// Counts events.
pub struct Metrics {
    registry: Registry,
    tasks: LabeledCounters<1>,
    failures: LabeledCounters<1>,
    rescheduled: Counter,
    requeued: Counter,
    stale: Counter,
    task_seconds: LabeledHistograms,
    running: Gauge,
    blobs: LabeledCounters<1>,
    blob_bytes: LabeledCounters<1>,
    manifests: Counter,
    requests: LabeledCounters<3>,
    request_seconds: LabeledHistograms,
    retries: LabeledCounters<1>,
    delayed_requests: LabeledCounters<2>,
    request_delay_seconds: LabeledSeconds<2>,
    reclaimed: LabeledCounters<1>,
    store_rollbacks: Counter,
    warnings: Counter,
    state: Mutex<MetricsState>,
}

#[derive(Default)]
struct MetricsState {
    started_at: HashMap<TaskRef, Instant>,
    blobs_in_flight: BlobsInFlight,
    registries: HashSet<RegistryName>,
}

impl Metrics {
    /// Creates the metrics. `program` is the program's name; `more` registers further metrics.
    pub fn new(program: &'static str, more: impl FnOnce(&mut Registry)) -> Arc<Metrics> {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix("imgsync");
        let version = [("program", program), ("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program and its version", Info::new(version));
        let request_seconds: LabeledHistograms = Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        let task_seconds: LabeledHistograms = Family::new_with_constructor(|| Histogram::new(TASK_BUCKETS));
        let metrics = Metrics {
            tasks: Family::default(),
            failures: Family::default(),
            rescheduled: Counter::default(),
            requeued: Counter::default(),
            stale: Counter::default(),
            task_seconds,
            running: Gauge::default(),
            blobs: Family::default(),
            blob_bytes: Family::default(),
            manifests: Counter::default(),
            requests: Family::default(),
            request_seconds,
            retries: Family::default(),
            delayed_requests: Family::default(),
            request_delay_seconds: Family::default(),
            reclaimed: Family::default(),
            store_rollbacks: Counter::default(),
            warnings: Counter::default(),
            state: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("tasks", "Finished tasks, by outcome", metrics.tasks.clone());
        registry.register("task_failures", "Failed tasks, by error kind", metrics.failures.clone());
        registry.register(
            "tasks_rescheduled",
            "Tasks rescheduled after a transient error",
            metrics.rescheduled.clone(),
        );
        registry.register(
            "tasks_requeued",
            "Tasks returned to the queue, or taken over by another worker",
            metrics.requeued.clone(),
        );
        registry.register(
            "tasks_stale",
            "Results the ledger did not count: another worker holds the task, or it had already finished",
            metrics.stale.clone(),
        );
        registry.register_with_unit(
            "task_duration",
            "Duration of tasks, by outcome",
            Unit::Seconds,
            metrics.task_seconds.clone(),
        );
        registry.register("running_tasks", "Tasks running now", metrics.running.clone());
        registry.register("blobs", "Blobs at the target, by outcome: copied, mounted, reused", metrics.blobs.clone());
        registry.register_with_unit(
            "blob",
            "Bytes of blobs, by outcome; includes blobs in flight",
            Unit::Bytes,
            metrics.blob_bytes.clone(),
        );
        registry.register("manifests_put", "Manifests pushed", metrics.manifests.clone());
        registry.register("requests", "Requests, by registry, purpose and status", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from request to response headers, by registry",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register("retries", "Retries, by error kind", metrics.retries.clone());
        registry.register(
            "delayed_requests",
            "Requests delayed by a rate or concurrency limit, by registry",
            metrics.delayed_requests.clone(),
        );
        registry.register_with_unit(
            "request_delay",
            "Time requests were delayed by limits, by registry",
            Unit::Seconds,
            metrics.request_delay_seconds.clone(),
        );
        registry.register(
            "tasks_reclaimed",
            "Lost tasks returned to the plan, by where they were lost",
            metrics.reclaimed.clone(),
        );
        registry.register(
            "store_rollbacks",
            "Times the store was found to have lost confirmed writes",
            metrics.store_rollbacks.clone(),
        );
        registry.register("warnings", "Warnings", metrics.warnings.clone());
        more(registry);
        all.register_collector(Box::new(process::ProcessMetrics));
        metrics.init_series();
        Arc::new(Metrics { registry: all, ..metrics })
    }

    /// Creates all label values with 0, so that even the first increase is visible.
    fn init_series(&self) {
        for outcome in ["copied", "unchanged", "failed", "cancelled"] {
            let _ = self.tasks.get_or_create(&[("outcome", outcome.to_owned())]);
        }
        for kind in ErrorKind::ALL {
            let _ = self.failures.get_or_create(&[("kind", kind.as_str().to_owned())]);
            let _ = self.retries.get_or_create(&[("kind", kind.as_str().to_owned())]);
        }
        for outcome in ["copied", "mounted", "reused"] {
            let _ = self.blobs.get_or_create(&[("outcome", outcome.to_owned())]);
            let _ = self.blob_bytes.get_or_create(&[("outcome", outcome.to_owned())]);
        }
        for from in ["worker", "queue"] {
            let _ = self.reclaimed.get_or_create(&[("from", from.to_owned())]);
        }
    }

    /// Renders all metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        self.state().blobs_in_flight.count_new_bytes(&self.blob_bytes);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn state(&self) -> std::sync::MutexGuard<'_, MetricsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the label of a registry.
    fn registry_label(&self, registry: &RegistryName) -> MetricLabel {
        let known = &mut self.state().registries;
        if !known.contains(registry) {
            if known.len() >= MAX_REGISTRY_LABELS {
                return ("registry", "other".to_owned());
            }
            known.insert(registry.clone());
        }
        ("registry", registry.to_string())
    }

    fn record_task_end(&self, task_ref: &TaskRef, completion: &TaskCompletion) {
        let started_at = self.state().started_at.remove(task_ref);
        if started_at.is_some() {
            self.running.dec();
        }
        let result = match completion {
            TaskCompletion::Finished { result, .. } => result,
            TaskCompletion::Rescheduled { .. } => {
                self.rescheduled.inc();
                return;
            }
            // A task that has already ended is not counted again.
            TaskCompletion::Requeued => {
                self.requeued.inc_by(started_at.is_some().into());
                return;
            }
            TaskCompletion::Stale => {
                self.stale.inc();
                return;
            }
        };
        if let TaskResult::Failed(failure) = result {
            self.failures.get_or_create(&[("kind", failure.kind.as_str().to_owned())]).inc();
        }
        let label = [("outcome", result.state().as_str().to_owned())];
        self.tasks.get_or_create(&label).inc();
        let took = started_at.map_or(Duration::ZERO, |began| began.elapsed());
        self.task_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }
}

impl Observer for Metrics {
    fn on_event(&self, event: &Event) {
        match event {
            Event::BlobStarted { digest, moved, .. } => {
                self.state().blobs_in_flight.start(digest, moved, &self.blob_bytes);
            }
            Event::BlobDone { digest, size, outcome } => {
                self.state().blobs_in_flight.finish(digest, *size, *outcome, &self.blob_bytes);
                self.blobs.get_or_create(&blob_bytes::outcome_label(*outcome)).inc();
            }
            Event::BlobFailed { digest } => self.state().blobs_in_flight.fail(digest, &self.blob_bytes),
            Event::ManifestPut { .. } => _ = self.manifests.inc(),
            Event::RequestCompleted { registry, purpose, status, duration } => {
                let registry = self.registry_label(registry);
                let labels =
                    [registry.clone(), ("purpose", purpose.as_str().to_owned()), ("status", status_label(*status))];
                self.requests.get_or_create(&labels).inc();
                self.request_seconds.get_or_create(&[registry]).observe(duration.as_secs_f64());
            }
            Event::RequestDelayed { registry, reason, delay } => {
                let labels = [self.registry_label(registry), ("reason", reason.as_str().to_owned())];
                self.delayed_requests.get_or_create(&labels).inc();
                self.request_delay_seconds.get_or_create(&labels).inc_by(delay.as_secs_f64());
            }
            Event::Retrying { kind, .. } => {
                _ = self.retries.get_or_create(&[("kind", kind.as_str().to_owned())]).inc();
            }
            Event::Warning { .. } | Event::RepeatedWarning { .. } => _ = self.warnings.inc(),
            Event::ManifestRead { .. } | Event::Notice { .. } => {}
        }
    }
}

impl TaskObserver for Metrics {
    fn on_task(&self, event: &TaskEvent) {
        match event {
            TaskEvent::Started { task: task_ref, .. } => {
                if self.state().started_at.insert(*task_ref, Instant::now()).is_none() {
                    self.running.inc();
                }
            }
            TaskEvent::Ended { task: task_ref, completion } => self.record_task_end(task_ref, completion),
            TaskEvent::WritesLost => _ = self.store_rollbacks.inc(),
            TaskEvent::Reclaimed { from_workers, from_queue } => {
                self.reclaimed.get_or_create(&[("from", "worker".to_owned())]).inc_by(*from_workers);
                self.reclaimed.get_or_create(&[("from", "queue".to_owned())]).inc_by(*from_queue);
            }
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Returns the label of a status: known ones by code, all others by class. A server can respond with anything and must
/// not fill our memory.
fn status_label(status: Option<u16>) -> String {
    const KNOWN: [u16; 32] = [
        200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 412,
        413, 415, 416, 422, 425, 429, 500, 502, 503, 504,
    ];
    match status {
        None => "none".to_owned(),
        Some(status) if KNOWN.contains(&status) => status.to_string(),
        Some(status) => format!("{}xx", (status / 100).min(9)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use imgsync_model::batch::{BatchId, Failure};
    use imgsync_oci::Digest;
    use imgsync_registry::event::{BlobOutcome, RequestPurpose, ThrottleReason};

    use super::*;

    fn answered(registry: &str, status: Option<u16>) -> Event {
        let registry = registry.parse().unwrap();
        Event::RequestCompleted {
            registry,
            purpose: RequestPurpose::Manifests,
            status,
            duration: Duration::from_millis(20),
        }
    }

    #[test]
    fn events_become_metrics() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        let task_ref = TaskRef { batch: BatchId::generate(), index: 7, run: 0 };
        metrics.on_task(&TaskEvent::Started { task: task_ref, source: "a".into(), target: "b".into() });
        assert!(metrics.render().contains("\nimgsync_running_tasks 1\n"));
        let result = TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1));
        let completion = TaskCompletion::Finished { result, bytes: 0, read: 0 };
        metrics.on_task(&TaskEvent::Ended { task: task_ref, completion });
        metrics.on_event(&answered("gcr.io", Some(200)));
        metrics.on_event(&answered("gcr.io", Some(799)));
        metrics.on_event(&answered("gcr.io", None));
        let delay = Duration::from_millis(1500);
        metrics.on_event(&Event::RequestDelayed {
            registry: "gcr.io".parse().unwrap(),
            reason: ThrottleReason::RateLimit,
            delay,
        });
        metrics.on_task(&TaskEvent::Reclaimed { from_workers: 3, from_queue: 0 });
        metrics.on_task(&TaskEvent::WritesLost);
        let text = metrics.render();
        for line in [
            "imgsync_running_tasks 0",
            "imgsync_tasks_total{outcome=\"failed\"} 1",
            "imgsync_tasks_total{outcome=\"copied\"} 0",
            "imgsync_task_failures_total{kind=\"denied\"} 1",
            "imgsync_task_failures_total{kind=\"not_found\"} 0",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"200\"} 1",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"7xx\"} 1",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"none\"} 1",
            "imgsync_request_duration_seconds_bucket{le=\"0.025\",registry=\"gcr.io\"} 3",
            "imgsync_request_delay_seconds_total{registry=\"gcr.io\",reason=\"rate_limit\"} 1.5",
            "imgsync_tasks_reclaimed_total{from=\"worker\"} 3",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
    }

    #[test]
    fn bytes_in_flight_are_counted_and_never_taken_back() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        let (first, second) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let copied = |metrics: &Metrics| {
            let text = metrics.render();
            let line = text.lines().find_map(|line| line.strip_prefix("imgsync_blob_bytes_total{outcome=\"copied\"} "));
            line.unwrap().parse::<u64>().unwrap()
        };
        let moved = Arc::new(AtomicU64::new(0));
        metrics.on_event(&Event::BlobStarted { digest: first.clone(), size: 100, moved: moved.clone() });
        moved.store(60, Ordering::Relaxed);
        assert_eq!(copied(&metrics), 60);
        moved.store(20, Ordering::Relaxed);
        assert_eq!(copied(&metrics), 60, "a feed that went back");
        moved.store(100, Ordering::Relaxed);
        metrics.on_event(&Event::BlobDone { digest: first, size: 100, outcome: BlobOutcome::Copied });
        assert_eq!(copied(&metrics), 100);
        let moved = Arc::new(AtomicU64::new(30));
        metrics.on_event(&Event::BlobStarted { digest: second.clone(), size: 100, moved });
        metrics.on_event(&Event::BlobFailed { digest: second.clone() });
        assert_eq!(copied(&metrics), 130, "they were moved all the same");
        metrics.on_event(&Event::BlobDone { digest: second, size: 100, outcome: BlobOutcome::Mounted });
        assert_eq!(copied(&metrics), 130);
        assert!(metrics.render().contains("imgsync_blob_bytes_total{outcome=\"mounted\"} 100\n"));
    }

    #[test]
    fn registry_labels_are_bounded() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        for n in 0..MAX_REGISTRY_LABELS + 200 {
            metrics.on_event(&answered(&format!("r{n}.example"), Some(200)));
        }
        let text = metrics.render();
        let series = text.lines().filter(|line| line.starts_with("imgsync_requests_total{")).count();
        assert_eq!(series, MAX_REGISTRY_LABELS + 1);
        assert!(text.contains("{registry=\"other\",purpose=\"manifests\",status=\"200\"} 200\n"));
    }
}
