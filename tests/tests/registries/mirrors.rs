//! Mirrors of a registry: the source and the credentials of each read, and failures of a mirror.

use std::time::Duration;

use imgsync_registry::{Access, ClientSettings, ManifestRef, RegistrySettings};
use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::tcp_proxy::TcpProxy;

use super::client::{client, repository, settings};

const MIB: u64 = 1 << 20;

/// Copies `a:1` of a registry with these mirrors.
async fn sync(
    source: &FaultRegistry,
    mirrors: &[String],
    target: &FaultRegistry,
    logins: &[(&str, &str, &str)],
) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let program = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "10ms"]);
    program
        .file("imgsync.yaml", format!("registries:\n  \"{}\": {{mirrors: [{}]}}\n", source.host(), mirrors.join(", ")));
    program.write_docker_config(logins);
    program.run().await
}

fn reads(registry: &FaultRegistry) -> u64 {
    registry.count(RequestType::ManifestGet) + registry.count(RequestType::BlobGet)
}

async fn three() -> (FaultRegistry, FaultRegistry, FaultRegistry) {
    tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start())
}

#[tokio::test]
async fn a_mirror_that_has_the_image_is_all_that_is_read() {
    let (source, mirror, target) = three().await;
    let image = images::multi_platform("mirrored");
    mirror.push("a", "1", &image);
    let output = sync(&source, &[mirror.url()], &target, &[]).await.assert_code(0).json();
    target.assert_holds("b", "1", &image);
    // Referrers are requested from the registry only.
    assert_eq!(source.total(), 0, "{}", source.describe_requests());
    assert!(
        source.referrer_requests().iter().all(|request| request.status == Some(200) || request.status == Some(404))
    );
    let least = images::floor(&image, &images::TargetContents::nothing());
    assert_eq!((mirror.total(), target.total()), (least.source, least.target));
    assert_eq!(output["traffic"]["source"]["requests"], least.source);
}

#[tokio::test]
async fn a_mirror_can_have_the_names_below_a_project() {
    let (source, mirror, target) = three().await;
    let image = images::multi_platform("proxied");
    mirror.push("proxy/hub/a", "1", &image);
    let url = format!("{}/v2/proxy/hub/", mirror.url().trim_end_matches('/'));
    sync(&source, &[url], &target, &[]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((source.total(), reads(&mirror)), (0, (image.manifests.len() + image.blobs.len()) as u64));
}

#[tokio::test]
async fn what_a_mirror_lacks_comes_from_the_next_and_at_last_from_the_registry() {
    let (source, first, second) = three().await;
    let target = FaultRegistry::start().await;
    let image = images::multi_platform("partly");
    source.push("a", "1", &image);
    // The second mirror has the index, one platform, and none of the other's blobs.
    second.push("a", "1", &image);
    let [kept, dropped] = <[String; 2]>::try_from(image.children()).unwrap();
    second.delete_manifest("a", &dropped);
    for blob in image.subtree(&dropped).blobs.keys() {
        second.delete_blob("a", blob);
    }
    sync(&source, &[first.url(), second.url()], &target, &[]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    let all = (image.manifests.len() + image.blobs.len()) as u64;
    assert_eq!(reads(&first), all, "the first is asked for all: it only lacks things");
    assert_eq!(reads(&source), 1 + image.subtree(&dropped).blobs.len() as u64, "{}", source.describe_requests());
    assert!(second.count_where(|request| request.reference.as_deref() == Some(&kept)) > 0);
}

#[tokio::test]
async fn a_mirror_that_is_dead_or_broken_or_wrong_costs_no_image_and_is_reported_once() {
    let wrong = TestImage::single("wrong").layers(2, 4096).build();
    let html = FaultAction::Status {
        code: 200,
        headers: vec![("content-type".into(), "text/html".into())],
        body: "<p>hi".into(),
    };
    for what in [
        Some(FaultAction::error(503, "UNAVAILABLE")),
        Some(FaultAction::error(401, "UNAUTHORIZED")),
        Some(FaultAction::ReplaceBody(wrong.root_manifest().bytes.clone())),
        Some(html),
        Some(FaultAction::CutBefore),
        None,
    ] {
        let (source, mirror, target) = three().await;
        let image = images::multi_platform("whole");
        source.push("a", "1", &image);
        mirror.push("a", "1", &image);
        let mut url = mirror.url();
        match what.clone() {
            Some(action) => _ = mirror.on(RequestMatcher::any()).always().act(action),
            None => url = format!("http://127.0.0.1:{}", dead_port().await),
        }
        let output = sync(&source, &[url], &target, &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert_eq!(output.stderr.matches("skipping the mirror").count(), 1, "{what:?}: {}", output.stderr);
        assert!(mirror.total() <= 3, "{what:?}: {}", mirror.describe_requests());
    }
}

/// Returns a port without a listener.
async fn dead_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_blob_of_which_a_mirror_gives_half_is_read_on_from_the_registry() {
    let (source, mirror, target) = three().await;
    let image = images::big("half", 8 * MIB);
    source.push("a", "1", &image);
    mirror.push("a", "1", &image);
    let large = image.largest_blob();
    mirror
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&large))
        .act(FaultAction::CutAfter { bytes: 3 * MIB });
    sync(&source, &[mirror.url()], &target, &[]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    let rest = source.requests_of_kind(RequestType::BlobGet);
    assert_eq!(rest.len(), 1, "{}", source.describe_requests());
    let from: u64 =
        rest[0].header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap();
    assert!(from > 2 * MIB && from <= 3 * MIB, "{from}");
}

#[tokio::test]
async fn a_blob_that_a_mirror_changed_is_read_from_the_registry() {
    for size in [4096, 4 * MIB] {
        let (source, mirror, target) = three().await;
        let image = images::big("changed", size);
        source.push("a", "1", &image);
        mirror.push("a", "1", &image);
        mirror
            .on(RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob()))
            .always()
            .act(FaultAction::Corrupt { at: 17 });
        sync(&source, &[mirror.url()], &target, &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn each_is_shown_its_own_credentials_and_no_others() {
    let target = FaultRegistry::start().await;
    let (source, mirror, open) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "for-the-registry")).start(),
        FaultRegistry::builder().basic("you", "for-the-mirror").start(),
        FaultRegistry::start()
    );
    let image = images::multi_platform("logins");
    source.push("a", "1", &image);
    mirror.push("a", "1", &image);
    let (at_source, at_mirror) = (source.host(), mirror.host());
    let logins = [(&*at_source, "me", "for-the-registry"), (&*at_mirror, "you", "for-the-mirror")];
    sync(&source, &[open.url(), mirror.url()], &target, &logins).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(open.total() > 0 && open.requests().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(source.total(), 0);

    // Without a login for the mirror, no credentials are sent to it, and the registry is read.
    mirror.clear_requests();
    let target = FaultRegistry::start().await;
    sync(&source, &[mirror.url()], &target, &logins[..1]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn nothing_is_written_to_a_mirror_and_a_target_is_asked_itself() {
    let (source, mirror, target) = three().await;
    let image = images::multi_platform("written");
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let program = Imgsync::new().args(["sync", &from, &to]);
    program
        .file("imgsync.yaml", format!("registries:\n  \"{}\": {{mirrors: [\"{}\"]}}\n", target.host(), mirror.url()));
    program.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(mirror.total_with_pings_and_tokens(), 0);
}

#[tokio::test]
async fn the_first_mirror_is_read_again_when_it_lives_again() {
    let (source, mirror, _) = three().await;
    let image = images::single("again");
    source.push("a", "1", &image);
    mirror.push("a", "1", &image);
    let relay = TcpProxy::start(&mirror.host()).await;
    relay.refuse(true);
    let mut settings = settings(&source, None);
    let one = settings.registries.values_mut().next().unwrap();
    *one = RegistrySettings { mirrors: vec![relay.url().parse().unwrap()], ..one.clone() };
    let mirror_backoff = Duration::from_millis(200);
    let client = client(ClientSettings { mirror_backoff, ..settings });
    let repository = repository(&client, &source, "a", Access::Pull);
    let tag = ManifestRef::Tag("1".parse().unwrap());
    let read = || async { repository.get_manifest(&tag).await.unwrap() };
    read().await;
    read().await;
    assert_eq!((source.count(RequestType::ManifestGet), relay.connections()), (2, 1), "it is left alone for a while");
    relay.refuse(false);
    tokio::time::sleep(mirror_backoff).await;
    read().await;
    assert_eq!((source.count(RequestType::ManifestGet), mirror.count(RequestType::ManifestGet)), (2, 1));
}
