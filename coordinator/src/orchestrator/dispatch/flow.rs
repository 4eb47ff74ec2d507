//! Tasks of a batch that go through one queue: those in flight, and the blocks of the plan that have more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use imgsync_model::batch::{Priority, Route, TaskState};

use super::depth::DrainRate;

/// A queue, by route and priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowKey {
    pub(super) route: Route,
    pub(super) priority: Priority,
}

/// Tasks of a batch for one [`FlowKey`].
#[derive(Debug)]
pub(super) struct Flow {
    /// Tasks that were published and are not drained yet.
    in_flight: BTreeSet<u32>,
    /// Number of these that wait in the queue.
    pub(super) waiting: u64,
    pub(super) rate: DrainRate,
    /// Maximum number that may wait there.
    pub(super) share: u64,
    /// Number of tasks left in each block of the plan, by the block's first index.
    blocks: BTreeMap<u32, u64>,
    /// The queue was full: nothing is published before this time.
    pub(super) full_until: Option<Instant>,
}

/// Minimum and maximum pause between checks of a flow.
pub(super) const CHECK_INTERVALS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

impl Flow {
    pub(super) fn new(now: Instant) -> Flow {
        Flow {
            in_flight: BTreeSet::new(),
            waiting: 0,
            rate: DrainRate::new(now),
            share: 0,
            blocks: BTreeMap::new(),
            full_until: None,
        }
    }

    /// Returns the tasks in flight: in the queue, or running.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = u32> + '_ {
        self.in_flight.iter().copied()
    }

    /// Records published tasks.
    pub(super) fn record_published(&mut self, tasks: impl IntoIterator<Item = u32>) {
        for task in tasks {
            self.waiting += u64::from(self.in_flight.insert(task));
        }
    }

    /// Updates tasks in flight from their current states.
    pub(super) fn update_states(&mut self, now: Instant, states: impl IntoIterator<Item = (u32, TaskState)>) {
        let (mut waiting, mut passed) = (0, 0);
        for (task, state) in states {
            match state {
                TaskState::Queued => waiting += 1,
                TaskState::Running => {}
                // Back in the plan: it was not drained.
                TaskState::New => _ = self.in_flight.remove(&task),
                TaskState::Retry
                | TaskState::Copied
                | TaskState::Unchanged
                | TaskState::Failed
                | TaskState::Cancelled => passed += u64::from(self.in_flight.remove(&task)),
            }
        }
        self.waiting = waiting;
        self.rate.add(now, passed);
    }

    /// Returns the number of tasks to publish now; 0 while the queue has enough.
    pub(super) fn room(&self, now: Instant) -> u64 {
        if self.full_until.is_some_and(|until| until > now) {
            return 0;
        }
        let room = self.share.saturating_sub(self.waiting);
        // Fills by at least a quarter, because the plan is read in blocks.
        if room * 4 >= self.share { room } else { 0 }
    }

    /// Records the number of tasks left in a block.
    pub(super) fn record_remaining(&mut self, part: u32, tasks: u64) {
        match tasks {
            0 => _ = self.blocks.remove(&part),
            _ => _ = self.blocks.insert(part, tasks),
        }
    }

    pub(super) fn clear_blocks(&mut self) {
        self.blocks.clear();
    }

    pub(super) fn first_block(&self) -> Option<u32> {
        self.blocks.first_key_value().map(|(part, _)| *part)
    }

    /// Returns the number of tasks known to be left in the plan.
    pub(super) fn remaining(&self) -> u64 {
        self.blocks.values().sum()
    }

    /// Returns whether the batch uses the queue.
    pub(super) fn is_active(&self) -> bool {
        self.waiting > 0 || !self.blocks.is_empty()
    }

    /// Returns the pause until the next check.
    pub(super) fn next_check_in(&self, now: Instant) -> Duration {
        let [least, most] = CHECK_INTERVALS;
        if self.blocks.is_empty() {
            return most;
        }
        let over = self.waiting.saturating_sub(self.share * 3 / 4) as f64;
        let per_second = self.rate.recent_per_second(now);
        if per_second <= 0.0 {
            // It may be about to start.
            return if self.rate.is_new(now) { least } else { most };
        }
        // Half of that, because the rate may grow and publishing takes time.
        Duration::from_secs_f64((over / per_second / 2.0).min(1.0)).clamp(least, most)
    }
}
