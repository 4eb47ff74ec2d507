//! Contract tests for stores: see [`store_contract_tests!`](crate::store_contract_tests).

#![allow(clippy::unwrap_used, missing_docs)] // Tests, named for what they hold.

pub mod chaos;
pub mod clock;
pub mod ledger;
pub mod plan;
pub mod provenance;
pub mod pushes;
pub mod random_calls;
pub mod rate_limit;
pub mod records;
pub mod shared_state;
pub mod timeline;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{AppendResult, BatchState, ClaimResult, LEASE_TTL, NewBatch, PlanSegment, PlanSize, Store, TaskHolder};
use imgsync_model::batch::{
    BatchId, Endpoint, RepositoryLocator, TagLocator, TaskCounts, TaskRef, TaskResult, TaskSpec, TaskState,
};
use imgsync_oci::{Digest, DigestTagHints};

/// A store under test: new and empty.
pub struct StoreUnderTest {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Advances the store's clock.
    pub advance: Box<dyn Fn(Duration) + Send + Sync>,
    /// Sets the store's clock back.
    pub set_back: Box<dyn Fn(Duration) + Send + Sync>,
    /// Reads the store's clock.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Kept alive as long as the store is used.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Declares the contract tests of a store: `store_contract_tests!(make)`. `make` is an async function that returns a
/// `StoreUnderTest`.
#[macro_export]
macro_rules! store_contract_tests {
    ($make:path) => {
        $crate::store_contract_tests!($make: plan:
            a_batch_goes_from_its_plan_to_its_end,
            a_batch_without_tasks_is_done_when_its_plan_is_complete,
            a_repository_is_added_once,
            a_plan_that_lacks_acknowledged_segments_is_not_complete,
            a_task_is_claimed_by_the_mark_of_its_chunk,
            tasks_settled_by_the_listing_are_counted_and_never_published,
            a_large_repository_is_published_block_by_block,
            unconfirmed_tasks_are_published_again,
            a_cancelled_batch_accepts_no_segments,
            a_later_batch_supersedes_an_earlier_one,
            a_batch_is_created_only_under_the_lease_of_its_fence,
            batches_are_found_by_id_prefix,
            the_newest_batches_of_each_rule_are_read_at_once,
            listing_failures_are_recorded,
            failures_and_tasks_are_read_page_by_page,
            old_batches_are_removed_whole
        );
        $crate::store_contract_tests!($make: ledger:
            one_worker_holds_the_lease_of_a_task,
            a_redelivered_task_still_belongs_to_its_worker,
            a_fencing_token_used_by_another_worker_changes_nothing,
            fencing_tokens_are_never_below_the_time_of_the_store,
            an_expired_lease_is_taken_over_and_its_holder_is_stale,
            an_expired_lease_is_valid_until_it_is_taken_over,
            a_task_is_counted_once_however_often_it_is_finished,
            only_counted_attempts_increase_the_count,
            a_paused_batch_returns_tasks_to_the_plan,
            a_cancelled_batch_cancels_unfinished_tasks_at_once,
            failed_tasks_are_requeued_and_their_old_messages_ignored,
            only_failures_that_match_the_filter_are_requeued,
            reclaiming_returns_lost_tasks_to_the_plan,
            lost_leases_of_a_task_are_counted,
            an_unknown_task_or_batch_is_reported_as_unknown
        );
        $crate::store_contract_tests!($make: clock:
            deadlines_in_the_far_future_have_expired,
            blobs_recorded_in_the_future_are_recorded_anew,
            a_batch_created_in_the_future_does_not_stay_newest_or_block_removal
        );
        $crate::store_contract_tests!($make: timeline:
            results_are_counted_in_their_time_bucket,
            a_long_batch_has_few_wide_time_buckets,
            the_slowest_tasks_and_worker_stats_are_recorded
        );
        $crate::store_contract_tests!($make: shared_state:
            the_cache_returns_the_last_value,
            the_cache_separates_options_and_forgets_tags_repositories_and_endpoints,
            an_exported_cache_is_imported_whole,
            an_import_keeps_newer_entries_and_reports_bad_lines,
            a_blob_is_found_where_it_was_last_seen_and_forgotten_with_age,
            a_proof_is_of_one_source_and_one_blob_and_believed_for_seven_days,
            the_latest_block_holds_until_it_ends,
            a_rate_limit_is_shared_by_all_processes,
            requests_of_a_blocked_account_have_to_wait,
            a_429_teaches_a_rate_that_expires,
            slow_start_happens_once,
            a_lease_has_one_holder_and_its_tokens_grow,
            a_worker_is_listed_until_its_heartbeat_expires,
            batches_see_the_throughput_of_others,
            routes_are_remembered,
            a_broker_alarm_holds_until_it_is_cleared_or_expires,
            a_writable_store_passes_the_write_check,
            a_schedule_is_remembered_by_its_last_run
        );
        $crate::store_contract_tests!($make: provenance:
            a_target_tag_has_the_last_recorded_provenance,
            missing_since_is_kept_until_the_source_is_back,
            unclaimed_since_is_kept_until_a_rule_makes_the_target,
            prune_records_are_kept_with_their_batch,
            empty_rules_are_kept_with_their_batch,
            sent_notifications_are_kept_with_their_batch,
            a_hashed_file_is_known_in_that_version_only
        );
        $crate::store_contract_tests!($make: rate_limit:
            permits_are_shared_evenly_and_expire_with_their_holder,
            holders_rotate_when_there_are_fewer_permits_than_holders,
            learned_rates_can_be_read,
            a_low_quota_blocks_pulls_until_its_window_ends,
            traffic_is_summed_per_machine_and_month
        );
        $crate::store_contract_tests!($make: pushes:
            a_push_is_pending_once_for_each_rule_with_its_last_digest,
            a_repeated_notification_changes_nothing,
            what_arrives_after_the_read_stays_pending,
            a_postponed_push_is_due_again_with_its_next_notification,
            too_many_pushes_make_the_whole_rule_due,
            a_whole_rule_is_due_on_request
        );
        $crate::store_contract_tests!($make: records:
            the_holder_of_a_tag_lease_records_the_tag,
            a_holder_that_lost_its_lease_records_nothing
        );
        // Separate, because it takes seconds.
        $crate::store_contract_tests!($make: chaos:
            five_thousand_tasks_are_each_counted_once_under_chaos
        );
    };
    ($make:path: $module:ident: $($test:ident),+) => {
        $(
            #[tokio::test]
            async fn $test() {
                $crate::contract::$module::$test($make().await).await;
            }
        )+
    };
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub(crate) fn locator(registry: &str, path: &str) -> RepositoryLocator {
    RepositoryLocator::new(endpoint(registry), path).unwrap()
}

/// Returns tasks from `gcr.io/<repository>` to `target.example/<repository>`.
pub fn tasks(repository: &str, number: usize) -> Vec<TaskSpec> {
    let source = Arc::new(locator("gcr.io", repository));
    let target = Arc::new(locator("target.example", repository));
    let task = |n: usize| {
        let tag: imgsync_oci::Tag = format!("v{n}").parse().unwrap();
        TaskSpec {
            rule: 2,
            source: TagLocator { repository: source.clone(), tag: tag.clone() },
            digest: Some(Digest::sha256(tag.as_str().as_bytes())),
            target: TagLocator { repository: target.clone(), tag },
            digest_tags: DigestTagHints::default(),
        }
    };
    (0..number).map(task).collect()
}

pub fn new_batch() -> NewBatch {
    NewBatch {
        id: BatchId::generate(),
        rules: Digest::sha256(b"rules"),
        options: r#"{"rules":[]}"#.to_owned(),
        supersedes: None,
        fence: None,
    }
}

pub fn segment(name: &str, number: usize) -> PlanSegment {
    let listed_at = Timestamp::from_second(1_767_225_600).unwrap();
    PlanSegment {
        key: format!("2 gcr.io/{name}"),
        listed_at,
        tasks: tasks(name, number).into_iter().map(|task| (task, None)).collect(),
    }
}

pub fn copied_bytes(copied: u64) -> super::Usage {
    super::Usage { bytes: imgsync_model::batch::BlobBytes { copied, ..Default::default() }, ..Default::default() }
}

impl StoreUnderTest {
    /// Creates a batch with a complete plan of this many tasks in one repository.
    pub(crate) async fn create_batch(&self, tasks: usize) -> BatchId {
        let batch = new_batch();
        let id = batch.id;
        self.store.create(batch).await.unwrap();
        assert_eq!(self.store.append(id, segment("a/b", tasks)).await.unwrap(), AppendResult::Appended(0));
        self.store.complete_plan(id, PlanSize::default()).await.unwrap();
        id
    }

    /// Publishes all publishable tasks, and returns their task references.
    pub(crate) async fn publish(&self, batch: BatchId) -> Vec<TaskRef> {
        let mut task_refs = Vec::new();
        let mut from = 0;
        loop {
            let blocks = self.store.list_unpublished(batch, from, 1_000).await.unwrap();
            let Some(last) = blocks.last() else { break };
            from = last.first + 1;
            for block in &blocks {
                task_refs.extend(block.tasks.iter().map(|(run, task)| TaskRef { batch, run: *run, index: task.index }));
            }
        }
        self.store.mark_published(batch, task_refs.clone()).await.unwrap();
        task_refs
    }

    pub(crate) async fn claim_task(&self, task_ref: TaskRef, worker: &str) -> ClaimResult {
        self.store.claim_task(task_ref, None, worker, LEASE_TTL).await.unwrap()
    }

    /// Claims a task that must be claimable.
    pub(crate) async fn claim<'w>(&self, task_ref: TaskRef, worker: &'w str) -> TaskHolder<'w> {
        match self.claim_task(task_ref, worker).await {
            ClaimResult::Claimed { token, .. } => TaskHolder { worker, token },
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn finish(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        result: TaskResult,
    ) -> super::FinishReply {
        self.store.finish(task_ref, holder, result, super::Usage::default()).await.unwrap()
    }

    /// Returns a batch after checking that its counts add up and agree with its tasks.
    pub async fn checked_batch(&self, batch: BatchId) -> super::Batch {
        let found = self.store.batch(batch).await.unwrap().unwrap();
        let mut in_state = [0; 8];
        for row in self.store.tasks(batch, None, 0, usize::MAX).await.unwrap() {
            in_state[usize::from(row.state.code())] += 1;
        }
        assert_eq!(found.counts, TaskCounts::from_states(|state| in_state[usize::from(state.code())]));
        let with_queue = [TaskState::Queued, TaskState::Retry].map(|state| in_state[usize::from(state.code())]);
        assert_eq!([found.queued, found.retrying], with_queue);
        let all: Vec<u32> = (0..u32::try_from(found.counts.total).unwrap()).rev().collect();
        for state in self.store.task_states(batch, &all).await.unwrap() {
            in_state[usize::from(state.code())] -= 1;
        }
        assert_eq!(in_state, [0; 8]);
        let publishable =
            if found.state == BatchState::Running { found.counts.waiting - found.queued - found.retrying } else { 0 };
        assert_eq!(self.store.count_publishable(batch).await.unwrap(), publishable);
        assert_eq!(found.counts.total, found.counts.unfinished() + found.counts.ended());
        found
    }

    pub(crate) async fn task_state(&self, task_ref: TaskRef) -> TaskState {
        self.store.tasks(task_ref.batch, None, task_ref.index, 1).await.unwrap()[0].state
    }
}
