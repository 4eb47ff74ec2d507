//! Batches: planning from rules and listings, dispatch, leadership, progress and pruning.

mod admission;
mod archive_writer;
mod backend;
mod batch_creation;
mod batch_log;
pub mod cluster_metrics;
mod coverage;
mod digest_tags;
mod dispatch;
mod dry_run;
mod layout_listing;
mod leader;
mod leader_service;
mod listing_lease;
mod listings;
mod listings_ahead;
mod local_worker;
mod manifest_usage;
mod named_images;
mod owner;
mod plan;
mod plan_builder;
mod plan_source;
mod provenance;
mod prune_plan;
mod pruner;
pub(crate) mod push_metrics;
mod rule_metrics;
mod rule_options;
mod run;
mod selection_counts;
mod state_change;
mod supervise;
mod throttle_watch;
mod unchanged_filter;

pub(crate) use admission::Obstacle;
pub use admission::{Admission, AdmissionResult, StartPermit};
pub use backend::Backend;
pub use batch_creation::CreatedBatch;
pub(crate) use coverage::unserved_reasons;
pub use coverage::{WorkerCoverage, rate_limit_messages};
pub use digest_tags::DigestTagIndex;
#[cfg(test)]
pub(crate) use dispatch::MAX_DEPTH;
pub use dry_run::{DryRun, DryRunPlan};
pub(crate) use leader::LEADER_LEASE_TTL;
pub use leader::{Leader, ReclaimPolicy, find_active_leader};
pub use leader_service::{LeaderConfig, Leadership, is_leader, run_leader};
pub use listings::{Listings, RuleListing};
pub use local_worker::LocalWorker;
pub use owner::{AbandonmentDetector, BatchWaitResult, wait_until_over};
pub use plan::{
    PlanFailure, PlannedTarget, PlannedTask, Planner, RepositoryPlan, Slice, SourceTag, cut_slice, resolve_conflicts,
};
pub(crate) use plan_builder::describe_push;
pub use plan_builder::{LaggingByBatch, LaggingPushes};
pub use provenance::tidy_provenance;
pub use prune_plan::{PruneCandidate, PrunePlan};
#[cfg(test)]
pub(crate) use rule_metrics::MAX_RULES;
pub use rule_metrics::{WatchedRule, WatchedRules};
pub use run::{RUN_ROLE, Run, RunResult, RunSettings, SERVE_ROLE, build_copier, fingerprint, pushes_fingerprint};
pub(crate) use state_change::{CONFIRMATION_TIME, StateChange};
pub use throttle_watch::watch_throttling;

/// Returns the holder name of this process for [`GLOBAL_LEADER`](crate::batch_view::GLOBAL_LEADER).
pub fn leader_holder_name() -> String {
    format!("serve on {}", coordinator_name())
}

/// Returns the name of this process in messages and leases: host and process id.
pub fn coordinator_name() -> String {
    imgsync_worker::process_name()
}
