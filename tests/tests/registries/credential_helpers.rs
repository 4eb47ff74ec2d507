//! Credential helpers that are broken, slow, or start other processes.

use std::path::PathBuf;
use std::time::Duration;

use imgsync_tests::fault::{Bearer, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Signal};

/// Configures a helper for all registries. The file `asked` gets a line for each call of the helper.
fn with_helper(program: Imgsync, script: &str) -> (Imgsync, PathBuf) {
    let asked = program.work_dir().join("asked");
    let script = format!("#!/bin/sh\ncat >/dev/null\necho x >> '{}'\n{script}\n", asked.display());
    let helper = program.file("docker-credential-broken", script);
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program.write_docker_json(&serde_json::json!({"credsStore": "broken"}));
    let path = format!("{}:/usr/bin:/bin", program.work_dir().display());
    (program.env("PATH", path), asked)
}

fn with_a_broken_helper(from: &str, to: &str) -> (Imgsync, PathBuf) {
    let sync = Imgsync::new().args(["sync", from, to, "--json", "--attempts", "1"]);
    with_helper(sync, "echo broken; exit 1")
}

#[tokio::test]
async fn a_broken_helper_is_asked_once_and_fails_the_copy_also_where_anonymous_pulls_work() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::multi_platform("helper"));
    let (sync, asked) = with_a_broken_helper(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host()));
    let output = sync.run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "local", "{output:?}");
    assert!(
        output.stderr.contains("docker-credential-broken") && output.stderr.contains("broken"),
        "{}",
        output.stderr
    );
    assert!(target.tags("b").is_empty());
    assert_eq!(std::fs::read_to_string(asked).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn a_helper_that_has_no_credentials_leaves_the_registry_anonymous() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let target = FaultRegistry::start().await;
    let image = images::single("not-found");
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let script = "echo 'credentials not found in native keychain'; exit 1";
    let (sync, _) = with_helper(Imgsync::new().args(["sync", &from, &to]), script);
    let output = sync.run().await.assert_code(0);
    assert!(!output.stderr.contains("docker-credential"), "{}", output.stderr);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_broken_helper_makes_its_registry_unlisted_and_the_others_go_on() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let (open, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("listed");
    source.push("a", "1", &image);
    open.push("o", "1", &image);
    let (program, _) = with_helper(Imgsync::new(), "exit 7");
    let rule = |host: &str, path: &str| format!("- {{from: {host}/{path}, to: {}/m, naming: keep}}\n", target.host());
    let rules = rule(&source.host(), "a") + &rule(&source.host(), "**") + &rule(&open.host(), "o");
    program.file("imgsync.yaml", format!("rules:\n{rules}"));
    let output = program.again().args(["run", "--json", "--attempts", "1"]).run().await.assert_code(1);
    let json = output.json();
    assert_eq!(json["counts"]["copied"], 1, "{output:?}");
    assert_eq!(json["unlisted"].as_array().map(Vec::len), Some(2), "{output:?}");
    target.assert_holds("m/o", "1", &image);
    assert!(target.tags("m/a").is_empty());
    let output = program.again().args(["tags", &format!("{}/a", source.host())]).run().await.assert_code(1);
    assert!(output.stderr.contains("docker-credential-broken"), "{}", output.stderr);
    assert_eq!(source.count(RequestType::Token), 0, "{}", source.describe_requests());
}

#[tokio::test]
async fn ctrl_c_ends_a_helper_and_what_it_has_started() {
    let source = FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("helper-child"));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to]);
    let pids = sync.work_dir().join("pids");
    let script = format!("sleep 600 & echo \"$$ $!\" > '{0}.part'; mv '{0}.part' '{0}'; wait", pids.display());
    let (sync, _) = with_helper(sync, &script);
    let mut running = sync.spawn();
    let written = async {
        loop {
            match std::fs::read_to_string(&pids) {
                Ok(text) => break text,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let written = tokio::time::timeout(Duration::from_secs(30), written).await.unwrap();
    running.signal(Signal::INT);
    running.wait().await.assert_code(4);
    for pid in written.split_whitespace() {
        let gone = async {
            while is_running(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap_or_else(|_| panic!("{pid} runs still"));
    }
}

fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn a_target_that_wants_a_login_fails_with_what_the_helper_said() {
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start().await;
    source.push("a", "1", &images::single("helper-push"));
    let (sync, asked) = with_a_broken_helper(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host()));
    let output = sync.run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "local", "{output:?}");
    assert!(output.stderr.contains("docker-credential-broken"), "{}", output.stderr);
    assert_eq!(std::fs::read_to_string(asked).unwrap().lines().count(), 1);
}
