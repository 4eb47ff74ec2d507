//! A small run over a queue and a store: plan, dispatch, take, claim, finish, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::{MemoryQueue, RouteFilter, TaskQueue};
use imgsync_model::batch::{BatchId, Message, Route, Task, TaskRef, TaskResult};
use imgsync_store::contract::{StoreUnderTest, copied_bytes, new_batch, segment};
use imgsync_store::{
    BatchState, ClaimResult, Clock as _, FinishReply, LEASE_TTL, ManualClock, PlanSize, SqliteStore, Store, TaskHolder,
};
use jiff::Timestamp;

/// Counts every task once, although deliveries are lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_through_queue_and_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap()));
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.path(), clock.clone()).await.unwrap());
    let (advancing, put_back) = (clock.clone(), clock.clone());
    let subject = StoreUnderTest {
        store,
        advance: Box::new(move |by| advancing.advance(by)),
        set_back: Box::new(move |by| put_back.set_back(by)),
        now: Box::new(move || clock.now()),
        guard: Box::new(folder),
    };
    // Smaller than a chunk of the plan, so that the dispatcher has to wait.
    let queue: Arc<dyn TaskQueue> = Arc::new(MemoryQueue::with_route_capacity(50));
    const REPOSITORIES: usize = 5;
    const TAGS: usize = 120;
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    store.create(batch).await.unwrap();

    let end = CancellationToken::new();
    let workers: Vec<_> =
        (0..4).map(|n| tokio::spawn(run_worker(store.clone(), queue.clone(), format!("w{n}"), end.clone()))).collect();
    let dispatcher = tokio::spawn(dispatch(store.clone(), queue.clone(), id));
    for n in 0..REPOSITORIES {
        store.append(id, segment(&format!("r{n}"), TAGS)).await.unwrap();
        tokio::task::yield_now().await;
    }
    store.complete_plan(id, PlanSize::default()).await.unwrap();

    tokio::time::timeout(Duration::from_secs(60), dispatcher).await.expect("it ends").unwrap();
    end.cancel();
    let mut counted = 0;
    for worker in workers {
        counted += worker.await.unwrap();
    }
    let total = (REPOSITORIES * TAGS) as u64;
    let found = subject.checked_batch(id).await;
    assert_eq!((counted, found.counts.copied, found.usage), (total, total, copied_bytes(total)));
}

/// Publishes the plan until the batch has ended.
async fn dispatch(store: Arc<dyn Store>, queue: Arc<dyn TaskQueue>, batch: BatchId) {
    let route = |task: &Task| {
        Route::anonymous(task.spec.source.repository.endpoint().clone(), task.spec.target.repository.endpoint().clone())
    };
    while store.batch_state(batch).await.unwrap() == Some(BatchState::Running) {
        let blocks = store.list_unpublished(batch, 0, 200).await.unwrap();
        if blocks.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for block in blocks {
            let mut messages = Message::for_tasks(batch, block.listed_at, block.tasks, route);
            messages.iter_mut().for_each(|(_, message)| message.chunk = block.mark);
            while !messages.is_empty() {
                let refused = queue.publish(&messages).await.unwrap().rejected;
                let (mut confirmed, mut left) = (Vec::new(), Vec::new());
                for (position, message) in messages.into_iter().enumerate() {
                    if refused.contains(&position) {
                        left.push(message)
                    } else {
                        confirmed.extend(message.1.task_refs())
                    }
                }
                store.mark_published(batch, confirmed).await.unwrap();
                if !left.is_empty() {
                    queue.wait_for_capacity().await;
                }
                messages = left;
            }
        }
    }
}

/// Takes and runs tasks. Returns how many results counted.
async fn run_worker(store: Arc<dyn Store>, queue: Arc<dyn TaskQueue>, worker: String, end: CancellationToken) -> u64 {
    let mut counted = 0;
    while let Some(delivery) = queue.receive(&RouteFilter::All, &end).await.unwrap() {
        let task_refs: Vec<TaskRef> = delivery.message.task_refs().collect();
        let mut is_held = false;
        for task_ref in task_refs {
            match store.claim_task(task_ref, delivery.message.chunk, &worker, LEASE_TTL).await.unwrap() {
                ClaimResult::Claimed { token, .. } | ClaimResult::AlreadyOwned { token, .. } => {
                    tokio::task::yield_now().await;
                    let finished = store
                        .finish(task_ref, TaskHolder { worker: &worker, token }, TaskResult::Copied, copied_bytes(1))
                        .await
                        .unwrap();
                    counted += u64::from(finished == FinishReply::Counted);
                }
                ClaimResult::HeldBy { .. } => is_held = true,
                ClaimResult::AlreadyDone
                | ClaimResult::StaleRun
                | ClaimResult::NotInPlan
                | ClaimResult::Cancelled
                | ClaimResult::Paused
                | ClaimResult::Unknown => {}
            }
        }
        let is_lost = rand::rng().random_bool(0.1);
        match (is_held, is_lost) {
            (true, _) => delivery.requeue_after(Duration::from_millis(10)).await.unwrap(),
            // Lost between finishing and acknowledging.
            (false, true) => drop(delivery),
            (false, false) => delivery.acknowledge().await.unwrap(),
        }
    }
    counted
}
