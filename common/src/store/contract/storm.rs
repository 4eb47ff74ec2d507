//! Duplicate deliveries, dead and frozen workers, a queue that loses messages: each task still counts once.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{Subject, bytes};
use crate::batch::{Failure, Ticket, Verdict};
use crate::error::Class;
use crate::store::{Control, Finished, LEASE, Spent, Standing, Start, Sweep, TaskHolder};

const TASKS: usize = 5_000;

/// A task that a worker holds, or believes to hold.
struct Held {
    ticket: Ticket,
    worker: String,
    token: u64,
}

impl Held {
    fn holder(&self) -> TaskHolder<'_> {
        TaskHolder { worker: &self.worker, token: self.token }
    }
}

pub async fn five_thousand_tasks_in_a_storm_are_each_counted_once(subject: Subject) {
    let mut rng = StdRng::seed_from_u64(5_000);
    let batch = subject.batch_of(TASKS).await;
    let mut queue: Vec<Ticket> = Vec::new();
    let (mut working, mut frozen): (Vec<Held>, Vec<Held>) = (Vec::new(), Vec::new());
    let (mut counted, mut stale, mut deliveries) = (0u64, 0u64, 0u64);
    let mut spent = Spent::default();
    let put = |tickets: Vec<Ticket>, queue: &mut Vec<Ticket>, rng: &mut StdRng| {
        for ticket in tickets {
            queue.push(ticket);
            if rng.random_bool(0.6) {
                queue.push(ticket);
            }
        }
        queue.shuffle(rng);
    };
    put(subject.publish(batch).await, &mut queue, &mut rng);
    while subject.store.control(batch).await.unwrap() == Some(Control::Running) {
        match rng.random_range(0..100) {
            0..45 if working.len() < 40 && !queue.is_empty() => {
                let ticket = queue.swap_remove(rng.random_range(0..queue.len()));
                deliveries += 1;
                let worker = format!("w{}", rng.random_range(0..8));
                match subject.start(ticket, &worker).await {
                    Start::Go { epoch, .. } | Start::Own { epoch, .. } => {
                        working.push(Held { ticket, worker, token: epoch });
                    }
                    Start::HeldBy { .. } => queue.push(ticket),
                    Start::AlreadyDone | Start::StaleRun => {}
                    other => panic!("{other:?}"),
                }
            }
            // A worker dies.
            45..50 if !working.is_empty() => {
                let Held { ticket, .. } = working.swap_remove(rng.random_range(0..working.len()));
                // Its delivery usually comes again; the broker may have died as well.
                if rng.random_bool(0.9) {
                    queue.push(ticket);
                }
            }
            50..53 if !working.is_empty() => frozen.push(working.swap_remove(rng.random_range(0..working.len()))),
            53..55 => (subject.advance)(Duration::from_secs(rng.random_range(0..LEASE.as_secs() * 2))),
            55..58 if !working.is_empty() => {
                let held = working.swap_remove(rng.random_range(0..working.len()));
                let ticket = held.ticket;
                subject.store.retry_later(ticket, held.holder(), LEASE, true, Spent::default()).await.unwrap();
                queue.push(ticket);
            }
            // A worker finishes, or a frozen one resumes.
            roll => {
                let from = if roll >= 97 && !frozen.is_empty() { &mut frozen } else { &mut working };
                if !from.is_empty() {
                    let held = from.swap_remove(rng.random_range(0..from.len()));
                    let (ticket, holder) = (held.ticket, held.holder());
                    let may_write = subject.store.check(ticket, holder, LEASE).await.unwrap();
                    let verdict = match rng.random_range(0..10) {
                        0 => Verdict::Failed(Failure::new(Class::Refused, "no", 1)),
                        1..4 => Verdict::Unchanged,
                        _ => Verdict::Copied,
                    };
                    let cost = bytes(rng.random_range(0..1_000_000));
                    match subject.store.finish(ticket, holder, verdict, cost).await.unwrap() {
                        Finished::Counted => {
                            assert!(matches!(may_write, Standing::Held { .. }));
                            counted += 1;
                            spent += cost;
                        }
                        Finished::Stale | Finished::AlreadyDone => {
                            assert_eq!(may_write, Standing::Lost);
                            stale += 1;
                        }
                    }
                    // A crash between finishing and acknowledging.
                    if rng.random_bool(0.1) {
                        queue.push(ticket);
                    }
                }
            }
        }
        if queue.is_empty() && working.is_empty() {
            (subject.advance)(LEASE * 3);
            subject.store.sweep(batch, Sweep::QueueIsEmpty { grace: LEASE }).await.unwrap();
            put(subject.publish(batch).await, &mut queue, &mut rng);
        }
    }
    let found = subject.look(batch).await;
    assert_eq!((counted, found.counts.ended()), (TASKS as u64, TASKS as u64));
    assert_eq!(found.spent, spent);
    assert!(deliveries > TASKS as u64 * 8 / 5, "{deliveries} deliveries");
    assert!(stale > 0, "some outlived their leases");
}
