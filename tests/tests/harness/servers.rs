//! Real servers accept, serve and unpack the harness's images.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::servers::{DockerRegistryAuth, DockerRegistryOptions};
use imgsync_tests::skopeo::Skopeo;
use imgsync_tests::{DockerEngine, DockerRegistry, RabbitMq};

#[tokio::test]
async fn skopeo_copies_from_the_fault_registry_to_a_real_one_and_back() {
    let (source, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let real = DockerRegistry::start(DockerRegistryAuth::htpasswd("amy", "pass word")).await;
    let image = images::multi_platform("there-and-back");
    source.push("library/app", "1.0", &image);
    let there = Skopeo::new().target_credentials("amy", "pass word");
    let middle = format!("{}/mirror/app:1.0", real.host());
    there.copy(&format!("{}/library/app:1.0", source.host()), &middle).await.unwrap();
    real.assert_holds("mirror/app", "1.0", &image).await;
    let back = Skopeo::new().source_credentials("amy", "pass word");
    back.copy(&middle, &format!("{}/back/app:1.0", target.host())).await.unwrap();
    target.assert_holds("back/app", "1.0", &image);
    assert_eq!(target.open_uploads(), 0);
    assert_eq!(source.count(RequestType::BlobGet), 6);
    assert!(source.bytes_sent() >= image.blob_bytes());
    assert!(target.bytes_received() >= image.blob_bytes());
}

#[tokio::test]
async fn signed_tokens_let_skopeo_into_a_real_registry() {
    let source = FaultRegistry::start().await;
    let real = DockerRegistry::start(DockerRegistryAuth::token("amy", "secret")).await;
    let image = images::single("signed");
    source.push("app", "1", &image);
    let target = format!("{}/app:1", real.host());
    let from = format!("{}/app:1", source.host());
    assert!(Skopeo::new().target_credentials("amy", "wrong").copy(&from, &target).await.is_err());
    Skopeo::new().target_credentials("amy", "secret").copy(&from, &target).await.unwrap();
    real.assert_holds("app", "1", &image).await;
    assert!(real.tokens().unwrap().requests().iter().any(|request| request.granted));
}

#[tokio::test]
async fn a_real_registry_deletes_restarts_and_is_gone_when_dropped() {
    let mut real =
        DockerRegistry::start_with(DockerRegistryOptions { delete: true, ..DockerRegistryOptions::default() }).await;
    let image = images::single("restart");
    real.push("app", "1", &image).await;
    real.kill();
    real.restart().await;
    real.assert_holds("app", "1", &image).await;
    real.delete_manifest("app", &image.root).await;
    assert_eq!(real.tag_digest("app", "1").await, None);
    let pid = real.pid();
    drop(real);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn docker_engine_pulls_and_unpacks_an_image() {
    if let Err(reason) = DockerEngine::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let engine = DockerEngine::start().await.unwrap();
    let registry = FaultRegistry::start().await;
    let image = images::single_docker("engine");
    registry.push("app", "1", &image);
    let reference = format!("{}/app:1", registry.host());
    engine.pull(&reference).await.unwrap();
    assert_eq!(engine.image_id(&reference).await.unwrap(), image.config());
}

#[tokio::test]
async fn skopeo_unpacks_what_is_real() {
    let registry = FaultRegistry::start().await;
    let image = TestImage::single("unpack").layer(Layer::File(100_000)).build();
    registry.push("app", "1", &image);
    let folder = tempfile::tempdir().unwrap();
    Skopeo::new().copy_to_dir(&format!("{}/app:1", registry.host()), folder.path()).await.unwrap();
    assert!(folder.path().join("manifest.json").exists());
    let inspected = Skopeo::new().inspect(&format!("{}/app:1", registry.host())).await.unwrap();
    assert_eq!(inspected["Architecture"], "amd64");
}

/// Prints the URL of a virtual host, for the test below.
#[test]
#[ignore = "the test below runs it"]
fn print_the_url_of_a_virtual_host() {
    println!("url: {}", RabbitMq::shared().url());
}

#[test]
fn tests_of_a_run_share_a_broker_that_ends_with_their_runner_even_if_that_is_killed() {
    let run = format!("harness-{}", std::process::id());
    let program = std::env::current_exe().expect("a test has a path");
    let test = "\"$0\" --exact servers::print_the_url_of_a_virtual_host --ignored --nocapture";
    let mut runner = Command::new("sh")
        .args(["-c", &format!("{test} & {test}; wait; echo done; exec sleep 60")])
        .arg(program)
        .env("NEXTEST_RUN_ID", &run)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let output = BufReader::new(runner.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let lines: Vec<String> = output.take_while(|line| line != "done").collect();
    let urls: BTreeSet<&str> = lines.iter().filter_map(|line| Some(line.split_once("url: ")?.1)).collect();
    let servers: BTreeSet<&str> = urls.iter().filter_map(|url| Some(url.rsplit_once('/')?.0)).collect();
    assert_eq!((urls.len(), servers.len()), (2, 1), "{lines:?}");

    let folder = std::env::temp_dir().join(format!("imgsync-tests-{run}"));
    let address = servers.first().and_then(|url| Some(url.rsplit_once('@')?.1.to_owned())).expect("an address");
    assert!(folder.exists() && TcpStream::connect(&address).is_ok(), "it outlives the tests");
    runner.kill().and_then(|()| runner.wait()).expect("it was running");
    let limit = Instant::now() + Duration::from_secs(60);
    while folder.exists() || TcpStream::connect(&address).is_ok() {
        assert!(Instant::now() < limit, "it outlives the runner");
        std::thread::sleep(Duration::from_millis(100));
    }
}
