//! Two machines without a network between them, played by two network namespaces.

use std::path::PathBuf;
use std::process::Command;

use imgsync_tests::images;
use imgsync_tests::namespace;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

use super::{bundle, create, load, rules};

const TEST: &str = "bundles::gap::a_program_an_inventory_and_a_bundle_cross_the_gap";
/// Set for the far side: the folder that is carried.
const MEDIUM: &str = "IMGSYNC_TESTS_MEDIUM";
/// The address of the near registry.
const NEAR: &str = "IMGSYNC_TESTS_NEAR";

#[tokio::test]
async fn a_program_an_inventory_and_a_bundle_cross_the_gap() {
    if !namespace::enter(TEST, &[]) {
        return;
    }
    match std::env::var_os(MEDIUM) {
        Some(medium) => far_side(medium.into()).await,
        None => near_side().await,
    }
}

async fn near_side() {
    let source = DockerRegistry::start(DockerRegistryAuth::None).await;
    source.push("team/app", "1.0", &images::multi_platform("gap-app")).await;
    let near = rules(&source.host(), &["team/app"]);
    let program = near.path().to_str().unwrap().to_owned();
    create(&near, "medium/", &["--part-size", "1MB", "--with-program", &program]).await.assert_code(0);
    let me = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-n", "-m", "--kill-child"])
        .arg(me)
        .args(["--exact", TEST, "--nocapture"])
        .env(MEDIUM, near.work_dir().join("medium"))
        .env(NEAR, source.host())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

async fn far_side(medium: PathBuf) {
    let near = std::env::var(NEAR).unwrap();
    let answer = std::net::TcpStream::connect(near.replace("localhost", "127.0.0.1"));
    assert!(answer.is_err(), "there is a route to the other side");
    let target = DockerRegistry::start(DockerRegistryAuth::None).await;
    // The program that was carried.
    let far = Imgsync::at(medium.join("imgsync"));
    let to = format!("{}/mirror", target.host());
    bundle(&far, &["verify", medium.to_str().unwrap()]).await.assert_code(0);
    load(&far, &medium, &to, &[]).await.assert_code(0);
    target.assert_holds("mirror/team/app", "1.0", &images::multi_platform("gap-app")).await;
    bundle(&far, &["inventory", &to, "--out", medium.join("inventory").to_str().unwrap()]).await.assert_code(0);
}
