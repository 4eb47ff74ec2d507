//! Workers with their load and throughput.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgsync_config::Config;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;
use imgsync_store::{Heartbeat, Store};
use serde::Serialize;
use tokio::time::Instant;

/// Interval over which throughput is averaged.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum interval of samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Batches whose workers are sampled: the newest ones that have not ended.
const MAX_SAMPLED_BATCHES: usize = 50;

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WorkerResponse {
    #[serde(flatten)]
    pub(super) heartbeat: Heartbeat,
    /// Images per minute, over the last minute; none while it is not known.
    images_per_minute: Option<f64>,
    /// Bytes per second, over the last minute.
    bytes_per_second: Option<f64>,
    /// Whether its configuration differs from that of this coordinator.
    pub(super) config_differs: bool,
}

/// Tasks and bytes of a worker in a batch so far.
type Progress = HashMap<(BatchId, String), (u64, u64)>;

/// Samples of what workers did, for their throughput.
#[derive(Debug, Default)]
pub(super) struct WorkerSamples(Mutex<VecDeque<(Instant, Progress)>>);

impl WorkerSamples {
    /// Reads the workers, and what they did since the last sample.
    pub(super) async fn load(&self, store: &dyn Store, config: &Config) -> Result<Vec<WorkerResponse>> {
        let heartbeats = store.workers().await?;
        if self.is_due() {
            let progress = read_progress(store).await?;
            let mut samples = self.samples();
            samples.push_back((Instant::now(), progress));
            while samples.len() > 2 && samples.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
                samples.pop_front();
            }
        }
        let rates = self.rates();
        let config_hash = config.worker_hash();
        let worker = |heartbeat: Heartbeat| {
            let rate = rates.as_ref().map(|rates| rates.get(&heartbeat.worker).copied().unwrap_or_default());
            WorkerResponse {
                images_per_minute: rate.map(|(images, _)| round(images * 60.0)),
                bytes_per_second: rate.map(|(_, bytes)| bytes.round()),
                config_differs: heartbeat.config_hash.as_ref().is_some_and(|hash| *hash != config_hash),
                heartbeat,
            }
        };
        Ok(heartbeats.into_iter().map(worker).collect())
    }

    fn is_due(&self) -> bool {
        self.samples().back().is_none_or(|(at, _)| at.elapsed() >= SAMPLE_INTERVAL)
    }

    /// Returns images and bytes per second by worker, once there are two samples.
    fn rates(&self) -> Option<HashMap<String, (f64, f64)>> {
        let samples = self.samples();
        let ((first, before), (last, after)) = (samples.front()?, samples.back()?);
        rates(before, after, last.duration_since(*first))
    }

    fn samples(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Progress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rates(before: &Progress, after: &Progress, elapsed: Duration) -> Option<HashMap<String, (f64, f64)>> {
    let seconds = elapsed.as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let mut rates: HashMap<String, (f64, f64)> = HashMap::new();
    for (key, (images, bytes)) in after {
        let (old_images, old_bytes) = before.get(key).copied().unwrap_or_default();
        let rate = rates.entry(key.1.clone()).or_default();
        rate.0 += images.saturating_sub(old_images) as f64 / seconds;
        rate.1 += bytes.saturating_sub(old_bytes) as f64 / seconds;
    }
    Some(rates)
}

/// Reads what workers did in the batches that have not ended, or ended within the window.
async fn read_progress(store: &dyn Store) -> Result<Progress> {
    let mut progress = Progress::new();
    let now = jiff::Timestamp::now();
    let is_recent = |at: jiff::Timestamp| now.duration_since(at).unsigned_abs() <= 2 * WINDOW;
    for batch in store.batches(MAX_SAMPLED_BATCHES).await? {
        if batch.ended_at.is_some_and(|at| !is_recent(at)) {
            continue;
        }
        for stats in store.timeline(batch.id).await?.workers {
            progress.insert((batch.id, stats.worker), (stats.ended, stats.bytes));
        }
    }
    Ok(progress)
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_what_was_added_between_two_samples() {
        let batch = BatchId::from_bytes([1; 16]);
        let key = |worker: &str| (batch, worker.to_owned());
        let before = Progress::from([(key("a"), (10, 1_000))]);
        let after = Progress::from([(key("a"), (40, 4_000)), (key("b"), (6, 60))]);
        let found = rates(&before, &after, Duration::from_secs(30)).unwrap();
        assert_eq!((found["a"], found["b"]), ((1.0, 100.0), (0.2, 2.0)));
        assert_eq!(rates(&after, &before, Duration::from_secs(1)).unwrap()["a"], (0.0, 0.0), "a store was reset");
        assert_eq!(rates(&before, &after, Duration::ZERO), None);
    }
}
