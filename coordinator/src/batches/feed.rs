//! Dispatches the plan to the queues block by block and records what they confirm. Each queue gets no more than its
//! route drains in some seconds, so a later batch waits no longer than that, and a slow route holds up no other.

mod depth;
mod flow;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use imgsync_common::batch::{BatchId, Lane, Message, Options, Priority, TaskState, Ticket};
use imgsync_common::error::Result;
use imgsync_common::store::{Batch, Block, Feeding, Heartbeat};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub(crate) use self::depth::MAX_DEPTH;
use self::flow::{Flow, FlowKey, LOOK_AGAIN};
use super::house::House;

/// Tasks read from the plan per query to find those to publish.
const AT_ONCE: usize = 500;
/// Interval between exchanges of dispatch rates with other batches.
const SHARE_EVERY: Duration = Duration::from_secs(1);
/// How long the published dispatch rates of a batch stay valid.
const SHARE_HOLDS: Duration = Duration::from_secs(10);
/// Interval between reads of the workers' slots.
const SLOTS_EVERY: Duration = Duration::from_secs(5);
/// Minimum interval between scans of the whole plan for requeued tasks. After a scan the pause is at least
/// [`RESCAN_PART`] times its duration.
const RESCAN_EVERY: Duration = Duration::from_secs(1);
const RESCAN_PART: u32 = 10;
/// Backoff after a full queue.
const FULL_FOR: Duration = Duration::from_millis(500);
/// Rows read from the ledger per query to find what an earlier leader published.
const ROWS: usize = 1_000;

/// Dispatches one batch.
pub(super) struct Feeder<'a> {
    house: &'a House,
    batch: BatchId,
    options: Options,
    flows: HashMap<FlowKey, Flow>,
    /// Index up to which the plan has been scanned.
    scanned: u32,
    /// When the plan may be scanned again.
    rescan_at: Option<Instant>,
    workers: Vec<Heartbeat>,
    counted_at: Option<Instant>,
    /// Dispatch rates of other batches.
    others: Vec<Feeding>,
    shared_at: Option<Instant>,
    /// Routes recorded in the store, where the queue does not do that.
    noted: HashSet<Lane>,
}

impl<'a> Feeder<'a> {
    /// Creates a dispatcher that knows what an earlier leader has published.
    pub(super) async fn new(house: &'a House, found: &Batch) -> Result<Feeder<'a>> {
        let batch = found.id;
        let mut feeder = Feeder {
            house,
            batch,
            options: Options::decode(&found.options, &format!("batch {batch}"))?,
            flows: HashMap::new(),
            scanned: 0,
            rescan_at: None,
            workers: Vec::new(),
            counted_at: None,
            others: Vec::new(),
            shared_at: None,
            noted: HashSet::new(),
        };
        let mut from = 0;
        loop {
            let rows = house.store.tasks(batch, Some(TaskState::Queued), from, ROWS).await?;
            let Some(last) = rows.last() else { break };
            from = last.task.index.saturating_add(1);
            for row in rows {
                let planned = &row.task.planned;
                let lane = feeder.options.lane(planned.source.home.end(), planned.target.home.end());
                let priority = feeder.priority(planned.rule);
                feeder.flow(FlowKey { lane, priority }).note_published([row.task.index]);
            }
        }
        Ok(feeder)
    }

    /// Dispatches until `stop` is cancelled. `more` signals new tasks in the plan.
    pub(super) async fn feed(&mut self, more: &Notify, stop: &CancellationToken) -> Result<()> {
        while !stop.is_cancelled() {
            self.follow().await?;
            self.share().await?;
            self.find_more(stop).await?;
            self.fill(stop).await?;
            let now = Instant::now();
            let pause = self.flows.values().map(|flow| flow.lasts(now)).min().unwrap_or(LOOK_AGAIN[1]);
            tokio::select! {
                () = more.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    fn flow(&mut self, key: FlowKey) -> &mut Flow {
        self.flows.entry(key).or_insert_with(|| Flow::new(Instant::now()))
    }

    fn priority(&self, rule: u32) -> Priority {
        // A task of a missing rule fails, and its worker says why.
        self.options.rules.get(rule as usize).map_or(Priority::Normal, |rule| rule.priority)
    }

    /// Updates the states of the published tasks.
    async fn follow(&mut self) -> Result<()> {
        let tasks: Vec<u32> = self.flows.values().flat_map(Flow::out).collect();
        if tasks.is_empty() {
            return Ok(());
        }
        let states = self.house.store.states(self.batch, &tasks).await?;
        let mut states: HashMap<u32, TaskState> = tasks.into_iter().zip(states).collect();
        let now = Instant::now();
        for flow in self.flows.values_mut() {
            let its: Vec<(u32, TaskState)> =
                flow.out().filter_map(|task| Some((task, states.remove(&task)?))).collect();
            flow.follow(now, its);
        }
        Ok(())
    }

    /// Publishes this batch's dispatch rates, reads those of others, and computes the batch's share of each queue.
    async fn share(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.counted_at.is_none_or(|at| now.duration_since(at) >= SLOTS_EVERY) {
            self.workers = self.house.store.workers().await?;
            self.counted_at = Some(now);
        }
        if self.shared_at.is_none_or(|at| now.duration_since(at) >= SHARE_EVERY) {
            let alive = self.flows.iter().filter(|(_, flow)| flow.is_alive());
            let feeding = alive.map(|(FlowKey { lane, priority }, flow)| Feeding {
                lane: lane.clone(),
                priority: *priority,
                per_second: flow.rate.per_second(now),
            });
            self.others = self.house.store.feed_beside(self.batch, feeding.collect(), SHARE_HOLDS).await?;
            self.shared_at = Some(now);
        }
        let own: Vec<(Lane, Priority, f64)> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.is_alive())
            .map(|(key, flow)| (key.lane.clone(), key.priority, flow.rate.per_second(now)))
            .collect();
        for (key, flow) in &mut self.flows {
            let same =
                |lane: &Lane, priority: Priority| *lane == key.lane && priority.is_urgent() == key.priority.is_urgent();
            let others = self.others.iter().map(|other| (&other.lane, other.priority, other.per_second));
            let all = own.iter().map(|(lane, priority, rate)| (lane, *priority, *rate)).chain(others);
            let (mut per_second, mut weight) = (0.0, 0);
            for (_, priority, rate) in all.filter(|(lane, priority, _)| same(lane, *priority)) {
                per_second += rate;
                weight += priority.weight();
            }
            let serves = |worker: &&Heartbeat| {
                !worker.draining && !worker.unserved.iter().any(|unserved| unserved.lane == key.lane)
            };
            let slots: u64 = self.workers.iter().filter(serves).map(|worker| u64::from(worker.slots)).sum();
            flow.share = depth::share(depth::depth(per_second, slots), key.priority.weight(), weight);
        }
        Ok(())
    }

    /// Scans the plan for tasks that are not known yet: new ones, or, if there are none, requeued ones.
    async fn find_more(&mut self, stop: &CancellationToken) -> Result<()> {
        let new = self.house.store.publishable(self.batch).await?;
        if new <= self.flows.values().map(Flow::left).sum::<u64>() || self.scan(stop).await? || self.scanned == 0 {
            return Ok(());
        }
        let began = Instant::now();
        if self.rescan_at.is_none_or(|at| began >= at) && !stop.is_cancelled() {
            self.flows.values_mut().for_each(Flow::forget_parts);
            self.scanned = 0;
            self.scan(stop).await?;
            // Limits rescans of a long plan to a small part of the time.
            self.rescan_at = Some(Instant::now() + RESCAN_EVERY.max(began.elapsed() * RESCAN_PART));
        }
        Ok(())
    }

    /// Scans the plan from the last position to its end. Returns whether there were any blocks.
    async fn scan(&mut self, stop: &CancellationToken) -> Result<bool> {
        let mut found = false;
        while !stop.is_cancelled() {
            let blocks = self.house.store.unpublished(self.batch, self.scanned, AT_ONCE).await?;
            let Some(last) = blocks.last() else { break };
            self.scanned = last.first + 1;
            found = true;
            for block in blocks {
                self.offer(block).await?;
            }
        }
        Ok(found)
    }

    /// Publishes tasks to each queue that has room.
    async fn fill(&mut self, stop: &CancellationToken) -> Result<()> {
        let keys: Vec<FlowKey> = self.flows.keys().cloned().collect();
        for key in keys {
            while !stop.is_cancelled()
                && let Some(flow) = self.flows.get_mut(&key)
                && flow.room(Instant::now()) > 0
                && let Some(part) = flow.first_part()
            {
                // Reading the block determines anew what is left of it.
                flow.note_left(part, 0);
                for block in self.house.store.unpublished(self.batch, part, 1).await? {
                    if block.first == part {
                        self.offer(block).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Publishes the tasks of a block for which there is room, and records the rest.
    async fn offer(&mut self, block: Block) -> Result<()> {
        let part = block.first;
        let options = &self.options;
        let lane_of = |task: &imgsync_common::batch::Task| {
            options.lane(task.planned.source.home.end(), task.planned.target.home.end())
        };
        let mut flows: BTreeMap<FlowKey, Vec<(Lane, Message)>> = BTreeMap::new();
        for (lane, mut message) in Message::for_tasks(self.batch, block.listed_at, block.tasks, lane_of) {
            message.priority = self.priority(message.rule);
            let key = FlowKey { lane: lane.clone(), priority: message.priority };
            flows.entry(key).or_default().push((lane, message));
        }
        let is_new = flows.keys().any(|key| !self.flows.contains_key(key));
        for key in flows.keys() {
            self.flow(key.clone()).note_left(part, 1);
        }
        if is_new {
            self.share().await?;
        }
        for (key, messages) in flows {
            self.publish(part, key, messages).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, part: u32, key: FlowKey, mut messages: Vec<(Lane, Message)>) -> Result<()> {
        let now = Instant::now();
        let room = self.flow(key.clone()).room(now);
        let (mut tasks, mut fit) = (0, 0);
        while tasks < room && fit < messages.len() {
            tasks += messages[fit].1.targets.len() as u64;
            fit += 1;
        }
        let mut left = messages.split_off(fit);
        if !messages.is_empty() {
            if !self.house.is_cluster() && self.noted.insert(key.lane.clone()) {
                // In a cluster the queue records routes for the workers; embedded, this is for the dashboard and the
                // API.
                self.house.store.note_lanes(std::slice::from_ref(&key.lane)).await?;
            }
            let published = self.house.queue.publish(&messages).await?;
            let refused: HashSet<usize> = published.refused.into_iter().collect();
            let mut confirmed: Vec<Ticket> = Vec::new();
            for (at, message) in messages.into_iter().enumerate() {
                match refused.contains(&at) {
                    true => left.push(message),
                    false => confirmed.extend(message.1.tickets()),
                }
            }
            self.house.store.published(self.batch, confirmed.clone()).await?;
            let flow = self.flow(key.clone());
            flow.full_until = (!refused.is_empty()).then(|| now + FULL_FOR);
            flow.note_published(confirmed.into_iter().map(|ticket| ticket.index));
        }
        let tasks = left.iter().map(|(_, message)| message.targets.len() as u64).sum();
        self.flow(key).note_left(part, tasks);
        Ok(())
    }
}
