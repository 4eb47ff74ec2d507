//! How long to leave a registry alone that refuses requests (429) and does not say for how long: a little at first, twice as
//! long each time that it refuses again, and never longer than a minute.

use std::time::Duration;

use tokio::time::Instant;

/// After the first refusal …
pub(super) const FIRST: Duration = Duration::from_millis(500);
/// … and never longer than this.
const LONGEST: Duration = Duration::from_secs(60);
/// A registry that has refused everything of a kind for so long is not busy but closed to us: that is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// A refusal so long after the last wait has ended is the first of others.
const APART: Duration = Duration::from_secs(120);

/// Refusals of requests of one kind in a row.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Streak(Option<Refused>);

#[derive(Debug, Clone, Copy)]
struct Refused {
    since: Instant,
    wait: Duration,
    until: Instant,
}

impl Streak {
    /// A request was refused. How long to wait, and whether it is the first of them: that tells of a pace that is too fast,
    /// the others that the registry has not had enough of rest yet. None where that has gone on for too long.
    pub(super) fn refused(&mut self, now: Instant) -> Option<(Duration, bool)> {
        let next = match self.0 {
            // It was under way when the last one was refused.
            Some(last) if now < last.until => return Some((last.until.duration_since(now), false)),
            Some(last) if now < last.until + APART => {
                if now.duration_since(last.since) > PATIENCE {
                    return None;
                }
                let wait = (last.wait * 2).min(LONGEST);
                Refused { since: last.since, wait, until: now + wait }
            }
            _ => Refused { since: now, wait: FIRST, until: now + FIRST },
        };
        self.0 = Some(next);
        Some((next.wait, next.since == now))
    }

    /// A request went well.
    pub(super) fn ended(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_what_was_under_way_counts_once() {
        let (mut streak, mut now) = (Streak::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            let (wait, is_first) = streak.refused(now).unwrap();
            assert_eq!(is_first, waits.is_empty());
            assert_eq!(streak.refused(now + wait / 2), Some((wait - wait / 2, false)), "of the same moment");
            waits.push(wait.as_secs_f64());
            now += wait;
        }
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        streak.ended();
        assert_eq!(streak.refused(now), Some((FIRST, true)));
        assert_eq!(streak.refused(now + FIRST + APART), Some((FIRST, true)), "long after");
    }

    #[test]
    fn an_hour_of_nothing_but_refusals_is_a_failure() {
        let (mut streak, start) = (Streak::default(), Instant::now());
        let mut now = start;
        while let Some((wait, _)) = streak.refused(now) {
            now += wait;
            assert!(now - start < PATIENCE * 2, "it ends");
        }
        assert!(now - start > PATIENCE);
    }
}
