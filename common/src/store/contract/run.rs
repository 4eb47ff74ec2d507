//! A small run over a queue and a store: plan, dispatch, take, claim, finish, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

use super::{Subject, bytes, new_batch, repository};
use crate::batch::{BatchId, Lane, Message, Task, Ticket, Verdict};
use crate::queue::{Lanes, TaskQueue};
use crate::store::{Control, Finished, LEASE, Start, Store, TaskHolder};

/// Counts every task once, although deliveries are lost on the way.
pub async fn a_run_goes_through_queue_and_ledger(subject: Subject, queue: Arc<dyn TaskQueue>) {
    const REPOSITORIES: usize = 5;
    const TAGS: usize = 120;
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    store.create(batch).await.unwrap();

    let end = CancellationToken::new();
    let workers: Vec<_> =
        (0..4).map(|n| tokio::spawn(work(store.clone(), queue.clone(), format!("w{n}"), end.clone()))).collect();
    let feeder = tokio::spawn(feed(store.clone(), queue.clone(), id));
    for n in 0..REPOSITORIES {
        store.append(id, repository(&format!("r{n}"), TAGS)).await.unwrap();
        tokio::task::yield_now().await;
    }
    store.seal_all(id).await.unwrap();

    tokio::time::timeout(Duration::from_secs(60), feeder).await.expect("it ends").unwrap();
    end.cancel();
    let mut counted = 0;
    for worker in workers {
        counted += worker.await.unwrap();
    }
    let total = (REPOSITORIES * TAGS) as u64;
    let found = subject.look(id).await;
    assert_eq!((counted, found.counts.copied, found.spent), (total, total, bytes(total)));
}

/// Publishes the plan until the batch has ended.
async fn feed(store: Arc<dyn Store>, queue: Arc<dyn TaskQueue>, batch: BatchId) {
    let lane =
        |task: &Task| Lane::anonymous(task.planned.source.home.end().clone(), task.planned.target.home.end().clone());
    while store.control(batch).await.unwrap() == Some(Control::Running) {
        let blocks = store.unpublished(batch, 0, 200).await.unwrap();
        if blocks.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for block in blocks {
            let mut messages = Message::for_tasks(batch, block.listed_at, block.tasks, lane);
            while !messages.is_empty() {
                let refused = queue.publish(&messages).await.unwrap().refused;
                let (mut confirmed, mut left) = (Vec::new(), Vec::new());
                for (position, message) in messages.into_iter().enumerate() {
                    if refused.contains(&position) { left.push(message) } else { confirmed.extend(message.1.tickets()) }
                }
                store.published(batch, confirmed).await.unwrap();
                if !left.is_empty() {
                    queue.room().await;
                }
                messages = left;
            }
        }
    }
}

/// Takes and runs tasks. Returns how many results counted.
async fn work(store: Arc<dyn Store>, queue: Arc<dyn TaskQueue>, worker: String, end: CancellationToken) -> u64 {
    let mut counted = 0;
    while let Some(delivery) = queue.take(&Lanes::All, &end).await.unwrap() {
        let tickets: Vec<Ticket> = delivery.message.tickets().collect();
        let mut is_held = false;
        for ticket in tickets {
            match store.start(ticket, &worker, LEASE).await.unwrap() {
                Start::Go { epoch, .. } | Start::Own { epoch, .. } => {
                    tokio::task::yield_now().await;
                    let finished = store
                        .finish(ticket, TaskHolder { worker: &worker, token: epoch }, Verdict::Copied, bytes(1))
                        .await
                        .unwrap();
                    counted += u64::from(finished == Finished::Counted);
                }
                Start::HeldBy { .. } => is_held = true,
                Start::AlreadyDone | Start::StaleRun | Start::Cancelled | Start::Paused | Start::Unknown => {}
            }
        }
        let is_lost = rand::rng().random_bool(0.1);
        match (is_held, is_lost) {
            (true, _) => delivery.give_back_after(Duration::from_millis(10)).await.unwrap(),
            // Lost between finishing and acknowledging.
            (false, true) => drop(delivery),
            (false, false) => delivery.acknowledge().await.unwrap(),
        }
    }
    counted
}
