//! Rate allocator: request slots of an account, for a configured or a learned rate. The Lua script of the Redis store
//! does the same.

use super::RateRequest;

/// Maximum time between the first and the last slot of one grant, in milliseconds: nobody holds many while others wait.
const MAX_GRANT_SPAN_MS: f64 = 250.0;
/// Maximum slots of one grant.
const MAX_SLOTS_PER_GRANT: u32 = 256;
/// Initial rate of a slow start, in requests per second. It doubles in each second of use …
const SLOW_START_RATE: f64 = 100.0;
/// … this many times; then requests are unlimited.
const SLOW_START_LEVELS: u32 = 5;
/// Minimum rate learned from a first 429, which may be an accident.
const MIN_FIRST_LEARNED_RATE: f64 = 10.0;
/// Minimum rate learned from later ones.
const MIN_LEARNED_RATE: f64 = 1.0;
/// Growth per second of use.
const GROWTH_PER_SECOND: f64 = 1.05;
/// Minimum time between two decreases, in milliseconds: 429 responses to concurrent requests count once.
const DECREASE_INTERVAL_MS: f64 = 1000.0;
/// A learned rate expires after this time without a 429, in milliseconds.
const LEARNED_RATE_TTL_MS: f64 = 600_000.0;

/// Rate state of one account. Times are in milliseconds of any one clock.
#[derive(Debug, Default, Clone)]
pub struct RateAllocator {
    /// When the next slot would be due without a burst (GCRA's theoretical arrival time).
    next_slot_at: f64,
    slow_start_level: u32,
    slow_start_level_since: f64,
    /// Learned rate in requests per second; 0 if none.
    learned_rate: f64,
    grown_at: f64,
    decreased_at: f64,
    throttled_at: f64,
    /// Start of the current second, the requests in it, and those in the second before.
    second_start: f64,
    current_count: f64,
    previous_count: f64,
    /// The learned rate is assumed, not observed.
    is_assumed: bool,
}

impl RateAllocator {
    /// Returns the delays of the requests that may be sent, in milliseconds, or `None` if all may.
    pub fn allocate(&mut self, now: f64, ask: &RateRequest) -> Option<Vec<f64>> {
        self.record_sent(now, ask.sent);
        let rate = match (ask.limit, self.is_assumed) {
            (Some(limit), true) => self.update_learned_rate(now).map_or(limit, |learned| learned.min(limit)),
            (limit, _) => {
                limit.or_else(|| self.update_learned_rate(now)).or_else(|| self.slow_start_rate(now, ask.slow_start))?
            }
        };
        let turns = self.schedule_slots(now, rate, ask.wanted.clamp(1, MAX_SLOTS_PER_GRANT));
        self.record_sent(now, turns.len() as u32);
        Some(turns)
    }

    /// Handles a 429: learns or halves the rate.
    pub fn on_throttled(&mut self, now: f64, ask: &RateRequest) {
        self.record_sent(now, ask.sent);
        if ask.limit.is_some() && !self.is_assumed {
            return;
        }
        if self.learned_rate > 0.0 && now - self.decreased_at < DECREASE_INTERVAL_MS {
            self.throttled_at = now;
            return;
        }
        self.learned_rate = match self.learned_rate > 0.0 {
            true => (self.learned_rate / 2.0).max(MIN_LEARNED_RATE),
            false => (self.recent_rate(now) / 2.0).max(MIN_FIRST_LEARNED_RATE),
        };
        (self.decreased_at, self.throttled_at, self.grown_at) = (now, now, now);
    }

    /// Assumes the rate of the last second, when the shared store is out of reach.
    pub fn assume_recent_rate(&mut self, now: f64) {
        self.learned_rate = self.recent_rate(now).max(MIN_LEARNED_RATE);
        (self.decreased_at, self.throttled_at, self.grown_at, self.is_assumed) = (now, now, now, true);
    }

    /// Drops the assumed rate, when the shared store is back.
    pub fn clear_assumed_rate(&mut self) {
        if std::mem::take(&mut self.is_assumed) {
            self.learned_rate = 0.0;
        }
    }

    /// Returns the learned rate, if it has not expired.
    pub fn active_learned_rate(&self, now: f64) -> Option<f64> {
        (self.learned_rate > 0.0 && !self.is_assumed && now - self.throttled_at < LEARNED_RATE_TTL_MS)
            .then_some(self.learned_rate)
    }

    fn update_learned_rate(&mut self, now: f64) -> Option<f64> {
        if self.learned_rate <= 0.0 {
            return None;
        }
        if now - self.throttled_at >= LEARNED_RATE_TTL_MS {
            (self.learned_rate, self.slow_start_level, self.slow_start_level_since) = (0.0, 0, now);
            return None;
        }
        // An unused rate does not grow: nothing shows that more is allowed.
        if self.recent_rate(now) * 2.0 >= self.learned_rate {
            self.learned_rate *= GROWTH_PER_SECOND.powf((now - self.grown_at).clamp(0.0, 1000.0) / 1000.0);
        }
        self.grown_at = now;
        Some(self.learned_rate)
    }

    fn slow_start_rate(&mut self, now: f64, careful: bool) -> Option<f64> {
        if !careful || self.slow_start_level >= SLOW_START_LEVELS {
            return None;
        }
        if self.slow_start_level_since == 0.0 {
            self.slow_start_level_since = now;
        } else if now - self.slow_start_level_since >= 1000.0 {
            (self.slow_start_level, self.slow_start_level_since) = (self.slow_start_level + 1, now);
        }
        (self.slow_start_level < SLOW_START_LEVELS).then(|| SLOW_START_RATE * f64::from(1 << self.slow_start_level))
    }

    fn schedule_slots(&mut self, now: f64, rate: f64, wanted: u32) -> Vec<f64> {
        let period = 1000.0 / rate;
        let slack = ((rate / 4.0).floor().max(1.0) - 1.0) * period;
        // The clock was set back, or the limit was raised.
        if self.next_slot_at > now + LEARNED_RATE_TTL_MS + 100.0 * period {
            self.next_slot_at = now;
        }
        let mut turns: Vec<f64> = Vec::new();
        for _ in 0..wanted {
            let due = self.next_slot_at.max(now);
            let wait = (due - slack).max(now) - now;
            if turns.first().is_some_and(|first| wait > first + MAX_GRANT_SPAN_MS) {
                break;
            }
            turns.push(wait);
            self.next_slot_at = due + period;
        }
        turns
    }

    /// Counts requests sent without asking.
    pub fn record_sent(&mut self, now: f64, requests: u32) {
        if now >= self.second_start + 2000.0 || now < self.second_start {
            (self.second_start, self.current_count, self.previous_count) = (now, 0.0, 0.0);
        } else if now >= self.second_start + 1000.0 {
            (self.second_start, self.current_count, self.previous_count) =
                (self.second_start + 1000.0, 0.0, self.current_count);
        }
        self.current_count += f64::from(requests);
    }

    /// Estimates the requests of the last second.
    fn recent_rate(&self, now: f64) -> f64 {
        self.current_count + self.previous_count * (1.0 - (now - self.second_start) / 1000.0).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: f64 = 1_000_000.0;

    fn limited(limit: f64, wanted: u32) -> RateRequest {
        RateRequest { limit: Some(limit), wanted, ..RateRequest::default() }
    }

    fn sent(sent: u32) -> RateRequest {
        RateRequest { sent, wanted: 1, ..RateRequest::default() }
    }

    /// Measures the rate granted to a process that always wants more, over this many milliseconds.
    fn rate(allowance: &mut RateAllocator, from: f64, span: f64) -> f64 {
        let (mut now, mut count) = (from, 0.0);
        while now < from + span {
            let Some(turns) = allowance.allocate(now, &RateRequest { wanted: 50, ..RateRequest::default() }) else {
                return f64::INFINITY;
            };
            count += turns.len() as f64;
            now += turns.last().unwrap().max(1.0);
        }
        count / (now - from) * 1000.0
    }

    #[test]
    fn a_limit_allows_a_burst_of_a_quarter_second_and_then_single_requests() {
        let mut allowance = RateAllocator::default();
        let turns = allowance.allocate(T, &limited(20.0, 100)).unwrap();
        assert_eq!(turns, [0.0, 0.0, 0.0, 0.0, 0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
        assert_eq!(allowance.allocate(T, &limited(20.0, 1)).unwrap(), [300.0], "in the order of asking");
        assert_eq!(allowance.allocate(T + 10_000.0, &limited(20.0, 3)).unwrap(), [0.0; 3], "it was left alone");
    }

    #[test]
    fn a_token_bucket_of_that_rate_is_never_exceeded_by_requests_sent_a_quarter_second_late() {
        let mut allowance = RateAllocator::default();
        let mut arrivals = Vec::new();
        for ask in 0..2_000 {
            let now = T + f64::from(ask) * 37.0;
            let late = f64::from(ask % 6) * 50.0;
            arrivals
                .extend(allowance.allocate(now, &limited(20.0, ask % 4)).unwrap().iter().map(|wait| now + wait + late));
        }
        arrivals.sort_by(f64::total_cmp);
        let (mut tokens, mut last) = (20.0, T);
        for at in arrivals {
            tokens = f64::min(20.0, tokens + (at - last) / 50.0) - 1.0;
            last = at;
            assert!(tokens >= 0.0, "refused at {at}");
        }
    }

    #[test]
    fn a_slow_limit_grants_one_request_and_delays_the_next() {
        let mut allowance = RateAllocator::default();
        assert_eq!(allowance.allocate(T, &limited(0.5, 5)).unwrap(), [0.0]);
        assert_eq!(allowance.allocate(T, &limited(0.5, 5)).unwrap(), [2000.0]);
    }

    #[test]
    fn without_a_limit_or_a_429_requests_are_unlimited() {
        let mut allowance = RateAllocator::default();
        assert_eq!(allowance.allocate(T, &sent(5_000)), None);
        assert_eq!(allowance.allocate(T + 250.0, &sent(5_000)), None);
    }

    #[test]
    fn a_429_halves_the_rate_and_use_lets_it_grow() {
        let mut allowance = RateAllocator::default();
        allowance.allocate(T, &sent(60));
        allowance.on_throttled(T + 100.0, &sent(40));
        allowance.on_throttled(T + 200.0, &sent(0));
        assert_eq!(allowance.learned_rate, 50.0, "those that were under way together cut once");
        let first = rate(&mut allowance, T + 1000.0, 2000.0);
        assert!((50.0..62.0).contains(&first), "{first}");
        let later = rate(&mut allowance, T + 20_000.0, 2000.0);
        assert!(later > first, "{later}");
        let before = allowance.learned_rate;
        allowance.on_throttled(T + 30_000.0, &sent(0));
        assert_eq!(allowance.learned_rate, before / 2.0);
    }

    #[test]
    fn an_unused_rate_does_not_grow_and_a_first_429_leaves_the_minimum_rate() {
        let mut allowance = RateAllocator::default();
        allowance.on_throttled(T, &sent(2));
        for second in 1..100 {
            allowance.allocate(T + f64::from(second) * 1000.0, &sent(0));
        }
        assert_eq!(allowance.learned_rate, MIN_FIRST_LEARNED_RATE);
    }

    #[test]
    fn an_assumed_rate_is_that_of_the_last_second_within_the_limit() {
        let mut allowance = RateAllocator::default();
        allowance.record_sent(T, 5);
        allowance.assume_recent_rate(T + 500.0);
        let over = |turns: &[f64]| turns.iter().filter(|wait| **wait > 0.0).count();
        let turns = allowance.allocate(T + 500.0, &limited(20.0, 100)).unwrap();
        assert_eq!(turns[..2], [0.0, 200.0], "five a second, with no more at once than a quarter of that");
        assert!(over(&turns) >= 1);
        allowance.on_throttled(T + 3000.0, &limited(20.0, 1));
        assert!(allowance.learned_rate < 5.0, "alone, it learns from what it is told");
        allowance.clear_assumed_rate();
        assert_eq!(allowance.allocate(T + 60_000.0, &limited(20.0, 100)).unwrap()[..5], [0.0; 5]);
    }

    #[test]
    fn a_learned_rate_expires() {
        let mut allowance = RateAllocator::default();
        allowance.on_throttled(T, &sent(2));
        assert!(allowance.allocate(T + LEARNED_RATE_TTL_MS - 1.0, &sent(0)).is_some());
        assert_eq!(allowance.allocate(T + LEARNED_RATE_TTL_MS, &sent(0)), None);
    }

    #[test]
    fn slow_start_doubles_the_rate_until_requests_are_unlimited() {
        let mut allowance = RateAllocator::default();
        let mut seconds = Vec::new();
        let ask = RateRequest { slow_start: true, wanted: 10_000, ..RateRequest::default() };
        for step in 0..80 {
            let turns = allowance.allocate(T + f64::from(step) * 100.0, &ask);
            seconds.push(turns.map(|turns| turns.iter().filter(|wait| **wait < 100.0).count()));
        }
        assert_eq!(seconds[0], Some(34), "a burst of 25, and 9 in a tenth of a second");
        assert_eq!(seconds[79], None);
        let idle = allowance.allocate(T + 1e6, &ask);
        assert_eq!(idle, None, "once is enough");
    }

    #[test]
    fn a_clock_set_back_does_not_stop_grants() {
        let mut allowance = RateAllocator::default();
        allowance.allocate(T + 1e9, &limited(10.0, 5));
        assert_eq!(allowance.allocate(T, &limited(10.0, 1)).unwrap(), [0.0]);
    }
}
