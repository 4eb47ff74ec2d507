//! The coordinator of imgsync and the program's commands: plans batches, leads them, and reports results.

// Futures of a listing within a run nest deeply, and the compiler computes their layout recursively.
#![recursion_limit = "256"]

pub mod batch_view;
mod bundle;
pub mod cli;
pub mod discovery;
mod hooks;
pub mod images;
pub mod import;
#[cfg(test)]
mod limits;
mod mirrors;
pub mod notify;
pub mod orchestrator;
pub mod presets;
mod push_rechecks;
pub mod report;
pub mod serve;
