//! Credential helpers that are configured and broken.

use imgsync_tests::fault::{Bearer, FaultRegistry};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

/// A program whose helper for all registries fails, and leaves a line each time that it is asked.
fn with_a_broken_helper(from: &str, to: &str) -> (Imgsync, std::path::PathBuf) {
    let sync = Imgsync::new().args(["sync", from, to, "--json", "--attempts", "1"]);
    let asked = sync.work().join("asked");
    let script = format!("#!/bin/sh\ncat >/dev/null\necho x >> '{}'\necho broken; exit 1\n", asked.display());
    let helper = sync.file("docker-credential-broken", script);
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sync.write_docker_json(&serde_json::json!({"credsStore": "broken"}));
    let path = format!("{}:/usr/bin:/bin", sync.work().display());
    (sync.env("PATH", path), asked)
}

#[tokio::test]
async fn a_broken_helper_is_asked_once_and_warned_of_once() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let target = FaultRegistry::start().await;
    let image = images::multi_platform("helper");
    source.push("a", "1", &image);
    let (sync, asked) = with_a_broken_helper(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host()));
    let output = sync.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(output.stderr.matches("docker-credential-broken").count(), 1, "{}", output.stderr);
    assert_eq!(std::fs::read_to_string(asked).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn a_target_that_wants_a_login_fails_with_what_the_helper_said() {
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start().await;
    source.push("a", "1", &images::single("helper-push"));
    let (sync, asked) = with_a_broken_helper(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host()));
    let output = sync.run().await.assert_code(1);
    assert_eq!(output.json()["class"], "local", "{output:?}");
    assert!(output.stderr.contains("docker-credential-broken"), "{}", output.stderr);
    assert_eq!(std::fs::read_to_string(asked).unwrap().lines().count(), 1);
}
