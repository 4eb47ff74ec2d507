//! Bundles: from registries into files, and from files into registries, with the built program and real registries.

mod differential;
mod gap;
mod incomplete;
mod interruptions;
mod parts;
mod signed;
mod stdin;

use std::path::{Path, PathBuf};

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

use crate::end_to_end::configured;

/// Runs `imgsync bundle` with arguments in the home of `program`.
async fn bundle(program: &Imgsync, args: &[&str]) -> Output {
    program.again().arg("bundle").args(args).run().await
}

/// Makes a bundle of the rules of `program`.
async fn create(program: &Imgsync, out: &str, more: &[&str]) -> Output {
    bundle(program, &[&["create", "-c", "imgsync.yaml", "--out", out], more].concat()).await
}

/// Loads a bundle.
async fn load(program: &Imgsync, path: &Path, to: &str, more: &[&str]) -> Output {
    bundle(program, &[&["load", path.to_str().unwrap(), "--to", to], more].concat()).await
}

/// Returns a program whose rules copy these repositories; `to` names a registry that nobody can reach from here.
fn rules(host: &str, repositories: &[&str]) -> Imgsync {
    let rules: String =
        repositories.iter().map(|name| format!("- {{from: '{host}/{name}', naming: keep}}\n")).collect();
    configured(&format!("defaults: {{to: registry.far.invalid/mirror}}\nrules:\n{rules}"))
}

/// Returns the files in a folder, without hidden ones, by name.
fn visible_files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Returns hidden files in a folder and what is left in the state folder.
fn leftovers(program: &Imgsync, folder: &Path) -> Vec<PathBuf> {
    let hidden = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let hidden = hidden.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.'));
    let work = std::fs::read_dir(program.state_dir().join("imgsync/bundles"));
    hidden.chain(work.into_iter().flatten().map(|entry| entry.unwrap().path())).collect()
}

#[tokio::test]
async fn images_signatures_and_names_travel_in_one_file_between_registries() {
    let (source, target) = tokio::join!(
        DockerRegistry::start(DockerRegistryAuth::None),
        DockerRegistry::start(DockerRegistryAuth::htpasswd("me", "secret"))
    );
    let (app, tool) = (images::multi_platform("bundle-app"), images::single_docker("bundle-tool"));
    let signature = images::cosign("bundle-signature");
    source.push("team/app", "1.0", &app).await;
    source.push("team/app", "latest", &app).await;
    source.push("team/app", &app.digest_tag("sig"), &signature).await;
    source.push("team/tool", "2.0", &tool).await;

    let near = rules(&source.host(), &["team/app", "team/tool"]);
    let made = create(&near, "out/", &["--json"]).await.assert_code(0);
    let json = made.json();
    assert_eq!(json["report"]["counts"]["copied"], 3, "{json}");
    assert_eq!((&json["bundle"]["tags"], &json["bundle"]["unchanged_tags"]), (&4.into(), &0.into()), "{json}");
    let out = near.work_dir().join("out");
    let files = ["bundle.tar", "bundle.tar.index", "bundle.tar.json", "bundle.tar.sha256"];
    assert_eq!(visible_files(&out), files);
    assert_eq!(leftovers(&near, &out), [] as [PathBuf; 0]);
    let size = std::fs::metadata(out.join("bundle.tar")).unwrap().len();
    assert_eq!(json["bundle"]["bytes"], size);
    let checked = std::process::Command::new("sha256sum").args(["-c", "bundle.tar.sha256"]).current_dir(&out).output();
    assert!(checked.unwrap().status.success());

    let far = Imgsync::new();
    far.write_docker_config(&[(&target.host(), "me", "secret")]);
    let listed = bundle(&far, &["list", out.to_str().unwrap()]).await.assert_code(0);
    for name in ["team/app:1.0", "team/app:latest", "team/tool:2.0"] {
        let line = listed.stdout.lines().find(|line| line.starts_with(&format!("{name}\t"))).unwrap();
        assert!(line.ends_with(&format!("{}/{name}", source.host())), "{line}");
    }
    bundle(&far, &["verify", out.to_str().unwrap()]).await.assert_code(0);
    let to = format!("{}/mirror", target.host());
    let loaded = load(&far, &out, &to, &["--json"]).await.assert_code(0);
    assert_eq!(loaded.json()["counts"]["copied"], 3);
    assert!(loaded.stderr.contains("not signed, and so not verified"), "{}", loaded.stderr);
    target.assert_holds("mirror/team/app", "1.0", &app).await;
    target.assert_holds("mirror/team/app", "latest", &app).await;
    target.assert_holds("mirror/team/app", &app.digest_tag("sig"), &signature).await;
    target.assert_holds("mirror/team/tool", "2.0", &tool).await;
    assert_eq!(leftovers(&far, &out), [] as [PathBuf; 0]);

    // Again: everything is there.
    let json = load(&far, &out, &to, &["--json"]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&0.into(), &3.into()));
}

#[tokio::test]
async fn referrers_are_carried_and_each_blob_is_read_once() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("bundle-subject");
    let sbom = images::referrer("bundle-sbom", &image);
    source.push("a", "1", &image);
    source.push("b", "1", &image);
    source.push_untagged("a", &sbom);
    let near = rules(&source.host(), &["a", "b"]);
    create(&near, "b.tar", &[]).await.assert_code(0);
    let mut read: Vec<String> = source
        .requests_of_kind(imgsync_tests::fault::RequestType::BlobGet)
        .iter()
        .map(|request| request.reference.clone().unwrap_or_default())
        .collect();
    read.sort();
    let mut unique = read.clone();
    unique.dedup();
    assert_eq!(read, unique);
    load(&Imgsync::new(), &near.work_dir().join("b.tar"), &format!("{}/m", target.host()), &[]).await.assert_code(0);
    target.assert_holds("m/a", "1", &image);
    target.assert_holds("m/b", "1", &image);
    target.assert_holds_untagged("m/a", &sbom);
}

#[tokio::test]
async fn an_image_that_fails_is_named_and_the_others_are_in_the_bundle() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let good = images::single("bundle-good");
    source.push("a", "good", &good);
    source.move_tag("a", "bad", &images::sha256(b"nothing"));
    let near = rules(&source.host(), &["a"]);
    let made = create(&near, "b.tar", &["--json"]).await.assert_code(1);
    assert_eq!(made.json()["report"]["counts"]["failed"], 1);
    assert_eq!(made.json()["bundle"]["tags"], 1);
    load(&Imgsync::new(), &near.work_dir().join("b.tar"), &format!("{}/m", target.host()), &[]).await.assert_code(0);
    target.assert_holds("m/a", "good", &good);
}

#[tokio::test]
async fn what_cannot_be_made_or_loaded_says_so_and_leaves_nothing() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("bundle-refused"));
    let near = rules(&source.host(), &["a"]);
    let refused = create(&near, "-", &["--part-size", "1MB"]).await.assert_code(2);
    assert!(refused.stderr.contains("stdout cannot be cut into parts"), "{}", refused.stderr);
    let refused = create(&near, "-", &["--json"]).await.assert_code(2);
    assert!(refused.stderr.contains("would be in the bundle"), "{}", refused.stderr);
    create(&near, "b.tar", &[]).await.assert_code(0);
    let refused = create(&near, "b.tar", &[]).await.assert_code(2);
    assert!(refused.stderr.contains("exists") && refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    create(&near, "b.tar", &["--overwrite"]).await.assert_code(0);

    let to = format!("{}/m", source.host());
    let far = Imgsync::new();
    for (name, content, reason) in [
        ("empty", &b""[..], "too short"),
        ("text", &[b'x'; 4096][..], "is not a tar"),
        ("zeros", &[0; 4096][..], "without the index of a bundle"),
    ] {
        let file = far.file(name, content);
        let refused = load(&far, &file, &to, &[]).await;
        assert_eq!(refused.code, Some(if name == "zeros" { 2 } else { 1 }), "{name}");
        assert!(refused.stderr.contains(reason), "{name}: {}", refused.stderr);
    }
    let refused = load(&far, &far.work_dir().join("missing.tar"), &to, &[]).await.assert_code(1);
    assert!(refused.stderr.contains("no such file"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_rule_may_take_its_images_from_an_archive_and_a_program_replaces_no_other() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let app = images::single("from-an-archive");
    source.push("team/app", "1.0", &app);
    let near = configured(
        "defaults: {to: registry.far.invalid/mirror}\nrules:\n- {from: 'oci-archive:app.tar', naming: keep}\n",
    );
    let from = format!("{}/team/app:1.0", source.host());
    near.again().args(["sync", &from, "oci-archive:app.tar"]).run().await.assert_code(0);
    source.clear_requests();
    create(&near, "1.tar", &[]).await.assert_code(0);
    assert_eq!(source.count_where(|_| true), 0, "the archive has it all");
    let to = format!("{}/m", target.host());
    load(&Imgsync::new(), &near.work_dir().join("1.tar"), &to, &[]).await.assert_code(0);
    target.assert_holds("m/team/app", "1.0", &app);

    near.file("imgsync", "the program that is in use");
    let program = near.file("other", "a program for the far side");
    let arguments = ["--with-program", program.to_str().unwrap()];
    let output = create(&near, "2.tar", &arguments).await.assert_code(2);
    assert!(output.stderr.contains("imgsync exists") && output.stderr.contains("--overwrite"), "{}", output.stderr);
    let kept = std::fs::read_to_string(near.work_dir().join("imgsync")).unwrap();
    assert_eq!(kept, "the program that is in use");
}
