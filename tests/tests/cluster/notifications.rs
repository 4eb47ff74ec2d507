//! Logs and notifications of coordinators about batches that no `run` leads: of a registry that holds a batch up, while
//! it does, and of its end. Only one of two coordinators sends them.

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::RunningProgram;
use imgsync_tests::servers::WebhookReceiver;

use crate::outages::has_time;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, kill, until};

async fn start_coordinator(fixture: &ClusterFixture, config: &str) -> RunningProgram {
    let serving = fixture.cluster.imgsync(config).args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    serving.wait_for_line(|line| line.ends_with("elected leader") || line.contains("standby"), WAIT_TIMEOUT).await;
    serving
}

#[tokio::test]
async fn a_registry_that_holds_up_a_batch_is_notified_once_by_coordinators() {
    let fixture = ClusterFixture::new(2, 3).await;
    let hook = WebhookReceiver::start().await;
    let manifests = RequestMatcher::any()
        .when(|request| matches!(request.kind, RequestType::ManifestGet | RequestType::ManifestHead));
    let throttles = fixture.source.on(manifests).always().act(FaultAction::too_many_requests("3600"));
    let config =
        format!("{}notify:\n  webhook: {{url: \"{}\", on: failure}}\n  throttled: 10m\n", fixture.config, hook.url());
    let _serving = [start_coordinator(&fixture, &config).await, start_coordinator(&fixture, &config).await];
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let run = fixture.cluster.imgsync(&config).args(["run", "--detach"]).run().await.assert_code(0);
    until("somebody is told", WAIT_TIMEOUT, || !hook.received().is_empty()).await;
    let notification = hook.received()[0].json();
    assert_eq!(
        (&notification["event"], &notification["batch"]),
        (&"registry.throttled".into(), &run.stdout.trim().into())
    );
    assert_eq!((&notification["registry"], &notification["open"]), (&fixture.source.host().into(), &6.into()));
    throttles.remove();
    fixture.cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    until("its end is told, too", WAIT_TIMEOUT, || hook.received().len() >= 2).await;
    let events: Vec<_> = hook.received().iter().map(|received| received.json()["event"].clone()).collect();
    assert_eq!(events, ["registry.throttled", "batch.ended"]);
}

#[tokio::test]
async fn a_coordinator_logs_its_leadership_and_each_batch_s_start_and_end_with_times_and_counts() {
    let fixture = ClusterFixture::new(2, 3).await;
    let denied =
        RequestMatcher::kind(RequestType::ManifestPut).when(|request| request.reference.as_deref() == Some("v1"));
    let denied = fixture.target.on(denied).always().act(FaultAction::error(403, "DENIED"));
    let mut first = start_coordinator(&fixture, &fixture.config).await;
    let second = start_coordinator(&fixture, &fixture.config).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let detach = async || {
        let run = fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]).run().await.assert_code(0);
        run.stdout.trim().to_owned()
    };
    let bad = detach().await;
    let line = first.wait_for_line(|line| line.contains(&format!("batch {bad} ended: ")), WAIT_TIMEOUT).await;
    assert!(line.contains("warning: batch ") && line.contains(": 4 copied, 0 unchanged, 2 failed, in "), "{line}");
    denied.remove();
    kill(&mut first).await;
    let leads = second.wait_for_line(|line| line.ends_with("Z elected leader"), WAIT_TIMEOUT).await;
    let good = detach().await;
    let line = second.wait_for_line(|line| line.contains(&format!("batch {good} ended: ")), WAIT_TIMEOUT).await;
    assert!(line.contains(": 2 copied, 4 unchanged, in ") && !line.contains("warning"), "{line}");
    for (log, batch) in [(first.stderr(), bad), (second.stderr(), good)] {
        for words in ["started: ", "ended: "] {
            let its: Vec<&str> = log.lines().filter(|line| line.contains(&format!("batch {batch} {words}"))).collect();
            assert!(its.len() == 1 && has_time(its[0]), "{words} is said once: {log}");
        }
    }
    assert!(has_time(&leads), "{leads}");
    assert!(second.stderr().lines().any(|line| has_time(line) && line.contains("standby: serve on ")));
}

/// Counts the webhooks about a batch's end.
fn end_notifications(hook: &WebhookReceiver) -> usize {
    hook.received().iter().filter(|received| received.json()["event"] == "batch.ended").count()
}

#[tokio::test]
async fn a_failed_end_notification_is_sent_by_the_next_leader_and_once_to_each_target() {
    let fixture = ClusterFixture::new(1, 2).await;
    let (failing, hears) = (WebhookReceiver::start().await, WebhookReceiver::start().await);
    // More attempts than a coordinator makes before it pauses.
    (0..7).for_each(|_| failing.refuse_once(503));
    let config = format!(
        "{}notify:\n  webhook: [{{url: \"{}\"}}, {{url: \"{}\"}}]\n",
        fixture.config,
        failing.url(),
        hears.url()
    );
    let mut leads = start_coordinator(&fixture, &config).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    fixture.cluster.imgsync(&config).args(["run", "--detach"]).run().await.assert_code(0);
    // The batch has ended, one target was notified, and the other failed.
    leads
        .wait_for_line(
            |line| line.contains("webhook notification failed") && line.contains("retrying in"),
            WAIT_TIMEOUT,
        )
        .await;
    assert_eq!((end_notifications(&failing), end_notifications(&hears)), (5, 1));
    kill(&mut leads).await;
    let mut next = start_coordinator(&fixture, &config).await;
    until("the other hears of it, too", WAIT_TIMEOUT, || end_notifications(&failing) >= 8).await;
    // The next leader has nothing left to send.
    until("it is noted", WAIT_TIMEOUT, || recorded_notifications(&fixture) == 3).await;
    assert!(!next.stderr().contains("notification failed"), "{}", next.stderr());
    kill(&mut next).await;
    let last = start_coordinator(&fixture, &config).await;
    // Until it has taken over, `run --detach` may find nobody who holds the leader's lease.
    last.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    let again = fixture.cluster.imgsync(&config).args(["run", "--detach"]).run().await.assert_code(0);
    until("the next batch is told", WAIT_TIMEOUT, || {
        end_notifications(&failing) >= 9 && end_notifications(&hears) >= 2
    })
    .await;
    assert_eq!((end_notifications(&failing), end_notifications(&hears)), (9, 2), "the first was told once to each");
    let latest = hears.received().last().unwrap().json();
    assert_eq!(latest["batch"], again.stdout.trim());
}

/// Counts the recorded notifications of the only batch: one per target, and one that all are done.
fn recorded_notifications(fixture: &ClusterFixture) -> i64 {
    let script = "local all = redis.call('KEYS', '*}:notifications') \
                  return #all == 1 and redis.call('HLEN', all[1]) or 0";
    let answer = fixture.cluster.store.command(&["EVAL", script, "0"]);
    answer.trim().trim_start_matches(':').parse().unwrap_or_default()
}

#[tokio::test]
async fn a_leader_that_is_killed_between_the_end_and_its_notification_leaves_it_to_the_next() {
    let fixture = ClusterFixture::new(1, 2).await;
    let hook = WebhookReceiver::start().await;
    let silent = fixture.config.clone();
    // This coordinator notifies nobody, as if killed right after the end.
    let mut leads = start_coordinator(&fixture, &silent).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let run = fixture.cluster.imgsync(&silent).args(["run", "--detach"]).run().await.assert_code(0);
    fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    kill(&mut leads).await;
    let config = format!("{}notify:\n  webhook: {{url: \"{}\"}}\n", fixture.config, hook.url());
    let _serving = [start_coordinator(&fixture, &config).await, start_coordinator(&fixture, &config).await];
    until("it is told", WAIT_TIMEOUT, || recorded_notifications(&fixture) == 2).await;
    assert_eq!(end_notifications(&hook), 1);
    assert_eq!(hook.received()[0].json()["batch"], run.stdout.trim());
}
