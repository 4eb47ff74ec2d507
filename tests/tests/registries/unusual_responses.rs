//! Registries that deviate from the specification, each in a way seen in the wild.

use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

const LOGIN: (&str, &str) = ("me", "secret");

async fn sync(source: &FaultRegistry, target: &FaultRegistry, more: &[&str]) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "1ms"]).args(more);
    sync.write_docker_config(&[(&target.host(), LOGIN.0, LOGIN.1)]);
    sync.run().await
}

async fn both() -> (FaultRegistry, FaultRegistry) {
    tokio::join!(FaultRegistry::start(), FaultRegistry::start())
}

#[tokio::test]
async fn a_target_that_refuses_to_show_what_is_missing_is_pushed_to() {
    // Artifactory answers 403 for a missing tag, GitLab 401 for a missing repository.
    for status in [401, 403] {
        let (source, target) = both().await;
        let image = images::multi_platform("hidden");
        source.push("a", "1", &image);
        target.on(RequestType::ManifestHead).always().act(FaultAction::error(status, "DENIED"));
        sync(&source, &target, &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn a_target_that_lets_nobody_in_ends_with_how_to_log_in() {
    for registry in [
        FaultRegistry::builder().basic("other", "secret"),
        FaultRegistry::builder().bearer(Bearer::user("other", "secret")),
    ] {
        let (source, target) = tokio::join!(FaultRegistry::start(), registry.start());
        source.push("a", "1", &images::single("nobody"));
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let output = Imgsync::new().args(["sync", &from, &to, "--json"]).run().await.assert_code(1);
        assert_eq!(output.json()["kind"], "denied", "{output:?}");
        assert!(output.stderr.contains(&format!("docker login {}", target.host())), "{}", output.stderr);
        // The same with a wrong login.
        let output = sync(&source, &target, &[]).await.assert_code(1);
        assert_eq!(output.json()["kind"], "denied", "{output:?}");
        assert!(output.stderr.contains("check the user and password"), "{}", output.stderr);
        assert_eq!(target.repositories().len(), 0);
    }
}

#[tokio::test]
async fn a_source_whose_heads_find_nothing_is_asked_with_a_get() {
    let (source, target) = both().await;
    let image = images::multi_platform("headless");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    source.on(RequestType::ManifestHead).always().act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let output = sync(&source, &target, &[]).await.assert_code(0).json();
    assert_eq!(output["outcome"], "unchanged");
    assert_eq!((source.total(), source.count(RequestType::ManifestGet)), (2, 1), "{}", source.describe_requests());
    source.delete_tag("a", "1");
    let output = sync(&source, &target, &[]).await.assert_code(1).json();
    assert_eq!(output["kind"], "not_found");
}

#[tokio::test]
async fn a_tag_that_cannot_be_moved_and_is_right_already_counts_as_done() {
    for (status, code) in [(400, "TAG_INVALID"), (409, "TAG_IMMUTABLE"), (403, "TAG_IMMUTABLE")] {
        let (source, target) = both().await;
        let image = images::single("immutable");
        source.push("a", "1", &image);
        target.push("b", "1", &image);
        target
            .on(RequestMatcher::kind(RequestType::ManifestPut).reference("1"))
            .always()
            .act(FaultAction::error(status, code));
        sync(&source, &target, &["--force"]).await.assert_code(0);
        source.push("a", "1", &images::single("moved"));
        let output = sync(&source, &target, &[]).await.assert_code(1);
        assert!(output.stderr.contains(code), "{}", output.stderr);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn a_registry_that_takes_oci_alone_is_said_so_for_an_image_of_docker() {
    for (image, hinted) in [(images::single_docker("docker"), true), (images::single("oci"), false)] {
        let (source, target) = both().await;
        source.push("a", "1", &image);
        target.on(RequestType::ManifestPut).always().act(FaultAction::error(415, "MANIFEST_INVALID"));
        let output = sync(&source, &target, &[]).await.assert_code(1);
        assert_eq!(output.stderr.contains("docker2s2"), hinted, "{}", output.stderr);
    }
}

fn is_mount_from_elsewhere(request: &RecordedRequest) -> bool {
    request.parameter("from").is_some_and(|from| from != "b")
}

/// Copies `a` to `b` of one registry where a mount from `a` ends with this action.
async fn mount_that_fails(registry: &FaultRegistry, action: FaultAction) -> images::TestImage {
    let image = images::TestImage::single("mounts").layers(6, 2000).build();
    registry.push("a", "1", &image);
    registry.on(RequestMatcher::kind(RequestType::UploadMount).when(is_mount_from_elsewhere)).always().act(action);
    sync(registry, registry, &["--attempts", "2", "--concurrency", "1"]).await.assert_code(0);
    registry.assert_holds("b", "1", &image);
    image
}

#[tokio::test]
async fn a_mount_that_cannot_work_costs_no_image_and_is_not_tried_for_each_blob() {
    for (action, tries) in [
        (FaultAction::error(400, "NAME_INVALID"), 1),
        (FaultAction::error(401, "UNAUTHORIZED"), 1),
        (FaultAction::error(403, "DENIED"), 1),
        (FaultAction::error(404, "NAME_UNKNOWN"), 1),
        (FaultAction::error(409, "CONFLICT"), 1),
        (FaultAction::error(503, "UNAVAILABLE"), 2),
        // 202, but no session.
        (FaultAction::status(202), 1),
    ] {
        let registry = FaultRegistry::start().await;
        mount_that_fails(&registry, action.clone()).await;
        let mounts = registry.requests_of_kind(RequestType::UploadMount);
        let refused = mounts.iter().filter(|request| is_mount_from_elsewhere(request)).count();
        assert_eq!(refused, tries, "{action:?}:\n{}", registry.describe_requests());
        // Instead the client mounts from the target itself, which also opens sessions.
        assert_eq!(registry.count(RequestType::BlobHead), 0, "{action:?}");
    }
}

#[tokio::test]
async fn a_token_service_that_refuses_a_second_scope_costs_no_image() {
    let registry = FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await;
    let two = |request: &RecordedRequest| request.query.matches("scope=").count() > 1;
    registry.on(RequestMatcher::kind(RequestType::Token).when(two)).always().act(FaultAction::error(403, "DENIED"));
    let image = images::TestImage::single("two-scopes").layers(6, 2000).build();
    registry.push("a", "1", &image);
    sync(&registry, &registry, &["--concurrency", "1"]).await.assert_code(0);
    registry.assert_holds("b", "1", &image);
    let asked = registry.requests_of_kind(RequestType::Token);
    assert_eq!(asked.iter().filter(|request| two(request)).count(), 1, "{}", registry.describe_requests());
}

#[tokio::test]
async fn a_registry_that_knows_no_mounts_is_not_sent_what_it_has_not_even_the_first_blob() {
    for status in [400, 405, 404] {
        let (source, target) = both().await;
        let image = images::big("known-there", 3 << 20);
        source.push("a", "1", &image);
        for (digest, blob) in &image.blobs {
            target.push_blob("b", digest, blob);
        }
        target.on(RequestType::UploadMount).always().act(FaultAction::error(status, "UNSUPPORTED"));
        let output = sync(&source, &target, &[]).await.assert_code(0).json();
        target.assert_holds("b", "1", &image);
        assert_eq!(output["bytes"]["copied"], 0, "{status}: {}", target.describe_requests());
        assert_eq!(target.count(RequestType::UploadPut), 0);
    }
}
