//! A store with replicas under Sentinels: the master is killed, frozen and replaced, and batches go on.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::secret::Secret;
use imgsync_store::outage::HealthEvent;
use imgsync_store::{Ledger as _, NewBatch, RedisOptions, RedisStore, SentinelLogin};
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::dns::DnsServer;
use imgsync_tests::namespace;
use imgsync_tests::program::{Imgsync, RunningProgram};
use imgsync_tests::servers::{MASTER_NAME, SentinelOptions, SentinelServers};
use imgsync_tests::tls::Authority;
use imgsync_tests::{RedisServer, ServeProcess};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

fn start_cluster(options: &SentinelOptions) -> TestCluster {
    tokio::task::block_in_place(|| TestCluster::with_sentinels(options))
}

async fn start() -> ClusterFixture {
    ClusterFixture::with_cluster(start_cluster(&SentinelOptions::default()), 3, 12).await
}

fn group(cluster: &mut TestCluster) -> &mut SentinelServers {
    cluster.sentinels.as_mut().unwrap()
}

/// Waits until another server than that of this port is the master. Returns its port.
fn wait_for_failover(cluster: &TestCluster, port: u16) -> u16 {
    tokio::task::block_in_place(|| cluster.sentinels.as_ref().unwrap().wait_for_other_master(port))
}

/// Waits until each worker says that it uses this master.
async fn wait_for_new_master(workers: &[RunningProgram], port: u16) {
    for worker in workers {
        let wanted = format!("has a new master: 127.0.0.1:{port}");
        worker.wait_for_line(|line| line.contains(&wanted), WAIT_TIMEOUT).await;
    }
}

fn new_batch() -> NewBatch {
    NewBatch {
        id: BatchId::generate(),
        rules: Digest::sha256(b"rules"),
        options: r#"{"rules":[]}"#.to_owned(),
        supersedes: None,
        fence: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_on_when_the_master_is_killed() {
    let mut fixture = start().await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(2, 2).await;
    let mut run = fixture.run();
    gate.wait_for(4).await;
    let port = fixture.cluster.master().port();
    fixture.cluster.master().kill();
    gate.open();
    let new = wait_for_failover(&fixture.cluster, port);
    fixture.assert_ended_whole(&run.wait().await);
    wait_for_new_master(&workers, new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_a_frozen_master_accepts_when_it_is_thawed_are_not_counted() {
    let mut fixture = start().await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(2, 2).await;
    let mut run = fixture.run();
    gate.wait_for(4).await;
    let port = fixture.cluster.master().port();
    fixture.cluster.master().freeze();
    // Their results are sent to the frozen master, which executes them later.
    gate.release(4);
    let new = wait_for_failover(&fixture.cluster, port);
    wait_for_new_master(&workers, new).await;
    fixture.cluster.store_server(port).thaw();
    let old = fixture.cluster.store_server(port);
    tokio::task::block_in_place(|| {
        while !old.cli(&["INFO", "replication"]).contains("role:slave") {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    gate.open();
    fixture.assert_ended_whole(&run.wait().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_in_a_batch_loses_no_image_and_counts_none_twice() {
    let mut fixture = start().await;
    let workers = fixture.cluster.start_workers(2, 2).await;
    let gate = fixture.gate_tags_after(4);
    let mut run = fixture.run();
    gate.wait_for(4).await;
    for _ in 0..2 {
        let port = fixture.cluster.master().port();
        tokio::task::block_in_place(|| group(&mut fixture.cluster).fail_over());
        gate.release(8);
        let new = wait_for_failover(&fixture.cluster, port);
        wait_for_new_master(&workers, new).await;
        // Sentinels refuse a failover until the last one is over.
        let replicas = group(&mut fixture.cluster);
        tokio::task::block_in_place(|| replicas.wait_for_replicas());
    }
    gate.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert!(!ended.stderr.contains("is unreachable"), "nothing was away: {}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_pause_while_the_sentinels_replace_a_healthy_master() {
    let mut cluster = start_cluster(&SentinelOptions::default());
    let store = RedisStore::connect(&store_url(&cluster.store_url()), RedisOptions::long_running()).await.unwrap();
    let mut events = store.health().subscribe();
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, is_over) = (store.clone(), is_over.clone());
        async move {
            let mut created = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let batch = new_batch();
                created.push(batch.id);
                store.create(batch).await.unwrap();
            }
            created
        }
    });
    let port = cluster.master().port();
    tokio::task::block_in_place(|| group(&mut cluster).fail_over());
    let new = wait_for_failover(&cluster, port);
    let event = tokio::time::timeout(WAIT_TIMEOUT, events.recv()).await.unwrap().unwrap();
    let wanted = format!("the store {} has a new master: 127.0.0.1:{new}", cluster.store_url());
    assert_eq!(event.to_string(), wanted, "it comes before any error");
    assert_eq!((store.health().failovers(), store.health().master()), (1, Some(format!("127.0.0.1:{new}"))));
    is_over.store(true, Ordering::Relaxed);
    let created = writer.await.unwrap();
    // Without the pause, those of the last second on the old master would be gone.
    let mut lost = 0;
    for batch in &created {
        lost += usize::from(store.batch_state(*batch).await.unwrap().is_none());
    }
    assert_eq!(lost, 0, "of {}", created.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_on_when_the_first_sentinel_is_killed_and_then_the_master() {
    let mut fixture = start().await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(1, 2).await;
    let mut run = fixture.run();
    gate.wait_for(2).await;
    let port = fixture.cluster.master().port();
    let name = format!("127.0.0.1:{}", group(&mut fixture.cluster).sentinels[0].port());
    group(&mut fixture.cluster).sentinels[0].kill();
    workers[0].wait_for_line(|line| line.contains(&format!("the Sentinel {name}: ")), WAIT_TIMEOUT).await;
    fixture.cluster.store_server(port).kill();
    // A command that begins now asks the others.
    fixture.cluster.wait_for_batch(|shown| number(shown, "/counts/total") == 36, WAIT_TIMEOUT).await;
    group(&mut fixture.cluster).sentinels[0].restart();
    workers[0].wait_for_line(|line| line.contains(&format!("{name} of the store answers again")), WAIT_TIMEOUT).await;
    gate.open();
    fixture.assert_ended_whole(&run.wait().await);
}

/// Returns how many writes each process has counted at the server of this port, whose password is `cut`.
fn write_counts(port: u16) -> BTreeMap<String, u64> {
    let cli = |words: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.env("REDISCLI_AUTH", "cut").args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(words);
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        String::from_utf8(output.stdout).unwrap()
    };
    let keys = cli(&["KEYS", "imgsync:writes:*"]);
    let count = |key: &str| cli(&["GET", key]).trim().trim_matches('"').parse().unwrap_or_default();
    keys.lines().map(|key| (key.to_owned(), count(key))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_whole_after_a_failover_to_a_replica_that_lacks_the_last_writes() {
    let mut fixture = start().await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(2, 2).await;
    let mut run = fixture.run();
    gate.wait_for(4).await;
    let port = fixture.cluster.master().port();
    // Replicas are cut off, and connections that are open stay.
    let master = fixture.cluster.master();
    tokio::task::block_in_place(|| {
        master.set("requirepass", "cut");
        master.cli(&["-a", "cut", "CLIENT", "KILL", "TYPE", "replica"]);
    });
    let direct = format!("redis://:cut@127.0.0.1:{port}");
    let copied = async || {
        let show = fixture.cluster.imgsync("").args(["batch", "show", "--json"]).env("IMGSYNC_STORE", &direct);
        number(&show.run().await.assert_code(0).json(), "/counts/copied")
    };
    let copied_before = copied().await;
    let counts_before = write_counts(port);
    gate.release(6);
    let is_further = async || copied().await >= copied_before + 6;
    crate::queue::until("results that no replica has", is_further).await;
    // A process notices the loss of what it has counted.
    until("counts that no replica has", WAIT_TIMEOUT, || {
        let counts = write_counts(port);
        counts_before.iter().all(|(key, before)| counts.get(key).is_some_and(|count| *count > before + 1))
    })
    .await;
    fixture.cluster.store_server(port).kill();
    let new = wait_for_failover(&fixture.cluster, port);
    wait_for_new_master(&workers, new).await;
    workers[0].wait_for_line(|line| line.contains("has lost writes that it had confirmed"), WAIT_TIMEOUT).await;
    gate.open();
    fixture.assert_ended_whole(&run.wait().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_and_sentinels_have_passwords_of_their_own_and_an_error_says_which_is_wrong() {
    let passwords = ("server-secret", "sentinel-secret");
    let options = SentinelOptions {
        password: Some(passwords.0.to_owned()),
        sentinel_password: Some(passwords.1.to_owned()),
        ..SentinelOptions::default()
    };
    let mut fixture = ClusterFixture::with_cluster(start_cluster(&options), 1, 4).await;
    let url = fixture.cluster.store_url();
    let _worker = fixture.cluster.worker("").env("IMGSYNC_SENTINEL_PASSWORD", passwords.1).spawn();
    let config = format!(
        "cluster:\n  broker: {}\n  store: {{url: '{}', password: '${{STORE}}'}}\n  \
         sentinel_password: ${{SENTINELS}}\n{}",
        fixture.cluster.broker.url(),
        url.replace(":server-secret@", ""),
        fixture.config
    );
    let imgsync = |servers: &str, sentinels: &str, arguments: &[&str]| {
        let program = Imgsync::new().args(arguments).env("STORE", servers).env("SENTINELS", sentinels);
        program.file("imgsync.yaml", &config);
        program
    };
    fixture.assert_ended_whole(&imgsync(passwords.0, passwords.1, &["run", "--json"]).run().await);
    let shown = imgsync(passwords.0, passwords.1, &["config", "show"]).run().await.assert_code(0);
    assert!(shown.stdout.contains("sentinel_password: \"***\"\n"), "{}", shown.stdout);

    let sentinel = format!("the Sentinel 127.0.0.1:{}: ", group(&mut fixture.cluster).sentinels[0].port());
    let master = format!("the master 127.0.0.1:{}: ", fixture.cluster.master().port());
    for (servers, sentinels, side, hint) in [
        (passwords.0, "hunter2", &sentinel, "IMGSYNC_SENTINEL_PASSWORD"),
        ("hunter2", passwords.1, &master, "they are those of the servers"),
        // Swapped: the Sentinels are asked first.
        (passwords.1, passwords.0, &sentinel, "those of the servers"),
    ] {
        let output = imgsync(servers, sentinels, &["batch", "list"]).run().await.assert_code(3);
        assert!(output.stderr.contains(side.as_str()) && output.stderr.contains(hint), "{}", output.stderr);
        assert!(!output.stderr.contains("hunter2") && !output.stderr.contains("-secret"), "{}", output.stderr);
    }
    // The permissions that docs/how-to/cluster.md names for a user of its own.
    let pages = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/cluster.md")).unwrap();
    let rights = pages.split("`resetchannels &+try-failover").nth(1).unwrap().split('`').next().unwrap();
    let rights = format!("resetchannels &+try-failover{rights}");
    for sentinel in &group(&mut fixture.cluster).sentinels {
        let mut words = vec!["ACL", "SETUSER", "watcher", "on", ">watcher-secret"];
        words.extend(rights.split_whitespace());
        assert_eq!(sentinel.cli(&words).trim(), "OK", "{words:?}");
    }
    let program =
        imgsync(passwords.0, "watcher-secret", &["batch", "list"]).env("IMGSYNC_SENTINEL_USERNAME", "watcher");
    program.run().await.assert_code(0);
    let unknown =
        imgsync(passwords.0, "watcher-secret", &["batch", "list"]).env("IMGSYNC_STORE", url.replace(MASTER_NAME, "no"));
    let output = unknown.env("IMGSYNC_SENTINEL_USERNAME", "watcher").run().await.assert_code(3);
    assert!(output.stderr.contains(&format!("it knows {MASTER_NAME}")), "{}", output.stderr);

    let none = RedisStore::connect(&store_url(&url), RedisOptions::default()).await.unwrap_err();
    assert!(none.kind() == ErrorKind::Denied && none.message().contains("requires a password"), "{none}");
    let login = SentinelLogin { username: Some("nobody".to_owned()), password: Secret::new(passwords.1) };
    let options = RedisOptions { sentinel_login: Some(login), ..RedisOptions::default() };
    let unknown = RedisStore::connect(&store_url(&url), options).await.unwrap_err();
    assert!(unknown.kind() == ErrorKind::Denied && unknown.message().contains("the Sentinel "), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_are_used_with_tls_also_after_a_failover() {
    let authority = Authority::new();
    let ca = authority.pem().to_owned();
    let mut cluster = start_cluster(&SentinelOptions { tls: Some(authority), ..SentinelOptions::default() });
    let url = cluster.store_url();
    assert!(url.starts_with("rediss+sentinel://"), "{url}");
    let untrusted = RedisStore::connect(&store_url(&url), RedisOptions::default()).await.unwrap_err();
    assert_eq!(untrusted.kind(), ErrorKind::Insecure, "{untrusted}");
    let options = RedisOptions { ca: Some(ca.into_bytes()), ..RedisOptions::long_running() };
    let store = RedisStore::connect(&store_url(&url), options).await.unwrap();
    store.create(new_batch()).await.unwrap();
    let port = cluster.master().port();
    tokio::task::block_in_place(|| group(&mut cluster).fail_over());
    wait_for_failover(&cluster, port);
    // The new master is connected to with the next call.
    let is_used = async || store.batches(9).await.unwrap().len() == 1 && store.health().failovers() == 1;
    crate::queue::until("the new master is used", is_used).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_master_is_an_error_that_names_those_that_the_sentinels_know() {
    let cluster = start_cluster(&SentinelOptions::default());
    let url = cluster.store_url().replace(MASTER_NAME, "mymaster");
    let error = RedisStore::connect(&store_url(&url), RedisOptions::long_running()).await.unwrap_err();
    assert!(error.message().contains(&format!("with the name mymaster; it knows {MASTER_NAME}")), "{error}");
    assert!(error.hint().unwrap().contains("sentinel monitor"), "{error}");
    // The address of a server, where a Sentinel belongs.
    let url = format!("redis+sentinel://127.0.0.1:{}/{MASTER_NAME}", cluster.store.port());
    let error = RedisStore::connect(&store_url(&url), RedisOptions::long_running()).await.unwrap_err();
    assert!(error.message().contains("this is not a Sentinel"), "{error}");
    assert!(error.hint().unwrap().contains("redis://"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_while_the_sentinels_have_no_master_to_name() {
    let mut cluster = start_cluster(&SentinelOptions::default());
    let port = cluster.master().port();
    for replica in &mut group(&mut cluster).replicas {
        replica.kill();
    }
    cluster.store.kill();
    let worker = cluster.worker("").args(["--wait", "2m"]).spawn();
    let line = worker.wait_for_line(|line| line.contains("retrying for"), WAIT_TIMEOUT).await;
    assert!(line.contains(&format!("the master 127.0.0.1:{port}: ")) && line.contains("replica-announce-ip"), "{line}");
    tokio::task::block_in_place(|| cluster.store.restart());
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    assert!(worker.stderr().contains(&format!("storing on the master 127.0.0.1:{port}")), "{}", worker.stderr());
}

/// Forwards connections to a port of this machine.
async fn relay(address: &str, to: u16) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}

#[test]
fn a_name_is_followed_to_the_server_that_becomes_the_master() {
    let (old, new) = ("203.0.113.4", "203.0.113.5");
    if !namespace::enter("sentinel::a_name_is_followed_to_the_server_that_becomes_the_master", &[old, new]) {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (first, second) = (RedisServer::start(), RedisServer::start());
        second.replicate_from(&first);
        relay(&format!("{old}:6379"), first.port()).await;
        relay(&format!("{new}:6379"), second.port()).await;
        let dns = DnsServer::start().await;
        dns.set_answers("store.test", &[&[old]]);
        let store = RedisStore::connect(&store_url("redis://store.test"), RedisOptions::long_running()).await.unwrap();
        let mut events = store.health().subscribe();
        store.create(new_batch()).await.unwrap();
        // As managed services do: roles are swapped, and the name follows some time later.
        until("the replica has the batch", WAIT_TIMEOUT, || second.command(&["KEYS", "*"]).contains("batches")).await;
        second.promote();
        first.replicate_from(&second);
        let asked = dns.query_count("store.test");
        let write = tokio::spawn({
            let store = store.clone();
            async move { store.create(new_batch()).await }
        });
        until("the name is resolved again", WAIT_TIMEOUT, || dns.query_count("store.test") >= asked + 3).await;
        dns.set_answers("store.test", &[&[new]]);
        write.await.unwrap().unwrap();
        assert_eq!(store.batches(9).await.unwrap().len(), 2);
        // An outage of writing, and no other event.
        assert!(matches!(events.try_recv().unwrap(), HealthEvent::Began(_)));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_the_api_and_the_log_name_the_master_and_count_its_replicas() {
    let mut fixture = start().await;
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    let value = async |series: &str| {
        let text = served.request_outside_api("/metrics").send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.and_then(|value| value.parse::<f64>().ok())
    };
    let port = fixture.cluster.master().port();
    for (series, wanted) in [
        ("imgsync_store_sentinels{state=\"configured\"}", 3.0),
        ("imgsync_store_sentinels{state=\"answering\"}", 3.0),
        ("imgsync_store_replicas{state=\"known\"}", 2.0),
        ("imgsync_store_replicas{state=\"connected\"}", 2.0),
        ("imgsync_store_failovers_total", 0.0),
    ] {
        crate::queue::until(series, async || value(series).await == Some(wanted)).await;
    }
    let replica = group(&mut fixture.cluster).replicas[0].port();
    let lag = format!("imgsync_store_replica_lag_seconds{{replica=\"127.0.0.1:{replica}\"}}");
    assert!(value(&lag).await.is_some());
    let master = |workers: &Value| workers["workers"][0]["store_master"].as_str().map(str::to_owned);
    let (_, workers) = served.get("workers").await;
    assert_eq!(master(&workers), Some(format!("127.0.0.1:{port}")), "{workers}");

    // The other replica becomes the master, so the old one is the only replica that is left.
    fixture.cluster.store_server(port).kill();
    let new = wait_for_failover(&fixture.cluster, port);
    group(&mut fixture.cluster).sentinels[2].kill();
    for (series, wanted) in [
        ("imgsync_store_sentinels{state=\"answering\"}", 2.0),
        ("imgsync_store_replicas{state=\"known\"}", 2.0),
        ("imgsync_store_replicas{state=\"connected\"}", 1.0),
        ("imgsync_store_failovers_total", 1.0),
    ] {
        crate::queue::until(series, async || value(series).await == Some(wanted)).await;
    }
    let is_new = async || master(&served.get("workers").await.1) == Some(format!("127.0.0.1:{new}"));
    crate::queue::until("the worker uses the new master", is_new).await;
}
