//! Workers with their load and throughput.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgsync_config::Config;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{Batch, Heartbeat, Store};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

/// Interval over which throughput is averaged.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum interval of samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Limit of the newest batches, and of older batches that workers run, whose workers are sampled.
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

/// What workers did until a time.
#[derive(Debug)]
struct Sample {
    at: Instant,
    time: Timestamp,
    progress: Progress,
    /// The batches that were read, with the end of those that had ended: their progress is final.
    batches: HashMap<BatchId, Option<Timestamp>>,
}

/// Samples of what workers did, for their throughput.
#[derive(Debug, Default)]
pub(super) struct WorkerSamples(Mutex<VecDeque<Sample>>);

impl WorkerSamples {
    /// Reads the workers, and what they did since the last sample.
    pub(super) async fn load(&self, store: &dyn Store, config: &Config) -> Result<Vec<WorkerResponse>> {
        let heartbeats = store.workers().await?;
        if self.is_due() {
            let (mut sample, to_read) = self.plan_sample(store.batches(MAX_SAMPLED_BATCHES).await?, &heartbeats);
            for (batch, ended_at) in to_read {
                let timeline = match store.timeline(batch).await {
                    Ok(timeline) => timeline,
                    // Removed meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                sample.batches.insert(batch, ended_at);
                for stats in timeline.workers {
                    sample.progress.insert((batch, stats.worker), (stats.ended, stats.bytes));
                }
            }
            self.add(sample);
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
        self.samples().back().is_none_or(|last| last.at.elapsed() >= SAMPLE_INTERVAL)
    }

    /// Chooses the batches of a sample: the newest ones that have not ended, or ended within twice the window, and the newest of the older ones
    /// that workers run now. Returns the sample with the progress that is known to be final, and what is left to read.
    fn plan_sample(&self, newest: Vec<Batch>, heartbeats: &[Heartbeat]) -> (Sample, Vec<(BatchId, Option<Timestamp>)>) {
        let time = Timestamp::now();
        let mut sample = Sample { at: Instant::now(), time, progress: Progress::new(), batches: HashMap::new() };
        let is_recent = |at: Timestamp| time.duration_since(at).unsigned_abs() <= 2 * WINDOW;
        let mut chosen: BTreeMap<BatchId, Option<Timestamp>> = newest
            .iter()
            .filter(|batch| batch.ended_at.is_none_or(is_recent))
            .map(|batch| (batch.id, batch.ended_at))
            .collect();
        let running = heartbeats.iter().flat_map(|heartbeat| &heartbeat.running).map(|task| task.batch);
        let older: BTreeSet<BatchId> = running.filter(|batch| newest.iter().all(|one| one.id != *batch)).collect();
        chosen.extend(older.into_iter().rev().take(MAX_SAMPLED_BATCHES).map(|batch| (batch, None)));
        let samples = self.samples();
        let Some(previous) = samples.back() else { return (sample, chosen.into_iter().collect()) };
        chosen.retain(|batch, ended_at| {
            let is_final = ended_at.is_some() && previous.batches.get(batch) == Some(ended_at);
            if is_final {
                sample.batches.insert(*batch, *ended_at);
            }
            !is_final
        });
        let known = previous.progress.iter().filter(|((batch, _), _)| sample.batches.contains_key(batch));
        sample.progress.extend(known.map(|(key, progress)| (key.clone(), *progress)));
        (sample, chosen.into_iter().collect())
    }

    /// Adds a sample, and removes those that are older than the window. A batch that is older than the previous sample,
    /// but not in it, has no known progress before this sample: its rate begins with zero.
    fn add(&self, sample: Sample) {
        let mut samples = self.samples();
        if let Some(previous) = samples.back() {
            let time = previous.time.as_millisecond();
            let is_late = |batch: &BatchId| created_ms(*batch) < time && !previous.batches.contains_key(batch);
            let late: Vec<_> = sample.progress.iter().filter(|((batch, _), _)| is_late(batch)).collect();
            let late: Progress = late.into_iter().map(|(key, progress)| (key.clone(), *progress)).collect();
            for earlier in samples.iter_mut() {
                late.iter().for_each(|(key, progress)| {
                    earlier.progress.entry(key.clone()).or_insert(*progress);
                });
            }
        }
        samples.push_back(sample);
        while samples.len() > 2 && samples.front().is_some_and(|first| first.at.elapsed() > WINDOW) {
            samples.pop_front();
        }
    }

    /// Returns images and bytes per second by worker, once there are two samples.
    fn rates(&self) -> Option<HashMap<String, (f64, f64)>> {
        let samples = self.samples();
        let (first, last) = (samples.front()?, samples.back()?);
        rates(&first.progress, &last.progress, last.at.duration_since(first.at))
    }

    fn samples(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
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

/// Returns when a batch was created, in milliseconds since 1970: its id begins with it.
fn created_ms(batch: BatchId) -> i64 {
    batch.as_bytes()[..6].iter().fold(0, |time, byte| time << 8 | i64::from(*byte))
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
    fn sample(seconds: u64, batches: &[BatchId], progress: &[(BatchId, u64)]) -> Sample {
        let time = Timestamp::from_second(1_800_000_000 + seconds as i64).unwrap();
        Sample {
            at: Instant::now() + Duration::from_secs(seconds),
            time,
            progress: progress.iter().map(|(batch, images)| ((*batch, "w".to_owned()), (*images, 0))).collect(),
            batches: batches.iter().map(|batch| (*batch, None)).collect(),
        }
    }

    /// Returns the id of a batch that was created this long after the first sample.
    fn created(seconds: i64) -> BatchId {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&((1_800_000_000 + seconds) * 1_000).to_be_bytes()[2..]);
        BatchId::from_bytes(bytes)
    }

    #[test]
    fn work_from_before_the_first_look_at_a_batch_is_no_throughput() {
        let (new, old) = (created(5), created(-3_600));
        let samples = WorkerSamples::default();
        samples.add(sample(0, &[], &[]));
        samples.add(sample(10, &[new, old], &[(new, 20), (old, 5_000)]));
        let rate = |samples: &WorkerSamples| samples.rates().unwrap()["w"].0;
        assert!((rate(&samples) - 2.0).abs() < 0.01, "only the batch that is new began with nothing");
        samples.add(sample(20, &[new, old], &[(new, 20), (old, 5_020)]));
        assert!((rate(&samples) - 2.0).abs() < 0.01, "40 images in 20 s: {}", rate(&samples));
    }
}
