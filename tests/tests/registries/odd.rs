//! Registries that answer otherwise than the specification says, each in the way that its kind was seen to.

use imgsync_tests::fault::{Action, Bearer, FaultRegistry, Kind, Match, Record};
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

fn is_mount_from_elsewhere(request: &Record) -> bool {
    request.parameter("from").is_some_and(|from| from != "b")
}

/// `a` and `b` in one registry, and a mount from `a` that ends so.
async fn mount_that_fails(registry: &FaultRegistry, action: Action) -> images::Image {
    let image = images::Image::single("mounts").layers(6, 2000).build();
    registry.push("a", "1", &image);
    registry.on(Match::kind(Kind::UploadMount).when(is_mount_from_elsewhere)).always().act(action);
    sync(registry, registry, &["--attempts", "2", "--concurrency", "1"]).await.assert_code(0);
    registry.assert_holds("b", "1", &image);
    image
}

#[tokio::test]
async fn a_mount_that_cannot_work_costs_no_image_and_is_not_tried_for_each_blob() {
    for (action, tries) in [
        (Action::error(400, "NAME_INVALID"), 1),
        (Action::error(401, "UNAUTHORIZED"), 1),
        (Action::error(403, "DENIED"), 1),
        (Action::error(404, "NAME_UNKNOWN"), 1),
        (Action::error(409, "CONFLICT"), 1),
        (Action::error(503, "UNAVAILABLE"), 2),
        // 202, but no session.
        (Action::status(202), 1),
    ] {
        let registry = FaultRegistry::start().await;
        mount_that_fails(&registry, action.clone()).await;
        let mounts = registry.requests_of(Kind::UploadMount);
        let refused = mounts.iter().filter(|request| is_mount_from_elsewhere(request)).count();
        assert_eq!(refused, tries, "{action:?}:\n{}", registry.describe_requests());
        // In place of those: mounts from the target itself, which are sessions too.
        assert_eq!(registry.count(Kind::BlobHead), 0, "{action:?}");
    }
}

#[tokio::test]
async fn a_token_service_that_refuses_a_second_scope_costs_no_image() {
    let registry = FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await;
    let two = |request: &Record| request.query.matches("scope=").count() > 1;
    registry.on(Match::kind(Kind::Token).when(two)).always().act(Action::error(403, "DENIED"));
    let image = images::Image::single("two-scopes").layers(6, 2000).build();
    registry.push("a", "1", &image);
    sync(&registry, &registry, &["--concurrency", "1"]).await.assert_code(0);
    registry.assert_holds("b", "1", &image);
    let asked = registry.requests_of(Kind::Token);
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
        target.on(Kind::UploadMount).always().act(Action::error(status, "UNSUPPORTED"));
        let output = sync(&source, &target, &[]).await.assert_code(0).json();
        target.assert_holds("b", "1", &image);
        assert_eq!(output["bytes"]["copied"], 0, "{status}: {}", target.describe_requests());
        assert_eq!(target.count(Kind::UploadPut), 0);
    }
}
