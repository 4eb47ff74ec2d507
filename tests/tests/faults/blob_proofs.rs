//! A digest is no secret: knowing one must not give access to the blob. A blob at the target that came from another
//! source is used only if this source proves that it holds the blob.

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TargetContents, TestImage, floor, media};
use imgsync_tests::program::{Imgsync, Output};

const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Builds a private image, and one that references its layer.
fn private_and_thief(size: u64) -> (TestImage, TestImage, String) {
    let layer = Layer::Shared("proof/private".to_owned(), size);
    let private = TestImage::single("proof/private").layer(layer.clone()).build();
    let thief = TestImage::single("proof/thief").layer(layer).layers(1, 900).build();
    let stolen = private.layers()[0].clone();
    assert!(thief.layers().contains(&stolen));
    (private, thief, stolen)
}

/// Starts a source whose manifest references a layer that it does not hold.
async fn source_without_blob(image: &TestImage, stolen: &str) -> FaultRegistry {
    let source = FaultRegistry::builder().lenient().start().await;
    source.push("open/app", "1", image);
    source.delete_blob("open/app", stolen);
    source
}

/// Copies a tag of each repository to the given target repository.
async fn run(program: &Imgsync, rules: &[(String, &str, String)]) -> Output {
    let rule = |(from, tag, to): &(String, &str, String)| {
        format!("- {{from: '{from}', tags: {{include: '{tag}'}}, to: '{to}', naming: keep}}\n")
    };
    let rules: Vec<String> = rules.iter().map(rule).collect();
    let file = program.file("imgsync.yaml", format!("rules:\n{}", rules.concat()));
    program.again().args(["run", "--json", "--retry-delay", "10ms", "-c"]).arg(file).run().await
}

fn asked(source: &FaultRegistry, digest: &str) -> u64 {
    source.count_where(|request| request.kind == RequestType::BlobHead && request.reference.as_deref() == Some(digest))
}

#[tokio::test]
async fn a_private_layer_is_not_given_to_a_source_that_names_its_digest() {
    for size in [3000, 2 << 20] {
        let (private, thief, stolen) = private_and_thief(size);
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let open = source_without_blob(&thief, &stolen).await;
        source.push("secret/app", "1", &private);
        let program = Imgsync::new();
        let first = (format!("{}/secret/app", source.host()), "1", format!("{}/private", target.host()));
        run(&program, &[first]).await.assert_code(0);
        target.clear_requests();
        // A later run, which knows the layer from the store only.
        let second = (format!("{}/open/app", open.host()), "1", format!("{}/public", target.host()));
        let output = run(&program, &[second]).await.assert_code(1);
        assert!(!target.has_blob("public/open/app", &stolen), "{}", target.describe_requests());
        assert_eq!(target.tag_digest("public/open/app", "1"), None);
        assert_eq!(asked(&open, &stolen), 1, "{}", open.describe_requests());
        assert!(output.stderr.contains(&stolen) && output.stderr.contains("404"), "{}", output.stderr);
        let named = |request: &imgsync_tests::fault::RecordedRequest| request.query.contains("private%2Fsecret%2Fapp");
        assert_eq!(target.count_where(named), 0, "nothing is mounted from there: {}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_private_layer_is_not_given_to_another_rule_of_the_same_run() {
    let (private, thief, stolen) = private_and_thief(2 << 20);
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let open = source_without_blob(&thief, &stolen).await;
    source.push("secret/app", "1", &private);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    open.on(RequestType::ManifestGet).act(FaultAction::Gate(gate.clone()));
    let rules = [
        (format!("{}/secret/app", source.host()), "1", format!("{}/private", target.host())),
        (format!("{}/open/app", open.host()), "1", format!("{}/public", target.host())),
    ];
    let program = Imgsync::new();
    let (output, ()) = tokio::join!(run(&program, &rules), async {
        target.wait_until(|target| target.tag_digest("private/secret/app", "1").is_some(), RUN_TIMEOUT).await;
        gate.add_permits(1);
    });
    output.assert_code(1);
    assert!(!target.has_blob("public/open/app", &stolen), "{}", target.describe_requests());
    assert_eq!(target.tag_digest("public/open/app", "1"), None);
    target.assert_holds("private/secret/app", "1", &private);
}

#[tokio::test]
async fn a_layer_that_the_target_repository_or_a_layout_has_already_needs_a_proof_too() {
    let (private, thief, stolen) = private_and_thief(3000);
    let source = FaultRegistry::start().await;
    let open = source_without_blob(&thief, &stolen).await;
    source.push("secret/app", "1", &private);
    let target = FaultRegistry::start().await;
    let program = Imgsync::new();
    let layout = program.work_dir().join("layout");
    for to in [format!("{}/mixed/app", target.host()), format!("oci:{}", layout.display())] {
        let to = |tag: &str| format!("{to}:{tag}");
        let sync = |from: String, to: String| program.again().args(["sync", &from, &to, "--json"]);
        sync(format!("{}/secret/app:1", source.host()), to("kept")).run().await.assert_code(0);
        let output = sync(format!("{}/open/app:1", open.host()), to("taken")).run().await.assert_code(1);
        assert!(output.stderr.contains(&stolen), "{}", output.stderr);
        let check = program.again().args(["inspect", &to("taken")]).run().await;
        assert_ne!(check.code, Some(0), "the tag is not put: {}", check.stdout);
    }
    assert_eq!(target.tags("mixed/app"), ["kept"]);
}

/// Prepares two repositories of a source with common layers, and a rule for both.
async fn repositories_with_shared_layers(source: &FaultRegistry) -> [TestImage; 2] {
    let image = |name: &str| {
        let image = TestImage::single(name);
        let image = image.layer(Layer::Shared("proof/base".to_owned(), 5000));
        image.layer(Layer::Shared("proof/large".to_owned(), 2 << 20)).layers(1, 700).build()
    };
    let images = ["one", "two"].map(image);
    for (name, image) in ["one", "two"].into_iter().zip(&images) {
        source.push(&format!("team/{name}"), "1", image);
    }
    images
}

#[tokio::test]
async fn layers_of_another_repository_are_mounted_for_one_question_each_and_then_for_none() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let [one, two] = repositories_with_shared_layers(&source).await;
    let program = Imgsync::new();
    let rule =
        |name: &str, tag: &'static str| (format!("{}/team/{name}", source.host()), tag, format!("{}/m", target.host()));
    run(&program, &[rule("one", "1")]).await.assert_code(0);
    target.clear_requests();
    source.clear_requests();
    let json = run(&program, &[rule("two", "1")]).await.assert_code(0).json();
    target.assert_holds("m/team/two", "1", &two);
    let shared: Vec<&String> = one.blobs.keys().filter(|digest| two.blobs.contains_key(*digest)).collect();
    assert_eq!(shared.len(), 2);
    assert!(shared.iter().all(|digest| asked(&source, digest) == 1), "{}", source.describe_requests());
    assert!(json["bytes"]["mounted"].as_u64().unwrap() > 2 << 20, "{json}");
    let known = TargetContents { mountable: shared.into_iter().cloned().collect(), ..TargetContents::nothing() };
    let least = floor(&two, &known);
    // For a single tag that a rule names, what the listing would have shown is requested.
    assert_eq!(
        source.count(RequestType::BlobHead) + source.count(RequestType::BlobGet),
        least.source - 1,
        "{}",
        source.describe_requests()
    );

    // The next version has them too: the proof is remembered, also by another process.
    let next = TestImage::single("next").layer(Layer::Shared("proof/base".to_owned(), 5000));
    let next = next.layer(Layer::Shared("proof/large".to_owned(), 2 << 20)).layers(1, 800).build();
    source.push("team/two", "2", &next);
    source.clear_requests();
    run(&program, &[rule("two", "2")]).await.assert_code(0);
    target.assert_holds("m/team/two", "2", &next);
    assert_eq!(source.count(RequestType::BlobHead), 0, "{}", source.describe_requests());
    assert_eq!(source.count(RequestType::BlobGet), 2, "what is new: {}", source.describe_requests());
}

#[tokio::test]
async fn a_source_that_answers_no_heads_shows_what_it_holds_by_its_bytes() {
    for code in [405, 401, 500] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let [_, two] = repositories_with_shared_layers(&source).await;
        source.on(RequestMatcher::kind(RequestType::BlobHead)).always().act(FaultAction::status(code));
        let program = Imgsync::new();
        for name in ["one", "two"] {
            let rule = (format!("{}/team/{name}", source.host()), "1", format!("{}/m", target.host()));
            run(&program, &[rule]).await.assert_code(0);
        }
        target.assert_holds("m/team/two", "1", &two);
        // Within one repository: the bytes are read for the proof, and not sent again.
        let other = FaultRegistry::start().await;
        other.push("a", "1", &two);
        other.on(RequestMatcher::kind(RequestType::BlobHead)).always().act(FaultAction::status(code));
        let changed = TestImage::single("changed").layer(Layer::Shared("proof/large".to_owned(), 2 << 20)).build();
        other.push("a", "2", &changed);
        target.clear_requests();
        let (from, to) = (format!("{}/a:2", other.host()), format!("{}/m/team/two:2", target.host()));
        Imgsync::new().args(["sync", &from, &to, "--retry-delay", "10ms"]).run().await.assert_code(0);
        target.assert_holds("m/team/two", "2", &changed);
        assert_eq!(target.count(RequestType::UploadPut), 1, "the config alone: {}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_layer_that_only_a_mirror_holds_is_shown_by_the_mirror() {
    let (source, mirror, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let [_, two] = repositories_with_shared_layers(&mirror).await;
    let program = Imgsync::new();
    let config = |name: &str| {
        format!(
            "registries: {{'{0}': {{mirrors: ['{1}']}}}}\nrules: [{{from: '{0}/team/{name}', to: '{2}/m', naming: keep}}]\n",
            source.host(),
            mirror.url(),
            target.host()
        )
    };
    repositories_with_shared_layers(&source).await;
    for name in ["one", "two"] {
        let file = program.file("imgsync.yaml", config(name));
        program.again().args(["run", "-c"]).arg(file).run().await.assert_code(0);
    }
    target.assert_holds("m/team/two", "1", &two);
    assert_eq!(
        (source.count(RequestType::BlobHead), mirror.count(RequestType::BlobHead)),
        (0, 2),
        "{}",
        mirror.describe_requests()
    );
}

#[tokio::test]
async fn an_artifacts_blobs_and_an_indexs_own_need_proofs_as_layers_do() {
    let (private, _, stolen) = private_and_thief(3000);
    let blob = private.blobs[&stolen].clone();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("secret/app", "1", &private);
    let child = TestImage::single("proof/child").layers(1, 500).build();
    let index = TestImage::index("proof/index").child(&child, "linux/amd64").blob(media::OCI_LAYER, blob).build();
    let open = source_without_blob(&index, &stolen).await;
    let program = Imgsync::new();
    let first = (format!("{}/secret/app", source.host()), "1", format!("{}/private", target.host()));
    run(&program, &[first]).await.assert_code(0);
    let second = (format!("{}/open/app", open.host()), "1", format!("{}/public", target.host()));
    run(&program, &[second]).await.assert_code(1);
    assert!(!target.has_blob("public/open/app", &stolen), "{}", target.describe_requests());
}
