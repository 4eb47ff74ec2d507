//! Timelines: results over time, slowest tasks, work per worker.

use std::time::Duration;

use super::{Subject, bytes, new_batch, repository};
use crate::batch::{Failure, Verdict};
use crate::error::Class;
use crate::store::{Course, MAX_PARTS, MAX_SLOWEST, Part, RequeueFilter, Share, Slow, Spent};

const SECOND: Duration = Duration::from_secs(1);

/// Sums up the buckets: copied, unchanged, failed, cancelled, bytes.
fn sums(course: &Course) -> [u64; 5] {
    course.parts.iter().fold([0; 5], |sums, part| {
        let Part { copied, unchanged, failed, cancelled, bytes, .. } = *part;
        let more = [copied, unchanged, failed, cancelled, bytes];
        std::array::from_fn(|at| sums[at] + more[at])
    })
}

fn failed() -> Verdict {
    Verdict::Failed(Failure::new(Class::Denied, "no", 1))
}

pub async fn outcomes_are_counted_in_the_part_of_the_time_that_they_came_in(subject: Subject) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    assert_eq!(subject.store.course(id).await.unwrap(), Course { width: SECOND, ..Course::default() });
    (subject.advance)(SECOND * 2);
    let mut sealed = repository("a", 6);
    sealed.tasks[0].1 = Some(Verdict::Unchanged);
    sealed.tasks[1].1 = Some(failed());
    subject.store.append(id, sealed).await.unwrap();
    subject.store.seal_all(id).await.unwrap();
    let tickets = subject.publish(id).await;
    (subject.advance)(SECOND * 3);
    let epoch = subject.go(tickets[0], "w").await;
    subject.store.finish(tickets[0], epoch, Verdict::Copied, bytes(7)).await.unwrap();
    subject.store.finish(tickets[0], epoch, Verdict::Copied, bytes(7)).await.unwrap();
    let epoch = subject.go(tickets[1], "w").await;
    subject.store.retry_later(tickets[1], epoch, SECOND, true, bytes(2)).await.unwrap();
    (subject.advance)(SECOND);
    subject.store.cancel(id).await.unwrap();
    let parts = [
        Part { number: 2, unchanged: 1, failed: 1, ..Part::default() },
        Part { number: 5, copied: 1, bytes: 9, ..Part::default() },
        Part { number: 6, cancelled: 3, ..Part::default() },
    ];
    let course = subject.store.course(id).await.unwrap();
    assert_eq!((course.width, course.parts.as_slice()), (SECOND, parts.as_slice()));
}

pub async fn the_parts_of_a_long_batch_are_wide_and_few(subject: Subject) {
    let batch = subject.batch_of(500).await;
    let tickets = subject.publish(batch).await;
    for (number, ticket) in tickets.iter().enumerate() {
        (subject.advance)(SECOND);
        let epoch = subject.go(*ticket, "w").await;
        let verdict = if number % 5 == 0 { failed() } else { Verdict::Copied };
        subject.store.finish(*ticket, epoch, verdict, bytes(3)).await.unwrap();
    }
    let course = subject.store.course(batch).await.unwrap();
    assert_eq!((course.width, sums(&course)), (SECOND * 8, [400, 0, 100, 0, 1_500]));
    assert!(course.parts.len() <= MAX_PARTS as usize);
    let numbers: Vec<u32> = course.parts.iter().map(|part| part.number).collect();
    assert_eq!(numbers, (0..=62).collect::<Vec<u32>>());
    // A month later one of them fails again.
    (subject.advance)(SECOND * 86_400 * 30);
    subject.store.requeue(batch, RequeueFilter::default()).await.unwrap();
    let ticket = subject.publish(batch).await[0];
    let epoch = subject.go(ticket, "w").await;
    subject.finish(ticket, epoch, failed()).await;
    let course = subject.store.course(batch).await.unwrap();
    assert_eq!(sums(&course), [400, 0, 101, 0, 1_500], "it is counted each time that it ends");
    assert!(course.parts.iter().all(|part| part.number < MAX_PARTS), "{course:?}");
}

pub async fn the_slowest_tasks_are_known_and_who_did_how_much(subject: Subject) {
    let batch = subject.batch_of(60).await;
    let tickets = subject.publish(batch).await;
    let took = |millis: u64, moved| Spent { time: Duration::from_millis(millis), ..bytes(moved) };
    for (number, ticket) in (0..).zip(&tickets) {
        let worker = if number % 2 == 0 { "even|one" } else { "odd" };
        let epoch = subject.go(*ticket, worker).await;
        if number == 59 {
            subject.store.retry_later(*ticket, epoch, Duration::ZERO, true, took(90_000, 5)).await.unwrap();
            let epoch = subject.go(*ticket, "third").await;
            subject.store.finish(*ticket, epoch, failed(), took(5, 0)).await.unwrap();
            continue;
        }
        // 7 and 60 are coprime: all durations differ, in no order.
        subject.store.finish(*ticket, epoch, Verdict::Copied, took(1 + number * 7 % 60, 1)).await.unwrap();
    }
    let course = subject.store.course(batch).await.unwrap();
    assert_eq!(course.slowest.len(), MAX_SLOWEST);
    let times: Vec<u64> = course.slowest.iter().map(|slow| slow.time.as_millis() as u64).collect();
    // 59 · 7 mod 60 = 53: a rescheduled task counts only its last attempt.
    let expected: Vec<u64> = (1..=60).rev().filter(|time| *time != 54).take(MAX_SLOWEST).collect();
    assert_eq!(times, expected);
    let slow = Slow { index: 17, time: Duration::from_millis(60), bytes: 1, worker: "odd".to_owned() };
    assert_eq!(course.slowest[0], slow);
    let share = |worker: &str, ended, failed, bytes, millis| Share {
        worker: worker.to_owned(),
        ended,
        failed,
        bytes,
        time: Duration::from_millis(millis),
    };
    let of = |rest: u64| (0..59).filter(|number| number % 2 == rest).map(|number| 1 + number * 7 % 60).sum::<u64>();
    let shares =
        [share("even|one", 30, 0, 30, of(0)), share("odd", 29, 0, 34, of(1) + 90_000), share("third", 1, 1, 0, 5)];
    assert_eq!(course.shares, shares);
    assert_eq!(subject.look(batch).await.spent, took(of(0) + of(1) + 90_005, 64));
    assert_eq!(sums(&course), [59, 0, 1, 0, 64]);
}
