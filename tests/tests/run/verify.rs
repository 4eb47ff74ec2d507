//! `imgsync verify` reports the differences between a source and its copy; `imgsync inspect` shows the content of an
//! image.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::RequestType;
use imgsync_tests::images::{self, Blob, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use serde_json::{Value, json};

use super::end_to_end::{configured, run};

fn multi(name: &str) -> TestImage {
    images::multi_platform(&format!("verify-{name}"))
}

/// Compares an image with its copy.
async fn pair(source: &FaultRegistry, target: &FaultRegistry, more: &[&str]) -> Output {
    let (from, to) = (format!("{}/app:1", source.host()), format!("{}/m/app:1", target.host()));
    Imgsync::new().args(["verify", &from, &to, "--retry-delay", "10ms"]).args(more).run().await
}

/// Returns the kinds of differences.
fn kinds(json: &Value) -> Vec<String> {
    let findings = json["findings"].as_array().unwrap_or_else(|| panic!("{json}"));
    findings.iter().map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect()
}

/// Returns the blob with one byte changed.
fn flipped(image: &TestImage, digest: &str) -> Blob {
    let mut bytes: Vec<u8> = image.blobs[digest].pieces().flat_map(|piece| piece.to_vec()).collect();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Blob::from(bytes)
}

/// Starts source and target with the same image and a referrer.
async fn equal(name: &str) -> (FaultRegistry, FaultRegistry, TestImage, TestImage) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = multi(name);
    let referrer = images::referrer(&format!("verify-{name}"), &image);
    source.push("app", "1", &image);
    target.push("m/app", "1", &image);
    for (registry, repository) in [(&source, "app"), (&target, "m/app")] {
        registry.push_untagged(repository, &referrer);
    }
    (source, target, image, referrer)
}

#[tokio::test]
async fn what_is_equal_is_said_to_be_and_costs_heads_at_the_target() {
    let (source, target, image, referrer) = equal("same").await;
    let json = pair(&source, &target, &["--json"]).await.assert_code(0).json();
    assert_eq!((&json["outcome"], kinds(&json)), (&json!("identical"), vec![]), "{json}");
    let blobs = image.blobs.len() + referrer.blobs.keys().filter(|digest| !image.blobs.contains_key(*digest)).count();
    let seen = [&json["manifests"], &json["blobs"], &json["referrers"]].map(|count| count.as_u64().unwrap() as usize);
    assert_eq!(seen, [4, blobs, 1], "{json}");
    assert_eq!(json["digest"], image.root.as_str());
    // A HEAD for the tag, each manifest and each blob; referrers need GET.
    let reads = target.count(RequestType::ManifestGet) + target.count(RequestType::BlobGet);
    assert_eq!(
        (reads, target.count(RequestType::ManifestHead), target.count(RequestType::BlobHead)),
        (0, 5, blobs as u64),
        "{}",
        target.describe_requests()
    );
    assert_eq!(target.count(RequestType::ManifestPut) + target.count(RequestType::UploadStart), 0);
    let deep = pair(&source, &target, &["--json", "--deep"]).await.assert_code(0).json();
    assert_eq!((&deep["outcome"], &deep["blobs"]), (&json!("identical"), &json!(blobs)), "{deep}");
    assert_eq!(target.count(RequestType::BlobGet), blobs as u64);
    let text = pair(&source, &target, &[]).await.assert_code(0);
    assert_eq!(text.stdout, format!("identical {}\n", image.root));
}

#[tokio::test]
async fn a_flipped_byte_is_found_by_reading_all_bytes() {
    let (source, target, image, _) = equal("flip").await;
    let layer = image.largest_blob();
    target.push_blob("m/app", &layer, &flipped(&image, &layer));
    pair(&source, &target, &[]).await.assert_code(0);
    let output = pair(&source, &target, &["--deep", "--json"]).await.assert_code(1);
    let json = output.json();
    assert_eq!(kinds(&json), ["corrupt_blob"], "{json}");
    assert_eq!(json["findings"][0]["digest"], layer.as_str());
    assert!(output.stderr.contains("different: "), "{}", output.stderr);
    // Manifests are read as well.
    let child = &image.children()[0];
    let mut manifest = image.manifests[child].clone();
    manifest.bytes = String::from_utf8(manifest.bytes.to_vec()).unwrap().replacen("linux", "linuy", 1).into();
    let changed = manifest.bytes != image.manifests[child].bytes;
    if !changed {
        manifest.bytes = format!("{} ", String::from_utf8_lossy(&manifest.bytes)).into();
    }
    target.push_manifest("m/app", child, manifest);
    let json = pair(&source, &target, &["--deep", "--json"]).await.assert_code(1).json();
    let mut found = kinds(&json);
    found.sort();
    assert_eq!(found, ["corrupt_blob", "corrupt_manifest"], "{json}");
}

#[tokio::test]
async fn a_missing_child_and_a_missing_blob_are_found_wherever_they_are() {
    for deep in [false, true] {
        let more: &[&str] = if deep { &["--json", "--deep"] } else { &["--json"] };
        let (source, target, image, _) = equal("child").await;
        let child = image.children()[1].clone();
        target.delete_manifest("m/app", &child);
        let json = pair(&source, &target, more).await.assert_code(1).json();
        assert_eq!(kinds(&json), ["missing_manifest"], "{json}");
        assert_eq!(json["findings"][0]["digest"], child.as_str());
        assert!(json["findings"][0]["detail"].as_str().unwrap().contains("linux/arm64"), "{json}");
        // Content below it is compared all the same.
        let layer = image.subtree(&child).layers()[0].clone();
        target.delete_blob("m/app", &layer);
        let json = pair(&source, &target, more).await.assert_code(1).json();
        assert_eq!(kinds(&json), ["missing_manifest", "missing_blob"], "{json}");
    }
}

#[tokio::test]
async fn a_stale_tag_and_a_missing_one_are_found() {
    let (source, target, _, _) = equal("stale").await;
    source.push("app", "1", &multi("newer"));
    let json = pair(&source, &target, &["--json"]).await.assert_code(1).json();
    assert_eq!(kinds(&json), ["stale_tag"], "{json}");
    target.delete_tag("m/app", "1");
    let json = pair(&source, &target, &["--json"]).await.assert_code(1).json();
    assert_eq!(kinds(&json), ["missing_tag"], "{json}");
    source.delete_tag("app", "1");
    let json = pair(&source, &target, &["--json"]).await.assert_code(1).json();
    assert_eq!((&json["outcome"], &json["kind"]), (&json!("failed"), &json!("not_found")), "{json}");
}

#[tokio::test]
async fn a_missing_referrer_is_found_with_the_api_and_with_the_fallback_tag() {
    for with_api in [true, false] {
        let target = match with_api {
            true => FaultRegistry::start().await,
            false => FaultRegistry::builder().without_referrers().start().await,
        };
        let source = FaultRegistry::start().await;
        let image = multi("signed");
        let child = image.subtree(&image.children()[0]);
        source.push("app", "1", &image);
        target.push("m/app", "1", &image);
        let signature = images::referrer("verify-signature", &image);
        let of_child = images::referrer("verify-of-child", &child);
        source.push_untagged("app", &signature);
        source.push_untagged("app", &of_child);
        let json = pair(&source, &target, &["--json"]).await.assert_code(1).json();
        assert_eq!(kinds(&json), ["missing_referrer", "missing_referrer"], "{json}");
        let missing = [&json["findings"][0]["digest"], &json["findings"][1]["digest"]];
        assert!(missing.contains(&&json!(signature.root)) && missing.contains(&&json!(of_child.root)), "{json}");
        pair(&source, &target, &["--no-referrers"]).await.assert_code(0);
        // cosign's digest tags are an older form of referrers.
        let tag = format!("{}.sig", image.root.replace(':', "-"));
        source.push("app", &tag, &images::single("verify-cosign"));
        let json = pair(&source, &target, &["--json"]).await.assert_code(1).json();
        assert_eq!(kinds(&json).len(), 3, "{json}");
        assert!(json.to_string().contains(&tag), "{json}");
    }
}

#[tokio::test]
async fn the_rules_are_verified_as_a_batch_with_its_reports_and_what_differs_is_copied_again() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1", "2", "3"] {
        source.push("app", tag, &multi(tag));
        source.push("other", tag, &multi(&format!("other-{tag}")));
    }
    let rule = |name: &str| format!("- {{from: {}/{name}, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let program = configured(&format!("rules:\n{}{}", rule("app"), rule("other")));
    let verify = async |more: &[&str]| {
        program.again().args(["verify", "--json", "--retry-delay", "10ms"]).args(more).run().await
    };
    run(&program, &[]).await.assert_code(0);
    target.clear_requests();
    let json = verify(&[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["total"]), (&json!(6), &json!(6)), "{json}");
    assert_eq!(
        target.count(RequestType::ManifestPut)
            + target.count(RequestType::UploadStart)
            + target.count(RequestType::UploadMount),
        0
    );

    // A stale tag, a missing tag, a missing child.
    target.push("m/app", "1", &multi("by-hand"));
    target.delete_tag("m/app", "2");
    target.delete_manifest("m/app", &multi("3").children()[0]);
    let output = verify(&["--report=report.md", "--rule", "1"]).await.assert_code(1);
    let json = output.json();
    assert_eq!((&json["counts"]["failed"], &json["counts"]["total"]), (&json!(3), &json!(3)), "{json}");
    assert!(json["failures"].as_array().unwrap().iter().all(|failure| failure["kind"] == "differs"), "{json}");
    let page = std::fs::read_to_string(program.work_dir().join("report.md")).unwrap();
    assert!(page.contains("Different at the target") && page.contains("verification of"), "{page}");
    assert!(
        page.starts_with("# 3 of 3 images are different\n") && page.contains("| identical | different or failed |"),
        "{page}"
    );
    assert!(output.stderr.contains("Identical: 0\nDifferent: 3\nFailed: 0\n"), "{}", output.stderr);
    assert_eq!(verify(&["--rule", "2"]).await.assert_code(0).json()["counts"]["total"], 3);
    verify(&["--rule", "3"]).await.assert_code(2);
    let batches = program.again().args(["batch", "report"]).run().await.assert_code(0);
    assert!(batches.stdout.contains("verification of"), "{}", batches.stdout);
    for line in ["Result: All 3 images are identical", "Identical: 3", "Different: 0"] {
        assert!(batches.stdout.contains(line), "{line}: {}", batches.stdout);
    }

    // Their cache entries are dropped: the next run checks them and copies them.
    run(&program, &["--force"]).await.assert_code(0);
    for tag in ["1", "2", "3"] {
        target.assert_holds("m/app", tag, &multi(tag));
    }
    assert_eq!(verify(&["--deep"]).await.assert_code(0).json()["counts"]["unchanged"], 6);
}

#[tokio::test]
async fn a_batch_is_verified_by_its_own_plan() {
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    for tag in ["1", "2"] {
        source.push("app", tag, &multi(tag)).await;
    }
    let rule = format!("rules:\n- {{from: {}/app, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let program = configured(&rule);
    let id = run(&program, &[]).await.assert_code(0).json()["batch"].as_str().unwrap().to_owned();
    // Later tags are not part of its plan.
    source.push("app", "3", &multi("3")).await;
    let verify =
        async |more: &[&str]| program.again().args(["verify", "--json", "--batch", &id]).args(more).run().await;
    let json = verify(&["--deep"]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["total"]), (&json!(2), &json!(2)), "{json}");
    source.push("app", "2", &multi("moved")).await;
    let json = verify(&[]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["failed"]), (&json!(1), &json!(1)), "{json}");
    program.again().args(["verify", "--batch", "ffff"]).run().await.assert_code(2);
}

#[tokio::test]
async fn chosen_platforms_and_layouts_are_verified_as_they_were_copied() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("app", "1", &multi("chosen"));
    let places = format!("[{}/m, 'oci:layout']", target.host());
    let rule =
        format!("rules:\n- {{from: {}/app, to: {places}, naming: keep, platforms: linux/arm64}}\n", source.host());
    let program = configured(&rule);
    run(&program, &[]).await.assert_code(0);
    let json = program.again().args(["verify", "--json", "--deep"]).run().await.assert_code(0).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["total"]), (&json!(2), &json!(2)), "{json}");
    let blobs = std::fs::read_dir(program.work_dir().join("layout/blobs/sha256")).unwrap();
    let largest = blobs.map(|file| file.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let json = program.again().args(["verify", "--json", "--deep"]).run().await.assert_code(1).json();
    assert_eq!((&json["counts"]["failed"], &json["failures"][0]["kind"]), (&json!(1), &json!("corrupt")), "{json}");
}

/// Returns an index of three platforms, one with an attestation.
fn three_platforms(name: &str) -> TestImage {
    let child = |platform| TestImage::single(&format!("{name}/{platform}")).platform(platform).layers(2, 4096).build();
    let (amd64, arm64, s390x) = (child("linux/amd64"), child("linux/arm64"), child("linux/s390x"));
    let index = TestImage::index(name).child(&amd64, "linux/amd64").child(&arm64, "linux/arm64");
    index.child(&s390x, "linux/s390x").attestation(&images::single(&format!("{name}/attestation")), &amd64).build()
}

/// Returns an index whose entry for linux/amd64 is an index.
fn nested_platform(name: &str) -> TestImage {
    let inner = images::multi_platform(&format!("{name}/inner"));
    let outer = images::single(&format!("{name}/outer"));
    TestImage::index(name).child(&inner, "linux/amd64").child(&outer, "linux/arm64").build()
}

#[tokio::test]
async fn a_selection_of_platforms_is_identical_by_every_kind_of_verification() {
    type MakeImage = fn(&str) -> TestImage;
    let cases: [(&str, MakeImage, &str); 4] = [
        ("one-of-two", images::multi_platform, "linux/amd64"),
        ("two-of-three", three_platforms, "[linux/amd64, linux/arm64]"),
        ("nested", images::nested, "linux/amd64"),
        ("nested-entry", nested_platform, "linux/amd64"),
    ];
    for (name, image, platforms) in cases {
        for referrers in [true, false] {
            let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
            let image = image(&format!("selected-{name}"));
            let entry = image.subtree(&image.children()[usize::from(name == "nested")]);
            source.push("app", "1", &image);
            for of in [&image, &entry] {
                source.push_untagged("app", &images::referrer(&format!("of-{}", of.root), of));
                source.push("app", &of.digest_tag("sig"), &images::cosign(&format!("sig-{}", of.root)));
            }
            let program = configured(&format!(
                "rules:\n- {{from: {}/app, to: {}/m, naming: keep, platforms: {platforms}, referrers: {referrers}}}\n",
                source.host(),
                target.host()
            ));
            assert_eq!(run(&program, &[]).await.assert_code(0).json()["counts"]["copied"], 1, "{name}");
            let fresh = program.work_dir().join("fresh-state");
            let fresh = ["--state", fresh.to_str().unwrap()];
            for more in [&[][..], &["--deep"], &fresh, &["--deep", fresh[0], fresh[1]]] {
                let output = program.again().args(["verify", "--json", "--retry-delay", "10ms"]).args(more).run().await;
                let json = output.assert_code(0).json();
                assert_eq!((&json["counts"]["unchanged"], &json["counts"]["total"]), (&json!(1), &json!(1)), "{json}");
            }
            if !platforms.starts_with('[') {
                for more in [&[][..], &["--deep"]] {
                    let mut more: Vec<&str> = [more, &["--json", "--platform", platforms]].concat();
                    more.extend((!referrers).then_some("--no-referrers"));
                    let json = pair(&source, &target, &more).await.assert_code(0).json();
                    assert_eq!((&json["outcome"], kinds(&json)), (&json!("identical"), vec![]), "{name}: {json}");
                }
            }
            // What is missing below the filtered index is found, also a signature of one of its entries.
            let verify = async || {
                let output = program.again().args(["verify", "--json", "--retry-delay", "10ms"]).run().await;
                output.assert_code(1).json()["failures"][0].to_string()
            };
            if referrers {
                target.delete_tag("m/app", &entry.digest_tag("sig"));
                let failure = verify().await;
                assert!(failure.contains("differs") && failure.contains(&entry.digest_tag("sig")), "{name}: {failure}");
            }
            target.delete_manifest("m/app", &entry.root);
            let failure = verify().await;
            assert!(failure.contains("differs") && failure.contains(&entry.root), "{name}: {failure}");
        }
    }
}

#[tokio::test]
async fn a_whole_image_compared_with_some_of_its_platforms_hints_at_the_rule() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("app", "1", &multi("hint"));
    let rule = "naming: keep, platforms: linux/amd64";
    let program = configured(&format!("rules:\n- {{from: {}/app, to: {}/m, {rule}}}\n", source.host(), target.host()));
    run(&program, &[]).await.assert_code(0);
    let output = pair(&source, &target, &[]).await.assert_code(1);
    for part in ["`imgsync verify --rule RULE`", "`imgsync sync`"] {
        assert!(output.stderr.contains(part), "{part}: {}", output.stderr);
    }
    assert!(!output.stderr.contains("`imgsync run`"), "{}", output.stderr);
    // The hint of a rule's own verification stays.
    source.push("app", "1", &multi("hint-moved"));
    let failed = program.again().args(["verify", "--json", "--retry-delay", "10ms"]).run().await.assert_code(1).json();
    assert!(failed["failures"][0].to_string().contains("imgsync run"), "{failed}");
}

#[tokio::test]
async fn an_image_is_shown_as_a_tree_and_as_json() {
    let (source, _, image, referrer) = equal("tree").await;
    let name = format!("{}/app:1", source.host());
    let json = Imgsync::new().args(["inspect", &name, "--json"]).run().await.assert_code(0).json();
    let root = &json["image"];
    assert_eq!((&root["digest"], &json["blobs"]), (&json!(image.root), &json!(image.blobs.len())), "{json}");
    assert_eq!(json["bytes"], image.blob_bytes());
    assert_eq!(root["manifests"][1]["platform"], "linux/arm64");
    let layers: Vec<&str> =
        root["manifests"][0]["layers"].as_array().unwrap().iter().map(|l| l["digest"].as_str().unwrap()).collect();
    assert_eq!(layers, image.subtree(&image.children()[0]).layers());
    assert_eq!(root["referrers"][0]["digest"], referrer.root.as_str());
    let text = Imgsync::new().args(["inspect", &name]).run().await.assert_code(0).stdout;
    let lines: Vec<&str> = text.lines().collect();
    // A line for the image, each manifest, each config and each layer.
    assert_eq!(lines.len(), 1 + 4 + 3 + 2 + 2 + referrer.layers().len(), "{text}");
    assert!(lines[1].starts_with(&image.root) && lines[2].starts_with("├─ linux/amd64  sha256:"), "{text}");
    assert!(text.contains("└─ referrer  ") && text.contains(&referrer.root), "{text}");
    source.delete_manifest("app", &image.children()[1]);
    let text = Imgsync::new().args(["inspect", &name]).run().await.assert_code(0).stdout;
    assert!(text.contains("(listed, but missing)"), "{text}");
    // A single image shows its own platform.
    source.push("app", "one", &images::single("verify-one"));
    let json = Imgsync::new()
        .args(["inspect", &format!("{}/app:one", source.host()), "--json"])
        .run()
        .await
        .assert_code(0)
        .json();
    assert!(json["image"]["platform"].as_str().is_some_and(|platform| platform.starts_with("linux/")), "{json}");
    // cosign's digest tags are not listed as referrers.
    let signature = images::cosign("verify-signature");
    source.push("app", &image.digest_tag("sig"), &signature);
    let text = Imgsync::new().args(["inspect", &name]).run().await.assert_code(0).stdout;
    let signed = format!("referrer  {}", signature.root);
    let by = format!("by the tag {}", image.digest_tag("sig"));
    assert!(text.lines().any(|line| line.contains(&signed) && line.ends_with(&by)), "{text}");
    let missing = Imgsync::new().args(["inspect", &format!("{}/app:none", source.host())]).run().await.assert_code(1);
    assert!(missing.stderr.contains("hint:"), "{}", missing.stderr);
}
