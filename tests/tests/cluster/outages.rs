//! Messages during broker and store outages: at once, once, and with a hint.

use std::time::Duration;

use imgsync_tests::ServeProcess;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::Signal;
use serde_json::Value;

use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// Returns the lines that contain all of these words.
fn lines<'t>(text: &'t str, words: &[&str]) -> Vec<&'t str> {
    text.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

/// Reports whether a line starts with a time, such as `2026-11-29T08:13:47Z`.
pub(crate) fn has_time(line: &str) -> bool {
    let time: String = line.chars().take(19).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    time == "0000-00-00T00:00:00"
}

async fn text(served: &ServeProcess, path: &str) -> (u16, String) {
    let answer = served.fetch(path).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_no_messages_is_complained_of_at_once_everywhere_with_what_to_do() {
    let fixture = ClusterFixture::with_own_broker(2, 5).await;
    let broker = &fixture.cluster.broker;
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    let workers = fixture.cluster.start_workers(1, 4).await;
    assert_eq!(text(&served, "/readyz").await, (200, "ready\n".to_owned()));
    broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    until("the alarm is on", WAIT_TIMEOUT, || broker.log().contains("resource limit alarm set")).await;

    // One batch led by a coordinator, and one led by a run in the foreground.
    fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]).run().await.assert_code(0);
    let outage_line = served.running.wait_for_line(|line| line.contains("blocks publishers"), WAIT_TIMEOUT).await;
    assert!(
        has_time(&outage_line)
            && outage_line.contains("low on memory")
            && outage_line.contains("rabbitmq-diagnostics alarms"),
        "{outage_line}"
    );
    let is_said =
        |shown: &serde_json::Value| shown["problems"][0].as_str().is_some_and(|it| it.contains("low on memory"));
    fixture.cluster.wait_for_batch(is_said, WAIT_TIMEOUT).await;
    let shown = fixture.cluster.imgsync("").args(["batch", "show"]).run().await.assert_code(0).stdout;
    let attention =
        lines(&shown, &["Problem: the broker has accepted no messages since", "rabbitmq-diagnostics alarms"]);
    assert_eq!(attention.len(), 1, "{shown}");
    let (status, ready) = text(&served, "/readyz").await;
    assert_eq!(status, 200, "what was taken goes on: {ready}");
    assert!(ready.starts_with("ready\n") && ready.contains("low on memory") && ready.contains("alarms"), "{ready}");
    let (_, metrics) = text(&served, "/metrics").await;
    assert_eq!(lines(&metrics, &["imgsync_broker_blocked 1"]).len(), 1, "{metrics}");

    let other = fixture.config.replace("/m,", "/other,");
    let mut run = fixture.cluster.imgsync(&other).args(["run", "--json"]).spawn();
    run.wait_for_line(|line| line.starts_with("warning: the broker ") && line.contains("low on memory"), WAIT_TIMEOUT)
        .await;

    broker.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    let back = served.running.wait_for_line(|line| line.contains("accepts messages again after"), WAIT_TIMEOUT).await;
    assert!(has_time(&back), "{back}");
    let ended = run.wait().await.assert_code(0);
    assert_eq!(number(&ended.json(), "/counts/copied"), 10, "{}", ended.stdout);
    assert_eq!(lines(&ended.stderr, &["blocks publishers: low"]).len(), 1, "{}", ended.stderr);
    assert_eq!(lines(&ended.stderr, &["accepts messages again after"]).len(), 1, "{}", ended.stderr);
    let over = |text: &str| lines(text, &["imgsync_broker_blocked 0"]).len() == 1;
    let started = std::time::Instant::now();
    while !over(&text(&served, "/metrics").await.1) {
        assert!(started.elapsed() < WAIT_TIMEOUT, "the figure says that it is over");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(text(&served, "/readyz").await, (200, "ready\n".to_owned()));
    let log = served.running.stderr();
    assert_eq!(lines(&log, &["blocks publishers: low"]).len(), 1, "{log}");
    drop(workers);
}

/// Returns a program's lines about broker and store, over all slots and connections.
fn about_servers(log: &str) -> Vec<&str> {
    let words =
        ["the store", "the ledger", "redis://", "the queue", "the broker", "amqp://", "cannot renew a lease", "w."];
    log.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

/// Length of an outage: long enough for each slot to notice it several times.
const OUTAGE_DURATION: Duration = Duration::from_secs(20);
/// Maximum lines of a worker about an outage: its start, one for each kind of affected call, and its end.
const MAX_OUTAGE_LINES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_store_that_is_away_each_program_says_once_that_it_is_and_that_it_is_back() {
    let mut fixture = ClusterFixture::new(4, 25).await;
    let gate = fixture.gate_tags_after(20);
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    let workers = fixture.cluster.start_workers(2, 20).await;
    let mut run = fixture.run();
    gate.wait_for(40).await;
    tokio::task::block_in_place(|| fixture.cluster.store.kill());
    gate.open();
    for program in workers.iter().chain([&served.running, &run]) {
        program
            .wait_for_line(
                |line| line.contains("the store redis://") && line.contains(" is unreachable: "),
                WAIT_TIMEOUT,
            )
            .await;
    }
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) >= 60, WAIT_TIMEOUT).await;
    tokio::time::sleep(OUTAGE_DURATION).await;
    tokio::task::block_in_place(|| fixture.cluster.store.restart());
    for program in workers.iter().chain([&served.running, &run]) {
        program.wait_for_line(|line| line.contains(" is reachable again after "), WAIT_TIMEOUT).await;
    }
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    for log in workers.iter().map(|worker| worker.stderr()).chain([served.running.stderr(), ended.stderr]) {
        let its = about_servers(&log);
        assert!(its.len() <= MAX_OUTAGE_LINES, "{} lines:\n{}", its.len(), its.join("\n"));
        assert_eq!(lines(&log, &[" is unreachable: "]).len(), 1, "{log}");
        assert_eq!(lines(&log, &[" is reachable again after "]).len(), 1, "{log}");
    }
    let log = served.running.stderr();
    assert!(lines(&log, &[" is unreachable: "]).into_iter().all(has_time), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_broker_that_is_away_each_program_says_once_that_it_is_and_that_it_is_back() {
    let mut fixture = ClusterFixture::with_own_broker(4, 25).await;
    let gate = fixture.gate_tags_after(20);
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    let workers = fixture.cluster.start_workers(2, 20).await;
    let mut run = fixture.run();
    gate.wait_for(40).await;
    tokio::task::block_in_place(|| {
        fixture.cluster.broker.sync_metadata();
        fixture.cluster.broker.kill();
    });
    gate.open();
    for program in workers.iter().chain([&served.running, &run]) {
        program
            .wait_for_line(
                |line| line.contains("the broker amqp://") && line.contains(" is unreachable: "),
                WAIT_TIMEOUT,
            )
            .await;
    }
    let names_the_outage = |overview: &Value| {
        let problems = overview["problems"].as_array().expect("a list");
        let is_outage = |problem: &&Value| {
            let title = problem["title"].as_str().expect("a title");
            title.starts_with("The broker amqp://") && title.ends_with(" is unreachable")
        };
        problems.iter().any(|problem| is_outage(&problem))
    };
    served.wait_for("overview", names_the_outage).await;
    tokio::time::sleep(OUTAGE_DURATION).await;
    tokio::task::block_in_place(|| fixture.cluster.broker.restart());
    for program in workers.iter().chain([&served.running]) {
        program.wait_for_line(|line| line.contains(" is reachable again after "), WAIT_TIMEOUT).await;
    }
    served.wait_for("overview", |overview| !names_the_outage(overview)).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    for log in workers.iter().map(|worker| worker.stderr()).chain([served.running.stderr(), ended.stderr]) {
        let its = about_servers(&log);
        assert!(its.len() <= MAX_OUTAGE_LINES, "{} lines:\n{}", its.len(), its.join("\n"));
        // A run may end before it has reconnected, since workers finish what is queued.
        let (away, back) =
            (lines(&log, &[" is unreachable: "]).len(), lines(&log, &[" is reachable again after "]).len());
        // A starting broker may accept a connection and drop it.
        assert!((1..=2).contains(&away) && back <= away, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_ready_while_the_store_refuses_writes_and_the_answer_says_why() {
    let fixture = ClusterFixture::new(1, 1).await;
    let store = &fixture.cluster.store;
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    let port = imgsync_tests::servers::free_port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let worker = fixture.cluster.worker("").args(["--listen", &listen]).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ready = async || {
        let of_worker = client.get(format!("http://{listen}/readyz")).send().await.unwrap();
        let of_worker = (of_worker.status().as_u16(), of_worker.text().await.unwrap());
        [text(&served, "/readyz").await, of_worker]
    };
    let until_all = async |status: u16| loop {
        let answers = ready().await;
        if answers.iter().all(|(its, _)| *its == status) {
            return answers;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let nobody = imgsync_tests::servers::free_port().to_string();
    let refusals: [(&[&str], &[&str], &str); 3] = [
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS",
        ),
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "OOM"),
        (&["REPLICAOF", "127.0.0.1", &nobody], &["REPLICAOF", "NO", "ONE"], "READONLY"),
    ];
    for (refuse, repair, code) in refusals {
        until_all(200).await;
        store.command(refuse);
        for (status, why) in tokio::time::timeout(WAIT_TIMEOUT, until_all(503)).await.expect(code) {
            assert_eq!(status, 503);
            assert!(why.starts_with("the store refuses writes: "), "{code}: {why}");
            assert!(why.to_uppercase().contains(&code.to_uppercase()) || why.contains("ReadOnly"), "{code}: {why}");
        }
        let alive = served.fetch("/healthz").await;
        assert_eq!(alive.status(), 200, "it is not started anew for that");
        let page = served.fetch("/").await;
        assert_eq!(page.status(), 200, "the dashboard stays in reach");
        store.command(repair);
        tokio::time::timeout(WAIT_TIMEOUT, until_all(200)).await.expect("ready again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_registry_that_fails_a_worker_says_so_in_one_line_with_a_count_whatever_its_slots() {
    let fixture = ClusterFixture::new(4, 10).await;
    let fails = RequestMatcher::kind(RequestType::ManifestGet);
    let failed = fixture.source.on(fails).times(40).act(FaultAction::status(503));
    let mut worker = fixture.cluster.worker("").args(["--concurrency", "20"]).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    let ended = fixture.run().wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(failed.hits(), 40);
    worker.signal(Signal::TERM);
    let log = worker.wait().await.assert_code(0).stderr;
    let retries = lines(&log, &["retrying in"]);
    assert!(matches!(retries.len(), 1 | 2), "{} lines: {log}", retries.len());
    let left_out =
        retries.iter().filter_map(|line| line.rsplit_once('(')?.1.strip_suffix(" similar messages suppressed)"));
    let left_out: usize = left_out.map(|count| count.parse::<usize>().unwrap()).sum();
    assert!(retries.len() + left_out >= 40, "none is left uncounted: {log}");
}
