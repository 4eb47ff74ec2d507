//! Files of a bundle: its parts, and the list of parts, which is written last.

mod reader;
mod writer;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Algorithm, Digest, Hasher};
use serde::{Deserialize, Serialize};

pub use self::reader::{PartDamage, PartReader};
pub use self::writer::{PartWriter, WrittenParts};
use crate::error::io_error;

/// Format of lists that this version writes, and the newest that it reads.
const LIST_FORMAT: u32 = 1;
/// Bytes at the beginning of a part that identify it without reading it whole.
const HEAD_BYTES: usize = 64 << 10;
/// Size of a read in bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Maximum size of a list in bytes: more parts than any bundle has.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Names of the files of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFiles {
    /// Folder of all files.
    pub folder: PathBuf,
    /// Name of the bundle.
    pub name: String,
    /// Size of a part in bytes; `None` for one file.
    pub part_size: Option<u64>,
}

/// List of the parts of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartList {
    /// Format of the list.
    #[serde(rename = "imgsync_bundle_parts")]
    pub format: u32,
    /// Version of imgsync.
    pub imgsync: String,
    /// Size of the bundle in bytes.
    pub size: u64,
    /// Number of parts.
    pub count: u64,
    /// SHA-256 of the bundle's index.
    pub index: Digest,
    /// The parts in order.
    pub parts: Vec<BundlePart>,
}

/// A part of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlePart {
    /// Name of the file.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// SHA-256 of its first 64 KiB, which identifies a file that was renamed.
    pub head_sha256: String,
}

impl BundleFiles {
    /// Returns the name of a part, from 1.
    pub fn part_name(&self, number: usize) -> String {
        match self.part_size {
            Some(_) => format!("{}.{number:03}", self.name),
            None => self.name.clone(),
        }
    }

    /// Whether a file is the bundle itself or one of its parts. A list of parts may have been written by anybody.
    pub fn is_part_name(&self, name: &str) -> bool {
        match name.strip_prefix(&self.name) {
            Some("") => true,
            Some(rest) => {
                let number = rest.strip_prefix('.').unwrap_or_default();
                number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit())
            }
            None => false,
        }
    }

    /// Returns the path of a whole part.
    pub fn part(&self, number: usize) -> PathBuf {
        self.folder.join(self.part_name(number))
    }

    /// Returns the path of a part that is being written.
    pub fn partial(&self, number: usize) -> PathBuf {
        self.folder.join(format!(".{}.partial", self.part_name(number)))
    }

    /// Returns the path of the list of parts.
    pub fn list(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// Returns the path of the file for `sha256sum -c`.
    pub fn checksums(&self) -> PathBuf {
        self.folder.join(format!("{}.sha256", self.name))
    }

    /// Returns the path of the copy of the index.
    pub fn index(&self) -> PathBuf {
        self.folder.join(format!("{}.index", self.name))
    }
}

impl PartList {
    /// Creates a list.
    pub fn new(index: Digest, parts: Vec<BundlePart>) -> PartList {
        let (size, count) = (parts.iter().map(|part| part.size).sum(), parts.len() as u64);
        PartList { format: LIST_FORMAT, imgsync: env!("CARGO_PKG_VERSION").to_owned(), size, count, index, parts }
    }

    /// Reads a list.
    pub fn read(path: &Path) -> Result<PartList> {
        let operation = format!("reading {}", path.display());
        let file = File::open(path).map_err(|error| io_error(&operation, path, error))?;
        let mut text = Vec::new();
        file.take(MAX_LIST_BYTES).read_to_end(&mut text).map_err(|error| io_error(&operation, path, error))?;
        let damaged = |detail: String| {
            Error::new(ErrorKind::Corrupt, &operation, detail)
                .with_hint("it is truncated or damaged: carry it over again")
        };
        let list: serde_json::Value = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match list.get("imgsync_bundle_parts").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(LIST_FORMAT) => {
                let version = list.get("imgsync").and_then(serde_json::Value::as_str).unwrap_or("a newer imgsync");
                let version = imgsync_oci::sanitize::sanitize_within(version, 40);
                let detail = format!(
                    "it has format {format}, written by imgsync {version}; this imgsync {} reads format {LIST_FORMAT}",
                    env!("CARGO_PKG_VERSION")
                );
                return Err(Error::new(ErrorKind::Unsupported, &operation, detail)
                    .with_hint("use that version of imgsync on this side too"));
            }
            Some(_) => {}
            None => return Err(damaged("it is not the list of a bundle's parts".to_owned())),
        }
        let list: PartList = serde_json::from_value(list).map_err(|error| damaged(error.to_string()))?;
        let is_hash = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !list.parts.iter().all(|part| is_hash(&part.sha256) && is_hash(&part.head_sha256)) {
            return Err(damaged("a SHA-256 in it is none".to_owned()));
        }
        let size = list.parts.iter().try_fold(0_u64, |size, part| size.checked_add(part.size));
        let is_name = |part: &BundlePart| !part.name.contains('/') && !matches!(&*part.name, "" | "." | "..");
        if size != Some(list.size) || list.count != list.parts.len() as u64 || !list.parts.iter().all(is_name) {
            return Err(damaged("its sizes or names contradict each other".to_owned()));
        }
        Ok(list)
    }

    /// Returns the list as JSON, one part a line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Returns the parts, and other files, as `sha256sum -c` reads them.
    pub fn to_checksums(&self, others: &[(String, String)]) -> Vec<u8> {
        let parts = self.parts.iter().map(|part| (&part.sha256, &part.name));
        let others = others.iter().map(|(name, sha256)| (sha256, name));
        parts.chain(others).map(|(sha256, name)| format!("{sha256}  {name}\n")).collect::<String>().into_bytes()
    }
}

/// Whether a file begins as a list of parts does.
pub fn is_part_list(path: &Path) -> bool {
    // A pipe would block until somebody writes to it.
    if !path.is_file() {
        return false;
    }
    let mut head = [0; 200];
    let read = File::open(path).and_then(|mut file| file.read(&mut head)).unwrap_or_default();
    String::from_utf8_lossy(&head[..read]).contains("\"imgsync_bundle_parts\"")
}

/// Returns the SHA-256 of a file and of its head, in hex.
pub fn hash_part(path: &Path) -> Result<(String, String)> {
    let operation = format!("reading {}", path.display());
    let mut file = File::open(path).map_err(|error| io_error(&operation, path, error))?;
    let (mut whole, mut head) = (Hasher::new(Algorithm::Sha256), HeadHash::default());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((whole.finish().hex().to_owned(), head.finish())),
            Ok(read) => {
                whole.update(&chunk[..read]);
                head.update(&chunk[..read]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(&operation, path, error)),
        }
    }
}

/// Returns the bytes that are free for this user in the file system of a folder.
pub fn free_space(folder: &Path) -> Result<u64> {
    let status = rustix::fs::statvfs(folder)
        .map_err(|error| io_error(&format!("checking the free space of {}", folder.display()), folder, error.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Hash of the first bytes of a part.
#[derive(Debug)]
struct HeadHash {
    hash: Hasher,
    missing: usize,
}

impl Default for HeadHash {
    fn default() -> HeadHash {
        HeadHash { hash: Hasher::new(Algorithm::Sha256), missing: HEAD_BYTES }
    }
}

impl HeadHash {
    fn update(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(self.missing);
        self.hash.update(&bytes[..taken]);
        self.missing -= taken;
    }

    fn finish(self) -> String {
        self.hash.finish().hex().to_owned()
    }
}
