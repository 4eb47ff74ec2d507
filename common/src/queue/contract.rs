//! Contract tests of [`TaskQueue`] for every implementation: see
//! [`queue_contract_tests!`](crate::queue_contract_tests).

#![allow(clippy::unwrap_used, missing_docs)] // Tests, named for what they hold.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Lanes, TaskQueue};
use crate::batch::{BatchId, Home, Lane, Message, MessageTarget, Place, Priority};
use crate::retry::is_passing;

/// A queue under test: new and empty.
pub struct Subject {
    /// The queue.
    pub queue: Arc<dyn TaskQueue>,
    /// Number of messages that it accepts before it rejects one.
    pub room: usize,
    /// The shortest delay that it offers.
    pub shortest_wait: Duration,
    /// Resources that must outlive the queue.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Tests of a queue: `queue_contract_tests!(make)`, where `make` is an `async fn() -> Subject`.
#[macro_export]
macro_rules! queue_contract_tests {
    ($make:path) => {
        $crate::queue_contract_tests!($make:
            what_is_published_is_taken_once,
            what_is_dropped_is_delivered_again,
            what_is_given_back_is_delivered_again,
            what_is_given_back_for_later_comes_later,
            only_the_lanes_that_are_asked_for_are_served,
            a_taker_waits_for_what_comes_and_stops_when_told,
            a_small_batch_beside_a_large_one_is_served_promptly,
            what_is_urgent_is_taken_first_and_never_alone,
            who_takes_what_is_urgent_is_given_nothing_else,
            what_is_urgent_comes_back_urgent,
            a_full_queue_refuses_and_has_room_again,
            many_takers_share_the_work
        );
    };
    ($make:path: $($test:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::queue::contract::$test($make().await).await;
            }
        )+
    };
}

/// Creates a message on the route from this registry to another.
pub fn message(source: &str, batch: BatchId, index: u32) -> (Lane, Message) {
    let (source, target) = (source.parse().unwrap(), "target.example".parse().unwrap());
    let lane = Lane::anonymous(source, target);
    let place = |end: &crate::batch::End| Place {
        home: Arc::new(Home::new(end.clone(), "a/b").unwrap()),
        tag: format!("v{index}").parse().unwrap(),
    };
    let message = Message {
        batch,
        run: 0,
        rule: 0,
        source: place(&lane.source),
        digest: None,
        listed_at: Timestamp::from_second(1_767_225_600).unwrap(),
        company: crate::image::Company::default(),
        priority: Priority::default(),
        targets: vec![MessageTarget { index, place: place(&lane.target) }],
    };
    (lane, message)
}

fn messages(source: &str, batch: BatchId, number: u32) -> Vec<(Lane, Message)> {
    (0..number).map(|index| message(source, batch, index)).collect()
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn take(subject: &Subject, lanes: &Lanes) -> Delivery {
    let never = CancellationToken::new();
    tokio::time::timeout(PATIENCE, subject.queue.take(lanes, &never)).await.expect("a delivery").unwrap().unwrap()
}

/// Returns whether no message arrives for a while.
async fn is_silent(subject: &Subject, lanes: &Lanes) -> bool {
    let never = CancellationToken::new();
    tokio::time::timeout(Duration::from_millis(200), subject.queue.take(lanes, &never)).await.is_err()
}

pub async fn what_is_published_is_taken_once(subject: Subject) {
    let batch = BatchId::generate();
    let block = messages("gcr.io", batch, 20);
    assert!(subject.queue.publish(&block).await.unwrap().refused.is_empty());
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let delivery = take(&subject, &Lanes::All).await;
        let (lane, message) = &block[delivery.message.targets[0].index as usize];
        assert_eq!((&delivery.lane, &delivery.message, delivery.redelivered), (lane, message, false));
        seen.insert(delivery.message.targets[0].index);
        delivery.acknowledge().await.unwrap();
    }
    assert_eq!(seen.len(), 20);
    assert!(is_silent(&subject, &Lanes::All).await);
}

pub async fn what_is_dropped_is_delivered_again(subject: Subject) {
    let block = messages("gcr.io", BatchId::generate(), 1);
    subject.queue.publish(&block).await.unwrap();
    drop(take(&subject, &Lanes::All).await);
    let again = take(&subject, &Lanes::All).await;
    assert_eq!(again.message, block[0].1);
    assert!(again.redelivered);
    again.acknowledge().await.unwrap();
    assert!(is_silent(&subject, &Lanes::All).await);
}

pub async fn what_is_given_back_is_delivered_again(subject: Subject) {
    let block = messages("gcr.io", BatchId::generate(), 1);
    subject.queue.publish(&block).await.unwrap();
    take(&subject, &Lanes::All).await.give_back().await.unwrap();
    let again = take(&subject, &Lanes::All).await;
    assert_eq!(again.message, block[0].1);
    again.acknowledge().await.unwrap();
    assert!(is_silent(&subject, &Lanes::All).await);
}

pub async fn what_is_given_back_for_later_comes_later(subject: Subject) {
    let block = messages("gcr.io", BatchId::generate(), 2);
    subject.queue.publish(&block[..1]).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut delivery = take(&subject, &Lanes::All).await;
    delivery.message.run = 7;
    delivery.give_back_after(subject.shortest_wait).await.unwrap();
    // Delayed messages block no others.
    subject.queue.publish(&block[1..]).await.unwrap();
    let other = take(&subject, &Lanes::All).await;
    assert_eq!(other.message, block[1].1);
    other.acknowledge().await.unwrap();
    let again = take(&subject, &Lanes::All).await;
    assert!(began.elapsed() >= subject.shortest_wait, "{:?}", began.elapsed());
    assert_eq!(again.message, Message { run: 7, ..block[0].1.clone() }, "as it was given back");
    assert_eq!(again.lane, block[0].0);
    again.acknowledge().await.unwrap();
}

pub async fn only_the_lanes_that_are_asked_for_are_served(subject: Subject) {
    let batch = BatchId::generate();
    let (google, quay) = (message("gcr.io", batch, 0), message("quay.io", batch, 1));
    let lanes = [google.0.clone(), quay.0.clone()];
    subject.queue.publish(&[google, quay]).await.unwrap();
    assert_eq!(subject.queue.waiting(&lanes).await.unwrap(), [1, 1]);
    let only = take(&subject, &Lanes::Only(BTreeSet::from([lanes[1].clone()]))).await;
    assert_eq!(only.lane, lanes[1]);
    assert!(is_silent(&subject, &Lanes::Except(BTreeSet::from([lanes[0].clone()]))).await);
    assert_eq!(subject.queue.waiting(&lanes).await.unwrap(), [1, 0]);
    let rest = take(&subject, &Lanes::Except(BTreeSet::from([lanes[1].clone()]))).await;
    assert_eq!(rest.lane, lanes[0]);
    only.acknowledge().await.unwrap();
    rest.acknowledge().await.unwrap();
}

pub async fn a_taker_waits_for_what_comes_and_stops_when_told(subject: Subject) {
    let queue = subject.queue.clone();
    let waiter = tokio::spawn(async move { queue.take(&Lanes::All, &CancellationToken::new()).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    subject.queue.publish(&messages("gcr.io", BatchId::generate(), 1)).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, waiter).await.expect("woken").unwrap().unwrap().unwrap();
    delivery.acknowledge().await.unwrap();

    let (queue, cancel) = (subject.queue.clone(), CancellationToken::new());
    let told = cancel.clone();
    let waiter = tokio::spawn(async move { queue.take(&Lanes::All, &told).await });
    cancel.cancel();
    assert!(tokio::time::timeout(PATIENCE, waiter).await.expect("stopped").unwrap().unwrap().is_none());
}

pub async fn a_small_batch_beside_a_large_one_is_served_promptly(subject: Subject) {
    let (large, small) = (BatchId::generate(), BatchId::generate());
    subject.queue.publish(&messages("gcr.io", large, 500)).await.unwrap();
    subject.queue.publish(&messages("quay.io", small, 10)).await.unwrap();
    let mut small_left = 10;
    let mut taken = 0;
    while small_left > 0 {
        let delivery = take(&subject, &Lanes::All).await;
        small_left -= i32::from(delivery.message.batch == small);
        taken += 1;
        delivery.acknowledge().await.unwrap();
    }
    assert!(taken <= 60, "the ten were through after {taken}");
}

fn urgent(block: Vec<(Lane, Message)>) -> Vec<(Lane, Message)> {
    block.into_iter().map(|(lane, message)| (lane, Message { priority: Priority::High, ..message })).collect()
}

pub async fn what_is_urgent_is_taken_first_and_never_alone(subject: Subject) {
    let (large, small) = (BatchId::generate(), BatchId::generate());
    subject.queue.publish(&messages("gcr.io", large, 200)).await.unwrap();
    subject.queue.publish(&urgent(messages("gcr.io", small, 100))).await.unwrap();
    let lane = message("gcr.io", large, 0).0;
    assert_eq!(subject.queue.waiting(&[lane]).await.unwrap(), [300]);
    let mut of_small = 0;
    for _ in 0..50 {
        let delivery = take(&subject, &Lanes::All).await;
        of_small += i32::from(delivery.message.batch == small);
        delivery.acknowledge().await.unwrap();
    }
    assert!((38..=42).contains(&of_small), "four of five turns: {of_small} of 50");
}

pub async fn who_takes_what_is_urgent_is_given_nothing_else(subject: Subject) {
    let batch = BatchId::generate();
    subject.queue.publish(&messages("gcr.io", batch, 3)).await.unwrap();
    let (queue, cancel) = (subject.queue.clone(), CancellationToken::new());
    let stop = cancel.clone();
    let waiter = tokio::spawn(async move {
        let first = queue.take_urgent(&Lanes::All, &cancel).await.unwrap().unwrap();
        let message = first.message.clone();
        first.acknowledge().await.unwrap();
        (message, queue.take_urgent(&Lanes::All, &cancel).await.unwrap().is_none())
    });
    // All messages of normal priority remain.
    for _ in 0..2 {
        take(&subject, &Lanes::All).await.acknowledge().await.unwrap();
    }
    assert!(!waiter.is_finished());
    let block = urgent(messages("quay.io", batch, 1));
    subject.queue.publish(&block).await.unwrap();
    let lanes = [block[0].0.clone()];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while subject.queue.waiting(&lanes).await.unwrap() != [0] {
        assert!(tokio::time::Instant::now() < deadline, "it is woken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    let (message, is_stopped) = tokio::time::timeout(PATIENCE, waiter).await.expect("stopped").unwrap();
    assert_eq!((message, is_stopped), (block[0].1.clone(), true));
    take(&subject, &Lanes::All).await.acknowledge().await.unwrap();
}

pub async fn what_is_urgent_comes_back_urgent(subject: Subject) {
    let block = urgent(messages("gcr.io", BatchId::generate(), 1));
    let never = CancellationToken::new();
    let take_urgent = async || {
        let taken = tokio::time::timeout(PATIENCE, subject.queue.take_urgent(&Lanes::All, &never)).await;
        let delivery = taken.expect("a delivery").unwrap().unwrap();
        assert_eq!(delivery.message, block[0].1);
        delivery
    };
    subject.queue.publish(&block).await.unwrap();
    drop(take_urgent().await);
    take_urgent().await.give_back().await.unwrap();
    take_urgent().await.give_back_after(subject.shortest_wait).await.unwrap();
    take_urgent().await.acknowledge().await.unwrap();
    for wait in [Duration::ZERO, subject.shortest_wait] {
        let began = tokio::time::Instant::now();
        subject.queue.publish_later(&block[0].0, &block[0].1, wait).await.unwrap();
        take_urgent().await.acknowledge().await.unwrap();
        assert!(began.elapsed() >= wait, "{:?}", began.elapsed());
    }
    assert!(is_silent(&subject, &Lanes::All).await);
}

pub async fn a_full_queue_refuses_and_has_room_again(subject: Subject) {
    let block = messages("gcr.io", BatchId::generate(), u32::try_from(subject.room).unwrap() + 10);
    let refused = subject.queue.publish(&block).await.unwrap().refused;
    assert!(!refused.is_empty());
    // Every message arrives in the end, if rejected ones are published again.
    let mut left: Vec<_> = refused.iter().map(|position| block[*position].clone()).collect();
    let mut seen = BTreeSet::new();
    while seen.len() < block.len() {
        for _ in 0..16 {
            if seen.len() < block.len() - left.len() {
                let delivery = take(&subject, &Lanes::All).await;
                seen.insert(delivery.message.targets[0].index);
                delivery.acknowledge().await.unwrap();
            }
        }
        if !left.is_empty() {
            tokio::time::timeout(PATIENCE, subject.queue.room()).await.expect("room");
            let refused = subject.queue.publish(&left).await.unwrap().refused;
            left = refused.iter().map(|position| left[*position].clone()).collect();
        }
    }
}

pub async fn many_takers_share_the_work(subject: Subject) {
    let block = messages("gcr.io", BatchId::generate(), 400);
    let stop = CancellationToken::new();
    let takers: Vec<_> = (0..8u32)
        .map(|taker| {
            let (queue, stop) = (subject.queue.clone(), stop.clone());
            tokio::spawn(async move {
                let mut done = Vec::new();
                let mut turn = taker;
                loop {
                    let delivery = match queue.take(&Lanes::All, &stop).await {
                        Ok(Some(delivery)) => delivery,
                        Ok(None) => break,
                        // A broker may need a moment for a queue after one of the same name was deleted.
                        Err(error) if is_passing(&error) => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    turn += 1;
                    // Drops some deliveries, once each.
                    if turn.is_multiple_of(5) && !delivery.redelivered {
                        continue;
                    }
                    let index = delivery.message.targets[0].index;
                    match delivery.acknowledge().await {
                        Ok(()) => done.push(index),
                        // It is redelivered.
                        Err(error) => assert!(is_passing(&error), "{error}"),
                    }
                }
                done
            })
        })
        .collect();
    subject.queue.publish(&block).await.unwrap();
    let lanes = [block[0].0.clone()];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while subject.queue.waiting(&lanes).await.unwrap() != [0] && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.cancel();
    let mut done = Vec::new();
    for taker in takers {
        done.extend(taker.await.unwrap());
    }
    done.sort_unstable();
    done.dedup();
    assert_eq!(done.len(), 400, "each was acknowledged by someone");
}
