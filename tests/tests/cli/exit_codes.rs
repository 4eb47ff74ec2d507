//! Exit codes for connections that fail, of `sync` and of dry runs, and sources of the password.

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use tokio::net::{TcpSocket, TcpStream};

fn sync(source: &FaultRegistry, target: &FaultRegistry, more: &[&str]) -> Imgsync {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let common_args = ["--json", "--attempts", "2", "--retry-delay", "1ms"];
    Imgsync::new().args(["sync", &from, &to]).args(common_args).args(more)
}

async fn both() -> (FaultRegistry, FaultRegistry) {
    tokio::join!(FaultRegistry::start(), FaultRegistry::start())
}

#[tokio::test]
async fn a_connection_lost_for_good_during_a_copy_is_a_failed_image() {
    let (source, target) = both().await;
    source.push("a", "1", &images::big("breaks", 4 << 20));
    // The first bytes arrive, and nothing after that.
    source.on(RequestType::BlobGet).skip(1).act(FaultAction::CutAfter { bytes: 1 << 20 });
    source.on(RequestType::BlobGet).skip(1).always().act(FaultAction::CutBefore);
    let output = sync(&source, &target, &["--concurrency", "1"]).run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "unreachable", "{output:?}");
}

#[tokio::test]
async fn a_connection_lost_before_anything_is_copied_means_that_it_could_not_start() {
    let (source, target) = both().await;
    source.push("a", "1", &images::single("never-starts"));
    source.on(RequestType::ManifestGet).always().act(FaultAction::CutBefore);
    sync(&source, &target, &[]).run().await.assert_code(3);
}

#[tokio::test]
async fn a_host_that_lets_no_connection_come_about_is_out_of_reach() {
    let target = FaultRegistry::start().await;
    // A listener with a full backlog drops connection attempts, like a firewall.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let silent = socket.listen(1).unwrap();
    let address = silent.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queue.push(stream);
    }
    let (from, to) = (format!("{address}/a:1"), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--attempts", "1"]);
    let output = sync.args(["--stall-timeout", "2s"]).limit(Duration::from_secs(30)).run().await.assert_code(3);
    assert_eq!(output.json()["kind"], "unreachable", "{output:?}");
    assert!(output.stderr.contains("hint:"), "{}", output.stderr);
}

#[tokio::test]
async fn a_cluster_without_a_key_is_warned_of_once_by_every_program() {
    let config = "rules:\n- {from: registry.invalid/a, to: target.invalid/m}\n";
    let address = ["--broker", "amqp://broker.invalid", "--store", "redis://store.invalid"];
    let programs = || {
        let coordinator = |args: &[&str]| Imgsync::new().args(args).args(address);
        [
            coordinator(&["run"]),
            coordinator(&["serve", "--listen", "127.0.0.1:0"]),
            Imgsync::worker().args(address).args(["--wait", "1s"]),
        ]
    };
    for program in programs() {
        program.file("imgsync.yaml", config);
        let output = program.run().await.assert_code(3);
        let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert_eq!(warnings.len(), 1, "{}", output.stderr);
        assert!(warnings[0].contains("has no key") && warnings[0].contains("openssl rand -hex 32"), "{warnings:?}");
    }
    for program in programs() {
        program.file("imgsync.yaml", config);
        let output = program.env("IMGSYNC_KEY", "0123456789abcdef").run().await.assert_code(3);
        assert!(!output.stderr.contains("warning"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_dry_run_that_lists_nothing_ends_with_an_error_and_its_hint() {
    let (source, target) = both().await;
    let dry = |from: &str| {
        let program = Imgsync::new();
        program.file("imgsync.yaml", format!("rules:\n  - {{from: {from}, to: {}/m, naming: keep}}\n", target.host()));
        program.args(["run", "--dry-run", "--attempts", "1", "-q"])
    };
    let output = dry("127.0.0.1:1/a").run().await.assert_code(3);
    let error = "error: the dry run is incomplete: 1 not listed\nhint: check the host, its port";
    assert!(output.stderr.contains(error), "{}", output.stderr);
    // Tags that can be listed, and a manifest that cannot be read.
    source.push("a", "1", &images::single("planned"));
    source.on(RequestType::ManifestHead).always().act(FaultAction::error(403, "DENIED"));
    source.on(RequestType::ManifestGet).always().act(FaultAction::error(403, "DENIED"));
    let output = dry(&format!("{}/a", source.host())).run().await.assert_code(1);
    let error = "error: the dry run is incomplete: 1 failing\nhint: ";
    assert!(output.stderr.contains(error), "{}", output.stderr);
    source.clear_rules();
    let output = dry(&format!("{}/a", source.host())).run().await.assert_code(0);
    assert!(!output.stderr.contains("error:"), "{}", output.stderr);
}

async fn with_password(more: &[&str]) -> Output {
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().basic("me", "s3cret").start().await;
    source.push("a", "1", &images::single("password"));
    sync(&source, &target, more).env("IMGSYNC_PASSWORD", "s3cret").run().await
}

#[tokio::test]
async fn the_variable_for_the_password_is_used_with_a_user_alone() {
    with_password(&["--user", "me"]).await.assert_code(0);
    with_password(&["--user", "me", "--password", "wrong"]).await.assert_code(1);
    // A variable that is set does not affect an explicit password.
    let (source, target) = both().await;
    source.push("a", "1", &images::single("no-user"));
    sync(&source, &target, &[]).env("IMGSYNC_PASSWORD", "s3cret").run().await.assert_code(0);
    let stdin = ["--user", "me", "--password-stdin"];
    sync(&source, &target, &stdin).env("IMGSYNC_PASSWORD", "x").stdin("y").run().await.assert_code(0);
    assert_eq!(with_password(&["--password", "s3cret"]).await.assert_code(2).stdout, "");
}
