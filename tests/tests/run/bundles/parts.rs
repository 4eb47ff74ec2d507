//! Bundles in parts: sizes, order, names, damage.

use std::path::{Path, PathBuf};

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};

use super::{bundle, create, load, rules, visible_files};

const PART_SIZE: u64 = 70_000;

/// A bundle in parts of an image, and a registry to load it into.
struct Split {
    folder: PathBuf,
    far: Imgsync,
    target: FaultRegistry,
    image: TestImage,
    _near: Imgsync,
}

impl Split {
    async fn make(name: &str) -> Split {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big(name, 500_000);
        source.push("a", "1", &image);
        let near = rules(&source.host(), &["a"]);
        create(&near, "out/", &["--part-size", &PART_SIZE.to_string()]).await.assert_code(0);
        Split { folder: near.work_dir().join("out"), far: Imgsync::new(), target, image, _near: near }
    }

    async fn load(&self) -> Output {
        load(&self.far, &self.folder, &format!("{}/m", self.target.host()), &[]).await
    }

    fn part(&self, number: usize) -> PathBuf {
        self.folder.join(format!("bundle.tar.{number:03}"))
    }

    /// Asserts that loading fails with this message before anything is pushed.
    async fn assert_refused(&self, reason: &str) {
        let refused = self.load().await;
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains(reason), "{reason}: {}", refused.stderr);
        assert_eq!(self.target.count(RequestType::UploadStart), 0, "{reason}");
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn parts_have_the_exact_size_and_load_in_any_order_under_any_name() {
    let split = Split::make("parts-any").await;
    let is_part = |name: &String| name.starts_with("bundle.tar.0");
    let parts: Vec<String> = visible_files(&split.folder).into_iter().filter(is_part).collect();
    assert!(parts.len() >= 8, "{parts:?}");
    let sizes: Vec<u64> = parts.iter().map(|name| std::fs::metadata(split.folder.join(name)).unwrap().len()).collect();
    let (last, others) = sizes.split_last().unwrap();
    assert!(others.iter().all(|size| *size == PART_SIZE) && *last <= PART_SIZE, "{sizes:?}");
    let checked =
        std::process::Command::new("sha256sum").args(["-c", "bundle.tar.sha256"]).current_dir(&split.folder).output();
    assert!(checked.unwrap().status.success());
    // Two swap their names, one gets another, one lies in another folder.
    let hidden = split.folder.join("swap");
    std::fs::rename(split.part(1), &hidden).unwrap();
    std::fs::rename(split.part(2), split.part(1)).unwrap();
    std::fs::rename(&hidden, split.part(2)).unwrap();
    std::fs::rename(split.part(3), split.folder.join("from the second disk")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(split.part(4), elsewhere.path().join("x")).unwrap();
    split.assert_refused("1 of").await;
    let paths = [split.folder.to_str().unwrap(), elsewhere.path().to_str().unwrap()];
    bundle(&split.far, &["verify", paths[0], paths[1]]).await.assert_code(0);
    let to = format!("{}/m", split.target.host());
    bundle(&split.far, &["load", paths[0], paths[1], "--to", &to]).await.assert_code(0);
    split.target.assert_holds("m/a", "1", &split.image);
}

#[tokio::test]
async fn a_part_that_is_missing_truncated_or_foreign_is_named_before_anything_is_pushed() {
    let (split, other) = tokio::join!(Split::make("parts-missing"), Split::make("parts-foreign"));
    let kept = std::fs::read(split.part(2)).unwrap();
    std::fs::remove_file(split.part(2)).unwrap();
    split.assert_refused("bundle.tar.002").await;
    std::fs::write(split.part(2), &kept[..1000]).unwrap();
    split.assert_refused("bundle.tar.002 is truncated, or a part of another bundle: it has 1000 bytes").await;
    std::fs::copy(other.part(2), split.part(2)).unwrap();
    split.assert_refused("bundle.tar.002 is damaged, or a part of another bundle").await;
    std::fs::write(split.part(2), &kept).unwrap();
    // The list of another bundle.
    let list = split.folder.join("bundle.tar.json");
    let own = std::fs::read(&list).unwrap();
    std::fs::copy(other.folder.join("bundle.tar.json"), &list).unwrap();
    split.assert_refused("part of another bundle").await;
    std::fs::write(&list, &own[..own.len() / 2]).unwrap();
    split.assert_refused("truncated or damaged").await;
    std::fs::remove_file(&list).unwrap();
    split.assert_refused("the list is written last").await;
    std::fs::write(&list, &own).unwrap();
    split.load().await.assert_code(0);
    split.target.assert_holds("m/a", "1", &split.image);
}

#[tokio::test]
async fn a_damaged_part_is_named_and_nothing_of_its_image_is_tagged_until_it_is_whole() {
    let split = Split::make("parts-damaged").await;
    // Behind the beginning that identifies it.
    flip(&split.part(4), 69_000);
    let found = bundle(&split.far, &["verify", split.folder.to_str().unwrap()]).await.assert_code(1);
    assert!(found.stderr.contains("bundle.tar.004: its SHA-256 is"), "{}", found.stderr);
    let failed = split.load().await.assert_code(1);
    assert!(failed.stderr.contains("bundle.tar.004 is damaged"), "{}", failed.stderr);
    assert_eq!(split.target.tags_in_all(), 0);
    flip(&split.part(4), 69_000);
    split.load().await.assert_code(0);
    split.target.assert_holds("m/a", "1", &split.image);
}

#[tokio::test]
async fn a_bundle_of_a_newer_version_names_that_version() {
    let split = Split::make("parts-newer").await;
    let list = split.folder.join("bundle.tar.json");
    let own = std::fs::read_to_string(&list).unwrap();
    let newer = own.replace("\"imgsync_bundle_parts\": 1", "\"imgsync_bundle_parts\": 2").replace("3.0.0", "9.1.0");
    std::fs::write(&list, newer).unwrap();
    split.assert_refused("it has format 2, written by imgsync 9.1.0").await;
    std::fs::remove_file(&list).unwrap();
    // The same of the index within one file.
    let whole: Vec<u8> = (1..).map_while(|number| std::fs::read(split.part(number)).ok()).flatten().collect();
    let at = whole.windows(17).position(|window| window == b"imgsync-bundle 1\n").unwrap();
    let mut bytes = whole.clone();
    bytes[at + 15] = b'2';
    let file = split.far.file("newer.tar", &bytes);
    let refused = load(&split.far, &file, &format!("{}/m", split.target.host()), &[]).await.assert_code(1);
    assert!(refused.stderr.contains("has format 2, written by imgsync 3.0.0"), "{}", refused.stderr);

    // And a file that ends early, wherever.
    for end in [0, 511, 1024, at + 100, whole.len() / 2, whole.len() - 1500] {
        let file = split.far.file("short.tar", &whole[..end]);
        let refused = load(&split.far, &file, &format!("{}/m", split.target.host()), &[]).await;
        assert_ne!(refused.code, Some(0), "{end}");
        assert_eq!(split.target.tags_in_all(), 0, "{end}");
    }
    let file = split.far.file("whole.tar", &whole);
    load(&split.far, &file, &format!("{}/m", split.target.host()), &[]).await.assert_code(0);
    split.target.assert_holds("m/a", "1", &split.image);
}
