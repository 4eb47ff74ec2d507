//! Gives the plan to the queue, part by part, and notes what the queue has confirmed.

use std::time::Duration;

use imgsync_common::batch::{BatchId, Lane, Message, Ticket};
use imgsync_common::error::Result;
use imgsync_common::store::Block;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::house::House;

/// Tasks that are read from the plan at a time.
const AT_ONCE: usize = 1000;
/// How long to wait for more where nothing tells of it: a requeue or a resume by another process.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Feeds one batch until told to stop.
pub(super) async fn feed(house: &House, batch: BatchId, more: &Notify, stop: &CancellationToken) -> Result<()> {
    let mut from = 0;
    while !stop.is_cancelled() {
        let blocks = house.store.unpublished(batch, from, AT_ONCE).await?;
        if blocks.is_empty() {
            if std::mem::take(&mut from) == 0 {
                tokio::select! {
                    () = more.notified() => {}
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                    () = stop.cancelled() => return Ok(()),
                }
            }
            continue;
        }
        for block in blocks {
            from = block.first + 1;
            publish(house, batch, block, stop).await?;
        }
    }
    Ok(())
}

/// Publishes a part of the plan. What there is no room for waits for room.
async fn publish(house: &House, batch: BatchId, block: Block, stop: &CancellationToken) -> Result<()> {
    let lane_of = |task: &imgsync_common::batch::Task| {
        Lane::anonymous(task.planned.source.home.end().clone(), task.planned.target.home.end().clone())
    };
    let mut waiting = Message::for_tasks(batch, block.listed_at, block.tasks, lane_of);
    while !waiting.is_empty() {
        let published = house.queue.publish(&waiting).await?;
        let refused: std::collections::HashSet<usize> = published.refused.into_iter().collect();
        let (mut left, mut confirmed): (Vec<_>, Vec<Ticket>) = (Vec::new(), Vec::new());
        for (at, (lane, message)) in waiting.into_iter().enumerate() {
            match refused.contains(&at) {
                true => left.push((lane, message)),
                false => confirmed.extend(message.tickets()),
            }
        }
        house.store.published(batch, confirmed).await?;
        waiting = left;
        if !waiting.is_empty() {
            tokio::select! {
                () = house.queue.room() => {}
                // What was not published stays in the plan.
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
    Ok(())
}
