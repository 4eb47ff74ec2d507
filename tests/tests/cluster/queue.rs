//! The queue on a real RabbitMQ: the contract of all queues, and what a broker does to those who use it.
//!
//! `IMGSYNC_TEST_BROKER=amqp://…` runs the contract against that broker, which must have nothing of ours, in place of one
//! of its own.

use std::sync::Arc;
use std::time::Duration;

use imgsync_common::queue::contract::{self, Subject};
use imgsync_common::queue::{RabbitQueue, RabbitSettings};
use imgsync_common::store::{SqliteStore, SystemClock};
use imgsync_tests::RabbitMq;

use crate::store::secret;

/// A queue with a roster of its own, its waits short.
async fn queue(url: &str, settings: RabbitSettings) -> RabbitQueue {
    let roster = Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap());
    RabbitQueue::connect(&secret(url), roster, settings).await.unwrap()
}

/// Deletes queues.
async fn delete(url: &str, queues: &[&str]) {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for queue in queues {
        channel.queue_delete((*queue).into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}

fn settings() -> RabbitSettings {
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
    macro_rules! hold {
        ($($test:ident),+) => {$(
            eprintln!("{}", stringify!($test));
            let subject = Subject {
                queue: Arc::new(queue(&broker.0, settings()).await),
                room: 1_200,
                shortest_wait: Duration::from_millis(300),
                guard: Box::new(()),
            };
            contract::$test(subject).await;
            delete(&broker.0, &["w.gcr.io>target.example", "w.quay.io>target.example"]).await;
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
        a_full_queue_refuses_and_has_room_again,
        a_purged_batch_leaves_others_alone,
        many_takers_share_the_work
    );
}
