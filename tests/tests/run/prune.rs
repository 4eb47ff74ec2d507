//! `prune`: tags that a rule wrote are removed when their source is gone, and nothing else ever is.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, Quirks, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Blob, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth, DockerRegistryOptions};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::end_to_end::{configured, run};

fn image(name: &str) -> TestImage {
    images::single(&format!("prune-{name}"))
}

/// Creates a rule from `team/app` of a source to `m/app` of a target.
fn rule(source: &str, target: &str, prune: &str) -> Imgsync {
    configured(&format!("rules:\n- {{from: {source}/team/app, to: {target}/m, naming: basename, {prune}}}\n"))
}

/// Generous limit for anything that should not take long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

const PRUNE_WITHOUT_DELAY: &str = "prune: {keep_days: 0, limit: 50%}";

/// Starts a source with these tags, each its own image, and a target that mirrors them.
async fn start_mirrored(tags: &[&str], prune: &str) -> (FaultRegistry, FaultRegistry, Imgsync) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in tags {
        source.push("team/app", tag, &image(tag));
    }
    let program = rule(&source.host(), &target.host(), prune);
    run(&program, &[]).await.assert_code(0);
    target.clear_requests();
    source.clear_requests();
    (source, target, program)
}

/// Returns the prune result of each target tag.
fn pruned(json: &Value) -> Vec<(String, String)> {
    let of = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let tag = |target: String| target.rsplit_once(':').map_or(target.clone(), |(_, tag)| tag.to_owned());
    let lines = json["pruned"].as_array().into_iter().flatten();
    lines.map(|line| (of(line, "outcome"), tag(of(line, "target")))).collect()
}

fn deletions(target: &FaultRegistry) -> Vec<String> {
    target.requests_of_kind(RequestType::ManifestDelete).into_iter().filter_map(|request| request.reference).collect()
}

fn expect_pruned(outcome: &str, tag: &str) -> Vec<(String, String)> {
    vec![(outcome.to_owned(), tag.to_owned())]
}

fn refused(output: &Output) -> String {
    let json = output.json();
    let lines = json["pruned"].as_array().unwrap_or_else(|| panic!("{json}"));
    assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &json!("refused")), "{json}");
    lines[0]["reason"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tags_gone_from_the_source_are_pruned_and_listed_in_every_report() {
    let (source, target, program) = start_mirrored(&["1", "2", "3"], PRUNE_WITHOUT_DELAY).await;
    // Foreign tags are never touched.
    target.push("m/app", "by-hand", &image("by-hand"));
    target.push("m/other", "1", &image("1"));
    source.delete_tag("team/app", "2");
    let dry = run(&program, &["--dry-run"]).await.assert_code(0);
    let lines: Vec<Value> = dry.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (from, to) = (format!("{}/team/app:2", source.host()), format!("{}/m/app:2", target.host()));
    let rule = format!("{}/team/app", source.host());
    let removal = json!({"action": "remove", "rule": rule, "source": from, "target": to});
    assert!(lines.contains(&removal), "{}", dry.stdout);
    assert_eq!(dry.stdout.matches("remove").count(), 1, "{}", dry.stdout);
    assert_eq!(deletions(&target), [""; 0], "a dry run removes nothing");

    let output = run(&program, &["--report=report.html"]).await.assert_code(0);
    let json = output.json();
    assert_eq!(pruned(&json), expect_pruned("removed", "2"));
    assert_eq!(json["pruned"][0]["digest"], image("2").root.as_str());
    assert_eq!(json["pruned"][0]["source"], format!("{}/team/app:2", source.host()));
    assert_eq!(
        (target.tags("m/app"), deletions(&target)),
        (vec!["1".into(), "3".into(), "by-hand".into()], vec!["2".into()])
    );
    assert_eq!(target.tags("m/other"), ["1"]);
    assert!(output.stderr.contains("Removed: 1"), "{}", output.stderr);
    let page = std::fs::read_to_string(program.work_dir().join("report.html")).unwrap();
    assert!(page.contains("Gone at the source") && page.contains("m/app:2"));
    let report = program.again().args(["batch", "report"]).run().await.assert_code(0);
    assert!(
        report.stdout.contains(&format!("removed {}/m/app:2 <- {}/team/app:2", target.host(), source.host())),
        "{}",
        report.stdout
    );

    let explained = program.again().args(["explain", &format!("{}/m/app:2", target.host())]).run().await.assert_code(0);
    assert!(
        explained.stdout.contains("is gone at the source") && explained.stdout.contains("removed"),
        "{explained:?}"
    );

    // Once; a tag that comes back is copied again and not removed again.
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    source.push("team/app", "2", &image("2"));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], pruned(&json)), (&json!(1), vec![]));
    target.assert_holds("m/app", "2", &image("2"));
}

#[tokio::test]
async fn nothing_is_removed_by_a_rule_that_does_not_say_so() {
    let (source, target, program) = start_mirrored(&["1", "2"], "tags: {include: ['*']}").await;
    source.delete_tag("team/app", "2");
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    assert_eq!(target.tags("m/app"), ["1", "2"]);
    // Enabled later, it applies to tags written before.
    let file = program.work_dir().join("imgsync.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("tags: {include: ['*']}", PRUNE_WITHOUT_DELAY);
    std::fs::write(&file, text).unwrap();
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), expect_pruned("removed", "2"));
}

#[tokio::test]
async fn days_are_counted_from_when_the_tag_was_first_seen_missing() {
    let (source, target, program) = start_mirrored(&["1", "2"], "prune: {keep_days: 30, limit: 100%}").await;
    source.delete_tag("team/app", "2");
    for _ in 0..2 {
        assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    }
    assert_eq!(target.tags("m/app"), ["1", "2"]);
    let dry = run(&program, &["--dry-run"]).await.assert_code(0);
    assert!(
        dry.stderr.contains("1 tag is gone at the source, and kept until `keep_days` have passed"),
        "{}",
        dry.stderr
    );
    assert_eq!(deletions(&target), [""; 0]);
}

#[tokio::test]
async fn a_source_that_cannot_be_listed_says_nothing_about_what_is_gone() {
    let (source, target, program) = start_mirrored(&["1", "2"], PRUNE_WITHOUT_DELAY).await;
    source.delete_tag("team/app", "2");
    source.on(RequestType::Tags).always().act(FaultAction::error(500, "UNKNOWN"));
    let output = run(&program, &["--attempts", "1"]).await.assert_code(1);
    assert!(refused(&output).contains("could not be listed"), "{}", output.stdout);
    assert!(output.stderr.contains("not removed"), "{}", output.stderr);
    assert_eq!((target.tags("m/app").len(), target.count(RequestType::ManifestDelete)), (2, 0));
}

#[tokio::test]
async fn a_source_that_lists_nothing_says_nothing_about_what_is_gone() {
    let (source, target, program) = start_mirrored(&["1", "2"], "prune: {keep_days: 0, limit: 100%}").await;
    source.on(RequestType::Tags).always().act(FaultAction::json(&json!({"name": "team/app", "tags": []})));
    let output = run(&program, &[]).await.assert_code(1);
    assert!(refused(&output).contains("lists no tags, but"), "{}", output.stdout);
    assert_eq!((target.tags("m/app").len(), target.count(RequestType::ManifestDelete)), (2, 0));
    // The missing tags are not recorded either.
    source.clear_rules();
    source.delete_tag("team/app", "2");
    let file = program.work_dir().join("imgsync.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("keep_days: 0", "keep_days: 1");
    std::fs::write(&file, text).unwrap();
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
}

#[tokio::test]
async fn one_repository_of_a_rule_that_cannot_be_listed_keeps_all_of_the_rules_tags() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for (repository, tag) in [("p/a", "1"), ("p/a", "2"), ("p/b", "1"), ("p/b", "2")] {
        source.push(repository, tag, &image(&format!("{repository}{tag}")));
    }
    let rule = format!(
        "rules:\n- {{from: {}/p/*, to: {}/m, naming: basename, {PRUNE_WITHOUT_DELAY}}}\n",
        source.host(),
        target.host()
    );
    let program = configured(&rule);
    run(&program, &[]).await.assert_code(0);
    source.delete_tag("p/a", "2");
    source
        .on(RequestMatcher::kind(RequestType::Tags).repository("p/b"))
        .always()
        .act(FaultAction::error(403, "DENIED"));
    let output = run(&program, &[]).await.assert_code(1);
    assert!(refused(&output).contains("p/b could not be listed"), "{}", output.stdout);
    assert_eq!(target.count(RequestType::ManifestDelete), 0);
    source.clear_rules();
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), expect_pruned("removed", "2"));
    assert_eq!(
        (target.tags("a"), target.tags("m/a"), target.tags("m/b")),
        (vec![], vec!["1".into()], vec!["1".into(), "2".into()])
    );
}

#[tokio::test]
async fn a_list_that_leaves_out_what_is_there_removes_nothing() {
    let (source, target, program) = start_mirrored(&["1", "2"], PRUNE_WITHOUT_DELAY).await;
    source.on(RequestType::Tags).always().act(FaultAction::json(&json!({"name": "team/app", "tags": ["1"]})));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(pruned(&json), expect_pruned("left", "2"));
    assert!(json["pruned"][0]["reason"].as_str().unwrap().contains("the source still has the tag"), "{json}");
    assert_eq!((target.tags("m/app").len(), target.count(RequestType::ManifestDelete)), (2, 0));
    // A source that does not respond is not a source without the tag.
    source
        .on(RequestMatcher::kind(RequestType::ManifestHead).reference("2"))
        .always()
        .act(FaultAction::error(401, "UNAUTHORIZED"));
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(pruned(&json), expect_pruned("failed", "2"));
    assert_eq!(target.count(RequestType::ManifestDelete), 0);
}

#[tokio::test]
async fn more_than_the_limit_is_a_reason_to_remove_nothing() {
    let (source, target, program) = start_mirrored(&["1", "2", "3", "4"], "prune: {keep_days: 0, limit: 25%}").await;
    source.delete_tag("team/app", "1");
    source.delete_tag("team/app", "2");
    let output = run(&program, &[]).await.assert_code(1);
    assert!(refused(&output).contains("2 of 4 mirrored tags would be removed, and the limit is 25%"));
    assert_eq!((target.tags("m/app").len(), target.count(RequestType::ManifestDelete)), (4, 0));
    let dry = run(&program, &["--dry-run"]).await.assert_code(0);
    assert!(dry.stderr.contains("nothing would be removed: 2 of 4 mirrored tags"), "{}", dry.stderr);
    source.push("team/app", "1", &image("1"));
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), expect_pruned("removed", "2"));
}

#[tokio::test]
async fn a_tag_that_was_overwritten_manually_is_never_pruned() {
    let (source, target, program) = start_mirrored(&["1", "2"], PRUNE_WITHOUT_DELAY).await;
    source.delete_tag("team/app", "2");
    target.push("m/app", "2", &image("another"));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(pruned(&json), expect_pruned("left", "2"));
    assert!(json["pruned"][0]["reason"].as_str().unwrap().contains(&image("another").root), "{json}");
    target.assert_holds("m/app", "2", &image("another"));
    // It stays, even if it is manually set back to what we wrote.
    target.push("m/app", "2", &image("2"));
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    assert_eq!(target.count(RequestType::ManifestDelete), 0);
}

#[tokio::test]
async fn tags_that_imgsync_did_not_write_are_never_pruned() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1", "2"] {
        source.push("team/app", tag, &image(tag));
    }
    target.push("m/app", "2", &image("2"));
    let program = rule(&source.host(), &target.host(), PRUNE_WITHOUT_DELAY);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&json!(1), &json!(1)));
    source.delete_tag("team/app", "2");
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    assert_eq!(target.tags("m/app"), ["1", "2"]);
}

#[tokio::test]
async fn what_a_rule_does_not_choose_any_more_is_still_at_the_source_and_stays() {
    let (source, target, program) = start_mirrored(&["1.0", "2.0", "x-1"], PRUNE_WITHOUT_DELAY).await;
    let file = program.work_dir().join("imgsync.yaml");
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace(PRUNE_WITHOUT_DELAY, &format!("tags: {{include: ['*.0'], newest: 1}}, {PRUNE_WITHOUT_DELAY}"));
    std::fs::write(&file, &text).unwrap();
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), []);
    // Only the tags that the rule would write are removed, not those of another rule.
    source.delete_tag("team/app", "1.0");
    source.delete_tag("team/app", "x-1");
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), expect_pruned("removed", "1.0"));
    assert_eq!(target.tags("m/app"), ["2.0", "x-1"]);
}

#[tokio::test]
async fn a_registry_that_removes_no_tag_alone_keeps_what_other_tags_need() {
    let (source, target) = tokio::join!(
        DockerRegistry::start(DockerRegistryAuth::None),
        DockerRegistry::start_with(DockerRegistryOptions { delete: true, ..DockerRegistryOptions::default() })
    );
    // Two tags of one image of which one stays, two that both go, one referenced by an index, and a separate one.
    let index = images::multi_platform("prune-index");
    let child = index.subtree(&index.children()[0]);
    let pairs = [
        ("shared", image("shared")),
        ("stays", image("shared")),
        ("both", image("both")),
        ("both-too", image("both")),
        ("index", index.clone()),
        ("child", child),
        ("alone", image("alone")),
        ("rest", image("rest")),
    ];
    for (tag, image) in &pairs {
        source.push("team/app", tag, image).await;
    }
    let program = rule(&source.host(), &target.host(), "prune: {keep_days: 0, limit: 5}");
    run(&program, &[]).await.assert_code(0);
    let (other, file) =
        (DockerRegistry::start(DockerRegistryAuth::None).await, program.work_dir().join("imgsync.yaml"));
    // The same on distribution 2.8, which cannot delete a single tag.
    for (tag, image) in pairs.iter().filter(|(tag, _)| ["stays", "index", "rest"].contains(tag)) {
        other.push("team/app", tag, image).await;
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let name = source.host();
    std::fs::write(&file, format!("registries:\n  {name}: {{endpoint: 'http://{}'}}\n{text}", other.host())).unwrap();
    let json = run(&program, &[]).await.assert_code(0).json();
    let mut outcomes = pruned(&json);
    outcomes.sort();
    let expected =
        [("left", "child"), ("left", "shared"), ("removed", "alone"), ("removed", "both"), ("removed", "both-too")];
    assert_eq!(outcomes, expected.map(|(outcome, tag)| (outcome.to_owned(), tag.to_owned())), "{json}");
    for (tag, image) in &pairs {
        match *tag {
            "alone" | "both" | "both-too" => assert_eq!(target.tag_digest("m/app", tag).await, None, "{tag}"),
            _ => target.assert_holds("m/app", tag, image).await,
        }
    }
}

#[tokio::test]
async fn a_registry_that_deletes_nothing_fails_the_removal_and_says_what_to_do() {
    let (source, target, program) = start_mirrored(&["1", "2"], PRUNE_WITHOUT_DELAY).await;
    source.delete_tag("team/app", "2");
    target.on(RequestType::ManifestDelete).always().act(FaultAction::error(405, "UNSUPPORTED"));
    let output = run(&program, &[]).await.assert_code(1);
    let json = output.json();
    assert_eq!(pruned(&json), expect_pruned("failed", "2"));
    assert!(json["pruned"][0]["reason"].as_str().unwrap().contains("the registry does not allow deletion"), "{json}");
    assert_eq!(deletions(&target), ["2".to_owned(), image("2").root]);
    assert_eq!(target.tags("m/app").len(), 2);
    // The next run tries again.
    target.clear_rules();
    assert_eq!(pruned(&run(&program, &[]).await.assert_code(0).json()), expect_pruned("removed", "2"));
}

#[tokio::test]
async fn a_token_that_may_not_delete_removes_nothing() {
    let source = FaultRegistry::start().await;
    let bearer = imgsync_tests::fault::Bearer::user("me", "secret");
    let quirks = Quirks { no_delete_tokens: true, ..Quirks::default() };
    let target = FaultRegistry::builder().bearer(bearer).quirks(quirks).start().await;
    for tag in ["1", "2"] {
        source.push("team/app", tag, &image(tag));
    }
    let program = rule(&source.host(), &target.host(), PRUNE_WITHOUT_DELAY);
    program.write_docker_config(&[(&target.host(), "me", "secret")]);
    run(&program, &[]).await.assert_code(0);
    source.delete_tag("team/app", "2");
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(pruned(&json), expect_pruned("failed", "2"), "{json}");
    assert_eq!(target.tags("m/app"), ["1", "2"]);
}

#[tokio::test]
async fn a_tag_that_another_source_gives_now_stays() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a/app", "1", &image("same"));
    source.push("a/app", "2", &image("2"));
    source.push("b/app", "3", &image("3"));
    let rule = |which: &str, tags: &str| {
        let (from, to) = (source.host(), target.host());
        format!(
            "- {{from: {from}/{which}/app, to: {to}/m, naming: basename, tags: {{include: ['{tags}']}}, {PRUNE_WITHOUT_DELAY}}}\n"
        )
    };
    let program = configured(&format!("rules:\n{}{}", rule("a", "[0-9]"), rule("b", "?")));
    run(&program, &[]).await.assert_code(0);
    source.delete_tag("a/app", "1");
    source.push("b/app", "1", &image("same"));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(pruned(&json), expect_pruned("left", "1"), "{json}");
    target.assert_holds("m/app", "1", &image("same"));
}

/// Starts a target that deletes by digest only, with two tags to prune and one that stays. The digests to prune are in
/// deletion order.
async fn two_of_three(stays: &TestImage) -> (FaultRegistry, FaultRegistry, Imgsync, [(&'static str, TestImage); 2]) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let mut going = [("1", image("1")), ("2", image("2"))];
    for (tag, image) in &going {
        source.push("team/app", tag, image);
    }
    source.push("team/app", "stays", stays);
    let program = rule(&source.host(), &target.host(), "prune: {keep_days: 0, limit: 2}");
    run(&program, &[]).await.assert_code(0);
    let is_tag = |request: &RecordedRequest| !request.reference.as_deref().unwrap_or_default().contains(':');
    target
        .on(RequestMatcher::kind(RequestType::ManifestDelete).when(is_tag))
        .always()
        .act(FaultAction::error(405, "UNSUPPORTED"));
    for (tag, _) in &going {
        source.delete_tag("team/app", tag);
    }
    target.clear_requests();
    going.sort_by(|(_, a), (_, b)| a.root.cmp(&b.root));
    (source, target, program, going)
}

#[tokio::test]
async fn a_tag_pushed_between_the_check_and_the_delete_keeps_its_manifest() {
    let (_source, target, program, [(first, image), (second, needed)]) = two_of_three(&image("stays")).await;
    // The tags are checked; then the first digest is about to be deleted.
    let gate = Arc::new(Semaphore::new(0));
    target
        .on(RequestMatcher::kind(RequestType::ManifestDelete).reference(&image.root))
        .act(FaultAction::Gate(gate.clone()));
    let mut running = program.again().args(["run", "--json"]).spawn();
    let is_asked = |target: &FaultRegistry| deletions(target).contains(&image.root);
    target.wait_until(is_asked, WAIT_TIMEOUT).await;
    target.move_tag("m/app", "pushed", &needed.root);
    target.clear_requests();
    gate.add_permits(1);
    let json = running.wait().await.assert_code(0).json();
    let mut outcomes = pruned(&json);
    outcomes.sort();
    assert_eq!(outcomes, [("left".into(), second.to_owned()), ("removed".into(), first.to_owned())], "{json}");
    assert!(json.to_string().contains("the tag pushed uses the same image"), "{json}");
    assert_eq!(deletions(&target), [second], "by its tag alone, which the target does not do");
    target.assert_holds("m/app", "pushed", &needed);
    // Checked tags are not requested again.
    let asked = |tag: &str| {
        target.count_where(|request| {
            request.kind == RequestType::ManifestHead && request.reference.as_deref() == Some(tag)
        })
    };
    assert_eq!((asked("stays"), asked("pushed")), (0, 1));
}

#[tokio::test]
async fn blobs_that_an_index_lists_are_no_reason_to_keep_or_to_fail() {
    // Build caches are indexes of layers, for which some registries return unusual errors when asked for manifests.
    let cache = TestImage::index("prune-cache")
        .blob("application/vnd.oci.image.layer.v1.tar+gzip", Blob::synthetic("prune-cache-layer", 1_000))
        .blob("application/vnd.buildkit.cacheconfig.v0", Blob::synthetic("prune-cache-config", 100))
        .child(&image("below"), "linux/amd64")
        .build();
    let (_source, target, program, going) = two_of_three(&cache).await;
    let layers: Vec<String> = cache.children().iter().map(|child| child.to_string()).collect();
    target
        .on(RequestMatcher::kind(RequestType::ManifestGet)
            .when(move |request| request.reference.as_ref().is_some_and(|asked| layers.contains(asked))))
        .always()
        .act(FaultAction::error(400, "MANIFEST_INVALID"));
    // One of the pruned tags is an entry of the index.
    let json = run(&program, &[]).await.assert_code(0).json();
    let mut outcomes = pruned(&json);
    outcomes.sort();
    assert_eq!(outcomes, [("removed".into(), "1".to_owned()), ("removed".into(), "2".to_owned())], "{json}");
    for (_, image) in &going {
        assert!(deletions(&target).contains(&image.root));
    }
    target.assert_holds("m/app", "stays", &cache);
}
