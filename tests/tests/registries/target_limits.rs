//! Targets, and proxies in front of them, that accept less than the specification allows, or show pushed content late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imgsync_tests::fault::{FaultAction, FaultRegistry, MountPolicy, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryOptions};
use imgsync_tests::tls::Authority;
use serde_json::json;

const MIB: u64 = 1 << 20;

async fn both() -> (FaultRegistry, FaultRegistry) {
    tokio::join!(FaultRegistry::start(), FaultRegistry::start())
}

async fn sync(source: &FaultRegistry, target: &FaultRegistry, settings: &str, more: &[&str]) -> Output {
    let sync = Imgsync::new();
    sync.file("imgsync.yaml", format!("registries:\n  \"{}\": {{{settings}}}\n", target.host()));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    sync.args(["sync", &from, &to, "--json", "--retry-delay", "1ms"]).args(more).run().await
}

/// An error in the specification's format, with a detail.
fn unknown(status: u16, code: &str, detail: &serde_json::Value) -> FaultAction {
    let body = json!({"errors": [{"code": code, "message": "not known", "detail": detail}]});
    FaultAction::Status {
        code: status,
        headers: vec![("content-type".into(), "application/json".into())],
        body: body.to_string().into(),
    }
}

fn writes(request: &RecordedRequest) -> bool {
    matches!(request.method.as_str(), "POST" | "PUT" | "PATCH")
}

#[tokio::test]
async fn a_front_that_wants_a_length_with_every_request_is_pushed_to() {
    let authority = Arc::new(Authority::new());
    let image =
        TestImage::single("lengths").layer(Layer::Empty).layers(2, 900).layer(Layer::Synthetic(5 * MIB)).build();
    for (tls, settings) in [
        (false, "tls: off"),
        (false, "tls: off, chunk: 2MiB"),
        (true, "tls: on, insecure: true"),
        (true, "tls: on, insecure: true, chunk: 2MiB"),
        (true, "tls: on, insecure: true, http1: true"),
    ] {
        for mounts in [MountPolicy::Mount, MountPolicy::Ignore] {
            let builder = FaultRegistry::builder().mounts(mounts);
            let builder = if tls { builder.tls(authority.clone()) } else { builder };
            let (source, target) = tokio::join!(FaultRegistry::start(), builder.start());
            source.push("a", "1", &image);
            let bare = |request: &RecordedRequest| writes(request) && request.header("content-length").is_none();
            target.on(RequestMatcher::any().when(bare)).always().act(FaultAction::error(411, "LENGTH_REQUIRED"));
            sync(&source, &target, settings, &[]).await.assert_code(0);
            target.assert_holds("b", "1", &image);
            let empty = target.count_where(|request| writes(request) && request.header("content-length") == Some("0"));
            assert!(empty > 0, "{settings}: {}", target.describe_requests());
        }
    }
}

/// Copies `tag` of the source to a repository of the target, in the home of `program`.
async fn run(program: &Imgsync, source: &FaultRegistry, target: &FaultRegistry, repository: &str) -> Output {
    let rule = format!("rules:\n- {{from: {}/{repository}, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    program.again().args(["run", "--json", "--retry-delay", "1ms"]).run().await
}

#[tokio::test]
async fn a_blob_whose_mount_came_to_nothing_is_sent_and_its_source_is_forgotten() {
    for (status, code, as_object) in
        [(400, "MANIFEST_BLOB_UNKNOWN", false), (400, "BLOB_UNKNOWN", true), (404, "BLOB_UNKNOWN", true)]
    {
        let (source, target) = both().await;
        let image = |name: &str| {
            let own = TestImage::single(name).layers(1, 700).layer(Layer::Shared("everywhere".into(), 2 * MIB));
            own.layer(Layer::Shared("also".into(), 3000)).build()
        };
        let images = ["one", "two", "three"].map(|name| (name, image(name)));
        for (name, image) in &images {
            source.push(name, "1", image);
        }
        let program = Imgsync::new();
        run(&program, &source, &target, "one").await.assert_code(0);
        // It answers 201 to mounts from there, and does not have the blob afterwards.
        let from_one = |request: &RecordedRequest| request.parameter("from").as_deref() == Some("m/one");
        let lie = RequestMatcher::kind(RequestType::UploadMount).when(from_one);
        target.on(lie).always().act(FaultAction::status(201));
        let named = images[1].1.layers()[1].clone();
        let detail = if as_object { json!({"digest": named}) } else { json!(named) };
        target
            .on(RequestMatcher::kind(RequestType::ManifestPut).repository("m/two"))
            .act(unknown(status, code, &detail));
        target.clear_requests();
        run(&program, &source, &target, "two").await.assert_code(0);
        target.assert_holds("m/two", "1", &images[1].1);
        assert_eq!(target.count_where(from_one), 2, "{}", target.describe_requests());
        // Everything missing was sent, each blob once.
        assert_eq!(
            target.count(RequestType::UploadPut),
            images[1].1.blobs.len() as u64,
            "{}",
            target.describe_requests()
        );
        target.clear_requests();
        run(&program, &source, &target, "three").await.assert_code(0);
        target.assert_holds("m/three", "1", &images[2].1);
        assert_eq!(target.count_where(from_one), 0, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_blob_that_a_target_affirms_without_having_it_is_sent() {
    for image in [images::single("affirmed"), images::multi_platform("affirmed-index"), images::big("large", 3 * MIB)] {
        let (source, target) = both().await;
        source.push("a", "1", &image);
        target.on(RequestType::UploadMount).always().act(FaultAction::status(201));
        sync(&source, &target, "tls: off", &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert_eq!(target.count(RequestType::UploadPut), image.blobs.len() as u64, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_target_that_sees_late_what_it_took_is_waited_for_and_sent_nothing_twice() {
    let image = images::multi_platform("late");
    let manifest = image.push_order()[0].clone();
    let child = images::blobs(&image.manifests[&manifest].json())[0].clone();
    for (reference, status, code, missing) in [
        (manifest.as_str(), 400, "MANIFEST_BLOB_UNKNOWN", json!({"digest": child})),
        (manifest.as_str(), 404, "BLOB_UNKNOWN", json!(null)),
        ("1", 404, "MANIFEST_UNKNOWN", json!({"digest": manifest})),
        ("1", 400, "MANIFEST_UNKNOWN", json!(manifest)),
        ("1", 400, "MANIFEST_BLOB_UNKNOWN", json!(null)),
    ] {
        let copy = async |also_heads: bool| {
            let (source, target) = both().await;
            source.push("a", "1", &image);
            let put = RequestMatcher::kind(RequestType::ManifestPut).reference(reference);
            let denied = target.on(put).times(3).act(unknown(status, code, &missing));
            if also_heads {
                let heads = RequestMatcher::kinds(&[RequestType::BlobHead, RequestType::ManifestHead]);
                let heads = heads.when(|request| request.reference.as_deref() != Some("1"));
                target.on(heads).times(3).act(FaultAction::error(404, "NAME_UNKNOWN"));
            }
            sync(&source, &target, "tls: off", &[]).await.assert_code(0);
            target.assert_holds("b", "1", &image);
            assert_eq!(denied.hits(), 3, "{}", target.describe_requests());
            let sent = (target.count(RequestType::UploadPut), target.count(RequestType::ManifestPut));
            let wanted = (image.blobs.len() as u64, image.manifests.len() as u64 + 3);
            assert_eq!(sent, wanted, "{code} {missing}: {}", target.describe_requests());
        };
        tokio::join!(copy(false), copy(true));
    }
}

#[tokio::test]
async fn a_target_that_denies_for_good_is_given_up_after_the_last_bytes_that_may_help() {
    let denies = async {
        let (source, target) = both().await;
        let image = images::single("denied");
        let layer = image.layers()[0].clone();
        source.push("a", "1", &image);
        target.on(RequestType::ManifestPut).always().act(unknown(
            400,
            "MANIFEST_BLOB_UNKNOWN",
            &json!({"blob": layer}),
        ));
        let output = sync(&source, &target, "tls: off", &[]).await.assert_code(1);
        let json = output.json();
        assert_eq!(json["kind"], "incomplete", "{json}");
        assert!(json["error"].as_str().unwrap().contains(&layer), "{json}");
        assert_eq!(target.count(RequestType::UploadPut), image.blobs.len() as u64, "{}", target.describe_requests());
    };
    // Everything pushed is lost.
    let loses = async {
        let (source, target) = both().await;
        let image = images::single("lost");
        let layer = image.layers()[0].clone();
        source.push("a", "1", &image);
        target.on(RequestType::ManifestPut).always().act(unknown(400, "MANIFEST_BLOB_UNKNOWN", &json!(layer)));
        target.on(RequestType::BlobHead).always().act(FaultAction::error(404, "BLOB_UNKNOWN"));
        let output = sync(&source, &target, "tls: off", &[]).await.assert_code(1);
        assert_eq!(output.json()["kind"], "incomplete");
        let sent = image.blobs.len() as u64 + 2;
        assert_eq!(target.count(RequestType::UploadPut), sent, "{}", target.describe_requests());
    };
    // It has a record of the blob but not its content, until the bytes are pushed.
    let dangles = async {
        let (source, target) = both().await;
        let image = images::single("dangling");
        let layer = image.layers()[0].clone();
        source.push("a", "1", &image);
        target.push_blob("b", &layer, &image.blobs[&layer]);
        let is_sent = Arc::new(AtomicBool::new(false));
        let (seen, wanted) = (is_sent.clone(), layer.clone());
        let put = RequestMatcher::kind(RequestType::UploadPut).when(move |request| {
            seen.fetch_or(request.parameter("digest").as_deref() == Some(wanted.as_str()), Ordering::SeqCst);
            false
        });
        target.on(put).always().act(FaultAction::status(500));
        let refuse = RequestMatcher::kind(RequestType::ManifestPut).when(move |_| !is_sent.load(Ordering::SeqCst));
        target.on(refuse).always().act(unknown(400, "MANIFEST_BLOB_UNKNOWN", &json!(layer)));
        sync(&source, &target, "tls: off", &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert_eq!(target.count(RequestType::UploadPut), image.blobs.len() as u64, "{}", target.describe_requests());
    };
    tokio::join!(denies, loses, dangles);
}

/// Matches upload bodies above this size.
fn larger_than(bytes: u64) -> RequestMatcher {
    RequestMatcher::kinds(&[RequestType::UploadPut, RequestType::UploadPatch]).when(move |request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > bytes)
    })
}

fn too_large() -> FaultAction {
    FaultAction::Status {
        code: 413,
        headers: vec![("content-type".into(), "text/html".into())],
        body: "<html><head><title>413 Request Entity Too Large</title></head></html>".into(),
    }
}

#[tokio::test]
async fn a_limit_of_bodies_is_found_out_once_and_kept_to() {
    let image = TestImage::single("limits").layers(1, 800).layer(Layer::Synthetic(33 * MIB));
    let image = image.layer(Layer::Synthetic(18 * MIB)).layer(Layer::Synthetic(2 * MIB)).build();
    for (limit, patches) in [(20 * MIB, 3 + 2 + 1), (10 * MIB, 5 + 3 + 1), (5 * MIB, 9 + 5 + 1), (MIB, 33 + 18 + 2)] {
        let (source, target) = both().await;
        source.push("a", "1", &image);
        let refused = target.on(larger_than(limit)).always().act(too_large());
        sync(&source, &target, "tls: off", &["--concurrency", "1"]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        let taken =
            target.count_where(|request| request.kind == RequestType::UploadPatch && request.status == Some(202));
        assert_eq!(taken, patches, "{limit}: {}", target.describe_requests());
        assert!(refused.hits() <= 4, "{limit}: {}", target.describe_requests());
        assert_eq!(target.open_uploads(), 0);
    }
}

#[tokio::test]
async fn a_limit_below_all_chunks_is_named_with_the_setting_that_goes_below_it() {
    let small = TestImage::single("small-limit").layers(1, 800_000).build();
    let large = TestImage::single("large-limit").layer(Layer::Synthetic(3 * MIB)).build();
    for (image, size) in [(small, "KiB"), (large, "1.0 MiB")] {
        let (source, target) = both().await;
        source.push("a", "1", &image);
        target.on(larger_than(300_000)).always().act(too_large());
        let output = sync(&source, &target, "tls: off", &[]).await.assert_code(1);
        assert_eq!(output.json()["kind"], "refused");
        let chunk = format!("`chunk:` below its limit for {}", target.host());
        for words in ["413", size, "client_max_body_size", &chunk] {
            assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
        }
        assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
        sync(&source, &target, "tls: off, chunk: 256KiB", &[]).await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn a_registry_that_wants_larger_chunks_than_its_front_takes_is_said_so() {
    let builder = FaultRegistry::builder().chunk_minimum(6 * MIB);
    let (source, target) = tokio::join!(FaultRegistry::start(), builder.start());
    source.push("a", "1", &images::big("between", 24 * MIB));
    target.on(larger_than(5 * MIB)).always().act(too_large());
    let output = sync(&source, &target, "tls: off", &[]).await.assert_code(1);
    assert!(output.stderr.contains("minimum chunk 6.0 MiB"), "{}", output.stderr);
}

#[tokio::test]
async fn a_manifest_that_is_too_large_for_a_front_names_its_limit() {
    let (source, target) = both().await;
    source.push("a", "1", &images::single("manifest-limit"));
    target.on(RequestType::ManifestPut).always().act(too_large());
    let output = sync(&source, &target, "tls: off", &[]).await.assert_code(1);
    assert!(output.stderr.contains("client_max_body_size"), "{}", output.stderr);
    assert_eq!(target.count(RequestType::ManifestPut), 1);
}

#[tokio::test]
async fn a_target_that_refuses_the_urls_of_foreign_layers_names_the_setting_to_change() {
    let url = "https://layers.example.net/base.tar.gz";
    for image in [
        images::foreign_layer("foreign-refused", url),
        TestImage::single("foreign-docker").docker().layers(1, 500).layer(Layer::Foreign(url.to_owned(), 700)).build(),
    ] {
        let digest = image.foreign.keys().next().unwrap().clone();
        let source = FaultRegistry::start().await;
        source.push("a", "1", &image);
        let check = |output: Output| {
            let output = output.assert_code(1);
            assert_eq!(output.json()["kind"], "refused", "{}", output.stderr);
            assert!(output.stderr.contains("validation.manifests.urls.allow"), "{}", output.stderr);
        };
        // distribution's own error, and variants by other servers.
        let options = DockerRegistryOptions { refuse_urls: true, ..DockerRegistryOptions::default() };
        let real = DockerRegistry::start_with(options).await;
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", real.host()));
        check(Imgsync::new().args(["sync", &from, &to, "--json"]).run().await);
        let puts = |request: &&imgsync_tests::servers::LoggedRequest| {
            request.method == "PUT" && request.uri.contains("/manifests/")
        };
        assert_eq!(real.requests().iter().filter(puts).count(), 1);
        for (status, errors) in [
            (500, json!([{"code": "UNKNOWN", "detail": {}}, {"code": "MANIFEST_BLOB_UNKNOWN", "detail": digest}])),
            (400, json!([{"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"digest": digest}}])),
            (400, json!([{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}])),
        ] {
            let target = FaultRegistry::start().await;
            let body = json!({ "errors": errors }).to_string();
            let headers = vec![("content-type".into(), "application/json".into())];
            target.on(RequestType::ManifestPut).always().act(FaultAction::Status {
                code: status,
                headers,
                body: body.into(),
            });
            check(sync(&source, &target, "tls: off", &[]).await);
            assert!(target.count(RequestType::ManifestPut) <= 2, "{}", target.describe_requests());
        }
    }
}

#[tokio::test]
async fn a_tag_that_may_not_be_written_is_no_success_of_who_insists_on_writing_it() {
    for image in [images::single("denied-tag"), images::multi_platform("denied-index")] {
        let (source, target) = both().await;
        source.push("a", "1", &image);
        target.push("b", "1", &image);
        target
            .on(RequestMatcher::kind(RequestType::ManifestPut).reference("1"))
            .always()
            .act(FaultAction::error(403, "DENIED"));
        let output = sync(&source, &target, "tls: off", &["--force"]).await.assert_code(1);
        assert_eq!(output.json()["kind"], "denied", "{}", output.stderr);
        assert_eq!(sync(&source, &target, "tls: off", &[]).await.assert_code(0).json()["outcome"], "unchanged");
    }
    // A target with immutable tags that already has the right one is unchanged.
    let (source, target) = both().await;
    let image = images::single("kept-tag");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    target
        .on(RequestMatcher::kind(RequestType::ManifestPut).reference("1"))
        .always()
        .act(FaultAction::error(403, "TAG_IMMUTABLE"));
    let output = sync(&source, &target, "tls: off", &["--force"]).await.assert_code(0);
    assert_eq!(output.json()["outcome"], "unchanged", "{}", output.stdout);
}

#[tokio::test]
async fn the_tag_of_an_artifact_with_a_subject_is_put_again_where_it_is_denied() {
    let (source, target) = both().await;
    let subject = images::single("late-subject");
    let artifact = TestImage::single("late-artifact").artifact("application/vnd.example.late").layers(1, 300);
    let artifact = artifact.subject(&subject).build();
    source.push("a", "1", &artifact);
    let put = RequestMatcher::kind(RequestType::ManifestPut).reference("1");
    let denied = target.on(put).times(2).act(unknown(400, "MANIFEST_BLOB_UNKNOWN", &json!(null)));
    sync(&source, &target, "tls: off", &[]).await.assert_code(0);
    target.assert_holds("b", "1", &artifact);
    assert_eq!(denied.hits(), 2, "{}", target.describe_requests());
}

#[tokio::test]
async fn an_index_of_referrers_is_put_again_where_its_entries_are_denied() {
    let builder = FaultRegistry::builder().without_referrers();
    let (source, target) = tokio::join!(FaultRegistry::start(), builder.start());
    let subject = images::single("late-listed");
    let referrer = images::referrer("late-referrer", &subject);
    source.push("a", "1", &referrer);
    let fallback = subject.digest_tag("");
    let put = RequestMatcher::kind(RequestType::ManifestPut).reference(&fallback);
    let denied = target.on(put).times(2).act(unknown(404, "MANIFEST_UNKNOWN", &json!({"digest": referrer.root})));
    sync(&source, &target, "tls: off", &[]).await.assert_code(0);
    target.assert_holds("b", "1", &referrer);
    assert_eq!(denied.hits(), 2, "{}", target.describe_requests());
    let index = target.manifest("b", &fallback).expect("the index is there").json();
    assert_eq!(images::children(&index), [referrer.root]);
}
