//! Segments of a plan as arguments of a script.

use imgsync_model::batch::{BatchId, Failure, MAX_CHUNK_TASKS, TaskResult, TaskState, chunk_checksum, encode_chunk};
use imgsync_oci::RegistryName;

use super::signed::ChunkPosition;
use super::{PlanEnd, RedisStore, ScriptCall};
use crate::PlanSegment;

/// A repository's tasks as script arguments.
pub(super) struct SegmentArguments {
    key: String,
    /// Per chunk: number of tasks, encoded plan, task states.
    pub(super) chunks: Vec<(u32, Vec<u8>, Vec<u8>)>,
    /// Position and encoding of each failure.
    failures: Vec<(usize, Vec<u8>)>,
}

impl SegmentArguments {
    pub(super) fn from_segment(segment: PlanSegment) -> SegmentArguments {
        let (tasks, results): (Vec<_>, Vec<_>) = segment.tasks.into_iter().unzip();
        let state = |result: &Option<TaskResult>| match result {
            None => TaskState::New,
            Some(result) => result.state(),
        };
        let failures = results.iter().enumerate().filter_map(|(at, result)| match result {
            Some(TaskResult::Failed(failure)) => Some((at, encode_failure(failure))),
            _ => None,
        });
        let segments = tasks.chunks(MAX_CHUNK_TASKS).zip(results.chunks(MAX_CHUNK_TASKS)).map(|(tasks, results)| {
            let plan = encode_chunk(segment.listed_at, tasks, |at| state(&results[at]) != TaskState::Unchanged);
            let states = results.iter().map(|result| b'0' + state(result).code()).collect();
            (tasks.len() as u32, plan, states)
        });
        SegmentArguments { chunks: segments.collect(), failures: failures.collect(), key: segment.key }
    }

    /// Builds the script call for chunks at a fixed position, or at any.
    pub(super) fn script_call(&self, store: &RedisStore, batch: BatchId, place: Option<PlanEnd>) -> ScriptCall {
        let call =
            ScriptCall::new(store.batch_key(batch)).arg(&self.key).arg(self.chunks.len()).arg(self.failures.len());
        let mut call = match place {
            None => call.arg(-1).arg(-1),
            Some(PlanEnd { tasks, chunks: segments }) => call.arg(tasks).arg(segments),
        };
        let PlanEnd { tasks: mut first, chunks: mut number } = place.unwrap_or_default();
        for (tasks, plan, states) in &self.chunks {
            let place = ChunkPosition { batch, number, first, tasks: *tasks };
            let plan = store.sign_chunk(place, plan.clone());
            let checksum = chunk_checksum(&plan);
            call = call.arg(tasks).bytes(plan).arg(checksum).bytes(states.clone());
            (first, number) = (first.saturating_add(*tasks), number + 1);
        }
        for (at, failure) in &self.failures {
            call = call.arg(at).bytes(failure.clone());
        }
        call
    }
}

/// Encodes a failure.
pub(super) fn encode_failure(failure: &Failure) -> Vec<u8> {
    let registry = failure.registry.as_ref().map_or("", RegistryName::as_str);
    format!("{}|{}|{registry}|{}", failure.kind, failure.attempts, failure.error).into_bytes()
}
