//! An archive is resumed after the last whole member, whatever killed its writer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use rustix::process::Signal;
use tokio::sync::Semaphore;

use super::{file_names, sync};

const LAYERS: usize = 6;
/// Larger than what is read into memory.
const LAYER_BYTES: u64 = 1_500_000;
const LIMIT: Duration = Duration::from_secs(30);
const PARTIAL: &str = ".a.tar.imgsync-partial";

fn image(name: &str) -> TestImage {
    TestImage::single(name).layers(LAYERS, LAYER_BYTES).build()
}

/// Returns an archive that was written without a fault.
async fn undisturbed(program: &Imgsync, from: &str) -> Vec<u8> {
    sync(program, &[from, "oci-archive:undisturbed.tar"]).run().await.assert_code(0);
    let path = program.work_dir().join("undisturbed.tar");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// Kills a writer when it waits for the end of a layer, of which half has arrived.
async fn kill_at(source: &FaultRegistry, program: &Imgsync, from: &str, (at, layer): (usize, &str)) {
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(layer);
    let stalled = source.on(matcher).act(FaultAction::StallAfter { bytes: LAYER_BYTES / 2 });
    let mut writer = sync(program, &[from, "oci-archive:a.tar"]).spawn();
    let partial = program.work_dir().join(PARTIAL);
    let wanted = at as u64 * LAYER_BYTES + LAYER_BYTES / 4;
    source.wait_until(|_| std::fs::metadata(&partial).is_ok_and(|found| found.len() >= wanted), LIMIT).await;
    writer.signal(Signal::KILL);
    writer.wait().await;
    stalled.remove();
}

#[tokio::test]
async fn killed_in_the_middle_of_a_layer_the_next_call_reads_only_what_is_missing() {
    let source = FaultRegistry::start().await;
    let image = image("resume-kill");
    source.push("app", "1", &image);
    let from = format!("{}/app:1", source.host());
    let program = Imgsync::new();
    let whole = undisturbed(&program, &from).await;
    let layers = image.layers();
    std::fs::write(program.work_dir().join("a.tar"), "the former archive").unwrap();
    for (at, layer) in layers.iter().enumerate() {
        kill_at(&source, &program, &from, (at, layer)).await;
        assert_eq!(file_names(&program.work_dir()), [PARTIAL, "a.tar"], "killed at layer {at}");
        assert_eq!(std::fs::read(program.work_dir().join("a.tar")).unwrap(), b"the former archive");
    }
    source.clear_requests();
    let output = sync(&program, &[&from, "oci-archive:a.tar", "--json"]).run().await.assert_code(0);
    assert!(output.stderr.contains("resuming"), "{}", output.stderr);
    // All but the last layer are there, and the config.
    assert_eq!(source.count(RequestType::BlobGet), 1, "{}", source.describe_requests());
    let json = output.json();
    assert_eq!((&json["blobs"]["copied"], &json["blobs"]["reused"]), (&1.into(), &LAYERS.into()), "{json}");
    assert!(std::fs::read(program.work_dir().join("a.tar")).unwrap() == whole);
    assert_eq!(file_names(&program.work_dir()), ["a.tar"]);
}

#[tokio::test]
async fn a_partial_file_with_other_content_is_cut_where_it_differs() {
    let source = FaultRegistry::start().await;
    let image = image("resume-damage");
    source.push("app", "1", &image);
    source.push("app", "2", &images::single("resume-other"));
    let (from, other) = (format!("{}/app:1", source.host()), format!("{}/app:2", source.host()));
    let program = Imgsync::new();
    let whole = undisturbed(&program, &from).await;
    kill_at(&source, &program, &from, (3, &image.layers()[3])).await;
    let partial = program.work_dir().join(PARTIAL);

    // A byte of the second layer was changed: it and what follows are read again.
    let mut bytes = std::fs::read(&partial).unwrap();
    let middle = bytes.len() - 2 * LAYER_BYTES as usize;
    bytes[middle] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    source.clear_requests();
    sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    assert_eq!(source.count(RequestType::BlobGet), (LAYERS - 1) as u64, "{}", source.describe_requests());
    assert!(std::fs::read(program.work_dir().join("a.tar")).unwrap() == whole);

    // Killed before the rename: nothing is read again.
    std::fs::rename(program.work_dir().join("a.tar"), &partial).unwrap();
    source.clear_requests();
    sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    assert_eq!(source.count(RequestType::BlobGet), 0, "{}", source.describe_requests());
    assert!(std::fs::read(program.work_dir().join("a.tar")).unwrap() == whole);

    // Another plan starts again.
    kill_at(&source, &program, &from, (3, &image.layers()[3])).await;
    let expected = undisturbed(&program, &other).await;
    sync(&program, &[&other, "oci-archive:a.tar"]).run().await.assert_code(0);
    assert!(std::fs::read(program.work_dir().join("a.tar")).unwrap() == expected);
    assert_eq!(file_names(&program.work_dir()), ["a.tar"]);
}

#[tokio::test]
async fn of_two_writers_of_a_file_one_waits_with_a_warning() {
    let source = FaultRegistry::start().await;
    let image = image("resume-two");
    source.push("app", "1", &image);
    let from = format!("{}/app:1", source.host());
    let program = Imgsync::new();
    let gate = Arc::new(Semaphore::new(0));
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(&image.layers()[2]);
    let held = source.on(matcher).act(FaultAction::Gate(gate.clone()));
    let mut first = sync(&program, &[&from, "oci-archive:a.tar"]).spawn();
    source.wait_until(|_| held.hits() == 1, LIMIT).await;
    let mut second = sync(&program, &[&from, "oci-archive:a.tar"]).spawn();
    let line = second.wait_for_line(|line| line.contains("waiting for the lock"), LIMIT).await;
    assert!(line.contains(&format!("process {}", first.pid())), "{line}");
    gate.add_permits(1);
    first.wait().await.assert_code(0);
    second.wait().await.assert_code(0);
    assert_eq!(file_names(&program.work_dir()), ["a.tar"]);
}

/// A small disk, unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: u64) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", folder.path().to_str()?]).then_some(SmallDisk(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l", self.path().to_str().unwrap_or_default()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    std::process::Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_said_before_the_first_layer_and_one_that_fills_up_keeps_what_it_has() {
    let (Some(small), Some(filled)) = (SmallDisk::mount(400 << 10), SmallDisk::mount(10 << 20)) else {
        return imgsync_tests::skipped("archives on a full disk: a tmpfs cannot be mounted here");
    };
    let source = FaultRegistry::start().await;
    let image = image("resume-disk");
    source.push("app", "1", &image);
    let from = format!("{}/app:1", source.host());
    let program = Imgsync::new();
    let target = format!("oci-archive:{}/a.tar", small.path().display());
    let output = sync(&program, &[&from, &target]).run().await.assert_code(1);
    assert!(output.stderr.contains("are needed") && output.stderr.contains("are free in"), "{}", output.stderr);
    assert_eq!(source.count(RequestType::BlobGet), 0);

    // Somebody else fills it meanwhile.
    let target = format!("oci-archive:{}/a.tar", filled.path().display());
    let gate = Arc::new(Semaphore::new(0));
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(&image.layers()[3]);
    let held = source.on(matcher).act(FaultAction::Gate(gate.clone()));
    let mut writer = sync(&program, &[&from, &target]).spawn();
    source.wait_until(|_| held.hits() == 1, LIMIT).await;
    let filler = filled.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 10 << 20]);
    gate.add_permits(1);
    let output = writer.wait().await.assert_code(1);
    assert!(output.stderr.contains("No space left") && output.stderr.contains("run again"), "{}", output.stderr);
    assert_eq!(file_names(filled.path()), [PARTIAL, "filler"]);
    std::fs::remove_file(filler).unwrap();
    source.clear_requests();
    sync(&program, &[&from, &target]).run().await.assert_code(0);
    assert!(source.count(RequestType::BlobGet) <= 4, "{}", source.describe_requests());
    assert_eq!(file_names(filled.path()), ["a.tar"]);
}
