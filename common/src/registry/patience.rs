//! Backoff for rejections (429) without `Retry-After`: short at first, doubled with each further rejection, a minute at
//! most.

use std::time::Duration;

use tokio::time::Instant;

/// Wait after the first rejection.
pub(super) const FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// After rejecting all requests of a kind for this long, a registry counts as closed, and requests fail.
pub const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// A rejection this long after the last wait starts a new sequence.
const APART: Duration = Duration::from_secs(120);

/// Backoff after consecutive rejections of one kind of request.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Streak(Option<Refused>);

#[derive(Debug, Clone, Copy)]
struct Refused {
    since: Instant,
    wait: Duration,
    until: Instant,
}

impl Streak {
    /// Records a rejection. Returns the wait, and whether it is the first of its sequence: the first shows that the
    /// rate is too high, later ones that the wait was too short. `None` once the sequence has lasted too long.
    pub(super) fn refused(&mut self, now: Instant) -> Option<(Duration, bool)> {
        let next = match self.0 {
            // Sent before the last rejection was received.
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

    /// Ends the sequence after a success.
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
