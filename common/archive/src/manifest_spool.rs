//! Manifests of a plan until they are written: in memory, and beyond a limit in a temporary file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Manifest};

/// Bytes of manifests that are held in memory: a few thousand.
const MAX_BYTES_IN_MEMORY: usize = 8 << 20;

/// Bytes of manifests, by digest.
#[derive(Debug)]
pub struct ManifestSpool {
    in_memory: HashMap<Digest, Bytes>,
    bytes_in_memory: usize,
    max_bytes_in_memory: usize,
    /// Offset and length of those in the file.
    in_file: HashMap<Digest, (u64, usize)>,
    file_length: u64,
    /// Has no name, and vanishes with the process.
    file: Option<File>,
}

impl Default for ManifestSpool {
    fn default() -> ManifestSpool {
        ManifestSpool::with_memory(MAX_BYTES_IN_MEMORY)
    }
}

impl ManifestSpool {
    fn with_memory(max_bytes_in_memory: usize) -> ManifestSpool {
        ManifestSpool {
            in_memory: HashMap::new(),
            bytes_in_memory: 0,
            max_bytes_in_memory,
            in_file: HashMap::new(),
            file_length: 0,
            file: None,
        }
    }

    /// Adds a manifest, unless it is there.
    pub fn insert(&mut self, manifest: &Manifest) -> Result<()> {
        let (digest, bytes) = (manifest.digest(), manifest.bytes());
        if self.contains(digest) {
            return Ok(());
        }
        if self.bytes_in_memory + bytes.len() <= self.max_bytes_in_memory {
            self.bytes_in_memory += bytes.len();
            self.in_memory.insert(digest.clone(), bytes.clone());
            return Ok(());
        }
        let spooled = self.append(bytes);
        spooled.map_err(|error| local_error(digest, error))?;
        self.in_file.insert(digest.clone(), (self.file_length, bytes.len()));
        self.file_length += bytes.len() as u64;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// Whether a manifest is there.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.in_memory.contains_key(digest) || self.in_file.contains_key(digest)
    }

    /// Returns the bytes of a manifest.
    pub fn get(&self, digest: &Digest) -> Result<Bytes> {
        if let Some(bytes) = self.in_memory.get(digest) {
            return Ok(bytes.clone());
        }
        let (Some((offset, length)), Some(file)) = (self.in_file.get(digest), &self.file) else {
            let detail = "it was not collected";
            return Err(Error::new(ErrorKind::NotFound, format!("reading the manifest {digest}"), detail));
        };
        let mut bytes = vec![0; *length];
        file.read_exact_at(&mut bytes, *offset).map_err(|error| local_error(digest, error))?;
        Ok(bytes.into())
    }
}

fn local_error(digest: &Digest, error: io::Error) -> Error {
    Error::new(ErrorKind::Local, format!("spooling the manifest {digest}"), error.to_string())
        .with_source(error)
        .with_hint("the folder for temporary files, TMPDIR, needs space for all manifests")
}

#[cfg(test)]
mod tests {
    use imgsync_oci::MediaType;

    use super::*;

    #[test]
    fn manifests_beyond_the_memory_limit_come_back_from_the_file() {
        let mut spool = ManifestSpool::with_memory(300);
        let manifests: Vec<Manifest> = (0..20)
            .map(|number| {
                let text = format!(r#"{{"schemaVersion":2,"layers":[],"annotations":{{"number":"{number}"}}}}"#);
                Manifest::parse(text.into(), &MediaType::OciManifest).unwrap()
            })
            .collect();
        for manifest in manifests.iter().chain(&manifests) {
            spool.insert(manifest).unwrap();
        }
        assert!(!spool.in_memory.is_empty() && spool.in_file.len() > 10);
        for manifest in &manifests {
            assert_eq!(spool.get(manifest.digest()).unwrap(), manifest.bytes());
        }
        let error = spool.get(&Digest::sha256(b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
