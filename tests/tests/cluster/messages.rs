//! Requirements for messages, where rejected ones go, and deleted queues.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, Route, SigningKey};
use imgsync_oci::secret::Secret;
use imgsync_queue::contract::message;
use imgsync_queue::{DeadLetter, RabbitQueue, RabbitSettings, RouteFilter, TaskQueue as _};
use imgsync_tests::RabbitMq;
use imgsync_tests::program::Signal;
use lapin::types::{AMQPValue, FieldTable};
use tokio_util::sync::CancellationToken;

use crate::queue::{
    BrokerProbe, WAIT_TIMEOUT, connect, index, is_silent, only, publish, route_messages, settings, take,
    worker_registry,
};
use crate::store_contract::secret;
use crate::support::ClusterFixture;

fn keyed(key: &str) -> RabbitSettings {
    RabbitSettings { key: Some(SigningKey::new(&Secret::new(key))), ..settings() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_with_our_key_is_refused_and_stays_refused() {
    let broker = RabbitMq::shared();
    let url = broker.url();
    let worker_registry = worker_registry().await;
    let with = async |settings| RabbitQueue::connect(&[secret(&url)], worker_registry.clone(), settings).await.unwrap();
    let (ours, theirs, nobodys) = (with(keyed("ours")).await, with(keyed("theirs")).await, with(settings()).await);
    let block = route_messages("gcr.io", 3);
    publish(&ours, &block[..1]).await;
    publish(&theirs, &block[1..2]).await;
    publish(&nobodys, &block[2..]).await;

    let mine = take(&ours, &RouteFilter::All).await;
    assert_eq!(mine.message, block[0].1);
    // A message that returns after a wait is still signed.
    mine.requeue_after(Duration::from_millis(300)).await.unwrap();
    let again = take(&ours, &RouteFilter::All).await;
    assert_eq!(again.message, block[0].1);
    again.acknowledge().await.unwrap();
    assert!(is_silent(&ours, &RouteFilter::All).await);
    let (number, why) = ours.refused();
    assert_eq!(number, 2);
    assert!(why.as_ref().unwrap().contains("cluster.key"), "{why:?}");

    // If they are moved back manually, they are refused again: refusing must never sign them.
    let aside = BrokerProbe::new(&url).await;
    let mut reasons = BTreeSet::new();
    for _ in 0..2 {
        let (body, headers) = aside.get("sync.refused").await.expect("kept for people to look at");
        reasons.insert(format!("{:?}", headers.inner().get("reason")));
        aside.put(&format!("w.{}", block[0].0), &body, headers).await;
    }
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(is_silent(&ours, &RouteFilter::All).await);
    assert_eq!(ours.refused().0, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_understood_is_refused_and_what_is_newer_is_left() {
    let broker = RabbitMq::shared();
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let block = route_messages("gcr.io", 1);
    publish(&queue, &block).await;
    let route = format!("w.{}", block[0].0);
    let aside = BrokerProbe::new(&broker.url()).await;
    let newer = br#"{"version":2,"all":"new"}"#;
    aside.put(&route, b"\x1b[31m garbage", FieldTable::default()).await;
    aside.put(&route, newer, FieldTable::default()).await;

    let delivery = take(&queue, &RouteFilter::All).await;
    assert_eq!(delivery.message, block[0].1);
    delivery.acknowledge().await.unwrap();
    assert!(is_silent(&queue, &RouteFilter::All).await);
    let (number, why) = queue.refused();
    assert_eq!(number, 1, "the newer one is not refused: {why:?}");
    let (body, headers) = aside.get("sync.refused").await.unwrap();
    assert_eq!(body, b"\x1b[31m garbage");
    assert!(headers.inner().contains_key("reason"));
    // It waits its time, as long as it is not for this version.
    let (body, _) = aside.get("sync.retry.10s").await.expect("the longest of the waits here");
    assert_eq!(body, newer);
}

/// An older worker next to newer ones, during an upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_message_of_a_newer_version_goes_round_unchanged_until_a_newer_worker_takes_it() {
    let broker = RabbitMq::shared();
    let worker_registry = worker_registry().await;
    let queue = RabbitQueue::connect(&[secret(&broker.url())], worker_registry, keyed("ours")).await.unwrap();
    let block = route_messages("gcr.io", 1);
    publish(&queue, &block).await;
    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
    let route = format!("w.{}", block[0].0);
    let newer = br#"{"version":2,"all":"new"}"#;
    let key = SigningKey::new(&Secret::new("ours"));
    let mut headers = FieldTable::default();
    headers.insert("signature".into(), AMQPValue::LongString(key.sign(newer).into()));
    let aside = BrokerProbe::new(&broker.url()).await;
    for _ in 0..3 {
        aside.put(&route, newer, headers.clone()).await;
        assert!(is_silent(&queue, &RouteFilter::All).await);
        // The broker returns it to its route from here, by the routing key it was published with.
        let (body, found) = aside.get("sync.retry.10s").await.expect("it waits for a newer worker");
        assert_eq!(body, newer);
        assert_eq!(found.inner().get("signature"), headers.inner().get("signature"), "newer workers want that");
    }
    assert_eq!(queue.refused().0, 0);
    for queue in ["sync.dead", "sync.refused", &route] {
        assert!(aside.get(queue).await.is_none(), "nothing is in {queue}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_queues_are_declared_again_and_other_routes_are_unaffected() {
    let broker = RabbitMq::shared();
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let aside = BrokerProbe::new(&broker.url()).await;
    let (gone, kept) = (route_messages("gone.example", 3), route_messages("kept.example", 2));
    publish(&queue, &gone).await;
    publish(&queue, &kept).await;
    let held = take(&queue, &only(&kept)).await;
    let lost = take(&queue, &only(&gone)).await;

    aside.delete(&format!("w.{}", gone[0].0)).await;
    // Consumers notice the missing queue and declare it again.
    assert!(is_silent(&queue, &only(&gone)).await);
    lost.acknowledge().await.unwrap();
    // Publishers notice that their messages are unroutable.
    aside.delete(&format!("w.{}", gone[0].0)).await;
    publish(&queue, &gone).await;
    assert_eq!(queue.count_ready(&[gone[0].0.clone(), kept[0].0.clone()]).await.unwrap(), [3, 1]);

    // The delivery held meanwhile has kept its channel.
    assert_eq!(index(&held.message), 0);
    held.acknowledge().await.unwrap();
    let other = take(&queue, &only(&kept)).await;
    assert_eq!((index(&other.message), other.redelivered), (1, false));
    assert!(is_silent(&queue, &only(&kept)).await, "nothing came back");

    // The other queues as well.
    for name in ["sync.dead", "sync.refused", "sync.retry.300ms"] {
        aside.delete(name).await;
    }
    other.requeue_after(Duration::from_millis(300)).await.unwrap();
    let again = take(&queue, &only(&kept)).await;
    assert_eq!(index(&again.message), 1);
    again.acknowledge().await.unwrap();
    assert!(queue.receive_dead_letter(&CancellationToken::new()).await.unwrap().is_none());
    aside.put(&format!("w.{}", kept[0].0), b"garbage", FieldTable::default()).await;
    assert!(is_silent(&queue, &only(&kept)).await);
    assert!(aside.get("sync.refused").await.is_some());
    assert_eq!(queue.count_ready(&[message("never.example", BatchId::generate(), 0).0]).await.unwrap(), [0]);
    aside.0.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_delivered_too_often_is_dead_lettered_and_given_to_a_coordinator() {
    let broker = RabbitMq::shared();
    let queue = connect(&broker.url(), settings()).await.unwrap();
    let never = CancellationToken::new();
    // A route with a credential, which is not part of the message.
    let (route, message) = message("gcr.io", BatchId::generate(), 0);
    let route = Route { target_credential: Some("robot".into()), ..route };
    publish(&queue, &[(route.clone(), message.clone())]).await;
    // It had to wait once: the expired wait does not count as a failed delivery.
    take(&queue, &RouteFilter::All).await.requeue_after(Duration::from_millis(300)).await.unwrap();
    for delivery in 0..=20 {
        assert!(queue.receive_dead_letter(&never).await.unwrap().is_none());
        let taken = take(&queue, &RouteFilter::All).await;
        assert_eq!(taken.redelivered, delivery > 0);
        drop(taken);
    }
    assert!(is_silent(&queue, &RouteFilter::All).await, "nobody gets it any more");

    let dead = queue.receive_dead_letter(&never).await.unwrap().expect("given up on");
    assert_eq!((&dead.route, &dead.message), (&route, &message));
    assert!(dead.reason.contains("delivery_limit") && dead.reason.contains(&route.to_string()), "{}", dead.reason);
    // If dropped, it is delivered again; if requeued, its count starts anew.
    drop(dead);
    let dead = until_dead(&queue).await;
    publish(&queue, &[(dead.route.clone(), dead.message.clone())]).await;
    dead.acknowledge().await.unwrap();
    let taken = take(&queue, &RouteFilter::All).await;
    assert_eq!((&taken.route, &taken.message, taken.redelivered), (&route, &message, false));
    taken.acknowledge().await.unwrap();

    // Malformed messages are left to people and not given to coordinators.
    BrokerProbe::new(&broker.url()).await.put("sync.dead", b"garbage", FieldTable::default()).await;
    assert!(queue.receive_dead_letter(&never).await.unwrap().is_none());
    assert_eq!(queue.refused().0, 1);
}

async fn until_dead(queue: &RabbitQueue) -> DeadLetter {
    let limit = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(dead) = queue.receive_dead_letter(&CancellationToken::new()).await.unwrap() {
            return dead;
        }
        assert!(Instant::now() < limit, "nothing is dead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_the_store_has_lost_is_found_again() {
    let broker = RabbitMq::shared();
    let (worker_registry, emptied) = (worker_registry().await, worker_registry().await);
    let coordinator = RabbitQueue::connect(&[secret(&broker.url())], emptied.clone(), settings()).await.unwrap();
    // The store has lost the route that was published to.
    let before = RabbitQueue::connect(&[secret(&broker.url())], worker_registry, settings()).await.unwrap();
    let block = route_messages("gcr.io", 1);
    publish(&before, &block).await;
    let worker = RabbitQueue::connect(&[secret(&broker.url())], emptied, settings()).await.unwrap();
    assert!(is_silent(&worker, &RouteFilter::All).await);
    assert_eq!(coordinator.count_ready(&[block[0].0.clone()]).await.unwrap(), [1]);
    let taken = take(&worker, &RouteFilter::All).await;
    assert_eq!(taken.message, block[0].1);
    taken.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_that_the_documentation_names_suffice() {
    let broker = RabbitMq::start();
    broker.ctl(&["add_user", "imgsync", "pw"]);
    let ours = r"^(w|sync)\..*";
    broker.ctl(&["set_permissions", "imgsync", ours, r"^((w|sync)\..*|amq\.default)$", ours]);
    let url = broker.url().replace("guest:guest", "imgsync:pw");
    let worker_registry = worker_registry().await;
    let queue = RabbitQueue::connect(&[secret(&url)], worker_registry.clone(), keyed("ours")).await.unwrap();
    let unsigned = RabbitQueue::connect(&[secret(&url)], worker_registry, settings()).await.unwrap();
    let block = route_messages("gcr.io", 2);
    publish(&queue, &block[..1]).await;
    publish(&unsigned, &block[1..]).await;
    take(&queue, &RouteFilter::All).await.requeue_after(Duration::from_millis(300)).await.unwrap();
    take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
    assert!(is_silent(&queue, &RouteFilter::All).await);
    assert_eq!((queue.refused().0, queue.count_ready(&[block[0].0.clone()]).await.unwrap()), (1, vec![0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_without_end_fills_neither_the_log_nor_memory_nor_the_queue_of_what_is_refused() {
    let fixture = ClusterFixture::new(1, 2).await;
    let mut workers = fixture.cluster.start_workers(1, 2).await;
    fixture.assert_ended_whole(&fixture.run().wait().await);
    let (source, target) = (fixture.source.host().parse().unwrap(), fixture.target.host().parse().unwrap());
    let route = format!("w.{}", Route::anonymous(source, target));
    let aside = BrokerProbe::new(&fixture.cluster.broker.url()).await;
    let large = vec![b'x'; 40 << 20];
    for _ in 0..3 {
        aside.put(&route, &large, FieldTable::default()).await;
    }
    for n in 0..3000 {
        aside.put(&route, format!("garbage {n}").as_bytes(), FieldTable::default()).await;
    }
    let limit = Instant::now() + 3 * WAIT_TIMEOUT;
    while aside.waiting(&route).await > 0 || aside.waiting("sync.refused").await < 3003 {
        assert!(Instant::now() < limit, "{} are left", aside.waiting(&route).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let worker = &mut workers[0];
    worker.signal(Signal::TERM);
    let output = worker.wait().await;
    let about: Vec<&str> = output.stderr.lines().filter(|line| line.contains("message refused")).collect();
    assert!(about.len() <= 8, "{about:#?}");
    assert!(
        about.iter().any(|line| line.contains("similar messages suppressed")),
        "the others are counted: {about:#?}"
    );
    println!("peak: {} MiB", output.peak_own_bytes >> 20);
    assert!(output.peak_own_bytes < 256 << 20, "{} MiB", output.peak_own_bytes >> 20);
    // Of oversized messages, size and digest are kept.
    let mut stubs = 0;
    while let Some((body, headers)) = aside.get("sync.refused").await {
        assert!(body.len() < 1000 && headers.inner().contains_key("reason"));
        if let Ok(stub) = serde_json::from_slice::<serde_json::Value>(&body)
            && stub["bytes"] == large.len()
        {
            assert!(stub["refused"].as_str().unwrap().contains("bytes") && stub["digest"].is_string(), "{stub}");
            stubs += 1;
        }
    }
    assert_eq!(stubs, 3);
}
