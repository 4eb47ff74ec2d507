//! Index entries: blobs and manifests under media types that do not tell which they are.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Blob, Layer, TestImage, untyped_entries};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use serde_json::{Value, json};

use super::media_types;

/// Media types of index entries that are not manifests; `None` is an entry without a type.
const ENTRY_TYPES: [Option<&str>; 14] = [
    Some("application/vnd.oci.image.config.v1+json"),
    Some("application/vnd.docker.container.image.v1+json"),
    Some("application/vnd.oci.empty.v1+json"),
    Some("application/octet-stream"),
    Some("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
    Some("application/vnd.cncf.helm.config.v1+json"),
    Some("application/vnd.dev.sigstore.bundle.v0.3+json"),
    Some("application/vnd.in-toto+json"),
    Some("application/spdx+json"),
    Some("text/plain"),
    Some("text/plain; charset=utf-8"),
    Some("application/json"),
    Some(""),
    None,
];

/// Builds an index of an image and a blob listed under this type.
fn with_blob(name: &str, media_type: Option<&str>, blob: Blob) -> TestImage {
    let image = images::single(name);
    TestImage::index(name).child(&image, "linux/amd64").blob("", blob).listed_as(media_type).build()
}

/// Builds an index whose second child is listed under this type.
fn with_manifest(name: &str, media_type: Option<&str>) -> TestImage {
    let (image, odd) = (images::single(name), images::single(&format!("{name}/odd")));
    TestImage::index(name).child(&image, "linux/amd64").bare_child(&odd).listed_as(media_type).build()
}

/// Returns the digest of the entry with the ambiguous type.
fn untyped_entry(image: &TestImage) -> String {
    untyped_entries(&image.root_manifest().json()).pop().unwrap()
}

/// Answers 500 to requests for this blob as a manifest, as distribution does.
fn refuse_as_manifest(registry: &FaultRegistry, digest: &str) {
    let asked = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).reference(digest);
    registry.on(asked).always().act(FaultAction::error(500, "UNKNOWN"));
}

async fn sync(from: &str, to: &str, more: &[&str]) -> Output {
    Imgsync::new().args(["sync", from, to, "--json", "--retry-delay", "1ms"]).args(more).run().await
}

#[tokio::test]
async fn a_blob_is_copied_as_a_blob_under_whatever_type_an_index_lists_it() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for (number, media_type) in ENTRY_TYPES.into_iter().enumerate() {
        let name = format!("listed-{number}");
        let blob = match number % 3 {
            0 => Blob::synthetic(&name, 700),
            1 => Blob::from(format!(r#"{{"name": "{name}"}}"#).into_bytes()),
            _ => Blob::from(format!("not JSON: {name}").into_bytes()),
        };
        let image = with_blob(&name, media_type, blob);
        source.push(&name, "1", &image);
        refuse_as_manifest(&source, &untyped_entry(&image));
        let (from, to) = (format!("{}/{name}:1", source.host()), format!("{}/{name}:2", target.host()));
        let json = sync(&from, &to, &[]).await.assert_code(0).json();
        target.assert_holds(&name, "2", &image);
        assert_eq!(json["blobs"]["copied"], image.blobs.len(), "{media_type:?}: {json}");
        let asked = |request: &imgsync_tests::fault::RecordedRequest| {
            request.reference.as_deref() == Some(&untyped_entry(&image))
        };
        let seen: Vec<RequestType> =
            source.requests().iter().filter(|request| asked(request)).map(|request| request.kind).collect();
        assert_eq!(seen, [RequestType::BlobGet], "{media_type:?}\n{}", source.describe_requests());
        assert_eq!(sync(&from, &to, &[]).await.assert_code(0).json()["outcome"], "unchanged");
    }
}

#[tokio::test]
async fn a_large_blob_and_an_empty_one_are_copied_too() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for (name, size) in [("large", 3 << 20), ("empty", 0)] {
        let image = with_blob(name, Some("application/x-anything"), Blob::synthetic(name, size));
        source.push("a", name, &image);
        refuse_as_manifest(&source, &untyped_entry(&image));
        sync(&format!("{}/a:{name}", source.host()), &format!("{}/b:{name}", target.host()), &[]).await.assert_code(0);
        target.assert_holds("b", name, &image);
    }
}

#[tokio::test]
async fn a_manifest_is_copied_as_a_manifest_under_whatever_type_an_index_lists_it() {
    for media_type in [None, Some(""), Some("application/vnd.example.manifest.v9+json"), Some("application/json")] {
        // Some registries serve manifests as manifests only, others as blobs too.
        for as_blobs in [false, true] {
            let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
            let image = with_manifest("manifest", media_type);
            source.push("a", "1", &image);
            if as_blobs {
                let body = image.manifests[&untyped_entry(&image)].bytes.clone();
                let get = RequestMatcher::kind(RequestType::BlobGet).reference(&untyped_entry(&image));
                source.on(get).always().act(FaultAction::Status { code: 200, headers: vec![], body });
            }
            let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
            sync(&from, &to, &[]).await.assert_code(0);
            target.assert_holds("b", "1", &image);
            assert!(!target.has_blob("b", &untyped_entry(&image)), "{media_type:?} {as_blobs}");
        }
    }
}

#[tokio::test]
async fn what_is_neither_fails_the_image_and_is_named() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for (tag, size) in [("small", 400), ("large", 2 << 20)] {
        let image = with_blob("gone", Some("application/octet-stream"), Blob::synthetic("gone", size));
        source.push("a", tag, &image);
        source.delete_blob("a", &untyped_entry(&image));
        let output = sync(&format!("{}/a:{tag}", source.host()), &format!("{}/b:{tag}", target.host()), &[])
            .await
            .assert_code(1);
        assert_eq!(output.json()["kind"], "not_found", "{output:?}");
        assert!(output.stderr.contains(&untyped_entry(&image)), "{}", output.stderr);
    }
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn they_go_through_image_layouts_and_are_surveyed_and_verified_as_what_they_are() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let program = Imgsync::new();
    let in_place = async |args: &[&str]| program.again().args(args.to_vec()).run().await;
    let blobs = [
        ("plain", with_blob("plain", Some("text/plain"), Blob::synthetic("plain", 900))),
        ("untyped", with_blob("untyped", None, Blob::from(b"{\"schemaVersion\": 2}".to_vec()))),
        (
            "bundle",
            with_blob("bundle", Some("application/vnd.dev.sigstore.bundle.v0.3+json"), Blob::synthetic("b", 2 << 20)),
        ),
    ];
    for (tag, image) in blobs.iter().chain(&[("odd", with_manifest("odd", None))]) {
        source.push("a", tag, image);
        if tag != &"odd" {
            refuse_as_manifest(&source, &untyped_entry(image));
        }
        let (from, to) = (format!("{}/a:{tag}", source.host()), format!("{}/b:{tag}", target.host()));
        let layout = format!("oci:{}:{tag}", program.work_dir().join("bag").display());
        let survey = in_place(&["sync", &from, &to, "--dry-run", "--json"]).await.assert_code(0).json();
        assert_eq!(survey["blobs"], image.blobs.len(), "{survey}");
        in_place(&["sync", &from, &layout, "--json"]).await.assert_code(0);
        source.clear_requests();
        in_place(&["sync", &layout, &to, "--json"]).await.assert_code(0);
        assert_eq!(source.total(), 0);
        target.assert_holds("b", tag, image);
        for (one, other) in [(&from, &to), (&layout, &to), (&from, &layout)] {
            let verified = in_place(&["verify", one, other, "--deep", "--json"]).await.assert_code(0).json();
            assert_eq!(
                (&verified["outcome"], &verified["blobs"]),
                (&json!("identical"), &json!(image.blobs.len())),
                "{verified}"
            );
        }
    }
    // `verify` finds what the target has lost of them.
    let (tag, image) = &blobs[0];
    target.delete_blob("b", &untyped_entry(image));
    let (from, to) = (format!("{}/a:{tag}", source.host()), format!("{}/b:{tag}", target.host()));
    let verified = in_place(&["verify", &from, &to, "--json"]).await.assert_code(1).json();
    assert_eq!(verified["findings"][0]["kind"], "missing_blob", "{verified}");
}

#[tokio::test]
async fn a_referrer_that_is_such_an_index_comes_along_and_a_blob_that_is_listed_as_one_is_told_of() {
    let (source, target) = tokio::join!(FaultRegistry::builder().without_referrers().start(), FaultRegistry::start());
    let subject = images::single("subject");
    let bundle =
        TestImage::index("bundle").blob("", Blob::synthetic("bundle", 500)).listed_as(Some("application/json"));
    let bundle = bundle.artifact("application/vnd.example.bundle").subject(&subject).build();
    let stray = Blob::synthetic("stray", 120);
    // The fallback index lists the referrer without a type, and a blob.
    let fallback =
        TestImage::index("fallback").bare_child(&bundle).listed_as(None).blob("text/plain", stray.clone()).build();
    source.push("a", "1", &subject);
    source.push("a", &subject.digest_tag(""), &fallback);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = sync(&from, &to, &[]).await.assert_code(0);
    target.assert_holds("b", "1", &subject);
    target.assert_holds_untagged("b", &bundle);
    assert!(output.stderr.contains(&stray.sha256()), "{}", output.stderr);
    assert!(!target.has_blob("b", &stray.sha256()));
}

/// Returns all layers shown below an image.
fn layers(inspected: &Value) -> Vec<String> {
    let layers = inspected["image"]["layers"].as_array().into_iter().flatten();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn inspect_shows_a_cache_of_builds_at_a_registry_that_answers_500_for_its_blobs() {
    let registry = FaultRegistry::start().await;
    let cache = media_types::cache("inspected");
    registry.push("a", "cache", &cache);
    cache.blobs.keys().for_each(|digest| refuse_as_manifest(&registry, digest));
    let place = format!("{}/a:cache", registry.host());
    let json = Imgsync::new().args(["inspect", &place, "--json"]).run().await.assert_code(0).json();
    assert_eq!(json["blobs"], cache.blobs.len(), "{json}");
    assert_eq!(layers(&json).len(), cache.blobs.len(), "{json}");
    let text = Imgsync::new().args(["inspect", &place]).run().await.assert_code(0).stdout;
    assert!(cache.blobs.keys().all(|digest| text.contains(&format!("blob  {digest}"))), "{text}");
    // Entries whose type does not match their content must be fetched to be recognised.
    let image = with_blob("inspected", None, Blob::synthetic("inspected", 60));
    registry.push("a", "1", &image);
    refuse_as_manifest(&registry, &untyped_entry(&image));
    let place = format!("{}/a:1", registry.host());
    let json = Imgsync::new().args(["inspect", &place, "--json"]).run().await.assert_code(0).json();
    assert_eq!(layers(&json), [untyped_entry(&image)], "{json}");
    assert_eq!(json["image"]["manifests"].as_array().unwrap().len(), 1, "{json}");
}

#[tokio::test]
async fn a_real_registry_gives_and_takes_them() {
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    let image = TestImage::index("real").child(&images::single("real"), "linux/amd64");
    let image = ENTRY_TYPES.into_iter().enumerate().fold(image, |image, (number, media_type)| {
        image.blob("", Blob::synthetic(&format!("real-{number}"), 300)).listed_as(media_type)
    });
    let odd = TestImage::single("real/odd").layer(Layer::Synthetic(800)).build();
    let image = image.bare_child(&odd).listed_as(Some("application/vnd.example.thing+json")).build();
    source.push("a", "1", &image).await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    sync(&from, &to, &[]).await.assert_code(0);
    target.assert_holds("b", "1", &image).await;
    let cache = media_types::cache("real");
    source.push("a", "cache", &cache).await;
    let place = format!("{}/a:cache", source.host());
    let json = Imgsync::new().args(["inspect", &place, "--json"]).run().await.assert_code(0).json();
    assert_eq!(layers(&json).len(), cache.blobs.len(), "{json}");
    let verified = Imgsync::new().args(["verify", &from, &to, "--json"]).run().await.assert_code(0).json();
    assert_eq!(verified["outcome"], "identical", "{verified}");
}
