//! Batches: what is going to be copied, from rules and listings, and how it goes.

mod dry;
mod feed;
mod house;
mod listings;
mod plan;
mod run;
mod seal;
mod settle;

pub use dry::{Dry, DryPlan};
pub use house::House;
pub use plan::{Failed, Plan, PlannedTask, Planner, Slice, SourceTag, Target, cut, settle};
pub use run::{Run, RunEnd, RunSettings, copier, fingerprint};
