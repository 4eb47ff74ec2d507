//! Broker and store that stop, return, and lose data.

use std::time::Duration;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::RequestType;
use imgsync_tests::servers::RedisServerOptions;

use crate::support::{ClusterFixture, WAIT_TIMEOUT, assert_sums};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_in_the_middle_of_a_batch_comes_back_to_a_batch_that_ends_by_itself() {
    let mut fixture = ClusterFixture::with_own_broker(4, 25).await;
    let gate = fixture.gate_tags_after(30);
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    gate.wait_for(8).await;
    fixture.cluster.broker.kill();
    // Running tasks end while the broker is down, and are delivered again later.
    gate.open();
    fixture.target.wait_until(|target| target.tags_in_all() >= 38, WAIT_TIMEOUT).await;
    fixture.cluster.broker.restart();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/copied"), 100);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_in_the_middle_of_a_batch_is_made_again_and_nothing_is_missing() {
    let fixture = ClusterFixture::new(4, 25).await;
    let gate = fixture.gate_tags_after(20);
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    gate.wait_for(8).await;
    let queues = fixture.cluster.broker.list_queues(&["name"]);
    let routes: Vec<&str> = queues.lines().filter(|line| line.starts_with("w.")).collect();
    assert_eq!(routes.len(), 1, "{queues}");
    fixture.cluster.broker.delete_queue(routes[0]);
    gate.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_killed_in_the_middle_of_a_batch_is_waited_for_and_the_counts_are_exact() {
    let mut fixture = ClusterFixture::new(4, 25).await;
    let gate = fixture.gate_tags_after(30);
    let workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    gate.wait_for(8).await;
    fixture.cluster.store.kill();
    // Running tasks write their tags, and cannot record them before the store is back.
    gate.open();
    fixture.target.wait_until(|target| target.tags_in_all() >= 38, WAIT_TIMEOUT).await;
    fixture.cluster.store.restart();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/copied"), 100);
    for worker in &workers {
        assert!(worker.is_running(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_loses_its_last_second_is_healed_and_the_sum_is_the_total() {
    let options = RedisServerOptions { fsync_every_second: true, ..RedisServerOptions::default() };
    let mut fixture = ClusterFixture::with_cluster(TestCluster::with_store(options), 4, 50).await;
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    for tags in [30, 90, 150] {
        fixture.target.wait_until(|target| target.tags_in_all() >= tags, WAIT_TIMEOUT).await;
        fixture.cluster.store.kill();
        fixture.cluster.store.restart();
    }
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_a_store_that_was_emptied_is_created_again_and_copies_nothing_twice() {
    let mut fixture = ClusterFixture::new(4, 10).await;
    let large = fixture.add_large("r00", "large", 4 << 20);
    let gate = fixture.gate_tags_after(20);
    let workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    gate.wait_for(8).await;
    fixture.cluster.store.command(&["FLUSHALL"]);
    gate.open();
    let ended = run.wait().await;
    assert!(ended.stderr.contains("creating it again"), "{}", ended.stderr);
    fixture.assert_ended_whole(&ended);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
    let uploads = fixture.target.requests_of_kind(RequestType::UploadPut);
    let large = uploads.iter().filter(|put| put.status == Some(201) && put.reference.as_deref() == Some(&large));
    assert_eq!(large.count(), 1);
    let later = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", Duration::from_secs(10)).await;
    assert_sums(&later);
    let lost: usize = workers.iter().map(|worker| worker.stderr().matches("no longer has batch").count()).sum();
    assert!(lost > 0, "the workers say so too");
}
