//! Timelines: results over time, slowest tasks, work per worker.

use std::time::Duration;

use super::{StoreUnderTest, copied_bytes, new_batch, segment};
use crate::{
    BatchTimeline, MAX_SLOWEST_TASKS, MAX_TIME_BUCKETS, RequeueFilter, SlowTask, TimeBucket, Usage, WorkerStats,
};
use imgsync_model::batch::{Failure, TaskResult};
use imgsync_oci::error::ErrorKind;

const SECOND: Duration = Duration::from_secs(1);

/// Sums up the buckets: copied, unchanged, failed, cancelled, bytes.
fn sums(timeline: &BatchTimeline) -> [u64; 5] {
    timeline.buckets.iter().fold([0; 5], |sums, part| {
        let TimeBucket { copied, unchanged, failed, cancelled, bytes, .. } = *part;
        let more = [copied, unchanged, failed, cancelled, bytes];
        std::array::from_fn(|at| sums[at] + more[at])
    })
}

fn failed() -> TaskResult {
    TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1))
}

pub async fn results_are_counted_in_their_time_bucket(subject: StoreUnderTest) {
    let batch = new_batch();
    let id = batch.id;
    subject.store.create(batch).await.unwrap();
    assert_eq!(
        subject.store.timeline(id).await.unwrap(),
        BatchTimeline { bucket_width: SECOND, ..BatchTimeline::default() }
    );
    (subject.advance)(SECOND * 2);
    let mut to_append = segment("a", 6);
    to_append.tasks[0].1 = Some(TaskResult::Unchanged);
    to_append.tasks[1].1 = Some(failed());
    subject.store.append(id, to_append).await.unwrap();
    subject.store.complete_plan(id, crate::PlanSize::default()).await.unwrap();
    let task_refs = subject.publish(id).await;
    (subject.advance)(SECOND * 3);
    let holder = subject.claim(task_refs[0], "w").await;
    subject.store.finish(task_refs[0], holder, TaskResult::Copied, copied_bytes(7)).await.unwrap();
    subject.store.finish(task_refs[0], holder, TaskResult::Copied, copied_bytes(7)).await.unwrap();
    let holder = subject.claim(task_refs[1], "w").await;
    subject.store.reschedule(task_refs[1], holder, SECOND, true, copied_bytes(2)).await.unwrap();
    (subject.advance)(SECOND);
    subject.store.cancel(id).await.unwrap();
    let parts = [
        TimeBucket { number: 2, unchanged: 1, failed: 1, ..TimeBucket::default() },
        TimeBucket { number: 5, copied: 1, bytes: 9, ..TimeBucket::default() },
        TimeBucket { number: 6, cancelled: 3, ..TimeBucket::default() },
    ];
    let timeline = subject.store.timeline(id).await.unwrap();
    assert_eq!((timeline.bucket_width, timeline.buckets.as_slice()), (SECOND, parts.as_slice()));
}

pub async fn a_long_batch_has_few_wide_time_buckets(subject: StoreUnderTest) {
    let batch = subject.create_batch(500).await;
    let task_refs = subject.publish(batch).await;
    for (number, task_ref) in task_refs.iter().enumerate() {
        (subject.advance)(SECOND);
        let holder = subject.claim(*task_ref, "w").await;
        let result = if number % 5 == 0 { failed() } else { TaskResult::Copied };
        subject.store.finish(*task_ref, holder, result, copied_bytes(3)).await.unwrap();
    }
    let timeline = subject.store.timeline(batch).await.unwrap();
    assert_eq!((timeline.bucket_width, sums(&timeline)), (SECOND * 8, [400, 0, 100, 0, 1_500]));
    assert!(timeline.buckets.len() <= MAX_TIME_BUCKETS as usize);
    let numbers: Vec<u32> = timeline.buckets.iter().map(|part| part.number).collect();
    assert_eq!(numbers, (0..=62).collect::<Vec<u32>>());
    // A month later one of them fails again.
    (subject.advance)(SECOND * 86_400 * 30);
    subject.store.requeue(batch, RequeueFilter::default()).await.unwrap();
    let task_ref = subject.publish(batch).await[0];
    let holder = subject.claim(task_ref, "w").await;
    subject.finish(task_ref, holder, failed()).await;
    let timeline = subject.store.timeline(batch).await.unwrap();
    assert_eq!(sums(&timeline), [400, 0, 101, 0, 1_500], "it is counted each time that it ends");
    assert!(timeline.buckets.iter().all(|part| part.number < MAX_TIME_BUCKETS), "{timeline:?}");
}

pub async fn the_slowest_tasks_and_worker_stats_are_recorded(subject: StoreUnderTest) {
    let batch = subject.create_batch(60).await;
    let task_refs = subject.publish(batch).await;
    let took = |millis: u64, moved| Usage { time: Duration::from_millis(millis), ..copied_bytes(moved) };
    for (number, task_ref) in (0..).zip(&task_refs) {
        let worker = if number % 2 == 0 { "even|one" } else { "odd" };
        let holder = subject.claim(*task_ref, worker).await;
        if number == 59 {
            subject.store.reschedule(*task_ref, holder, Duration::ZERO, true, took(90_000, 5)).await.unwrap();
            let holder = subject.claim(*task_ref, "third").await;
            subject.store.finish(*task_ref, holder, failed(), took(5, 0)).await.unwrap();
            continue;
        }
        // 7 and 60 are coprime: all durations differ, in no order.
        subject.store.finish(*task_ref, holder, TaskResult::Copied, took(1 + number * 7 % 60, 1)).await.unwrap();
    }
    let timeline = subject.store.timeline(batch).await.unwrap();
    assert_eq!(timeline.slowest.len(), MAX_SLOWEST_TASKS);
    let times: Vec<u64> = timeline.slowest.iter().map(|slow| slow.time.as_millis() as u64).collect();
    // 59 · 7 mod 60 = 53: a rescheduled task counts only its last attempt.
    let expected: Vec<u64> = (1..=60).rev().filter(|time| *time != 54).take(MAX_SLOWEST_TASKS).collect();
    assert_eq!(times, expected);
    let slow = SlowTask { index: 17, time: Duration::from_millis(60), bytes: 1, worker: "odd".to_owned() };
    assert_eq!(timeline.slowest[0], slow);
    let share = |worker: &str, ended, failed, bytes, millis| WorkerStats {
        worker: worker.to_owned(),
        ended,
        failed,
        bytes,
        time: Duration::from_millis(millis),
    };
    let of = |rest: u64| (0..59).filter(|number| number % 2 == rest).map(|number| 1 + number * 7 % 60).sum::<u64>();
    let shares =
        [share("even|one", 30, 0, 30, of(0)), share("odd", 29, 0, 34, of(1) + 90_000), share("third", 1, 1, 0, 5)];
    assert_eq!(timeline.workers, shares);
    assert_eq!(subject.checked_batch(batch).await.usage, took(of(0) + of(1) + 90_005, 64));
    assert_eq!(sums(&timeline), [59, 0, 1, 0, 64]);
}
