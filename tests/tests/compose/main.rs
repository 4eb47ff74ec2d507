//! Dockerfile, docker-compose.yml and docker-compose.ha.yml unchanged: the first steps of a new user, and container
//! failures.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod high_availability;

use std::time::{Duration, Instant};

use imgsync_tests::cluster::number;
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::{Compose, ComposeFile, skipped};
use serde_json::Value;

/// Generous limit for anything that should not take long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
const REPOSITORIES: usize = 8;
const TAGS: usize = 50;
const TOTAL: u64 = (REPOSITORIES * TAGS) as u64;

/// Rate-limited for all workers together, so that faults hit the middle of the batch.
const RATE_LIMITED_CONFIG: &str = "
registries:
  source:5000: {tls: off}
  target:5000: {tls: off, requests_per_second: 40}
defaults: {to: target:5000/copy, naming: keep}
rules:
  - from: source:5000/chaos/**
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compose_file_serves_a_new_user_and_loses_nothing_when_containers_are_killed_cut_off_and_multiplied() {
    if let Err(reason) = Compose::available().await {
        return skipped(&format!("docker-compose.yml: {reason}"));
    }
    let started = Instant::now();
    let said = |what: &str| eprintln!("{:>4} s  {what}", started.elapsed().as_secs());
    let compose = match Compose::start(ComposeFile::Plain).await {
        Ok(compose) => compose,
        Err(reason) => return skipped(&format!("docker-compose.yml: {reason}")),
    };
    said("engine and images are there");
    nothing_starts_without_passwords(&compose);
    a_new_user_sees_a_batch_copied(&compose).await;
    said("the example's batch is copied");
    containers_are_what_they_should_be(&compose).await;
    said("containers are healthy, and reached from loopback only");
    a_batch_survives(&compose, &said).await;
    workers_end_when_asked(&compose);
    said("workers have ended by themselves");
}

fn nothing_starts_without_passwords(compose: &Compose) {
    compose.write_env(false, None);
    let refused = compose.try_compose(&["up", "-d"]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{words}");
    assert!(words.contains(".env.example"), "what to do is said: {words}");
    assert!(compose.containers("redis").is_empty());
}

/// The steps of docs/tutorial/first-cluster.md: fill in `.env`, run `docker-compose up`, look.
async fn a_new_user_sees_a_batch_copied(compose: &Compose) {
    compose.write_env(true, None);
    compose.compose(&["up", "-d", "--scale", "worker=2"]);
    let example = &compose.containers("example")[0];
    assert_eq!(compose.docker(&["wait", example]), "0", "{}", compose.logs(example));
    let report = compose.logs(example);
    let after = |words: &str| report.split_once(words).and_then(|(_, rest)| rest.split_whitespace().next());
    let total = after("Images: ").expect("the report is shown");
    assert_ne!(total, "0");
    assert_eq!([after("Copied: "), after("Unchanged: "), after("Failed: ")], [Some(total), Some("0"), Some("0")]);
    assert!(compose.target().tag_digest("mirror/hello", "latest").await.is_some());

    let again = compose.compose(&["run", "--rm", "-T", "imgsync", "run", "--json"]);
    let again: Value = serde_json::from_str(again.lines().last().unwrap()).unwrap();
    assert_eq!(number(&again, "/counts/unchanged").to_string(), total, "{again}");
}

async fn containers_are_what_they_should_be(compose: &Compose) {
    for service in ["rabbitmq", "redis", "coordinator", "worker"] {
        compose.wait_healthy(service, WAIT_TIMEOUT).await;
        for container in compose.containers(service) {
            let bindings = compose.inspect(&container, "{{json .HostConfig.PortBindings}}");
            let bindings: Value = serde_json::from_str(&bindings).unwrap();
            let hosts = bindings.as_object().into_iter().flatten().flat_map(|(_, hosts)| hosts.as_array()).flatten();
            hosts.for_each(|host| assert_eq!(host["HostIp"], "127.0.0.1", "{service}: {bindings}"));
            assert_eq!(bindings.as_object().map_or(0, serde_json::Map::len), usize::from(service != "worker"));
            let command = compose.docker(&["top", &container, "-o", "pid,args"]);
            let environment = compose.inspect(&container, "{{range .Config.Env}}{{println .}}{{end}}");
            let secret = environment.lines().find_map(|line| line.split_once("REDIS_PASSWORD="));
            if let Some((_, secret)) = secret {
                assert!(!command.contains(secret), "no password is on a command line");
            }
            if ["coordinator", "worker"].contains(&service) {
                assert_eq!(compose.inspect(&container, "{{.Config.User}}"), "10001:10001");
            }
        }
    }
    let redis = compose.containers("redis").remove(0);
    let ask = r#"REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli config get"#;
    for (setting, wanted) in [("appendonly", "yes"), ("maxmemory-policy", "volatile-lru"), ("maxmemory", "1073741824")]
    {
        let got = compose.docker(&["exec", &redis, "sh", "-c", &format!("{ask} {setting}")]);
        assert_eq!(got.lines().nth(1), Some(wanted), "{setting}");
    }
    let broker = compose.containers("rabbitmq").remove(0);
    let timeout = "rabbitmqctl -q eval 'application:get_env(rabbit, consumer_timeout).'";
    assert_eq!(compose.docker(&["exec", &broker, "sh", "-c", timeout]), "{ok,14400000}");
}

async fn a_batch_survives(compose: &Compose, said: &impl Fn(&str)) {
    let images = fill(compose).await;
    compose.write_env(true, Some(RATE_LIMITED_CONFIG));
    compose.compose(&["up", "-d", "--scale", "worker=3"]);
    // Containers with the example's configuration have been replaced.
    compose.wait_healthy("coordinator", WAIT_TIMEOUT).await;
    compose.wait_healthy("worker", WAIT_TIMEOUT).await;
    let workers = compose.containers("worker");
    assert_eq!(workers.len(), 3);
    compose
        .wait_for_batch("three workers that wait", WAIT_TIMEOUT, |shown| {
            workers.iter().all(|worker| is_worker_alive(shown, worker))
        })
        .await;
    let batch = compose.compose(&["run", "--rm", "-T", "imgsync", "run", "--detach"]);
    let batch = batch.lines().last().unwrap().to_owned();
    let is_ours = |shown: &Value| shown["batch"] == *batch;
    let has_copied = |shown: &Value, count| is_ours(shown) && number(shown, "/counts/copied") >= count;
    said("a batch begins");

    compose.wait_for_batch("a batch that is under way", WAIT_TIMEOUT, |shown| has_copied(shown, 20)).await;
    compose.docker(&["kill", &workers[0]]);
    said("a worker is killed");
    let address = compose.address(&workers[1]);
    compose.docker(&["network", "disconnect", &compose.network(), &workers[1]]);
    said("another is cut off");
    let coordinator = compose.containers("coordinator").remove(0);
    compose.docker(&["kill", &coordinator]);
    said("the coordinator is killed");
    let shown = compose
        .wait_for_batch("the last worker alone", WAIT_TIMEOUT, |shown| {
            is_worker_alive(shown, &workers[2])
                && !is_worker_alive(shown, &workers[0])
                && !is_worker_alive(shown, &workers[1])
        })
        .await;
    assert_sums(&shown);
    assert!(is_ours(&shown) && shown["state"] != "done", "there is something left to be done: {shown}");
    compose.docker(&["start", &coordinator]);
    said("the coordinator is started again");
    // Its address, and those that were free before, belong to other containers by now.
    let others: Vec<String> = (0..4).map(|_| compose.start_bystander()).collect();
    compose.docker(&["network", "connect", &compose.network(), &workers[1]]);
    assert_ne!(compose.address(&workers[1]), address);
    others.iter().for_each(|other| _ = compose.docker(&["rm", "-f", other]));
    compose.wait_for_batch("a worker that is back", WAIT_TIMEOUT, |shown| is_worker_alive(shown, &workers[1])).await;
    said("the worker that was cut off is back by itself");
    compose.compose(&["up", "-d", "--no-recreate", "--scale", "worker=6"]);
    let all = compose.containers("worker");
    assert_eq!(all.len(), 6);
    let shown = compose
        .wait_for_batch("six workers", WAIT_TIMEOUT, |shown| all.iter().all(|worker| is_worker_alive(shown, worker)))
        .await;
    assert!(is_ours(&shown) && shown["state"] != "done", "they came in the middle: {shown}");
    said("there are six workers");

    let ended =
        compose.wait_for_batch("the end", 3 * WAIT_TIMEOUT, |shown| is_ours(shown) && shown["state"] == "done").await;
    said("the batch is done");
    assert_sums(&ended);
    assert_eq!(number(&ended, "/counts/total"), TOTAL, "{ended}");
    assert_eq!(number(&ended, "/counts/copied") + number(&ended, "/counts/unchanged"), TOTAL, "{ended}");
    let target = compose.target();
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("copy/{repository}"), tag, image).await;
    }
    said("every tag is right, to the last byte");
}

/// Pushes small images to the source.
async fn fill(compose: &Compose) -> Vec<(String, String, TestImage)> {
    let mut filling = tokio::task::JoinSet::new();
    for repository in 0..REPOSITORIES {
        let source = compose.source();
        filling.spawn(async move {
            let mut images = Vec::new();
            for tag in 0..TAGS {
                let image = TestImage::single(&format!("compose-{repository}-{tag}"))
                    .layer(Layer::Shared(format!("base-{repository}"), 20_000))
                    .layer(Layer::File(500))
                    .build();
                let (repository, tag) = (format!("chaos/r{repository}"), format!("v{tag}"));
                source.push(&repository, &tag, &image).await;
                images.push((repository, tag, image));
            }
            images
        });
    }
    filling.join_all().await.into_iter().flatten().collect()
}

/// Reports whether a container's worker sends heartbeats. Its host name is the container's.
fn is_worker_alive(shown: &Value, container: &str) -> bool {
    let workers = shown["workers"].as_array().into_iter().flatten();
    workers.filter_map(|worker| worker["host"].as_str()).any(|host| container.starts_with(host))
}

fn assert_sums(shown: &Value) {
    let parts = ["waiting", "running", "copied", "unchanged", "failed", "cancelled"];
    let sum: u64 = parts.iter().map(|part| number(shown, &format!("/counts/{part}"))).sum();
    assert_eq!(sum, number(shown, "/counts/total"), "{shown}");
}

fn workers_end_when_asked(compose: &Compose) {
    let workers = compose.containers("worker");
    compose.compose(&["stop", "worker"]);
    for worker in workers {
        assert_eq!(compose.inspect(&worker, "{{.State.ExitCode}}"), "0", "{}", compose.logs(&worker));
        assert!(compose.logs(&worker).ends_with("stopped\n"), "{}", compose.logs(&worker));
    }
}
