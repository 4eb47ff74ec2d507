//! Error codes of a real store, and their effect on the connection and the call.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::retry::RetryPolicy;
use imgsync_store::{
    LastRun, Ledger as _, NewBatch, RedisOptions as Options, RedisStore, Schedules as _, WorkerRegistry as _,
};
use imgsync_tests::RedisServer;
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::servers::RedisServerOptions;
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// Options with many short retries.
fn retrying_options() -> Options {
    let retry_policy = RetryPolicy {
        attempts: 10_000,
        first_delay: Duration::from_millis(5),
        max_delay: Duration::from_millis(50),
        ..Options::default().retry_policy
    };
    Options { retry_policy, ..Options::default() }
}

async fn open(url: &str) -> RedisStore {
    RedisStore::connect(&store_url(url), retrying_options()).await.unwrap()
}

/// Opens a store that gives up soon.
async fn open_once(url: &str) -> RedisStore {
    RedisStore::connect(&store_url(url), Options::default()).await.unwrap()
}

fn batch() -> NewBatch {
    let options = r#"{"rules":[]}"#.to_owned();
    NewBatch { id: BatchId::generate(), rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None }
}

/// Writes by a script.
async fn write(store: &RedisStore) -> Result<(), Error> {
    store.create(batch()).await
}

/// Writes by commands in a pipeline.
async fn write_in_pipeline(store: &RedisStore) -> Result<(), Error> {
    store.record_schedule_run("a", LastRun { at: jiff::Timestamp::now(), batch: None, skipped: 0 }).await
}

fn start_server(more: &[&str]) -> RedisServer {
    RedisServer::start_with(RedisServerOptions {
        extra_config: more.iter().map(|line| (*line).to_owned()).collect(),
        ..RedisServerOptions::default()
    })
}

#[track_caller]
fn assert_says(error: &Error, kind: ErrorKind, code: &str) {
    assert!(error.kind() == kind && error.message().contains(code) && error.hint().is_some(), "{error}");
}

/// Asserts that writes wait while the server refuses them with this code, and complete afterwards.
async fn assert_waits(server: &RedisServer, code: &str, heal: impl FnOnce(&RedisServer)) {
    let (store, single_try) = (open(&server.url()).await, open_once(&server.url()).await);
    let writing = tokio::spawn(async move {
        write(&store).await?;
        write_in_pipeline(&store).await
    });
    until(&format!("{code} is answered"), WAIT_TIMEOUT, || server.errors(code) >= 2).await;
    assert_says(&write(&single_try).await.unwrap_err(), ErrorKind::ServerError, code);
    // The client does not report the code of a pipeline.
    assert_says(&write_in_pipeline(&single_try).await.unwrap_err(), ErrorKind::ServerError, code);
    // Reads continue.
    single_try.batches(10).await.unwrap();
    assert!(!writing.is_finished());
    heal(server);
    writing.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_while_replicas_are_missing() {
    let server = start_server(&["min-replicas-to-write 1"]);
    assert_waits(&server, "NOREPLICAS", |server| server.set("min-replicas-to-write", "0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_while_memory_is_full() {
    let server = start_server(&["maxmemory 1", "maxmemory-policy noeviction"]);
    assert_waits(&server, "OOM", |server| server.set("maxmemory", "0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_while_the_server_cannot_write_its_disk() {
    let server = start_server(&["enable-protected-configs yes"]);
    let folder = tempfile::tempdir().unwrap();
    server.set("dir", &folder.path().display().to_string());
    server.set("save", "3600 1000000");
    drop(folder);
    server.command(&["BGSAVE"]);
    let has_failed = || server.command(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err");
    until("its snapshot fails", WAIT_TIMEOUT, has_failed).await;
    assert_waits(&server, "MISCONF", |server| server.set("stop-writes-on-bgsave-error", "no")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_waits_while_a_script_does_not_end() {
    let server = start_server(&["busy-reply-threshold 20"]);
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let url = format!("redis://{}", relay.host());
    let (store, single_try) = (open(&url).await, open_once(&url).await);
    let mut endless = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    endless.write_all(b"EVAL \"while true do end\" 0\r\n").unwrap();
    until("it is busy", WAIT_TIMEOUT, || server.command(&["PING"]).starts_with("-BUSY")).await;
    assert_says(&single_try.batches(10).await.unwrap_err(), ErrorKind::ServerError, "BUSY");
    let answered = relay.bytes(Direction::Down);
    let writing = tokio::spawn(async move { write(&store).await });
    until("the write is refused", WAIT_TIMEOUT, || relay.bytes(Direction::Down) > answered).await;
    assert!(!writing.is_finished());
    server.command(&["SCRIPT", "KILL"]);
    writing.await.unwrap().unwrap();
    assert_eq!(relay.connections(), 2, "waiting needs no other connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_while_the_server_loads_its_data() {
    let slow = ["enable-debug-command yes", "key-load-delay 1500", "loading-process-events-interval-bytes 1024"];
    let server = start_server(&slow);
    server.command(&["DEBUG", "POPULATE", "2000", "key", "100"]);
    let (store, single_try) = (open(&server.url()).await, open_once(&server.url()).await);
    let mut loading = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    loading.write_all(b"DEBUG RELOAD\r\n").unwrap();
    until("it is loading", WAIT_TIMEOUT, || server.command(&["GET", "a"]).starts_with("-LOADING")).await;
    assert_says(&single_try.batches(10).await.unwrap_err(), ErrorKind::ServerError, "LOADING");
    write(&store).await.unwrap();
    assert!(server.errors("LOADING") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_the_server_has_forgotten_is_sent_again() {
    let server = RedisServer::start();
    let store = open_once(&server.url()).await;
    write(&store).await.unwrap();
    server.command(&["SCRIPT", "FLUSH"]);
    write(&store).await.unwrap();
    assert!(server.errors("NOSCRIPT") > 0);
}

/// A failover behind one name: the old master becomes a replica and keeps its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_become_a_replica_is_left_for_the_new_master() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", old.port())).await;
    let store = open(&format!("redis://{}", relay.host())).await;
    write(&store).await.unwrap();
    old.replicate_from(&new);
    // The name still resolves to the old one.
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            write(&store).await?;
            write_in_pipeline(&store).await
        }
    });
    until("it is asked again on new connections", WAIT_TIMEOUT, || relay.connections() >= 3).await;
    assert!(old.errors("READONLY") > 0 && !writing.is_finished());
    assert!(store.check_writes().await.is_err(), "nothing can be written there");
    relay.retarget(&format!("127.0.0.1:{}", new.port()));
    writing.await.unwrap().unwrap();
    assert!(new.calls("hset") > 0 && store.check_writes().await.is_ok());
    let opened = relay.connections();
    write(&store).await.unwrap();
    assert_eq!(relay.connections(), opened, "the connection to a master is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_lost_its_master_is_left_too() {
    let (server, away) = (start_server(&["replica-serve-stale-data no"]), RedisServer::start());
    let (store, single_try) = (open(&server.url()).await, open_once(&server.url()).await);
    let before = server.info("total_connections_received");
    let mut away = away;
    away.kill();
    server.replicate_from(&away);
    let reading = tokio::spawn(async move { store.batches(10).await });
    until("the read is refused", WAIT_TIMEOUT, || server.errors("MASTERDOWN") > 0).await;
    let error = single_try.batches(10).await.unwrap_err();
    assert!(error.kind() == ErrorKind::ServerError && error.message().contains("replica"), "{error}");
    assert!(!reading.is_finished());
    server.promote();
    reading.await.unwrap().unwrap();
    assert!(server.info("total_connections_received") > before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_cut_and_one_that_is_silent_are_replaced() {
    let (frozen, other) = (RedisServer::start(), RedisServer::start());
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", frozen.port())).await;
    let store = open(&format!("redis://{}", relay.host())).await;
    write(&store).await.unwrap();
    relay.cut_all();
    write(&store).await.unwrap();
    assert_eq!(relay.connections(), 2);
    let mut frozen = frozen;
    frozen.freeze();
    relay.retarget(&format!("127.0.0.1:{}", other.port()));
    // A frozen server closes nothing; only the missing response reveals it.
    write(&store).await.unwrap();
    assert_eq!(relay.connections(), 3);
    assert!(other.calls("evalsha") > 0);
    frozen.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_logins_and_missing_rights_fail_with_the_command_that_lacks() {
    let server = start_server(&[
        "user default off",
        "user all on >good ~* &* +@all",
        "user reads on >good ~* resetchannels +@read +@connection",
        "user lists on >good ~* resetchannels +@all -hset",
    ]);
    let url = |login: &str| server.url().replace("redis://", &format!("redis://{login}"));
    let refused =
        async |login: &str| RedisStore::connect(&store_url(&url(login)), retrying_options()).await.unwrap_err();
    let error = refused("").await;
    assert_says(&error, ErrorKind::Denied, "NOAUTH");
    for login in ["all:wrong-secret@", "nobody:wrong-secret@", ":wrong-secret@"] {
        let error = refused(login).await;
        assert_says(&error, ErrorKind::Denied, "WRONGPASS");
        assert!(!format!("{error} {:?}", error.hint()).contains("wrong-secret"), "{error}");
    }
    let reads = RedisStore::connect(&store_url(&url("reads:good@")), retrying_options()).await.unwrap();
    let error = write(&reads).await.unwrap_err();
    assert_says(&error, ErrorKind::Denied, "NOPERM");
    let lists = RedisStore::connect(&store_url(&url("lists:good@")), retrying_options()).await.unwrap();
    let error = write_in_pipeline(&lists).await.unwrap_err();
    assert_says(&error, ErrorKind::Denied, "'hset'");
    // In a script, too.
    assert_says(&write(&lists).await.unwrap_err(), ErrorKind::Denied, "NOPERM");
    write(&RedisStore::connect(&store_url(&url("all:good@")), retrying_options()).await.unwrap()).await.unwrap();
}

/// A password change while programs run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_was_good_is_tried_again_when_it_is_refused() {
    let server = start_server(&["user imgsync on >good ~* &* +@all"]);
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let store = open(&format!("redis://imgsync:good@{}", relay.host())).await;
    write(&store).await.unwrap();
    server.command(&["ACL", "SETUSER", "imgsync", "resetpass", ">other"]);
    relay.cut_all();
    let writing = tokio::spawn(async move { write(&store).await });
    until("the login is refused twice", WAIT_TIMEOUT, || server.errors("WRONGPASS") >= 2).await;
    assert!(!writing.is_finished());
    server.command(&["ACL", "SETUSER", "imgsync", ">good"]);
    writing.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_replicas_and_no_task_goes_round_the_retry_queues() {
    let fixture = ClusterFixture::new(4, 25).await;
    let gate = fixture.gate_tags_after(5);
    let workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    gate.wait_for(8).await;
    let store = &fixture.cluster.store;
    store.set("min-replicas-to-write", "1");
    gate.open();
    // Both workers, the run and all of their slots have met it by then.
    until("writes are refused", WAIT_TIMEOUT, || store.errors("NOREPLICAS") >= 60).await;
    run.wait_for_line(|line| line.contains("too few replicas"), WAIT_TIMEOUT).await;
    let queues = fixture.cluster.broker.list_queues(&["name", "messages"]);
    let retrying = queues.lines().filter(|line| line.starts_with("sync.retry") && !line.ends_with("\t0"));
    assert_eq!(retrying.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(run.is_running());
    for worker in &workers {
        assert!(worker.stderr().contains("too few replicas"), "{}", worker.stderr());
    }
    store.set("min-replicas-to-write", "0");
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(number(&ended.json(), "/counts/copied"), 100);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_can_be_looked_at_and_a_new_run_waits_for_memory() {
    let fixture = ClusterFixture::with_cluster(TestCluster::start(), 2, 5).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    fixture.assert_ended_whole(&fixture.run().wait().await);
    let store = &fixture.cluster.store;
    store.command(&["DEL", "imgsync:version"]);
    store.set("maxmemory", "1");
    for command in [&["batch", "list"][..], &["batch", "show"], &["batch", "report"], &["cache", "export"]] {
        fixture.cluster.imgsync("").args(command).run().await.assert_code(0);
    }
    let mut run = fixture.run();
    let said = run.wait_for_line(|line| line.contains("out of memory"), WAIT_TIMEOUT).await;
    assert!(said.contains("maxmemory-policy volatile-lru"), "what to do is said: {said}");
    assert!(run.is_running());
    store.set("maxmemory", "0");
    fixture.assert_ended_whole(&run.wait().await);
}
