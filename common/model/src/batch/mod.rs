//! Batches, tasks and results, and the message that carries a task to a worker.
//!
//! A *batch* is one run of rules: a list of *tasks*. Each task copies one source tag to one target tag and has an index
//! in the batch. This module is pure: no I/O, no async, no clock.

mod counts;
#[cfg(test)]
mod golden;
mod id;
mod locator;
mod message;
mod options;
mod plan_chunk;
mod policy;
mod priority;
mod pushed;
mod sign;
mod task;

pub use counts::{BlobBytes, RequestCounts, TaskCounts};
pub use id::{BatchId, ParseBatchIdError};
pub use locator::{Endpoint, ParseLocatorError, RepositoryLocator, Route, TagLocator};
pub use message::{DecodedMessage, MAX_MESSAGE_BYTES, Message, MessageTarget, VERSION as MESSAGE_VERSION};
pub use options::{BatchOptions, ForeignLayers, OPTIONS_VERSION, PlanSlice, Referrers, RuleOptions, VerifyOptions};
pub use plan_chunk::{
    ChunkMark, MAX_TASKS as MAX_CHUNK_TASKS, PlanChunk, PlanChunkError, chunk_checksum, decode_chunk, encode_chunk,
};
pub use policy::{ImagePolicy, PolicyKey, RequiredLabel, RequiredSignatures, SignatureNeed};
pub use priority::Priority;
pub use pushed::{PushedReference, PushedRepository};
pub use sign::{MAC_BYTES, SigningKey, TRUNCATED_MAC_BYTES};
pub use task::{Failure, MAX_ERROR_BYTES, Task, TaskRef, TaskResult, TaskSpec, TaskState};
