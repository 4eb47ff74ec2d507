//! The queue on a real RabbitMQ: the contract of all queues, and broker-specific behaviour.
//!
//! `IMGSYNC_TEST_BROKER=amqp://…` runs the contract against that broker, which must have none of our queues, instead of
//! a new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_common::batch::{BatchId, Lane, Message};
use imgsync_common::error::Result;
use imgsync_common::queue::contract::{self, Subject, message};
use imgsync_common::queue::{Delivery, Lanes, RabbitQueue, RabbitSettings, TaskQueue as _};
use imgsync_common::store::{Roster, SqliteStore, SystemClock};
use imgsync_tests::RabbitMq;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio_util::sync::CancellationToken;

use crate::store::secret;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn roster() -> Arc<dyn Roster> {
    Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap())
}

pub(crate) async fn connect(url: &str, settings: RabbitSettings) -> Result<RabbitQueue> {
    RabbitQueue::connect(&secret(url), roster().await, settings).await
}

pub(crate) fn block(source: &str, number: u32) -> Vec<(Lane, Message)> {
    let batch = BatchId::generate();
    (0..number).map(|index| message(source, batch, index)).collect()
}

pub(crate) fn only(block: &[(Lane, Message)]) -> Lanes {
    Lanes::Only(block.iter().map(|(lane, _)| lane.clone()).collect())
}

pub(crate) fn index(message: &Message) -> u32 {
    message.targets[0].index
}

/// Returns the next message of these routes, and retries if the queue fails.
pub(crate) async fn take(queue: &RabbitQueue, lanes: &Lanes) -> Delivery {
    let never = CancellationToken::new();
    let until = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout(PATIENCE, queue.take(lanes, &never)).await.expect("a delivery") {
            Ok(delivery) => return delivery.unwrap(),
            Err(error) if Instant::now() > until => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Publishes until all messages are accepted, and retries if the queue fails.
pub(crate) async fn publish(queue: &RabbitQueue, block: &[(Lane, Message)]) {
    let until = Instant::now() + PATIENCE;
    loop {
        match queue.publish(block).await {
            Ok(published) if published.refused.is_empty() => return,
            failed if Instant::now() > until => panic!("{failed:?}"),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

pub(crate) async fn is_silent(queue: &RabbitQueue, lanes: &Lanes) -> bool {
    tokio::time::timeout(Duration::from_millis(700), queue.take(lanes, &CancellationToken::new())).await.is_err()
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let limit = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Direct access to the broker.
pub(crate) struct Aside(pub(crate) Connection, pub(crate) Channel);

impl Aside {
    pub(crate) async fn new(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self(connection, channel)
    }

    pub(crate) async fn put(&self, queue: &str, body: &[u8], headers: FieldTable) {
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        self.1.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap().await.unwrap();
    }

    /// Returns body and headers of the next message of a queue.
    pub(crate) async fn get(&self, queue: &str) -> Option<(Vec<u8>, FieldTable)> {
        let got = self.1.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        Some((got.data.clone(), got.properties.headers().clone().unwrap_or_default()))
    }

    /// Counts the messages in a queue.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = self.1.queue_declare(queue.into(), passive, FieldTable::default()).await;
        found.map_or(0, |queue| queue.message_count())
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.1.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

/// Short waits and small queues.
pub(crate) fn settings() -> RabbitSettings {
    let retry_delays = [300, 2_000, 5_000, 10_000].map(Duration::from_millis);
    RabbitSettings { retry_delays, lane_length: 600, ..RabbitSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_queues_holds() {
    let broker = match std::env::var("IMGSYNC_TEST_BROKER") {
        Ok(url) => (url, None),
        Err(_) => {
            let broker = RabbitMq::start();
            (broker.url(), Some(broker))
        }
    };
    let aside = Aside::new(&broker.0).await;
    macro_rules! hold {
        ($($test:ident),+) => {$(
            eprintln!("{}", stringify!($test));
            let subject = Subject {
                queue: Arc::new(connect(&broker.0, settings()).await.unwrap()),
                room: 1_200,
                shortest_wait: Duration::from_millis(300),
                guard: Box::new(()),
            };
            contract::$test(subject).await;
            let lanes = ["w.gcr.io>target.example", "w.quay.io>target.example"];
            for lane in lanes.into_iter().chain(["w.!gcr.io>target.example", "w.!quay.io>target.example"]) {
                aside.delete(lane).await;
            }
        )+};
    }
    hold!(
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
}

/// Measures messages per second published, and consumed and acknowledged by several consumers that do nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; asserts nothing"]
async fn how_fast_it_is() {
    const NUMBER: u32 = 20_000;
    let broker = RabbitMq::start();
    let queue = connect(&broker.url(), RabbitSettings { lane_length: 100_000, ..settings() }).await.unwrap();
    let began = Instant::now();
    publish(&queue, &block("gcr.io", NUMBER)).await;
    let published = began.elapsed();
    for takers in [1, 4, 8] {
        let began = Instant::now();
        let takers_of = (0..takers).map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for _ in 0..NUMBER / 4 / takers {
                    take(&queue, &Lanes::All).await.acknowledge().await.unwrap();
                }
            })
        });
        for taker in takers_of.collect::<Vec<_>>() {
            taker.await.unwrap();
        }
        let rate = f64::from(NUMBER / 4) / began.elapsed().as_secs_f64();
        eprintln!("{takers} takers: {rate:.0} messages a second taken and acknowledged");
    }
    eprintln!("{:.0} messages a second published", f64::from(NUMBER) / published.as_secs_f64());
}
