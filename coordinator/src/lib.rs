//! The coordinator of imgsync, and the program's commands: decides what is copied, watches over it, shows how it went.

// A listing within a run is a deep nest of futures, whose layout the compiler works out.
#![recursion_limit = "256"]

pub mod batches;
pub mod cli;
pub mod enumerate;
pub mod import;
#[cfg(test)]
mod limits;
pub mod notify;
pub mod presets;
pub mod report;
pub mod serve;
mod words;
