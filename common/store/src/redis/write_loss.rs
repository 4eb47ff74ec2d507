//! Detection of lost writes: a store that a failover or a restore from a backup has set back.
//!
//! Each process increments a counter of its own in the store, every second and after changes that nobody would make
//! again. A reply that is not greater than the one before says that the store has lost writes that it had confirmed. This
//! needs no permission beyond those of other calls, and does not take a failover that has lost nothing for a loss.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Inner, RedisStore};
use crate::IdempotencyKey;
use imgsync_oci::error::Result;

/// Interval between increments.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between increments after frequent changes.
const MIN_COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// TTL of a counter after the last increment.
const COUNTER_TTL: Duration = Duration::from_secs(3600);
/// Number of replies that are remembered, to tell how much was lost.
const MAX_REPLIES: usize = 600;
/// Minimum time between two remembered replies, besides the newest, so that they cover a minute at least.
const MIN_REPLY_INTERVAL: Duration = Duration::from_millis(100);

/// What a comparison with the last reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteLoss {
    /// The lost writes are at most this old; `None` if none of this process is left.
    pub(super) within: Option<Duration>,
}

/// Compares the replies of the counter.
#[derive(Debug, Default)]
pub(super) struct LossDetector {
    /// Replies with the time when they arrived, in order. Of many in a short time, the first and the newest.
    replies: VecDeque<(u64, Instant)>,
}

impl LossDetector {
    /// Records a reply. Returns a loss if the counter has not grown.
    pub(super) fn record(&mut self, value: u64, now: Instant) -> Option<WriteLoss> {
        // The counter of a process that was suspended expires.
        let is_expired = |at: Instant| now.duration_since(at) >= COUNTER_TTL / 2;
        if self.replies.back().is_some_and(|(_, at)| is_expired(*at)) {
            self.replies.clear();
        }
        let loss = self.replies.back().is_some_and(|(last, _)| value <= *last).then(|| {
            // What was confirmed up to the value before this one is still there.
            let kept = self.replies.iter().rev().find(|(reply, _)| *reply < value);
            WriteLoss { within: kept.map(|(_, at)| now.duration_since(*at)) }
        });
        if loss.is_some() {
            self.replies.clear();
        }
        let mut times = self.replies.iter().rev().map(|(_, at)| *at);
        if let (Some(newest), Some(before)) = (times.next(), times.next())
            && newest.duration_since(before) < MIN_REPLY_INTERVAL
        {
            self.replies.pop_back();
        }
        self.replies.push_back((value, now));
        if self.replies.len() > MAX_REPLIES {
            self.replies.pop_front();
        }
        loss
    }
}

/// Counter of a process in the store.
#[derive(Debug)]
pub(super) struct WriteCounter {
    key: String,
    /// Locked during an increment: replies are compared in the order of the increments.
    detector: tokio::sync::Mutex<LossDetector>,
    /// Notified when the next increment should not wait.
    is_due: Arc<Notify>,
}

impl RedisStore {
    /// Watches for lost writes as long as the store is open: reports them to the subscribers of its health and to
    /// [`Ledger::write_losses`](crate::Ledger::write_losses).
    pub(super) fn start_write_loss_watch(&self) {
        let key = self.key(&format!("writes:{}", IdempotencyKey::generate()));
        let is_due = Arc::new(Notify::new());
        let counter = WriteCounter { key, detector: tokio::sync::Mutex::default(), is_due: is_due.clone() };
        if self.0.write_counter.set(counter).is_ok() {
            tokio::spawn(watch(Arc::downgrade(&self.0), is_due));
        }
    }

    pub(super) fn subscribe_to_write_losses(&self) -> watch::Receiver<u64> {
        self.0.write_losses.subscribe()
    }

    /// Increments the counter soon, without waiting for it. Called after changes that are frequent.
    pub(super) fn count_write_soon(&self) {
        if let Some(counter) = self.0.write_counter.get() {
            counter.is_due.notify_one();
        }
    }

    /// Reports a loss that a reply to another call has shown, so that all tasks are swept. The counter reports
    /// it to the subscribers of the store's health.
    pub(super) fn record_lost_plan(&self) {
        self.0.write_losses.send_modify(|losses| *losses += 1);
        self.count_write_soon();
    }

    /// Increments the counter, and reports a loss that the reply shows. Called after a change that nobody else would
    /// make again: a store that loses it then loses the increment, too.
    pub(super) async fn count_write(&self) {
        let Some(WriteCounter { key, detector, .. }) = self.0.write_counter.get() else { return };
        let mut detector = detector.lock().await;
        let mut pipe = redis::pipe();
        pipe.incr(key, 1).pexpire(key, super::duration_ms(COUNTER_TTL)).ignore();
        // Once, because the next increment does as well. An outage is reported by the calls that wait for its end.
        let reply: Result<(u64,)> = self.query_once("counting writes to the store", &pipe).await;
        if let Ok((value,)) = reply
            && let Some(loss) = detector.record(value, Instant::now())
        {
            // Known from what is lost.
            *self.0.chunks() = super::new_batch_cache();
            self.0.health.record_write_loss(loss.within);
            self.0.write_losses.send_modify(|losses| *losses += 1);
        }
    }
}

async fn watch(store: Weak<Inner>, is_due: Arc<Notify>) {
    while let Some(store) = store.upgrade().map(RedisStore) {
        store.count_write().await;
        drop(store);
        // Several changes share an increment. An error means that the interval is over.
        tokio::time::sleep(MIN_COUNT_INTERVAL).await;
        let _ = tokio::time::timeout(COUNT_INTERVAL - MIN_COUNT_INTERVAL, is_due.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_does_not_grow_tells_since_when_writes_are_lost() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let mut detector = LossDetector::default();
        for second in 1..=10 {
            assert_eq!(detector.record(second, at(second)), None);
        }
        // A reply was lost, and its increment was not.
        assert_eq!(detector.record(12, at(12)), None);
        // Back to 8, and one more.
        assert_eq!(detector.record(9, at(15)), Some(WriteLoss { within: Some(Duration::from_secs(7)) }));
        assert_eq!(detector.record(10, at(16)), None, "it is reported once");
        assert_eq!(detector.record(1, at(17)), Some(WriteLoss { within: None }), "the store was emptied");
        assert_eq!(detector.record(1, at(18)), Some(WriteLoss { within: None }), "and again");
        assert_eq!(detector.record(2, at(19)), None);
    }

    #[test]
    fn the_counter_of_a_process_that_was_suspended_for_long_has_expired() {
        let began = Instant::now();
        let mut detector = LossDetector::default();
        assert_eq!(detector.record(100, began), None);
        assert_eq!(detector.record(1, began + COUNTER_TTL), None);
    }

    #[test]
    fn a_detector_covers_a_minute_at_any_rate_with_so_many_replies_and_no_more() {
        let began = Instant::now();
        for rate in [1, 10, 100, 1_000, 5_000] {
            let at = |value: u64| began + Duration::from_secs(value) / rate;
            let last = 100 * u64::from(rate);
            let mut detector = LossDetector::default();
            for value in 1..=last {
                assert_eq!(detector.record(value, at(value)), None);
                assert!(detector.replies.len() <= MAX_REPLIES);
            }
            // Back to where it was 50 s ago, at an interval more or less.
            let lost = last - 50 * u64::from(rate);
            let within = detector.record(lost + 1, at(last)).unwrap().within.unwrap();
            let wanted = Duration::from_secs(50);
            assert!(within >= wanted && within <= wanted + 2 * MIN_REPLY_INTERVAL, "{rate}: {within:?}");
        }
    }

    #[test]
    fn what_was_lost_of_many_replies_in_a_short_time_is_known() {
        let began = Instant::now();
        let mut detector = LossDetector::default();
        for value in 1..=1_000 {
            assert_eq!(detector.record(value, began + Duration::from_micros(value)), None);
        }
        let now = began + Duration::from_secs(7);
        let loss = WriteLoss { within: Some(now - (began + Duration::from_micros(1))) };
        assert_eq!(detector.record(500, now), Some(loss), "since the first of them at most");
    }
}
