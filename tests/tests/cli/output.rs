//! stdout carries data, stderr messages for people.

use imgsync_tests::fault::{Bearer, FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;

async fn pair() -> (FaultRegistry, FaultRegistry, String, String) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    (source, target, from, to)
}

#[tokio::test]
async fn the_pinned_reference_is_the_only_line_on_stdout() {
    let (source, _target, from, to) = pair().await;
    let image = images::multi_platform("stdout");
    source.push("a", "1", &image);
    let sync = Imgsync::new().args(["sync", &from, &to]);
    let output = sync.run().await.assert_code(0);
    assert_eq!(output.stdout, format!("{to}@{}\n", image.root));
    assert!(output.stderr.contains(&format!("copied {from} to {to}")), "{}", output.stderr);
    let output = sync.run().await.assert_code(0);
    assert_eq!(output.stdout, format!("{to}@{}\n", image.root));
    assert!(output.stderr.contains("unchanged"), "{}", output.stderr);
    let output = sync.again().args(["sync", "-q", &from, &to]).run().await.assert_code(0);
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn json_is_one_object_on_one_line() {
    let (source, target, from, to) = pair().await;
    let image = images::multi_platform("json");
    source.push("a", "1", &image);
    let output = Imgsync::new().args(["sync", &from, &to, "--json"]).run().await.assert_code(0);
    assert_eq!(output.stdout.lines().count(), 1);
    let json = output.json();
    assert_eq!((&json["source"], &json["target"]), (&from.clone().into(), &to.clone().into()));
    assert_eq!(json["bytes"], serde_json::json!({"copied": image.blob_bytes(), "mounted": 0, "reused": 0}));
    assert_eq!(json["blobs"]["copied"], image.blobs.len());
    assert_eq!(json["manifests"], image.manifests.len());
    let on_the_wire = |registry: &FaultRegistry| registry.total_with_pings_and_tokens();
    assert_eq!(json["requests"], serde_json::json!({"source": on_the_wire(&source), "target": on_the_wire(&target)}));
    assert_eq!(json["traffic"]["source"]["requests"], source.total());
    assert_eq!(json["traffic"]["source"]["received"], image.blob_bytes());
    assert_eq!(json["traffic"]["target"]["sent"], image.blob_bytes());
}

#[tokio::test]
async fn the_requests_shown_are_those_on_the_wire() {
    // Tokens, a redirect for each blob, and an image with a signature.
    let source = FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start().await;
    let target = FaultRegistry::start().await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let image = images::multi_platform("on-the-wire");
    source.push("a", "1", &image);
    let sync = Imgsync::new();
    sync.write_docker_config(&[(&source.host(), "me", "secret")]);
    let mut before = (0, 0);
    // Copied, then unchanged.
    for beginning in ["copied ", "unchanged: "] {
        let output = sync.again().args(["sync", &from, &to]).run().await.assert_code(0);
        let all = (source.total_with_pings_and_tokens(), target.total_with_pings_and_tokens());
        let (to_source, to_target) = (all.0 - before.0, all.1 - before.1);
        before = all;
        let line =
            output.stderr.lines().find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("{output:?}"));
        let words = format!("{} requests ({to_source} to the source, {to_target} to the target", to_source + to_target);
        assert!(line.contains(&words), "{words}: {line}\n{}", source.describe_requests());
        assert!(line.contains("for referrers and digest tags") && line.contains("for tokens"), "{line}");
    }
    let referrers = source.referrer_requests().len() + target.referrer_requests().len();
    assert!(referrers > 0, "{}", source.describe_requests());
    let json = sync.again().args(["verify", &from, &to, "--json"]).run().await.assert_code(0).json();
    let all = (source.total_with_pings_and_tokens(), target.total_with_pings_and_tokens());
    assert_eq!(json["requests"], serde_json::json!({"source": all.0 - before.0, "target": all.1 - before.1}));
}

#[tokio::test]
async fn a_locale_without_utf_8_gets_ascii() {
    let (source, _target, from, _) = pair().await;
    source.push("a", "1", &images::multi_platform("ascii"));
    let program = Imgsync::new();
    let inspect = || program.again().args(["inspect", &from]);
    // In a pipe as on a terminal; the first variable that is set decides.
    for (variables, is_utf8) in [
        (&[("LC_ALL", "C")][..], false),
        (&[("LC_ALL", "POSIX"), ("LANG", "en_US.UTF-8")], false),
        (&[("LC_ALL", ""), ("LC_CTYPE", ""), ("LANG", "")], false),
        (&[("LC_ALL", ""), ("LANG", "C.UTF-8")], true),
        (&[("LC_ALL", "en_US.UTF-8")], true),
    ] {
        let with = |program: Imgsync| variables.iter().fold(program, |program, (name, value)| program.env(name, value));
        let tree = with(inspect()).run().await.assert_code(0).stdout;
        assert_eq!(tree.is_ascii(), !is_utf8, "{variables:?}: {tree}");
        assert!(tree.contains(if is_utf8 { "├─ " } else { "+- " }), "{tree}");
        let help = with(program.again().args(["sync", "--help"])).run().await.assert_code(0).stdout;
        assert_eq!(help.is_ascii(), !is_utf8, "{variables:?}: {help}");
        // A hint with an ellipsis.
        let output = with(program.again().args(["run", "--preset", "distroless"])).run().await.assert_code(2);
        assert_eq!(output.stderr.is_ascii(), !is_utf8, "{variables:?}: {}", output.stderr);
    }
    // Data stays as it is.
    let folder = program.work_dir().join("镜像");
    let name = format!("oci:{}:1", folder.display());
    let output = program.again().env("LC_ALL", "C").args(["sync", &from, &name, "--json"]).run().await.assert_code(0);
    assert_eq!(output.json()["target"], name);
    assert!(output.stderr.is_ascii(), "{}", output.stderr);
}

#[tokio::test]
async fn a_dry_run_says_what_would_move_and_writes_nothing() {
    let (source, target, from, to) = pair().await;
    let image = images::multi_platform("dry");
    source.push("a", "1", &image);
    let sync = Imgsync::new().args(["sync", &from, &to, "--dry-run"]);
    let output = sync.run().await.assert_code(0);
    assert!(output.stdout.starts_with(&format!("copy {from} {to} ")), "{}", output.stdout);
    let json = sync.again().args(["sync", &from, &to, "--dry-run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(json["outcome"], "would_copy");
    assert_eq!(json["bytes"], image.blob_bytes());
    assert_eq!(json["blobs"], image.blobs.len());
    let writes = [
        RequestType::ManifestPut,
        RequestType::UploadStart,
        RequestType::UploadMount,
        RequestType::UploadPut,
        RequestType::UploadPatch,
    ];
    assert_eq!(writes.iter().map(|kind| target.count(*kind)).sum::<u64>(), 0, "{}", target.describe_requests());
    assert_eq!(source.count(RequestType::BlobGet), 0);
    target.push("b", "1", &image);
    assert!(sync.run().await.assert_code(0).stdout.starts_with("unchanged "));
}

#[tokio::test]
async fn one_platform_is_copied_under_its_own_digest() {
    let (source, target, from, to) = pair().await;
    let [amd, arm] = ["choose-amd", "choose-arm"].map(images::single);
    source.push("a", "1", &TestImage::index("choose").child(&amd, "linux/amd64").child(&arm, "linux/arm64").build());
    let sync = Imgsync::new().args(["sync", &from, &to, "--platform", "linux/arm64", "--json"]);
    assert_eq!(sync.run().await.assert_code(0).json()["digest"], arm.root);
    target.assert_holds("b", "1", &arm);
    assert_eq!(sync.run().await.assert_code(0).json()["outcome"], "unchanged");
}

#[tokio::test]
async fn force_pushes_what_is_there_already() {
    let (source, target, from, to) = pair().await;
    let image = images::single("force");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    let json = Imgsync::new().args(["sync", &from, &to, "--json", "--force"]).run().await.assert_code(0).json();
    assert_eq!(json["outcome"], "copied");
    assert_eq!(target.count(RequestType::ManifestPut), 1);
}

#[tokio::test]
async fn a_digest_without_a_tag_is_pushed_by_digest() {
    let (source, target, _, _) = pair().await;
    let image = images::single("untagged");
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a@{}", source.host(), image.root), format!("{}/b", target.host()));
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    target.assert_holds_untagged("b", &image);
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn without_a_target_the_flat_name_goes_below_the_user_at_docker_hub() {
    let (source, hub, from, _) = pair().await;
    let image = images::single("flat");
    source.push("a", "1", &image);
    let sync = Imgsync::new();
    let config = sync.file("hub.yaml", format!("registries:\n  docker.io: {{endpoint: \"{}\"}}\n", hub.url()));
    let output = sync.args(["sync", &from, "--user", "Me", "-c"]).arg(config).run().await.assert_code(0);
    let name = format!("{}_a", source.host().replace(':', "_"));
    assert!(output.stdout.starts_with(&format!("docker.io/me/{name}:1@")), "{}", output.stdout);
    hub.assert_holds(&format!("me/{name}"), "1", &image);
}

#[tokio::test]
async fn the_version_is_printed_as_2_1_did() {
    for flag in ["--version", "-v", "-V", "version"] {
        let output = Imgsync::new().arg(flag).run().await.assert_code(0);
        assert!(output.stdout.starts_with("imgsync 3."), "{}", output.stdout);
    }
}
