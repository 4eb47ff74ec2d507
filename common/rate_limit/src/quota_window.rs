//! End of a quota window. The Lua script of the Redis store does the same.

use super::{QuotaPeriod, QuotaReport};

/// State of one quota window. Times are in milliseconds of any one clock.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct QuotaWindow {
    /// When it started; 0 if unknown.
    pub started_at: f64,
    /// Requests left at the last report.
    pub remaining: f64,
}

impl QuotaWindow {
    /// Applies a quota report. Returns when the window ends, and whether it is a new one.
    pub fn update(&mut self, now: f64, report: &QuotaReport) -> (f64, bool) {
        let left = report.remaining as f64;
        let much = report.limit.map_or(self.remaining + 10.0, |limit| (limit as f64 / 4.0).max(1.0));
        let went_up = left >= self.remaining + much;
        let millis = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        let length = match report.period {
            QuotaPeriod::ResetsIn(_) => 0.0,
            QuotaPeriod::WindowLength(length) => millis(length),
        };
        let is_over = length > 0.0 && self.started_at + length <= now;
        let is_new = self.started_at > 0.0 && (went_up || is_over);
        if self.started_at <= 0.0 || is_new {
            self.started_at = now;
        }
        self.remaining = left;
        let ends = match report.period {
            QuotaPeriod::ResetsIn(wait) => now + millis(wait),
            QuotaPeriod::WindowLength(length) => self.started_at + millis(length),
        };
        (ends, is_new)
    }
}
