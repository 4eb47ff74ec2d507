//! Turns to read from a file that can only be read forward: one blob at a time, in the order in which they are in the file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Hands out turns. Readers of the same blob share one.
#[derive(Debug, Default)]
pub(in super::super) struct ReadTurns(Mutex<TurnState>);

#[derive(Debug, Default)]
struct TurnState {
    /// Where the last turn was.
    position: u64,
    /// Readers that have the turn now.
    holders: usize,
    waiting: BTreeMap<u64, Vec<oneshot::Sender<ReadTurn>>>,
}

/// A turn to read one blob, until it is dropped.
#[derive(Debug)]
pub struct ReadTurn {
    /// `None` for a turn that nobody claimed.
    turns: Option<Arc<ReadTurns>>,
}

impl ReadTurns {
    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the offset of the last turn.
    pub(in super::super) fn position(&self) -> u64 {
        self.lock().position
    }

    /// Waits for the turn of an offset: the next one forward, or the first of all if none is.
    pub(in super::super) async fn acquire(self: &Arc<ReadTurns>, offset: u64) -> ReadTurn {
        let waiting = {
            let mut state = self.lock();
            if state.holders == 0 || state.position == offset {
                state.position = offset;
                state.holders += 1;
                return ReadTurn { turns: Some(self.clone()) };
            }
            let (sender, waiting) = oneshot::channel();
            state.waiting.entry(offset).or_default().push(sender);
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Never: the sender is in the state until it is used.
            Err(_) => {
                self.lock().holders += 1;
                ReadTurn { turns: Some(self.clone()) }
            }
        }
    }

    fn release(self: &Arc<ReadTurns>) {
        let mut unclaimed = Vec::new();
        let mut state = self.lock();
        state.holders -= 1;
        while state.holders == 0 {
            let position = state.position;
            let next = state.waiting.range(position..).next().or_else(|| state.waiting.iter().next());
            let Some(offset) = next.map(|(offset, _)| *offset) else { break };
            state.position = offset;
            for sender in state.waiting.remove(&offset).unwrap_or_default() {
                state.holders += 1;
                if let Err(turn) = sender.send(ReadTurn { turns: Some(self.clone()) }) {
                    state.holders -= 1;
                    unclaimed.push(turn);
                }
            }
        }
        drop(state);
        // They do not count any more.
        for turn in &mut unclaimed {
            turn.turns = None;
        }
    }
}

impl Drop for ReadTurn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn turns_go_forward_and_start_again_at_the_first() {
        let turns = Arc::new(ReadTurns::default());
        let first = turns.acquire(50).now_or_never().unwrap();
        let (mut behind, mut ahead, mut far) =
            (Box::pin(turns.acquire(10)), Box::pin(turns.acquire(60)), Box::pin(turns.acquire(70)));
        for waiting in [&mut behind, &mut ahead, &mut far] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(first);
        let second = (&mut ahead).now_or_never().unwrap();
        assert!((&mut behind).now_or_never().is_none() && (&mut far).now_or_never().is_none());
        drop(second);
        let third = (&mut far).now_or_never().unwrap();
        drop(third);
        assert_eq!(turns.position(), 10);
        drop((&mut behind).now_or_never().unwrap());
    }

    #[test]
    fn readers_of_one_blob_share_the_turn_and_those_that_left_are_skipped() {
        let turns = Arc::new(ReadTurns::default());
        let (one, two) = (turns.acquire(1).now_or_never().unwrap(), turns.acquire(1).now_or_never().unwrap());
        let (mut left, mut next) = (Box::pin(turns.acquire(2)), Box::pin(turns.acquire(3)));
        assert!((&mut left).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(left);
        drop(one);
        assert!((&mut next).now_or_never().is_none());
        drop(two);
        assert!((&mut next).now_or_never().is_some());
        assert!(turns.acquire(9).now_or_never().is_some());
    }
}
