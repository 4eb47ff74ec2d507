//! Contract tests for stores: see [`store_contract_tests!`](crate::store_contract_tests).

#![allow(clippy::unwrap_used, missing_docs)] // Tests, named for what they hold.

pub mod chaos;
pub mod clock;
pub mod end_to_end;
pub mod ledger;
pub mod plan;
pub mod provenance;
pub mod random_calls;
pub mod rate_limit;
pub mod records;
pub mod shared_state;
pub mod timeline;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{AppendResult, BatchState, ClaimResult, LEASE_TTL, NewBatch, PlanSegment, Store, TaskHolder};
use crate::batch::{
    BatchId, Endpoint, RepositoryLocator, TagLocator, TaskCounts, TaskRef, TaskResult, TaskSpec, TaskState,
};
use crate::image::{Digest, DigestTagHints};

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

/// Declares the contract tests of a store: `store_contract_tests!(make)`, where `make` is an `async fn() -> StoreUnderTest`.
#[macro_export]
macro_rules! store_contract_tests {
    ($make:path) => {
        $crate::store_contract_tests!($make: plan:
            a_batch_goes_from_its_plan_to_its_end,
            a_batch_without_tasks_is_done_when_it_is_sealed,
            a_repository_is_added_once,
            what_the_listing_settled_is_counted_and_never_published,
            a_large_repository_is_published_part_by_part,
            what_was_not_confirmed_is_published_again,
            nothing_is_added_to_a_batch_that_was_stopped,
            a_later_batch_takes_the_place_of_an_earlier_one,
            batches_are_found_by_the_beginning_of_their_ids,
            what_could_not_be_listed_is_noted,
            failures_and_tasks_are_read_page_by_page,
            old_batches_are_removed_whole
        );
        $crate::store_contract_tests!($make: ledger:
            one_worker_holds_a_task_at_a_time,
            its_own_task_delivered_again_is_adopted,
            a_token_in_another_workers_hands_moves_nothing,
            tokens_are_never_below_the_time_of_the_store,
            a_lease_that_ran_out_is_taken_over_and_its_holder_is_stale,
            a_lease_that_ran_out_is_still_its_holders_until_taken,
            a_task_is_counted_once_however_often_it_is_finished,
            attempts_are_counted_where_they_count,
            a_paused_batch_takes_its_tasks_back,
            a_cancelled_batch_counts_all_that_has_not_ended_at_once,
            failed_tasks_are_requeued_and_their_old_messages_ignored,
            only_the_failures_that_are_meant_are_requeued,
            a_sweep_puts_back_what_was_lost,
            a_task_that_was_lost_is_known_by_it,
            what_nobody_knows_is_said_to_be_unknown
        );
        $crate::store_contract_tests!($make: clock:
            what_ends_in_the_far_future_has_ended,
            what_was_noted_in_the_future_is_noted_anew,
            a_batch_of_the_future_is_neither_newest_for_good_nor_in_the_way
        );
        $crate::store_contract_tests!($make: timeline:
            outcomes_are_counted_in_the_part_of_the_time_that_they_came_in,
            the_parts_of_a_long_batch_are_wide_and_few,
            the_slowest_tasks_are_known_and_who_did_how_much
        );
        $crate::store_contract_tests!($make: shared_state:
            the_cache_says_what_it_was_told_last,
            the_cache_keeps_options_apart_and_forgets_what_it_is_told_to,
            an_exported_cache_is_imported_whole,
            an_import_keeps_what_was_seen_later_and_says_what_it_refused,
            a_blob_is_found_where_it_was_last_seen_and_forgotten_with_age,
            a_proof_is_of_one_source_and_one_blob_and_believed_for_seven_days,
            the_latest_wait_holds_until_it_is_over,
            a_limit_is_one_budget_for_all_who_ask,
            who_asks_while_an_account_is_held_off_is_told_to_wait,
            a_refusal_teaches_a_rate_that_is_forgotten_in_time,
            the_careful_begin_slowly_once,
            one_holds_a_name_at_a_time_and_epochs_grow,
            a_worker_lives_as_long_as_it_says_so,
            batches_know_what_others_feed,
            lanes_are_remembered,
            an_alarm_of_the_broker_is_known_until_it_is_over_or_not_noted_again,
            a_store_that_takes_writes_says_so,
            a_schedule_is_remembered_by_its_last_begin
        );
        $crate::store_contract_tests!($make: provenance:
            a_target_tag_has_the_origin_that_was_noted_last,
            since_when_a_source_is_missing_is_kept_until_it_is_back,
            since_when_no_rule_makes_a_target_is_kept_until_one_does,
            what_was_removed_is_told_with_its_batch,
            rules_that_chose_nothing_are_told_with_their_batch,
            whom_the_end_of_a_batch_was_told_to_is_kept_with_it,
            a_file_that_was_hashed_is_known_in_that_version_alone
        );
        $crate::store_contract_tests!($make: rate_limit:
            places_are_shared_evenly_and_those_of_the_dead_come_back,
            where_there_are_fewer_places_than_holders_they_take_turns,
            what_was_learnt_can_be_looked_at,
            a_quota_that_is_low_holds_pulls_off_until_its_window_ends,
            what_a_machine_moves_is_added_up_by_month
        );
        $crate::store_contract_tests!($make: records:
            a_tag_is_recorded_by_who_holds_its_lease,
            who_has_lost_the_lease_of_a_tag_records_nothing
        );
        // Separate, because it takes seconds.
        $crate::store_contract_tests!($make: chaos:
            five_thousand_tasks_in_a_storm_are_each_counted_once
        );
    };
    ($make:path: $module:ident: $($test:ident),+) => {
        $(
            #[tokio::test]
            async fn $test() {
                $crate::store::contract::$module::$test($make().await).await;
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
        let tag: crate::image::Tag = format!("v{n}").parse().unwrap();
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

pub(crate) fn new_batch() -> NewBatch {
    NewBatch {
        id: BatchId::generate(),
        rules: Digest::sha256(b"rules"),
        options: r#"{"rules":[]}"#.to_owned(),
        supersedes: None,
    }
}

pub(crate) fn segment(name: &str, number: usize) -> PlanSegment {
    let listed_at = Timestamp::from_second(1_767_225_600).unwrap();
    PlanSegment {
        key: format!("2 gcr.io/{name}"),
        listed_at,
        tasks: tasks(name, number).into_iter().map(|task| (task, None)).collect(),
    }
}

pub(crate) fn copied_bytes(copied: u64) -> super::Usage {
    super::Usage { bytes: crate::batch::BlobBytes { copied, ..Default::default() }, ..Default::default() }
}

impl StoreUnderTest {
    /// Creates a batch with a complete plan of this many tasks in one repository.
    pub(crate) async fn create_batch(&self, tasks: usize) -> BatchId {
        let batch = new_batch();
        let id = batch.id;
        self.store.create(batch).await.unwrap();
        assert_eq!(self.store.append(id, segment("a/b", tasks)).await.unwrap(), AppendResult::Appended(0));
        self.store.complete_plan(id).await.unwrap();
        id
    }

    /// Publishes all publishable tasks, and returns their tickets.
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
        self.store.claim_task(task_ref, worker, LEASE_TTL).await.unwrap()
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
    ) -> super::FinishResult {
        self.store.finish(task_ref, holder, result, super::Usage::default()).await.unwrap()
    }

    /// Returns a batch after checking that its counts add up and agree with its tasks.
    pub(crate) async fn checked_batch(&self, batch: BatchId) -> super::Batch {
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
