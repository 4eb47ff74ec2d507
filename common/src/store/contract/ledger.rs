//! Tasks: claimed, renewed, finished, rescheduled, requeued, reclaimed.

use std::time::Duration;

use super::{Subject, bytes, new_batch, repository};
use crate::batch::{BatchId, Failure, TaskState, Ticket, Verdict};
use crate::error::Class;
use crate::store::{
    Control, Finished, LEASE, Named, RequeueFilter, Retried, Spent, Standing, Start, Sweep, Swept, TaskHolder,
};

const SECOND: Duration = Duration::from_secs(1);

/// Returns worker `w` with this token as a holder.
fn w(token: u64) -> TaskHolder<'static> {
    TaskHolder { worker: "w", token }
}

pub async fn one_worker_holds_a_task_at_a_time(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let until = (subject.now)() + LEASE;
    let epoch = subject.go(ticket, "one").await;
    assert_eq!(subject.start(ticket, "two").await, Start::HeldBy { until });
    (subject.advance)(LEASE - SECOND);
    let until = (subject.now)() + LEASE;
    assert_eq!(subject.store.renew(ticket, epoch, LEASE).await.unwrap(), Standing::Held { until });
    (subject.advance)(LEASE - SECOND);
    assert_eq!(subject.start(ticket, "two").await, Start::HeldBy { until });
    assert_eq!(subject.finish(ticket, epoch, Verdict::Copied).await, Finished::Counted);
    assert_eq!(subject.start(ticket, "two").await, Start::AlreadyDone);
    assert_eq!(subject.store.renew(ticket, epoch, LEASE).await.unwrap(), Standing::Lost);
}

pub async fn its_own_task_delivered_again_is_adopted(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let epoch = subject.go(ticket, "one").await;
    (subject.advance)(SECOND * 20);
    assert_eq!(subject.start(ticket, "one").await, Start::Own { epoch: epoch.token, attempts: 0 });
    (subject.advance)(SECOND * 20);
    assert!(matches!(subject.start(ticket, "two").await, Start::HeldBy { .. }), "and held for as long again");
    assert_eq!(subject.finish(ticket, epoch, Verdict::Copied).await, Finished::Counted);
}

pub async fn a_token_in_another_workers_hands_moves_nothing(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let holder = subject.go(ticket, "one").await;
    // As if a store restored from a backup had issued the token a second time.
    let other = TaskHolder { worker: "two", ..holder };
    assert_eq!(subject.store.renew(ticket, other, LEASE).await.unwrap(), Standing::Lost);
    assert_eq!(subject.finish(ticket, other, Verdict::Copied).await, Finished::Stale);
    let put_off = subject.store.retry_later(ticket, other, SECOND, true, Spent::default()).await.unwrap();
    assert_eq!(put_off, Retried::Stale);
    assert_eq!(subject.finish(ticket, holder, Verdict::Copied).await, Finished::Counted);
}

pub async fn tokens_are_never_below_the_time_of_the_store(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let floor = |now: jiff::Timestamp| u64::try_from(now.as_millisecond() * 1000).unwrap();
    let before = floor((subject.now)());
    assert!(subject.go(ticket, "one").await.token >= before);
    let named = subject.store.acquire("a name", "one", LEASE).await.unwrap();
    let Named::Yours { epoch: first } = named else { panic!("{named:?}") };
    assert!(first >= before);
    (subject.advance)(LEASE * 2);
    let named = subject.store.acquire("a name", "two", LEASE).await.unwrap();
    let Named::Yours { epoch: second } = named else { panic!("{named:?}") };
    assert!(second >= floor((subject.now)()) && second > first);
}

pub async fn a_lease_that_ran_out_is_taken_over_and_its_holder_is_stale(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let first = subject.go(ticket, "one").await;
    (subject.advance)(LEASE + SECOND);
    let second = subject.go(ticket, "two").await;
    assert!(second.token > first.token);
    assert_eq!(subject.store.check(ticket, first, LEASE).await.unwrap(), Standing::Lost);
    assert_eq!(subject.store.finish(ticket, first, Verdict::Copied, bytes(7)).await.unwrap(), Finished::Stale);
    assert_eq!(
        subject.store.retry_later(ticket, first, SECOND, true, bytes(7)).await.unwrap(),
        Retried::Stale,
        "nor may it put off what another is at"
    );
    assert_eq!(subject.store.finish(ticket, second, Verdict::Unchanged, bytes(1)).await.unwrap(), Finished::Counted);
    let found = subject.look(batch).await;
    assert_eq!((found.counts.unchanged, found.counts.copied, found.spent), (1, 0, bytes(1)));
}

pub async fn a_lease_that_ran_out_is_still_its_holders_until_taken(subject: Subject) {
    let batch = subject.batch_of(2).await;
    let tickets = subject.publish(batch).await;
    let (one, two) = (subject.go(tickets[0], "one").await, subject.go(tickets[1], "one").await);
    (subject.advance)(LEASE * 10);
    let until = (subject.now)() + LEASE;
    assert_eq!(subject.store.check(tickets[0], one, LEASE).await.unwrap(), Standing::Held { until });
    assert!(matches!(subject.start(tickets[0], "two").await, Start::HeldBy { .. }));
    assert_eq!(subject.finish(tickets[1], two, Verdict::Copied).await, Finished::Counted);
}

pub async fn a_task_is_counted_once_however_often_it_is_finished(subject: Subject) {
    let batch = subject.batch_of(2).await;
    let ticket = subject.publish(batch).await[0];
    let epoch = subject.go(ticket, "one").await;
    assert_eq!(subject.store.finish(ticket, epoch, Verdict::Copied, bytes(5)).await.unwrap(), Finished::Counted);
    for verdict in [Verdict::Copied, Verdict::Failed(Failure::new(Class::Denied, "no", 1)), Verdict::Cancelled] {
        let again = subject.store.finish(ticket, epoch, verdict, bytes(5)).await.unwrap();
        assert_eq!(again, Finished::AlreadyDone);
    }
    let found = subject.look(batch).await;
    assert_eq!((found.counts.copied, found.counts.ended(), found.spent), (1, 1, bytes(5)));
    assert!(subject.store.failures(batch, 0, 10).await.unwrap().is_empty());
}

pub async fn attempts_are_counted_where_they_count(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let put_off = async |counts, wait| {
        let epoch = subject.go(ticket, "w").await;
        subject.store.retry_later(ticket, epoch, wait, counts, bytes(1)).await.unwrap()
    };
    assert_eq!(put_off(true, SECOND * 10).await, Retried::Waits { attempts: 1 });
    assert_eq!(subject.state(ticket).await, TaskState::Retry);
    assert_eq!(put_off(false, SECOND * 300).await, Retried::Waits { attempts: 1 });
    assert_eq!(put_off(false, Duration::ZERO).await, Retried::Waits { attempts: 1 });
    assert_eq!(subject.state(ticket).await, TaskState::New, "who leads publishes it");
    assert_eq!(put_off(true, SECOND * 10).await, Retried::Waits { attempts: 2 });
    let counts = subject.look(batch).await.counts;
    assert_eq!((counts.waiting, counts.running), (1, 0));
    let Start::Go { epoch, attempts: 2, .. } = subject.start(ticket, "w").await else { panic!("two were counted") };
    subject.finish(ticket, w(epoch), Verdict::Copied).await;
    let found = subject.look(batch).await;
    assert_eq!((found.control, found.spent), (Control::Done, bytes(4)));
}

pub async fn a_paused_batch_takes_its_tasks_back(subject: Subject) {
    let batch = subject.batch_of(4).await;
    let tickets = subject.publish(batch).await;
    let running = subject.go(tickets[0], "w").await;
    let waiting = subject.go(tickets[1], "w").await;
    subject.store.retry_later(tickets[1], waiting, SECOND, true, Spent::default()).await.unwrap();
    assert_eq!(subject.store.pause(batch).await.unwrap(), Control::Paused);
    assert_eq!(subject.store.pause(batch).await.unwrap(), Control::Paused);
    for ticket in &tickets[1..3] {
        assert_eq!(subject.start(*ticket, "w").await, Start::Paused);
        assert_eq!(subject.state(*ticket).await, TaskState::New);
    }
    assert!(subject.store.unpublished(batch, 0, 1).await.unwrap().is_empty());
    // Running tasks continue.
    assert!(matches!(subject.store.check(tickets[0], running, LEASE).await.unwrap(), Standing::Held { .. }));
    assert_eq!(subject.finish(tickets[0], running, Verdict::Copied).await, Finished::Counted);

    assert_eq!(subject.store.resume(batch).await.unwrap(), Control::Running);
    assert_eq!(subject.publish(batch).await, tickets[1..3], "the last is with the queue still");
    for ticket in &tickets[1..] {
        let epoch = subject.go(*ticket, "w").await;
        subject.finish(*ticket, epoch, Verdict::Copied).await;
    }
    assert_eq!(subject.look(batch).await.control, Control::Done);
    assert_eq!(subject.store.pause(batch).await.unwrap(), Control::Done);
    assert_eq!(subject.store.cancel(batch).await.unwrap(), Control::Done);
}

pub async fn a_cancelled_batch_counts_all_that_has_not_ended_at_once(subject: Subject) {
    let batch = subject.batch_of(700).await;
    let tickets = subject.publish(batch).await;
    let mut epochs = Vec::new();
    for ticket in &tickets[..5] {
        epochs.push(subject.go(*ticket, "w").await);
    }
    subject.finish(tickets[0], epochs[0], Verdict::Copied).await;
    subject.store.retry_later(tickets[4], epochs[4], SECOND, true, Spent::default()).await.unwrap();
    assert_eq!(subject.store.cancel(batch).await.unwrap(), Control::Cancelled);
    let found = subject.look(batch).await;
    assert_eq!((found.counts.copied, found.counts.running, found.counts.cancelled), (1, 0, 699));
    assert!(found.ended_at.is_some());
    assert_eq!(subject.start(tickets[600], "w").await, Start::Cancelled);
    assert_eq!(subject.store.renew(tickets[1], epochs[1], LEASE).await.unwrap(), Standing::Stop);

    assert_eq!(subject.start(tickets[1], "another").await, Start::Cancelled);

    // One has finished its work, one stops, one would be retried: nothing of them counts any more.
    assert_eq!(subject.finish(tickets[1], epochs[1], Verdict::Copied).await, Finished::Stale);
    assert_eq!(subject.finish(tickets[2], epochs[2], Verdict::Cancelled).await, Finished::AlreadyDone);
    let put_off = subject.store.retry_later(tickets[3], epochs[3], SECOND, true, Spent::default()).await.unwrap();
    assert_eq!(put_off, Retried::Stale);
    let found = subject.look(batch).await;
    assert_eq!((found.counts.copied, found.counts.cancelled, found.control), (1, 699, Control::Cancelled));
    for sweep in [Sweep::Leases { grace: Duration::ZERO }, Sweep::Everything] {
        assert_eq!(subject.store.sweep(batch, sweep).await.unwrap(), Swept::default(), "nothing is left to put back");
    }
    assert_eq!(subject.store.resume(batch).await.unwrap(), Control::Cancelled);
}

pub async fn failed_tasks_are_requeued_and_their_old_messages_ignored(subject: Subject) {
    let batch = subject.batch_of(3).await;
    let tickets = subject.publish(batch).await;
    for (ticket, verdict) in tickets.iter().zip([
        Verdict::Copied,
        Verdict::Failed(Failure::new(Class::Refused, "no", 5)),
        Verdict::Failed(Failure::new(Class::Refused, "no", 5)),
    ]) {
        let epoch = subject.go(*ticket, "w").await;
        subject.store.retry_later(*ticket, epoch, SECOND, true, Spent::default()).await.unwrap();
        let epoch = subject.go(*ticket, "w").await;
        subject.finish(*ticket, epoch, verdict).await;
    }
    assert_eq!(subject.look(batch).await.control, Control::Done);
    assert_eq!(subject.store.requeue(batch, RequeueFilter::default()).await.unwrap(), 2);
    assert_eq!(subject.store.requeue(batch, RequeueFilter::default()).await.unwrap(), 0, "once");
    let found = subject.look(batch).await;
    assert_eq!((found.control, found.run, found.counts.waiting), (Control::Running, 1, 2));
    assert!(found.ended_at.is_none() && subject.store.failures(batch, 0, 10).await.unwrap().is_empty());
    // Confirmations and messages of the first run arrive late.
    subject.store.published(batch, tickets.clone()).await.unwrap();
    assert_eq!(subject.start(tickets[1], "w").await, Start::StaleRun);
    let again = subject.publish(batch).await;
    assert_eq!(again, [1, 2].map(|index| Ticket { batch, run: 1, index }));
    for ticket in again {
        let Start::Go { epoch, attempts: 0, .. } = subject.start(ticket, "w").await else { panic!("a run of its own") };
        assert_eq!(subject.finish(ticket, w(epoch), Verdict::Copied).await, Finished::Counted);
    }
    assert_eq!(subject.look(batch).await.control, Control::Done);
}

pub async fn only_the_failures_that_are_meant_are_requeued(subject: Subject) {
    let batch = subject.batch_of(4).await;
    let tickets = subject.publish(batch).await;
    for (ticket, class) in tickets.iter().zip([Class::Refused, Class::Denied, Class::Refused, Class::NotFound]) {
        let epoch = subject.go(*ticket, "w").await;
        subject.finish(*ticket, epoch, Verdict::Failed(Failure::new(class, "no", 1))).await;
    }
    let registry = |name: &str| RequeueFilter { registry: Some(name.parse().unwrap()), ..RequeueFilter::default() };
    assert_eq!(subject.store.requeue(batch, registry("quay.io")).await.unwrap(), 0);
    assert_eq!(subject.look(batch).await.control, Control::Done);
    assert_eq!(
        subject
            .store
            .requeue(batch, RequeueFilter { class: Some(Class::Refused), ..RequeueFilter::default() })
            .await
            .unwrap(),
        2
    );
    assert_eq!(subject.publish(batch).await.len(), 2);
    assert_eq!(subject.store.requeue(batch, registry("gcr.io")).await.unwrap(), 2);
    let again = subject.publish(batch).await;
    assert_eq!(again, [1, 3].map(|index| Ticket { batch, run: 2, index }));
    // Tasks requeued earlier keep their run.
    subject.go(Ticket { batch, run: 1, index: 0 }, "w").await;
}

pub async fn a_sweep_puts_back_what_was_lost(subject: Subject) {
    let batch = subject.batch_of(5).await;
    let tickets = subject.publish(batch).await;
    let grace = SECOND * 60;
    let dead = subject.go(tickets[0], "dead").await;
    let waiting = subject.go(tickets[1], "w").await;
    subject.store.retry_later(tickets[1], waiting, SECOND * 10, true, Spent::default()).await.unwrap();
    (subject.advance)(SECOND * 80);
    subject.go(tickets[2], "alive").await;
    assert_eq!(subject.store.sweep(batch, Sweep::Leases { grace }).await.unwrap(), Swept::default());
    (subject.advance)(SECOND * 20);
    assert_eq!(subject.store.sweep(batch, Sweep::Leases { grace }).await.unwrap(), Swept { leased: 1, queued: 0 });
    assert_eq!(subject.finish(tickets[0], dead, Verdict::Copied).await, Finished::Stale);
    // Two queued tasks and one overdue retry; one task is alive.
    assert_eq!(
        subject.store.sweep(batch, Sweep::QueueIsEmpty { grace }).await.unwrap(),
        Swept { leased: 0, queued: 3 }
    );
    assert_eq!(subject.publish(batch).await.len(), 4);
    let Start::Go { epoch, attempts: 1, .. } = subject.start(tickets[1], "w").await else { panic!("attempts stay") };
    assert_eq!(subject.store.sweep(batch, Sweep::Everything).await.unwrap(), Swept { leased: 2, queued: 3 });
    assert_eq!(subject.finish(tickets[1], w(epoch), Verdict::Copied).await, Finished::Stale);
    assert_eq!(subject.look(batch).await.counts.waiting, 5);

    // No task of a stopped batch starts again.
    subject.go(tickets[3], "dead").await;
    subject.store.cancel(batch).await.unwrap();
    (subject.advance)(LEASE + grace);
    assert_eq!(subject.store.sweep(batch, Sweep::Leases { grace }).await.unwrap(), Swept::default());
    let found = subject.look(batch).await;
    assert_eq!((found.counts.cancelled, found.counts.running), (5, 0));
    assert!(found.ended_at.is_some());
}

pub async fn what_nobody_knows_is_said_to_be_unknown(subject: Subject) {
    let nobody = BatchId::generate();
    let ticket = Ticket { batch: nobody, run: 0, index: 0 };
    assert_eq!(subject.start(ticket, "w").await, Start::Unknown);
    assert_eq!(subject.finish(ticket, w(1), Verdict::Copied).await, Finished::Stale);
    assert_eq!(subject.store.renew(ticket, w(1), LEASE).await.unwrap(), Standing::Lost);
    assert_eq!(subject.store.control(nobody).await.unwrap(), None);
    assert_eq!(subject.store.batch(nobody).await.unwrap(), None);
    assert_eq!(subject.store.cancel(nobody).await.unwrap_err().class(), Class::NotFound);
    assert_eq!(subject.store.append(nobody, repository("a", 1)).await.unwrap_err().class(), Class::NotFound);

    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    subject.store.append(id, repository("a", 3)).await.unwrap();
    assert_eq!(subject.start(Ticket { batch: id, run: 0, index: 3 }, "w").await, Start::Unknown);
    assert_eq!(subject.start(Ticket { batch: id, run: 0, index: u32::MAX }, "w").await, Start::Unknown);
}

pub async fn a_task_that_was_lost_is_known_by_it(subject: Subject) {
    let batch = subject.batch_of(1).await;
    let ticket = subject.publish(batch).await[0];
    let losses = async |ticket: Ticket| match subject.start(ticket, "w").await {
        Start::Go { losses, .. } => losses,
        other => panic!("{other:?}"),
    };
    assert_eq!(losses(ticket).await, 0);
    (subject.advance)(LEASE + SECOND);
    assert_eq!(losses(ticket).await, 1, "taken over");
    (subject.advance)(LEASE + SECOND);
    let swept = subject.store.sweep(batch, Sweep::Leases { grace: Duration::ZERO }).await.unwrap();
    assert_eq!(swept, Swept { leased: 1, queued: 0 });
    subject.publish(batch).await;
    let Start::Go { epoch, losses: 2, .. } = subject.start(ticket, "w").await else { panic!("swept") };
    subject.store.retry_later(ticket, w(epoch), Duration::ZERO, false, Spent::default()).await.unwrap();
    let Start::Go { epoch, losses: 2, .. } = subject.start(ticket, "w").await else { panic!("given back is not lost") };
    let failure = Failure { class: Class::Local, error: "no".into(), attempts: 1 };
    subject.finish(ticket, w(epoch), Verdict::Failed(failure)).await;
    subject.store.requeue(batch, RequeueFilter::default()).await.unwrap();
    let ticket = subject.publish(batch).await[0];
    assert_eq!(losses(ticket).await, 0, "a new run has a clean slate");
    subject.store.sweep(batch, Sweep::Everything).await.unwrap();
    let ticket = subject.publish(batch).await[0];
    assert_eq!(losses(ticket).await, 0, "who ended the only process knows why");
}
