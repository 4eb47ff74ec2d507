//! Dispatches the plan to the queues block by block and records what they confirm. Each queue gets no more than its
//! route drains in some seconds, so a later batch waits no longer than that, and a slow route holds up no other.

mod depth;
mod flow;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, BatchOptions, Message, Priority, Route, TaskRef, TaskState};
use imgsync_oci::error::Result;
use imgsync_store::{Batch, Heartbeat, PlanBlock, RouteThroughput};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub(crate) use self::depth::MAX_DEPTH;
use self::flow::{CHECK_INTERVALS, Flow, FlowKey};
use super::backend::Backend;

/// Tasks read from the plan per query to find those to publish.
const TASKS_PER_SCAN: usize = 500;
/// Interval between exchanges of dispatch rates with other batches.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the published dispatch rates of a batch stay valid.
const SHARE_TTL: Duration = Duration::from_secs(10);
/// Interval between reads of the workers' slots.
const WORKER_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum interval between scans of the whole plan for requeued tasks. After a scan the pause is at least
/// [`RESCAN_PAUSE_FACTOR`] times its duration.
const RESCAN_INTERVAL: Duration = Duration::from_secs(1);
const RESCAN_PAUSE_FACTOR: u32 = 10;
/// Backoff after a full queue.
const QUEUE_FULL_BACKOFF: Duration = Duration::from_millis(500);
/// Rows read from the ledger per query to find what an earlier leader published.
const LEDGER_PAGE_SIZE: usize = 1_000;

/// Dispatches one batch.
pub(super) struct Dispatcher<'a> {
    backend: &'a Backend,
    batch: BatchId,
    options: BatchOptions,
    flows: HashMap<FlowKey, Flow>,
    /// Index up to which the plan has been scanned.
    scanned_to: u32,
    /// When the plan may be scanned again.
    rescan_at: Option<Instant>,
    workers: Vec<Heartbeat>,
    workers_loaded_at: Option<Instant>,
    /// Dispatch rates of other batches.
    other_batches: Vec<RouteThroughput>,
    shares_updated_at: Option<Instant>,
    /// Routes recorded in the store, where the queue does not do that.
    recorded_routes: HashSet<Route>,
}

impl<'a> Dispatcher<'a> {
    /// Creates a dispatcher that knows what an earlier leader has published.
    pub(super) async fn new(backend: &'a Backend, found: &Batch) -> Result<Dispatcher<'a>> {
        let batch = found.id;
        let mut dispatcher = Dispatcher {
            backend,
            batch,
            options: BatchOptions::decode(&found.options, &format!("batch {batch}"))?,
            flows: HashMap::new(),
            scanned_to: 0,
            rescan_at: None,
            workers: Vec::new(),
            workers_loaded_at: None,
            other_batches: Vec::new(),
            shares_updated_at: None,
            recorded_routes: HashSet::new(),
        };
        let mut from = 0;
        loop {
            let rows = backend.store.tasks(batch, Some(TaskState::Queued), from, LEDGER_PAGE_SIZE).await?;
            let Some(last) = rows.last() else { break };
            from = last.task.index.saturating_add(1);
            for row in rows {
                let planned = &row.task.spec;
                let route = dispatcher
                    .options
                    .route(planned.source.repository.endpoint(), planned.target.repository.endpoint());
                let priority = dispatcher.priority(planned.rule);
                dispatcher.flow_mut(FlowKey { route, priority }).record_published([row.task.index]);
            }
        }
        Ok(dispatcher)
    }

    /// Dispatches until `stop` is cancelled. `plan_changed` signals new tasks in the plan.
    pub(super) async fn run(&mut self, plan_changed: &Notify, stop: &CancellationToken) -> Result<()> {
        while !stop.is_cancelled() {
            self.refresh_states().await?;
            self.update_shares().await?;
            self.find_publishable(stop).await?;
            self.fill_queues(stop).await?;
            let now = Instant::now();
            let pause = self.flows.values().map(|flow| flow.next_check_in(now)).min().unwrap_or(CHECK_INTERVALS[1]);
            tokio::select! {
                () = plan_changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    fn flow_mut(&mut self, key: FlowKey) -> &mut Flow {
        self.flows.entry(key).or_insert_with(|| Flow::new(Instant::now()))
    }

    fn priority(&self, rule: u32) -> Priority {
        // A task of a missing rule fails, and its worker says why.
        self.options.rules.get(rule as usize).map_or(Priority::Normal, |rule| rule.priority)
    }

    /// Updates the states of the published tasks.
    async fn refresh_states(&mut self) -> Result<()> {
        let tasks: Vec<u32> = self.flows.values().flat_map(Flow::in_flight).collect();
        if tasks.is_empty() {
            return Ok(());
        }
        let states = self.backend.store.task_states(self.batch, &tasks).await?;
        let mut states: HashMap<u32, TaskState> = tasks.into_iter().zip(states).collect();
        let now = Instant::now();
        for flow in self.flows.values_mut() {
            let its: Vec<(u32, TaskState)> =
                flow.in_flight().filter_map(|task| Some((task, states.remove(&task)?))).collect();
            flow.update_states(now, its);
        }
        Ok(())
    }

    /// Publishes this batch's dispatch rates, reads those of others, and computes the batch's share of each queue.
    async fn update_shares(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.workers_loaded_at.is_none_or(|at| now.duration_since(at) >= WORKER_POLL_INTERVAL) {
            self.workers = self.backend.store.workers().await?;
            self.workers_loaded_at = Some(now);
        }
        if self.shares_updated_at.is_none_or(|at| now.duration_since(at) >= SHARE_INTERVAL) {
            let alive = self.flows.iter().filter(|(_, flow)| flow.is_active());
            let feeding = alive.map(|(FlowKey { route: flow_route, priority }, flow)| RouteThroughput {
                route: flow_route.clone(),
                priority: *priority,
                per_second: flow.rate.per_second(now),
            });
            self.other_batches =
                self.backend.store.exchange_throughput(self.batch, feeding.collect(), SHARE_TTL).await?;
            self.shares_updated_at = Some(now);
        }
        let own: Vec<(Route, Priority, f64)> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.is_active())
            .map(|(key, flow)| (key.route.clone(), key.priority, flow.rate.per_second(now)))
            .collect();
        for (key, flow) in &mut self.flows {
            let same = |route: &Route, priority: Priority| {
                *route == key.route && priority.is_urgent() == key.priority.is_urgent()
            };
            let others = self.other_batches.iter().map(|other| (&other.route, other.priority, other.per_second));
            let all = own.iter().map(|(route, priority, rate)| (route, *priority, *rate)).chain(others);
            let (mut per_second, mut weight) = (0.0, 0);
            for (_, priority, rate) in all.filter(|(route, priority, _)| same(route, *priority)) {
                per_second += rate;
                weight += priority.weight();
            }
            let serves = |worker: &&Heartbeat| {
                !worker.draining && !worker.unserved.iter().any(|unserved| unserved.route == key.route)
            };
            let slots: u64 = self.workers.iter().filter(serves).map(|worker| u64::from(worker.slots)).sum();
            flow.share = depth::batch_share(depth::queue_depth(per_second, slots), key.priority.weight(), weight);
        }
        Ok(())
    }

    /// Scans the plan for tasks that are not known yet: new ones, or, if there are none, requeued ones.
    async fn find_publishable(&mut self, stop: &CancellationToken) -> Result<()> {
        let new = self.backend.store.count_publishable(self.batch).await?;
        if new <= self.flows.values().map(Flow::remaining).sum::<u64>()
            || self.scan(stop).await?
            || self.scanned_to == 0
        {
            return Ok(());
        }
        let began = Instant::now();
        if self.rescan_at.is_none_or(|at| began >= at) && !stop.is_cancelled() {
            self.flows.values_mut().for_each(Flow::clear_blocks);
            self.scanned_to = 0;
            self.scan(stop).await?;
            // Limits rescans of a long plan to a small part of the time.
            self.rescan_at = Some(Instant::now() + RESCAN_INTERVAL.max(began.elapsed() * RESCAN_PAUSE_FACTOR));
        }
        Ok(())
    }

    /// Scans the plan from the last position to its end. Returns whether there were any blocks.
    async fn scan(&mut self, stop: &CancellationToken) -> Result<bool> {
        let mut found = false;
        while !stop.is_cancelled() {
            let blocks = self.backend.store.list_unpublished(self.batch, self.scanned_to, TASKS_PER_SCAN).await?;
            let Some(last) = blocks.last() else { break };
            self.scanned_to = last.first + 1;
            found = true;
            for block in blocks {
                self.publish_block(block).await?;
            }
        }
        Ok(found)
    }

    /// Publishes tasks to each queue that has room.
    async fn fill_queues(&mut self, stop: &CancellationToken) -> Result<()> {
        let keys: Vec<FlowKey> = self.flows.keys().cloned().collect();
        for key in keys {
            while !stop.is_cancelled()
                && let Some(flow) = self.flows.get_mut(&key)
                && flow.room(Instant::now()) > 0
                && let Some(part) = flow.first_block()
            {
                // Reading the block determines anew what is left of it.
                flow.record_remaining(part, 0);
                for block in self.backend.store.list_unpublished(self.batch, part, 1).await? {
                    if block.first == part {
                        self.publish_block(block).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Publishes the tasks of a block for which there is room, and records the rest.
    async fn publish_block(&mut self, block: PlanBlock) -> Result<()> {
        let part = block.first;
        let options = &self.options;
        let route_of = |task: &imgsync_model::batch::Task| {
            options.route(task.spec.source.repository.endpoint(), task.spec.target.repository.endpoint())
        };
        let mut flows: BTreeMap<FlowKey, Vec<(Route, Message)>> = BTreeMap::new();
        for (route, mut message) in Message::for_tasks(self.batch, block.listed_at, block.tasks, route_of) {
            message.priority = self.priority(message.rule);
            message.chunk = block.mark;
            let key = FlowKey { route: route.clone(), priority: message.priority };
            flows.entry(key).or_default().push((route, message));
        }
        let is_new = flows.keys().any(|key| !self.flows.contains_key(key));
        for key in flows.keys() {
            self.flow_mut(key.clone()).record_remaining(part, 1);
        }
        if is_new {
            self.update_shares().await?;
        }
        for (key, messages) in flows {
            self.publish(part, key, messages).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, part: u32, key: FlowKey, mut messages: Vec<(Route, Message)>) -> Result<()> {
        let now = Instant::now();
        let room = self.flow_mut(key.clone()).room(now);
        let (mut tasks, mut fit) = (0, 0);
        while tasks < room && fit < messages.len() {
            tasks += messages[fit].1.targets.len() as u64;
            fit += 1;
        }
        let mut left = messages.split_off(fit);
        if !messages.is_empty() {
            if !self.backend.is_cluster() && self.recorded_routes.insert(key.route.clone()) {
                // In a cluster the queue records routes for the workers; embedded, this is for the dashboard and the
                // API.
                self.backend.store.record_routes(std::slice::from_ref(&key.route)).await?;
            }
            let published = self.backend.queue.publish(&messages).await?;
            let refused: HashSet<usize> = published.rejected.into_iter().collect();
            let mut confirmed: Vec<TaskRef> = Vec::new();
            for (at, message) in messages.into_iter().enumerate() {
                match refused.contains(&at) {
                    true => left.push(message),
                    false => confirmed.extend(message.1.task_refs()),
                }
            }
            self.backend.store.mark_published(self.batch, confirmed.clone()).await?;
            let flow = self.flow_mut(key.clone());
            flow.full_until = (!refused.is_empty()).then(|| now + QUEUE_FULL_BACKOFF);
            flow.record_published(confirmed.into_iter().map(|task_ref| task_ref.index));
        }
        let tasks = left.iter().map(|(_, message)| message.targets.len() as u64).sum();
        self.flow_mut(key).record_remaining(part, tasks);
        Ok(())
    }
}
