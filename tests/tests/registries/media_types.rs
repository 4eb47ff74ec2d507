//! Rare and old media types: what can be copied is copied unchanged, the rest is refused with the reason.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, Blob, Layer, TestImage, TestManifest};
use imgsync_tests::program::{Imgsync, Output};
use serde_json::json;

/// A WebAssembly module, as `wasm-to-oci` and wasmCloud push it.
pub(crate) fn wasm(name: &str) -> TestImage {
    let module = TestImage::single(name).config("application/vnd.wasm.config.v1+json", r#"{"architecture":"wasm"}"#);
    module.layer_type("application/vnd.wasm.content.layer.v1+wasm").layer(Layer::Synthetic(1500)).build()
}

/// An image with zstd layers.
pub(crate) fn zstd(name: &str) -> TestImage {
    TestImage::single(name)
        .layer_type("application/vnd.oci.image.layer.v1.tar+zstd")
        .layer(Layer::Synthetic(3000))
        .build()
}

/// An image with unknown media types that have parameters.
pub(crate) fn unknown(name: &str) -> TestImage {
    let odd = TestImage::single(name).config("application/vnd.example.unheard-of.v7+cbor", vec![0xa0]);
    odd.layer_type("application/x-something-else")
        .layer(Layer::Synthetic(700))
        .annotation("org.example", "kept")
        .build()
}

/// An image as BuildKit pushes it with `--provenance` and `--sbom`.
pub(crate) fn attested(name: &str) -> TestImage {
    let image = TestImage::single(name).layers(2, 2000).build();
    let statement = TestImage::single(&format!("{name}/attestation")).layer_type("application/vnd.in-toto+json");
    let statement = statement.platform("unknown/unknown").layer(Layer::Synthetic(900)).build();
    TestImage::index(name).child(&image, "linux/amd64").attestation(&statement, &image).build()
}

/// A BuildKit cache (`type=registry`): an index of layers.
pub(crate) fn cache(name: &str) -> TestImage {
    let layer = |number: u32| Blob::synthetic(&format!("{name}/{number}"), 2500);
    let index = TestImage::index(name);
    let index = index.blob(images::media::OCI_LAYER, layer(1)).blob(images::media::OCI_LAYER, layer(2));
    index
        .blob("application/vnd.buildkit.cacheconfig.v0", Blob::from(format!(r#"{{"layers":"{name}"}}"#).into_bytes()))
        .build()
}

/// A BuildKit cache with `image-manifest=true`.
pub(crate) fn cache_as_image(name: &str) -> TestImage {
    let config = format!(r#"{{"layers":"{name}"}}"#);
    TestImage::single(name).config("application/vnd.buildkit.cacheconfig.v0", config).layers(2, 2500).build()
}

async fn sync(source: &str, target: &str, more: &[&str]) -> Output {
    let (from, to) = (format!("{source}/a:1"), format!("{target}/b:1"));
    Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "1ms"]).args(more).run().await
}

#[tokio::test]
async fn an_image_of_schema_1_is_refused_with_an_error_kind_of_its_own_and_costs_no_other_image() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let old = json!({
        "schemaVersion": 1, "name": "a", "tag": "old", "architecture": "amd64", "signatures": [],
        "fsLayers": [{"blobSum": images::sha256(b"layer")}], "history": [{"v1Compatibility": "{}"}],
    });
    let bytes = old.to_string();
    let digest = images::sha256(bytes.as_bytes());
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned();
    source.push_manifest("a", &digest, TestManifest { media_type, bytes: bytes.into() });
    source.move_tag("a", "old", &digest);
    let new = images::single("beside-the-old");
    source.push("a", "new", &new);
    let program = Imgsync::new();
    program.file(
        "imgsync.yaml",
        format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()),
    );
    let run = program.again().args(["run", "--json", "-c"]).arg(program.work_dir().join("imgsync.yaml")).run().await;
    let json = run.assert_code(1).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&json!(1), &json!(1)), "{json}");
    assert_eq!((&json["failures"][0]["kind"], &json["failures"][0]["attempts"]), (&json!("outdated"), &json!(1)));
    assert!(json["failures"][0]["error"].as_str().unwrap().contains("schema 1"), "{json}");
    target.assert_holds("m/a", "new", &new);
    assert_eq!(target.tags("m/a"), ["new"]);
}

#[tokio::test]
async fn an_artifact_without_a_config_and_one_whose_index_lists_layers_arrive_as_they_are() {
    let (source, target) =
        tokio::join!(FaultRegistry::start(), async { FaultRegistry::builder().lenient().start().await });
    let bare =
        TestImage::single("bare").without_config().artifact("application/vnd.example.bare").layers(2, 900).build();
    for (tag, image) in [("bare", bare), ("cache", cache("lenient"))] {
        source.push("a", tag, &image);
        let (from, to) = (format!("{}/a:{tag}", source.host()), format!("{}/b:{tag}", target.host()));
        Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
        assert_eq!(target.manifest("b", tag).unwrap(), *image.root_manifest(), "{tag}");
        for digest in image.blobs.keys() {
            assert!(target.has_blob("b", digest), "{tag}: {digest}");
        }
    }
}

#[tokio::test]
async fn foreign_layers_stay_where_they_are_unless_they_are_wanted() {
    let (source, target, elsewhere) =
        tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    // The layer's URL is a blob of another registry here.
    let sized = images::foreign_layer("foreign", "http://127.0.0.1:1/x");
    let (digest, layer) = sized.foreign.iter().next().unwrap();
    elsewhere.push_blob("layers", digest, layer);
    let image = images::foreign_layer("foreign", &format!("{}/v2/layers/blobs/{digest}", elsewhere.url()));
    source.push("a", "1", &image);

    sync(&source.host(), &target.host(), &[]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((target.has_blob("b", digest), elsewhere.total()), (false, 0));

    // With foreign layers requested, an up-to-date tag does not prove that they are there.
    let output = sync(&source.host(), &target.host(), &["--foreign-layers", "--force"]).await.assert_code(0).json();
    assert_eq!(output["bytes"]["copied"], layer.size(), "{output}");
    assert_eq!((target.has_blob("b", digest), elsewhere.count(RequestType::BlobGet)), (true, 1));
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_rule_that_wants_foreign_layers_brings_them_to_what_was_copied_without() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::foreign_layer("foreign-rule", "http://127.0.0.1:1/gone");
    let (digest, layer) = image.foreign.iter().next().unwrap();
    source.push("a", "1", &image);
    // This source stores the layer itself, and is asked before the URL.
    source.push_blob("a", digest, layer);
    let program = Imgsync::new();
    let run = async |more: &str| {
        let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep{more}}}\n", source.host(), target.host());
        program.file("imgsync.yaml", rule);
        let run =
            program.again().args(["run", "--json", "-c"]).arg(program.work_dir().join("imgsync.yaml")).run().await;
        run.assert_code(0).json()["counts"].clone()
    };
    assert_eq!(run("").await["copied"], 1);
    assert!(!target.has_blob("m/a", digest));
    assert_eq!(run(", foreign_layers: copy").await["copied"], 1);
    assert!(target.has_blob("m/a", digest));
    assert_eq!(run(", foreign_layers: copy").await["unchanged"], 1);
}
