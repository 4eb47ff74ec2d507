//! Files of a collector that survive a kill: the bytes of manifests, and a line for each thing collected.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::error::io_error;

const OPERATION: &str = "recording what the bundle holds";
const SPOOL: &str = "manifests";
const JOURNAL: &str = "journal";

/// Something collected.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum CollectedEntry {
    /// A manifest, whose bytes are in the spool.
    Manifest { repository: RepositoryName, descriptor: Descriptor, offset: u64, subject: Option<Digest> },
    /// A tag.
    Tag { repository: RepositoryName, tag: Tag, digest: Digest },
    /// A blob, and the source to read it from.
    Blob { repository: RepositoryName, digest: Digest, size: u64, source: String, inline: Option<Box<str>> },
}

/// The files.
#[derive(Debug)]
pub(crate) struct Journal {
    spool: File,
    spool_size: u64,
    lines: File,
}

impl Journal {
    /// Opens the files in a folder, and calls `replay` with what they hold.
    pub(crate) fn open(folder: &Path, mut replay: impl FnMut(CollectedEntry)) -> Result<Journal> {
        let opened = (|| {
            let open = |name: &str| {
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(folder.join(name))
            };
            let (spool, lines) = (open(SPOOL)?, open(JOURNAL)?);
            let spool_size = spool.metadata()?.len();
            let (mut reader, mut kept, mut line) = (BufReader::new(&lines), 0, Vec::new());
            loop {
                line.clear();
                let read = reader.read_until(b'\n', &mut line)?;
                // A kill can leave half a line, and a power cut lines whose manifest is missing.
                let Some(entry) =
                    line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<CollectedEntry>(line).ok())
                else {
                    break;
                };
                if let CollectedEntry::Manifest { descriptor, offset, .. } = &entry
                    && offset + descriptor.size > spool_size
                {
                    break;
                }
                kept += read as u64;
                replay(entry);
            }
            lines.set_len(kept)?;
            let mut lines = lines;
            lines.seek(std::io::SeekFrom::End(0))?;
            Ok(Journal { spool, spool_size, lines })
        })();
        opened.map_err(|error| io_error(OPERATION, folder, error))
    }

    /// Adds an entry.
    pub(crate) fn append(&mut self, entry: &CollectedEntry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        self.lines.write_all(&line).map_err(|error| io_error(OPERATION, Path::new(JOURNAL), error))
    }

    /// Adds the bytes of a manifest. Returns their offset.
    pub(crate) fn spool(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.spool_size;
        let written = self.spool.write_all_at(bytes, offset);
        written.map_err(|error| io_error(OPERATION, Path::new(SPOOL), error))?;
        self.spool_size += bytes.len() as u64;
        Ok(offset)
    }

    /// Reads the bytes of a manifest.
    pub(crate) fn read(&self, offset: u64, size: u64) -> Result<Bytes> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.spool
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| io_error("reading a manifest of the bundle", Path::new(SPOOL), error))?;
        Ok(bytes.into())
    }
}
