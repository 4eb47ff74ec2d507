//! The queue on a real RabbitMQ: the contract of all queues, and broker-specific behaviour.
//!
//! `IMGSYNC_TEST_BROKER=amqp://…` runs the contract against that broker instead, and deletes the queues of the contract
//! there before each test: run its tests one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, Message, Route};
use imgsync_oci::error::Result;
use imgsync_queue::contract::{QueueUnderTest, message};
use imgsync_queue::{Delivery, RabbitQueue, RabbitSettings, RouteFilter, TaskQueue as _};
use imgsync_store::{SqliteStore, SystemClock, WorkerRegistry};
use imgsync_tests::RabbitMq;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio_util::sync::CancellationToken;

use crate::store_contract::secret;

pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn worker_registry() -> Arc<dyn WorkerRegistry> {
    Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap())
}

pub(crate) async fn connect(url: &str, settings: RabbitSettings) -> Result<RabbitQueue> {
    RabbitQueue::connect(&[secret(url)], worker_registry().await, settings).await
}

pub(crate) fn route_messages(source: &str, number: u32) -> Vec<(Route, Message)> {
    let batch = BatchId::generate();
    (0..number).map(|index| message(source, batch, index)).collect()
}

pub(crate) fn only(block: &[(Route, Message)]) -> RouteFilter {
    RouteFilter::Only(block.iter().map(|(route, _)| route.clone()).collect())
}

pub(crate) fn index(message: &Message) -> u32 {
    message.targets[0].index
}

/// Returns the next message of these routes, and retries if the queue fails.
pub(crate) async fn take(queue: &RabbitQueue, routes: &RouteFilter) -> Delivery {
    let never = CancellationToken::new();
    let until = Instant::now() + WAIT_TIMEOUT;
    loop {
        match tokio::time::timeout(WAIT_TIMEOUT, queue.receive(routes, &never)).await.expect("a delivery") {
            Ok(delivery) => return delivery.unwrap(),
            Err(error) if Instant::now() > until => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Publishes until all messages are accepted, and retries if the queue fails.
pub(crate) async fn publish(queue: &RabbitQueue, block: &[(Route, Message)]) {
    let until = Instant::now() + WAIT_TIMEOUT;
    loop {
        match queue.publish(block).await {
            Ok(published) if published.rejected.is_empty() => return,
            failed if Instant::now() > until => panic!("{failed:?}"),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

pub(crate) async fn is_silent(queue: &RabbitQueue, routes: &RouteFilter) -> bool {
    tokio::time::timeout(Duration::from_millis(700), queue.receive(routes, &CancellationToken::new())).await.is_err()
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let limit = Instant::now() + WAIT_TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Direct access to the broker.
pub(crate) struct BrokerProbe(pub(crate) Connection, pub(crate) Channel);

impl BrokerProbe {
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
    RabbitSettings { retry_delays, max_route_messages: 600, ..RabbitSettings::default() }
}

/// Makes the queue that a test of the contract gets: on a virtual host of its own, or emptied.
async fn make() -> QueueUnderTest {
    let (url, broker) = match std::env::var("IMGSYNC_TEST_BROKER") {
        Ok(url) => (url, None),
        Err(_) => {
            let broker = RabbitMq::shared();
            (broker.url(), Some(broker))
        }
    };
    if broker.is_none() {
        let aside = BrokerProbe::new(&url).await;
        for source in ["gcr.io", "!gcr.io", "quay.io", "!quay.io"] {
            aside.delete(&format!("w.{source}>target.example")).await;
        }
    }
    QueueUnderTest {
        queue: Arc::new(connect(&url, settings()).await.unwrap()),
        capacity: 1_200,
        min_delay: Duration::from_millis(300),
        guard: Box::new(broker),
    }
}

mod contract {
    use super::make;

    imgsync_queue::queue_contract_tests!(make);
}

/// Measures messages per second published, and consumed and acknowledged by several consumers that do nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; asserts nothing"]
async fn measure_throughput() {
    const NUMBER: u32 = 20_000;
    let broker = RabbitMq::start();
    let queue = connect(&broker.url(), RabbitSettings { max_route_messages: 100_000, ..settings() }).await.unwrap();
    let began = Instant::now();
    publish(&queue, &route_messages("gcr.io", NUMBER)).await;
    let published = began.elapsed();
    for takers in [1, 4, 8] {
        let began = Instant::now();
        let takers_of = (0..takers).map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for _ in 0..NUMBER / 4 / takers {
                    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
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
