//! End of a quota window. The Lua script of the Redis store does the same.

use super::{Told, WindowTime};

/// State of one quota window. Times are in milliseconds of any one clock.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct QuotaWindow {
    /// When it started; 0 if unknown.
    pub(crate) began: f64,
    /// Requests left at the last report.
    pub(crate) left: f64,
}

impl QuotaWindow {
    /// Applies a quota report. Returns when the window ends, and whether it is a new one.
    pub(crate) fn told(&mut self, now: f64, told: &Told) -> (f64, bool) {
        let left = told.remaining as f64;
        let much = told.limit.map_or(self.left + 10.0, |limit| (limit as f64 / 4.0).max(1.0));
        let went_up = left >= self.left + much;
        let millis = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        let length = match told.time {
            WindowTime::Reset(_) => 0.0,
            WindowTime::Length(length) => millis(length),
        };
        let is_over = length > 0.0 && self.began + length <= now;
        let is_new = self.began > 0.0 && (went_up || is_over);
        if self.began <= 0.0 || is_new {
            self.began = now;
        }
        self.left = left;
        let ends = match told.time {
            WindowTime::Reset(wait) => now + millis(wait),
            WindowTime::Length(length) => self.began + millis(length),
        };
        (ends, is_new)
    }
}
