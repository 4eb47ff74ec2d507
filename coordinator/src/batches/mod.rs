//! Batches: what is going to be copied, from rules and listings.

mod plan;

pub use plan::{Failed, Plan, PlannedTask, Planner, Slice, SourceTag, Target, cut, settle};
