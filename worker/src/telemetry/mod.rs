//! What both programs report about themselves: logs, metrics and traces.

pub mod logging;
pub mod metrics;
pub mod task_log;
#[cfg(feature = "otel")]
mod traces;
