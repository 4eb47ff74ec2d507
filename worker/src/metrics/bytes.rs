//! Counts the bytes of blobs, including blobs in flight, so that a large blob does not show as a jump at its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imgsync_common::event::Arrival;
use imgsync_common::image::Digest;

use super::{Counters, Label};

/// Blobs in flight.
#[derive(Default)]
pub(super) struct Live(HashMap<Digest, UnderWay>);

struct UnderWay {
    moved: Arc<AtomicU64>,
    counted: u64,
}

impl UnderWay {
    /// Counts the bytes since the last call. Bytes that are sent again after a rewind stay counted: they were
    /// transferred.
    fn move_on(&mut self, bytes: &Counters<1>) {
        let moved = self.moved.load(Ordering::Relaxed);
        if moved > self.counted {
            bytes.get_or_create(&label(Arrival::Copied)).inc_by(moved - self.counted);
            self.counted = moved;
        }
    }
}

impl Live {
    pub(super) fn begin(&mut self, digest: &Digest, moved: &Arc<AtomicU64>, bytes: &Counters<1>) {
        let begun = UnderWay { moved: moved.clone(), counted: 0 };
        if let Some(mut before) = self.0.insert(digest.clone(), begun) {
            before.move_on(bytes);
        }
    }

    pub(super) fn done(&mut self, digest: &Digest, size: u64, arrival: Arrival, bytes: &Counters<1>) {
        let begun = self.0.remove(digest);
        match (arrival, begun) {
            (Arrival::Copied, Some(mut blob)) => {
                blob.move_on(bytes);
                bytes.get_or_create(&label(arrival)).inc_by(size.saturating_sub(blob.counted));
            }
            _ => _ = bytes.get_or_create(&label(arrival)).inc_by(size),
        }
    }

    pub(super) fn failed(&mut self, digest: &Digest, bytes: &Counters<1>) {
        if let Some(mut blob) = self.0.remove(digest) {
            blob.move_on(bytes);
        }
    }

    /// Counts the new bytes of all blobs in flight.
    pub(super) fn move_on(&mut self, bytes: &Counters<1>) {
        self.0.values_mut().for_each(|blob| blob.move_on(bytes));
    }
}

pub(super) fn label(arrival: Arrival) -> [Label; 1] {
    let arrival = match arrival {
        Arrival::Copied => "copied",
        Arrival::Mounted => "mounted",
        Arrival::Reused => "reused",
    };
    [("arrival", arrival.to_owned())]
}
