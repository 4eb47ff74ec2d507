//! Gives the plan to the queue, part by part, and notes what the queue has confirmed.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use imgsync_common::batch::{BatchId, Lane, Message, Options, Ticket};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::store::Block;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::house::House;

/// Tasks that are read from the plan at a time.
const AT_ONCE: usize = 500;
/// How long to wait for more where nothing tells of it: a requeue or a resume by another process.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long to wait for room in the window: at first, and at the most. Tasks of which nothing has to be copied go through
/// a whole window in half a second.
const ROOM_AGAIN: [Duration; 2] = [Duration::from_millis(50), LOOK_AGAIN];

/// Feeds one batch.
pub(super) struct Feeder<'a> {
    house: &'a House,
    batch: BatchId,
}

impl<'a> Feeder<'a> {
    pub(super) fn new(house: &'a House, batch: BatchId) -> Feeder<'a> {
        Feeder { house, batch }
    }

    /// Feeds until told to stop.
    pub(super) async fn feed(&self, more: &Notify, stop: &CancellationToken) -> Result<()> {
        let mut options = None;
        let mut from = 0;
        let mut pause = ROOM_AGAIN[0];
        while !stop.is_cancelled() {
            if !self.has_room().await? {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
                pause = (pause * 2).min(ROOM_AGAIN[1]);
                continue;
            }
            pause = ROOM_AGAIN[0];
            let blocks = self.house.store.unpublished(self.batch, from, AT_ONCE).await?;
            if blocks.is_empty() {
                if std::mem::take(&mut from) == 0 {
                    self.wait(more, stop).await;
                }
                continue;
            }
            let options = match &options {
                Some(options) => options,
                None => options.insert(self.options().await?),
            };
            for block in blocks {
                from = block.first + 1;
                self.publish(block, options, stop).await?;
            }
        }
        Ok(())
    }

    async fn wait(&self, more: &Notify, stop: &CancellationToken) {
        tokio::select! {
            () = more.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Whether fewer of the batch's tasks are with the queue than may be: a queue that is shared by many batches is not to
    /// be filled by one, and what is not with the queue can be paused and cancelled at once.
    async fn has_room(&self) -> Result<bool> {
        let Some(window) = self.house.window else { return Ok(true) };
        Ok(self.house.store.queued(self.batch).await?.is_none_or(|queued| queued < window))
    }

    async fn options(&self) -> Result<Options> {
        let what = format!("batch {}", self.batch);
        let batch = self
            .house
            .store
            .batch(self.batch)
            .await?
            .ok_or_else(|| Error::new(Class::NotFound, format!("reading {what}"), "the store does not have it"))?;
        Options::decode(&batch.options, &what)
    }

    /// Publishes a part of the plan. What there is no room for waits for room.
    async fn publish(&self, block: Block, options: &Options, stop: &CancellationToken) -> Result<()> {
        let lane_of = |task: &imgsync_common::batch::Task| {
            options.lane(task.planned.source.home.end(), task.planned.target.home.end())
        };
        let mut waiting = Message::for_tasks(self.batch, block.listed_at, block.tasks, lane_of);
        if !self.house.is_cluster() {
            // In a cluster the queue does, which others ask; here it is for those who look.
            let lanes: Vec<Lane> =
                waiting.iter().map(|(lane, _)| lane).collect::<BTreeSet<_>>().into_iter().cloned().collect();
            self.house.store.note_lanes(&lanes).await?;
        }
        while !waiting.is_empty() {
            let published = self.house.queue.publish(&waiting).await?;
            let refused: HashSet<usize> = published.refused.into_iter().collect();
            let (mut left, mut confirmed): (Vec<_>, Vec<Ticket>) = (Vec::new(), Vec::new());
            for (at, (lane, message)) in waiting.into_iter().enumerate() {
                match refused.contains(&at) {
                    true => left.push((lane, message)),
                    false => confirmed.extend(message.tickets()),
                }
            }
            self.house.store.published(self.batch, confirmed).await?;
            waiting = left;
            if !waiting.is_empty() {
                tokio::select! {
                    () = self.house.queue.room() => {}
                    // What was not published stays in the plan.
                    () = stop.cancelled() => return Ok(()),
                }
            }
        }
        Ok(())
    }
}
