//! Duplicate deliveries, dead and frozen workers, a queue that loses messages: each task still counts once.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{StoreUnderTest, copied_bytes};
use crate::{BatchState, ClaimResult, FinishReply, LEASE_TTL, LeaseStatus, ReclaimScope, TaskHolder, Usage};
use imgsync_model::batch::{Failure, TaskRef, TaskResult};
use imgsync_oci::error::ErrorKind;

const TASKS: usize = 5_000;

/// A task that a worker holds, or believes to hold.
struct HeldTask {
    task_ref: TaskRef,
    worker: String,
    token: u64,
}

impl HeldTask {
    fn holder(&self) -> TaskHolder<'_> {
        TaskHolder { worker: &self.worker, token: self.token }
    }
}

pub async fn five_thousand_tasks_are_each_counted_once_under_chaos(subject: StoreUnderTest) {
    let mut rng = StdRng::seed_from_u64(5_000);
    let batch = subject.create_batch(TASKS).await;
    let mut queue: Vec<TaskRef> = Vec::new();
    let (mut working, mut frozen): (Vec<HeldTask>, Vec<HeldTask>) = (Vec::new(), Vec::new());
    let (mut counted, mut stale, mut deliveries) = (0u64, 0u64, 0u64);
    let mut spent = Usage::default();
    let put = |task_refs: Vec<TaskRef>, queue: &mut Vec<TaskRef>, rng: &mut StdRng| {
        for task_ref in task_refs {
            queue.push(task_ref);
            if rng.random_bool(0.6) {
                queue.push(task_ref);
            }
        }
        queue.shuffle(rng);
    };
    put(subject.publish(batch).await, &mut queue, &mut rng);
    while subject.store.batch_state(batch).await.unwrap() == Some(BatchState::Running) {
        match rng.random_range(0..100) {
            0..45 if working.len() < 40 && !queue.is_empty() => {
                let task_ref = queue.swap_remove(rng.random_range(0..queue.len()));
                deliveries += 1;
                let worker = format!("w{}", rng.random_range(0..8));
                match subject.claim_task(task_ref, &worker).await {
                    ClaimResult::Claimed { token, .. } | ClaimResult::AlreadyOwned { token, .. } => {
                        working.push(HeldTask { task_ref, worker, token });
                    }
                    ClaimResult::HeldBy { .. } => queue.push(task_ref),
                    ClaimResult::AlreadyDone | ClaimResult::StaleRun => {}
                    other => panic!("{other:?}"),
                }
            }
            // A worker dies.
            45..50 if !working.is_empty() => {
                let HeldTask { task_ref, .. } = working.swap_remove(rng.random_range(0..working.len()));
                // Its delivery usually comes again; the broker may have died as well.
                if rng.random_bool(0.9) {
                    queue.push(task_ref);
                }
            }
            50..53 if !working.is_empty() => frozen.push(working.swap_remove(rng.random_range(0..working.len()))),
            53..55 => (subject.advance)(Duration::from_secs(rng.random_range(0..LEASE_TTL.as_secs() * 2))),
            55..58 if !working.is_empty() => {
                let held = working.swap_remove(rng.random_range(0..working.len()));
                let task_ref = held.task_ref;
                subject.store.reschedule(task_ref, held.holder(), LEASE_TTL, true, Usage::default()).await.unwrap();
                queue.push(task_ref);
            }
            // A worker finishes, or a frozen one resumes.
            roll => {
                let from = if roll >= 97 && !frozen.is_empty() { &mut frozen } else { &mut working };
                if !from.is_empty() {
                    let held = from.swap_remove(rng.random_range(0..from.len()));
                    let (task_ref, holder) = (held.task_ref, held.holder());
                    let may_write = subject.store.check(task_ref, holder, LEASE_TTL).await.unwrap();
                    let result = match rng.random_range(0..10) {
                        0 => TaskResult::Failed(Failure::new(ErrorKind::Refused, "no", 1)),
                        1..4 => TaskResult::Unchanged,
                        _ => TaskResult::Copied,
                    };
                    let cost = copied_bytes(rng.random_range(0..1_000_000));
                    match subject.store.finish(task_ref, holder, result, cost).await.unwrap() {
                        FinishReply::Counted => {
                            assert!(matches!(may_write, LeaseStatus::Held { .. }));
                            counted += 1;
                            spent += cost;
                        }
                        FinishReply::Stale | FinishReply::AlreadyDone => {
                            assert_eq!(may_write, LeaseStatus::Lost);
                            stale += 1;
                        }
                    }
                    // A crash between finishing and acknowledging.
                    if rng.random_bool(0.1) {
                        queue.push(task_ref);
                    }
                }
            }
        }
        if queue.is_empty() && working.is_empty() {
            (subject.advance)(LEASE_TTL * 3);
            subject.store.reclaim(batch, ReclaimScope::EmptyQueue { grace: LEASE_TTL }).await.unwrap();
            put(subject.publish(batch).await, &mut queue, &mut rng);
        }
    }
    let found = subject.checked_batch(batch).await;
    assert_eq!((counted, found.counts.ended()), (TASKS as u64, TASKS as u64));
    assert_eq!(found.usage, spent);
    assert!(deliveries > TASKS as u64 * 8 / 5, "{deliveries} deliveries");
    assert!(stale > 0, "some outlived their leases");
}
