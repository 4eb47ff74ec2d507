//! When a delivery is acknowledged: as soon as its task has started. What is redelivered then, and how.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_queue::RouteFilter;
use imgsync_tests::RabbitMq;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, RecordedRequest, RequestMatcher, RequestType};
use tokio::sync::Semaphore;

use crate::queue::{connect, index, publish, route_messages, settings, take};
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

fn reads_a_tag(request: &RecordedRequest) -> bool {
    matches!(request.kind, RequestType::ManifestGet | RequestType::ManifestHead)
        && request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_task_holds_no_delivery_and_a_lost_connection_restarts_none() {
    let fixture = ClusterFixture::with_own_broker(1, 8).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = fixture.source.on(RequestMatcher::any().when(reads_a_tag)).always().act(FaultAction::Gate(gate.clone()));
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    until("all slots are busy", WAIT_TIMEOUT, || held.hits() == 8).await;
    // Ready and unacknowledged messages.
    let route = format!("w.{}>{}", fixture.source.host(), fixture.target.host());
    let messages = || fixture.cluster.broker.message_count(&route);
    until("all are acknowledged", WAIT_TIMEOUT, || messages() == 0).await;
    tokio::task::block_in_place(|| fixture.cluster.broker.ctl(&["close_all_connections", "bye"]));
    let reconnected = || fixture.cluster.broker.ctl(&["list_connections", "--no-table-headers"]).lines().count() >= 2;
    until("the workers are back", WAIT_TIMEOUT, reconnected).await;
    assert_eq!(messages(), 0, "nothing came back");
    gate.add_permits(10_000);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/copied"), 8, "nothing was found done by another: {}", ended.stdout);
}

/// A task that waits for a retry always has a message, a lease or a place in the plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_to_be_tried_again_while_the_broker_is_away_goes_back_to_the_plan() {
    let mut fixture = ClusterFixture::with_own_broker(1, 4).await;
    let gate = Arc::new(Semaphore::new(0));
    let held =
        fixture.source.on(RequestMatcher::kind(RequestType::BlobGet)).always().act(FaultAction::Gate(gate.clone()));
    // Longer than a slot waits.
    let headers = vec![("retry-after".to_owned(), "32".to_owned())];
    let busy = FaultAction::Status { code: 429, headers, body: "{}".into() };
    fixture.source.on(RequestMatcher::kind(RequestType::BlobGet)).act(busy);
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    until("the images are read", WAIT_TIMEOUT, || held.hits() >= 1).await;
    tokio::task::block_in_place(|| {
        fixture.cluster.broker.sync_metadata();
        fixture.cluster.broker.kill();
    });
    held.remove();
    gate.add_permits(10_000);
    let is_back = |shown: &serde_json::Value| number(shown, "/counts/running") == 0;
    fixture.cluster.wait_for_batch(is_back, WAIT_TIMEOUT).await;
    tokio::task::block_in_place(|| fixture.cluster.broker.restart());
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

/// As if the leader of a quorum queue moved to another node: the broker closes the connection of the consumer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_leader_moves_costs_a_connection_and_no_other_queue_its_turn() {
    let broker = RabbitMq::start();
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let (moving, other) = (route_messages("moving.example", 2), route_messages("other.example", 40));
    publish(&queue, &moving[..1]).await;
    publish(&queue, &other).await;
    let name = format!("w.{}", moving[0].0);
    tokio::task::block_in_place(|| broker.set_leader_stopped(&name, true));
    let began = Instant::now();
    for _ in 0..40 {
        let delivery = take(&queue, &RouteFilter::All).await;
        assert_eq!(delivery.route, other[0].0);
        delivery.acknowledge().await.unwrap();
    }
    assert!(broker.log().contains("INTERNAL_ERROR") || broker.log().contains("noproc"), "{}", broker.log());
    let served = began.elapsed();
    tokio::task::block_in_place(|| broker.set_leader_stopped(&name, false));
    publish(&queue, &moving[1..]).await;
    let mut seen = BTreeSet::new();
    let back = Instant::now();
    while seen.len() < 2 {
        let delivery = take(&queue, &RouteFilter::All).await;
        seen.insert(index(&delivery.message));
        delivery.acknowledge().await.unwrap();
    }
    // It pauses for seconds at most, not for the backoff of a broken queue.
    assert!(back.elapsed() < Duration::from_secs(15), "asked again after {:?} ({served:?} before)", back.elapsed());
}
