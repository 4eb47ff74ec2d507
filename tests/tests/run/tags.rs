//! `imgsync tags`: output for scripts and for people.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestType};
use serde_json::{Value, json};

use super::{lines, put_tags, tags, tags_command};

const VERSIONS: [&str; 8] = ["1.9.0", "1.10.0", "1.10.0-alpine", "1.11.0-rc1", "2.0.0", "latest", "nightly", "v0.1"];

async fn registry() -> FaultRegistry {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/app", VERSIONS);
    registry
}

#[tokio::test]
async fn flags_mean_what_the_keys_of_a_rule_mean() {
    let registry = registry().await;
    for (flags, expected) in [
        (vec![], vec!["latest", "nightly", "v0.1", "1.9.0", "1.10.0-alpine", "1.10.0", "1.11.0-rc1", "2.0.0"]),
        (
            vec!["--include", "1.*", "--include", "latest"],
            vec!["latest", "1.9.0", "1.10.0-alpine", "1.10.0", "1.11.0-rc1"],
        ),
        (vec!["--include", "1.*", "--exclude", "*-rc*"], vec!["1.9.0", "1.10.0-alpine", "1.10.0"]),
        (vec!["--include", r"/\d+\.\d+\.\d+/"], vec!["1.9.0", "1.10.0", "2.0.0"]),
        (vec!["--semver", ">=1.10, <2", "--exclude", "*-*"], vec!["1.10.0"]),
        (vec!["--exclude", "*-*", "--newest", "2"], vec!["1.10.0", "2.0.0"]),
        (vec!["--include", "nothing"], vec![]),
    ] {
        let output = tags(&registry, "a/app", &flags).await.assert_code(0);
        let mut found = lines(&output);
        // The order of variants of one version is not tested here.
        let mut expected = expected;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{flags:?}");
    }
}

#[tokio::test]
async fn what_was_dropped_is_named_with_its_reason_on_stderr() {
    let registry = registry().await;
    let output = tags(&registry, "a/app", &["--semver", ">=1.10", "--exclude", "*-rc*"]).await.assert_code(0);
    for line in [
        "a/app:latest: not a version",
        "a/app:1.9.0: 1.9.0 is not >=1.10",
        "a/app:1.11.0-rc1: excluded by *-rc*",
        "3 of 8 tags in 1 repository",
    ] {
        assert!(output.stderr.contains(line), "{line}\n{}", output.stderr);
    }
    let quiet = tags(&registry, "a/app", &["--semver", ">=1.10", "-q"]).await.assert_code(0);
    assert_eq!(quiet.stderr, "");
}

#[tokio::test]
async fn an_include_that_is_a_part_of_tags_hints_at_the_glob() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/app", ["1-alpine", "2-alpine"]);
    let hint = "hint: a pattern matches the whole tag: --include '*alpine*'";
    let output = tags(&registry, "a/app", &["--include", "alpine"]).await.assert_code(0);
    assert!(output.stderr.contains(hint), "{}", output.stderr);
    for include in ["*alpine*", "1-alpine", "*slim"] {
        let output = tags(&registry, "a/app", &["--include", include]).await.assert_code(0);
        assert!(!output.stderr.contains("hint:"), "{include}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_mistyped_repository_hints_at_its_name_or_at_a_pattern() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/app", ["1"]);
    let output = tags(&registry, "a/ap", &[]).await.assert_code(1);
    for part in ["NAME_UNKNOWN", "hint: check the repository's name"] {
        assert!(output.stderr.contains(part), "{part}: {}", output.stderr);
    }
    let output = tags(&registry, "a/", &[]).await.assert_code(2);
    let hint = format!("write `{}/a/**` for everything below", registry.host());
    assert!(output.stderr.contains(&hint), "{}", output.stderr);
    let program = super::end_to_end::configured(&format!("rules:\n- {{from: {0}/a/, to: {0}/m}}\n", registry.host()));
    let output = program.args(["config", "check"]).run().await.assert_code(2);
    assert!(output.stderr.contains(&hint), "{}", output.stderr);
}

#[tokio::test]
async fn many_dropped_tags_are_counted_by_reason_and_named_on_demand() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/app", (0..100).map(|number| format!("1.{number}")));
    put_tags(&registry, "a/app", (0..50).map(|number| format!("edge-{number}")));
    let flags = ["--exclude", "edge-*", "--newest", "10"];
    let output = tags(&registry, "a/app", &flags).await.assert_code(0);
    let words = "dropped 140 tags (--debug lists them): 50 excluded by edge-*; 90 not among the newest 10";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    assert_eq!((output.stderr.lines().count(), lines(&output).len()), (2, 10), "{}", output.stderr);
    let output = tags(&registry, "a/app", &[&flags[..], &["--debug"]].concat()).await.assert_code(0);
    assert_eq!(output.stderr.lines().filter(|line| line.starts_with("dropped ")).count(), 140);
}

#[tokio::test]
async fn tags_that_are_none_by_the_specification_are_dropped_and_cannot_touch_the_terminal() {
    let registry = FaultRegistry::start().await;
    let odd = ["-dash", "with space", "\u{1b}[31mred", &"x".repeat(129), "", "fine"];
    registry.on(RequestType::Tags).act(FaultAction::json(&json!({"name": "a/app", "tags": odd})));
    let output = tags(&registry, "a/app", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["fine"]);
    assert_eq!(output.stderr.matches(": not a valid tag").count(), 5, "{}", output.stderr);
    assert!(!output.stderr.contains('\u{1b}'));
}

#[tokio::test]
async fn json_has_a_line_for_each_tag_and_null_for_what_is_not_listed() {
    let registry = registry().await;
    let output = tags(&registry, "a/*", &["--json", "--include", "1.9*", "--include", "latest"]).await.assert_code(0);
    let parsed: Vec<Value> = lines(&output).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |tag: &str| json!({"registry": registry.host(), "repository": "a/app", "tag": tag, "digest": null, "created": null, "media_type": null});
    assert_eq!(parsed, [line("latest"), line("1.9.0")]);
}

#[tokio::test]
async fn dates_that_are_not_listed_are_said_to_be_missing() {
    let registry = registry().await;
    let output = tags(&registry, "a/app", &["--since", "90d"]).await.assert_code(0);
    assert!(output.stdout.is_empty() && output.stderr.contains("no creation date"), "{}", output.stderr);
    assert_eq!(registry.total(), 1);
}

#[tokio::test]
async fn wrong_usage_is_exit_2_before_anything_is_asked() {
    let registry = registry().await;
    for flags in [
        vec!["--newest", "0"],
        vec!["--include", "[a"],
        vec!["--semver", "nonsense"],
        vec!["--since", "yesterday"],
        vec!["--newest-by", "date"],
        vec!["--include", "1.*", "--exclude", "*"],
    ] {
        let output = tags(&registry, "a/app", &flags).await.assert_code(2);
        assert!(output.stderr.contains("error:"), "{flags:?}: {}", output.stderr);
    }
    let output = tags(&registry, "a/app:1.*", &[]).await.assert_code(2);
    assert!(output.stderr.contains("has no tag"), "{}", output.stderr);
    assert_eq!(registry.total(), 0);
}

#[tokio::test]
async fn registries_and_credentials_come_from_the_configuration() {
    let registry = FaultRegistry::builder().basic("me", "secret").start().await;
    put_tags(&registry, "a/app", ["1"]);
    let program = tags_command("gcr.example.com/a/app", &["-c", "other.yaml"]);
    program.file(
        "other.yaml",
        format!(
            "registries: {{gcr.example.com: {{endpoint: '{}', username: me, password: '${{PW}}'}}}}\n",
            registry.url()
        ),
    );
    assert_eq!(lines(&program.env("PW", "secret").run().await.assert_code(0)), ["1"]);
}
