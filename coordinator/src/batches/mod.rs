//! Batches: what is going to be copied, from rules and listings, and how it goes.

mod companions;
mod crew;
mod dry;
mod feed;
pub mod figures;
mod house;
mod lead;
mod listings;
mod plan;
mod prune;
mod remove;
mod run;
mod seal;
mod serve;
mod settle;

pub use companions::Companions;
pub use crew::{Crew, holds, waits};
pub use dry::{Dry, DryPlan};
pub use house::House;
pub use lead::{Care, Leader, living_leader};
pub use listings::{Listings, Offer};
pub use plan::{Failed, Plan, PlannedTask, Planner, Slice, SourceTag, Target, cut, settle};
pub use prune::{Due, Pruning};
pub use run::{Run, RunEnd, RunSettings, copier, fingerprint};
pub use serve::serve;

/// What `serve` leads, as a name of [`imgsync_common::store::leader`]: all batches that nobody else does.
pub const SERVE: &str = "all batches";

/// This process, for people and for leases: the machine and the process's number there.
pub fn coordinator_name() -> String {
    imgsync_worker::process_name()
}
