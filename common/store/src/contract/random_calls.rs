//! Random calls in any order, for property tests of stores.

use std::time::Duration;

use super::{StoreUnderTest, copied_bytes, new_batch, segment};
use crate::{ClaimResult, FinishReply, LEASE_TTL, NewBatch, PlanSize, ReclaimScope, RequeueFilter, TaskHolder, Usage};
use imgsync_model::batch::{Failure, TaskRef, TaskResult};
use imgsync_oci::error::ErrorKind;

/// Makes one call per step, on a batch or its successor. Checks after each that counts add up and agree with the task
/// states, and that a task counts once per run.
pub async fn counts_add_up_after_any_calls(subject: &StoreUnderTest, steps: &[[u8; 3]]) {
    let store = &subject.store;
    let mut batches = vec![new_batch()];
    store.create(batches[0].clone()).await.unwrap();
    let mut held: Vec<(TaskRef, TaskHolder<'static>)> = Vec::new();
    let mut counted = std::collections::HashSet::new();
    for [call, which, amount] in steps {
        let batch = batches[usize::from(*which) % batches.len()].id;
        let run = store.batch(batch).await.unwrap().unwrap().run;
        let task_ref = TaskRef { batch, run: run.min(u32::from(amount >> 6)), index: u32::from(amount & 0x0f) };
        let some = (!held.is_empty()).then(|| held[usize::from(*which) % held.len()]);
        match call % 18 {
            0 | 1 => {
                let mut to_append = segment(&format!("r{}", which % 4), usize::from(amount % 5));
                if let Some((_, result)) = to_append.tasks.first_mut() {
                    *result = [None, Some(TaskResult::Unchanged), Some(failed())][usize::from(which % 3)].clone();
                }
                store.append(batch, to_append).await.unwrap();
            }
            2 => _ = store.complete_plan(batch, PlanSize::default()).await.unwrap(),
            3 => drop(subject.publish(batch).await),
            4..=6 => {
                let worker = if which.is_multiple_of(2) { "one" } else { "two" };
                if let ClaimResult::Claimed { token, .. } | ClaimResult::AlreadyOwned { token, .. } =
                    subject.claim_task(task_ref, worker).await
                {
                    held.push((task_ref, TaskHolder { worker, token }));
                }
            }
            7..=9 => {
                let results = [TaskResult::Copied, TaskResult::Unchanged, failed(), TaskResult::Cancelled];
                let result = results[usize::from(amount % 4)].clone();
                if let Some((task_ref, holder)) = some
                    && store.finish(task_ref, holder, result, copied_bytes(1)).await.unwrap() == FinishReply::Counted
                {
                    assert!(counted.insert(task_ref), "{task_ref:?} was counted twice");
                }
            }
            10 => {
                if let Some((task_ref, holder)) = some {
                    let wait = Duration::from_secs(u64::from(amount % 3));
                    store.reschedule(task_ref, holder, wait, *which > 9, Usage::default()).await.unwrap();
                }
            }
            11 => (subject.advance)(Duration::from_secs(u64::from(*amount))),
            12 => drop(store.pause(batch).await.unwrap()),
            13 => drop(store.resume(batch).await.unwrap()),
            14 if amount.is_multiple_of(4) => drop(store.cancel(batch).await.unwrap()),
            15 => {
                // Refused if the batch was stopped.
                _ = store.requeue(batch, RequeueFilter::default()).await;
            }
            16 => {
                let grace = LEASE_TTL;
                let scopes = [
                    ReclaimScope::ExpiredLeases { grace },
                    ReclaimScope::EmptyQueue { grace },
                    ReclaimScope::Everything,
                ];
                store.reclaim(batch, scopes[usize::from(amount % 3)]).await.unwrap();
            }
            17 if amount.is_multiple_of(8) => {
                let next = NewBatch { supersedes: Some(batch), ..new_batch() };
                store.create(next.clone()).await.unwrap();
                batches.push(next);
            }
            _ => {
                if let Some((task_ref, holder)) = some {
                    store.renew(task_ref, holder, LEASE_TTL).await.unwrap();
                }
            }
        }
        let found = subject.checked_batch(batch).await;
        let is_final = found.plan_completed_at.is_some() || found.state.is_stopped();
        assert_eq!(found.ended_at.is_some(), is_final && found.counts.unfinished() == 0, "{found:?}");
        assert!(!found.state.is_stopped() || found.counts.unfinished() == 0, "a stopped batch has ended: {found:?}");
        let failures = store.failures(batch, 0, usize::MAX).await.unwrap();
        assert_eq!(failures.len() as u64, found.counts.failed);
    }
}

fn failed() -> TaskResult {
    TaskResult::Failed(Failure::new(ErrorKind::Refused, "no", 1))
}
