//! docker-compose.ha.yml: a batch goes on although a container of each kind is killed, and what was killed joins again.

use std::time::Instant;

use imgsync_tests::cluster::number;
use imgsync_tests::{Compose, ComposeFile, skipped};
use serde_json::Value;

use super::{RATE_LIMITED_CONFIG, TOTAL, WAIT_TIMEOUT, a_new_user_sees_a_batch_copied, assert_sums, fill};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_highly_available_compose_file_completes_a_batch_although_a_container_of_each_kind_is_killed() {
    if let Err(reason) = Compose::available().await {
        return skipped(&format!("docker-compose.ha.yml: {reason}"));
    }
    let started = Instant::now();
    let said = |what: &str| eprintln!("{:>4} s  {what}", started.elapsed().as_secs());
    let compose = match Compose::start(ComposeFile::HighlyAvailable).await {
        Ok(compose) => compose,
        Err(reason) => return skipped(&format!("docker-compose.ha.yml: {reason}")),
    };
    said("engine and images are there");
    a_new_user_sees_a_batch_copied(&compose).await;
    said("the example's batch is copied");
    servers_are_what_they_should_be(&compose);
    let images = fill(&compose).await;
    compose.write_env(true, Some(RATE_LIMITED_CONFIG));
    compose.compose(&["up", "-d", "--scale", "worker=3"]);
    for service in ["coordinator1", "coordinator2", "worker"] {
        compose.wait_healthy(service, WAIT_TIMEOUT).await;
    }
    let batch = compose.compose(&["run", "--rm", "-T", "imgsync", "run", "--detach"]);
    let batch = batch.lines().last().unwrap().to_owned();
    let is_ours = |shown: &Value| shown["batch"] == *batch;
    said("a batch begins");

    let mut victims = vec![("a worker", compose.containers("worker").remove(0))];
    victims.push(("a Sentinel", only(&compose, "sentinel1")));
    victims.push(("a node of the broker", only(&compose, "rabbitmq1")));
    victims.push(("the master of the store", only(&compose, &master(&compose, "sentinel2"))));
    victims.push(("the leading coordinator", only(&compose, &leader(&compose))));
    let mut copied = 20;
    for (what, victim) in &victims {
        let go_on = |shown: &Value| is_ours(shown) && number(shown, "/counts/copied") >= copied;
        copied = number(
            &compose.wait_for_batch(&format!("the batch goes on until {what} is killed"), WAIT_TIMEOUT, go_on).await,
            "/counts/copied",
        ) + 20;
        compose.docker(&["kill", victim]);
        said(&format!("{what} is killed"));
    }
    let ended = |shown: &Value| is_ours(shown) && shown["state"] == "done";
    let ended = compose.wait_for_batch("the end", 3 * WAIT_TIMEOUT, ended).await;
    said("the batch is done");
    assert_sums(&ended);
    assert_eq!(number(&ended, "/counts/total"), TOTAL, "{ended}");
    assert_eq!(number(&ended, "/counts/copied") + number(&ended, "/counts/unchanged"), TOTAL, "{ended}");
    let target = compose.target();
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("copy/{repository}"), tag, image).await;
    }
    said("every tag is right, to the last byte");
    for (_, victim) in &victims {
        compose.docker(&["start", victim]);
    }
    what_was_killed_joins_again(&compose).await;
    said("all that was killed is back");
}

/// Returns the container of a service that has one.
fn only(compose: &Compose, service: &str) -> String {
    let containers = compose.containers(service);
    assert_eq!(containers.len(), 1, "{service}");
    containers.into_iter().next().unwrap()
}

fn exec(compose: &Compose, service: &str, command: &str) -> String {
    compose.docker(&["exec", &only(compose, service), "sh", "-c", command])
}

/// Returns the service of the master, which a Sentinel names.
fn master(compose: &Compose, sentinel: &str) -> String {
    let ask = r#"REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli -p 26379 sentinel get-master-addr-by-name imgsync"#;
    exec(compose, sentinel, ask).lines().next().unwrap().to_owned()
}

/// Returns the coordinator that leads, by the logs.
fn leader(compose: &Compose) -> String {
    let leads = |service: &&str| {
        let log = compose.logs(&only(compose, service));
        let line = log.lines().rfind(|line| line.ends_with("elected leader") || line.contains("standby: "));
        line.is_some_and(|line| line.ends_with("elected leader"))
    };
    ["coordinator1", "coordinator2"].into_iter().find(leads).expect("a coordinator leads").to_owned()
}

fn servers_are_what_they_should_be(compose: &Compose) {
    let nodes = exec(compose, "rabbitmq2", "rabbitmqctl -q eval 'length(rabbit_nodes:all_running()).'");
    assert_eq!(nodes, "3");
    let handling = "rabbitmqctl -q eval 'application:get_env(rabbit, cluster_partition_handling).'";
    assert_eq!(exec(compose, "rabbitmq3", handling), "{ok,pause_minority}");
    let queues = exec(compose, "rabbitmq1", "rabbitmqctl -q list_queues name members --no-table-headers");
    for queue in queues.lines() {
        assert_eq!(queue.matches("rabbit@rabbitmq").count(), 3, "each queue has three replicas: {queues}");
    }
    let quorum = r#"REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli -p 26379 sentinel ckquorum imgsync"#;
    assert!(exec(compose, "sentinel3", quorum).starts_with("OK 3 usable"));
    let replicas = r#"REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli info replication"#;
    assert!(exec(compose, &master(compose, "sentinel1"), replicas).contains("min_slaves_good_slaves:2"));
    for service in ["redis1", "sentinel1", "rabbitmq1"] {
        let bindings = compose.inspect(&only(compose, service), "{{json .HostConfig.PortBindings}}");
        assert!(["{}", "null"].contains(&&*bindings), "{service} is not published: {bindings}");
    }
}

async fn what_was_killed_joins_again(compose: &Compose) {
    for service in ["rabbitmq1", "redis1", "redis2", "redis3", "sentinel1", "coordinator1", "coordinator2", "worker"] {
        compose.wait_healthy(service, WAIT_TIMEOUT).await;
    }
    let started = Instant::now();
    let whole = || {
        let nodes = exec(compose, "rabbitmq2", "rabbitmqctl -q eval 'length(rabbit_nodes:all_running()).'");
        let replicas = r#"REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli info replication"#;
        let replicas = exec(compose, &master(compose, "sentinel2"), replicas);
        nodes == "3" && replicas.contains("min_slaves_good_slaves:2")
    };
    while !whole() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "the servers are not whole again");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let again = compose.compose(&["run", "--rm", "-T", "imgsync", "run", "--json"]);
    let again: Value = serde_json::from_str(again.lines().last().unwrap()).unwrap();
    assert_eq!(number(&again, "/counts/unchanged"), TOTAL, "{again}");
}
