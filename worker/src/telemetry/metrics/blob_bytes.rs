//! Counts the bytes of blobs, including blobs in flight, so that a large blob does not show as a jump at its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imgsync_oci::Digest;
use imgsync_registry::event::BlobOutcome;

use super::{LabeledCounters, MetricLabel};

/// Blobs in flight.
#[derive(Default)]
pub(super) struct BlobsInFlight(HashMap<Digest, InFlightBlob>);

struct InFlightBlob {
    moved: Arc<AtomicU64>,
    counted: u64,
}

impl InFlightBlob {
    /// Counts the bytes since the last call. Bytes that are sent again after a rewind stay counted: they were
    /// transferred.
    fn count_new_bytes(&mut self, bytes: &LabeledCounters<1>) {
        let moved = self.moved.load(Ordering::Relaxed);
        if moved > self.counted {
            bytes.get_or_create(&outcome_label(BlobOutcome::Copied)).inc_by(moved - self.counted);
            self.counted = moved;
        }
    }
}

impl BlobsInFlight {
    pub(super) fn start(&mut self, digest: &Digest, moved: &Arc<AtomicU64>, bytes: &LabeledCounters<1>) {
        let in_flight = InFlightBlob { moved: moved.clone(), counted: 0 };
        if let Some(mut before) = self.0.insert(digest.clone(), in_flight) {
            before.count_new_bytes(bytes);
        }
    }

    pub(super) fn finish(&mut self, digest: &Digest, size: u64, outcome: BlobOutcome, bytes: &LabeledCounters<1>) {
        let in_flight = self.0.remove(digest);
        match (outcome, in_flight) {
            (BlobOutcome::Copied, Some(mut blob)) => {
                blob.count_new_bytes(bytes);
                bytes.get_or_create(&outcome_label(outcome)).inc_by(size.saturating_sub(blob.counted));
            }
            _ => _ = bytes.get_or_create(&outcome_label(outcome)).inc_by(size),
        }
    }

    pub(super) fn fail(&mut self, digest: &Digest, bytes: &LabeledCounters<1>) {
        if let Some(mut blob) = self.0.remove(digest) {
            blob.count_new_bytes(bytes);
        }
    }

    /// Counts the new bytes of all blobs in flight.
    pub(super) fn count_new_bytes(&mut self, bytes: &LabeledCounters<1>) {
        self.0.values_mut().for_each(|blob| blob.count_new_bytes(bytes));
    }
}

pub(super) fn outcome_label(outcome: BlobOutcome) -> [MetricLabel; 1] {
    let outcome = match outcome {
        BlobOutcome::Copied => "copied",
        BlobOutcome::Mounted => "mounted",
        BlobOutcome::Reused => "reused",
    };
    [("outcome", outcome.to_owned())]
}
