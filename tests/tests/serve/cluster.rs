//! Serving with a cluster: scheduled rules, run by workers, shown by the same dashboard and API.

use std::time::Duration;

use imgsync_tests::program::Signal;
use imgsync_tests::{ServeProcess, TestCluster};
use serde_json::{Value, json};

use crate::support::{ServeFixture, assert_sums, rule};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn with_three_workers_rules_run_at_their_times_and_failures_are_seen_and_tried_again() {
    let cluster = TestCluster::start();
    let mut fixture = ServeFixture::new(&["good", "bad"], 12).await;
    let refused = imgsync_tests::fault::FaultAction::Status { code: 403, headers: Vec::new(), body: "{}".into() };
    let kinds = [imgsync_tests::fault::RequestType::ManifestGet, imgsync_tests::fault::RequestType::ManifestHead];
    let denied =
        fixture.source.on(imgsync_tests::fault::RequestMatcher::kinds(&kinds).repository("bad")).always().act(refused);
    let _workers = cluster.start_workers(3, 4).await;
    let config = fixture.config(&[("good", "{every: 1h}"), ("bad", "{every: 1h}")]);
    fixture.program = cluster.imgsync(&config);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let (_, status) = served.get("status").await;
    assert_eq!((&status["mode"], &status["leader"]), (&"cluster".into(), &true.into()));
    let both = |value: &Value| {
        let batches = value["batches"].as_array().unwrap();
        batches.len() == 2
            && batches.iter().all(|batch| batch["counts"]["copied"] == 12 || batch["counts"]["failed"] == 12)
    };
    let batches = served.wait_for("batches", both).await;
    let bad = batches["batches"].as_array().unwrap().iter().find(|batch| batch["counts"]["failed"] == 12).unwrap();
    let id = bad["batch"].as_str().unwrap();
    let (_, groups) = served.get(&format!("batches/{id}/failures/groups")).await;
    assert_eq!(groups["by_kind"][0]["kind"], "denied", "{groups:#}");
    let (_, workers) = served.get("workers").await;
    assert_eq!(workers["workers"].as_array().unwrap().len(), 3, "{workers:#}");
    let (_, routes) = served.get("routes").await;
    assert_eq!(routes["routes"][0]["waiting"], 0, "{routes:#}");

    denied.remove();
    let (status, answer) = served.post(&format!("batches/{id}/requeue"), &json!({})).await;
    assert_eq!((status, &answer["requeued"]), (200, &12.into()));
    let copied = |batch: &Value| batch["counts"]["copied"] == 12;
    assert_sums(&served.wait_for(&format!("batches/{id}"), copied).await);
    fixture.target.assert_tags_complete();

    // The next coordinator takes over and knows which rules were started.
    let second = ServeProcess::start(&cluster.imgsync(&config), &[]).await;
    let (_, status) = second.get("status").await;
    assert_eq!(status["leader"], false, "{status:#}");
    let mut first = served;
    first.running.signal(Signal::KILL);
    first.running.wait().await;
    second.wait_for("status", |status| status["leader"] == true).await;
    let (_, schedules) = second.get("schedules").await;
    assert!(rule(&schedules, "good")["last"].is_string(), "{schedules:#}");
    let (_, batches) = second.get("batches").await;
    assert_eq!(batches["batches"].as_array().unwrap().len(), 2, "nothing is begun again");
    second.running.wait_for_line(|line| line.contains("elected leader"), WAIT_TIMEOUT).await;
    second.stop().await.assert_code(0);
}
