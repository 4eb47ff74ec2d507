//! Batches, tasks and results, and the message that carries a task to a worker.
//!
//! A *batch* is one run of rules: a list of *tasks*. Each task copies one source tag to one target tag and has an index
//! in the batch. This module is pure: no I/O, no async, no clock.

mod chunk;
mod count;
#[cfg(test)]
mod golden;
mod id;
mod message;
mod options;
mod place;
mod priority;
mod sign;
mod task;

pub use chunk::{Chunk, ChunkError, MAX_TASKS as MAX_CHUNK_TASKS, decode_chunk, encode_chunk};
pub use count::{Bytes, Counts, Requests};
pub use id::{BatchId, ParseBatchIdError};
pub use message::{Decoded, MAX_MESSAGE_BYTES, Message, MessageTarget, VERSION as MESSAGE_VERSION};
pub use options::{ForeignLayers, OPTIONS_VERSION, Options, PlanSlice, Referrers, RuleOptions, Verify};
pub use place::{End, Home, Lane, ParsePlaceError, Place};
pub use priority::Priority;
pub use sign::{SHORT_TAG_BYTES, SigningKey, TAG_BYTES};
pub use task::{Failure, MAX_ERROR_BYTES, Outcome, Planned, Task, TaskState, Ticket, Verdict};
