//! Tags that move during a copy, and sources whose HEAD and GET disagree.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output, Signal};
use serde_json::Value;
use tokio::sync::Semaphore;

const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Builds the `n`th image of a tag, with two platforms.
fn version(name: &str, n: u32) -> TestImage {
    let child = |platform: &str| {
        let base = Layer::Synthetic(1500);
        TestImage::single(&format!("{name}/{n}")).platform(platform).layer(base).layers(1, 2000).build()
    };
    let index = TestImage::index(&format!("{name}/{n}")).child(&child("linux/amd64"), "linux/amd64");
    index.child(&child("linux/arm64"), "linux/arm64").build()
}

/// Deletes all content of an image, like garbage collection.
fn delete_image(registry: &FaultRegistry, repository: &str, image: &TestImage) {
    image.manifests.keys().for_each(|digest| registry.delete_manifest(repository, digest));
    image.blobs.keys().for_each(|digest| registry.delete_blob(repository, digest));
}

/// Moves a tag and deletes the old image.
fn replace(registry: &FaultRegistry, repository: &str, old: &TestImage, new: &TestImage) {
    delete_image(registry, repository, old);
    registry.push(repository, "1", new);
}

fn config(program: &Imgsync, yaml: &str) -> std::path::PathBuf {
    program.file("imgsync.yaml", yaml);
    program.work_dir().join("imgsync.yaml")
}

async fn run(program: &Imgsync, file: &std::path::Path, more: &[&str]) -> Output {
    program.again().args(["run", "--json", "--retry-delay", "5ms", "-c"]).arg(file).args(more).run().await
}

/// Holds requests at the source until the tag has moved, then releases them.
async fn move_during_requests(
    source: &FaultRegistry,
    held: RequestMatcher,
    old: &TestImage,
    new: &TestImage,
    work: impl Future<Output = Output>,
) -> Output {
    let gate = Arc::new(Semaphore::new(0));
    let rule = source.on(held).always().act(FaultAction::Gate(gate.clone()));
    let moving = async {
        source.wait_until(|_| rule.hits() > 0, RUN_TIMEOUT).await;
        replace(source, "a", old, new);
        rule.remove();
        gate.add_permits(1000);
    };
    let (output, ()) = tokio::join!(work, moving);
    output
}

#[tokio::test]
async fn a_tag_that_moves_while_it_is_copied_is_copied_as_what_it_is_now() {
    for (case, held) in [
        (
            "child",
            RequestMatcher::kind(RequestType::ManifestGet)
                .when(|get| get.reference.as_deref().is_some_and(|name| name.contains(':'))),
        ),
        ("blob", RequestMatcher::kind(RequestType::BlobGet)),
    ] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let (old, new) = (version(case, 1), version(case, 2));
        source.push("a", "1", &old);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let sync = Imgsync::new().args(["sync", &from, &to, "--json"]);
        let output = move_during_requests(&source, held, &old, &new, sync.run()).await.assert_code(0);
        assert_eq!(output.json()["digest"], new.root, "{case}");
        assert!(output.stderr.contains(&new.root), "{}", output.stderr);
        target.assert_holds("b", "1", &new);
        target.assert_tags_complete();
        assert_eq!(target.open_uploads(), 0);
    }
}

#[tokio::test]
async fn a_platform_is_chosen_anew_of_a_tag_that_moves() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (old, new) = (version("chosen", 1), version("chosen", 2));
    source.push("a", "1", &old);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--platform", "linux/arm64"]);
    let held = RequestMatcher::kind(RequestType::ManifestGet).reference(&old.children()[1]);
    move_during_requests(&source, held, &old, &new, sync.run()).await.assert_code(0);
    target.assert_holds("b", "1", &new.subtree(&new.children()[1]));
}

#[tokio::test]
async fn each_of_several_targets_gets_what_a_tag_is_now() {
    let (source, one, two) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let large =
        |n: u32| TestImage::single(&format!("fan-out/{n}")).layer(Layer::Synthetic(3 << 20)).layers(2, 900).build();
    let (old, new) = (large(1), large(2));
    source.push("a", "1", &old);
    let program = Imgsync::new();
    let rule =
        format!("rules:\n- {{from: {}/a, to: [{}/m, {}/m], naming: keep}}\n", source.host(), one.host(), two.host());
    let file = config(&program, &rule);
    let held = RequestMatcher::kind(RequestType::BlobGet).reference(&old.largest_blob());
    let json = move_during_requests(&source, held, &old, &new, run(&program, &file, &["--attempts", "1"]))
        .await
        .assert_code(0)
        .json();
    assert_eq!(json["counts"]["copied"], 2, "{json}");
    for target in [&one, &two] {
        target.assert_holds("m/a", "1", &new);
        target.assert_tags_complete();
    }
    let json = run(&program, &file, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], 2, "{json}");
}

#[tokio::test]
async fn what_a_listing_named_and_is_gone_below_its_root_is_resolved_again() {
    let source = FaultRegistry::builder().google().start().await;
    let target = FaultRegistry::start().await;
    let (old, new) = (version("listed", 1), version("listed", 2));
    source.push("a", "1", &old);
    let program = Imgsync::new();
    let file =
        config(&program, &format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let held = RequestMatcher::kind(RequestType::BlobGet);
    move_during_requests(&source, held, &old, &new, run(&program, &file, &["--attempts", "1"])).await.assert_code(0);
    target.assert_holds("m/a", "1", &new);
}

#[tokio::test]
async fn a_layout_that_is_written_anew_while_it_is_read_is_read_as_it_is_now() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (old, new) = (version("layout", 1), version("layout", 2));
    let program = Imgsync::new();
    let layout = |name: &str| format!("oci:{}:1", program.work_dir().join(name).display());
    for (name, image) in [("bag", &old), ("next", &new)] {
        source.push("a", name, image);
        let from = format!("{}/a:{name}", source.host());
        program.again().args(["sync", &from, &layout(name)]).run().await.assert_code(0);
    }
    let gate = Arc::new(Semaphore::new(0));
    let rule = target
        .on(RequestMatcher::kinds(&[RequestType::UploadMount, RequestType::UploadStart]))
        .act(FaultAction::Gate(gate.clone()));
    let to = format!("{}/b:1", target.host());
    let sync = program.again().args(["sync", &layout("bag"), &to, "--json"]);
    let moving = async {
        target.wait_until(|_| rule.hits() > 0, RUN_TIMEOUT).await;
        let (bag, next) = (program.work_dir().join("bag"), program.work_dir().join("next"));
        std::fs::remove_dir_all(bag.join("blobs")).unwrap();
        std::fs::rename(next.join("blobs"), bag.join("blobs")).unwrap();
        std::fs::rename(next.join("index.json"), bag.join("index.json")).unwrap();
        gate.add_permits(1000);
    };
    let (output, ()) = tokio::join!(sync.run(), moving);
    output.assert_code(0);
    target.assert_holds("b", "1", &new);
}

#[tokio::test]
async fn a_source_that_never_keeps_still_is_given_up_and_says_why() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let source = Arc::new(source);
    let versions: Vec<TestImage> = (0..12).map(|n| version("restless", n)).collect();
    source.push("a", "1", &versions[0]);
    let (moved, all) = (source.clone(), versions.clone());
    let rule = source.on(RequestMatcher::kind(RequestType::BlobGet)).always().act(FaultAction::compute(move |get| {
        // Everything requested existed a moment ago.
        let asked = get.reference.clone().unwrap_or_default();
        let at = all.iter().position(|image| image.blobs.contains_key(&asked)).unwrap();
        let now = moved.tag_digest("a", "1");
        if now.as_deref() == Some(&all[at].root) {
            replace(&moved, "a", &all[at], &all[at + 1]);
        }
        FaultAction::error(404, "BLOB_UNKNOWN")
    }));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "5ms"]).run().await.assert_code(1);
    assert!(output.stderr.contains("source keeps changing"), "{}", output.stderr);
    assert!(target.tags("b").is_empty());
    let roots = source
        .requests_of_kind(RequestType::ManifestGet)
        .iter()
        .filter(|get| get.reference.as_deref() == Some("1"))
        .count();
    assert!((3..=5).contains(&roots), "{}", source.describe_requests());
    rule.remove();
}

/// Makes HEAD requests of a tag report this image, like a stale cache in front of the registry.
fn answer_heads_with(source: &FaultRegistry, image: &TestImage) {
    let heads = RequestMatcher::kind(RequestType::ManifestHead).reference("1");
    source.on(heads).always().act(FaultAction::SetHeader("docker-content-digest".into(), image.root.clone()));
}

fn tag_puts(target: &FaultRegistry, tag: &str) -> u64 {
    target.count_where(|put| put.kind == RequestType::ManifestPut && put.reference.as_deref() == Some(tag))
}

#[tokio::test]
async fn a_source_that_says_one_digest_and_gives_another_is_copied_once_and_does_not_flip_the_target() {
    for old_is_there in [true, false] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let (old, new) = (version("said", 1), version("said", 2));
        if old_is_there {
            source.push_untagged("a", &old);
        }
        source.push("a", "1", &new);
        answer_heads_with(&source, &old);
        let program = Imgsync::new();
        let file = config(
            &program,
            &format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()),
        );
        let outcome =
            |json: &Value| (json["counts"]["copied"].as_u64().unwrap(), json["counts"]["unchanged"].as_u64().unwrap());
        assert_eq!(outcome(&run(&program, &file, &[]).await.assert_code(0).json()), (1, 0));
        for round in 0..4 {
            source.clear_requests();
            assert_eq!(outcome(&run(&program, &file, &[]).await.assert_code(0).json()), (0, 1), "{round}");
            // The digest that was read is cached: from the second run on it suffices.
            let reads = source.count(RequestType::ManifestGet);
            assert_eq!(reads, u64::from(round == 0), "{round}: {}", source.describe_requests());
        }
        // A single-image copy, which has no cache, and a verify.
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/m/a:1", target.host()));
        for _ in 0..2 {
            let json = Imgsync::new().args(["sync", &from, &to, "--json"]).run().await.assert_code(0).json();
            assert_eq!(json["outcome"], "unchanged", "{json}");
        }
        let json = Imgsync::new().args(["verify", &from, &to, "--json"]).run().await.assert_code(0).json();
        assert_eq!(json["outcome"], "identical", "{json}");
        assert_eq!(tag_puts(&target, "1"), 1, "{}", target.describe_requests());
        target.assert_holds("m/a", "1", &new);
        // The tag really moves, behind the same cache.
        let newer = version("said", 3);
        source.push("a", "1", &newer);
        source.clear_rules();
        assert_eq!(outcome(&run(&program, &file, &[]).await.assert_code(0).json()), (1, 0));
        target.assert_holds("m/a", "1", &newer);
    }
}

#[tokio::test]
async fn a_batch_that_is_resumed_copies_what_a_source_gives_and_not_what_it_says() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (old, new) = (version("resumed", 1), version("resumed", 2));
    source.push_untagged("a", &old);
    source.push("a", "1", &new);
    answer_heads_with(&source, &old);
    // Nothing can be read until the run is stopped.
    let limit = source.on(RequestType::ManifestGet).always().act(FaultAction::StallForever);
    let program = Imgsync::new();
    let file =
        config(&program, &format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let mut running = program.again().args(["run", "--json", "-c"]).arg(&file).spawn();
    source.wait_until(|_| limit.hits() > 0, RUN_TIMEOUT).await;
    running.signal(Signal::INT);
    running.wait_for_line(|line| line.contains("again to abort"), RUN_TIMEOUT).await;
    running.signal(Signal::INT);
    running.wait().await.assert_code(4);
    limit.remove();
    let resumed = program.again().args(["batch", "resume", "--json", "-c"]).arg(&file).run().await;
    assert_eq!(resumed.assert_code(0).json()["counts"]["copied"], 1);
    target.assert_holds("m/a", "1", &new);
}
