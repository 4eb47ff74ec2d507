//! Rules that select nothing, and excluded repositories.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images;
use serde_json::{Value, json};

use super::end_to_end::{configured, run};
use super::put_tags;

/// Returns the rules that selected nothing, with the reason.
fn empty(json: &Value) -> Vec<(u64, String)> {
    let rules = json["empty_rules"].as_array().into_iter().flatten();
    rules.map(|rule| (rule["rule"].as_u64().unwrap(), rule["reason"].as_str().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn a_rule_that_selects_nothing_is_a_warning_with_counts_in_every_report() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    put_tags(&source, "team/words", ["edge", "nightly", "main-1a2b3c4"]);
    put_tags(&source, "team/numbers", ["30517284", "7654321-slim", "9be1c2d4"]);
    put_tags(&source, "team/dates", ["20250301", "2025-03-01", "1.9"]);
    source.push("team/app", "1.0", &images::single("choosing"));
    source.create_repository("team/bare");
    let host = source.host();
    let program = configured(&format!(
        "defaults: {{to: {}/m}}\nrules:\n\
         - {{from: {host}/team/words, tags: {{include: [\"v*\"], exclude: [\"*ly\"]}}}}\n\
         - {{from: {host}/team/numbers, tags: {{newest: 3}}}}\n\
         - {{from: {host}/team/dates, tags: {{semver: \">=16\"}}}}\n\
         - {{from: {host}/team/app}}\n\
         - {{from: {host}/team/bare}}\n",
        target.host()
    ));
    let output = run(&program, &[]).await.assert_code(0);
    let json = output.json();
    let expected = [
        (0, "none of 3 tags is selected: 1 excluded by *ly, 2 not matched by any include"),
        (1, "none of 3 tags is selected: 3 not a version"),
        (2, "none of 3 tags is selected: 3 not >=16"),
        (4, "1 repository has no tags"),
    ];
    assert_eq!(empty(&json), expected.map(|(rule, reason)| (rule, reason.to_owned())), "{json}");
    assert_eq!((&json["counts"]["total"], &json["empty_rules"][1]["tags"]), (&json!(1), &json!(3)));
    for (_, reason) in expected {
        assert!(output.stderr.contains(&format!("selects no tag: {reason}")), "{}", output.stderr);
    }
    let id = json["batch"].as_str().unwrap().to_owned();
    let text = program.again().args(["batch", "report", &id]).run().await.assert_code(0);
    assert!(text.stdout.contains("Skipped: 4 rules (selected no tag)"), "{}", text.stdout);
    assert!(text.stdout.contains(expected[1].1), "{}", text.stdout);
    for (form, title) in [("md", "## Rules that selected no tag"), ("html", "<h2>Rules that selected no tag")] {
        let args = ["batch", "report", &id, "--report-format", form];
        let written = program.again().args(args).run().await.assert_code(0).stdout;
        assert!(written.contains(title) && written.contains("3 not a version"), "{written}");
    }
    let dry = program.again().args(["run", "--dry-run"]).run().await.assert_code(0);
    assert!(dry.stderr.contains("none of 3 tags is selected: 3 not a version"), "{}", dry.stderr);
}

#[tokio::test]
async fn with_min_a_rule_that_selects_nothing_is_an_error_with_the_counts() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    put_tags(&source, "team/app", ["88112233", "edge", "1.9-rc1"]);
    let program = configured(&format!(
        "rules:\n- {{from: {}/team/app, to: {}/m, tags: {{exclude: [\"*-rc*\"], newest: 2, min: 1}}}}\n",
        source.host(),
        target.host()
    ));
    let json = run(&program, &[]).await.assert_code(1).json();
    let error = json["unlisted"][0]["error"].as_str().unwrap();
    assert!(
        error.contains("0 of 3 tags are selected, and `min` is 1 (1 excluded by *-rc*, 2 not a version)"),
        "{error}"
    );
    assert_eq!(empty(&json), []);
}

#[tokio::test]
async fn a_creation_time_that_all_images_have_is_no_date() {
    let (source, target) = tokio::join!(FaultRegistry::builder().google().start(), FaultRegistry::start());
    let program = |tags: &str| {
        configured(&format!(
            "rules:\n- {{from: {}/team/app, to: {}/m, tags: {{{tags}}}}}\n",
            source.host(),
            target.host()
        ))
    };
    // 1980 and a day of 2024, in milliseconds; neither is a creation time of an image.
    for milliseconds in [315_532_801_000, 1_717_200_000_000] {
        for tag in ["a", "b", "c"] {
            let image = images::single(&format!("constant-{tag}"));
            source.push("team/app", tag, &image);
            source.set_uploaded("team/app", &image.root, milliseconds);
        }
        for tags in ["since: 2025-01-01", "since: 1979-01-01", "newest: {count: 1, by: date}"] {
            let json = run(&program(tags), &[]).await.assert_code(1).json();
            let error = json["unlisted"][0]["error"].as_str().unwrap_or_default();
            assert!(error.contains("its list has none"), "{tags}: {json}");
        }
    }
    // Real dates differ; a `since` after all of them is a warning.
    for (day, tag) in ["a", "b", "c"].iter().enumerate() {
        let image = images::single(&format!("constant-{tag}"));
        source.set_uploaded("team/app", &image.root, 1_717_200_000_000 + 86_400_000 * day as u64);
    }
    let json = run(&program("since: 2025-01-01"), &[]).await.assert_code(0).json();
    assert_eq!(empty(&json), [(0, "none of 3 tags is selected: 3 older than 2025-01-01".to_owned())]);
    let json = run(&program("newest: {count: 1, by: date}"), &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], target.tags_in_all()), (&json!(1), 1), "{json}");
}

#[tokio::test]
async fn an_excluded_repository_is_not_unlisted_and_keeps_nothing_from_being_removed() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for (repository, tag) in [("team/app", "1"), ("team/app", "2"), ("team/half", "1"), ("team/old/a", "1")] {
        source.push(repository, tag, &images::single(&format!("exclude-{repository}-{tag}")));
    }
    let yaml = |from: &str| {
        format!(
            "rules:\n- from: {from}\n  to: {}/m\n  naming: keep\n  prune: {{keep_days: 0, limit: 50%}}\n",
            target.host()
        )
    };
    let host = source.host();
    let all = configured(&yaml(&format!("{host}/team/**")));
    run(&all, &[]).await.assert_code(0);
    assert_eq!(target.tags_in_all(), 4);

    // One partially pushed repository blocks all pruning.
    source
        .on(RequestMatcher::kind(RequestType::Tags).repository("team/half"))
        .always()
        .act(FaultAction::error(404, "NAME_UNKNOWN"));
    source.delete_tag("team/app", "2");
    let json = run(&all, &[]).await.assert_code(1).json();
    assert_eq!(json["pruned"][0]["outcome"], "refused", "{json}");
    source.clear_requests();

    all.file(
        "imgsync.yaml",
        yaml(&format!("{{repositories: \"{host}/team/**\", exclude: [\"{host}/team/half\", \"team/old/**\"]}}")),
    );
    let json = run(&all, &[]).await.assert_code(0).json();
    assert_eq!(json["unlisted"], json!([]));
    assert_eq!((json["pruned"][0]["outcome"].as_str(), json["counts"]["total"].as_u64()), (Some("removed"), Some(1)));
    // Earlier copies stay, and are never requested.
    assert_eq!(target.tags("m/team/half"), ["1"]);
    assert_eq!(target.tags("m/team/old/a"), ["1"]);
    let about = |name: &str| source.requests().iter().any(|request| request.repository.as_deref() == Some(name));
    assert!(about("team/app") && !about("team/half") && !about("team/old/a"), "{}", source.describe_requests());

    let shown = all.again().args(["config", "show"]).run().await.assert_code(0);
    assert!(shown.stdout.contains(&format!("exclude: [{host}/team/half, {host}/team/old/**]")), "{}", shown.stdout);
    for (from, words) in [
        (
            format!("{{repositories: {host}/team/app, exclude: team/app}}"),
            "`exclude` needs a pattern that matches several repositories",
        ),
        (format!("{{repositories: \"{host}/team/**\", exclude: other/x}}"), "there is nothing to exclude"),
        (format!("{{repositories: \"{host}/team/**\", exclude: \"team/**\"}}"), "this excludes all of"),
        ("{exclude: [a]}".to_owned(), "`repositories` is missing"),
    ] {
        all.file("imgsync.yaml", yaml(&from));
        let output = all.again().args(["config", "check"]).run().await.assert_code(2);
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_plus_in_a_tag_is_said_to_be_written_otherwise() {
    let registry = FaultRegistry::start().await;
    let program = configured("registries: {r.example.com: {tls: off}}\n");
    let host = registry.host();
    let to = format!("{host}/b:1");
    for (args, words) in [
        (vec!["sync", "r.example.com/chart:2.7.0+up1.3.1", &to], "tags cannot contain `+`; Helm writes 2.7.0_up1.3.1"),
        (
            vec!["tags", "r.example.com/chart", "--semver", ">=2.7.0+up1"],
            "tags cannot contain `+`: Helm writes 2.7.0_up1",
        ),
        (vec!["tags", "r.example.com/chart", "--include", "2.7.0+up*"], "Helm writes 2.7.0_up*"),
    ] {
        let output = program.again().args(&args).run().await.assert_code(2);
        assert!(output.stderr.contains(words), "{args:?}: {}", output.stderr);
    }
}
