//! Metrics: the programs export what alerts, dashboard and autoscaler query and what the documentation names.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use imgsync_tests::cluster::TestCluster;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::RunningProgram;
use serde_json::Value;

use super::{assert_success, deploy, read, tool};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns a free address for a program to listen on.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn fetch_metrics(address: &str, accept: &str) -> (String, String) {
    imgsync_tests::tls::install_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{address}/metrics")).header("accept", accept).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (answer.text().await.unwrap(), kind)
}

/// Returns the value of a metric by its name and labels.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Returns the names of metrics, without the suffixes of histograms.
fn names(text: &str) -> BTreeSet<String> {
    let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next());
    series.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Returns the metric names that an expression queries.
fn asked(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("imgsync_") || word.starts_with("process_")).map(str::to_owned).collect()
}

struct MetricsFixture {
    _cluster: TestCluster,
    _programs: Vec<RunningProgram>,
    coordinator: String,
    worker: String,
}

/// Starts a cluster that has copied two images, failed one, and was throttled by a registry.
async fn start_programs() -> MetricsFixture {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "v1", &images::single("figures-1"));
    source.push("a", "v2", &images::single("figures-2"));
    source.push("bad", "v1", &images::single("figures-bad"));
    source.on(RequestMatcher::kind(RequestType::ManifestGet).repository("bad")).always().act(FaultAction::status(403));
    source.on(RequestMatcher::kind(RequestType::ManifestHead).repository("bad")).always().act(FaultAction::status(403));
    source.on(RequestMatcher::kind(RequestType::BlobGet)).times(1).act(FaultAction::status(503));
    let config = format!(
        "registries:\n  {0}: {{requests_per_second: 20}}\nrules:\n- {{from: {0}/*, to: {1}/m, naming: keep, schedule: 0 3 1 1 *}}\n",
        source.host(),
        target.host()
    );
    let (coordinator, worker) = (free_address(), free_address());
    let serving = cluster.imgsync(&config).args(["serve", "--listen", &coordinator]).spawn();
    serving.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    let working = cluster.worker(&config).args(["--listen", &worker, "--concurrency", "3"]).spawn();
    working.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    cluster.imgsync(&config).args(["run", "--detach"]).run().await.assert_code(0);
    cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    MetricsFixture { _cluster: cluster, _programs: vec![serving, working], coordinator, worker }
}

#[tokio::test]
async fn exported_metrics_match_the_work_done_and_cover_alerts_and_dashboard() {
    let programs = start_programs().await;
    let (worker, kind) =
        fetch_metrics(&programs.worker, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(kind.starts_with("application/openmetrics-text") && worker.ends_with("# EOF\n"), "{kind}");
    for (series, wanted) in [
        ("imgsync_tasks_total{outcome=\"copied\"}", 2.0),
        ("imgsync_tasks_total{outcome=\"failed\"}", 1.0),
        ("imgsync_task_failures_total{kind=\"denied\"}", 1.0),
        ("imgsync_retries_total{kind=\"server_error\"}", 1.0),
        ("imgsync_running_tasks", 0.0),
        ("imgsync_tasks_stale_total", 0.0),
        ("imgsync_slots", 3.0),
        ("imgsync_broker_reconnects_total", 0.0),
        ("imgsync_task_duration_seconds_count{outcome=\"copied\"}", 2.0),
    ] {
        assert_eq!(value(&worker, series), Some(wanted), "{series} in\n{worker}");
    }
    assert!(value(&worker, "imgsync_blob_bytes_total{outcome=\"copied\"}").unwrap() > 0.0, "{worker}");
    let (coordinator, _) = fetch_metrics(&programs.coordinator, "application/openmetrics-text").await;
    for (series, wanted) in [
        ("imgsync_open_tasks", 0.0),
        ("imgsync_workers", 1.0),
        ("imgsync_worker_slots", 3.0),
        ("imgsync_store_up", 1.0),
        ("imgsync_broker_up", 1.0),
        ("imgsync_broker_blocked", 0.0),
        ("imgsync_store_replicas{state=\"connected\"}", 0.0),
        ("imgsync_store_failovers_total", 0.0),
        ("imgsync_leader_present", 1.0),
        ("imgsync_rules_omitted", 0.0),
        ("imgsync_routes_unserved", 0.0),
        ("imgsync_last_batch_tasks{outcome=\"copied\"}", 2.0),
        ("imgsync_last_batch_tasks{outcome=\"failed\"}", 1.0),
        ("imgsync_batches{state=\"done\"}", 1.0),
    ] {
        assert_eq!(value(&coordinator, series), Some(wanted), "{series} in\n{coordinator}");
    }

    // The older text format, which the name checker reads.
    let (older, kind) = fetch_metrics(&programs.worker, "text/plain").await;
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    for text in [&older, &fetch_metrics(&programs.coordinator, "").await.0] {
        let mut check = Command::new("promtool");
        let input = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &input, text.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut &input).unwrap();
        if let Some(checked) = tool(check.args(["check", "metrics"]).stdin(input), "prometheus") {
            assert_success(&checked);
        }
    }

    let exported: BTreeSet<String> = names(&worker).union(&names(&coordinator)).cloned().collect();
    for (what, wanted) in expressions() {
        let missing: Vec<String> = asked(&wanted).into_iter().filter(|name| !known(name, &exported)).collect();
        assert!(missing.is_empty(), "{what} asks for {missing:?}, which nobody exports:\n{exported:#?}");
    }
    // Vice versa: the documentation lists every exported name.
    let page = std::fs::read_to_string(deploy("../docs/reference/metrics.md")).unwrap();
    for name in exported.iter().filter(|name| name.starts_with("imgsync_")) {
        let base = name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum");
        assert!(page.contains(&format!("`{base}")), "docs/reference/metrics.md does not name {base}");
    }
}

/// Reports whether a metric is exported, or is one that appears only after an event that did not happen here.
fn known(name: &str, exported: &BTreeSet<String>) -> bool {
    const SELDOM: [&str; 6] = [
        "imgsync_rule_last_good_end_timestamp_seconds",
        "imgsync_registry_hold_seconds",
        "imgsync_last_good_batch_end_timestamp_seconds",
        "imgsync_route_messages",
        "imgsync_request_delay_seconds_total",
        "imgsync_delayed_requests_total",
    ];
    exported.contains(name) || SELDOM.contains(&name)
}

/// Returns all expressions of the shipped files, by location.
fn expressions() -> BTreeMap<String, String> {
    let mut expressions = BTreeMap::new();
    let alerts: Value = serde_saphyr::from_str(&read("prometheus/alerts.yml")).unwrap();
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        expressions.insert(name.to_owned(), rule["expr"].as_str().unwrap().to_owned());
    }
    let dashboard: Value = serde_json::from_str(&read("grafana/imgsync.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for (n, target) in panel["targets"].as_array().into_iter().flatten().enumerate() {
            let title = format!("panel {} {n}", panel["title"].as_str().unwrap());
            let expression = target["expr"].as_str().unwrap().to_owned();
            assert!(expressions.insert(title, expression).is_none(), "two panels of one title");
        }
    }
    let scaler: Value = serde_saphyr::from_str(&read("kubernetes/keda.yaml")).unwrap();
    let asks = scaler.pointer("/spec/triggers/0/metadata/valueLocation").unwrap().as_str().unwrap();
    expressions.insert("the scaler".to_owned(), asks.to_owned());
    assert!(expressions.len() > 30, "{expressions:#?}");
    expressions
}

#[test]
fn the_alerts_are_taken_by_prometheus_and_each_fires() {
    let rules = deploy("prometheus/alerts.yml");
    let Some(checked) = tool(Command::new("promtool").args(["check", "rules"]).arg(&rules), "prometheus") else {
        return;
    };
    assert_success(&checked);
    let story = deploy("prometheus/alerts.test.yml");
    assert_success(&tool(Command::new("promtool").args(["test", "rules"]).arg(story), "prometheus").unwrap());
    let (rules, stories) = (read("prometheus/alerts.yml"), read("prometheus/alerts.test.yml"));
    let page = std::fs::read_to_string(deploy("../docs/how-to/alerts.md")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(stories.contains(&format!("name: {alert}\n")), "{alert} has no story in which it fires");
        assert!(page.contains(&format!("### {alert}\n")), "{alert} is not explained in docs/how-to/alerts.md");
    }
}

/// Prometheus accepts every expression of the dashboard.
#[test]
fn the_dashboard_s_expressions_are_taken_by_prometheus() {
    let folder = tempfile::tempdir().unwrap();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, (_, expression)) in expressions().iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m").replace("$job", ".*");
        rules.push_str(&format!("  - record: e{n}\n    expr: {}\n", serde_json::to_string(&expression).unwrap()));
    }
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).unwrap();
    if let Some(checked) = tool(Command::new("promtool").args(["check", "rules"]).arg(file), "prometheus") {
        assert_success(&checked);
    }
}
