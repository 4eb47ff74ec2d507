//! Batches: planning from rules and listings, dispatch, leadership, progress and pruning.

mod admission;
mod batch_log;
mod chosen;
mod companions;
mod crew;
mod dry;
mod feed;
pub mod figures;
mod folder;
mod hands;
mod house;
mod lead;
mod listing_lease;
mod listings;
mod needed;
mod owner;
mod plan;
mod provenance;
mod prune;
mod remove;
mod rule_figures;
mod run;
mod seal;
mod serve;
mod settle;
mod supervise;

pub(crate) use admission::Obstacle;
pub use admission::{Admission, Admitted, Turn};
pub use companions::Companions;
pub use crew::{Crew, holds, waits};
pub use dry::{Dry, DryPlan};
#[cfg(test)]
pub(crate) use feed::MAX_DEPTH;
pub use hands::Hands;
pub use house::House;
pub use lead::{Care, Leader, living_leader};
pub use listings::{Listings, Offer};
pub use owner::{Attendance, BatchState, BatchView, Over, owner, resume_command, until_over};
pub use plan::{Failed, Plan, PlannedTask, Planner, Slice, SourceTag, Target, cut, settle};
pub use provenance::tidy_provenance;
pub use prune::{Due, Pruning};
#[cfg(test)]
pub(crate) use rule_figures::MAX_RULES;
pub use rule_figures::{Rules, WatchedRule};
pub use run::{Made, RUN_ROLE, Run, RunEnd, RunSettings, SERVE_ROLE, copier, fingerprint};
pub use serve::{Duties, serve};

/// Name of the leader lease of `serve` ([`imgsync_common::store::leader`]): all batches that no other process leads.
pub const SERVE: &str = "all batches";

/// Returns the holder name of this process for [`SERVE`].
pub fn serve_name() -> String {
    format!("serve on {}", coordinator_name())
}

/// Returns the name of this process in messages and leases: host and process id.
pub fn coordinator_name() -> String {
    imgsync_worker::process_name()
}
