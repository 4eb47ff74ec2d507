//! JSON logs: one object per line, with worker, batch and task.

use imgsync_tests::cluster::TestCluster;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use serde_json::Value;

fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test]
async fn lines_of_a_worker_say_which_batch_and_task_they_are_about() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "v1", &images::single("log-1"));
    source.push("a", "v2", &images::single("log-2"));
    source.on(RequestMatcher::kind(RequestType::BlobGet)).times(1).act(FaultAction::status(503));
    let config = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let worker = cluster.worker("").args(["--log-format", "json"]).spawn();
    let run =
        cluster.imgsync(&config).env("IMGSYNC_LOG_FORMAT", "json").args(["run", "--json"]).run().await.assert_code(0);
    let batch = run.json()["batch"].clone();
    worker
        .wait_for_line(|line| line.contains("v2") && line.contains("copied "), std::time::Duration::from_secs(30))
        .await;
    let log = worker.stderr();
    let lines_of_worker = lines(&log);
    let copied: Vec<&Value> = lines_of_worker
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|said| said.starts_with("copied ")))
        .collect();
    assert_eq!(copied.len(), 2, "{log}");
    for line in &copied {
        assert_eq!((&line["batch"], &line["program"]), (&batch, &"imgsync-worker".into()), "{line}");
        assert!(line["task"].is_u64() && line["worker"].as_str().is_some_and(|name| !name.is_empty()), "{line}");
    }
    let again =
        lines_of_worker.iter().find(|line| line["message"].as_str().is_some_and(|said| said.contains("retrying in")));
    let again = again.unwrap_or_else(|| panic!("a line about the request that failed: {log}"));
    assert!(again["batch"] == batch && again["task"].is_u64(), "{again}");
    assert!(lines_of_worker.iter().all(|line| line["worker"] == copied[0]["worker"]), "{log}");

    let said = lines(&run.stderr);
    assert!(said.iter().any(|line| line["message"] == format!("batch {}", batch.as_str().unwrap())), "{}", run.stderr);
}

#[tokio::test]
async fn errors_are_lines_of_the_log_too_with_what_to_do() {
    let failed = Imgsync::new().args(["--log-format", "json", "batch", "resume", "0123"]).run().await;
    let said = lines(&failed.stderr);
    assert!(said.iter().any(|line| line["level"] == "error" && line["hint"].is_string()), "{}", failed.stderr);
}
