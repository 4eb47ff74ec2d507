//! Backoff for rejections (429) without `Retry-After`: short at first, doubled with each further rejection, a minute at
//! most.

use std::time::Duration;

use tokio::time::Instant;

/// Wait after the first rejection.
pub(super) const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
/// Longest wait.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// After rejecting all requests of a kind for this long, a registry counts as closed, and requests fail.
pub const REJECTION_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// A rejection this long after the last wait starts a new sequence.
const RESET_AFTER: Duration = Duration::from_secs(120);

/// Backoff after consecutive rejections of one kind of request.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RejectionBackoff(Option<Rejection>);

#[derive(Debug, Clone, Copy)]
struct Rejection {
    since: Instant,
    wait: Duration,
    until: Instant,
}

impl RejectionBackoff {
    /// Records a rejection. Returns the wait, and whether it is the first of its sequence: the first shows that the
    /// rate is too high, later ones that the wait was too short. `None` once the sequence has lasted too long.
    pub(super) fn on_rejected(&mut self, now: Instant) -> Option<(Duration, bool)> {
        let next = match self.0 {
            // Sent before the last rejection was received.
            Some(last) if now < last.until => return Some((last.until.duration_since(now), false)),
            Some(last) if now < last.until + RESET_AFTER => {
                if now.duration_since(last.since) > REJECTION_TIMEOUT {
                    return None;
                }
                let wait = (last.wait * 2).min(MAX_BACKOFF);
                Rejection { since: last.since, wait, until: now + wait }
            }
            _ => Rejection { since: now, wait: INITIAL_BACKOFF, until: now + INITIAL_BACKOFF },
        };
        self.0 = Some(next);
        Some((next.wait, next.since == now))
    }

    /// Ends the sequence after a success.
    pub(super) fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_minute_and_requests_in_flight_count_once() {
        let (mut backoff, mut now) = (RejectionBackoff::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            let (wait, is_first) = backoff.on_rejected(now).unwrap();
            assert_eq!(is_first, waits.is_empty());
            assert_eq!(backoff.on_rejected(now + wait / 2), Some((wait - wait / 2, false)), "of the same moment");
            waits.push(wait.as_secs_f64());
            now += wait;
        }
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        backoff.reset();
        assert_eq!(backoff.on_rejected(now), Some((INITIAL_BACKOFF, true)));
        assert_eq!(
            backoff.on_rejected(now + INITIAL_BACKOFF + RESET_AFTER),
            Some((INITIAL_BACKOFF, true)),
            "long after"
        );
    }

    #[test]
    fn an_hour_of_rejections_is_a_failure() {
        let (mut backoff, start) = (RejectionBackoff::default(), Instant::now());
        let mut now = start;
        while let Some((wait, _)) = backoff.on_rejected(now) {
            now += wait;
            assert!(now - start < REJECTION_TIMEOUT * 2, "it ends");
        }
        assert!(now - start > REJECTION_TIMEOUT);
    }
}
