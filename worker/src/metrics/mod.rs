//! Prometheus metrics of the process: updated by events, exposed at `/metrics`. `docs/operating.md` lists all names.
//!
//! Labels are bounded: outcomes, error kinds and statuses by their sets, registries by [`MAX_REGISTRIES`].

mod bytes;
mod page;
mod process;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_common::batch::Ticket;
use imgsync_common::error::Class;
use imgsync_common::event::{Event, Observer, TaskEnd};
use imgsync_common::image::RegistryName;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::page::{Refresh, router};

use self::bytes::Live;

/// Maximum registries with a label value of their own; all others are `other`.
pub const MAX_REGISTRIES: usize = 50;

/// A label and its value.
pub type Label = (&'static str, String);
/// Labeled counters.
pub type Counters<const N: usize> = Family<[Label; N], Counter>;
/// Labeled counters of seconds.
type Seconds<const N: usize> = Family<[Label; N], Counter<f64, AtomicU64>>;
type Histograms = Family<[Label; 1], Histogram, fn() -> Histogram>;

/// From a response of a near cache to a registry about to time out, in seconds.
const REQUEST_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// From an unchanged tag to an image of many gigabytes, in seconds.
const TASK_BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

/// Counts events.
pub struct Metrics {
    registry: Registry,
    tasks: Counters<1>,
    failures: Counters<1>,
    put_off: Counter,
    given_back: Counter,
    stale: Counter,
    task_seconds: Histograms,
    running: Gauge,
    blobs: Counters<1>,
    blob_bytes: Counters<1>,
    manifests: Counter,
    requests: Counters<3>,
    request_seconds: Histograms,
    retries: Counters<1>,
    held_back: Counters<2>,
    held_back_seconds: Seconds<2>,
    put_back: Counters<1>,
    warnings: Counter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    began: HashMap<Ticket, Instant>,
    live: Live,
    registries: HashSet<RegistryName>,
}

impl Metrics {
    /// Creates the metrics. `program` is the program's name; `more` registers further metrics.
    pub fn new(program: &'static str, more: impl FnOnce(&mut Registry)) -> Arc<Metrics> {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix("imgsync");
        let version = [("program", program), ("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program and its version", Info::new(version));
        let request_seconds: Histograms = Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        let task_seconds: Histograms = Family::new_with_constructor(|| Histogram::new(TASK_BUCKETS));
        let metrics = Metrics {
            tasks: Family::default(),
            failures: Family::default(),
            put_off: Counter::default(),
            given_back: Counter::default(),
            stale: Counter::default(),
            task_seconds,
            running: Gauge::default(),
            blobs: Family::default(),
            blob_bytes: Family::default(),
            manifests: Counter::default(),
            requests: Family::default(),
            request_seconds,
            retries: Family::default(),
            held_back: Family::default(),
            held_back_seconds: Family::default(),
            put_back: Family::default(),
            warnings: Counter::default(),
            state: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("tasks", "Tasks that ended here, by outcome", metrics.tasks.clone());
        registry.register("task_failures", "Tasks that failed here, by class of error", metrics.failures.clone());
        registry.register("tasks_put_off", "Tasks that failed in passing, and come back", metrics.put_off.clone());
        registry.register(
            "tasks_given_back",
            "Tasks that were given back, or taken over by another",
            metrics.given_back.clone(),
        );
        registry.register(
            "tasks_stale",
            "Results that the ledger did not count: the task was another's, or had ended before",
            metrics.stale.clone(),
        );
        registry.register_with_unit(
            "task_duration",
            "How long tasks took, by outcome",
            Unit::Seconds,
            metrics.task_seconds.clone(),
        );
        registry.register("running_tasks", "Tasks that run here now", metrics.running.clone());
        registry.register("blobs", "Blobs that are at the target, by how they came there", metrics.blobs.clone());
        registry.register_with_unit(
            "blob",
            "Bytes of blobs, by how they came to the target; those under way included",
            Unit::Bytes,
            metrics.blob_bytes.clone(),
        );
        registry.register("manifests_put", "Manifests that were put", metrics.manifests.clone());
        registry.register("requests", "Requests, by registry, purpose and status", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From a request to the head of its answer, by registry",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register("retries", "What failed and was tried again, by class of error", metrics.retries.clone());
        registry.register(
            "held_back_requests",
            "Requests that waited for the pace or a place, by registry",
            metrics.held_back.clone(),
        );
        registry.register_with_unit(
            "held_back",
            "How long requests waited so, by registry",
            Unit::Seconds,
            metrics.held_back_seconds.clone(),
        );
        registry.register(
            "tasks_put_back",
            "Tasks that were lost and went back to the plan, by who lost them",
            metrics.put_back.clone(),
        );
        registry.register("warnings", "Warnings", metrics.warnings.clone());
        more(registry);
        all.register_collector(Box::new(process::Process));
        metrics.begin_at_zero();
        Arc::new(Metrics { registry: all, ..metrics })
    }

    /// Creates all label values with 0, so that even the first increase is visible.
    fn begin_at_zero(&self) {
        for outcome in ["copied", "unchanged", "failed", "cancelled"] {
            let _ = self.tasks.get_or_create(&[("outcome", outcome.to_owned())]);
        }
        for class in Class::ALL {
            let _ = self.failures.get_or_create(&[("class", class.as_str().to_owned())]);
            let _ = self.retries.get_or_create(&[("class", class.as_str().to_owned())]);
        }
        for arrival in ["copied", "mounted", "reused"] {
            let _ = self.blobs.get_or_create(&[("arrival", arrival.to_owned())]);
            let _ = self.blob_bytes.get_or_create(&[("arrival", arrival.to_owned())]);
        }
        for who in ["worker", "queue"] {
            let _ = self.put_back.get_or_create(&[("lost_by", who.to_owned())]);
        }
    }

    /// Renders all metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        self.state().live.move_on(&self.blob_bytes);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the label of a registry.
    fn named(&self, registry: &RegistryName) -> Label {
        let known = &mut self.state().registries;
        if !known.contains(registry) {
            if known.len() >= MAX_REGISTRIES {
                return ("registry", "other".to_owned());
            }
            known.insert(registry.clone());
        }
        ("registry", registry.to_string())
    }

    fn ended(&self, ticket: &Ticket, end: &TaskEnd) {
        let began = self.state().began.remove(ticket);
        if began.is_some() {
            self.running.dec();
        }
        let outcome = match end {
            TaskEnd::Copied { .. } => "copied",
            TaskEnd::Unchanged => "unchanged",
            TaskEnd::Failed { class, .. } => {
                self.failures.get_or_create(&[("class", class.as_str().to_owned())]).inc();
                "failed"
            }
            TaskEnd::Cancelled => "cancelled",
            TaskEnd::Later { .. } => {
                self.put_off.inc();
                return;
            }
            // A task that has already ended is not counted again.
            TaskEnd::GivenBack => {
                self.given_back.inc_by(began.is_some().into());
                return;
            }
            TaskEnd::Stale => {
                self.stale.inc();
                return;
            }
        };
        let label = [("outcome", outcome.to_owned())];
        self.tasks.get_or_create(&label).inc();
        let took = began.map_or(Duration::ZERO, |began| began.elapsed());
        self.task_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }
}

impl Observer for Metrics {
    fn on(&self, event: &Event) {
        match event {
            Event::TaskStarted { ticket, .. } => {
                if self.state().began.insert(*ticket, Instant::now()).is_none() {
                    self.running.inc();
                }
            }
            Event::TaskEnded { ticket, end } => self.ended(ticket, end),
            Event::BlobStarted { digest, moved, .. } => {
                self.state().live.begin(digest, moved, &self.blob_bytes);
            }
            Event::BlobDone { digest, size, arrival } => {
                self.state().live.done(digest, *size, *arrival, &self.blob_bytes);
                self.blobs.get_or_create(&bytes::label(*arrival)).inc();
            }
            Event::BlobFailed { digest } => self.state().live.failed(digest, &self.blob_bytes),
            Event::ManifestPut { .. } => _ = self.manifests.inc(),
            Event::Answered { registry, errand, status, took } => {
                let registry = self.named(registry);
                let labels =
                    [registry.clone(), ("purpose", errand.as_str().to_owned()), ("status", status_label(*status))];
                self.requests.get_or_create(&labels).inc();
                self.request_seconds.get_or_create(&[registry]).observe(took.as_secs_f64());
            }
            Event::HeldBack { registry, by, time } => {
                let labels = [self.named(registry), ("by", by.as_str().to_owned())];
                self.held_back.get_or_create(&labels).inc();
                self.held_back_seconds.get_or_create(&labels).inc_by(time.as_secs_f64());
            }
            Event::Retrying { class, .. } => {
                _ = self.retries.get_or_create(&[("class", class.as_str().to_owned())]).inc();
            }
            Event::PutBack { leased, queued } => {
                self.put_back.get_or_create(&[("lost_by", "worker".to_owned())]).inc_by(*leased);
                self.put_back.get_or_create(&[("lost_by", "queue".to_owned())]).inc_by(*queued);
            }
            Event::Warning { .. } | Event::RepeatedWarning { .. } => _ = self.warnings.inc(),
            Event::ManifestRead { .. } | Event::Notice { .. } => {}
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

    use imgsync_common::batch::BatchId;
    use imgsync_common::event::{Arrival, Delay, Errand};
    use imgsync_common::image::Digest;

    use super::*;

    fn answered(registry: &str, status: Option<u16>) -> Event {
        let registry = registry.parse().unwrap();
        Event::Answered { registry, errand: Errand::Manifests, status, took: Duration::from_millis(20) }
    }

    #[test]
    fn events_become_figures() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        let ticket = Ticket { batch: BatchId::generate(), index: 7, run: 0 };
        metrics.on(&Event::TaskStarted { ticket, source: "a".into(), target: "b".into() });
        assert!(metrics.render().contains("\nimgsync_running_tasks 1\n"));
        let end = TaskEnd::Failed { class: Class::Denied, error: "no".into() };
        metrics.on(&Event::TaskEnded { ticket, end });
        metrics.on(&answered("gcr.io", Some(200)));
        metrics.on(&answered("gcr.io", Some(799)));
        metrics.on(&answered("gcr.io", None));
        let time = Duration::from_millis(1500);
        metrics.on(&Event::HeldBack { registry: "gcr.io".parse().unwrap(), by: Delay::Pace, time });
        metrics.on(&Event::PutBack { leased: 3, queued: 0 });
        let text = metrics.render();
        for line in [
            "imgsync_running_tasks 0",
            "imgsync_tasks_total{outcome=\"failed\"} 1",
            "imgsync_tasks_total{outcome=\"copied\"} 0",
            "imgsync_task_failures_total{class=\"denied\"} 1",
            "imgsync_task_failures_total{class=\"not_found\"} 0",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"200\"} 1",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"7xx\"} 1",
            "imgsync_requests_total{registry=\"gcr.io\",purpose=\"manifests\",status=\"none\"} 1",
            "imgsync_request_duration_seconds_bucket{le=\"0.025\",registry=\"gcr.io\"} 3",
            "imgsync_held_back_seconds_total{registry=\"gcr.io\",by=\"pace\"} 1.5",
            "imgsync_tasks_put_back_total{lost_by=\"worker\"} 3",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
    }

    #[test]
    fn bytes_under_way_are_counted_and_never_taken_back() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        let (first, second) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let copied = |metrics: &Metrics| {
            let text = metrics.render();
            let line = text.lines().find_map(|line| line.strip_prefix("imgsync_blob_bytes_total{arrival=\"copied\"} "));
            line.unwrap().parse::<u64>().unwrap()
        };
        let moved = Arc::new(AtomicU64::new(0));
        metrics.on(&Event::BlobStarted { digest: first.clone(), size: 100, moved: moved.clone() });
        moved.store(60, Ordering::Relaxed);
        assert_eq!(copied(&metrics), 60);
        moved.store(20, Ordering::Relaxed);
        assert_eq!(copied(&metrics), 60, "a feed that went back");
        moved.store(100, Ordering::Relaxed);
        metrics.on(&Event::BlobDone { digest: first, size: 100, arrival: Arrival::Copied });
        assert_eq!(copied(&metrics), 100);
        let moved = Arc::new(AtomicU64::new(30));
        metrics.on(&Event::BlobStarted { digest: second.clone(), size: 100, moved });
        metrics.on(&Event::BlobFailed { digest: second.clone() });
        assert_eq!(copied(&metrics), 130, "they were moved all the same");
        metrics.on(&Event::BlobDone { digest: second, size: 100, arrival: Arrival::Mounted });
        assert_eq!(copied(&metrics), 130);
        assert!(metrics.render().contains("imgsync_blob_bytes_total{arrival=\"mounted\"} 100\n"));
    }

    #[test]
    fn registries_that_are_told_apart_are_bounded() {
        let metrics = Metrics::new("imgsync-worker", |_| {});
        for n in 0..MAX_REGISTRIES + 200 {
            metrics.on(&answered(&format!("r{n}.example"), Some(200)));
        }
        let text = metrics.render();
        let told = text.lines().filter(|line| line.starts_with("imgsync_requests_total{")).count();
        assert_eq!(told, MAX_REGISTRIES + 1);
        assert!(text.contains("{registry=\"other\",purpose=\"manifests\",status=\"200\"} 200\n"));
    }
}
