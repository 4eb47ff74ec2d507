//! Rate allocator: request slots of an account, for a configured or a learned rate. The Lua script of the Redis store
//! does the same.

use super::Ask;

/// Maximum time between the first and the last slot of one grant, in milliseconds: nobody holds many while others wait.
const BLOCK: f64 = 250.0;
/// Maximum slots of one grant.
const MOST: u32 = 256;
/// Initial rate of a slow start, in requests per second. It doubles in each second of use …
const START: f64 = 100.0;
/// … this many times; then requests are unlimited.
const LEVELS: u32 = 5;
/// Minimum rate learned from a first 429, which may be an accident.
const LEAST_AT_FIRST: f64 = 10.0;
/// Minimum rate learned from later ones.
const LEAST: f64 = 1.0;
/// Growth per second of use.
const GROWTH: f64 = 1.05;
/// Minimum time between two decreases, in milliseconds: 429 responses to concurrent requests count once.
const CUT_EVERY: f64 = 1000.0;
/// A learned rate expires after this time without a 429, in milliseconds.
const FORGET: f64 = 600_000.0;

/// Rate state of one account. Times are in milliseconds of any one clock.
#[derive(Debug, Default, Clone)]
pub(crate) struct Allowance {
    /// When the next slot would be due without a burst (GCRA's theoretical arrival time).
    due: f64,
    level: u32,
    level_since: f64,
    /// Learned rate in requests per second; 0 if none.
    learnt: f64,
    grown_at: f64,
    cut_at: f64,
    refused_at: f64,
    /// Start of the current second, the requests in it, and those in the second before.
    second: f64,
    current: f64,
    previous: f64,
    /// The learned rate is assumed, not observed.
    presumed: bool,
}

impl Allowance {
    /// Returns the delays of the requests that may be sent, in milliseconds, or `None` if all may.
    pub(crate) fn grant(&mut self, now: f64, ask: &Ask) -> Option<Vec<f64>> {
        self.count(now, ask.sent);
        let rate = match (ask.limit, self.presumed) {
            (Some(limit), true) => self.learnt(now).map_or(limit, |learnt| learnt.min(limit)),
            (limit, _) => limit.or_else(|| self.learnt(now)).or_else(|| self.level(now, ask.careful))?,
        };
        let turns = self.turns(now, rate, ask.wanted.clamp(1, MOST));
        self.count(now, turns.len() as u32);
        Some(turns)
    }

    /// Handles a 429: learns or halves the rate.
    pub(crate) fn refused(&mut self, now: f64, ask: &Ask) {
        self.count(now, ask.sent);
        if ask.limit.is_some() && !self.presumed {
            return;
        }
        if self.learnt > 0.0 && now - self.cut_at < CUT_EVERY {
            self.refused_at = now;
            return;
        }
        self.learnt = match self.learnt > 0.0 {
            true => (self.learnt / 2.0).max(LEAST),
            false => (self.recent(now) / 2.0).max(LEAST_AT_FIRST),
        };
        (self.cut_at, self.refused_at, self.grown_at) = (now, now, now);
    }

    /// Assumes the rate of the last second, when the shared store is out of reach.
    pub(crate) fn presume(&mut self, now: f64) {
        self.learnt = self.recent(now).max(LEAST);
        (self.cut_at, self.refused_at, self.grown_at, self.presumed) = (now, now, now, true);
    }

    /// Drops the assumed rate, when the shared store is back.
    pub(crate) fn forget_presumed(&mut self) {
        if std::mem::take(&mut self.presumed) {
            self.learnt = 0.0;
        }
    }

    /// Returns the learned rate, if it has not expired.
    pub(crate) fn known(&self, now: f64) -> Option<f64> {
        (self.learnt > 0.0 && !self.presumed && now - self.refused_at < FORGET).then_some(self.learnt)
    }

    fn learnt(&mut self, now: f64) -> Option<f64> {
        if self.learnt <= 0.0 {
            return None;
        }
        if now - self.refused_at >= FORGET {
            (self.learnt, self.level, self.level_since) = (0.0, 0, now);
            return None;
        }
        // An unused rate does not grow: nothing shows that more is allowed.
        if self.recent(now) * 2.0 >= self.learnt {
            self.learnt *= GROWTH.powf((now - self.grown_at).clamp(0.0, 1000.0) / 1000.0);
        }
        self.grown_at = now;
        Some(self.learnt)
    }

    fn level(&mut self, now: f64, careful: bool) -> Option<f64> {
        if !careful || self.level >= LEVELS {
            return None;
        }
        if self.level_since == 0.0 {
            self.level_since = now;
        } else if now - self.level_since >= 1000.0 {
            (self.level, self.level_since) = (self.level + 1, now);
        }
        (self.level < LEVELS).then(|| START * f64::from(1 << self.level))
    }

    fn turns(&mut self, now: f64, rate: f64, wanted: u32) -> Vec<f64> {
        let period = 1000.0 / rate;
        let slack = ((rate / 4.0).floor().max(1.0) - 1.0) * period;
        // The clock was set back, or the limit was raised.
        if self.due > now + FORGET + 100.0 * period {
            self.due = now;
        }
        let mut turns: Vec<f64> = Vec::new();
        for _ in 0..wanted {
            let due = self.due.max(now);
            let wait = (due - slack).max(now) - now;
            if turns.first().is_some_and(|first| wait > first + BLOCK) {
                break;
            }
            turns.push(wait);
            self.due = due + period;
        }
        turns
    }

    /// Counts requests sent without asking.
    pub(crate) fn count(&mut self, now: f64, requests: u32) {
        if now >= self.second + 2000.0 || now < self.second {
            (self.second, self.current, self.previous) = (now, 0.0, 0.0);
        } else if now >= self.second + 1000.0 {
            (self.second, self.current, self.previous) = (self.second + 1000.0, 0.0, self.current);
        }
        self.current += f64::from(requests);
    }

    /// Estimates the requests of the last second.
    fn recent(&self, now: f64) -> f64 {
        self.current + self.previous * (1.0 - (now - self.second) / 1000.0).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: f64 = 1_000_000.0;

    fn limited(limit: f64, wanted: u32) -> Ask {
        Ask { limit: Some(limit), wanted, ..Ask::default() }
    }

    fn sent(sent: u32) -> Ask {
        Ask { sent, wanted: 1, ..Ask::default() }
    }

    /// Measures the rate granted to a process that always wants more, over this many milliseconds.
    fn rate(allowance: &mut Allowance, from: f64, span: f64) -> f64 {
        let (mut now, mut count) = (from, 0.0);
        while now < from + span {
            let Some(turns) = allowance.grant(now, &Ask { wanted: 50, ..Ask::default() }) else { return f64::INFINITY };
            count += turns.len() as f64;
            now += turns.last().unwrap().max(1.0);
        }
        count / (now - from) * 1000.0
    }

    #[test]
    fn a_limit_gives_a_quarter_of_a_second_at_once_and_then_one_by_one() {
        let mut allowance = Allowance::default();
        let turns = allowance.grant(T, &limited(20.0, 100)).unwrap();
        assert_eq!(turns, [0.0, 0.0, 0.0, 0.0, 0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
        assert_eq!(allowance.grant(T, &limited(20.0, 1)).unwrap(), [300.0], "in the order of asking");
        assert_eq!(allowance.grant(T + 10_000.0, &limited(20.0, 3)).unwrap(), [0.0; 3], "it was left alone");
    }

    #[test]
    fn a_bucket_that_allows_the_rate_is_never_overrun_by_turns_that_are_a_quarter_of_a_second_late() {
        let mut allowance = Allowance::default();
        let mut arrivals = Vec::new();
        for ask in 0..2_000 {
            let now = T + f64::from(ask) * 37.0;
            let late = f64::from(ask % 6) * 50.0;
            arrivals
                .extend(allowance.grant(now, &limited(20.0, ask % 4)).unwrap().iter().map(|wait| now + wait + late));
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
    fn a_slow_limit_lets_one_through_and_asks_for_patience() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.grant(T, &limited(0.5, 5)).unwrap(), [0.0]);
        assert_eq!(allowance.grant(T, &limited(0.5, 5)).unwrap(), [2000.0]);
    }

    #[test]
    fn without_limit_and_refusal_all_is_free() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.grant(T, &sent(5_000)), None);
        assert_eq!(allowance.grant(T + 250.0, &sent(5_000)), None);
    }

    #[test]
    fn a_refusal_halves_what_was_sent_and_use_lets_it_grow() {
        let mut allowance = Allowance::default();
        allowance.grant(T, &sent(60));
        allowance.refused(T + 100.0, &sent(40));
        allowance.refused(T + 200.0, &sent(0));
        assert_eq!(allowance.learnt, 50.0, "those that were under way together cut once");
        let first = rate(&mut allowance, T + 1000.0, 2000.0);
        assert!((50.0..62.0).contains(&first), "{first}");
        let later = rate(&mut allowance, T + 20_000.0, 2000.0);
        assert!(later > first, "{later}");
        let before = allowance.learnt;
        allowance.refused(T + 30_000.0, &sent(0));
        assert_eq!(allowance.learnt, before / 2.0);
    }

    #[test]
    fn what_is_not_used_does_not_grow_and_one_refusal_of_few_is_no_disaster() {
        let mut allowance = Allowance::default();
        allowance.refused(T, &sent(2));
        for second in 1..100 {
            allowance.grant(T + f64::from(second) * 1000.0, &sent(0));
        }
        assert_eq!(allowance.learnt, LEAST_AT_FIRST);
    }

    #[test]
    fn what_is_presumed_is_the_rate_of_the_last_second_and_no_more_than_the_limit() {
        let mut allowance = Allowance::default();
        allowance.count(T, 5);
        allowance.presume(T + 500.0);
        let over = |turns: &[f64]| turns.iter().filter(|wait| **wait > 0.0).count();
        let turns = allowance.grant(T + 500.0, &limited(20.0, 100)).unwrap();
        assert_eq!(turns[..2], [0.0, 200.0], "five a second, with no more at once than a quarter of that");
        assert!(over(&turns) >= 1);
        allowance.refused(T + 3000.0, &limited(20.0, 1));
        assert!(allowance.learnt < 5.0, "alone, it learns from what it is told");
        allowance.forget_presumed();
        assert_eq!(allowance.grant(T + 60_000.0, &limited(20.0, 100)).unwrap()[..5], [0.0; 5]);
    }

    #[test]
    fn what_was_learnt_is_forgotten() {
        let mut allowance = Allowance::default();
        allowance.refused(T, &sent(2));
        assert!(allowance.grant(T + FORGET - 1.0, &sent(0)).is_some());
        assert_eq!(allowance.grant(T + FORGET, &sent(0)), None);
    }

    #[test]
    fn the_careful_begin_slowly_and_are_free_after_some_seconds_of_use() {
        let mut allowance = Allowance::default();
        let mut seconds = Vec::new();
        let ask = Ask { careful: true, wanted: 10_000, ..Ask::default() };
        for step in 0..80 {
            let turns = allowance.grant(T + f64::from(step) * 100.0, &ask);
            seconds.push(turns.map(|turns| turns.iter().filter(|wait| **wait < 100.0).count()));
        }
        assert_eq!(seconds[0], Some(34), "a burst of 25, and 9 in a tenth of a second");
        assert_eq!(seconds[79], None);
        let idle = allowance.grant(T + 1e6, &ask);
        assert_eq!(idle, None, "once is enough");
    }

    #[test]
    fn a_clock_that_is_put_back_does_not_stop_it() {
        let mut allowance = Allowance::default();
        allowance.grant(T + 1e9, &limited(10.0, 5));
        assert_eq!(allowance.grant(T, &limited(10.0, 1)).unwrap(), [0.0]);
    }
}
