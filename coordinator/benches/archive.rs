//! Wall time and memory of writing an archive from an image layout and loading it into another one, by a rule and image by
//! image, compared with `cat` plus hashing of the same bytes in the same run. The aims are a ratio of 1.2 and 64 MiB.
//!
//! `cargo bench --bench archive [-- size=GIB images=N]`; needs twice the size in TMPDIR.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::Imgsync;
use sha2::{Digest as _, Sha256};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(3600);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let mut values = arguments.iter().filter_map(|argument| argument.strip_prefix(name)?.parse().ok());
        values.next_back().unwrap_or(default)
    };
    let (size, images) = (number("size=", 1) * 1024 * MIB, number("images=", 200));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(size, images));
}

async fn measure(size: u64, images: u64) {
    let folder = tempfile::Builder::new().prefix("imgsync-archive-bench-").tempdir().unwrap();
    let layout = folder.path().join("layout");
    let names = write_layout(&layout, size, images);
    let blobs: Vec<PathBuf> =
        std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let archive = folder.path().join("archive.tar");

    let bare = folder.path().join("bare");
    let cat = cat_and_hash(&blobs, &bare);
    std::fs::remove_file(&bare).unwrap();
    let sources = names.iter().map(|name| format!("oci:{}:{name}", layout.display()));
    let write = Imgsync::at(env!("CARGO_BIN_EXE_imgsync"))
        .args(["sync", "--quiet"])
        .args(sources)
        .arg(format!("oci-archive:{}", archive.display()))
        .limit(LIMIT);
    sync_disks();
    let started = Instant::now();
    let written = write.run().await.assert_code(0);
    let elapsed = started.elapsed();
    let archived = std::fs::metadata(&archive).unwrap().len();
    report("write", elapsed, cat, written.peak_rss_bytes, archived);
    std::fs::remove_dir_all(&layout).unwrap();

    let cat = cat_and_hash(std::slice::from_ref(&archive), &bare);
    std::fs::remove_file(&bare).unwrap();
    let loaded = folder.path().join("loaded");
    let program = Imgsync::at(env!("CARGO_BIN_EXE_imgsync"));
    sync_disks();
    let rule = format!("rules:\n- {{from: 'oci-archive:{}', to: 'oci:{}'}}\n", archive.display(), loaded.display());
    program.file("imgsync.yaml", rule);
    let started = Instant::now();
    let output = program.again().args(["run", "--quiet"]).limit(LIMIT).run().await.assert_code(0);
    let elapsed = started.elapsed();
    report("load", elapsed, cat, output.peak_rss_bytes, folder_bytes(&loaded.join("blobs/sha256")));
    std::fs::remove_dir_all(&loaded).unwrap();

    // One process for each image: its start and its syncs are not shared.
    sync_disks();
    let (started, mut peak) = (Instant::now(), 0);
    for name in &names {
        let (from, to) = (format!("oci-archive:{}:{name}", archive.display()), format!("oci:{}", loaded.display()));
        let output = program.again().args(["sync", "--quiet", &from, &to]).limit(LIMIT).run().await.assert_code(0);
        peak = peak.max(output.peak_rss_bytes);
    }
    report("load one by one", started.elapsed(), cat, peak, folder_bytes(&loaded.join("blobs/sha256")));
}

/// Writes a layout of images with one layer each. Returns their names.
fn write_layout(layout: &Path, size: u64, images: u64) -> Vec<String> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let file = |digest: &str| File::create(blobs.join(digest.trim_start_matches("sha256:"))).unwrap();
    let (mut names, mut entries) = (Vec::new(), Vec::new());
    for number in 0..images {
        let image = TestImage::single(&format!("archive-{number}")).layer(Layer::Synthetic(size / images)).build();
        for (digest, manifest) in &image.manifests {
            file(digest).write_all(&manifest.bytes).unwrap();
        }
        for (digest, blob) in &image.blobs {
            let mut file = file(digest);
            blob.pieces().for_each(|piece| file.write_all(&piece).unwrap());
        }
        let (name, mut entry) = (format!("registry.example.com/team/app:{number}"), image.descriptor());
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        names.push(name);
        entries.push(entry);
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    names
}

/// Reads files, hashes them, and writes them to one file, which is synced.
fn cat_and_hash(from: &[PathBuf], to: &Path) -> Duration {
    sync_disks();
    let started = Instant::now();
    let (mut target, mut chunk) = (File::create(to).unwrap(), vec![0; 1 << 20]);
    for path in from {
        let (mut source, mut hasher) = (File::open(path).unwrap(), Sha256::new());
        loop {
            let length = source.read(&mut chunk).unwrap();
            if length == 0 {
                break;
            }
            hasher.update(&chunk[..length]);
            target.write_all(&chunk[..length]).unwrap();
        }
        std::hint::black_box(hasher.finalize());
    }
    target.sync_all().unwrap();
    started.elapsed()
}

/// Waits until earlier writes are on the disk, so that they do not slow down what is measured next.
fn sync_disks() {
    assert!(std::process::Command::new("sync").status().unwrap().success());
}

fn folder_bytes(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn report(what: &str, elapsed: Duration, cat: Duration, peak: u64, bytes: u64) {
    println!(
        "{what}: {} MiB written in {:.1} s, {:.2} times `cat` plus hashing ({:.1} s; aim 1.2), peak {} MiB (aim 64)",
        bytes / MIB,
        elapsed.as_secs_f64(),
        elapsed.as_secs_f64() / cat.as_secs_f64(),
        cat.as_secs_f64(),
        peak / MIB
    );
}
