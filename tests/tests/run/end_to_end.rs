//! Complete runs: selected tags are copied under the right names, then nothing, then what has moved.

use imgsync_tests::fault::{Bearer, FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use serde_json::Value;

/// Creates a run with this configuration, in a home that [`Imgsync::again`] keeps.
pub(crate) fn configured(yaml: &str) -> Imgsync {
    let program = Imgsync::new();
    program.file("imgsync.yaml", yaml);
    program
}

/// Runs the rules in the program's home.
pub(crate) async fn run(program: &Imgsync, more: &[&str]) -> Output {
    let file = program.work_dir().join("imgsync.yaml");
    program.again().args(["run", "--json", "--retry-delay", "10ms", "-c"]).arg(file).args(more).run().await
}

pub(crate) fn assert_adds_up(json: &Value) {
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    let sum: u64 = ["waiting", "running", "copied", "unchanged", "failed", "cancelled"].iter().map(|n| count(n)).sum();
    assert_eq!(sum, count("total"), "{json}");
}

fn counts(json: &Value) -> (u64, u64, u64) {
    assert_adds_up(json);
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    (count("copied"), count("unchanged"), count("failed"))
}

#[tokio::test]
async fn rules_over_several_registries_copy_what_they_select_then_nothing_then_what_moved() {
    let (plain, target, google) = tokio::join!(
        DockerRegistry::start(DockerRegistryAuth::None),
        DockerRegistry::start(DockerRegistryAuth::None),
        async { FaultRegistry::builder().google().start().await }
    );
    // A plain registry with versions, candidates and other tags.
    let image = |name: &str| images::single(&format!("whole-{name}"));
    for tag in ["1.19.0", "1.20.0", "1.21.0", "1.22.0-rc1", "latest"] {
        plain.push("team/app", tag, &image(tag)).await;
    }
    plain.push("team/tool", "v2", &images::multi_platform("whole-tool")).await;
    // A Google-style tree, where a node with children has its own tags.
    for (repository, tag) in [("distro/base", "a"), ("distro/base", "b"), ("distro/base/debug", "a"), ("other/x", "1")]
    {
        google.push(repository, tag, &image(&format!("{repository}-{tag}")));
    }
    let program = configured(&format!(
        "defaults: {{to: {target}/mirror}}\n\
         rules:\n\
         - from: {plain}/team/app\n  tags: {{include: [\"1.*\"], exclude: [\"*-rc*\"], semver: \">=1.20\"}}\n  naming: keep\n\
         - from: {plain}/team/tool\n  naming: basename\n\
         - from: {google}/distro/**\n",
        target = target.host(),
        plain = plain.host(),
        google = google.host(),
    ));

    let first = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&first), (6, 0, 0), "{first}");
    let flat =
        |repository: &str| format!("mirror/{}_{}", google.host().replace(':', "_"), repository.replace('/', "_"));
    let expected: Vec<(String, &str, TestImage)> = vec![
        ("mirror/team/app".into(), "1.20.0", image("1.20.0")),
        ("mirror/team/app".into(), "1.21.0", image("1.21.0")),
        ("mirror/tool".into(), "v2", images::multi_platform("whole-tool")),
        (flat("distro/base"), "a", image("distro/base-a")),
        (flat("distro/base"), "b", image("distro/base-b")),
        (flat("distro/base/debug"), "a", image("distro/base/debug-a")),
    ];
    for (repository, tag, image) in &expected {
        target.assert_holds(repository, tag, image).await;
    }
    for (repository, tag) in
        [("mirror/team/app", "1.19.0"), ("mirror/team/app", "latest"), ("mirror/team/app", "1.22.0-rc1")]
    {
        assert_eq!(target.tag_digest(repository, tag).await, None, "{repository}:{tag} was not selected");
    }

    // A second run copies nothing and reads no blob; Google listings that show no change cost nothing.
    google.clear_requests();
    plain.clear_requests();
    let second = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&second), (0, 6, 0), "{second}");
    assert_eq!(second["bytes"], serde_json::json!({"copied": 0, "mounted": 0, "reused": 0}));
    assert!(
        google.requests().iter().all(|request| request.kind == RequestType::Tags),
        "{}",
        google.describe_requests()
    );
    let asked = plain.requests();
    assert!(asked.iter().all(|request| request.method == "HEAD" || request.uri.contains("/tags/list")), "{asked:?}");
    assert_eq!(asked.iter().filter(|request| request.method == "HEAD").count(), 3, "one a tag: {asked:?}");

    // One tag moves at each kind of source.
    let moved = image("moved");
    google.push("distro/base", "b", &moved);
    let third = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&third), (1, 5, 0), "{third}");
    target.assert_holds(&flat("distro/base"), "b", &moved).await;
    let newer = image("newer");
    plain.push("team/app", "1.21.0", &newer).await;
    let fourth = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&fourth), (1, 5, 0), "{fourth}");
    target.assert_holds("mirror/team/app", "1.21.0", &newer).await;
}

#[tokio::test]
async fn an_unchanged_run_asks_the_plain_source_once_a_tag_and_the_target_hardly_at_all() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for repository in 0..4 {
        for tag in 0..10 {
            source.push(&format!("r{repository}"), &format!("v{tag}"), &images::single(&format!("{repository}-{tag}")));
        }
    }
    let rules: String = (0..4).map(|n| format!("- from: {}/r{n}\n", source.host())).collect();
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    run(&program, &[]).await.assert_code(0);
    source.clear_requests();
    target.clear_requests();
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (0, 40, 0));
    assert_eq!((source.count(RequestType::Tags), source.count(RequestType::ManifestHead), source.total()), (4, 40, 44));
    // A few spot checks of cached tags, here one per repository.
    assert_eq!((target.count(RequestType::ManifestHead), target.total()), (4, 4), "{}", target.describe_requests());
    assert_eq!(json["requests"], serde_json::json!({"source": 44, "target": 4}));
}

#[tokio::test]
async fn an_up_to_date_target_is_filtered_from_listings_without_a_task() {
    let (source, target) = tokio::join!(async { FaultRegistry::builder().google().start().await }, async {
        FaultRegistry::builder().google().start().await
    });
    for repository in ["a", "b"] {
        for tag in 0..20 {
            let image = images::single(&format!("{repository}{tag}"));
            source.push(&format!("p/{repository}"), &format!("v{tag}"), &image);
            target.push(&format!("m/p/{repository}"), &format!("v{tag}"), &image);
        }
    }
    let program =
        configured(&format!("rules:\n- {{from: {}/p/**, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (0, 40, 0));
    assert_eq!(source.total(), 3, "the node and two repositories: {}", source.describe_requests());
    assert_eq!(target.total(), 2, "{}", target.describe_requests());
    // Within `verify_every` only spot checks of the target are made.
    target.clear_requests();
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (0, 40, 0));
    assert_eq!(target.count(RequestType::Tags), 0);
    assert!((1..=50).contains(&target.count(RequestType::ManifestHead)), "{}", target.describe_requests());
}

#[tokio::test]
async fn a_target_that_was_wiped_is_noticed_and_filled_again() {
    for google in [true, false] {
        let builder = FaultRegistry::builder();
        let source = if google { builder.google() } else { builder }.start().await;
        let target = FaultRegistry::start().await;
        let images: Vec<TestImage> = (0..12).map(|n| images::single(&format!("wiped-{n}"))).collect();
        for (n, image) in images.iter().enumerate() {
            source.push("a", &format!("v{n}"), image);
        }
        let yaml = format!(
            "rules:\n- {{from: {}/a, to: {}/m, naming: keep, verify_every: 7d}}\n",
            source.host(),
            target.host()
        );
        let program = configured(&yaml);
        run(&program, &[]).await.assert_code(0);
        target.delete_repository("m/a");
        // With digests in the listing the spot check finds it; if each tag is a task, each task is its own spot check.
        let json = run(&program, &[]).await.assert_code(0).json();
        assert_eq!(counts(&json).2, 0);
        for (n, image) in images.iter().enumerate() {
            target.assert_holds("m/a", &format!("v{n}"), image);
        }
    }
}

#[tokio::test]
async fn force_asks_and_pushes_everything_and_priming_copies_nothing() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (both, only_source) = (images::single("both"), images::single("only-source"));
    source.push("a", "both", &both);
    source.push("a", "new", &only_source);
    target.push("m/a", "both", &both);
    let program =
        configured(&format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let json = run(&program, &["--download-manifests"]).await.assert_code(1).json();
    assert_eq!(counts(&json), (0, 1, 1));
    assert_eq!(target.count(RequestType::ManifestPut), 0);
    target.clear_requests();
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (1, 1, 0));
    // Imported tags are checked as the run's spot checks, not by a task each.
    let asked = |tag: &str| {
        target.count_where(|request| {
            request.kind == RequestType::ManifestHead && request.reference.as_deref() == Some(tag)
        })
    };
    assert_eq!((asked("both"), asked("new")), (1, 1));
    let json = run(&program, &["--force"]).await.assert_code(0).json();
    assert_eq!(counts(&json), (2, 0, 0));
}

#[tokio::test]
async fn slices_cut_the_sorted_whole_exactly() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let mut rules = String::new();
    for repository in ["c", "a", "b"] {
        for tag in 0..5 {
            source.push(repository, &format!("v{tag}"), &images::single(&format!("slice-{repository}-{tag}")));
        }
        rules.push_str(&format!("- from: {}/{repository}\n", source.host()));
    }
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    let mut total = 0;
    for number in 1..=5 {
        let json =
            run(&program, &["--batch-size", "4", "--batch-number", &number.to_string()]).await.assert_code(0).json();
        assert_eq!(json["counts"]["total"], [4, 4, 4, 3, 0][number - 1], "slice {number}");
        assert_eq!(json["counts"]["copied"], json["counts"]["total"], "no slice overlaps another");
        total += json["counts"]["total"].as_u64().unwrap();
    }
    assert_eq!(total, 15);
    assert_eq!(["a", "b", "c"].map(|r| target.tags(&format!("m/{r}")).len()), [5, 5, 5]);
}

#[tokio::test]
async fn a_dry_run_tells_a_line_per_image_and_writes_nothing() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let same = images::single("dry-same");
    source.push("a", "same", &same);
    source.push("a", "new", &images::single("dry-new"));
    target.push("m/a", "same", &same);
    let program =
        configured(&format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let file = program.work_dir().join("imgsync.yaml");
    let output = program.again().args(["run", "--dry-run", "-c"]).arg(&file).run().await.assert_code(0);
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let (from, to) = (source.host(), target.host());
    assert_eq!(lines, [format!("copy {from}/a:new {to}/m/a:new"), format!("unchanged {from}/a:same {to}/m/a:same")]);
    let writes = [RequestType::ManifestPut, RequestType::UploadStart, RequestType::UploadMount];
    assert_eq!(writes.iter().map(|kind| target.count(*kind)).sum::<u64>(), 0);
    assert!(!program.state_dir().join("imgsync").exists(), "no state was made");
}

#[tokio::test]
async fn the_manifests_folder_of_2_1_is_a_hint() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for n in 0..10 {
        let image = images::single(&format!("hint-{n}"));
        source.push("ns/a", &format!("v{n}"), &image);
        target.push("m/ns/a", &format!("v{n}"), &image);
    }
    let program =
        configured(&format!("rules:\n- {{from: {}/ns/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let folder = program.work_dir().join("manifests").join(source.host()).join("ns/a");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..9 {
        let bytes = images::single(&format!("hint-{n}")).root_manifest().bytes.clone();
        std::fs::write(folder.join(format!("v{n}.json")), bytes).unwrap();
    }
    let manifests = program.work_dir().join("manifests");
    let json = run(&program, &["--manifests", manifests.to_str().unwrap()]).await.assert_code(0).json();
    assert_eq!(counts(&json), (0, 10, 0));
    // One of the nine as a spot check, and the one that the folder does not list.
    assert!(target.count(RequestType::ManifestHead) <= 2, "{}", target.describe_requests());
    assert_eq!(target.count(RequestType::ManifestPut), 0);
}

#[tokio::test]
async fn an_official_image_is_explained_without_its_library() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("library/redis", "8.0", &images::single("explained"));
    let rule =
        format!("rules:\n- {{from: {}/library/redis, to: {}/mirror, naming: keep}}\n", source.host(), target.host());
    let program = configured(&rule);
    run(&program, &[]).await.assert_code(0);
    for repository in ["mirror/redis", "mirror/library/redis"] {
        let name = format!("{}/{repository}:8.0", target.host());
        let output = program.again().args(["explain", &name]).run().await.assert_code(0);
        let copied = format!("{}/mirror/library/redis:8.0: copied", target.host());
        assert!(output.stdout.contains(&copied), "{}", output.stdout);
    }
    program.again().args(["explain", &format!("{}/mirror/redis:9", target.host())]).run().await.assert_code(1);
}

#[tokio::test]
async fn a_dry_run_warns_of_a_target_that_rejects_the_credentials() {
    let source = FaultRegistry::start().await;
    source.push("app", "1", &images::single("rejected"));
    let (basic, bearer) = tokio::join!(
        FaultRegistry::builder().basic("me", "right").start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "right")).start()
    );
    for target in [basic, bearer] {
        for (password, is_rejected) in [("wrong", true), ("right", false)] {
            let program = configured(&format!(
                "registries: {{\"{1}\": {{username: me, password: {password}}}}}\nrules:\n- {{from: {0}/app, to: {1}/m}}\n",
                source.host(),
                target.host()
            ));
            let output = program.args(["run", "--dry-run", "--retry-delay", "10ms"]).run().await;
            let warning = format!("{} rejects the stored credentials; pushes will fail", target.host());
            assert_eq!(output.stderr.contains(&warning), is_rejected, "{password}: {}", output.stderr);
            let writes = [RequestType::UploadStart, RequestType::ManifestPut].map(|kind| target.count(kind));
            assert_eq!(writes, [0, 0], "{}", target.describe_requests());
        }
    }
}
