//! Contract tests of [`TaskQueue`] for every implementation: see
//! [`queue_contract_tests!`](crate::queue_contract_tests).

#![allow(clippy::unwrap_used, missing_docs)] // Tests, named for what they hold.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Delivery, RouteFilter, TaskQueue};
use imgsync_model::batch::{BatchId, Message, MessageTarget, Priority, RepositoryLocator, Route, TagLocator};
use imgsync_oci::retry::is_transient;

/// A queue under test: new and empty.
pub struct QueueUnderTest {
    /// The queue.
    pub queue: Arc<dyn TaskQueue>,
    /// Number of messages that it accepts before it rejects one.
    pub capacity: usize,
    /// The shortest delay that it offers.
    pub min_delay: Duration,
    /// Resources that must outlive the queue.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Tests of a queue: `queue_contract_tests!(make)`, where `make` is an `async fn() -> QueueUnderTest`.
#[macro_export]
macro_rules! queue_contract_tests {
    ($make:path) => {
        $crate::queue_contract_tests!($make:
            a_published_message_is_received_once,
            a_dropped_delivery_is_redelivered,
            a_requeued_delivery_is_redelivered,
            a_delivery_requeued_with_a_delay_is_redelivered_after_it,
            only_the_selected_routes_are_served,
            a_consumer_waits_for_a_message_and_stops_when_cancelled,
            a_small_batch_beside_a_large_one_is_served_promptly,
            high_priority_is_received_first_and_starves_nothing,
            receive_urgent_returns_high_priority_only,
            a_requeued_message_keeps_its_priority,
            a_full_queue_rejects_and_has_capacity_again,
            many_consumers_share_the_messages
        );
    };
    ($make:path: $($test:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::contract::$test($make().await).await;
            }
        )+
    };
}

/// Creates a message on the route from this registry to another.
pub fn message(source: &str, batch: BatchId, index: u32) -> (Route, Message) {
    let (source, target) = (source.parse().unwrap(), "target.example".parse().unwrap());
    let route = Route::anonymous(source, target);
    let place = |end: &imgsync_model::batch::Endpoint| TagLocator {
        repository: Arc::new(RepositoryLocator::new(end.clone(), "a/b").unwrap()),
        tag: format!("v{index}").parse().unwrap(),
    };
    let message = Message {
        batch,
        run: 0,
        rule: 0,
        source: place(&route.source),
        digest: None,
        listed_at: Timestamp::from_second(1_767_225_600).unwrap(),
        digest_tags: imgsync_oci::DigestTagHints::default(),
        priority: Priority::default(),
        chunk: None,
        targets: vec![MessageTarget { index, locator: place(&route.target) }],
    };
    (route, message)
}

fn messages(source: &str, batch: BatchId, number: u32) -> Vec<(Route, Message)> {
    (0..number).map(|index| message(source, batch, index)).collect()
}

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

async fn take(subject: &QueueUnderTest, routes: &RouteFilter) -> Delivery {
    let never = CancellationToken::new();
    tokio::time::timeout(TEST_TIMEOUT, subject.queue.receive(routes, &never))
        .await
        .expect("a delivery")
        .unwrap()
        .unwrap()
}

/// Returns whether no message arrives for a while.
async fn is_silent(subject: &QueueUnderTest, routes: &RouteFilter) -> bool {
    let never = CancellationToken::new();
    tokio::time::timeout(Duration::from_millis(200), subject.queue.receive(routes, &never)).await.is_err()
}

pub async fn a_published_message_is_received_once(subject: QueueUnderTest) {
    let batch = BatchId::generate();
    let block = messages("gcr.io", batch, 20);
    assert!(subject.queue.publish(&block).await.unwrap().rejected.is_empty());
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let delivery = take(&subject, &RouteFilter::All).await;
        let (route, message) = &block[delivery.message.targets[0].index as usize];
        assert_eq!((&delivery.route, &delivery.message, delivery.redelivered), (route, message, false));
        seen.insert(delivery.message.targets[0].index);
        delivery.acknowledge().await.unwrap();
    }
    assert_eq!(seen.len(), 20);
    assert!(is_silent(&subject, &RouteFilter::All).await);
}

pub async fn a_dropped_delivery_is_redelivered(subject: QueueUnderTest) {
    let block = messages("gcr.io", BatchId::generate(), 1);
    subject.queue.publish(&block).await.unwrap();
    drop(take(&subject, &RouteFilter::All).await);
    let again = take(&subject, &RouteFilter::All).await;
    assert_eq!(again.message, block[0].1);
    assert!(again.redelivered);
    again.acknowledge().await.unwrap();
    assert!(is_silent(&subject, &RouteFilter::All).await);
}

pub async fn a_requeued_delivery_is_redelivered(subject: QueueUnderTest) {
    let block = messages("gcr.io", BatchId::generate(), 1);
    subject.queue.publish(&block).await.unwrap();
    take(&subject, &RouteFilter::All).await.requeue().await.unwrap();
    let again = take(&subject, &RouteFilter::All).await;
    assert_eq!(again.message, block[0].1);
    again.acknowledge().await.unwrap();
    assert!(is_silent(&subject, &RouteFilter::All).await);
}

pub async fn a_delivery_requeued_with_a_delay_is_redelivered_after_it(subject: QueueUnderTest) {
    let block = messages("gcr.io", BatchId::generate(), 2);
    subject.queue.publish(&block[..1]).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut delivery = take(&subject, &RouteFilter::All).await;
    delivery.message.run = 7;
    delivery.requeue_after(subject.min_delay).await.unwrap();
    // Delayed messages block no others.
    subject.queue.publish(&block[1..]).await.unwrap();
    let other = take(&subject, &RouteFilter::All).await;
    assert_eq!(other.message, block[1].1);
    other.acknowledge().await.unwrap();
    let again = take(&subject, &RouteFilter::All).await;
    assert!(began.elapsed() >= subject.min_delay, "{:?}", began.elapsed());
    assert_eq!(again.message, Message { run: 7, ..block[0].1.clone() }, "as it was given back");
    assert_eq!(again.route, block[0].0);
    again.acknowledge().await.unwrap();
}

pub async fn only_the_selected_routes_are_served(subject: QueueUnderTest) {
    let batch = BatchId::generate();
    let (google, quay) = (message("gcr.io", batch, 0), message("quay.io", batch, 1));
    let routes = [google.0.clone(), quay.0.clone()];
    subject.queue.publish(&[google, quay]).await.unwrap();
    assert_eq!(subject.queue.count_ready(&routes).await.unwrap(), [1, 1]);
    let only = take(&subject, &RouteFilter::Only(BTreeSet::from([routes[1].clone()]))).await;
    assert_eq!(only.route, routes[1]);
    assert!(is_silent(&subject, &RouteFilter::Except(BTreeSet::from([routes[0].clone()]))).await);
    assert_eq!(subject.queue.count_ready(&routes).await.unwrap(), [1, 0]);
    let rest = take(&subject, &RouteFilter::Except(BTreeSet::from([routes[1].clone()]))).await;
    assert_eq!(rest.route, routes[0]);
    only.acknowledge().await.unwrap();
    rest.acknowledge().await.unwrap();
}

pub async fn a_consumer_waits_for_a_message_and_stops_when_cancelled(subject: QueueUnderTest) {
    let cancel = CancellationToken::new();
    let mut receive = Box::pin(subject.queue.receive(&RouteFilter::All, &cancel));
    assert!(futures_util::poll!(&mut receive).is_pending());
    subject.queue.publish(&messages("gcr.io", BatchId::generate(), 1)).await.unwrap();
    let delivery = tokio::time::timeout(TEST_TIMEOUT, receive).await.expect("woken").unwrap().unwrap();
    delivery.acknowledge().await.unwrap();

    let mut receive = Box::pin(subject.queue.receive(&RouteFilter::All, &cancel));
    assert!(futures_util::poll!(&mut receive).is_pending());
    cancel.cancel();
    assert!(tokio::time::timeout(TEST_TIMEOUT, receive).await.expect("stopped").unwrap().is_none());
}

pub async fn a_small_batch_beside_a_large_one_is_served_promptly(subject: QueueUnderTest) {
    let (large, small) = (BatchId::generate(), BatchId::generate());
    subject.queue.publish(&messages("gcr.io", large, 500)).await.unwrap();
    subject.queue.publish(&messages("quay.io", small, 10)).await.unwrap();
    let mut small_left = 10;
    let mut taken = 0;
    while small_left > 0 {
        let delivery = take(&subject, &RouteFilter::All).await;
        small_left -= i32::from(delivery.message.batch == small);
        taken += 1;
        delivery.acknowledge().await.unwrap();
    }
    assert!(taken <= 60, "the ten were through after {taken}");
}

fn urgent(block: Vec<(Route, Message)>) -> Vec<(Route, Message)> {
    block.into_iter().map(|(route, message)| (route, Message { priority: Priority::High, ..message })).collect()
}

pub async fn high_priority_is_received_first_and_starves_nothing(subject: QueueUnderTest) {
    let (large, small) = (BatchId::generate(), BatchId::generate());
    subject.queue.publish(&messages("gcr.io", large, 200)).await.unwrap();
    subject.queue.publish(&urgent(messages("gcr.io", small, 100))).await.unwrap();
    let route = message("gcr.io", large, 0).0;
    assert_eq!(subject.queue.count_ready(&[route]).await.unwrap(), [300]);
    let mut of_small = 0;
    for _ in 0..50 {
        let delivery = take(&subject, &RouteFilter::All).await;
        of_small += i32::from(delivery.message.batch == small);
        delivery.acknowledge().await.unwrap();
    }
    assert!((38..=42).contains(&of_small), "four of five turns: {of_small} of 50");
}

pub async fn receive_urgent_returns_high_priority_only(subject: QueueUnderTest) {
    let batch = BatchId::generate();
    subject.queue.publish(&messages("gcr.io", batch, 3)).await.unwrap();
    let (queue, cancel) = (subject.queue.clone(), CancellationToken::new());
    let stop = cancel.clone();
    let waiter = tokio::spawn(async move {
        let first = queue.receive_urgent(&RouteFilter::All, &cancel).await.unwrap().unwrap();
        let message = first.message.clone();
        first.acknowledge().await.unwrap();
        (message, queue.receive_urgent(&RouteFilter::All, &cancel).await.unwrap().is_none())
    });
    // All messages of normal priority remain.
    for _ in 0..2 {
        take(&subject, &RouteFilter::All).await.acknowledge().await.unwrap();
    }
    assert!(!waiter.is_finished());
    let block = urgent(messages("quay.io", batch, 1));
    subject.queue.publish(&block).await.unwrap();
    let routes = [block[0].0.clone()];
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    while subject.queue.count_ready(&routes).await.unwrap() != [0] {
        assert!(tokio::time::Instant::now() < deadline, "it is woken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    let (message, is_stopped) = tokio::time::timeout(TEST_TIMEOUT, waiter).await.expect("stopped").unwrap();
    assert_eq!((message, is_stopped), (block[0].1.clone(), true));
    take(&subject, &RouteFilter::All).await.acknowledge().await.unwrap();
}

pub async fn a_requeued_message_keeps_its_priority(subject: QueueUnderTest) {
    let block = urgent(messages("gcr.io", BatchId::generate(), 1));
    let never = CancellationToken::new();
    let take_urgent = async || {
        let taken = tokio::time::timeout(TEST_TIMEOUT, subject.queue.receive_urgent(&RouteFilter::All, &never)).await;
        let delivery = taken.expect("a delivery").unwrap().unwrap();
        assert_eq!(delivery.message, block[0].1);
        delivery
    };
    subject.queue.publish(&block).await.unwrap();
    drop(take_urgent().await);
    take_urgent().await.requeue().await.unwrap();
    take_urgent().await.requeue_after(subject.min_delay).await.unwrap();
    take_urgent().await.acknowledge().await.unwrap();
    for wait in [Duration::ZERO, subject.min_delay] {
        let began = tokio::time::Instant::now();
        subject.queue.publish_delayed(&block[0].0, &block[0].1, wait).await.unwrap();
        take_urgent().await.acknowledge().await.unwrap();
        assert!(began.elapsed() >= wait, "{:?}", began.elapsed());
    }
    assert!(is_silent(&subject, &RouteFilter::All).await);
}

pub async fn a_full_queue_rejects_and_has_capacity_again(subject: QueueUnderTest) {
    let block = messages("gcr.io", BatchId::generate(), u32::try_from(subject.capacity).unwrap() + 10);
    let refused = subject.queue.publish(&block).await.unwrap().rejected;
    assert!(!refused.is_empty());
    // Every message arrives in the end, if rejected ones are published again.
    let mut left: Vec<_> = refused.iter().map(|position| block[*position].clone()).collect();
    let mut seen = BTreeSet::new();
    while seen.len() < block.len() {
        for _ in 0..16 {
            if seen.len() < block.len() - left.len() {
                let delivery = take(&subject, &RouteFilter::All).await;
                seen.insert(delivery.message.targets[0].index);
                delivery.acknowledge().await.unwrap();
            }
        }
        if !left.is_empty() {
            tokio::time::timeout(TEST_TIMEOUT, subject.queue.wait_for_capacity()).await.expect("room");
            let refused = subject.queue.publish(&left).await.unwrap().rejected;
            left = refused.iter().map(|position| left[*position].clone()).collect();
        }
    }
}

pub async fn many_consumers_share_the_messages(subject: QueueUnderTest) {
    let block = messages("gcr.io", BatchId::generate(), 400);
    let stop = CancellationToken::new();
    let done = Arc::new(Mutex::new(BTreeSet::new()));
    let takers: Vec<_> = (0..8u32)
        .map(|taker| {
            let (queue, stop, done) = (subject.queue.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut turn = taker;
                loop {
                    let delivery = match queue.receive(&RouteFilter::All, &stop).await {
                        Ok(Some(delivery)) => delivery,
                        Ok(None) => break,
                        // A broker may need a moment for a queue after one of the same name was deleted.
                        Err(error) if is_transient(&error) => {
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
                        Ok(()) => _ = done.lock().unwrap().insert(index),
                        // It is redelivered.
                        Err(error) => assert!(is_transient(&error), "{error}"),
                    }
                }
            })
        })
        .collect();
    subject.queue.publish(&block).await.unwrap();
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    while done.lock().unwrap().len() < 400 {
        assert!(tokio::time::Instant::now() < deadline, "{} were acknowledged by someone", done.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    for taker in takers {
        taker.await.unwrap();
    }
}
