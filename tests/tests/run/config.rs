//! `imgsync config`: validation, and the effective configuration.

use imgsync_tests::program::Imgsync;
use serde_json::Value;

const GOOD: &str = "registries:
  docker.io: {username: me, password: \"${HUB_TOKEN}\"}
  gcr.io: {endpoint: 'http://127.0.0.1:5001'}
cluster: {broker: 'amqp://me:sw0rdfish@rabbit:5672', store: 'redis://redis:6379', key: '${HUB_TOKEN}'}
rules:
  - from: gcr.io/istio-release/**
    tags: {include: ['1.*'], semver: '>=1.20', newest: 10}
  - preset: distroless
";

fn config(action: &str, text: &str) -> Imgsync {
    let program = Imgsync::new().args(["config", action]).env("HUB_TOKEN", "hunter2-hunter2-hunter2");
    program.file("imgsync.yaml", text);
    program
}

#[tokio::test]
async fn a_good_configuration_is_said_to_be_fine_with_what_is_in_it() {
    let output = config("check", GOOD).run().await.assert_code(0);
    let words = "imgsync.yaml is valid: 2 rules (1 preset), 2 registries (docker.io, gcr.io), a cluster";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    assert_eq!(output.stdout, "");
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once_with_its_place() {
    let text = "rules:\n  - from: gcr.io/a/**\n    too: docker.io/me\n    tags: {newest: 0}\n    to: docker.io/me\n";
    let program = config("check", text);
    program.file("other.yaml", text);
    let output = program.again().args(["config", "check", "-c", "other.yaml"]).run().await.assert_code(2);
    assert_eq!(output.stderr.matches("error:").count(), 2, "{}", output.stderr);
    assert!(output.stderr.contains("--> other.yaml:3:5"), "{}", output.stderr);
    assert!(output.stderr.contains("    ^^^") && output.stderr.contains("--> other.yaml:4:"), "{}", output.stderr);
}

#[tokio::test]
async fn files_that_are_named_and_keys_that_are_short_are_found_wrong_before_a_run() {
    let text = "registries: {gcr.io: {ca: missing.pem}}
notify: {webhook: {url: 'https://example.com/', template: bad.txt}}
report: {file: report.html, template: gone.html}
cluster: {broker: 'amqp://rabbit', store: 'redis://redis', key: short}
rules: [{from: gcr.io/a/b, to: docker.io/me}]
";
    let program = config("check", text);
    program.file("bad.txt", "{{ counts.total|upperlower }}");
    let output = program.run().await.assert_code(2);
    let errors: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    let about = ["missing.pem", "fewer than 16 characters", "bad.txt", "gone.html"];
    assert_eq!(errors.len(), about.len(), "{}", output.stderr);
    assert!(errors.iter().zip(about).all(|(error, about)| error.contains(about)), "{}", output.stderr);
}

#[tokio::test]
async fn rules_that_must_collide_are_refused() {
    let text = "rules:\n  - {from: gcr.io/a/x, naming: basename, to: docker.io/me}\n  - {from: gcr.io/b/x, naming: basename, to: docker.io/me}\n";
    let output = config("check", text).run().await.assert_code(2);
    assert!(output.stderr.contains("docker.io/me/x is also written by the rule in line 2"), "{}", output.stderr);
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_check() {
    for action in ["check", "show"] {
        let output = Imgsync::new().args(["config", action]).run().await.assert_code(2);
        assert!(output.stderr.contains("there is no imgsync.yaml in this folder"), "{}", output.stderr);
        let output = Imgsync::new().args(["config", action, "-c", "missing.yaml"]).run().await.assert_code(2);
        assert!(output.stderr.contains("missing.yaml"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn what_is_shown_holds_no_secret_and_can_be_read_again() {
    let program = config("show", GOOD);
    let output = program.run().await.assert_code(0);
    assert!(output.stdout.contains("password: \"***\"") && output.stdout.contains("newest: 10"), "{}", output.stdout);
    for secret in ["hunter2", "sw0rdfish"] {
        assert!(!output.stdout.contains(secret) && !output.stderr.contains(secret), "{}", output.stdout);
    }
    program.file("imgsync.yaml", &output.stdout);
    let again = program.again().args(["config", "show"]).run().await.assert_code(0);
    assert_eq!(again.stdout, output.stdout);
}

#[tokio::test]
async fn the_schema_is_the_one_in_the_repository() {
    let output = Imgsync::new().args(["config", "schema"]).run().await.assert_code(0);
    let kept = include_str!("../../../common/config/schema/imgsync.schema.json");
    assert_eq!(output.json(), serde_json::from_str::<Value>(kept).unwrap());
}
