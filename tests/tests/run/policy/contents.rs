//! `max_age`, `max_size`, `labels` and `requires_platforms`, decided before any layer is read.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, Blob, Layer, TestImage, media};
use serde_json::{Value, json};

use super::{assert_refused, counts, rule};
use crate::end_to_end::run;

/// Makes an image with a config of its own.
fn with_config(name: &str, config: Value) -> TestImage {
    TestImage::single(name).config(media::OCI_CONFIG, config.to_string()).layers(1, 500).build()
}

fn config_of(platform: &str, created: &str, labels: Value) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    json!({"os": os, "architecture": architecture, "created": created, "config": {"Labels": labels}})
}

/// Runs a rule with a policy, and asserts which tags it refuses and why. Nothing of these is read but manifests and
/// configs.
async fn check(source: &FaultRegistry, policy: &str, refused: &[(&str, &str)], copied: u64) {
    let target = FaultRegistry::start().await;
    source.clear_requests();
    let program = rule(&source.host(), &target.host(), &[], &format!("policy: {{{policy}}}"));
    let json = run(&program, &[]).await.json();
    assert_eq!(counts(&json), (copied, 0, refused.len() as u64), "{policy}: {json:#}");
    for (tag, said) in refused {
        assert_refused(&json, tag, said);
        assert_eq!(target.tag_digest("m/app", tag), None, "{policy}");
    }
    let dry = run(&program, &["--dry-run"]).await;
    assert_eq!(dry.code, Some(i32::from(!refused.is_empty())), "{}", dry.stdout);
    let fails = dry.stdout.lines().filter(|line| line.contains(r#""action":"fail""#)).count();
    assert_eq!(fails, refused.len(), "{policy}: {}", dry.stdout);
}

#[tokio::test]
async fn labels_and_ages_are_those_of_the_config_of_every_platform() {
    let source = FaultRegistry::start().await;
    let now = jiff::Timestamp::now().to_string();
    let old = "2020-02-03T04:05:06Z";
    let labels = |team: &str| json!({"team": team});
    source.push("app", "new", &with_config("new", config_of("linux/amd64", &now, labels("web"))));
    source.push("app", "old", &with_config("old", config_of("linux/amd64", old, labels("db"))));
    source.push("app", "plain", &with_config("plain", config_of("linux/amd64", &now, json!(null))));
    let artifact = TestImage::single("artifact").artifact("application/vnd.example.thing").layers(1, 100);
    source.push("app", "artifact", &artifact.clone().build());
    let dated = artifact.annotation("org.opencontainers.image.created", &now);
    source.push("app", "dated", &dated.build());
    let part = |platform: &str, created: &str, team: &str| {
        with_config(&format!("part-{platform}-{created}-{team}"), config_of(platform, created, labels(team)))
    };
    let (amd64, arm64) = (part("linux/amd64", &now, "web"), part("linux/arm64", old, "db"));
    let provenance = images::artifact("policy-provenance");
    let index = TestImage::index("parts").child(&amd64, "linux/amd64").child(&arm64, "linux/arm64");
    source.push("app", "parts", &index.attestation(&provenance, &amd64).build());

    let reads = |tag: &str| format!("{tag} was read");
    check(
        &source,
        "max_age: 90d",
        &[
            ("old", "it was created at 2020-02-03T04:05:06Z"),
            ("artifact", "it does not say when"),
            ("parts", "linux/arm64"),
        ],
        3,
    )
    .await;
    let old_layers = source
        .count_where(|request| request.kind == RequestType::BlobGet && request.path.ends_with(&arm64.layers()[0]));
    assert_eq!(old_layers, 0, "{}", reads("a layer of a refused image"));
    let missing = "the config has no such label";
    check(&source, "labels: team", &[("plain", missing), ("artifact", missing), ("dated", missing)], 3).await;
    check(
        &source,
        "labels: team=web",
        &[
            ("old", "`team=web` is required, and it has `team=db`"),
            ("plain", missing),
            ("artifact", missing),
            ("dated", missing),
            ("parts", "linux/arm64"),
        ],
        1,
    )
    .await;
    check(&source, "max_age: 36500d", &[("artifact", "it does not say when")], 5).await;
}

#[tokio::test]
async fn sizes_and_platforms_are_those_of_what_is_copied() {
    let source = FaultRegistry::start().await;
    let child = |platform: &str, size: u64| {
        TestImage::single(&format!("sized-{size}")).platform(platform).layers(1, size).build()
    };
    let (amd64, arm64) = (child("linux/amd64", 40_000), child("linux/arm64", 50_000));
    let index = TestImage::index("sized").child(&amd64, "linux/amd64").child(&arm64, "linux/arm64").build();
    source.push("app", "index", &index);
    source.push("app", "amd64", &amd64);
    source.push("app", "arm64", &arm64);
    let total = index.blob_bytes();
    check(&source, &format!("max_size: {}", total - 1), &[("index", "`max_size`: it has more than")], 2).await;
    check(&source, &format!("max_size: {total}"), &[], 3).await;
    check(&source, "max_size: 45kB", &[("index", "more than 43.9 KiB"), ("arm64", "more than 43.9 KiB")], 1).await;
    check(
        &source,
        "requires_platforms: [linux/amd64, linux/arm64]",
        &[
            ("amd64", "not available for linux/arm64; its platforms: linux/amd64"),
            ("arm64", "not available for linux/amd64; its platforms: linux/arm64"),
        ],
        1,
    )
    .await;
    check(
        &source,
        "requires_platforms: linux/arm64, max_size: 60kB",
        &[("index", "max_size"), ("amd64", "linux/arm64")],
        1,
    )
    .await;
}

#[tokio::test]
async fn an_index_that_hides_its_images_from_the_policy_is_refused() {
    let source = FaultRegistry::start().await;
    let now = jiff::Timestamp::now().to_string();
    let config = |labels: Value| config_of("linux/amd64", &now, labels);
    let good = with_config("hiding-good", config(json!({"team": "web"})));
    let plain = with_config("hiding-plain", config(json!(null)));
    let subject = "vnd.docker.reference.digest";
    let index = |tag: &str| TestImage::index(&format!("hiding-{tag}"));
    let push = |tag: &str, builder: images::IndexBuilder| source.push("app", tag, &builder.build());
    push("good", index("good").child(&good, "linux/amd64").attestation(&images::artifact("hiding-provenance"), &good));
    // An image that poses as an attestation, and one that is listed as an attestation before it is listed as an image.
    push("posing", index("posing").child(&plain, "linux/amd64").listed_with(subject, &plain.root));
    push("untold", index("untold").bare_child(&plain).listed_with(subject, &plain.root));
    push("twice", index("twice").attestation(&plain, &plain).child(&plain, "linux/amd64"));
    // An image whose manifest is also a layer of another one.
    let layer = Layer::Blob(Blob::Bytes(plain.root_manifest().bytes.clone()));
    let carrier =
        TestImage::single("hiding-carrier").config(media::OCI_CONFIG, config(json!({"team": "web"})).to_string());
    let carrier = carrier.layer(layer).build();
    push("layer", index("layer").child(&carrier, "linux/amd64").child(&plain, "linux/arm64"));
    // No image at all.
    push("attestations", index("attestations").attestation(&images::artifact("hiding-provenance"), &good));
    push("blobs", index("blobs").blob(media::OCI_LAYER, Blob::synthetic("hiding-blob", 700)));
    push("empty", index("empty"));
    let (missing, none) = ("the config has no such label", "there is no image in it");
    check(
        &source,
        "labels: team, max_size: 1GiB",
        &[
            ("posing", missing),
            ("untold", missing),
            ("twice", missing),
            ("layer", missing),
            ("attestations", none),
            ("blobs", none),
            ("empty", none),
        ],
        1,
    )
    .await;
    let none = "`max_age`: there is no image in it";
    check(&source, "max_age: 90d", &[("attestations", none), ("blobs", none), ("empty", none)], 5).await;
}
