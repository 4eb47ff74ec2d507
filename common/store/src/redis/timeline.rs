//! Queries of timelines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::RedisStore;
use super::ledger::no_such_batch;
use crate::{BatchTimeline, SlowTask, TimeBucket, WorkerStats};
use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;

/// Initial width of a time bucket, in milliseconds.
const INITIAL_BUCKET_WIDTH_MS: u64 = 1000;

impl RedisStore {
    pub(super) async fn read_timeline(&self, id: BatchId) -> Result<BatchTimeline> {
        let operation = format!("reading batch {id}");
        let base = self.batch_key(id);
        let mut pipe = redis::pipe();
        pipe.exists(&base)
            .hget(&base, "bucket_width")
            .hgetall(format!("{base}:buckets"))
            .zrevrange_withscores(format!("{base}:slowest"), 0, -1)
            .hgetall(format!("{base}:workers"));
        type Found = (bool, Option<u64>, HashMap<String, u64>, Vec<(String, f64)>, HashMap<String, u64>);
        let (there, width, parts, slowest, shares): Found = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        Ok(BatchTimeline {
            bucket_width: Duration::from_millis(width.unwrap_or(INITIAL_BUCKET_WIDTH_MS)),
            buckets: decode_buckets(&parts),
            slowest: decode_slowest(&slowest),
            workers: decode_workers(&shares),
        })
    }
}

fn decode_buckets(found: &HashMap<String, u64>) -> Vec<TimeBucket> {
    let mut parts: BTreeMap<u32, TimeBucket> = BTreeMap::new();
    for (field, amount) in found {
        let Some((at, what)) = field.char_indices().next_back() else { continue };
        let Ok(number) = field[..at].parse() else { continue };
        let part = parts.entry(number).or_insert(TimeBucket { number, ..TimeBucket::default() });
        match what {
            'c' => part.copied = *amount,
            'u' => part.unchanged = *amount,
            'f' => part.failed = *amount,
            'x' => part.cancelled = *amount,
            'b' => part.bytes = *amount,
            _ => {}
        }
    }
    parts.into_values().collect()
}

fn decode_slowest(found: &[(String, f64)]) -> Vec<SlowTask> {
    // A requeued task can appear twice.
    let mut seen = HashSet::new();
    let read = |(kept, millis): &(String, f64)| {
        let (index, rest) = kept.split_once('|')?;
        let (bytes, worker) = rest.split_once('|')?;
        Some(SlowTask {
            index: index.parse().ok()?,
            time: Duration::from_millis(*millis as u64),
            bytes: bytes.parse().ok()?,
            worker: worker.to_owned(),
        })
    };
    let mut slowest: Vec<SlowTask> = found.iter().filter_map(read).filter(|slow| seen.insert(slow.index)).collect();
    slowest.sort_by_key(|slow| (std::cmp::Reverse(slow.time), slow.index));
    slowest
}

fn decode_workers(found: &HashMap<String, u64>) -> Vec<WorkerStats> {
    let mut shares: BTreeMap<&str, WorkerStats> = BTreeMap::new();
    for (field, amount) in found {
        let Some((what, worker)) = field.split_at_checked(1) else { continue };
        let share =
            shares.entry(worker).or_insert_with(|| WorkerStats { worker: worker.to_owned(), ..WorkerStats::default() });
        match what {
            "e" => share.ended = *amount,
            "f" => share.failed = *amount,
            "b" => share.bytes = *amount,
            "m" => share.time = Duration::from_millis(*amount),
            _ => {}
        }
    }
    shares.into_values().collect()
}
