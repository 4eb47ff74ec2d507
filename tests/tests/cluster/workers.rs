//! Workers that crash, freeze, lose their connections, and drain.

use std::time::{Duration, Instant};

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::{RunningProgram, Signal};
use imgsync_tests::servers::free_port;
use imgsync_tests::tcp_proxy::TcpProxy;

use crate::support::{ClusterFixture, WAIT_TIMEOUT, kill, reader_of, readers, until};

const MIB: u64 = 1 << 20;

/// Starts a worker with these URLs of broker and store.
async fn worker_by(cluster: &TestCluster, broker: &str, store: &str, arguments: &[&str]) -> RunningProgram {
    let worker = cluster.worker("").env("IMGSYNC_BROKER", broker).env("IMGSYNC_STORE", store);
    let worker = worker.args(["--concurrency", "4"]).args(arguments).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    worker
}

/// Time that the program gives copies in progress, before it aborts them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_worker_killed_in_a_blob_is_replaced_and_its_task_counted_once() {
    let mut fixture = ClusterFixture::new(2, 5).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .act(FaultAction::StallAfter { bytes: MIB });
    let mut workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    let victim = reader_of(&fixture.source, &blob, 1, &workers).await;
    kill(&mut workers[victim]).await;
    fixture.source.wait_until(|source| readers(source, &blob).len() == 2, WAIT_TIMEOUT).await;
    let ended = run.wait().await;
    // What it wrote but did not record is unchanged for the next worker.
    fixture.assert_ended_whole(&ended);
    assert_eq!(fixture.puts("r00", "large"), 1);
}

#[tokio::test]
async fn a_worker_killed_between_putting_a_tag_and_recording_it_copies_nothing_twice() {
    let mut fixture = ClusterFixture::new(1, 0).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    // The tag is written, and the response never arrives.
    let put = RequestMatcher::kind(RequestType::ManifestPut).reference("large");
    let put = fixture.target.on(put).act(FaultAction::CutInsteadOfAnswer);
    // Nor does any response to the worker's further requests.
    let silence = fixture.target.on(RequestMatcher::any().when(move |_| put.hits() > 0)).act(FaultAction::StallForever);
    let mut workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    until("the tag is put, and more is asked", WAIT_TIMEOUT, || silence.hits() > 0).await;
    assert!(fixture.target.tag_digest("m/r00", "large").is_some());
    kill(&mut workers[0]).await;
    let _another = fixture.cluster.start_workers(1, 4).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/unchanged"), 1, "{}", ended.stdout);
    assert_eq!(readers(&fixture.source, &blob).len(), 1, "what is there is not read again");
}

#[tokio::test]
async fn a_worker_frozen_beyond_its_lease_puts_no_tag_when_it_comes_back() {
    let mut fixture = ClusterFixture::new(1, 3).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    fixture.source.on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob)).act(FaultAction::Gate(gate.clone()));
    let broker = format!("{}?heartbeat=5", fixture.cluster.broker.url());
    let frozen = worker_by(&fixture.cluster, &broker, &fixture.cluster.store.url(), &["--lease", "6"]).await;
    let mut run = fixture.run();
    fixture.source.wait_until(|source| readers(source, &blob).len() == 1, WAIT_TIMEOUT).await;
    let _other = worker_by(&fixture.cluster, &broker, &fixture.cluster.store.url(), &["--lease", "6"]).await;
    frozen.signal(Signal::STOP);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    let puts = fixture.target.count(RequestType::ManifestPut);
    gate.add_permits(1);
    frozen.signal(Signal::CONT);
    frozen.wait_for_line(|line| line.contains("requeued ") && line.contains(":large"), WAIT_TIMEOUT).await;
    assert_eq!(fixture.puts("r00", "large"), 1);
    assert_eq!(fixture.target.count(RequestType::ManifestPut), puts, "{}", frozen.stderr());
    let shown = fixture.cluster.show_batch().await.expect("the store answers");
    fixture.assert_whole(&shown);
}

#[tokio::test]
async fn a_worker_cut_off_from_broker_and_store_loses_its_task_to_another() {
    let mut fixture = ClusterFixture::new(1, 3).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    fixture.source.on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob)).act(FaultAction::Gate(gate.clone()));
    let broker = TcpProxy::start(&format!("127.0.0.1:{}", fixture.cluster.broker.port())).await;
    let store = TcpProxy::start(&format!("127.0.0.1:{}", fixture.cluster.store.port())).await;
    let (to_broker, to_store) = (
        format!("{}?heartbeat=5", fixture.cluster.broker.url_through(&broker.host())),
        format!("redis://{}", store.host()),
    );
    let lost = worker_by(&fixture.cluster, &to_broker, &to_store, &[]).await;
    let mut run = fixture.run();
    fixture.source.wait_until(|source| readers(source, &blob).len() == 1, WAIT_TIMEOUT).await;
    let _other = fixture.cluster.start_workers(1, 4).await;
    broker.freeze(true);
    store.freeze(true);
    fixture.source.wait_until(|source| readers(source, &blob).len() == 2, WAIT_TIMEOUT).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    // The connection is restored: the worker that lost its task has nothing to record, and continues.
    gate.add_permits(1);
    broker.freeze(false);
    store.freeze(false);
    lost.wait_for_line(|line| line.contains("requeued ") && line.contains(":large"), WAIT_TIMEOUT).await;
    assert_eq!(fixture.puts("r00", "large"), 1);
    let shown =
        fixture.cluster.wait_for_batch(|shown| shown["workers"].as_array().unwrap().len() == 2, WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
}

#[tokio::test]
async fn a_draining_worker_requeues_what_it_cannot_finish_and_nothing_is_lost() {
    let mut fixture = ClusterFixture::new(2, 20).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    // It would not end within the thirty seconds it is given.
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .act(FaultAction::StallAfter { bytes: MIB });
    let mut workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    let leaving = reader_of(&fixture.source, &blob, 1, &workers).await;
    workers[leaving].signal(Signal::TERM);
    let left = workers[leaving].wait().await.assert_code(0);
    assert!(left.stderr.contains("requeued "), "{}", left.stderr);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/copied"), 41);
    assert_eq!(fixture.target.open_uploads(), 0, "the upload that was broken off was cleaned up");
}

#[tokio::test]
async fn a_worker_signalled_twice_aborts_at_once_and_requeues_its_tasks() {
    let mut fixture = ClusterFixture::new(1, 2).await;
    let blob = fixture.add_large("r00", "large", 4 * MIB);
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .act(FaultAction::StallAfter { bytes: MIB });
    let mut workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    reader_of(&fixture.source, &blob, 1, &workers).await;
    workers[0].signal(Signal::TERM);
    workers[0].wait_for_line(|line| line.contains("finishing copies in progress"), WAIT_TIMEOUT).await;
    let stopped_at = Instant::now();
    workers[0].signal(Signal::TERM);
    workers[0].wait().await.assert_code(0);
    assert!(stopped_at.elapsed() < DRAIN_TIMEOUT / 2, "{:?}", stopped_at.elapsed());
    workers[0] = fixture.cluster.start_workers(1, 4).await.remove(0);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test]
async fn a_worker_whose_output_is_not_read_ends_when_signalled() {
    let fixture = ClusterFixture::new(1, 1).await;
    let mut worker = fixture.cluster.start_workers(1, 2).await.remove(0);
    worker.close_stderr().await;
    worker.signal(Signal::TERM);
    tokio::time::timeout(WAIT_TIMEOUT, worker.wait()).await.expect("it ends").assert_code(0);
}

#[tokio::test]
async fn a_task_that_ends_whoever_runs_it_fails_in_the_end_and_all_others_are_done() {
    let mut fixture = ClusterFixture::new(2, 5).await;
    // Small enough that the next worker need not wait for the dead one's lease on the blob.
    let blob = fixture.add_large("r00", "deadly", MIB / 2);
    let (repository, tag, _) = fixture.images.pop().expect("it was added just now");
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .always()
        .act(FaultAction::StallAfter { bytes: MIB / 4 });
    let (broker, store) = (fixture.cluster.broker.url(), fixture.cluster.store.url());
    let start = async || worker_by(&fixture.cluster, &broker, &store, &["--lease", "5"]).await;
    let mut workers = vec![start().await, start().await];
    let mut run = fixture.run();
    let killer = async {
        let mut deaths = 0;
        loop {
            let victim = reader_of(&fixture.source, &blob, deaths + 1, &workers).await;
            kill(&mut workers[victim]).await;
            workers[victim] = start().await;
            deaths += 1;
            assert!(deaths < 12, "it goes on and on");
        }
    };
    let ended = tokio::select! {
        ended = run.wait() => ended,
        () = killer => unreachable!("it goes on until the run has ended"),
    };
    let json = ended.json();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    // What a killed worker wrote but did not record is unchanged.
    let done = number(&json, "/counts/copied") + number(&json, "/counts/unchanged");
    assert_eq!((done, number(&json, "/counts/failed")), (10, 1), "{json}");
    let error = json["failures"][0]["error"].as_str().expect("words");
    assert!(error.contains(&format!("{repository}:{tag}")) && error.contains("its worker died 6 times"), "{error}");
    fixture.assert_target();
    assert_eq!(readers(&fixture.source, &blob).len(), 6);
}

/// A worker is cut off from the ledger until another has done its task.
#[tokio::test]
async fn a_failure_that_the_ledger_calls_stale_is_counted_as_that_and_as_no_failure() {
    let fixture = ClusterFixture::new(1, 1).await;
    let store = TcpProxy::start(&format!("127.0.0.1:{}", fixture.cluster.store.port())).await;
    let (listen, lease) = (format!("127.0.0.1:{}", free_port()), ["--lease", "5"]);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let denied = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]);
    let denied =
        fixture.source.on(denied).times(1).act_all([FaultAction::Gate(gate.clone()), FaultAction::status(403)]);
    let arguments = [&lease[..], &["--listen", &listen]].concat();
    let through = format!("redis://{}", store.host());
    let cut_off = worker_by(&fixture.cluster, &fixture.cluster.broker.url(), &through, &arguments).await;
    let mut run = fixture.run();
    until("it has begun the task", WAIT_TIMEOUT, || denied.hits() == 1).await;
    store.freeze(true);
    gate.add_permits(1);
    let _other = worker_by(&fixture.cluster, &fixture.cluster.broker.url(), &fixture.cluster.store.url(), &lease).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    store.freeze(false);
    cut_off.wait_for_line(|line| line.contains(" not counted: ") && line.contains("r00:v0"), WAIT_TIMEOUT).await;
    imgsync_tests::tls::install_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let metrics = client.get(format!("http://{listen}/metrics")).send().await.unwrap().text().await.unwrap();
    for line in [
        "imgsync_tasks_stale_total 1",
        "imgsync_tasks_total{outcome=\"failed\"} 0",
        "imgsync_task_failures_total{kind=\"denied\"} 0",
        "imgsync_running_tasks 0",
    ] {
        assert!(metrics.lines().any(|its| its == line), "{line} in\n{metrics}");
    }
}
