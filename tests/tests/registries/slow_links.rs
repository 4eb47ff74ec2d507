//! Slow, lossy and stalled connections; tokens that expire during a transfer; and HTTP/1.1 only.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};
use imgsync_tests::tls::Authority;

const MIB: u64 = 1 << 20;
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Copies `a:1` to `b:1` with a stall limit of ten seconds: longer than a slow link takes for the content of the
/// system's buffers.
fn program(from: &str, to: &str) -> Imgsync {
    program_with_timeouts(from, to, 3, "10s")
}

/// The same with this number of attempts and this stall limit.
fn program_with_timeouts(from: &str, to: &str, attempts: u32, stall: &str) -> Imgsync {
    let (from, to) = (format!("{from}/a:1"), format!("{to}/b:1"));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "10ms", "--stall-timeout", stall]);
    sync.args(["--attempts", &attempts.to_string()])
}

fn retries(output: &Output, end: &str) -> u64 {
    output.json()["traffic"][end]["retries"].as_u64().unwrap()
}

#[tokio::test]
async fn a_blob_at_200_kib_a_second_is_waited_for() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("slow-line", MIB + MIB / 4);
    source.push("a", "1", &image);
    let relay = TcpProxy::start(&source.host()).await;
    relay.throttle(Direction::Down, 200 << 10);
    let output = program(&relay.host(), &target.host()).run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((retries(&output, "source"), retries(&output, "target")), (0, 0));
}

#[tokio::test]
async fn a_target_that_takes_200_kib_a_second_is_waited_for() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("slow-upload", MIB + MIB / 4);
    source.push("a", "1", &image);
    target.on(RequestType::UploadPut).always().act(FaultAction::Throttle { bytes_per_second: 200 << 10 });
    let output = program(&source.host(), &target.host()).run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((retries(&output, "source"), retries(&output, "target")), (0, 0));
}

#[tokio::test]
async fn a_link_that_loses_its_connections_carries_a_large_blob_in_pieces() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("lossy", 24 * MIB);
    source.push("a", "1", &image);
    let (down, up) = (TcpProxy::start(&source.host()).await, TcpProxy::start(&target.host()).await);
    for relay in [&down, &up] {
        relay.delay(Direction::Down, Duration::from_millis(15));
        relay.delay(Direction::Up, Duration::from_millis(15));
        relay.throttle(Direction::Down, 16 * MIB);
        relay.throttle(Direction::Up, 16 * MIB);
    }
    let (from, to) = (down.host(), up.host());
    let mut running = program_with_timeouts(&from, &to, 9, "1s").spawn();
    let lose = async {
        for _ in 0..4 {
            let (read, written) = (source.bytes_sent(), target.bytes_received());
            source.wait_until(|source| source.bytes_sent() > read + 2 * MIB, RUN_TIMEOUT).await;
            down.cut_all();
            target.wait_until(|target| target.bytes_received() > written + 2 * MIB, RUN_TIMEOUT).await;
            up.cut_all();
        }
    };
    let output = tokio::select! {
        biased;
        output = running.wait() => output,
        () = lose => running.wait().await,
    };
    let output = output.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(retries(&output, "source") + retries(&output, "target") >= 2, "{}", output.stdout);
    assert_eq!(target.open_uploads(), 0);
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_another_one_continues() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("still", 12 * MIB);
    source.push("a", "1", &image);
    let relay = TcpProxy::start(&source.host()).await;
    relay.throttle(Direction::Down, 8 * MIB);
    let mut running = program_with_timeouts(&relay.host(), &target.host(), 3, "1s").spawn();
    source.wait_until(|source| source.bytes_sent() > 4 * MIB, RUN_TIMEOUT).await;
    relay.freeze(true);
    let before = relay.connections();
    source.wait_until(|_| relay.connections() > before, RUN_TIMEOUT).await;
    relay.freeze(false);
    let output = running.wait().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(retries(&output, "source") >= 1);
}

/// 5 s and 30 s, shortened to 1 s and more than 4.
#[tokio::test]
async fn a_token_that_lives_shorter_than_an_upload_does_not_fail_it() {
    for chunk in [None, Some("1MiB")] {
        let bearer = || Bearer::user("me", "secret").ttl(Duration::from_secs(1));
        let (source, target) = tokio::join!(
            FaultRegistry::builder().bearer(bearer()).start(),
            FaultRegistry::builder().bearer(bearer()).start()
        );
        let image = images::big("long-upload", 4 * MIB);
        source.push("a", "1", &image);
        for (registry, kind) in [(&target, RequestType::UploadPut), (&target, RequestType::UploadPatch)] {
            registry.on(kind).always().act(FaultAction::Throttle { bytes_per_second: MIB });
        }
        let sync = program(&source.host(), &target.host());
        sync.write_docker_config(&[(&source.host(), "me", "secret"), (&target.host(), "me", "secret")]);
        if let Some(chunk) = chunk {
            sync.file("imgsync.yaml", format!("registries: {{\"{}\": {{chunk: {chunk}}}}}\n", target.host()));
        }
        let output = sync.run().await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert!(output.elapsed >= Duration::from_secs(3), "the upload outlived its token");
        assert!(target.count(RequestType::Token) >= 2, "{}", target.describe_requests());
        let large = target.requests_of_kind(RequestType::UploadPut).iter().filter(|put| put.received > MIB).count();
        assert_eq!(large, usize::from(chunk.is_none()), "it was sent once: {}", target.describe_requests());
    }
}

#[tokio::test]
async fn http_1_alone_is_spoken_where_that_is_set() {
    let authority = Arc::new(Authority::new());
    let secure = || FaultRegistry::builder().tls(authority.clone()).start();
    let (source, target) = tokio::join!(secure(), secure());
    let image = images::multi_platform("http1");
    source.push("a", "1", &image);
    let sync = program(&source.host(), &target.host());
    let ca = sync.file("ca.pem", authority.pem());
    let entry = |host: String, more: &str| format!("  \"{host}\": {{tls: on, ca: {}{more}}}\n", ca.display());
    let (one, other) = (entry(source.host(), ", http1: true"), entry(target.host(), ""));
    sync.file("imgsync.yaml", format!("registries:\n{one}{other}"));
    sync.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(source.requests().iter().all(|request| !request.http2));
    assert!(target.requests().iter().all(|request| request.http2));
}
