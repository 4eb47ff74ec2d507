//! Plans of batches, and queries.

use std::time::Duration;

use super::{StoreUnderTest, copied_bytes, new_batch, segment, tasks};
use crate::{
    AppendResult, BatchState, ClaimResult, Fence, FinishReply, LEASE_TTL, LeaseResult, ListingFailure, NewBatch,
    PlanCompletion, PlanSize, PruneOutcome, PruneRecord, RecordCounts, RequeueFilter, Usage, is_start_lease_lost,
};
use imgsync_model::batch::{BatchId, Failure, RequestCounts, TaskRef, TaskResult, TaskState};
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;

pub async fn a_batch_goes_from_its_plan_to_its_end(subject: StoreUnderTest) {
    let batch = subject.create_batch(3).await;
    let before = subject.checked_batch(batch).await;
    assert_eq!((before.state, before.counts.total, before.counts.waiting), (BatchState::Running, 3, 3));
    assert!(before.plan_completed_at.is_some() && before.ended_at.is_none());
    assert_eq!(before.created_at, (subject.now)());

    let blocks = subject.store.list_unpublished(batch, 0, 1).await.unwrap();
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].listed_at, segment("a/b", 0).listed_at);
    let planned: Vec<_> = blocks[0].tasks.iter().map(|(_, task)| task.spec.clone()).collect();
    assert_eq!(planned, tasks("a/b", 3));

    let task_refs = subject.publish(batch).await;
    assert!(subject.store.list_unpublished(batch, 0, 1).await.unwrap().is_empty());
    for (task_ref, result) in task_refs.iter().zip([
        TaskResult::Copied,
        TaskResult::Unchanged,
        TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1)),
    ]) {
        let holder = subject.claim(*task_ref, "w").await;
        assert_eq!(subject.checked_batch(batch).await.counts.running, 1);
        let spent = Usage { requests: RequestCounts { source: 2, target: 3 }, ..copied_bytes(10) };
        assert_eq!(subject.store.finish(*task_ref, holder, result, spent).await.unwrap(), FinishReply::Counted);
    }
    let after = subject.checked_batch(batch).await;
    assert_eq!((after.state, after.ended_at), (BatchState::Done, Some((subject.now)())));
    assert_eq!((after.counts.copied, after.counts.unchanged, after.counts.failed), (1, 1, 1));
    assert_eq!(after.usage, Usage { requests: RequestCounts { source: 6, target: 9 }, ..copied_bytes(30) });
    assert_eq!(subject.store.batch_state(batch).await.unwrap(), Some(BatchState::Done));
}

pub async fn a_batch_without_tasks_is_done_when_its_plan_is_complete(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    assert_eq!(subject.store.append(id, segment("empty", 0)).await.unwrap(), AppendResult::Appended(0));
    assert_eq!(subject.checked_batch(id).await.state, BatchState::Running, "more may come");
    subject.store.complete_plan(id, PlanSize::default()).await.unwrap();
    let ended_at = subject.checked_batch(id).await.ended_at;
    assert!(ended_at.is_some());
    (subject.advance)(Duration::from_secs(5));
    subject.store.complete_plan(id, PlanSize::default()).await.unwrap();
    assert_eq!(subject.checked_batch(id).await.ended_at, ended_at);
}

pub async fn a_repository_is_added_once(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch.clone()).await.unwrap();
    assert_eq!(subject.store.append(id, segment("a", 4)).await.unwrap(), AppendResult::Appended(0));
    // Repeated by a process that does not know whether it succeeded.
    subject.store.create(batch).await.unwrap();
    assert_eq!(subject.store.append(id, segment("a", 5)).await.unwrap(), AppendResult::AlreadyPlanned);
    assert_eq!(subject.store.append(id, segment("b", 3)).await.unwrap(), AppendResult::Appended(4));
    assert_eq!(subject.store.segment_keys(id).await.unwrap(), ["2 gcr.io/a", "2 gcr.io/b"]);
    assert_eq!(subject.checked_batch(id).await.counts.total, 7);
    assert_eq!(subject.publish(id).await.len(), 7);
}

pub async fn a_plan_that_lacks_acknowledged_segments_is_not_complete(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    subject.store.append(id, segment("a", 2)).await.unwrap();
    let task_ref = subject.publish(id).await[0];
    let holder = subject.claim(task_ref, "w").await;
    subject.finish(task_ref, holder, TaskResult::Copied).await;
    // As if "b", of three tasks, had been acknowledged and lost.
    let acknowledged = PlanSize { segments: 2, tasks: 5 };
    let found = PlanCompletion::Incomplete(PlanSize { segments: 1, tasks: 2 });
    assert_eq!(subject.store.complete_plan(id, acknowledged).await.unwrap(), found);
    let with_fewer_tasks = PlanSize { segments: 1, tasks: 3 };
    assert_eq!(subject.store.complete_plan(id, with_fewer_tasks).await.unwrap(), found);
    let open = subject.checked_batch(id).await;
    assert_eq!((open.state, open.plan_completed_at), (BatchState::Running, None));
    assert_eq!(subject.store.append(id, segment("b", 3)).await.unwrap(), AppendResult::Appended(2), "added again");
    // Another process may have added more.
    subject.store.append(id, segment("c", 1)).await.unwrap();
    assert_eq!(subject.store.complete_plan(id, acknowledged).await.unwrap(), PlanCompletion::Complete);
    // Repeated after a lost response.
    assert_eq!(subject.store.complete_plan(id, acknowledged).await.unwrap(), PlanCompletion::Complete);
    assert_eq!(subject.checked_batch(id).await.counts.total, 6);
}

pub async fn a_task_is_claimed_by_the_mark_of_its_chunk(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    for name in ["a", "b"] {
        subject.store.append(id, segment(name, 2)).await.unwrap();
    }
    let blocks = subject.store.list_unpublished(id, 0, 10).await.unwrap();
    let marks = [blocks[0].mark, blocks[1].mark];
    for (index, mark) in [(0, marks[0]), (1, marks[0]), (2, marks[1]), (3, None)] {
        let task_ref = TaskRef { batch: id, run: 0, index };
        let claimed = subject.store.claim_task(task_ref, mark, "w", LEASE_TTL).await.unwrap();
        assert!(matches!(claimed, ClaimResult::Claimed { .. }), "{index}: {claimed:?}");
    }
}

pub async fn tasks_settled_by_the_listing_are_counted_and_never_published(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    let mut to_append = segment("a", 6);
    for (position, (_, result)) in to_append.tasks.iter_mut().enumerate() {
        *result = match position {
            1 => None,
            3 => Some(TaskResult::Failed(Failure::new(ErrorKind::Collision, "two want it", 0))),
            _ => Some(TaskResult::Unchanged),
        };
    }
    subject.store.append(id, to_append).await.unwrap();
    subject.store.complete_plan(id, PlanSize::default()).await.unwrap();
    let counts = subject.checked_batch(id).await.counts;
    assert_eq!((counts.total, counts.unchanged, counts.failed, counts.waiting), (6, 4, 1, 1));
    let task_refs = subject.publish(id).await;
    assert_eq!(task_refs, [TaskRef { batch: id, run: 0, index: 1 }]);
    let failed = subject.store.failures(id, 0, 10).await.unwrap();
    assert_eq!((failed.len(), failed[0].task.index, failed[0].failure.kind), (1, 3, ErrorKind::Collision));
    let holder = subject.claim(task_refs[0], "w").await;
    subject.finish(task_refs[0], holder, TaskResult::Copied).await;
    assert_eq!(subject.checked_batch(id).await.state, BatchState::Done);
}

pub async fn a_large_repository_is_published_block_by_block(subject: StoreUnderTest) {
    let batch = subject.create_batch(1_201).await;
    let mut seen = Vec::new();
    let mut from = 0;
    loop {
        let blocks = subject.store.list_unpublished(batch, from, 1).await.unwrap();
        let Some(block) = blocks.first() else { break };
        assert_eq!(blocks.len(), 1, "no more than was asked for");
        assert!(block.first >= from && block.tasks.len() <= 500);
        seen.extend(block.tasks.iter().map(|(_, task)| task.index));
        from = block.first + 1;
    }
    assert_eq!(seen, (0..1_201).collect::<Vec<_>>());
    assert_eq!(subject.store.list_unpublished(batch, 0, 600).await.unwrap().len(), 2);
}

pub async fn unconfirmed_tasks_are_published_again(subject: StoreUnderTest) {
    let batch = subject.create_batch(10).await;
    let task_ref = |index| TaskRef { batch, run: 0, index };
    subject.store.mark_published(batch, (0..6).map(task_ref).collect()).await.unwrap();
    // One task was delivered before its confirmation was seen.
    let holder = subject.claim(task_ref(7), "w").await;
    subject.store.mark_published(batch, vec![task_ref(7)]).await.unwrap();
    assert_eq!(subject.task_state(task_ref(7)).await, TaskState::Running);
    let left = subject.publish(batch).await;
    assert_eq!(left, [6, 8, 9].map(task_ref));
    assert_eq!(subject.finish(task_ref(7), holder, TaskResult::Copied).await, FinishReply::Counted);
    assert_eq!(subject.task_state(task_ref(0)).await, TaskState::Queued);
}

pub async fn a_cancelled_batch_accepts_no_segments(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    subject.store.append(id, segment("a", 2)).await.unwrap();
    assert_eq!(subject.store.cancel(id).await.unwrap(), BatchState::Cancelled);
    let stopped = AppendResult::Closed(BatchState::Cancelled);
    assert_eq!(subject.store.append(id, segment("b", 2)).await.unwrap(), stopped);
    let found = subject.checked_batch(id).await;
    assert_eq!((found.counts.total, found.counts.cancelled), (2, 2));
    assert!(found.ended_at.is_some(), "nothing more can come");
}

pub async fn a_later_batch_supersedes_an_earlier_one(subject: StoreUnderTest) {
    let earlier = subject.create_batch(3).await;
    let task_refs = subject.publish(earlier).await;
    let holder = subject.claim(task_refs[0], "w").await;
    let rules = Digest::sha256(b"rules");
    assert_eq!(subject.store.find_unfinished(&rules).await.unwrap(), Some(earlier));
    assert_eq!(subject.store.find_unfinished(&Digest::sha256(b"others")).await.unwrap(), None);

    let later = NewBatch { supersedes: Some(earlier), ..new_batch() };
    subject.store.create(later.clone()).await.unwrap();
    assert_eq!(subject.store.find_unfinished(&rules).await.unwrap(), Some(later.id));
    assert_eq!(subject.checked_batch(later.id).await.supersedes, Some(earlier));
    let found = subject.checked_batch(earlier).await;
    assert_eq!((found.state, found.counts.cancelled, found.counts.running), (BatchState::Superseded, 3, 0));
    assert_eq!(subject.store.check(task_refs[0], holder, LEASE_TTL).await.unwrap(), crate::LeaseStatus::BatchStopped);
    assert_eq!(subject.claim_task(task_refs[1], "w").await, ClaimResult::Cancelled);
    subject.finish(task_refs[0], holder, TaskResult::Cancelled).await;
    let found = subject.checked_batch(earlier).await;
    assert_eq!((found.state, found.counts.cancelled), (BatchState::Superseded, 3));
    assert!(found.ended_at.is_some());
    assert!(subject.store.requeue(earlier, RequeueFilter::default()).await.is_err());
}

pub async fn a_batch_is_created_only_under_the_lease_of_its_fence(subject: StoreUnderTest) {
    let lease = async |holder| match subject.store.acquire("starting", holder, LEASE_TTL).await.unwrap() {
        LeaseResult::Acquired { token } => Fence { name: "starting".to_owned(), holder: holder.to_owned(), token },
        held => panic!("{held:?}"),
    };
    let first = lease("one").await;
    let batch = NewBatch { fence: Some(first.clone()), ..new_batch() };
    subject.store.create(batch.clone()).await.unwrap();
    (subject.advance)(LEASE_TTL * 2);
    let earlier = batch.id;
    subject.store.create(batch).await.unwrap();
    for (fence, why) in [
        (first.clone(), "it has expired"),
        (Fence { token: lease("two").await.token, ..first.clone() }, "another holds it"),
        (Fence { holder: "two".to_owned(), ..first }, "an earlier token"),
    ] {
        let late = NewBatch { supersedes: Some(earlier), fence: Some(fence), ..new_batch() };
        let error = subject.store.create(late.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{why}: {error}");
        assert!(is_start_lease_lost(&error), "{why}: {error}");
        assert!(subject.store.batch(late.id).await.unwrap().is_none(), "{why}");
    }
    assert_eq!(subject.checked_batch(earlier).await.state, BatchState::Running, "nothing superseded it");
    assert_eq!(subject.store.batches(9).await.unwrap().len(), 1);
}

pub async fn batches_are_found_by_id_prefix(subject: StoreUnderTest) {
    let mut ids = Vec::new();
    for (front, back) in [(0x11u8, 1u8), (0x22, 2), (0x22, 3)] {
        let id = BatchId::from_bytes([front, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, back]);
        subject.store.create(NewBatch { id, ..new_batch() }).await.unwrap();
        ids.push(id);
    }
    let listed: Vec<_> = subject.store.batches(2).await.unwrap().iter().map(|batch| batch.id).collect();
    assert_eq!(listed, [ids[2], ids[1]], "newest first");
    assert_eq!(subject.store.resolve("11").await.unwrap(), ids[0]);
    assert_eq!(subject.store.resolve(&ids[1].to_string()).await.unwrap(), ids[1]);
    let ambiguous = subject.store.resolve("22").await.unwrap_err();
    assert!(ambiguous.kind() == ErrorKind::Invalid && ambiguous.to_string().contains(&ids[2].to_string()));
    assert_eq!(subject.store.resolve("33").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(subject.store.resolve("%").await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn the_newest_batches_of_each_rule_are_read_at_once(subject: StoreUnderTest) {
    let rules = [b"a", b"b", b"c"].map(|name| Digest::sha256(name));
    let mut ids = Vec::new();
    for number in 0..8u8 {
        let id = BatchId::from_bytes([number, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 9]);
        let rules = rules[usize::from(number % 2)].clone();
        subject.store.create(NewBatch { id, rules, ..new_batch() }).await.unwrap();
        ids.push(id);
    }
    let newest = async |rules: &[Digest], before, each| -> Vec<BatchId> {
        let found = subject.store.newest_batches(rules, before, each).await.unwrap();
        found.iter().map(|batch| batch.id).collect()
    };
    assert_eq!(newest(&rules, None, 2).await, [ids[6], ids[4], ids[7], ids[5]], "by rule, the newest first");
    assert_eq!(newest(&rules[1..2], Some(ids[5]), 9).await, [ids[3], ids[1]]);
    assert_eq!(newest(&rules[..1], Some(ids[5]), 1).await, [ids[4]], "the bound may be a batch of another rule");
    assert_eq!(newest(&rules[2..], None, 9).await, []);
    assert_eq!(newest(&[], None, 9).await, []);
    let page = subject.store.batches_before(Some(ids[3]), 2).await.unwrap();
    assert_eq!(page.iter().map(|batch| batch.id).collect::<Vec<_>>(), [ids[2], ids[1]]);
    subject.store.cancel(ids[6]).await.unwrap();
    (subject.advance)(std::time::Duration::from_secs(1));
    subject.store.remove_before((subject.now)()).await.unwrap();
    assert!(!newest(&rules[..1], None, 9).await.contains(&ids[6]), "a removed batch leaves the history");
}

pub async fn listing_failures_are_recorded(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    for (repository, kind) in
        [("gcr.io/b", ErrorKind::Denied), ("gcr.io/a", ErrorKind::TimedOut), ("gcr.io/b", ErrorKind::NotFound)]
    {
        let unlisted = ListingFailure { repository: repository.into(), kind, error: "why".into() };
        subject.store.record_listing_failure(batch, unlisted).await.unwrap();
    }
    let unlisted = subject.store.listing_failures(batch).await.unwrap();
    let shown: Vec<_> = unlisted.iter().map(|one| (&*one.repository, one.kind)).collect();
    assert_eq!(shown, [("gcr.io/a", ErrorKind::TimedOut), ("gcr.io/b", ErrorKind::NotFound)]);
    let outcome = PruneOutcome::Removed;
    let pruned = PruneRecord { source: "s".into(), target: "t".into(), outcome, digest: None, reason: String::new() };
    subject.store.record_pruned(batch, pruned).await.unwrap();
    let other = subject.create_batch(1).await;
    let counts = subject.store.count_records(&[other, batch, BatchId::from_bytes([9; 16])]).await.unwrap();
    let none = RecordCounts::default();
    assert_eq!(counts, [none, RecordCounts { unlisted: 2, pruned: 1 }, none]);
    assert_eq!(subject.store.count_records(&[]).await.unwrap(), []);
    subject
        .store
        .add_usage(batch, Usage { requests: RequestCounts { source: 4, target: 1 }, ..copied_bytes(0) })
        .await
        .unwrap();
    assert_eq!(subject.checked_batch(batch).await.usage.requests, RequestCounts { source: 4, target: 1 });
}

pub async fn failures_and_tasks_are_read_page_by_page(subject: StoreUnderTest) {
    let batch = subject.create_batch(1_100).await;
    let task_refs = subject.publish(batch).await;
    let failing: Vec<u32> = vec![3, 4, 499, 500, 1_099];
    for index in &failing {
        let task_ref = task_refs[*index as usize];
        let holder = subject.claim(task_ref, "w").await;
        let mut failure = Failure::new(ErrorKind::Refused, &format!("no {index}"), 2);
        // Only some errors say which registry answered.
        failure.registry = (index % 2 == 0).then(|| "r.example:5000".parse().unwrap());
        subject.finish(task_ref, holder, TaskResult::Failed(failure)).await;
    }
    let mut seen = Vec::new();
    let mut from = 0;
    loop {
        let page = subject.store.failures(batch, from, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        from = last.task.index + 1;
        for failed in &page {
            assert_eq!(failed.failure.error, format!("no {}", failed.task.index));
            let registry = (failed.task.index % 2 == 0).then(|| "r.example:5000".to_owned());
            assert_eq!(failed.failure.registry.as_ref().map(ToString::to_string), registry);
            assert_eq!(failed.task.spec, tasks("a/b", 1_100)[failed.task.index as usize]);
        }
        seen.extend(page.iter().map(|failed| failed.task.index));
    }
    assert_eq!(seen, failing);
    let rows = subject.store.tasks(batch, Some(TaskState::Failed), 4, 3).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.task.index).collect::<Vec<_>>(), [4, 499, 500]);
    let rows = subject.store.tasks(batch, None, 498, 4).await.unwrap();
    let states: Vec<_> = rows.iter().map(|row| (row.task.index, row.state)).collect();
    let (failed, queued) = (TaskState::Failed, TaskState::Queued);
    assert_eq!(states, [(498, queued), (499, failed), (500, failed), (501, queued)]);
}

pub async fn old_batches_are_removed_whole(subject: StoreUnderTest) {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let (ended, held) = (subject.create_batch(1).await, subject.create_batch(2).await);
    let task_ref = subject.publish(ended).await[0];
    let holder = subject.claim(task_ref, "w").await;
    subject.finish(task_ref, holder, TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1))).await;
    (subject.advance)(DAY * 91);
    let running = TaskRef { batch: held, run: 0, index: 0 };
    subject.claim(running, "w").await;
    let recent = subject.create_batch(1).await;
    assert_eq!(subject.store.remove_before((subject.now)() - DAY * 90).await.unwrap(), 1);
    assert!(subject.store.batch(ended).await.unwrap().is_none());
    assert_eq!(subject.store.failures(ended, 0, 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(subject.store.timeline(ended).await.unwrap_err().kind(), ErrorKind::NotFound);
    subject.checked_batch(held).await;
    subject.checked_batch(recent).await;
    (subject.advance)(DAY);
    assert_eq!(subject.store.remove_before((subject.now)() - DAY * 90).await.unwrap(), 1, "held by nobody any more");
    assert_eq!(subject.store.batches(10).await.unwrap().len(), 1);
}
