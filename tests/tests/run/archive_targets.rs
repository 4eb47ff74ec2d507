//! Archives as targets of rules: what several rules select becomes one file, which real loaders read.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::podman::Podman;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::DockerEngine;
use imgsync_tests::skopeo::Skopeo;
use rustix::process::Signal;
use serde_json::Value;

use crate::end_to_end::{assert_adds_up, configured, run};

const LIMIT: Duration = Duration::from_secs(30);

/// Returns counts of results: copied, unchanged, failed.
fn counts(json: &Value) -> [u64; 3] {
    assert_adds_up(json);
    ["copied", "unchanged", "failed"].map(|state| json["counts"][state].as_u64().unwrap())
}

/// Returns the identity of a file and the time of its last change.
fn version(path: &Path) -> (u64, i64, i64) {
    let found = std::fs::metadata(path).unwrap();
    (found.ino(), found.mtime(), found.mtime_nsec())
}

/// Returns the names in an archive.
async fn names(program: &Imgsync, archive: &Path) -> Vec<String> {
    let listed = program.again().args(["tags", &format!("oci-archive:{}", archive.display())]).run().await;
    listed.assert_code(0).stdout.lines().map(str::to_owned).collect()
}

/// Two rules for one archive.
struct Mirror {
    source: FaultRegistry,
    program: Imgsync,
    archive: PathBuf,
}

impl Mirror {
    async fn new(name: &str, scheme: &str) -> (Mirror, TestImage, TestImage) {
        let source = FaultRegistry::start().await;
        let app = images::multi_platform(&format!("{name}-app"));
        let tool = images::single_docker(&format!("{name}-tool"));
        source.push("team/app", "1.0", &app);
        source.push_untagged("team/app", &images::referrer(&format!("{name}-sbom"), &app));
        source.push("team/app", &app.digest_tag("sig"), &images::cosign(&format!("{name}-signature")));
        source.push("team/tool", "2", &tool);
        let host = source.host();
        let program = configured(&format!(
            "rules:\n- {{from: {host}/team/app, to: \"{scheme}:images.tar\"}}\n\
             - {{from: {host}/team/tool, to: \"{scheme}:./images.tar\"}}\n"
        ));
        let archive = program.work_dir().join("images.tar");
        (Mirror { source, program, archive }, app, tool)
    }

    fn name(&self, image: &str) -> String {
        format!("{}/team/{image}", self.source.host())
    }
}

#[tokio::test]
async fn rules_with_the_same_file_make_one_archive_that_is_written_only_if_it_changes() {
    let ((mirror, app, _), target) = tokio::join!(Mirror::new("targets", "oci-archive"), FaultRegistry::start());
    let output = run(&mirror.program, &[]).await.assert_code(0);
    assert_eq!(counts(&output.json()), [2, 0, 0], "{}", output.stderr);
    let before = [mirror.name("app:1.0"), mirror.name("tool:2")];
    assert_eq!(names(&mirror.program, &mirror.archive).await, before);
    // Each blob was read once.
    let read = mirror.source.count(RequestType::BlobGet);
    let blobs: std::collections::HashSet<String> = mirror
        .source
        .requests_of_kind(RequestType::BlobGet)
        .into_iter()
        .map(|request| request.reference.unwrap_or_default())
        .collect();
    assert_eq!(read, blobs.len() as u64);

    // Nothing is new: the file stays, and no blob is asked for content.
    let written = version(&mirror.archive);
    mirror.source.clear_requests();
    let json = run(&mirror.program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), [0, 2, 0], "{json}");
    assert_eq!(version(&mirror.archive), written);
    let blobs = [RequestType::BlobGet, RequestType::BlobHead].map(|kind| mirror.source.count(kind));
    assert_eq!(blobs, [0, 0], "{}", mirror.source.describe_requests());

    // What changed after it was written is noticed, as is another image.
    let mut bytes = std::fs::read(&mirror.archive).unwrap();
    let whole = bytes.clone();
    let middle = bytes.len() - 2000;
    bytes[middle] ^= 1;
    std::fs::write(&mirror.archive, bytes).unwrap();
    let json = run(&mirror.program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), [2, 0, 0], "{json}");
    assert!(std::fs::read(&mirror.archive).unwrap() == whole);
    mirror.source.push("team/app", "1.1", &images::single("targets-new"));
    let dry = run(&mirror.program, &["--dry-run"]).await.assert_code(0);
    let actions: Vec<&str> = dry.stdout.lines().filter_map(|line| line.split("\"action\":\"").nth(1)).collect();
    assert_eq!(actions.iter().filter(|action| action.starts_with("copy")).count(), 1, "{}", dry.stdout);
    assert_eq!(actions.iter().filter(|action| action.starts_with("unchanged")).count(), 2, "{}", dry.stdout);
    let json = run(&mirror.program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), [3, 0, 0], "{json}");
    assert_eq!(names(&mirror.program, &mirror.archive).await.len(), 3);

    // It carries signatures and referrers to the other side.
    let far = configured(&format!(
        "rules:\n- {{from: \"oci-archive:{}\", to: {}/m, naming: keep}}\n",
        mirror.archive.display(),
        target.host()
    ));
    run(&far, &[]).await.assert_code(0);
    target.assert_holds("m/team/app", "1.0", &app);
    assert!(target.tag_digest("m/team/app", &app.digest_tag("sig")).is_some());
}

#[tokio::test]
async fn docker_podman_and_skopeo_load_it() {
    let (mirror, app, tool) = Mirror::new("targets-load", "docker-archive").await;
    run(&mirror.program, &[]).await.assert_code(0);
    let file = mirror.archive.display().to_string();
    let target = FaultRegistry::start().await;
    let from = format!("oci-archive:{file}:{}", mirror.name("app:1.0"));
    Skopeo::new().copy_any(&from, &format!("docker://{}/app:1.0", target.host())).await.unwrap();
    target.assert_holds("app", "1.0", &app);
    match DockerEngine::start().await {
        Ok(engine) => {
            let output = engine.docker(&["load", "-i", &file]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(engine.image_id(&mirror.name("tool:2")).await.unwrap(), tool.config());
        }
        Err(reason) => imgsync_tests::skipped(&format!("docker load: {reason}")),
    }
    match Podman::available() {
        Ok(()) => {
            let podman = Podman::new();
            let output = podman.run(&["load", "-i", &file]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(podman.images().await.len(), 2);
        }
        Err(reason) => imgsync_tests::skipped(&format!("podman load: {reason}")),
    }
}

#[tokio::test]
async fn a_rule_writes_to_a_registry_and_to_an_archive() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("targets-both");
    source.push("app", "1", &image);
    let program = configured(&format!(
        "rules:\n- {{from: {}/app, to: [\"{}/m\", \"oci-archive:a.tar\"], naming: keep}}\n",
        source.host(),
        target.host()
    ));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), [2, 0, 0], "{json}");
    target.assert_holds("m/app", "1", &image);
    assert_eq!(names(&program, &program.work_dir().join("a.tar")).await.len(), 1);
}

#[tokio::test]
async fn an_image_that_fails_is_named_and_its_former_version_stays() {
    let (mirror, app, _) = Mirror::new("targets-bad", "oci-archive").await;
    run(&mirror.program, &[]).await.assert_code(0);

    // The new image of a tag lacks a blob: the tag in the file stays what it was.
    let new = images::single("targets-bad-new");
    mirror.source.push("team/app", "1.0", &new);
    mirror.source.push("team/app", "1.1", &images::single("targets-bad-other"));
    mirror.source.delete_blob("team/app", &new.largest_blob());
    let output = run(&mirror.program, &[]).await.assert_code(1);
    let json = output.json();
    assert_eq!(counts(&json), [2, 0, 1], "{json}");
    assert_eq!(json["failures"][0]["kind"], "not_found", "{json}");
    assert!(json["failures"][0]["error"].as_str().unwrap().contains(&new.largest_blob()), "{json}");
    assert!(output.stderr.contains("of the former file stay"), "{}", output.stderr);
    let expected = [mirror.name("app:1.0"), mirror.name("app:1.1"), mirror.name("tool:2")];
    assert_eq!(names(&mirror.program, &mirror.archive).await, expected);
    let target = FaultRegistry::start().await;
    let from = format!("oci-archive:{}:{}", mirror.archive.display(), mirror.name("app:1.0"));
    let to = format!("{}/app:1.0", target.host());
    mirror.program.again().args(["sync", &from, &to]).run().await.assert_code(0);
    target.assert_holds("app", "1.0", &app);

    // Wrong bytes show while the file is written: the image is left out, the others are there.
    let wrong = images::single("targets-bad-wrong");
    mirror.source.push("team/app", "1.0", &wrong);
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(&wrong.largest_blob());
    let rule = mirror.source.on(matcher).always().act(FaultAction::Corrupt { at: 10 });
    let json = run(&mirror.program, &[]).await.assert_code(1).json();
    // Without it, the file already is what it should be.
    assert_eq!(counts(&json), [0, 2, 1], "{json}");
    assert_eq!(json["failures"][0]["kind"], "corrupt", "{json}");
    let left = std::fs::read_dir(mirror.program.work_dir()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).filter(|name| name != "imgsync.yaml").collect();
    assert_eq!(left, ["images.tar"], "no unfinished file is left");
    assert_eq!(names(&mirror.program, &mirror.archive).await, expected);
    rule.remove();
    let json = run(&mirror.program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), [3, 0, 0], "{json}");
}

#[tokio::test]
async fn what_the_source_has_lost_is_read_from_the_former_file() {
    let (mirror, _, tool) = Mirror::new("targets-lost", "oci-archive").await;
    run(&mirror.program, &[]).await.assert_code(0);

    // An image that has not changed loses a layer at the source, and another one comes.
    mirror.source.delete_blob("team/tool", &tool.largest_blob());
    let new = images::single("targets-lost-new");
    mirror.source.push("team/app", "1.1", &new);
    let output = run(&mirror.program, &[]).await.assert_code(0);
    assert_eq!(counts(&output.json()), [3, 0, 0], "{}", output.stderr);
    assert!(output.stderr.contains("reading it from the former"), "{}", output.stderr);
    let expected = [mirror.name("app:1.0"), mirror.name("app:1.1"), mirror.name("tool:2")];
    assert_eq!(names(&mirror.program, &mirror.archive).await, expected);
    let target = FaultRegistry::start().await;
    for (name, tag, image) in [("tool", "2", &tool), ("app", "1.1", &new)] {
        let from = format!("oci-archive:{}:{}", mirror.archive.display(), mirror.name(&format!("{name}:{tag}")));
        let to = format!("{}/{name}:{tag}", target.host());
        mirror.program.again().args(["sync", &from, &to]).run().await.assert_code(0);
        target.assert_holds(name, tag, image);
    }

    // Nor does the former file have it whole: the image is named, and does not stay.
    let bytes = std::fs::read(&mirror.archive).unwrap();
    let layer = &tool.blobs[&tool.largest_blob()];
    let layer = layer.read(0..layer.size());
    let at = bytes.windows(layer.len()).position(|window| window == layer).expect("the layer is in the archive");
    let mut damaged = bytes.clone();
    damaged[at + layer.len() / 2] ^= 1;
    std::fs::write(&mirror.archive, damaged).unwrap();
    mirror.source.push("team/app", "1.2", &images::single("targets-lost-newer"));
    let json = run(&mirror.program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), [3, 0, 1], "{json}");
    let left = [mirror.name("app:1.0"), mirror.name("app:1.1"), mirror.name("app:1.2")];
    assert_eq!(names(&mirror.program, &mirror.archive).await, left);
}

#[tokio::test]
async fn killed_while_it_writes_the_next_run_reads_only_what_is_missing() {
    let source = FaultRegistry::start().await;
    let image = TestImage::single("targets-kill").layers(4, 1_500_000).build();
    source.push("app", "1", &image);
    let program = configured(&format!("rules:\n- {{from: {}/app, to: \"oci-archive:a.tar\"}}\n", source.host()));
    let last = &image.layers()[3];
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(last);
    let stalled = source.on(matcher).act(FaultAction::StallAfter { bytes: 700_000 });
    let config = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "-c"]).arg(config).spawn();
    let partial = program.work_dir().join(".a.tar.imgsync-partial");
    source.wait_until(|_| std::fs::metadata(&partial).is_ok_and(|found| found.len() > 4_600_000), LIMIT).await;
    running.signal(Signal::KILL);
    running.wait().await;
    stalled.remove();
    source.clear_requests();
    let output = run(&program, &[]).await.assert_code(0);
    assert_eq!(counts(&output.json()), [1, 0, 0], "{}", output.stderr);
    assert_eq!(source.count(RequestType::BlobGet), 1, "{}", source.describe_requests());

    // Stopped on request, it can be resumed.
    let stopped = TestImage::single("targets-stop").layers(2, 1_500_000).build();
    source.push("app", "2", &stopped);
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(&stopped.layers()[1]);
    let stalled = source.on(matcher).act(FaultAction::StallAfter { bytes: 700_000 });
    let config = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "-c"]).arg(config).spawn();
    source.wait_until(|_| stalled.hits() > 0, LIMIT).await;
    running.signal(Signal::TERM);
    running.wait_for_line(|line| line.contains("finishing"), LIMIT).await;
    running.signal(Signal::TERM);
    let output = running.wait().await.assert_code(4);
    let resume = output.stderr.split("`imgsync ").nth(1).and_then(|rest| rest.split('`').next()).unwrap().to_owned();
    stalled.remove();
    let config = program.work_dir().join("imgsync.yaml");
    let resumed = program.again().args(resume.split(' ')).arg("--json").arg("-c").arg(config).run().await;
    assert_eq!(counts(&resumed.assert_code(0).json()), [2, 0, 0]);
    assert_eq!(names(&program, &program.work_dir().join("a.tar")).await.len(), 2);
}

#[tokio::test]
async fn what_is_no_archive_is_not_replaced_and_a_damaged_one_is_with_a_warning() {
    let (mirror, _, _) = Mirror::new("targets-foreign", "oci-archive").await;
    let archive = &mirror.archive;
    let foreign_tar = || {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        tar.append_data(&mut header, "notes.txt", &b"notes"[..]).unwrap();
        tar.into_inner().unwrap()
    };
    for (content, reason) in [
        (b"the notes of somebody else, which are not an archive of images".repeat(20), "not an archive"),
        (b"a few notes".to_vec(), "is not replaced"),
        (foreign_tar(), "it is a tar, but not an image archive"),
        (foreign_tar()[..514].to_vec(), "is not replaced"),
        (b"\x1f\x8b what begins like gzip and is something else".to_vec(), "is not replaced"),
    ] {
        std::fs::write(archive, &content).unwrap();
        let output = run(&mirror.program, &[]).await.assert_code(1);
        let json = output.json();
        assert_eq!(counts(&json), [0, 0, 2], "{json}");
        let error = json["failures"][0]["error"].as_str().unwrap();
        assert!(error.contains("is not replaced") && error.contains(reason), "{error}");
        assert!(error.contains("name another file"), "{error}");
        assert!(std::fs::read(archive).unwrap() == content);
    }
    std::fs::remove_file(archive).unwrap();
    std::fs::create_dir(archive).unwrap();
    let json = run(&mirror.program, &[]).await.assert_code(1).json();
    assert!(json["failures"][0]["error"].as_str().unwrap().contains("is a folder"), "{json}");
    std::fs::remove_dir(archive).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(archive).status().unwrap().success());
    let json = run(&mirror.program, &[]).await.assert_code(1).json();
    assert!(json["failures"][0]["error"].as_str().unwrap().contains("not a regular file"), "{json}");
    std::fs::remove_file(archive).unwrap();

    // An empty file is nothing, and a truncated archive is worth nothing.
    std::fs::write(archive, "").unwrap();
    let output = run(&mirror.program, &[]).await.assert_code(0);
    assert_eq!(counts(&output.json()), [2, 0, 0], "{}", output.stderr);
    assert!(!output.stderr.contains("warning:"), "{}", output.stderr);
    let whole = std::fs::read(archive).unwrap();
    std::fs::write(archive, &whole[..whole.len() / 2]).unwrap();
    let output = run(&mirror.program, &[]).await.assert_code(0);
    assert_eq!(counts(&output.json()), [2, 0, 0], "{}", output.stderr);
    assert!(output.stderr.contains("is damaged, and is replaced"), "{}", output.stderr);
    assert!(std::fs::read(archive).unwrap() == whole);
}

#[tokio::test]
async fn a_file_that_docker_podman_or_skopeo_has_saved_is_replaced_and_keeps_what_the_run_lacks() {
    let (mirror, app, _) = Mirror::new("targets-saved", "docker-archive").await;
    let names = ["app:1.0", "tool:2"].map(|image| mirror.name(image));
    let saved = |program: &str| mirror.program.work_dir().join(format!("{program}.tar"));
    let file = |program: &str| saved(program).display().to_string();
    let mut programs = vec!["skopeo"];
    let to = format!("docker-archive:{}:{}", file("skopeo"), names[0]);
    Skopeo::new().copy_docker_archive_to(&format!("docker://{}", names[0]), &to).await.unwrap();
    match DockerEngine::start().await {
        Ok(engine) => {
            for name in &names {
                engine.pull(name).await.unwrap();
            }
            let output = engine.docker(&["save", "-o", &file("docker"), &names[0], &names[1]]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            programs.push("docker");
        }
        Err(reason) => imgsync_tests::skipped(&format!("docker save: {reason}")),
    }
    match Podman::available() {
        Ok(()) => {
            let podman = Podman::new();
            for name in &names {
                let output = podman.run(&["pull", "--tls-verify=false", name]).await;
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            let output = podman.run(&["save", "-o", &file("podman"), &names[0]]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            programs.push("podman");
        }
        Err(reason) => imgsync_tests::skipped(&format!("podman save: {reason}")),
    }
    let target = FaultRegistry::start().await;
    for program in programs {
        // An image that the source does not give now stays as it was saved.
        std::fs::copy(saved(program), &mirror.archive).unwrap();
        let broken = RequestMatcher::kinds(&[RequestType::ManifestHead, RequestType::ManifestGet]).reference("1.0");
        let held = mirror.source.on(broken).always().act(FaultAction::status(403));
        let output = run(&mirror.program, &[]).await.assert_code(1);
        assert_eq!(counts(&output.json()), [1, 0, 1], "{program}: {}", output.stderr);
        assert!(output.stderr.contains("1 image of the former file stay"), "{program}: {}", output.stderr);
        held.remove();
        for name in &names {
            let from = format!("docker-archive:{}:{name}", mirror.archive.display());
            let to = format!("docker://{}/{program}/saved:1", target.host());
            Skopeo::new().copy_docker_archive(&from, &to).await.unwrap();
        }
        // A cut one is damaged.
        let whole = std::fs::read(saved(program)).unwrap();
        std::fs::write(&mirror.archive, &whole[..whole.len() / 3]).unwrap();
        let output = run(&mirror.program, &[]).await.assert_code(0);
        assert_eq!(counts(&output.json()), [2, 0, 0], "{program}: {}", output.stderr);
        assert!(output.stderr.contains("is damaged, and is replaced"), "{program}: {}", output.stderr);
        let from = format!("oci-archive:{}:{}", mirror.archive.display(), names[0]);
        Skopeo::new().copy_any(&from, &format!("docker://{}/{program}/whole:1", target.host())).await.unwrap();
        target.assert_holds(&format!("{program}/whole"), "1", &app);
    }
}

#[tokio::test]
async fn a_source_that_fails_while_the_archive_is_written_gets_as_many_attempts_as_elsewhere() {
    let (mirror, _, _) = Mirror::new("targets-retry", "oci-archive").await;
    let failing = mirror.source.on(RequestType::BlobGet).always().act(FaultAction::error(503, "UNAVAILABLE"));
    let retries = ["--attempts", "3"];
    let json = run(&mirror.program, &retries).await.assert_code(1).json();
    assert_eq!(counts(&json), [0, 0, 2], "{json}");
    assert_eq!(json["failures"][0]["attempts"], 3, "{json}");
    let mut asked = std::collections::BTreeMap::<String, u32>::new();
    for request in mirror.source.requests_of_kind(RequestType::BlobGet) {
        *asked.entry(request.reference.unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(asked.values().max(), Some(&3), "{}", mirror.source.describe_requests());
    failing.remove();
    let json = run(&mirror.program, &retries).await.assert_code(0).json();
    assert_eq!(counts(&json), [2, 0, 0], "{json}");
}

#[tokio::test]
async fn what_would_write_a_part_of_an_archive_is_refused() {
    let (mirror, _, _) = Mirror::new("targets-part", "oci-archive").await;
    let output = run(&mirror.program, &["--rule", "1"]).await.assert_code(2);
    assert!(output.stderr.contains("also has the images of"), "{}", output.stderr);
    let output = run(&mirror.program, &["--batch-size", "1"]).await.assert_code(2);
    assert!(output.stderr.contains("is written as a whole"), "{}", output.stderr);
    let config = mirror.program.work_dir().join("imgsync.yaml");
    let served = mirror.program.again().args(["serve", "--listen", "127.0.0.1:0", "-c"]).arg(config).run().await;
    assert!(served.assert_code(2).stderr.contains("`imgsync serve` does not write archives"));
    for (rules, wanted) in [
        ("[{from: a.io/b, to: ['oci-archive:x.tar', 'docker-archive:./x.tar']}]", "is also written as"),
        ("[{from: 'oci-archive:x.tar', to: 'oci-archive:x.tar'}]", "source and target are the same"),
        ("[{from: a.io/b, to: 'oci-archive:x.tar', prune: {keep_days: 1}}]", "`prune` needs registries"),
        ("[{from: a.io/b, to: 'oci-archive:-'}]", "an archive in a rule is a file, not stdin or stdout"),
        ("[{from: 'docker-archive:-', to: a.io/b}]", "`imgsync sync` copies from and to a pipe"),
        ("[{from: 'oci-archive:-:1.0', to: a.io/b}]", "write `oci-archive:FILE`"),
    ] {
        let program = configured(&format!("rules: {rules}\n"));
        let output = run(&program, &[]).await.assert_code(2);
        assert!(output.stderr.contains(wanted), "{}", output.stderr);
    }
    assert!(!mirror.archive.exists());
}

#[tokio::test]
async fn an_image_that_the_policy_refuses_is_not_in_the_archive() {
    let source = FaultRegistry::start().await;
    source.push("app", "small", &images::single("targets-policy-small"));
    source.push("app", "large", &TestImage::single("targets-policy-large").layers(2, 300_000).build());
    let rule = format!("{{from: {}/app, to: \"oci-archive:a.tar\", policy: {{max_size: 400KB}}}}", source.host());
    let program = configured(&format!("rules: [{rule}]\n"));
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), [1, 0, 1], "{json}");
    assert_eq!(names(&program, &program.work_dir().join("a.tar")).await, [format!("{}/app:small", source.host())]);
}
