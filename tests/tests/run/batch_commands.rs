//! `imgsync batch`: output and exit codes of the commands that show and control batches.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

use crate::end_to_end::{configured, run};

/// Runs `imgsync batch …` in a program's home.
async fn batch(program: &Imgsync, arguments: &[&str]) -> Output {
    program.again().arg("batch").args(arguments).run().await
}

/// Runs five images, of which the target refuses `v0` and `v1`, and `v2` has no readable manifest.
async fn three_failures() -> (FaultRegistry, FaultRegistry, Imgsync) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for n in 0..5 {
        source.push("a", &format!("v{n}"), &images::single(&format!("steering-{n}")));
    }
    let refused = RequestMatcher::kind(RequestType::ManifestPut)
        .when(|request| request.reference.as_deref().is_some_and(|tag| ["v0", "v1"].contains(&tag)));
    target.on(refused).always().act(FaultAction::error(400, "MANIFEST_INVALID"));
    source
        .on(RequestMatcher::kind(RequestType::ManifestGet).reference("v2"))
        .always()
        .act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let program = configured(&rule);
    run(&program, &[]).await.assert_code(1);
    (source, target, program)
}

#[tokio::test]
async fn show_groups_failures_by_error_kind_and_by_registry_and_lists_them_when_asked() {
    let (source, target, program) = three_failures().await;
    let shown = batch(&program, &["show"]).await.assert_code(0).stdout;
    assert!(shown.starts_with("3 images failed:\n       2  refused: "), "{shown}");
    assert!(shown.contains("       1  not_found: "), "{shown}");
    assert!(shown.contains(&format!("       1  registry {}", source.host())), "{shown}");
    assert!(shown.contains(&format!("       2  registry {}", target.host())), "the target refused two: {shown}");
    assert!(!shown.contains("Failed images:"), "{shown}");
    let all = batch(&program, &["show", "--failures"]).await.assert_code(0).stdout;
    for tag in ["v0", "v1", "v2"] {
        assert!(all.contains(&format!("{}/a:{tag} -> {}/m/a:{tag}", source.host(), target.host())), "{all}");
    }

    let json = batch(&program, &["show", "--json"]).await.assert_code(0).json();
    assert_eq!(json["failed_by_kind"][0]["kind"], "refused");
    assert_eq!(json["failed_by_kind"][0]["failed"], 2);
    assert_eq!(json["failed_by_kind"][1]["kind"], "not_found");
    assert_eq!(json["failed_by_registry"][0], serde_json::json!({"registry": target.host(), "failed": 2}));
    assert_eq!(json["unlisted"], serde_json::json!([]));
    assert!(json["failures"].is_null(), "{json}");
    let json = batch(&program, &["show", "--json", "--failures"]).await.assert_code(0).json();
    assert_eq!(json["failures"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn requeue_filters_by_error_kind_and_registry_together() {
    let (source, target, program) = three_failures().await;
    let requeued = async |arguments: &[&str]| {
        let file = program.work_dir().join("imgsync.yaml");
        let arguments = [&["batch", "requeue", "--json"], arguments].concat();
        program.again().args(&arguments).arg("-c").arg(file).run().await
    };
    let nothing = requeued(&["--kind", "refused", "--registry", "quay.io"]).await.assert_code(0);
    assert_eq!((&nothing.json()["requeued"], &nothing.json()["state"]), (&0.into(), &"done".into()));
    assert!(nothing.stderr.contains("no failed images of batch"), "{}", nothing.stderr);
    assert!(nothing.stderr.ends_with(" match\n"), "{}", nothing.stderr);
    let puts = target.count(RequestType::ManifestPut);
    let one = requeued(&["--kind", "not_found", "--registry", &source.host()]).await.assert_code(1);
    assert!(one.stderr.contains("1 failed image of batch"), "{}", one.stderr);
    assert_eq!(target.count(RequestType::ManifestPut), puts, "what was refused is not tried again");
}

#[tokio::test]
async fn a_batch_that_has_ended_is_not_resumed_and_an_unknown_id_is_wrong_usage() {
    let (_source, _target, program) = three_failures().await;
    let done = batch(&program, &["resume"]).await.assert_code(2);
    assert!(done.stderr.contains("it is done"), "{}", done.stderr);
    assert!(done.stderr.contains("imgsync batch requeue"), "{}", done.stderr);
    for command in ["show", "watch", "pause", "resume", "cancel", "requeue", "report"] {
        let unknown = batch(&program, &[command, "0123456789"]).await.assert_code(2);
        assert!(unknown.stderr.contains("imgsync batch list"), "{command}: {}", unknown.stderr);
    }
    let unknown = program.again().args(["verify", "--batch", "0123456789"]).run().await.assert_code(2);
    assert!(unknown.stderr.contains("imgsync batch list"), "{}", unknown.stderr);
}

#[tokio::test]
async fn requeue_without_failed_images_names_the_repositories_that_were_not_listed() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("listed"));
    source.on(RequestMatcher::kind(RequestType::Tags).repository("b")).always().act(FaultAction::error(403, "DENIED"));
    let rule = |name: &str| format!("- {{from: {}/{name}, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let program = configured(&format!("rules:\n{}{}", rule("a"), rule("b")));
    run(&program, &[]).await.assert_code(1);
    let requeued = batch(&program, &["requeue"]).await.assert_code(0);
    let wanted = "has no failed images to requeue; 1 repository was not listed: `imgsync run` lists it again";
    assert!(requeued.stderr.contains(wanted), "{}", requeued.stderr);
}

#[tokio::test]
async fn list_prints_its_header_with_its_rows() {
    let (_source, _target, program) = three_failures().await;
    let listed = batch(&program, &["list"]).await.assert_code(0);
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert!(lines[0].starts_with("BATCH ") && lines.len() == 2, "{}", listed.stdout);
}

#[tokio::test]
async fn watch_ends_with_the_code_of_the_batch() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("watched"));
    source.on(RequestMatcher::kind(RequestType::Tags).repository("b")).always().act(FaultAction::error(403, "DENIED"));
    let rules = format!(
        "rules:\n- {{from: {0}/a, to: {1}/m, naming: keep}}\n- {{from: {0}/b, to: {1}/m, naming: keep}}\n",
        source.host(),
        target.host()
    );
    let program = configured(&rules);
    let ran = run(&program, &[]).await.assert_code(1).json();
    assert_eq!((&ran["counts"]["copied"], &ran["counts"]["failed"]), (&1.into(), &0.into()));
    batch(&program, &["watch"]).await.assert_code(1);
}

#[tokio::test]
async fn the_list_names_the_rules_of_each_batch() {
    let (source, target, program) = three_failures().await;
    let rule = |name: &str| format!("- {{name: {name}, from: {}/a, to: {}/{name}}}\n", source.host(), target.host());
    let rules: Vec<String> = ["nightly", "weekly", "monthly", "yearly"].map(rule).into();
    program.file("imgsync.yaml", format!("rules:\n{}", rules.concat()));
    run(&program, &[]).await.assert_code(1);
    let listed = batch(&program, &["list"]).await.assert_code(0).stdout;
    let ends: Vec<&str> = listed.lines().filter_map(|line| line.rsplit("  ").next()).collect();
    assert_eq!(ends, ["RULES", "nightly, weekly and 2 more", &format!("{}/a", source.host())], "{listed}");
    let listed = batch(&program, &["list", "--json", "--limit", "1"]).await.assert_code(0).json();
    assert_eq!(listed["rules"], serde_json::json!(["nightly", "weekly", "monthly", "yearly"]));
}

#[tokio::test]
async fn a_batch_in_which_images_failed_is_not_reported_as_done() {
    let (source, target, program) = three_failures().await;
    let state = async |program: &Imgsync, format: &str| {
        let report = batch(program, &["report", "--report-format", format]).await.assert_code(0).stdout;
        let line = report.lines().find(|line| line.contains("atch")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no line names the batch: {report}"))
    };
    for format in ["text", "legacy", "markdown"] {
        let line = state(&program, format).await;
        assert!(line.contains("incomplete") && !line.contains("done"), "some failed: {line}");
    }
    target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::error(400, "MANIFEST_INVALID"));
    program.file("imgsync.yaml", format!("rules:\n- {{from: {}/a, to: {}/other}}\n", source.host(), target.host()));
    run(&program, &[]).await.assert_code(1);
    assert!(state(&program, "text").await.ends_with("(failed)"), "all failed");
    program.file("imgsync.yaml", format!("rules:\n- {{from: {}/gone, to: {}/other}}\n", source.host(), target.host()));
    run(&program, &[]).await.assert_code(1);
    assert!(state(&program, "text").await.ends_with("(failed)"), "nothing could be listed");
    // Programs read the state, which says that the batch has ended.
    assert_eq!(batch(&program, &["show", "--json"]).await.assert_code(0).json()["state"], "done");
}
