//! Bundles that come out of a pipe: read once, forward. Their index comes first, so that a signature is verified before
//! anything is believed; all content is hashed while it passes.

use std::collections::{HashMap, HashSet};
use std::io::{self, Cursor, Read};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::{Digest, Hasher};

use crate::index::BundleIndex;
use crate::open::{BLOCK_BYTES, check_signature, read_index};
use crate::public_key::PublicKey;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Size limit of the name of a member.
const MAX_NAME_BYTES: u64 = 4096;
/// Folder of all content.
const BLOBS: &str = "blobs/";

/// A bundle that is read forward, behind its index.
#[derive(Debug)]
pub struct BundleStream<R> {
    input: HeadReader<R>,
    label: String,
    /// Its index.
    pub index: BundleIndex,
    /// Signature of the index in base64, if it has one.
    pub signature: Option<String>,
}

/// What was read of the content of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamedContents {
    /// Number of contents in the index.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Number of faults.
    pub faults: u64,
}

/// Reads at growing offsets, and the last block once more.
#[derive(Debug)]
struct HeadReader<R> {
    input: R,
    position: u64,
    /// The last bytes, if they were a block.
    last: Vec<u8>,
}

impl<R: Read> HeadReader<R> {
    fn read_exact_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let skipped = offset.checked_sub(self.position).ok_or(io::ErrorKind::NotSeekable)?;
        if io::copy(&mut self.input.by_ref().take(skipped), &mut io::sink())? < skipped {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.read_exact(buffer)?;
        self.position = offset + buffer.len() as u64;
        self.last.clear();
        if buffer.len() as u64 == BLOCK_BYTES {
            self.last.extend_from_slice(buffer);
        }
        Ok(())
    }
}

impl<R: Read> BundleStream<R> {
    /// Reads the index of a bundle. With a key, the signature must hold. The label is for messages.
    pub fn open(input: R, label: &str, key: Option<&PublicKey>) -> Result<BundleStream<R>> {
        let mut input = HeadReader { input, position: 0, last: Vec::new() };
        let (index_bytes, signature) = read_index(label, &mut |buffer, offset| input.read_exact_at(buffer, offset))?;
        check_signature(label, &index_bytes, signature.as_deref(), key)?;
        let index = BundleIndex::decode(&index_bytes, &format!("the index of {label}"))?;
        Ok(BundleStream { input, label: label.to_owned(), index, signature })
    }

    /// Reads the rest without looking at it, so that the program at the other side can finish.
    pub fn skip_contents(mut self) -> Result<()> {
        let read = io::copy(&mut self.input.input, &mut io::sink());
        read.map(drop).map_err(|error| self.failed(error))
    }

    /// Hashes all content, and calls `report` with each fault. Fails if the bundle cannot be read to its end.
    pub fn verify_contents(self, mut report: impl FnMut(String)) -> Result<StreamedContents> {
        let BundleStream { input: HeadReader { input, last, .. }, label, index, .. } = self;
        let operation = format!("verifying {label}");
        let failed = |error: io::Error| read_error(&operation, error);
        let mut contents: HashMap<&Digest, u64> = HashMap::new();
        for entry in &index.repositories {
            contents.extend(entry.manifests.iter().chain(&entry.blobs).map(|content| (&content.digest, content.size)));
        }
        let mut read = StreamedContents {
            contents: contents.len() as u64,
            bytes: contents.values().fold(0, |sum, size| u64::saturating_add(sum, *size)),
            faults: 0,
        };
        let mut fault = |text: String| {
            read.faults += 1;
            report(text);
        };
        let mut archive = tar::Archive::new(Cursor::new(last).chain(input));
        let (mut seen, mut long_name) = (HashSet::new(), None);
        // Raw: without the records for long names, which may be of any size.
        for member in archive.entries().map_err(failed)?.raw(true) {
            let mut member = member.map_err(failed)?;
            let kind = member.header().entry_type();
            if kind.is_gnu_longname() {
                long_name = Some(read_name(&mut member).map_err(failed)?);
                continue;
            }
            if kind.is_pax_local_extensions() {
                let detail = "it has extended headers, which bundles do not have: another program has packed it again";
                return Err(Error::new(ErrorKind::Unsupported, &operation, detail)
                    .with_hint("write the bundle to a file, and verify that"));
            }
            let path = long_name.take().unwrap_or_else(|| member.path_bytes().into_owned());
            let path = String::from_utf8_lossy(&path).into_owned();
            let Some(digest) = content_digest(&path) else { continue };
            // What the index does not have is not loaded either.
            let Some((&digest, &expected)) = contents.get_key_value(&digest) else { continue };
            let size = member.size();
            if !seen.insert(digest) {
                fault(format!("{}: it is there twice", sanitize_within(&path, 200)));
            } else if !kind.is_file() {
                fault(format!("{digest}: it is no regular file"));
            } else if size != expected {
                fault(format!("{digest}: it has {size} bytes, and the index has {expected}"));
            } else {
                let found = hash(&mut member, size, digest).map_err(failed)?;
                if found != *digest {
                    fault(format!("{digest}: its content has the digest {found}"));
                }
            }
        }
        let mut missing: Vec<&Digest> = contents.into_keys().filter(|digest| !seen.contains(digest)).collect();
        missing.sort();
        missing.into_iter().for_each(|digest| fault(format!("{digest}: it is not in the bundle")));
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
        Ok(read)
    }

    fn failed(&self, error: io::Error) -> Error {
        read_error(&format!("reading {}", self.label), error)
    }
}

/// Returns the digest of a content by its path in the bundle.
fn content_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix(BLOBS)?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Reads the name of the next member.
fn read_name(member: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut name = Vec::new();
    member.take(MAX_NAME_BYTES + 1).read_to_end(&mut name)?;
    if name.len() as u64 > MAX_NAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the name of a member is too long"));
    }
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// Hashes the content of a member, which must have all bytes of its header.
fn hash(member: &mut impl Read, size: u64, digest: &Digest) -> io::Result<Digest> {
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut chunk, mut left) = (vec![0; CHUNK_BYTES], size);
    while left > 0 {
        let length = match member.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&chunk[..length]);
        left = left.saturating_sub(length as u64);
    }
    Ok(hasher.finish())
}

fn read_error(operation: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::new(ErrorKind::TimedOut, operation, error.to_string()),
        _ => {
            let detail = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the stream ended in the middle of the bundle".to_owned(),
                _ => error.to_string(),
            };
            Error::new(ErrorKind::Corrupt, operation, detail)
                .with_source(error)
                .with_hint("the program that writes the bundle ended early, or the stream is damaged: send it again")
        }
    }
}
