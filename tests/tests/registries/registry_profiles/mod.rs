//! Every known registry, in both roles, through the same scenarios; and the matrix of them in the documentation.

mod matrix;
mod scenario;

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TargetContents, TestImage, floor};
use imgsync_tests::registry_profiles::{self, RegistryProfile};
use tokio::sync::Semaphore;

use self::scenario::{ProfileRole, Scenario, WAIT_TIMEOUT};

const MIB: u64 = 1 << 20;

/// Builds an index of two platforms; `base` is shared by versions, and `arm` changes one platform.
fn version(name: &str, arm: &str) -> TestImage {
    let child = |of: &str, platform: &str| {
        let base = Layer::Shared(format!("{name}/base"), 6000);
        TestImage::single(&format!("{name}/{of}")).platform(platform).layer(base).layers(5, 3000).build()
    };
    let index = TestImage::index(&format!("{name}/{arm}")).child(&child("amd", "linux/amd64"), "linux/amd64");
    index.child(&child(arm, "linux/arm64"), "linux/arm64").build()
}

/// Runs all scenarios of a profile in a role. Each must complete at the lowest possible cost.
async fn run_scenarios(profile: RegistryProfile, role: ProfileRole) {
    let name = format!("{}-{role:?}", profile.name);
    let scenario = Scenario::start(profile, role).await;
    fresh(&scenario, &name).await;
    docker(&scenario, &name).await;
    unchanged_and_changed(&scenario, &name).await;
    shared_layers(&scenario, &name).await;
    large_layer(&scenario, &name).await;
    missing_tag(&scenario, &name).await;
    expired(&scenario, &name).await;
    throttled(&scenario, &name).await;
    if role == ProfileRole::Source {
        listed(&scenario).await;
    }
}

async fn fresh(scenario: &Scenario, name: &str) {
    let image = version(name, "one");
    scenario.source_has("1", &image);
    let output = scenario.sync("1").await.assert_code(0).json();
    assert_eq!(output["outcome"], "copied");
    scenario.assert_arrived("1", &image);
    scenario.assert_cost("fresh", floor(&image, &TargetContents::nothing()), 0);
}

async fn docker(scenario: &Scenario, name: &str) {
    let image = images::single_docker(&format!("{name}-docker"));
    scenario.source_has("docker", &image);
    let output = scenario.sync("docker").await;
    if scenario.role == ProfileRole::Source || scenario.profile.profile.takes_docker {
        output.assert_code(0);
        scenario.assert_arrived("docker", &image);
    } else {
        assert!(output.assert_code(1).stderr.contains("docker2s2"), "what to set is said");
    }
    scenario.forget();
}

async fn unchanged_and_changed(scenario: &Scenario, name: &str) {
    let (before, after) = (version(name, "one"), version(name, "two"));
    let output = scenario.sync("1").await.assert_code(0).json();
    assert_eq!(output["outcome"], "unchanged", "{}", scenario.describe());
    let least = images::Floor { source: 1, target: 1 };
    scenario.assert_cost("unchanged", least, 0);

    scenario.source_has("1", &after);
    let output = scenario.sync("1").await.assert_code(0).json();
    assert_eq!(output["outcome"], "copied");
    scenario.assert_arrived("1", &after);
    scenario.assert_cost(
        "changed",
        floor(&after, &TargetContents::in_repository(&before)),
        extra_requests(&after, &before),
    );
}

async fn shared_layers(scenario: &Scenario, name: &str) {
    let (before, image) = (version(name, "one"), images::shared_layers(&format!("{name}-shared")));
    let base = Layer::Shared(format!("{name}/base"), 6000);
    let with_base = TestImage::single(&format!("{name}-with-base")).layer(base).layers(4, 2000).build();
    for (tag, image) in [("shared", &image), ("base", &with_base)] {
        scenario.source_has(tag, image);
        scenario.sync(tag).await.assert_code(0);
        scenario.assert_arrived(tag, image);
        scenario.assert_cost(
            tag,
            floor(image, &TargetContents::in_repository(&before)),
            extra_requests(image, &before),
        );
    }
}

async fn large_layer(scenario: &Scenario, name: &str) {
    let image = TestImage::single(&format!("{name}-large")).layer(Layer::Synthetic(24 * MIB)).layers(14, 2000).build();
    scenario.source_has("large", &image);
    scenario.sync("large").await.assert_code(0);
    scenario.assert_arrived("large", &image);
    let target_chunk = scenario.profile.profile.chunk.filter(|_| scenario.role == ProfileRole::Target);
    let patches = target_chunk.map_or(0, |chunk| (24 * MIB).div_ceil(chunk));
    scenario.assert_cost("large", floor(&image, &TargetContents::nothing()), patches);
}

async fn missing_tag(scenario: &Scenario, name: &str) {
    let output = scenario.sync("absent").await.assert_code(1);
    let kind = output.json()["kind"].as_str().unwrap_or_default().to_owned();
    assert!(["not_found", "denied"].contains(&kind.as_str()), "{kind}: {}", output.stderr);
    let said =
        output.stderr.contains("check the repository's name and the tag") || output.stderr.contains("missing, too");
    assert!(said, "what it may be is said: {}", output.stderr);
    scenario.forget();
    // A tag is missing at the target, whose repository has the image.
    let image = version(name, "two");
    scenario.source_has("again", &image);
    scenario.sync("again").await.assert_code(0);
    scenario.assert_arrived("again", &image);
    // The tag, a blob, the digest, the PUT; at the source the index and the manifest that references the blob.
    scenario.assert_cost("missing", images::Floor { source: 2, target: 4 }, 0);
}

async fn expired(scenario: &Scenario, name: &str) {
    if !scenario.profile.profile.expires {
        return;
    }
    let image = images::multi_platform(&format!("{name}-expired"));
    scenario.source_has("expired", &image);
    let kind = match scenario.role {
        ProfileRole::Source => RequestType::BlobGet,
        ProfileRole::Target => RequestType::UploadPut,
    };
    let registry = &scenario.profile.registry;
    let gate = std::sync::Arc::new(Semaphore::new(0));
    registry.on(kind).act(FaultAction::Gate(gate.clone()));
    let program = scenario.program("expired");
    let running = program.spawn();
    registry.wait_until(|registry| registry.count(kind) > 0, WAIT_TIMEOUT).await;
    scenario.profile.expire(&program);
    gate.add_permits(1);
    let mut running = running;
    let output = tokio::time::timeout(WAIT_TIMEOUT, running.wait()).await.expect("it comes to its end");
    output.assert_code(0);
    scenario.assert_arrived("expired", &image);
    assert!(registry.wasted_requests() > 0, "something had run out: {}", scenario.describe());
    // All blobs may be on their way at that time, and each upload starts again.
    scenario.assert_cost("expired", floor(&image, &TargetContents::nothing()), image.blobs.len() as u64);
}

async fn throttled(scenario: &Scenario, name: &str) {
    let image = images::multi_platform(&format!("{name}-throttled"));
    scenario.source_has("throttled", &image);
    let throttle = scenario.profile.profile.throttle;
    let kind = match scenario.role {
        ProfileRole::Source => throttle.reads,
        ProfileRole::Target => throttle.writes,
    };
    let rule = scenario.profile.registry.on(RequestMatcher::kind(kind)).times(2).act(throttle.action());
    scenario.sync("throttled").await.assert_code(0);
    scenario.assert_arrived("throttled", &image);
    assert_eq!(rule.hits(), 2, "{}", scenario.describe());
    scenario.assert_cost("throttled", floor(&image, &TargetContents::nothing()), 2);
}

/// More tags than fit on a page.
async fn listed(scenario: &Scenario) {
    let profile = &scenario.profile.profile;
    let image = images::single("listed");
    let tags: Vec<String> = (0..230).map(|number| format!("v{number:03}")).collect();
    for tag in &tags {
        scenario.profile.registry.push(profile.other_repository, tag, &image);
    }
    let pattern = format!("{}/{}", profile.registry, profile.other_repository);
    let output = scenario.configured().args(["tags", &pattern]).run().await.assert_code(0);
    let found: Vec<&str> = output.stdout.lines().filter_map(|line| line.rsplit(':').next()).collect();
    assert_eq!(found, tags, "{}", output.stderr);
    scenario.forget();
}

/// Counts the extra requests: per existing blob, whether it exists and whether the source holds it; per existing
/// platform one more, and no proof for the blob it was recognised by.
fn extra_requests(image: &TestImage, before: &TestImage) -> u64 {
    let blobs = image.blobs.keys().filter(|digest| before.blobs.contains_key(*digest)).count();
    let children = image.children();
    let kept: Vec<_> = children.iter().filter(|digest| before.manifests.contains_key(*digest)).collect();
    // For a platform that exists as a whole, one blob is requested.
    let spared: usize = kept.iter().map(|digest| image.subtree(digest).blobs.len() - 1).sum();
    let shared = kept.iter().flat_map(|digest| image.subtree(digest).blobs.into_keys()).filter(|digest| {
        children
            .iter()
            .any(|child| !before.manifests.contains_key(child) && image.subtree(child).blobs.contains_key(digest))
    });
    let asked = blobs - spared + shared.count();
    (asked + (asked - kept.len()) + kept.len()) as u64
}

macro_rules! profile_tests {
    ($($test:ident: $name:literal;)*) => {
        const TESTED: &[&str] = &[$($name),*];
        $(mod $test {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn as_a_source() {
                super::run_scenarios(super::named($name), super::ProfileRole::Source).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn as_a_target() {
                super::run_scenarios(super::named($name), super::ProfileRole::Target).await;
            }
        })*
    };
}

profile_tests! {
    docker_hub: "Docker Hub";
    ecr: "ECR";
    ecr_public: "ECR Public";
    google: "GCR, Artifact Registry";
    ghcr: "GHCR";
    acr: "ACR";
    quay: "Quay";
    harbor: "Harbor";
    gitlab: "GitLab";
    artifactory: "Artifactory";
    nexus: "Nexus";
    zot: "zot";
    pulp: "pulp";
    cdn: "distribution behind a CDN";
}

fn named(name: &str) -> RegistryProfile {
    registry_profiles::all().into_iter().find(|profile| profile.name == name).expect("there is such a one")
}

#[test]
fn every_registry_profile_is_tested() {
    let all: Vec<_> = registry_profiles::all().iter().map(|profile| profile.name).collect();
    assert_eq!(all, TESTED);
}

#[tokio::test]
async fn a_repository_that_has_to_be_made_first_is_said_so() {
    for name in ["ECR", "ECR Public"] {
        let scenario = Scenario::start(named(name), ProfileRole::Target).await;
        scenario.profile.registry.delete_repository(scenario.profile.profile.repository);
        scenario.source_has("1", &images::single("unmade"));
        let output = scenario.sync("1").await.assert_code(1);
        assert!(output.stderr.contains("may have to be created first"), "{name}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_tag_of_ecr_that_cannot_be_moved_is_done_where_it_is_right_and_fails_clearly_where_it_is_not() {
    let mut profile = named("ECR");
    profile.repository = "mirror/fixed";
    let scenario = Scenario::start(profile, ProfileRole::Target).await;
    let image = images::single("fixed");
    scenario.source_has("1", &image);
    scenario.sync("1").await.assert_code(0);
    scenario
        .configured()
        .args(["sync", &scenario.source_reference("1"), &scenario.target_reference("1"), "--force"])
        .run()
        .await
        .assert_code(0);
    scenario.source_has("1", &images::single("moved"));
    let output = scenario.sync("1").await.assert_code(1);
    assert!(output.stderr.contains("the tag is immutable"), "{}", output.stderr);
    scenario.assert_arrived("1", &image);
}

#[tokio::test]
async fn azure_behind_another_name_takes_large_blobs_where_the_size_of_a_piece_is_set() {
    let mut profile = named("ACR");
    (profile.registry, profile.api) = ("registry.corp.example", "team.azurecr.io");
    profile.settings = "chunk: 10MiB";
    profile.other_hosts = &["neu.data.azurecr.io"];
    let scenario = Scenario::start(profile, ProfileRole::Target).await;
    let image = images::big("azure", 24 * MIB);
    scenario.source_has("1", &image);
    scenario.sync("1").await.assert_code(0);
    scenario.assert_arrived("1", &image);
}
