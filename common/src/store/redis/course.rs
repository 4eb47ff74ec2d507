//! Queries of timelines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::RedisStore;
use super::ledger::gone;
use crate::batch::BatchId;
use crate::error::Result;
use crate::store::{Course, Part, Share, Slow};

/// Initial width of a time bucket, in milliseconds.
const WIDTH: u64 = 1000;

impl RedisStore {
    pub(super) async fn look_course(&self, id: BatchId) -> Result<Course> {
        let tried = format!("reading batch {id}");
        let base = self.base(id);
        let mut pipe = redis::pipe();
        pipe.exists(&base)
            .hget(&base, "width")
            .hgetall(format!("{base}:h"))
            .zrevrange_withscores(format!("{base}:t"), 0, -1)
            .hgetall(format!("{base}:w"));
        type Found = (bool, Option<u64>, HashMap<String, u64>, Vec<(String, f64)>, HashMap<String, u64>);
        let (there, width, parts, slowest, shares): Found = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        Ok(Course {
            width: Duration::from_millis(width.unwrap_or(WIDTH)),
            parts: read_parts(&parts),
            slowest: read_slowest(&slowest),
            shares: read_shares(&shares),
        })
    }
}

fn read_parts(found: &HashMap<String, u64>) -> Vec<Part> {
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for (field, amount) in found {
        let Some((at, what)) = field.char_indices().next_back() else { continue };
        let Ok(number) = field[..at].parse() else { continue };
        let part = parts.entry(number).or_insert(Part { number, ..Part::default() });
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

fn read_slowest(found: &[(String, f64)]) -> Vec<Slow> {
    // A requeued task can appear twice.
    let mut seen = HashSet::new();
    let read = |(kept, millis): &(String, f64)| {
        let (index, rest) = kept.split_once('|')?;
        let (bytes, worker) = rest.split_once('|')?;
        Some(Slow {
            index: index.parse().ok()?,
            time: Duration::from_millis(*millis as u64),
            bytes: bytes.parse().ok()?,
            worker: worker.to_owned(),
        })
    };
    let mut slowest: Vec<Slow> = found.iter().filter_map(read).filter(|slow| seen.insert(slow.index)).collect();
    slowest.sort_by_key(|slow| (std::cmp::Reverse(slow.time), slow.index));
    slowest
}

fn read_shares(found: &HashMap<String, u64>) -> Vec<Share> {
    let mut shares: BTreeMap<&str, Share> = BTreeMap::new();
    for (field, amount) in found {
        let Some((what, worker)) = field.split_at_checked(1) else { continue };
        let share = shares.entry(worker).or_insert_with(|| Share { worker: worker.to_owned(), ..Share::default() });
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
