//! Bundles and kills, full disks and closed pipes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Signal};

use super::{create, leftovers, load, rules, visible_files};

const IMAGES: usize = 12;
const KILLS: usize = 10;

fn image(number: usize) -> TestImage {
    let name = format!("interrupted-{number}");
    TestImage::single(&name).layer(Layer::File(400_000)).layer(Layer::File(3_000)).build()
}

#[tokio::test]
async fn killed_at_any_moment_both_sides_go_on_where_they_were() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for number in 0..IMAGES {
        source.push("a", &format!("v{number}"), &image(number));
    }
    let near = rules(&source.host(), &["a"]);
    let arguments = ["bundle", "create", "-c", "imgsync.yaml", "--out", "out/", "--part-size", "300KB"];
    let out = near.work_dir().join("out");
    let is_finished = || out.join("bundle.tar.json").exists();
    let mut kills = 0;
    while !is_finished() {
        let written = written_blobs(&out);
        let before = source.requests_of_kind(RequestType::BlobGet).len();
        let mut running = near.again().args(arguments).spawn();
        if kills < KILLS {
            let wanted = before as u64 + 1 + (kills as u64 * 7) % 5;
            let is_reached = |source: &FaultRegistry| match kills % 3 {
                2 => written_blobs(&out).len() > written.len() || is_finished(),
                _ => source.count(RequestType::BlobGet) >= wanted || is_finished(),
            };
            source.wait_until(is_reached, Duration::from_secs(60)).await;
            running.signal(Signal::KILL);
            running.wait().await;
            kills += 1;
        } else {
            running.wait().await.assert_code(0);
        }
        // What waited to be written is read again, and nothing else.
        for request in source.requests_of_kind(RequestType::BlobGet).split_off(before) {
            let digest = request.reference.unwrap();
            assert!(!written.contains(&digest), "{digest} is read again after {kills} kills");
        }
    }
    assert!(kills >= 3, "{kills} kills");
    let checked = Command::new("sha256sum").args(["-c", "--quiet", "bundle.tar.sha256"]).current_dir(&out).status();
    assert!(checked.unwrap().success());

    let far = Imgsync::new();
    let to = format!("{}/m", target.host());
    for kill in 0..KILLS {
        let wanted = target.total() + 1 + (kill as u64 * 11) % 17;
        let mut running = far.again().args(["bundle", "load", out.to_str().unwrap(), "--to", &to]).spawn();
        let is_done = |target: &FaultRegistry| target.tags_in_all() == IMAGES;
        target.wait_until(|target| target.total() >= wanted || is_done(target), Duration::from_secs(60)).await;
        running.signal(Signal::KILL);
        running.wait().await;
        target.assert_tags_complete();
    }
    load(&far, &out, &to, &[]).await.assert_code(0);
    for number in 0..IMAGES {
        target.assert_holds("m/a", &format!("v{number}"), &image(number));
    }
    assert_eq!(leftovers(&far, &out), [] as [PathBuf; 0]);
    // What is there is not pushed again.
    target.clear_requests();
    load(&far, &out, &to, &[]).await.assert_code(0);
    assert_eq!(target.count(RequestType::UploadStart), 0);
}

#[tokio::test]
async fn a_bundle_that_is_resumed_has_the_bytes_of_one_that_was_not() {
    let source = FaultRegistry::start().await;
    for number in 0..3 {
        source.push("a", &format!("v{number}"), &image(number));
    }
    let near = rules(&source.host(), &["a"]);
    let arguments = ["bundle", "create", "-c", "imgsync.yaml", "--out", "b.tar"];
    let mut running = near.again().args(arguments).spawn();
    source.wait_until(|source| source.count(RequestType::BlobGet) >= 3, Duration::from_secs(60)).await;
    running.signal(Signal::KILL);
    running.wait().await;
    near.again().args(arguments).run().await.assert_code(0);
    let members = |bytes: &[u8]| {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().into_owned(), entry.size())
        });
        entries.filter(|(path, _)| path.starts_with("blobs")).collect::<Vec<_>>()
    };
    let resumed = std::fs::read(near.work_dir().join("b.tar")).unwrap();
    create(&near, "c.tar", &[]).await.assert_code(0);
    let whole = std::fs::read(near.work_dir().join("c.tar")).unwrap();
    assert_eq!(members(&resumed), members(&whole));
    assert_eq!(resumed.len(), whole.len());
}

#[tokio::test]
async fn what_a_power_cut_took_from_an_unfinished_part_is_written_again() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    // The first layers are small, the last one is large.
    let image = TestImage::single("power-cut").layer(Layer::File(3_000)).layer(Layer::File(900_000));
    let image = image.layer(Layer::Synthetic(3 << 20)).build();
    source.push("a", "1", &image);
    let near = rules(&source.host(), &["a"]);
    let arguments = ["bundle", "create", "-c", "imgsync.yaml", "--out", "b.tar", "--overwrite"];
    let partial = near.work_dir().join(".b.tar.partial");
    // Zeros at the end of what is written, and in its middle: in a whole member.
    for zeros in [|length: usize| length - 5_000..length, |length: usize| length / 6..length / 6 + 5_000] {
        let cut = RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
        let cut = source.on(cut).always().act(FaultAction::StallAfter { bytes: 1 << 20 });
        let mut running = near.again().args(arguments).spawn();
        let is_written = || std::fs::metadata(&partial).is_ok_and(|found| found.len() > 1_500_000);
        source.wait_until(|_| is_written(), Duration::from_secs(60)).await;
        running.signal(Signal::KILL);
        running.wait().await;
        cut.remove();
        let mut bytes = std::fs::read(&partial).unwrap();
        let range = zeros(bytes.len());
        bytes[range].fill(0);
        std::fs::write(&partial, bytes).unwrap();
        near.again().args(arguments).run().await.assert_code(0);
        let verified = near.again().args(["bundle", "verify", "b.tar"]).run().await;
        verified.assert_code(0);
    }
    load(&Imgsync::new(), &near.work_dir().join("b.tar"), &format!("{}/m", target.host()), &[]).await.assert_code(0);
    target.assert_holds("m/a", "1", &image);
}

#[tokio::test]
async fn an_interrupted_bundle_that_is_started_again_leaves_none_of_its_parts() {
    let source = FaultRegistry::start().await;
    let image = images::big("restarted", 3 << 20);
    source.push("a", "1", &image);
    let near = rules(&source.host(), &["a"]);
    let out = near.work_dir().join("out");
    let stall = RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
    let stall = source.on(stall).always().act(FaultAction::StallAfter { bytes: 2 << 20 });
    let arguments = ["bundle", "create", "-c", "imgsync.yaml", "--out", "out/"];
    let mut running = near.again().args(arguments).args(["--part-size", "300KB"]).spawn();
    source.wait_until(|_| out.join("bundle.tar.004").exists(), Duration::from_secs(60)).await;
    running.signal(Signal::KILL);
    running.wait().await;
    stall.remove();
    create(&near, "out/", &["--part-size", "2MB"]).await.assert_code(0);
    let listed: Vec<String> = visible_files(&out);
    let expected = ["001", "002", "index", "json", "sha256"].map(|end| format!("bundle.tar.{end}"));
    assert_eq!(listed, expected);
    assert_eq!(leftovers(&near, &out), [] as [PathBuf; 0]);
    near.again().args(["bundle", "verify", "out"]).run().await.assert_code(0);
}

#[tokio::test]
async fn a_disk_without_enough_space_is_noticed_before_the_first_byte_and_the_next_call_goes_on() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let big = images::big("bundle-space", 3_000_000);
    source.push("a", "1", &big);
    let near = rules(&source.host(), &["a"]);
    let folder = near.work_dir().join("medium");
    std::fs::create_dir(&folder).unwrap();
    let Some(medium) = Tmpfs::mount(&folder, "1m") else {
        return imgsync_tests::skipped("a medium that is too small: a tmpfs cannot be mounted here");
    };
    let refused = create(&near, "medium/", &[]).await.assert_code(1);
    assert!(refused.stderr.contains("are needed"), "{}", refused.stderr);
    assert_eq!(visible_files(&folder), [] as [&str; 0]);
    assert_eq!(source.count(RequestType::BlobGet), 0);
    medium.resize("8m");
    source.clear_requests();
    create(&near, "medium/", &[]).await.assert_code(0);
    assert_eq!(source.count(RequestType::ManifestGet), 0, "the images were chosen before");
    load(&Imgsync::new(), &folder, &format!("{}/m", target.host()), &[]).await.assert_code(0);
    target.assert_holds("m/a", "1", &big);
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_keeps_what_is_written() {
    let source = FaultRegistry::start().await;
    let big = images::big("bundle-filled", 3_000_000);
    source.push("a", "1", &big);
    let near = rules(&source.host(), &["a"]);
    let folder = near.work_dir().join("medium");
    std::fs::create_dir(&folder).unwrap();
    let Some(_medium) = Tmpfs::mount(&folder, "4m") else {
        return imgsync_tests::skipped("a medium that fills: a tmpfs cannot be mounted here");
    };
    let stalled = source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&big.largest_blob()))
        .times(1)
        .act(FaultAction::StallAfter { bytes: 1_000_000 });
    let arguments = ["bundle", "create", "-c", "imgsync.yaml", "--out", "medium/", "--stall-timeout", "3s"];
    let mut running = near.again().args(arguments).args(["--retry-delay", "10ms"]).spawn();
    let partial = folder.join(".bundle.tar.partial");
    let written = || std::fs::metadata(&partial).map_or(0, |found| found.len());
    source.wait_until(|_| stalled.hits() > 0 && written() > 500_000, Duration::from_secs(60)).await;
    // As large as fits.
    let filler = folder.join("filler");
    let _ = std::fs::write(&filler, vec![1; 4 << 20]);
    let failed = running.wait().await.assert_code(1);
    assert!(
        failed.stderr.contains("No space left") && failed.stderr.contains("hint: free disk space"),
        "{}",
        failed.stderr
    );
    std::fs::remove_file(&filler).unwrap();
    source.clear_requests();
    near.again().args(arguments).run().await.assert_code(0);
    let reads = source.requests_of_kind(RequestType::BlobGet);
    assert!(reads.len() == 1 && reads[0].header("range").is_some(), "{}", source.describe_requests());
    assert_eq!(source.total(), 1, "{}", source.describe_requests());
    let checked = Command::new("sha256sum").args(["-c", "--quiet", "bundle.tar.sha256"]).current_dir(&folder).status();
    assert!(checked.unwrap().success());
    super::bundle(&near, &["verify", "medium"]).await.assert_code(0);
}

#[tokio::test]
async fn a_closed_pipe_is_an_error_and_a_whole_one_is_a_bundle() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let big = images::big("bundle-pipe", 3_000_000);
    source.push("a", "1", &big);
    let near = rules(&source.host(), &["a"]);
    let program = near.path().to_str().unwrap().to_owned();
    let shell = async |script: &str| {
        let script = script.replace("CREATE", &format!("{program} bundle create -c imgsync.yaml --out -"));
        let output = tokio::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(near.work_dir())
            .env("XDG_STATE_HOME", near.state_dir())
            .output();
        output.await.unwrap()
    };
    let closed = shell("CREATE | head -c 1000 >/dev/null; exit ${PIPESTATUS[0]}").await;
    let said = String::from_utf8_lossy(&closed.stderr).into_owned();
    assert!(closed.status.code() == Some(1) && said.contains("the pipe was closed"), "{said}");
    let whole = shell("set -o pipefail; CREATE | cat > b.tar").await;
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    load(&Imgsync::new(), &near.work_dir().join("b.tar"), &format!("{}/m", target.host()), &[]).await.assert_code(0);
    target.assert_holds("m/a", "1", &big);
}

/// Returns the digests of the blobs of which the parts of an unfinished bundle hold every byte, with the padding.
fn written_blobs(folder: &Path) -> HashSet<String> {
    let mut bytes = Vec::new();
    for number in 1.. {
        let whole = std::fs::read(folder.join(format!("bundle.tar.{number:03}")));
        match whole.or_else(|_| std::fs::read(folder.join(format!(".bundle.tar.{number:03}.partial")))) {
            Ok(part) => bytes.extend(part),
            Err(_) => break,
        }
    }
    let mut archive = tar::Archive::new(bytes.as_slice());
    let members = archive.entries().unwrap().map_while(Result::ok);
    let end = |member: &tar::Entry<_>| (member.raw_file_position() + member.size()).next_multiple_of(512);
    let whole = members.filter(|member| end(member) <= bytes.len() as u64);
    let names = whole.map(|member| member.path().unwrap().to_string_lossy().into_owned());
    names.filter_map(|name| Some(format!("sha256:{}", name.strip_prefix("blobs/sha256/")?))).collect()
}

/// A small file system, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, size: &str) -> Option<Tmpfs> {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|status| status.success()).then(|| Tmpfs(folder.to_owned()))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
