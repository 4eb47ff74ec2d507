//! Tasks: claimed, renewed, finished, rescheduled, requeued, reclaimed.

use std::time::Duration;

use super::{StoreUnderTest, copied_bytes, new_batch, segment};
use crate::{
    BatchState, ClaimResult, FinishReply, LEASE_TTL, LeaseResult, LeaseStatus, ReclaimScope, Reclaimed, RequeueFilter,
    RescheduleReply, TaskHolder, Usage,
};
use imgsync_model::batch::{BatchId, Failure, TaskRef, TaskResult, TaskState};
use imgsync_oci::error::ErrorKind;

const SECOND: Duration = Duration::from_secs(1);

/// Returns worker `holder_w` with this token as a holder.
fn holder_w(token: u64) -> TaskHolder<'static> {
    TaskHolder { worker: "w", token }
}

pub async fn one_worker_holds_the_lease_of_a_task(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let until = (subject.now)() + LEASE_TTL;
    let holder = subject.claim(task_ref, "one").await;
    assert_eq!(subject.claim_task(task_ref, "two").await, ClaimResult::HeldBy { until });
    (subject.advance)(LEASE_TTL - SECOND);
    let until = (subject.now)() + LEASE_TTL;
    assert_eq!(subject.store.renew(task_ref, holder, LEASE_TTL).await.unwrap(), LeaseStatus::Held { until });
    (subject.advance)(LEASE_TTL - SECOND);
    assert_eq!(subject.claim_task(task_ref, "two").await, ClaimResult::HeldBy { until });
    assert_eq!(subject.finish(task_ref, holder, TaskResult::Copied).await, FinishReply::Counted);
    assert_eq!(subject.claim_task(task_ref, "two").await, ClaimResult::AlreadyDone);
    assert_eq!(subject.store.renew(task_ref, holder, LEASE_TTL).await.unwrap(), LeaseStatus::Lost);
}

pub async fn a_redelivered_task_still_belongs_to_its_worker(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let holder = subject.claim(task_ref, "one").await;
    (subject.advance)(SECOND * 20);
    assert_eq!(
        subject.claim_task(task_ref, "one").await,
        ClaimResult::AlreadyOwned { token: holder.token, attempts: 0 }
    );
    (subject.advance)(SECOND * 20);
    assert!(
        matches!(subject.claim_task(task_ref, "two").await, ClaimResult::HeldBy { .. }),
        "and held for as long again"
    );
    assert_eq!(subject.finish(task_ref, holder, TaskResult::Copied).await, FinishReply::Counted);
}

pub async fn a_fencing_token_used_by_another_worker_changes_nothing(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let holder = subject.claim(task_ref, "one").await;
    // As if a store restored from a backup had issued the token a second time.
    let other = TaskHolder { worker: "two", ..holder };
    assert_eq!(subject.store.renew(task_ref, other, LEASE_TTL).await.unwrap(), LeaseStatus::Lost);
    assert_eq!(subject.finish(task_ref, other, TaskResult::Copied).await, FinishReply::Stale);
    let put_off = subject.store.reschedule(task_ref, other, SECOND, true, Usage::default()).await.unwrap();
    assert_eq!(put_off, RescheduleReply::Stale);
    assert_eq!(subject.finish(task_ref, holder, TaskResult::Copied).await, FinishReply::Counted);
}

pub async fn fencing_tokens_are_never_below_the_time_of_the_store(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let floor = |now: jiff::Timestamp| u64::try_from(now.as_millisecond() * 1000).unwrap();
    let before = floor((subject.now)());
    assert!(subject.claim(task_ref, "one").await.token >= before);
    let named = subject.store.acquire("a name", "one", LEASE_TTL).await.unwrap();
    let LeaseResult::Acquired { token: first } = named else { panic!("{named:?}") };
    assert!(first >= before);
    (subject.advance)(LEASE_TTL * 2);
    let named = subject.store.acquire("a name", "two", LEASE_TTL).await.unwrap();
    let LeaseResult::Acquired { token: second } = named else { panic!("{named:?}") };
    assert!(second >= floor((subject.now)()) && second > first);
}

pub async fn an_expired_lease_is_taken_over_and_its_holder_is_stale(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let first = subject.claim(task_ref, "one").await;
    (subject.advance)(LEASE_TTL + SECOND);
    let second = subject.claim(task_ref, "two").await;
    assert!(second.token > first.token);
    assert_eq!(subject.store.check(task_ref, first, LEASE_TTL).await.unwrap(), LeaseStatus::Lost);
    assert_eq!(
        subject.store.finish(task_ref, first, TaskResult::Copied, copied_bytes(7)).await.unwrap(),
        FinishReply::Stale
    );
    assert_eq!(
        subject.store.reschedule(task_ref, first, SECOND, true, copied_bytes(7)).await.unwrap(),
        RescheduleReply::Stale,
        "nor may it put off what another is at"
    );
    assert_eq!(
        subject.store.finish(task_ref, second, TaskResult::Unchanged, copied_bytes(1)).await.unwrap(),
        FinishReply::Counted
    );
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.counts.unchanged, found.counts.copied, found.usage), (1, 0, copied_bytes(1)));
}

pub async fn an_expired_lease_is_valid_until_it_is_taken_over(subject: StoreUnderTest) {
    let batch = subject.create_batch(2).await;
    let task_refs = subject.publish(batch).await;
    let (one, two) = (subject.claim(task_refs[0], "one").await, subject.claim(task_refs[1], "one").await);
    (subject.advance)(LEASE_TTL * 10);
    let until = (subject.now)() + LEASE_TTL;
    assert_eq!(subject.store.check(task_refs[0], one, LEASE_TTL).await.unwrap(), LeaseStatus::Held { until });
    assert!(matches!(subject.claim_task(task_refs[0], "two").await, ClaimResult::HeldBy { .. }));
    assert_eq!(subject.finish(task_refs[1], two, TaskResult::Copied).await, FinishReply::Counted);
}

pub async fn a_task_is_counted_once_however_often_it_is_finished(subject: StoreUnderTest) {
    let batch = subject.create_batch(2).await;
    let task_ref = subject.publish(batch).await[0];
    let holder = subject.claim(task_ref, "one").await;
    assert_eq!(
        subject.store.finish(task_ref, holder, TaskResult::Copied, copied_bytes(5)).await.unwrap(),
        FinishReply::Counted
    );
    for result in
        [TaskResult::Copied, TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1)), TaskResult::Cancelled]
    {
        let again = subject.store.finish(task_ref, holder, result, copied_bytes(5)).await.unwrap();
        assert_eq!(again, FinishReply::AlreadyDone);
    }
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.counts.copied, found.counts.ended(), found.usage), (1, 1, copied_bytes(5)));
    assert!(subject.store.failures(batch, 0, 10).await.unwrap().is_empty());
}

pub async fn only_counted_attempts_increase_the_count(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let put_off = async |counts, wait| {
        let holder = subject.claim(task_ref, "w").await;
        subject.store.reschedule(task_ref, holder, wait, counts, copied_bytes(1)).await.unwrap()
    };
    assert_eq!(put_off(true, SECOND * 10).await, RescheduleReply::Scheduled { attempts: 1 });
    assert_eq!(subject.task_state(task_ref).await, TaskState::Retry);
    assert_eq!(put_off(false, SECOND * 300).await, RescheduleReply::Scheduled { attempts: 1 });
    assert_eq!(put_off(false, Duration::ZERO).await, RescheduleReply::Scheduled { attempts: 1 });
    assert_eq!(subject.task_state(task_ref).await, TaskState::New, "who leads publishes it");
    assert_eq!(put_off(true, SECOND * 10).await, RescheduleReply::Scheduled { attempts: 2 });
    let counts = subject.checked_batch(batch).await.counts;
    assert_eq!((counts.waiting, counts.running), (1, 0));
    let ClaimResult::Claimed { token, attempts: 2, .. } = subject.claim_task(task_ref, "w").await else {
        panic!("two were counted")
    };
    subject.finish(task_ref, holder_w(token), TaskResult::Copied).await;
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.state, found.usage), (BatchState::Done, copied_bytes(4)));
}

pub async fn a_paused_batch_returns_tasks_to_the_plan(subject: StoreUnderTest) {
    let batch = subject.create_batch(4).await;
    let task_refs = subject.publish(batch).await;
    let running = subject.claim(task_refs[0], "w").await;
    let waiting = subject.claim(task_refs[1], "w").await;
    subject.store.reschedule(task_refs[1], waiting, SECOND, true, Usage::default()).await.unwrap();
    assert_eq!(subject.store.pause(batch).await.unwrap(), BatchState::Paused);
    assert_eq!(subject.store.pause(batch).await.unwrap(), BatchState::Paused);
    for task_ref in &task_refs[1..3] {
        assert_eq!(subject.claim_task(*task_ref, "w").await, ClaimResult::Paused);
        assert_eq!(subject.task_state(*task_ref).await, TaskState::New);
    }
    assert!(subject.store.list_unpublished(batch, 0, 1).await.unwrap().is_empty());
    // Running tasks continue.
    assert!(matches!(subject.store.check(task_refs[0], running, LEASE_TTL).await.unwrap(), LeaseStatus::Held { .. }));
    assert_eq!(subject.finish(task_refs[0], running, TaskResult::Copied).await, FinishReply::Counted);

    assert_eq!(subject.store.resume(batch).await.unwrap(), BatchState::Running);
    assert_eq!(subject.publish(batch).await, task_refs[1..3], "the last is with the queue still");
    for task_ref in &task_refs[1..] {
        let holder = subject.claim(*task_ref, "w").await;
        subject.finish(*task_ref, holder, TaskResult::Copied).await;
    }
    assert_eq!(subject.checked_batch(batch).await.state, BatchState::Done);
    assert_eq!(subject.store.pause(batch).await.unwrap(), BatchState::Done);
    assert_eq!(subject.store.cancel(batch).await.unwrap(), BatchState::Done);
}

pub async fn a_cancelled_batch_cancels_unfinished_tasks_at_once(subject: StoreUnderTest) {
    let batch = subject.create_batch(700).await;
    let task_refs = subject.publish(batch).await;
    let mut holders = Vec::new();
    for task_ref in &task_refs[..5] {
        holders.push(subject.claim(*task_ref, "w").await);
    }
    subject.finish(task_refs[0], holders[0], TaskResult::Copied).await;
    subject.store.reschedule(task_refs[4], holders[4], SECOND, true, Usage::default()).await.unwrap();
    assert_eq!(subject.store.cancel(batch).await.unwrap(), BatchState::Cancelled);
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.counts.copied, found.counts.running, found.counts.cancelled), (1, 0, 699));
    assert!(found.ended_at.is_some());
    assert_eq!(subject.claim_task(task_refs[600], "w").await, ClaimResult::Cancelled);
    assert_eq!(subject.store.renew(task_refs[1], holders[1], LEASE_TTL).await.unwrap(), LeaseStatus::BatchStopped);

    assert_eq!(subject.claim_task(task_refs[1], "another").await, ClaimResult::Cancelled);

    // One has finished its work, one stops, one would be retried: nothing of them counts any more.
    assert_eq!(subject.finish(task_refs[1], holders[1], TaskResult::Copied).await, FinishReply::Stale);
    assert_eq!(subject.finish(task_refs[2], holders[2], TaskResult::Cancelled).await, FinishReply::AlreadyDone);
    let put_off = subject.store.reschedule(task_refs[3], holders[3], SECOND, true, Usage::default()).await.unwrap();
    assert_eq!(put_off, RescheduleReply::Stale);
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.counts.copied, found.counts.cancelled, found.state), (1, 699, BatchState::Cancelled));
    for scope in [ReclaimScope::ExpiredLeases { grace: Duration::ZERO }, ReclaimScope::Everything] {
        assert_eq!(
            subject.store.reclaim(batch, scope).await.unwrap(),
            Reclaimed::default(),
            "nothing is left to put back"
        );
    }
    assert_eq!(subject.store.resume(batch).await.unwrap(), BatchState::Cancelled);
}

pub async fn failed_tasks_are_requeued_and_their_old_messages_ignored(subject: StoreUnderTest) {
    let batch = subject.create_batch(3).await;
    let task_refs = subject.publish(batch).await;
    for (task_ref, result) in task_refs.iter().zip([
        TaskResult::Copied,
        TaskResult::Failed(Failure::new(ErrorKind::Refused, "no", 5)),
        TaskResult::Failed(Failure::new(ErrorKind::Refused, "no", 5)),
    ]) {
        let holder = subject.claim(*task_ref, "w").await;
        subject.store.reschedule(*task_ref, holder, SECOND, true, Usage::default()).await.unwrap();
        let holder = subject.claim(*task_ref, "w").await;
        subject.finish(*task_ref, holder, result).await;
    }
    assert_eq!(subject.checked_batch(batch).await.state, BatchState::Done);
    assert_eq!(subject.store.requeue(batch, RequeueFilter::default()).await.unwrap(), 2);
    assert_eq!(subject.store.requeue(batch, RequeueFilter::default()).await.unwrap(), 0, "once");
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.state, found.run, found.counts.waiting), (BatchState::Running, 1, 2));
    assert!(found.ended_at.is_none() && subject.store.failures(batch, 0, 10).await.unwrap().is_empty());
    // Confirmations and messages of the first run arrive late.
    subject.store.mark_published(batch, task_refs.clone()).await.unwrap();
    assert_eq!(subject.claim_task(task_refs[1], "w").await, ClaimResult::StaleRun);
    let again = subject.publish(batch).await;
    assert_eq!(again, [1, 2].map(|index| TaskRef { batch, run: 1, index }));
    for task_ref in again {
        let ClaimResult::Claimed { token, attempts: 0, .. } = subject.claim_task(task_ref, "w").await else {
            panic!("a run of its own")
        };
        assert_eq!(subject.finish(task_ref, holder_w(token), TaskResult::Copied).await, FinishReply::Counted);
    }
    assert_eq!(subject.checked_batch(batch).await.state, BatchState::Done);
}

pub async fn only_failures_that_match_the_filter_are_requeued(subject: StoreUnderTest) {
    let batch = subject.create_batch(4).await;
    let task_refs = subject.publish(batch).await;
    for (task_ref, kind) in
        task_refs.iter().zip([ErrorKind::Refused, ErrorKind::Denied, ErrorKind::Refused, ErrorKind::NotFound])
    {
        let holder = subject.claim(*task_ref, "w").await;
        subject.finish(*task_ref, holder, TaskResult::Failed(Failure::new(kind, "no", 1))).await;
    }
    let registry = |name: &str| RequeueFilter { registry: Some(name.parse().unwrap()), ..RequeueFilter::default() };
    assert_eq!(subject.store.requeue(batch, registry("quay.io")).await.unwrap(), 0);
    assert_eq!(subject.checked_batch(batch).await.state, BatchState::Done);
    assert_eq!(
        subject
            .store
            .requeue(batch, RequeueFilter { kind: Some(ErrorKind::Refused), ..RequeueFilter::default() })
            .await
            .unwrap(),
        2
    );
    assert_eq!(subject.publish(batch).await.len(), 2);
    assert_eq!(subject.store.requeue(batch, registry("gcr.io")).await.unwrap(), 2);
    let again = subject.publish(batch).await;
    assert_eq!(again, [1, 3].map(|index| TaskRef { batch, run: 2, index }));
    // Tasks requeued earlier keep their run.
    subject.claim(TaskRef { batch, run: 1, index: 0 }, "w").await;
}

pub async fn reclaiming_returns_lost_tasks_to_the_plan(subject: StoreUnderTest) {
    let batch = subject.create_batch(5).await;
    let task_refs = subject.publish(batch).await;
    let grace = SECOND * 60;
    let dead = subject.claim(task_refs[0], "dead").await;
    let waiting = subject.claim(task_refs[1], "w").await;
    subject.store.reschedule(task_refs[1], waiting, SECOND * 10, true, Usage::default()).await.unwrap();
    (subject.advance)(SECOND * 80);
    subject.claim(task_refs[2], "alive").await;
    assert_eq!(
        subject.store.reclaim(batch, ReclaimScope::ExpiredLeases { grace }).await.unwrap(),
        Reclaimed::default()
    );
    (subject.advance)(SECOND * 20);
    assert_eq!(
        subject.store.reclaim(batch, ReclaimScope::ExpiredLeases { grace }).await.unwrap(),
        Reclaimed { leased: 1, queued: 0 }
    );
    assert_eq!(subject.finish(task_refs[0], dead, TaskResult::Copied).await, FinishReply::Stale);
    // Two queued tasks and one overdue retry; one task is alive.
    assert_eq!(
        subject.store.reclaim(batch, ReclaimScope::EmptyQueue { grace }).await.unwrap(),
        Reclaimed { leased: 0, queued: 3 }
    );
    assert_eq!(subject.publish(batch).await.len(), 4);
    let ClaimResult::Claimed { token, attempts: 1, .. } = subject.claim_task(task_refs[1], "w").await else {
        panic!("attempts stay")
    };
    assert_eq!(
        subject.store.reclaim(batch, ReclaimScope::Everything).await.unwrap(),
        Reclaimed { leased: 2, queued: 3 }
    );
    assert_eq!(subject.finish(task_refs[1], holder_w(token), TaskResult::Copied).await, FinishReply::Stale);
    assert_eq!(subject.checked_batch(batch).await.counts.waiting, 5);

    // No task of a stopped batch starts again.
    subject.claim(task_refs[3], "dead").await;
    subject.store.cancel(batch).await.unwrap();
    (subject.advance)(LEASE_TTL + grace);
    assert_eq!(
        subject.store.reclaim(batch, ReclaimScope::ExpiredLeases { grace }).await.unwrap(),
        Reclaimed::default()
    );
    let found = subject.checked_batch(batch).await;
    assert_eq!((found.counts.cancelled, found.counts.running), (5, 0));
    assert!(found.ended_at.is_some());
}

pub async fn an_unknown_task_or_batch_is_reported_as_unknown(subject: StoreUnderTest) {
    let nobody = BatchId::generate();
    let task_ref = TaskRef { batch: nobody, run: 0, index: 0 };
    assert_eq!(subject.claim_task(task_ref, "w").await, ClaimResult::Unknown);
    assert_eq!(subject.finish(task_ref, holder_w(1), TaskResult::Copied).await, FinishReply::Stale);
    assert_eq!(subject.store.renew(task_ref, holder_w(1), LEASE_TTL).await.unwrap(), LeaseStatus::Lost);
    assert_eq!(subject.store.batch_state(nobody).await.unwrap(), None);
    assert_eq!(subject.store.batch(nobody).await.unwrap(), None);
    assert_eq!(subject.store.cancel(nobody).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(subject.store.append(nobody, segment("a", 1)).await.unwrap_err().kind(), ErrorKind::NotFound);

    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    subject.store.append(id, segment("a", 3)).await.unwrap();
    assert_eq!(subject.claim_task(TaskRef { batch: id, run: 0, index: 3 }, "w").await, ClaimResult::Unknown);
    assert_eq!(subject.claim_task(TaskRef { batch: id, run: 0, index: u32::MAX }, "w").await, ClaimResult::Unknown);
}

pub async fn lost_leases_of_a_task_are_counted(subject: StoreUnderTest) {
    let batch = subject.create_batch(1).await;
    let task_ref = subject.publish(batch).await[0];
    let losses = async |task_ref: TaskRef| match subject.claim_task(task_ref, "w").await {
        ClaimResult::Claimed { losses, .. } => losses,
        other => panic!("{other:?}"),
    };
    assert_eq!(losses(task_ref).await, 0);
    (subject.advance)(LEASE_TTL + SECOND);
    assert_eq!(losses(task_ref).await, 1, "taken over");
    (subject.advance)(LEASE_TTL + SECOND);
    let reclaimed = subject.store.reclaim(batch, ReclaimScope::ExpiredLeases { grace: Duration::ZERO }).await.unwrap();
    assert_eq!(reclaimed, Reclaimed { leased: 1, queued: 0 });
    subject.publish(batch).await;
    let ClaimResult::Claimed { token, losses: 2, .. } = subject.claim_task(task_ref, "w").await else {
        panic!("swept")
    };
    subject.store.reschedule(task_ref, holder_w(token), Duration::ZERO, false, Usage::default()).await.unwrap();
    let ClaimResult::Claimed { token, losses: 2, .. } = subject.claim_task(task_ref, "w").await else {
        panic!("given back is not lost")
    };
    let failure = Failure::new(ErrorKind::Local, "no", 1);
    subject.finish(task_ref, holder_w(token), TaskResult::Failed(failure)).await;
    subject.store.requeue(batch, RequeueFilter::default()).await.unwrap();
    let task_ref = subject.publish(batch).await[0];
    assert_eq!(losses(task_ref).await, 0, "a new run has a clean slate");
    subject.store.reclaim(batch, ReclaimScope::Everything).await.unwrap();
    let task_ref = subject.publish(batch).await[0];
    assert_eq!(losses(task_ref).await, 0, "who ended the only process knows why");
}
