//! What imgsync works with, beside images: the options of rules, selection and naming of tags, schedules, and batches with
//! their tasks, routes and messages.
//!
//! Everything here is pure: no I/O, no async runtime, no HTTP.

pub mod batch;
pub mod canonical;
pub mod event;
pub mod limits;
pub mod naming;
pub mod schedule;
pub mod select;
